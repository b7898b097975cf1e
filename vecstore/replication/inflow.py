"""Holding back what a primary sends while this store has no room for it: the bounds of writers, for a standby.

A writer waits for the builder, and is refused by the budgets of memory and disk. Records of another store can neither
be refused nor left out; so whoever reads them from the link waits here with a frame, and what is behind it waits in
the network and at the primary. The driver does not wait: it goes on to acknowledge what is durable, to carry out
commands and to be told the time. While a frame is held, the same frame without its records is passed on now and then:
so the standby hears its primary, and the primary its standby, and a stream that stands still is seen to stand still.

Where building has failed nothing waits for it: rows are compared until it succeeds, and memory is the bound.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from threading import Lock

import msgspec

from ..engine.engine import Engine
from ..record import Kind, Record
from .messages import Frame

__all__ = ["Inflow"]

WAIT_S = 0.1


class Inflow:
    """Decides when records may go on to the driver. Thread-safe: each link has a reader of its own.

    Parameters
    ----------
    engine
        Returns the engine that is open now.
    pass_on
        Takes a frame without records, for who waits; never waits itself.
    is_over
        Says of a sender and a session whether their records are waited for no more; of "" and 0, whether anything is.
    on_full
        Is told, once each time, that memory or disk hold records back, and why: what builds alone does not end that.
    beat_s
        So often a held frame is passed on without its records.

    Attributes
    ----------
    why
        Why records are held back now; empty while none are.
    """

    def __init__(
        self,
        engine: Callable[[], Engine],
        pass_on: Callable[[str, Frame], None],
        is_over: Callable[[str, int], bool],
        on_full: Callable[[str], None],
        beat_s: float,
    ) -> None:
        self._engine, self._pass_on, self._is_over, self._on_full = engine, pass_on, is_over, on_full
        self._beat_s = beat_s
        self._lock = Lock()
        self._session = 0
        self._passed: deque[tuple[int, Counter[int]]] = deque()
        self._is_full = False
        self.why = ""

    def admit(self, sender: str, frame: Frame) -> None:
        """Wait with a frame until there is room for its records, or nobody waits for them any more."""
        beaten_s = time.monotonic()

        def beat() -> None:
            nonlocal beaten_s
            if time.monotonic() - beaten_s >= self._beat_s:
                beaten_s = time.monotonic()
                self._pass_on(sender, msgspec.structs.replace(frame, records=()))

        self._wait(frame.records, frame.session, lambda: self._is_over(sender, frame.session), beat)

    def admit_archived(self, records: Sequence[Record]) -> None:
        """Wait with records of an archive until there is room for them."""
        self._wait(records, 0, lambda: self._is_over("", 0), lambda: None)

    def _wait(
        self, records: Sequence[Record], session: int, is_over: Callable[[], bool], beat: Callable[[], None]
    ) -> None:
        rows: Counter[int] = Counter()
        for record in records:
            if record.header.kind == Kind.UPSERT:
                rows[record.header.collection] += record.header.count
        size = sum(record.size for record in records)
        try:
            while not is_over() and self._is_held(rows, size, session):
                beat()
                self._engine().await_progress(WAIT_S)
        finally:
            self.why = ""
        if records and not is_over():
            with self._lock:
                self._passed.append((records[-1].lsn, rows))

    def _is_held(self, rows: Counter[int], size: int, session: int) -> bool:
        engine = self._engine()
        self.why, is_full = engine.lacks_room(self._under_way(engine, rows, session), size, has_upserts=bool(rows))
        if is_full and not self._is_full:
            self._on_full(self.why)
        self._is_full = is_full
        return bool(self.why)

    def _under_way(self, engine: Engine, rows: Counter[int], session: int) -> dict[int, int]:
        """Return how many rows were passed on and are in no view yet, of the collections that are asked for."""
        with self._lock:
            if session != self._session:
                # What an older session brought is applied, or never will be.
                self._session = session
                self._passed.clear()
            while self._passed and self._passed[0][0] <= engine.state.view.lsn:
                self._passed.popleft()
            return {number: sum(passed[number] for _, passed in self._passed) for number in rows}
