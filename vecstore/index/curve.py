"""Recall to effort: measures how hard an index must be searched for a recall, on queries like its own rows.

A sample of the rows asks for its neighbours, each left out of its own answer. Where no list is skipped, what is lost is
lost to the codes, which transfers to other queries: an ask is met when a little more is met here. What is lost by
skipping lists or by walking a graph does not transfer so well: asks are met with twice to thrice the room
(`ROOM_...`: the share of the loss that an ask allows). A mean must also clear the ask by its one-sided 99% bound.

Not here: `Curve` itself and its tables (`effort`, offered here too). No I/O; bounded in time by the number of queries.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..config import EXTENT_ROWS
from ..values import Metric
from . import cpu
from .base import Effort, Floats, Index, Rows, Vectors
from .effort import ALL, ASKS, TABLE_ASKS, Curve, Setting, table

__all__ = ["Curve", "measure", "table"]

ROOM_CODES = 0.8
ROOM_SKIPPED = 0.5
ROOM_SKIPPED_FIRST = 0.35
"""For k = 1, where a query is a hit or a miss."""
BOUND_Z = 2.33
CANDIDATES_ROOM = 1.25
CANDIDATES_MIN = {1: 24, 3: 24, 10: 32}
"""Where the measured need is small, so is the cost of room."""
SIZES = (1, 3, 10, 30, 100)
QUERIES_MAX = 1_000
QUERIES_MIN = 64
QUERIES_SKIPPED_MIN = 200
EXACT_S_MAX = 0.25
REFERENCE_S_MAX = 0.4
SIZES_FAR = (200, 500, 1_000)
QUERIES_FAR = 48
CANDIDATES_MAX = 2_000
CANDIDATES_FAR = 10_000
REFERENCE_CANDIDATES = 1_200
EF_ROOM = 2
"""Queries that come from elsewhere than the rows find the way through a graph harder: searched twice as wide."""
EF_HIGH = 128
QUERIES_GRAPH = 250
EF_GRID = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)

Ranks = npt.NDArray[np.int32]
"""(queries, k): at which place of the candidates a true neighbour stands; ABSENT where it does not."""
ABSENT = 1 << 30


@dataclass(frozen=True, slots=True)
class _Sample:
    """Queries, the rows that they were made of, and their true neighbours."""

    queries: Floats
    own: Rows
    truth: Rows

    def first(self, count: int) -> _Sample:
        return _Sample(self.queries[:count], self.own[:count], self.truth[:count])


def measure(index: Index, metric: Metric, vectors: Vectors, rows: Rows, *, threads: int, seed: int) -> Curve:
    """Return the curve of an index over these rows.

    Parameters
    ----------
    index
        Holds the codes of `rows`.
    metric, vectors
        Of the collection.
    rows
        Those that may be asked for and found.
    threads
        Cores that FAISS may use.
    seed
        Of the sample.
    """
    with cpu.several_threads(threads):
        return _measure(index, metric, vectors, np.sort(rows), seed)


def _measure(index: Index, metric: Metric, vectors: Vectors, rows: Rows, seed: int) -> Curve:
    dim = vectors.data.shape[1]
    count = len(rows)
    wanted = int(EXACT_S_MAX / (count * max(dim, 16) * 5e-11))
    if index.kind == "hnsw":
        wanted = min(wanted, QUERIES_GRAPH)
    exact = _exact(vectors, rows, min(QUERIES_MAX, max(QUERIES_MIN, wanted)), seed, SIZES[-1], index.kind == "hnsw")
    if index.kind == "hnsw":
        settings, measured = _walked(index, exact, rows, dim)
        return Curve(index.kind, index.lists, tuple(settings), measured)
    ranks = _ranks(index, exact, rows, Effort(min(count, CANDIDATES_MAX)))
    settings = _unskipped(index, ranks, SIZES, count, dim)
    far = _exact(vectors, rows, QUERIES_FAR, seed + 2, SIZES_FAR[-1], False)
    far_ranks = _ranks(index, far, rows, Effort(min(count, CANDIDATES_FAR)))
    settings += _unskipped(index, far_ranks, SIZES_FAR, count, dim)
    if index.lists > 3:
        settings += _skipped(index, metric, vectors, ranks, rows, seed)
    curve = Curve(index.kind, index.lists, tuple(settings))
    return Curve(index.kind, index.lists, curve.settings, _measured(curve, index, exact, rows))


def _exact(vectors: Vectors, rows: Rows, wanted: int, seed: int, size: int, moved: bool) -> _Sample:
    """Return a sample whose neighbours were found by comparing all rows."""
    rng = np.random.default_rng(seed)
    own = np.sort(rng.choice(rows, min(wanted, len(rows)), replace=False))
    queries = cpu.prepare(vectors.metric, cpu.normalised(vectors, own))
    width = min(size, len(rows) - 1) + 1
    start, stop = int(rows[0]), int(rows[-1]) + 1
    allowed = None
    if stop - start != len(rows):
        bits = np.zeros(stop, np.bool_)
        bits[rows] = True
        allowed = cpu.selection(np.packbits(bits, bitorder="little"), len(rows))
    if moved:
        queries = _moved(vectors, queries, own, _nearest(vectors, queries, rows, 2, allowed), rng)
        own = np.full(len(own), -1, np.int64)
    truth = _nearest(vectors, queries, rows, width, allowed)
    return _Sample(queries, own, _others(truth, own))


def _nearest(vectors: Vectors, queries: Floats, rows: Rows, width: int, allowed: cpu.BitmapSelection | None) -> Rows:
    """Return the nearest of these rows, which are sorted.

    Only rows between two of one extent are touched: behind an extent's last row there may be no memory.
    """
    apart = (np.diff(rows) > 1) & (np.diff(rows // EXTENT_ROWS) > 0)
    parts = [
        cpu.scan_span(vectors, queries, int(part[0]), int(part[-1]) + 1, width, allowed)
        for part in np.split(rows, np.flatnonzero(apart) + 1)
    ]
    if len(parts) == 1:
        return parts[0][1]
    _, order = cpu.nearest(vectors.metric, np.hstack([scores for scores, _ in parts]), width)
    near: Rows = np.take_along_axis(np.hstack([found for _, found in parts]), order, 1)
    return near


def _moved(vectors: Vectors, queries: Floats, own: Rows, near: Rows, rng: np.random.Generator) -> Floats:
    """Return queries moved off their rows by the distance to the next row: rows of a graph flatter it."""
    other = np.where(near[:, -1] == own, near[:, 0], near[:, -1])
    gap = np.linalg.norm(cpu.normalised(vectors, other) - queries, axis=1, keepdims=True)
    noise = rng.standard_normal(queries.shape).astype(np.float32)
    noise *= gap / np.linalg.norm(noise, axis=1, keepdims=True)
    return cpu.prepare(vectors.metric, queries + noise)


def _others(truth: Rows, own: Rows) -> Rows:
    """Leave each query's own row out of its neighbours (or the last one, where it is not among them)."""
    keep = truth != own[:, None]
    full = keep.all(axis=1)
    keep[full, -1] = False
    others: Rows = truth[keep].reshape(len(truth), -1)
    return others


def _ranks(index: Index, sample: _Sample, rows: Rows, effort: Effort) -> Ranks:
    """Return where the true neighbours stand among the candidates, the query's own row left out."""
    found = index.search(sample.queries, effort)
    # The index also finds rows that died, which may lie behind the last live one.
    places = np.full(max(int(rows[-1]), int(found.max(initial=-1))) + 2, ABSENT, np.int32)
    out = np.empty(sample.truth.shape, np.int32)
    order = np.arange(found.shape[1], dtype=np.int32)
    for i, candidates in enumerate(found):
        places[candidates] = order
        places[-1] = ABSENT
        out[i] = places[sample.truth[i]]
        own = places[sample.own[i]]
        out[i] -= out[i] > own
        places[candidates] = ABSENT
    out[out >= ABSENT - 1] = ABSENT
    return out


def _needed(ranks: Ranks, k: int, ask: float, room: float, credit: float = 1.0) -> int | None:
    """Return the fewest candidates for an ask, None where these ranks do not meet it.

    `credit` is the recall of the neighbours that the ranks were taken of.
    """
    near = ranks[:, :k]
    target = (1 - (1 - ask) * room) / credit
    if target > 1:
        return None
    at = min(near.size - 1, math.ceil(target * near.size) - 1)
    candidates = max(int(np.partition(near, at, axis=None)[at]) + 1, k)
    last = int(near.max())
    while candidates < ABSENT:
        hits = (near < candidates).mean(axis=1) * credit
        if hits.mean() - BOUND_Z * hits.std() / math.sqrt(len(hits)) >= ask:
            return candidates
        if candidates > last:
            return None
        candidates = max(candidates + 1, candidates * 9 // 8)
    return None


def _with_room(candidates: int, k: int) -> int:
    """Return the candidates to use where so many were needed here; one more, for the row left out."""
    return max(CANDIDATES_MIN.get(k, 0), math.ceil((candidates - k) * CANDIDATES_ROOM) + k) + 1


def _unskipped(index: Index, ranks: Ranks, sizes: tuple[int, ...], count: int, dim: int) -> list[Setting]:
    settings = []
    for k in (size for size in sizes if size <= ranks.shape[1]):
        for ask in TABLE_ASKS:
            needed = _needed(ranks, k, ask, ROOM_CODES)
            # Beyond what was looked at, all rows are candidates.
            candidates = ALL if needed is None else _with_room(needed, k)
            if needed is None and ask > ASKS[-1]:
                continue
            settings.append(Setting(k, candidates, 0, 0, ask, _cost_us(index, count, dim, 0, candidates)))
    return settings


def _skipped(index: Index, metric: Metric, vectors: Vectors, ranks: Ranks, rows: Rows, seed: int) -> list[Setting]:
    """Return settings that look at some lists only, measured against a reference that skips none."""
    count, dim = len(rows), vectors.data.shape[1]
    each_s = _cost_us(index, count, dim, 0, REFERENCE_CANDIDATES) / 1e6
    wanted = max(QUERIES_MIN, min(QUERIES_MAX, int(REFERENCE_S_MAX / each_s)))
    sample = _referred(index, metric, vectors, rows, wanted, seed + 1)
    settings = []
    probes = 1
    while probes < index.lists // 2:
        # The more lists, the dearer a query, and the less it is likely to be worth it.
        asked = sample.first(max(QUERIES_SKIPPED_MIN, wanted * 16 // max(probes, 16)))
        near = _ranks(index, asked, rows, Effort(min(count, REFERENCE_CANDIDATES), probes))
        for k in (size for size in SIZES if size <= near.shape[1]):
            credit = float((ranks[:, :k] < REFERENCE_CANDIDATES).mean())
            for ask in TABLE_ASKS:
                needed = _needed(near, k, ask, ROOM_SKIPPED_FIRST if k == 1 else ROOM_SKIPPED, credit)
                if needed is not None:
                    candidates = _with_room(needed, k)
                    cost_us = _cost_us(index, count, dim, probes, candidates)
                    settings.append(Setting(k, candidates, probes, 0, ask, cost_us))
        probes = max(probes + 1, probes * 3 // 2 if probes < 32 else probes * 2)
        if _saturated(settings, near):
            break
    return settings


def _saturated(settings: list[Setting], near: Ranks | Rows) -> bool:
    """Return whether the highest ask is met for every k: more lists would only cost more."""
    met = {s.k for s in settings if s.recall >= TABLE_ASKS[-1]}
    return all(k in met for k in SIZES if k <= near.shape[1])


def _referred(index: Index, metric: Metric, vectors: Vectors, rows: Rows, wanted: int, seed: int) -> _Sample:
    """Return a sample whose neighbours are the best of many candidates: cheaper than comparing all rows."""
    own = np.sort(np.random.default_rng(seed).choice(rows, min(wanted, len(rows)), replace=False))
    queries = cpu.prepare(metric, cpu.normalised(vectors, own))
    found = index.search(queries, Effort(min(len(rows), REFERENCE_CANDIDATES)))
    _, columns = cpu.nearest(metric, cpu.score(vectors, queries, found), min(SIZES[-1] + 1, len(rows)))
    return _Sample(queries, own, _others(np.take_along_axis(found, columns, 1), own))


def _walked(index: Index, exact: _Sample, rows: Rows, dim: int) -> tuple[list[Setting], dict[str, float]]:
    """Return the settings of a graph."""
    settings: list[Setting] = []
    for ef in EF_GRID:
        if ef >= len(rows):
            break
        ranks = _ranks(index, exact, rows, Effort(ef, 0, ef))
        for k in (size for size in SIZES if size <= min(ef, ranks.shape[1])):
            for ask in TABLE_ASKS:
                needed = _needed(ranks, k, ask, ROOM_SKIPPED_FIRST if k == 1 else ROOM_SKIPPED)
                if needed is not None:
                    candidates = min(ef, _with_room(needed, k))
                    cost_us = ef * (0.6 + dim / 400) + candidates * dim / 4000
                    wide = max(EF_ROOM * ef, EF_HIGH if ask >= ASKS[-1] else 0)
                    settings.append(Setting(k, candidates, 0, wide, ask, cost_us))
        if _saturated(settings, exact.truth):
            break
    for k in (size for size in SIZES if size <= exact.truth.shape[1]):
        settings += [Setting(k, ALL, 0, ALL, ask, 1e9) for ask in TABLE_ASKS]
    curve = Curve(index.kind, 0, tuple(settings))
    return settings, _measured(curve, index, exact, rows)


def _measured(curve: Curve, index: Index, exact: _Sample, rows: Rows) -> dict[str, float]:
    """Return the recall that the efforts chosen for the asks have on the sample."""
    report = {}
    for k in (1, 10, 100):
        if k > exact.truth.shape[1]:
            continue
        for ask in ASKS:
            effort = curve.effort(ask, k)
            if effort.candidates >= ALL:
                report[f"{k}@{ask:.2f}"] = 1.0
                continue
            ranks = _ranks(index, exact.first(200), rows, effort)
            report[f"{k}@{ask:.2f}"] = round(float((ranks[:, :k] < ABSENT).mean()), 4)
    return report


def _cost_us(index: Index, count: int, dim: int, probes: int, candidates: int) -> float:
    """Return about what a query costs: finding lists, reading codes, comparing candidates."""
    code_bytes = index.bytes / max(index.count, 1)
    share = probes / index.lists if probes else 1.0
    looked = probes or index.lists
    return (
        index.lists * dim / 20e3
        + looked * 0.3
        + count * share * code_bytes / 40e3
        + min(candidates, count) * (0.06 + dim / 4000)
    )
