"""A store of an older version that needs a snapshot of a newer primary: it is refused one, keeps all, and says why.

What a new kind of record does on the stream is between processes: `tests/replication/test_upgrade.py`.
"""

from __future__ import annotations

import pytest

from vecstore.replication.messages import AbortRejoin, Promote, Rejoin
from vecstore.storage.reads import Reads

from .disk import FIRST_NAME
from .scene import Scene
from .test_room import begin, cut_beneath

NEWER = [Reads(format=2), Reads(kind=9)]
LONG_S = 400.0


def upgrade(scene: Scene, store_id: str, reads: Reads) -> None:
    """Start a store again, by another version."""
    scene.kill(store_id)
    scene[store_id].reads = reads
    scene[store_id].start()


def alarms(scene: Scene, store_id: str) -> list[str]:
    """Return what a store has told humans."""
    return [text for name, text in scene.alarms if name == store_id]


@pytest.mark.parametrize("newer", NEWER, ids=str)
def test_a_standby_too_far_behind_a_newer_primary_stops_before_anything_is_fetched(newer: Reads) -> None:
    """No snapshot is taken for it, however long it waits or whenever it starts; it reads on; upgraded, it follows."""
    scene = begin()
    upgrade(scene, "a", newer)
    scene.until("a", "open")
    scene.settle()
    scene.run(3.0)  # the slot has come to there, too
    cut_beneath(scene)
    tip = scene["b"].log.tip
    for _ in range(2):
        scene.until("b", "stopped")
        scene.run(LONG_S)
        scene.until("b", "stopped")
        assert scene["a"].handed_out == 0
        assert (scene["b"].log.tip, scene["b"].disk.written.bootstraps) == (tip, 0)
        assert scene.read("b", None) is True and scene.value("b", 3) == 3
        upgrade(scene, "b", Reads())
    said = alarms(scene, "b")
    assert said and all(str(newer) in text and str(Reads()) in text and "upgrade" in text for text in said), said
    upgrade(scene, "b", newer)
    scene.settle()
    scene.until("b", "following")
    assert (scene["a"].handed_out, scene.value("b", 3)) == (1, 13)


def test_a_newer_standby_takes_the_snapshot_of_an_older_primary() -> None:
    """Standbys are upgraded first."""
    scene = begin()
    upgrade(scene, "b", Reads(2, 9))
    cut_beneath(scene)
    scene.settle()
    assert scene["a"].handed_out == 1


def test_an_older_standby_follows_a_newer_primary_as_long_as_the_log_is_kept() -> None:
    """What comes on the stream is judged record by record."""
    scene = begin()
    upgrade(scene, "a", Reads(kind=9))
    scene.until("a", "open")
    scene.put("a", 0, 100)
    scene.settle()
    assert alarms(scene, "b") == []


@pytest.mark.parametrize("goes_back", [True, False])
def test_a_rejoin_that_needs_a_snapshot_of_a_newer_primary_waits_for_the_upgrade(goes_back: bool) -> None:
    """What it left behind is exported, nothing is replaced, and it can be aborted."""
    scene = begin()
    scene.cut("a", "b")
    scene.put("a", 0, FIRST_NAME)  # not undone by setting points: a snapshot is needed
    tip = scene["a"].log.tip
    scene.kill("a")
    scene.heal()
    upgrade(scene, "b", Reads(kind=9))
    scene.tell("b", Promote(1, force=True))
    scene.until("b", "open")
    scene["a"].start()
    scene.until("a", "fenced")
    scene.tell("a", Rejoin("b"))
    scene.run(LONG_S)
    said = alarms(scene, "a")
    assert (scene["a"].status, scene["b"].handed_out, scene["a"].log.tip) == ("rejoining", 0, tip)
    assert 1 <= sum("upgrade" in text for text in said) <= 9, said
    if goes_back:
        scene.tell("a", AbortRejoin())
        scene.until("a", "fenced")
        assert scene["a"].log.tip == tip
    else:
        upgrade(scene, "a", Reads(kind=9))
        assert scene.run(LONG_S, scene.settled)
        assert scene["b"].handed_out == 1
