"""Views: the state of the store at one LSN, as one immutable reference that readers take and keep.

Only the committer makes views, between groups. What changes rarely is shared from view to view: sealed segments and
their live bitmap (copied once per group that kills in it), columns, the extents by slot. Growing extents are shared
as well; a view remembers how many of their rows it shows, and its LSN tells which of those are dead.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..config import EXTENT_ROWS
from ..index.cpu import BitmapSelection
from ..storage.fold import CollectionState
from .columns import Columns
from .extent import Extent
from .rows import Rows
from .segment import Segment

__all__ = ["CollectionView", "Growing", "Sealed", "ShardView", "View", "new_structure"]

Bitmap = npt.NDArray[np.uint8]
_serials = itertools.count()


@dataclass(frozen=True, slots=True, eq=False)
class Sealed:
    """The sealed segments of a shard, with which of their rows are live.

    Attributes
    ----------
    live
        One bit a row number of the shard, least significant first; set for live rows of sealed segments alone.
    dead
        Dead rows of each segment.
    structure
        Changes with the segments or fields, not with deaths: what bitmaps of filters are cached by.
    serial
        Changes with each of them.
    """

    segments: tuple[Segment, ...]
    live: Bitmap
    dead: tuple[int, ...]
    structure: int
    serial: int = field(default_factory=_serials.__next__)
    selections: dict[str, BitmapSelection] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Live rows."""
        return sum(segment.rows for segment in self.segments) - sum(self.dead)


def new_structure() -> int:
    """Return a serial for a new structure of segments or fields."""
    return next(_serials)


@dataclass(frozen=True, slots=True, eq=False)
class Growing:
    """What a view shows of an unsealed extent: its first rows."""

    extent: Extent
    rows: int


@dataclass(frozen=True, slots=True, eq=False)
class ShardView:
    """One shard at the LSN of the view."""

    rows: Rows
    columns: Columns
    sealed: Sealed
    growing: tuple[Growing, ...]
    extents: tuple[Extent | None, ...]

    def alive(self, growing: Growing, lsn: int) -> npt.NDArray[np.bool_] | None:
        """Return which rows of an unsealed extent are live, None if all are."""
        return growing.extent.alive(growing.rows, lsn) if growing.extent.deaths else None

    def id_of(self, row: int) -> int | str:
        """Return the id of a row."""
        extent = self.extents[row // EXTENT_ROWS]
        assert extent is not None
        return extent.id_of(row % EXTENT_ROWS, int(self.rows.codes[row]))

    def payload_of(self, row: int) -> bytes:
        """Return the payload of a row, as canonical JSON."""
        extent = self.extents[row // EXTENT_ROWS]
        assert extent is not None
        return extent.payloads[row % EXTENT_ROWS]

    def live_rows(self, lsn: int) -> npt.NDArray[np.int64]:
        """Return the numbers of all live rows."""
        parts = [np.flatnonzero(np.unpackbits(self.sealed.live, bitorder="little")).astype(np.int64)]
        for growing in self.growing:
            alive = self.alive(growing, lsn)
            numbers = np.arange(growing.rows) if alive is None else np.flatnonzero(alive)
            parts.append(numbers + growing.extent.start)
        return np.concatenate(parts)


@dataclass(frozen=True, slots=True, eq=False)
class CollectionView:
    """One collection at the LSN of the view."""

    state: CollectionState
    shards: tuple[ShardView, ...]


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """The whole store at one LSN.

    Attributes
    ----------
    names
        Collection ids by name.
    token
        Of the last record, empty where there is none.
    """

    lsn: int
    epoch: int
    chain: bytes
    collections: dict[int, CollectionView]
    names: dict[str, int]
