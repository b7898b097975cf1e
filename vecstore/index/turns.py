"""Whose turn it is on a device: questions that ask the same are one call, whoever and whatever waits between them.

Questions change nothing, so that one may overtake another; no question overtakes a message that does change something
(a selection, a segment that goes), and none is overtaken by one.

Pure: no I/O, no FAISS.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from .channel import Ask, Message

__all__ = ["QUERIES_TOGETHER_MAX", "Turns"]

QUERIES_TOGETHER_MAX = 4_096


class Turns:
    """What waits for a device. For one thread."""

    def __init__(self) -> None:
        self._asks: dict[tuple[Any, ...], deque[Ask]] = {}
        self._later: deque[Message] = deque()
        """Begins with a message that is no question."""

    def __bool__(self) -> bool:
        return bool(self._asks or self._later)

    def add(self, message: Message) -> None:
        """Have a message wait."""
        if isinstance(message, Ask) and not self._later:
            self._asks.setdefault(_asked(message), deque()).append(message)
        else:
            self._later.append(message)

    def take(self) -> list[Ask] | Message:
        """Return the next message, or questions that are one call: those that wait longest, with all that ask the same.

        Raises
        ------
        LookupError
            Nothing waits.
        """
        if not self._asks:
            message = self._later.popleft()
            while self._later and isinstance(ask := self._later[0], Ask):
                self._later.popleft()
                self._asks.setdefault(_asked(ask), deque()).append(ask)
            return message
        key = next(iter(self._asks))
        waiting = self._asks.pop(key)
        asks = [waiting.popleft()]
        count = asks[0].count
        while waiting and count + waiting[0].count <= QUERIES_TOGETHER_MAX:
            asks.append(waiting.popleft())
            count += asks[-1].count
        if waiting:
            # Others come first: however many ask this, nobody waits for all of them.
            self._asks[key] = waiting
        return asks


def _asked(ask: Ask) -> tuple[Any, ...]:
    return ask.segment, ask.kept, ask.candidates, ask.probes, ask.ef, ask.selection, ask.exact
