"""One connection between two stores, and what waits for a store while there is none.

A `Peer` is another store as this one sees it: a bounded queue of messages for it, and the `Link` that takes from it
now. Messages may be lost, as the protocol allows: those that had waited for some seconds when the link was made, and
those beyond the bound, are. What a link was handed goes out in order. Neither knows gRPC but for the messages of the
contract.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from ..config import MIB
from ..replication.coding import encode
from ..replication.lag import Position
from ..replication.messages import Frame, Message, Welcome
from ..wire.v1 import replication_pb2 as pb
from .pieces import PIECE_BYTES, cut

__all__ = ["Link", "Peer"]

QUEUE_BYTES_MAX = 64 * MIB
QUEUE_COUNT_MAX = 10_000
OLD_S = 5.0
"""What had waited for so long when a link was made is dropped. A slow link is handed everything."""
QUIET_S = 2.5
"""A link that gave no answer for so long makes way for a new one."""
DEAD_S = 10.0
"""A link on which something was sent so long ago, and nothing came since, is closed."""
FIRST_S = 10.0
"""Who links introduces himself within it."""
FACTS_S = 10.0
"""What a store says of itself goes out so often on each link."""


class _Waiting(NamedTuple):
    """What is to be sent: a message of the protocol, or the bytes of one of the scrub."""

    content: Message | bytes
    size: int
    queued_s: float


class Peer:
    """Another store: what waits for it, and how it is connected. Thread-safe.

    Attributes
    ----------
    link
        The connection that takes from the queue; None where there is none.
    clock_skew_s
        Its wall clock less this one's when it last linked; the way here counts as skew.
    sent_bytes, received_bytes
        Of messages and records, since this server began.
    problem
        Why the last link that was made to it failed or ended; empty while there is one.
    """

    def __init__(self, store_id: str) -> None:
        self.store_id = store_id
        self.changed = threading.Condition()
        self.link: Link | None = None
        self.reconnects = -1
        self.sent_bytes = self.received_bytes = 0
        self.clock_skew_s: float | None = None
        self.version = ""
        self.problem = ""
        self.dialling: threading.Thread | None = None
        self.next_dial_s = 0.0
        self.backoff_s = 0.0
        self._queue: deque[_Waiting] = deque()
        self._bytes = 0

    def put(self, content: Message | bytes) -> None:
        """Queue a message; drop it where too much waits. A welcome to a session: frames of older ones go."""
        size = sum(record.size for record in content.records) if isinstance(content, Frame) else 256
        with self.changed:
            if isinstance(content, Welcome):
                # On a slow link what is new would wait behind them for so long that it were old, too.
                kept = [waiting for waiting in self._queue if not _is_older(waiting.content, content.session)]
                self._queue, self._bytes = deque(kept), sum(waiting.size for waiting in kept)
            if self._bytes + size > QUEUE_BYTES_MAX or len(self._queue) >= QUEUE_COUNT_MAX:
                return
            self._queue.append(_Waiting(content, size, time.monotonic()))
            self._bytes += size
            self.changed.notify_all()

    def take(self, link: Link) -> Message | bytes | None:
        """Wait for a message for a link; None once the link is closed."""
        with self.changed:
            while True:
                self.changed.wait_for(lambda: link.is_closed or (self.link is link and bool(self._queue)))
                if link.is_closed:
                    return None
                waiting = self._queue.popleft()
                self._bytes -= waiting.size
                if link.begun_s - waiting.queued_s <= OLD_S:
                    return waiting.content

    def admit(self, link: Link, me: str) -> bool:
        """Make a link the one that is used, unless another one stays: of two, that of the store with the smaller id."""
        with self.changed:
            now = self.link
            if now is not None and not now.is_closed:
                is_quiet = time.monotonic() - now.heard_s > QUIET_S
                stays = now.is_mine != link.is_mine and not is_quiet and link.is_mine != (me < self.store_id)
                if stays:
                    return False
                now.close()
            self.link, self.problem = link, ""
            self.reconnects += 1
            self.changed.notify_all()
            return True

    def dismiss(self, link: Link) -> None:
        """Use a link no longer."""
        with self.changed:
            if self.link is link:
                self.link = None
            self.changed.notify_all()

    @property
    def is_connected(self) -> bool:
        """Whether there is a link, as far as is known."""
        link = self.link
        return link is not None and not link.is_closed


class Link:
    """One connection.

    Attributes
    ----------
    is_mine
        Whether this store made it.
    heard_s
        When something last came, of the monotonic clock.
    begun_s
        When it was made.
    """

    def __init__(self, *, is_mine: bool, call: Any = None) -> None:
        self.is_mine = is_mine
        self.is_closed = False
        self.peer: Peer | None = None
        self.heard_s = self.begun_s = time.monotonic()
        self.introduced = threading.Event()
        self._asked_s: float | None = None
        self._tells_s = 0.0
        self._call = call

    def carry(self, call: Any) -> None:
        """Say what ends the connection: its gRPC call."""
        self._call = call
        if self.is_closed:
            call.cancel()

    def heard(self) -> None:
        """Something came."""
        self.heard_s = time.monotonic()
        self._asked_s = None

    @property
    def is_dead(self) -> bool:
        """Whether nothing came for long though something was sent."""
        asked_s = self._asked_s
        return asked_s is not None and time.monotonic() - asked_s > DEAD_S

    def close(self) -> None:
        """End the connection. Callable from any thread, any number of times."""
        self.is_closed = True
        self.introduced.set()
        peer = self.peer
        if peer is not None:
            with peer.changed:
                peer.changed.notify_all()
        call = self._call
        if call is not None and self.is_mine:
            call.cancel()

    def outgoing(
        self, introduction: pb.Envelope, end: Callable[[], Position | None], facts: Callable[[], bytes]
    ) -> Iterator[pb.Envelope]:
        """Yield what goes out, in pieces: the introduction, then messages for the store that introduced itself.

        Parameters
        ----------
        end
            Says where this store's log ends now, for frames.
        facts
            Returns what this store says of itself, for frames now and then; nothing where that is not known yet.
        """
        yield from cut(introduction)
        if not self.introduced.wait(FIRST_S):
            self.close()
        peer = self.peer
        while peer is not None:
            content = peer.take(self)
            if content is None:
                return
            if self._asked_s is None:
                self._asked_s = time.monotonic()
            if isinstance(content, bytes):
                peer.sent_bytes += len(content)
                yield from cut(pb.Envelope(scrub=content))
            else:
                message, records = encode(content)
                is_frame = isinstance(content, Frame)
                peer.sent_bytes += len(message) + sum(map(len, records))
                told = facts() if is_frame and time.monotonic() >= self._tells_s else b""
                if told:
                    self._tells_s = time.monotonic() + FACTS_S
                said = _said(end()) if is_frame else None
                yield from cut(pb.Envelope(message=message, records=records, end=said, facts=told))
                if sum(map(len, records)) > PIECE_BYTES:
                    # It took a while to send: where the log ends by now is not to wait for the next frame.
                    yield from cut(pb.Envelope(end=_said(end())))


def _is_older(content: Message | bytes, session: int) -> bool:
    return isinstance(content, Frame) and content.session != session


def _said(place: Position | None) -> pb.LogEnd | None:
    return None if place is None else pb.LogEnd(lsn=place[0], log_bytes=place[1], commit_time_us=place[2])
