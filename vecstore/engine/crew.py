"""The crew: threads that take the other parts of a batch while the caller does the first.

A thread that is woken starts on the core of its waker on some kernels, though other cores are idle, and waits there
until the waker is done: a batch in two parts then takes as long as in one. So a thread of the crew is kept off the core
that the caller runs on, where the system can tell which one that is; and a part that no thread has begun when the
caller is done with its own is done by the caller.

Not here: how many parts may be at work at once (`gate`).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

__all__ = ["Crew"]


def _core_teller() -> Callable[[], int] | None:
    """Return a function that tells the core of the calling thread, if there is one."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    # Its call is too short to give the interpreter lock away.
    return getattr(ctypes.PyDLL(None), "sched_getcpu", None)


_core = _core_teller()
T = TypeVar("T")


class _Part(Generic[T]):
    """A call that whoever comes first makes: the thread that was woken for it, or the caller."""

    __slots__ = ("_call", "_claim", "_done", "_error", "_result")

    def __init__(self, call: Callable[[], T]) -> None:
        self._call = call
        self._error: BaseException | None = None
        self._claim = threading.Lock()
        self._done = threading.Lock()
        self._done.acquire()

    def run(self) -> None:
        """Make the call, unless somebody does already."""
        if not self._claim.acquire(blocking=False):
            return
        try:
            self._result = self._call()
        except BaseException as exc:  # noqa: BLE001  (whatever it is, the caller must hear of it)
            self._error = exc
        self._done.release()

    def result(self) -> T:
        """Wait for the end of the call; return what it returned or raise what it raised."""
        with self._done:
            if self._error is not None:
                raise self._error
            return self._result


class _Member:
    """A thread of the crew, which waits for a part, does it, and waits for the next."""

    def __init__(self, free: deque[_Member], name: str) -> None:
        self._free = free
        self._parts: SimpleQueue[_Part[Any] | None] = SimpleQueue()
        self._kept_off: tuple[int, set[int]] | None = None
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)
        self._thread.start()

    def give(self, part: _Part[Any] | None) -> None:
        """Let the thread do a part; None ends it."""
        self._parts.put(part)

    def keep_off(self, core: int, allowed: set[int]) -> None:
        """Let the thread run on any of these cores but one."""
        if self._kept_off == (core, allowed) or self._thread.native_id is None:
            return
        # What the system doesn't allow is left to it.
        with contextlib.suppress(OSError):
            os.sched_setaffinity(self._thread.native_id, allowed - {core} or allowed)
        self._kept_off = (core, allowed)

    def join(self) -> None:
        """Wait for the thread's end."""
        self._thread.join()

    def _loop(self) -> None:
        while (part := self._parts.get()) is not None:
            part.run()
            # Nothing that the part holds may live until the next one.
            del part
            self._free.append(self)


class Crew:
    """Threads that help callers. Thread-safe; each thread starts when it is first needed.

    Parameters
    ----------
    count
        How many threads at most.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._lock = threading.Lock()
        self._members: list[_Member] = []
        self._free: deque[_Member] = deque()

    def run(self, calls: Sequence[Callable[[], T]]) -> list[T]:
        """Make all calls, the first in this thread; whatever no other thread has begun by then follows it."""
        parts = [_Part(call) for call in calls]
        for part in parts[1:]:
            member = self._taken()
            if member is None:
                break
            if _core is not None:
                member.keep_off(_core(), os.sched_getaffinity(0))
            member.give(part)
        for part in parts:
            part.run()
        return [part.result() for part in parts]

    def close(self) -> None:
        """End the threads, each after its part."""
        with self._lock:
            members, self._members = self._members, []
            self._count = 0
        for member in members:
            member.give(None)
        for member in members:
            member.join()

    def _taken(self) -> _Member | None:
        try:
            return self._free.pop()
        except IndexError:
            pass
        with self._lock:
            if len(self._members) >= self._count:
                return None
            member = _Member(self._free, f"vecstore-search_{len(self._members)}")
            self._members.append(member)
            return member
