"""The two sides of the scrub under lost, late and repeated messages, restarts and disks that change points: by seeds.

Whatever happens, nothing is claimed that is not so, no pin is left, and once the network is well again all is found.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from vecstore.errors import Damaged
from vecstore.replication import scrub_primary as feeds
from vecstore.replication import scrub_standby as follows
from vecstore.replication.scrub import Bounds, Listing, Mark, Recheck, Verdict, decode, encode
from vecstore.replication.scrub_primary import ScrubPrimary
from vecstore.replication.scrub_standby import ScrubStandby

from .scrubbed import World

SEEDS = 40
STEPS = 400
WELL_STEPS = 800


def storm(world: World, *, primary_damage: bool = False) -> None:
    """Let everything happen."""
    rng, world.swaps = world.rng, not primary_damage
    for _ in range(30):
        world.write()
    for _ in range(STEPS):
        world.step()
        chance = rng.random()
        if chance < 0.01:
            world.restart_standby()
        elif chance < 0.015:
            world.restart_primary()
        elif chance < 0.04 and not primary_damage:
            world.harm(world.s)
        elif chance < 0.03 and len(world.p.damage) < 2:
            world.harm(world.p)


def calm(world: World) -> None:
    """Let the network be well, and see that everything is found, mended and proven."""
    world.loss = 0.0
    before = len(world.notes)
    for _ in range(WELL_STEPS):
        world.step(writes=False, quiet=True)
        if len(world.notes) > before + 1 and not world.s.damage and not world.differences:
            return
    raise AssertionError(f"not proven: {world.s.damage}, {world.differences}, {world.notes}")


@pytest.mark.parametrize("seed", range(SEEDS))
def test_whatever_happens_nothing_false_is_claimed(seed: int) -> None:
    """Points that a standby's disk changes are found and named, others never; rounds end; and no mark is left open."""
    world = World(seed)
    storm(world)
    calm(world)
    assert not world.p.pins or len(world.p.pins) == 1


@pytest.mark.parametrize("shows", [True, False], ids=["its hashes tell", "only its digest tells"])
@pytest.mark.parametrize("seed", range(SEEDS // 4))
def test_a_damaged_primary_stops_nobody(seed: int, shows: bool) -> None:
    """As long as points of the primary are damaged nothing is copied from it, and both say so."""
    world = World(seed)
    world.p.shows = shows
    storm(world, primary_damage=True)
    if not world.p.damage:
        world.harm(world.p)
    world.swaps = False
    world.loss, world.alarms = 0.0, []
    world.restart_primary()
    world.restart_standby()
    notes = len(world.notes)
    for _ in range(WELL_STEPS // 2):
        world.step(writes=False, quiet=True)
    assert world.stops == 0
    assert len(world.notes) == notes, "it was verified beside a primary that is damaged"
    assert any("this primary" in text for text in world.alarms)
    assert any("the primary's" in text for text in world.alarms)


def test_a_standby_that_knows_of_no_scrub_is_asked_ever_less(seed: int) -> None:
    """Marks of which nothing comes are dropped, and come ever more seldom."""
    world = World(seed)
    actions: list[Any] = []
    world.standby.step = lambda *_: actions  # type: ignore[method-assign]
    marks = []
    for _ in range(2_000):
        before = set(world.p.pins)
        world.step(quiet=True)
        marks += [world.step_count for mark in world.p.pins if mark not in before]
    pauses = [later - sooner for sooner, later in pairwise(marks)]
    assert 4 <= len(marks) < 20
    assert pauses == sorted(pauses) and pauses[-1] > 4 * pauses[0]


# -- planted bugs ------------------------------------------------------------------------------------------------------


class MovesOnAnyway(ScrubPrimary):
    """Takes any end of a mark for "equal"."""

    def _verdict(self, message: Verdict, now_s: float) -> list[Any]:
        if message.word != "waiting":
            message = Verdict(message.mark, "equal", message.contents)
        return super()._verdict(message, now_s)


class ForgetsNoPin(ScrubPrimary):
    """Leaves a pin where nothing came of a mark."""

    def _drop(self, now_s: float, *, is_quiet: bool = False) -> list[Any]:
        return super()._drop(now_s, is_quiet=is_quiet)[1:]


class WaitsForEver(ScrubPrimary):
    """Does not drop a mark of which nothing comes."""

    def pinned(self, mark: int, lsn: int, now_s: float) -> list[Any]:
        return super().pinned(mark, lsn, now_s + 1e9)

    def tick(self, standbys: Any, now_s: float) -> list[Any]:
        if self._open is not None:
            self._open.deadline_s = 1e9
            standbys = {self._open.to: self._open.session, **dict.fromkeys(standbys, self._open.session)}
        return super().tick(standbys, now_s)


class BelievesOldContents(ScrubPrimary):
    """Does not see that the contents it compared are others by now."""

    def _move_on(self, ward: Any, now: Any, contents: int, *, proves: bool) -> list[Any]:
        ward.contents = contents
        return super()._move_on(ward, now, contents, proves=proves)


class ClaimsTheLast(ScrubPrimary):
    """Says the LSN of the last mark of a round, not of the first."""

    def _move_on(self, ward: Any, now: Any, contents: int, *, proves: bool) -> list[Any]:
        if ward.place:
            ward.round_lsn = now.lsn
        return super()._move_on(ward, now, contents, proves=proves)


class CopiesAnyway(ScrubStandby):
    """Does not care what the primary says of itself."""

    def _listing(self, message: Listing) -> list[Any]:
        return super()._listing(Listing(message.mark, message.ranges, message.entries))


@pytest.mark.parametrize("bug", [MovesOnAnyway, ForgetsNoPin, WaitsForEver, BelievesOldContents, ClaimsTheLast])
def test_a_bug_of_the_primary_is_found(bug: type[ScrubPrimary]) -> None:
    """Each planted bug fails within the seeds."""
    assert any(_fails(seed, primary=bug) for seed in range(SEEDS))


def test_a_bug_of_the_standby_is_found() -> None:
    """Who copies from a damaged primary is found."""
    assert any(_fails(seed, True, standby=CopiesAnyway) for seed in range(SEEDS))


def test_a_halt_at_another_lsn_is_found() -> None:
    """Who pins where it happens to be raises false alarms."""
    assert any(_fails(seed, inexact=True) for seed in range(SEEDS))


def _fails(seed: int, primary_damage: bool = False, inexact: bool = False, **machines: Any) -> bool:
    world = World(seed, **machines)
    world.is_halts_exact = not inexact
    try:
        storm(world, primary_damage=primary_damage)
        if not primary_damage:
            calm(world)
    except AssertionError:
        return True
    return False


# -- bytes -------------------------------------------------------------------------------------------------------------


def test_messages_come_back_as_they_were() -> None:
    """A message's bytes give it again; what is none is an error."""
    mark = Mark(7, 3, b"c" * 16)
    assert decode(encode(mark)) == mark
    with pytest.raises(Damaged, match="cannot be read"):
        decode(b"\x93\xa5other\x01\x02")


def test_a_mark_of_another_history_is_not_compared() -> None:
    """Where the chain at the mark is another one, nothing is compared, and nothing found."""
    standby = ScrubStandby(lambda: 1)
    standby.step("p", Mark(7, 3, b"c" * 16), "p", 0.0)
    actions = standby.pinned(7, b"d" * 16)
    assert not any(isinstance(action, follows.Compare) for action in actions)
    assert any(getattr(action, "message", None) == Verdict(7, "missed", 1) for action in actions)


def test_who_asks_to_be_compared_again_does_not_wait_for_what_was_lost() -> None:
    """A standby that asks holds no mark: the one that it heard of is over, though its verdict never came."""
    primary, numbers = ScrubPrimary(iter(range(1, 9)).__next__, 10.0), {"s": 7}
    primary.tick(numbers, 0.0)
    (pin,) = primary.tick(numbers, 10.0)
    assert isinstance(pin, feeds.Pin)
    primary.pinned(pin.mark, 100, 10.0)
    primary.step("s", Verdict(pin.mark, "waiting", 1), 10.1)
    assert primary.tick(numbers, 11.0) == []
    bounds = Bounds(bytes(8), bytes(7) + b"\1")
    assert primary.step("s", Recheck((bounds,)), 11.0) == [feeds.Forget(pin.mark)]
    (again,) = primary.tick(numbers, 11.1)
    assert isinstance(again, feeds.Pin) and again.mark != pin.mark
