"""The phases in which a store whose log parts from the primary's becomes its standby: seek, checkpoint, export, reset.

The last two, follow and verify, are a standby's. Each phase is durable before it is acted on, and is begun again after
a restart. What is dropped was exported before, durably; exports are added to, never overwritten. An abort goes back to
the checkpoint first and forgets the rejoin after, so that a crash between the two finds a rejoin that can be aborted
again.
"""

from __future__ import annotations

from collections.abc import Callable

from ..storage.catalog import Epoch
from .actions import Checkpoint, Discard, Export, Install, Reset, Return
from .durable import Phase, RejoinState
from .epochs import Claim, ForkSearch, bound
from .log import Place
from .messages import (
    Chains,
    ChainsRequest,
    Checkpointed,
    Command,
    Exported,
    Installed,
    Message,
    NotReplaced,
    Points,
    PointsRequest,
    Refusal,
    Report,
    Returned,
    Snapshot,
    SnapshotRequest,
    WasReset,
)
from .part import Desk, Part
from .standby import DOUBLINGS_MAX, Standby

__all__ = ["Aborting", "Rejoining", "begin"]


def begin(desk: Desk, primary: str) -> None:
    """Begin a rejoin: nothing is changed here before the fork is known."""
    durable = desk.durable
    if durable.rejoin is not None:
        desk.reply(False, f"a rejoin is under way: {durable.rejoin.phase}")
    elif durable.role == "primary":
        desk.reply(False, "this store is the primary: it steps down first")
    elif primary == desk.me:
        desk.reply(False, "a store can't rejoin itself")
    else:
        desk.persist(rejoin=RejoinState("seek", primary, was=durable.role, reason=durable.reason))
        desk.reply(True, "seeking the fork")
        desk.play(Rejoining(desk))


class Aborting(Part):
    """The way back to the checkpoint. Short: a crash leaves the rejoin, which can be aborted again.

    Parameters
    ----------
    resume
        Plays what the store was.
    """

    status = "aborting"

    def __init__(self, desk: Desk, resume: Callable[[], None]) -> None:
        self.desk, self.resume = desk, resume

    def start(self) -> None:
        rejoin = self.desk.durable.rejoin
        assert rejoin is not None
        if rejoin.phase in ("seek", "checkpoint"):
            self._end(rejoin)
        elif rejoin.target_lsn and self.desk.log.tip.lsn > rejoin.lowest_lsn:
            # Should the other store be gone for good, then what came from it since is nowhere else.
            self.desk.act(Export(rejoin.lowest_lsn, self.desk.log.first_lsn <= rejoin.lowest_lsn + 1))
        else:
            self.desk.act(Return())

    def step(self, sender: str, message: Message | Report) -> None:
        rejoin = None if sender else self.desk.durable.rejoin
        if isinstance(message, Exported) and rejoin is not None and message.fork_lsn == rejoin.lowest_lsn:
            self.desk.act(Return())
        elif isinstance(message, Returned) and rejoin is not None:
            self._end(rejoin)

    def _end(self, rejoin: RejoinState) -> None:
        self.desk.persist(role=rejoin.was, reason=rejoin.reason, rejoin=None)
        # Also where it was only being taken: that comes to its end first.
        self.desk.act(Discard())
        self.desk.reply(True, "this store is what it was before the rejoin")
        self.resume()

    def command(self, command: Command) -> None:
        self.desk.reply(False, f"a rejoin is being aborted: no {type(command).__name__.lower()}")

    def tick(self) -> None:
        pass


class Rejoining(Part):
    """The phases of a rejoin before it follows."""

    status = "rejoining"

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.search: ForkSearch | None = None
        self.waiting: Phase = "seek"
        self.asked_s = desk.now_s
        self.ids: tuple[object, ...] = ()
        self.failures = 0

    @property
    def _state(self) -> RejoinState:
        assert self.desk.durable.rejoin is not None
        return self.desk.durable.rejoin

    def start(self) -> None:
        """Begin where the last start came to; a reset may have been done, or the fork be another one by now."""
        if self._state.phase == "checkpoint":
            self.waiting = "checkpoint"
            self.desk.act(Checkpoint())
        else:
            self._seek()

    def redirect(self, claim: Claim) -> None:
        """Another primary was promoted: the fork is sought again, with it."""
        # The fork that a checkpoint waits with is the other one's: it is taken again once this one's is known.
        phase: Phase = "seek" if self._state.phase == "checkpoint" else self._state.phase
        primary = self._state.primary if claim.store_id == self.desk.me else claim.store_id
        self.desk.persist(rejoin=self._state.at(phase, primary=primary))
        self._seek()

    def step(self, sender: str, message: Message | Report) -> None:
        is_primary = sender == self._state.primary and not self.desk.is_replacing
        match message:
            case Chains() if is_primary and self.waiting == "seek" and self._is_promised(message.claim):
                self._chains(message)
            case Checkpointed() if self.waiting == "checkpoint":
                self._export()
            case Exported() if self.waiting == "export" and message.fork_lsn == self._state.fork_lsn:
                self.ids = message.ids
                needs_snapshot = self._state.needs_snapshot or message.needs_snapshot
                self.desk.persist(rejoin=self._state.at("reset", needs_snapshot=needs_snapshot))
                self.waiting = "reset"
                self._ask()
            case Points() if is_primary and self.waiting == "reset" and self._is_promised(message.claim):
                self._reset(message)
            case Snapshot() if is_primary and self.waiting == "reset" and self._is_promised(message.claim):
                if message.place.lsn < self._state.fork_lsn:
                    self._seek()  # it went back since: the fork is no longer in it
                    return
                self.desk.persist(rejoin=self._state.at("reset", target_lsn=message.place.lsn))
                self.desk.act(Install(message))
            case Refusal() if is_primary and self.waiting == "reset" and message.why == "too old":
                self.desk.persist(rejoin=self._state.at("reset", is_complete=False))
                self._ask()
            case Refusal() if is_primary and self.waiting == "reset" and message.why == "older version":
                self.failures += 1
                self.asked_s = self.desk.now_s
                self.desk.alarm(self.desk.cannot_read(message.needs))
            case Refusal() if is_primary and message.why == "not primary" and self.waiting in ("seek", "reset"):
                promise = self.desk.durable.promise
                if promise is not None and promise.store_id not in (sender, self.desk.me):
                    self.redirect(promise)
            case WasReset() | Installed() | NotReplaced():
                self._replaced(message)
            case _:
                self.refuse(sender, message)

    def command(self, command: Command) -> None:
        self.desk.reply(False, f"a rejoin is under way ({self._state.phase}): no {type(command).__name__.lower()}")

    def tick(self) -> None:
        if self.desk.now_s - self.asked_s >= self._patience_s() and not self.desk.is_replacing:
            self._ask()

    def _patience_s(self) -> float:
        timing = self.desk.timing
        if not self.failures:
            return timing.call_every_s
        return timing.retry_s * 2.0 ** min(self.failures - 1, DOUBLINGS_MAX)

    def _is_promised(self, claim: Claim) -> bool:
        """Return whether a claim is the highest known, and of an epoch that this store did not write."""
        return claim == self.desk.durable.promise and claim.store_id == self._state.primary

    def _ask(self) -> None:
        """Send what the present phase waits for an answer to."""
        self.asked_s = self.desk.now_s
        primary = self._state.primary
        if self.waiting == "seek":
            lsns = self.search.ask() if self.search is not None else ()
            self.desk.send(primary, ChainsRequest(self.desk.standing(), lsns))
        elif self.waiting == "reset":
            fork = self._fork()
            if self._state.is_complete and not self._state.needs_snapshot and fork is not None:
                self.desk.send(primary, PointsRequest(fork, self.ids))
            else:
                # What was left behind is not wholly known, or the primary's log was cut: everything is taken from it.
                self.desk.send(primary, SnapshotRequest(self.desk.standing(), self.desk.slot, True, self.desk.reads))

    # -- seek --------------------------------------------------------------------------------------------------------

    def _seek(self) -> None:
        self.waiting, self.search, self.failures = "seek", None, 0
        self._ask()

    def _chains(self, message: Chains) -> None:
        log = self.desk.log
        if self.search is None:
            theirs = message.standing
            self.search = ForkSearch(log, self._limit(theirs.epochs, theirs.lsn), self._noted())
        self.search.take(message.chains)
        if self.search.ask():
            self._ask()
        else:
            self._found(self.search.low)

    def _noted(self) -> dict[int, bytes]:
        """Return the chains that slots have kept of what was cut from the log."""
        first_lsn = self.desk.log.first_lsn
        return {slot.lsn: slot.chain for slot in self.desk.durable.slots if slot.lsn < first_lsn}

    def _fork(self) -> Place | None:
        """Return the fork with its chain; None where nothing here knows that any more."""
        lsn = self._state.fork_lsn
        chain = self.desk.log.chain(lsn) or self._noted().get(lsn)
        return None if chain is None else Place(lsn, chain)

    def _limit(self, epochs: tuple[Epoch, ...], lsn: int) -> int:
        return bound(self.desk.log.epochs, self.desk.log.tip.lsn, epochs, lsn)

    def _found(self, fork_lsn: int) -> None:
        log, state = self.desk.log, self._state
        if fork_lsn == log.tip.lsn:
            if state.needs_snapshot:
                self.desk.persist(rejoin=state.at("reset", fork_lsn=fork_lsn))
                self.waiting = "reset"
                self._ask()
                return
            if state.target_lsn:  # the reset was done, and the crash came before it was noted
                self._follow()
                return
            self.desk.persist(role="standby", reason="", primary=state.primary, bootstraps=0, rejoin=None)
            self.desk.play(Standby(self.desk))
            return
        is_complete = log.first_lsn <= fork_lsn + 1
        has_checkpoint = state.phase != "seek"
        phase: Phase = "export" if has_checkpoint else "checkpoint"
        lowest_lsn = min(fork_lsn, state.lowest_lsn) if has_checkpoint else fork_lsn
        rejoin = state.at(phase, fork_lsn=fork_lsn, lowest_lsn=lowest_lsn, is_complete=is_complete)
        self.desk.persist(rejoin=rejoin)
        if not has_checkpoint:
            self.waiting = "checkpoint"
            self.desk.act(Checkpoint())
        else:
            self._export()

    # -- export and reset --------------------------------------------------------------------------------------------

    def _export(self) -> None:
        self.waiting = "export"
        is_complete = self._state.is_complete and self.desk.log.first_lsn <= self._state.fork_lsn + 1
        self.desk.persist(rejoin=self._state.at("export", is_complete=is_complete))
        self.desk.act(Export(self._state.fork_lsn, self._state.is_complete))

    def _reset(self, message: Points) -> None:
        fork = self._fork()
        if fork is not None and message.fork_lsn == fork.lsn:
            self.desk.persist(rejoin=self._state.at("reset", target_lsn=message.lsn))
            self.desk.act(Reset(fork, message))

    def _replaced(self, message: WasReset | Installed | NotReplaced) -> None:
        """Follow; or ask again, ever more slowly, and for all of it where the points could not be put in place."""
        if self.waiting != "reset":
            self._seek()  # another primary was promoted meanwhile
            return
        if not isinstance(message, NotReplaced):
            self._follow()
            return
        self.failures += 1
        self.asked_s = self.desk.now_s
        if message.stage == "contents":
            self.desk.persist(rejoin=self._state.at("reset", needs_snapshot=True))

    def _follow(self) -> None:
        state = self._state
        phase: Phase = "verify" if self.desk.log.applied_lsn >= state.target_lsn else "follow"
        rejoin = state.at(phase, needs_snapshot=False)
        self.desk.persist(role="standby", reason="", primary=state.primary, rejoin=rejoin)
        self.desk.play(Standby(self.desk))
