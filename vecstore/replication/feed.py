"""Feeding standbys: who may follow, from where, how far each has come, and the slots that hold the log for them.

Invariant: no record above the log's durable LSN goes into a frame, and none to a store whose log is not proven to be a
prefix of this one.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from ..storage.reads import Reads
from .actions import ReadPoints, TakeSnapshot
from .durable import Slot
from .epochs import Relation, Standing, relate
from .lag import Pace, Position, Trail
from .log import Place
from .messages import (
    Ack,
    Chains,
    ChainsRequest,
    Frame,
    Hello,
    Message,
    PointsRequest,
    Refusal,
    SnapshotRequest,
    Welcome,
    Why,
)
from .part import Desk

__all__ = ["Behind", "Feed"]

FRAMES_IN_FLIGHT_MAX = 4
FRAME_BYTES_MIN = 64 << 10
FRAME_BYTES_FIRST = 256 << 10
"""A stream begins with frames of so many bytes, and has larger or smaller ones as fast as they are acknowledged."""


@dataclass
class _Stream:
    """One standby's stream, since its last `Hello`."""

    session: int
    region: str
    slot: str
    sent: Place
    acked: Place
    applied_lsn: int
    heard_s: float
    sent_s: float
    frame_bytes: int
    flying: deque[tuple[int, float]] = field(default_factory=deque)
    """Frames that were not acknowledged: the last LSN of each, and when it was sent."""
    pace: Pace = field(default_factory=Pace)


class Behind(NamedTuple):
    """How far a standby is behind, and about how long it would take to have all, if nobody wrote meanwhile.

    Two things tell, and each alone would call too much too slow: for how long it has lacked the oldest of them, as who
    keeps up with the writers needs no longer; and how fast it moved of late.
    """

    records: int
    seconds: float


class Feed:
    """The streams and slots of a store that feeds others."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.streams: dict[str, _Stream] = {}
        self._trail = Trail()

    def step(self, sender: str, message: Message) -> None:
        """Take a message of a standby."""
        match message:
            case Hello():
                self._hello(sender, message)
            case Ack():
                self._ack(sender, message)
            case SnapshotRequest():
                self._snapshot(sender, message)
            case ChainsRequest():
                self._chains(sender, message)
            case PointsRequest():
                self._points(sender, message)

    def _hello(self, sender: str, message: Hello) -> None:
        standing = message.standing
        why = self._why_not(standing, message.slot)
        if why is not None:
            self.streams.pop(sender, None)
            self._refuse(sender, message.session, why)
            return
        now_s = self.desk.now_s
        assert self.desk.durable.promise is not None
        welcome = Welcome(message.session, self.desk.durable.promise)
        stream = self.streams.get(sender)
        if stream is not None and stream.session == message.session:
            # It asks again since the answer takes long: what is on its way is not sent again.
            stream.heard_s = now_s
            self.desk.send(sender, welcome)
            return
        known = self._slot(message.slot)
        if known is not None and known.lsn > standing.lsn:
            self.desk.alarm(f"standby {sender} is at {standing.lsn} and was durable at {known.lsn}: its disk went back")
        place, none = _place_of(standing), Place(0, b"")
        self.hold(message.slot, standing.store_id, place)
        region, slot, size = standing.region, message.slot, min(FRAME_BYTES_FIRST, self.desk.timing.frame_bytes_max)
        stream = _Stream(message.session, region, slot, place, none, standing.lsn, now_s, now_s, size)
        self.streams[sender] = stream
        self.desk.send(sender, welcome)
        self.pump(sender, stream)

    def _why_not(self, standing: Standing, slot: str) -> Why | None:
        """Return why a store cannot be fed from its place, None where it can."""
        known = self._slot(slot)
        if known is not None and known.store_id != standing.store_id:
            return "slot taken"
        relation = relate(self.desk.log, standing)
        if relation is Relation.UNPROVEN and known is not None and known.proves(*_place_of(standing)):
            relation = Relation.PREFIX
        if relation is not Relation.PREFIX:
            return _REFUSED[relation]
        return "too old" if standing.lsn + 1 < self.desk.log.first_lsn else None

    def _refuse(self, sender: str, session: int, why: Why, needs: Reads | None = None) -> None:
        self.desk.send(sender, Refusal(session, why, self.desk.durable.promise, self.desk.log.epochs, needs))

    def _snapshot(self, sender: str, message: SnapshotRequest) -> None:
        """Take a snapshot for who may put it over what it has, and can read it."""
        why = self._why_not(message.standing, message.slot)
        if message.is_exported and why != "slot taken":
            why = None
        if why is not None and why != "too old":
            self._refuse(sender, 0, why)
        elif not message.reads.covers(self.desk.reads):
            self._refuse(sender, 0, "older version", self.desk.reads)
        else:
            had = None if message.is_exported else _place_of(message.standing)
            self.hold(message.slot, message.standing.store_id, self._durable(), had)
            self.desk.act(TakeSnapshot(sender, message.slot))

    def _ack(self, sender: str, message: Ack) -> None:
        stream = self.streams.get(sender)
        if stream is None or stream.session != message.session:
            return
        stream.heard_s = self.desk.now_s
        # Nothing above what is durable here was ever sent: who has more has something else.
        known = message.durable.lsn <= self.desk.log.durable_lsn
        if not known or self.desk.log.chain(message.durable.lsn) not in (message.durable.chain, None):
            del self.streams[sender]
            self.desk.alarm(f"standby {sender} acknowledges another record at {message.durable.lsn}")
            self._refuse(sender, message.session, "beside")
            return
        if message.durable.lsn >= stream.acked.lsn:
            stream.acked = message.durable
            self._pace(stream)
            stream.applied_lsn = max(stream.applied_lsn, message.applied_lsn)
            stream.pace.note(stream.acked.lsn, self.desk.now_s)
        self.pump(sender, stream)

    def _pace(self, stream: _Stream) -> None:
        """Have larger frames where they are acknowledged at once, smaller ones where that takes long.

        So what is on its way is about what goes in a second, and neither heartbeats nor the word of where the log ends
        wait long behind it. Only a lost connection loses frames, and a gap begins the stream anew: none is sent again.
        """
        timing, sent_s = self.desk.timing, None
        while stream.flying and stream.flying[0][0] <= stream.acked.lsn:
            sent_s = stream.flying.popleft()[1]
        if sent_s is None:
            return
        age_s = self.desk.now_s - sent_s
        if age_s < timing.call_every_s / 4:
            stream.frame_bytes = min(timing.frame_bytes_max, 2 * stream.frame_bytes)
        elif age_s > timing.call_every_s:
            stream.frame_bytes = max(min(FRAME_BYTES_MIN, timing.frame_bytes_max), stream.frame_bytes // 2)

    def pump(self, sender: str, stream: _Stream) -> None:
        """Send a stream what is durable and fits its window."""
        while stream.sent.lsn < self.shippable() and len(stream.flying) < FRAMES_IN_FLIGHT_MAX:
            records = self.desk.log.read(stream.sent.lsn, self.shippable(), stream.frame_bytes)
            if not records:
                del self.streams[sender]  # cut beneath it: its next hello is answered with "too old"
                return
            self._frame(sender, stream, tuple(records))
            stream.sent = Place(records[-1].lsn, records[-1].mark.chain)
            stream.flying.append((stream.sent.lsn, self.desk.now_s))

    def _frame(self, sender: str, stream: _Stream, records: tuple) -> None:  # type: ignore[type-arg]
        durable = self.desk.durable
        assert durable.promise is not None
        tip_lsn = self.desk.log.durable_lsn
        self.desk.send(
            sender, Frame(stream.session, durable.promise, stream.sent, records, tip_lsn, durable.peers, durable.slots)
        )
        stream.sent_s = self.desk.now_s

    def shippable(self) -> int:
        """Return the last LSN that may leave this store."""
        return self.desk.log.durable_lsn

    def pump_all(self) -> None:
        """Send every stream what has become durable."""
        for sender, stream in list(self.streams.items()):
            self.pump(sender, stream)

    def tick(self) -> None:
        """Heartbeats, forgetting who is gone, and the places of slots."""
        timing, now_s = self.desk.timing, self.desk.now_s
        self._trail.note(Position(self.desk.log.tip.lsn, 0), now_s)
        for sender, stream in list(self.streams.items()):
            if now_s - stream.heard_s > 2 * timing.silence_s:
                del self.streams[sender]
            elif now_s - stream.sent_s >= timing.call_every_s:
                self._frame(sender, stream, ())
                self.pump(sender, stream)
        self._note_slots()

    def behind(self, store_id: str) -> Behind | None:
        """Return how far a standby is behind; None where it is not fed, or was silent for long."""
        stream, log, now_s = self.streams.get(store_id), self.desk.log, self.desk.now_s
        if stream is None or now_s - stream.heard_s > self.desk.timing.silence_s:
            return None
        records = log.tip.lsn - stream.acked.lsn
        if records <= 0:
            return Behind(0, 0.0)
        pace = stream.pace.records_per_s(stream.acked.lsn, now_s)
        lacks_s = self._trail.lag(stream.acked.lsn, now_s).seconds
        return Behind(records, min(lacks_s, records / pace) if pace else lacks_s)

    def replicated_lsn(self) -> int:
        """Return up to which LSN the synchronous region is known to be durable."""
        wanted = self.desk.synchronous
        places = [
            stream.acked.lsn
            for name, stream in self.streams.items()
            if stream.region == wanted and name != self.desk.me
        ]
        return min(max(places, default=0), self.desk.log.durable_lsn)

    # -- slots -------------------------------------------------------------------------------------------------------

    def _slot(self, name: str) -> Slot | None:
        return next((slot for slot in self.desk.durable.slots if slot.name == name), None)

    def hold(self, name: str, store_id: str, place: Place, had: Place | None = None) -> None:
        """Set a slot to a place; it, and the store as a peer, are durable before anything is said to it.

        Parameters
        ----------
        had
            What its standby has until it comes to that place by a snapshot.
        """
        others = tuple(slot for slot in self.desk.durable.slots if slot.name != name)
        peers = self.desk.durable.peers
        if store_id not in peers:
            peers = (*peers, store_id)
        had = had or Place(0, b"")
        self.desk.persist(slots=(*others, Slot(name, store_id, *place, False, *had)), peers=peers)

    def _note_slots(self) -> None:
        """Move slots on, without a sync, and mark those beneath which the log was cut."""
        acked = {stream.slot: stream.acked for stream in self.streams.values()}
        slots = []
        for slot in self.desk.durable.slots:
            place = acked.get(slot.name)
            if place is not None and place.lsn > slot.lsn:
                slot = Slot(slot.name, slot.store_id, *place)
            elif slot.lsn + 1 < self.desk.log.first_lsn and not slot.is_lost:
                slot = msgspec.structs.replace(slot, is_lost=True)
                self.desk.alarm(f"slot {slot.name} is lost: it needs {slot.lsn + 1}, the log was cut beyond it")
            slots.append(slot)
        self.desk.persist(slots=tuple(slots), is_synced=False)

    def _durable(self) -> Place:
        lsn = self.desk.log.durable_lsn
        return Place(lsn, self.desk.log.chain(lsn) or b"")

    # -- for those that rejoin ---------------------------------------------------------------------------------------

    def _chains(self, sender: str, message: ChainsRequest) -> None:
        assert self.desk.durable.promise is not None
        known = self.desk.log.durable_lsn
        chains = tuple((lsn, self.desk.log.chain(lsn) if lsn <= known else None) for lsn in message.lsns)
        self.desk.send(sender, Chains(self.desk.durable.promise, self.desk.standing(), chains))

    def _points(self, sender: str, message: PointsRequest) -> None:
        log, fork = self.desk.log, message.fork
        if log.chain(fork.lsn) == fork.chain and log.first_lsn <= fork.lsn + 1:
            self.desk.act(ReadPoints(sender, fork.lsn, message.ids))
        else:
            self._refuse(sender, 0, "too old")


def _place_of(standing: Standing) -> Place:
    """Return the place of a standing."""
    return Place(standing.lsn, standing.chain)


_REFUSED: dict[Relation, Why] = {
    Relation.AHEAD: "ahead",
    Relation.BESIDE: "beside",
    Relation.UNPROVEN: "unproven",
}
