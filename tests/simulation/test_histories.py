"""The fourteen histories of docs/replication.md: each asserted, and its trace held against the one that was kept.

``pytest tests/simulation/test_histories.py --write-traces`` writes them anew; read what changed before keeping it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from vecstore.replication.actions import Send
from vecstore.replication.epochs import Claim, Identity, Standing
from vecstore.replication.messages import AbortRejoin, Adopt, Answer, Call, Promote, Refusal, Rejoin, Switchover
from vecstore.storage.catalog import Epoch

from .disk import FIRST_NAME, SimLog
from .scene import Scene
from .world import LINEAGE, SECRET

TRACES = Path(__file__).parent / "traces"


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Iterator[list[Scene]]:
    """Hold the traces of the scenes of a test against its file."""
    scenes: list[Scene] = []
    yield scenes
    for scene in scenes:
        scene.checks.at_end()
    trace = "\n".join(scene.trace() for scene in scenes)
    path = TRACES / f"{request.node.name.removeprefix('test_')}.txt"
    if request.config.getoption("--write-traces"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(trace)
    assert trace == path.read_text()


def begin(golden: list[Scene], stores: str = "ab") -> Scene:
    """Return a scene with a primary `a` and standbys that follow it."""
    scene = Scene(stores)
    golden.append(scene)
    for id in range(4):
        scene.put("a", id, id)
    scene.settle()
    return scene


def part(scene: Scene, count: int = 3) -> None:
    """Let a's log part from b's: a writes while it is cut off, dies, and b is promoted."""
    scene.cut("a", "b")
    for id in range(count):
        scene.put("a", id, 100 + id)
    scene.kill("a")
    scene.heal()
    scene.tell("b", Promote(1, force=True))
    scene.until("b", "open")
    scene.put("b", 3, 33)


def test_01_the_stalled_attempt(golden: list[Scene]) -> None:
    """An attempt that comes last changes nothing, on the old primary as on the new one."""
    scene = begin(golden)
    write = scene.make(0, 10)
    scene["a"].is_paused = True
    scene.call("hand", "a", write, 1)
    scene.run(1.0)
    stalled = scene["a"].inbox.pop()
    scene["a"].resume()
    first = scene.ask("a", write)[-1]
    scene.put("a", 0, 11)
    stalled[0](*stalled[1])
    scene.run(1.0)
    assert scene.hand.outcomes[write.request_id] == [first, first]
    assert scene.value("a", 0) == 11
    scene.settle()
    scene.kill("a")
    scene.tell("b", Promote(1))
    scene.until("b", "open")
    assert scene.ask("b", write)[-1][1].lsn == first[1].lsn
    assert scene.value("b", 0) == 11


def test_01_the_stalled_attempt_is_late(golden: list[Scene]) -> None:
    """An attempt whose deadline has passed is refused, not begun."""
    scene = begin(golden)
    write = scene.make(0, 10, patience_s=2.0)
    scene.run(3.0)
    assert scene.ask("a", write)[-1][0] == "late"
    assert scene.value("a", 0) == 0


def test_02_a_standby_again(golden: list[Scene]) -> None:
    """The old primary exports its own tail before it drops it, though the new one has cut its log."""
    scene = begin(golden)
    part(scene)
    scene["b"].log.cut(scene["b"].log.durable_lsn)
    scene["a"].start()
    scene.run(3.0)
    assert scene["a"].status == "fenced"
    scene.tell("a", Rejoin("b"))
    scene.until("a", "following")
    scene.settle()
    assert [scene.exported("a")[lsn] for lsn in (6, 7, 8)] == [(0, 100), (1, 101), (2, 102)]
    assert scene["a"].disk.exports.incomplete == []
    assert scene.value("a", 3) == 33


def test_02_points_are_reset(golden: list[Scene]) -> None:
    """Where the new primary holds the log from the fork, only the points that were touched are read anew."""
    scene = begin(golden)
    part(scene)
    scene["a"].start()
    scene.run(3.0)
    scene.tell("a", Rejoin("b"))
    scene.until("a", "following")
    scene.settle()
    assert "reset" in scene.seen
    assert "installed" not in scene.seen
    assert [scene.value("a", id) for id in range(4)] == [0, 1, 2, 33]


def test_02_a_disk_put_back(golden: list[Scene]) -> None:
    """A primary whose standby is ahead of it in its own epoch refuses writes; the standby stops and keeps."""
    scene = begin(golden)
    image = scene["a"].disk.image()
    token = scene.put("a", 0, 7)
    scene.settle()
    scene.kill("a")
    scene.put_back(scene["a"], image)
    scene["a"].start()
    scene.run(6.0)
    assert scene["a"].status == "fenced"
    assert "went back" in scene["a"].disk.synced.reason
    assert scene["b"].status == "stopped"
    assert scene.value("b", 0) == 7
    scene.tell("b", Promote(1))
    scene.until("b", "open")
    assert scene.read("b", token) is True


def test_02_more_than_points(golden: list[Scene]) -> None:
    """Where what was left behind is about more than points, setting points would not undo it: a snapshot does."""
    scene = begin(golden)
    scene.cut("a", "b")
    scene.put("a", 0, FIRST_NAME)
    part(scene)
    scene["a"].start()
    scene.run(3.0)
    scene.tell("a", Rejoin("b"))
    scene.until("a", "following")
    scene.settle()
    assert "installed" in scene.seen
    assert "reset" not in scene.seen
    assert scene["a"].log.state.names == {}
    assert scene.exported("a") == {7: (0, 100), 8: (1, 101), 9: (2, 102)}


def test_02_a_disk_put_back_under_a_rejoin(golden: list[Scene]) -> None:
    """Points that were read from a disk that went back since are of no history: the digest tells, a snapshot heals."""
    scene = begin(golden)
    part(scene)
    image = scene["b"].disk.image()
    scene.put("b", 0, 70)
    scene["a"].start()
    scene.run(3.0)
    scene.tell("a", Rejoin("b"))
    assert scene.run(20.0, lambda: "reset" in scene.seen)
    assert scene.value("a", 0) == 70
    scene.cut("a", "b")
    scene.kill("b")
    scene.put_back(scene["b"], image)
    scene["b"].start()
    scene.until("b", "open")
    for _ in range(3):
        scene.put("b", 1, 71)
    scene.heal()
    assert scene.run(30.0, lambda: scene["a"].disk.synced.rejoin is None), scene.history()
    scene.settle()
    assert any("everything is taken from a snapshot" in text for _, text in scene.alarms)
    assert [scene.value("a", id) for id in range(2)] == [0, 71]


def test_03_back_as_primary(golden: list[Scene]) -> None:
    """It asks its peers first, and is fenced without having taken a write."""
    scene = begin(golden)
    part(scene)
    scene["a"].start()
    scene.until("a", "fenced")
    assert "open a 8" not in scene.trace()


def test_03_back_alone(golden: list[Scene]) -> None:
    """With the new primary out of reach it opens with an alarm, and is fenced at the first contact."""
    scene = begin(golden)
    part(scene)
    scene.cut("a", "b")
    scene["a"].start()
    scene.until("a", "open")
    assert ("a", "opened without having heard from b") in scene.alarms
    scene.put("a", 1, 200)
    scene.heal()
    scene.until("a", "fenced", 3.0)
    assert scene.ask("a", scene.make(1, 201))[-1] == ("not primary", "b")
    assert scene["a"].disk.synced.role == "fenced"


def test_04_strangers(golden: list[Scene]) -> None:
    """A claim that no store of the lineage signed fences nobody."""
    scene = begin(golden)
    log = scene["a"].log
    for lineage, secret in ((LINEAGE, b"guessed"), (b"M" * 16, SECRET), (b"M" * 16, b"its own")):
        stranger = Identity(lineage, secret, "s")
        claim = Claim.of(stranger, Epoch(9, "s", 0, ""))
        for message in (Call(1, claim, Standing.of(stranger, log)), Answer(1, claim, Standing.of(stranger, log))):
            scene.send("s", "a", message)
            scene.send("s", "b", message)
    scene.run(2.0)
    assert (scene["a"].status, scene["b"].status) == ("open", "following")
    assert scene["b"].disk.synced.promise == scene["a"].disk.synced.promise
    assert len([text for _, text in scene.alarms if "no store of this lineage signed" in text]) == 12
    scene.put("a", 0, 5, "replicated")


def test_05_a_copy(golden: list[Scene]) -> None:
    """A copied directory is silent until it is adopted; then the original is fenced."""
    scene = begin(golden)
    scene.add_copy("k", "a")
    scene.run(20.0)
    assert scene["k"].status == "copied"
    assert scene.ask("k", scene.make(0, 1))[-1][0] == "not primary"
    reply = scene.tell("k", Promote(1, force=True))
    assert reply is not None
    assert not reply.done
    scene.put("a", 0, 50)
    scene.tell("k", Adopt())
    scene["k"].is_copied = False
    scene.until("k", "open")
    scene.until("a", "fenced")
    scene.put("k", 1, 51)


def test_05_strangers_share_no_prefix(golden: list[Scene]) -> None:
    """A store of another lineage is neither fed nor given a snapshot."""
    scene = begin(golden)
    scene.secrets[b"M" * 16] = b"another secret"
    scene.add_standby("m", "a", b"M" * 16)
    scene.run(10.0)
    assert scene["m"].status == "dialling"
    assert scene["m"].log.tip.lsn == 0
    assert isinstance(scene["m"].log, SimLog)
    assert all(slot.store_id != "m" for slot in scene["a"].disk.written.slots)


def test_06_switchover(golden: list[Scene]) -> None:
    """The writer changes through the log, nothing is lost, and the old one follows."""
    scene = begin(golden)
    token = scene.put("a", 0, 60)
    began_s = scene.now_s
    scene.tell("a", Switchover("b"))
    assert scene.ask("a", scene.make(0, 61))[-1][0] == "not primary"
    scene.until("b", "open")
    assert scene.now_s - began_s < 1.0
    scene.put("b", 0, 62, "replicated")
    scene.settle()
    assert scene["a"].status == "following"
    assert scene.read("a", token) is True
    assert scene["a"].disk.exports.records == {}


def test_06_switchover_refused(golden: list[Scene]) -> None:
    """The store that was to take over says durably that it will not, and the old one goes on."""
    scene = begin(golden)
    assert scene["b"].member is not None
    scene["b"].member.is_ready = False
    scene.tell("a", Switchover("b"))
    scene.until("a", "open")
    scene.put("a", 0, 63, "replicated")
    scene.kill("b")
    scene["b"].start()
    scene.run(5.0)
    scene.settle()
    assert (scene["a"].status, scene["b"].status) == ("open", "following")


@pytest.mark.parametrize("victims", ["a", "b", "ab"])
def test_06_switchover_with_a_crash_at_each_step(victims: str) -> None:
    """Whoever dies at whatever moment: one writer, nothing lost, finished without the command."""
    ended: set[str] = set()
    for step in range(40):
        scene = begin([])
        scene.tell("a", Switchover("b"))
        writes = [scene.make(id, 70 + id) for id in range(4)]
        for write in writes:
            scene.call("hand", "a", write, 1)
        for _ in range(step):
            scene.now_s = max(scene.now_s, scene.events[0][0])
            scene.run(0.0)
        for store_id in victims:
            scene.kill(store_id)
        scene.run(4.0)
        for store_id in victims:
            scene[store_id].start()
        assert scene.run(60.0, scene.is_switched), scene.history()
        ended.update(node.store_id for node in scene.nodes.values() if node.status == "open")
        scene.checks.at_end()
    assert "b" in ended


def test_07_a_lost_token(golden: list[Scene]) -> None:
    """The new history says that the write is lost, though it is shorter than the token's LSN."""
    scene = begin(golden)
    scene.cut("a", "b")
    tokens = [scene.put("a", 0, 80 + i) for i in range(6)]
    assert scene.read("b", tokens[0]) is None
    scene.kill("a")
    scene.heal()
    scene.tell("b", Promote(1, force=True))
    scene.until("b", "open")
    assert scene["b"].log.tip.lsn < tokens[-1].lsn
    assert [scene.read("b", token) for token in tokens] == [False] * 6


def test_08_an_aborted_rejoin(golden: list[Scene]) -> None:
    """The new primary dies while the old one is half-way: it can be again what it was, and be promoted."""
    scene = begin(golden)
    part(scene)
    scene["a"].start()
    scene.until("a", "fenced")
    before = scene["a"].log.copy()
    scene.tell("a", Rejoin("b"))
    assert scene.run(20.0, lambda: "reset" in scene.seen)
    scene.kill("b")
    scene.run(2.0)
    scene.tell("a", AbortRejoin())
    scene.until("a", "fenced")
    assert (scene["a"].log.tip, scene["a"].log.state) == (before.tip, before.state)
    assert scene["a"].disk.checkpoint is None
    refused = scene.tell("a", Promote(2))
    assert refused is not None
    assert not refused.done
    scene.tell("a", Promote(2, force=True))
    scene.until("a", "open")
    assert scene.value("a", 0) == 100


def test_09_a_log_that_was_cut(golden: list[Scene]) -> None:
    """What was left behind and is no longer in the log: the live points newer than the fork, marked incomplete."""
    scene = begin(golden)
    scene.run(1.0)  # the slot is noted where it is now
    scene.cut("a", "b")
    for i in range(12):
        scene.put("a", i % 3, 90 + i)
    scene["a"].log.cut(scene["a"].log.durable_lsn - 2)
    scene.kill("a")
    scene.heal()
    scene.tell("b", Promote(1, force=True))
    scene.until("b", "open")
    scene["a"].start()
    scene.until("a", "fenced")
    scene.tell("a", Rejoin("b"))
    scene.until("a", "following")
    scene.settle()
    ((fork_lsn, last_lsn, points),) = scene["a"].disk.exports.incomplete
    assert (fork_lsn, last_lsn) == (5, 17)
    assert {id: value for id, (value, _) in points.items()} == {0: 99, 1: 100, 2: 101}
    assert [scene.value("a", id) for id in range(4)] == [0, 1, 2, 3]


def test_10_calls_in_flight(golden: list[Scene]) -> None:
    """What is done is in the new history; what is unknown can be settled there."""
    scene = begin(golden)
    writes = [scene.make(id % 4, 1000 + id) for id in range(20)]
    for i, write in enumerate(writes):
        scene.later(0.02 * i, scene.call, "hand", "a", write, 1)
    scene.later(0.15, scene["b"].command, Promote(1))
    scene.until("b", "open")
    scene.run(5.0)
    outcomes = [scene.hand.outcomes[write.request_id][-1][0] for write in writes]
    assert set(outcomes) == {"done", "not primary"} or set(outcomes) == {"done", "unknown", "not primary"}
    known = scene["b"].log.state.requests
    assert all(write.request_id in known for write, outcome in zip(writes, outcomes, strict=True) if outcome == "done")
    refused = [write for write, outcome in zip(writes, outcomes, strict=True) if outcome == "not primary"]
    assert not any(write.request_id in known for write in refused)


def test_11_two_promotions(golden: list[Scene]) -> None:
    """Two writers under one number both stop at the first contact, until one is promoted higher."""
    scene = begin(golden, "abc")
    scene.kill("a")
    scene.cut("b", "c")
    for store_id in "bc":
        scene.tell(store_id, Promote(1))
    scene.until("b", "open")
    scene.until("c", "open")
    scene.put("b", 0, 110)
    scene.put("c", 0, 111)
    scene.heal()
    scene.until("b", "fenced")
    scene.until("c", "fenced")
    scene.tell("b", Promote(2))
    scene.until("b", "open")
    scene.run(3.0)
    scene.tell("c", Rejoin("b"))
    scene.until("c", "following")
    scene.settle()
    assert scene.exported("c") == {7: (0, 111)}
    assert scene.value("c", 0) == 110


def test_11_a_third_store_that_knows_of_both_tells() -> None:
    """Whoever hears of a second claim to the number that it promised says so to its claimant, which may not know."""
    scene = begin([], "abc")
    scene.kill("a")
    scene.cut("b", "c")
    for store_id in "bc":
        scene.tell(store_id, Promote(1))
    scene.until("b", "open")
    scene.until("c", "open")
    scene.cut("a", "c")
    scene["a"].start()
    scene.until("a", "following")
    a, c = scene["a"].member, scene["c"].member
    assert a is not None and c is not None
    other = c.durable.promise
    assert other is not None and other.contests(a.durable.promise)
    actions = a.step("b", Refusal(0, "not primary", other), scene.now_s)
    assert Send("c", Answer(0, a.durable.promise, a.standing())) in actions
    assert a.step("c", Answer(0, other, c.standing()), scene.now_s) == []


def test_12_power_loss(golden: list[Scene]) -> None:
    """A standby never holds what the primary had not synced."""
    scene = begin(golden)
    before = scene["a"].log.durable_lsn
    scene["a"].is_syncing = True  # the disk takes its time
    scene.call("hand", "a", scene.make(0, 120), 1)
    scene.run(3.0)
    assert scene["a"].log.tip.lsn == before + 1
    assert scene["b"].log.tip.lsn == before
    scene.kill("a")
    scene.run(1.0)
    scene["a"].start()
    scene.until("a", "open")
    scene.put("a", 0, 121, "replicated")
    scene.settle()
    assert scene["b"].log.tip.lsn == before + 1


def test_13_clocks(golden: list[Scene]) -> None:
    """One wall clock jumps to 2100 and back, one is an hour behind: commit times stay monotone and usable."""
    scene = begin(golden)
    hour_us = 3_600_000_000
    scene["b"].clock.offset_us = -hour_us
    scene["a"].clock.offset_us = 2_400_000_000_000_000
    scene.put("a", 0, 130)
    scene.run(5.0)
    scene.put("a", 0, 131)
    scene["a"].clock.offset_us = 0
    scene.put("a", 0, 132)
    scene.settle()
    scene.kill("a")
    scene.tell("b", Promote(1))
    scene.until("b", "open")
    for i in range(3):
        scene.put("b", 0, 133 + i)
    truth_us = 1_700_000_000_000_000 + int(scene.now_s * 1e6)
    headers = [record.header for record in scene["b"].log.records]
    times_us = [header.commit_time_us for header in headers]
    assert times_us == sorted(times_us)
    assert abs(times_us[-1] - truth_us) < hour_us
    # What the walls said is beside: where the two disagree, a time is ambiguous and restore wants an LSN.
    assert max(abs(header.wall_time_us - header.commit_time_us) for header in headers) > 2_000_000_000_000_000


@pytest.mark.parametrize("has_archive", [False, True])
def test_14_a_lost_slot(golden: list[Scene], has_archive: bool) -> None:
    """A log that is cut faster than a snapshot is installed: the archive bridges it, or it stops with an alarm."""
    scene = Scene("a")
    golden.append(scene)
    scene.archive = {} if has_archive else None
    scene.slow_max_s = 60.0

    def go_on() -> None:
        scene.call("hand", "a", scene.make(scene.written % 4, scene.written), 1)
        scene.archive_from(scene["a"])
        scene["a"].log.cut(scene["a"].log.durable_lsn - 1)
        if not is_over:
            scene.later(0.5, go_on)

    is_over: list[bool] = []
    go_on()
    scene.run(5.0)
    scene.add_standby("b", "a")
    scene.until("b", "following" if has_archive else "stopped", 600.0)
    is_over.append(True)
    if has_archive:
        scene.run(5.0)
        scene.settle()
    else:
        assert any("bootstraps came to nothing" in text for _, text in scene.alarms)
        assert scene.seen["installed"] <= 3
