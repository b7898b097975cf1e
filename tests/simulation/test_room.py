"""Contents that cannot be put in place: the disk is full, they do not come, or they are not what was asked for.

The store is as it was, asks ever more slowly, and is right in the end.
"""

from __future__ import annotations

import pytest

from vecstore.replication.actions import Discard
from vecstore.replication.messages import AbortRejoin, Promote, Rejoin

from .scene import Scene
from .story import Story
from .world import World

LONG_S = 400.0


def begin() -> Scene:
    """Return a scene with a primary `a` and a standby `b` that follows it."""
    scene = Scene("ab")
    for id in range(4):
        scene.put("a", id, id)
    scene.settle()
    scene.run(3.0)  # the slot has come to there, too
    return scene


def cut_beneath(scene: Scene) -> None:
    """Let b's next record be gone from a's log."""
    scene.cut("a", "b")
    for id in range(4):
        scene.put("a", id, 10 + id)
    scene["a"].log.cut(scene["a"].log.durable_lsn)
    scene.heal()


def test_a_disk_without_room_is_no_bootstrap_and_is_asked_for_ever_more_slowly() -> None:
    """It does not stop for good, the primary takes few snapshots for it, and with room it goes on by itself."""
    scene = begin()
    scene["b"].failing = "room"
    cut_beneath(scene)
    scene.run(LONG_S)
    assert scene["b"].status == "fetching"
    assert 2 <= scene["a"].handed_out <= 8
    scene["b"].failing = ""
    assert scene.run(LONG_S, scene.settled)
    scene.run(3.0)
    assert scene["b"].disk.written.bootstraps == 0


def test_what_never_comes_stops_it_and_says_why() -> None:
    """Three bootstraps that came to nothing are a human's affair; the last reason is in what it says."""
    scene = begin()
    scene["b"].failing = "fetch"
    cut_beneath(scene)
    scene.until("b", "stopped", LONG_S)
    assert scene["a"].handed_out == 3
    assert any("it was not to be" in str(note) for note in scene.notes if note[1] == "alarm")


@pytest.mark.parametrize("stage", ["room", "fetch", "contents"])
def test_a_rejoin_whose_contents_are_not_put_in_place_goes_on(stage: str) -> None:
    """It asks again and not every second; where points could not be set it takes a snapshot; and it follows."""
    scene = begin()
    scene.cut("a", "b")
    scene.put("a", 0, 100)
    scene.kill("a")
    scene.heal()
    scene.tell("b", Promote(1, force=True))
    scene.until("b", "open")
    scene["a"].start()
    scene.until("a", "fenced")
    scene["a"].failing = stage
    scene.tell("a", Rejoin("b"))
    scene.run(LONG_S)
    failed = [note for note in scene.notes if note[1] == "not replaced"]
    assert 2 <= len(failed) <= 9
    assert scene["a"].status == "rejoining"
    scene["a"].failing = ""
    assert scene.run(LONG_S, scene.settled)
    assert (scene["b"].handed_out > 0) == (stage == "contents")
    assert set(scene.exported("a").values()) == {(0, 100)}


def test_the_chain_at_the_fork_may_be_known_to_a_slot_alone() -> None:
    """The log begins right behind the fork: the slot that held it knows where both agree; no snapshot is taken."""
    scene = begin()
    scene.cut("a", "b")
    fork_lsn = scene["b"].log.tip.lsn
    scene.put("a", 0, 100)
    log = scene["a"].log
    log.cut(fork_lsn)
    assert log.first_lsn == fork_lsn + 1
    log.chains.pop(fork_lsn)
    scene["a"].disk.synced = scene["a"].disk.written
    scene.kill("a")
    scene.heal()
    scene.tell("b", Promote(1, force=True))
    scene.until("b", "open")
    scene["a"].start()
    scene.until("a", "fenced")
    scene.tell("a", Rejoin("b"))
    scene.settle()
    assert scene["b"].handed_out == 0
    assert any(note[1] == "reset" and note[3] == fork_lsn for note in scene.notes)


def test_an_abort_discards_the_checkpoint_that_is_still_being_taken() -> None:
    """Nobody will go back to it, and it would be kept for ever."""
    scene = begin()
    scene.cut("a", "b")
    scene.put("a", 0, 100)
    scene.kill("a")
    scene.heal()
    scene.tell("b", Promote(1, force=True))
    scene.until("b", "open")
    scene["a"].start()
    scene.until("a", "fenced")
    scene.tell("a", Rejoin("b"))
    node = scene["a"]
    assert scene.run(10.0, lambda: (state := node.disk.written.rejoin) is not None and state.phase == "checkpoint")
    member = node.member
    assert member is not None
    assert any(isinstance(action, Discard) for action in member.command(AbortRejoin(), scene.now_s))


def test_nothing_breaks_where_contents_fail_now_and_then() -> None:
    """The invariants hold under all other faults too, and in peace all comes right."""
    for seed in range(24):
        story = Story(seed, ("failover", "cut log", "rejoin", "abort"))
        world: World = story.world
        world.failing_share = 0.3
        story.run()
