"""Writes files into a collection, record by record, and continues where an earlier run of the same import stopped.

Memory is bounded by one batch. Every batch is one record, acknowledged as durable before the next is read; `bookmark`
says why continuing is safe.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..api import Collection, Database
from ..errors import InvalidArgument
from ..values import Id, Written
from .batch import Batch, Source, Wanted
from .bookmark import Bookmark, Shelf

__all__ = ["Imported", "import_sources"]


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import did.

    Attributes
    ----------
    rows
        Rows of all files.
    resumed_rows
        Rows of them that an earlier run had written.
    lsn
        Of the last record.
    """

    rows: int
    resumed_rows: int
    lsn: int


def import_sources(
    db: Database,
    collection: Collection,
    sources: Sequence[Source],
    *,
    batch_rows_max: int,
    shelf: Shelf | None = None,
    progress: Callable[[int, int | None], None] = lambda _done, _total: None,
    say: Callable[[str], None] = lambda _message: None,
) -> Imported:
    """Write all rows of the sources.

    Parameters
    ----------
    shelf
        Where the bookmark is kept; None for an import that always starts at the first row.
    progress
        Called after each record with the rows done and the rows in all, as far as they are known.
    say
        Called with what a person should know.

    Raises
    ------
    InvalidArgument
        A row has no place in the collection; the message names file, row and column. All rows before it are written.
    """
    wanted = Wanted(collection.dim, collection.metric == "cosine", batch_rows_max)
    return _Import(db, collection, sources, wanted, shelf, progress, say).run()


class _Import:
    def __init__(
        self,
        db: Database,
        collection: Collection,
        sources: Sequence[Source],
        wanted: Wanted,
        shelf: Shelf | None,
        progress: Callable[[int, int | None], None],
        say: Callable[[str], None],
    ) -> None:
        self._db, self._collection, self._sources, self._wanted = db, collection, sources, wanted
        self._shelf, self._progress, self._say = shelf, progress, say

    def run(self) -> Imported:
        place = self._start()
        resumed, lsn = place.base + place.row, place.lsn
        self._progress(resumed, self._total(place))
        for index in range(place.file, len(self._sources)):
            source = self._sources[index]
            if index > place.file:
                place = Bookmark(index, 0, place.base + place.row)
            for batch in source.batches(place.row, self._wanted):
                lsn = self._write(source, batch, place.base)
                place = Bookmark(index, batch.row + len(batch), place.base)
                self._put(place)
                self._progress(place.base + place.row, self._total(place))
        if self._shelf is not None:
            self._shelf.clear()
        return Imported(place.base + place.row, resumed, lsn)

    def _start(self) -> Bookmark:
        """Return the place to begin at: behind all that an earlier run has written, where that is still there."""
        mark = self._shelf.take() if self._shelf is not None else None
        if mark is None:
            return Bookmark()
        now = self._mark(mark)
        if now.digest == mark.digest:
            return mark
        if (now.lineage, now.epoch, now.lsn) == (mark.lineage, mark.epoch, mark.lsn + 1):
            behind = self._behind_next_batch(mark)
            if behind is not None:
                return behind
        self._say("the collection has changed since this import was interrupted: starting at the first row again")
        return Bookmark()

    def _behind_next_batch(self, mark: Bookmark) -> Bookmark | None:
        """Return the place behind the batch at the mark, if the store holds just that; else None."""
        source = self._sources[mark.file]
        batch = next(self._from(mark), None)
        index, row, base = mark.file, mark.row, mark.base
        while batch is None and index + 1 < len(self._sources):
            # The interrupted batch was the first of the next file that has any rows.
            index, row, base = index + 1, 0, base + row
            source = self._sources[index]
            batch = next(source.batches(0, self._wanted), None)
        if batch is None or not _holds(self._collection, batch, base):
            return None
        return self._mark(Bookmark(index, batch.row + len(batch), base))

    def _from(self, mark: Bookmark) -> Iterator[Batch]:
        return self._sources[mark.file].batches(mark.row, self._wanted)

    def _write(self, source: Source, batch: Batch, base: int) -> int:
        """Write a batch, and return the LSN; a row that is refused is searched by halves, and named."""
        try:
            return self._upsert(batch, base).lsn
        except InvalidArgument as exc:
            if len(batch) == 1:
                details = {**exc.details, "file": source.path, "row": batch.row}
                text = exc.args[0] if exc.args else str(exc)
                message = f"{source.path}: row {batch.row}: {text}"
                raise InvalidArgument(message, hint=exc.hint, details=details) from exc
            first, second = batch.halves()
            self._write(source, first, base)
            self._put(Bookmark(self._sources.index(source), second.row, base))
            return self._write(source, second, base)

    def _upsert(self, batch: Batch, base: int) -> Written:
        return self._collection.upsert(batch.named(base), batch.vectors, batch.payloads)

    def _put(self, place: Bookmark) -> None:
        if self._shelf is not None:
            self._shelf.put(self._mark(place))

    def _mark(self, place: Bookmark) -> Bookmark:
        """Return a place with the store's LSN and the collection's digest of this moment."""
        status = self._db.status()
        digest = status["collections"][self._collection.name]["digest"]
        history = status["lsn"], status["lineage"], status["epoch"]
        return Bookmark(place.file, place.row, place.base, *history, digest)

    def _total(self, place: Bookmark) -> int | None:
        """Return how many rows there are in all, None where a file does not know yet."""
        rows = [source.rows() for source in self._sources[place.file :]]
        known = [count for count in rows if count is not None]
        return place.base + sum(known) if len(known) == len(rows) else None


def _holds(collection: Collection, batch: Batch, base: int) -> bool:
    """Say whether the collection has every row of a batch as the file has it."""
    ids = batch.named(base)
    rows: dict[Id, int] = {each: i for i, each in enumerate(ids)}
    try:
        points = collection.get(list(rows), with_vector=True)
    except InvalidArgument:
        return False
    if len(points) != len(rows):
        return False
    payloads: list[dict[str, Any]] | None = batch.payloads
    for point in points:
        row = rows[point.id]
        assert point.vector is not None
        if not np.array_equal(point.vector, batch.vectors[row]):
            return False
        if point.payload != (payloads[row] if payloads is not None else {}):
            return False
    return True
