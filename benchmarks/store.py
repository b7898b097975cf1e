"""Stores filled with benchmark data, and the raw FAISS index that is built the same way as the one a store serves.

This module measures nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bench
import faiss
import numpy as np
from dataset import Dataset, Floats

import vecstore
from vecstore.index import kinds
from vecstore.index.base import Effort

COLLECTION = "points"
CALL_ROWS = 1_000
FIELDS = {"bucket": "int64", "topic": "int64"}


def payloads_of(data: Dataset, start: int, stop: int) -> list[dict[str, Any]]:
    """Return payloads of rows, with the numbers that filters name."""
    own = data.payloads[start:stop] or [{"name": f"point {i}", "section": "none"} for i in range(start, stop)]
    numbers = zip(own, data.bucket[start:stop].tolist(), data.topic[start:stop].tolist(), strict=True)
    return [{**payload, "bucket": bucket, "topic": topic} for payload, bucket, topic in numbers]


def fill(
    path: Path, data: Dataset, config: dict[str, Any] | None = None, *, optimize: bool = True
) -> vecstore.Database:
    """Return an open store that holds the data in one collection, with payloads and fields; indexed if `optimize`."""
    database = vecstore.open(str(path), config=config)
    points = database.create_collection(COLLECTION, data.dim, fields=FIELDS)
    for start in range(0, data.count, CALL_ROWS):
        stop = min(start + CALL_ROWS, data.count)
        points.upsert(np.arange(start, stop), data.rows[start:stop], payloads_of(data, start, stop))
    if optimize:
        points.optimize()
    return database


@dataclass(frozen=True)
class Served:
    """What answers searches of a collection whose building is done.

    Attributes
    ----------
    kind
        Of the largest segment's index: "flat", "ivf_pq", ...
    lists, pieces
        Of that index.
    segments
        Sealed segments; 1 when all is merged.
    """

    kind: str
    lists: int
    pieces: int
    segments: int

    @property
    def text(self) -> str:
        """The index as FAISS's factory names it."""
        return f"IVF{self.lists},PQ{self.pieces}x4fs" if self.kind == "ivf_pq" else self.kind


def served(database: vecstore.Database, data: Dataset) -> Served:
    """Read from the store's status which index it built."""
    segments = sealed_segments(database)
    indexed = [segment for segment in segments if segment.index is not None]
    if not indexed:
        return Served("flat", 0, 0, len(segments))
    index = max(indexed, key=lambda segment: segment.rows).index
    plan = kinds.plan(index.kind, data.count, data.dim)
    return Served(index.kind, index.lists, plan.pieces if plan else 0, len(segments))


def sealed_segments(database: vecstore.Database) -> list[Any]:
    """Return the sealed segments of the benchmark's collection, from inside the engine."""
    view = database._engine.state.view  # type: ignore[attr-defined]
    collection = view.collections[view.names[COLLECTION]]
    return [segment for shard in collection.shards for segment in shard.sealed.segments]


def effort_at(database: vecstore.Database, recall: float, k: int) -> Effort:
    """Return the effort that the largest segment's curve gives for a recall."""
    largest = max(sealed_segments(database), key=lambda segment: segment.rows)
    effort: Effort = largest.curve.effort(recall, k)
    return effort


def trained_index(built: Served, data: Dataset, rows_per_list: int | None = None) -> Any:
    """Return a trained, empty FAISS index of the store's kind: codes of unit vectors, by Euclidean distance.

    Parameters
    ----------
    rows_per_list
        How many training rows a list gets at most; FAISS's own default is 256.
    """
    if built.kind != "ivf_pq":
        raise SystemExit(f"the store built {built.kind!r}; this comparison is about ivf_pq: take more rows")
    index = faiss.index_factory(data.dim, built.text, faiss.METRIC_L2)
    if rows_per_list is not None:
        index.cp.max_points_per_centroid = rows_per_list
    index.train(data.unit_rows)
    return index


def refined(trained: Any, data: Dataset) -> Any:
    """Return a FAISS index of all rows that re-ranks by their exact vectors; it takes over the empty one."""
    index = faiss.IndexRefineFlat(trained)
    trained.this.disown()
    index.own_fields = True
    index.add(data.unit_rows)
    return index


def refine_parameters(effort: Effort, k: int, lists: int) -> Any:
    """Return FAISS's parameters of the same effort: candidates re-ranked, lists looked at."""
    inner = faiss.SearchParametersIVF(nprobe=effort.probes or lists)
    return faiss.IndexRefineSearchParameters(k_factor=effort.candidates / k, base_index_params=inner)


class RawThread:
    """A thread in which FAISS uses every core, as it does by default.

    The store sets FAISS to one OpenMP thread in each thread that calls it, and FAISS keeps that number by thread: in a
    thread that the store is called from, the raw library would be measured at half its speed.
    """

    def __init__(self) -> None:
        cores = len(bench.cores())
        self._thread = ThreadPoolExecutor(1, initializer=faiss.omp_set_num_threads, initargs=(cores,))

    def timed(self, call: Callable[[], object]) -> float:
        """Return the seconds that a call takes in this thread."""
        return self._thread.submit(bench.timed, call).result()


def exact_index(rows: Floats) -> Any:
    """Return an exact FAISS index over unit rows."""
    index = faiss.IndexFlat(rows.shape[1], faiss.METRIC_INNER_PRODUCT)
    index.add(rows)
    return index
