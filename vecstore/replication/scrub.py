"""What two stores say to each other to prove that their contents are equal: messages of the scrub, and their bytes.

The scrub stands beside the protocol: it needs none of its states, and the protocol needs none of its messages, which
may be lost, late, repeated and out of order. `docs/replication.md` is the theory, `scrub_primary.py` and
`scrub_standby.py` are the two sides. Pure: values only.

Keys of points ("places") are a collection's number, eight bytes, big-endian, and an id's key, as the points family has
them.
"""

from __future__ import annotations

from typing import Any

import msgspec

from ..errors import Damaged
from ..record import key_id

__all__ = [
    "Bounds",
    "Canary",
    "Entry",
    "Listing",
    "Mark",
    "Message",
    "Part",
    "Recheck",
    "Sum",
    "Verdict",
    "Verified",
    "Want",
    "decode",
    "encode",
    "id_of",
]

PREFIX_BYTES = 8


class _Value(msgspec.Struct, frozen=True, array_like=True):
    """A value: compared by value, never changed."""


class Bounds(_Value, frozen=True):
    """A range of places of one collection: first <= place < stop."""

    first: bytes
    stop: bytes

    @property
    def collection(self) -> int:
        """The number of the collection."""
        return int.from_bytes(self.first[:PREFIX_BYTES], "big")


class Part(_Value, frozen=True):
    """A range as the primary has it: its points, and the sum of their hashes, recomputed from the bytes."""

    bounds: Bounds
    points: int
    digest: bytes


class Canary(_Value, frozen=True):
    """A query, and what an exact search of the primary found at the mark's LSN: id keys and scores, nearest first."""

    collection: int
    vector: bytes
    k: int
    keys: tuple[bytes, ...]
    scores: tuple[float, ...]


class Mark(_Value, frozen=True, tag="mark"):
    """The primary has pinned its contents at this LSN, and has sent no record above it: stop there for a moment.

    Attributes
    ----------
    mark
        A random number: what is said about this mark has it.
    chain
        At the LSN: a standby of another history has nothing to compare.
    """

    mark: int
    lsn: int
    chain: bytes


class Sum(_Value, frozen=True, tag="sum"):
    """What the primary has at a mark.

    Attributes
    ----------
    damage
        What it found wrong with itself; then nothing else of it is to be believed, nor copied.
    """

    mark: int
    parts: tuple[Part, ...]
    canaries: tuple[Canary, ...] = ()
    damage: str = ""


class Verdict(_Value, frozen=True, tag="verdict"):
    """What a standby says of a mark.

    Attributes
    ----------
    word
        "waiting": it will stop there. "equal". "answers": the points are equal, and answers to canaries are not.
        "differs": it has stopped, or one of the two is damaged. "missed": it is past that LSN, or gave up. "unfit": it
        compares nothing now.
    contents
        Names the contents that it compared: another number after each start, and after contents were replaced.
    """

    mark: int
    word: str
    contents: int


class Want(_Value, frozen=True, tag="want"):
    """A standby has other sums in these ranges, and asks for what is in them."""

    mark: int
    ranges: tuple[Bounds, ...]


class Entry(_Value, frozen=True):
    """A point as the primary has it: its place, the LSN that wrote it, and the hash of its content."""

    place: bytes
    lsn: int
    check: bytes


class Listing(_Value, frozen=True, tag="listing"):
    """What the primary has in ranges, after it has recomputed the digest of their whole collections.

    Attributes
    ----------
    damage
        What it found wrong with itself by that; then there are no entries.
    """

    mark: int
    ranges: tuple[Bounds, ...]
    entries: tuple[Entry, ...] = ()
    damage: str = ""


class Recheck(_Value, frozen=True, tag="recheck"):
    """A standby asks for a mark about these ranges."""

    ranges: tuple[Bounds, ...]


class Verified(_Value, frozen=True, tag="verified"):
    """Every range was found equal at a mark of at least this LSN, in one round."""

    lsn: int
    contents: int


Message = Mark | Sum | Verdict | Want | Listing | Recheck | Verified

_decoder = msgspec.msgpack.Decoder(Message)


def encode(message: Message) -> bytes:
    """Return a message's bytes."""
    return msgspec.msgpack.encode(message)


def decode(data: bytes) -> Message:
    """Read a message.

    Raises
    ------
    Damaged
        It is none that this version knows.
    """
    try:
        message: Message = _decoder.decode(data)
        return message
    except msgspec.MsgspecError as exc:
        raise Damaged(f"a message of the scrub of {len(data)} bytes cannot be read: {exc}") from exc


def id_of(place: bytes) -> Any:
    """Return the id of a point by its place."""
    return key_id(place[PREFIX_BYTES:])
