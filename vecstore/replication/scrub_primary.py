"""The primary's side of the scrub: marks an LSN, walks on by one range, and asks a standby whether it has the same.

Pure: messages, reports and time in, actions out. One mark at a time, for one standby; whoever is due next is next. Each
standby has a round of its own: from where its last range ended, around all collections and back. A round ends when each
of its ranges was found equal; then everything was, at the round's first LSN or later, and the standby is told so. A
mark of which nothing comes is dropped, so that no pin lives long, and that standby is asked less often: it may know of
no scrub.

Invariant: the round moves on by "equal" alone, said of the mark that is under way by the contents that began the round.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import msgspec

from .scrub import Bounds, Canary, Entry, Listing, Message, Part, Recheck, Sum, Verdict, Verified, Want

__all__ = ["Alarm", "Forget", "Pin", "Prove", "ScrubPrimary", "Send", "Walk", "Walked"]

ANSWER_S = 3.0
"""A standby that knows of the scrub says within it that it has heard of a mark."""
MARK_S = 30.0
"""So long a mark lives, and the pin with it; longer only while a difference is being proven."""
PROOF_S = 200.0
QUIET_S_MAX = 3_600.0
RECHECKS_MAX = 64


class _Action(msgspec.Struct, frozen=True):
    """What is to be done: a value."""


class Send(_Action, frozen=True):
    """Send a message to a store; it may be lost."""

    to: str
    message: Message


class Pin(_Action, frozen=True):
    """Pin the contents as they are and send the mark from the same barrier; report `pinned`, or `failed`."""

    mark: int
    to: str


class Walk(_Action, frozen=True):
    """Sum up ranges, or the next points from a place on, and ask the canaries; report `walked`, or `failed`."""

    mark: int
    start: bytes
    ranges: tuple[Bounds, ...]


class Prove(_Action, frozen=True):
    """Recompute the digests of the ranges' whole collections, then list the ranges; report `proven`, or `failed`."""

    mark: int
    ranges: tuple[Bounds, ...]


class Forget(_Action, frozen=True):
    """Let the pin go."""

    mark: int


class Alarm(_Action, frozen=True):
    """Tell a human."""

    text: str


Action = Send | Pin | Walk | Prove | Forget | Alarm


class Walked(msgspec.Struct, frozen=True):
    """What a walk has found.

    Attributes
    ----------
    next_place
        Where the next one begins; empty where this one came to the end of the last collection.
    damaged
        Which of the parts hold points that are not as they were written.
    """

    parts: tuple[Part, ...]
    next_place: bytes
    canaries: tuple[Canary, ...] = ()
    damaged: tuple[Bounds, ...] = ()
    why: str = ""


@dataclass
class _Ward:
    """A standby as its primary sees it.

    Attributes
    ----------
    place
        Where its next range begins; empty at the beginning of a round.
    round_lsn
        Of the first mark of its round; 0 while there is none.
    contents
        Those that the round is about.
    quiet
        Marks in a row of which nothing came.
    """

    due_s: float
    place: bytes = b""
    round_lsn: int = 0
    contents: int = 0
    quiet: int = 0
    verified_lsn: int = 0
    rechecks: list[Bounds] = field(default_factory=list)

    def begin_again(self) -> None:
        """Walk from the first collection on."""
        self.place, self.round_lsn, self.contents = b"", 0, 0


@dataclass
class _Open:
    """The mark that is under way."""

    mark: int
    to: str
    session: int
    deadline_s: float
    lsn: int = 0
    ranges: tuple[Bounds, ...] = ()
    next_place: bytes | None = None
    is_heard: bool = False
    is_summed: bool = False


class ScrubPrimary:
    """Not thread-safe.

    Parameters
    ----------
    mint
        Gives random numbers of 64 bits.

    Attributes
    ----------
    every_s
        From the end of a mark to the next one of the same standby.
    damaged
        Ranges in which this store found its own points not as they were written, with why.
    """

    def __init__(self, mint: Callable[[], int], every_s: float) -> None:
        self._mint, self.every_s = mint, every_s
        self._wards: dict[str, _Ward] = {}
        self._open: _Open | None = None
        self.damaged: dict[Bounds, str] = {}

    def stop(self) -> list[Action]:
        """Be the primary no longer, or have other contents: forget all."""
        actions: list[Action] = [] if self._open is None else [Forget(self._open.mark)]
        self._open = None
        self._wards.clear()
        self.damaged.clear()
        return actions

    def verified_lsn(self, standby: str) -> int:
        """Return the LSN that a standby was last told to be verified through, 0 for none."""
        ward = self._wards.get(standby)
        return 0 if ward is None else ward.verified_lsn

    # -- time ----------------------------------------------------------------------------------------------------------

    def tick(self, standbys: Mapping[str, int], now_s: float) -> list[Action]:
        """Begin the next mark where one is due, and drop the one that nothing came of.

        Parameters
        ----------
        standbys
            Those that are fed, with the session of each: another one may be another process, which knows of no mark.
        """
        for name in standbys.keys() - self._wards.keys():
            self._wards[name] = _Ward(now_s + self.every_s)
        for name in self._wards.keys() - standbys.keys():
            # It may come back as another: with other contents, or none.
            self._wards[name].begin_again()
        now = self._open
        if now is not None:
            if standbys.get(now.to) != now.session or now_s >= now.deadline_s:
                return self._drop(now_s, is_quiet=not now.is_heard and now_s >= now.deadline_s)
            return []
        due = [(self._wards[name].due_s, name) for name in standbys if self._wards[name].due_s <= now_s]
        if not due:
            return []
        name = min(due)[1]
        self._open = _Open(self._mint(), name, standbys[name], now_s + MARK_S)
        return [Pin(self._open.mark, name)]

    def _drop(self, now_s: float, *, is_quiet: bool = False) -> list[Action]:
        """End the mark that is under way."""
        now = self._open
        assert now is not None
        ward = self._wards[now.to]
        ward.quiet = ward.quiet + 1 if is_quiet else 0
        ward.due_s = now_s + min(QUIET_S_MAX, self.every_s * 2.0 ** min(ward.quiet, 20))
        self._open = None
        return [Forget(now.mark)]

    # -- reports -------------------------------------------------------------------------------------------------------

    def failed(self, mark: int, now_s: float) -> list[Action]:
        """What was to be done for a mark could not be done."""
        return self._drop(now_s) if self._is_open(mark) else [Forget(mark)]

    def pinned(self, mark: int, lsn: int, now_s: float) -> list[Action]:
        """The contents are pinned, and the mark is sent."""
        now = self._open
        if now is None or now.mark != mark:
            return [Forget(mark)]
        now.lsn = lsn
        if not now.is_heard:
            now.deadline_s = now_s + ANSWER_S
        return []

    def walked(self, mark: int, found: Walked, now_s: float) -> list[Action]:
        """Ranges are summed up: send the sums, or say what is wrong with this store itself."""
        now = self._open
        if now is None or now.mark != mark:
            return [Forget(mark)]
        for part in found.parts:
            self.damaged.pop(part.bounds, None)
        if found.damaged:
            is_new = any(bounds not in self.damaged for bounds in found.damaged)
            self.damaged.update(dict.fromkeys(found.damaged, found.why))
            ward = self._wards[now.to]
            if not now.ranges:
                # Other ranges are still worth a look; but this round proves nothing.
                ward.place, ward.round_lsn = found.next_place, 0
            alarm = [Alarm(f"points of this primary are damaged, and its standby has a copy: {found.why}")]
            sent = Send(now.to, Sum(mark, (), damage=found.why))
            return [*(alarm if is_new else ()), sent, *self._drop(now_s)]
        now.next_place, now.is_summed = found.next_place, True
        return [Send(now.to, Sum(mark, found.parts, found.canaries))]

    def proven(
        self, mark: int, ranges: tuple[Bounds, ...], entries: tuple[Entry, ...], why: str, now_s: float
    ) -> list[Action]:
        """Whole collections are recomputed: list what is in the ranges, or say what is wrong with this store itself."""
        now = self._open
        if now is None or now.mark != mark:
            return [Forget(mark)]
        now.deadline_s = now_s + MARK_S
        if why:
            self.damaged.update(dict.fromkeys(ranges, why))
            alarm = Alarm(f"this primary differs from its own log, and its standby does not have to: {why}")
            return [alarm, Send(now.to, Listing(mark, ranges, damage=why))]
        return [Send(now.to, Listing(mark, ranges, entries))]

    # -- messages ------------------------------------------------------------------------------------------------------

    def step(self, sender: str, message: Message, now_s: float) -> list[Action]:
        """Take a message of a standby."""
        match message:
            case Recheck():
                return self._recheck(sender, message, now_s)
            case Verdict() if self._is_open(message.mark, sender):
                return self._verdict(message, now_s)
            case Want() if self._is_open(message.mark, sender):
                now = self._open
                assert now is not None
                if not now.is_summed:
                    return []
                now.deadline_s = now_s + PROOF_S
                now.is_summed = False
                return [Prove(message.mark, message.ranges)]
        return []

    def _is_open(self, mark: int, sender: str | None = None) -> bool:
        now = self._open
        return now is not None and now.mark == mark and sender in (None, now.to)

    def _verdict(self, message: Verdict, now_s: float) -> list[Action]:
        now = self._open
        assert now is not None
        ward = self._wards[now.to]
        if message.word == "waiting":
            if now.is_heard:
                return []
            now.is_heard, now.deadline_s = True, now_s + MARK_S
            now.ranges, ward.rechecks = tuple(ward.rechecks), []
            return [Walk(now.mark, ward.place, now.ranges)]
        now.is_heard = True
        told: list[Action] = []
        if message.word in ("equal", "answers") and now.next_place is not None and not now.ranges:
            told = self._move_on(ward, now, message.contents, proves=message.word == "equal")
        return [*told, *self._drop(now_s)]

    def _move_on(self, ward: _Ward, now: _Open, contents: int, *, proves: bool) -> list[Action]:
        """Go on behind the range of a mark, which was found equal; at the end of a round of such, say so."""
        assert now.next_place is not None
        if ward.contents not in (0, contents):
            # What was found equal before is not there any more.
            ward.begin_again()
            return []
        if not ward.place:
            ward.round_lsn = now.lsn
        if not proves:
            ward.round_lsn = 0
        ward.place, ward.contents = now.next_place, contents
        if ward.place:
            return []
        lsn = ward.round_lsn
        ward.begin_again()
        if not lsn:
            return []
        ward.verified_lsn = lsn
        return [Send(now.to, Verified(lsn, contents))]

    def _recheck(self, sender: str, message: Recheck, now_s: float) -> list[Action]:
        ward = self._wards.get(sender)
        if ward is not None:
            ward.rechecks = list(message.ranges[:RECHECKS_MAX])
            now = self._open
            # Who asks holds no mark: one that it heard of has ended there, and what it said of it was lost.
            ended = self._drop(now_s) if now is not None and now.to == sender and now.is_heard else []
            ward.due_s = min(ward.due_s, now_s)
            return ended
        return []
