"""The standby's side of the scrub: halts its applying at a mark for as long as a pin takes, and compares.

Pure: messages, reports and time in, actions out. It compares only with the store that it follows, one mark at a time; a
newer mark takes the place of an older one. Sums that are not equal are no finding yet: the primary is asked what it has
in those ranges, and recomputes the digest of the whole collection before it answers, since a range alone does not tell
who is wrong. Its answer settles it: either the primary says that it is damaged, and then nothing is taken from it, or
each point that differs has a name, and the store is to stop. An answer that does not come settles nothing: then that
range is asked for again.

Invariant: `Stop` is said of points that were compared one by one, at one LSN, with a primary whose whole collection has
the digest that its log gave.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from .durable import Difference
from .scrub import Bounds, Canary, Listing, Mark, Message, Part, Recheck, Sum, Verdict, Verified, Want
from .scrub_primary import MARK_S, PROOF_S, Alarm, Forget, Send

__all__ = ["Clear", "Compare", "Halt", "Match", "Note", "ScrubStandby", "Stop"]

RECHECK_S = 2.0
"""Ranges that are to be compared again are asked for so often."""


class _Action(msgspec.Struct, frozen=True):
    """What is to be done: a value."""


class Halt(_Action, frozen=True):
    """Pin the contents when exactly this LSN is applied; report `pinned`, or `missed` where it is past."""

    mark: int
    lsn: int


class Compare(_Action, frozen=True):
    """Sum up the same ranges, ask the same canaries; report `compared`, or `failed`."""

    mark: int
    parts: tuple[Part, ...]
    canaries: tuple[Canary, ...]


class Match(_Action, frozen=True):
    """Compare a listing point by point; report `matched`, or `failed`."""

    mark: int
    listing: Listing


class Stop(_Action, frozen=True):
    """Apply nothing more, durably."""

    differences: tuple[Difference, ...]


class Clear(_Action, frozen=True):
    """These ranges were found equal at an LSN: what differed in them does not any more."""

    ranges: tuple[Bounds, ...]
    lsn: int


class Note(_Action, frozen=True):
    """Remember, durably some time, that everything was equal at this LSN or later."""

    lsn: int


Action = Send | Halt | Compare | Match | Stop | Clear | Note | Forget | Alarm


@dataclass
class _Held:
    """The mark that is under way."""

    sender: str
    mark: Mark
    deadline_s: float
    is_pinned: bool = False
    sums: Sum | None = None
    is_comparing: bool = False
    wanted: tuple[Bounds, ...] = ()
    is_listed: bool = False


class ScrubStandby:
    """Not thread-safe.

    Attributes
    ----------
    contents
        Names the contents that are here.
    primary_damage
        What the primary last found wrong with itself; empty where it did not.
    canaries
        Exact searches that were compared, and how many of them had another answer.
    """

    def __init__(self, mint: Callable[[], int]) -> None:
        self._mint = mint
        self._held: _Held | None = None
        self._asked_s = 0.0
        self._suspects: tuple[Bounds, ...] = ()
        self.contents = mint()
        self.primary_damage = ""
        self.canaries = [0, 0]

    def stop(self) -> list[Action]:
        """Have other contents, or be a standby no longer: forget all."""
        actions: list[Action] = [] if self._held is None else [Forget(self._held.mark.mark)]
        self._held, self._suspects, self.primary_damage = None, (), ""
        self.contents = self._mint()
        return actions

    # -- time ----------------------------------------------------------------------------------------------------------

    def tick(self, primary: str, doubtful: Sequence[Bounds], now_s: float) -> list[Action]:
        """Drop a mark that nothing came of; ask for ranges that are to be compared again.

        Parameters
        ----------
        primary
            The store that is followed; empty where this one compares nothing now.
        doubtful
            Ranges that differed and were mended.
        """
        held = self._held
        if held is not None:
            if primary and now_s < held.deadline_s:
                return []
            self._suspects = self._suspects or held.wanted
            return self._end("missed")
        ranges = tuple(doubtful) or self._suspects
        if not primary or not ranges or now_s - self._asked_s < RECHECK_S:
            return []
        self._asked_s = now_s
        return [Send(primary, Recheck(ranges))]

    def _end(self, word: str) -> list[Action]:
        """End the mark that is under way, and say what came of it: who gave it waits for that."""
        held = self._held
        assert held is not None
        self._held = None
        return [self._said(held.sender, held.mark.mark, word), Forget(held.mark.mark)]

    def _said(self, to: str, mark: int, word: str) -> Action:
        return Send(to, Verdict(mark, word, self.contents))

    # -- messages ------------------------------------------------------------------------------------------------------

    def step(self, sender: str, message: Message, primary: str, now_s: float) -> list[Action]:
        """Take a message; `primary` is the store that is followed, empty where this one compares nothing now."""
        if sender != primary:
            return [self._said(sender, message.mark, "unfit")] if isinstance(message, Mark) else []
        match message:
            case Mark():
                return self._mark(message, primary, now_s)
            case Sum() if self._is_held(message.mark):
                return self._sum(message)
            case Listing() if self._is_held(message.mark):
                return self._listing(message)
            case Verified() if message.contents == self.contents:
                self.primary_damage = ""
                return [Note(message.lsn)]
        return []

    def _is_held(self, mark: int) -> bool:
        return self._held is not None and self._held.mark.mark == mark

    def _mark(self, message: Mark, primary: str, now_s: float) -> list[Action]:
        if self._is_held(message.mark):
            return [self._said(primary, message.mark, "waiting")]
        before: list[Action] = []
        if self._held is not None:
            before = [Forget(self._held.mark.mark)]
        self._held = _Held(primary, message, now_s + MARK_S)
        return [*before, Halt(message.mark, message.lsn), self._said(primary, message.mark, "waiting")]

    def _sum(self, message: Sum) -> list[Action]:
        held = self._held
        assert held is not None
        if message.damage:
            alarm = Alarm(f"the primary's own points are damaged, nothing is copied from it: {message.damage}")
            is_new = message.damage != self.primary_damage
            self.primary_damage = message.damage
            return [*([alarm] if is_new else []), *self._end("differs")]
        held.sums = held.sums or message
        return self._compare()

    def _compare(self) -> list[Action]:
        held = self._held
        assert held is not None
        if not held.is_pinned or held.sums is None or held.is_comparing:
            return []
        held.is_comparing = True
        return [Compare(held.mark.mark, held.sums.parts, held.sums.canaries)]

    def _listing(self, message: Listing) -> list[Action]:
        held = self._held
        assert held is not None
        if message.ranges != held.wanted or held.is_listed:
            return []
        held.is_listed = True
        if not message.damage:
            return [Match(held.mark.mark, message)]
        self.primary_damage = message.damage
        alarm = Alarm(f"this store and its primary differ, and it is the primary's that is wrong: {message.damage}")
        return [alarm, *self._end("differs")]

    # -- reports -------------------------------------------------------------------------------------------------------

    def pinned(self, mark: int, chain: bytes) -> list[Action]:
        """The contents at the mark's LSN are pinned, with this chain."""
        held = self._held
        if held is None or held.mark.mark != mark:
            return [Forget(mark)]
        if chain != held.mark.chain:
            return self._end("missed")
        held.is_pinned = True
        return self._compare()

    def failed(self, mark: int) -> list[Action]:
        """This store is past the mark's LSN, or could not do what was to be done."""
        return self._end("missed") if self._is_held(mark) else [Forget(mark)]

    def compared(
        self,
        mark: int,
        unequal: tuple[Bounds, ...],
        canaries: tuple[int, int],
        doubtful: Sequence[Bounds],
        now_s: float,
    ) -> list[Action]:
        """Take what was found: ranges that are not equal; how many canaries were asked, and answered otherwise."""
        held = self._held
        if held is None or held.mark.mark != mark:
            return [Forget(mark)]
        assert held.sums is not None
        self.canaries = [self.canaries[0] + canaries[0], self.canaries[1] + canaries[1]]
        equal = {part.bounds for part in held.sums.parts} - set(unequal)
        self._suspects = tuple(bounds for bounds in self._suspects if bounds not in equal)
        cleared = tuple(bounds for bounds in doubtful if bounds in equal)
        actions: list[Action] = [Clear(cleared, held.mark.lsn)] if cleared else []
        if canaries[1]:
            text = f"{canaries[1]} of {canaries[0]} exact searches at LSN {held.mark.lsn} have another answer than"
            actions.append(Alarm(f"{text} those of the primary: an index or its rows are damaged on one side"))
        if not unequal:
            return [*actions, *self._end("answers" if canaries[1] else "equal")]
        held.wanted, held.deadline_s = tuple(unequal), now_s + PROOF_S
        return [*actions, Send(held.sender, Want(mark, held.wanted))]

    def matched(self, mark: int, differences: tuple[Difference, ...]) -> list[Action]:
        """A listing was compared: what differs."""
        if not self._is_held(mark):
            return [Forget(mark)]
        # Nothing differs by the points though the sums did: what was read the second time was read rightly.
        ends = self._end("differs" if differences else "missed")
        return [Stop(differences), *ends] if differences else ends
