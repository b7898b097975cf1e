"""Opening a store: from what is on disk to the state at the last record, or an error that says what is missing.

1. RocksDB is opened strictly; where it refuses its write-ahead log, the log is copied to ``quarantine/`` and opened at
   its last consistent point. What that lost, if anything, the next steps find.
2. The log is read whole: it must be dense, each record must carry on the chain, and a last record without its commit
   mark never happened. It must reach the witness, or acknowledged records are gone: `Damaged` names their LSNs.
3. Committed records above the applied LSN are applied to the families again; their digests are those in their marks.
4. Rows come from the newest checkpoint that is sound, then the log is folded on top; without a checkpoint they come
   from the points family. An index file that is missing or damaged is left out: its rows are scanned until it is
   built again.

A read-only open does the same in memory and writes nothing: the store keeps what it is told aside.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec
import numpy as np

from ..config import EXTENT_ROWS, Config
from ..errors import Damaged, NotFound
from ..index import kinds
from ..index.curve import Curve
from ..record import (
    HEADER_BYTES,
    MARK_BYTES,
    STAMP_BYTES,
    Header,
    IdKind,
    Kind,
    PointsBody,
    Record,
    chain_seed,
    log_key,
    log_key_lsn,
    next_chain,
    split_content,
)
from ..storage import catalog
from ..storage.base import Family, KeyValueStore
from ..storage.directory import StoreDirectory
from ..storage.fold import Fold
from ..storage.rocks import RocksStore, open_store
from ..storage.witness import Witness, WitnessMark
from .checkpoint import Contents, Entry, ExtentEntry, SegmentEntry, dead_rows
from .extent import Extent, Slot, read_file
from .folder import IndexFolder
from .history import History
from .rowmap import id_codes
from .rows import Rows
from .segment import Segment, row_map
from .shard import Shard
from .state import State, part_of, shard_of

__all__ = ["LogReader", "Recovered", "open_storage", "rebuild", "recover", "replay"]

_REBUILD_POINTS = 4_096


@dataclass(slots=True)
class Recovered:
    """An open store's state, and what was found on the way.

    Attributes
    ----------
    contents
        What the kept checkpoints hold, by LSN.
    log_start
        LSN of the first record that the log holds.
    findings
        What was not as it should be and was mended, in sentences.
    """

    state: State
    history: History
    lineage: bytes
    entries: list[Entry] = field(default_factory=list)
    contents: dict[int, Contents] = field(default_factory=dict)
    log_start: int = 1
    findings: list[str] = field(default_factory=list)


def open_storage(directory: StoreDirectory, config: Config, *, read_only: bool) -> tuple[RocksStore, list[str]]:
    """Open RocksDB, strictly if it can be; return it with what had to be mended."""
    opened = partial(
        open_store,
        directory.rocks,
        write_buffer_bytes=config.write_buffer_bytes,
        wal_bytes_max=config.wal_bytes_max,
        read_only=read_only,
    )
    try:
        return opened(strict=True), []
    except Damaged as exc:
        if not read_only:
            _quarantine(directory)
        try:
            store = opened(strict=False)
        except Damaged as refused:
            raise _unreadable(directory, refused) from refused
        return store, [f"the write-ahead log was opened at its last consistent point: {exc}"]


def _unreadable(directory: StoreDirectory, refused: Damaged) -> Damaged:
    """Say up to which LSN records were durable, where RocksDB finds no point that is consistent and reads none."""
    try:
        witness = Witness.open(directory.witness, create=False)
    except (NotFound, Damaged):
        return refused
    mark = witness.read()
    witness.close()
    if mark is None:
        return refused
    return Damaged(
        f"{refused.args[0]}; records up to LSN {mark.lsn} were durable",
        hint="restore from a copy",
        details={**refused.details, "last_lost_lsn": mark.lsn},
    )


def _quarantine(directory: StoreDirectory) -> None:
    """Keep a copy of the write-ahead log as it was found."""
    target = os.path.join(directory.quarantine, time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()))
    os.makedirs(target, exist_ok=True)
    for name in os.listdir(directory.rocks):
        if name.endswith(".log"):
            shutil.copy2(os.path.join(directory.rocks, name), os.path.join(target, name))


def recover(
    store: KeyValueStore, directory: StoreDirectory, witness: WitnessMark | None, config: Config, *, read_only: bool
) -> Recovered:
    """Bring the state of a store to its last record.

    Raises
    ------
    Damaged
        Acknowledged records are gone, or bytes are not what was written; details name LSNs or places.
    """
    (lineage,) = store.get(Family.META, [catalog.LINEAGE])
    if lineage is None:
        if witness is not None:
            raise _lost(0, witness)
        if read_only:
            raise NotFound(f"path: the store at {directory.path} is empty; open it for writing first")
        lineage = _create(store)
    lineage = lineage[:16]
    fold = Fold(store, lineage)
    history = History(store, lineage, fold.epochs)
    log = LogReader(store)
    log.check(fold, history, lineage)
    if witness is not None:
        _check_witness(witness, fold, history)
    if log.torn and not read_only:
        store.write([(Family.LOG, key, None) for key in log.torn])
    redone = 0
    for record in log.records(fold.tip.lsn):
        staged = fold.restage(record, trust=True)
        redone += 1
        for batch in fold.batches([staged], config.write_points_max):
            store.write(batch, logged=False)
        fold.settle()
    recovered = Recovered(State(fold, directory.index), history, lineage, log_start=log.first or fold.tip.lsn + 1)
    if redone:
        recovered.findings.append(f"{redone} committed records were applied again")
    _restore_rows(recovered, store, log, IndexFolder(directory.index))
    for number in recovered.state.shards:
        recovered.state.touch(number)
    recovered.state.publish()
    if not read_only:
        store.compact_by_itself()
    return recovered


def _create(store: KeyValueStore) -> bytes:
    lineage = os.urandom(16) + os.urandom(32)
    store.write([(Family.META, catalog.LINEAGE, lineage)])
    store.sync()
    return lineage


def _lost(reached: int, witness: WitnessMark) -> Damaged:
    return Damaged(
        f"the log ends at LSN {reached}, but LSN {witness.lsn} was durable: "
        f"records {reached + 1} to {witness.lsn} are gone",
        hint="restore from a copy, or run `vecstore doctor DIR --accept-loss` to go on without them",
        details={"first_lost_lsn": reached + 1, "last_lost_lsn": witness.lsn, "reached_lsn": reached},
    )


def _check_witness(witness: WitnessMark, fold: Fold, history: History) -> None:
    reached = max(fold.tip.lsn, history.newest)
    if reached < witness.lsn:
        raise _lost(reached, witness)
    held = history.chain_at(witness.lsn)
    if held is not None and held != witness.chain[: len(held)]:
        raise Damaged(
            f"record {witness.lsn} of the log is not the one that the witness saw",
            hint="restore from a copy, or run `vecstore doctor DIR --accept-loss`",
            details={"lsn": witness.lsn, "first_lost_lsn": witness.lsn, "last_lost_lsn": witness.lsn},
        )


# -- the log ---------------------------------------------------------------------------------------------------------


class LogReader:
    """Reads the log family record by record.

    Attributes
    ----------
    first
        LSN of its first record, 0 for none.
    torn
        Keys of a last record that was never committed.
    """

    def __init__(self, store: KeyValueStore) -> None:
        self._store = store
        self.first = 0
        self.torn: list[bytes] = []

    def check(self, fold: Fold, history: History, lineage: bytes) -> None:
        """Read all of it: it must be dense and carry on one chain, up to and beyond the applied LSN."""
        chain = chain_seed(lineage)
        last = 0
        for record in self.records(0):
            if not last:
                self.first = record.lsn
                chain = chain if record.lsn == 1 else b""
            elif record.lsn != last + 1:
                raise _gap(last + 1, record.lsn - 1)
            got = next_chain(chain, record.header.encode(), record.parts) if chain else record.mark.chain
            if got != record.mark.chain:
                raise Damaged(
                    f"record {record.lsn} of the log breaks the chain", details={"lsn": record.lsn, "family": "log"}
                )
            chain, last = record.mark.chain, record.lsn
            history.append(record)
        applied = fold.tip
        if self.first and self.first > applied.lsn + 1:
            raise _gap(applied.lsn + 1, self.first - 1)
        if last and last < applied.lsn:
            raise _gap(last + 1, applied.lsn)
        held = history.chain_at(applied.lsn) if last else None
        if held is not None and held != applied.chain[: len(held)]:
            raise Damaged(f"record {applied.lsn} is not the one that was applied", details={"lsn": applied.lsn})

    def records(self, after: int) -> Iterator[Record]:
        """Yield the records above an LSN; a last one that was never committed is noted in `torn`."""
        keys: list[bytes] = []
        pieces: list[bytes] = []
        self.torn = []
        for key, value in self._store.scan(Family.LOG, log_key(after + 1)):
            if keys and log_key_lsn(key)[0] != log_key_lsn(keys[0])[0]:
                yield self._joined(keys, pieces)
                keys, pieces = [], []
            keys.append(key)
            pieces.append(value)
        if keys:
            if self._is_whole(pieces):
                yield self._joined(keys, pieces)
            else:
                self.torn = keys

    @staticmethod
    def _is_whole(pieces: list[bytes]) -> bool:
        size = sum(map(len, pieces))
        if size < HEADER_BYTES:
            return False
        return size >= HEADER_BYTES + Header.decode(b"".join(pieces)[:HEADER_BYTES]).body_bytes + MARK_BYTES

    def _joined(self, keys: list[bytes], pieces: list[bytes]) -> Record:
        lsn = log_key_lsn(keys[0])[0]
        numbers = [log_key_lsn(key)[1] for key in keys]
        try:
            if numbers != list(range(len(keys))):
                raise Damaged("a chunk is missing")
            record = Record.decode(b"".join(pieces))
            if record.lsn != lsn:
                raise Damaged(f"it says that it is record {record.lsn}")
            return record
        except Damaged as exc:
            raise Damaged(f"record {lsn} of the log: {exc}", details={"lsn": lsn, "family": "log"}) from exc


def _gap(first: int, last: int) -> Damaged:
    return Damaged(
        f"the log has a gap: records {first} to {last} are gone",
        hint="restore from a copy, or run `vecstore doctor DIR --accept-loss`",
        details={"first_lost_lsn": first, "last_lost_lsn": last},
    )


# -- rows ------------------------------------------------------------------------------------------------------------


def _restore_rows(recovered: Recovered, store: KeyValueStore, log: LogReader, folder: IndexFolder) -> None:
    """Fill the shards: from the newest sound checkpoint and the log above it, else from the points."""
    state = recovered.state
    entries = [
        msgspec.json.decode(value, type=Entry)
        for _, value in store.scan(Family.META, catalog.CHECKPOINT, catalog.CHECKPOINT[:-1] + b"0")
    ]
    for entry in reversed(entries):
        try:
            contents = _read_contents(recovered, entry, folder, log)
            _load(state, contents, folder, recovered.findings)
            replay(state, log, entry.lsn)
        except Damaged as exc:
            recovered.findings.append(f"the checkpoint at LSN {entry.lsn} is damaged: {exc}")
            for collection in state.fold.collections.values():
                state.open_collection(collection)
            continue
        recovered.entries.append(entry)
        recovered.contents[entry.lsn] = contents
        break
    else:
        if entries or not (log.first == 1 or state.fold.tip.lsn == 0):
            recovered.findings.append("no checkpoint is sound: all rows were read from the points")
            for number in state.fold.collections:
                rebuild(state, store, number)
        else:
            replay(state, log, 0)
    _keep_older(recovered, entries, folder, log)


def _keep_older(recovered: Recovered, entries: list[Entry], folder: IndexFolder, log: LogReader) -> None:
    """Keep the older checkpoints that can be read, for the next time."""
    for entry in reversed(entries):
        if recovered.entries and entry.lsn < recovered.entries[0].lsn:
            with contextlib.suppress(Damaged):
                recovered.contents[entry.lsn] = _read_contents(recovered, entry, folder, log)
                recovered.entries.insert(0, entry)


def _read_contents(recovered: Recovered, entry: Entry, folder: IndexFolder, log: LogReader) -> Contents:
    tip = recovered.state.fold.tip
    held = recovered.history.chain_at(entry.lsn) or (tip.chain if entry.lsn == tip.lsn else None)
    if entry.lsn > tip.lsn or (held is not None and bytes.fromhex(entry.chain)[: len(held)] != held):
        raise Damaged(f"it is not of this history: LSN {entry.lsn}")
    if entry.lsn < tip.lsn and (not log.first or log.first > entry.lsn + 1):
        raise Damaged(f"the log begins at {log.first}, above it")
    data = folder.read(entry.file, entry.size, entry.check)
    try:
        return msgspec.msgpack.decode(data.tobytes(), type=Contents)
    except msgspec.MsgspecError as exc:
        raise Damaged(f"checkpoint file {entry.file} cannot be read: {exc}") from exc


def replay(state: State, log: LogReader, after: int) -> None:
    """Fold the points of the log's records above an LSN into the shards."""
    for record in log.records(after):
        number = record.header.collection
        if record.header.kind in (Kind.UPSERT, Kind.DELETE) and number in state.shards:
            state.apply_points(number, record.lsn, PointsBody.decode(record.body))


def _load(state: State, contents: Contents, folder: IndexFolder, findings: list[str]) -> None:
    for number, entries in contents.collections.items():
        shards = state.shards.get(number)
        if shards is None:
            continue
        if len(shards) != len(entries):
            raise Damaged(f"checkpoint: {len(entries)} shards of collection {number}, {len(shards)} expected")
        for shard, entry in zip(shards, entries, strict=True):
            _load_segments(shard, entry.segments, folder, findings)
            for growing in entry.growing:
                _load_growing(shard, growing, folder)


def _load_segments(shard: Shard, entries: list[SegmentEntry], folder: IndexFolder, findings: list[str]) -> None:
    numbers = [extent.slot for entry in entries for extent in entry.extents]
    slots = iter(shard.reserve(numbers))
    segments, dead = [], {}
    for entry in entries:
        extents = []
        for piece in entry.extents:
            extent, fields = read_file(folder.path, piece.file, shard.rows, next(slots))
            if shard.columns.load(extent.start, extent.rows, fields):
                shard.columns.put(extent.start, [extent.payloads[i] for i in range(extent.rows)])
            extents.append(extent)
            if piece.dead:
                dead[extent] = dead_rows(piece)
        segments.append(_segment(entry, tuple(extents), shard.rows, folder, findings))
    shard.adopt(segments, dead)


def _segment(
    entry: SegmentEntry, extents: tuple[Extent, ...], rows: Rows, folder: IndexFolder, findings: list[str]
) -> Segment:
    index = curve = None
    if entry.index is not None and entry.curve is not None:
        try:
            index = kinds.load(folder.read(entry.index.name, entry.index.size, entry.index.check))
            curve = Curve.from_plain(entry.curve)
        except Damaged as exc:
            findings.append(f"the index of segment {entry.name} is built again: {exc}")
            index = curve = None
    count = sum(extent.rows for extent in extents)
    return Segment(
        entry.name, extents, index, curve, row_map(rows, extents), count, entry.trained_rows, entry.measured_rows
    )


def _load_growing(shard: Shard, entry: ExtentEntry, folder: IndexFolder) -> None:
    """Append the live rows of an extent that was growing."""
    scratch = Rows(shard.rows.dim, shard.rows.metric, EXTENT_ROWS)
    extent, _ = read_file(folder.path, entry.file, scratch, Slot(0, deque()))
    alive = np.flatnonzero(~dead_rows(entry))
    if not len(alive):
        return
    codes = scratch.codes[alive]
    places = alive.tolist()
    body = PointsBody(
        extent.id_kind,
        [extent.key_of(i, code) for i, code in zip(places, codes.tolist(), strict=True)],
        [extent.payloads[i] for i in places],
        scratch.vectors.data[alive],
    )
    shard.append(scratch.lsns[alive], body, codes)


def rebuild(state: State, store: KeyValueStore, number: int) -> None:
    """Fill the shards of a collection from the points family."""
    dim = state.fold.collections[number].definition.dim
    prefix, stop = number.to_bytes(8, "big"), (number + 1).to_bytes(8, "big")
    keys: list[bytes] = []
    payloads: list[bytes] = []
    vectors: list[bytes] = []
    lsns: list[int] = []

    def flush() -> None:
        data = np.frombuffer(b"".join(vectors), "<f4").reshape(len(keys), dim)
        body = PointsBody(IdKind(keys[0][0]), list(keys), list(payloads), data)
        _append(state.shards[number], np.array(lsns, np.int64), body)
        pending: list[Any]
        for pending in (keys, payloads, vectors, lsns):
            pending.clear()

    for place, value in store.scan(Family.POINTS, prefix, stop):
        key, payload, vector = split_content(value[STAMP_BYTES:])
        if place[8:] != key or len(vector) != 4 * dim:
            raise Damaged(f"the point at {place.hex()} is not the one that belongs there", details={"family": "points"})
        keys.append(key)
        payloads.append(payload)
        vectors.append(vector)
        lsns.append(int.from_bytes(value[:8], "little"))
        if len(keys) == _REBUILD_POINTS:
            flush()
    if keys:
        flush()


def _append(shards: list[Shard], lsns: np.ndarray[tuple[int], np.dtype[np.int64]], body: PointsBody) -> None:
    places = shard_of(body.keys, len(shards)) if len(shards) > 1 else np.zeros(len(body.keys), np.int64)
    for i, shard in enumerate(shards):
        mine = np.flatnonzero(places == i)
        if len(mine):
            part = part_of(body, mine.tolist())
            shard.append(lsns[mine], part, id_codes(part.kind, part.keys))
