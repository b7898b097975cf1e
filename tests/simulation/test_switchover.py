"""How far behind the target of a switchover may be: nobody can write until it has all, so that must not take long."""

from __future__ import annotations

import pytest

from vecstore.replication.lag import Pace
from vecstore.replication.messages import Switchover
from vecstore.replication.primary import Primary

from .node import TIMING
from .scene import Scene


def begin() -> Scene:
    """Return a scene with a primary `a` and a standby `b` that has all it has."""
    scene = Scene("ab")
    for id in range(4):
        scene.put("a", id, id)
    scene.settle()
    return scene


def fall_behind(scene: Scene, for_s: float) -> None:
    """Let b hear its primary and get nothing, while a writes."""
    member = scene["a"].member
    assert member is not None and isinstance(member.part, Primary)
    feed = member.part.feed
    feed.shippable = lambda: 0  # type: ignore[method-assign]
    for number in range(int(for_s)):
        scene.put("a", number % 4, 100 + number)
        scene.run(1.0)


def test_a_target_that_keeps_up_is_handed_the_log() -> None:
    """Writes that are on their way are no reason to refuse."""
    scene = begin()
    scene.call("hand", "a", scene.make(0, 10), 1)
    scene.call("hand", "a", scene.make(1, 11), 1)
    reply = scene.tell("a", Switchover("b"))
    assert reply is not None and reply.done, reply
    assert scene.run(30.0, scene.is_switched)


@pytest.mark.parametrize(("within_s", "is_done"), [(0.0, False), (3.5, False), (60.0, True)])
def test_a_target_that_is_too_far_behind_is_refused(within_s: float, is_done: bool) -> None:
    """The refusal says how far; nothing began, and writes go on. Whoever allows more is obeyed, and nothing is lost."""
    scene = begin()
    fall_behind(scene, 8.0)
    reply = scene.tell("a", Switchover("b", within_s))
    assert reply is not None
    assert reply.done == is_done, reply
    if not is_done:
        allowed = within_s or TIMING.catch_up_s
        assert "b is 8 records behind and would need about 8 s" in reply.text
        assert f"{allowed:g} s are allowed" in reply.text
        assert scene["a"].status == "open"
        scene.put("a", 0, 7)
    scene["a"].member.part.feed.__dict__.pop("shippable")  # type: ignore[union-attr]
    assert scene.run(60.0, scene.is_switched if is_done else scene.settled)


def test_a_target_that_was_silent_is_refused() -> None:
    """It may be gone: its stream is kept for a while, and what it has is not known."""
    scene = begin()
    scene["b"].is_paused = True
    scene.run(TIMING.silence_s + 1.0)
    member = scene["a"].member
    assert member is not None and isinstance(member.part, Primary) and "b" in member.part.feed.streams
    reply = scene.tell("a", Switchover("b"))
    assert reply is not None and not reply.done and "silent for too long" in reply.text
    assert scene["a"].status == "open"


def test_one_that_moves_fast_is_not_as_far_behind_as_it_was_away() -> None:
    """A standby that comes back after an hour and catches up quickly may be handed the log soon."""
    pace = Pace()
    for second in range(30):
        pace.note(second * 1_000, float(second))
    assert 950 < pace.records_per_s(29_000, 29.0) < 1_050
    assert pace.records_per_s(29_000, 3_000.0) < 10
    assert Pace().records_per_s(5, 1.0) == 0
