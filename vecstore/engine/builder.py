"""The builder: a thread that seals, merges, rewrites and retrains, off the path of every request.

It works from views and never holds up a write. What it makes is put in place by the committer between two groups. A
crash at any moment costs work, no data: files that no checkpoint names are removed on the next open.

A shard tends towards one large sealed segment, one small one that takes in frozen extents, and the growing extent:

1. frozen extents are sealed into the small segment: their rows are encoded and added to a copy of its index;
2. when the small segment is full it becomes the large one, or is merged into it; rows stay where they are;
3. a segment whose rows grew fourfold since it was trained is trained again;
4. a segment with too many dead rows is rewritten: its live rows are copied to new extents;
5. a segment that has lost its index file gets a new one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..config import DEAD_SHARE_MAX, EXACT_ROWS_MAX, EXTENT_ROWS, SMALL_SEGMENT_ROWS_MAX, Config
from ..errors import Closed, DeadlineExceeded, Unavailable
from ..index import curve, kinds
from ..index.base import Index
from ..index.base import Rows as RowNumbers
from ..metrics import Metrics
from ..record import IdKind
from ..storage.catalog import Definition
from .columns import Columns
from .committer import Committer
from .extent import Extent, ExtentFile, Slot, settled, write_file
from .folder import IndexFolder
from .mapping import trim_memory
from .rows import Rows
from .segment import Segment, row_map, rows_of
from .state import State
from .view import Growing, ShardView

__all__ = ["Builder"]

_log = logging.getLogger("vecstore")

_IDLE_S = 0.5
_NICENESS = 10
_PAUSE_S_MAX = 60.0
_RETRAIN_GROWTH = 4
_MEASURE_GROWTH = 1.25
_SEED = 20_240_229


@dataclass(frozen=True, slots=True)
class _Job:
    """A shard to be worked on, as a view shows it. `whole` asks for one segment with everything in it."""

    definition: Definition
    number: int
    shard: ShardView
    whole: bool


class Builder:
    """Owns the background work on segments. `wake` and `optimize` may be called from any thread.

    Attributes
    ----------
    progress
        Notified whenever a piece of work is done, or fails.
    failed
        The error of the last attempt, None while all is well. Work is tried again, ever more seldom.
    """

    def __init__(
        self, state: State, committer: Committer, folder: IndexFolder, config: Config, metrics: Metrics
    ) -> None:
        self._state, self._committer, self._folder = state, committer, folder
        self._config, self._metrics = config, metrics
        self._wanted: set[int] = set()
        self._wake = threading.Event()
        self._closing = False
        self.progress = threading.Condition()
        self.failed: BaseException | None = None
        self._thread = threading.Thread(target=self._loop, name="vecstore-builder", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def wake(self) -> None:
        """Say that there may be work."""
        self._wake.set()

    def close(self) -> None:
        """Stop after the piece of work under way."""
        self._closing = True
        self._wake.set()
        self._thread.join()

    # -- callers' side -----------------------------------------------------------------------------------------------

    def optimize(self, number: int, progress: Callable[[int, int], None] | None, deadline_s: float | None) -> None:
        """Wait until every row that a collection has now is sealed, merged and indexed."""
        definition = self._state.view.collections[number].state.definition
        self._committer.run(lambda: self._freeze(number, definition), publishes=True)
        with self.progress:
            self._wanted.add(number)
        self._wake.set()
        try:
            while True:
                with self.progress:
                    view = self._state.view.collections.get(number)
                    if view is None or self.failed is not None or self._closing:
                        break
                    done, total, ready = _state_of(definition, view.shards)
                    if ready:
                        break
                    if not self.progress.wait(min(0.5, _left(deadline_s))) and _left(deadline_s) <= 0:
                        raise DeadlineExceeded("the time given ran out before all rows were indexed")
                if progress is not None:
                    progress(done, total)
        finally:
            with self.progress:
                self._wanted.discard(number)
        if self.failed is not None:
            raise Unavailable(f"building failed: {self.failed}", hint="it is tried again") from self.failed
        if self._closing:
            raise Closed("the store is closed")
        if progress is not None and view is not None:
            _, total, _ = _state_of(definition, view.shards)
            progress(total, total)

    def _freeze(self, number: int, definition: Definition) -> None:
        for shard in self._state.shards.get(number, []):
            if kinds.plan(definition.index, shard.sealed.rows + shard.unsealed_rows, definition.dim) is not None or (
                definition.index == "flat"
            ):
                shard.freeze()
        self._state.touch(number)

    # -- the loop ----------------------------------------------------------------------------------------------------

    def _loop(self) -> None:
        # Who waits for an answer goes first: on Linux a priority is a thread's own.
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
        pause_s = _IDLE_S
        built = False
        while not self._closing:
            try:
                worked = self._work()
            except Closed:
                return
            except BaseException as exc:  # noqa: BLE001  (whatever it is, who waits must hear of it)
                self.failed = exc
                with self.progress:
                    self.progress.notify_all()
                if self._committer.broken is not None:
                    return
                pause_s = min(2 * pause_s, _PAUSE_S_MAX)
                _log.exception("building failed; rows are scanned until it succeeds, tried again in %.0f s", pause_s)
                self._pause(pause_s)
                continue
            self.failed, pause_s = None, _IDLE_S
            if not worked:
                if built:
                    trim_memory()
                self._wake.wait(_IDLE_S)
                self._wake.clear()
            built = worked

    def _pause(self, pause_s: float) -> None:
        """Wait after an error, though there is work: what failed may need time to mend. `close` ends it."""
        until_s = time.monotonic() + pause_s
        while not self._closing and (left_s := until_s - time.monotonic()) > 0:
            self._wake.clear()
            self._wake.wait(min(left_s, _IDLE_S))

    def _work(self) -> bool:
        """Do one piece of work, if there is any; report whether there was."""
        worked = False
        for number in list(self._state.view.collections):
            view = self._state.view.collections.get(number)
            if view is None:
                continue
            whole = number in self._wanted
            for i, shard in enumerate(view.shards):
                if self._closing:
                    return False
                with self._folder.making() as names, self._metrics.build_s.time():
                    try:
                        done = self._step(_Job(view.state.definition, i, shard, whole), names)
                    except FileNotFoundError:
                        if number in self._state.view.collections:
                            raise
                        # Dropped meanwhile, and its files with it.
                        break
                worked = worked or done
                if done:
                    with self.progress:
                        self.progress.notify_all()
        return worked

    def _step(self, job: _Job, names: set[str]) -> bool:
        rows = job.shard.sealed.rows + sum(growing.rows for growing in job.shard.growing)
        scanned = job.definition.index != "flat" and kinds.plan(job.definition.index, rows, job.definition.dim) is None
        if scanned and not job.shard.sealed.segments:
            return False
        frozen = [g for g in job.shard.growing if _is_frozen(job.shard, g)]
        if frozen:
            self._seal(job, [g.extent for g in frozen], names)
            return True
        return self._tidy(job, names)

    def _tidy(self, job: _Job, names: set[str]) -> bool:
        """Merge, rewrite or rebuild one segment, if one needs it."""
        sealed = job.shard.sealed
        for segment, dead in zip(sealed.segments, sealed.dead, strict=True):
            if _is_wasteful(segment, dead):
                self._rewrite(job, segment, names)
                return True
            if segment.index is None and _plan(job, segment.rows) is not None:
                self._place(job, self._indexed(job, segment.extents, segment.rows, None), [segment], {})
                self._metrics.rebuilt.inc()
                return True
        full = [s for s in sealed.segments if s.rows + EXTENT_ROWS > SMALL_SEGMENT_ROWS_MAX]
        chosen = sealed.segments if job.whole else full
        if len(chosen) > 1:
            self._merge(job, chosen)
            return True
        for segment in sealed.segments:
            plan = _plan(job, segment.rows)
            if job.whole and plan is not None and segment.index is not None and _is_stale(segment, plan):
                self._place(job, self._indexed(job, segment.extents, segment.rows, segment), [segment], {})
                return True
            if _needs_curve(segment, job.whole):
                self._measure(job, segment)
                return True
        return False

    # -- pieces of work ----------------------------------------------------------------------------------------------

    def _seal(self, job: _Job, extents: list[Extent], names: set[str]) -> None:
        """Take frozen extents into the small segment, or begin one."""
        small = next((s for s in job.shard.sealed.segments if s.rows + EXTENT_ROWS <= SMALL_SEGMENT_ROWS_MAX), None)
        room = (SMALL_SEGMENT_ROWS_MAX - (small.rows if small else 0)) // EXTENT_ROWS
        taken: dict[Extent, Extent] = {}
        for extent in extents[: max(1, room)]:
            entry = extent.saved
            if entry is None or entry.rows != extent.rows:
                name = self._folder.new_name(names, "extent")
                start = extent.start
                fields = job.shard.columns.dump(start, start + extent.rows)
                entry = write_file(self._folder.path, name, job.shard.rows, extent, extent.rows, fields)
            else:
                names.add(entry.name)
            taken[extent] = settled(self._folder.path, extent, entry)
        before = small.extents if small else ()
        new = tuple(taken.values())
        segment = self._grown(job, small, before, new)
        self._place(job, segment, [small] if small else [], taken)

    def _grown(self, job: _Job, base: Segment | None, before: tuple[Extent, ...], new: tuple[Extent, ...]) -> Segment:
        """Return a segment of `before`, which `base` covers, and new extents."""
        extents = (*before, *new)
        rows = sum(extent.rows for extent in extents)
        plan = _plan(job, rows)
        if plan is None:
            return self._segment(job, extents, None, rows)
        if base is None or base.index is None or rows >= _RETRAIN_GROWTH * base.trained_rows or _is_worn(base, plan):
            return self._indexed(job, extents, rows, base)
        index = base.index.added(rows_of(new), job.shard.rows.vectors)
        return replace(self._segment(job, extents, index, base.trained_rows), measured_rows=base.measured_rows)

    def _indexed(self, job: _Job, extents: tuple[Extent, ...], rows: int, base: Segment | None) -> Segment:
        """Train an index over extents, sharing the shard's codebook unless it is stale, and fill it."""
        plan = _plan(job, rows)
        assert plan is not None
        start = None
        donors = [s for s in job.shard.sealed.segments if s.index is not None and s.index.kind == plan.kind]
        donor = base if base is not None and base.index is not None else max(donors, key=lambda s: s.rows, default=None)
        if donor is not None and donor.index is not None and rows < _RETRAIN_GROWTH * donor.trained_rows:
            start = donor.index.training()
        numbers = rows_of(extents)
        vectors = job.shard.rows.vectors
        empty = kinds.train(
            plan, vectors.metric, vectors, numbers, seed=_SEED, threads=self._config.build_thread_count(), start=start
        )
        trained = donor.trained_rows if start is not None and donor is not None else rows
        return self._segment(job, extents, empty.added(numbers, vectors), trained)

    def _segment(self, job: _Job, extents: tuple[Extent, ...], index: Index | None, trained: int) -> Segment:
        first = None if index is None else curve.table(index.kind, index.lists, job.definition.dim)
        rows = sum(extent.rows for extent in extents)
        return Segment(uuid.uuid4().hex, extents, index, first, row_map(job.shard.rows, extents), rows, trained)

    def _merge(self, job: _Job, segments: Sequence[Segment]) -> None:
        """Make one segment of several. Rows stay where they are."""
        largest, *others = sorted(segments, key=lambda segment: -segment.rows)
        new = tuple(extent for segment in others for extent in segment.extents)
        self._place(job, self._grown(job, largest, largest.extents, new), segments, {})

    def _measure(self, job: _Job, segment: Segment) -> None:
        """Measure what efforts give which recall."""
        assert segment.index is not None
        vectors = job.shard.rows.vectors
        live = job.shard.sealed.live
        numbers = rows_of(segment.extents)
        numbers = numbers[(live[numbers >> 3] >> (numbers & 7).astype(np.uint8)) & 1 == 1]
        measured = curve.measure(
            segment.index, vectors.metric, vectors, numbers, threads=self._config.build_thread_count(), seed=_SEED
        )
        self._place(job, replace(segment, curve=measured, measured_rows=segment.rows, _efforts={}), [segment], {})

    def _rewrite(self, job: _Job, segment: Segment, names: set[str]) -> None:
        """Copy the live rows of a segment to new extents."""
        shard, live = job.shard, job.shard.sealed.live
        numbers = rows_of(segment.extents)
        old = numbers[(live[numbers >> 3] >> (numbers & 7).astype(np.uint8)) & 1 == 1]
        kind = segment.extents[0].id_kind
        entries = [
            self._copied(job, old[start : start + EXTENT_ROWS], kind, names)
            for start in range(0, len(old), EXTENT_ROWS)
        ]

        def admit() -> tuple[tuple[Extent, ...], ShardView] | None:
            shards = self._state.shards.get(job.definition.id)
            if shards is None:
                return None
            extents = tuple(shards[job.number].admit(entry, kind) for entry in entries)
            return extents, shards[job.number].view()

        admitted = self._committer.run(admit)
        if admitted is None:
            return
        extents, fresh = admitted
        job = replace(job, shard=replace(fresh, sealed=shard.sealed))
        plan = _plan(job, len(old))
        rows = len(old)
        scanned = plan is None or not rows
        built = self._segment(job, extents, None, rows) if scanned else self._indexed(job, extents, rows, segment)
        new = rows_of(extents)

        def swap() -> None:
            shards = self._state.shards.get(job.definition.id)
            if shards is not None:
                shards[job.number].rewrite(built, [segment], old, new)
                self._state.touch(job.definition.id)

        self._committer.run(swap, publishes=True)

    def _copied(self, job: _Job, old: RowNumbers, kind: IdKind, names: set[str]) -> ExtentFile:
        """Write rows to a new extent's file."""
        shard = job.shard
        scratch = Rows(shard.rows.dim, shard.rows.metric, EXTENT_ROWS)
        scratch.map_memory(0)
        span = slice(0, len(old))
        vectors = shard.rows.vectors
        norms = None if vectors.inverse_norms is None else vectors.inverse_norms[old]
        scratch.write(span, vectors.data[old], shard.rows.codes[old], shard.rows.lsns[old], norms)
        extent = Extent.growing(Slot(0, deque()), kind)
        places = [(shard.extents[row // EXTENT_ROWS], row % EXTENT_ROWS, row) for row in old.tolist()]
        keys = [e.key_of(i, int(shard.rows.codes[row])) for e, i, row in places if e is not None]
        payloads = [e.payloads[i] for e, i, _ in places if e is not None]
        extent.append(keys, payloads, 4 * shard.rows.dim)
        columns = Columns(job.definition.fields, EXTENT_ROWS)
        columns.put(0, payloads)
        name = self._folder.new_name(names, "extent")
        return write_file(self._folder.path, name, scratch, extent, len(old), columns.dump(0, len(old)))

    def _place(self, job: _Job, segment: Segment, replaced: Sequence[Segment], taken: dict[Extent, Extent]) -> None:
        """Let the committer put a segment in place of others, unless the collection is gone."""

        def swap() -> None:
            shards = self._state.shards.get(job.definition.id)
            if shards is not None:
                shards[job.number].seal(segment, replaced, taken)
                self._state.touch(job.definition.id)

        self._committer.run(swap, publishes=True)


def _plan(job: _Job, rows: int) -> kinds.Plan | None:
    kind = job.definition.index
    # A segment of an automatic index has one from the first: its shard has grown beyond what is scanned.
    return kinds.plan(kind, max(rows, EXACT_ROWS_MAX + 1) if kind == "auto" else rows, job.definition.dim)


def _is_frozen(shard: ShardView, growing: Growing) -> bool:
    """Whether an extent takes no more rows, all of which the view shows."""
    if growing.rows != growing.extent.rows:
        return False
    return growing is not shard.growing[-1] or growing.extent.closed or growing.rows >= EXTENT_ROWS


def _is_wasteful(segment: Segment, dead: int) -> bool:
    """Whether rewriting gives back enough: dead rows, or slots that are far from full."""
    live = segment.rows - dead
    slots = -(-live // EXTENT_ROWS)
    return dead > DEAD_SHARE_MAX * segment.rows or len(segment.extents) > 2 * slots + 2


def _is_stale(segment: Segment, plan: kinds.Plan) -> bool:
    """Whether a segment's lists are far from what its rows call for now."""
    return segment.rows >= _RETRAIN_GROWTH * segment.trained_rows or _is_worn(segment, plan)


def _is_worn(segment: Segment, plan: kinds.Plan) -> bool:
    assert segment.index is not None
    lists = segment.index.lists
    return plan.lists > 2 * lists or lists > 2 * plan.lists


def _needs_curve(segment: Segment, whole: bool) -> bool:
    """Whether to measure a curve: until then a table serves, which costs more than most data needs.

    A segment that grows is measured again when it has grown by a quarter, so that a steady trickle of writes does not
    keep a core busy with measuring.
    """
    if segment.index is None or segment.measured:
        return False
    return whole or segment.rows >= _MEASURE_GROWTH * segment.measured_rows


def _state_of(definition: Definition, shards: tuple[ShardView, ...]) -> tuple[int, int, bool]:
    """Return rows done, rows in all, and whether nothing is left to do."""
    done = total = 0
    ready = True
    for i, shard in enumerate(shards):
        growing = sum(g.rows for g in shard.growing if _is_frozen(shard, g))
        sealed = sum(segment.rows for segment in shard.sealed.segments)
        done, total = done + sealed, total + sealed + growing
        job = _Job(definition, i, shard, True)
        scanned = definition.index != "flat" and not shard.sealed.segments and _all_plan(job) is None
        ready = ready and (scanned or (not growing and _is_done(job)))
    return done, total, ready


def _all_plan(job: _Job) -> kinds.Plan | None:
    rows = job.shard.sealed.rows + sum(growing.rows for growing in job.shard.growing)
    return kinds.plan(job.definition.index, rows, job.definition.dim)


def _is_done(job: _Job) -> bool:
    sealed = job.shard.sealed
    if len(sealed.segments) > 1:
        return False
    for segment, dead in zip(sealed.segments, sealed.dead, strict=True):
        plan = _plan(job, segment.rows)
        if _is_wasteful(segment, dead) or _needs_curve(segment, True):
            return False
        if plan is not None and (segment.index is None or _is_stale(segment, plan)):
            return False
    return True


def _left(deadline_s: float | None) -> float:
    return float("inf") if deadline_s is None else deadline_s - time.monotonic()
