"""What a store says of its points at one LSN, when it is compared with another: values that travel between stores.

A *place* is a key of the points family: number of the collection (8 bytes, big-endian), then id key.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

__all__ = ["Damage", "PinnedCollection", "PinnedStore", "Stamp", "Sum", "span"]


@dataclass(frozen=True, slots=True)
class Damage:
    """A point that is not what was written."""

    place: bytes
    why: str


@dataclass(frozen=True, slots=True)
class Sum:
    """A range of points.

    Attributes
    ----------
    next_place
        Where the next range begins: the place of a point. None where the range was read to its stop.
    points
        Read, damaged ones with them.
    digest
        Sum of their recomputed content hashes, modulo `DIGEST_MODULUS`; what cannot be read is not in it.
    damaged
        Some that are not what was written: with any, this side is not fit to judge.
    damaged_count
        All of them.
    """

    first: bytes
    next_place: bytes | None
    points: int
    digest: int
    damaged: tuple[Damage, ...]
    damaged_count: int


class Stamp(NamedTuple):
    """A point's place, the LSN of the record that wrote it, and the hash that its bytes give.

    Of one that cannot be read the hash is empty, and the LSN 0.
    """

    place: bytes
    lsn: int
    check: bytes


@dataclass(frozen=True, slots=True)
class PinnedCollection:
    """A collection of a pinned store.

    Attributes
    ----------
    definition
        What it was created as, and became.
    digest, points
        As the commit marks of the log give them.
    """

    name: str
    definition: Mapping[str, Any]
    digest: int
    points: int


@dataclass(frozen=True, slots=True)
class PinnedStore:
    """Where a store is pinned, and which collections it has there, by number."""

    store_id: str
    lineage: bytes
    lsn: int
    epoch: int
    chain: bytes
    collections: Mapping[int, PinnedCollection]


def span(number: int) -> tuple[bytes, bytes]:
    """Return where the points of a collection begin, and where those of the next one would."""
    return number.to_bytes(8, "big"), (number + 1).to_bytes(8, "big")
