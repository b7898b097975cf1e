"""What the parts that a member plays have in common: its means of acting, and the default of doing nothing.

A part (primary, standby, fenced, rejoining) holds what is volatile about a role. It acts through its `Member` only.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import msgspec

from ..storage.catalog import Epoch
from ..storage.reads import Reads, this_version
from .actions import Action, Alarm, Install, Persist, Reply, Reset, Return, Send
from .durable import Durable, Timing
from .epochs import Identity, Standing
from .log import Log
from .messages import ChainsRequest, Command, Hello, Message, PointsRequest, Refusal, Report, SnapshotRequest

__all__ = ["Desk", "Part"]


class Desk:
    """The means of acting: who one is, what one remembers, what the log holds, what time it is, and the actions so far.

    Attributes
    ----------
    mint
        Gives random numbers of 64 bits: sessions and writers.
    synchronous
        The region whose acknowledgement `replicated` waits for.
    slot
        The name under which this store asks to be fed.
    is_replacing
        The engine is putting other contents in place of this store's: no command may change what it is meanwhile.
    is_ready
        Whether this store could take over, when it is handed the log.
    reads
        What this version can read, and may have written.
    """

    def __init__(
        self,
        identity: Identity,
        log: Log,
        durable: Durable,
        mint: Callable[[], int],
        *,
        timing: Timing | None = None,
        synchronous: str = "",
        slot: str = "",
        reads: Reads | None = None,
    ) -> None:
        self.identity, self.log, self.durable, self.mint = identity, log, durable, mint
        self.timing = timing or Timing()
        self.synchronous, self.slot = synchronous, slot or identity.store_id
        self.reads = reads or this_version()
        self.is_ready = True
        self.now_s = 0.0
        self.actions: list[Action] = []
        self.part: Part = _Nothing()
        self.is_replacing = False

    def play(self, part: Part) -> None:
        """Play another part from now on."""
        self.part = part
        part.start()

    def play_role(self) -> None:
        """Play the part that the durable state names; the member knows which that is."""
        raise NotImplementedError

    @property
    def me(self) -> str:
        """This store's id."""
        return self.identity.store_id

    @property
    def number(self) -> int:
        """The promised epoch's number, 0 for none."""
        return 0 if self.durable.promise is None else self.durable.promise.number

    @property
    def holds_promise(self) -> bool:
        """Whether the highest claim known is this store's own, and its log knows that epoch.

        A disk that went back may not: then the store has nothing to feed anybody with.
        """
        promise, epochs = self.durable.promise, self.log.epochs
        return (
            promise is not None
            and promise.store_id == self.me
            and bool(epochs)
            and (epochs[-1].number, epochs[-1].writer) == (promise.number, promise.writer)
        )

    @property
    def forgotten_epoch(self) -> int:
        """The epoch that this store wrote and its disk does not know any more, for which it is fenced; 0 for none."""
        promise = self.durable.promise
        is_mine = self.durable.role == "fenced" and promise is not None and promise.store_id == self.me
        return self.number if is_mine and not self.holds_promise else 0

    def act(self, action: Action) -> None:
        """Add an action."""
        self.actions.append(action)
        if isinstance(action, Install | Reset | Return):
            self.is_replacing = True

    def send(self, to: str, message: Message) -> None:
        """Send a message."""
        self.actions.append(Send(to, message))

    def persist(self, *, epoch: Epoch | None = None, is_synced: bool = True, **changes: Any) -> None:
        """Change the durable state; what is acted behind it waits until it is durable."""
        changed = msgspec.structs.replace(self.durable, **changes)
        if changed != self.durable or epoch is not None:
            self.durable = changed
            self.actions.append(Persist(changed, epoch, is_synced))

    def cannot_read(self, needs: Reads | None) -> str:
        """Say why a snapshot is not to be had, and what is to be done."""
        return (
            f"a snapshot of the primary is needed, and it is of {needs or 'a newer version'}; this version of vecstore "
            f"reads {self.reads}. Nothing was fetched, and all is kept: upgrade this store, then it goes on"
        )

    def alarm(self, text: str) -> None:
        """Tell a human."""
        self.actions.append(Alarm(text))

    def reply(self, done: bool, text: str) -> None:
        """Answer a command."""
        self.actions.append(Reply(done, text))

    def standing(self) -> Standing:
        """Sign what this store's log is now."""
        return Standing.of(self.identity, self.log)


class Part(ABC):
    """A part that a member plays.

    Attributes
    ----------
    status
        What it is doing, in a word.
    """

    status: str

    desk: Desk

    def refuse(self, sender: str, message: Message | Report) -> None:
        """Tell who wants to be fed that this is not the primary, and who claims to be."""
        if isinstance(message, Hello | ChainsRequest | PointsRequest | SnapshotRequest):
            session = message.session if isinstance(message, Hello) else 0
            self.desk.send(sender, Refusal(session, "not primary", self.desk.durable.promise))

    @abstractmethod
    def start(self) -> None:
        """Begin, or begin again after a restart."""

    @abstractmethod
    def step(self, sender: str, message: Message | Report) -> None:
        """Take a message whose claims were learned, or a report."""

    @abstractmethod
    def command(self, command: Command) -> None:
        """Take a command."""

    @abstractmethod
    def tick(self) -> None:
        """Do what is due."""


class _Nothing(Part):
    """Before the start."""

    status = "stopped"

    def start(self) -> None:
        pass

    def step(self, sender: str, message: Message | Report) -> None:
        pass

    def command(self, command: Command) -> None:
        pass

    def tick(self) -> None:
        pass
