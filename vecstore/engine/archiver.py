"""The archiver: a thread that ships the durable log to a repository, as a slot.

It looks where the archive is, and goes on from there: what the repository lists is the truth, the slot only keeps the
log meanwhile. While the repository is down it tries again, ever more seldom; the log waits, up to
`slot_retained_bytes_max`. Beyond, records are cut unarchived: the archive then has a gap, which `status` names, and
which a new snapshot closes.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

from ..config import TOKEN_CHAIN_BYTES
from ..errors import Closed, Damaged, VecstoreError
from ..record import Record, chain_seed
from ..storage import catalog
from ..storage.base import Family
from ..storage.catalog import Epoch
from .recovery import LogReader
from .slots import Slot

if TYPE_CHECKING:
    from ..backup.archive import Archive
    from ..backup.layout import Branch, RangeName
    from .engine import Engine

__all__ = ["Archiver"]

SLOT_NAME = "archive"
RANGE_BYTES = 8 << 20
POLL_S_MAX = 1.0
RETRY_S_MAX = 5.0
"""A request is repeated for so long: the archiver itself tries again, and whoever closes the store waits for it."""
BACK_OFF_S_MIN = 1.0
BACK_OFF_S_MAX = 60.0
CHAINS_COMPARED = 64


class Archiver:
    """Ships one store's log. Its state may be read by any thread.

    Attributes
    ----------
    where
        The repository.
    problem
        Why it does not get on; empty while it does.
    gap
        What the archive cannot give back, in a sentence; empty where it has no gap.
    """

    def __init__(self, engine: Engine, where: str) -> None:
        self._engine, self.where = engine, where
        self.problem = self.gap = ""
        self._archive: Archive | None = None
        self._begun: set[Branch] = set()
        self._place = self._first_place()
        self._caught_up_s = time.monotonic()
        self._back_off_s, self._next_s = BACK_OFF_S_MIN, 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="vecstore-archiver", daemon=True)

    def start(self) -> None:
        """Begin to ship."""
        self._thread.start()

    def close(self) -> None:
        """Stop; what is durable by now is shipped first, unless the repository was out of reach."""
        self._stop.set()
        self._thread.join()
        if not self.problem and not self._is_stopped:
            self._try()

    @property
    def lsn(self) -> int:
        """Every record up to it is in the archive."""
        return self._place.lsn

    @property
    def lag_s(self) -> float:
        """For how long the oldest record that is not archived has waited."""
        return 0.0 if self._engine.durable_lsn <= self.lsn else time.monotonic() - self._caught_up_s

    def status(self) -> dict[str, Any]:
        """Return what there is to know, as plain values."""
        tip = self._engine.state.fold.tip
        return {
            "repository": self.where,
            "lsn": self.lsn,
            "lag_records": max(0, self._engine.durable_lsn - self.lsn),
            "lag_bytes": max(0, tip.log_bytes - self._place.log_bytes),
            "lag_s": self.lag_s,
            "problem": self.problem,
            "gap": self.gap,
        }

    # -- the loop ----------------------------------------------------------------------------------------------------

    def _loop(self) -> None:
        from ..backup.repository import yield_to_others

        yield_to_others()
        interval_s = self._engine.config.archive_interval_s
        while not self._stop.wait(min(POLL_S_MAX, interval_s / 4)):
            if self._is_stopped:
                return
            now_s = time.monotonic()
            if self._archive is not None and self._engine.durable_lsn <= self.lsn:
                self._caught_up_s = now_s
                self._say()
                continue
            waited_s = now_s - self._caught_up_s
            full = self._engine.state.fold.tip.log_bytes - self._place.log_bytes >= RANGE_BYTES
            if now_s >= self._next_s and (self._archive is None or full or waited_s >= interval_s / 2):
                self._try()
            self._say()

    @property
    def _is_stopped(self) -> bool:
        committer = self._engine.committer
        return committer is None or committer.broken is not None

    def _try(self) -> None:
        """Ship what waits; after an error, wait longer before the next try."""
        metrics = self._engine.metrics
        try:
            archive = self._connected()
            self._ship(archive)
        except Closed:
            return
        except (VecstoreError, OSError) as exc:
            self.problem = str(exc)
            metrics.archive_failures.inc()
            self._next_s = time.monotonic() + self._back_off_s
            self._back_off_s = min(2 * self._back_off_s, BACK_OFF_S_MAX)
            # Where the archive is may have changed: it is looked for again.
            self._archive = None
            return
        self.problem = ""
        self._back_off_s = BACK_OFF_S_MIN

    def _say(self) -> None:
        metrics, found = self._engine.metrics, self.status()
        metrics.archive_lsn.set(found["lsn"])
        metrics.archive_lag_records.set(found["lag_records"])
        metrics.archive_lag_bytes.set(found["lag_bytes"])
        metrics.archive_lag_s.set(found["lag_s"])

    # -- where it is -------------------------------------------------------------------------------------------------

    def _first_place(self) -> Slot:
        """Return the slot, or begin one at the start of the log, before any of it is cut.

        One that is ahead of the log is of records that were lost since.
        """
        engine = self._engine
        held = engine.slots.held.get(SLOT_NAME)
        if held is not None and held.consumer == self.where and held.lsn <= engine.durable_lsn:
            return held
        assert engine.checkpointer is not None
        lsn = min(engine.checkpointer.log_start - 1, engine.durable_lsn)
        place = Slot(SLOT_NAME, self.where, lsn, self._chain_at(lsn).hex(), self._bytes_at(lsn))
        engine.slots.set(place)
        return place

    def _connected(self) -> Archive:
        """Return the archive, after a look at how far it is."""
        if self._archive is not None:
            return self._archive
        from ..backup.archive import Archive
        from ..backup.layout import Branch
        from ..backup.repository import Repository

        repository = Repository(self.where, create=True, retry_s_max=RETRY_S_MAX)
        archive = Archive(repository, self._engine.lineage.hex())
        epochs = list(self._engine.state.fold.epochs)
        branches = {Branch(epoch.number, epoch.writer): i for i, epoch in enumerate(epochs)}
        ranges = {branch: archive.ranges(branch) for branch in branches}
        self._find_place(epochs, ranges)
        self._archive = archive
        return archive

    def _find_place(self, epochs: list[Epoch], ranges: dict[Branch, list[RangeName]]) -> None:
        from ..backup.plan import limit, reached

        engine = self._engine
        assert engine.checkpointer is not None
        on_path = [r for branch, held in ranges.items() for r in held if r.first <= (limit(epochs, branch) or 0)]
        self._compare(epochs, ranges)
        start = engine.checkpointer.log_start - 1
        lsn = reached(epochs, ranges, start)
        self.gap = ""
        covered = any(r.first <= start <= r.last for r in on_path) or start == 0 or lsn > start
        if not covered:
            newest = max((r.last for r in on_path), default=0)
            self.gap = f"records {newest + 1} to {start} are not in the archive: only a snapshot after them leads on"
        self._move(lsn)

    def _compare(self, epochs: list[Epoch], ranges: dict[Branch, list[RangeName]]) -> None:
        """Refuse to go on where the archive holds another history under our own epoch."""
        from ..backup.layout import Branch

        engine = self._engine
        mine = Branch(epochs[-1].number, epochs[-1].writer)
        for found in ranges.get(mine, [])[-CHAINS_COMPARED:]:
            held = engine.history.chain_at(found.last)
            if found.last > engine.state.fold.tip.lsn or (held is not None and held.hex() != found.chain):
                raise Damaged(
                    f"archive: {self.where} holds other records under epoch {mine.number} than this store, up to LSN "
                    f"{found.last}",
                    hint="this store lost records that were archived, or is a copy: restore it with --in-place instead",
                    details={"lsn": found.last},
                )

    def _move(self, lsn: int) -> None:
        if lsn != self._place.lsn:
            place = Slot(SLOT_NAME, self.where, lsn, self._chain_at(lsn).hex(), self._bytes_at(lsn))
            self._engine.slots.set(place)
            self._place = place

    def _record_at(self, lsn: int) -> Record | None:
        for record in LogReader(self._engine.store).records(lsn - 1):
            return record if record.lsn == lsn else None
        return None

    def _chain_at(self, lsn: int) -> bytes:
        """Return the chain after a record, empty where the store does not know it any more."""
        engine = self._engine
        if lsn == 0:
            return chain_seed(engine.lineage)
        tip = engine.state.fold.tip
        if lsn == tip.lsn:
            return tip.chain
        assert engine.checkpointer is not None
        for entry in list(engine.checkpointer.entries):
            if entry.lsn == lsn:
                return bytes.fromhex(entry.chain)
        for slot in engine.slots.held.values():
            if slot.lsn == lsn and slot.chain:
                return bytes.fromhex(slot.chain)
        (mark,) = engine.store.get(Family.META, [catalog.numbered(catalog.CHAIN, lsn)])
        record = None if mark is not None else self._record_at(lsn)
        return mark or (record.mark.chain if record is not None else b"")

    def _bytes_at(self, lsn: int) -> int:
        record = self._record_at(lsn + 1)
        return record.header.log_bytes if record is not None else self._engine.state.fold.tip.log_bytes

    # -- shipping ----------------------------------------------------------------------------------------------------

    def _ship(self, archive: Archive) -> None:
        """Ship the records that are durable by now, range by range."""
        durable = self._engine.durable_lsn
        chain = self._chain_at(self.lsn)
        group: list[Record] = []
        size = 0
        for record in LogReader(self._engine.store).records(self.lsn):
            if record.lsn > durable:
                break
            if record.lsn != self.lsn + len(group) + 1:
                self._archive = None
                raise Damaged(f"archive: record {self.lsn + len(group) + 1} was cut before it was archived")
            if not chain:
                # Its predecessor's chain is gone with it: the archive begins one record later.
                chain = record.mark.chain
                self._move(record.lsn)
                continue
            if group and (size + record.size > RANGE_BYTES or record.header.epoch != group[-1].header.epoch):
                chain = self._put(archive, group, chain)
                group, size = [], 0
            group.append(record)
            size += record.size
        if group:
            self._put(archive, group, chain)

    def _put(self, archive: Archive, group: list[Record], chain: bytes) -> bytes:
        from ..backup.layout import Branch
        from ..backup.manifest import BranchHead

        engine = self._engine
        epochs = list(engine.state.fold.epochs)
        number = group[0].header.epoch
        place = max(i for i, epoch in enumerate(epochs) if epoch.number == number)
        branch = Branch(number, epochs[place].writer)
        if branch not in self._begun:
            (held,) = engine.store.get(Family.META, [catalog.LINEAGE])
            assert held is not None
            lineage, secret = held[:16].hex(), held[16:].hex()
            archive.begin(BranchHead(lineage=lineage, epochs=epochs[: place + 1], secret=secret))
            self._begun.add(branch)
        last = group[-1]
        engine.metrics.archived_bytes.inc(archive.put(branch, group, chain))
        place_now = Slot(SLOT_NAME, self.where, last.lsn, last.mark.chain.hex(), last.header.log_bytes + last.size)
        engine.slots.set(place_now)
        self._place = place_now
        assert TOKEN_CHAIN_BYTES == 8, "names of ranges carry as much of the chain as the history remembers"
        return last.mark.chain
