"""A standby whose points differ from its primary's: stopped, durably, until it is mended, replaced, or promoted."""

from __future__ import annotations

import pytest

from vecstore.replication.durable import Difference, Differing, ScrubState
from vecstore.replication.messages import Points, Promote
from vecstore.replication.scrub import Bounds
from vecstore.replication.standby import MEND_POINTS_MAX, Standby

from .scene import Scene

LONG_S = 60.0


def difference(count: int = 2, key: int = 0, named: int | None = None) -> Difference:
    """Return what a scrub may find."""
    places = [b"\0" * 8 + b"\1" + (key + i).to_bytes(8, "big") for i in range(count if named is None else named)]
    bounds = Bounds(b"\0" * 8 + b"\1" + key.to_bytes(8, "big"), b"\0" * 7 + b"\1")
    return Difference(bounds, "docs", 3, count, tuple(Differing(place, 1) for place in places))


def begin() -> Scene:
    """Return a scene with a primary `a` and a standby `b` that follows it."""
    scene = Scene("ab")
    for id in range(4):
        scene.put("a", id, id)
    scene.settle()
    return scene


def differ(scene: Scene, *found: Difference) -> None:
    """Let a scrub find that b differs."""
    node = scene["b"]
    member = node.member
    assert member is not None and isinstance(member.part, Standby)
    member.now_s, member.actions = scene.now_s, []
    member.part.differ(found)
    node.carry_out(member.actions)


def agree(scene: Scene, *found: Difference, lsn: int | None = None) -> None:
    """Let a scrub find that b's ranges are equal, at an LSN or where it is now."""
    node = scene["b"]
    member = node.member
    assert member is not None and isinstance(member.part, Standby)
    member.now_s, member.actions = scene.now_s, []
    member.part.agree([one.bounds for one in found], node.log.tip.lsn if lsn is None else lsn)
    node.carry_out(member.actions)


def scrub_of(scene: Scene) -> ScrubState | None:
    """Return what b remembers of it."""
    return scene["b"].disk.written.scrub


def noted(scene: Scene, kind: str) -> int:
    """Return how often something happened."""
    return sum(note[1] == kind for note in scene.notes)


def test_it_stops_is_mended_goes_on_and_is_compared_again() -> None:
    """Stopped at once; points from the primary; then it follows, and trusts digests until the range is equal."""
    scene = begin()
    found = difference()
    differ(scene, found)
    assert scene["b"].status == "stopped"
    assert scene.run(LONG_S, lambda: scene["b"].status == "following")
    scene.put("a", 9, 9)
    scene.settle()
    scrub = scrub_of(scene)
    assert scrub is not None and scrub.is_mended and scrub.attempts == 1
    agree(scene, difference(key=5))
    agree(scene, found, lsn=scrub.target_lsn - 1)
    assert scrub_of(scene) == scrub
    agree(scene, found)
    assert scrub_of(scene) is None
    assert scene["b"].disk.written.mended == found.count


def test_it_is_still_stopped_after_a_restart_and_asks_again() -> None:
    """Cut off, nothing is applied, however often it starts; when its primary is there again it is mended."""
    scene = begin()
    scene.cut("a", "b")
    differ(scene, difference())
    tip = scene["b"].log.tip
    scene.put("a", 9, 9)
    for _ in range(2):
        scene["b"].crash()
        scene["b"].start()
        scene.run(5.0)
        assert (scene["b"].status, scene["b"].log.tip, noted(scene, "mend")) == ("stopped", tip, 0)
    scene.heal()
    assert scene.run(LONG_S, scene.settled)
    assert noted(scene, "mend") == 1


def test_frames_under_way_are_not_applied() -> None:
    """What the primary ships while it is stopped stays away from it: its tip does not move until it was mended."""
    scene = begin()
    scene.cut("b", "a", both=False)
    differ(scene, difference())
    tip = scene["b"].log.tip
    for id in range(5):
        scene.put("a", id, 100 + id)
    scene.run(10.0)
    assert scene["b"].log.tip == tip
    scene.heal()
    assert scene.run(LONG_S, scene.settled)


def test_a_new_primary_is_not_followed_before_it_is_mended() -> None:
    """Another store is promoted while it is stopped: it learns of that, applies nothing, and asks the new one."""
    scene = Scene("abc")
    for id in range(4):
        scene.put("a", id, id)
    scene.settle()
    differ(scene, difference(MEND_POINTS_MAX + 1, named=100))
    scene.kill("a")
    scene.tell("c", Promote(1, force=True))
    scene.until("c", "open")
    tip = scene["b"].log.tip
    scene.put("c", 9, 9)
    scene.run(LONG_S)
    assert scene["b"].disk.written.primary == "c"
    assert (scene["b"].status, scene["b"].log.tip) == ("stopped", tip)


def test_points_for_another_place_are_not_taken() -> None:
    """An answer that comes late, to what was asked where it stood before, sets nothing."""
    scene = begin()
    scene.cut("a", "b")
    differ(scene, difference())
    node = scene["b"]
    assert node.member is not None
    claim, tip_lsn = node.member.durable.promise, node.log.tip.lsn
    assert claim is not None
    node.carry_out(node.member.step("a", Points(claim, tip_lsn - 1, tip_lsn, {}), scene.now_s))
    node.carry_out(node.member.step("c", Points(claim, tip_lsn, tip_lsn, {}), scene.now_s))
    scene.run(10.0)
    assert (node.status, noted(scene, "mend")) == ("stopped", 0)
    node.carry_out(node.member.step("a", Points(claim, tip_lsn, tip_lsn, {}), scene.now_s))
    assert noted(scene, "mend") == 1


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (difference(MEND_POINTS_MAX + 1, named=100), "more than the"),
        (difference(5, named=3), "point by point"),
    ],
    ids=["too many", "not all named"],
)
def test_what_is_not_mended_by_itself_stays_stopped(found: Difference, why: str) -> None:
    """It asks for nothing, and says why; only a forced promotion takes over, and says so."""
    scene = begin()
    differ(scene, found)
    scene.put("a", 9, 9)
    scene.run(LONG_S)
    scrub = scrub_of(scene)
    assert scrub is not None and why in scrub.refusal
    assert (scene["b"].status, noted(scene, "mend")) == ("stopped", 0)
    scene["b"].crash()
    scene["b"].start()
    reply = scene.tell("b", Promote(1, max_loss=1_000))
    assert reply is not None and not reply.done
    scene.run(LONG_S)
    assert scene["a"].status == "open", "the primary stepped down for a store that cannot take over"
    scene.kill("a")
    scene.tell("b", Promote(1, force=True))
    scene.until("b", "open")
    assert scrub_of(scene) is None
    assert any("what is here counts" in str(note) for note in scene.notes)


def test_mendings_add_up() -> None:
    """Half of the points that may be mended, three times: the third one is a human's, until a round was verified."""
    scene = begin()
    for number in range(3):
        found = difference(MEND_POINTS_MAX // 2, key=10_000 * number)
        differ(scene, found)
        if number < 2:
            assert scene.run(LONG_S, lambda: scene["b"].status == "following")
            agree(scene, found)
    scrub = scrub_of(scene)
    assert scrub is not None and "were mended before" in scrub.refusal


def test_what_differs_again_is_not_mended_for_ever() -> None:
    """Three times in vain, and it stays stopped."""
    scene = begin()
    for _ in range(3):
        differ(scene, difference())
        assert scene.run(LONG_S, lambda: scene["b"].status == "following")
    differ(scene, difference())
    scene.run(LONG_S)
    assert scene["b"].status == "stopped"
    scrub = scrub_of(scene)
    assert scrub is not None and "3 times" in scrub.refusal
