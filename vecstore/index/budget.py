"""What an index on a device takes of its memory, and the ledger that every allocation is admitted to first.

Three phases, each with the most that is held at one moment of it: `train`, `build` and `serve`. The formulas bound what
the backends allocate from above (docs/operations.md prints them). What a worker takes beside them, the driver's context
and the fixed scratch, is there before the first index and no part of them.

Not here: which device an index goes to (`placement`), and any code that runs on one. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ..values import Metric

__all__ = [
    "BLOCK_ROWS",
    "FLAT_WORK_MAX",
    "KINDS",
    "LISTS_MAX",
    "TRAIN_ITERATIONS",
    "TRAIN_ROWS_PER_LIST",
    "Choice",
    "Ledger",
    "Need",
    "NoRoom",
    "choose",
    "layout",
    "need",
    "queries_max",
    "scan_bytes",
    "scanned_at_once",
    "tile_of",
]

KINDS = ("flat", "ivf_sq", "ivf_pq", "cagra")
"""Float16 rows as they are; lists of float16 rows; lists of product codes; a graph (with cuVS alone)."""
BLOCK_ROWS = 65_536
"""Rows uploaded at a time while an index is built: bounded memory on both sides."""
FLAT_WORK_MAX = 1 << 30
"""Rows times dimension up to which all rows are compared: 2 GiB of float16, less than a millisecond to read."""
LISTS_MAX = 2_048
"""FAISS without cuVS looks at no more lists than this, and an index must be searchable without skipping any."""
TRAIN_ROWS_PER_LIST = 64
TRAIN_ITERATIONS = 10
LIST_BYTES = 1_024
"""Two allocations a list, rounded up, with what points to them."""
WARP_ROWS = 32
"""Lists of scalar codes are laid out in groups of so many rows; the last group of a list is filled up."""
PAGE_BYTES = 2 << 20
"""The driver gives out memory in pages of so much: a larger allocation has its pages alone, small ones share them."""
GRAPH_DEGREE = 64
GRAPH_DEGREE_BUILD = 128
PQ_PIECES = (1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 96)
"""Sub-quantisers for which FAISS has kernels on a device."""


class NoRoom(Exception):
    """An allocation was not admitted, or failed. The device is as it was before.

    Parameters
    ----------
    what
        Of the allocation.
    wanted, free
        Bytes.
    """

    def __init__(self, what: str, wanted: int, free: int) -> None:
        super().__init__(f"{what}: {wanted:,} bytes wanted, {free:,} free in the budget")
        self.what, self.wanted, self.free = what, wanted, free


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes of a device's memory held at the worst moment of each phase."""

    train: int
    build: int
    serve: int

    @property
    def peak(self) -> int:
        """The most of all phases."""
        return max(self.train, self.build, self.serve)


@dataclass(frozen=True, slots=True)
class Choice:
    """An index to be built on a device.

    Attributes
    ----------
    kind
        One of `KINDS`.
    lists
        Inverted lists; 0 where there are none.
    pieces
        Sub-quantisers of 8 bits; 0 for other kinds.
    width
        Dimension with the zeros that make it a multiple of `pieces`.
    need
        What it takes.
    """

    kind: str
    lists: int
    pieces: int
    width: int
    need: Need


def layout(kind: str, rows: int, dim: int) -> tuple[int, int, int]:
    """Return lists, pieces and width of an index of a kind over so many rows."""
    if kind in ("flat", "cagra"):
        return 0, 0, dim
    lists = max(1, min(LISTS_MAX, int(4 * math.sqrt(rows)), rows // 8))
    if kind == "ivf_sq":
        return lists, 0, dim
    pieces = max(pieces for pieces in PQ_PIECES if pieces <= max(1, dim // 2))
    return lists, pieces, -(-dim // pieces) * pieces


def need(kind: str, rows: int, dim: int, metric: Metric = "l2") -> Need:
    """Return what an index takes.

    Parameters
    ----------
    kind
        One of `KINDS`.
    rows, dim
        Of the segment.
    metric
        Squared lengths are kept under l2.
    """
    lists, pieces, width = layout(kind, rows, dim)
    block = min(rows, BLOCK_ROWS)
    if kind == "flat":
        serve = rows * (2 * dim + (4 if metric == "l2" else 0))
        # A block as it came and times the scale; then its float32 form again, and that squared.
        return Need(0, serve + block * 8 * dim, serve)
    if kind == "cagra":
        serve = rows * (4 * dim + 4 * GRAPH_DEGREE)
        # The rows are handed over at once; the first graph is wider, and its codes and lists are gone afterwards.
        return Need(0, serve + rows * (4 * dim + 8 * GRAPH_DEGREE_BUILD + dim), serve)
    centroids = lists * (8 * width + 8)
    if kind == "ivf_sq":
        codes = rows * (2 * dim + 8) + lists * (WARP_ROWS * 2 * dim + LIST_BYTES)
        tables = 8 * dim
    else:
        codes = rows * (pieces + 8) + lists * (WARP_ROWS * pieces + LIST_BYTES)
        tables = 3 * 256 * 4 * width
    # A list of more than half a page has pages of its own, the last one half empty on average.
    if codes >= lists * PAGE_BYTES // 2:
        codes += lists * PAGE_BYTES // 2
    serve = codes + centroids + tables
    sample = min(rows, TRAIN_ROWS_PER_LIST * lists)
    train = sample * (4 * width + 16) + 2 * centroids + tables
    # Lists double while they grow, and one of them is copied at a time; what is beyond need is given back at the end.
    return Need(train, 2 * codes + centroids + tables + block * 8 * width, serve)


def choose(
    rows: int,
    dim: int,
    metric: Metric,
    free: int,
    *,
    cuvs: bool = False,
    index: str = "auto",
) -> Choice | None:
    """Return the simplest index that fits and is fast enough, None if none fits.

    Parameters
    ----------
    rows, dim, metric
        Of the segment.
    free
        Bytes that the budget has left.
    cuvs
        Whether graphs can be built.
    index
        Of the collection: "hnsw" asks for a graph where there is one, "flat" for no lists.
    """
    order = ["flat", "ivf_sq", "ivf_pq"]
    if index == "flat":
        order = ["flat"]
    elif rows * dim > FLAT_WORK_MAX:
        order = ["ivf_sq", "ivf_pq"]
    if index == "hnsw" and cuvs:
        order = ["cagra", *order]
    for kind in order:
        wanted = need(kind, rows, dim, metric)
        if wanted.peak <= free:
            lists, pieces, width = layout(kind, rows, dim)
            return Choice(kind, lists, pieces, width, wanted)
    return None


def queries_max(scratch_bytes: int, dim: int, candidates: int) -> int:
    """Return how many queries are asked at once, so that what they need beside the index fits the scratch: at least 1.

    A query has its float32 and float16 form, and a score and a row number for each candidate, twice: found and merged.
    """
    each = 6 * dim + 24 * candidates + 64
    return max(1, scratch_bytes // 4 // each)


def scan_bytes(choice: Choice, probes: int, candidates: int, longest: int) -> int:
    """Return what FAISS takes of its scratch for one query of an index with lists, from its GPU sources.

    Parameters
    ----------
    choice
        The index.
    probes, candidates
        Lists that are looked at, and rows taken.
    longest
        Rows of its longest list.
    """
    call = 4 * choice.width + 12 * candidates + 12 * probes
    if choice.kind == "ivf_sq":
        # The nearest of each list, and where they lie (`IVFINT_RUN`), for all queries of a call at once.
        return call + 12 * probes * candidates
    # Two streams, each with tables, all distances, and the nearest of eight parts (`getIVFPQPerQueryTempMemory`).
    tables = 4 * 256 * choice.pieces * probes
    return call + 2 * (tables + 8 * (probes + 1) + 4 * probes * longest + 12 * min(probes, 8) * candidates)


def scanned_at_once(choice: Choice, each: int, scratch_bytes: int) -> int:
    """Return how many queries an index with lists is searched for at once, given what one takes: at least 1.

    Lists of scalar codes are searched for all of them together. With product codes FAISS takes as many at a time as
    its scratch has room for, but where that is fewer than 8 it allocates.
    """
    fit = max(1, scratch_bytes * 3 // 4 // each)
    return fit if choice.kind == "ivf_sq" or fit < 8 else 1 << 15


def tile_of(item_bytes: int, dim: int) -> tuple[int, int]:
    """Return queries and rows of the tiles in which FAISS compares all with all, whatever its scratch.

    It holds two tiles of float32 scores at once; what its scratch has no room for it allocates in every call. From
    `chooseTileSize` in its GPU sources, for devices of more than 8 GiB, where tiles are largest.
    """
    queries = 1_024 if dim <= 32 else 512
    return queries, (1 << 30) // (2 * item_bytes) // queries


class Ledger:
    """The budget of one device: what is reserved, by name. Not thread-safe: a device's worker has one thread for it.

    Parameters
    ----------
    budget
        Bytes that may be reserved in all.
    failing
        The allocation that fails though there is room, counted from 1; 0 for none. For drills and tests.
    """

    def __init__(self, budget: int, failing: int = 0) -> None:
        self.budget = budget
        self.reserved: dict[str, int] = {}
        self._failing = failing
        self._count = 0

    @property
    def used(self) -> int:
        """Bytes reserved."""
        return sum(self.reserved.values())

    @property
    def free(self) -> int:
        """Bytes not reserved."""
        return self.budget - self.used

    def reserve(self, name: str, size: int) -> None:
        """Take bytes for a name, in place of what it had.

        Raises
        ------
        NoRoom
            There are not so many; what the name had stays.
        """
        self._count += 1
        free = self.free + self.reserved.get(name, 0)
        if size > free or self._count == self._failing:
            raise NoRoom(name, size, free)
        self.reserved[name] = size

    def shrink(self, name: str, size: int) -> None:
        """Give back what a name has beyond so many bytes: no allocation, so that it cannot fail."""
        self.reserved[name] = min(size, self.reserved[name])

    def release(self, name: str) -> None:
        """Give back what a name has, if anything."""
        self.reserved.pop(name, None)

    @contextmanager
    def lent(self, name: str, size: int) -> Iterator[None]:
        """Take bytes for as long as the body runs."""
        self.reserve(name, size)
        try:
            yield
        finally:
            self.release(name)
