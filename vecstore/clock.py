"""Injected time: the only place of the package that reads a clock.

Commit times are microseconds since the Unix epoch (UTC). A `Clock` gives wall time, which may jump, and monotonic time,
which may not; `CommitClock` makes of both a sequence that never goes back and never runs ahead of the monotonic clock,
so a wall clock that jumps to 2100 and back leaves commit times usable.
"""

from __future__ import annotations

import time
from typing import Protocol

__all__ = ["Clock", "CommitClock", "SystemClock"]


class Clock(Protocol):
    """A source of time. Thread-safe."""

    def wall_us(self) -> int:
        """Microseconds since the Unix epoch; may jump in either direction."""
        ...

    def monotonic_s(self) -> float:
        """Seconds since some start; never goes back."""
        ...


class SystemClock:
    """The machine's clocks."""

    def wall_us(self) -> int:
        return time.time_ns() // 1000

    def monotonic_s(self) -> float:
        return time.monotonic()


class CommitClock:
    """Commit times of one log: strictly usable as an order, close to wall time.

    A commit time is at least the previous one. It steps forward by no more than the monotonic clock did since the last
    one, so one jump of the wall clock is absorbed instead of followed.

    Parameters
    ----------
    clock
        Where time comes from.
    last_us
        The commit time of the last record of the log, 0 for an empty one.
    """

    def __init__(self, clock: Clock, last_us: int) -> None:
        self._clock = clock
        self._monotonic_s = clock.monotonic_s()
        # After a restart the time that passed is not known from the monotonic clock: wall time is believed once.
        self._last_us = max(last_us, clock.wall_us()) if last_us == 0 else last_us
        self._restarted = last_us != 0

    def resume(self, last_us: int) -> None:
        """Go on behind a record that another store wrote, as behind the last one when a store is opened."""
        self._monotonic_s = self._clock.monotonic_s()
        self._last_us = max(self._last_us, last_us)
        self._restarted = True

    def next_us(self) -> int:
        """Return the commit time of the next record, in microseconds since the Unix epoch."""
        wall_us, now_s = self._clock.wall_us(), self._clock.monotonic_s()
        if self._restarted:
            self._restarted = False
            latest_us = max(self._last_us, wall_us)
        else:
            latest_us = self._last_us + int((now_s - self._monotonic_s) * 1e6) + 1
        self._monotonic_s = now_s
        self._last_us = max(self._last_us, min(wall_us, latest_us))
        return self._last_us
