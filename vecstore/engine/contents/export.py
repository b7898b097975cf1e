"""Exporting what lies behind a fork, before anything of it is dropped: read record by record, in bounded memory.

The folder is written under a draft's name and gets its own once all of it is durable; one that is there is never
touched. The same export asked for again, as after a crash, is found and left as it is.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec
import numpy as np

from ...record import STAMP_BYTES, Header, IdKind, PointsBody, Record, key_id, split_content
from ...storage.base import Family
from ...storage.catalog import Tip
from ...storage.swap import sync_folder, sync_tree
from ..engine import Engine
from ..kept import DIVERGED, DRAFT
from ..recovery import LogReader
from .diverged import RECORDS, SUMMARY, LeftBehind, Summary, exports
from .drop import standing
from .touched import Touched

__all__ = ["Left", "export"]

_LIVE_POINTS = 2_000
_GROUP_BYTES = 8 << 20


class Left(NamedTuple):
    """What an export found.

    Attributes
    ----------
    ids
        The points that were touched behind the fork: collection and id key.
    needs_snapshot
        Setting those points would not undo all of it.
    name
        Of the export's folder; empty where nothing lay behind the fork.
    """

    ids: tuple[tuple[int, bytes], ...]
    needs_snapshot: bool
    name: str


def export(engine: Engine, fork_lsn: int, is_complete: bool) -> Left:
    """Export what lies behind a fork in an open store that takes no writes; it is durable when this returns.

    Parameters
    ----------
    is_complete
        Whether all of it is thought to be in the log. Where it is not, points newer than the fork are exported as they
        are now, beside the records that are left.
    """
    if engine.committer is not None:
        engine.at_barrier(engine.committer.sync)
    tip = engine.state.fold.tip
    if fork_lsn >= tip.lsn:
        return Left((), False, "")
    path = engine.directory.path
    root = os.path.join(path, DIVERGED)
    os.makedirs(root, exist_ok=True)
    sync_folder(path)
    with standing(root):
        return _Export(engine, fork_lsn, tip, is_complete).into(root)


class _Export:
    """One export: what it has seen so far, and the files that it writes, if any."""

    def __init__(self, engine: Engine, fork_lsn: int, tip: Tip, is_complete: bool) -> None:
        self._engine, self._fork_lsn, self._tip = engine, fork_lsn, tip
        self._first_lsn = self._log_start()
        self._is_complete = is_complete and self._first_lsn <= fork_lsn + 1
        self._touched = Touched()
        self._definitions = {n: state.definition for n, state in engine.state.fold.collections.items()}
        self._tables: dict[int, _Table] = {}
        self._records = self._others = 0

    def into(self, root: str) -> Left:
        """Write it into a folder of its own, unless it is there."""
        for name in os.listdir(root):
            if name.startswith(DRAFT):
                shutil.rmtree(os.path.join(root, name))
        same = [found for found in exports(self._engine.directory.path) if self.is_of(found)]
        if same:
            self.run(None)
            return self.left(same[0].name)
        moment = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(self._engine.clock.wall_us() / 1e6))
        name = f"{moment}-{self._fork_lsn}"
        number = 1
        while os.path.exists(os.path.join(root, name)):
            number += 1
            name = f"{moment}-{self._fork_lsn}-{number}"
        draft = os.path.join(root, DRAFT + name)
        os.mkdir(draft)
        self.run(draft)
        with open(os.path.join(draft, SUMMARY), "wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(self.summary(name)), indent=1) + b"\n")
        sync_tree(draft)
        os.rename(draft, os.path.join(root, name))
        sync_folder(root)
        return self.left(name)

    def is_of(self, summary: Summary) -> bool:
        """Return whether an export that is there is this one."""
        mine = (self._engine.directory.store_id.hex(), self._fork_lsn, self._tip.lsn, self._tip.chain.hex())
        theirs = (summary.store_id, summary.fork_lsn, summary.tip_lsn, summary.tip_chain)
        return mine == theirs and self._is_complete == summary.is_complete

    def left(self, name: str) -> Left:
        """Return what was found."""
        return Left(self._touched.ids, self._needs_snapshot, name)

    @property
    def _needs_snapshot(self) -> bool:
        return not self._is_complete or self._touched.needs_snapshot

    def run(self, folder: str | None) -> None:
        """Read all of it, and write it into a folder."""
        if folder is None:
            for record in self._log():
                self._see(record)
            return
        try:
            with open(os.path.join(folder, RECORDS), "wb") as others:
                if not self._is_complete:
                    self._write_live(folder)
                for record in self._log():
                    body = self._see(record)
                    if body is None:
                        self._others += 1
                        others.write(msgspec.json.encode(_plain(record)) + b"\n")
                    elif body.keys:
                        table = self._table(folder, record.header.collection, body.kind)
                        table.add(record.header, body)
        finally:
            for table in self._tables.values():
                table.close()

    def summary(self, name: str) -> Summary:
        """Return what was written."""
        return Summary(
            format=1,
            name=name,
            store_id=self._engine.directory.store_id.hex(),
            lineage=self._engine.lineage.hex(),
            fork_lsn=self._fork_lsn,
            first_lsn=max(self._first_lsn, self._fork_lsn + 1),
            tip_lsn=self._tip.lsn,
            tip_chain=self._tip.chain.hex(),
            is_complete=self._is_complete,
            needs_snapshot=self._needs_snapshot,
            records=self._records,
            others=self._others,
            collections=[self._left_of(number, table) for number, table in sorted(self._tables.items())],
        )

    def _left_of(self, number: int, table: _Table) -> LeftBehind:
        definition = self._definitions.get(number)
        return LeftBehind(
            number=number,
            name=definition.name if definition is not None else f"collection {number}",
            file=f"{number}.parquet",
            upserts=table.upserts,
            deletes=table.deletes,
            definition=definition,
            was_created=number in self._touched.created,
            is_gone=number not in self._engine.state.fold.collections,
        )

    def _log_start(self) -> int:
        record = next(LogReader(self._engine.store).records(0), None)
        return self._tip.lsn + 1 if record is None else record.lsn

    def _log(self) -> Iterator[Record]:
        for record in LogReader(self._engine.store).records(self._fork_lsn):
            if record.lsn > self._tip.lsn:
                return
            self._records += 1
            yield record

    def _see(self, record: Record) -> PointsBody | None:
        """Note what a record touched; return its points, None where it is about something else."""
        body = self._touched.see(record)
        for number, definition in self._touched.created.items():
            self._definitions.setdefault(number, definition)
        return body

    def _write_live(self, folder: str) -> None:
        """Write the points newer than the fork whose records the log no longer holds."""
        for number, state in sorted(self._engine.state.fold.collections.items()):
            span = (number.to_bytes(8, "big"), (number + 1).to_bytes(8, "big"))
            some: list[tuple[int, bytes, bytes, bytes]] = []
            for _, value in self._engine.store.scan(Family.POINTS, *span):
                lsn = int.from_bytes(value[:8], "little")
                if self._fork_lsn < lsn < self._first_lsn:
                    some.append((lsn, *split_content(value[STAMP_BYTES:])))
                if len(some) == _LIVE_POINTS:
                    self._live_table(folder, number, some, state.definition.dim)
                    some = []
            if some:
                self._live_table(folder, number, some, state.definition.dim)

    def _live_table(self, folder: str, number: int, some: list[tuple[int, bytes, bytes, bytes]], dim: int) -> None:
        lsns, keys, payloads, vectors = (list(column) for column in zip(*some, strict=True))
        data = np.frombuffer(b"".join(vectors), "<f4").reshape(len(keys), dim)
        body = PointsBody(IdKind(keys[0][0]), keys, payloads, data)
        self._table(folder, number, body.kind).add_live(lsns, body)

    def _table(self, folder: str, number: int, kind: IdKind) -> _Table:
        table = self._tables.get(number)
        if table is None:
            table = self._tables[number] = _Table(os.path.join(folder, f"{number}.parquet"), kind)
        return table


def _plain(record: Record) -> dict[str, Any]:
    header = record.header
    return {
        "lsn": header.lsn,
        "commit_time_us": header.commit_time_us,
        "kind": header.kind.name.lower(),
        "collection": header.collection,
        "body": msgspec.Raw(record.body),
    }


class _Table:
    """The Parquet file of one collection; rows are written when they are some megabytes."""

    def __init__(self, path: str, kind: IdKind) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._pa = pa
        self._schema = pa.schema(
            [
                ("lsn", pa.uint64()),
                ("commit_time", pa.timestamp("us", tz="UTC")),
                ("source", pa.string()),
                ("operation", pa.string()),
                ("id", pa.uint64() if kind == IdKind.INT else pa.string()),
                ("vector", pa.list_(pa.float32())),
                ("payload", pa.string()),
            ]
        )
        self._writer = pq.ParquetWriter(path, self._schema, compression="zstd", use_dictionary=False)
        self._pending: list[Any] = []
        self._pending_bytes = 0
        self.upserts = self.deletes = 0

    def add(self, header: Header, body: PointsBody) -> None:
        """Add the points of a record."""
        count = len(body.keys)
        self._add([header.lsn] * count, [header.commit_time_us] * count, "log", body)

    def add_live(self, lsns: list[int], body: PointsBody) -> None:
        """Add points as they are, of which the records are gone."""
        self._add(lsns, [None] * len(lsns), "points", body)

    def _add(self, lsns: list[int], times: list[int] | list[None], source: str, body: PointsBody) -> None:
        pa, count = self._pa, len(body.keys)
        if body.vectors is None:
            operation, vectors, payloads = (
                "delete",
                pa.nulls(count, pa.list_(pa.float32())),
                pa.nulls(count, pa.string()),
            )
            self.deletes += count
        else:
            offsets = np.arange(count + 1, dtype=np.int32) * body.vectors.shape[1]
            operation = "upsert"
            vectors = pa.ListArray.from_arrays(offsets, np.ascontiguousarray(body.vectors).reshape(-1))
            payloads = pa.array([payload.decode() for payload in body.payloads], pa.string())
            self.upserts += count
        columns = [
            pa.array(lsns, pa.uint64()),
            pa.array(times, pa.timestamp("us", tz="UTC")),
            pa.array([source] * count, pa.string()),
            pa.array([operation] * count, pa.string()),
            pa.array([key_id(key) for key in body.keys], self._schema.field("id").type),
            vectors,
            payloads,
        ]
        batch = pa.record_batch(columns, schema=self._schema)
        self._pending.append(batch)
        self._pending_bytes += batch.nbytes
        if self._pending_bytes >= _GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._pending:
            self._writer.write_table(self._pa.Table.from_batches(self._pending))
            self._pending, self._pending_bytes = [], 0

    def close(self) -> None:
        """Write what is left, and the end of the file."""
        self._flush()
        self._writer.close()
