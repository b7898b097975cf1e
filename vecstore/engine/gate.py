"""The gate: so many searches at once, one a core, the others wait in line.

First come, first served: who leaves hands its place to the one that has waited longest. A queue of free places, which
whoever runs may take, is a tenth faster under many callers, for it saves their changes of threads, and starves: of
eight callers that never rest one was seen to wait for a second and a half.
"""

from __future__ import annotations

import threading
from collections import deque

__all__ = ["Gate"]


class Gate:
    """Lets a number of callers through at once, in the order in which they came. Thread-safe.

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
        self.entered = 0
        self._line: deque[threading.Lock] = deque()

    def enter(self, timeout_s: float | None) -> bool:
        """Wait for a place; False where there was none in time."""
        with self._lock:
            self.entered += 1
            if self._free:
                self._free -= 1
                return True
            turn = threading.Lock()
            turn.acquire()
            self._line.append(turn)
        if turn.acquire(timeout=-1 if timeout_s is None else min(timeout_s, threading.TIMEOUT_MAX)):
            return True
        with self._lock:
            if turn not in self._line:
                # The place came while the time ran out.
                return True
            self._line.remove(turn)
            return False

    def leave(self) -> None:
        """Give the place to who has waited longest, or back."""
        with self._lock:
            if self._line:
                self._line.popleft().release()
            else:
                self._free += 1
