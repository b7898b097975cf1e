"""What a worker does with a question about one segment: search, over-fetch, or gather and compare.

An answer is row numbers, which the engine scores again with its own kernel, and for each query the best true score that
any row left out of it can have (`bounds`). Selections are obeyed here: by the index where it can, else by over-fetch,
else by comparing the selected rows.

Not here: processes, pipes (`worker`), and how hard to search (the engine's curve says it). For one thread.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ..values import Metric
from . import overfetch
from .backend import Backend, Built, Find, Mask
from .base import Floats, Rows
from .bounds import HALF_RANGE, TABLE_RANGE, left_out
from .budget import NoRoom, queries_max
from .source import Source

__all__ = ["Answer", "Held", "Question", "Unable", "answered"]

BLOCKS_MAX = 16
SELECTIONS_MAX = 32
GATHERED_BYTES_MAX = 1 << 29
"""Float32 rows of a selection that are gathered for one question at most: more take longer than an answer may."""
_RESCORE_BYTES = 1 << 26
_SCAN_BYTES = 1 << 27


class Unable(Exception):
    """The device cannot answer this question, and says why in a word; the CPU can."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of a segment.

    Attributes
    ----------
    kept
        Rows returned for each query.
    candidates
        Rows taken from the index, at least `kept`; more are scored again in float32 first.
    probes, ef
        Lists to look at (0 for all), width of the walk in a graph.
    selection
        Number of a selection; 0 for all rows.
    exact
        Whether the bounds are needed: what cannot give them is `Unable`.
    """

    kept: int
    candidates: int
    probes: int = 0
    ef: int = 0
    selection: int = 0
    exact: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """Row numbers int64 (q, kept), nearest first by rounded scores, padded with -1; float32 bounds (q,)."""

    rows: Rows
    bounds: Floats


@dataclass(slots=True, eq=False)
class Held:
    """A segment that a device holds, with what is kept of selections for it."""

    name: str
    source: Source
    built: Built
    masks: OrderedDict[int, tuple[Mask, int]] = field(default_factory=OrderedDict)
    blocks: OrderedDict[int, tuple[Any, Rows]] = field(default_factory=OrderedDict)

    def mask(self, number: int, bitmap: npt.NDArray[np.uint8]) -> tuple[Mask, int]:
        """Return the positions that a selection leaves, and how many."""
        found = self.masks.get(number)
        if found is None:
            mask = self.source.mask(bitmap)
            found = self.masks[number] = (mask, int(np.count_nonzero(mask)))
            if len(self.masks) > SELECTIONS_MAX:
                self.masks.popitem(last=False)
        return found

    def forget(self, backend: Backend, number: int) -> None:
        """Let go of a selection."""
        self.masks.pop(number, None)
        if self.blocks.pop(number, None) is not None:
            backend.release(f"{self.name}/{number}")

    def forget_all(self, backend: Backend) -> None:
        """Let go of all selections."""
        for number in {*self.masks, *self.blocks}:
            self.forget(backend, number)


def answered(
    backend: Backend,
    held: Held,
    queries: Floats,
    question: Question,
    bitmap: npt.NDArray[np.uint8] | None,
    scratch_bytes: int,
) -> Answer:
    """Answer a question about one segment for prepared queries (q, dim).

    Raises
    ------
    Unable
        The CPU has to answer.
    NoRoom
        An allocation was not admitted or failed; nothing is changed.
    """
    built, source = held.built, held.source
    asking = _Asking(backend, held, queries, question, scratch_bytes)
    limit = built.rows if built.choice.kind == "flat" else backend.candidates_max
    candidates = min(question.candidates, built.rows)
    if question.selection:
        assert bitmap is not None
        mask, count = held.mask(question.selection, bitmap)
        if not count:
            return asking.nothing()
        if overfetch.scans(candidates, count, built.rows, limit):
            if asking.can_gather(count):
                return asking.scanned(np.flatnonzero(mask), question.selection)
            if built.choice.kind in backend.obedient:
                # A graph of which few rows are wanted misses too many of them.
                raise Unable("rows")
        candidates = min(candidates, count)
    else:
        mask, count = None, built.rows
    if question.exact and built.choice.kind != "flat":
        raise Unable("exact")
    if candidates > limit:
        raise Unable("k")
    if built.is_coarse or (source.metric != "cosine" and _is_beyond(built, queries)):
        raise Unable("range")
    if mask is None or built.choice.kind in backend.obedient:
        scores, places = asking.found(queries, candidates, mask)
        complete = candidates >= count
        return asking.finished(queries, places, None if complete else scores[:, -1])
    return asking.overfetched(mask, count, candidates, limit)


def _is_beyond(built: Built, queries: Floats) -> bool:
    """Return whether float16 does not hold a query, or what an index computes of it."""
    if built.choice.kind == "ivf_pq":
        longest = np.einsum("ij,ij->i", queries, queries, dtype=np.float64).max(initial=0.0)
        return bool(math.sqrt(longest) * built.scale > TABLE_RANGE)
    return bool(np.abs(queries).max(initial=0) * built.scale > HALF_RANGE)


class _Asking:
    """One question about one segment, with what all ways to answer it need."""

    def __init__(self, backend: Backend, held: Held, queries: Floats, question: Question, scratch_bytes: int) -> None:
        self._backend, self._held, self._question = backend, held, question
        self._queries, self._scratch_bytes = queries, scratch_bytes
        self._metric: Metric = held.source.metric
        self._worst = np.float32(np.inf if self._metric == "l2" else -np.inf)

    def nothing(self) -> Answer:
        """Answer that no row is wanted."""
        count = len(self._queries)
        rows = np.full((count, self._question.kept), -1, np.int64)
        return Answer(rows, np.full(count, self._worst, np.float32))

    def can_gather(self, count: int) -> bool:
        """Return whether so many rows can be gathered and compared while somebody waits."""
        return 4 * self._held.source.dim * count <= GATHERED_BYTES_MAX

    def found(self, queries: Floats, width: int, mask: Mask | None) -> tuple[Floats, Rows]:
        """Search, as many queries at once as the scratch has room for."""
        built, question = self._held.built, self._question
        find = Find(width, question.probes, max(question.ef, width) if built.choice.kind == "cagra" else 0)
        step = queries_max(self._scratch_bytes, built.choice.width, width)
        parts = [
            self._backend.search(built, queries[at : at + step], find, mask) for at in range(0, len(queries), step)
        ]
        return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])

    def overfetched(self, mask: Mask, count: int, wanted: int, limit: int) -> Answer:
        """Take ever more candidates for the queries that found too few selected rows among theirs."""
        total = len(self._queries)
        scores = np.full((total, wanted), self._worst, np.float32)
        places = np.full((total, wanted), -1, np.int64)
        last = np.full(total, self._worst, np.float32)
        open_ = np.arange(total)
        rows = self._held.built.rows
        for width in overfetch.widths(wanted, count, rows, limit):
            near, found = self.found(self._queries[open_], width, None)
            allowed = (found >= 0) & mask[np.maximum(found, 0)]
            enough = allowed.sum(axis=1) >= wanted
            if width >= rows:
                enough[:] = True
            taken, at = open_[enough], np.flatnonzero(enough)
            near_taken, found_taken = _packed(near[at], found[at], allowed[at], wanted, self._worst)
            scores[taken], places[taken] = near_taken, found_taken
            if width < rows:
                last[taken] = near[at, -1]
            open_ = open_[~enough]
            if not len(open_):
                return self.finished(self._queries, places, last)
        if not self.can_gather(count):
            raise Unable("rows")
        rest = self.scanned(np.flatnonzero(mask), self._question.selection, open_)
        done = np.setdiff1d(np.arange(total), open_)
        answer = self.finished(self._queries[done], places[done], last[done])
        merged = Answer(np.empty((total, self._question.kept), np.int64), np.empty(total, np.float32))
        merged.rows[done], merged.bounds[done] = answer.rows, answer.bounds
        merged.rows[open_], merged.bounds[open_] = rest.rows, rest.bounds
        return merged

    def scanned(self, positions: Rows, number: int, some: Rows | None = None) -> Answer:
        """Gather the rows at some positions, and compare them in float32."""
        queries = self._queries if some is None else self._queries[some]
        source, kept = self._held.source, self._question.kept
        best = np.full((len(queries), 0), self._worst, np.float32)
        found = np.full((len(queries), 0), -1, np.int64)
        for block, at in self._blocks(positions, number):
            step = queries_max(self._scratch_bytes, source.dim, min(kept, len(at)))
            for first in range(0, len(queries), step):
                scores, columns = self._backend.scan(block, queries[first : first + step], kept)
                if not first:
                    all_scores = np.empty((len(queries), scores.shape[1]), np.float32)
                    all_rows = np.empty(all_scores.shape, np.int64)
                all_scores[first : first + step], all_rows[first : first + step] = scores, at[columns]
            best, found = _nearest(self._metric, np.hstack([best, all_scores]), np.hstack([found, all_rows]), kept)
        last = None if kept >= len(positions) else best[:, -1]
        return self._answer(queries, found, last, half=False)

    def _blocks(self, positions: Rows, number: int) -> Iterator[tuple[Any, Rows]]:
        """Iterate over blocks of gathered rows on the device; a selection that fits one is kept for the next time."""
        held, backend, source = self._held, self._backend, self._held.source
        kept = held.blocks.get(number)
        if kept is not None:
            held.blocks.move_to_end(number)
            yield kept
            return
        step = max(1, _SCAN_BYTES // (4 * source.dim))
        if len(positions) <= step:
            name = f"{held.name}/{number}"
            self._make_room(4 * source.dim * len(positions))
            try:
                block = backend.block(source.metric, source.gathered(positions), name)
            except NoRoom:
                step = max(1, min(step, self._scratch_bytes // 8 // (4 * source.dim)))
            else:
                held.blocks[number] = (block, positions)
                yield block, positions
                return
        for at in range(0, len(positions), step):
            part = positions[at : at + step]
            name = f"{held.name}/part"
            try:
                yield backend.block(source.metric, source.gathered(part), name), part
            finally:
                backend.release(name)

    def _make_room(self, size: int) -> None:
        """Let go of gathered rows that were not asked for lately."""
        held = self._held
        while held.blocks and (len(held.blocks) >= BLOCKS_MAX or self._backend.ledger.free < size):
            number, _ = held.blocks.popitem(last=False)
            self._backend.release(f"{held.name}/{number}")

    def finished(self, queries: Floats, places: Rows, last: Floats | None) -> Answer:
        """Narrow candidates down to what is returned, by scores in float32."""
        kept = self._question.kept
        if places.shape[1] > kept:
            if self._question.exact:
                raise Unable("exact")
            places = self._rescored(queries, places)
        return self._answer(queries, places, last, half=True)

    def _rescored(self, queries: Floats, places: Rows) -> Rows:
        source, kept = self._held.source, self._question.kept
        out = np.empty((len(queries), kept), np.int64)
        step = max(1, min(_RESCORE_BYTES, self._scratch_bytes // 4) // (4 * source.dim * places.shape[1]))
        for at in range(0, len(queries), step):
            some = places[at : at + step]
            vectors = source.gathered(np.maximum(some, 0).ravel()).reshape(*some.shape, source.dim)
            scores = self._backend.rescored(self._metric, vectors, queries[at : at + step])
            scores = np.where(some < 0, self._worst, scores)
            _, out[at : at + step] = _nearest(self._metric, scores, some, kept)
        return out

    def _answer(self, queries: Floats, places: Rows, last: Floats | None, *, half: bool) -> Answer:
        """Return row numbers and bounds; `last` is None where no selected row was left out."""
        source, built, kept = self._held.source, self._held.built, self._question.kept
        if places.shape[1] < kept:
            pad = np.full((len(places), kept - places.shape[1]), -1, np.int64)
            places = np.hstack([places, pad])
        if last is None:
            bounds = np.full(len(queries), self._worst, np.float32)
        else:
            lengths = np.sqrt(np.einsum("ij,ij->i", queries, queries, dtype=np.float64))
            bounds = left_out(
                self._metric,
                last,
                lengths.astype(np.float32),
                built.row_length,
                source.dim,
                half=half,
                scale=built.scale,
            )
        return Answer(source.row_numbers(places), bounds)


def _nearest(metric: Metric, scores: Floats, places: Rows, k: int) -> tuple[Floats, Rows]:
    """Return the k nearest of each row, nearest first."""
    keys = scores if metric == "l2" else -scores
    if keys.shape[1] > k:
        part = np.argpartition(keys, k - 1, axis=1)[:, :k]
        scores, places = np.take_along_axis(scores, part, 1), np.take_along_axis(places, part, 1)
        keys = np.take_along_axis(keys, part, 1)
    order = keys.argsort(axis=1, kind="stable")
    return np.take_along_axis(scores, order, 1), np.take_along_axis(places, order, 1)


def _packed(scores: Floats, places: Rows, allowed: Mask, width: int, worst: np.float32) -> tuple[Floats, Rows]:
    """Return the first allowed of each row, side by side, as many as `width`, then padding."""
    order = np.argsort(~allowed, axis=1, kind="stable")[:, :width]
    there = np.take_along_axis(allowed, order, 1)
    near = np.where(there, np.take_along_axis(scores, order, 1), worst)
    found = np.where(there, np.take_along_axis(places, order, 1), -1)
    if near.shape[1] < width:
        pad = width - near.shape[1]
        near = np.pad(near, ((0, 0), (0, pad)), constant_values=worst)
        found = np.pad(found, ((0, 0), (0, pad)), constant_values=-1)
    return near.astype(np.float32), found
