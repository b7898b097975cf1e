"""Stores on devices answer as stores on the CPU do, whatever becomes of the devices."""

from __future__ import annotations

import os
import signal
import threading
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vecstore
from tests.support.data import mixture, recall
from vecstore import Collection, Database, EngineMissing, InvalidArgument
from vecstore.index import budget
from vecstore.index.channel import WorkerOptions

from .devices import BACKENDS, NO_GPU, engine_of, loaded, opened, until

ROWS, DIM = 9_000, 24
METRICS = ["l2", "ip", "cosine"]
FILTERS: list[Any] = [
    None,
    {"n": {"$lt": 500}},
    {"n": {"$lt": 100}},
    {"n": {"$lt": 10}},
    {"n": 7},
]
"""All rows, then 50%, 10%, 1% and 0.1% of them."""


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """The backend of the workers."""
    return str(request.param)


def filled(database: Database, metric: Any = "l2", index: Any = "auto", shards: int = 1) -> Collection:
    """Return a collection with `n` from 0 to 999, built."""
    docs = database.create_collection("docs", DIM, metric=metric, index=index, shards=shards, fields={"n": "int64"})
    docs.upsert(range(ROWS), mixture(ROWS, DIM, 1, centres=300), [{"n": i % 1_000} for i in range(ROWS)])
    docs.optimize()
    return docs


def queries_of(count: int = 25) -> Any:
    """Return queries of the same mixture."""
    return mixture(count, DIM, 2, centres=300)


def same(path: Path, docs: Collection, k: int = 10, **keywords: Any) -> None:
    """Assert that exact answers of singles and batches are those of a copy that the CPU searches."""
    queries = queries_of()
    got = docs.search_batch(queries, k, exact=True, **keywords)
    want = oracle(docs, queries, k, **keywords)
    assert np.array_equal(got.ids, want.ids)
    assert np.allclose(got.scores, want.scores, rtol=0, atol=1e-4, equal_nan=True)
    hits = docs.search(queries[0], k, exact=True, **keywords)
    assert hits.exact
    assert [hit.id for hit in hits] == [i for i in want.ids[0].tolist() if i >= 0]


def oracle(docs: Collection, queries: Any, k: int, **keywords: Any) -> Any:
    """Return what the CPU says: the same engine, with its devices out of the way."""
    engine = docs._engine  # type: ignore[attr-defined]
    accelerator, engine.accelerator = engine.accelerator, None
    try:
        return docs.search_batch(queries, k, exact=True, **keywords)
    finally:
        engine.accelerator = accelerator


def asked(database: Database) -> int:
    """Return how many questions devices have answered."""
    return sum(one["asked"] for one in database.status()["devices"])


@pytest.mark.parametrize("metric", METRICS)
def test_exact_answers_are_the_cpus(backend: str, metric: str, tmp_path: Path) -> None:
    """Under every metric and filter, and k from 1 to 10,000: the same ids in the same order, scores of the same
    kernel.
    """
    with opened(tmp_path / "store", backend) as database:
        docs = filled(database, metric)
        loaded(database)
        for wanted in FILTERS:
            for k in (1, 10, 1_000):
                same(tmp_path, docs, k, filter=wanted)
        same(tmp_path, docs, 10_000)
        assert asked(database) > 0


@pytest.mark.parametrize("index", ["auto", "flat", "ivf_sq8", "hnsw"])
def test_the_recall_asked_for_is_met(backend: str, index: str, tmp_path: Path) -> None:
    """Whatever index the collection asks for, approximate answers meet the recall, with filters and without."""
    with opened(tmp_path / "store", backend) as database:
        docs = filled(database, index=index, shards=2)
        loaded(database)
        queries = queries_of(60)
        for wanted in FILTERS[:4]:
            true = oracle(docs, queries, 10, filter=wanted)
            for ask in (0.9, 0.95, 0.99):
                found = docs.search_batch(queries, 10, recall=ask, filter=wanted)
                assert recall(found.ids, true.ids) >= ask - 0.01, (wanted, ask)
        assert asked(database) > 0


@pytest.mark.parametrize("kind", ["ivf_sq", "ivf_pq"])
def test_lists_on_a_device_meet_the_recall(
    backend: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Indexes with lists start from a table, are measured on the device, and meet the recall before and after."""

    def chosen(rows: int, dim: int, metric: Any, free: int, **keywords: Any) -> Any:
        made = budget.choose(rows, dim, metric, free, **keywords)
        need = budget.need(kind, rows, dim, metric)
        return made and budget.Choice(kind, *budget.layout(kind, rows, dim), need)

    monkeypatch.setattr("vecstore.index.placement.choose", chosen)
    with opened(tmp_path / "store", backend) as database:
        docs = filled(database)
        loaded(database)
        queries = queries_of(100)
        true = oracle(docs, queries, 10)
        assert recall(docs.search_batch(queries, 10, recall=0.95).ids, true.ids) >= 0.94
        report = until("a measured curve", lambda: measured(database))
        assert report["recall"]
        for ask in (0.9, 0.95, 0.99):
            found = docs.search_batch(queries, 10, recall=ask)
            assert recall(found.ids, true.ids) >= ask - 0.01, ask
        docs.delete(ids=range(0, ROWS, 2))
        assert recall(docs.search_batch(queries, 10).ids, oracle(docs, queries, 10).ids) >= 0.94
        same(tmp_path, docs, 10)


def measured(database: Database) -> dict[str, Any] | None:
    """Return what was measured of an index on a device, None while nothing was."""
    for device in database.status()["devices"]:
        for segment in device["segments"].values():
            if segment["recall"]["source"] == "measured":
                found: dict[str, Any] = segment["recall"]
                return found
    return None


def test_deletes_are_never_found(backend: str, tmp_path: Path) -> None:
    """From none to nine tenths of the rows deleted, what is left is found, and nothing else."""
    with opened(tmp_path / "store", backend) as database:
        docs = filled(database)
        loaded(database)
        left = set(range(ROWS))
        for tenth in range(9):
            gone = [i for i in sorted(left) if i % 10 == tenth]
            docs.delete(ids=gone)
            left -= set(gone)
            same(tmp_path, docs, 20)
            found = docs.search_batch(queries_of(), 20).ids
            assert set(found.ravel().tolist()) <= left
        docs.optimize()
        loaded(database)
        same(tmp_path, docs, 20)


def test_storms_of_upserts_are_seen_at_once(backend: str, tmp_path: Path) -> None:
    """While rows are replaced and added all the time, each search sees what was acknowledged before it."""
    with opened(tmp_path / "store", backend) as database:
        docs = filled(database)
        loaded(database)
        random = np.random.default_rng(5)
        for _ in range(30):
            ids = random.integers(0, ROWS + 3_000, 300)
            ids = np.unique(ids)
            vectors = random.standard_normal((len(ids), DIM)).astype(np.float32) * 4
            docs.upsert(ids.tolist(), vectors, [{"n": int(i) % 1_000} for i in ids])
            at = int(random.integers(len(ids)))
            hit = docs.search(vectors[at], 1)[0]
            assert (hit.id, hit.score) == (int(ids[at]), 0.0)
            same(tmp_path, docs, 5, filter={"n": {"$lt": 500}})
        assert asked(database) > 0


def test_no_death_of_a_worker_changes_an_answer(backend: str, tmp_path: Path, rng: np.random.Generator) -> None:
    """Workers are killed at moments of chance while callers search: every answer is right, and devices come back."""
    with opened(tmp_path / "store", backend) as database:
        docs = filled(database)
        queries = queries_of(40)
        want = oracle(docs, queries, 10)
        stop = threading.Event()
        wrong: list[Any] = []
        answers = [0]

        def search(seed: int) -> None:
            random = np.random.default_rng(seed)
            while not stop.is_set():
                i = int(random.integers(len(queries)))
                try:
                    hits = docs.search(queries[i], 10, exact=True)
                except Exception as exc:  # noqa: BLE001  (whatever it is, it is wrong)
                    wrong.append(exc)
                    return
                if [hit.id for hit in hits] != want.ids[i].tolist():
                    wrong.append((i, [hit.id for hit in hits]))
                answers[0] += 1

        threads = [threading.Thread(target=search, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        (device,) = engine_of(database).accelerator.devices.handles
        deaths = (signal.SIGKILL, signal.SIGABRT, signal.SIGKILL, signal.SIGSEGV)
        for number, death in enumerate(deaths):
            pid = until("a worker", lambda: device.pid)
            # At a moment of chance: while it starts, loads, or answers.
            stop.wait(float(rng.random()) * 0.8)
            os.kill(pid, death)
            until("its successor", partial(_has_restarted, device, number))
        stop.wait(0.5)
        stop.set()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert answers[0] > 50
        assert device.restarts == len(deaths)
        assert database.status()["devices"][0]["restarts"] == len(deaths)
        same(tmp_path, docs)


def _has_restarted(device: Any, times: int) -> bool:
    return bool(device.restarts > times)


@pytest.mark.parametrize("failing", [1, 2, 3, 4, 6, 9, 14, 30])
def test_no_failed_allocation_changes_an_answer(
    backend: str, failing: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever of its first allocations fails on the device, answers stay the same; the reason is reported."""

    def failing_options(**keywords: Any) -> WorkerOptions:
        return WorkerOptions(**keywords, failing_allocation=failing)

    monkeypatch.setattr("vecstore.engine.accelerator.WorkerOptions", failing_options)
    with opened(tmp_path / "store", backend) as database:
        docs = filled(database)
        (device,) = engine_of(database).accelerator.devices.handles
        until("a segment, or a refusal", lambda: device.refused() or any(x.ready for x in device.segments().values()))
        for wanted in FILTERS:
            same(tmp_path, docs, 10, filter=wanted)
            same(tmp_path, docs, 10, filter=wanted)
        status = database.status()
        assert device.refused() or status["device_fallbacks"].get("memory") or failing > 4
        assert device.restarts == 0


def test_half_of_the_memory_needed_changes_no_answer(backend: str, tmp_path: Path) -> None:
    """With a budget of half of what even the smallest index takes, the CPU serves, and status says why."""
    need = budget.need("ivf_pq", ROWS, DIM).peak
    flat = budget.need("flat", ROWS, DIM).peak
    with opened(tmp_path / "store", backend, device_memory_bytes_max=min(need, flat) // 2) as database:
        docs = filled(database)
        refused = until("the refusal", lambda: database.status()["device_refused"])
        assert all(reason.startswith("budget: ") for reason in refused.values())
        same(tmp_path, docs)
        assert asked(database) == 0


def test_a_store_filled_with_a_device_opens_without_one(backend: str, tmp_path: Path) -> None:
    """And the other way round: nothing on disk knows of devices."""
    path = str(tmp_path / "store")
    queries = queries_of()
    with opened(path, backend) as database:
        docs = filled(database)
        loaded(database)
        before = docs.search_batch(queries, 10, exact=True)
    with vecstore.open(path, device="cpu") as database:
        assert database.status()["device"] == "cpu"
        assert database.status()["devices"] == []
        between = database.collection("docs").search_batch(queries, 10, exact=True)
    with opened(path, backend) as database:
        loaded(database)
        after = database.collection("docs").search_batch(queries, 10, exact=True)
        assert asked(database) > 0
    assert np.array_equal(before.ids, between.ids)
    assert np.array_equal(before.ids, after.ids)
    assert np.array_equal(between.scores, after.scores)


def test_ties_are_all_found(backend: str, tmp_path: Path) -> None:
    """Equal rows go by id though a device orders them as it likes."""
    with opened(tmp_path / "store", backend) as database:
        docs = database.create_collection("docs", 4, metric="l2")
        rows = np.random.default_rng(1).integers(0, 3, (9_000, 4)).astype(np.float32)
        docs.upsert(range(9_000), rows)
        docs.optimize()
        loaded(database)
        for query in rows[:8]:
            near = np.flatnonzero((rows == query).all(axis=1))[:30]
            assert [hit.id for hit in docs.search(query, 30, exact=True)] == near.tolist()


def test_the_cpu_has_no_devices(tmp_path: Path) -> None:
    """Without being asked for, no device is looked for and no process started."""
    with vecstore.open(str(tmp_path / "store"), device="cpu") as database:
        assert engine_of(database).accelerator is None


@pytest.mark.skipif(not NO_GPU, reason="there is a GPU")
def test_a_gpu_that_is_missing_is_an_error_where_it_was_asked_for(tmp_path: Path) -> None:
    """`device="gpu"` says what is missing; `device="auto"` takes the CPU."""
    with pytest.raises((EngineMissing, InvalidArgument), match="'gpu' was asked for"):
        vecstore.open(str(tmp_path / "store"), device="gpu")
    with vecstore.open(str(tmp_path / "store")) as database:
        assert database.status()["device"] == "cpu"
