"""What records behind a fork were about: the points that they touched, and whether setting those would undo them."""

from __future__ import annotations

from collections.abc import Iterable

from ...record import Kind, PointsBody, Record
from ...storage.catalog import Definition
from ...storage.fold import decode_change

__all__ = ["TOUCHED_POINTS_MAX", "Touched"]

TOUCHED_POINTS_MAX = 100_000
"""More points than that are not set one by one: a snapshot costs less, and a request for them would be too large."""
_HARMLESS = {Kind.EPOCH, Kind.HANDOVER}


class Touched:
    """What was seen so far.

    Attributes
    ----------
    created
        The definitions of collections that were created.
    why
        Why setting points would not undo all of it; empty while it would.
    """

    def __init__(self) -> None:
        self.created: dict[int, Definition] = {}
        self.why = ""
        self._ids: set[tuple[int, bytes]] | None = set()

    @property
    def ids(self) -> tuple[tuple[int, bytes], ...]:
        """The points that were touched, as collection and id key, in order; none where they are too many."""
        return tuple(sorted(self._ids or ()))

    @property
    def count(self) -> int | None:
        """How many points were touched; None where they are too many."""
        return None if self._ids is None else len(self._ids)

    @property
    def needs_snapshot(self) -> bool:
        """Whether setting the points that were touched would not undo all of it."""
        return bool(self.why)

    def see(self, record: Record) -> PointsBody | None:
        """Note what a record touched; return its points, None where it is about something else."""
        header = record.header
        if header.kind not in (Kind.UPSERT, Kind.DELETE):
            if header.kind not in _HARMLESS:
                self.why = self.why or f"record {record.lsn} is about more than points ({header.kind.name.lower()})"
            change = decode_change(record)
            if isinstance(change, Definition):
                self.created.setdefault(change.id, change)
            return None
        body = PointsBody.decode(record.body)
        if header.kind == Kind.UPSERT and record.mark.points == len(body.keys):
            # Perhaps these were the collection's first points, which fix the kind of its ids.
            self.why = self.why or f"record {record.lsn} may have written the first points of a collection"
        self._add((header.collection, key) for key in body.keys)
        return body

    def _add(self, ids: Iterable[tuple[int, bytes]]) -> None:
        if self._ids is None:
            return
        self._ids.update(ids)
        if len(self._ids) > TOUCHED_POINTS_MAX:
            self.why = self.why or f"more than {TOUCHED_POINTS_MAX} points were touched"
            self._ids = None
