"""Taking a store back to a fork: the log behind it goes, and the points that it touched become another store's.

What is known of the history goes with the records that made it: epochs, marks, request ids, checkpoints, a handover.
The window of request ids becomes that of the fork again, as far as the log holds it. Touched points are as the other
store read them, at an LSN beyond the fork: collections that it wrote between are right only once its records up to
there were appended, and until then their rows, points and digests are not each other's. All others are as at the fork.

All of it is done on a linked copy, which is then put in place: the reset is all or nothing, and may be repeated.
"""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import msgspec

from ...config import REQUEST_WINDOW_S
from ...errors import Damaged, InvalidArgument, Unavailable
from ...record import DIGEST_MODULUS, NO_REQUEST, Header, Kind, Record, chain_seed, log_key, log_key_lsn, point_key
from ...storage import catalog
from ...storage.base import Family
from ...storage.catalog import CollectionState, Epoch, Tip
from ...storage.directory import StoreDirectory
from ...storage.fold import Fold
from ...storage.rocks import RocksStore
from ...storage.swap import PREPARED, swap, sync_tree
from ..recovery import LogReader
from ..slots import Slot
from .points import read_points
from .prepared import open_families, record_witness

__all__ = ["reset"]

META = Family.META
_POINTS_AT_ONCE = 512
_REQUEST = struct.Struct("<QqQ")
_U64 = struct.Struct("<Q")
_LAST_KEY = b"\xff" * 13
_UNDONE = {Kind.UPSERT, Kind.DELETE, Kind.EPOCH, Kind.HANDOVER}


def reset(path: str, fork_lsn: int, points: str, replication: bytes, chain: bytes | None = None) -> Tip:
    """Make the fork the end of the log, and set the points of a file; return the tip.

    Parameters
    ----------
    points
        The file of points, as `Outgoing.take_points` makes it: all that records behind the fork touched.
    replication
        What the store is in the replication from now on.
    chain
        At the fork, for where neither log, marks nor checkpoints know it any more.

    Raises
    ------
    InvalidArgument
        Records behind the fork are about more than points: only other contents undo that. The store is as it was.
    Damaged
        The fork is not in the log, or the file of points is not whole. The store is as it was.
    """
    directory = StoreDirectory.open(path, create=False, read_only=False)
    try:
        prepared = os.path.join(directory.path, PREPARED)
        _link(directory.path, prepared)
        store = open_families(prepared)
        try:
            tip = _Reset(store, fork_lsn, chain).run(points, replication)
            store.flush()
            store.sync()
        finally:
            store.close()
        record_witness(prepared, tip)
        sync_tree(prepared)
        swap(directory.path)
        return tip
    finally:
        directory.close()


def _link(path: str, prepared: str) -> None:
    """Link the contents of a closed store."""
    shutil.rmtree(prepared, ignore_errors=True)
    os.makedirs(os.path.join(prepared, "index"))
    store = open_families(path)
    try:
        store.flush()
        store.checkpoint(os.path.join(prepared, "rocks"))
    finally:
        store.close()
    for name in os.listdir(os.path.join(path, "index")):
        os.link(os.path.join(path, "index", name), os.path.join(prepared, "index", name))


class _Reset:
    """One reset's work on the families."""

    def __init__(self, store: RocksStore, fork_lsn: int, chain: bytes | None) -> None:
        self._store, self._fork_lsn, self._chain = store, fork_lsn, chain
        (lineage,) = store.get(META, [catalog.LINEAGE])
        if lineage is None:
            raise Damaged("the store has no place in a history")
        self._lineage = lineage[:16]
        self._fold = Fold(store, self._lineage)

    def run(self, points: str, replication: bytes) -> Tip:
        """Do it; nothing is durable yet."""
        store, fork = self._store, self._fork_lsn
        log, tip = LogReader(store), self._fold.tip
        if fork > tip.lsn:
            raise Damaged(f"the fork at LSN {fork} is above the end of the log, {tip.lsn}")
        last = tip.lsn
        for record in log.records(fork):
            if record.header.kind not in _UNDONE:
                raise InvalidArgument(
                    f"record {record.lsn} behind the fork is about more than points ({record.header.kind.name})",
                    hint="install a snapshot instead",
                )
            last = record.lsn
        if last != tip.lsn:
            raise Unavailable(f"record {last} of the log was not applied to LSN {tip.lsn} yet", hint="open it once")
        at_fork = self._tip(log, next(log.records(fork), None))
        self._set_points(points)
        store.delete_range(Family.LOG, log_key(fork + 1), _LAST_KEY)
        self._forget()
        self._restore_requests(log, at_fork)
        store.write([(META, catalog.APPLIED, at_fork.encode()), (META, catalog.REPLICATION, replication)])
        return at_fork

    def _tip(self, log: LogReader, after: Record | None) -> Tip:
        """Return the end of the log at the fork: from its record, else from what else knows it."""
        fork = self._fork_lsn
        if fork == self._fold.tip.lsn:
            return self._fold.tip
        if fork == 0:
            return Tip(0, 0, chain_seed(self._lineage), 0, 0)
        record = next(log.records(fork - 1), None)
        if record is not None and record.lsn == fork:
            header = record.header
            return Tip(fork, header.epoch, record.mark.chain, header.commit_time_us, header.log_bytes + record.size)
        chain = self._chain or self._known_chain()
        if chain is None or after is None or after.lsn != fork + 1:
            raise Damaged(f"nothing knows the log's chain at LSN {fork} any more", hint="install a snapshot instead")
        epoch = max((epoch.number for epoch in self._fold.epochs if epoch.fork_lsn < fork), default=0)
        return Tip(fork, epoch, chain, after.header.commit_time_us, after.header.log_bytes)

    def _known_chain(self) -> bytes | None:
        fork = self._fork_lsn
        keys = [catalog.numbered(prefix, fork) for prefix in (catalog.CHAIN, catalog.CHECKPOINT)]
        mark, checkpoint = self._store.get(META, keys)
        if mark is not None or checkpoint is None:
            return mark
        return bytes.fromhex(msgspec.json.decode(checkpoint)["chain"])

    def _set_points(self, points: str) -> None:
        """Set the touched points, and the digests and counts that result."""
        store, states = self._store, dict(self._fold.collections)
        rest = read_points(points)
        while some := list(islice(rest, _POINTS_AT_ONCE)):
            places = [point_key(number, key) for number, key, _ in some]
            batch: list[tuple[Family, bytes, bytes | None]] = []
            for (number, _, value), place, old in zip(some, places, store.get(Family.POINTS, places), strict=True):
                state = states.get(number)
                if state is None:
                    raise Damaged(
                        f"points of collection {number}, which is not here", hint="install a snapshot instead"
                    )
                new = None if value is None else self._stamped(value)
                states[number] = _changed(state, old, new)
                batch.append((Family.POINTS, place, new))
            changed = {number for number, _, _ in some}
            batch += [(META, catalog.numbered(catalog.DIGEST, n), states[n].encode_digest()) for n in changed]
            store.write(batch)

    def _stamped(self, value: bytes) -> bytes:
        """Return a point's value with an LSN that is not above the fork: the record that wrote it is still to come."""
        lsn: int = _U64.unpack_from(value)[0]
        return _U64.pack(min(lsn, self._fork_lsn)) + value[_U64.size :]

    def _forget(self) -> None:
        """Forget what records behind the fork made known."""
        fork, gone = self._fork_lsn, list[tuple[Family, bytes, bytes | None]]()
        for prefix in (catalog.CHAIN, catalog.CHECKPOINT):
            keys = [key for key, _ in self._scan(prefix) if catalog.number_of(prefix, key) > fork]
            gone += [(META, key, None) for key in keys]
        for key, value in self._scan(catalog.EPOCH):
            if msgspec.json.decode(value, type=Epoch).fork_lsn >= fork:
                gone.append((META, key, None))
        for key, value in self._scan(catalog.SLOT):
            # What an archive has beyond is of another history: it looks anew at what it has.
            if msgspec.json.decode(value, type=Slot).lsn > fork:
                gone.append((META, key, None))
        (handover,) = self._store.get(META, [catalog.HANDOVER])
        if handover is not None and msgspec.json.decode(handover, type=tuple[int, str])[0] > fork:
            gone.append((META, catalog.HANDOVER, None))
        found = self._store.scan(Family.REQUESTS, b"")
        gone += [(Family.REQUESTS, key, None) for key, value in found if _REQUEST.unpack(value)[0] > fork]
        self._store.write(gone)

    def _restore_requests(self, log: LogReader, tip: Tip) -> None:
        """Put back the request ids that were in the window at the fork, and a handover that is its record."""
        horizon_us = tip.commit_time_us - int(REQUEST_WINDOW_S * 1e6)
        back: list[tuple[Family, bytes, bytes | None]] = []
        for header in self._headers():
            if header.request_id != NO_REQUEST and header.commit_time_us >= horizon_us:
                entry = _REQUEST.pack(header.lsn, header.commit_time_us, header.count)
                back.append((Family.REQUESTS, header.request_id, entry))
        last = next(log.records(tip.lsn - 1), None) if tip.lsn else None
        if last is not None and last.header.kind == Kind.HANDOVER:
            target = msgspec.json.decode(last.body, type=dict[str, str])["to"]
            back.append((META, catalog.HANDOVER, msgspec.json.encode((tip.lsn, target))))
        self._store.write(back)

    def _headers(self) -> Iterator[Header]:
        for key, value in self._store.scan(Family.LOG, log_key(0), log_key(self._fork_lsn + 1)):
            if log_key_lsn(key)[1] == 0:
                yield Header.decode(value)

    def _scan(self, prefix: bytes) -> list[tuple[bytes, bytes]]:
        return list(self._store.scan(META, prefix, prefix[:-1] + b"0"))


def _changed(state: CollectionState, old: bytes | None, new: bytes | None) -> CollectionState:
    """Return a collection's state after one stored point became another."""
    hashes = [0 if value is None else int.from_bytes(value[8:24], "big") for value in (old, new)]
    digest = (state.digest - hashes[0] + hashes[1]) % DIGEST_MODULUS
    return replace(state, digest=digest, points=state.points - (old is not None) + (new is not None))
