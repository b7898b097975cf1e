"""A proximity graph (HNSW) over scalar-quantised codes of the (normalised) vectors: "hnsw".

A graph collapses where few of its rows may be returned, so under a selection that leaves out more than a tenth of them
its codes are scanned instead, all of them. It can't be merged or added to cheaply; `added` builds on a clone.

Invariant: an index that was handed out never changes. No I/O.
"""

from __future__ import annotations

from typing import Any, cast

import faiss
import numpy as np
import numpy.typing as npt

from ..values import Metric
from .base import Effort, Floats, Rows, Selection, Vectors
from .cpu import BitmapSelection, normalised, one_thread, several_threads
from .header import Header
from .inverted import ADD_BYTES_MAX, Codebook

__all__ = ["Graph"]

_pointer: Any = faiss.swig_ptr
WALK_SHARE_MIN = 0.9
"""The graph is walked under a selection only where it allows at least this share of the rows."""


class Graph:
    """`base.Index` over FAISS's HNSW. Thread-safe for searching.

    Parameters
    ----------
    metric
        Of the collection.
    dim
        Of the vectors.
    index
        A trained FAISS IndexHNSWSQ; it belongs to this object from here on.
    rows
        int64: the row number of each of its nodes.
    """

    __slots__ = ("_index", "_rows", "_search", "bytes", "count", "dim", "kind", "lists", "metric")

    def __init__(self, metric: Metric, dim: int, index: Any, rows: Rows) -> None:
        self.kind = "hnsw"
        self.metric = metric
        self.dim = dim
        self.lists = 0
        self.count = int(index.ntotal)
        self._index = index
        self._rows = rows
        self._search = index.search_c
        links = 4 * (int(index.hnsw.nb_neighbors(0)) + 4)
        self.bytes = self.count * (int(index.storage.sa_code_size()) + links + 8)

    def search(self, queries: Floats, effort: Effort, selection: Selection | None = None) -> Rows:
        """Return int64 (queries, effort.candidates, or all rows): rows that may be near, padded with -1."""
        one_thread()
        count = len(queries)
        candidates = max(1, min(effort.candidates, self.count))
        nodes = np.empty((count, candidates), np.int64)
        distances = np.empty((count, candidates), np.float32)
        ef = max(effort.ef, candidates)
        walk = ef < self.count
        selector = None
        if selection is not None:
            chosen, share = self._chosen(cast(BitmapSelection, selection))
            selector = faiss.IDSelectorBitmap(chosen)
            walk = walk and share >= WALK_SHARE_MIN
        if walk:
            parameters = faiss.SearchParametersHNSW(efSearch=ef, sel=selector)
            search = self._search
        else:
            parameters = faiss.SearchParameters(sel=selector)
            search = self._index.storage.search_c
        search(count, _pointer(queries), candidates, _pointer(distances), _pointer(nodes), parameters)
        return np.where(nodes < 0, -1, self._rows[nodes])

    def added(self, rows: Rows, vectors: Vectors, threads: int = 1) -> Graph:
        """Return an index that also holds these rows; this one stays as it is."""
        index = faiss.clone_index(self._index)
        step = max(1, ADD_BYTES_MAX // (4 * self.dim))
        with several_threads(threads):
            for at in range(0, len(rows), step):
                data = np.ascontiguousarray(normalised(vectors, rows[at : at + step]))
                index.add_c(len(data), _pointer(data))
        return Graph(self.metric, self.dim, index, np.concatenate([self._rows, rows]))

    def dump(self) -> npt.NDArray[np.uint8]:
        """Return a header, the row numbers and the bytes of the FAISS index."""
        header = Header(self.kind, self.metric, self.dim, self.count)
        return np.concatenate(
            [header.encode(), self._rows.astype("<i8").view(np.uint8), faiss.serialize_index(self._index)]
        )

    def training(self) -> Codebook:
        """Return the ranges of the codes."""
        sq = faiss.downcast_index(self._index.storage).sq
        return Codebook(self.kind, 0, faiss.vector_to_array(sq.trained))

    def _chosen(self, selection: BitmapSelection) -> tuple[npt.NDArray[np.uint8], float]:
        """Return the bitmap over nodes, and the share of them that may be returned."""
        bitmap, rows = selection.bitmap, self._rows
        inside = rows >> 3 < len(bitmap)
        bits = np.zeros(len(rows), np.bool_)
        bits[inside] = bitmap[rows[inside] >> 3] >> (rows[inside] & 7).astype(np.uint8) & 1
        return np.packbits(bits, bitorder="little"), float(bits.mean()) if len(bits) else 0.0
