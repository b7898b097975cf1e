"""An answer that a device owes: who waits for it, for how long, and when its bytes of shared memory are free again."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from .answer import Answer
from .channel import Arena, Done

__all__ = ["Pending", "Waiter", "answer_s_max"]

ANSWER_S_MAX = 2.0
"""A search waits so long for a device; then the CPU answers, and nobody asks until the device has caught up."""
ANSWER_S_EACH = 0.002
"""So much longer for each query of the question."""


def answer_s_max(queries: int) -> float:
    """Return how long an answer to so many queries is waited for."""
    return ANSWER_S_MAX + ANSWER_S_EACH * queries


LATE: Any = object()


class Waiter:
    """Who waits for an answer. The bytes of the arena go back when the worker is done with them and the caller too."""

    def __init__(self, give_back: Callable[[], None], count_late: Callable[[int], None]) -> None:
        self._give_back, self._count_late = give_back, count_late
        self._lock = threading.Lock()
        self._come = threading.Lock()
        self._come.acquire()
        self._gone = False
        self._done: Done | None = None

    def settle(self, done: Done | None) -> None:
        """Bring the answer, None where the worker died."""
        with self._lock:
            self._done = done
            if self._gone:
                self._give_back()
                self._count_late(-1)
        self._come.release()

    def wait(self, timeout_s: float) -> Any:
        """Wait for the answer; None where the worker died, `LATE` where the time ran out."""
        if self._come.acquire(timeout=max(0.0, timeout_s)):
            return self._done
        with self._lock:
            if self._come.acquire(blocking=False):
                return self._done
            self._gone = True
            self._count_late(1)
        return LATE

    def finish(self) -> None:
        """Say that the answer was read."""
        self._give_back()


class Pending:
    """An answer under way.

    Parameters
    ----------
    count
        Told why there was no answer, or "" where there was one.
    arena, places
        Where rows and bounds will lie.
    waiter
        Woken by it.
    shape
        Queries, and rows of each.
    """

    def __init__(
        self,
        count: Callable[[str], None],
        arena: Arena,
        waiter: Waiter,
        shape: tuple[int, int],
        places: tuple[int, int],
    ) -> None:
        self._count, self._arena, self._waiter, self._shape, self._places = count, arena, waiter, shape, places

    def answer(self, timeout_s: float = float("inf")) -> Answer | str:
        """Wait for the answer; return it, or why there is none. To be called once."""
        outcome = self._waiter.wait(min(timeout_s, answer_s_max(self._shape[0])))
        problem = "slow" if outcome is LATE else "died" if outcome is None else str(outcome.problem)
        if outcome is None or outcome is LATE:
            self._count(problem)
            return problem
        try:
            self._count(problem)
            if problem:
                return problem
            rows = self._arena.array("<i8", self._shape, self._places[0]).copy()
            return Answer(rows, self._arena.array("<f4", self._shape[:1], self._places[1]).copy())
        finally:
            self._waiter.finish()
