"""Kinds of index: plans, deterministic training, growing, merging, bytes, recall."""

from __future__ import annotations

import faiss
import numpy as np
import pytest

from vecstore.errors import Damaged, EngineMissing, InvalidArgument
from vecstore.index import cpu, curve, device, kinds
from vecstore.index.base import Effort, Floats, Index, Rows, Vectors
from vecstore.index.inverted import Inverted
from vecstore.values import Metric

APPROXIMATE = ["ivf_flat", "ivf_pq", "ivf_sq8", "hnsw"]
METRICS: list[Metric] = ["cosine", "ip", "l2"]


def clustered(metric: Metric, rows: int, dim: int, queries: int = 50) -> tuple[Vectors, Floats]:
    """Return rows around 40 centres, and prepared queries around the same."""
    rng = np.random.default_rng(7)
    centres = rng.standard_normal((40, dim))

    def around(count: int) -> Floats:
        data = centres[rng.integers(0, 40, count)] + 0.7 * rng.standard_normal((count, dim))
        return data.astype(np.float32)

    data = around(rows)
    norms = (1 / np.linalg.norm(data, axis=1)).astype(np.float32) if metric == "cosine" else None
    return Vectors(metric, data, norms), cpu.prepare(metric, around(queries))


def build(kind: str, vectors: Vectors, rows: Rows, seed: int = 1) -> Index:
    """Return an index over rows."""
    plan = kinds.plan(kind, len(rows), vectors.data.shape[1])
    assert plan is not None
    return kinds.train(plan, vectors.metric, vectors, rows, seed=seed, threads=1).added(rows, vectors)


def recall(index: Index, vectors: Vectors, queries: Floats, effort: Effort, span: tuple[int, int]) -> float:
    """Return the share of the true 10 nearest that are found."""
    found = index.search(queries, effort)
    _, columns = cpu.nearest(vectors.metric, cpu.score(vectors, queries, found), 10)
    got = np.take_along_axis(found, columns, 1)
    _, truth = cpu.scan_span(vectors, queries, *span, 10)
    return float(np.mean([np.isin(a, b).mean() for a, b in zip(truth, got, strict=True)]))


@pytest.mark.parametrize("dim", [1, 2, 3, 7, 15, 16, 17, 255, 257, 1000, 16384])
def test_every_dimension_has_a_plan(dim: int) -> None:
    """Pieces divide the padded width, which adds less than one piece."""
    plan = kinds.plan("auto", 5000, dim)
    assert plan is not None
    assert plan.width >= dim
    if plan.kind == "ivf_pq":
        assert plan.width % plan.pieces == 0
        assert plan.width - dim < plan.width // plan.pieces


def test_few_rows_are_scanned() -> None:
    """`auto` and `flat` have no index where a scan is as fast; unknown kinds are refused."""
    assert kinds.plan("auto", 4096, 64) is None
    assert kinds.plan("flat", 10**7, 64) is None
    assert kinds.plan("hnsw", 10, 64) is not None
    with pytest.raises(InvalidArgument, match="'ivf' is not one of"):
        kinds.plan("ivf", 10, 64)
    with pytest.raises(InvalidArgument, match="16384"):
        kinds.plan("auto", 10, 16385)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", APPROXIMATE)
@pytest.mark.parametrize("dim", [2, 7, 33])
def test_an_index_finds_what_was_asked(kind: str, metric: Metric, dim: int) -> None:
    """With its table, its measured curve, and after a dump and a load."""
    vectors, queries = clustered(metric, 5000, dim)
    rows = np.arange(100, 4900)
    index = build(kind, vectors, rows)
    effort = curve.table(index.kind, index.lists, dim).effort(0.95, 10)
    assert index.count == 4800
    assert recall(index, vectors, queries, effort, (100, 4900)) >= 0.95
    measured = curve.measure(index, metric, vectors, rows, threads=1, seed=3)
    assert recall(index, vectors, queries, measured.effort(0.95, 10), (100, 4900)) >= 0.95
    again = kinds.load(memoryview(index.dump().tobytes()))
    assert (again.kind, again.count, again.lists, again.bytes) == (index.kind, 4800, index.lists, index.bytes)
    assert np.array_equal(again.search(queries, effort), index.search(queries, effort))


@pytest.mark.parametrize("kind", APPROXIMATE)
def test_only_selected_rows_are_found(kind: str) -> None:
    """However few they are; the rest is padded with -1."""
    vectors, queries = clustered("cosine", 5000, 32)
    index = build(kind, vectors, np.arange(5000))
    table = curve.table(index.kind, index.lists, 32)
    for allowed in (np.arange(0, 5000, 2), np.arange(3, 5000, 100), np.array([4999])):
        bits = np.zeros(5000, np.bool_)
        bits[allowed] = True
        chosen = cpu.selection(np.packbits(bits, bitorder="little"), len(allowed))
        effort = table.effort(0.95, 10, share=len(allowed) / 5000, filtered=True)
        found = index.search(queries, effort, chosen)
        assert np.isin(found[found >= 0], allowed).all()
        _, truth = cpu.scan_span(vectors, queries, 0, 5000, 10, chosen)
        hit = [np.isin(t[t >= 0], f).mean() for t, f in zip(truth, found, strict=True)]
        assert np.mean(hit) >= 0.95


@pytest.mark.parametrize("kind", APPROXIMATE)
def test_training_is_deterministic(kind: str) -> None:
    """The same rows and seed give the same bytes."""
    vectors, _ = clustered("cosine", 4500, 24)
    assert np.array_equal(build(kind, vectors, np.arange(4500)).dump(), build(kind, vectors, np.arange(4500)).dump())


def test_adding_leaves_the_index_as_it_was() -> None:
    """`added` returns another index."""
    vectors, queries = clustered("l2", 6000, 24)
    index = build("ivf_pq", vectors, np.arange(5000))
    before = index.search(queries, Effort(50))
    more = index.added(np.arange(5000, 6000), vectors)
    assert (index.count, more.count) == (5000, 6000)
    assert np.array_equal(index.search(queries, Effort(50)), before)


def test_merging_equals_adding() -> None:
    """Two indexes of one codebook merge into what adding all rows gives; others do not merge."""
    vectors, queries = clustered("cosine", 6000, 24)
    plan = kinds.plan("ivf_pq", 6000, 24)
    assert plan is not None
    empty = kinds.train(plan, "cosine", vectors, np.arange(6000), seed=1, threads=1)
    first, rest = empty.added(np.arange(3000), vectors), empty.added(np.arange(3000, 6000), vectors)
    assert isinstance(first, Inverted) and isinstance(rest, Inverted)
    merged = first.merged(rest)
    assert merged is not None and (first.count, rest.count, merged.count) == (3000, 3000, 6000)
    whole = empty.added(np.arange(6000), vectors)
    assert np.array_equal(np.sort(merged.search(queries, Effort(60))), np.sort(whole.search(queries, Effort(60))))
    stranger = build("ivf_pq", vectors, np.arange(3000), seed=9)
    assert isinstance(stranger, Inverted) and first.merged(stranger) is None


@pytest.mark.parametrize("kind", [kind for kind in APPROXIMATE if kind != "hnsw"])
def test_several_threads_build_what_one_builds(kind: str) -> None:
    """Training, adding and measuring: somebody who waits gets all cores, and the same index sooner."""
    vectors, _ = clustered("cosine", 6000, 24)
    rows = np.arange(6000)
    plan = kinds.plan(kind, 6000, 24)
    assert plan is not None
    dumps, curves = [], []
    for threads in (1, 3):
        index = kinds.train(plan, "cosine", vectors, rows, seed=1, threads=threads).added(rows, vectors, threads)
        dumps.append(index.dump().tobytes())
        curves.append(curve.measure(index, "cosine", vectors, rows, threads=threads, seed=2))
        assert faiss.omp_get_max_threads() == 1
    assert dumps[0] == dumps[1]
    assert curves[0].settings == curves[1].settings


@pytest.mark.parametrize("kind", APPROXIMATE)
def test_a_codebook_is_shared(kind: str) -> None:
    """Starting from another's training gives the same codes."""
    vectors, _ = clustered("cosine", 5000, 24)
    plan = kinds.plan(kind, 5000, 24)
    assert plan is not None
    first = kinds.train(plan, "cosine", vectors, np.arange(4000), seed=1, threads=1)
    other = kinds.train(plan, "cosine", vectors, np.arange(1000, 5000), seed=2, threads=1, start=first.training())
    assert np.array_equal(other.training().values, first.training().values)


@pytest.mark.parametrize("rows", [1, 2, 5, 17, 100])
@pytest.mark.parametrize("kind", APPROXIMATE)
def test_few_rows_can_be_indexed(kind: str, rows: int) -> None:
    """Fewer rows than a codebook has entries."""
    vectors, queries = clustered("l2", 100, 20)
    index = build(kind, vectors, np.arange(rows))
    found = index.search(queries, Effort(rows, 0, 64))
    assert (np.sort(found) == np.arange(rows)).mean() > 0.99
    curve.measure(index, "l2", vectors, np.arange(rows), threads=1, seed=1)


@pytest.mark.parametrize("data", [b"", b"vsix", b"\0" * 100, b"vsix\1\0\2\1" + b"\0" * 64])
def test_bytes_that_are_no_index_are_damaged(data: bytes) -> None:
    """An error of ours, never FAISS's."""
    with pytest.raises(Damaged):
        kinds.load(memoryview(data))


def test_a_shortened_index_is_damaged() -> None:
    """Cut anywhere."""
    vectors, _ = clustered("l2", 300, 20)
    data = build("ivf_sq8", vectors, np.arange(300)).dump()
    for size in (15, 17, 100, len(data) // 2, len(data) - 1):
        with pytest.raises(Damaged):
            kinds.load(data[:size])


def test_the_device_is_the_cpu() -> None:
    """Asking for what is not there is an error that says what to do."""
    assert device.resolve("auto") == device.resolve("cpu") == "cpu"
    with pytest.raises((EngineMissing, InvalidArgument), match="device"):
        device.resolve("gpu")
    with pytest.raises(InvalidArgument, match="'tpu'"):
        device.resolve("tpu")
