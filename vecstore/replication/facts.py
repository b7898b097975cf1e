"""What readiness is judged by: plain values that were found at a store, and those that its primary told.

Nothing here is decided (`readiness.py`) or gathered (`server/readiness.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import msgspec

__all__ = ["Archive", "Certificate", "Check", "Device", "Facts", "Here", "Known", "State"]

State = Literal["ok", "warn", "unknown"]


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What a server says of itself that whoever takes over from it must match. Holds no secret.

    Attributes
    ----------
    format
        Version of the format on disk.
    memory_bytes, memory_bytes_max
        What the store holds in memory, and may.
    processors, busy_processors
        Cores that it may use, and how many of them it kept busy at most, of late; None where that is not known yet.
    reads_per_s, writes_per_s
        Calls answered a second at most, of late; None likewise.
    device, device_bytes, device_bytes_max
        "cpu" or "gpu"; memory of GPUs that indexes take, and may.
    options
        Values of options that must agree, by name.
    marks
        What must agree and is not to be read, as codes under the lineage's secret: by name, "" where there is none.
    tokens
        How many tokens, certificates' names and keys the server knows callers by.
    """

    version: str
    format: int
    region: str = ""
    lsn: int = 0
    memory_bytes: int = 0
    memory_bytes_max: int = 0
    processors: int = 0
    busy_processors: float | None = None
    reads_per_s: float | None = None
    writes_per_s: float | None = None
    device: str = "cpu"
    device_bytes: int = 0
    device_bytes_max: int = 0
    options: dict[str, Any] = {}
    marks: dict[str, str] = {}
    tokens: int = 0


class Known(NamedTuple):
    """What the primary last said of itself, and how long ago that came."""

    facts: Facts
    age_s: float


class Archive(msgspec.Struct, frozen=True):
    """What a look at the repository found.

    Attributes
    ----------
    answered
        Whether an answer came at all, within a few seconds.
    age_s
        How old the answer is, or for how long none has come.
    is_made
        Whether it is a repository already: one that is empty yet becomes one with the first thing that is archived.
    """

    where: str
    answered: bool = False
    problem: str = ""
    age_s: float = 0.0
    is_made: bool = True


class Certificate(msgspec.Struct, frozen=True):
    """A certificate that this server needs: the option that names it, and when it ends, since the Unix epoch."""

    option: str
    ends_s: float | None = None
    problem: str = ""


class Device(msgspec.Struct, frozen=True):
    """A GPU, and why it takes no questions; empty where it does."""

    name: str
    problem: str = ""


class Here(msgspec.Struct, frozen=True, kw_only=True):
    """What is found at the store that is asked.

    Attributes
    ----------
    described
        What it is in the replication, as `Describe` says it.
    facts
        What it says of itself.
    now_s
        Wall time.
    lag_s_max
        As many seconds behind is close enough.
    machine_bytes
        Memory that the process may use, whatever its options say.
    log_bytes_max
        Bytes of log that it may have to keep for others once it is the primary.
    unindexed_rows, unindexed_rows_max
        Most rows of a shard without an index; with more than that, upserts wait.
    build_problem
        Why indexes are not built; empty while they are.
    devices
        None where there are GPUs that have not told how they are.
    refused_segments
        Segments that no GPU took.
    archive
        None where no archive is configured.
    certificates
        None where their files could not be looked at yet.
    secrets_problem
        Why what this server shows to others cannot be read.
    names
        Options with names that must be resolved before this server can start again.
    """

    described: Mapping[str, Any]
    facts: Facts
    now_s: float
    lag_s_max: float
    machine_bytes: int
    disk_free_bytes: int
    disk_free_bytes_min: int
    log_bytes_max: int
    unindexed_rows: int = 0
    unindexed_rows_max: int = 0
    build_problem: str = ""
    devices: Sequence[Device] | None = ()
    refused_segments: int = 0
    archive: Archive | None = None
    certificates: Sequence[Certificate] | None = ()
    secrets_problem: str = ""
    names: Sequence[str] = ()


class Check(msgspec.Struct, frozen=True):
    """One question and its answer.

    Attributes
    ----------
    found, asked
        What there is, and what should be.
    advice
        What to do; empty where nothing is to be done.
    """

    name: str
    state: State
    found: str
    asked: str
    advice: str = ""
