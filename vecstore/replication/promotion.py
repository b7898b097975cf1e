"""How a store becomes the primary: asked by a human, or handed the log.

A promotion asks the old primary to step down, waits a moment for it and for what it has, and then is one synced
batch: role, promise, epoch record. Until that batch nothing of it is durable: a crash before it leaves a standby, and
the human asks again.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..storage.catalog import Epoch
from .epochs import Claim, holds
from .messages import Promote, SteppedDown, YieldRequest
from .part import Desk
from .primary import Primary

__all__ = ["Promotion"]


@dataclass
class Promotion:
    """A promotion that waits for the old primary, and for its records."""

    desk: Desk
    command: Promote
    deadline_s: float
    yielded_lsn: int | None = None

    @classmethod
    def begin(cls, desk: Desk, command: Promote, seen_lsn: int, is_connected: bool) -> Promotion | None:
        """Ask the old primary to step down, unless the promotion is refused at once."""
        lag = seen_lsn - desk.log.tip.lsn
        if desk.durable.rejoin is not None:
            desk.reply(False, "a rejoin is under way: let it end, or abort it")
        elif not desk.log.epochs:
            desk.reply(False, "this store holds nothing yet")
        elif command.replaces != desk.number:
            desk.reply(False, f"this store knows of epoch {desk.number}, not {command.replaces}")
        elif desk.durable.is_halted and not command.force:
            # It applies nothing, and knows of no lag: to ask for a step-down would leave nobody who writes.
            desk.reply(False, "points differ from the primary's, and nothing is applied; force accepts both")
        elif lag > command.max_loss and not command.force and not is_connected:
            # Refused before anybody is asked to step down, so that nobody is left without a primary for nothing.
            desk.reply(False, _too_far(lag, command.max_loss))
        else:
            if desk.durable.primary:
                desk.send(desk.durable.primary, YieldRequest(command.replaces, desk.standing()))
            return cls(desk, command, desk.now_s + desk.timing.step_down_s)
        return None

    def stepped_down(self, message: SteppedDown) -> None:
        """The old primary acknowledges nothing more: wait for all that it has."""
        if message.number == self.command.replaces and self.yielded_lsn is None:
            self.yielded_lsn = message.standing.lsn
            self.deadline_s = self.desk.now_s + self.desk.timing.catch_up_s

    def goes_on(self, seen_lsn: int) -> bool:
        """Promote, refuse, or return True to wait on."""
        desk, command = self.desk, self.command
        log = desk.log
        if desk.number != command.replaces:
            desk.reply(False, f"epoch {desk.number} was begun meanwhile")
            return False
        has_all = self.yielded_lsn is not None and log.durable_lsn >= self.yielded_lsn
        if desk.is_replacing or (not has_all and desk.now_s < self.deadline_s):
            return True
        lag = max(seen_lsn, self.yielded_lsn or 0) - log.tip.lsn
        if command.wait is not None and holds(log, command.wait) is not True:
            desk.reply(False, "the record of the token is not here")
        elif lag > command.max_loss and not command.force:
            desk.reply(False, _too_far(lag, command.max_loss))
        else:
            self.seize(desk)
        return False

    @staticmethod
    def seize(desk: Desk) -> None:
        """Begin an epoch: role, promise and epoch record in one synced batch, and only then a word to anyone."""
        log = desk.log
        last = log.epochs[-1].number if log.epochs else 0
        number = max(desk.number, last) + 1
        epoch = Epoch(number, f"{desk.mint():016x}", log.tip.lsn, log.tip.chain.hex())
        if desk.durable.scrub is not None:
            count = sum(one.count for one in desk.durable.scrub.differences)
            desk.alarm(f"promoted with {count} points that differed from the old primary's: what is here counts now")
        others = {desk.durable.promise.store_id} if desk.durable.promise else set()
        desk.persist(
            epoch=epoch,
            role="primary",
            promise=Claim.of(desk.identity, epoch),
            reason="",
            primary="",
            peers=(*desk.durable.peers, *sorted(others - set(desk.durable.peers) - {desk.me})),
            replaced=desk.number,
            refused_lsn=0,
            scrub=None,
            verified=None,
            mended=0,
        )
        desk.reply(True, f"epoch {number} begins behind LSN {epoch.fork_lsn}")
        desk.play(Primary(desk, is_new=True))


def _too_far(lag: int, max_loss: int) -> str:
    return f"this store lacks at least {lag} records that the primary has, {max_loss} may be lost; force accepts it"
