"""What a writer said, and which states of a store are allowed after it died.

A `History` outlives many writers on one directory: each adds its lines, and after each crash `settle` compares the
store with the allowed states and takes the one that it finds as what the next writer starts from.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from ..support.writer import PRIVATE, SHARED, Intent, State, apply, owner

__all__ = ["Contents", "History"]

Contents = Mapping[str, Mapping[int | str, tuple[bytes, dict[str, Any]]]]
"""Points (bytes of the vector, payload) by id, by collection: all of a store."""


@dataclass
class History:
    """The history of one directory.

    Attributes
    ----------
    threads
        Of every writer.
    settled
        For each thread, the state that must be there, as far as nothing is open.
    open
        For each thread, the intents after that, in order, whose fate is not known: each may have happened if all before
        it did.
    tokens
        Of durable writes that were acknowledged, with their LSN.
    lsn
        The highest LSN acknowledged as durable.
    """

    threads: int
    settled: list[State] = field(default_factory=list)
    open: list[list[tuple[Intent, int | None]]] = field(default_factory=list)
    tokens: dict[str, int] = field(default_factory=dict)
    lsn: int = 0
    acknowledged: int = 0

    def __post_init__(self) -> None:
        self.settled = [{name: {} for name in SHARED} for _ in range(self.threads)]
        self.open = [[] for _ in range(self.threads)]

    def add(self, lines: Iterable[bytes]) -> None:
        """Follow what a writer said; a torn last line is left out."""
        for line in lines:
            try:
                said = json.loads(line)
            except ValueError:
                continue
            if "intent" in said:
                intent = Intent(**said["intent"])
                self.open[intent.thread].append((intent, None))
            elif "ack" in said:
                self._acknowledge(said["ack"])
            elif "error" in said and said["error"]["outcome"] == "refused":
                self.open[said["error"]["thread"]].pop()

    def _acknowledge(self, ack: dict[str, Any]) -> None:
        waiting = self.open[ack["thread"]]
        intent, _ = waiting[-1]
        assert intent.number == ack["number"], f"{ack} acknowledges another call than {intent}"
        self.acknowledged += 1
        if ack.get("ack") == "memory":
            waiting[-1] = (intent, ack["lsn"])
            return
        if "token" in ack:
            assert ack["lsn"] > 0
            self.tokens[ack["token"]] = ack["lsn"]
            self.lsn = max(self.lsn, ack["lsn"])
        if intent.do == "optimize":
            waiting.pop()  # It changes nothing, and says nothing of what was written before it.
            return
        # This thread's earlier writes stand before this one in the log.
        self._settle_open(intent.thread, len(waiting))

    def _settle_open(self, thread: int, count: int) -> None:
        for intent, _ in self.open[thread][:count]:
            apply(self.settled[thread], intent)
        del self.open[thread][:count]

    def settle(self, contents: Contents) -> None:
        """Assert that a store holds an allowed state (I1, I2), and continue from it."""
        for thread in range(self.threads):
            # What was acknowledged from memory is durable when a later record is.
            while self.open[thread] and (self.open[thread][0][1] or self.lsn + 1) <= self.lsn:
                self._settle_open(thread, 1)
            self._settle_thread(thread, _part(contents, thread, self.threads))

    def _settle_thread(self, thread: int, found: State) -> None:
        state, differences = self.settled[thread], []
        for count in range(len(self.open[thread]) + 1):
            if count:
                apply(state, self.open[thread][count - 1][0])
            difference = _difference(state, found)
            if difference is None:
                self.open[thread].clear()
                return
            differences.append(difference)
        fates = [f"{i.do} of {i.collection}, number {i.number}, {len(i.ids)} ids" for i, _ in self.open[thread]]
        raise AssertionError(
            f"thread {thread}: the store holds none of the allowed states; open: {fates}; differences: {differences}"
        )

    def acknowledged_contents(self) -> Contents:
        """Return what readers of the living store must see: what was acknowledged, and no open call."""
        seen = self.copy()
        for thread in range(seen.threads):
            seen.open[thread] = [(intent, lsn) for intent, lsn in seen.open[thread] if lsn is not None]
            seen._settle_open(thread, len(seen.open[thread]))
        return seen.contents()

    def contents(self) -> Contents:
        """Return all that must be in the store; only where nothing is open."""
        assert not any(self.open), "calls whose fate is open"
        merged: dict[str, dict[int | str, tuple[bytes, dict[str, Any]]]] = {}
        for state in self.settled:
            for name, points in state.items():
                merged.setdefault(name, {}).update(points)
        return merged

    def copy(self) -> History:
        """Return a history that can go another way from here."""
        return deepcopy(self)


def _part(contents: Contents, thread: int, threads: int) -> State:
    """Return what one thread is responsible for."""
    part: State = {
        name: {id: point for id, point in points.items() if owner(id, threads) == thread}
        for name, points in contents.items()
        if name in SHARED
    }
    if thread == 0:
        part.update({name: dict(contents[name]) for name in PRIVATE if name in contents})
    return part


def _difference(state: State, found: State) -> str | None:
    """Return where two states differ first, None where they do not."""
    for name in sorted(set(state) | set(found)):
        wanted, there = state.get(name), found.get(name)
        if wanted is None or there is None:
            if not wanted and not there and name in SHARED:
                continue  # A store that died before it was filled has no shared collections yet.
            return f"collection {name} is {'missing' if there is None else 'there'}"
        if wanted == there:
            continue
        lost = [id for id in wanted if id not in there]
        extra = [id for id in there if id not in wanted]
        other = [id for id in wanted if id in there and wanted[id] != there[id]]
        return (
            f"{name}: {len(lost)} lost {lost[:3]}, {len(extra)} too many {extra[:3]}, {len(other)} differ {other[:3]}"
        )
    return None
