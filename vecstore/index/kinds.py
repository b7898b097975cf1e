"""The kinds of index: which one a collection gets, how it is trained, read and counted.

Not here: searching (`inverted`, `graph`), how hard to search (`curve`). Training is a function of its arguments and the
seed alone. No I/O.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from ..config import DIM_MAX, EXACT_ROWS_MAX, SMALL_SEGMENT_ROWS_MAX
from ..errors import Damaged, InvalidArgument
from ..values import Metric
from .base import Floats, Index, Rows, Vectors
from .cpu import normalised, several_threads
from .graph import Graph
from .header import Header
from .inverted import Codebook, Inverted

__all__ = ["KINDS", "Plan", "load", "memory_bytes", "plan", "train"]

KINDS = ("auto", "flat", "ivf_flat", "ivf_pq", "ivf_sq8", "hnsw")

PQ_DIM_MIN = 16
"""Product codes of shorter vectors would save nothing; they get a byte a dimension."""
TRAIN_ROWS_CODEBOOK = 4_096
TRAIN_ROWS_PER_LIST = 40
TRAIN_BYTES_MAX = 1 << 28
TRAIN_ITERATIONS = 6
GRAPH_LINKS = 16
GRAPH_EF_BUILD = 64


@dataclass(frozen=True, slots=True)
class Plan:
    """What to build.

    Attributes
    ----------
    kind
        "ivf_flat", "ivf_pq", "ivf_sq8" or "hnsw".
    lists
        Inverted lists; 0 for a graph.
    dim
        Of the vectors.
    pieces
        Sub-quantisers of product codes, 0 for other kinds.
    width
        Dimension of the vectors with the zeros that make it a multiple of `pieces`.
    """

    kind: str
    lists: int
    dim: int
    pieces: int = 0
    width: int = 0


def plan(kind: str, rows: int, dim: int) -> Plan | None:
    """Return what to build over so many rows; None means that they are scanned exactly.

    Raises
    ------
    InvalidArgument
        A kind or dimension that is not allowed.
    """
    if kind not in KINDS:
        raise InvalidArgument(f"index: {kind!r} is not one of {', '.join(KINDS)}")
    if not 1 <= dim <= DIM_MAX:
        raise InvalidArgument(f"dim: {dim} is not within 1 to {DIM_MAX}")
    if kind == "flat" or rows == 0 or (kind == "auto" and rows <= EXACT_ROWS_MAX):
        return None
    if kind == "hnsw":
        return Plan(kind, 0, dim, 0, dim)
    # A search of a segment up to this size skips no lists, so that more than one would cost and bring nothing.
    lists = 1 if rows <= SMALL_SEGMENT_ROWS_MAX else max(1, rows // 256)
    if kind in ("auto", "ivf_pq") and dim >= PQ_DIM_MIN:
        per_piece = 4 if dim >= 256 else 2
        pieces = -(-dim // per_piece)
        return Plan("ivf_pq", lists, dim, pieces, pieces * per_piece)
    return Plan("ivf_flat" if kind == "ivf_flat" else "ivf_sq8", lists, dim, 0, dim)


def train(
    plan: Plan,
    metric: Metric,
    vectors: Vectors,
    rows: Rows,
    *,
    seed: int,
    threads: int,
    start: Codebook | None = None,
) -> Index:
    """Train an empty index.

    Parameters
    ----------
    plan
        What to build.
    metric
        Of the collection.
    vectors, rows
        Where to learn from; a bounded sample is taken.
    seed
        The same arguments and seed give the same index.
    threads
        Cores to train with.
    start
        `training()` of another index of this kind: its codebook is shared, and only the lists are trained.
    """
    with several_threads(threads):
        return _train(plan, metric, vectors, rows, seed, start)


def _train(plan: Plan, metric: Metric, vectors: Vectors, rows: Rows, seed: int, start: Codebook | None) -> Index:
    if start is not None and (start.kind, start.pieces) != (plan.kind, plan.pieces):
        start = None
    sample = _sample(plan, vectors, rows, seed)
    measure = _measure(metric)
    if plan.kind == "hnsw":
        index = faiss.IndexHNSWSQ(plan.dim, faiss.ScalarQuantizer.QT_8bit, GRAPH_LINKS, measure)
        index.hnsw.efConstruction = GRAPH_EF_BUILD
        if start is None:
            index.train(sample)
        else:
            storage = faiss.downcast_index(index.storage)
            faiss.copy_array_to_vector(start.values, storage.sq.trained)
            storage.is_trained = index.is_trained = True
        return Graph(metric, plan.dim, index, np.empty(0, np.int64))
    quantiser = _coarse(plan, metric, sample, seed)
    index = _empty(plan, quantiser, measure)
    if start is None:
        index.train(sample[_choice(len(sample), TRAIN_ROWS_CODEBOOK, seed + 1)])
    else:
        _share(index, start)
    return Inverted(plan.kind, metric, plan.dim, index)


def _measure(metric: Metric) -> int:
    return int(faiss.METRIC_INNER_PRODUCT if metric == "ip" else faiss.METRIC_L2)


def _empty(plan: Plan, quantiser: Any, measure: int) -> Any:
    """Return the FAISS index to be trained, its quantiser in place."""
    width, lists = plan.width, plan.lists
    if plan.kind == "ivf_pq":
        index = faiss.IndexIVFPQFastScan(quantiser, width, lists, plan.pieces, 4, measure)
        index.by_residual = False
        index.pq.cp.niter = TRAIN_ITERATIONS
    elif plan.kind == "ivf_sq8":
        index = faiss.IndexIVFScalarQuantizer(quantiser, width, lists, faiss.ScalarQuantizer.QT_8bit, measure, False)
    else:
        index = faiss.IndexIVFFlat(quantiser, width, lists, measure)
    # FAISS frees the quantiser with the index, in whatever order Python drops them.
    quantiser.this.disown()
    index.own_fields = True
    return index


def _share(index: Any, start: Codebook) -> None:
    if start.kind == "ivf_pq":
        faiss.copy_array_to_vector(start.values, index.pq.centroids)
    elif start.kind == "ivf_sq8":
        faiss.copy_array_to_vector(start.values, index.sq.trained)
    index.is_trained = True


def _coarse(plan: Plan, metric: Metric, sample: Floats, seed: int) -> Any:
    """Return the coarse quantiser with its centroids."""
    quantiser = faiss.IndexFlat(plan.width, _measure(metric))
    if plan.lists == 1:
        quantiser.add(sample.mean(axis=0, dtype=np.float64).astype(np.float32)[None])
        return quantiser
    clustering = faiss.Clustering(plan.width, plan.lists)
    clustering.niter = TRAIN_ITERATIONS
    clustering.seed = seed & 0x7FFFFFFF
    clustering.spherical = metric == "ip"
    clustering.max_points_per_centroid = TRAIN_ROWS_PER_LIST
    clustering.min_points_per_centroid = 1
    clustering.train(sample, quantiser)
    return quantiser


def _sample(plan: Plan, vectors: Vectors, rows: Rows, seed: int) -> Floats:
    """Return a bounded sample of normalised vectors, as wide as the plan asks."""
    wanted = max(TRAIN_ROWS_CODEBOOK, TRAIN_ROWS_PER_LIST * plan.lists)
    wanted = max(min(wanted, TRAIN_BYTES_MAX // (4 * plan.width)), plan.lists, 1_024)
    sample = normalised(vectors, rows[_choice(len(rows), wanted, seed)])
    # Fewer rows than a codebook has entries: repeated, so that FAISS can cluster them.
    if len(sample) < 16:
        sample = np.tile(sample, (16 // len(sample) + 1, 1))
    if plan.width == plan.dim:
        return np.ascontiguousarray(sample)
    wide = np.zeros((len(sample), plan.width), np.float32)
    wide[:, : plan.dim] = sample
    return wide


def _choice(count: int, wanted: int, seed: int) -> Rows:
    """Return sorted positions of a sample without repetition."""
    if count <= wanted:
        return np.arange(count, dtype=np.int64)
    return np.sort(np.random.default_rng(seed).choice(count, wanted, replace=False)).astype(np.int64)


def load(data: memoryview | npt.NDArray[np.uint8]) -> Index:
    """Read an index from the bytes of its `dump`.

    Raises
    ------
    Damaged
        The bytes are not an index. Only a checksum can tell whether they are the ones that were written.
    """
    array = np.frombuffer(data, np.uint8)
    header = Header.decode(array)
    try:
        index = faiss.deserialize_index(array[header.size :])
        if index.metric_type != _measure(header.metric):
            raise ValueError(f"its measure is {index.metric_type}")
        if header.kind != "hnsw":
            return Inverted(header.kind, header.metric, header.dim, index)
        rows = np.frombuffer(array, "<i8", header.rows, header.rows_at).astype(np.int64)
        if index.ntotal != header.rows:
            raise ValueError(f"{index.ntotal} nodes, {header.rows} rows")
        return Graph(header.metric, header.dim, index, rows)
    except (RuntimeError, ValueError, AttributeError, TypeError) as exc:
        raise Damaged(f"an index of kind {header.kind} and {len(array)} bytes cannot be read: {exc}") from exc


def memory_bytes(kind: str, rows: int, dim: int) -> int:
    """Return about how many bytes an index of this kind takes over so many rows, beyond the rows themselves."""
    made = plan(kind, rows, dim)
    if made is None:
        return 0
    if made.kind == "hnsw":
        return rows * (dim + 8 * GRAPH_LINKS + 24)
    code = {"ivf_pq": (made.pieces + 1) // 2, "ivf_sq8": dim, "ivf_flat": 4 * dim}[made.kind]
    return rows * (code + 8) + made.lists * (4 * made.width + 64) + 64 * made.width
