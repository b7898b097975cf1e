"""An engine and its devices: asked side by side, told apart when one goes, and what the CPU answers is counted."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.data import mixture
from vecstore import Collection, Database
from vecstore.index import budget, handle, pending

from .devices import engine_of, loaded, opened, until

ROWS, DIM = 6_000, 16


def filled(database: Database, shards: int = 4) -> Collection:
    """Return a collection, built."""
    docs = database.create_collection("docs", DIM, metric="l2", index="flat", shards=shards)
    docs.upsert(range(ROWS), mixture(ROWS, DIM, 1))
    docs.optimize()
    return docs


def devices_of(database: Database) -> Any:
    """Return the engine's devices."""
    return engine_of(database).accelerator.devices


def right(docs: Collection, queries: Any) -> bool:
    """Assert that answers are the nearest, as numpy finds them; return true."""
    gap = mixture(ROWS, DIM, 1)[None] - queries[:, None]
    near = np.argsort(np.einsum("qrd,qrd->qr", gap, gap, dtype=np.float64), axis=1)[:, :5]
    assert docs.search_batch(queries, 5, exact=True).ids.tolist() == near.tolist()
    return True


@contextmanager
def stopped(database: Database) -> Iterator[list[Any]]:
    """Have all workers stand still."""
    handles = devices_of(database).handles
    pids = [one.pid for one in handles]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield handles
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def test_devices_are_asked_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A search waits for all devices at once: while both stand still, both have its questions."""
    monkeypatch.setattr(pending, "ANSWER_S_MAX", 300.0)
    with opened(tmp_path / "store", "host", device_count=2) as database:
        docs = filled(database)
        loaded(database)
        assert [len(one.segments()) for one in devices_of(database).handles] == [2, 2]
        search = threading.Thread(target=right, args=(docs, mixture(8, DIM, 2)))
        with stopped(database) as handles:
            search.start()
            until("both have it", lambda: all(len(one._owed) == 2 for one in handles), 20)
        search.join()
        assert [one.asked for one in handles] == [2, 2]
        assert database.status()["device_fallbacks"].keys() <= {"loading"}
        right(docs, mixture(8, DIM, 2))


def test_a_device_that_goes_takes_no_answer_with_it(tmp_path: Path) -> None:
    """While one of two dies again and again, answers stay right; its segments are with the other, and come back."""
    with opened(tmp_path / "store", "host", device_count=2) as database:
        docs = filled(database)
        first, second = devices_of(database).handles
        for _ in range(2):
            loaded(database)
            until("two each", lambda: [len(one.segments()) for one in (first, second)] == [2, 2])
            os.kill(first.pid, signal.SIGKILL)
            until("all are held", lambda: right(docs, mixture(4, DIM, 3)) and len(second.segments()) == 4)
        until("two each", lambda: [len(one.segments()) for one in (first, second)] == [2, 2])
        right(docs, mixture(4, DIM, 3))
        assert first.restarts == 2
        assert second.restarts == 0


def reasons(database: Database) -> dict[str, int]:
    """Return why the CPU answered, and how often."""
    found: dict[str, int] = database.status()["device_fallbacks"]
    return found


def test_what_the_cpu_answers_is_counted_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While an index is built, and while there is no worker; a small segment was never a device's to answer."""
    monkeypatch.setattr(handle, "BACK_OFF_S", 300.0)
    queries = mixture(2, DIM, 2)
    with opened(tmp_path / "store", "host", device_rows_min=1_000) as database:
        small = database.create_collection("small", DIM, metric="l2", index="flat")
        small.upsert(range(500), mixture(500, DIM, 1))
        small.optimize()
        small.search(queries[0], 3)
        (device,) = devices_of(database).handles
        until("the worker", lambda: device.is_ready)
        assert reasons(database) == {}
        with stopped(database):
            docs = filled(database, shards=1)
            right(docs, queries)
            assert reasons(database) == {"loading": 1}
        until("the large one", lambda: any(one.ready for one in device.segments().values()))
        right(docs, queries)
        assert reasons(database) == {"loading": 1}
        os.kill(device.pid, signal.SIGKILL)
        until("its end", lambda: device.pid is None)
        right(docs, queries)
        right(docs, queries)
        assert reasons(database) == {"loading": 1, "down": 2}


def test_what_has_no_room_is_counted(tmp_path: Path) -> None:
    """A segment that no device takes is answered by the CPU, and each answer counts."""
    tight = budget.need("flat", ROWS, DIM).peak // 2
    with opened(tmp_path / "store", "host", device_memory_bytes_max=tight) as database:
        docs = filled(database, shards=1)
        until("the refusal", lambda: database.status()["device_refused"] and devices_of(database).handles[0].is_ready)
        until("its reason", lambda: right(docs, mixture(2, DIM, 2)) and reasons(database).get("refused", 0) > 1)
        assert reasons(database).keys() <= {"refused", "down", "loading"}


def test_what_a_segment_leaves_is_there_for_the_next(tmp_path: Path) -> None:
    """Where the budget holds one collection and not two, the second gets its place once the first is dropped."""
    need = budget.need("flat", ROWS, DIM)
    room = need.peak + need.serve // 2
    with opened(tmp_path / "store", "host", device_memory_bytes_max=room) as database:
        (device,) = devices_of(database).handles
        for _ in range(3):
            docs = filled(database, shards=1)
            loaded(database)
            assert right(docs, mixture(3, DIM, 4))
            assert device.status()["reserved_bytes"] >= need.serve
            database.drop_collection("docs")
            until("its memory is back", lambda: device.status()["reserved_bytes"] == 0)


def test_rows_of_filters_make_room_for_indexes(tmp_path: Path) -> None:
    """What lies on a device for filters is a cache: an index that needs the room gets it, and answers stay right."""
    rows = 3_000
    first, second = (budget.need("flat", count, DIM) for count in (rows, ROWS))
    with opened(tmp_path / "store", "host", device_memory_bytes_max=first.serve + second.peak + 4_096) as database:
        some = database.create_collection("some", DIM, metric="l2", index="flat", fields={"n": "int64"})
        some.upsert(range(rows), mixture(rows, DIM, 6), [{"n": i} for i in range(rows)])
        some.optimize()
        loaded(database)
        (device,) = devices_of(database).handles
        before = device.status()["reserved_bytes"]
        half = {"n": {"$lt": 1_500}}
        found = some.search_batch(mixture(100, DIM, 7), 5, filter=half, exact=True).ids
        assert device.status()["reserved_bytes"] == before + 4 * DIM * 1_500
        docs = filled(database, shards=1)
        loaded(database)
        assert device.refused() == {}
        assert device.status()["reserved_bytes"] == first.serve + second.serve
        assert right(docs, mixture(3, DIM, 4))
        assert np.array_equal(some.search_batch(mixture(100, DIM, 7), 5, filter=half, exact=True).ids, found)
