"""Long and slow lines between two stores, step by step: nobody begins anew what is on its way."""

from __future__ import annotations

from vecstore.replication import actions as do
from vecstore.replication.actions import Action
from vecstore.replication.durable import Timing
from vecstore.replication.feed import FRAME_BYTES_FIRST, FRAME_BYTES_MIN, FRAMES_IN_FLIGHT_MAX, Feed
from vecstore.replication.log import Place
from vecstore.replication.messages import Ack, Arriving, Frame, Hello, Message, Refusal, Report, Welcome
from vecstore.replication.standby import Standby
from vecstore.replication.state import Member

from .scene import Scene


def begin() -> Scene:
    """Return a scene with a primary `a` and a standby `b` that follows it."""
    scene = Scene("ab")
    for id in range(4):
        scene.put("a", id, id)
    scene.settle()
    return scene


def member(scene: Scene, name: str) -> Member:
    """Return what a store is in the replication."""
    found = scene[name].member
    assert isinstance(found, Member)
    return found


def feed_of(scene: Scene) -> Feed:
    """Return what feeds b."""
    feed = member(scene, "a").part.feed  # type: ignore[attr-defined]
    assert isinstance(feed, Feed)
    return feed


def step(scene: Scene, name: str, sender: str, message: Message | Report, after_s: float = 0.0) -> list[Action]:
    """Let a store take a message, and carry nothing out; return what it would do."""
    of = member(scene, name)
    return of.step(sender, message, of.now_s + after_s)


def sent(actions: list[Action], kind: type) -> list[Message]:
    """Return the messages of a kind among actions."""
    return [action.message for action in actions if isinstance(action, do.Send) and isinstance(action.message, kind)]


def test_a_place_above_what_was_sent_is_no_acknowledgement() -> None:
    """A primary that knows no chain there believes it not: it would acknowledge what only it has, and cut its log."""
    scene = begin()
    stream, lsn = feed_of(scene).streams["b"], scene["a"].log.durable_lsn
    found = step(scene, "a", "b", Ack(stream.session, Place(lsn + 1_000, bytes(16)), lsn))
    assert sent(found, Refusal) and not [action for action in found if isinstance(action, do.Acknowledge)]
    assert "b" not in feed_of(scene).streams
    assert stream.acked.lsn <= lsn


def test_who_asks_again_is_not_fed_again() -> None:
    """An answer that takes longer than the pause between two questions is an answer; frames are sent once."""
    scene = begin()
    b = member(scene, "b")
    assert isinstance(b.part, Standby)
    scene.cut("a", "b")
    scene.put("a", 9, 9)
    a_log, b_log = scene["a"].log, scene["b"].log
    scene.run(20.0, lambda: a_log.durable_lsn > b_log.durable_lsn and "b" not in feed_of(scene).streams)
    b.actions = []
    b.part.dial()
    b.part.dial()
    first, second = (message for message in sent(b.actions, Hello) if isinstance(message, Hello))
    assert first.session == second.session
    answered = step(scene, "a", "b", first)
    again = step(scene, "a", "b", second)
    assert sent(answered, Welcome) and sent(answered, Frame) and sent(again, Welcome)
    assert not sent(again, Frame), "what is on its way is sent again"
    assert str(b.status) == "dialling"
    step(scene, "b", "a", sent(again, Welcome)[0])
    assert b.status == "following", "the answer to the first question is the answer"


def test_frames_are_as_large_as_a_line_is_fast() -> None:
    """They grow while acknowledged at once, shrink while that takes long, and few are on their way at a time."""
    scene = begin()
    feed = feed_of(scene)
    a, stream = member(scene, "a"), feed.streams["b"]
    a.timing = Timing()
    stream.frame_bytes = FRAME_BYTES_FIRST
    stream.flying.clear()

    def acknowledged(after_s: float) -> int:
        stream.flying.append((stream.acked.lsn, a.now_s - after_s))
        feed._pace(stream)
        return stream.frame_bytes

    assert acknowledged(0.0) == 2 * FRAME_BYTES_FIRST
    sizes = [acknowledged(0.0) for _ in range(20)]
    assert sizes[-1] == a.timing.frame_bytes_max
    sizes = [acknowledged(10 * a.timing.call_every_s) for _ in range(20)]
    assert sizes[-1] == FRAME_BYTES_MIN
    stream.flying.extend((stream.sent.lsn + i, a.now_s) for i in range(FRAMES_IN_FLIGHT_MAX))
    a.actions = []
    feed.tick()
    assert not [frame for frame in sent(a.actions, Frame) if isinstance(frame, Frame) and frame.records]


def test_what_arrives_is_no_silence() -> None:
    """While a large frame comes the stream is not begun anew, and the primary hears that somebody is there."""
    scene = begin()
    b = member(scene, "b")
    for _ in range(40):
        b.tick(b.now_s + b.timing.silence_s / 4)
        assert b.status == "following"
        step(scene, "b", "", Arriving("a"))
    assert sent(step(scene, "b", "", Arriving("a"), b.timing.call_every_s), Ack)
    b.tick(b.now_s + 2 * b.timing.silence_s)
    assert b.status == "dialling"
