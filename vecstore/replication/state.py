"""A member of the replication: one store's side of the protocol, as a pure state machine.

`start`, `step` and `tick` are given the time and return actions, to be carried out in order. The same rules hold for
every part that a member plays, and are here: what is believed, what a claim does, who may acknowledge, what a copied
directory may do. `docs/replication.md` is the theory; not thread-safe.
"""

from __future__ import annotations

from typing import Any

from . import rejoin
from .actions import Action, Fence
from .durable import RejoinState
from .epochs import Claim, Standing, lost_synced
from .fenced import Fenced
from .log import Place
from .messages import (
    AbortRejoin,
    Adopt,
    Answer,
    Call,
    Command,
    Frame,
    Installed,
    Message,
    NotReplaced,
    Promote,
    Refusal,
    Rejoin,
    Report,
    Returned,
    StepDown,
    SteppedDown,
    WasReset,
    YieldRequest,
)
from .part import Desk
from .primary import Primary
from .promotion import Promotion
from .rejoin import Aborting, Rejoining
from .standby import Standby

__all__ = ["Member"]


class Member(Desk):
    """One store's side of the protocol.

    Parameters
    ----------
    is_copied
        The directory was copied: it reads, and does nothing else until it is adopted.
    """

    def __init__(self, *args: Any, is_copied: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.is_copied = is_copied

    # -- what surroundings ask -----------------------------------------------------------------------------------------

    @property
    def status(self) -> str:
        """What this member is doing, in a word."""
        return "copied" if self.is_copied else self.part.status

    @property
    def acknowledges(self) -> bool:
        """Whether a write may be acknowledged now. A lease would be one more condition here."""
        return not self.is_copied and self.durable.role == "primary" and self.status in ("open", "handing")

    @property
    def accepts_writes(self) -> bool:
        """Whether a new write may be taken."""
        return self.acknowledges and self.status == "open"

    @property
    def serves_reads(self) -> bool:
        """Whether reads may be answered: not while a rejoin is under way."""
        return self.durable.rejoin is None

    @property
    def holds_log(self) -> bool:
        """Whether no record of the log may be cut: what a rejoin, or its abort, will export is still in it."""
        if self.status == "aborting":
            return True
        return self.durable.rejoin is not None and self.durable.rejoin.phase not in ("follow", "verify")

    # -- driving -----------------------------------------------------------------------------------------------------

    def start(self, now_s: float) -> list[Action]:
        """Begin, after an open."""
        self._begin(now_s)
        if not self.is_copied:
            self.play_role()
        return self.actions

    def step(self, sender: str, message: Message | Report, now_s: float) -> list[Action]:
        """Take a message of another store, or a report of one's own engine (sender "")."""
        self._begin(now_s)
        if self.is_copied:
            return self.actions
        if isinstance(message, Installed | WasReset | Returned | NotReplaced):
            self.is_replacing = False
        if sender and not self._is_believed(sender, message):
            return self.actions
        if sender:
            self._learn(sender, message)
        match message:
            case Call():
                self.send(sender, Answer(message.session, self.durable.promise, self.standing()))
                if isinstance(self.part, Standby):
                    self.part.called(sender, message)
            case YieldRequest():
                self._yield(sender, message)
            case _:
                self.part.step(sender, message)
        return self.actions

    def command(self, command: Command, now_s: float) -> list[Action]:
        """Take a command; a `Reply` is among the actions, now or later."""
        self._begin(now_s)
        match command:
            case Adopt():
                self._adopt()
            case _ if self.is_copied:
                self.reply(False, "this directory was copied: `adopt` says what it is")
            case _ if self.is_replacing:
                self.reply(False, "the contents of this store are being replaced: ask again when that is done")
            case Promote() if self.durable.role == "primary" and self.durable.replaced == command.replaces:
                self.reply(True, f"epoch {self.number} is this store's")
            case Promote() if self.status == "handing" and command.force and command.replaces == self.number:
                Promotion.seize(self)
            case StepDown() if self.durable.role == "primary":
                self.fence("stepped down", None)
                self.reply(True, f"stepped down at LSN {self.log.tip.lsn}")
            case Rejoin():
                rejoin.begin(self, command.primary)
            case AbortRejoin():
                if self.durable.rejoin is None:
                    self.reply(False, "no rejoin is under way")
                else:
                    self.play(Aborting(self, self.play_role))
            case _:
                self.part.command(command)
        return self.actions

    def tick(self, now_s: float) -> list[Action]:
        """Do what is due. To be called a few times a second."""
        self._begin(now_s)
        if not self.is_copied:
            self.part.tick()
        return self.actions

    def _begin(self, now_s: float) -> None:
        self.now_s = max(self.now_s, now_s)
        self.actions = []

    def play_role(self) -> None:
        """Play the part that the durable state names."""
        durable = self.durable
        if durable.rejoin is not None and durable.rejoin.phase not in ("follow", "verify"):
            self.play(Rejoining(self))
        elif durable.role == "primary" and not self.holds_promise:
            self.fence("role and log do not agree on who writes the epoch", None)
        elif durable.role == "primary":
            self.play(Primary(self))
        elif durable.role == "standby":
            self.play(Standby(self))
        else:
            self.play(Fenced(self))

    # -- what is believed --------------------------------------------------------------------------------------------

    def _is_believed(self, sender: str, message: Message | Report) -> bool:
        """Return whether what is signed in a message was signed by a store of this lineage."""
        claim, standing = _signed(message)
        if claim is not None and claim != self.durable.promise and not claim.is_valid(self.identity):
            self.alarm(f"{sender} shows a claim to epoch {claim.number} that no store of this lineage signed")
            return False
        if standing is not None and (standing.store_id != sender or not standing.is_valid(self.identity)):
            self.alarm(f"{sender} shows a standing that no store of this lineage signed")
            return False
        return True

    def _learn(self, sender: str, message: Message | Report) -> None:
        """Take in what a message says about epochs, before what it is for."""
        claim, standing = _signed(message)
        if standing is not None and sender not in self.durable.peers:
            self.persist(peers=(*self.durable.peers, sender))
        if claim is not None:
            if claim.exceeds(self.durable.promise):
                self._raise(claim)
            elif claim.contests(self.durable.promise) and self.durable.role == "primary":
                self.fence(f"{sender} claims epoch {claim.number} too: promote one of them higher", None)
            elif claim.contests(self.durable.promise) and not isinstance(message, Answer):
                # Nobody else may know of both: the one that writes under this number must hear of the other.
                self.send(claim.store_id, Answer(0, self.durable.promise, self.standing()))
            elif isinstance(message, Frame | Refusal) and self.number > claim.number:
                # Also to the one that this store promised it to: its disk forgot, and nobody else may know.
                self.send(sender, Answer(0, self.durable.promise, self.standing()))
        if standing is not None and self.durable.role == "primary" and lost_synced(self.log, standing):
            self.fence(f"{sender} has records of this epoch that were lost here: this disk went back", None)

    def _raise(self, claim: Claim) -> None:
        """Promise a higher epoch; whoever wrote a lower one is fenced in the same write."""
        peers = self.durable.peers
        if claim.store_id not in (*peers, self.me):
            peers = (*peers, claim.store_id)
        follows = self.log.tip == Place(claim.fork_lsn, bytes.fromhex(claim.chain))
        if self.durable.rejoin is not None:
            self._raise_in_rejoin(self.durable.rejoin, claim, peers)
        elif claim.store_id == self.me:
            self.persist(peers=peers)
            self.fence(f"this store wrote epoch {claim.number}, and its disk does not know it", claim)
        elif self.durable.role == "standby" or follows:
            # A primary or fenced store all of whose log is in the new history leaves nothing behind: it follows.
            was_standby = self.durable.role == "standby"
            if not was_standby:
                self.act(Fence(f"epoch {claim.number} began"))
            # What was refused is of the epoch before.
            self.persist(role="standby", promise=claim, reason="", primary=claim.store_id, peers=peers, refused_lsn=0)
            if was_standby:
                self._dial()
            else:
                self.play(Standby(self))
        else:
            self.persist(peers=peers)
            self.fence(f"{claim.store_id} began epoch {claim.number}", claim)

    def _raise_in_rejoin(self, state: RejoinState, claim: Claim, peers: tuple[str, ...]) -> None:
        """Go on with the new primary; whether what was read from the old one is in its history no claim says."""
        if state.target_lsn:
            state = state.at(state.phase, needs_snapshot=True)
        self.persist(promise=claim, peers=peers, rejoin=state, refused_lsn=0)
        if isinstance(self.part, Rejoining):
            self.part.redirect(claim)
        elif claim.store_id != self.me and isinstance(self.part, Standby):
            self.persist(primary=claim.store_id)
            if state.needs_snapshot:
                self.persist(rejoin=state.at("reset", primary=claim.store_id))
                self.play(Rejoining(self))
            else:
                self.part.dial()

    def _dial(self) -> None:
        if isinstance(self.part, Standby):
            self.part.dial()

    def fence(self, reason: str, claim: Claim | None) -> None:
        """Acknowledge nothing more: first in memory, then on disk, and only then a word to anyone."""
        if self.durable.role == "primary":
            self.act(Fence(reason))
            self.alarm(f"fenced: {reason}")
        feed = self.part.feed if isinstance(self.part, Primary | Fenced) else None
        self.persist(role="fenced", reason=reason, primary="", promise=claim or self.durable.promise)
        self.play(Fenced(self, feed))

    def _yield(self, sender: str, message: YieldRequest) -> None:
        """Step down for a standby that is being promoted, if it is this store's epoch that it replaces."""
        if message.number != self.number or not self.holds_promise or self.durable.rejoin is not None:
            self.send(sender, Answer(0, self.durable.promise, self.standing()))
            return
        if self.durable.role == "primary":
            self.fence(f"stepped down for {sender}", None)
        self.send(sender, SteppedDown(message.number, self.standing()))

    def _adopt(self) -> None:
        """Believe that this directory moved. Where it was a primary's, a new epoch fences the original, if it lives."""
        if not self.is_copied:
            self.reply(False, "this directory is not a copy")
            return
        self.is_copied = False
        if self.durable.role == "primary":
            Promotion.seize(self)
        else:
            self.play_role()
            self.reply(True, "adopted")


def _signed(message: Message | Report) -> tuple[Claim | None, Standing | None]:
    claim = getattr(message, "claim", None) or getattr(message, "promise", None)
    return claim, getattr(message, "standing", None)
