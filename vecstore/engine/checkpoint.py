"""Checkpoints: the rows and indexes at one LSN as files, so that a reopen folds only the rest of the log.

A checkpoint at LSN n is one file that names all others: extents and index files of the sealed segments, an extent for
each growing one, and which rows are dead. It is taken from a view, beside writers, and becomes valid with an entry in
the meta family, after everything it names was synced. Only then may the log be cut, below the oldest checkpoint that
is kept.

Losing a checkpoint costs time, no data: an older one, or the points family, gives the same state.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Sequence
from typing import Protocol

import msgspec
import numpy as np

from ..config import EXTENT_ROWS, MIB, Config
from ..errors import Closed, Damaged, VecstoreError
from ..metrics import Metrics
from ..record import log_key
from ..storage import catalog
from ..storage.base import Family, KeyValueStore
from ..storage.witness import Witness
from .committer import Committer
from .extent import Extent, ExtentFile, write_file
from .folder import IndexFolder
from .segment import Segment
from .slots import Slots
from .state import State
from .view import Growing, ShardView, View

__all__ = [
    "Checkpointer",
    "Contents",
    "Entry",
    "ExtentEntry",
    "IndexFile",
    "SegmentEntry",
    "ShardEntry",
    "Still",
    "dead_rows",
    "needed_files",
]


_log = logging.getLogger("vecstore")

_WASTE_SHARE_MAX = 1.0
_WASTE_BYTES_MIN = 64 * MIB


class ExtentEntry(msgspec.Struct, frozen=True, array_like=True):
    """An extent: its file, the slot its rows are numbered by, and the packed bits of its dead rows, if any."""

    file: ExtentFile
    slot: int
    dead: bytes


class IndexFile(msgspec.Struct, frozen=True, array_like=True):
    """The file of an index: name, size, xxh3_128."""

    name: str
    size: int
    check: str


class SegmentEntry(msgspec.Struct, frozen=True):
    """A sealed segment."""

    name: str
    extents: list[ExtentEntry]
    index: IndexFile | None
    curve: dict[str, object] | None
    trained_rows: int
    measured_rows: int


class ShardEntry(msgspec.Struct, frozen=True):
    """A shard: its segments, and an extent for each growing one."""

    segments: list[SegmentEntry]
    growing: list[ExtentEntry]


class Contents(msgspec.Struct, frozen=True):
    """What a checkpoint's file holds: the shards of each collection."""

    lsn: int
    collections: dict[int, list[ShardEntry]]

    def built(self) -> set[tuple[str, int]]:
        """Return the segments that it has, each with the rows that it was measured over."""
        shards = (shard for shards in self.collections.values() for shard in shards)
        return {(segment.name, segment.measured_rows) for shard in shards for segment in shard.segments}

    def files(self) -> set[str]:
        """Return the names of all files that it needs."""
        names: set[str] = set()
        for shard in (shard for shards in self.collections.values() for shard in shards):
            names.update(entry.file.name for entry in shard.growing)
            for segment in shard.segments:
                names.update(entry.file.name for entry in segment.extents)
                if segment.index is not None:
                    names.add(segment.index.name)
        return names


def _built(view: View) -> set[tuple[str, int]]:
    """Return the segments of a view, as `Contents.built` does."""
    shards = (shard for collection in view.collections.values() for shard in collection.shards)
    return {(segment.name, segment.measured_rows) for shard in shards for segment in shard.sealed.segments}


class Entry(msgspec.Struct, frozen=True):
    """A checkpoint's entry in the meta family: the place in the history, and its file."""

    lsn: int
    chain: str
    log_bytes: int
    file: str
    size: int
    check: str


class Still(Protocol):
    """Who keeps a state as it is: told when it stands, and then which files of rows and indexes are of it."""

    def stand(self, view: View) -> None:
        """Keep the families. In the committer's thread; all of the view is durable."""
        ...

    def keep(self, entry: Entry, names: Iterable[str]) -> None:
        """Keep a checkpoint's file, and those that it names."""
        ...


class Checkpointer:
    """A thread that takes checkpoints, cuts the log, purges dropped collections and syncs the witness.

    `entries` are those kept, oldest first.
    """

    def __init__(
        self,
        state: State,
        committer: Committer,
        store: KeyValueStore,
        witness: Witness,
        folder: IndexFolder,
        config: Config,
        metrics: Metrics,
        entries: list[Entry],
        log_start: int,
    ) -> None:
        self._state, self._committer, self._store, self._witness = state, committer, store, witness
        self._folder, self._config, self._metrics = folder, config, metrics
        self.entries = entries
        self._contents: dict[int, Contents] = {}
        self.slots: Slots | None = None
        self._log_start = log_start
        self._dumped: dict[str, IndexFile] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="vecstore-checkpointer", daemon=True)

    def know(self, lsn: int, contents: Contents) -> None:
        """Learn what a checkpoint of before holds."""
        self._contents[lsn] = contents
        for shard in (shard for shards in contents.collections.values() for shard in shards):
            for segment in shard.segments:
                if segment.index is not None:
                    self._dumped[segment.name] = segment.index

    def start(self) -> None:
        """Begin to watch the log."""
        self._thread.start()

    def close(self) -> None:
        """Stop; a checkpoint under way is finished."""
        self._stop.set()
        self._thread.join()

    def _loop(self) -> None:
        elapsed_s = 0.0
        while not self._stop.wait(min(1.0, self._config.checkpoint_interval_s)):
            elapsed_s += min(1.0, self._config.checkpoint_interval_s)
            try:
                self._witness.sync()
                if self.log_bytes >= self._config.checkpoint_log_bytes or (
                    elapsed_s >= self._config.checkpoint_interval_s and self.is_due
                ):
                    self.take()
                    elapsed_s = 0.0
            except Closed:
                return
            except VecstoreError:
                if self._committer.broken is not None:
                    return
                _log.exception("a checkpoint failed; it is tried again")
            except OSError:
                _log.exception("a checkpoint failed; it is tried again")

    @property
    def log_start(self) -> int:
        """LSN of the first record that the log holds, or will."""
        return self._log_start

    @property
    def log_bytes(self) -> int:
        """Bytes of log since the newest checkpoint."""
        return self._state.fold.tip.log_bytes - (self.entries[-1].log_bytes if self.entries else 0)

    @property
    def is_due(self) -> bool:
        """Whether there are records, or work of the builder, that the newest checkpoint does not have."""
        view = self._state.view
        if not self.entries or view.lsn > self.entries[-1].lsn:
            return view.lsn > 0
        newest = self._contents.get(self.entries[-1].lsn)
        return newest is None or _built(view) != newest.built()

    def take(self, still: Still | None = None) -> Entry:
        """Take a checkpoint of the store as it is now, and cut the log.

        Parameters
        ----------
        still
            Keeps the families and the checkpoint's files at one LSN, as a snapshot needs them.
        """
        with self._lock, self._metrics.checkpoint_s.time(), self._folder.making() as names:
            view, log_bytes = self._committer.run(lambda: self._pinned(still))
            if still is not None and self.entries and self.entries[-1].lsn == view.lsn:
                newest = self.entries[-1]
                still.keep(newest, self._contents[newest.lsn].files())
                return newest
            contents = Contents(
                view.lsn,
                {
                    number: [self._shard(shard, view, names) for shard in collection.shards]
                    for number, collection in view.collections.items()
                },
            )
            name = self._folder.new_name(names, "checkpoint")
            size, check = self._folder.write(name, msgspec.msgpack.encode(contents))
            self._folder.sync()
            entry = Entry(view.lsn, view.chain.hex(), log_bytes, name, size, check)
            if still is not None:
                still.keep(entry, contents.files())
            self._store.flush_ahead()
            dropped, cut = self._committer.run(lambda: self._enter(entry))
            self._contents[entry.lsn] = contents
            for old in dropped:
                if old.lsn != entry.lsn:
                    self._contents.pop(old.lsn, None)
            self._clean()
            if cut:
                self._store.compact(Family.LOG)
            self._compact_points(view)
            # Buffers that were filled since: given back, instead of held until they are full again.
            self._store.trim()
            return entry

    def keep_newest(self) -> None:
        """Forget all checkpoints but the newest: the rows of the others were not what the records had written."""
        with self._lock:
            gone = self.entries[:-1]
            self._committer.run(lambda: self._forget([entry.lsn for entry in gone]))
            for entry in gone:
                self._contents.pop(entry.lsn, None)
            self._clean()

    def _forget(self, lsns: Sequence[int]) -> None:
        """Remove entries, durably. In the committer's thread."""
        self._store.write([(Family.META, catalog.numbered(catalog.CHECKPOINT, lsn), None) for lsn in lsns])
        self._store.sync()
        self.entries = [entry for entry in self.entries if entry.lsn not in lsns]

    def _compact_points(self, view: View) -> None:
        """Give back the space of overwritten and dropped points, where it has become more than they are worth."""
        live = sum(_live_bytes(shard) for collection in view.collections.values() for shard in collection.shards)
        held = self._store.disk_bytes() - self.log_bytes
        if held > (1 + _WASTE_SHARE_MAX) * live + _WASTE_BYTES_MIN:
            self._store.compact(Family.POINTS)

    def _pinned(self, still: Still | None) -> tuple[View, int]:
        """Return a view whose records are durable. In the committer's thread."""
        self._committer.sync()
        if still is not None:
            still.stand(self._state.view)
        return self._state.view, self._state.fold.tip.log_bytes

    def _enter(self, entry: Entry) -> tuple[list[Entry], bool]:
        """Make a checkpoint valid, forget those that are not kept, cut the log. In the committer's thread.

        What the log is cut of must be durable in the families.
        """
        self._store.flush()
        kept = [*(old for old in self.entries if old.lsn != entry.lsn), entry][-self._config.checkpoints_retained :]
        dropped = [old for old in self.entries if old not in kept]
        key = catalog.numbered(catalog.CHECKPOINT, entry.lsn)
        self._store.write([(Family.META, key, msgspec.json.encode(entry))])
        self._store.sync()
        gone = [old.lsn for old in dropped if old.lsn != entry.lsn]
        self._store.write([(Family.META, catalog.numbered(catalog.CHECKPOINT, lsn), None) for lsn in gone])
        self.entries = kept
        last = kept[0].lsn
        if self.slots is not None:
            last = self.slots.limit(last, self._state.fold.tip.log_bytes)
        cut = last >= self._log_start
        if cut:
            self._store.delete_range(Family.LOG, log_key(self._log_start), log_key(last + 1))
            self._log_start = last + 1
        self._purge()
        return dropped, cut

    def _purge(self) -> None:
        """Free the points of dropped collections. In the committer's thread."""
        found = list(self._store.scan(Family.META, catalog.DROPPED, catalog.DROPPED[:-1] + b"0"))
        for key, _ in found:
            number = catalog.number_of(catalog.DROPPED, key)
            span = (number.to_bytes(8, "big"), (number + 1).to_bytes(8, "big"))
            self._store.delete_range(Family.POINTS, *span)
            self._store.write([(Family.META, key, None)])

    # -- files -------------------------------------------------------------------------------------------------------

    def _shard(self, shard: ShardView, view: View, names: set[str]) -> ShardEntry:
        segments = [self._segment(segment, shard, names) for segment in shard.sealed.segments]
        growing = [self._growing(g, shard, view, names) for g in shard.growing if g.rows]
        return ShardEntry(segments, growing)

    def _segment(self, segment: Segment, shard: ShardView, names: set[str]) -> SegmentEntry:
        index = self._dumped.get(segment.name) if segment.index is not None else None
        if index is None and segment.index is not None:
            name = self._folder.new_name(names, "index")
            size, check = self._folder.write(name, segment.index.dump())
            index = self._dumped[segment.name] = IndexFile(name, size, check)
        if index is not None:
            names.add(index.name)
        extents = [_sealed_extent(extent, shard) for extent in segment.extents]
        names.update(entry.file.name for entry in extents)
        curve = segment.curve.to_plain() if segment.curve is not None else None
        return SegmentEntry(segment.name, extents, index, curve, segment.trained_rows, segment.measured_rows)

    def _growing(self, growing: Growing, shard: ShardView, view: View, names: set[str]) -> ExtentEntry:
        extent = growing.extent
        saved = extent.saved
        if saved is None or saved.rows != growing.rows:
            name = self._folder.new_name(names, "extent")
            fields = shard.columns.dump(extent.start, extent.start + growing.rows)
            saved = write_file(self._folder.path, name, shard.rows, extent, growing.rows, fields)
            extent.saved = saved
        names.add(saved.name)
        alive = shard.alive(growing, view.lsn)
        dead = b"" if alive is None or alive.all() else np.packbits(~alive, bitorder="little").tobytes()
        return ExtentEntry(saved, extent.slot.number, dead)

    def _clean(self) -> None:
        """Remove the files that neither a kept checkpoint nor the store as it is needs."""
        self._folder.clean(lambda: needed_files(self.entries, self._contents.values(), self._state.view))
        current = {s.name for c in self._state.view.collections.values() for v in c.shards for s in v.sealed.segments}
        kept = {s.name for c in self._contents.values() for v in c.collections.values() for e in v for s in e.segments}
        for name in set(self._dumped) - current - kept:
            del self._dumped[name]


def _live_bytes(shard: ShardView) -> int:
    """Return about what the live rows of a shard take in the points family."""
    extents = [*(e for s in shard.sealed.segments for e in s.extents), *(g.extent for g in shard.growing)]
    total = sum(extent.size for extent in extents)
    rows = sum(extent.rows for extent in extents)
    live = rows - sum(shard.sealed.dead) - sum(g.extent.deaths for g in shard.growing)
    return total * live // max(1, rows)


def needed_files(entries: Iterable[Entry], contents: Iterable[Contents], view: View) -> set[str]:
    """Return the names of all files that checkpoints or a view need."""
    names = {entry.file for entry in entries}
    for held in contents:
        names |= held.files()
    for collection in view.collections.values():
        for shard in collection.shards:
            names.update(e.file.name for s in shard.sealed.segments for e in s.extents if e.file is not None)
            names.update(g.extent.saved.name for g in shard.growing if g.extent.saved is not None)
    return names


def _sealed_extent(extent: Extent, shard: ShardView) -> ExtentEntry:
    assert extent.file is not None
    first = extent.start >> 3
    packed = shard.sealed.live[first : first + EXTENT_ROWS // 8]
    alive = np.unpackbits(packed, count=extent.rows, bitorder="little").astype(np.bool_)
    dead = b"" if alive.all() else np.packbits(~alive, bitorder="little").tobytes()
    return ExtentEntry(extent.file, extent.slot.number, dead)


def dead_rows(entry: ExtentEntry) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Return which rows of an extent are dead."""
    if not entry.dead:
        return np.zeros(entry.file.rows, np.bool_)
    bits = np.frombuffer(entry.dead, np.uint8)
    if len(bits) * 8 < entry.file.rows:
        raise Damaged(f"checkpoint: too few bits for extent {entry.file.name}")
    return np.unpackbits(bits, count=entry.file.rows, bitorder="little").astype(np.bool_)
