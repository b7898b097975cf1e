"""What a server is told: one frozen tree of options, and where each of its values comes from.

A value comes from the default, a TOML file, the environment or a flag of the command line; the later ones win. Unknown
names and values out of range are refused, with the place that they stand in. Nothing here reads a certificate or a
token: options name files.

Environment: ``VECSTORE_SERVER_LISTEN`` is `listen` of ``[server]``, ``VECSTORE_SERVER_TLS_KEY`` is `key` of ``[tls]``.
The options of ``[store]`` have the names that an embedded store knows too, as in ``VECSTORE_MEMORY_BYTES_MAX``.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
import typing
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from ..config import MIB, RECORD_BYTES_MAX, Config
from ..errors import InvalidArgument
from .admission import AdmissionSettings
from .auth import AuthSettings
from .schedule import SnapshotSettings

__all__ = [
    "LogSettings",
    "MetricsSettings",
    "Option",
    "ReplicationSettings",
    "ServerSettings",
    "Settings",
    "TLSSettings",
    "TraceSettings",
    "documented",
    "load",
    "options",
]

Origin = Literal["default", "file", "environment", "flag"]

_FROM_KUBERNETES = re.compile(r"_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT|PORT_\d+_(TCP|UDP)(_\w+)?)$")
"""Kubernetes sets such variables for a service named vecstore-server; they mean nothing here."""


class ServerSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where the server listens, and how it lives and ends.

    Attributes
    ----------
    data
        Directory of the store; made where it does not exist.
    must_exist
        Whether to refuse to make it, so that a disk that is not mounted is not served as an empty store.
    archive
        Repository to which the log is shipped all the time: a path, or a URL of s3, gs or az. Empty: no archive.
    listen
        HOST:PORT of gRPC; port 0 takes a free one. Without authentication only this machine's own addresses.
    http
        HOST:PORT of metrics and health over HTTP; port 0 takes a free one, empty turns it off.
    region
        Name of the place that this server stands in; clients may prefer it.
    insecure
        Whether to listen on other addresses though nobody is asked who they are.
    device
        "cpu", "gpu", or "auto" for what there is.
    drain_s
        Seconds that calls in flight have to finish once the server is told to stop; then they are cancelled.
    reflection
        Whether clients may ask which services there are.
    message_bytes_max
        Bytes that one request may have; a record of 32 MiB must fit.
    streams_max
        Calls that one connection may have at a time; more wait in the client.
    keepalive_interval_s
        An idle connection is asked for a sign of life after so many seconds.
    keepalive_timeout_s
        A connection that gives none for so many seconds is closed.
    ping_interval_s_min
        Clients that ping more often than this are disconnected.
    connection_age_s_max
        Connections are ended gracefully after so many seconds, so that clients spread again; 0 for never.
    """

    data: str = ""
    must_exist: bool = False
    archive: str = ""
    listen: str = "127.0.0.1:7601"
    http: str = "127.0.0.1:7602"
    region: str = ""
    insecure: bool = False
    device: Literal["auto", "cpu", "gpu"] = "auto"
    drain_s: Annotated[float, Meta(ge=0, le=3600)] = 30.0
    reflection: bool = True
    message_bytes_max: Annotated[int, Meta(ge=RECORD_BYTES_MAX + MIB, le=1 << 30)] = RECORD_BYTES_MAX + 8 * MIB
    streams_max: Annotated[int, Meta(ge=1, le=1_000_000)] = 256
    keepalive_interval_s: Annotated[float, Meta(ge=1)] = 60.0
    keepalive_timeout_s: Annotated[float, Meta(ge=1)] = 20.0
    ping_interval_s_min: Annotated[float, Meta(ge=0)] = 5.0
    connection_age_s_max: Annotated[float, Meta(ge=0)] = 0.0


class TLSSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Encryption. The files are read again on SIGHUP.

    Attributes
    ----------
    certificate
        File of the server's certificate chain, PEM. Empty: no encryption.
    key
        File of its private key, PEM.
    client_ca
        File of the authorities whose certificates clients must show, PEM. Empty: none is asked for.
    """

    certificate: str = ""
    key: str = ""
    client_ca: str = ""


class LogSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The log, on stderr. The level is read again on SIGHUP.

    Attributes
    ----------
    level
        Least severe level that is written.
    format
        "json": one object a line; "text": for people; "auto": text on a terminal, else JSON.
    """

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "json", "text"] = "auto"


class TraceSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Spans, by OpenTelemetry.

    Attributes
    ----------
    endpoint
        URL of a collector that takes OTLP over gRPC, as in http://127.0.0.1:4317. Empty: no spans, unless the process
        has a tracer provider of its own.
    sample_share
        Share of the calls that become traces where the client did not decide.
    service_name
        Name under which the collector files them.
    """

    endpoint: str = ""
    sample_share: Annotated[float, Meta(ge=0, le=1)] = 0.1
    service_name: str = "vecstore"


class MetricsSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is measured beside the calls.

    Attributes
    ----------
    recall_every
        One in so many searches is repeated in the background with an exact scan, which gives the measured recall; 0
        for none. A scan reads every vector: in memory they are then all mapped.
    recall_queue_max
        Searches that may wait to be repeated; beyond, they are left out.
    recall_time_share
        Share of the time that the background may spend repeating searches.
    connections_max
        HTTP connections at a time; a new one ends the oldest.
    """

    recall_every: Annotated[int, Meta(ge=0)] = 0
    recall_queue_max: Annotated[int, Meta(ge=1, le=10_000)] = 64
    recall_time_share: Annotated[float, Meta(gt=0, le=1)] = 0.05
    connections_max: Annotated[int, Meta(ge=2, le=1_000)] = 16


class ReplicationSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """This store among others of its lineage. What a store is, is on its disk: no option changes it.

    Attributes
    ----------
    standby_of
        HOST:PORT of a primary. An empty directory becomes its standby; a store that was fenced rejoins it.
    slot
        Name under which the primary holds its log for this store; empty: the store's id.
    synchronous
        Region whose standby `ack="replicated"` waits for; empty: none. It never means this store itself.
    advertise
        HOST:PORT at which other stores reach this server; empty: where it listens.
    bootstrap_from
        Repository from which an empty directory is filled before it follows: a path, or a URL of s3, gs or az.
    token_file
        File of the token that this server shows to others; read again for each link.
    ca
        File of the authorities that other servers' certificates are checked by, PEM; "public" for those of gRPC. Empty:
        no encryption, unless a certificate is given.
    certificate
        File of the certificate chain that this server shows to others, PEM.
    key
        File of its private key, PEM.
    plaintext
        Whether the token may travel over the network without encryption.
    start_alone_after_s
        A primary whose peers are silent takes writes after so many seconds, with an alarm.
    call_every_s
        Heartbeats, and calls that were not answered, are repeated so often.
    silence_s
        A stream that was silent for so long is begun again.
    stall_s
        A stream that stands still while the primary moves is an alarm after so long.
    step_down_s
        A promotion waits so long for the old primary's word that it has stepped down.
    catch_up_s
        With that word, a promotion waits so long for what the old primary has. A switchover whose target would need
        longer to have all is refused.
    retry_s
        A standby that stopped looks again so often.
    frame_bytes_max
        Bytes of records that are sent at a time.
    ready_lag_s_max
        A standby that is more seconds behind is not ready to take over, as `doctor` and metrics say it; a promotion
        does not ask.
    scrub_every_s
        A primary compares the next range of points with each standby so often; 0 for never.
    scrub_points
        Points in one range.
    """

    standby_of: str = ""
    slot: str = ""
    synchronous: str = ""
    advertise: str = ""
    bootstrap_from: str = ""
    token_file: str = ""
    ca: str = ""
    certificate: str = ""
    key: str = ""
    plaintext: bool = False
    start_alone_after_s: Annotated[float, Meta(ge=0, le=86_400)] = 60.0
    call_every_s: Annotated[float, Meta(ge=0.1, le=60)] = 1.0
    silence_s: Annotated[float, Meta(ge=0.3, le=600)] = 5.0
    stall_s: Annotated[float, Meta(ge=1, le=86_400)] = 30.0
    step_down_s: Annotated[float, Meta(ge=0, le=60)] = 1.0
    catch_up_s: Annotated[float, Meta(ge=0, le=600)] = 10.0
    retry_s: Annotated[float, Meta(ge=0.5, le=3_600)] = 30.0
    frame_bytes_max: Annotated[int, Meta(ge=64 << 10, le=16 * MIB)] = 4 * MIB
    ready_lag_s_max: Annotated[float, Meta(gt=0, le=86_400)] = 30.0
    scrub_every_s: Annotated[float, Meta(ge=0, le=86_400)] = 60.0
    scrub_points: Annotated[int, Meta(ge=1, le=1_000_000)] = 10_000


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The whole tree; each part of the server is handed its own section."""

    server: ServerSettings = ServerSettings()
    tls: TLSSettings = TLSSettings()
    auth: AuthSettings = AuthSettings()
    limits: AdmissionSettings = AdmissionSettings()
    log: LogSettings = LogSettings()
    trace: TraceSettings = TraceSettings()
    metrics: MetricsSettings = MetricsSettings()
    snapshot: SnapshotSettings = SnapshotSettings()
    replication: ReplicationSettings = ReplicationSettings()
    store: Config = Config(switch_interval_s=0.0002)
    origins: dict[tuple[str, str], Origin] = {}


class Option(msgspec.Struct, frozen=True):
    """One option as it is in force."""

    section: str
    name: str
    value: Any
    origin: Origin
    variable: str
    doc: str


_SECTIONS: dict[str, Any] = {name: kind for name, kind in typing.get_type_hints(Settings).items() if name != "origins"}


def _variable(section: str, name: str) -> str:
    """Return the environment variable of an option."""
    prefix = {"server": "VECSTORE_SERVER", "store": "VECSTORE"}.get(section, f"VECSTORE_SERVER_{section.upper()}")
    return f"{prefix}_{name.upper()}"


@cache
def _variables() -> dict[str, tuple[str, str]]:
    return {
        _variable(section, field.name): (section, field.name)
        for section, kind in _SECTIONS.items()
        for field in msgspec.structs.fields(kind)
    }


def load(
    file: str | os.PathLike[str] | None = None,
    flags: Mapping[tuple[str, str], Any] | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Settings:
    """Combine defaults, a TOML file, the environment and flags.

    Parameters
    ----------
    file
        A TOML file with a table for each section; None for none.
    flags
        Values by section and name.

    Raises
    ------
    InvalidArgument
        An unknown name, or a value that is not allowed; the message says where it stands.
    """
    found: dict[tuple[str, str], tuple[Any, Origin, str]] = {}
    if file is not None:
        for place, value in _read(Path(file)):
            found[place] = (value, "file", f"{file}: {place[0]}.{place[1]}")
    for variable in sorted(environment):
        place_of = _variables().get(variable)
        if place_of is not None:
            found[place_of] = (_from_text(environment[variable]), "environment", variable)
        elif variable.startswith("VECSTORE_SERVER_") and not _FROM_KUBERNETES.search(variable):
            raise InvalidArgument(
                f"environment: unknown name {variable}{_nearest(variable, _variables())}",
                hint="vecstore config lists all",
            )
    for place, value in (flags or {}).items():
        found[place] = (value, "flag", f"--{place[1].replace('_', '-')}")
    sections = {section: _section(section, found) for section in _SECTIONS}
    return Settings(**sections, origins={place: origin for place, (_, origin, _) in found.items()})


def _read(file: Path) -> Iterator[tuple[tuple[str, str], Any]]:
    """Iterate over the values of a TOML file by section and name."""
    try:
        tree = tomllib.loads(file.read_text())
    except OSError as exc:
        raise InvalidArgument(f"{file}: cannot be read: {exc.strerror}") from exc
    except ValueError as exc:
        raise InvalidArgument(f"{file}: not TOML: {exc}") from exc
    for section, values in tree.items():
        if section not in _SECTIONS:
            raise InvalidArgument(
                f"{file}: unknown section [{section}]{_nearest(section, _SECTIONS)}",
                hint=f"allowed are {', '.join(f'[{name}]' for name in _SECTIONS)}",
            )
        if not isinstance(values, dict):
            raise InvalidArgument(f"{file}: {section} is a section: write [{section}]")
        names = [field.name for field in msgspec.structs.fields(_SECTIONS[section])]
        for name, value in values.items():
            if name not in names:
                raise InvalidArgument(
                    f"{file}: unknown option {section}.{name}{_nearest(name, names)}",
                    hint=f"allowed are {', '.join(sorted(names))}",
                )
            yield (section, name), value


def _nearest(name: str, names: typing.Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(names), 1)
    return f"; did you mean {close[0]}?" if close else ""


def _from_text(text: str) -> Any:
    """Return the value of a variable: JSON where it is a list or an object, else the text itself."""
    if text[:1] in ("[", "{"):
        try:
            return msgspec.json.decode(text)
        except msgspec.DecodeError:
            return text
    return text


def _section(section: str, found: Mapping[tuple[str, str], tuple[Any, Origin, str]]) -> Any:
    """Check the values of one section, each on its own, so that an error can name where it stands."""
    kind = _SECTIONS[section]
    hints = typing.get_type_hints(kind, include_extras=True)
    default = getattr(Settings(), section)
    values = msgspec.structs.asdict(default)
    for (of, name), (value, origin, where) in found.items():
        if of != section:
            continue
        try:
            # What comes from a variable is text, whatever it means.
            values[name] = msgspec.convert(value, hints[name], strict=origin != "environment")
        except msgspec.ValidationError as exc:
            raise InvalidArgument(f"{where}: {exc}; given {value!r}") from exc
    try:
        return kind(**values)
    except (TypeError, ValueError) as exc:
        raise InvalidArgument(f"[{section}]: {exc}") from exc


def documented(kind: Any) -> dict[str, str]:
    """Return the text of each attribute that a settings class describes, by name."""
    lines = (kind.__doc__ or "").expandtabs().splitlines()
    texts: dict[str, list[str]] = {}
    name = ""
    inside = False
    for line in lines:
        stripped = line.strip()
        if re.fullmatch(r"-{3,}", stripped):
            continue
        if stripped in ("Attributes", "Parameters", "Raises", "Returns", "Notes", "Examples"):
            inside, name = stripped == "Attributes", ""
        elif inside and stripped:
            indent = len(line) - len(line.lstrip())
            if indent <= 4 and re.fullmatch(r"\w+", stripped):
                name = stripped
                texts[name] = []
            elif name:
                texts[name].append(stripped)
    return {name: " ".join(text) for name, text in texts.items()}


def options(settings: Settings) -> list[Option]:
    """Return every option with its value, its origin and what it means."""
    found = []
    for section, kind in _SECTIONS.items():
        docs = documented(kind)
        for field in msgspec.structs.fields(kind):
            option = Option(
                section=section,
                name=field.name,
                value=getattr(getattr(settings, section), field.name),
                origin=settings.origins.get((section, field.name), "default"),
                variable=_variable(section, field.name),
                doc=docs.get(field.name, ""),
            )
            found.append(option)
    return found
