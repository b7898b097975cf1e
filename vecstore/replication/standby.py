"""The part of a standby: dialling, following, fetching a snapshot, stopped; and being promoted, beside any of these.

Invariants: it appends only records that follow its own chain, in frames of the session that it asked for, from the
store whose claim is its promise; it says `Ack` only of what its disk has synced; it installs a snapshot only after a
primary has proven that it has everything that is here.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ..record import Kind, Record
from ..storage.catalog import Epoch
from .actions import Action, Append, Discard, Install, Mend, ReadArchive, Verify
from .durable import Difference, ScrubState
from .epochs import Claim
from .log import Place
from .messages import (
    Ack,
    ArchiveRead,
    Arriving,
    Call,
    Command,
    Frame,
    HandoverRefusal,
    Hello,
    Installed,
    Mended,
    Message,
    NotReplaced,
    Points,
    PointsRequest,
    Promote,
    Refusal,
    Report,
    Snapshot,
    SnapshotRequest,
    SteppedDown,
    Synced,
    Verified,
    Welcome,
)
from .part import Desk, Part
from .promotion import Promotion
from .scrub import Bounds

__all__ = ["DOUBLINGS_MAX", "MEND_POINTS_MAX", "Standby"]

DOUBLINGS_MAX = 6
"""So often the pause between two attempts to be given a snapshot is doubled."""
MEND_POINTS_MAX = 1_000
"""Points that are mended without a human, in all, between two rounds of the scrub that found nothing."""
MENDS_MAX = 3


class Standby(Part):
    """A store that follows a primary."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.status = "dialling"
        self.session = 0
        self.heard_s = self.asked_s = self.moved_s = self.acked_s = desk.now_s
        self.tip = desk.log.tip
        self.seen_lsn = 0
        self.is_stalled = self.is_bridged = False
        self.refusals = 0
        self.problem = ""
        self.is_mending = False
        self.promotion: Promotion | None = None
        self.history: tuple[Epoch, ...] = ()
        self._asked: tuple[str, Claim | None, Place] | None = None

    def start(self) -> None:
        self._look_at_tip()
        if self.desk.part is not self:
            return
        if self.desk.durable.is_halted:
            self.status = "stopped"
            self._ask_for_points()
            return
        self.dial()
        rejoin = self.desk.durable.rejoin
        if rejoin is not None and rejoin.phase == "verify":
            self.desk.act(Verify())

    def step(self, sender: str, message: Message | Report) -> None:
        match message:
            case Welcome():
                self._welcome(sender, message)
            case Frame():
                self._frame(sender, message)
            case Refusal():
                self._refusal(sender, message)
            case Snapshot():
                self._snapshot(sender, message)
            case SteppedDown():
                if self.promotion is not None:
                    self.promotion.stepped_down(message)
                    self._promote()
            case Points():
                self._points(sender, message)
            case _ if sender:
                self.refuse(sender, message)
            case _:
                self._report(message)

    def _report(self, message: Message | Report) -> None:
        match message:
            case Synced():
                self._synced()
            case Arriving():
                self._arriving(message)
            case Installed():
                self._installed()
            case NotReplaced():
                self._not_replaced(message)
            case ArchiveRead():
                self._archive(message)
            case Verified():
                self._verified(message)
            case Mended():
                self._mended(message)

    def command(self, command: Command) -> None:
        match command:
            case Promote() if self.promotion is not None:
                self.desk.reply(False, "a promotion is under way")
            case Promote():
                self.promotion = Promotion.begin(self.desk, command, self.seen_lsn, self.is_connected)
            case _:
                self.desk.reply(False, "this store is a standby")

    def tick(self) -> None:
        timing, now_s = self.desk.timing, self.desk.now_s
        self._promote()
        if self.desk.part is not self:
            return
        if self.status == "following":
            if now_s - self.heard_s > timing.silence_s:
                self.dial()
            stalled = self.seen_lsn > self.tip.lsn and now_s - self.moved_s > timing.stall_s
            if stalled and not self.is_stalled:
                self.desk.alarm(f"the stream stands still at {self.tip.lsn}, the primary is at {self.seen_lsn}")
            self.is_stalled = stalled
        elif now_s - self.asked_s >= self._patience_s():
            if self.desk.is_replacing:
                return
            if self.desk.durable.is_halted:
                self._ask_for_points()
            elif self.status == "fetching":
                self._fetch()
            else:
                self.dial()

    def _patience_s(self) -> float:
        timing = self.desk.timing
        if self.status == "dialling":
            return timing.call_every_s
        doublings = max(0, self.desk.durable.bootstraps - 1) + self.refusals
        return timing.retry_s * 2.0 ** min(doublings, DOUBLINGS_MAX)

    @property
    def is_connected(self) -> bool:
        """Whether the primary was heard a moment ago."""
        return self.status == "following" and self.desk.now_s - self.heard_s <= self.desk.timing.silence_s

    def _promote(self) -> None:
        """Go on with a promotion, where one is under way."""
        if self.promotion is not None and self.promotion.goes_on(self.seen_lsn):
            return
        self.promotion = None

    # -- the stream --------------------------------------------------------------------------------------------------

    def dial(self) -> None:
        """Ask the primary to be fed from what is here; what is being replaced is not here.

        Asked again for the same, it is by the same session: the answer may take longer than one waits between two.
        """
        if self.desk.is_replacing or self.desk.durable.is_halted:
            return
        asked = (self.desk.durable.primary, self.desk.durable.promise, self.desk.log.tip)
        session = self.desk.mint()
        if self.status != "dialling" or asked != self._asked:
            self.session = session
        self.status, self._asked = "dialling", asked
        self.asked_s = self.desk.now_s
        self.tip = self.desk.log.tip
        if self.desk.durable.primary:
            hello = Hello(self.session, self.desk.standing(), self.desk.durable.promise, self.desk.slot)
            self.desk.send(self.desk.durable.primary, hello)

    def _is_current(self, sender: str, session: int) -> bool:
        return sender == self.desk.durable.primary and session == self.session

    def _welcome(self, sender: str, message: Welcome) -> None:
        if self._is_current(sender, message.session) and self.status == "dialling":
            self.status = "following"
            self.heard_s = self.moved_s = self.desk.now_s

    def _frame(self, sender: str, message: Frame) -> None:
        if not self._is_current(sender, message.session) or self.status not in ("dialling", "following"):
            return
        if message.claim != self.desk.durable.promise or self.desk.is_replacing or self.desk.durable.is_halted:
            return
        self.status = "following"
        self.heard_s = self.desk.now_s
        self.seen_lsn = max(self.seen_lsn, message.tip_lsn)
        if self.seen_lsn <= self.tip.lsn:
            self.moved_s = self.heard_s
        fresh = self._fresh(message)
        if fresh is None:
            return
        self.refusals = 0
        self.desk.persist(
            peers=_joined(self.desk.durable.peers, message.peers),
            slots=tuple(slot for slot in message.slots if slot.store_id != self.desk.me),
            bootstraps=0,
            is_synced=False,
        )
        if fresh:
            self._append(fresh)
        else:
            self._synced()

    def _arriving(self, message: Arriving) -> None:
        """Wait on: what comes is large, or the line slow. The primary, too, must hear that somebody is here."""
        if message.sender == self.desk.durable.primary and self.status == "following":
            self.heard_s = self.desk.now_s
            if self.heard_s - self.acked_s >= self.desk.timing.call_every_s:
                self._acknowledge()

    def _fresh(self, message: Frame) -> Sequence[Record] | None:
        """Return the records that are new here; None where the frame does not fit, and the stream begins again."""
        if message.before.lsn > self.tip.lsn:
            self.dial()
            return None
        fresh = [record for record in message.records if record.lsn > self.tip.lsn]
        known = self.desk.log.chain(message.before.lsn)
        if known is not None and message.before.lsn <= self.desk.log.tip.lsn and known != message.before.chain:
            self.stop(f"the primary has another record at {message.before.lsn}")
            return None
        place = self.tip
        for record in fresh:
            if not record.follows(*place):
                self.desk.alarm(f"record {record.lsn} does not follow the chain")
                self.dial()
                return None
            place = Place(record.lsn, record.mark.chain)
        return fresh

    def _append(self, records: Sequence[Record]) -> None:
        self.desk.act(Append(tuple(records)))
        self.tip = Place(records[-1].lsn, records[-1].mark.chain)
        self.moved_s = self.desk.now_s

    def _synced(self) -> None:
        """Say what is durable, and do what waited for it."""
        self._acknowledge()
        self._look_at_tip()
        self._promote()
        if self.is_bridged and self.desk.part is self:
            # At once: the primary's log may be cut again while one waits.
            self.is_bridged = False
            self.dial()
        rejoin = self.desk.durable.rejoin
        if rejoin is not None and rejoin.phase == "follow" and self.desk.log.applied_lsn >= rejoin.target_lsn:
            self._verify()

    def _acknowledge(self) -> None:
        log = self.desk.log
        if self.status == "following":
            self.acked_s = self.desk.now_s
            durable = Place(log.durable_lsn, log.chain(log.durable_lsn) or b"")
            self.desk.send(self.desk.durable.primary, Ack(self.session, durable, log.applied_lsn))

    def _look_at_tip(self) -> None:
        """Take over, or refuse to, where the log ends with a handover to this store, durable here."""
        desk, log = self.desk, self.desk.log
        if log.handover != desk.me or not self._is_durable() or desk.number != log.epochs[-1].number:
            return
        if desk.durable.refused_lsn < log.tip.lsn:
            if desk.is_ready and desk.durable.rejoin is None and not desk.durable.is_halted:
                Promotion.seize(desk)
                return
            desk.persist(refused_lsn=log.tip.lsn)
        desk.send(desk.durable.primary, HandoverRefusal(log.tip, desk.standing()))

    def called(self, sender: str, message: Call) -> None:
        """Refuse whatever handover may end the primary's log, where this store has stopped and does not come to it.

        It may have stopped just before the primary began to hand over, and nobody can write until it has refused.
        Whether that record is a handover only the primary knows; a refusal of any other means nothing.
        """
        desk, theirs = self.desk, message.standing
        if self.status != "stopped" or sender != desk.durable.primary or message.promise != desk.durable.promise:
            return
        if theirs.lsn > desk.log.tip.lsn:
            desk.persist(refused_lsn=max(theirs.lsn, desk.durable.refused_lsn))
            desk.send(sender, HandoverRefusal(Place(theirs.lsn, theirs.chain), desk.standing()))

    def _is_durable(self) -> bool:
        return self.desk.log.durable_lsn >= self.desk.log.tip.lsn

    # -- refused -----------------------------------------------------------------------------------------------------

    def _refusal(self, sender: str, message: Refusal) -> None:
        if sender != self.desk.durable.primary or message.session not in (self.session, 0):
            return
        self.asked_s = self.desk.now_s
        match message.why:
            case "too old" if self.status == "dialling":
                self.history = message.epochs
                self.status = "fetching"
                self.desk.act(ReadArchive(self.tip.lsn))
            case "not primary":
                promise = self.desk.durable.promise
                if promise is not None and promise.store_id not in (sender, self.desk.me):
                    self.desk.persist(primary=promise.store_id)
                self.status = "stopped" if self.desk.durable.is_halted else "dialling"
            case "older version":
                if self.status == "fetching":
                    self._cannot_read(message)
            case "too old":
                pass
            case _:
                self.stop(f"the primary says that this store is {message.why}")

    def _cannot_read(self, message: Refusal) -> None:
        """Stop until this store is upgraded: no snapshot was taken for it, and none was begun."""
        self.desk.persist(bootstraps=max(0, self.desk.durable.bootstraps - 1))
        self.stop(self.desk.cannot_read(message.needs))

    def halt(self, why: str) -> list[Action]:
        """Stop for a reason of the engine's, outside of a step; return the actions."""
        self.desk.actions = []
        self.stop(why)
        return self.desk.actions

    def stop(self, why: str) -> None:
        """Keep everything and say so; what becomes of it is for a human."""
        if self.status != "stopped":
            self.desk.alarm(f"stopped: {why}")
        self.status, self.asked_s = "stopped", self.desk.now_s

    def _archive(self, message: ArchiveRead) -> None:
        if self.status != "fetching" or self.desk.is_replacing or message.after_lsn != self.tip.lsn:
            return
        place, taken = self.tip, []
        for record in message.records:
            if not record.follows(*place) or not self._is_on_history(record):
                break
            taken.append(record)
            place = Place(record.lsn, record.mark.chain)
        if not taken:
            self._fetch()
            return
        self._append(taken)
        self.status, self.asked_s, self.is_bridged = "dialling", self.desk.now_s, True

    def _is_on_history(self, record: Record) -> bool:
        """Return whether an archived record is of the history to follow, by the epochs that its primary named."""
        epochs = [epoch for epoch in self.history if epoch.fork_lsn < record.lsn]
        if not epochs or epochs[-1].number != record.header.epoch:
            return False
        is_first = record.lsn == epochs[-1].fork_lsn + 1
        return is_first == (record.header.kind == Kind.EPOCH)

    def _fetch(self) -> None:
        """Ask for a snapshot: this log was proven, and what follows it is gone."""
        self.asked_s = self.desk.now_s
        count = self.desk.durable.bootstraps
        if count >= self.desk.timing.bootstraps_max:
            last = f", the last since {self.problem}" if self.problem else ""
            self.stop(f"{count} bootstraps came to nothing{last}: keep more log for slots, or give an archive")
            return
        self.desk.persist(bootstraps=count + 1)
        self.desk.send(
            self.desk.durable.primary, SnapshotRequest(self.desk.standing(), self.desk.slot, False, self.desk.reads)
        )

    def _snapshot(self, sender: str, message: Snapshot) -> None:
        if self.status != "fetching" or sender != self.desk.durable.primary or self.desk.is_replacing:
            return
        if message.claim == self.desk.durable.promise and message.place.lsn > self.tip.lsn:
            self.desk.act(Install(message))

    def _not_replaced(self, message: NotReplaced) -> None:
        """Ask again, ever more slowly. What the disk had no room for was not tried, and does not count."""
        self.asked_s, self.problem = self.desk.now_s, message.why
        if message.stage == "room":
            self.refusals += 1
            self.desk.persist(bootstraps=max(0, self.desk.durable.bootstraps - 1))

    def _installed(self) -> None:
        rejoin = self.desk.durable.rejoin
        # Nothing is left of what was found to differ, nor of what was proven.
        self.desk.persist(scrub=None, verified=None, mended=0)
        if rejoin is not None:
            self._verify()
        self.dial()
        self._promote()

    # -- what a scrub has found ---------------------------------------------------------------------------------------

    def differ(self, found: Sequence[Difference]) -> None:
        """Apply nothing more, durably, since points differ from the primary's; and ask for its, if they are few."""
        desk, before = self.desk, self.desk.durable.scrub
        if desk.durable.rejoin is not None or desk.durable.is_halted:
            return
        known = () if before is None else tuple(one for one in before.differences if one.bounds not in _bounds(found))
        attempts = 0 if before is None else before.attempts
        differences = (*known, *found)
        desk.persist(
            scrub=ScrubState(
                differences, attempts=attempts, refusal=_refusal(differences, attempts, desk.durable.mended)
            )
        )
        names = ", ".join(f"{one.count} of {one.collection}" for one in differences)
        self.stop(f"points differ from the primary's at LSN {found[0].lsn}: {names}")
        self._ask_for_points()

    def agree(self, ranges: Sequence[Bounds], lsn: int) -> None:
        """Ranges that were mended were found equal at an LSN: digests are believed again when all are."""
        scrub = self.desk.durable.scrub
        if scrub is None or not scrub.is_mended or lsn < scrub.target_lsn:
            return
        left = tuple(one for one in scrub.differences if one.bounds not in ranges)
        if left != scrub.differences:
            self.desk.persist(scrub=msgspec.structs.replace(scrub, differences=left) if left else None)

    def _ask_for_points(self) -> None:
        desk, scrub = self.desk, self.desk.durable.scrub
        self.asked_s = desk.now_s
        if scrub is None or scrub.refusal or self.is_mending:
            return
        places = [point.place for one in scrub.differences for point in one.points]
        ids = tuple((int.from_bytes(place[:8], "big"), place[8:]) for place in places)
        desk.send(desk.durable.primary, PointsRequest(desk.log.tip, ids))

    def _points(self, sender: str, message: Points) -> None:
        desk, scrub = self.desk, self.desk.durable.scrub
        is_asked = sender == desk.durable.primary and desk.durable.is_halted and not desk.is_replacing
        if not is_asked or scrub is None or message.claim != desk.durable.promise:
            return
        if message.fork_lsn == desk.log.tip.lsn and not self.is_mending:
            self.is_mending = True
            desk.act(Mend(message, scrub.differences))

    def _mended(self, message: Mended) -> None:
        scrub, self.is_mending = self.desk.durable.scrub, False
        if scrub is None or not self.desk.durable.is_halted:
            return
        mended = msgspec.structs.replace(scrub, is_mended=True, target_lsn=message.lsn, attempts=scrub.attempts + 1)
        count = sum(one.count for one in scrub.differences)
        self.desk.persist(scrub=mended, mended=self.desk.durable.mended + count)
        self.dial()

    # -- the end of a rejoin -----------------------------------------------------------------------------------------

    def _verify(self) -> None:
        rejoin = self.desk.durable.rejoin
        assert rejoin is not None
        self.desk.persist(rejoin=rejoin.at("verify"))
        self.desk.act(Verify())

    def _verified(self, message: Verified) -> None:
        rejoin = self.desk.durable.rejoin
        if rejoin is None:
            return
        if message.is_equal:
            self.desk.persist(rejoin=None, scrub=None, verified=None, mended=0)
            self.desk.act(Discard())
        elif rejoin.verifies + 1 < self.desk.timing.bootstraps_max:
            self.desk.alarm("after the rejoin the digest is another one: everything is taken from a snapshot")
            again = rejoin.at("reset", needs_snapshot=True, verifies=rejoin.verifies + 1)
            self.desk.persist(rejoin=again)
            self.desk.play_role()
        else:
            self.desk.alarm("after the rejoin the digest is another one, again: abort it, and look at both disks")


def _bounds(differences: Sequence[Difference]) -> set[Bounds]:
    return {one.bounds for one in differences}


def _refusal(differences: Sequence[Difference], attempts: int, mended: int) -> str:
    """Return why points are not mended without a human; empty where they are."""
    count = sum(one.count for one in differences)
    if mended + count > MEND_POINTS_MAX:
        before = f", and {mended} were mended before" if mended else ""
        return f"{count} points differ{before}: more than the {MEND_POINTS_MAX} that are mended without a human"
    if any(one.count != len(one.points) for one in differences):
        return "what differs is not known point by point"
    if attempts >= MENDS_MAX:
        return f"they were mended {attempts} times, and differ again"
    return ""


def _joined(mine: tuple[str, ...], theirs: tuple[str, ...]) -> tuple[str, ...]:
    return (*mine, *(peer for peer in theirs if peer not in mine))
