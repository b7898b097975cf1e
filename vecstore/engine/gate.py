"""The gate: so many searches at once, one a core, the others wait in line.

Tokens in a `SimpleQueue`, whose waiting is done in C: a semaphore of the `threading` module takes a lock and a
condition
of its own for each waiter, which cost a third of the rate of eight callers.
"""

from __future__ import annotations

from queue import Empty, SimpleQueue

__all__ = ["Gate"]


class Gate:
    """Lets a number of callers through at once. Thread-safe.

    Parameters
    ----------
    places
        How many.
    """

    def __init__(self, places: int) -> None:
        self._tokens: SimpleQueue[None] = SimpleQueue()
        for _ in range(places):
            self._tokens.put(None)

    def enter(self, timeout_s: float | None) -> bool:
        """Wait for a place; False where there was none in time."""
        try:
            self._tokens.get(timeout=timeout_s)
        except Empty:
            return False
        return True

    def leave(self) -> None:
        """Give the place back."""
        self._tokens.put(None)
