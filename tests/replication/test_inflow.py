"""A standby that catches up keeps the bounds of a writer: rows without an index, memory, disk."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.replication.pair import committer_of, make_pair
from vecstore.engine.database import EmbeddedDatabase
from vecstore.record import Record
from vecstore.replication.inflow import Inflow
from vecstore.replication.messages import Frame
from vecstore.replication.store_log import StoreLog

ROWS_MAX = 8_192
BATCH = 1_000
DIM = 8


class Reader:
    """Who reads a link: it admits a frame, and hands it over; what is handed over is appended at once."""

    def __init__(self, target: EmbeddedDatabase) -> None:
        self.target, self.over, self.full = target, False, list[str]()
        self.beats: list[Frame] = []
        self.rows: list[int] = []
        self.inflow = Inflow(
            lambda: target.engine,
            lambda _sender, frame: self.beats.append(frame),
            lambda _sender, _session: self.over,
            self.full.append,
            0.01,
        )
        self.thread: threading.Thread | None = None

    def take(self, records: list[Record]) -> None:
        """Take records in frames of one, in a thread."""

        def run() -> None:
            for record in records:
                self.inflow.admit("a", frame_of(record))
                if self.over:
                    return
                self.target.engine.append([record])
                self.rows.append(unsealed(self.target))

        self.thread = threading.Thread(target=run)
        self.thread.start()

    def join(self) -> None:
        """Wait until all is taken."""
        assert self.thread is not None
        self.thread.join(60)
        assert not self.thread.is_alive()

    def wait_held(self) -> None:
        """Wait until it is held back."""
        pause = threading.Event()
        for _ in range(3_000):
            if self.inflow.why and len(self.beats) > 2:
                return
            pause.wait(0.01)
        raise AssertionError(self.rows)


def frame_of(record: Record) -> Frame:
    """Return a frame with one record."""
    return Frame(1, None, (record.lsn - 1, b""), (record,), record.lsn, (), ())  # type: ignore[arg-type]


def unsealed(database: EmbeddedDatabase) -> int:
    """Return how many rows no index covers."""
    found: int = database.status()["collections"]["docs"]["unsealed_rows"]
    return found


def load(database: EmbeddedDatabase, batches: int, seed: int) -> list[Record]:
    """Write points in batches; return the records."""
    rng = np.random.default_rng(seed)
    docs = database.create_collection("docs", DIM, exist_ok=True)
    for number in range(batches):
        docs.upsert(range(number * BATCH, (number + 1) * BATCH), rng.standard_normal((BATCH, DIM), dtype=np.float32))
    log = StoreLog(lambda: database.engine)
    return list(log.read(1, log.durable_lsn, 1 << 30))


@pytest.fixture(name="pair")
def _pair(tmp_path: Path) -> Iterator[tuple[EmbeddedDatabase, EmbeddedDatabase]]:
    with make_pair(tmp_path, unsealed_rows_max=ROWS_MAX) as pair:
        yield pair


def test_rows_without_an_index_are_bounded_while_a_standby_catches_up(
    seed: int, pair: tuple[EmbeddedDatabase, EmbeddedDatabase], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records wait while the builder is behind, and no longer; the stream is heard meanwhile."""
    a, b = pair
    records = load(a, 24, seed)
    builder = b.engine.builder
    assert builder is not None
    goes_on, seal = threading.Event(), builder._sealer.step
    monkeypatch.setattr(builder._sealer, "step", lambda *given: goes_on.wait(60) and seal(*given))
    reader = Reader(b)
    reader.take(records)
    reader.wait_held()
    assert "rows wait to be indexed, more than 8192" in reader.inflow.why
    assert ROWS_MAX < reader.rows[-1] <= ROWS_MAX + BATCH
    beat = reader.beats[-1]
    assert (beat.records, beat.tip_lsn) == ((), records[len(reader.rows)].lsn)
    goes_on.set()
    reader.join()
    assert max(reader.rows) <= ROWS_MAX + BATCH
    assert committer_of(b.engine).durable_lsn == records[-1].lsn
    assert (reader.inflow.why, reader.full) == ("", [])


def test_where_building_has_failed_records_go_on(
    seed: int, pair: tuple[EmbeddedDatabase, EmbeddedDatabase], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows are compared until it succeeds: a standby that stands still would be worse."""
    a, b = pair
    records = load(a, 12, seed)
    builder = b.engine.builder
    assert builder is not None

    def fail(*_: object) -> bool:
        raise RuntimeError("planted")

    monkeypatch.setattr(builder._sealer, "step", fail)
    builder.wake()
    reader = Reader(b)
    reader.take(records)
    reader.join()
    assert max(reader.rows) == 12 * BATCH


def test_memory_and_disk_hold_records_back_and_are_told(
    seed: int, pair: tuple[EmbeddedDatabase, EmbeddedDatabase], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is told once, by name; with room again the standby goes on; what is over is waited for no more."""
    a, b = pair
    records = load(a, 3, seed)
    with monkeypatch.context() as patch:
        patch.setattr("vecstore.engine.engine.disk_free_bytes", lambda _: 0)
        reader = Reader(b)
        reader.take(records)
        reader.wait_held()
    reader.join()
    assert ["disk: 0 bytes are free" in why for why in reader.full] == [True]
    assert committer_of(b.engine).durable_lsn == records[-1].lsn
    more = load(a, 4, seed + 1)[len(records) :]
    monkeypatch.setattr(b.engine, "memory_bytes", lambda: 1 << 60)
    reader = Reader(b)
    reader.take(more)
    reader.wait_held()
    assert reader.inflow.why.startswith("memory: the store holds") and len(reader.full) == 1
    reader.over = True
    reader.join()
    assert reader.rows == []


def test_a_delete_needs_no_memory(
    seed: int, pair: tuple[EmbeddedDatabase, EmbeddedDatabase], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What gives room back is not held back for want of it."""
    a, b = pair
    first = load(a, 2, seed)
    a.collection("docs").delete(ids=list(range(BATCH)))
    log = StoreLog(lambda: a.engine)
    (last,) = log.read(first[-1].lsn, log.durable_lsn, 1 << 30)
    b.engine.append(first)
    monkeypatch.setattr(b.engine, "memory_bytes", lambda: 1 << 60)
    reader = Reader(b)
    reader.take([last])
    reader.join()
    assert b.collection("docs").count() == BATCH
