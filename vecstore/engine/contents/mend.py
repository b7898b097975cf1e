"""Points of an open standby made what its primary has read of them: the end of a scrub that found them to differ.

The standby stands still at an LSN; the primary has read its points later. What it read is of this LSN too where the
record that wrote it is: such a point is set, in the family of points and, where its row is another one, in the rows. A
point that the primary has written or removed since is left to its record, which is still to come. One that it never
had is removed. So all is of one LSN before and after, and digests stay those of the commit marks: they were right all
along, it was the bytes that were not.

Readers of a view that was taken before may miss a point that is mended in its row, never see two. Where rows were
mended, a checkpoint of them takes the place of all others before this returns: no older row comes back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import xxhash

from ...config import EXTENT_ROWS
from ...errors import Damaged, Unavailable
from ...record import STAMP_BYTES, IdKind, PointsBody, content, point_key, split_content
from ...storage.base import Family
from ..engine import Engine
from ..rowmap import id_codes
from ..state import State, shard_of
from .points import read_points

__all__ = ["Mended", "Wanted", "mend"]

_LSN = slice(0, 8)
_HASH = slice(8, STAMP_BYTES)


class Wanted(NamedTuple):
    """A point that differs: the LSN that wrote the primary's at the comparison, 0 for none, and that comparison's."""

    lsn: int
    compared_lsn: int


@dataclass(slots=True)
class Mended:
    """How many points were set, removed, and left to records that are still to come; how many rows were not theirs."""

    set: int = 0
    removed: int = 0
    left: int = 0
    rows: int = 0


def mend(engine: Engine, points: str, wanted: Mapping[bytes, Wanted]) -> Mended:
    """Set the points of a file, as `Outgoing.take_points` makes it, in a store that is open and stands still.

    Parameters
    ----------
    wanted
        The points that differ, by their places. Others in the file are left alone.

    Raises
    ------
    Damaged
        The file is not whole, or what another store has read of its points is not what was written there. Nothing was
        changed.
    """
    committer, checkpointer = engine.committer, engine.checkpointer
    if committer is None or checkpointer is None:
        raise Unavailable("the store is open read-only", retryable=False)
    given = _checked(points, wanted)
    mended: Mended = committer.run(lambda: _mend(engine, given, wanted), publishes=True)
    if mended.rows:
        checkpointer.take()
        checkpointer.keep_newest()
    return mended


def _checked(points: str, wanted: Mapping[bytes, Wanted]) -> dict[bytes, bytes | None]:
    """Read the points, and hold each against the hash beside it."""
    given: dict[bytes, bytes | None] = {}
    for number, key, value in read_points(points):
        place = point_key(number, key)
        if place not in wanted:
            continue
        if value is not None and xxhash.xxh3_128_digest(memoryview(value)[STAMP_BYTES:]) != value[_HASH]:
            raise Damaged(
                f"the primary's point at {place.hex()} is not what was written there: nothing is copied from it",
                details={"place": place.hex()},
            )
        given[place] = value
    return given


def _mend(engine: Engine, given: Mapping[bytes, bytes | None], wanted: Mapping[bytes, Wanted]) -> Mended:
    """Set points and rows. In the committer's thread."""
    state, store, mended = engine.state, engine.store, Mended()
    tip_lsn = state.fold.tip.lsn
    changes: list[tuple[Family, bytes, bytes | None]] = []
    for place, value in given.items():
        number, key = int.from_bytes(place[:8], "big"), place[8:]
        if number not in state.shards:
            continue
        row = _Row.of(state, number, key)
        if value is not None and _lsn(value) <= tip_lsn:
            changes.append((Family.POINTS, place, value))
            mended.set += 1
            if not row.holds(value):
                row.put(value, tip_lsn)
                mended.rows += 1
        elif value is None and not wanted[place].lsn and not _is_newer(engine, place, row, wanted[place].compared_lsn):
            changes.append((Family.POINTS, place, None))
            mended.removed += 1
            if row.number >= 0:
                row.kill(tip_lsn)
                mended.rows += 1
        else:
            mended.left += 1
    # Synced, not flushed: a flush may begin a compaction, and that may meet what else is damaged and end all writing.
    store.write(changes)
    store.sync()
    return mended


def _lsn(value: bytes) -> int:
    return int.from_bytes(value[_LSN], "little")


def _is_newer(engine: Engine, place: bytes, row: _Row, compared_lsn: int) -> bool:
    """Return whether a record behind the comparison wrote the point: then it is right, and its removal is to come."""
    if row.lsn > compared_lsn:
        return True
    try:
        (held,) = engine.store.get(Family.POINTS, [place])
    except Damaged:
        return False
    return held is not None and _lsn(held) > compared_lsn


@dataclass(frozen=True, slots=True)
class _Row:
    """The live row of an id; its number is -1 where there is none."""

    state: State
    collection: int
    shard: int
    key: bytes
    number: int
    lsn: int

    @classmethod
    def of(cls, state: State, collection: int, key: bytes) -> _Row:
        """Find it."""
        shards = state.shards[collection]
        at = int(shard_of([key], len(shards))[0]) if len(shards) > 1 else 0
        (row,) = shards[at].locate([key], id_codes(IdKind(key[0]), [key]))
        return cls(state, collection, at, key, row, int(shards[at].rows.lsns[row]) if row >= 0 else 0)

    def holds(self, value: bytes) -> bool:
        """Return whether it is of the record that wrote a stored value, and holds the same."""
        if self.number < 0 or self.lsn != _lsn(value):
            return False
        shard = self.state.shards[self.collection][self.shard]
        extent = shard.extents[self.number // EXTENT_ROWS]
        assert extent is not None
        vector = shard.rows.vectors.data[self.number].astype("<f4").tobytes()
        return content(self.key, extent.payloads[self.number % EXTENT_ROWS], vector) == value[STAMP_BYTES:]

    def put(self, value: bytes, tip_lsn: int) -> None:
        """Put a row of a stored value in its place."""
        self.kill(tip_lsn)
        key, payload, vector = split_content(value[STAMP_BYTES:])
        body = PointsBody(IdKind(key[0]), [key], [payload], np.frombuffer(vector, "<f4").reshape(1, -1))
        self.state.shards[self.collection][self.shard].append(_lsn(value), body, id_codes(body.kind, body.keys))
        self.state.touch(self.collection)

    def kill(self, tip_lsn: int) -> None:
        """Let there be no row of the id."""
        self.state.shards[self.collection][self.shard].kill([self.number], tip_lsn)
        self.state.touch(self.collection)
