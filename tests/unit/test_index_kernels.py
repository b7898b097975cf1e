"""Exact kernels: the same bits on every path, the right rows, one thread."""

from __future__ import annotations

import threading

import faiss
import numpy as np
import pytest

from vecstore.index import cpu
from vecstore.index.base import Floats, Vectors
from vecstore.values import Metric

METRICS: list[Metric] = ["cosine", "ip", "l2"]
DIMS = [1, 2, 3, 4, 7, 8, 12, 15, 16, 17, 33, 128, 384]
WORST = {"cosine": -np.inf, "ip": -np.inf, "l2": np.inf}


def make(metric: Metric, dim: int, rows: int = 700, queries: int = 5, seed: int = 0) -> tuple[Vectors, Floats]:
    """Return random vectors and prepared queries."""
    rng = np.random.default_rng(seed)
    data = rng.standard_normal((rows, dim)).astype(np.float32)
    norms = (1 / np.linalg.norm(data, axis=1)).astype(np.float32) if metric == "cosine" else None
    return Vectors(metric, data, norms), cpu.prepare(metric, rng.standard_normal((queries, dim)).astype(np.float32))


def oracle(vectors: Vectors, queries: Floats) -> np.ndarray:
    """Return the scores in float64."""
    data, wide = vectors.data.astype(np.float64), queries.astype(np.float64)
    if vectors.metric == "l2":
        return np.asarray(((wide[:, None] - data[None]) ** 2).sum(axis=2))
    scores = wide @ data.T
    return scores if vectors.metric == "ip" else scores / np.linalg.norm(data, axis=1)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dim", DIMS)
def test_scores_have_the_same_bits_on_every_path(metric: Metric, dim: int) -> None:
    """One query or many, gathered or in a run, first or last: a row's score is one number."""
    vectors, queries = make(metric, dim)
    rng = np.random.default_rng(1)
    full = cpu.score(vectors, queries, np.tile(np.arange(700), (5, 1)))
    np.testing.assert_allclose(full, oracle(vectors, queries), rtol=2e-4, atol=2e-5)
    assert np.array_equal(cpu.score_span(vectors, queries, 0, 700), full)
    for start, stop in [(3, 4), (0, 1), (17, 417), (699, 700), (5, 5)]:
        assert np.array_equal(cpu.score_span(vectors, queries, start, stop), full[:, start:stop])
    rows = rng.integers(0, 700, (5, 41))
    assert np.array_equal(cpu.score(vectors, queries, rows), np.take_along_axis(full, rows, 1))
    assert np.array_equal(cpu.score(vectors, queries[2:3], rows[2:3]), np.take_along_axis(full, rows, 1)[2:3])
    span = np.arange(100, 600)
    for few in (queries, queries[:1]):
        best, found = cpu.scan_span(vectors, few, 100, 600, 20)
        assert np.array_equal(best, np.take_along_axis(full[: len(few)], found, 1))
        gathered, where = cpu.scan(vectors, few, span[::-1].copy(), 20)
        assert np.array_equal(gathered, best)
        assert np.array_equal(np.take_along_axis(full[: len(few)], where, 1), best)
        copied, there = cpu.Block(vectors, span).scan(few, 20)
        assert np.array_equal(copied, best)
        assert np.array_equal(there, found)


@pytest.mark.parametrize("metric", METRICS)
def test_prepared_queries_do_not_depend_on_their_batch(metric: Metric) -> None:
    """Normalising a batch gives each query the bits that it has alone."""
    given = np.random.default_rng(3).standard_normal((50, 77)).astype(np.float32)
    batch = cpu.prepare(metric, given)
    assert all(np.array_equal(cpu.prepare(metric, given[i : i + 1])[0], batch[i]) for i in range(50))
    for i in range(50):
        for alone in (cpu.prepared(metric, given[i]), cpu.prepared(metric, given.T.copy().T[i])):
            assert alone is not None
            assert np.array_equal(alone, batch[i : i + 1])
    for bad in (np.nan, np.inf, -np.inf):
        assert cpu.prepared(metric, np.array([1, bad], np.float32)) is None
    if metric == "cosine":
        assert cpu.prepared(metric, np.zeros(3, np.float32)) is None
        tiny = cpu.prepare(metric, np.full((1, 4), 1e-30, np.float32))
        huge = cpu.prepare(metric, np.full((1, 4), 1e30, np.float32))
        assert np.allclose(tiny, 0.5) and np.allclose(huge, 0.5)


@pytest.mark.parametrize("metric", METRICS)
def test_absent_rows_score_worst(metric: Metric) -> None:
    """A row of -1 is never nearer than a row, whatever lies at the array's end."""
    vectors, queries = make(metric, 24)
    if vectors.inverse_norms is not None:
        vectors.inverse_norms[-1] = np.nan
    scores = cpu.score(vectors, queries, np.array([[3, -1, 4]] * 5))
    assert (scores[:, 1] == WORST[metric]).all()
    assert np.isfinite(scores[:, [0, 2]]).all()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("count", "k"), [(1, 1), (5, 10), (100, 10), (1000, 10), (1000, 1000), (3000, 1)])
def test_nearest_sorts_the_best_first(metric: Metric, count: int, k: int) -> None:
    """As a full stable sort does."""
    scores = np.random.default_rng(count).standard_normal((3, count)).astype(np.float32)
    best, columns = cpu.nearest(metric, scores, k)
    order = np.argsort(scores if metric == "l2" else -scores, axis=1, kind="stable")[:, :k]
    assert np.array_equal(columns, order)
    assert np.array_equal(best, np.take_along_axis(scores, order, 1))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("queries", [1, 2, 40])
def test_scan_of_a_span_obeys_its_selection(metric: Metric, queries: int) -> None:
    """Blocks, bit offsets and too few matches: only allowed rows are found, the rest is -1."""
    vectors, asked = make(metric, 32, rows=9000, queries=queries)
    full = oracle(vectors, asked) * (1 if metric == "l2" else -1)
    for allowed in (np.arange(13, 9000, 7), np.array([14, 8998])):
        bits = np.zeros(9000, np.bool_)
        bits[allowed] = True
        chosen = cpu.selection(np.packbits(bits, bitorder="little"), len(allowed))
        scores, rows = cpu.scan_span(vectors, asked, 13, 8999, 10, chosen)
        expected = min(10, int((allowed < 8999).sum()))
        inside = allowed[allowed < 8999]
        order = inside[np.argsort(full[:, inside], axis=1)[:, :10]]
        assert np.array_equal(rows[:, :expected], order)
        assert (rows[:, expected:] == -1).all()
        assert (scores[:, expected:] == WORST[metric]).all()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dim", [8, 16, 128, 384])
def test_a_batch_scans_with_the_bits_of_single_queries(metric: Metric, dim: int) -> None:
    """Blocks of rows and of queries, full and not: the nearest and their scores are those of one query at a time."""
    vectors, queries = make(metric, dim, rows=1500, queries=130)
    scores, rows = cpu.scan_span(vectors, queries, 3, 1499, 12)
    for i in (0, 63, 64, 127, 128, 129):
        alone, found = cpu.scan_span(vectors, queries[i : i + 1], 3, 1499, 12)
        assert scores[i].tobytes() == alone[0].tobytes()
        assert np.array_equal(rows[i], found[0])


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", ["distinct", "tied", "few", "infinite", "not numbers"])
def test_nearest_of_many_are_those_of_a_stable_sort(metric: Metric, kind: str) -> None:
    """Ties across groups, fewer than k that count, and scores that are no numbers: the order is that of the columns."""
    rng = np.random.default_rng(3)
    scores = rng.standard_normal((9, 1003)).astype(np.float32)
    if kind == "tied":
        scores = rng.integers(0, 200, scores.shape).astype(np.float32)
    elif kind == "few":
        scores[:, 7:] = WORST[metric]
    elif kind == "infinite":
        scores[4, ::5] = -WORST[metric]
    elif kind == "not numbers":
        scores[2, 5] = np.nan
    best, columns = cpu.nearest(metric, scores, 13)
    order = (scores if metric == "l2" else -scores).argsort(axis=1, kind="stable")[:, :13]
    expected = np.take_along_axis(scores, order, 1)
    assert np.array_equal(best, expected, equal_nan=True)
    inside = np.ones(order.shape, np.bool_)
    if kind in ("tied", "few", "infinite"):
        # Which of those that tie with the last are taken is free.
        inside = expected != expected[:, -1:]
    assert np.array_equal(columns[inside], order[inside])


def test_every_thread_computes_alone() -> None:
    """A new thread's first call leaves it with one OpenMP thread."""
    vectors, queries = make("l2", 8)
    seen: list[int] = []

    def search() -> None:
        cpu.score_span(vectors, queries, 0, 10)
        seen.append(faiss.omp_get_max_threads())

    thread = threading.Thread(target=search)
    thread.start()
    thread.join()
    assert seen == [1]
