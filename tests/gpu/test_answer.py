"""What a worker does with one question, on every backend: search, over-fetch, gathered scans, allocations that fail."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.data import mixture, normal_vectors
from vecstore.index.answer import Answer, Held, Question, Unable, answered
from vecstore.index.backend import Backend, selected
from vecstore.index.budget import Choice, Ledger, NoRoom, layout, need
from vecstore.index.channel import WorkerOptions
from vecstore.index.host import HostBackend
from vecstore.values import Metric

from .devices import BACKENDS, source_of

ROWS, DIM = 12_000, 32
SCRATCH_BYTES = 1 << 26
METRICS: list[Metric] = ["l2", "ip", "cosine"]


def backend_of(name: str, budget: int = 1 << 34, failing: int = 0, selections: bool = False) -> Backend:
    """Return a backend of its own ledger."""
    if name == "host":
        return HostBackend(Ledger(budget, failing), selections=selections)
    from vecstore.index.gpu import CudaBackend

    return CudaBackend(WorkerOptions(budget_bytes=budget, failing_allocation=failing, scratch_bytes=SCRATCH_BYTES))


def held_on(backend: Backend, folder: Path, vectors: Any, metric: Metric, kind: str) -> Held:
    """Build an index over vectors."""
    source = source_of(folder, vectors, metric)
    choice = Choice(
        kind, *layout(kind, len(vectors), vectors.shape[1]), need(kind, len(vectors), vectors.shape[1], metric)
    )
    steps = backend.build(source, choice, "s", 1)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return Held("s", source, end.value)


def bitmap_of(held: Held, positions: Any) -> Any:
    """Return the bitmap by row number of some positions."""
    bits = np.zeros(int(held.source.row_numbers(np.array([held.source.rows - 1]))[0]) + 1, np.bool_)
    bits[held.source.row_numbers(np.asarray(positions))] = True
    return np.packbits(bits, bitorder="little")


def truth(vectors: Any, queries: Any, metric: Metric, positions: Any, k: int) -> tuple[Any, Any]:
    """Return the true k nearest among some positions, and all their scores by position, in float64."""
    rows = vectors.astype(np.float64)
    wide = queries.astype(np.float64)
    if metric == "cosine":
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    scores = (wide**2).sum(1)[:, None] + (rows**2).sum(1) - 2 * wide @ rows.T if metric == "l2" else wide @ rows.T
    keys = scores[:, positions] if metric == "l2" else -scores[:, positions]
    order = np.argsort(keys, axis=1, kind="stable")[:, :k]
    return np.asarray(positions)[order], scores


def prepared(queries: Any, metric: Metric) -> Any:
    """Return queries as the engine gives them."""
    if metric == "cosine":
        queries = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    return np.ascontiguousarray(queries, np.float32)


def check_exact(held: Held, answer: Answer, near: Any, scores: Any, metric: Metric, k: int) -> None:
    """Assert that whatever clears its bound is the truth, and that most does."""
    rows = held.source.row_numbers(near)
    proven = 0
    for i, bound in enumerate(answer.bounds):
        last = scores[i, near[i, -1]]
        if (metric == "l2" and last < bound) or (metric != "l2" and last > bound):
            assert set(rows[i].tolist()) <= set(answer.rows[i].tolist())
            proven += 1
    assert proven >= 0.9 * len(answer.bounds)


@pytest.mark.parametrize("share", [1.0, 0.5, 0.1, 0.01, 0.001])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", BACKENDS)
def test_flat_answers_are_exact_where_they_say_so(name: str, metric: Metric, share: float, tmp_path: Path) -> None:
    """Under each metric and selections of any share, a query that clears its bound has the true nearest."""
    vectors, queries = mixture(ROWS, DIM, 1), prepared(mixture(20, DIM, 2), metric)
    held = held_on(backend := backend_of(name), tmp_path, vectors, metric, "flat")
    chosen = np.sort(np.random.default_rng(3).choice(ROWS, int(share * ROWS), replace=False))
    for k in (1, 10, 100):
        k = min(k, len(chosen))
        near, scores = truth(vectors, queries, metric, chosen, k)
        kept = min(k + 50, ROWS)
        question = Question(kept, kept, selection=0 if share == 1.0 else 1, exact=True)
        answer = answered(backend, held, queries, question, bitmap_of(held, chosen), SCRATCH_BYTES)
        check_exact(held, answer, near, scores, metric, k)
        allowed = set(held.source.row_numbers(chosen).tolist()) | {-1}
        assert set(answer.rows.ravel().tolist()) <= allowed


@pytest.mark.parametrize("name", BACKENDS)
def test_k_reaches_ten_thousand(name: str, tmp_path: Path) -> None:
    """Beyond what FAISS selects, all rows are compared: 10,000 of 12,000, the true ones in order but for rounding."""
    vectors, queries = mixture(ROWS, DIM, 1), mixture(3, DIM, 2)
    held = held_on(backend := backend_of(name), tmp_path, vectors, "l2", "flat")
    near, _ = truth(vectors, queries, "l2", np.arange(ROWS), 10_000)
    answer = answered(backend, held, queries, Question(10_000, 10_000), None, SCRATCH_BYTES)
    for i in range(len(queries)):
        common = np.intersect1d(answer.rows[i], held.source.row_numbers(near[i]))
        assert len(common) >= 9_990


@pytest.mark.parametrize("selections", [False, True])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", ["ivf_sq", "ivf_pq"])
@pytest.mark.parametrize("name", BACKENDS)
def test_lists_find_the_near_ones_of_a_selection(
    name: str, kind: str, metric: Metric, selections: bool, tmp_path: Path
) -> None:
    """With all lists looked at and many candidates, nearly all true ones are found: by bitset, over-fetch or scan."""
    if name == "cuda" and selections:
        pytest.skip("what a GPU obeys is decided by its wheel")
    vectors, queries = mixture(ROWS, DIM, 1), prepared(mixture(20, DIM, 2), metric)
    held = held_on(backend := backend_of(name, selections=selections), tmp_path, vectors, metric, kind)
    for share in (1.0, 0.5, 0.2, 0.02):
        chosen = np.sort(np.random.default_rng(3).choice(ROWS, int(share * ROWS), replace=False))
        near, _ = truth(vectors, queries, metric, chosen, 10)
        question = Question(20, 400, selection=0 if share == 1.0 else int(1000 * share))
        answer = answered(backend, held, queries, question, bitmap_of(held, chosen), SCRATCH_BYTES)
        rows = held.source.row_numbers(near)
        hits = [len(np.intersect1d(rows[i], answer.rows[i])) for i in range(len(queries))]
        assert sum(hits) >= 0.97 * 10 * len(queries), (share, hits)
        assert set(answer.rows.ravel().tolist()) <= set(held.source.row_numbers(chosen).tolist())


@pytest.mark.parametrize("name", BACKENDS)
def test_no_index_is_handed_a_selection_that_it_ignores(name: str, tmp_path: Path) -> None:
    """The one guard: an index that would ignore a selection refuses to be searched with one."""
    held = held_on(backend := backend_of(name), tmp_path, mixture(2_000, DIM, 1), "l2", "flat")
    assert "flat" not in backend.obedient
    mask = np.ones(2_000, np.bool_)
    with pytest.raises(AssertionError, match="ignores selections"):
        selected(backend, "flat", mask)
    with pytest.raises(AssertionError, match="ignores selections"):
        backend.search(held.built, mixture(1, DIM, 2), Any, mask)  # type: ignore[arg-type]
    assert selected(backend, "flat", None) is None


@pytest.mark.parametrize("kind", ["flat", "ivf_sq"])
@pytest.mark.parametrize("name", BACKENDS)
def test_no_more_rows_are_gathered_than_somebody_waits_for(
    name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few rows of a selection are gathered; more are found by over-fetch, or left to the CPU where that is too wide."""
    monkeypatch.setattr("vecstore.index.answer.GATHERED_BYTES_MAX", 4 * DIM * 500)
    vectors, queries = mixture(ROWS, DIM, 1), mixture(10, DIM, 2)
    held = held_on(backend := backend_of(name), tmp_path, vectors, "l2", kind)
    gathered: list[int] = []
    block = backend.block

    def counted(metric: Any, some: Any, what: str) -> Any:
        gathered.append(len(some))
        return block(metric, some, what)

    monkeypatch.setattr(backend, "block", counted)
    for number, (rows, candidates) in enumerate([(400, 400), (600, 30), (600, 200)], 1):
        chosen = np.sort(np.random.default_rng(number).choice(ROWS, rows, replace=False))
        question = Question(20, candidates, selection=number)
        if kind != "flat" and candidates == 200:
            with pytest.raises(Unable, match="rows"):
                answered(backend, held, queries, question, bitmap_of(held, chosen), SCRATCH_BYTES)
            continue
        answer = answered(backend, held, queries, question, bitmap_of(held, chosen), SCRATCH_BYTES)
        near = held.source.row_numbers(truth(vectors, queries, "l2", chosen, 10)[0])
        hits = [len(np.intersect1d(near[i], answer.rows[i])) for i in range(len(queries))]
        assert sum(hits) >= 0.97 * 100
    assert gathered == [400]


def test_a_graph_of_which_too_few_rows_are_wanted_is_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What obeys a narrow selection, and loses recall under it, is left alone where the rows cannot be gathered."""
    monkeypatch.setattr("vecstore.index.answer.GATHERED_BYTES_MAX", 4 * DIM * 500)
    vectors, queries = mixture(ROWS, DIM, 1), mixture(4, DIM, 2)
    held = held_on(backend := backend_of("host", selections=True), tmp_path, vectors, "l2", "ivf_sq")
    assert "ivf_sq" in backend.obedient
    with pytest.raises(Unable, match="rows"):
        answered(backend, held, queries, Question(5, 5, selection=1), bitmap_of(held, range(600)), SCRATCH_BYTES)


@pytest.mark.parametrize("name", BACKENDS)
def test_nothing_selected_finds_nothing(name: str, tmp_path: Path) -> None:
    """An empty selection has no rows, and leaves none out."""
    held = held_on(backend := backend_of(name), tmp_path, mixture(2_000, DIM, 1), "l2", "flat")
    bitmap = np.zeros(400, np.uint8)
    answer = answered(backend, held, mixture(4, DIM, 2), Question(5, 5, selection=1), bitmap, SCRATCH_BYTES)
    assert (answer.rows == -1).all()
    assert np.isinf(answer.bounds).all()


@pytest.mark.parametrize("name", BACKENDS)
def test_what_a_device_cannot_answer_it_says(name: str, tmp_path: Path) -> None:
    """Exact answers of rounded codes, more candidates than lists give, numbers beyond float16: each has its word."""
    vectors = mixture(9_000, DIM, 1)
    lists = held_on(backend := backend_of(name), tmp_path, vectors, "l2", "ivf_sq")
    queries = mixture(2, DIM, 2)
    with pytest.raises(Unable, match="exact"):
        answered(backend, lists, queries, Question(5, 5, exact=True), None, SCRATCH_BYTES)
    with pytest.raises(Unable, match="k"):
        answered(backend, lists, queries, Question(5, 8_999), None, SCRATCH_BYTES)
    (tmp_path / "flat").mkdir()
    flat = held_on(backend, tmp_path / "flat", vectors, "l2", "flat")
    with pytest.raises(Unable, match="range"):
        answered(backend, flat, queries * 1e6, Question(5, 5), None, SCRATCH_BYTES)
    (tmp_path / "odd").mkdir()
    vectors[5] *= 1e8
    odd = held_on(backend, tmp_path / "odd", vectors, "l2", "flat")
    with pytest.raises(Unable, match="range"):
        answered(backend, odd, queries, Question(5, 5), None, SCRATCH_BYTES)


@pytest.mark.parametrize("kind", ["flat", "ivf_sq", "ivf_pq"])
@pytest.mark.parametrize("name", BACKENDS)
def test_every_allocation_may_fail(name: str, kind: str, tmp_path: Path) -> None:
    """Whichever allocation fails, it is `NoRoom`, nothing stays reserved for it, and the next try succeeds."""
    vectors, queries = mixture(6_000, DIM, 1), mixture(5, DIM, 2)
    chosen = np.arange(0, 6_000, 3)
    question = Question(10, 100, selection=7)
    backend = backend_of(name)
    held = held_on(backend, tmp_path, vectors, "l2", kind)
    wanted = answered(backend, held, queries, question, bitmap_of(held, chosen), SCRATCH_BYTES)
    failures = 0
    for failing in range(1, 100):
        backend = backend_of(name, failing=failing)
        try:
            held = held_on(backend, tmp_path, vectors, "l2", kind)
        except NoRoom:
            failures += 1
            assert backend.ledger.reserved.get("s") is None
            held = held_on(backend, tmp_path, vectors, "l2", kind)
        bitmap = bitmap_of(held, chosen)
        before = backend.ledger.used
        try:
            answered(backend, held, queries, question, bitmap, SCRATCH_BYTES)
        except NoRoom:
            failures += 1
            held.forget_all(backend)
            assert backend.ledger.used <= before
        if backend.ledger._count < failing:
            break
        again = answered(backend, held, queries, question, bitmap, SCRATCH_BYTES)
        assert np.array_equal(again.rows, wanted.rows)
    assert failures >= 3


@pytest.mark.parametrize("name", BACKENDS)
def test_gathered_rows_are_kept_within_the_budget(name: str, tmp_path: Path) -> None:
    """Rows of selections stay on the device while there is room; without, they go through it in parts."""
    vectors, queries = normal_vectors(6_000, DIM, 1), normal_vectors(4, DIM, 2)
    serve = need("flat", 6_000, DIM).peak
    roomy, tight = backend_of(name, serve + (1 << 26)), backend_of(name, serve + (1 << 18))
    answers = []
    for number, backend in enumerate((roomy, tight)):
        folder = tmp_path / str(number)
        folder.mkdir()
        held = held_on(backend, folder, vectors, "l2", "flat")
        for selection in range(1, 40):
            bitmap = bitmap_of(held, np.arange(selection, 6_000, 2))
            question = Question(10, 10, selection=selection)
            answers.append(answered(backend, held, queries, question, bitmap, SCRATCH_BYTES).rows)
        assert len(held.blocks) <= 16
        assert backend.ledger.used <= backend.ledger.budget
        held.forget_all(backend)
        assert backend.ledger.reserved.keys() <= {"s", "page", "search", "scan", "rescore", "call"}
    assert all(np.array_equal(one, other) for one, other in zip(answers[:39], answers[39:], strict=True))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("rows_max", [1, 7, 1_000, 5_000])
def test_a_source_reads_files_as_one(metric: Metric, rows_max: int, tmp_path: Path) -> None:
    """Blocks, gathered rows, row numbers and masks are those of the rows, whatever files they lie in."""
    vectors = normal_vectors(2_345, 5, 1)
    source = source_of(tmp_path, vectors, metric)
    wanted = vectors / np.linalg.norm(vectors, axis=1, keepdims=True) if metric == "cosine" else vectors
    assert np.concatenate(list(source.blocks(rows_max))) == pytest.approx(wanted, abs=1e-6)
    positions = np.random.default_rng(1).integers(0, 2_345, 400)
    assert source.gathered(positions) == pytest.approx(wanted[positions], abs=1e-6)
    numbers = source.row_numbers(np.arange(2_345))
    assert numbers.tolist() == [i + 96 * (i // 1_000) for i in range(2_345)]
    assert source.row_numbers(np.array([[-1, 1_000]])).tolist() == [[-1, 1_096]]
    chosen = np.random.default_rng(2).random(numbers[-1] + 1) < 0.3
    assert np.array_equal(source.mask(np.packbits(chosen, bitorder="little")), chosen[numbers])
    assert source.mask(np.packbits(chosen[:1_200], bitorder="little")).sum() == chosen[:1_200][numbers[:1_104]].sum()
