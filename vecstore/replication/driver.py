"""The driver: one thread that steps a member, and carries out what it says on an engine.

Messages, reports and commands wait in one queue and are taken in order; the member is told the time a few times a
second. Actions are carried out in their order, each before the next: a `Persist` has synced when what stands behind it
begins. What takes long is done by one other thread, which reports when it is done; the member keeps such work apart.

An error that nobody foresaw must not leave a store that goes on as if nothing were: the writer is fenced, replication
stands still, and both are told.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

from ..engine.engine import Engine
from ..engine.slots import Standbys
from ..errors import Closed, Damaged, Exhausted, Unavailable, VecstoreError
from ..record import Record
from . import actions as do
from .coding import encode_state
from .contents import Contents, ReplaceFailed
from .durable import Durable, Timing
from .epochs import Claim, Identity
from .inflow import Inflow
from .messages import (
    ArchiveRead,
    Arriving,
    Checkpointed,
    Command,
    Exported,
    Frame,
    Installed,
    Mended,
    Message,
    NotReplaced,
    Points,
    Report,
    Returned,
    Snapshot,
    Synced,
    Verified,
    WasReset,
)
from .standby import Standby
from .state import Member
from .store_log import StoreLog

__all__ = ["Alarm", "Driver", "Network"]

TICK_S = 0.2
ALARMS_KEPT = 20
_LOG = logging.getLogger("vecstore.replication")
T = TypeVar("T")


class Network(Protocol):
    """The way to other stores. Thread-safe; never waits."""

    def send(self, to: str, message: Message) -> None:
        """Send a message to a store, in order with others to it; it may be lost."""
        ...

    def address(self, store_id: str) -> str:
        """Return where a store was last reached, "" where that is not known."""
        ...


class Alarm(NamedTuple):
    """Something for a human: when, in seconds since the Unix epoch, and what."""

    time_s: float
    text: str


class _Asked(NamedTuple):
    """A command and who waits for its answer."""

    command: Command
    answer: Future[tuple[bool, str]]


class Driver:
    """Steps one member. `receive`, `command`, `run` and `describe` may be called from any thread.

    Parameters
    ----------
    engine
        Open for writing; refuses writes until the member opens it.
    network, contents
        How messages leave, and what is done to the contents.
    state
        The durable state, as it was read.
    on_alarm
        Is told every alarm; quick.
    """

    def __init__(
        self,
        engine: Engine,
        network: Network,
        contents: Contents,
        state: Durable,
        *,
        region: str = "",
        synchronous: str = "",
        slot: str = "",
        timing: Timing | None = None,
        on_alarm: Callable[[str], None] = _LOG.warning,
        tick_s: float = TICK_S,
    ) -> None:
        self.network, self.contents = network, contents
        self._engine = engine
        self.log = StoreLog(lambda: self._engine)
        self.alarms: deque[Alarm] = deque(maxlen=ALARMS_KEPT)
        self.failed = ""
        self._on_alarm, self._tick_s = on_alarm, tick_s
        self._queue: SimpleQueue[Any] = SimpleQueue()
        self._deferred: Future[tuple[bool, str]] | None = None
        self._current: Future[tuple[bool, str]] | None = None
        self._wants_syncs = self._has_sync = False
        self._status = ""
        self._handing: list[do.Action] = []
        timing = timing or Timing()
        self.inflow = Inflow(
            lambda: self._engine,
            lambda sender, frame: self._queue.put((sender, frame)),
            self._waits_no_more,
            lambda why: self._queue.put(partial(self._alarm, f"records of the primary are held back: {why}")),
            timing.call_every_s,
        )
        self._closing = False
        self._settled = threading.Event()
        self._settled.set()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="vecstore-contents")
        identity = Identity(engine.lineage, engine.identity_secret, engine.directory.store_id.hex(), region)
        self.member = Member(
            identity,
            self.log,
            state,
            lambda: secrets.randbits(64),
            timing=timing,
            synchronous=synchronous,
            slot=slot,
            is_copied=engine.is_copied,
        )
        self._attach(engine)
        self._hold_reads(engine)
        self._thread = threading.Thread(target=self._loop, name="vecstore-replication", daemon=True)

    # -- any thread --------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin."""
        self._queue.put(lambda: self._step(self.member.start))
        self._thread.start()

    def close(self) -> None:
        """End: nothing is carried out any more when this returns, and the engine may be closed."""
        if self._closing:
            return
        self._closing = True
        self._queue.put(None)
        self._thread.join()
        self._worker.shutdown(cancel_futures=True)
        for answer in (self._deferred, self._current):
            if answer is not None and not answer.done():
                answer.set_exception(Unavailable("the server is being stopped"))

    def receive(self, sender: str, message: Message | Arriving) -> None:
        """Take a message of another store, wait with records that there is no room for; or the word of one to come."""
        committer = self._engine.committer
        is_current = isinstance(message, Frame) and not self._waits_no_more(sender, message.session)
        if isinstance(message, Frame) and message.records and is_current and committer is not None:
            # In the thread that brings it, while the one before is being synced.
            committer.decode_ahead(message.records)
            self.inflow.admit(sender, message)
        self._queue.put((sender, message))

    def _waits_no_more(self, sender: str, session: int) -> bool:
        """Return whether records of a session with a primary, or of the archive, are of no use to anybody any more."""
        part, member = self.member.part, self.member
        if self.failed or self._closing or not isinstance(part, Standby):
            return True
        if not sender:
            return part.status != "fetching"
        is_mine = sender == member.durable.primary and session == part.session
        return not is_mine or part.status not in ("dialling", "following")

    def command(self, command: Command, timeout_s: float) -> tuple[bool, str]:
        """Carry out a command; return whether it is done, and what there is to say.

        Raises
        ------
        Unavailable
            It is not answered in time, and may be done yet; or replication has failed.
        """
        self._check_alive()
        answer: Future[tuple[bool, str]] = Future()
        self._queue.put(_Asked(command, answer))
        try:
            return answer.result(timeout_s)
        except TimeoutError:
            raise Unavailable(
                f"{type(command).__name__.lower()} goes on, and was not answered in {timeout_s:.3g} s",
                outcome="unknown",
            ) from None

    def run(self, action: Callable[[], Any], timeout_s: float = 10.0) -> Any:
        """Run something in the driver's thread, between two steps; return what it returns."""
        self._check_alive()
        answer: Future[Any] = Future()

        def call() -> None:
            try:
                answer.set_result(action())
            except BaseException as exc:  # noqa: BLE001  (who asked must hear of it)
                answer.set_exception(exc)

        self._queue.put(call)
        return answer.result(timeout_s)

    def _check_alive(self) -> None:
        """Refuse to wait for a thread that carries out nothing any more."""
        if self.failed or self._closing:
            raise Unavailable(self.failed or "the server is being stopped", retryable=False)

    def act(self, change: Callable[[Member], T], timeout_s: float = 10.0) -> T:
        """Change the member from outside of its steps, in the driver's thread, and carry out what comes of it."""

        def call() -> T:
            found: list[T] = []

            def step(now_s: float) -> list[do.Action]:
                self.member.now_s, self.member.actions = max(self.member.now_s, now_s), []
                found.append(change(self.member))
                return self.member.actions

            self._step(step)
            return found[0]

        result: T = self.run(call, timeout_s)
        return result

    @property
    def engine(self) -> Engine:
        """The engine that is open now."""
        return self._engine

    @property
    def state(self) -> Durable:
        """The durable state."""
        return self.member.durable

    @property
    def accepts_writes(self) -> bool:
        """Whether a write is taken now: what the member has decided counts once it was carried out."""
        committer = self.engine.committer
        is_open = committer is not None and committer.held is None
        return is_open and self.member.accepts_writes and not self.failed

    # -- the thread --------------------------------------------------------------------------------------------------

    def _loop(self) -> None:
        due_s = time.monotonic() + self._tick_s
        while True:
            try:
                item = self._queue.get(timeout=max(0.0, due_s - time.monotonic()))
            except Empty:
                item = self._tick
            if item is None:
                return
            if self.failed:
                continue
            try:
                self._take(item)
                if time.monotonic() >= due_s:
                    self._step(self.member.tick)
                    due_s = time.monotonic() + self._tick_s
            except BaseException as exc:  # noqa: BLE001  (see the module)
                self._fail(exc)

    def _tick(self) -> None:
        """Nothing: the time is told behind every item."""

    def _take(self, item: Any) -> None:
        if callable(item):
            item()
        elif isinstance(item, _Asked):
            self._current = item.answer
            self._step(lambda now_s: self.member.command(item.command, now_s))
            if self._current is not None:
                if self._deferred is not None and not self._deferred.done():
                    self._deferred.set_exception(Unavailable("another command was given meanwhile"))
                self._deferred, self._current = self._current, None
        else:
            sender, message = item
            if isinstance(message, Synced):
                self._has_sync = False
            self._step(lambda now_s: self.member.step(sender, message, now_s))

    def _step(self, step: Callable[[float], list[do.Action]]) -> None:
        for action in list(step(time.monotonic())):
            self._carry_out(action)
        member, engine = self.member, self.engine
        feed = getattr(member.part, "feed", None)
        self._wants_syncs = feed is not None and bool(feed.streams)
        self._hold_reads(engine)
        promise = member.durable.promise
        if promise is not None and promise.store_id != member.me:
            engine.primary_hint = self.network.address(promise.store_id)
        if member.status != self._status:
            self._status = member.status
            if self._status in ("following", "open"):
                self._worker.submit(self._tidy)

    def _hold_reads(self, engine: Engine) -> None:
        """Have an engine refuse reads while a rejoin is under way: also before the first step, after a start."""
        engine.reads_held = "" if self.member.serves_reads else "it rejoins, and its contents are being replaced"

    def _fail(self, exc: BaseException) -> None:
        """Stand still, and acknowledge nothing."""
        self.failed = f"replication stands still after an error: {exc}"
        _LOG.error(self.failed, exc_info=exc)
        self._alarm(self.failed)
        committer = self.engine.committer
        if committer is not None:
            with contextlib.suppress(VecstoreError):
                committer.fence(self.engine.not_primary)
        for answer in (self._deferred, self._current):
            if answer is not None and not answer.done():
                answer.set_exception(Unavailable(self.failed, retryable=False))

    # -- actions -----------------------------------------------------------------------------------------------------

    def _carry_out(self, action: do.Action) -> None:
        committer = self.engine.committer
        assert committer is not None
        match action:
            case do.Send():
                self.network.send(action.to, action.message)
            case do.Persist():
                self._persist(action)
            case do.Append():
                self._append(action.records)
            case do.Handover():
                committer.handover(action.target, self.engine.not_primary)
                self._queue.put(("", Synced()))
            case do.Open():
                self.engine.primary_hint = ""
                committer.open_writes()
            case do.Fence():
                committer.fence(self.engine.not_primary)
            case do.Acknowledge():
                committer.replicated_to(action.replicated_lsn)
            case do.Reply():
                self._reply(action)
            case do.Alarm():
                self._alarm(action.text)
            case _:
                self._begin(action)

    def _persist(self, action: do.Persist) -> None:
        """Write the durable state: where the contents are just being replaced, into those that are open afterwards."""
        while True:
            is_settled, committer = self._settled.is_set(), self.engine.committer
            assert committer is not None
            try:
                committer.persist(encode_state(action.state), action.epoch, is_synced=action.is_synced)
                break
            except Closed:
                if is_settled:
                    raise
                self._settled.wait()
        if action.epoch is not None:
            self._queue.put(("", Synced()))

    def _append(self, records: Sequence[Record]) -> None:
        durable = self.member.durable
        try:
            self.engine.append(records, trust=durable.rejoin is not None or durable.scrub is not None)
        except Damaged as exc:
            # The chain was checked: what does not fit are the contents here.
            part, why = self.member.part, f"a record does not fit the contents of this store: {exc}"
            if not isinstance(part, Standby):
                raise
            self._step(lambda _: part.halt(why))
            return
        self._queue.put(("", Synced()))

    def alarm(self, text: str) -> None:
        """Tell a human. In the driver's thread."""
        self._alarm(text)

    def _reply(self, action: do.Reply) -> None:
        answer, self._current = self._current, None
        if answer is None:
            answer, self._deferred = self._deferred, None
        if answer is not None and not answer.done():
            answer.set_result((action.done, action.text))

    def _alarm(self, text: str) -> None:
        self.alarms.append(Alarm(self.engine.clock.wall_us() / 1e6, text))
        self._on_alarm(text)

    # -- what takes long ---------------------------------------------------------------------------------------------

    def _begin(self, action: do.Action) -> None:
        claim, replaces = self.member.durable.promise, isinstance(action, do.Install | do.Reset | do.Return)
        if replaces:
            self._settled.clear()
        if isinstance(action, do.TakeSnapshot | do.ReadPoints):
            if action in self._handing:
                return  # who asks again, since it takes long, is given the answer that is being made
            self._handing.append(action)

        def work() -> None:
            try:
                self._work(action, claim)
            except BaseException as exc:  # noqa: BLE001  (the driver's thread decides)
                if isinstance(exc, ReplaceFailed):
                    self._attach(exc.engine)
                self._queue.put(partial(self._did_not, action, exc))
            finally:
                if replaces:
                    self._settled.set()
                if action in self._handing:
                    self._handing.remove(action)

        self._worker.submit(work)

    def _tidy(self) -> None:
        try:
            self.contents.tidy()
        except (OSError, VecstoreError) as exc:
            _LOG.warning("what was fetched could not be removed: %s", exc)

    def _did_not(self, action: do.Action, exc: BaseException) -> None:
        """Go on where the member asks again by itself; what must be exported, or gone back to, is for a human."""
        stage: Literal["room", "fetch", "contents"] = "fetch"
        if isinstance(exc, ReplaceFailed):
            stage, exc = "contents", exc.__cause__ or exc
        if isinstance(exc, Exhausted) or (isinstance(exc, OSError) and exc.errno in (errno.ENOSPC, errno.EDQUOT)):
            stage = "room"
        text = f"{type(action).__name__.lower()} failed: {exc}"
        if isinstance(action, do.TakeSnapshot | do.ReadPoints | do.ReadArchive | do.Mend):
            self._alarm(text)
            if isinstance(action, do.ReadArchive):
                self._report(ArchiveRead(action.after_lsn, ()))
        elif isinstance(action, do.Install | do.Reset) and isinstance(exc, VecstoreError | OSError):
            # The store is as it was: it asks again, ever more slowly.
            self._alarm(text)
            self._take(("", NotReplaced(str(exc), stage)))
        else:
            raise Unavailable(text) from exc

    def _work(self, action: do.Action, claim: Claim | None) -> None:
        contents = self.contents
        match action:
            case do.TakeSnapshot():
                place, content = contents.snapshot()
                if claim is not None:
                    self.network.send(action.to, Snapshot(claim, place, content))
            case do.ReadPoints():
                lsn, content = contents.points(action.ids)
                if claim is not None:
                    self.network.send(action.to, Points(claim, action.fork_lsn, lsn, content))
            case do.ReadArchive():
                records = tuple(contents.archived(action.after_lsn))
                self.inflow.admit_archived(records)
                self._report(ArchiveRead(action.after_lsn, records))
            case do.Verify():
                self._report(Verified(contents.verify()))
            case do.Install():
                self._replaced(
                    contents.install(action.snapshot, lambda: self.state), Installed(action.snapshot.place.lsn)
                )
            case do.Reset():
                self._replaced(contents.reset(action.fork, action.points, lambda: self.state), WasReset())
            case do.Return():
                self._replaced(contents.back(lambda: self.state), Returned())
            case _:
                self._set_aside(action)

    def _set_aside(self, action: do.Action) -> None:
        contents = self.contents
        match action:
            case do.Checkpoint():
                contents.checkpoint()
                self._report(Checkpointed())
            case do.Export():
                left = contents.export(action.fork_lsn, action.is_complete)
                self._report(Exported(action.fork_lsn, left.ids, left.needs_snapshot))
            case do.Discard():
                contents.discard()
            case do.Mend():
                contents.mend(action.points, action.differences)
                self._report(Mended(action.points.lsn))
            case _:
                raise AssertionError(action)

    def _report(self, report: Report) -> None:
        self._queue.put(("", report))

    def _replaced(self, engine: Engine, report: Report) -> None:
        self._attach(engine)
        self._report(report)

    def _attach(self, engine: Engine) -> None:
        """Have an engine tell of its syncs, and ask what the log is kept for; it is the one that is open from now on.

        In the thread that has replaced the contents: the driver's may wait to write into them.
        """
        assert engine.committer is not None
        engine.reads_held, self._engine = self._engine.reads_held, engine
        engine.synchronous = self.member.synchronous
        engine.committer.on_durable = self._on_durable
        engine.slots.standbys = self._standbys

    def _on_durable(self) -> None:
        if self._wants_syncs and not self._has_sync:
            self._has_sync = True
            self._queue.put(("", Synced()))

    def _standbys(self) -> Standbys:
        slots = tuple(slot.lsn for slot in self.member.durable.slots if not slot.is_lost)
        return Standbys(slots, self.member.holds_log)
