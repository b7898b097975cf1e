"""The server's threads: bounded, started as needed, fed by the admission; what is shed never gets one.

gRPC's serving thread alone receives events. For each call it asks the interceptors for a handler and at once submits
the call to this executor, in the context of that call, where the guard has left a `Ticket`. Here the call is let in,
put into a queue, or refused; a refusal is answered on the spot, by the serving thread, without reading the call's
message. So nothing waits for a thread but what the admission's queues hold, and these are bounded; a call's message is
read only once it has a place.

A place is for work. A call that has one while its message is still on its way (a slow client, or one that sends
headers and nothing else) gives it back after a moment and keeps only a thread, of which there are some to spare; after
`receive_s_max` it is cancelled, or sooner if too many do the same. A stream whose client stands still is cancelled
after `stream_idle_s_max`.

What is used of gRPC beyond its documented interface is in `submit`, `_answer` and `end`: that what is submitted is
``context.run, respond, event, state, behaviour, receive, ...``, and that an event's call is cancelled with a status;
tests hold this against what is installed.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable
from contextvars import ContextVar
from math import inf
from queue import SimpleQueue
from typing import Any, Protocol

import grpc

from ..clock import Clock
from ..errors import Overloaded, Unavailable, VecstoreError
from ..wire.status import trailers
from .admission import RESERVED_CALLS_MAX, Admission, Call, Kind, LaneLoad, Refusal
from .caller import ANYONE, Caller

__all__ = ["TICKET", "Observer", "Pool", "Ticket", "overloaded"]

ASIDE_CALLS_MAX = 32
"""Calls whose message is awaited without a place; beyond, the oldest is cancelled."""
ASIDE_AFTER_S = 0.1
TICK_S = 0.05

_LOG = logging.getLogger("vecstore.server")
_WORDS = {
    "rate": "this caller makes more calls a second than it may",
    "points": "this caller reads or writes more points a second than it may",
    "queue": "too many calls wait",
    "wait": "the call would have to wait too long",
    "deadline": "the call would have to wait past its deadline",
    "streams": "too many streams are open, of this caller or of all",
    "evicted": "other callers' calls came first",
}
_OTHER = Kind("other", "reserved", 0, is_write=False, limited=False)


class Observer(Protocol):
    """Who is told what became of calls. Thread-safe."""

    def observe(self, method: str, code: Any, seconds: float, /) -> None:
        """Count an answer."""
        ...

    def shed(self, reason: str, /) -> None:
        """Count a call that was refused to protect the others."""
        ...


class Ticket(Call):
    """One call as the server knows it.

    Attributes
    ----------
    who
        The caller; None until its certificate has been looked at.
    error
        Why it is refused without being admitted at all.
    event
        gRPC's own, for its deadline and to cancel it.
    method
        Its path.
    ended
        Of a stream: set once it is over, for whatever reason.
    in_since_s, out_since_s
        Since when the client is waited for, to send and to take; `inf` while it is not.
    requests, replies
        Messages read from the client of a stream, and made for it: each counted by one thread alone.
    trace
        What it says of the trace that it belongs to.
    touches
        Names of the collections that it is about, as far as they were looked up.
    is_denied
        Whether it is about one that its caller does not see.
    was
        As whom it was let in, once its caller was looked at again; None before.
    shown
        What its caller is known by: an `authorization` header, or the names of a certificate; None where nobody asks.
    asked
        Of a call that lasts: what it was last seen to be about, as a message of its method; None before.
    """

    __slots__ = (
        "aside",
        "asked",
        "ended",
        "entered_s",
        "error",
        "event",
        "in_since_s",
        "is_denied",
        "method",
        "out_since_s",
        "replies",
        "requests",
        "shown",
        "touches",
        "trace",
        "was",
        "who",
    )

    def __init__(self, kind: Kind, method: str, who: Caller | None) -> None:
        super().__init__(kind, who.name if who is not None else "")
        self.method = method
        self.who = who
        self.error: VecstoreError | None = None
        self.event: Any = None
        self.entered_s = 0.0
        self.aside = False
        self.ended: threading.Event | None = None
        self.in_since_s = inf
        self.out_since_s = inf
        self.requests = self.replies = 0
        self.trace: Any = None
        self.touches: list[str] = []
        self.is_denied = False
        self.shown: str | tuple[str, ...] | None = None
        self.asked: Any = None
        self.was: Caller | None = None


TICKET: ContextVar[Ticket | None] = ContextVar("vecstore_ticket", default=None)
"""What the guard leaves in the context of a call."""


def overloaded(refusal: Refusal) -> Overloaded:
    """Return the error that a refusal is answered with."""
    return Overloaded(
        f"overloaded: {_WORDS.get(refusal.reason, refusal.reason)}",
        retry_after_s=refusal.retry_after_s,
        hint=f"try again after {refusal.retry_after_s:.3g} s",
        details={"reason": refusal.reason},
    )


def _nothing() -> tuple[()]:
    """Stands for receiving a message: not None, so that gRPC goes on, and nothing is waited for."""
    return ()


class Pool:
    """Runs what gRPC submits. Thread-safe.

    Parameters
    ----------
    admission
        Decides; used by this pool alone.
    clock
        The time.
    identify
        Finds the caller of a ticket that has none yet, by gRPC's event, or the error that it is refused with.
    observer
        Is told of sheds, and of calls that never reached a handler.
    """

    def __init__(
        self,
        admission: Admission,
        clock: Clock,
        *,
        identify: Callable[[Ticket], None] | None = None,
        observer: Observer | None = None,
    ) -> None:
        self._admission = admission
        self._settings = admission.settings
        self._clock = clock
        self.now_s = clock.monotonic_s
        self.identify = identify
        self.watch: Callable[[float], None] | None = None
        """Called a few times a second with the time; must not raise."""
        self._observer = observer
        self._lock = threading.Lock()
        self._ready: SimpleQueue[Ticket | None] = SimpleQueue()
        self._threads = 0
        self._idle = 0
        settings = admission.settings
        self.threads_max = (
            RESERVED_CALLS_MAX + settings.streams_max + settings.searches_max + settings.writes_max + ASIDE_CALLS_MAX
        )
        self._receiving: dict[Ticket, None] = {}
        self._aside: dict[Ticket, None] = {}
        self._streams: dict[Ticket, None] = {}
        self._stopping: str = ""
        self._closed = threading.Event()
        self._ticker = threading.Thread(target=self._tick, name="vecstore-ticker", daemon=True)
        self._ticker.start()

    # -- what gRPC asks ----------------------------------------------------------------------------------------------

    def submit(self, run: Callable[..., Any], /, *args: Any) -> None:
        """Take a call: start it, let it wait, or answer that there is no room.

        There is nothing to wait for in what this returns, which gRPC allows; its own ``maximum_concurrent_rpcs``, which
        would count by it, is not needed beside the admission.
        """
        context = getattr(run, "__self__", None)
        ticket = context.get(TICKET) if context is not None else None
        if ticket is None:
            ticket = Ticket(_OTHER, "other", ANYONE)
        ticket.job = (run, args)
        ticket.event = args[1]
        now_s = ticket.arrived_s = self.now_s()
        try:
            self._take(ticket, now_s)
        except Exception:  # noqa: BLE001 - see below
            # gRPC's only serving thread must outlive whatever this is.
            _LOG.exception("a call could not be admitted")
            if ticket.job is not None:
                self._answer(ticket, VecstoreError("internal error"))

    def _take(self, ticket: Ticket, now_s: float) -> None:
        if self.identify is not None:
            self.identify(ticket)
        if ticket.error is not None:
            self._answer(ticket, ticket.error)
            return
        deadline_s = ticket.event.call_details.deadline
        if deadline_s < 1e12:
            ticket.deadline_s = now_s + deadline_s - self._clock.wall_us() / 1e6
        if self._stopping and ticket.kind is not _OTHER:
            self._answer(ticket, Unavailable(self._stopping))
            return
        with self._lock:
            if self._admission.offer(ticket, now_s):
                self._dispatch(ticket)
            late = self._late() if self._admission.evicted else ()
        if ticket.refusal is not None:
            self._shed(ticket)
        for one in late:
            self._shed(one)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: ARG002
        """End the threads, once no call comes any more."""
        self._closed.set()
        with self._lock:
            count = self._threads
        for _ in range(count):
            self._ready.put(None)
        if wait:
            self._ticker.join()

    # -- what the server asks ----------------------------------------------------------------------------------------

    def stop_taking(self, why: str) -> None:
        """Refuse new calls from now on, with an error that may be retried; those that wait are still answered."""
        self._stopping = why

    def load(self) -> dict[str, LaneLoad]:
        """Return the load of each lane."""
        with self._lock:
            return self._admission.load()

    # -- what the guard says -----------------------------------------------------------------------------------------

    def enter(self, ticket: Ticket) -> None:
        """A call's message is there: its work begins."""
        if self._receiving.pop(ticket, ticket) is ticket:
            with self._lock:
                if ticket.aside:
                    self._aside.pop(ticket, None)
                    self._admission.step_in(ticket)
                    ticket.aside = False
        ticket.in_since_s = inf
        ticket.entered_s = self.now_s()

    def end(self, ticket: Ticket, error: VecstoreError) -> None:
        """End a call that is being worked on, whatever it waits for; its client gets the error without its details."""
        event = ticket.event
        if event is None:
            return
        code, text, _ = trailers(error)
        # It may have ended in this moment.
        with contextlib.suppress(Exception):
            event.call.cancel(code.value[0], text)

    def charge(self, ticket: Ticket, points: int) -> float:
        """Charge points to a call's caller; return after how many seconds it is out of debt from before."""
        with self._lock:
            return self._admission.charge(ticket, points, self.now_s())

    @property
    def counts_points(self) -> bool:
        """Whether anybody's points are limited, so that they must be counted."""
        settings = self._settings
        return bool(settings.points_read_per_s or settings.points_written_per_s)

    @staticmethod
    def pause(seconds: float, ticket: Ticket) -> None:
        """Hold a stream back for some time, at most to its end."""
        if seconds > 0 and ticket.ended is not None:
            ticket.ended.wait(seconds)

    def gives_way_s(self) -> float:
        """Return how long a stream should pause for the sake of searches that wait."""
        return self._admission.gives_way_s(self.now_s())

    # -- threads -----------------------------------------------------------------------------------------------------

    def _dispatch(self, ticket: Ticket) -> None:
        """Hand a call that has a place to a thread; with the lock held."""
        if ticket.kind.lane == "long":
            # Its first message is awaited from now on.
            ticket.in_since_s = ticket.started_s
            self._streams[ticket] = None
        elif ticket.kind is not _OTHER:
            self._receiving[ticket] = None
        self._ready.put(ticket)
        if self._idle:
            self._idle -= 1
        elif self._threads < self.threads_max:
            self._threads += 1
            threading.Thread(target=self._work, name=f"vecstore-{self._threads}", daemon=True).start()

    def _work(self) -> None:
        take = self._ready.get
        while True:
            ticket = take()
            while ticket is not None:
                run, args = ticket.job
                try:
                    run(*args)
                except Exception:  # noqa: BLE001 - a thread outlives what it runs
                    # gRPC answers what a handler raises; this is for what it does not expect itself.
                    _LOG.exception("a call ended in an error of the server's own")
                ticket = self._finish(ticket)
            if self._closed.is_set():
                return

    def _finish(self, ticket: Ticket) -> Ticket | None:
        """End a call; return the one that its thread goes on with."""
        admission = self._admission
        self._receiving.pop(ticket, None)
        late: tuple[Ticket, ...] | list[Ticket] = ()
        with self._lock:
            if ticket.aside:
                self._aside.pop(ticket, None)
                admission.step_in(ticket)
            self._streams.pop(ticket, None)
            now_s = self.now_s()
            admission.finish(ticket, now_s)
            first = self._next(now_s)
            if first is None:
                self._idle += 1
            else:
                while (more := self._next(now_s)) is not None:
                    self._dispatch(more)
            if admission.evicted:
                late = self._late()
        ticket.job = ticket.event = None
        for one in late:
            self._shed(one)
        if first is not None and first.kind.lane != "reserved":
            self._receiving[first] = None
        return first

    def _next(self, now_s: float) -> Ticket | None:
        found = self._admission.next(now_s)
        assert found is None or isinstance(found, Ticket)
        return found

    def _late(self) -> list[Ticket]:
        """Return the calls that waited in vain; with the lock held."""
        found = [one for one in self._admission.evicted if isinstance(one, Ticket)]
        self._admission.evicted.clear()
        return found

    # -- refusals ----------------------------------------------------------------------------------------------------

    def _shed(self, ticket: Ticket) -> None:
        refusal = ticket.refusal
        assert refusal is not None
        if self._observer is not None:
            self._observer.shed(refusal.reason)
        self._answer(ticket, overloaded(refusal))

    def _answer(self, ticket: Ticket, error: VecstoreError) -> None:
        """Answer a call with an error, without reading its message; by any thread, gRPC's own included."""
        code, text, metadata = trailers(error)

        def refuse(_: object, context: grpc.ServicerContext) -> None:
            context.set_trailing_metadata(metadata)
            context.abort(code, text)

        run, (respond, event, state, *_) = ticket.job
        ticket.job = None
        run(respond, event, state, refuse, _nothing, None, None)
        ticket.event = None
        if self._observer is not None:
            self._observer.observe(ticket.method, code, self.now_s() - ticket.arrived_s)

    # -- clients that stand still ------------------------------------------------------------------------------------

    def _tick(self) -> None:
        while not self._closed.wait(TICK_S):
            if self._receiving or self._aside or self._streams:
                self._look(self.now_s())
            if self.watch is not None:
                self.watch(self.now_s())

    def _look(self, now_s: float) -> None:
        for ticket in list(self._receiving):
            if now_s - ticket.started_s < ASIDE_AFTER_S:
                break
            self._put_aside(ticket, now_s)
        waiting = list(self._aside)
        too_many = len(waiting) - ASIDE_CALLS_MAX
        for i, ticket in enumerate(waiting):
            if i < too_many or now_s - ticket.started_s > self._settings.receive_s_max:
                self._cancel(ticket, "its message did not arrive")
        for ticket in list(self._streams):
            sends_nothing = (
                ticket.requests <= ticket.replies and now_s - ticket.in_since_s > self._settings.stream_idle_s_max
            )
            if sends_nothing or now_s - ticket.out_since_s > self._settings.stream_idle_s_max:
                self._cancel(ticket, "its client stands still")

    def _put_aside(self, ticket: Ticket, now_s: float) -> None:
        """Take the place of a call that has no use for it yet."""
        with self._lock:
            # Whoever removes it has it: the call itself may have begun in this moment.
            if self._receiving.pop(ticket, ticket) is ticket:
                return
            ticket.aside = True
            self._aside[ticket] = None
            self._admission.step_aside(ticket)
            while (more := self._next(now_s)) is not None:
                self._dispatch(more)
            late = self._late() if self._admission.evicted else ()
        for one in late:
            self._shed(one)

    def _cancel(self, ticket: Ticket, why: str) -> None:
        event = ticket.event
        if event is None:
            return
        _LOG.warning("call cancelled: %s", why, extra={"method": ticket.method, "caller": ticket.caller})
        with contextlib.suppress(Exception):
            event.call.cancel()
        self._aside.pop(ticket, None)
        self._streams.pop(ticket, None)
