"""What an index over the rows of a sealed segment promises, and the values that pass between engine and index.

Rows are numbered within their shard; an index holds row numbers as its labels, and codes, but not the rows. All vectors
of a shard lie in one array of shape (capacity, dim) indexed by row number (`Vectors`), from which candidates are
re-ranked exactly. An index is immutable once it is searched: `added` returns another one.

Scores are in the metric's own sense: cosine similarity and inner product (higher is nearer), squared Euclidean distance
(lower is nearer). "Normalised" here means: under cosine, codes are taken of vectors of unit length; under ip and l2, of
vectors as given.

Every call releases the interpreter lock while it computes and uses one OpenMP thread in the calling thread.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..values import Metric

__all__ = ["Effort", "Index", "Rows", "Selection", "Vectors"]

Rows = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Effort:
    """How hard one search of one segment tries. Immutable; never assigned to a shared index.

    Attributes
    ----------
    candidates
        Rows taken from the index and re-ranked exactly (R), at least k.
    probes
        Lists looked at (nprobe); 0 skips none.
    ef
        efSearch of a graph; 0 where there is none.
    """

    candidates: int
    probes: int = 0
    ef: int = 0


@dataclass(frozen=True, slots=True)
class Vectors:
    """The vectors of one shard by row number.

    Attributes
    ----------
    metric
        Of the collection.
    data
        float32, C-contiguous, shape (capacity, dim): vectors as given. Rows that are not taken hold anything.
    inverse_norms
        float32 of shape (capacity,): 1 / length under cosine; None under ip and l2.
    """

    metric: Metric
    data: Floats
    inverse_norms: Floats | None


class Selection(Protocol):
    """Which rows a search may return: built once from a bitmap, reused by many searches.

    `bitmap` is uint8, bit ``row & 7`` of byte ``row >> 3`` is set for rows that may be returned. It must outlive the
    selection's use; the selection keeps a reference.
    """

    bitmap: npt.NDArray[np.uint8]
    count: int


class Index(Protocol):
    """An ANN index over some rows of one shard. Thread-safe for searching.

    Attributes
    ----------
    kind
        "ivf_flat", "ivf_pq", "ivf_sq8" or "hnsw" (resolved; never "auto").
    count
        Rows in it.
    bytes
        Memory that it takes.
    lists
        Inverted lists (nlist); 1 where there are none to skip, 0 for a graph.
    """

    kind: str
    count: int
    bytes: int
    lists: int

    def search(self, queries: Floats, effort: Effort, selection: Selection | None = None) -> Rows:
        """Return int64 (queries, effort.candidates): rows that may be near, padded with -1; approximate order.

        `queries` are float32 (queries, dim), already normalised.
        """
        ...

    def added(self, rows: Rows, vectors: Vectors, threads: int = 1) -> Index:
        """Return an index of the same training that also holds these rows; this one stays as it is."""
        ...

    def dump(self) -> npt.NDArray[np.uint8]:
        """Return the bytes from which `kinds.load` makes the same index."""
        ...

    def training(self) -> Any:
        """Return what another index of the same kind may start from without training anew (shared codebook)."""
        ...
