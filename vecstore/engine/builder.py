"""The builder: two threads that seal, and merge, rewrite and retrain, off the path of every request.

They work from views and never hold up a write. What they make is put in place by the committer between two groups. A
crash at any moment costs work, no data: files that no checkpoint names are removed on the next open.

Sealing has a thread of its own, at the priority of requests: rows that are not sealed are compared by every search, and
a merge of large segments takes seconds. A segment is claimed by the thread that makes another of it; rows that are
sealed meanwhile go to the next small segment.

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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

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
_QUIET_S = 1.0
"""Where nothing was sealed for so long, small segments are measured, and memory is given back."""
_LULL_S = 0.25
"""The same for segments that take in no more: while many rows come in, they are merged before long."""
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


@dataclass(frozen=True, slots=True)
class _Piece:
    """Work to be done: the segments that it replaces, and what makes the new one, given names of files to protect."""

    segments: Sequence[Segment]
    make: Callable[[set[str]], None]


@dataclass(slots=True, eq=False)
class _Worker:
    """One of the threads: what it does on a shard of a collection, and how that went."""

    name: str
    niceness: int
    step: Callable[[int, int, set[str]], bool]
    wake: threading.Event = field(default_factory=threading.Event)
    failed: BaseException | None = None
    thread: threading.Thread = field(default_factory=threading.Thread)


class Builder:
    """Owns the background work on segments. `wake` and `optimize` may be called from any thread.

    Attributes
    ----------
    progress
        Notified whenever a piece of work is done, or fails.
    """

    def __init__(
        self, state: State, committer: Committer, folder: IndexFolder, config: Config, metrics: Metrics
    ) -> None:
        self._state, self._committer, self._folder = state, committer, folder
        self._config, self._metrics = config, metrics
        self._wanted: set[int] = set()
        self._closing = False
        self._claims = threading.Lock()
        self._claimed: set[Segment] = set()
        self._sealed_s: dict[tuple[int, int], float] = {}
        self.progress = threading.Condition()
        self._sealer = _Worker("vecstore-sealer", 0, self._seal_one)
        self._tidier = _Worker("vecstore-builder", _NICENESS, self._tidy_one)
        for worker in (self._sealer, self._tidier):
            worker.thread = threading.Thread(target=self._loop, args=(worker,), name=worker.name, daemon=True)

    @property
    def failed(self) -> BaseException | None:
        """The error of the last attempt, None while all is well. Work is tried again, ever more seldom."""
        return self._sealer.failed or self._tidier.failed

    def start(self) -> None:
        """Begin to work."""
        for worker in (self._sealer, self._tidier):
            worker.thread.start()

    def wake(self) -> None:
        """Say that there may be work."""
        for worker in (self._sealer, self._tidier):
            worker.wake.set()

    def close(self) -> None:
        """Stop after the pieces of work under way."""
        self._closing = True
        self.wake()
        for worker in (self._sealer, self._tidier):
            worker.thread.join()

    # -- callers' side -----------------------------------------------------------------------------------------------

    def optimize(self, number: int, progress: Callable[[int, int], None] | None, deadline_s: float | None) -> None:
        """Wait until every row that a collection has now is sealed, merged and indexed."""
        definition = self._state.view.collections[number].state.definition
        self._committer.run(lambda: self._freeze(number, definition), publishes=True)
        with self.progress:
            self._wanted.add(number)
        self.wake()
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

    def _loop(self, worker: _Worker) -> None:
        # Who waits for an answer goes first: on Linux a priority is a thread's own.
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), worker.niceness)
        pause_s = _IDLE_S
        built = False
        while not self._closing:
            try:
                worked = self._work(worker)
            except Closed:
                return
            except BaseException as exc:  # noqa: BLE001  (whatever it is, who waits must hear of it)
                worker.failed = exc
                with self.progress:
                    self.progress.notify_all()
                if self._committer.broken is not None:
                    return
                pause_s = min(2 * pause_s, _PAUSE_S_MAX)
                _log.exception("building failed; rows are scanned until it succeeds, tried again in %.0f s", pause_s)
                self._pause(worker, pause_s)
                continue
            worker.failed, pause_s = None, _IDLE_S
            if not worked:
                # It holds up whoever asks for memory meanwhile.
                if built and _is_past(max(self._sealed_s.values(), default=None)):
                    trim_memory()
                    built = False
                worker.wake.wait(_IDLE_S)
                worker.wake.clear()
            built = built or worked

    def _pause(self, worker: _Worker, pause_s: float) -> None:
        """Wait after an error, though there is work: what failed may need time to mend. `close` ends it."""
        until_s = time.monotonic() + pause_s
        while not self._closing and (left_s := until_s - time.monotonic()) > 0:
            worker.wake.clear()
            worker.wake.wait(min(left_s, _IDLE_S))

    def _work(self, worker: _Worker) -> bool:
        """Do one piece of work on each shard that has any; report whether there was."""
        worked = False
        for number in list(self._state.view.collections):
            view = self._state.view.collections.get(number)
            for i in range(len(view.shards) if view is not None else 0):
                if self._closing:
                    return False
                with self._folder.making() as names:
                    try:
                        done = worker.step(number, i, names)
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

    @contextlib.contextmanager
    def _claiming(self, number: int, i: int, choose: Callable[[_Job], _Piece | None]) -> Iterator[_Piece | None]:
        """Choose a piece of work, and keep the other thread off its segments until it is done and can be seen."""
        piece = None
        with self._claims:
            view = self._state.view.collections.get(number)
            if view is not None:
                piece = choose(_Job(view.state.definition, i, view.shards[i], number in self._wanted))
            if piece is not None:
                self._claimed.update(piece.segments)
        if piece is None:
            yield None
            return
        try:
            with self._metrics.build_s.time():
                yield piece
        finally:
            with self._claims:
                self._claimed.difference_update(piece.segments)

    def _seal_one(self, number: int, i: int, names: set[str]) -> bool:
        with self._claiming(number, i, self._to_seal) as piece:
            if piece is None:
                return False
            piece.make(names)
        self._sealed_s[number, i] = time.monotonic()
        self._tidier.wake.set()
        return True

    def _to_seal(self, job: _Job) -> _Piece | None:
        """Choose frozen extents and the small segment that takes them in, or none, if it is to be a new one."""
        frozen = _frozen(job)
        if not frozen:
            return None
        small = [
            segment
            for segment in job.shard.sealed.segments
            if segment.rows + EXTENT_ROWS <= SMALL_SEGMENT_ROWS_MAX and segment not in self._claimed
        ][:1]
        return _Piece(small, lambda names: self._seal(job, small[0] if small else None, frozen, names))

    def _tidy_one(self, number: int, i: int, names: set[str]) -> bool:
        with self._claiming(number, i, self._to_tidy) as piece:
            if piece is None:
                return False
            piece.make(names)
        return True

    def _to_tidy(self, job: _Job) -> _Piece | None:
        """Choose one segment to rewrite or rebuild, or several to merge, if any needs it."""
        sealed = job.shard.sealed
        if job.whole and (_frozen(job) or not self._claimed.isdisjoint(sealed.segments)):
            # All that waits is sealed first: then there is one merge, not two.
            return None
        free = [(s, dead) for s, dead in zip(sealed.segments, sealed.dead, strict=True) if s not in self._claimed]
        for segment, dead in free:
            if _is_wasteful(segment, dead):
                return _Piece([segment], partial(self._rewrite, job, segment))
            if segment.index is None and _plan(job, segment.rows) is not None:
                return _Piece([segment], partial(self._rebuild, job, segment))
        chosen = [s for s, _ in free if job.whole or _is_full(s)]
        if len(chosen) > 1:
            return _Piece(chosen, lambda _: self._merge(job, chosen))
        sealed_s = self._sealed_s.get((job.definition.id, job.number))
        quiet, lull = job.whole or _is_past(sealed_s), _is_past(sealed_s, _LULL_S)
        for segment, _ in free:
            plan = _plan(job, segment.rows)
            if job.whole and plan is not None and segment.index is not None and _is_stale(segment, plan):
                return _Piece([segment], partial(self._renew, job, segment))
            if (quiet or (lull and _is_full(segment))) and _needs_curve(segment, job.whole):
                return _Piece([segment], partial(self._measure, job, segment))
        return None

    # -- pieces of work ----------------------------------------------------------------------------------------------

    def _rebuild(self, job: _Job, segment: Segment, _names: set[str]) -> None:
        """Give a segment the index that it has lost."""
        self._place(job, self._indexed(job, segment.extents, segment.rows, None), [segment], {})
        self._metrics.rebuilt.inc()

    def _renew(self, job: _Job, segment: Segment, _names: set[str]) -> None:
        """Train a segment's index again."""
        self._place(job, self._indexed(job, segment.extents, segment.rows, segment), [segment], {})

    def _seal(self, job: _Job, small: Segment | None, extents: list[Extent], names: set[str]) -> None:
        """Take frozen extents into the small segment, or begin one."""
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
        index = base.index.added(rows_of(new), job.shard.rows.vectors, self._threads(job))
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
        empty = kinds.train(plan, vectors.metric, vectors, numbers, seed=_SEED, threads=self._threads(job), start=start)
        trained = donor.trained_rows if start is not None and donor is not None else rows
        return self._segment(job, extents, empty.added(numbers, vectors, self._threads(job)), trained)

    def _threads(self, job: _Job) -> int:
        # Asked for at each step: a merge may have begun before somebody waits for it.
        return self._config.build_thread_count(is_awaited=job.definition.id in self._wanted)

    def _segment(self, job: _Job, extents: tuple[Extent, ...], index: Index | None, trained: int) -> Segment:
        first = None if index is None else curve.table(index.kind, index.lists, job.definition.dim)
        rows = sum(extent.rows for extent in extents)
        return Segment(uuid.uuid4().hex, extents, index, first, row_map(job.shard.rows, extents), rows, trained)

    def _merge(self, job: _Job, segments: Sequence[Segment]) -> None:
        """Make one segment of several. Rows stay where they are."""
        largest, *others = sorted(segments, key=lambda segment: -segment.rows)
        new = tuple(extent for segment in others for extent in segment.extents)
        grown = self._grown(job, largest, largest.extents, new)
        if largest.measured:
            # Measured before it is seen: until then a search would skip none of its lists, which takes ten times as
            # long. While a collection is filled nothing was measured yet, and it would be in vain.
            grown = self._measured(job, grown)
        self._place(job, grown, segments, {})

    def _measure(self, job: _Job, segment: Segment, _names: set[str]) -> None:
        """Measure what efforts give which recall."""
        self._place(job, self._measured(job, segment), [segment], {})

    def _measured(self, job: _Job, segment: Segment) -> Segment:
        """Return a segment with a curve of its own, if it has an index."""
        live = job.shard.sealed.live
        numbers = rows_of(segment.extents)
        numbers = numbers[(live[numbers >> 3] >> (numbers & 7).astype(np.uint8)) & 1 == 1]
        if segment.index is None or not len(numbers):
            return segment
        vectors = job.shard.rows.vectors
        threads = self._threads(job)
        measured = curve.measure(segment.index, vectors.metric, vectors, numbers, threads=threads, seed=_SEED)
        return replace(segment, curve=measured, measured_rows=segment.rows)

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


def _frozen(job: _Job) -> list[Extent]:
    """Return the extents that are to be sealed: none while so few rows are scanned."""
    definition = job.definition
    rows = job.shard.sealed.rows + sum(growing.rows for growing in job.shard.growing)
    scanned = definition.index != "flat" and kinds.plan(definition.index, rows, definition.dim) is None
    if scanned and not job.shard.sealed.segments:
        return []
    return [growing.extent for growing in job.shard.growing if _is_frozen(job.shard, growing)]


def _is_full(segment: Segment) -> bool:
    """Whether a segment takes in no more extents."""
    return segment.rows + EXTENT_ROWS > SMALL_SEGMENT_ROWS_MAX


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


def _is_past(moment_s: float | None, after_s: float = _QUIET_S) -> bool:
    """Whether a moment is long enough ago for things to be quiet."""
    return moment_s is None or time.monotonic() - moment_s > after_s


def _left(deadline_s: float | None) -> float:
    return float("inf") if deadline_s is None else deadline_s - time.monotonic()
