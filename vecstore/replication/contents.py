"""What is done to a store's contents as a whole, for replication: handed out, put in place, exported, gone back to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from ..engine.engine import Engine
from ..record import Record
from .durable import Difference, Durable
from .log import Place
from .messages import Points, Snapshot

__all__ = ["Contents", "Left", "ReplaceFailed"]


class Left(NamedTuple):
    """What an export found behind the fork: the points that it touched, and whether there was more than points."""

    ids: tuple[Any, ...]
    needs_snapshot: bool


class ReplaceFailed(Exception):
    """Contents were not put in place, and the store is open again; the cause says why.

    Attributes
    ----------
    engine
        The one that is open now.
    """

    def __init__(self, engine: Engine) -> None:
        super().__init__("the contents were not put in place")
        self.engine = engine


class Contents(Protocol):
    """What is done to a store's contents as a whole. Each takes a while; each is all or nothing, and may be repeated.

    Those that put other contents in place return the engine that is open afterwards, and raise `ReplaceFailed` where
    they came so far as to close the one before. They ask for the durable state once that one is closed, when nothing
    more can be written to it: what was promised while contents were fetched must not be forgotten with those before.
    """

    def snapshot(self) -> tuple[Place, Any]:
        """Take a snapshot at a durable LSN, kept for a while; return its place and the ticket that it is fetched by."""
        ...

    def install(self, snapshot: Snapshot, state: Callable[[], Durable]) -> Engine:
        """Fetch a snapshot and put it in place of all that is here, with the durable state in it."""
        ...

    def archived(self, after_lsn: int) -> Sequence[Record]:
        """Return records after an LSN from an archive, none where there is none or it does not reach."""
        ...

    def points(self, ids: Sequence[Any]) -> tuple[int, Any]:
        """Read points at a durable LSN; return it, and what another fetches them by: a ticket."""
        ...

    def checkpoint(self) -> None:
        """Keep the store as it is, for `back`."""
        ...

    def export(self, fork_lsn: int, is_complete: bool) -> Left:
        """Export what lies behind a fork, durably."""
        ...

    def reset(self, fork: Place, points: Points, state: Callable[[], Durable]) -> Engine:
        """Drop the log behind a fork, and set the points that it touched."""
        ...

    def tidy(self) -> None:
        """Remove what was fetched and is not needed any more."""
        ...

    def back(self, state: Callable[[], Durable]) -> Engine:
        """Put what was kept in place again."""
        ...

    def discard(self) -> None:
        """Keep it no longer."""
        ...

    def mend(self, points: Points, differences: Sequence[Difference]) -> None:
        """Make points that differ what another store has read of them, durably."""
        ...

    def verify(self) -> bool:
        """Recompute the digests from the bytes; return whether they are those in the log."""
        ...
