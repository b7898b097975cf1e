"""One shard as the committer sees it: where rows are added and killed, and from which views are made.

Everything here runs in the committer's thread, between or within groups; readers see only the `ShardView`s that it
makes. A change of a point kills the row that held it and appends a new one. Killing marks a growing row with the LSN,
and clears the bit of a sealed row in a copy of the live bitmap that is made once per group.

Builders work on their own threads from a view. They hand their result to `seal` or `rewrite`, which run in the
committer's thread; deaths that came since need no special care: the live bitmap goes by row number, whatever segment or
index a row is in.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..config import EXTENT_ROWS, MIB
from ..record import IdKind, PointsBody
from ..values import FieldType, Metric
from .columns import Columns
from .extent import NEVER, Extent, ExtentFile, Slot, remap, settled
from .rowmap import id_codes
from .rows import Rows
from .segment import Segment
from .view import Growing, Sealed, ShardView, new_structure

__all__ = ["Shard", "codes_of"]

_EXTENT_BYTES_MAX = 64 * MIB
_CAPACITY_FIRST = 4 * EXTENT_ROWS


class Shard:
    """The state of one shard. Owned by the committer; not thread-safe.

    Parameters
    ----------
    folder
        Where the extents' files are.
    """

    def __init__(self, dim: int, metric: Metric, fields: Mapping[str, FieldType], folder: str) -> None:
        self._folder = folder
        self._free: deque[int] = deque()
        self._mapped: set[int] = set()
        self._slots = 0
        self._row_bytes = 4 * dim
        self._extent_rows = min(EXTENT_ROWS, max(1, _EXTENT_BYTES_MAX // self._row_bytes))
        self.rows = Rows(dim, metric, _CAPACITY_FIRST)
        self.columns = Columns(fields, _CAPACITY_FIRST)
        self.growing: list[Extent] = []
        self.pending: list[Extent] = []
        self.sealed = Sealed((), np.zeros(_CAPACITY_FIRST // 8, np.uint8), (), new_structure())
        self._live: npt.NDArray[np.uint8] | None = None
        self._dead: list[int] = []
        self._extents: tuple[Extent | None, ...] | None = None
        self.version = 0

    # -- lookup ------------------------------------------------------------------------------------------------------

    def locate(self, keys: Sequence[bytes], codes: npt.NDArray[np.uint64]) -> list[int]:
        """Return the live row of each id, -1 where there is none."""
        found = [-1] * len(keys)
        missing: Sequence[int] = range(len(keys))
        for extent in reversed(self.growing):
            missing = _among(extent, keys, missing, found)
        left = np.arange(len(keys)) if isinstance(missing, range) else np.array(missing, np.int64)
        live = self._live if self._live is not None else self.sealed.live
        for segment in self.sealed.segments if len(left) else ():
            positions, rows = segment.map.find(codes[left])
            alive = (live[rows >> 3] >> (rows & 7).astype(np.uint8)) & 1
            for i, row in zip(left[positions[alive == 1]].tolist(), rows[alive == 1].tolist(), strict=True):
                if self._holds(row, keys[i]):
                    found[i] = row
        return found

    def _holds(self, row: int, key: bytes) -> bool:
        extent = self.extents[row // EXTENT_ROWS]
        return extent is not None and (extent.names is None or extent.names[row % EXTENT_ROWS] == key[1:])

    @property
    def extents(self) -> tuple[Extent | None, ...]:
        """The extents by slot."""
        if self._extents is None:
            by_slot: list[Extent | None] = [None] * (self.rows.capacity // EXTENT_ROWS)
            for segment in self.sealed.segments:
                for extent in segment.extents:
                    by_slot[extent.slot.number] = extent
            for extent in self.growing:
                by_slot[extent.slot.number] = extent
            self._extents = tuple(by_slot)
        return self._extents

    # -- records -----------------------------------------------------------------------------------------------------

    def kill(self, rows: Iterable[int], lsn: int) -> int:
        """Mark rows as dead from an LSN on; return how many there were (-1 stands for none)."""
        sealed, count = [], 0
        extents = self.extents
        for row in rows:
            if row < 0:
                continue
            count += 1
            extent = extents[row // EXTENT_ROWS]
            assert extent is not None
            if extent.superseded is None:
                sealed.append(row)
            else:
                extent.superseded[row % EXTENT_ROWS] = lsn
                extent.deaths += 1
        if sealed:
            self._kill_sealed(np.array(sealed, np.int64))
        if count:
            self.version += 1
        return count

    def _kill_sealed(self, rows: npt.NDArray[np.int64]) -> None:
        if self._live is None:
            self._live = self.sealed.live.copy()
            self._dead = list(self.sealed.dead)
        np.bitwise_and.at(self._live, rows >> 3, ~(np.uint8(1) << (rows & 7).astype(np.uint8)))
        slots = np.bincount(rows // EXTENT_ROWS, minlength=len(self.extents))
        for i, segment in enumerate(self.sealed.segments):
            self._dead[i] += int(sum(slots[extent.slot.number] for extent in segment.extents))

    def append(
        self,
        lsn: int | npt.NDArray[np.int64],
        body: PointsBody,
        codes: npt.NDArray[np.uint64],
        payloads: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        """Add rows for the points of an upsert; recovery gives an LSN for each."""
        assert body.vectors is not None
        done, count = 0, len(body.keys)
        while done < count:
            extent = self._open_extent(body.kind)
            taken = min(count - done, self._extent_rows - extent.rows)
            row = extent.start + extent.rows
            part = slice(done, done + taken)
            lsns = lsn if isinstance(lsn, int) else lsn[part]
            self.rows.write(slice(row, row + taken), body.vectors[part], codes[part], lsns)
            self.columns.put(row, (body.payloads if payloads is None else payloads)[part])
            extent.append(body.keys[part], body.payloads[part], self._row_bytes)
            done += taken
        self.version += 1

    def _open_extent(self, kind: IdKind) -> Extent:
        if self.growing and not self.is_full(self.growing[-1]):
            return self.growing[-1]
        extent = Extent.growing(self.take_slot(), kind)
        self.growing.append(extent)
        self._extents = None
        return extent

    def is_full(self, extent: Extent) -> bool:
        """Whether an extent takes no more rows."""
        return extent.closed or extent.rows >= self._extent_rows or extent.size >= _EXTENT_BYTES_MAX

    def freeze(self) -> None:
        """Let the growing extent take no more rows, so that it can be sealed."""
        if self.growing:
            self.growing[-1].closed = True

    # -- slots -------------------------------------------------------------------------------------------------------

    def take_slot(self) -> Slot:
        """Return a slot with memory to fill."""
        self._reclaim()
        if self._free:
            number = self._free.popleft()
        else:
            number = self._slots
            self._slots += 1
            if self._slots * EXTENT_ROWS > self.rows.capacity:
                self._grow()
        self.rows.map_memory(number)
        self._mapped.add(number)
        self.columns.clear(number * EXTENT_ROWS, (number + 1) * EXTENT_ROWS)
        return Slot(number, self._free)

    def _reclaim(self) -> None:
        """Give back the memory of slots that nobody shows any more."""
        for number in list(self._free):
            if number in self._mapped:
                self._mapped.discard(number)
                self.rows.release(number)

    def _grow(self) -> None:
        """Double the row numbers that there are addresses for. Views keep the columns that they have."""
        capacity = 2 * self.rows.capacity
        while self._slots * EXTENT_ROWS > capacity:
            capacity *= 2
        rows = Rows(self.rows.dim, self.rows.metric, capacity)
        for extent in [*(e for s in self.sealed.segments for e in s.extents), *self.growing, *self.pending]:
            if extent.file is not None:
                remap(self._folder, extent, rows)
            else:
                rows.copy_slot(self.rows, extent.slot.number, extent.rows)
        self.rows = rows
        self.columns = self.columns.grown(capacity)
        self._live = _widened(self._live if self._live is not None else self.sealed.live, capacity)
        self._dead = self._dead or list(self.sealed.dead)
        self._extents = None

    # -- views -------------------------------------------------------------------------------------------------------

    def view(self) -> ShardView:
        """Return the shard as it stands. To be called between groups."""
        if self._live is not None:
            self.sealed = Sealed(self.sealed.segments, self._live, tuple(self._dead), self.sealed.structure)
            self._live, self._dead = None, []
        growing = tuple([Growing(extent, extent.rows) for extent in self.growing])
        return ShardView(self.rows, self.columns, self.sealed, growing, self.extents)

    @property
    def unsealed_rows(self) -> int:
        """Rows that no segment has yet."""
        return sum([extent.rows for extent in self.growing])

    # -- what builders and recovery bring ----------------------------------------------------------------------------

    def seal(self, segment: Segment, replaced: Sequence[Segment], extents: Mapping[Extent, Extent]) -> None:
        """Put a segment in place of others and of unsealed extents.

        Parameters
        ----------
        extents
            The segment's extent for each unsealed one that it takes in.
        """
        live = self._live_copy()
        for old, new in extents.items():
            assert old.superseded is not None
            _set_bits(live, new.start, old.superseded[: old.rows] == NEVER)
            remap(self._folder, new, self.rows)
        self.growing = [extent for extent in self.growing if extent not in extents]
        self._replace([*(s for s in self.sealed.segments if s not in replaced), segment], live)

    def admit(self, entry: ExtentFile, kind: IdKind) -> Extent:
        """Map a file that a builder wrote at a slot of its own. No view shows its rows until `rewrite`."""
        extent = settled(self._folder, Extent(self.take_slot(), kind), entry)
        remap(self._folder, extent, self.rows)
        self.pending.append(extent)
        self.columns.put(extent.start, [extent.payloads[i] for i in range(extent.rows)])
        return extent

    def rewrite(
        self,
        segment: Segment,
        replaced: Sequence[Segment],
        old_rows: npt.NDArray[np.int64],
        new_rows: npt.NDArray[np.int64],
    ) -> None:
        """Put a segment in place of others whose live rows it has copied to new slots.

        A row that died since it was copied is dead in its new place too.
        """
        live = self._live_copy()
        alive = (live[old_rows >> 3] >> (old_rows & 7).astype(np.uint8)) & 1
        for extent in segment.extents:
            _set_bits(live, extent.start, np.zeros(extent.rows, np.bool_))
        born = new_rows[alive == 1]
        np.bitwise_or.at(live, born >> 3, np.uint8(1) << (born & 7).astype(np.uint8))
        for old in replaced:
            for extent in old.extents:
                _set_bits(live, extent.start, np.zeros(extent.rows, np.bool_))
        self.pending = [extent for extent in self.pending if extent not in segment.extents]
        self._replace([*(s for s in self.sealed.segments if s not in replaced), segment], live)

    def reserve(self, numbers: Sequence[int]) -> list[Slot]:
        """Take slots by number, in a shard that has none yet: an index keeps the row numbers that it was given."""
        assert not self._slots
        self._slots = max(numbers, default=-1) + 1
        if self._slots * EXTENT_ROWS > self.rows.capacity:
            self._grow()
        self._free.extend(sorted(set(range(self._slots)) - set(numbers)))
        self._mapped.update(numbers)
        return [Slot(number, self._free) for number in numbers]

    def adopt(self, segments: Sequence[Segment], dead: Mapping[Extent, npt.NDArray[np.bool_]]) -> None:
        """Begin with segments whose extents are mapped. For recovery.

        Parameters
        ----------
        dead
            Of each extent that has dead rows, which they are.
        """
        live = np.zeros(self.rows.capacity // 8, np.uint8)
        for segment in segments:
            for extent in segment.extents:
                gone = dead.get(extent)
                _set_bits(live, extent.start, np.ones(extent.rows, np.bool_) if gone is None else ~gone)
        self._replace(segments, live)

    def replace_columns(self, columns: Columns) -> None:
        """Begin to use other columns of declared fields; cached bitmaps are void."""
        self.columns = columns
        self._replace(self.sealed.segments, self._live_copy())

    def _live_copy(self) -> npt.NDArray[np.uint8]:
        return (self._live if self._live is not None else self.sealed.live).copy()

    def _replace(self, segments: Sequence[Segment], live: npt.NDArray[np.uint8]) -> None:
        segments = sorted((s for s in segments if s.rows), key=lambda segment: -segment.rows)
        dead = tuple(_dead_rows(segment, live) for segment in segments)
        self.sealed = Sealed(tuple(segments), live, dead, new_structure())
        self._live, self._dead, self._extents = None, [], None
        self.version += 1


def _among(extent: Extent, keys: Sequence[bytes], missing: Sequence[int], found: list[int]) -> Sequence[int]:
    """Look ids up in a growing extent; return those that it says nothing of."""
    assert extent.row_of is not None and extent.superseded is not None
    if isinstance(missing, range) and extent.row_of.keys().isdisjoint(keys):
        # The common case of new ids, decided without a step of the interpreter for each.
        return missing
    find, superseded, start = extent.row_of.get, extent.superseded, extent.start
    left = []
    for i in missing:
        at = find(keys[i])
        if at is None:
            left.append(i)
        elif superseded[at] == NEVER:
            found[i] = start + at
    return left


def _widened(bits: npt.NDArray[np.uint8], capacity: int) -> npt.NDArray[np.uint8]:
    wider = np.zeros(capacity // 8, np.uint8)
    wider[: len(bits)] = bits
    return wider


def _set_bits(live: npt.NDArray[np.uint8], start: int, alive: npt.NDArray[np.bool_]) -> None:
    """Set the bits of rows from `start`, which begins a byte; the rest of the last byte is cleared."""
    bits = np.packbits(alive, bitorder="little")
    live[start >> 3 : (start >> 3) + len(bits)] = bits


def _dead_rows(segment: Segment, live: npt.NDArray[np.uint8]) -> int:
    alive = 0
    for extent in segment.extents:
        first = extent.start >> 3
        alive += int(np.bitwise_count(live[first : first + (extent.rows + 7) // 8]).sum())
    return segment.rows - alive


def codes_of(body: PointsBody) -> npt.NDArray[np.uint64]:
    """Return the codes of a body's ids."""
    return id_codes(body.kind, body.keys)
