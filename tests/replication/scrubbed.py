"""A world in which two sides of the scrub live: histories, disks that change points, a network that loses messages.

Everything is drawn from one seed. Stores are functions of an LSN and of what their disks did; no bytes, no threads.
What one side sends to the other goes in order on one link, frames included, and may be lost or come twice; what comes
back may also come out of order. Work takes some steps. Checks are made whenever something is claimed.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from vecstore.replication import scrub_primary as feeds
from vecstore.replication import scrub_standby as follows
from vecstore.replication.durable import Difference, Differing
from vecstore.replication.scrub import Bounds, Entry, Mark, Part, decode, encode
from vecstore.replication.scrub_primary import ScrubPrimary, Walked
from vecstore.replication.scrub_standby import ScrubStandby

__all__ = ["NUMBERS", "World", "span"]

NUMBERS = (1, 2, 3)
KEYS = 20
POINTS = 8
STEP_S = 0.25
State = dict[bytes, tuple[int, int]]


def span(number: int) -> Bounds:
    """Return the places of a collection."""
    return Bounds(number.to_bytes(8, "big"), (number + 1).to_bytes(8, "big"))


def place_of(number: int, key: int) -> bytes:
    """Return the place of a point."""
    return number.to_bytes(8, "big") + b"\x01" + key.to_bytes(8, "big")


def chain_at(lsn: int) -> bytes:
    """Return the chain at an LSN of the only history that there is."""
    return lsn.to_bytes(16, "big")


@dataclass
class Side:
    """A store: how far it is, and what its disk did to points, each with the step at which it did."""

    lsn: int = 0
    damage: dict[bytes, int] = field(default_factory=dict)
    shows: bool = False
    pins: dict[int, int] = field(default_factory=dict)


class World:
    """Runs both machines.

    Parameters
    ----------
    primary, standby
        The machines' classes: tests plant bugs in them.
    loss
        Share of messages that are lost, come twice or late.
    """

    def __init__(
        self,
        seed: int,
        *,
        loss: float = 0.2,
        primary: type[ScrubPrimary] = ScrubPrimary,
        standby: type[ScrubStandby] = ScrubStandby,
    ) -> None:
        self.rng = random.Random(seed)
        self.loss, self.step_count, self.session = loss, 0, 1
        self.log: list[tuple[bytes, int | None]] = []
        self.p, self.s = Side(), Side()
        self.primary, self.standby = primary(self.mint, 1.0), standby(self.mint)
        self.down: list[Any] = []
        self.up: list[bytes] = []
        self.work: list[tuple[int, Any]] = []
        self.halts: dict[int, int] = {}
        self.differences: tuple[Difference, ...] = ()
        self.is_mended = False
        self.is_halts_exact = self.swaps = True
        self.begun: dict[int, int] = {}
        self.alarms: list[str] = []
        self.notes: list[int] = []
        self.stops = 0

    def mint(self) -> int:
        """Return a random number."""
        return self.rng.getrandbits(63)

    @property
    def now_s(self) -> float:
        """The time."""
        return self.step_count * STEP_S

    # -- contents ----------------------------------------------------------------------------------------------------

    def written(self, lsn: int) -> State:
        """Return what the log's first records make."""
        state: State = {}
        for i, (place, value) in enumerate(self.log[:lsn], 1):
            if value is None:
                state.pop(place, None)
            else:
                state[place] = (i, value)
        return state

    def contents(self, side: Side, lsn: int) -> State:
        """Return what a side has at an LSN, with what its disk did."""
        state = self.written(lsn)
        for place in side.damage:
            if place in state:
                state[place] = (state[place][0], -1)
        return state

    def sums(self, side: Side, lsn: int, bounds: Bounds) -> Part:
        """Return a range's sum."""
        found = [one for place, one in self.contents(side, lsn).items() if bounds.first <= place < bounds.stop]
        return Part(bounds, len(found), (sum(hash(one) for one in found) % (1 << 128)).to_bytes(16, "big"))

    def harm(self, side: Side) -> None:
        """Let a disk change a point that is there."""
        there = sorted(self.written(self.s.lsn).keys() - side.damage.keys())
        if there:
            side.damage[self.rng.choice(there)] = self.step_count

    # -- one step ----------------------------------------------------------------------------------------------------

    def step(self, *, writes: bool = True, quiet: bool = False) -> None:
        """Let a quarter of a second pass."""
        self.step_count += 1
        if writes and self.rng.random() < 0.5:
            self.write()
        self.ship()
        for message in list(self.taken(quiet)):
            self.act(self.primary.step("s", decode(message), self.now_s))
        due = [item for at, item in self.work if at <= self.step_count]
        self.work = [(at, item) for at, item in self.work if at > self.step_count]
        for item in due:
            self.do(item)
        self.act(self.primary.tick({"s": self.session}, self.now_s))
        self.act(self.standby.tick(self.followed, self.doubtful, self.now_s))
        assert len(self.p.pins) <= 1 and len(self.s.pins) + len(self.halts) <= 1, "a pin was left"

    @property
    def followed(self) -> str:
        """The store that the standby compares with, "" where it is stopped."""
        return "" if self.differences and not self.is_mended else "p"

    @property
    def doubtful(self) -> list[Bounds]:
        """Ranges that were mended."""
        return [one.bounds for one in self.differences] if self.is_mended else []

    def write(self) -> None:
        """Write or remove a point; what is written anew is what was written."""
        place = place_of(self.rng.choice(NUMBERS), self.rng.randrange(KEYS))
        self.log.append((place, None if self.rng.random() < 0.2 else self.rng.randrange(1, 1_000)))
        self.p.damage.pop(place, None)
        self.p.lsn = len(self.log)

    def ship(self) -> None:
        """Bring what is on the link to the standby, in order; frames are sent again from where it is."""
        items, self.down = self.down, []
        for item in [*items, self.p.lsn]:
            if isinstance(item, int):
                if self.followed and self.rng.random() >= self.loss:
                    self.apply(item)
            elif self.rng.random() >= self.loss:
                self.act(self.standby.step("p", decode(item), self.followed, self.now_s))
                if self.rng.random() < self.loss:
                    self.act(self.standby.step("p", decode(item), self.followed, self.now_s))

    def apply(self, lsn: int) -> None:
        """Apply records one by one; a halt is carried out where it is set."""
        while self.s.lsn < lsn:
            self.s.lsn += 1
            self.s.damage.pop(self.log[self.s.lsn - 1][0], None)
            self.reach()

    def reach(self) -> None:
        """Carry out halts at the LSN where the standby is."""
        for mark, lsn in list(self.halts.items()):
            if lsn == self.s.lsn or not self.is_halts_exact:
                del self.halts[mark]
                self.s.pins[mark] = self.s.lsn
                self.later(("pinned", mark, chain_at(lsn)))
            elif lsn < self.s.lsn:
                del self.halts[mark]
                self.later(("missed", mark))

    def taken(self, quiet: bool) -> Iterator[bytes]:
        """Yield what comes to the primary."""
        waiting, self.up = self.up, []
        self.rng.shuffle(waiting)
        for message in waiting:
            if quiet or self.rng.random() >= self.loss:
                yield message
            elif self.rng.random() < 0.5:
                self.up.append(message)

    def later(self, item: Any) -> None:
        """Do something in some steps."""
        self.work.append((self.step_count + self.rng.randrange(1, 4), item))

    # -- restarts ----------------------------------------------------------------------------------------------------

    def restart_standby(self) -> None:
        """Let the standby's process die and start: what is durable is there, pins and marks are not."""
        self.standby = type(self.standby)(self.mint)
        self.s.pins.clear()
        self.halts.clear()
        if self.swaps and self.rng.random() < 0.3:
            # Other contents: what their disk did, it did long ago.
            self.s.damage.clear()
            self.harm(self.s)
            self.s.damage = dict.fromkeys(self.s.damage, 0)
        # That it is stopped is durable, and so it asks again for what mends it.
        kept = (feeds.Walk, feeds.Prove)
        self.work = [(at, item) for at, item in self.work if item == "mend" or isinstance(item, kept)]
        self.session += 1

    def restart_primary(self) -> None:
        """Let the primary's process die and start."""
        self.primary = type(self.primary)(self.mint, 1.0)
        self.p.pins.clear()
        self.work = [(at, it) for at, it in self.work if not isinstance(it, feeds.Walk | feeds.Prove)]
        self.session += 1

    # -- actions -----------------------------------------------------------------------------------------------------

    def act(self, actions: list[Any]) -> None:
        """Carry out what a machine says."""
        for action in actions:
            match action:
                case feeds.Send(to="s"):
                    self.down.append(encode(action.message))
                case feeds.Send():
                    self.up.append(encode(action.message))
                case feeds.Forget():
                    for pins in (self.p.pins, self.s.pins, self.halts):
                        pins.pop(action.mark, None)
                case feeds.Alarm():
                    self.alarms.append(action.text)
                case follows.Halt():
                    self.halts[action.mark] = action.lsn
                    self.reach()
                case feeds.Pin():
                    self.p.pins[action.mark] = self.p.lsn
                    self.begun[self.p.lsn] = self.step_count
                    self.down.append(encode(Mark(action.mark, self.p.lsn, chain_at(self.p.lsn))))
                    self.act(self.primary.pinned(action.mark, self.p.lsn, self.now_s))
                case _:
                    self.later(action)

    def do(self, item: Any) -> None:
        """Do what took some steps."""
        match item:
            case ("pinned", int(mark), bytes(chain)):
                self.act(self.standby.pinned(mark, chain))
            case ("missed", int(mark)):
                self.act(self.standby.failed(mark))
            case "mend":
                self.mend()
            case feeds.Walk() | feeds.Prove():
                if item.mark in self.p.pins:
                    self.read(item)
            case follows.Compare() | follows.Match():
                if item.mark in self.s.pins:
                    self.judge(item)
            case _:
                self.settle(item)

    def read(self, item: feeds.Walk | feeds.Prove) -> None:
        """Do the primary's work."""
        lsn = self.p.pins[item.mark]
        if isinstance(item, feeds.Walk):
            self.act(self.primary.walked(item.mark, self.walk(item, lsn), self.now_s))
            return
        is_damaged = any(
            self.sums(self.p, lsn, span(b.collection)) != self.sums(Side(), lsn, span(b.collection))
            for b in item.ranges
        )
        found = self.contents(self.p, lsn)
        entries = tuple(
            Entry(place, found[place][0], found[place][1].to_bytes(16, "big", signed=True))
            for place in sorted(found)
            if any(bounds.first <= place < bounds.stop for bounds in item.ranges)
        )
        why = "its own log says otherwise" if is_damaged else ""
        self.act(self.primary.proven(item.mark, item.ranges, () if why else entries, why, self.now_s))

    def walk(self, item: feeds.Walk, lsn: int) -> Walked:
        """Sum up ranges, or the next points."""
        found = self.contents(self.p, lsn)
        if item.ranges:
            ranges, next_place = list(item.ranges), b""
        else:
            places = sorted(place for place in found if place >= item.start)
            next_place = places[POINTS] if len(places) > POINTS else b""
            stops = [(max(span(n).first, item.start), span(n).stop) for n in NUMBERS if span(n).stop > item.start]
            ranges = [Bounds(a, min(b, next_place or b)) for a, b in stops if not next_place or a < next_place]
        parts = tuple(self.sums(self.p, lsn, bounds) for bounds in ranges)
        damaged = [b for b in ranges if self.p.shows and any(b.first <= place < b.stop for place in self.p.damage)]
        return Walked(parts, next_place, (), tuple(damaged), "a bit" if damaged else "")

    def judge(self, item: follows.Compare | follows.Match) -> None:
        """Do the standby's work."""
        lsn = self.s.pins[item.mark]
        if isinstance(item, follows.Compare):
            unequal = tuple(part.bounds for part in item.parts if self.sums(self.s, lsn, part.bounds) != part)
            self.act(self.standby.compared(item.mark, unequal, (0, 0), self.doubtful, self.now_s))
            return
        mine, differences = self.contents(self.s, lsn), []
        for bounds in item.listing.ranges:
            theirs = {e.place: e for e in item.listing.entries if bounds.first <= e.place < bounds.stop}
            points = []
            for place in sorted(theirs.keys() | {place for place in mine if bounds.first <= place < bounds.stop}):
                entry, own = theirs.get(place), mine.get(place)
                if entry is None or own != (entry.lsn, int.from_bytes(entry.check, "big", signed=True)):
                    points.append(Differing(place, 0 if entry is None else entry.lsn))
            assert self.p.damage or {point.place for point in points} <= self.s.damage.keys(), "a false alarm"
            if points:
                differences.append(Difference(bounds, "c", lsn, len(points), tuple(points)))
        self.act(self.standby.matched(item.mark, tuple(differences)))

    def settle(self, item: Any) -> None:
        """Do what changes the standby; here everything that is claimed is checked."""
        match item:
            case follows.Stop():
                if not self.followed:
                    return
                self.stops += 1
                assert not self.p.damage, "it was stopped, and would copy from a damaged primary"
                known = [one for one in self.differences if one.bounds not in {o.bounds for o in item.differences}]
                self.differences, self.is_mended = (*known, *item.differences), False
                self.later("mend")
            case follows.Clear():
                self.differences = tuple(one for one in self.differences if one.bounds not in item.ranges)
            case follows.Note():
                self.notes.append(item.lsn)
                began = self.begun[item.lsn]
                old = [place for place, at in self.s.damage.items() if at < began]
                assert not old, f"verified through {item.lsn}, and {old} was changed before"

    def mend(self) -> None:
        """Make the points that differ what the primary has, as far as they were not written since."""
        if self.followed:
            return
        for one in self.differences:
            for point in one.points:
                self.s.damage.pop(point.place, None)
        self.is_mended = True
