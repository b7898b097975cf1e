"""The part of the writer: starting, open, handing.

*Starting*: takes no writes until its peers have answered, or were silent for too long. *Open*: takes writes, feeds
standbys, calls every peer until it has promised this epoch. *Handing*: its log ends with a handover; it acknowledges
what stands before, feeds, and waits for the claim of the store that it hands over to, or for its refusal.
"""

from __future__ import annotations

from .actions import Acknowledge, Handover, Open
from .feed import Feed
from .log import Place
from .messages import (
    Ack,
    Answer,
    Call,
    Command,
    DropSlot,
    HandoverRefusal,
    Message,
    Report,
    Switchover,
    Synced,
)
from .part import Desk, Part

__all__ = ["Primary"]


class Primary(Part):
    """The writer of the promised epoch.

    Parameters
    ----------
    is_new
        It was promoted just now, and need not ask whether it still is the primary.
    """

    def __init__(self, desk: Desk, *, is_new: bool = False) -> None:
        self.desk = desk
        self.feed = Feed(desk)
        self.session = desk.mint()
        self.answered: set[str] = set()
        self.promised: set[str] = set()
        self.started_s = self.called_s = self.called_all_s = desk.now_s
        self.status = "open" if is_new else "starting"
        if is_new:  # everybody is called at the next tick, when the epoch's record is in the log
            self.called_s -= desk.timing.call_every_s

    def start(self) -> None:
        if self.status == "open":
            self.desk.act(Open())
        elif self.desk.log.handover:
            self.status = "handing"
        elif self._others():
            self._call(self._others())
        else:
            self._open()

    def step(self, sender: str, message: Message | Report) -> None:
        match message:
            case Answer():
                self._answer(sender, message)
            case Synced():
                self.feed.pump_all()
                self._acknowledge()
            case Ack():
                before = self.feed.replicated_lsn()
                self.feed.step(sender, message)
                if self.feed.replicated_lsn() > before:
                    self._acknowledge()
            case HandoverRefusal():
                self._refused(message)
            case _:
                self.feed.step(sender, message)  # type: ignore[arg-type]

    def command(self, command: Command) -> None:
        match command:
            case Switchover():
                self._switch(command)
            case DropSlot():
                slots = tuple(slot for slot in self.desk.durable.slots if slot.name != command.name)
                left = {slot.store_id for slot in slots}
                gone = {slot.store_id for slot in self.desk.durable.slots} - left if command.is_gone else set()
                peers = tuple(peer for peer in self.desk.durable.peers if peer not in gone)
                self.desk.persist(slots=slots, peers=peers)
                self.desk.reply(True, f"slot {command.name} is dropped")
            case _:
                self.desk.reply(False, "this store is the primary")

    def tick(self) -> None:
        self.feed.tick()
        timing, now_s = self.desk.timing, self.desk.now_s
        if self.status == "starting" and now_s - self.started_s >= timing.start_alone_after_s:
            silent = sorted(self._others() - self.answered)
            self.desk.alarm(f"opened without having heard from {', '.join(silent)}")
            self._open()
        if now_s - self.called_s >= timing.call_every_s:
            # A target that has stopped is heard of in this way alone: it refuses what it will not come to.
            target = {self.desk.log.handover} if self.status == "handing" else set()
            self._call(self._others() - (self.answered if self.status == "starting" else self.promised - target))
        if now_s - self.called_all_s >= timing.retry_s:
            # A store that promised may have lost its promise with its disk: it is told again, for ever.
            self.called_all_s = now_s
            self._call(self._others())

    # -- starting ----------------------------------------------------------------------------------------------------

    def _others(self) -> set[str]:
        return set(self.desk.durable.peers) - {self.desk.me}

    def _call(self, peers: set[str]) -> None:
        """Ask peers what they know, and tell them of this epoch."""
        self.called_s = self.desk.now_s
        for peer in sorted(peers):
            self.desk.send(peer, Call(self.session, self.desk.durable.promise, self.desk.standing()))

    def _answer(self, sender: str, message: Answer) -> None:
        if message.session != self.session:
            return
        self.answered.add(sender)
        if message.promise is not None and message.promise.number >= self.desk.number:
            self.promised.add(sender)
        if self.status == "starting" and self._others() <= self.answered:
            self._open()

    def _open(self) -> None:
        self.status = "open"
        self.desk.act(Open())

    # -- acknowledging -----------------------------------------------------------------------------------------------

    def _acknowledge(self) -> None:
        self.desk.act(Acknowledge(self.desk.log.durable_lsn, self.feed.replicated_lsn()))

    # -- handing over ------------------------------------------------------------------------------------------------

    def _switch(self, command: Switchover) -> None:
        behind, within_s = self.feed.behind(command.target), command.within_s or self.desk.timing.catch_up_s
        if self.status != "open":
            self.desk.reply(False, f"this primary is {self.status}")
        elif behind is None:
            self.desk.reply(
                False, f"{command.target} is not connected, or was silent for too long: it must follow first"
            )
        elif behind.seconds > within_s:
            self.desk.reply(
                False,
                f"{command.target} is {behind.records} records behind and would need about {behind.seconds:.0f} s, in "
                f"which nobody could write; {within_s:g} s are allowed: let it catch up, write less, or allow more",
            )
        else:
            self.status = "handing"
            self.desk.act(Handover(command.target))
            self.desk.reply(True, f"handing over to {command.target}")

    def _refused(self, message: HandoverRefusal) -> None:
        """Go on: only the store that was handed the log can say so, and only of the record at the tip."""
        log = self.desk.log
        place = Place(*message.place)
        if self.status == "handing" and log.handover == message.standing.store_id and place == log.tip:
            self.desk.alarm(f"{message.standing.store_id} refused to take over")
            self._open()
