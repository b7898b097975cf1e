"""Inverted lists over FAISS: "ivf_pq" (4-bit product codes, fast-scan), "ivf_sq8" and "ivf_flat".

Codes are of the (normalised) vectors themselves, not of what is left after a list's centroid: lists can be merged and a
codebook shared. Under cosine the codes of unit vectors are compared by Euclidean distance, which orders as the cosine
does and loses less to the codes than their inner product.

Invariant: an index that was handed out never changes; parameters travel with each search. No I/O.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, cast

import faiss
import numpy as np
import numpy.typing as npt

from ..values import Metric
from .base import Effort, Floats, Rows, Selection, Vectors
from .cpu import BitmapSelection, normalised, one_thread, several_threads
from .header import Header

__all__ = ["Codebook", "Inverted"]

_pointer: Any = faiss.swig_ptr
ADD_BYTES_MAX = 1 << 24
"""Vectors are normalised, padded and encoded in blocks of this size, so that building is bounded in memory."""


@dataclass(frozen=True, slots=True)
class Codebook:
    """What indexes of one shard share: how vectors become codes.

    Attributes
    ----------
    kind
        The index kind that it is for.
    pieces
        Sub-quantisers of product codes, 0 for other kinds.
    values
        float32: centroids of the sub-quantisers, or the ranges of a scalar quantiser; empty for "ivf_flat".
    """

    kind: str
    pieces: int
    values: Floats


@functools.lru_cache(4096)
def _parameters(probes: int) -> Any:
    """Return FAISS's parameters of a search: made once, never changed."""
    return faiss.SearchParametersIVF(nprobe=probes)


class Inverted:
    """`base.Index` over a FAISS IVF index. Thread-safe for searching.

    Parameters
    ----------
    kind
        "ivf_pq", "ivf_sq8" or "ivf_flat".
    metric
        Of the collection.
    dim
        Of the vectors; the FAISS index may be wider, then zeros are appended.
    index
        The trained FAISS index; it belongs to this object from here on.
    """

    __slots__ = ("_index", "_search", "bytes", "count", "dim", "kind", "lists", "metric", "width")

    def __init__(self, kind: str, metric: Metric, dim: int, index: Any) -> None:
        self.kind = kind
        self.metric = metric
        self.dim = dim
        self.width = int(index.d)
        self.count = int(index.ntotal)
        self.lists = int(index.nlist)
        self._index = index
        self._search = index.search_c
        codes = int(index.code_size) + 8
        self.bytes = self.count * codes + self.lists * (4 * self.width + 64) + self.training().values.nbytes

    def search(self, queries: Floats, effort: Effort, selection: Selection | None = None) -> Rows:
        """Return int64 (queries, effort.candidates, or all rows): rows that may be near, padded with -1."""
        one_thread()
        count = len(queries)
        candidates = max(1, min(effort.candidates, self.count))
        rows = np.empty((count, candidates), np.int64)
        distances = np.empty((count, candidates), np.float32)
        probes = min(effort.probes or self.lists, self.lists)
        parameters = _parameters(probes) if selection is None else cast(BitmapSelection, selection).inverted(probes)
        if self.width != self.dim:
            queries = self._padded(queries)
        self._search(count, _pointer(queries), candidates, _pointer(distances), _pointer(rows), parameters)
        return rows

    def added(self, rows: Rows, vectors: Vectors, threads: int = 1) -> Inverted:
        """Return an index that also holds these rows; this one stays as it is."""
        index = faiss.clone_index(self._index)
        step = max(1, ADD_BYTES_MAX // (4 * self.width))
        with several_threads(threads):
            for at in range(0, len(rows), step):
                block = np.ascontiguousarray(rows[at : at + step], np.int64)
                data = np.ascontiguousarray(self._padded(normalised(vectors, block)))
                index.add_with_ids_c(len(block), _pointer(data), _pointer(block))
        return Inverted(self.kind, self.metric, self.dim, index)

    def merged(self, other: Inverted) -> Inverted | None:
        """Return an index of the rows of both, or None where they were trained apart and rows must be added anew."""
        if not self._same_training(other):
            return None
        one_thread()
        index, rest = faiss.clone_index(self._index), faiss.clone_index(other._index)
        index.merge_from(rest, 0)
        return Inverted(self.kind, self.metric, self.dim, index)

    def dump(self) -> npt.NDArray[np.uint8]:
        """Return a header and the bytes of the FAISS index."""
        header = Header(self.kind, self.metric, self.dim)
        return np.concatenate([header.encode(), faiss.serialize_index(self._index)])

    def training(self) -> Codebook:
        """Return the codebook."""
        if self.kind == "ivf_pq":
            pq = self._index.pq
            return Codebook(self.kind, int(pq.M), faiss.vector_to_array(pq.centroids))
        if self.kind == "ivf_sq8":
            return Codebook(self.kind, 0, faiss.vector_to_array(self._index.sq.trained))
        return Codebook(self.kind, 0, np.empty(0, np.float32))

    def _padded(self, data: Floats) -> Floats:
        if self.width == self.dim:
            return data
        wide = np.zeros((len(data), self.width), np.float32)
        wide[:, : self.dim] = data
        return wide

    def _same_training(self, other: Inverted) -> bool:
        if (self.kind, self.lists, self.width) != (other.kind, other.lists, other.width):
            return False
        if not np.array_equal(self.training().values, other.training().values):
            return False
        return self.lists == 1 or np.array_equal(self._centroids(), other._centroids())

    def _centroids(self) -> Floats:
        return cast(Floats, self._index.quantizer.reconstruct_n(0, self.lists))
