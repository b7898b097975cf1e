"""An epoch that its only holder forgot with its disk: who promised it says so, and then a human promotes higher.

Two seeds once waited for ever: a store that rejoined had promised an epoch to one that knew nothing of it any more, and
the primary of the epoch before wrote on, and was never told.
"""

from __future__ import annotations

import pytest

from vecstore.replication.actions import Send
from vecstore.replication.messages import Answer, Promote, Refusal, Rejoin

from .scene import Scene
from .story import Story


@pytest.mark.parametrize(
    ("seed", "favoured"),
    [(441074, ("failover", "rejoin")), (517863, ("isolate", "failover", "rejoin"))],
)
def test_a_seed_that_did_not_come_right_does(seed: int, favoured: tuple[str, ...]) -> None:
    """In both a copy was adopted, which nobody calls: it alone knew of the epoch."""
    Story(seed, favoured).run()


def begin() -> Scene:
    """Return a scene in which b wrote epoch 3, forgot it with its disk, and follows a, which never heard of it.

    c, whom a cannot reach, wrote epoch 2, was deposed by b, and is about to rejoin it.
    """
    scene = Scene("abc")
    for id in range(4):
        scene.put("a", id, id)
    scene.settle()
    scene.run(3.0)
    image = scene["b"].disk.image()
    scene.cut("a", "b")
    scene.cut("a", "c")
    scene.tell("c", Promote(1, force=True))
    scene.until("c", "open")
    assert scene.run(30.0, lambda: scene["c"].log.tip == scene["b"].log.tip)
    scene.cut("b", "c")
    scene.put("c", 0, 100)
    scene.tell("b", Promote(2, force=True))
    scene.until("b", "open")
    scene.heal()
    scene.cut("a", "c")
    scene.cut("a", "b")
    scene.until("c", "fenced")
    scene["b"].crash()
    scene.run(1.0)  # what is on its way comes to nobody
    scene.put_back(scene["b"], image)
    scene["b"].start()
    scene.heal()
    scene.cut("a", "c")
    scene.until("b", "following")
    scene.put("a", 1, 101)
    assert forgotten(scene) == [0, 0, 0], "c is fenced, and not for what it wrote"
    return scene


def forgotten(scene: Scene) -> list[int]:
    """Return the epoch that each store says it has forgotten."""
    return [node.member.forgotten_epoch for node in scene.nodes.values() if node.member is not None]


def test_who_promised_it_says_so_and_whoever_is_promoted_higher_is_followed() -> None:
    """Nobody writes an epoch that is known to be over; one command later all is well, and all that was left is kept."""
    scene = begin()
    scene.tell("c", Rejoin("b"))
    scene.until("b", "fenced")
    scene.until("a", "fenced")
    assert "its disk does not know it" in scene["b"].disk.written.reason
    assert scene["a"].disk.written.reason == "b began epoch 3"
    assert forgotten(scene) == [0, 3, 0], "who wrote it says so, and nobody else"
    scene.heal()
    refused = scene.tell("a", Promote(3))
    assert refused is not None and not refused.done and "force" in refused.text
    done = scene.tell("a", Promote(3, force=True))
    assert done is not None and done.done
    scene.put("a", 2, 102)
    scene.tell("b", Rejoin("a"))
    assert scene.run(60.0, lambda: scene["c"].status == scene["b"].status == "following" and scene.settled())
    assert set(scene.exported("c").values()) == {(0, 100)}
    assert forgotten(scene) == [0, 0, 0]
    scene.checks.at_end()


def test_a_refusal_in_the_name_of_a_lower_epoch_is_answered_with_the_promise() -> None:
    """So is one that names none; of one's own or a higher epoch there is nothing to say."""
    scene = begin()
    a, c = scene["a"].member, scene["c"].member
    assert a is not None and c is not None and c.durable.promise is not None
    told = Send("b", Answer(0, c.durable.promise, c.standing()))
    assert c.step("b", Refusal(0, "not primary", a.durable.promise), scene.now_s) == [told]
    assert told not in c.step("b", Refusal(0, "not primary", c.durable.promise), scene.now_s)
