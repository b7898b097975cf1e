"""A client of the simulation: writes with request ids and retries, reads with tokens. It remembers what it was told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vecstore.record import Token

if TYPE_CHECKING:
    from .node import Write
    from .world import World

RETRY_S = 1.5
IDS = 6
SENT_MAX = 30


@dataclass
class Client:
    """One caller, with one write at a time.

    Attributes
    ----------
    told
        Outcome of each request: done, late, unknown, lost.
    """

    world: World
    name: str
    stores: list[str]
    pause_s: float = 0.4
    patience_s: float = 10.0
    share_replicated: float = 0.2
    target: str = ""
    token: Token | None = None
    told: dict[bytes, str] = field(default_factory=dict)
    sent: list[Write] = field(default_factory=list)
    count: int = 0
    current: Write | None = None
    attempt: int = 0
    is_stopped: bool = False

    def begin(self) -> None:
        """Begin to write and read, for ever."""
        self.target = self.stores[0]
        self.world.later(self.world.rng.random() * self.pause_s, self._next)

    def make(self, id: int, value: int | None, ack: str = "durable") -> Write:
        """Make a write with a request id of its own."""
        from .node import Write

        self.count += 1
        request_id = f"{self.name}{self.count}".encode().ljust(16, b"\0")
        return Write(self.name, request_id, id, value, self.world.now_s + self.patience_s, ack)

    def _next(self) -> None:
        if self.is_stopped:
            return
        rng = self.world.rng
        if self.sent and rng.random() < 0.4:
            # An attempt that stalled somewhere comes at last, after whatever was written since.
            self.world.call(self.name, rng.choice(self.stores), rng.choice(self.sent), 0)
        for _ in range(rng.randint(0, 1)):
            self.world.call_read(self.name, rng.choice(self.stores), self.token)
        ack = "replicated" if rng.random() < self.share_replicated else "durable"
        value = None if rng.random() < 0.15 else rng.getrandbits(32)
        self.current, self.attempt = self.make(rng.randrange(IDS), value, ack), 0
        self._try()

    def _try(self) -> None:
        write = self.current
        if write is None:
            return
        if self.world.now_s > write.not_after_s + RETRY_S:
            self._end(write, "unknown")
            return
        self.attempt += 1
        self.sent.append(write)
        del self.sent[:-SENT_MAX]
        self.world.call(self.name, self.target, write, self.attempt)
        self.world.later(RETRY_S, self._retry, write, self.attempt)

    def _retry(self, write: Write, attempt: int) -> None:
        """Nothing was heard: try again, elsewhere."""
        if self.current is write and self.attempt == attempt:
            self.target = self.world.rng.choice(self.stores)
            self._try()

    def answered(self, write: Write, attempt: int, outcome: str, value: object) -> None:
        """Take an answer: a "done" counts at any attempt, anything else only at the present one."""
        if self.current is not write:
            return
        if outcome == "done":
            if isinstance(value, Token) and (
                self.token is None or (value.epoch, value.lsn) > (self.token.epoch, self.token.lsn)
            ):
                self.token = value
            self._end(write, "done")
        elif outcome == "late" and self.attempt == 1:
            self._end(write, "late")
        elif outcome == "not primary" and attempt == self.attempt and value in self.stores:
            self.target = str(value)

    def _end(self, write: Write, outcome: str) -> None:
        self.told[write.request_id] = outcome
        self.current = None
        self.world.later(self.world.rng.random() * 2 * self.pause_s, self._next)

    def read_answered(self, token: Token | None, held: bool | None) -> None:
        """Take a read's answer; a token whose write was lost is forgotten."""
        if held is False and token is self.token:
            self.world.note("lost", self.name, token)
            self.token = None
