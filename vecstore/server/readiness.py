"""What a served store could take over with: gathered here, told to those that follow it, judged where it is asked.

Every few seconds a primary's frames carry what it says of itself (`Facts`). A standby keeps what its primary last said
in a small file in the store's folder, since it is asked about it when that primary is gone. What may hang, which is a
repository, the disk that certificates are on and a GPU's driver, is asked by threads of its own (`Probe`), and an
answer that does not come is an answer too: a question to the doctor takes seconds at most, whatever is out of reach.

Nothing waits for any of this: no write, no promotion, no stream.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import msgspec
from msgspec import Meta

from .. import __version__
from ..clock import SystemClock
from ..config import memory_limit_bytes
from ..engine.engine import Engine, disk_free_bytes
from ..engine.kept import kept
from ..errors import InvalidArgument
from ..replication.facts import Archive, Certificate, Device, Facts, Here, Known
from ..replication.readiness import is_ready, judge, worst
from ..storage.directory import FORMAT_VERSION
from ..wire.methods import METHODS
from . import log
from .auth import Authenticator
from .parity import agreed, code_of, key_of
from .probe import Probe
from .settings import Settings
from .tls import Certificates, end_of_authorities, end_of_chain

if TYPE_CHECKING:
    from .replication import Replication

__all__ = ["PRIMARY_FILE", "Readiness"]

PRIMARY_FILE = "primary.json"
"""In the store's folder: what the primary last said of itself, and when."""
TEND_S = 5.0
PROBE_EVERY_S, PROBE_FRESH_S = 30.0, 1.0
LOOK_S, PATIENCE_S = 3.0, 1.5
"""A look at a repository gives up after so long; an older answer counts no more when it takes so long already."""
SAVE_EVERY_S = 60.0
BRIEF_S = 1.0
MINUTE_S, HOUR_S = 60.0, 3_600.0
_CLOCK = SystemClock()
_READS = frozenset(method.path for method in METHODS if method.work in ("search", "read"))
_WRITES = frozenset(method.path for method in METHODS if method.is_write)


class _Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """For so long what may hang is waited for."""

    wait_s: Annotated[float, Meta(ge=0, le=10)] = 2.0


class _Heard(msgspec.Struct, frozen=True):
    """What a store said of itself, and when that came, by the wall clock here."""

    store_id: str
    heard_s: float
    facts: Facts


class _Files(NamedTuple):
    """What the files of certificates and secrets hold."""

    certificates: tuple[Certificate, ...]
    secrets_problem: str


class Readiness:
    """Says whether a store could take over. Thread-safe.

    Parameters
    ----------
    answered
        Returns how many calls were answered so far, by method.
    """

    def __init__(
        self,
        replication: Replication,
        settings: Settings,
        auth: Authenticator,
        tls: Certificates | None,
        answered: Callable[[], Mapping[str, int]],
    ) -> None:
        self._replication, self._settings, self._auth, self._tls = replication, settings, auth, tls
        self._load = _Load(answered)
        self._told = b""
        self._mine: Facts | None = None
        self._file = Path(self._engine.directory.path) / PRIMARY_FILE
        self._heard, self._is_saved, self._save_s = _read(self._file), True, 0.0
        self._heard_s: float | None = None
        self._heard_some = threading.Event()
        self._brief: tuple[float, Mapping[str, Any] | None] = (float("-inf"), None)
        self._files = Probe("files", self._look_at_files)
        self._archive = Probe("archive", self._look_at_archive)
        self._devices = Probe("devices", self._look_at_devices)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="vecstore-readiness", daemon=True)
        replication.facts, replication.on_facts, replication.readiness = self.told, self.hear, self.brief
        replication.commands.register("doctor", self.doctor)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """End; what the primary said last is on disk then."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()
        self._save()

    @property
    def _engine(self) -> Engine:
        return self._replication.driver.engine

    # -- what is told and heard --------------------------------------------------------------------------------------

    def told(self) -> bytes:
        """Return what this store says of itself; nothing at the very beginning."""
        return self._told

    def hear(self, sender: str, data: bytes) -> None:
        """Take what a store says of itself; that of the primary is kept."""
        if sender != self._replication.driver.state.primary:
            return
        try:
            facts = msgspec.json.decode(data, type=Facts)
        except msgspec.MsgspecError as exc:
            log.logger().warning("what the primary says of itself cannot be read", store=sender, why=str(exc))
            return
        self._heard = _Heard(sender, _CLOCK.wall_us() / 1e6, facts)
        self._heard_s, self._is_saved = time.monotonic(), False
        self._heard_some.set()

    def _save(self) -> None:
        heard = self._heard
        if self._is_saved or heard is None:
            return
        self._is_saved, self._save_s = True, time.monotonic()
        draft = self._file.with_suffix(".new")
        # Whoever cannot write it knows nothing after a restart, and says so.
        with contextlib.suppress(OSError):
            with draft.open("wb") as file:
                file.write(msgspec.json.encode(heard))
                file.flush()
                os.fsync(file.fileno())
            draft.replace(self._file)

    def _known(self) -> Known | None:
        heard = self._heard
        if heard is None or heard.store_id != self._replication.driver.state.primary:
            return None
        if self._heard_s is not None:
            return Known(heard.facts, time.monotonic() - self._heard_s)
        return Known(heard.facts, max(0.0, _CLOCK.wall_us() / 1e6 - heard.heard_s))

    # -- what is asked -----------------------------------------------------------------------------------------------

    def brief(self, described: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """Return the states of a standby's checks by name, as anybody may see them; None of any other store."""
        if described.get("role") != "standby":
            return None
        asked_s, found = self._brief
        if found is None or time.monotonic() - asked_s > BRIEF_S:
            known = self._known()
            checks = judge(self._here(described), known)
            found = {
                "ready": is_ready(checks),
                "checks": {check.name: check.state for check in checks},
                "primary_age_s": None if known is None else known.age_s,
            }
            self._brief = (time.monotonic(), found)
        return found

    def doctor(self, options: bytes) -> tuple[bool, str]:
        """Carry out the command: return every check, as JSON."""
        try:
            given = msgspec.json.decode(options or b"{}", type=_Options)
        except msgspec.MsgspecError as exc:
            raise InvalidArgument(f"doctor: options: {exc}") from exc
        deadline_s = time.monotonic() + given.wait_s
        self._begin_probes(PROBE_FRESH_S)
        for probe in (self._files, self._devices):
            probe.wait(deadline_s - time.monotonic())
        if self._settings.server.archive:
            self._archive.renew(PROBE_FRESH_S, deadline_s - time.monotonic())
        if self._known() is None and self._replication.driver.member.status == "following":
            # It comes with one of the next frames.
            self._heard_some.clear()
            self._heard_some.wait(deadline_s - time.monotonic())
        self._mine = self._facts()
        described = self._replication.describe()
        return True, msgspec.json.encode(self._report(described)).decode()

    def _report(self, described: Mapping[str, Any]) -> dict[str, Any]:
        known, is_primary = self._known(), described["role"] == "primary"
        checks = judge(self._here(described), known)
        names = ("store_id", "region", "role", "status", "epoch", "lsn")
        return {
            **{name: described[name] for name in names},
            "ready": is_ready(checks),
            "state": worst(checks),
            "checks": [msgspec.to_builtins(check) for check in checks],
            "kept": kept(self._engine.directory.path),
            "facts": msgspec.to_builtins(self._mine),
            "primary": None
            if is_primary
            else {
                **described["primary"],
                "age_s": None if known is None else known.age_s,
                "facts": None if known is None else msgspec.to_builtins(known.facts),
            },
        }

    # -- what is gathered --------------------------------------------------------------------------------------------

    def _loop(self) -> None:
        while True:
            try:
                self._load.sample(time.monotonic())
                self._mine = self._facts()
                self._told = msgspec.json.encode(self._mine)
                self._begin_probes(PROBE_EVERY_S)
                if time.monotonic() >= self._save_s + SAVE_EVERY_S or self._save_s == 0.0:
                    self._save()
            except Exception as exc:  # noqa: BLE001  (the store may just be closed and opened again)
                log.logger().warning("readiness was not gathered", why=str(exc))
            if self._closing.wait(TEND_S):
                return

    def _begin_probes(self, older_than_s: float) -> None:
        self._files.begin(older_than_s)
        self._devices.begin(min(older_than_s, TEND_S))
        if self._settings.server.archive:
            self._archive.begin(older_than_s)

    def _facts(self) -> Facts:
        engine, settings = self._engine, self._settings
        key, callers = key_of(engine.identity_secret), self._auth.known_by()
        devices = self._device_statuses() or []
        busy, reads, writes = self._load.highest()
        return Facts(
            version=__version__,
            format=FORMAT_VERSION,
            region=settings.server.region,
            lsn=engine.durable_lsn,
            memory_bytes=engine.memory_bytes(),
            memory_bytes_max=engine.config.memory_budget_bytes(),
            processors=len(os.sched_getaffinity(0)),
            busy_processors=busy,
            reads_per_s=reads,
            writes_per_s=writes,
            device=engine.device,
            device_bytes=sum(int(one["reserved_bytes"]) for one in devices),
            device_bytes_max=sum(int(one["budget_bytes"]) for one in devices),
            options={**agreed(settings), "tls": self._tls is not None},
            marks={"archive": code_of(key, settings.server.archive), "auth": code_of(key, callers)},
            tokens=len(callers),
        )

    def _here(self, described: Mapping[str, Any]) -> Here:
        engine, settings = self._engine, self._settings
        config, builder, accelerator = engine.config, engine.builder, engine.accelerator
        files = self._files.answer
        devices = self._device_statuses()
        return Here(
            described=described,
            facts=self._mine or self._facts(),
            now_s=_CLOCK.wall_us() / 1e6,
            lag_s_max=settings.replication.ready_lag_s_max,
            machine_bytes=memory_limit_bytes(),
            disk_free_bytes=disk_free_bytes(engine.directory.path),
            disk_free_bytes_min=config.disk_free_bytes_min,
            log_bytes_max=config.slot_retained_bytes_max,
            unindexed_rows=_unindexed_rows(engine),
            unindexed_rows_max=config.unsealed_rows_max,
            build_problem="" if builder is None or builder.failed is None else str(builder.failed),
            devices=None if devices is None else [Device(str(one["device"]), _device_problem(one)) for one in devices],
            refused_segments=len(accelerator.devices.refused) if accelerator is not None else 0,
            archive=self._found_archive(),
            certificates=None if files is None or files.value is None else files.value.certificates,
            secrets_problem="" if files is None or files.value is None else files.value.secrets_problem,
            names=_names(settings),
        )

    def _found_archive(self) -> Archive | None:
        where, probe = self._settings.server.archive, self._archive
        if not where:
            return None
        answer, waiting_s = probe.answer, probe.waiting_s
        if answer is None or waiting_s > PATIENCE_S:
            return Archive(where, age_s=waiting_s)
        age_s = time.monotonic() - answer.at_s
        return Archive(where, True, answer.problem, age_s, is_made=bool(answer.value))

    def _look_at_archive(self) -> bool:
        from ..backup.repository import look

        return look(self._settings.server.archive, LOOK_S)

    def _look_at_devices(self) -> Sequence[Mapping[str, Any]]:
        accelerator = self._engine.accelerator
        return [] if accelerator is None else accelerator.status()

    def _device_statuses(self) -> Sequence[Mapping[str, Any]] | None:
        """Return what each GPU says of itself, as of lately; None where they do not answer."""
        if self._engine.accelerator is None:
            return []
        answer = self._devices.answer
        if answer is None or self._devices.waiting_s > TEND_S:
            return None
        return answer.value

    def _look_at_files(self) -> _Files:
        tls, stores = self._settings.tls, self._settings.replication
        found = []
        if self._tls is not None:
            # What is in force, which may be older than the file.
            found.append(Certificate("tls.certificate", self._tls.expiry_s))
        for option, file, end in (
            ("tls.client_ca", tls.client_ca, end_of_authorities),
            ("replication.certificate", stores.certificate, end_of_chain),
            ("replication.ca", "" if stores.ca == "public" else stores.ca, end_of_authorities),
        ):
            if file:
                try:
                    found.append(Certificate(option, end(file, option)))
                except InvalidArgument as exc:
                    found.append(Certificate(option, problem=str(exc)))
        problem = ""
        if stores.token_file:
            try:
                Path(stores.token_file).read_text()
            except (OSError, UnicodeDecodeError) as exc:
                problem = f"replication.token_file: cannot be read: {exc}"
        return _Files(tuple(found), problem)


class _Load:
    """How busy this process was: the highest minute of the last hour. For one thread; `highest` for any."""

    def __init__(self, answered: Callable[[], Mapping[str, int]]) -> None:
        self._answered = answered
        self._samples: deque[tuple[float, float, int, int]] = deque()
        self._minutes: deque[tuple[float, float, float, float]] = deque()

    def sample(self, now_s: float) -> None:
        """Note what was done so far."""
        counts = self._answered()
        reads = sum(count for method, count in counts.items() if method in _READS)
        writes = sum(count for method, count in counts.items() if method in _WRITES)
        newest = (now_s, time.process_time(), reads, writes)
        self._samples.append(newest)
        while len(self._samples) > 2 and self._samples[1][0] <= now_s - MINUTE_S:
            self._samples.popleft()
        oldest, took_s = self._samples[0], now_s - self._samples[0][0]
        if took_s < MINUTE_S / 2:
            return
        busy, read, written = ((b - a) / took_s for a, b in zip(oldest[1:], newest[1:], strict=True))
        self._minutes.append((now_s, busy, read, written))
        while self._minutes[0][0] < now_s - HOUR_S:
            self._minutes.popleft()

    def highest(self) -> tuple[float | None, float | None, float | None]:
        """Return busy processors, reads and writes a second; None within the first half minute."""
        minutes = list(self._minutes)
        if not minutes:
            return None, None, None
        return max(one[1] for one in minutes), max(one[2] for one in minutes), max(one[3] for one in minutes)


def _read(file: Path) -> _Heard | None:
    """Return what was kept; a file that cannot be read is as good as none."""
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        return msgspec.json.decode(file.read_bytes(), type=_Heard)
    return None


def _unindexed_rows(engine: Engine) -> int:
    shards = (shard for view in engine.state.view.collections.values() for shard in view.shards)
    return max((sum(growing.rows for growing in shard.growing) for shard in shards), default=0)


def _device_problem(status: Mapping[str, Any]) -> str:
    return "" if status["state"] == "ready" else str(status["problem"] or status["state"])


def _names(settings: Settings) -> list[str]:
    """Return the options with a host's name that is resolved when the server starts."""
    found = []
    for option in ("listen", "http"):
        host = getattr(settings.server, option).rpartition(":")[0].removeprefix("[").removesuffix("]")
        if not host or host == "localhost":
            continue
        try:
            ipaddress.ip_address(host)
        except ValueError:
            found.append(f"server.{option}")
    return found
