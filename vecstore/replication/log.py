"""How a member of the replication sees its log: a small protocol, so that an engine, or a simulated one, fits it.

Reading only; what changes the log is an action. All of it is answered at once, from memory or by a short read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from ..record import Record
from ..storage.catalog import Epoch

__all__ = ["Log", "Place"]


class Place(NamedTuple):
    """A place in a history: an LSN, and the chain after its record."""

    lsn: int
    chain: bytes


class Log(Protocol):
    """A store's log, as far as replication looks at it."""

    @property
    def lineage(self) -> bytes:
        """The lineage."""
        ...

    @property
    def tip(self) -> Place:
        """The last record that was written; it need not be durable."""
        ...

    @property
    def durable_lsn(self) -> int:
        """The last LSN that a power loss would leave."""
        ...

    @property
    def applied_lsn(self) -> int:
        """The LSN that readers see."""
        ...

    @property
    def first_lsn(self) -> int:
        """The first record that is kept; one above the tip where none is."""
        ...

    @property
    def epochs(self) -> tuple[Epoch, ...]:
        """The epochs whose records are in the log up to its tip, in order."""
        ...

    @property
    def handover(self) -> str:
        """The store that the tip hands over to, "" where the tip is not a handover record."""
        ...

    def chain(self, lsn: int) -> bytes | None:
        """Return the chain after a record, None where neither the kept log nor a mark knows it."""
        ...

    def known(self, first: int, last: int) -> Sequence[int]:
        """Return the LSNs of a range, ascending, at which the chain is known."""
        ...

    def read(self, after_lsn: int, last_lsn: int, bytes_max: int) -> Sequence[Record]:
        """Return kept records after an LSN, at most up to another; at least one where there is one."""
        ...
