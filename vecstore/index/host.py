"""A device that is none: the worker's backend over faiss-cpu and numpy.

It has the rounding, the limits and the blind spots of a GPU without cuVS, so that whatever a worker does can be tried
on any machine. It is no faster than the engine itself: for tests and drills.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, cast

import faiss
import numpy as np

from ..values import Metric
from .backend import Built, Find, Mask, selected
from .base import Floats, Rows
from .budget import BLOCK_ROWS, TRAIN_ITERATIONS, TRAIN_ROWS_PER_LIST, Choice, Ledger
from .source import Source, extremes

__all__ = ["HostBackend", "padded", "training_rows", "unscaled"]

_SCORES_BYTES = 1 << 24
CODES_MIN = 256
"""Codes of a byte: as many rows are needed to find them."""


class HostBackend:
    """`backend.Backend` on the CPU.

    Parameters
    ----------
    ledger
        The budget that it pretends to have.
    selections
        Whether indexes with lists obey selections, as they do with cuVS.
    """

    def __init__(self, ledger: Ledger, *, selections: bool = False) -> None:
        self.name = "host"
        self.ledger = ledger
        self.candidates_max = 2_048
        self.obedient = frozenset(("ivf_sq", "ivf_pq")) if selections else frozenset()
        faiss.omp_set_num_threads(1)

    def build(self, source: Source, choice: Choice, name: str, seed: int) -> Generator[None, None, Built]:
        """Train and fill an index in steps."""
        need, ledger = choice.need, self.ledger
        ledger.reserve(name, need.peak)
        try:
            built = yield from self._filled(source, choice, seed)
        except BaseException:
            ledger.release(name)
            raise
        ledger.shrink(name, need.serve)
        return built

    def _filled(self, source: Source, choice: Choice, seed: int) -> Generator[None, None, Built]:
        self.ledger.reserve("page", 0)
        found = yield from extremes(source, BLOCK_ROWS)
        scale = found.scale_for(choice.kind)
        if choice.kind == "flat":
            halves = np.empty((source.rows, source.dim), np.float16)
            at = 0
            for block in source.blocks(BLOCK_ROWS):
                self.ledger.reserve("page", 0)
                halves[at : at + len(block)] = block * np.float32(scale)
                at += len(block)
                yield
            return Built(choice, source.rows, found.longest, scale, (source.metric, halves), found.is_coarse)
        index = self._empty(source.metric, choice)
        index.train(training_rows(source, choice, seed) * np.float32(scale))
        yield
        for block in source.blocks(BLOCK_ROWS):
            self.ledger.reserve("page", 0)
            index.add(padded(block, choice.width) * np.float32(scale))
            yield
        return Built(choice, source.rows, found.longest, scale, (source.metric, index), found.is_coarse)

    def _empty(self, metric: Metric, choice: Choice) -> Any:
        measure = faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT
        quantiser = faiss.IndexFlat(choice.width, measure)
        if choice.kind == "ivf_sq":
            half = faiss.ScalarQuantizer.QT_fp16
            index = faiss.IndexIVFScalarQuantizer(quantiser, choice.width, choice.lists, half, measure, False)
        else:
            index = faiss.IndexIVFPQ(quantiser, choice.width, choice.lists, choice.pieces, 8, measure)
            index.pq.cp.min_points_per_centroid, index.pq.cp.niter = 1, TRAIN_ITERATIONS
        quantiser.this.disown()
        index.own_fields = True
        index.cp.min_points_per_centroid, index.cp.niter = 1, TRAIN_ITERATIONS
        return index

    def search(self, built: Built, queries: Floats, find: Find, mask: Mask | None = None) -> tuple[Floats, Rows]:
        """Return rounded scores and positions."""
        metric, data = built.data
        mask = selected(self, built.choice.kind, mask)
        self.ledger.reserve("search", 0)
        if built.choice.kind == "flat":
            scaled = (queries * np.float32(built.scale)).astype(np.float16).astype(np.float32)
            scores, rows = _compared(metric, data, scaled, find.candidates)
            return scores / np.float32(built.scale) ** 2, rows
        assert find.candidates <= self.candidates_max, "more candidates than the device gives"
        probes = min(find.probes or built.choice.lists, built.choice.lists)
        selector = None
        if mask is not None:
            bits = np.packbits(mask, bitorder="little")
            selector = faiss.IDSelectorBitmap(bits)
        parameters = faiss.SearchParametersIVF(nprobe=probes, sel=selector)
        scale = np.float32(built.scale)
        scores, rows = data.search(padded(queries, built.choice.width) * scale, find.candidates, params=parameters)
        return unscaled(metric, scores, rows, built.scale), rows

    def block(self, metric: Metric, vectors: Floats, name: str) -> Any:
        """Keep vectors to be compared."""
        self.ledger.reserve(name, vectors.nbytes)
        return metric, vectors

    def scan(self, block: Any, queries: Floats, k: int) -> tuple[Floats, Rows]:
        """Compare all vectors of a block."""
        metric, vectors = block
        self.ledger.reserve("scan", 0)
        return _compared(metric, vectors, queries, min(k, len(vectors)))

    def rescored(self, metric: Metric, vectors: Floats, queries: Floats) -> Floats:
        """Return the scores of each query's own vectors."""
        self.ledger.reserve("rescore", 0)
        if metric == "l2":
            gap = vectors - queries[:, None, :]
            return cast(Floats, np.einsum("qrd,qrd->qr", gap, gap))
        return cast(Floats, np.einsum("qrd,qd->qr", vectors, queries))

    def release(self, name: str) -> None:
        """Give back what was reserved."""
        self.ledger.release(name)


def _compared(metric: Metric, vectors: Any, queries: Floats, k: int) -> tuple[Floats, Rows]:
    """Compare queries with all vectors, of whatever floating-point type, a block at a time."""
    count = len(queries)
    worst = np.float32(np.inf if metric == "l2" else -np.inf)
    best, rows = np.full((count, k), worst, np.float32), np.full((count, k), -1, np.int64)
    step = max(k, _SCORES_BYTES // (4 * max(count, 1)))
    squares = np.einsum("ij,ij->i", queries, queries)[:, None]
    for at in range(0, len(vectors), step):
        block = np.asarray(vectors[at : at + step], np.float32)
        scores = queries @ block.T
        if metric == "l2":
            scores = np.maximum(squares + np.einsum("ij,ij->i", block, block) - 2 * scores, 0)
        both = np.hstack([best, scores.astype(np.float32)])
        numbers = np.hstack([rows, np.broadcast_to(np.arange(at, at + len(block)), scores.shape)])
        keys = both if metric == "l2" else -both
        part = np.argpartition(keys, k - 1, axis=1)[:, :k]
        order = np.take_along_axis(part, np.take_along_axis(keys, part, 1).argsort(axis=1, kind="stable"), 1)
        best, rows = np.take_along_axis(both, order, 1), np.take_along_axis(numbers, order, 1)
    return best, rows


def unscaled(metric: Metric, scores: Floats, rows: Rows, scale: float) -> Floats:
    """Return scores as those of rows that were not multiplied; where there is no row, the worst."""
    worst = np.float32(np.inf if metric == "l2" else -np.inf)
    # What stands where there is no row may be the largest of all numbers.
    return np.where(rows < 0, worst, np.where(rows < 0, 0, scores) / np.float32(scale * scale)).astype(np.float32)


def training_rows(source: Source, choice: Choice, seed: int) -> Floats:
    """Return what an index learns from: a sample, repeated where there are fewer rows than codes."""
    sample = padded(source.sample(max(CODES_MIN, TRAIN_ROWS_PER_LIST * choice.lists), seed), choice.width)
    return sample if len(sample) >= CODES_MIN else np.tile(sample, (CODES_MIN // len(sample) + 1, 1))


def padded(vectors: Floats, width: int) -> Floats:
    """Return vectors with zeros appended up to a width, C-contiguous."""
    if vectors.shape[1] == width:
        return np.ascontiguousarray(vectors)
    wide = np.zeros((len(vectors), width), np.float32)
    wide[:, : vectors.shape[1]] = vectors
    return wide
