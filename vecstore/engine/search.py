"""Searching a view: what each part of a shard is asked, and how the answers become one.

A sealed segment with an index gives candidates, which are re-ranked exactly; everything else is compared exactly:
growing rows, segments without an index, and the rows of a filter that leaves few. The recall asked for is met by each
part, so it is met by the merged answer. All scores come from the same kernel and have the same bits on every path.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..filters import Condition
from ..index import cpu
from ..index.base import Effort, Floats
from ..index.base import Rows as RowNumbers
from ..inputs import Ask
from ..values import Metric
from .filtering import FilterCache, growing_mask, live_selection
from .segment import Segment, spans
from .view import Growing, Sealed, ShardView

__all__ = [
    "Answers",
    "Found",
    "Part",
    "id_at",
    "ids_at",
    "payload_at",
    "scan_rows_max",
    "search",
    "sliced",
    "vector_at",
]

Mask = npt.NDArray[np.bool_]
SHARD_SHIFT = 40
"""A place in a collection is a row number, with its shard above."""
_ROW_MASK = (1 << SHARD_SHIFT) - 1
_RUN_SCORES_MAX = 1 << 21
"""Scores of growing rows held at once: 8 MiB."""
_SORTED_MAX = 1_024
_SCAN_ROWS_PER_384 = 3_500
"""Up to so many matching rows of 384 dimensions are scanned: beyond, the index with a selection is cheaper."""
_SCAN_SHARE_PER_DIM = 15
_SCAN_SHARE_MAX = 0.125
"""Such a share of the rows, times the dimension, is scanned as well, however many: 20,000 of 200,000 rows of 128
dimensions take 350 us, 180 once they lie side by side; the index takes 700."""


class Found(NamedTuple):
    """The nearest of each query, nearest first, ties by id.

    Attributes
    ----------
    scores
        float32 (q, k).
    places
        int64 (q, k): row numbers with the shard above `SHARD_SHIFT`; -1 where there are fewer than k.
    """

    scores: Floats
    places: RowNumbers
    exact: bool


@dataclass(frozen=True, slots=True)
class Part:
    """What a device says of one segment: candidates, to be scored here.

    Attributes
    ----------
    rows
        int64 (q, r), padded with -1: rows of the segment that live and match, in any order.
    bounds
        float32 (q,): no row that was left out has a better score; infinitely bad where none was.
    exact
        Whether it was asked for the nearest, not for some near ones: bounds tell whether it has them.
    """

    rows: RowNumbers
    bounds: Floats
    exact: bool

    def of(self, queries: slice) -> Part:
        """Return what is said of some of the queries."""
        return Part(self.rows[queries], self.bounds[queries], self.exact)


Answers = dict[int, dict[str, Part]]
"""Parts by shard number and segment name."""


def sliced(answers: Answers, queries: slice) -> Answers:
    """Return what is said of some of the queries."""
    return {shard: {name: part.of(queries) for name, part in parts.items()} for shard, parts in answers.items()}


def search(
    shards: tuple[ShardView, ...],
    lsn: int,
    queries: Floats,
    k: int,
    condition: Condition | None,
    ask: Ask,
    cache: FilterCache,
    answers: Answers | None = None,
) -> Found:
    """Find the k nearest of each prepared query (q, dim) in a view of a collection's shards.

    `answers` are what devices say of some of the segments, for the same view, queries, k, condition and ask.
    """
    parts: list[tuple[Floats, RowNumbers]] = []
    exact = True
    # No queries have no answers: kernels are not made to do nothing.
    for number, shard in enumerate(shards if len(queries) else ()):
        said = None if answers is None else answers.get(number)
        found, compared = _sealed(shard, queries, k, condition, ask, cache, said)
        exact = exact and compared
        for scores, rows in found:
            parts.append((scores, rows if not number else rows + (number << SHARD_SHIFT)))
        for run in _runs(shard, len(queries)):
            part = _growing(shard, run, lsn, queries, k, condition)
            if part is not None:
                parts.append((part[0], part[1] if not number else part[1] + (number << SHARD_SHIFT)))
    if not parts:
        return Found(np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64), True)
    if len(parts) == 1:
        scores, places = parts[0]
    else:
        scores = np.concatenate([part[0] for part in parts], axis=1)
        places = np.concatenate([part[1] for part in parts], axis=1)
    return _best(shards, scores, places, k, exact)


def scan_rows_max(dim: int, sealed: Sealed) -> int:
    """Return up to how many matching rows are scanned instead of searched.

    The more rows an index with lists has, the more a search through all of them costs; a graph's cost hardly grows.
    """
    few = _SCAN_ROWS_PER_384 * 384 // dim
    if any(segment.index is not None and not segment.index.lists for segment in sealed.segments):
        return few
    return max(few, int(min(_SCAN_SHARE_PER_DIM / dim, _SCAN_SHARE_MAX) * sealed.rows))


def _sealed(
    shard: ShardView,
    queries: Floats,
    k: int,
    condition: Condition | None,
    ask: Ask,
    cache: FilterCache,
    said: dict[str, Part] | None,
) -> tuple[list[tuple[Floats, RowNumbers]], bool]:
    """Ask the sealed segments; also return whether every row that matches was compared."""
    sealed = shard.sealed
    if not sealed.segments or not sealed.rows:
        return [], True
    selection: cpu.BitmapSelection | None = None
    share = 1.0
    if condition is not None:
        match = cache.match(shard, condition)
        if not match.count:
            return [], True
        if match.count <= scan_rows_max(shard.rows.dim, sealed):
            scan = partial(cache.scan, shard, condition, match)
            if said is not None and all(segment.name in said for segment in sealed.segments):
                rows = np.concatenate([said[segment.name].rows for segment in sealed.segments], axis=1)
                bounds = _nearest_bound(shard.rows.metric, [said[segment.name] for segment in sealed.segments])
                return [_proven(shard, Part(rows, bounds, True), queries, k, match.count, scan)], True
            return [_scanned(partial(scan, queries), k, match.count)], True
        selection = match.selection
        share = match.count / max(1, sealed.rows)
    elif any(sealed.dead):
        selection = live_selection(sealed)
        share = sealed.rows / sum(segment.rows for segment in sealed.segments)
    scanned = [s for s in sealed.segments if s.index is None or ask.exact]
    parts: list[tuple[Floats, RowNumbers]] = []
    if said is not None:
        for segment in scanned:
            if segment.name in said:
                scan = partial(_scan_segment, shard, segment, selection)
                parts.append(_proven(shard, said[segment.name], queries, k, segment.rows, scan))
        scanned = [segment for segment in scanned if segment.name not in said]
    parts += [
        _scanned(partial(cpu.scan_span, shard.rows.vectors, queries, start, stop, selection=selection), k, stop - start)
        for segment in scanned
        for start, stop in spans(segment.extents)
    ]
    searched = [s for s in sealed.segments if s.index is not None and not ask.exact]
    candidates = [
        said[segment.name].rows
        if said is not None and segment.name in said
        else _candidates(shard, segment, queries, k, ask, selection, share)
        for segment in searched
    ]
    if candidates:
        rows = candidates[0] if len(candidates) == 1 else np.concatenate(candidates, axis=1)
        parts.append((cpu.score(shard.rows.vectors, queries, rows), rows))
    return parts, not searched


def _scan_segment(
    shard: ShardView, segment: Segment, selection: cpu.BitmapSelection | None, queries: Floats, k: int
) -> tuple[Floats, RowNumbers]:
    """Compare all rows of a segment that a selection allows."""
    vectors = shard.rows.vectors
    parts = [
        cpu.scan_span(vectors, queries, start, stop, min(k, stop - start), selection)
        for start, stop in spans(segment.extents)
    ]
    scores, rows = (np.concatenate([part[i] for part in parts], axis=1) for i in (0, 1))
    best, columns = cpu.nearest(vectors.metric, scores, k)
    return best, np.take_along_axis(rows, columns, 1)


def _nearest_bound(metric: Metric, parts: list[Part]) -> Floats:
    bounds = np.array([part.bounds for part in parts])
    nearest: Floats = bounds.min(axis=0) if metric == "l2" else bounds.max(axis=0)
    return nearest


def _proven(
    shard: ShardView,
    part: Part,
    queries: Floats,
    k: int,
    rows: int,
    scan: Callable[[Floats, int], tuple[Floats, RowNumbers]],
) -> tuple[Floats, RowNumbers]:
    """Score what a device says; queries whose k-th hit does not clear the bound are compared with all rows here.

    A row that was left out is farther than the bound, so that whatever is nearer, ties of the k-th included, is here.
    """
    vectors = shard.rows.vectors
    scores = cpu.score(vectors, queries, part.rows)
    worst = np.float32(np.inf if vectors.metric == "l2" else -np.inf)
    scores[part.rows < 0] = worst
    column = min(k, scores.shape[1]) - 1
    last = np.partition(scores if vectors.metric == "l2" else -scores, column, axis=1)[:, column]
    if vectors.metric != "l2":
        last = -last
    clear = (last < part.bounds) if vectors.metric == "l2" else (last > part.bounds)
    open_ = np.flatnonzero(~clear & (part.bounds != worst))
    if not len(open_):
        return scores, part.rows
    best, found = _scanned(partial(scan, np.ascontiguousarray(queries[open_])), k, rows)
    width = max(best.shape[1], scores.shape[1])
    whole = np.full((len(queries), width), worst, np.float32)
    places = np.full((len(queries), width), -1, np.int64)
    whole[:, : scores.shape[1]], places[:, : scores.shape[1]] = scores, part.rows
    whole[open_], places[open_] = worst, -1
    whole[open_, : best.shape[1]], places[open_, : best.shape[1]] = best, found
    return whole, places


def _scanned(scan: Callable[[int], tuple[Floats, RowNumbers]], k: int, rows: int) -> tuple[Floats, RowNumbers]:
    """Scan for the k nearest and all that are as near as the k-th, so that ties can be ordered by id."""
    wanted = k + 1
    while True:
        best, found = scan(min(wanted, rows))
        if wanted >= rows:
            return best, found
        if len(best) == 1:
            last = best.item(0, -1)
            if last != best.item(0, k - 1) or not math.isfinite(last):
                return best, found
        elif not ((best[:, -1] == best[:, k - 1]) & np.isfinite(best[:, -1])).any():
            return best, found
        wanted *= 4


def _candidates(
    shard: ShardView,
    segment: Segment,
    queries: Floats,
    k: int,
    ask: Ask,
    selection: cpu.BitmapSelection | None,
    share: float,
) -> RowNumbers:
    assert segment.index is not None and segment.curve is not None
    if ask.effort is not None:
        effort: Effort = segment.curve.effort_for(ask.effort, k)
    else:
        effort = segment.curve.effort(ask.recall, k, share=share if selection else 1.0, filtered=selection is not None)
    if effort.candidates < segment.rows:
        return segment.index.search(queries, effort, selection)
    found = [
        cpu.scan_span(shard.rows.vectors, queries, start, stop, k, selection)[1]
        for start, stop in spans(segment.extents)
    ]
    return np.concatenate(found, axis=1)


def _runs(shard: ShardView, queries: int) -> list[list[Growing]]:
    """Return the unsealed extents, those together whose rows follow each other.

    A run is compared in one call: each call gives the interpreter lock away, and beside writers it is long in coming
    back.
    """
    runs: list[list[Growing]] = []
    for growing in shard.growing:
        if runs:
            first, last = runs[-1][0].extent.start, runs[-1][-1]
            follows = last.extent.start + last.rows == growing.extent.start
            if follows and (growing.extent.start + growing.rows - first) * queries <= _RUN_SCORES_MAX:
                runs[-1].append(growing)
                continue
        runs.append([growing])
    return runs


def _mask_of(shard: ShardView, run: list[Growing], lsn: int, condition: Condition | None) -> Mask | None:
    """Return which rows of a run live and match; None if all do."""
    masks = [growing_mask(shard, growing, lsn, condition) for growing in run]
    if all(mask is None for mask in masks):
        return None
    pairs = zip(masks, run, strict=True)
    return np.concatenate([np.ones(growing.rows, np.bool_) if mask is None else mask for mask, growing in pairs])


def _growing(
    shard: ShardView, run: list[Growing], lsn: int, queries: Floats, k: int, condition: Condition | None
) -> tuple[Floats, RowNumbers] | None:
    """Compare the rows of unsealed extents that live and match."""
    mask = _mask_of(shard, run, lsn, condition)
    start, stop = run[0].extent.start, run[-1].extent.start + run[-1].rows
    vectors = shard.rows.vectors
    if mask is None or 4 * np.count_nonzero(mask) > len(mask):
        worst = np.float32(np.inf if vectors.metric == "l2" else -np.inf)
        scores = cpu.score_span(vectors, queries, start, stop)
        if mask is not None:
            scores[:, ~mask] = worst
        best, columns = cpu.nearest(vectors.metric, scores, k + 1)
        rows = columns + start
        if mask is not None:
            rows[best == worst] = -1
        return _with_ties(vectors.metric, scores, best, rows, start, k)
    rows = np.flatnonzero(mask) + start
    if not len(rows):
        return None
    return cpu.scan(vectors, queries, rows, len(rows))


def _with_ties(
    metric: Metric, scores: Floats, best: Floats, rows: RowNumbers, start: int, k: int
) -> tuple[Floats, RowNumbers]:
    """Widen an answer by all rows that are as near as its k-th, so that ties can be ordered by id."""
    if best.shape[1] <= k:
        return best, rows
    tied = (best[:, k] == best[:, k - 1]) & np.isfinite(best[:, k])
    if not tied.any():
        return best[:, :k], rows[:, :k]
    cut = best[:, k - 1 : k]
    width = int(((scores <= cut) if metric == "l2" else (scores >= cut)).sum(axis=1)[tied].max())
    best, columns = cpu.nearest(metric, scores, max(width, k))
    return best, np.where(np.isfinite(best), columns + start, -1)


def _best(shards: tuple[ShardView, ...], scores: Floats, places: RowNumbers, k: int, exact: bool) -> Found:
    """Take the k best of each query; equal scores are ordered by id."""
    metric = shards[0].rows.vectors.metric
    if len(scores) == 1 and scores.shape[1] <= _SORTED_MAX:
        single = _best_of_one(metric, scores[0], places[0], k, exact)
        if single is not None:
            return single
    best, columns = cpu.nearest(metric, scores, k + 1)
    if best.shape[1] > 1:
        tied = best[:, 1:] == best[:, :-1]
        if tied.any():
            for i in np.flatnonzero((tied & np.isfinite(best[:, 1:])).any(axis=1)).tolist():
                _order_ties(shards, metric, scores[i], places[i], best[i], columns[i], k)
    best, columns = best[:, :k], columns[:, :k]
    taken = np.take_along_axis(places, columns, 1)
    missing = ~np.isfinite(best) | (taken < 0)
    if missing.any():
        taken[missing] = -1
        best = best.copy()
        best[missing] = np.nan
    return Found(best, taken, exact)


def _best_of_one(metric: Metric, scores: Floats, places: RowNumbers, k: int, exact: bool) -> Found | None:
    """Take the k best of one query in few steps; None where ties or missing rows ask for more care."""
    order = (scores if metric == "l2" else -scores).argsort(kind="stable")[: k + 1]
    best, taken = scores[order], places[order]
    values = best.tolist()
    if len(set(values)) < len(values) or not math.isfinite(values[-1]) or taken[-1] < 0:
        return None
    return Found(best[None, :k], taken[None, :k], exact)


def _order_ties(
    shards: tuple[ShardView, ...],
    metric: Metric,
    scores: Floats,
    places: RowNumbers,
    best: Floats,
    columns: RowNumbers,
    k: int,
) -> None:
    """Write the k best columns of one query again, with equal scores in the order of their ids."""
    cut = best[min(k, len(best)) - 1]
    if not np.isfinite(cut):
        within = np.flatnonzero(np.isfinite(scores))
    else:
        within = np.flatnonzero(scores <= cut if metric == "l2" else scores >= cut)
    ids = [id_at(shards, place) for place in places[within].tolist()]
    sign = 1.0 if metric == "l2" else -1.0
    order = sorted(range(len(within)), key=lambda j: (sign * float(scores[within[j]]), ids[j]))
    chosen = within[order[: len(best)]]
    columns[: len(chosen)] = chosen
    best[: len(chosen)] = scores[chosen]


def id_at(shards: tuple[ShardView, ...], place: int) -> int | str:
    """Return the id at a place."""
    return shards[place >> SHARD_SHIFT].id_of(place & _ROW_MASK)


def payload_at(shards: tuple[ShardView, ...], place: int) -> bytes:
    """Return the payload at a place, as canonical JSON."""
    return shards[place >> SHARD_SHIFT].payload_of(place & _ROW_MASK)


def vector_at(shards: tuple[ShardView, ...], place: int) -> npt.NDArray[np.float32]:
    """Return a copy of the vector at a place, as it was given."""
    vector: npt.NDArray[np.float32] = shards[place >> SHARD_SHIFT].rows.vectors.data[place & _ROW_MASK].copy()
    return vector


def ids_at(shards: tuple[ShardView, ...], places: RowNumbers, strings: bool) -> npt.NDArray[Any]:
    """Return the ids at places (any shape): int64 padded with -1, or object padded with None."""
    if not strings:
        if len(shards) == 1:
            codes = shards[0].rows.codes
            there = places >= 0
            if there.all():
                return codes[places].view(np.int64)
            # Only rows of extents have memory behind them: no other number may be read, not even to be thrown away.
            ids = np.full(places.shape, -1, np.int64)
            ids[there] = codes[places[there]].view(np.int64)
            return ids
        flat = [-1 if place < 0 else id_at(shards, place) for place in places.ravel().tolist()]
        return np.array(flat, np.int64).reshape(places.shape)
    named = np.empty(places.size, object)
    named[:] = [None if place < 0 else id_at(shards, place) for place in places.ravel().tolist()]
    return named.reshape(places.shape)
