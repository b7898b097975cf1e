"""Sealed segments: runs of rows that carry an index and never change but for deaths."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..config import EXTENT_ROWS
from ..index.base import Index
from ..index.curve import Curve
from .extent import Extent
from .rowmap import RowMap
from .rows import Rows

__all__ = ["Segment", "row_map", "rows_of", "spans"]


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """A run of sealed rows of one shard. Immutable.

    Attributes
    ----------
    name
        Unique in the store; its index file is called after it.
    extents
        In the order of their row numbers.
    index
        Over all of its rows, dead ones included; None where the rows are scanned.
    curve
        Recall to effort; None without an index.
    map
        From ids to rows.
    rows
        Rows, dead ones included.
    trained_rows
        Rows that there were when its codebook was trained.
    measured_rows
        Rows that there were when a curve was measured last; the same as `rows` where the curve is its own.
    """

    name: str
    extents: tuple[Extent, ...]
    index: Index | None
    curve: Curve | None
    map: RowMap
    rows: int
    trained_rows: int
    measured_rows: int = 0

    @property
    def measured(self) -> bool:
        """Whether the curve was measured on this very segment."""
        return self.measured_rows == self.rows

    @property
    def bytes(self) -> int:
        """Memory beside the rows."""
        return self.map.bytes + (self.index.bytes if self.index is not None else 0)


def rows_of(extents: tuple[Extent, ...]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Return the row numbers of extents."""
    if not extents:
        return np.empty(0, np.int64)
    return np.concatenate([np.arange(extent.start, extent.start + extent.rows) for extent in extents])


def row_map(rows: Rows, extents: tuple[Extent, ...]) -> RowMap:
    """Return the map from ids to the rows of extents."""
    numbers = rows_of(extents)
    return RowMap(rows.codes[numbers], numbers)


def spans(extents: tuple[Extent, ...]) -> list[tuple[int, int]]:
    """Return (start, stop) row numbers of extents, neighbours joined."""
    joined: list[tuple[int, int]] = []
    for extent in sorted(extents, key=lambda extent: extent.start):
        start, stop = extent.start, extent.start + extent.rows
        if joined and joined[-1][1] == start and start % EXTENT_ROWS == 0:
            joined[-1] = (joined[-1][0], stop)
        else:
            joined.append((start, stop))
    return joined
