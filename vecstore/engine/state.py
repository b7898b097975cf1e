"""The state of an open store: the fold's collections, their shards, and the view that readers take.

Records are applied here after the fold has staged them: by the committer when they are durable, and by recovery when it
replays the log. `publish` makes the next view; readers take `view`, one reference, and need no lock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from ..record import Kind, PointsBody
from ..storage.catalog import CollectionState, names
from ..storage.fold import Fold, Staged, decode_change
from .columns import Columns
from .shard import Shard, codes_of
from .view import CollectionView, ShardView, View

__all__ = ["State", "part_of", "refilled", "shard_of"]


def shard_of(keys: Sequence[bytes], shards: int) -> npt.NDArray[np.int64]:
    """Return the shard of each id key: a hash, so that the partition needs no table."""
    hashed = xxhash.xxh3_64_intdigest
    return np.fromiter([hashed(key) % shards for key in keys], np.int64, len(keys))


class State:
    """Owned by one thread, the committer's or recovery's; `view` may be read by any.

    Attributes
    ----------
    shards
        Of each collection, by its id.
    view
        The last one published.
    """

    def __init__(self, fold: Fold, folder: str) -> None:
        self.fold = fold
        self._folder = folder
        self.shards: dict[int, list[Shard]] = {}
        self._touched: set[int] = set()
        for state in fold.collections.values():
            self.open_collection(state)
        self.view = self._first_view()

    def open_collection(self, state: CollectionState) -> list[Shard]:
        """Begin with empty shards for a collection."""
        definition = state.definition
        shards = [
            Shard(definition.dim, definition.metric, definition.fields, self._folder) for _ in range(definition.shards)
        ]
        self.shards[definition.id] = shards
        return shards

    # -- records -----------------------------------------------------------------------------------------------------

    def apply(self, staged: Staged, located: list[int] | None = None) -> None:
        """Put a record's effect into the shards.

        Parameters
        ----------
        located
            The rows that hold the record's ids now, where the caller knows them (one shard).
        """
        header = staged.record.header
        number = header.collection
        self._touched.add(number)
        if staged.points is not None:
            if number in self.shards:
                self.apply_points(number, header.lsn, staged.points.body, located, staged.points.payloads)
        elif header.kind == Kind.CREATE and staged.state is not None:
            self.open_collection(staged.state)
        elif header.kind == Kind.DROP:
            self.shards.pop(number, None)
        elif header.kind == Kind.RENAME:
            change = decode_change(staged.record)
            assert isinstance(change, dict)
            if change.get("replaces") is not None:
                self._touched.add(change["replaces"])
                self.shards.pop(change["replaces"], None)
        elif header.kind == Kind.FIELDS and staged.state is not None:
            change = decode_change(staged.record)
            assert isinstance(change, dict)
            for shard in self.shards[number]:
                shard.replace_columns(refilled(shard, change["fields"]))

    def apply_points(
        self,
        number: int,
        lsn: int,
        body: PointsBody,
        located: list[int] | None = None,
        payloads: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        """Put points into the shards of a collection: kill the rows that they replace, append new ones."""
        shards = self.shards[number]
        if len(shards) == 1:
            _apply(shards[0], lsn, body, located, payloads)
            return
        places = shard_of(body.keys, len(shards))
        for i, shard in enumerate(shards):
            mine = np.flatnonzero(places == i)
            if len(mine):
                _apply(shard, lsn, part_of(body, mine.tolist()), None)

    # -- views -------------------------------------------------------------------------------------------------------

    def touch(self, number: int) -> None:
        """Say that the shards of a collection changed, so that the next view shows them."""
        self._touched.add(number)

    def publish(self) -> View:
        """Make what was applied visible: one reference, at the LSN of the fold's tip."""
        tip = self.fold.tip
        collections = dict(self.view.collections)
        for number in self._touched:
            state = self.fold.collections.get(number)
            if state is None:
                collections.pop(number, None)
            else:
                collections[number] = CollectionView(state, self._shard_views(number))
        self._touched.clear()
        named = names(view.state for view in collections.values())
        self.view = View(tip.lsn, tip.epoch, tip.chain, collections, named)
        return self.view

    def _shard_views(self, number: int) -> tuple[ShardView, ...]:
        return tuple([shard.view() for shard in self.shards[number]])

    def _first_view(self) -> View:
        self._touched.clear()
        tip = self.fold.tip
        collections = {
            number: CollectionView(state, self._shard_views(number)) for number, state in self.fold.collections.items()
        }
        return View(tip.lsn, tip.epoch, tip.chain, collections, names(self.fold.collections.values()))


def _apply(
    shard: Shard,
    lsn: int,
    body: PointsBody,
    located: list[int] | None,
    payloads: Sequence[Mapping[str, Any]] | None = None,
) -> None:
    codes = codes_of(body)
    rows = shard.locate(body.keys, codes) if located is None else located
    if max(rows, default=-1) >= 0:
        shard.kill(rows, lsn)
    if body.vectors is not None:
        shard.append(lsn, body, codes, payloads)


def part_of(body: PointsBody, rows: list[int]) -> PointsBody:
    """Return some of a body's points."""
    return PointsBody(
        body.kind,
        [body.keys[i] for i in rows],
        [body.payloads[i] for i in rows] if body.payloads else [],
        None if body.vectors is None else body.vectors[rows],
    )


def refilled(shard: Shard, fields: dict[str, Any]) -> Columns:
    """Return a shard's columns with new or retyped fields, filled from the payloads of its rows."""
    columns = shard.columns
    new = {}
    for name, type in fields.items():
        if type == "float64" and columns.fields.get(name) == "int64":
            columns = columns.widened(name)
        else:
            columns = columns.with_field(name, type)
            new[name] = type
    if not new:
        return columns
    for extent in shard.extents:
        if extent is not None:
            columns.put(extent.start, [extent.payloads[i] for i in range(extent.rows)])
    return columns
