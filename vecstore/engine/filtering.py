"""Which rows of a shard match a condition: bitmaps over sealed rows, cached; masks over growing ones, made each time.

Two levels are cached under one budget. A bitmap of what matches goes by (structure, condition) and outlives
deletions; a selection, the bitmap ANDed with the live rows, goes by (serial, condition) and serves until a sealed row
dies.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from threading import Lock

import numpy as np
import numpy.typing as npt

from ..config import EXTENT_ROWS
from ..filters import Condition
from ..index.base import Floats, Vectors
from ..index.base import Rows as RowNumbers
from ..index.cpu import BitmapSelection, Block, scan, selection
from .view import Bitmap, Growing, Sealed, ShardView

__all__ = ["FilterCache", "Match", "count_rows", "growing_mask", "live_selection", "matching_bits", "matching_rows"]

_ENTRY_BYTES = 400
_USES_MIN = 4
_USES_PER_ROWS = 1_000
"""The rows of a filter are copied side by side once it was scanned so often, and once more for each thousand rows: one
that comes once isn't worth it."""
_BLOCK_PART = 2
"""Such a copy takes at most this part of the cache."""


@dataclass(slots=True, eq=False)
class Match:
    """Sealed rows that match and live, with what is worth keeping of them."""

    selection: BitmapSelection
    count: int
    block: Block | None = None
    uses: int = 0
    _rows: RowNumbers | None = None

    @property
    def rows(self) -> RowNumbers:
        """Their numbers."""
        if self._rows is None:
            self._rows = np.flatnonzero(np.unpackbits(self.selection.bitmap, bitorder="little")).astype(np.int64)
        return self._rows


class FilterCache:
    """Bitmaps by structure and condition, selections by serial and condition; the least recently used go first."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._lock = Lock()
        self._entries: OrderedDict[tuple[int, bytes], tuple[Match | Bitmap, int]] = OrderedDict()
        self.bytes = 0
        self.hits = 0
        self.misses = 0

    def match(self, shard: ShardView, condition: Condition) -> Match:
        """Return the sealed rows of a shard that match."""
        sealed = shard.sealed
        key = (sealed.serial, condition.key)
        found = self._get(key)
        if isinstance(found, Match):
            return found
        bits = self._bits(shard, condition) & sealed.live
        match = Match(selection(bits, count := int(np.bitwise_count(bits).sum())), count)
        # The rows may be asked for later: they count from the beginning.
        self._put(key, match, bits.nbytes + 8 * min(count, 1 << 16))
        return match

    def scan(
        self, shard: ShardView, condition: Condition, match: Match, queries: Floats, k: int
    ) -> tuple[Floats, RowNumbers]:
        """Find the k nearest of each query among the rows of a match, by comparing all of them."""
        if match.block is not None:
            return match.block.scan(queries, k)
        match.uses += 1
        often = match.uses > _USES_MIN + match.count // _USES_PER_ROWS
        if often and 4 * shard.rows.dim * match.count <= self._bytes_max // _BLOCK_PART:
            return self._gathered((shard.sealed.serial, condition.key), match, shard.rows.vectors).scan(queries, k)
        return scan(shard.rows.vectors, queries, match.rows, k)

    def _gathered(self, key: tuple[int, bytes], match: Match, vectors: Vectors) -> Block:
        block = Block(vectors, match.rows)
        with self._lock:
            entry = self._entries.get(key)
            # What the cache no longer holds, or another thread was first to copy, serves this search alone.
            if entry is not None and entry[0] is match and match.block is None:
                match.block = block
                self._entries[key] = (match, entry[1] + block.bytes)
                self.bytes += block.bytes
                self._shrink()
        return block

    def _bits(self, shard: ShardView, condition: Condition) -> Bitmap:
        key = (shard.sealed.structure, condition.key)
        found = self._get(key)
        if found is None or isinstance(found, Match):
            found = matching_bits(shard, condition)
            self._put(key, found, found.nbytes)
        if len(found) < len(shard.sealed.live):
            # The shard has more addresses by now, with no sealed rows in them.
            found = np.concatenate([found, np.zeros(len(shard.sealed.live) - len(found), np.uint8)])
        return found

    def _get(self, key: tuple[int, bytes]) -> Match | Bitmap | None:
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                self.misses += 1
                return None
            self.hits += 1
            self._entries.move_to_end(key)
            return entry[0]

    def _put(self, key: tuple[int, bytes], value: Match | Bitmap, size: int) -> None:
        size += _ENTRY_BYTES + len(key[1])
        with self._lock:
            if key not in self._entries and size <= self._bytes_max:
                self._entries[key] = (value, size)
                self.bytes += size
            self._shrink()

    def _shrink(self) -> None:
        while self.bytes > self._bytes_max:
            _, (_, gone) = self._entries.popitem(last=False)
            self.bytes -= gone


def matching_bits(shard: ShardView, condition: Condition) -> Bitmap:
    """Return the bitmap of sealed rows that match, dead ones included."""
    bits = np.zeros(len(shard.sealed.live), np.uint8)
    slots = [e.slot.number for segment in shard.sealed.segments for e in segment.extents]
    if slots:
        mask = shard.columns.matches(condition, 0, (max(slots) + 1) * EXTENT_ROWS)
        packed = np.packbits(mask, bitorder="little")
        bits[: len(packed)] = packed
    return bits


def growing_mask(
    shard: ShardView, growing: Growing, lsn: int, condition: Condition | None
) -> npt.NDArray[np.bool_] | None:
    """Return which rows of an unsealed extent live and match; None if all do."""
    mask = shard.alive(growing, lsn)
    if condition is not None:
        start = growing.extent.start
        matches = shard.columns.matches(condition, start, start + growing.rows)
        mask = matches if mask is None else mask & matches
    return mask


def matching_rows(
    shard: ShardView, lsn: int, condition: Condition | None, cache: FilterCache | None = None
) -> RowNumbers:
    """Return the numbers of all rows of a shard that live and match."""
    if condition is None:
        bits: Bitmap = shard.sealed.live
    elif cache is not None:
        bits = cache.match(shard, condition).selection.bitmap
    else:
        bits = matching_bits(shard, condition) & shard.sealed.live
    parts = [np.flatnonzero(np.unpackbits(bits, bitorder="little")).astype(np.int64)]
    for growing in shard.growing:
        mask = growing_mask(shard, growing, lsn, condition)
        rows = np.arange(growing.rows) if mask is None else np.flatnonzero(mask)
        parts.append(rows + growing.extent.start)
    return np.concatenate(parts)


def count_rows(shard: ShardView, lsn: int, condition: Condition, cache: FilterCache) -> int:
    """Return how many rows of a shard live and match."""
    count = cache.match(shard, condition).count if shard.sealed.segments else 0
    for growing in shard.growing:
        mask = growing_mask(shard, growing, lsn, condition)
        count += growing.rows if mask is None else int(np.count_nonzero(mask))
    return count


def live_selection(sealed: Sealed) -> BitmapSelection:
    """Return the selection of all live sealed rows; made once for each state of the segments."""
    found = sealed.selections.get("live")
    if found is None:
        found = sealed.selections["live"] = selection(sealed.live, sealed.rows)
    return found
