"""A switchover to a standby that stopped a moment before: it is given up by itself, and nobody takes over later."""

from __future__ import annotations

from typing import Any

import pytest

from vecstore.replication.messages import Call, Promote, Rejoin, Switchover
from vecstore.replication.standby import MEND_POINTS_MAX, Standby

from .node import TIMING
from .scene import Scene
from .story import Story
from .test_differs import agree, differ, difference


def begin(*, is_mended: bool) -> Scene:
    """Return a scene in which `a` hands over to `b`, which has just stopped."""
    scene = Scene("ab")
    for id in range(4):
        scene.put("a", id, id)
    scene.settle()
    differ(scene, difference() if is_mended else difference(MEND_POINTS_MAX + 1, named=100))
    reply = scene.tell("a", Switchover("b"))
    assert reply is not None and reply.done
    return scene


@pytest.mark.parametrize("dies", ["nobody", "a", "b"])
def test_the_primary_goes_on_by_itself(dies: str) -> None:
    """Also where either dies in between: the one hands over still, the other is stopped still."""
    scene = begin(is_mended=False)
    if dies != "nobody":
        scene.run(0.2)
        assert scene["a"].log.handover == "b"
        scene[dies].crash()
        scene[dies].start()
    scene.until("a", "open", TIMING.call_every_s + 4 * TIMING.silence_s)
    scene.put("a", 0, 7)
    assert scene["b"].status == "stopped"
    assert any("refused to take over" in text for _, text in scene.alarms)


def test_what_was_refused_unseen_is_refused_when_it_comes() -> None:
    """Stopped, it refuses more than once; mended, it comes upon the record alone, behind which the primary went on."""
    scene = begin(is_mended=True)
    scene.cut("b", "a", both=False)  # its question for the points is lost, and so is what it refuses
    assert scene.run(10.0, lambda: scene["b"].disk.written.refused_lsn == scene["a"].log.tip.lsn)
    handed = scene["a"].log.tip.lsn
    assert scene["a"].log.handover == "b" and scene["a"].status == "handing"
    standby = part_of(scene)
    standby._ask_for_points = lambda: None  # type: ignore[method-assign]
    scene.heal()
    scene.until("a", "open")
    scene.put("a", 0, 7)
    assert scene.run(30.0, lambda: scene["b"].disk.written.refused_lsn > handed)
    feed = scene["a"].member.part.feed  # type: ignore[union-attr]
    feed.shippable = lambda: handed  # b comes to the handover, and no further
    del standby._ask_for_points
    scene.until("b", "following", 60.0)
    assert scene.run(30.0, lambda: scene["b"].log.tip.lsn == handed)
    scene.run(5.0)
    assert (scene["a"].status, scene["b"].status) == ("open", "following")
    del feed.shippable
    scene.settle()
    assert scene["a"].status == "open"


def test_once_it_is_mended_it_takes_over_when_asked_again() -> None:
    """What it refused is behind it."""
    scene = begin(is_mended=True)
    scene.cut("b", "a", both=False)
    scene.run(5.0)
    scene.heal()
    scene.until("a", "open")
    scene.until("b", "following", 60.0)
    scene.settle()
    scene.run(3.0)  # and the primary knows it
    agree(scene, difference())
    reply = scene.tell("a", Switchover("b"))
    assert reply is not None and reply.done
    assert scene.run(30.0, scene.is_switched)
    assert scene["b"].status == "open"


def test_one_that_follows_refuses_nothing_unseen() -> None:
    """It is behind, and is called: what is on its way it will take."""
    scene = Scene("ab")
    scene.put("a", 0, 0)
    scene.settle()
    feed = scene["a"].member.part.feed  # type: ignore[union-attr]
    feed.shippable = lambda: 0
    for id in range(10):
        scene.put("a", id, id)
        scene.run(1.0)
    assert scene["b"].status == "following" and scene["b"].log.tip.lsn < scene["a"].log.tip.lsn
    assert scene["b"].disk.written.refused_lsn == 0


def test_a_refusal_is_forgotten_with_its_epoch() -> None:
    """A seed in which the target refused, and promised a higher epoch: it takes no handover of the one before."""
    Story(2014842).run()


def test_a_handover_of_an_epoch_that_is_over_is_not_taken() -> None:
    """What was refused is forgotten, and the record still stands at the tip: whoever starts with it follows."""
    scene = Scene("abc")
    for id in range(4):
        scene.put("a", id, id)
    scene.settle()
    scene.cut("a", "c")
    member = scene["b"].member
    assert member is not None
    member.is_ready = False
    reply = scene.tell("a", Switchover("b"))
    assert reply is not None and reply.done
    scene.cut("b", "a", both=False)  # what it refuses is lost
    assert scene.run(10.0, lambda: scene["b"].disk.written.refused_lsn == scene["a"].log.tip.lsn)
    scene.kill("a")
    scene.heal()
    scene.tell("c", Promote(1, force=True))
    assert scene.run(30.0, lambda: scene["b"].disk.written.refused_lsn == 0)
    scene["b"].crash()
    scene["b"].start()
    scene.run(30.0)
    assert scene["b"].log.handover == "b"
    assert (scene["b"].status, scene["c"].status) == ("stopped", "open")
    scene.checks.at_end()


def test_a_refusal_is_forgotten_when_it_is_promoted() -> None:
    """What it refused as a standby was of the epoch that it replaced: later it takes a handover at a lower LSN.

    Its own promotion alone forgets it here: it is deposed as a primary that has more, which forgets nothing.
    """
    scene = begin(is_mended=False)
    scene.until("a", "open", TIMING.call_every_s + 4 * TIMING.silence_s)
    for number in range(30):
        scene.put("a", number % 4, number)
    refused = scene["a"].log.tip.lsn
    assert scene.run(30.0, lambda: scene["b"].disk.written.refused_lsn == refused)
    scene.kill("a")
    scene.tell("b", Promote(1, force=True))
    scene.until("b", "open")
    assert scene["b"].disk.written.refused_lsn == 0
    scene["a"].start()
    scene.until("a", "fenced")
    scene.tell("a", Rejoin("b"))
    scene.until("a", "following")
    scene.settle()
    scene.cut("a", "b")
    scene.put("b", 1, 101)
    scene.tell("a", Promote(2, force=True))
    scene.until("a", "open")
    scene.heal()
    scene.until("b", "fenced")
    scene.tell("b", Rejoin("a"))
    scene.until("b", "following")
    scene.settle()
    scene.run(3.0)  # and the primary knows it
    reply = scene.tell("a", Switchover("b"))
    assert reply is not None and reply.done
    assert scene["a"].log.tip.lsn < refused
    assert scene.run(30.0, scene.is_switched)
    assert scene["b"].status == "open"
    scene.checks.at_end()


@pytest.mark.parametrize("rejoins", [False, True], ids=["standby", "rejoining"])
def test_a_refusal_is_forgotten_when_another_is_promoted(rejoins: bool) -> None:
    """What was refused is of the epoch before: of the new primary's a handover at a lower LSN is taken."""
    scene = Scene("abc")
    for id in range(4):
        scene.put("a", id, id)
    scene.settle()
    scene.cut("a", "c")
    scene.cut("b", "a", both=False)
    differ(scene, difference())
    for number in range(30):
        scene.put("a", number % 4, number)
    refused = scene["a"].log.tip.lsn
    assert scene.run(10.0, lambda: scene["b"].disk.written.refused_lsn == refused)
    if rejoins:
        scene.tell("b", Rejoin("a"))
        assert scene["b"].status == "rejoining"
    scene.kill("a")
    scene.heal()
    scene.tell("c", Promote(1, force=True))
    scene.until("b", "following", 60.0)
    scene.settle()
    assert scene["b"].disk.written.refused_lsn <= scene["c"].log.tip.lsn
    assert scene.run(30.0, lambda: scene["b"].disk.written.rejoin is None)
    scene.run(3.0)  # and the primary knows it
    reply = scene.tell("c", Switchover("b"))
    assert reply is not None and reply.done
    assert scene["c"].log.tip.lsn < refused
    scene.until("b", "open")
    scene.settle()
    scene.checks.at_end()


def test_what_was_refused_and_then_lost_is_refused_once_more() -> None:
    """The primary's disk goes back below what was refused unseen: no handover is taken until it is beyond that again.

    Nothing is harmed by it, and nobody has to do anything: each time the primary goes on by itself.
    """
    scene = Scene("ab")
    for id in range(4):
        scene.put("a", id, id)
    scene.settle()
    image = scene["a"].disk.image()
    scene.cut("b", "a", both=False)  # its question for the points is lost, and so is what it refuses
    differ(scene, difference())
    for id in range(3):
        scene.put("a", id, 10 + id)
    refused = scene["a"].log.tip.lsn
    assert scene.run(10.0, lambda: scene["b"].disk.written.refused_lsn == refused)
    scene["a"].crash()
    scene.run(1.0)  # what is on its way comes to nobody
    scene.put_back(scene["a"], image)
    scene["a"].start()
    scene.heal()
    scene.until("b", "following", 60.0)
    scene.settle()
    agree(scene, difference())
    attempts = 0
    while not scene.is_switched() or scene["b"].status != "open":
        scene.run(3.0)  # and the primary knows it
        reply = scene.tell("a", Switchover("b"))
        assert reply is not None and reply.done
        handed = scene["a"].log.tip.lsn
        assert scene.run(30.0, lambda: scene["a"].status == "open" or scene.is_switched())
        attempts += 1
        assert (scene["b"].status == "open") == (handed > refused)
    assert attempts == 4
    scene.checks.at_end()


def test_the_target_is_asked_every_second() -> None:
    """Nobody can write meanwhile: one refusal that is lost must not cost half a minute."""
    scene = begin(is_mended=False)
    scene.cut("b", "a", both=False)
    calls: list[float] = []
    send = scene.send

    def counted(sender: str, to: str, message: Any) -> None:
        if to == "b" and isinstance(message, Call):
            calls.append(scene.now_s)
        send(sender, to, message)

    scene.send = counted  # type: ignore[method-assign]
    scene.run(12 * TIMING.call_every_s)
    assert scene["a"].status == "handing"
    assert len(calls) >= 8


def part_of(scene: Scene) -> Standby:
    """Return the part that b plays."""
    member = scene["b"].member
    assert member is not None and isinstance(member.part, Standby)
    return member.part
