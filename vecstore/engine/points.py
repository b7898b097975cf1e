"""Points of a view: found by id, and walked in the order of their ids."""

from __future__ import annotations

import heapq
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from .. import payload as payloads
from ..config import EXTENT_ROWS
from ..filters import Condition
from ..record import IdKind, key_id
from ..values import Point
from .filtering import FilterCache, matching_rows
from .rowmap import id_codes
from .state import shard_of
from .view import CollectionView, ShardView

__all__ = ["in_order", "in_shard", "located", "payloads_by_extent", "places", "point_at"]


def point_at(shard: ShardView, row: int, key: bytes, wanted: bool | tuple[str, ...], with_vector: bool) -> Point:
    """Return the point at a row, with what is wanted of it."""
    payload = payloads.decode(shard.payload_of(row), wanted) if wanted is not False else {}
    return Point(key_id(key), payload, shard.rows.vectors.data[row].copy() if with_vector else None)


def located(collection: CollectionView, lsn: int, kind: IdKind, keys: list[bytes]) -> list[tuple[int, int]]:
    """Return the shard and row of each id in a view, row -1 where there is none."""
    shards = collection.shards
    places = shard_of(keys, len(shards)) if len(shards) > 1 else np.zeros(len(keys), np.int64)
    codes = id_codes(kind, keys)
    found = [(int(place), -1) for place in places]
    for i, shard in enumerate(shards):
        mine = np.flatnonzero(places == i).tolist()
        left = []
        for j in mine:
            row = _growing_row(shard, lsn, keys[j])
            if row is None:
                left.append(j)
            else:
                found[j] = (i, row)
        for j, row in _sealed_rows(shard, keys, codes, left):
            found[j] = (i, row)
    return found


def _growing_row(shard: ShardView, lsn: int, key: bytes) -> int | None:
    """Return the row of an id among unsealed extents: -1 where it is dead there, None where they do not have it."""
    for growing in reversed(shard.growing):
        at = growing.extent.find(key, growing.rows)
        if at >= 0:
            superseded = growing.extent.superseded
            assert superseded is not None
            return growing.extent.start + at if superseded[at] > lsn else -1
    return None


def _sealed_rows(
    shard: ShardView, keys: list[bytes], codes: npt.NDArray[np.uint64], left: list[int]
) -> Iterator[tuple[int, int]]:
    if not left:
        return
    wanted = np.array(left, np.int64)
    live = shard.sealed.live
    for segment in shard.sealed.segments:
        positions, rows = segment.map.find(codes[wanted])
        for position, row in zip(positions.tolist(), rows.tolist(), strict=True):
            if live[row >> 3] >> (row & 7) & 1:
                key = keys[left[position]]
                extent = shard.extents[row // EXTENT_ROWS]
                assert extent is not None
                if extent.names is None or extent.names[row % EXTENT_ROWS] == key[1:]:
                    yield left[position], row


def in_order(
    shard: ShardView, lsn: int, condition: Condition | None, first: bytes | None, cache: FilterCache
) -> Iterator[tuple[bytes, int]]:
    """Yield id key and row of the live rows that match, in the order of their ids."""
    rows = matching_rows(shard, lsn, condition, cache)
    if not len(rows):
        return
    some = shard.extents[int(rows[0]) // EXTENT_ROWS]
    assert some is not None
    codes = shard.rows.codes[rows]
    if some.names is None:
        if first is not None:
            # Also one that stands between two ids: an id's key with something behind it.
            least = int.from_bytes(first[1:9], "big")
            kept = codes > least if len(first) > 9 else codes >= least
            rows, codes = rows[kept], codes[kept]
        order = np.argsort(codes)
        for code, row in zip(codes[order].tolist(), rows[order].tolist(), strict=True):
            yield b"\x01" + code.to_bytes(8, "big"), row
        return
    keyed = []
    for row, code in zip(rows.tolist(), codes.tolist(), strict=True):
        extent = shard.extents[row // EXTENT_ROWS]
        assert extent is not None
        key = extent.key_of(row % EXTENT_ROWS, code)
        if first is None or key >= first:
            keyed.append((key, row))
    keyed.sort()
    yield from keyed


def in_shard(i: int, rows: Iterator[tuple[bytes, int]]) -> Iterator[tuple[bytes, int, int]]:
    """Say of each row which shard it is of. Not inline: a generator in a loop would see the loop's last shard."""
    for key, row in rows:
        yield key, i, row


def places(
    number: int, collection: CollectionView, lsn: int, first: bytes | None = None
) -> Iterator[tuple[bytes, int]]:
    """Yield the places that a view's points have in the points family, in their order, with the LSN of each row.

    Parameters
    ----------
    first
        The id key to begin with.
    """
    prefix, cache = number.to_bytes(8, "big"), FilterCache(0)

    def of(shard: ShardView) -> Iterator[tuple[bytes, int]]:
        for key, row in in_order(shard, lsn, None, first, cache):
            yield prefix + key, int(shard.rows.lsns[row])

    return heapq.merge(*map(of, collection.shards))


def payloads_by_extent(shard: ShardView, lsn: int) -> Iterator[list[bytes]]:
    """Yield the payloads of live rows, extent by extent."""
    rows = matching_rows(shard, lsn, None)
    for slot in np.unique(rows // EXTENT_ROWS).tolist():
        extent = shard.extents[slot]
        assert extent is not None
        yield [extent.payloads[row % EXTENT_ROWS] for row in rows[rows // EXTENT_ROWS == slot].tolist()]
