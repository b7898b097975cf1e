"""The part of a store that must acknowledge nothing: deposed, stepped down, or without what it once had.

It reads on. As long as the highest claim that it knows is its own, it goes on feeding standbys with what is durable
here: that is how the last records of a primary that stepped down reach the one that follows it.
"""

from __future__ import annotations

from .feed import Feed
from .messages import Command, Message, Promote, Report, Synced
from .part import Desk, Part
from .promotion import Promotion

__all__ = ["Fenced"]


class Fenced(Part):
    """A store that takes no writes until a human promotes it, or lets it rejoin."""

    status = "fenced"

    def __init__(self, desk: Desk, feed: Feed | None = None) -> None:
        self.desk = desk
        self.feed = feed or Feed(desk)

    def start(self) -> None:
        pass

    def step(self, sender: str, message: Message | Report) -> None:
        if isinstance(message, Synced):
            if self.desk.holds_promise:
                self.feed.pump_all()
        elif self.desk.holds_promise:
            self.feed.step(sender, message)  # type: ignore[arg-type]
        else:
            self.refuse(sender, message)

    def command(self, command: Command) -> None:
        desk = self.desk
        if not isinstance(command, Promote):
            desk.reply(False, f"this store is fenced: {desk.durable.reason}")
        elif command.replaces != desk.number:
            desk.reply(False, f"this store knows of epoch {desk.number}, not {command.replaces}")
        elif not desk.holds_promise and not command.force:
            desk.reply(False, f"another store holds epoch {desk.number}; force leaves its records behind")
        else:
            Promotion.seize(desk)

    def tick(self) -> None:
        if self.desk.holds_promise:
            self.feed.tick()
