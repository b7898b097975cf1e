"""Halts: what is done when a store that is appended to has applied exactly one record, and none behind it.

To look at two stores of one history at the same LSN, the one that follows has to stand still there for a moment. The
writer goes past an LSN and cannot come back to it; the standby has not come to it yet: so a halt is set, and whoever
applies records cuts a run of them at its LSN.

Futures tell what came of it. A halt that nobody waits for any more is cancelled like any future; where that is too late
it has run, and what it made is the caller's.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple, TypeVar

from ..errors import Closed, InvalidArgument
from ..record import Record

__all__ = ["Halts"]

T = TypeVar("T")


class _Halt(NamedTuple):
    """What is done at an LSN."""

    lsn: int
    action: Callable[[], Any]
    future: Future[Any]

    def carry_out(self) -> None:
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            self.future.set_result(self.action())
        except BaseException as exc:  # noqa: BLE001  (who waits must hear of it, and applying goes on)
            self.future.set_exception(exc)

    def fail(self, exc: Exception) -> None:
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(exc)


class Halts:
    """The halts of one committer. `at`, `hold` and `release` may be called from any thread.

    Parameters
    ----------
    run
        Runs something in the committer's thread between two groups.
    tip_lsn
        Says there which record was applied last.
    """

    def __init__(self, run: Callable[[Callable[[], Any]], Any], tip_lsn: Callable[[], int]) -> None:
        self._run, self._tip_lsn = run, tip_lsn
        self._waiting: list[_Halt] = []
        self._released = threading.Event()
        self._held_until_s = 0.0

    # -- any thread --------------------------------------------------------------------------------------------------

    def at(self, lsn: int, action: Callable[[], T]) -> Future[T]:
        """Do something in the committer's thread when exactly the records up to an LSN are applied.

        At once where they are; `InvalidArgument` in the future where there are more. Keep it short: applying waits.
        """
        halt = _Halt(lsn, action, Future())
        self._run(lambda: self._take(halt))
        return halt.future

    def hold(self, seconds_max: float) -> int:
        """Apply no record that comes from now on, until released or for so long; return the last one that is applied.

        A run that came before may be applied yet.
        """
        self._released.clear()
        self._held_until_s = time.monotonic() + seconds_max
        lsn: int = self._run(self._tip_lsn)
        return lsn

    def release(self) -> None:
        """Let records be applied again."""
        self._held_until_s = 0.0
        self._released.set()

    # -- whoever appends ---------------------------------------------------------------------------------------------

    def wait(self) -> None:
        """Stand still while it is held."""
        until_s = self._held_until_s
        if until_s:
            self._released.wait(max(0.0, until_s - time.monotonic()))

    # -- the committer's thread --------------------------------------------------------------------------------------

    def _take(self, halt: _Halt) -> None:
        tip_lsn = self._tip_lsn()
        if tip_lsn == halt.lsn:
            halt.carry_out()
        elif tip_lsn > halt.lsn:
            halt.fail(_passed(halt.lsn, tip_lsn))
        else:
            self._waiting = [one for one in self._waiting if not one.future.cancelled()]
            self._waiting.append(halt)

    def room(self, records: Sequence[Record]) -> int:
        """Return how many of some records come up to the first halt in them."""
        stops = {halt.lsn for halt in self._waiting}
        return next((i for i, record in enumerate(records, 1) if record.lsn in stops), len(records))

    @property
    def is_set(self) -> bool:
        """Whether there is any halt."""
        return bool(self._waiting)

    def reach(self, lsn: int) -> None:
        """Do what is to be done at an LSN that was applied."""
        due = [halt for halt in self._waiting if halt.lsn <= lsn]
        self._waiting = [halt for halt in self._waiting if halt.lsn > lsn]
        for halt in due:
            if halt.lsn == lsn:
                halt.carry_out()
            else:
                halt.fail(_passed(halt.lsn, lsn))

    def close(self) -> None:
        """End those that wait: nothing is applied any more."""
        self.release()
        waiting, self._waiting = self._waiting, []
        for halt in waiting:
            halt.fail(Closed("the store is closed"))


def _passed(lsn: int, tip_lsn: int) -> InvalidArgument:
    return InvalidArgument(f"lsn: {lsn} given; the store is at {tip_lsn} already", details={"lsn": tip_lsn})
