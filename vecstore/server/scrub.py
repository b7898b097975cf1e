"""The scrub of a served store, whatever it is: the two sides' machines, and the thread that carries out what they say.

Messages come in the threads of links, and a halt at a mark is set there: records behind the mark come on the same link,
so it is set before they are taken. All that reads goes to one thread, which rests while searches are served. It has no
lower priority: on busy cores it would hold the interpreter's lock without a core to run on, and all others up with it.
A pin is the only thing that outlives a step: each has a mark, and goes with it.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

from ..engine.ranges import Pin, pin_here
from ..errors import Damaged, VecstoreError
from ..replication import scrub_primary as feeds
from ..replication import scrub_standby as follows
from ..replication.driver import Driver
from ..replication.durable import VerifiedAt
from ..replication.scrub import Mark, Message, decode, encode, id_of
from ..replication.scrub_primary import ScrubPrimary
from ..replication.scrub_standby import ScrubStandby
from ..replication.standby import Standby
from ..replication.state import Member
from . import log
from .comparison import compared, entries_of, matched, proven, unequal_canaries, walked, with_canaries

__all__ = ["Scrub"]

TICK_S = 0.2
PIN_S = 280.0
TIME_SHARE_MAX = 0.05
"""Of a mark and the rest behind it, the work takes no larger share."""
CANARIES = 2
CANARY_SHARE_MAX = 0.01
"""Exact searches read every vector of a collection: they take no larger share of the time."""
NAMED_MAX = 20
"""Ids of a difference that are told at a time."""


class Scrub:
    """The scrub of one served store. `receive`, `describe` and `let_go` may be called from any thread.

    Parameters
    ----------
    send
        Sends bytes to a store, in order with frames; never waits.
    every_s
        From one mark of a standby to the next; 0 marks none, and still answers the marks of others.
    points
        In one mark.
    """

    def __init__(self, driver: Driver, send: Callable[[str, bytes], None], *, every_s: float, points: int) -> None:
        self._driver, self._send, self._points = driver, send, points
        self._every_s = every_s
        self._log = log.logger()
        self._lock = threading.RLock()
        mint = partial(secrets.randbits, 63)
        self._primary, self._standby = ScrubPrimary(mint, every_s or 3_600.0), ScrubStandby(mint)
        self._queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._pins: dict[int, Pin] = {}
        self._halts: dict[int, Future[Pin]] = {}
        self._role = ""
        self._paused = False
        self._canary_due_s = 0.0
        self._alarms: set[str] = set()
        self._thread = threading.Thread(target=self._loop, name="vecstore-scrub", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """End; no pin is left when this returns."""
        self._queue.put(None)
        self._thread.join()
        self.let_go()

    @contextmanager
    def away(self) -> Iterator[None]:
        """Hold no pin while contents are replaced; they are others afterwards."""
        with self._lock:
            self._paused = True
            self.let_go()
        try:
            yield
        finally:
            with self._lock:
                self._paused = False

    def let_go(self) -> None:
        """Let all pins go, and what was found of the contents that are here."""
        with self._lock:
            self._carry_out([*self._primary.stop(), *self._standby.stop()])
            for mark in [*self._pins, *self._halts]:
                self._forget(mark)

    # -- what it says --------------------------------------------------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        """Return what was verified and what differs, for status and metrics."""
        durable, engine = self._driver.state, self._driver.engine
        verified = durable.verified
        age_s = 0.0 if verified is None else max(0.0, (engine.clock.wall_us() - verified.time_us) / 1e6)
        asked, unequal = self._standby.canaries
        return {
            "verified": None if verified is None else {"lsn": verified.lsn, "age_s": age_s},
            "differences": [*self._differences_here(), *self._damage_elsewhere()],
            "canaries": {"asked": asked, "unequal": unequal},
        }

    def _differences_here(self) -> list[dict[str, Any]]:
        scrub = self._driver.state.scrub
        if scrub is None:
            return []
        state = "mended, to be compared again" if scrub.is_mended else scrub.refusal or "to be mended"
        return [
            {
                "side": "here",
                "collection": one.collection,
                "lsn": one.lsn,
                "count": one.count,
                "ids": [id_of(point.place) for point in one.points[:NAMED_MAX]],
                "first": one.bounds.first.hex(),
                "stop": one.bounds.stop.hex(),
                "why": one.why,
                "state": state,
            }
            for one in scrub.differences
        ]

    def _damage_elsewhere(self) -> list[dict[str, Any]]:
        """Return what a primary finds wrong with itself, as it sees it, and as its standby was told."""
        with self._lock:
            mine, theirs = dict(self._primary.damaged), self._standby.primary_damage
        found = [
            {"side": "here", "first": bounds.first.hex(), "stop": bounds.stop.hex(), "why": why, "state": "promote"}
            for bounds, why in mine.items()
        ]
        return [*found, *([{"side": "primary", "why": theirs, "state": "promote"}] if theirs else ())]

    # -- what comes ----------------------------------------------------------------------------------------------------

    def receive(self, sender: str, data: bytes) -> None:
        """Take a message. One that this version does not know is no reason to stop: nothing depends on it."""
        try:
            message = decode(data)
        except Damaged as exc:
            self._tell(f"a message of the scrub from {sender} was not understood: {exc}")
            return
        with self._lock:
            if not self._paused:
                self._carry_out(self._step(sender, message))

    def _step(self, sender: str, message: Message) -> list[Any]:
        now_s = time.monotonic()
        if self._driver.state.role == "primary":
            return list(self._primary.step(sender, message, now_s))
        return list(self._standby.step(sender, message, self._followed(), now_s))

    def _followed(self) -> str:
        """Return the store whose contents these should be; empty where nothing is compared now."""
        durable = self._driver.state
        is_fit = durable.role == "standby" and durable.rejoin is None and not durable.is_halted
        return durable.primary if is_fit and not self._driver.failed and not self._paused else ""

    def _doubtful(self) -> list[Any]:
        scrub = self._driver.state.scrub
        if scrub is None or not scrub.is_mended or self._driver.engine.durable_lsn < scrub.target_lsn:
            return []
        return [one.bounds for one in scrub.differences]

    # -- the thread ----------------------------------------------------------------------------------------------------

    def _loop(self) -> None:
        while True:
            try:
                work = self._queue.get(timeout=TICK_S)
            except Empty:
                work = self._tick
            if work is None:
                return
            try:
                work()
            except Exception as exc:  # noqa: BLE001  (a proof that fails proves nothing, and harms nothing)
                self._log.error("the scrub failed", why=str(exc), exc_info=exc)

    def _tick(self) -> None:
        with self._lock:
            role, now_s = self._driver.state.role, time.monotonic()
            if role != self._role:
                self._role = role
                self.let_go()
            if self._paused:
                return
            if role == "primary":
                feed = getattr(self._driver.member.part, "feed", None)
                streams = {} if feed is None or not self._every_s else dict(feed.streams)
                sessions = {name: stream.session for name, stream in streams.items()}
                self._carry_out(list(self._primary.tick(sessions, now_s)))
            else:
                self._carry_out(list(self._standby.tick(self._followed(), self._doubtful(), now_s)))

    # -- actions -------------------------------------------------------------------------------------------------------

    def _carry_out(self, actions: list[Any]) -> None:
        """Do what is quick; leave the rest to the thread. With the lock held."""
        for action in actions:
            match action:
                case feeds.Send():
                    self._send(action.to, encode(action.message))
                case feeds.Forget():
                    self._forget(action.mark)
                case feeds.Alarm():
                    self._tell(action.text)
                case follows.Halt():
                    self._halt(action)
                case _:
                    self._queue.put(partial(self._work, action))

    def _tell(self, text: str) -> None:
        """Tell a human once, in the log and among the alarms of the replication."""
        if text not in self._alarms:
            self._alarms = {*list(self._alarms)[-100:], text}
            self._queue.put(lambda: self._driver.run(lambda: self._driver.alarm(text)))

    def _forget(self, mark: int) -> None:
        pin, halt = self._pins.pop(mark, None), self._halts.pop(mark, None)
        if pin is not None:
            pin.close()
        if halt is not None and not halt.cancel():
            halt.add_done_callback(_close)

    def _halt(self, action: follows.Halt) -> None:
        """Pin the contents when exactly an LSN is applied."""
        engine = self._driver.engine
        assert engine.committer is not None
        try:
            future = engine.committer.halts.at(action.lsn, lambda: pin_here(engine, PIN_S))
        except VecstoreError:
            self._queue.put(partial(self._report_failure, action.mark))
            return
        self._halts[action.mark] = future
        future.add_done_callback(lambda _: self._queue.put(partial(self._halted, action.mark)))

    def _halted(self, mark: int) -> None:
        with self._lock:
            future = self._halts.pop(mark, None)
            if future is None:
                return
            if future.cancelled() or future.exception() is not None:
                self._carry_out(list(self._standby.failed(mark)))
                return
            pin = self._pins[mark] = future.result()
            self._carry_out(list(self._standby.pinned(mark, pin.chain)))

    def _work(self, action: Any) -> None:
        mark, began_s = getattr(action, "mark", 0), time.thread_time()
        try:
            match action:
                case feeds.Pin():
                    self._pin(action)
                case feeds.Walk() | feeds.Prove():
                    self._read(action)
                case follows.Compare() | follows.Match():
                    self._judge(action)
                case _:
                    self._settle(action)
        except VecstoreError as exc:
            self._log.info("a mark of the scrub came to nothing", why=str(exc))
            self._report_failure(mark)
        took_s = time.thread_time() - began_s
        with self._lock:
            self._primary.every_s = max(self._every_s or 3_600.0, took_s * (1 / TIME_SHARE_MAX - 1))

    def _report_failure(self, mark: int) -> None:
        with self._lock:
            now_s = time.monotonic()
            self._carry_out(list(self._primary.failed(mark, now_s)))
            self._carry_out(list(self._standby.failed(mark)))

    def _held(self, mark: int) -> Pin | None:
        with self._lock:
            return self._pins.get(mark)

    # -- the primary's side --------------------------------------------------------------------------------------------

    def _pin(self, action: feeds.Pin) -> None:
        engine = self._driver.engine

        def take() -> Pin:
            """Send the mark while no group is under way: no record behind it can have left."""
            pin = pin_here(engine, PIN_S)
            self._send(action.to, encode(Mark(action.mark, pin.lsn, pin.chain)))
            return pin

        pin: Pin = engine.at_barrier(take)
        with self._lock:
            if self._paused:
                pin.close()
                return
            self._pins[action.mark] = pin
            self._carry_out(list(self._primary.pinned(action.mark, pin.lsn, time.monotonic())))

    def _read(self, action: feeds.Walk | feeds.Prove) -> None:
        pin = self._held(action.mark)
        if pin is None:
            return
        if isinstance(action, feeds.Walk):
            found = walked(pin, action.start, self._points, action.ranges)
            if not found.damaged and time.monotonic() >= self._canary_due_s:
                began_s = time.thread_time()
                found = with_canaries(pin, found, action.mark, CANARIES)
                self._canary_due_s = time.monotonic() + (time.thread_time() - began_s) / CANARY_SHARE_MAX
            with self._lock:
                self._carry_out(list(self._primary.walked(action.mark, found, time.monotonic())))
            return
        why = proven(pin, action.ranges)
        entries = () if why else entries_of(pin, action.ranges)
        with self._lock:
            self._carry_out(list(self._primary.proven(action.mark, action.ranges, entries, why, time.monotonic())))

    # -- the standby's side --------------------------------------------------------------------------------------------

    def _judge(self, action: follows.Compare | follows.Match) -> None:
        pin = self._held(action.mark)
        if pin is None:
            return
        if isinstance(action, follows.Compare):
            unequal = compared(pin, action.parts)
            canaries = len(action.canaries), unequal_canaries(pin, action.canaries)
            with self._lock:
                doubtful, now_s = self._doubtful(), time.monotonic()
                step = self._standby.compared(action.mark, unequal, canaries, doubtful, now_s)
                self._carry_out(list(step))
            return
        differences = matched(pin, action.listing.ranges, action.listing.entries)
        with self._lock:
            self._carry_out(list(self._standby.matched(action.mark, differences)))

    def _settle(self, action: follows.Stop | follows.Clear | follows.Note) -> None:
        """Change what this store is: in the driver's thread, between two of its steps."""
        now_us = self._driver.engine.clock.wall_us()

        def change(member: Member) -> None:
            part = member.part
            if not isinstance(part, Standby):
                return
            match action:
                case follows.Stop():
                    part.differ(action.differences)
                case follows.Clear():
                    part.agree(action.ranges, action.lsn)
                case follows.Note():
                    member.persist(verified=VerifiedAt(action.lsn, now_us), mended=0, is_synced=False)

        if isinstance(action, follows.Stop):
            for one in action.differences:
                ids = [id_of(point.place) for point in one.points[:NAMED_MAX]]
                self._log.error(
                    "differs", collection=one.collection, ids=ids, count=one.count, lsn=one.lsn, why=one.why
                )
        elif isinstance(action, follows.Clear):
            self._log.warning("mended, and found equal", ranges=len(action.ranges), lsn=action.lsn)
        self._driver.act(change)


def _close(future: Future[Pin]) -> None:
    """Let the pin of a halt go that nobody waits for any more."""
    if not future.cancelled() and future.exception() is None:
        future.result().close()
