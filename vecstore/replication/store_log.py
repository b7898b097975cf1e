"""The log of an open store as replication sees it: `Log` over an engine.

A facade: it follows the engine when the contents of the store are replaced. It reads and never writes. What was written
lately is kept in memory as long as somebody is fed, so that a standby that is close behind costs no read of the disk;
a store that nobody follows keeps nothing.

Invariant: an LSN above the tip has no chain and no record here, also while the committer is writing it.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from threading import Lock

from ..config import MIB
from ..engine.engine import Engine
from ..engine.recovery import LogReader
from ..record import MARK_BYTES, Mark, Record, chain_seed, log_key
from ..storage import catalog
from ..storage.base import Family
from ..storage.catalog import Epoch
from .log import Place

__all__ = ["StoreLog"]

RECENT_BYTES_MAX = 32 * MIB
RECENT_IDLE_S = 30.0
"""So long after the last read, what was written lately is no longer kept."""
CHAINS_MAX = 16_384


class StoreLog:
    """A store's log; implements `Log`. Thread-safe.

    Parameters
    ----------
    engine
        Returns the open engine: another one after the contents were replaced.
    """

    def __init__(self, engine: Callable[[], Engine]) -> None:
        self._current = engine
        self._recent = _Recent(engine())

    @property
    def _engine(self) -> Engine:
        engine = self._current()
        if self._recent.engine is not engine:
            # Other contents may stand at the same LSNs: nothing that was remembered holds.
            self._recent = _Recent(engine)
        return engine

    @property
    def lineage(self) -> bytes:
        """The lineage."""
        return self._engine.lineage

    @property
    def tip(self) -> Place:
        """The last record that was written; it need not be durable."""
        committer = self._engine.committer
        assert committer is not None, "a store that replicates is open for writing"
        tip = committer.tip
        return Place(tip.lsn, tip.chain)

    @property
    def durable_lsn(self) -> int:
        """The last LSN that a power loss would leave."""
        return self._engine.durable_lsn

    @property
    def applied_lsn(self) -> int:
        """The LSN that readers see."""
        return self._engine.state.view.lsn

    @property
    def first_lsn(self) -> int:
        """The first record that is kept; one above the tip where none is."""
        checkpointer = self._engine.checkpointer
        assert checkpointer is not None
        return checkpointer.log_start

    @property
    def epochs(self) -> tuple[Epoch, ...]:
        """The epochs whose records are in the log up to its tip, in order."""
        return tuple(self._engine.state.fold.epochs)

    @property
    def handover(self) -> str:
        """The store that the tip hands over to, "" where the tip is not a handover record."""
        return self._engine.state.fold.handover

    def chain(self, lsn: int) -> bytes | None:
        """Return the chain after a record, None where neither the kept log nor a mark knows it."""
        tip = self.tip
        if lsn >= tip.lsn:
            return tip.chain if lsn == tip.lsn else None
        if lsn == 0:
            return chain_seed(self.lineage)
        found = self._recent.chain(lsn)
        if found is None:
            found = self._logged_chain(lsn) if lsn >= self.first_lsn else self._marked_chain(lsn)
            if found is not None:
                self._recent.learn(lsn, found)
        return found

    def known(self, first: int, last: int) -> Sequence[int]:
        """Return the LSNs of a range, ascending, at which the chain is known."""
        start, tip_lsn = self.first_lsn, self.tip.lsn
        below = sorted(lsn for lsn in self._marks() if first <= lsn <= last and lsn < start)
        kept = range(max(first, start, 1), min(last, tip_lsn) + 1)
        ends = [tip_lsn] if tip_lsn < start and first <= tip_lsn <= last and tip_lsn not in below else []
        return [*below, *ends, *kept]

    def read(self, after_lsn: int, last_lsn: int, bytes_max: int) -> Sequence[Record]:
        """Return kept records after an LSN, at most up to another; at least one where there is one."""
        last_lsn = min(last_lsn, self.tip.lsn)
        if after_lsn >= last_lsn:
            return ()
        self._recent.watch()
        return self._recent.read(after_lsn, last_lsn, bytes_max) or self._read_disk(after_lsn, last_lsn, bytes_max)

    # -- the disk ----------------------------------------------------------------------------------------------------

    def _read_disk(self, after_lsn: int, last_lsn: int, bytes_max: int) -> list[Record]:
        taken: list[Record] = []
        size = 0
        for record in LogReader(self._engine.store).records(after_lsn):
            is_next = record.lsn == after_lsn + len(taken) + 1 and record.lsn <= last_lsn
            if not is_next or (taken and size + record.size > bytes_max):
                break
            taken.append(record)
            size += record.size
            self._recent.learn(record.lsn, record.mark.chain)
            if record.lsn == last_lsn:
                break
        return taken

    def _logged_chain(self, lsn: int) -> bytes | None:
        """Return the chain of a mark in the log, without joining its record."""
        tail = b""
        for _, chunk in self._engine.store.scan(Family.LOG, log_key(lsn), log_key(lsn + 1)):
            tail = (tail + chunk)[-MARK_BYTES:]
        return Mark.decode(tail).chain if len(tail) == MARK_BYTES else None

    def _marked_chain(self, lsn: int) -> bytes | None:
        (mark,) = self._engine.store.get(Family.META, [catalog.numbered(catalog.CHAIN, lsn)])
        return mark if mark is not None else dict(self._other_places()).get(lsn)

    def _marks(self) -> Iterator[int]:
        """Yield the LSNs at which a chain is kept beside the log."""
        found = dict(self._other_places())
        yield from found
        prefix = catalog.CHAIN
        for key, _ in self._engine.store.scan(Family.META, prefix, prefix[:-1] + b"0"):
            lsn = catalog.number_of(prefix, key)
            if lsn not in found:
                yield lsn

    def _other_places(self) -> Iterator[tuple[int, bytes]]:
        """Yield the places of checkpoints, of the archive, and where epochs begin, which their records say for ever."""
        engine = self._engine
        assert engine.checkpointer is not None
        for epoch in list(engine.state.fold.epochs):
            if epoch.fork_lsn:
                yield epoch.fork_lsn, bytes.fromhex(epoch.chain)
        for entry in list(engine.checkpointer.entries):
            yield entry.lsn, bytes.fromhex(entry.chain)
        for slot in list(engine.slots.held.values()):
            if slot.chain and slot.lsn:
                yield slot.lsn, bytes.fromhex(slot.chain)


class _Recent:
    """Records and chains of one engine's log that were written or read lately. Filled by the committer's thread."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._lock = Lock()
        self._records: deque[Record] = deque()
        self._bytes = 0
        self._chains: OrderedDict[int, bytes] = OrderedDict()
        self._asked_s = 0.0
        self._watches = False

    def watch(self) -> None:
        """Keep what is written from now on."""
        self._asked_s = time.monotonic()
        if not self._watches:
            assert self.engine.committer is not None
            self._watches = True
            self.engine.committer.on_records = self._take

    def _take(self, records: Sequence[Record]) -> None:
        """Keep records that were written; stop where nobody has asked for long. In the committer's thread."""
        with self._lock:
            if time.monotonic() - self._asked_s > RECENT_IDLE_S:
                assert self.engine.committer is not None
                self.engine.committer.on_records = None
                self._watches = False
                self._records.clear()
                self._bytes = 0
                return
            for record in records:
                self._records.append(record)
                self._bytes += record.size
                self._learn(record.lsn, record.mark.chain)
            while self._bytes > RECENT_BYTES_MAX and len(self._records) > 1:
                self._bytes -= self._records.popleft().size

    def read(self, after_lsn: int, last_lsn: int, bytes_max: int) -> list[Record]:
        """Return records that are kept here, all that follow an LSN; none where the first of them is not."""
        with self._lock:
            if not self._records or not self._records[0].lsn <= after_lsn + 1 <= self._records[-1].lsn:
                return []
            at = after_lsn + 1 - self._records[0].lsn
            taken: list[Record] = []
            size = 0
            while at < len(self._records) and self._records[at].lsn <= last_lsn:
                record = self._records[at]
                if taken and size + record.size > bytes_max:
                    break
                taken.append(record)
                size += record.size
                at += 1
            return taken

    def chain(self, lsn: int) -> bytes | None:
        """Return the chain at an LSN, if it is remembered."""
        with self._lock:
            return self._chains.get(lsn)

    def learn(self, lsn: int, chain: bytes) -> None:
        """Remember the chain of a record that was written."""
        with self._lock:
            self._learn(lsn, chain)

    def _learn(self, lsn: int, chain: bytes) -> None:
        self._chains[lsn] = chain
        if len(self._chains) > CHAINS_MAX:
            self._chains.popitem(last=False)
