"""Calls that last, looked at again: whether their callers still may what they were let in for.

A call is let in by what its caller showed and was granted at that moment. Most end within milliseconds. Streams, and
calls that wait, may last for hours, in which a token is taken out of its file, a grant is made smaller, or a JSON Web
Token expires. So all that are open are asked about again every second, all in the same way, whatever may have changed;
one whose caller may not any more is ended with the error that a new call would get.

Who decides is the guard, by `check`; who ends calls is the pool, whose ticker also drives this.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from ..errors import VecstoreError
from .pool import Pool, Ticket

__all__ = ["CHECK_EVERY_S", "Watch"]

CHECK_EVERY_S = 1.0
_LOG = logging.getLogger("vecstore.server")


class Watch:
    """The calls that are looked at again. Thread-safe: a call is added and removed by the thread that works on it.

    Parameters
    ----------
    pool
        Ends calls.
    check
        Raises the error that a call is to be ended with.
    """

    def __init__(self, pool: Pool, check: Callable[[Ticket], None]) -> None:
        self._pool, self._check = pool, check
        self._open: dict[Ticket, None] = {}
        self._next_s = 0.0

    def begin(self, ticket: Ticket) -> None:
        """Look at a call from now on."""
        self._open[ticket] = None

    def end(self, ticket: Ticket) -> None:
        """Look at it no longer: it is over."""
        self._open.pop(ticket, None)

    def look(self, now_s: float) -> None:
        """Look at all of them, if it is time. Never raises."""
        if now_s < self._next_s:
            return
        self._next_s = now_s + CHECK_EVERY_S
        for ticket in list(self._open):
            try:
                self._check(ticket)
            except VecstoreError as error:
                self.end(ticket)
                self._pool.end(ticket, error)
            except Exception:  # noqa: BLE001 - the others are to be looked at all the same
                _LOG.exception("an open call could not be looked at")
