"""The gate: so many searches at once, one a core, the others wait in line.

A place goes to who has waited longest, but not after each search where callers come back at once: to change threads
takes as long as a short search does, and eight callers that did it each time got half of what two get. So a caller that
came back at once the last time finds its place kept for the length of a turn; then the place goes to the head of the
line. A place that is kept in vain is seen by those in line, and goes to their head as well.
"""

from __future__ import annotations

import threading
import time
from collections import deque

__all__ = ["Gate"]

TURN_S = 0.002
"""So long those who come back at once are let in before the line: some twenty searches of a small collection."""
RETURN_S = 0.0002
"""Who comes back within this after leaving comes back at once."""


class _Caller(threading.local):
    """What a thread is known by: when it left last, and whether it had come back at once then."""

    left_s = float("-inf")
    returns = False


class Gate:
    """Lets a number of callers through at once. Thread-safe.

    Parameters
    ----------
    places
        How many.

    Attributes
    ----------
    entered
        How many have come so far: who works beside searches sees by it that there are any.
    """

    def __init__(self, places: int) -> None:
        self._lock = threading.Lock()
        self._free = places
        self._line: deque[threading.Lock] = deque()
        self._turn_ends_s = 0.0
        self._caller = _Caller()
        self.entered = 0

    def enter(self, timeout_s: float | None) -> bool:
        """Wait for a place; False where there was none in time."""
        now_s = time.monotonic()
        self._caller.returns = returns = now_s - self._caller.left_s < RETURN_S
        with self._lock:
            self.entered += 1
            if self._free and (not self._line or (returns and now_s < self._turn_ends_s)):
                self._free -= 1
                return True
            if not self._line:
                self._turn_ends_s = now_s + TURN_S
            turn = threading.Lock()
            turn.acquire()
            self._line.append(turn)
            ahead = len(self._line)
        return self._wait(turn, ahead, None if timeout_s is None else now_s + timeout_s)

    def _wait(self, turn: threading.Lock, ahead: int, deadline_s: float | None) -> bool:
        """Wait in line, and look now and then whether a place was kept in vain."""
        while True:
            # Each turn gives one place to the line: who is served by then is not woken to look.
            wait_s = 2 * TURN_S * ahead
            if deadline_s is not None:
                wait_s = max(0.0, min(wait_s, deadline_s - time.monotonic()))
            if turn.acquire(timeout=wait_s):
                return True
            now_s = time.monotonic()
            with self._lock:
                if turn not in self._line:
                    # The place came while the time ran out.
                    return True
                if self._free:
                    # Whoever saw it first, it is for the head of the line.
                    self._free -= 1
                    self._turn_ends_s = now_s + TURN_S
                    first = self._line.popleft()
                    if first is turn:
                        return True
                    first.release()
                if deadline_s is not None and now_s >= deadline_s:
                    self._line.remove(turn)
                    return False
                ahead = self._line.index(turn) + 1

    def leave(self) -> None:
        """Give the place to who has waited longest, or back."""
        self._caller.left_s = now_s = time.monotonic()
        with self._lock:
            if self._line and not (self._caller.returns and now_s < self._turn_ends_s):
                self._turn_ends_s = now_s + TURN_S
                self._line.popleft().release()
            else:
                self._free += 1
