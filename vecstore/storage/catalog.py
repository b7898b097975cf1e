"""What a store knows of its collections and its place in the history: plain values, and their keys in `meta`."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import msgspec

from ..errors import Damaged
from ..record import IdKind
from ..values import FieldType, Metric

__all__ = ["CollectionState", "Definition", "Epoch", "Part", "PartSlot", "Tip", "names", "number_of", "numbered"]

_TIP = struct.Struct("<QQ16sqQ")
_U64_BE = struct.Struct(">Q")

APPLIED = b"applied"
LINEAGE = b"lineage"
COLLECTION = b"collection/"
DIGEST = b"digest/"
DROPPED = b"dropped/"
EPOCH = b"epoch/"
CHAIN = b"chain/"
CHECKPOINT = b"checkpoint/"
SLOT = b"slot/"
REPLICATION = b"replication"
"""What the store is in the replication: bytes that `replication` writes and reads, as a map; see `Part`."""
HANDOVER = b"handover"
"""LSN of the last handover record, and the store that it names."""


def numbered(prefix: bytes, number: int) -> bytes:
    """Return the key of a numbered entry of the meta family; numbers sort."""
    return prefix + _U64_BE.pack(number)


def number_of(prefix: bytes, key: bytes) -> int:
    """Return the number of such a key."""
    number: int = _U64_BE.unpack(key[len(prefix) :])[0]
    return number


class Definition(msgspec.Struct, frozen=True, kw_only=True):
    """What a collection was created as, and became by records about it."""

    id: int
    name: str
    dim: int
    metric: Metric
    fields: dict[str, FieldType]
    infer: bool
    index: str
    shards: int
    metadata: dict[str, Any]
    created_lsn: int
    id_kind: int = 0


@dataclass(frozen=True, slots=True)
class CollectionState:
    """A collection at one LSN.

    Attributes
    ----------
    digest
        Sum of the content hashes of its live points, modulo 2**128.
    points
        Live points.
    """

    definition: Definition
    digest: int = 0
    points: int = 0

    @property
    def id_kind(self) -> IdKind | None:
        """The kind of its ids, None until the first write."""
        return IdKind(self.definition.id_kind) if self.definition.id_kind else None

    def encode_digest(self) -> bytes:
        """Return digest and points as they are kept in the meta family."""
        return self.digest.to_bytes(16, "big") + _U64_BE.pack(self.points)

    @classmethod
    def decode(cls, definition: bytes, digest: bytes) -> CollectionState:
        """Read a collection from its two entries."""
        return cls(
            msgspec.json.decode(definition, type=Definition),
            int.from_bytes(digest[:16], "big"),
            _U64_BE.unpack(digest[16:])[0],
        )


class Epoch(msgspec.Struct, frozen=True):
    """A term of one writer: its number, random writer id, and where it parts from the one before."""

    number: int
    writer: str
    fork_lsn: int
    chain: str


class PartSlot(msgspec.Struct, frozen=True):
    """A standby's slot, as far as the log is kept for it."""

    name: str
    lsn: int
    is_lost: bool = False


class Part(msgspec.Struct, frozen=True):
    """What an engine reads of the replication state: enough to know, before anybody steps it, what it must not do.

    Attributes
    ----------
    role
        "primary", "standby" or "fenced".
    primary
        The store that a standby follows.
    rejoin
        What is under way, with its phase, if anything.
    """

    role: str
    reason: str = ""
    primary: str = ""
    peers: tuple[str, ...] = ()
    slots: tuple[PartSlot, ...] = ()
    rejoin: dict[str, Any] | None = None

    @classmethod
    def decode(cls, state: bytes) -> Part:
        """Read the part of a replication state that an engine knows.

        Raises
        ------
        Damaged
            It is not what was written.
        """
        try:
            return msgspec.msgpack.decode(state, type=cls)
        except msgspec.MsgspecError as exc:
            raise Damaged(f"the replication state cannot be read: {exc}", details={"family": "meta"}) from exc

    @property
    def takes_writes(self) -> bool:
        """Whether it writes without having asked anybody first."""
        return self.role == "primary" and not self.peers and self.rejoin is None

    @property
    def holds_log(self) -> bool:
        """Whether no record may be cut, since a rejoin will export what is in the log."""
        return self.rejoin is not None and self.rejoin.get("phase") not in ("follow", "verify")


@dataclass(frozen=True, slots=True)
class Tip:
    """The end of the log: its last record, and what the next one needs to know of it.

    Attributes
    ----------
    log_bytes
        Bytes of all records so far.
    """

    lsn: int
    epoch: int
    chain: bytes
    commit_time_us: int
    log_bytes: int

    def encode(self) -> bytes:
        """Return the tip as it is kept in the meta family."""
        return _TIP.pack(self.lsn, self.epoch, self.chain, self.commit_time_us, self.log_bytes)

    @classmethod
    def decode(cls, data: bytes) -> Tip:
        """Read a tip."""
        return cls(*_TIP.unpack(data))


def names(states: Iterable[CollectionState]) -> dict[str, int]:
    """Return collection ids by name."""
    return {state.definition.name: state.definition.id for state in states}
