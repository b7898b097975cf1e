"""What waits for a store while its link is slow, or while there is none."""

from __future__ import annotations

from vecstore.replication.messages import Frame, Message, Synced, Welcome
from vecstore.server.link import Link, Peer


def frame(session: int) -> Frame:
    """Return a frame of a session."""
    return Frame(session, None, (0, b""), (), 0, (), ())  # type: ignore[arg-type]


def test_a_new_session_does_not_wait_behind_frames_of_the_old_one() -> None:
    """They are of no use to anybody; what is no frame keeps its place."""
    peer, link = Peer("b"), Link(is_mine=True)
    assert peer.admit(link, "a")
    queued: list[Message] = [frame(1), Synced(), frame(1), Welcome(2, None), frame(2)]  # type: ignore[list-item, arg-type]
    for message in queued:
        peer.put(message)
    taken = [peer.take(link) for _ in range(3)]
    assert [type(message) for message in taken] == [Synced, Welcome, Frame]
    assert isinstance(taken[-1], Frame) and taken[-1].session == 2
    assert not peer._queue and peer._bytes == 0
