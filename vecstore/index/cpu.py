"""Kernels over FAISS on one core: exact scores, selections of the nearest, exact scans.

Not here: the approximate indexes (`inverted`, `graph`), and which of the two ways a search should take.

Invariants: the score of a row for a query has the same bits whatever call made it (one query or many, gathered or not),
so that answers of different paths can be merged and compared. Every call uses one OpenMP thread in the calling thread
and releases the interpreter lock while it computes. No I/O, no state but what belongs to a thread.
"""

from __future__ import annotations

import contextlib
import functools
import math
import threading
from collections.abc import Iterator
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from ..values import Metric
from .base import Floats, Rows, Vectors

__all__ = [
    "BitmapSelection",
    "Block",
    "nearest",
    "normalised",
    "one_thread",
    "prepare",
    "prepared",
    "scan",
    "scan_span",
    "score",
    "score_span",
    "selection",
    "several_threads",
]

_pointer: Any = faiss.swig_ptr
_by_rows: dict[bool, Any] = {True: faiss.fvec_L2sqr_by_idx, False: faiss.fvec_inner_products_by_idx}
_by_span: dict[bool, Any] = {True: faiss.fvec_L2sqr_ny, False: faiss.fvec_inner_products_ny}

SPAN_DIM_MIN = 16
"""Below, FAISS scores runs of rows with kernels of their own for some dimensions, whose last bits differ."""
SCORES_BYTES_MAX = 1 << 22
"""A block of scores of an exact scan: small enough to stay in the cache, so that memory is bounded too."""
BLOCK_BYTES = 1 << 18
"""Rows that a batch of queries is compared with while they stay in the cache nearest to the core."""
_GROUP_SIZE = 16
"""Scores of which the best alone is looked at first, where few of many are wanted."""
_SORTED_MAX = 96
"""So many scores are sorted at once, whatever is wanted of them."""
_TOGETHER = 64
"""Queries of a batch that are compared in one call: after each call the interpreter lock has to be waited for."""


class _Thread(threading.local):
    """Sets the number of OpenMP threads of each calling thread once: a new thread defaults to all cores."""

    def __init__(self) -> None:
        faiss.omp_set_num_threads(1)
        self.ready = True


_thread = _Thread()


def one_thread() -> None:
    """Make FAISS compute in the calling thread alone."""
    _thread.ready  # noqa: B018  (the first access in a thread runs __init__)


@contextlib.contextmanager
def several_threads(count: int) -> Iterator[None]:
    """Make FAISS compute in so many threads what the calling thread asks for inside."""
    one_thread()
    faiss.omp_set_num_threads(max(1, count))
    try:
        yield
    finally:
        faiss.omp_set_num_threads(1)


def prepare(metric: Metric, queries: Floats) -> Floats:
    """Return queries as the other calls expect them.

    Parameters
    ----------
    metric
        Of the collection.
    queries
        Real numbers of shape (q, d), none of them of length zero under cosine.

    Returns
    -------
    Floats
        float32, C-contiguous, (q, d): of unit length under cosine, else as given.
    """
    queries = np.ascontiguousarray(queries, np.float32)
    if metric != "cosine":
        return queries
    # In float64, where neither tiny nor huge values lose their length; row by row, so that a batch changes no bit.
    wide = queries.astype(np.float64)
    wide /= np.sqrt(np.vecdot(wide, wide))[:, None]
    return wide.astype(np.float32)


def prepared(metric: Metric, query: Floats) -> Floats | None:
    """Return one float32 query (d,) as `prepare` does, (1, d); None if it is not finite, or zero under cosine."""
    if metric != "cosine":
        return np.ascontiguousarray(query)[None] if np.isfinite(query).all() else None
    wide = query.astype(np.float64)
    # The same bits as `vecdot` gives a batch, in half of the time.
    length = math.sqrt(wide.dot(wide))
    if not 0.0 < length < math.inf:
        return None
    wide /= length
    return wide.astype(np.float32)[None]


def normalised(vectors: Vectors, rows: Rows) -> Floats:
    """Return float32 (n, d), the vectors that codes are taken of; a view where rows are contiguous and as given."""
    count = len(rows)
    if count and int(rows[-1]) - int(rows[0]) == count - 1 and (np.diff(rows) == 1).all():
        span = slice(int(rows[0]), int(rows[0]) + count)
        data = vectors.data[span]
        return data if vectors.inverse_norms is None else data * vectors.inverse_norms[span, None]
    data = vectors.data[rows]
    if vectors.inverse_norms is not None:
        data *= vectors.inverse_norms[rows, None]
    return data


def score(vectors: Vectors, queries: Floats, rows: Rows) -> Floats:
    """Return the exact scores (q, r) of rows (q, r) for prepared queries (q, d); a row of -1 gets the worst score."""
    one_thread()
    rows = np.ascontiguousarray(rows, np.int64)
    out = np.empty(rows.shape, np.float32)
    count, dim = queries.shape
    _by_rows[vectors.metric == "l2"](
        _pointer(out), _pointer(queries), _pointer(vectors.data), _pointer(rows), dim, count, rows.shape[1]
    )
    if vectors.inverse_norms is not None:
        if not rows.size or rows.item(rows.argmin()) >= 0:
            out *= vectors.inverse_norms[rows]
        else:
            # A row number that no extent has may have no memory behind it: it must not be read, not even in passing.
            taken = rows >= 0
            out[taken] *= vectors.inverse_norms[rows[taken]]
    return out


def score_span(vectors: Vectors, queries: Floats, start: int, stop: int) -> Floats:
    """Return the exact scores (q, stop - start) of rows start..stop-1, with the same bits as `score` gives."""
    one_thread()
    count, dim = queries.shape
    if dim < SPAN_DIM_MIN:
        return score(vectors, queries, np.tile(np.arange(start, stop, dtype=np.int64), (count, 1)))
    out = np.empty((count, stop - start), np.float32)
    if out.size:
        _score_into(out, vectors, queries, start, stop)
    return out


def _score_into(out: Floats, vectors: Vectors, queries: Floats, start: int, stop: int) -> None:
    call = _by_span[vectors.metric == "l2"]
    data = _pointer(vectors.data[start:stop])
    dim = queries.shape[1]
    for i in range(len(queries)):
        call(_pointer(out[i]), _pointer(queries[i]), data, dim, stop - start)
    if vectors.inverse_norms is not None:
        out *= vectors.inverse_norms[start:stop]


def nearest(metric: Metric, scores: Floats, k: int) -> tuple[Floats, Rows]:
    """Return the k best of each row of scores (q, n), nearest first, and their columns: both (q, min(k, n)).

    Equal scores come in the order of their columns where all of them fit.
    """
    if len(scores) == 1:
        best, columns = _nearest_of_one(metric, scores[0], k)
        return best[None], columns[None]
    count = scores.shape[1]
    if count > 4 * k and count > _SORTED_MAX:
        few = _few_nearest(metric, scores, k)
        if few is not None:
            return few
    keys = scores if metric == "l2" else -scores
    if count > 4 * k and count > _SORTED_MAX:
        part = np.argpartition(keys, k - 1, axis=1)[:, :k]
        part.sort(axis=1)
        order = np.take_along_axis(part, np.take_along_axis(keys, part, 1).argsort(axis=1, kind="stable"), 1)
    else:
        order = keys.argsort(axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, 1), order


def _few_nearest(metric: Metric, scores: Floats, k: int) -> tuple[Floats, Rows] | None:
    """Do what `nearest` does for rows of many scores; None where that would not pay, or not all are numbers.

    The k-th of the bests of groups is a bound for the k-th of all: whatever is not beyond it is little, and is sorted.
    """
    queries, count = scores.shape
    groups = max(4 * k, count // _GROUP_SIZE)
    size = count // groups
    bests = (np.minimum if metric == "l2" else np.maximum).reduce(
        scores[:, : groups * size].reshape(queries, size, groups), axis=1
    )
    at = k - 1 if metric == "l2" else groups - k
    bests.partition(at, axis=1)
    bound = bests[:, at : at + 1]
    if not np.isfinite(bound).all():
        return None
    near, columns, fewest = _packed(metric, scores, scores <= bound if metric == "l2" else scores >= bound)
    if fewest < k or near.shape[1] > 8 * k + _GROUP_SIZE:
        return None
    order = (near if metric == "l2" else -near).argsort(axis=1, kind="stable")[:, :k]
    return np.take_along_axis(near, order, 1), np.take_along_axis(columns, order, 1)


def _packed(metric: Metric, scores: Floats, chosen: npt.NDArray[np.bool_]) -> tuple[Floats, Rows, int]:
    """Return the chosen scores of each row side by side, their columns, and the least number in a row.

    Rows with fewer than others end in the worst score and a column of -1.
    """
    flat = np.flatnonzero(chosen)
    query, column = np.divmod(flat, scores.shape[1])
    counts = np.bincount(query, minlength=len(scores))
    most = int(counts.max())
    place = np.arange(len(query)) - (np.cumsum(counts) - counts)[query]
    near = np.full((len(scores), most), np.inf if metric == "l2" else -np.inf, np.float32)
    columns = np.full((len(scores), most), -1, np.int64)
    near[query, place] = scores[query, column]
    columns[query, place] = column
    return near, columns, int(counts.min())


def _nearest_of_one(metric: Metric, scores: Floats, k: int) -> tuple[Floats, Rows]:
    """Do what `nearest` does for one query, without the steps that several need."""
    keys = scores if metric == "l2" else -scores
    if len(keys) > 4 * k and len(keys) > 256:
        part = keys.argpartition(k - 1)[:k]
        part.sort()
        order = part[keys[part].argsort(kind="stable")]
    else:
        order = keys.argsort(kind="stable")[:k]
    return scores[order], order


class Block:
    """Copies of some rows, side by side: they are compared at about twice the speed. Immutable, thread-safe.

    Attributes
    ----------
    bytes
        Memory that it takes.
    """

    __slots__ = ("_pointer", "_rows", "_vectors", "bytes")

    def __init__(self, vectors: Vectors, rows: Rows) -> None:
        data = vectors.data[rows]
        norms = None if vectors.inverse_norms is None else vectors.inverse_norms[rows]
        self._rows = rows
        self._vectors = Vectors(vectors.metric, data, norms)
        self._pointer = _pointer(data)
        self.bytes = data.nbytes + (0 if norms is None else norms.nbytes)

    def scan(self, queries: Floats, k: int) -> tuple[Floats, Rows]:
        """Find the k nearest among the rows, as the function `scan` does, with the same bits."""
        vectors, count = self._vectors, len(self._rows)
        if len(queries) > 1 or queries.shape[1] < SPAN_DIM_MIN:
            best, columns = scan_span(vectors, queries, 0, count, k)
            return best, self._rows[columns]
        one_thread()
        scores = np.empty(count, np.float32)
        _by_span[vectors.metric == "l2"](_pointer(scores), _pointer(queries), self._pointer, queries.shape[1], count)
        if vectors.inverse_norms is not None:
            scores *= vectors.inverse_norms
        best, columns = _nearest_of_one(vectors.metric, scores, k)
        return best[None], self._rows[columns][None]


def scan(vectors: Vectors, queries: Floats, rows: Rows, k: int) -> tuple[Floats, Rows]:
    """Find the k nearest among rows (n,) by comparing all of them.

    Returns
    -------
    tuple
        Scores and row numbers, both (q, min(k, n)), nearest first.
    """
    count = len(queries)
    if count <= 2:
        scores = score(vectors, queries, np.broadcast_to(rows, (count, len(rows))))
        best, columns = nearest(vectors.metric, scores, k)
        return best, rows[columns]
    # A batch gathers the rows once, and then reads them in order.
    gathered = Vectors(
        vectors.metric,
        vectors.data[rows],
        None if vectors.inverse_norms is None else vectors.inverse_norms[rows],
    )
    best, columns = scan_span(gathered, queries, 0, len(rows), k)
    return best, rows[columns]


def scan_span(
    vectors: Vectors, queries: Floats, start: int, stop: int, k: int, selection: BitmapSelection | None = None
) -> tuple[Floats, Rows]:
    """Find the k nearest among rows start..stop-1 that a selection allows, by comparing all of them.

    Returns
    -------
    tuple
        Scores and row numbers, both (q, min(k, stop - start)), nearest first; rows that a selection left too few of are
        -1 with the worst score.
    """
    worst = np.float32(np.inf if vectors.metric == "l2" else -np.inf)
    width = min(k, stop - start)
    best = np.full((len(queries), 0), worst, np.float32)
    found = np.full((len(queries), 0), -1, np.int64)
    if not width:
        return best, found
    refused = None if selection is None else ~selection.allowed(start, stop)
    step = max(width, SCORES_BYTES_MAX // (4 * len(queries)))
    for at in range(start, stop, step):
        end = min(at + step, stop)
        scores = _score_block(vectors, queries, at, end)
        if refused is not None:
            scores[:, refused[at - start : end - start]] = worst
        best, found = _merged(vectors.metric, best, found, scores, at, width)
    if refused is not None:
        found[best == worst] = -1
    return best, found


def _score_block(vectors: Vectors, queries: Floats, start: int, stop: int) -> Floats:
    """Return what `score_span` does; a batch is compared with rows while they stay in the cache, in few calls."""
    count, dim = queries.shape
    if count == 1 or dim < SPAN_DIM_MIN or start == stop:
        return score_span(vectors, queries, start, stop)
    one_thread()
    step = min(max(64, BLOCK_BYTES // (4 * dim)), stop - start)
    out = np.empty((count, stop - start), np.float32)
    call = _by_rows[vectors.metric == "l2"]
    for at in range(start, stop, step):
        width = min(step, stop - at)
        # Held by a name: what the cache let go of meanwhile, or never took, must outlive the calls.
        these = _numbers(width)
        data, numbers = _pointer(vectors.data[at : at + width]), _pointer(these)
        for first in range(0, count, _TOGETHER):
            some = queries[first : first + _TOGETHER]
            part = out[first : first + _TOGETHER] if step == stop - start else np.empty((len(some), width), np.float32)
            call(_pointer(part), _pointer(some), data, numbers, dim, len(some), width)
            if step < stop - start:
                out[first : first + _TOGETHER, at - start : at - start + width] = part
    if vectors.inverse_norms is not None:
        out *= vectors.inverse_norms[start:stop]
    return out


@functools.lru_cache(32)
def _numbers(width: int) -> Rows:
    """Return the numbers below a width, once for each query that is compared at a time."""
    numbers = np.tile(np.arange(width, dtype=np.int64), (_TOGETHER, 1))
    numbers.setflags(write=False)
    return numbers


def _merged(metric: Metric, best: Floats, found: Rows, scores: Floats, at: int, width: int) -> tuple[Floats, Rows]:
    """Return the nearest of those found before and of the scores of the rows from `at`."""
    columns: Rows
    if best.shape[1] < width:
        near, columns = nearest(metric, scores, width)
        if not best.shape[1]:
            return near, columns + at
    else:
        # Few rows beat the worst one found: only those are sorted.
        better = scores < best[:, -1:] if metric == "l2" else scores > best[:, -1:]
        near, columns, _ = _packed(metric, scores, better)
        if not near.shape[1]:
            return best, found
    near, columns = np.hstack([best, near]), np.hstack([found, columns + at])
    best, order = nearest(metric, near, width)
    return best, np.take_along_axis(columns, order, 1)


class BitmapSelection:
    """Which rows a search may return, as FAISS reads it: `base.Selection`. Immutable, thread-safe.

    Parameters
    ----------
    bitmap
        uint8; bit ``row & 7`` of byte ``row >> 3``. Kept, never copied: it must not change.
    count
        Bits set.
    """

    __slots__ = ("_parameters", "bitmap", "count", "selector")

    bitmap: npt.NDArray[np.uint8]
    count: int
    selector: Any

    def __init__(self, bitmap: npt.NDArray[np.uint8], count: int) -> None:
        self.bitmap = np.ascontiguousarray(bitmap, np.uint8)
        self.count = count
        self.selector = faiss.IDSelectorBitmap(self.bitmap)
        self._parameters: dict[int, Any] = {}

    def inverted(self, probes: int) -> Any:
        """Return FAISS's parameters of a search of inverted lists with this selection: made once, never changed."""
        found = self._parameters.get(probes)
        if found is None:
            found = faiss.SearchParametersIVF(nprobe=probes, sel=self.selector)
            self._parameters[probes] = found
        return found

    def allowed(self, start: int, stop: int) -> npt.NDArray[np.bool_]:
        """Return bool (stop - start,): which of these rows may be returned; rows beyond the bitmap may not."""
        first = start >> 3
        bits = np.unpackbits(self.bitmap[first : (stop + 7) >> 3], bitorder="little")[start - 8 * first :]
        out = np.zeros(stop - start, np.bool_)
        out[: len(bits)] = bits[: stop - start]
        return out


def selection(bitmap: npt.NDArray[np.uint8], count: int) -> BitmapSelection:
    """Return the selection of a bitmap with `count` bits set."""
    return BitmapSelection(bitmap, count)
