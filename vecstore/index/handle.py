"""The engine's hold on one device: starts its worker, asks it, and starts another when it dies.

No call here raises because of a device: what a device could not do comes back as a reason, in a word, and the caller
answers from the CPU. A worker is started as a program of its own, never by a fork: threads and locks of the engine do
not live on in it, and the host's main module is not run again.

Thread-safe. One thread a device supervises the worker and receives what it says.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from .answer import SELECTIONS_MAX, Question
from .base import Floats, Selection
from .channel import Arena, Ask, Channel, Done, Drop, Forget, Load, Ready, Reply, Select, WorkerOptions
from .order import Loaded, Order
from .pending import Pending, Waiter

__all__ = ["Device"]

_log = logging.getLogger("vecstore")

HANG_S = 120.0
"""A worker that owes an answer for so long is ended."""
START_S_MAX = 120.0
BACK_OFF_S, BACK_OFF_S_MAX = 0.2, 60.0
STEADY_S = 30.0
"""A worker that lived so long has begun well: the next pause is short again."""
REFUSAL_S = 60.0
"""What a device refused is not offered to it for so long."""
STRIKES_MAX, STRIKES_S = 3, 600.0
"""A segment at work when a worker died so often within such a time is kept off the device meanwhile."""


@dataclass(slots=True, eq=False)
class _Owed:
    """An answer that the worker owes."""

    segment: str
    since_s: float
    settle: Callable[[Done | None], None]


@dataclass(slots=True, eq=False)
class _Run:
    """One life of the worker, with everything that ends with it."""

    process: subprocess.Popen[bytes]
    channel: Channel
    arena: Arena
    ready: Ready | None = None


class Device:
    """One device and its worker.

    Parameters
    ----------
    name
        Of the device, unique among those of an engine.
    options
        Of the worker.
    changed
        Called when the worker has come, gone, or finished a load; from the supervising thread.

    Attributes
    ----------
    fallbacks
        How often the CPU had to answer, by reason.
    restarts
        Workers that died and were followed by another.
    """

    def __init__(self, name: str, options: WorkerOptions, changed: Callable[[], None]) -> None:
        self.name, self.options = name, options
        self.fallbacks: Counter[str] = Counter()
        self.restarts = 0
        self.asked = 0
        self.problem = ""
        self._changed = changed
        self._lock = threading.Lock()
        self._run: _Run | None = None
        self._owed: dict[int, _Owed] = {}
        self._loaded: dict[str, Loaded] = {}
        self._refused: dict[str, tuple[str, float]] = {}
        self._strikes: dict[str, list[float]] = {}
        self._selections: OrderedDict[int, tuple[Selection, int, _Run]] = OrderedDict()
        self._numbers = 0
        self._used = 0
        self._late = 0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._supervise, name=f"vecstore-device-{name}", daemon=True)

    def start(self) -> None:
        """Begin; the worker comes in its own time."""
        self._thread.start()

    def close(self) -> None:
        """End the worker."""
        self._closing.set()
        with self._lock:
            run = self._run
        if run is not None:
            run.channel.close()
        self._thread.join()

    # -- what is known ----------------------------------------------------------------------------------------------

    @property
    def is_ready(self) -> bool:
        """Whether there is a worker that takes questions."""
        run = self._run
        return run is not None and run.ready is not None

    @property
    def pid(self) -> int | None:
        """Of the worker, None while there is none."""
        run = self._run
        return None if run is None else run.process.pid

    @property
    def budget_bytes(self) -> int:
        """For indexes; 0 while the worker has not said."""
        run = self._run
        return 0 if run is None or run.ready is None else run.ready.budget

    @property
    def free_bytes(self) -> int:
        """What the budget has left for indexes once all that was ordered is there: rows of filters make room."""
        with self._lock:
            ordered = sum(one.order.made.need.serve for one in self._loaded.values())
        return self.budget_bytes - ordered

    @property
    def free_arena_bytes(self) -> int:
        """Bytes of the shared memory that no question has."""
        run = self._run
        return 0 if run is None else run.arena.free

    @property
    def candidates_max(self) -> int:
        """Candidates that an index with lists gives at most."""
        run = self._run
        return 0 if run is None or run.ready is None else run.ready.candidates_max

    @property
    def has_graphs(self) -> bool:
        """Whether the worker's FAISS has cuVS."""
        run = self._run
        return run is not None and run.ready is not None and "cagra" in run.ready.obedient

    def is_held(self, segment: str) -> bool:
        """Whether the worker has a segment ready."""
        one = self._loaded.get(segment)
        return one is not None and one.ready and self.is_ready

    def loaded(self, segment: str) -> Loaded | None:
        """Return what is known of one segment."""
        return self._loaded.get(segment)

    def segments(self) -> dict[str, Loaded]:
        """Return what the worker holds or is loading."""
        with self._lock:
            return dict(self._loaded)

    def refused(self) -> dict[str, str]:
        """Return why segments could not be loaded, or are kept off."""
        since_s = time.monotonic() - REFUSAL_S
        with self._lock:
            self._refused = {name: one for name, one in self._refused.items() if one[1] > since_s}
            reasons = {name: reason for name, (reason, _) in self._refused.items()}
            return reasons | {name: "unstable" for name in self._strikes if self._is_unstable(name)}

    def _is_unstable(self, segment: str) -> bool:
        """Whether the worker died lately, and again, while a segment was at work. With the lock held."""
        since_s = time.monotonic() - STRIKES_S
        return sum(at_s > since_s for at_s in self._strikes.get(segment, ())) >= STRIKES_MAX

    def status(self) -> dict[str, Any]:
        """Return plain values for reports."""
        run = self._run
        ready = None if run is None else run.ready
        return {
            "device": self.name,
            "name": "" if ready is None else ready.name,
            "state": "ready" if ready is not None else "down" if self.problem else "starting",
            "problem": self.problem,
            "pid": self.pid,
            "restarts": self.restarts,
            "budget_bytes": self.budget_bytes,
            "reserved_bytes": self._used,
            "asked": self.asked,
            "fallbacks": dict(self.fallbacks),
            "versions": {} if ready is None else dict(ready.versions),
            "segments": {
                name: {
                    "kind": one.order.made.kind,
                    "rows": one.order.rows,
                    "lists": one.order.made.lists,
                    "bytes": one.order.made.need.serve,
                    "ready": one.ready,
                }
                for name, one in self.segments().items()
            },
            "refused": self.refused(),
        }

    # -- loading ----------------------------------------------------------------------------------------------------

    def load(self, order: Order) -> None:
        """Have a segment's index built; `segments` or `refused` tells how it went."""
        with self._lock:
            run = self._run
            if run is None or run.ready is None or self._is_unstable(order.segment):
                return
            self._loaded[order.segment] = Loaded(order, False)
            self._refused.pop(order.segment, None)
            number = self._owe(order.segment, lambda done: self._settle_load(order, done))
        need = order.made.need
        self._say(
            run,
            Load(
                number,
                order.segment,
                order.metric,
                order.dim,
                list(order.files),
                order.made.kind,
                order.made.lists,
                order.made.pieces,
                order.made.width,
                (need.train, need.build, need.serve),
                order.seed,
            ),
        )

    def _settle_load(self, order: Order, done: Done | None) -> None:
        with self._lock:
            if done is None or done.problem:
                self._loaded.pop(order.segment, None)
                if done is not None and done.problem != "dropped":
                    self._refused[order.segment] = (f"{done.problem}: {done.detail}", time.monotonic())
            elif order.segment in self._loaded:
                self._loaded[order.segment] = Loaded(order, True)
        self._changed()

    def drop(self, segment: str) -> None:
        """Give back what a segment has on the device, and forget why it was refused."""
        with self._lock:
            run, known = self._run, self._loaded.pop(segment, None)
            self._refused.pop(segment, None)
            self._strikes.pop(segment, None)
            if run is None or known is None:
                return
            # Its answer tells what is reserved from then on.
            number = self._owe("", lambda _: None)
        self._say(run, Drop(number, segment))

    # -- asking -----------------------------------------------------------------------------------------------------

    def ask(
        self, segment: str, queries: Floats, question: Question, selection: Selection | None = None
    ) -> Pending | str:
        """Ask about one segment; return what brings the answer, or why there is none.

        Parameters
        ----------
        segment
            That is loaded.
        queries
            Prepared, float32 (q, dim).
        question
            Without its selection, which is taken from `selection`.
        selection
            Rows that may be returned, None for all.
        """
        pending = self._asked(segment, queries, question, selection)
        if isinstance(pending, str):
            self.count(pending)
        return pending

    def count(self, reason: str) -> None:
        """Count a question that the device did not answer, or with an empty reason one that it did."""
        with self._lock:
            if reason:
                self.fallbacks[reason] += 1
            else:
                self.asked += 1

    def _asked(self, segment: str, queries: Floats, question: Question, selection: Selection | None) -> Pending | str:
        with self._lock:
            run = self._run
            one = self._loaded.get(segment)
        if run is None or run.ready is None:
            return "down"
        if one is None or not one.ready:
            return "loading"
        if self._late:
            return "slow"
        number = 0 if selection is None else self._known(run, selection)
        if number is None:
            return "busy"
        count, kept = len(queries), question.kept
        sizes = (queries.nbytes, 8 * count * kept, 4 * count)
        at = run.arena.take(sum(size + 64 for size in sizes))
        if at is None:
            return "busy"
        rows_at = at + -(-sizes[0] // 64) * 64
        bounds_at = rows_at + -(-sizes[1] // 64) * 64
        run.arena.array("<f4", queries.shape, at)[:] = queries
        waiter = Waiter(lambda: run.arena.give(at, sum(size + 64 for size in sizes)), self._count_late)
        with self._lock:
            ticket = self._owe(segment, waiter.settle)
        self._say(
            run,
            Ask(
                ticket,
                segment,
                at,
                count,
                rows_at,
                bounds_at,
                kept,
                question.candidates,
                question.probes,
                question.ef,
                number,
                question.exact,
            ),
        )
        return Pending(self.count, run.arena, waiter, (count, kept), (rows_at, bounds_at))

    def _count_late(self, by: int) -> None:
        """Count an answer that is late, or that has come at last."""
        with self._lock:
            self._late = max(0, self._late + by)

    def _known(self, run: _Run, selection: Selection) -> int | None:
        """Return the number by which the worker knows a selection, telling it first where it does not."""
        key = id(selection)
        with self._lock:
            found = self._selections.get(key)
            if found is not None and found[2] is run:
                self._selections.move_to_end(key)
                return found[1]
        size = selection.bitmap.nbytes
        at = run.arena.take(size)
        if at is None:
            return None
        run.arena.array("u1", (size,), at)[:] = selection.bitmap
        gone: int | None = None
        with self._lock:
            self._numbers += 1
            number = self._numbers
            # The selection is kept as long as its number is: its id is no one else's meanwhile.
            self._selections[key] = (selection, number, run)
            if len(self._selections) > SELECTIONS_MAX:
                gone = self._selections.popitem(last=False)[1][1]
            ticket = self._owe("", lambda _: run.arena.give(at, size))
        self._say(run, Select(ticket, number, at, size))
        if gone is not None:
            self._say(run, Forget(gone))
        return number

    def _owe(self, segment: str, settle: Callable[[Done | None], None]) -> int:
        """Note an answer that the worker owes; return its number. With the lock held."""
        self._numbers += 1
        self._owed[self._numbers] = _Owed(segment, time.monotonic(), settle)
        return self._numbers

    def _say(self, run: _Run, message: Any) -> None:
        """Send; who is gone is noticed by the supervising thread, which settles what is owed."""
        with contextlib.suppress(OSError):
            run.channel.send(message)
        if run is not self._run and isinstance(message, Load | Drop | Select | Ask):
            # Its life ended before the answer was noted: nobody else will settle it.
            with self._lock:
                owed = self._owed.pop(message.id, None)
            if owed is not None:
                owed.settle(None)

    # -- the worker's life ------------------------------------------------------------------------------------------

    def _supervise(self) -> None:
        pause_s = BACK_OFF_S
        while not self._closing.is_set():
            born_s = time.monotonic()
            try:
                run = self._begun()
            except OSError as exc:
                self.problem = f"the worker cannot be started: {exc}"
            else:
                watch = threading.Thread(target=self._watch, args=(run,), name="vecstore-watch", daemon=True)
                watch.start()
                self._receive(run)
                self._end(run)
                watch.join()
            if self._closing.is_set():
                return
            self.restarts += 1
            pause_s = BACK_OFF_S if time.monotonic() - born_s > STEADY_S else pause_s
            _log.warning("device %s: %s; started again in %.1f s", self.name, self.problem, pause_s)
            self._changed()
            self._closing.wait(pause_s)
            pause_s = min(2 * pause_s, BACK_OFF_S_MAX)

    def _begun(self) -> _Run:
        ours, theirs = socket.socketpair()
        arena = Arena(self.options.arena_bytes)
        package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([package, *filter(None, sys.path)])}
        if self.options.backend == "cuda":
            if "CUDA_VISIBLE_DEVICES" not in environment:
                # Numbers are the driver's then, as NVML counts: CUDA's own order begins with the fastest.
                environment.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
            environment["CUDA_VISIBLE_DEVICES"] = self.options.device
        command = [sys.executable, "-m", "vecstore.index.worker", str(theirs.fileno()), str(arena.file)]
        command.append(msgspec.json.encode(self.options).decode())
        try:
            # A session of its own: what interrupts the engine's terminal is the engine's to handle.
            process = subprocess.Popen(
                command,
                pass_fds=(theirs.fileno(), arena.file),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
        except BaseException:
            ours.close()
            arena.close()
            raise
        finally:
            theirs.close()
        run = _Run(process, Channel(ours, Reply), arena)
        with self._lock:
            self._run = run
            self.problem = ""
            if self._closing.is_set():
                run.channel.close()
        return run

    def _receive(self, run: _Run) -> None:
        while (message := run.channel.receive()) is not None:
            if isinstance(message, Ready):
                run.ready = message
                self._changed()
                continue
            if message.problem == "start":
                self.problem = f"the worker did not start: {message.detail}"
                continue
            with self._lock:
                self._used = message.used
                owed = self._owed.pop(message.id, None)
            if owed is not None:
                owed.settle(message)

    def _watch(self, run: _Run) -> None:
        """End a worker that does not come up, or owes an answer for too long."""
        born_s = time.monotonic()
        while run.process.poll() is None and not self._closing.wait(0.5):
            now_s = time.monotonic()
            with self._lock:
                oldest_s = min((owed.since_s for owed in self._owed.values() if owed.segment), default=now_s)
            is_building = any(not one.ready for one in self.segments().values())
            hangs = now_s - oldest_s > (10 * HANG_S if is_building else HANG_S)
            if hangs or (run.ready is None and now_s - born_s > START_S_MAX):
                self.problem = "the worker hangs"
                run.process.kill()
                return

    def _end(self, run: _Run) -> None:
        """Bury a worker: whatever it owed is settled, and what it held is gone."""
        if self._closing.is_set():
            # It was told, and has nothing to lose; it may be in a long call.
            with contextlib.suppress(subprocess.TimeoutExpired):
                run.process.wait(0.5)
        run.process.kill()
        code = run.process.wait()
        run.channel.close()
        with self._lock:
            self._run = None
            owed, self._owed = self._owed, {}
            for segment in {one.segment for one in owed.values() if one.segment}:
                self._strikes.setdefault(segment, []).append(time.monotonic())
            self._loaded.clear()
            self._selections.clear()
            self._used = self._late = 0
            # What the worker or its watch has said is more than how it ended.
            if not self.problem:
                self.problem = f"the worker ended: {_cause(code)}"
        for one in owed.values():
            one.settle(None)
        run.arena.close()


def _cause(code: int) -> str:
    if code < 0:
        with contextlib.suppress(ValueError):
            return signal.Signals(-code).name
    return f"exit code {code}"
