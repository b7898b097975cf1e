"""Links: the streams between this store and others, for both directions, whoever made them.

A message for a store goes out on the link that there is; where there is none, one is made to the address that is known
of it, ever more slowly while that fails. What comes is handed to the driver under the name by which the other side
introduced itself; the member believes no more of it than is signed. A store of another lineage is refused.

Who does the I/O: a thread for each link that was made here, gRPC's threads for those that were made from elsewhere.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import grpc

from .. import __version__
from ..clock import SystemClock
from ..errors import Damaged, InvalidArgument, Unavailable, VecstoreError
from ..replication.coding import decode
from ..replication.lag import Position
from ..replication.messages import Message
from ..wire.status import error_from
from ..wire.v1 import replication_pb2 as pb
from . import log
from .caller import host_of
from .link import FIRST_S, Link, Peer
from .peers import AddressBook
from .pieces import joined
from .reach import Reach

__all__ = ["Links", "Self"]

BACKOFF_S_MIN, BACKOFF_S_MAX = 0.2, 5.0
ARRIVING_EVERY_S = 0.2
_CLOCK = SystemClock()
STEADY_S = 5.0
"""A link that lived so long was a good one: the next is made at once."""


@dataclass(frozen=True)
class Self:
    """Who this store is to others.

    Attributes
    ----------
    address
        Returns where it is reached: ``host:port``; ``:port`` where only the port is known; "".
    end
        Returns where its log ends; None where it does not know.
    facts
        Returns what it says of itself to who may have to take over from it; nothing where it does not know yet.
    """

    store_id: str
    lineage: bytes
    region: str
    address: Callable[[], str]
    end: Callable[[], Position | None] = lambda: None
    facts: Callable[[], bytes] = bytes


class Links:
    """All links of one store. Thread-safe.

    Parameters
    ----------
    receive
        Takes a message of the protocol; quick.
    on_scrub
        Takes a message of the scrub.
    on_damage
        Is told of a message that this version cannot read: the store, and why.
    on_end
        Is told where the log of a store that feeds this one ends.
    on_facts
        Is told what such a store says of itself; quick.
    on_arriving
        Is told of a store of which a large message is arriving, a few times a second.
    on_change
        Is told of bytes that were changed on the way, and so were not believed: the store, and why.
    """

    def __init__(
        self,
        me: Self,
        book: AddressBook,
        reach: Reach,
        receive: Callable[[str, Message], None],
        *,
        on_scrub: Callable[[str, bytes], None] = lambda _from, _data: None,
        on_damage: Callable[[str, str], None] = lambda _from, _why: None,
        on_end: Callable[[str, Position], None] = lambda _from, _end: None,
        on_facts: Callable[[str, bytes], None] = lambda _from, _facts: None,
        on_arriving: Callable[[str], None] = lambda _from: None,
        on_change: Callable[[str, str], None] = lambda _from, _why: None,
    ) -> None:
        self._me, self._book, self._reach, self._receive = me, book, reach, receive
        self._on_scrub, self._on_damage, self._on_end, self._on_facts = on_scrub, on_damage, on_end, on_facts
        self._on_arriving, self._on_change = on_arriving, on_change
        self._lock = threading.Lock()
        self._peers: dict[str, Peer] = {}
        self._open: set[Link] = set()
        self._closed = threading.Event()
        self._log = log.logger()

    # -- sending -----------------------------------------------------------------------------------------------------

    def send(self, to: str, message: Message | bytes) -> None:
        """Send a message to a store, or, of the scrub, its bytes; it may be lost. Never waits."""
        if self._closed.is_set() or to in ("", self._me.store_id):
            return
        peer = self._peer(to)
        peer.put(message)
        link = peer.link
        if link is not None and link.is_dead:
            link.close()
        if not peer.is_connected:
            self._dial(peer)

    def address(self, store_id: str) -> str:
        """Return where a store was last reached, "" where that is not known."""
        return self._me.address() if store_id == self._me.store_id else self._book.address(store_id)

    def region(self, store_id: str) -> str:
        """Return the region that a store has named as its own, "" where that is not known."""
        return self._me.region if store_id == self._me.store_id else self._book.region(store_id)

    def _peer(self, store_id: str) -> Peer:
        with self._lock:
            peer = self._peers.get(store_id)
            if peer is None:
                peer = self._peers[store_id] = Peer(store_id)
            return peer

    def _dial(self, peer: Peer) -> None:
        """Make a link to a store in a thread of its own, unless that is under way, or was tried a moment ago."""
        address = self._book.address(peer.store_id)
        with self._lock:
            is_dialling = peer.dialling is not None and peer.dialling.is_alive()
            if not address or is_dialling or time.monotonic() < peer.next_dial_s:
                return
            peer.dialling = threading.Thread(
                target=self._dialled, args=(peer, address), name=f"vecstore-link-{peer.store_id[:8]}", daemon=True
            )
            peer.dialling.start()

    def _dialled(self, peer: Peer, address: str) -> None:
        start_s = time.monotonic()
        try:
            self.connect(address, lambda store_id: store_id == peer.store_id)
        except VecstoreError as exc:
            if str(exc) != peer.problem:
                self._log.warning("link ended", store=peer.store_id, address=address, why=str(exc))
            peer.problem = "" if peer.is_connected else str(exc)
        is_steady = time.monotonic() - start_s > STEADY_S
        peer.backoff_s = BACKOFF_S_MIN if is_steady else min(BACKOFF_S_MAX, max(BACKOFF_S_MIN, 2 * peer.backoff_s))
        peer.next_dial_s = time.monotonic() + peer.backoff_s * random.uniform(0.5, 1.0)  # noqa: S311

    def connect(self, address: str, is_wanted: Callable[[str], bool] = lambda _: True) -> None:
        """Make a link to an address and read from it until it ends.

        Parameters
        ----------
        is_wanted
            Is told the id of the store that is there, and says whether to go on.

        Raises
        ------
        VecstoreError
            Why it ended.
        """
        link = Link(is_mine=True)
        channel, headers = self._reach.open(address)
        try:
            outgoing = link.outgoing(self._introduction(), self._me.end, self._me.facts)
            call = self._reach.link(channel)(outgoing, metadata=headers)
            link.carry(call)
            self._begin(link)
            watch = threading.Timer(FIRST_S, lambda: None if link.introduced.is_set() else link.close())
            watch.daemon = True
            watch.start()
            try:
                said = joined(call, self._on_piece(link))
                first = next(said, None)
            finally:
                watch.cancel()
            if first is None:
                raise Unavailable("the other side closed the link")
            self._book.learn(first.introduction.store_id, address, first.introduction.region)
            if not is_wanted(first.introduction.store_id):
                raise InvalidArgument(f"{address} is another store by now: {first.introduction.store_id}")
            if self._introduced(link, first.introduction, ""):
                self._read(link, said)
        except grpc.RpcError as exc:
            raise error_from(exc) from exc
        finally:
            self._end(link)
            channel.close()

    # -- what others make --------------------------------------------------------------------------------------------

    def serve(self, requests: Iterator[pb.Envelope], context: Any) -> Iterator[pb.Envelope]:
        """Serve a link that another store has made."""
        link = Link(is_mine=False)
        said = joined(requests, self._on_piece(link))
        first = next(said, None)
        if first is None:
            return
        if self._closed.is_set():
            raise Unavailable("the server is being stopped")
        if not context.add_callback(link.close):
            return
        self._begin(link)
        try:
            if not self._introduced(link, first.introduction, host_of(context.peer())):
                raise Unavailable("there is a link already")
            threading.Thread(target=self._serve_read, args=(link, said), name="vecstore-link-in", daemon=True).start()
            yield from link.outgoing(self._introduction(), self._me.end, self._me.facts)
        finally:
            self._end(link)

    def _serve_read(self, link: Link, said: Iterator[pb.Envelope]) -> None:
        # However it ends: the link is over, and the other side makes another one.
        with suppress(Exception):
            self._read(link, said)
        link.close()

    # -- both --------------------------------------------------------------------------------------------------------

    def _introduction(self) -> pb.Envelope:
        me = self._me
        introduction = pb.Introduction(
            store_id=me.store_id,
            lineage=me.lineage,
            region=me.region,
            address=me.address(),
            addresses=self._book.addresses(),
            now_us=_CLOCK.wall_us(),
            version=__version__,
        )
        return pb.Envelope(introduction=introduction)

    def _introduced(self, link: Link, other: pb.Introduction, host: str) -> bool:
        """Learn who is at the other end; return whether the link is used."""
        if other.lineage != self._me.lineage:
            raise InvalidArgument(
                f"lineage: the store here is of {self._me.lineage.hex()}, that one of {other.lineage.hex()}",
                hint="only copies of one store follow each other",
            )
        if not other.store_id or other.store_id == self._me.store_id:
            raise InvalidArgument(f"store_id: {other.store_id!r} is this store itself")
        address = other.address if not other.address.startswith(":") else host and host + other.address
        if address and (not link.is_mine or not self._book.address(other.store_id)):
            self._book.learn(other.store_id, address, other.region)
        self._book.hear(other.addresses, self._me.store_id)
        peer = self._peer(other.store_id)
        peer.clock_skew_s = (other.now_us - _CLOCK.wall_us()) / 1e6
        peer.version = other.version
        link.peer = peer
        if not peer.admit(link, self._me.store_id):
            return False
        link.introduced.set()
        self._log.info("linked", store=other.store_id, region=other.region, address=self._book.address(other.store_id))
        return True

    def _on_piece(self, link: Link) -> Callable[[bool], None]:
        """Return what is told of each piece that comes on a link."""
        told_s = 0.0

        def heard(more: bool) -> None:
            nonlocal told_s
            link.heard()
            if more and link.peer is not None and link.heard_s - told_s > ARRIVING_EVERY_S:
                told_s = link.heard_s
                self._on_arriving(link.peer.store_id)

        return heard

    def _read(self, link: Link, envelopes: Iterator[pb.Envelope]) -> None:
        peer = link.peer
        assert peer is not None
        while not link.is_closed:
            try:
                envelope = next(envelopes, None)
            except Unavailable as exc:
                self._on_change(peer.store_id, exc.args[0])
                raise
            if envelope is None or link.is_closed:
                return
            peer.received_bytes += envelope.ByteSize()
            if envelope.HasField("end"):
                end = envelope.end
                self._on_end(peer.store_id, Position(end.lsn, end.log_bytes, end.commit_time_us))
            if envelope.facts:
                self._on_facts(peer.store_id, envelope.facts)
            try:
                if envelope.scrub:
                    self._on_scrub(peer.store_id, envelope.scrub)
                elif envelope.message:
                    self._receive(peer.store_id, decode(envelope.message, envelope.records))
            except Damaged as exc:
                self._on_damage(peer.store_id, str(exc))
                raise

    def _begin(self, link: Link) -> None:
        with self._lock:
            self._open.add(link)
        if self._closed.is_set():
            link.close()

    def _end(self, link: Link) -> None:
        link.close()
        if link.peer is not None:
            link.peer.dismiss(link)
        with self._lock:
            self._open.discard(link)

    # -- the server's side -------------------------------------------------------------------------------------------

    @property
    def serving_count(self) -> int:
        """How many links of others are being served."""
        with self._lock:
            return sum(not link.is_mine for link in self._open)

    def is_connected(self, store_id: str) -> bool:
        """Return whether there is a link to a store."""
        peer = self._peers.get(store_id)
        return peer is not None and peer.is_connected

    def describe(self) -> list[dict[str, Any]]:
        """Return what is known of each store that was met."""
        with self._lock:
            peers = list(self._peers.values())
        return [
            {
                "store_id": peer.store_id,
                "region": self._book.region(peer.store_id),
                "address": self._book.address(peer.store_id),
                "connected": peer.is_connected,
                "reconnects": max(0, peer.reconnects),
                "sent_bytes": peer.sent_bytes,
                "received_bytes": peer.received_bytes,
                "clock_skew_s": peer.clock_skew_s,
                "version": peer.version,
                "problem": peer.problem,
            }
            for peer in peers
        ]

    def close(self) -> None:
        """End all links; none is made any more."""
        self._closed.set()
        with self._lock:
            links = list(self._open)
        for link in links:
            link.close()
