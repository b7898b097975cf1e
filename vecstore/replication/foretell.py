"""What a rejoin would find, for who asks before: the fork, what lies behind it, and whether a snapshot would be needed.

It searches as the rejoin does, by chains at LSNs that it asks the primary for, on a store that is open to be read; and
it looks at the same records with the same eyes. It changes nothing, here or there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import msgspec

from ..engine.contents.touched import Touched
from ..engine.engine import Engine
from ..engine.recovery import LogReader
from ..record import Kind, log_key_lsn
from ..storage import catalog
from ..storage.base import Family
from ..storage.catalog import Epoch
from .durable import Durable
from .epochs import ForkSearch, bound
from .log import Place
from .store_log import StoreLog

__all__ = ["Foretold", "Theirs", "foretell"]

Ask = Callable[[Sequence[int]], Sequence[tuple[int, bytes | None]]]


class Theirs(msgspec.Struct, frozen=True):
    """What the primary says of its log."""

    epochs: list[Epoch]
    lsn: int
    first_lsn: int


class Foretold(msgspec.Struct, frozen=True, kw_only=True):
    """What a rejoin would find.

    Attributes
    ----------
    lsn
        Where this store's log ends.
    records, bytes
        Of the log, that would be exported and dropped.
    kinds
        How many records of each kind there are among them.
    points
        The different points that they touched; None where those are too many to be told one by one.
    is_complete
        Whether the log still holds all of them.
    why_snapshot
        Why all would be fetched from the primary afterwards; empty where setting points is enough.
    """

    fork_lsn: int
    lsn: int
    primary_lsn: int
    records: int
    bytes: int
    kinds: dict[str, int]
    points: int | None
    is_complete: bool
    needs_snapshot: bool
    why_snapshot: str


class _ReadLog(StoreLog):
    """The log of a store that is open to be read."""

    @property
    def tip(self) -> Place:
        """The last record."""
        tip = self._engine.state.fold.tip
        return Place(tip.lsn, tip.chain)

    @property
    def first_lsn(self) -> int:
        """The first record that is kept."""
        for key, _ in self._engine.store.scan(Family.LOG, b""):
            return log_key_lsn(key)[0]
        return self.tip.lsn + 1

    def _other_places(self) -> Iterator[tuple[int, bytes]]:
        store = self._engine.store
        for prefix in (catalog.CHECKPOINT, catalog.SLOT):
            for _, value in store.scan(Family.META, prefix, prefix[:-1] + b"0"):
                entry = msgspec.json.decode(value)
                if entry["chain"] and entry["lsn"]:
                    yield entry["lsn"], bytes.fromhex(entry["chain"])


def foretell(engine: Engine, durable: Durable | None, theirs: Theirs, ask: Ask) -> Foretold:
    """Find the fork with a primary, and look at what lies behind it.

    Parameters
    ----------
    durable
        What the store is in the replication: its slots know chains, too.
    ask
        Returns the primary's chains at some LSNs, None where it does not know one.
    """
    log = _ReadLog(lambda: engine)
    slots = () if durable is None else durable.slots
    noted = {slot.lsn: slot.chain for slot in slots if slot.lsn < log.first_lsn}
    search = ForkSearch(log, bound(log.epochs, log.tip.lsn, theirs.epochs, theirs.lsn), noted)
    while lsns := search.ask():
        search.take(ask(lsns))
    fork_lsn, tip_lsn = search.low, log.tip.lsn
    kinds: dict[str, int] = {}
    touched, size = Touched(), 0
    for record in LogReader(engine.store).records(fork_lsn):
        touched.see(record)
        name = Kind(record.header.kind).name.lower()
        kinds[name] = kinds.get(name, 0) + 1
        size += record.size
    is_complete = fork_lsn == tip_lsn or log.first_lsn <= fork_lsn + 1
    why = touched.why
    if not is_complete:
        why = f"the log here begins at LSN {log.first_lsn}: what else was touched is not known"
    elif fork_lsn < tip_lsn and theirs.first_lsn > fork_lsn + 1:
        why = f"the log of the primary begins at LSN {theirs.first_lsn}"
    elif fork_lsn < tip_lsn and log.chain(fork_lsn) is None and fork_lsn not in noted:
        why = f"nothing here knows the chain at LSN {fork_lsn} any more"
    return Foretold(
        fork_lsn=fork_lsn,
        lsn=tip_lsn,
        primary_lsn=theirs.lsn,
        records=tip_lsn - fork_lsn,
        bytes=size,
        kinds=kinds,
        points=touched.count,
        is_complete=is_complete,
        needs_snapshot=bool(why),
        why_snapshot=why,
    )
