"""The CUDA backend, line by line, on any machine: CuPy and FAISS's GPU half are pretended, everything else is real."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.support.data import mixture
from vecstore.index import gpu
from vecstore.index.answer import Question, answered
from vecstore.index.backend import Find
from vecstore.index.bounds import TABLE_TOP
from vecstore.index.budget import NoRoom
from vecstore.index.channel import WorkerOptions
from vecstore.values import Metric

from . import pretend, test_answer
from .test_answer import METRICS, SCRATCH_BYTES, bitmap_of, held_on, prepared, truth

pytestmark = pytest.mark.skipif(pretend.COMPILER is None, reason="no C++ compiler for the kernels")


@pytest.fixture(autouse=True)
def faiss(monkeypatch: pytest.MonkeyPatch) -> pretend.Faiss:
    """Have the backend import what is pretended."""
    pretended = pretend.Faiss()
    monkeypatch.setattr(gpu, "cupy", pretend.Cupy())
    monkeypatch.setattr(gpu, "faiss", pretended)
    return pretended


@pytest.mark.parametrize("share", [1.0, 0.1, 0.001])
@pytest.mark.parametrize("metric", METRICS)
def test_flat_answers_are_exact_where_they_say_so(metric: Metric, share: float, tmp_path: Path) -> None:
    """Whatever clears its bound is the truth."""
    test_answer.test_flat_answers_are_exact_where_they_say_so("cuda", metric, share, tmp_path)


@pytest.mark.parametrize(
    ("kind", "metric"),
    [("ivf_sq", "ip"), *(pytest.param("ivf_pq", metric, marks=pytest.mark.slow) for metric in METRICS)],
)
def test_lists_find_the_near_ones_of_a_selection(kind: str, metric: Metric, tmp_path: Path) -> None:
    """Without selections obeyed, over-fetch finds them."""
    test_answer.test_lists_find_the_near_ones_of_a_selection("cuda", kind, metric, False, tmp_path)


def test_k_reaches_ten_thousand(tmp_path: Path) -> None:
    """Beyond what FAISS selects, a kernel does."""
    test_answer.test_k_reaches_ten_thousand("cuda", tmp_path)


def test_what_it_cannot_answer_it_says(tmp_path: Path) -> None:
    """Each reason has its word."""
    test_answer.test_what_a_device_cannot_answer_it_says("cuda", tmp_path)


@pytest.mark.parametrize("kind", ["flat", *(pytest.param(one, marks=pytest.mark.slow) for one in ("ivf_sq", "ivf_pq"))])
def test_every_allocation_may_fail(kind: str, tmp_path: Path) -> None:
    """Nothing stays of what failed."""
    test_answer.test_every_allocation_may_fail("cuda", kind, tmp_path)


@pytest.mark.slow
def test_gathered_rows_are_kept_within_the_budget(tmp_path: Path) -> None:
    """Rows of selections come and go."""
    test_answer.test_gathered_rows_are_kept_within_the_budget("cuda", tmp_path)


@pytest.mark.parametrize("metric", ["l2", "ip"])
def test_rows_are_compared_in_parts_that_fit_the_scratch(metric: Metric, faiss: pretend.Faiss, tmp_path: Path) -> None:
    """With a scratch of a megabyte 550 queries meet the rows in parts, and find what they find with a large one."""
    vectors, queries = mixture(7_000, 40, 1), prepared(mixture(550, 40, 2), metric)
    found, calls = [], []
    for number, scratch in enumerate((1 << 30, 20 << 20)):
        backend = gpu.CudaBackend(WorkerOptions(budget_bytes=1 << 30, scratch_bytes=scratch))
        (tmp_path / str(number)).mkdir()
        held = held_on(backend, tmp_path / str(number), vectors, metric, "flat")
        faiss.calls = 0
        found.append(answered(backend, held, queries, Question(30, 30), None, 1 << 30).rows)
        calls.append(faiss.calls)
    assert calls[0] == 1 < calls[1]
    assert (np.sort(found[0]) == np.sort(found[1])).mean() > 0.999
    assert faiss.overflows == 0


@pytest.mark.parametrize("kind", ["ivf_sq", "ivf_pq"])
def test_lists_are_searched_for_as_many_queries_as_the_scratch_has_room_for(kind: str, tmp_path: Path) -> None:
    """With all lists looked at and many candidates, FAISS is asked in parts, and finds what it finds at once."""
    vectors, queries = mixture(5_000, 16, 1), mixture(200, 16, 2)
    found, calls = [], []
    for number, scratch in enumerate((4 << 30, 16 << 20)):
        backend = gpu.CudaBackend(WorkerOptions(budget_bytes=1 << 30, scratch_bytes=scratch))
        (tmp_path / str(number)).mkdir()
        held = held_on(backend, tmp_path / str(number), vectors, "l2", kind)
        found.append(backend.search(held.built, queries, Find(300, 0))[1])
        calls.append(backend._resources.calls)
        assert backend._resources.overflows == 0
    assert calls[0] == 1 < calls[1]
    assert np.array_equal(found[0], found[1])


@pytest.mark.parametrize(
    ("kind", "metric", "factor"),
    [("ivf_sq", "l2", 1e6), ("ivf_sq", "ip", 1e6), ("ivf_sq", "l2", 1e-4), ("ivf_pq", "l2", 1e6)],
)
def test_lists_hold_numbers_of_any_size(metric: Metric, kind: str, factor: float, tmp_path: Path) -> None:
    """Rows far beyond what float16 holds, or far below, are found as well as others, and scored as what they are."""
    vectors = (mixture(3_000, 16, 1) * factor).astype(np.float32)
    queries = (mixture(10, 16, 2) * factor).astype(np.float32)
    backend = gpu.CudaBackend(WorkerOptions(budget_bytes=1 << 30, scratch_bytes=SCRATCH_BYTES))
    held = held_on(backend, tmp_path, vectors, metric, kind)
    near, scores = truth(vectors, queries, metric, np.arange(3_000), 10)
    found, places = backend.search(held.built, queries, Find(100, 0))
    hits = [len(np.intersect1d(near[i], places[i])) for i in range(len(queries))]
    assert sum(hits) >= 0.95 * 100
    exact = np.take_along_axis(scores, places, 1)
    assert np.abs(found - exact).max() <= (0.5 if kind == "ivf_pq" else 0.01) * np.abs(exact).max()
    if kind == "ivf_pq":
        assert TABLE_TOP / 2 <= held.built.row_length * held.built.scale <= TABLE_TOP


def test_with_cuvs_only_graphs_obey_a_selection(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A graph is handed the selection and keeps to it; lists are FAISS's own there too, and are not."""
    monkeypatch.setattr(gpu, "faiss", pretend.Faiss(cuvs=True))
    vectors, queries = mixture(6_000, 32, 1), mixture(10, 32, 2)
    backend = gpu.CudaBackend(WorkerOptions(budget_bytes=1 << 30, scratch_bytes=SCRATCH_BYTES))
    assert backend.obedient == {"cagra"}
    chosen = np.arange(0, 6_000, 4)
    for kind in ("cagra", "ivf_sq"):
        (tmp_path / kind).mkdir()
        held = held_on(backend, tmp_path / kind, vectors, "l2", kind)
        near, _ = truth(vectors, queries, "l2", chosen, 10)
        question = Question(20, 400, selection=1)
        answer = answered(backend, held, queries, question, bitmap_of(held, chosen), SCRATCH_BYTES)
        rows = held.source.row_numbers(near)
        hits = [len(np.intersect1d(rows[i], answer.rows[i])) for i in range(len(queries))]
        assert sum(hits) >= 0.97 * 100
        assert set(answer.rows.ravel().tolist()) <= set(held.source.row_numbers(chosen).tolist())


def test_rows_that_there_are_not_are_marked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where fewer rows are selected than asked for, a graph's sentinels become -1 and the worst of scores."""
    monkeypatch.setattr(gpu, "faiss", pretend.Faiss(cuvs=True))
    backend = gpu.CudaBackend(WorkerOptions(budget_bytes=1 << 30, scratch_bytes=SCRATCH_BYTES))
    held = held_on(backend, tmp_path, mixture(500, 16, 1), "ip", "cagra")
    mask = np.zeros(500, np.bool_)
    mask[:5] = True
    scores, rows = backend.search(held.built, mixture(3, 16, 2), Find(20, 0, 32), mask)
    assert ((rows >= 0) == (np.arange(20) < 5)).all()
    assert np.isneginf(scores[:, 5:]).all()
    assert np.isfinite(scores[:, :5]).all()


@pytest.mark.parametrize("error", [MemoryError("std::bad_alloc"), RuntimeError("StandardGpuResources: alloc fail")])
def test_what_faiss_cannot_allocate_is_no_room(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAISS says it in two ways; both leave the ledger as it was, and anything else is not taken for one."""
    backend = gpu.CudaBackend(WorkerOptions(budget_bytes=1 << 30, scratch_bytes=SCRATCH_BYTES))

    def failing(*_: object) -> None:
        raise raised

    monkeypatch.setattr(pretend._Lists, "add", failing)
    raised = error
    with pytest.raises(NoRoom):
        held_on(backend, tmp_path, mixture(2_000, 16, 1), "l2", "ivf_sq")
    assert "s" not in backend.ledger.reserved
    raised = RuntimeError("an illegal access")
    with pytest.raises(RuntimeError, match="illegal"):
        held_on(backend, tmp_path, mixture(2_000, 16, 1), "l2", "ivf_sq")
