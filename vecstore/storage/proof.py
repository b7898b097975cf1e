"""What is stored, proven: the digest of a collection from the bytes of its points, and reads that go on at damage."""

from __future__ import annotations

from collections.abc import Sequence

import xxhash

from ..errors import Damaged
from ..record import DIGEST_MODULUS, STAMP_BYTES
from .base import Family, KeyValueStore
from .catalog import CollectionState

__all__ = ["get_each", "prove", "recompute"]


def get_each(store: KeyValueStore, family: Family, keys: Sequence[bytes]) -> list[bytes | Damaged | None]:
    """Return the value of each key: None where there is none, the error where it cannot be read."""
    try:
        return list(store.get(family, keys))
    except Damaged as exc:
        if len(keys) == 1:
            return [exc]
        half = len(keys) // 2
        return get_each(store, family, keys[:half]) + get_each(store, family, keys[half:])


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
