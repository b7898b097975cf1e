"""Finished records and the replication state: what is written without a call that would resolve to it.

A record that another store wrote is decoded, its points hashed and its ids coded before it comes to the committer, in
whatever thread brings it. The committer then goes the way of every group: stage, write the log, sync, and meanwhile
apply. Old hashes and rows come from the row maps, as they do for a call, so that the families are not read.

Each run of records is taken wholly or, where one does not fit, not at all. A record about a collection or an epoch
ends a run, since what follows must see it applied.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ..clock import CommitClock
from ..config import MIB, Config
from ..errors import Damaged, NotPrimary
from ..record import Kind, Record
from ..storage import catalog
from ..storage.base import Batch, Family, KeyValueStore, Stalled
from ..storage.catalog import Epoch
from ..storage.fold import Change, PointsChange, Position, decode_change
from .group import Group
from .halts import Halts
from .resolve import Resolver
from .rowmap import id_codes
from .state import State

__all__ = ["Ahead", "Applier", "Finished", "Writer", "finished", "runs"]

AHEAD_BYTES_MAX = 32 * MIB


@dataclass(frozen=True, slots=True)
class Finished:
    """A record of another store, decoded.

    Attributes
    ----------
    codes
        Of the ids of its points; None for a record that has none.
    """

    record: Record
    change: Change
    codes: npt.NDArray[np.uint64] | None


def finished(record: Record) -> Finished:
    """Decode a record and hash its points; to be called outside of the committer.

    Raises
    ------
    Damaged
        Its body cannot be read.
    """
    change = decode_change(record)
    if not isinstance(change, PointsChange):
        return Finished(record, change, None)
    return Finished(record, change, id_codes(change.body.kind, change.body.keys))


class Ahead:
    """Records that were decoded before their turn, by the threads that bring them. Thread-safe, and bounded."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._items: OrderedDict[tuple[int, bytes], Finished] = OrderedDict()
        self._bytes = 0

    def decode(self, records: Sequence[Record]) -> None:
        """Decode records; one that cannot be read is left to who takes it."""
        for record in records:
            with contextlib.suppress(Damaged):
                self._put(finished(record))

    def _put(self, item: Finished) -> None:
        with self._lock:
            if self._items.setdefault(_place(item.record), item) is item:
                self._bytes += item.record.size
            while self._bytes > AHEAD_BYTES_MAX and len(self._items) > 1:
                _, old = self._items.popitem(last=False)
                self._bytes -= old.record.size

    def take(self, record: Record) -> Finished:
        """Return a record decoded: the one that was, or decode it now."""
        with self._lock:
            item = self._items.pop(_place(record), None)
            if item is not None:
                self._bytes -= item.record.size
        # The same object, or the same bytes: a chain that agrees says nothing of a body that was not checked yet.
        if item is None or (item.record is not record and item.record != record):
            return finished(record)
        return item


def _place(record: Record) -> tuple[int, bytes]:
    return record.lsn, record.mark.chain


def runs(
    records: Sequence[Record], config: Config, decoded: Callable[[Record], Finished] = finished
) -> Iterator[list[Finished]]:
    """Decode records and cut them into runs that share a sync each."""
    run: list[Finished] = []
    size = 0
    for record in records:
        item = decoded(record)
        full = len(run) >= config.group_records_max or size + record.size > config.group_bytes_max
        if run and (full or item.codes is None):
            yield run
            run, size = [], 0
        run.append(item)
        size += record.size
        if item.codes is None:
            yield run
            run, size = [], 0
    if run:
        yield run


class Writer(Protocol):
    """What an `Applier` needs of the committer."""

    def hold(self, refusal: Callable[[], NotPrimary]) -> None:
        """Take no calls from now on."""
        ...

    def commit(self, group: Group) -> None:
        """Make a group durable and visible."""
        ...

    def sync(self, *, always: bool = False) -> None:
        """Make all that was written durable."""
        ...

    def stop(self, exc: BaseException, group: Group) -> None:
        """End writing."""
        ...


class Applier:
    """Writes what replication brings. All of it runs in the committer's thread."""

    def __init__(
        self,
        state: State,
        store: KeyValueStore,
        resolver: Resolver,
        clock: CommitClock,
        wall_us: Callable[[], int],
        config: Config,
        writer: Writer,
        halts: Halts,
    ) -> None:
        self._state, self._store, self._resolver = state, store, resolver
        self._clock, self._wall_us, self._config, self._writer = clock, wall_us, config, writer
        self._halts = halts

    def append(self, run: Sequence[Finished], trust: bool) -> Sequence[Finished]:
        """Take a run of records, up to the first halt in it; return the rest. See `Committer.append`."""
        if not self._halts.is_set:
            self._append(run, trust)
            return ()
        room = self._halts.room([item.record for item in run])
        self._append(run[:room], trust)
        self._halts.reach(self._state.fold.tip.lsn)
        return run[room:]

    def _append(self, run: Sequence[Finished], trust: bool) -> None:
        fold = self._state.fold
        before = fold.position()
        group = Group(is_synced=True)
        written: dict[int, set[bytes]] = {}
        try:
            for item in run:
                self._restage(item, trust, group, written)
        except BaseException:
            fold.rewind(before)
            raise
        self._commit(group, before)

    def _restage(self, item: Finished, trust: bool, group: Group, written: dict[int, set[bytes]]) -> None:
        fold, record, change = self._state.fold, item.record, item.change
        number = record.header.collection
        if not isinstance(change, PointsChange):
            group.staged.append(fold.restage(record, change=change))
            return
        if number not in self._state.shards or item.codes is None:
            raise Damaged(f"record {record.lsn} is about a collection that is not there", details={"lsn": record.lsn})
        resolved = self._resolver.finished(number, change, item.codes)
        staged = fold.restage(
            record, trust=trust, change=change, present=resolved.present, hashes_of=resolved.hashes_of
        )
        # Rows stay where they are while other ids are written: only ids that the run has written are looked up again.
        seen = written.setdefault(number, set())
        if resolved.located is not None and seen.isdisjoint(change.body.keys):
            group.located[len(group.staged)] = resolved.located
        seen.update(change.body.keys)
        group.staged.append(staged)

    def persist(self, state: bytes, epoch: Epoch | None, is_synced: bool) -> None:
        """Write the replication state; see `Committer.persist`."""
        fold = self._state.fold
        before = fold.position()
        group = Group(is_synced=True)
        batch: list[tuple[Family, bytes, bytes | None]] = [(Family.META, catalog.REPLICATION, state)]
        if epoch is not None:
            assert (epoch.fork_lsn, epoch.chain) == (fold.tip.lsn, fold.tip.chain.hex()), "it begins at the tip"
            self._clock.resume(fold.tip.commit_time_us)
            times = (self._clock.next_us(), self._wall_us())
            group.staged.append(fold.stage(Kind.EPOCH, 0, epoch, time_us=times))
            batch += [(Family.LOG, key, value) for key, value in group.staged[0].record.chunks()]
        self._write(batch, group, before)
        if epoch is not None:
            self._commit(group, before)
        elif is_synced:
            try:
                self._writer.sync(always=True)
            except BaseException as exc:
                self._writer.stop(exc, group)
                raise

    def hand_over(self, target: str, refusal: Callable[[], NotPrimary]) -> None:
        """Write a handover as the last record; see `Committer.handover`."""
        self._writer.hold(refusal)
        fold = self._state.fold
        before = fold.position()
        times = (self._clock.next_us(), self._wall_us())
        staged = fold.stage(Kind.HANDOVER, 0, {"to": target}, time_us=times)
        self._commit(Group(staged=[staged], is_synced=True), before)

    def _write(self, batch: Batch, group: Group, before: Position) -> None:
        try:
            self._store.write(batch)
            group.written = True
        except Stalled:
            self._state.fold.rewind(before)
            raise
        except BaseException as exc:
            self._writer.stop(exc, group)
            raise

    def _commit(self, group: Group, before: Position) -> None:
        """Commit a group; what was not written since the disk did not keep up is as if it were not staged."""
        try:
            self._writer.commit(group)
        except Stalled as exc:
            if group.written:
                self._writer.stop(exc, group)
                raise
            self._state.fold.rewind(before)
            raise
        except BaseException as exc:
            self._writer.stop(exc, group)
            raise
