"""A scene: a world without chance, played by hand, and its trace as text."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from vecstore.record import Token
from vecstore.replication.actions import Reply
from vecstore.replication.messages import Command

from .disk import change_of
from .node import Node, Write
from .world import World

WAIT_S = 30.0


@dataclass
class Hand:
    """A client that does what a test says, and keeps every answer."""

    outcomes: dict[bytes, list[tuple[str, Any]]] = field(default_factory=dict)
    reads: list[tuple[Token | None, bool | None]] = field(default_factory=list)

    def answered(self, write: Write, attempt: int, outcome: str, value: Any) -> None:
        """Keep the answer of a write."""
        self.outcomes.setdefault(write.request_id, []).append((outcome, value))

    def read_answered(self, token: Token | None, held: bool | None) -> None:
        """Keep the answer of a read."""
        self.reads.append((token, held))


class Scene(World):
    """A world whose network loses nothing and whose disks crash when they are told to."""

    def __init__(self, stores: str = "ab") -> None:
        super().__init__(0, stores)
        self.hand = Hand()
        self.clients["hand"] = self.hand  # type: ignore[assignment]
        self.written = 0
        self.run(3.0)

    def __getitem__(self, store_id: str) -> Node:
        return self.nodes[store_id]

    def make(self, id: int, value: int | None, ack: str = "durable", patience_s: float = 1000.0) -> Write:
        """Make a write with a request id of its own."""
        self.written += 1
        return Write("hand", b"%016d" % self.written, id, value, self.now_s + patience_s, ack)

    def ask(self, store_id: str, write: Write) -> list[tuple[str, Any]]:
        """Send a write and return its answers so far, the new one last."""
        answers = self.hand.outcomes.setdefault(write.request_id, [])
        before = len(answers)
        self.call("hand", store_id, write, 1)
        self.run(WAIT_S, lambda: len(answers) > before)
        return answers

    def put(self, store_id: str, id: int, value: int | None, ack: str = "durable") -> Token:
        """Write a point, and return the token."""
        outcome, token = self.ask(store_id, self.make(id, value, ack))[-1]
        assert outcome == "done", outcome
        assert isinstance(token, Token)
        return token

    def read(self, store_id: str, token: Token | None) -> bool | None:
        """Read with a token: True for an answer, False for `WriteLost`, None while it waits."""
        before = len(self.hand.reads)
        self.call_read("hand", store_id, token)
        self.run(WAIT_S, lambda: len(self.hand.reads) > before)
        return self.hand.reads[-1][1]

    def tell(self, store_id: str, command: Command) -> Reply | None:
        """Give a command and return the reply that came at once."""
        node = self[store_id]
        before = len(node.replies)
        node.command(command)
        return node.replies[-1] if len(node.replies) > before else None

    def until(self, store_id: str, status: str, wait_s: float = WAIT_S) -> None:
        """Wait until a store is in a status."""
        assert self.run(wait_s, lambda: self[store_id].status == status), f"{store_id} is {self[store_id].status}"

    def settled(self) -> bool:
        """Whether all stores that run have one log, durably."""
        tips = {
            (node.log.tip, node.log.durable_lsn, node.log.state.digest) for node in self.nodes.values() if node.is_up
        }
        return len(tips) == 1

    def is_switched(self) -> bool:
        """Whether one store writes, the other follows, and both have one log."""
        return sorted(node.status for node in self.nodes.values()) == ["following", "open"] and self.settled()

    def settle(self) -> None:
        """Wait until all stores that run have one log."""
        assert self.run(WAIT_S, self.settled), self.history()

    def kill(self, store_id: str) -> None:
        """Take the power from a store."""
        self[store_id].crash()

    def value(self, store_id: str, id: int) -> int | None:
        """Return a point's value in a store."""
        found = self[store_id].log.state.points.get(id)
        return None if found is None else found[0]

    def exported(self, store_id: str) -> dict[int, tuple[int, int | None]]:
        """Return the exported records about points: LSN to id and value."""
        records = self[store_id].disk.exports.records.values()
        return {record.lsn: change_of(record.body) for record in records if record.header.kind in (1, 2)}

    def trace(self) -> str:
        """Return what happened, a line each."""
        lines = [" ".join((f"{note[0]:7.2f}", note[1], *map(str, note[2:]))) for note in self.notes]
        stores = [
            f"{node.store_id} is {node.status}, epochs {[epoch.number for epoch in node.log.epochs]},"
            f" tip {node.log.tip.lsn}, promised {node.disk.written.promise.number if node.disk.written.promise else 0}"
            for node in self.nodes.values()
        ]
        return "\n".join((*lines, *stores)) + "\n"
