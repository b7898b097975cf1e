"""The digest of a collection, recomputed from the bytes of its points: the proof of a restore."""

from __future__ import annotations

import xxhash

from ..errors import Damaged
from ..record import DIGEST_MODULUS, STAMP_BYTES
from .base import Family, KeyValueStore
from .catalog import CollectionState

__all__ = ["prove", "recompute"]


def recompute(store: KeyValueStore, number: int) -> tuple[int, int]:
    """Return digest and count of a collection's points, from what is stored of each."""
    digest = count = 0
    hashed = xxhash.xxh3_128_intdigest
    for _, value in store.scan(Family.POINTS, number.to_bytes(8, "big"), (number + 1).to_bytes(8, "big")):
        digest += hashed(memoryview(value)[STAMP_BYTES:])
        count += 1
    return digest % DIGEST_MODULUS, count


def prove(store: KeyValueStore, state: CollectionState) -> None:
    """Raise `Damaged` where the points of a collection do not give the digest that its log gave."""
    digest, count = recompute(store, state.definition.id)
    if (digest, count) != (state.digest, state.points):
        raise Damaged(
            f"collection {state.definition.name!r} has digest {digest:032x} of {count} points, its log says "
            f"{state.digest:032x} of {state.points}",
            details={"collection": state.definition.name},
        )
