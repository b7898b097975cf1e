"""Restoring: a snapshot's files, the archive's records on top, the digest proven, and only then a store.

The folder is marked as being restored before anything else is put there, and gets its format file last: until then no
open takes it for a store. A restore that was cut short is done again in the same folder: files that came whole are
kept, for each is compared with its checksum; RocksDB's are brought back to what the snapshot says.

The result is of a lineage of its own: LSNs are kept, and its chain at the snapshot's LSN is seeded with both lineages,
so nobody can take it for its source. In place, for a lost primary, the lineage stays, and a new epoch begins.

Records bypass RocksDB's write-ahead log: a restore that is cut short begins again anyway. No engine is needed:
`storage/fold.py` folds the records, and the digests are recomputed from the bytes of the points.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

from ..clock import CommitClock, SystemClock
from ..config import MIB
from ..errors import AlreadyExists, Damaged, InvalidArgument, Locked
from ..record import Kind, Mark, Record, chain_seed, next_chain
from ..storage import catalog
from ..storage.base import Family
from ..storage.catalog import Epoch, Tip
from ..storage.directory import RESTORING_FILE, complete, is_store
from ..storage.fold import Fold
from ..storage.lineage import rebase
from ..storage.proof import prove
from ..storage.reads import this_version
from ..storage.rocks import RocksStore, open_store
from ..storage.witness import Witness, WitnessMark
from . import layout
from .archive import Archive
from .catalogue import choose_lineage
from .layout import Branch
from .manifest import BranchHead, Manifest, branch_of, decode
from .moment import check_moment, telling
from .plan import Lineage, Plan, Step, Target, choose_history, cover, plan_restore
from .repository import Repository
from .transfer import Progress, download, make_durable

__all__ = ["Restored", "restore"]

GROUP_BYTES_MAX = 4 * MIB
WRITE_POINTS = 512
AHEAD = 2
"""Ranges that are fetched while one is folded."""
WRITE_BUFFER_BYTES = 64 * MIB


@dataclass(slots=True)
class Restored:
    """What was restored.

    Attributes
    ----------
    id
        Of the snapshot that it began with; empty where the archive alone led there.
    lsn, time_us
        The last record of the source that is in it, and its commit time.
    lineage, epoch
        Of the restored store, which in place is one record further: the one that begins its epoch.
    bytes_read
        From the repository.
    records
        Applied from the archive.
    digests
        Of each collection, recomputed from the bytes: digest (hex) and points by name.
    """

    id: str
    lsn: int
    time_us: int
    lineage: str
    epoch: int
    bytes_read: int = 0
    records: int = 0
    digests: dict[str, tuple[str, int]] = field(default_factory=dict)


def restore(
    repository: Repository,
    path: str,
    target: Target,
    *,
    in_place: bool = False,
    snapshot: str = "",
    standby: bytes | None = None,
    progress: Progress | None = None,
) -> Restored:
    """Make a store of what a repository holds, as it was at a target.

    Parameters
    ----------
    path
        A new or empty folder, or one in which a restore was cut short.
    in_place
        Keep the lineage and begin a new epoch: for a primary that is lost for good.
    snapshot
        The id of the snapshot to begin with, instead of the newest that is not after the target.
    standby
        Keep the lineage, begin no epoch: what the store is in the replication, of one that will follow a primary.

    Raises
    ------
    AlreadyExists
        Something is at the path; it is left untouched.
    Damaged
        Files or ranges are missing or not what was written, or the digest is not the source's. The folder is no store.
    NotFound, InvalidArgument
        The target is out of reach, or a time that names two states, or the repository holds several lineages or
        branches and none was named; or the snapshot is of a newer version that this one can't read.
    """
    lineage = choose_lineage(repository)
    plan = plan_restore(lineage, choose_history(lineage, repository.branch), target, snapshot)
    path = os.path.abspath(path)
    if plan.base is not None:
        _check_version(plan.base)
    with _marked(path):
        bytes_read = _bring_files(repository, plan, path, progress)
        store = open_store(
            os.path.join(path, "rocks"), write_buffer_bytes=WRITE_BUFFER_BYTES, wal_bytes_max=256 * MIB, strict=True
        )
        try:
            restored, tip = _Fold(repository, lineage, plan, store, in_place=in_place, standby=standby).run()
        finally:
            store.close()
        restored.bytes_read += bytes_read
        _record_witness(path, tip)
        complete(path)
    return restored


def _check_version(base: Manifest) -> None:
    """Refuse a snapshot of a newer version: records say so by themselves, and what they have become does not."""
    reads = this_version()
    if not reads.covers(base.needs):
        raise InvalidArgument(
            f"repository: snapshot {base.id} is of {base.needs}, and this version of vecstore reads {reads}; "
            "nothing was written",
            hint=f"use a newer vecstore: {base.written_by or 'the one'} that made the snapshot, or a later one",
            details={"snapshot": base.id, "needs": str(base.needs), "reads": str(reads)},
        )


# -- the folder ------------------------------------------------------------------------------------------------------


@contextmanager
def _marked(path: str) -> Iterator[None]:
    """Hold a folder for one restore: marked as such, and locked."""
    if os.path.lexists(path) and not os.path.isdir(path):
        raise AlreadyExists(f"path: {path} is there and no folder", hint="give a new or empty folder")
    marker = os.path.join(path, RESTORING_FILE)
    if os.path.isdir(path) and os.listdir(path) and not os.path.exists(marker):
        what = "a store" if is_store(path) else "not empty"
        raise AlreadyExists(
            f"path: {path} is {what}; it was left untouched",
            hint="give a new or empty folder",
            details={"path": path},
        )
    if os.path.isdir(path) and is_store(path):
        raise AlreadyExists(f"path: {path} was restored already", hint="give a new or empty folder")
    os.makedirs(path, exist_ok=True)
    fd = os.open(marker, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise Locked(f"path: another restore into {path} is under way", details={"path": path}) from exc
        os.fsync(fd)
        make_durable(path)
        make_durable(os.path.dirname(path))
        yield
    finally:
        os.close(fd)


def _bring_files(repository: Repository, plan: Plan, path: str, progress: Progress | None) -> int:
    """Bring the snapshot's files, and remove all others that a restore before left."""
    base = plan.base
    wanted = {file.path for file in base.files} if base is not None else set()
    for part in ("rocks", "index", "quarantine"):
        folder = os.path.join(path, part)
        os.makedirs(folder, exist_ok=True)
        for name in os.listdir(folder):
            if f"{part}/{name}" not in wanted:
                os.unlink(os.path.join(folder, name))
    if os.path.exists(os.path.join(path, "witness")):
        os.unlink(os.path.join(path, "witness"))
    if base is None:
        return 0
    for file in base.files:
        if file.path.split("/")[0] not in ("rocks", "index") or os.path.normpath(file.path) != file.path:
            raise Damaged(f"repository: snapshot {base.id} names a file out of place: {file.path!r}")
    return download(repository, base.files, path, progress)


def _record_witness(path: str, tip: Tip) -> None:
    witness = Witness.open(os.path.join(path, "witness"), create=True)
    try:
        if tip.lsn:
            witness.record(WitnessMark(tip.lsn, tip.chain, tip.epoch))
        witness.sync()
    finally:
        witness.close()


# -- the records -----------------------------------------------------------------------------------------------------


class _Fold:
    """One restore's work on RocksDB: give it its lineage, fold the archive, prove the digests."""

    def __init__(
        self,
        repository: Repository,
        lineage: Lineage,
        plan: Plan,
        store: RocksStore,
        *,
        in_place: bool,
        standby: bytes | None,
    ) -> None:
        self._plan, self._store, self._source = plan, store, lineage
        self._in_place, self._standby = in_place or standby is not None, standby
        self._archive = Archive(repository, lineage.name)
        self._repository = repository
        self._secret = self._new_lineage()
        self._source_chain = bytes.fromhex(plan.base.chain) if plan.base is not None else b""
        self._group: list[Record] = []
        self._bytes = 0
        self._last: Record | None = None
        self._behind: list[Record] = []

    def run(self) -> tuple[Restored, Tip]:
        """Do it; return what was restored, and where the restored store's log ends."""
        base = self._plan.base
        if base is not None:
            self._check_base(base)
        checkpoint = base.checkpoint if base is not None else None
        rebase(self._store, self._secret, checkpoint, in_place=self._in_place, replication=self._standby)
        fold = Fold(self._store, self._secret[:16])
        start, bytes_read = fold.tip.lsn, 0
        for step, found, size in self._fetched():
            bytes_read += size
            if not self._apply(fold, step, found):
                break
        self._check_moment()
        self._write(fold)
        self._check_reached(fold.tip)
        restored = Restored(
            base.id if base is not None else "",
            fold.tip.lsn,
            fold.tip.commit_time_us,
            self._secret[:16].hex(),
            fold.tip.epoch,
            bytes_read,
            fold.tip.lsn - start,
        )
        if self._in_place and self._standby is None:
            restored.epoch = self._begin_epoch(fold)
        self._store.sync()
        self._store.flush()
        for state in fold.collections.values():
            prove(self._store, state)
            restored.digests[state.definition.name] = (state.digest.to_bytes(16, "big").hex(), state.points)
        return restored, fold.tip

    def _new_lineage(self) -> bytes:
        """Return lineage and secret of the store that is made: new ones, or in place those of its source."""
        if not self._in_place:
            return os.urandom(16) + os.urandom(32)
        if self._plan.base is not None:
            (held,) = self._store.get(Family.META, [catalog.LINEAGE])
            assert held is not None, "a snapshot has a lineage"
            return held
        name = layout.epoch_name(self._source.name, branch_of(self._plan.history))
        head = decode(self._repository.read(name), BranchHead, name)
        return bytes.fromhex(head.lineage) + bytes.fromhex(head.secret)

    def _check_base(self, base: Manifest) -> None:
        """The families must be those of the manifest: it is what the checksums of the files cannot say."""
        lineage, applied = self._store.get(Family.META, [catalog.LINEAGE, catalog.APPLIED])
        tip = Tip.decode(applied) if applied is not None else None
        if lineage is None or lineage[:16].hex() != base.lineage:
            raise Damaged(f"repository: the files of snapshot {base.id} are of another lineage")
        if tip is None or (tip.lsn, tip.chain.hex()) != (base.lsn, base.chain):
            raise Damaged(f"repository: the files of snapshot {base.id} are not those of LSN {base.lsn}")

    def _fetched(self) -> Iterator[tuple[Step, list[Record], int]]:
        """Yield the plan's ranges, the next ones on their way meanwhile."""
        steps = self._plan.steps
        with ThreadPoolExecutor(AHEAD, thread_name_prefix="vecstore-restore") as pool:
            waiting = [pool.submit(self._archive.read, s.branch, s.range) for s in steps[:AHEAD]]
            for i, step in enumerate(steps):
                found = waiting.pop(0).result()
                if i + AHEAD < len(steps):
                    later = steps[i + AHEAD]
                    waiting.append(pool.submit(self._archive.read, later.branch, later.range))
                yield step, found.records, found.trailer.bytes

    def _apply(self, fold: Fold, step: Step, records: list[Record]) -> bool:
        """Fold the records of a range; False once the target is reached."""
        target = self._plan.target
        for i, record in enumerate(records):
            lsn = record.lsn
            if lsn <= fold.tip.lsn + len(self._group):
                continue
            if lsn > step.last or (target.lsn is not None and lsn > target.lsn):
                return lsn > step.last and (target.lsn is None or lsn <= target.lsn)
            if target.time_us is not None and record.header.commit_time_us > target.time_us:
                self._behind = [later for later in records[i:] if later.lsn <= step.last]
                return False
            if not record.follows(lsn - 1, self._chain_before(record, step.branch)):
                raise Damaged(f"repository: record {lsn} does not follow the one before", details={"lsn": lsn})
            self._source_chain = record.mark.chain
            self._last = record
            self._take(fold, record)
        return True

    def _check_moment(self) -> None:
        """Refuse a time that names two states, before anything of it is a store."""
        plan = self._plan
        if plan.target.time_us is None:
            return
        end, end_us = (plan.base.lsn, plan.base.commit_time_us) if plan.base is not None else (0, 0)
        if plan.steps:
            end, end_us = plan.steps[-1].last, plan.steps[-1].range.last_us
        later = telling(cover(plan.history, self._source.ranges, end), end_us)
        behind = [record for step in later for record in self._archive.read(step.branch, step.range).records]
        last = None if self._last is None else self._last.header
        check_moment(plan.target.time_us, last, (record.header for record in (*self._behind, *behind)))

    def _chain_before(self, record: Record, branch: Branch) -> bytes:
        if self._source_chain:
            return self._source_chain
        if record.lsn != 1:
            raise Damaged(f"repository: the archive begins with record {record.lsn}", details={"branch": str(branch)})
        return chain_seed(bytes.fromhex(self._source.name))

    def _take(self, fold: Fold, record: Record) -> None:
        """Add a record to the group that is written together; one that is not about points is written alone."""
        alone = record.header.kind not in (Kind.UPSERT, Kind.DELETE)
        if alone:
            self._write(fold)
        self._group.append(record)
        self._bytes += record.size
        if alone or self._bytes >= GROUP_BYTES_MAX:
            self._write(fold)

    def _write(self, fold: Fold) -> None:
        """Fold a group: its log, so that rows come up from the checkpoint, and its points."""
        staged = []
        for record in self._group:
            body = record.parts
            chain = next_chain(fold.tip.chain, record.header.encode(), body)
            mine = Record(record.header, body, Mark(chain, record.mark.digest, record.mark.points))
            staged.append(fold.restage(mine))
            self._store.write([(Family.LOG, key, value) for key, value in mine.chunks()], logged=False)
        if staged:
            for batch in fold.batches(staged, WRITE_POINTS):
                self._store.write(batch, logged=False)
            fold.settle()
        self._group, self._bytes = [], 0

    def _check_reached(self, tip: Tip) -> None:
        wanted = self._plan.target.lsn
        if wanted is not None and tip.lsn != wanted:
            raise Damaged(f"repository: the archive led to LSN {tip.lsn}, not to {wanted}", details={"lsn": tip.lsn})

    def _begin_epoch(self, fold: Fold) -> int:
        """Write the record of an epoch above all that the repository knows of."""
        number = max([branch.number for branch in self._source.histories()] + [fold.tip.epoch]) + 1
        clock = SystemClock()
        epoch = Epoch(number, os.urandom(8).hex(), fold.tip.lsn, fold.tip.chain.hex())
        times = (CommitClock(clock, fold.tip.commit_time_us).next_us(), clock.wall_us())
        staged = fold.stage(Kind.EPOCH, 0, epoch, time_us=times)
        self._store.write([(Family.LOG, key, value) for key, value in staged.record.chunks()], logged=False)
        for batch in fold.batches([staged], WRITE_POINTS):
            self._store.write(batch, logged=False)
        fold.settle()
        return number
