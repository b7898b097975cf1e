"""The committer: the one thread that writes. It takes all calls that wait, and makes them durable with one sync.

A group goes: stage a record of each call (see `staging`); write the log; sync once, and meanwhile prepare what follows;
write points; publish the view; answer. Nothing is written before the whole record is known to be good, so a bad call is
refused and changes nothing.

After any error of a write or sync the outcome of the group is unknown: the store stops writing for good, reads go on
with the last view, and only a reopen settles what became of each waiting call.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

from ..clock import CommitClock
from ..config import Config
from ..errors import Closed, Exhausted, NotPrimary, Overloaded, Unavailable
from ..metrics import Metrics
from ..record import NO_REQUEST, Record
from ..storage.base import Family, KeyValueStore, Stalled
from ..storage.catalog import Epoch
from ..storage.fold import Staged
from ..storage.witness import Witness, WitnessMark
from ..values import Written
from .apply import Ahead, Applier, Finished, runs
from .calls import Call, Command
from .group import Group
from .halts import Halts
from .history import History
from .resolve import Resolver
from .settled import Settled
from .staging import Stager
from .state import State

__all__ = ["Committer"]

_LOG_CHUNKS_PER_WRITE = 4
_STALLED_S = 0.05


class Committer:
    """Owns everything that writes. `submit` and `run` may be called from any thread.

    Attributes
    ----------
    durable_lsn
        Every record up to it is synced.
    broken
        The error that ended writing; None while all is well.
    tip
        The last record that was written to the log; it need not be durable.
    held
        Makes the error that writes are refused with; None while they are taken.
    is_fenced
        Nothing is acknowledged any more: what was being written when it began is answered as unknown.
    replicated_lsn
        Every record up to it is durable on the synchronous standby, as far as this store was told.
    halts
        What is done where records that are appended come to an LSN.
    on_durable
        Called after `durable_lsn` has moved, on_records with records that were written; both by the committer's
        thread, which waits for them.
    """

    def __init__(
        self,
        state: State,
        store: KeyValueStore,
        witness: Witness,
        history: History,
        clock: CommitClock,
        wall_us: Callable[[], int],
        config: Config,
        path: str,
        metrics: Metrics,
    ) -> None:
        self._state, self._store, self._witness, self._history = state, store, witness, history
        self._config, self._metrics = config, metrics
        self.settled = Settled()
        resolver = Resolver(state)
        self._stager = Stager(state, resolver, self.settled, history, clock, wall_us, config, path)
        self._queue: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        self._left: Call | None = None
        self._lock = threading.Lock()
        self._pending_calls = 0
        self._pending_bytes = 0
        self._closing = False
        self.durable_lsn = state.fold.tip.lsn
        self.tip = state.fold.tip
        self.applied = threading.Condition()
        self.broken: BaseException | None = None
        self.held: Callable[[], NotPrimary] | None = None
        self.is_fenced = False
        self.replicated_lsn = 0
        self.on_durable: Callable[[], None] | None = None
        self.on_records: Callable[[Sequence[Record]], None] | None = None
        self._ahead = Ahead()
        self.halts = Halts(self.run, lambda: state.fold.tip.lsn)
        self._applier = Applier(state, store, resolver, clock, wall_us, config, self, self.halts)
        self._syncer = ThreadPoolExecutor(1, thread_name_prefix="vecstore-sync")
        self._sync_begins = threading.Semaphore(0)
        self._thread = threading.Thread(target=self._loop, name="vecstore-committer", daemon=True)

    def start(self) -> None:
        """Begin to take calls."""
        self._thread.start()

    def watch_memory(self, used_bytes: Callable[[], int]) -> None:
        """Say how to learn what the store holds in memory."""
        self._stager.used_bytes = used_bytes

    # -- callers' side -----------------------------------------------------------------------------------------------

    def submit(self, call: Call) -> Any:
        """Hand a call over and wait for its answer.

        Raises
        ------
        Overloaded
            Too much waits already.
        """
        with self._lock:
            self._refuse_if_stopped(call)
            if (
                self._pending_calls >= self._config.pending_calls_max
                or self._pending_bytes + call.bytes > self._config.pending_bytes_max
            ):
                self._metrics.shed.inc()
                raise Overloaded(
                    f"{self._pending_calls} writes of {self._pending_bytes} bytes wait already",
                    hint="back off and try again",
                    retry_after_s=0.1,
                    details={"limit": "pending_calls_max, pending_bytes_max"},
                )
            self._pending_calls += 1
            self._pending_bytes += call.bytes
            self._queue.put(call)
        try:
            return call.result()
        finally:
            with self._lock:
                self._pending_calls -= 1
                self._pending_bytes -= call.bytes

    def run(self, action: Callable[[], Any], *, publishes: bool = False) -> Any:
        """Run something in the committer's thread between two groups, and return what it returns."""
        if threading.current_thread() is self._thread:
            return action()
        call = Command(run=action, publishes=publishes)
        with self._lock:
            self._refuse_if_stopped(call)
            self._queue.put(call)
        return call.result()

    def _refuse_if_stopped(self, call: Call) -> None:
        if self._closing:
            raise Closed("the store is closed")
        if self.held is not None and not isinstance(call, Command):
            raise self.held()
        if self.broken is not None and not isinstance(call, Command):
            raise Unavailable(
                f"the store stopped writing after an error: {self.broken}",
                hint="close and reopen the store; reads go on meanwhile",
                retryable=False,
            ) from self.broken

    # -- replication's side ------------------------------------------------------------------------------------------

    def hold(self, refusal: Callable[[], NotPrimary]) -> None:
        """Take no writes from now on; what was taken is carried out and acknowledged."""
        self.held = refusal

    def fence(self, refusal: Callable[[], NotPrimary]) -> None:
        """Take no writes and acknowledge none: those under way end as unknown. None is under way on return."""
        self.held = refusal
        self.is_fenced = True
        with self.applied:
            self.applied.notify_all()
        with contextlib.suppress(Closed, Unavailable):
            # A store that stopped or closes has answered already what was under way.
            self.run(lambda: None)

    def open_writes(self) -> None:
        """Take writes, under the log's last epoch."""
        self.is_fenced = False
        self.held = None

    def persist(self, state: bytes, epoch: Epoch | None = None, *, is_synced: bool = True) -> None:
        """Write the replication state; with an epoch, its record behind all that was written, in the same batch.

        Synced with everything before it, unless `is_synced` is False; an epoch always is.
        """
        self._patiently(lambda: self._applier.persist(state, epoch, is_synced))

    def append(self, records: Sequence[Record], *, trust: bool = False) -> None:
        """Write finished records behind the tip, durably, and publish them. From one thread at a time.

        Parameters
        ----------
        trust
            Take digests from the commit marks: the points may be newer than the records.

        Raises
        ------
        Damaged
            One does not follow, is of a kind that is not known, or gives another digest than its mark says. It was not
            written; some before it may have been.
        """
        for run in runs(records, self._config, self._ahead.take):
            self.halts.wait()
            rest: Sequence[Finished] = run
            while rest:
                rest = self._patiently(partial(self._applier.append, rest, trust))

    def decode_ahead(self, records: Sequence[Record]) -> None:
        """Decode records that are to be appended soon, in the calling thread. It takes none of them."""
        self._ahead.decode(records)

    def handover(self, target: str, refusal: Callable[[], NotPrimary]) -> None:
        """Write a handover to a store, durably, behind every write that was taken; none is taken from then on."""
        self._patiently(lambda: self._applier.hand_over(target, refusal))

    def replicated_to(self, lsn: int) -> None:
        """Say up to where the synchronous standby has the log."""
        if lsn > self.replicated_lsn:
            with self.applied:
                self.replicated_lsn = lsn
                self.applied.notify_all()

    def _patiently(self, action: Callable[[], Any]) -> Any:
        """Run something in the committer's thread; again where the disk did not keep up and nothing was written."""
        while True:
            try:
                return self.run(action)
            except Stalled:
                time.sleep(_STALLED_S)

    def close(self) -> None:
        """Finish what waits and stop."""
        with self._lock:
            if self._closing:
                return
            self._closing = True
            self._queue.put(None)
        self._thread.join()
        self.halts.close()
        self._syncer.shutdown()

    # -- the loop ----------------------------------------------------------------------------------------------------

    def _loop(self) -> None:
        while True:
            call = self._left or self._queue.get()
            self._left = None
            if call is None:
                return
            if isinstance(call, Command):
                self._run_command(call)
            else:
                self._run_group(call)

    def _run_command(self, call: Command) -> None:
        try:
            if self.broken is not None:
                raise Unavailable(f"the store stopped writing after an error: {self.broken}", retryable=False)
            result = call.run()
            if call.publishes:
                self.publish()
            call.finish(result)
        except BaseException as exc:  # noqa: BLE001  (whatever it is, who waits must hear of it)
            call.fail(exc)

    def _run_group(self, first: Call) -> None:
        group = Group()
        call: Call | None = first
        before = self._state.fold.position()
        try:
            while call is not None:
                if group.staged and (self._stager.conflicts(call, group) or self._stager.is_full(group)):
                    self._left = call
                    break
                self._add(call, group)
                try:
                    call = self._queue.get_nowait()
                except queue.Empty:
                    break
                if call is None or isinstance(call, Command):
                    # Put back in front: it runs after this group.
                    self._left = call
                    if call is None:
                        self._queue.put(None)
                    break
            self.commit(group)
        except Stalled as exc:
            if group.written:
                self.stop(exc, group)
                return
            # Nothing was written: the records are as if they had never been staged.
            self._state.fold.rewind(before)
            for waiting, _, _ in group.answers:
                waiting.fail(Overloaded(f"the disk does not keep up: {exc}", retry_after_s=1.0))
        except BaseException as exc:  # noqa: BLE001  (whatever it is, who waits must hear of it)
            self.stop(exc, group)

    def _add(self, call: Call, group: Group) -> None:
        """Stage a call's records, or answer it."""
        if self.broken is not None:
            call.fail(Unavailable(f"the store stopped writing after an error: {self.broken}", retryable=False))
            return
        if self.held is not None:
            call.fail(self.held())
            return
        self._stager.add(call, group)

    # -- writing -----------------------------------------------------------------------------------------------------

    def commit(self, group: Group) -> None:
        """Make a group durable, visible and answered. In the committer's thread."""
        if group.staged:
            if not group.written:
                self._write_log(group)
            self.tip = self._state.fold.tip
            syncing = self._begin_sync() if group.durable else None
            # While the disk works: what no view shows yet, and what is not written before the sync is done.
            fold = self._state.fold
            batches = [self._store.prepare(b) for b in fold.batches(group.staged, self._config.write_points_max)]
            self._apply(group)
            if syncing is not None:
                syncing.result()
                self._note_durable(group.staged[-1])
            for batch in batches:
                self._store.write(batch, logged=False)
            fold.settle()
            self.publish()
        elif group.durable and self.durable_lsn < self._state.fold.tip.lsn:
            self.sync()
        self._answer(group)

    def _write_log(self, group: Group) -> None:
        for staged in group.staged:
            piece: list[tuple[Family, bytes, bytes | None]] = []
            for key, value in staged.record.chunks():
                piece.append((Family.LOG, key, value))
                if len(piece) == _LOG_CHUNKS_PER_WRITE:
                    self._store.write(piece)
                    group.written, piece = True, []
            if piece:
                self._store.write(piece)
                group.written = True
            self._metrics.log_bytes.inc(staged.record.size)

    def _begin_sync(self) -> Future[None]:
        """Let the other thread sync, and go on only when it does.

        A thread that just became ready would wait for the interpreter lock for a whole switch interval, since what
        follows here never blocks: the disk would stand still meanwhile. It is given the lock here, and lets go of it
        in the sync.
        """
        syncing = self._syncer.submit(self._timed_sync)
        self._sync_begins.acquire()
        return syncing

    def _timed_sync(self) -> None:
        with self._metrics.sync_s.time():
            self._sync_begins.release()
            self._store.sync()

    def _note_durable(self, last: Staged) -> None:
        header, mark = last.record.header, last.record.mark
        self.durable_lsn = header.lsn
        self._witness.record(WitnessMark(header.lsn, mark.chain, header.epoch))
        if self.on_durable is not None:
            self.on_durable()

    def sync(self, *, always: bool = False) -> None:
        """Make all records that were written durable; `always`, also what else was. In the committer's thread."""
        tip = self._state.fold.tip
        if always or self.durable_lsn < tip.lsn:
            self._store.sync()
        if self.durable_lsn < tip.lsn:
            self.durable_lsn = tip.lsn
            self._witness.record(WitnessMark(tip.lsn, tip.chain, tip.epoch))
            if self.on_durable is not None:
                self.on_durable()

    def _apply(self, group: Group) -> None:
        """Put a group's rows into the shards. They are seen with the next view."""
        for i, staged in enumerate(group.staged):
            self._state.apply(staged, group.located.get(i))
            self._history.append(staged.record)
        if self.on_records is not None:
            self.on_records([staged.record for staged in group.staged])

    def publish(self) -> None:
        """Let readers see what was applied. In the committer's thread."""
        self._state.publish()
        with self.applied:
            self.applied.notify_all()

    def _answer(self, group: Group) -> None:
        tip = self._state.fold.tip
        for call, lsn, count in group.answers:
            durable = call.ack != "memory"
            if self.is_fenced:
                self._answer_fenced(call, lsn)
                continue
            if lsn is None and not call.lsn:
                call.lsn, call.token = tip.lsn, self._history.token(tip.epoch, tip.lsn, tip.chain)
                if call.request_id != NO_REQUEST:
                    self.settled.nothing(call.request_id, call.lsn, call.token)
            call.wrote = lsn is not None
            call.finish(
                Written(
                    call.lsn if lsn is None else lsn,
                    count,
                    call.token if durable else "",
                    "durable" if durable else "memory",
                )
            )

    def _answer_fenced(self, call: Call, lsn: int | None) -> None:
        """Answer a call that was under way when the fence began: what has a record may be lost or not."""
        refusal = self.held() if self.held is not None else NotPrimary("this store was fenced")
        if lsn is None:
            call.fail(refusal)
            return
        call.fail(
            NotPrimary(
                f"what becomes of this write is not known: {refusal.args[0]}",
                primary=refusal.primary,
                outcome="unknown",
                hint="ask the primary with Database.wait(details['token']), or try again with the same request id",
                details={"token": call.token},
            )
        )

    def stop(self, exc: BaseException, group: Group) -> None:
        """End writing: what became of the group is not known."""
        self.broken = exc
        self._metrics.broken.set(1)
        for call, _, _ in group.answers:
            kind = type(exc) if isinstance(exc, Exhausted) else Unavailable
            error = kind(
                f"writing failed, and what became of this write is not known: {exc}",
                outcome="unknown",
                hint="close and reopen the store, then ask Database.wait(details['token'])",
                details={"token": call.token},
                retryable=False,
            )
            if not call.token:
                # It has no record: nothing of it can have been written.
                error = kind(f"writing failed: {exc}", hint="close and reopen the store", retryable=False)
            error.__cause__ = exc
            call.fail(error)
        with self.applied:
            self.applied.notify_all()
