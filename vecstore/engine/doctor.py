"""The doctor: says what is wrong with a store that does not open, and opens one that has lost records for good.

`diagnose` looks and changes nothing. `accept_loss` is a decision of a human: it keeps what can be proven, drops the
rest of the log, and begins a new epoch, so that no one takes the shortened history for the old one.
"""

from __future__ import annotations

import os
from typing import Any

from ..clock import CommitClock, SystemClock
from ..config import Config
from ..errors import Damaged, InvalidArgument, NotFound
from ..record import Kind, is_of_newer, log_key
from ..storage import catalog
from ..storage.base import Family, KeyValueStore
from ..storage.catalog import Epoch
from ..storage.directory import StoreDirectory
from ..storage.fold import Fold
from ..storage.witness import Witness, WitnessMark
from .kept import kept
from .recovery import LogReader, open_storage, recover

__all__ = ["accept_loss", "diagnose"]


def diagnose(path: str) -> dict[str, Any]:
    """Say whether a store opens, and what is wrong with it.

    Returns
    -------
    dict
        ``ok``, ``problem`` and ``hint`` (empty where all is well), ``findings`` (what an open would mend), ``details``,
        ``kept`` (what the folder holds beside the store: see `kept.kept`).
    """
    directory = StoreDirectory.open(path, create=False, read_only=True)
    return {**_diagnose(directory), "kept": kept(directory.path)}


def _diagnose(directory: StoreDirectory) -> dict[str, Any]:
    config = Config.load({})
    try:
        store, findings = open_storage(directory, config, read_only=True)
    except Damaged as exc:
        return _diagnosis(exc, [])
    try:
        recovered = recover(store, directory, _witness_mark(directory, store), config, read_only=True)
    except Damaged as exc:
        return _diagnosis(exc, findings)
    finally:
        store.close()
        directory.close()
    return {"ok": True, "problem": "", "hint": "", "findings": findings + recovered.findings, "details": {}}


def _diagnosis(exc: Damaged, findings: list[str]) -> dict[str, Any]:
    return {"ok": False, "problem": exc.args[0], "hint": exc.hint, "findings": findings, "details": exc.details}


def _witness_mark(directory: StoreDirectory, store: KeyValueStore) -> WitnessMark | None:
    try:
        witness = Witness.open(directory.witness, create=False)
    except NotFound:
        if store.get(Family.META, [catalog.APPLIED])[0] is None:
            return None
        raise Damaged("the witness is missing", details={"file": "witness"}) from None
    try:
        return witness.read()
    finally:
        witness.close()


def accept_loss(path: str) -> dict[str, Any]:
    """Cut the log where it can no longer be proven, and begin a new epoch there.

    Returns
    -------
    dict
        ``lsn`` that the store is at now, ``epoch``, ``dropped`` (LSNs of records that were dropped), ``lost`` (first
        and last LSN that the witness knew of and that are gone, None where none are).

    Raises
    ------
    Damaged
        Nothing is left to open: the store must be restored.
    InvalidArgument
        The log goes on with records of a newer version: nothing is damaged, and nothing was dropped.
    """
    directory = StoreDirectory.open(path, create=False, read_only=False)
    try:
        config = Config.load({})
        store, _ = open_storage(directory, config, read_only=False)
        try:
            return _cut(store, directory, config)
        finally:
            store.close()
    finally:
        directory.close()


def _cut(store: KeyValueStore, directory: StoreDirectory, config: Config) -> dict[str, Any]:
    (lineage,) = store.get(Family.META, [catalog.LINEAGE])
    if lineage is None:
        raise Damaged("nothing is left of this store: RocksDB is empty", hint="restore it from a copy")
    fold = Fold(store, lineage[:16])
    _read_log(store)
    _keep_provable(store, fold, config)
    dropped = _drop_rest(store, fold)
    store.flush()
    if not _is_whole(store, fold):
        _forget_log(store, fold)
    mark = _last_mark(directory)
    reached = fold.tip.lsn
    number = fold.tip.epoch + 1
    epoch = Epoch(number, os.urandom(8).hex(), reached, fold.tip.chain.hex())
    clock = SystemClock()
    times = (CommitClock(clock, fold.tip.commit_time_us).next_us(), clock.wall_us())
    staged = fold.stage(Kind.EPOCH, 0, epoch, time_us=times)
    store.write([(Family.LOG, key, value) for key, value in staged.record.chunks()])
    store.sync()
    for batch in fold.batches([staged], config.write_points_max):
        store.write(batch, logged=False)
    store.flush()
    _new_witness(directory, WitnessMark(fold.tip.lsn, fold.tip.chain, number))
    lost = None if mark is None or mark.lsn <= reached else [reached + 1, mark.lsn]
    return {"lsn": fold.tip.lsn, "epoch": number, "dropped": dropped, "lost": lost}


def _keep_provable(store: KeyValueStore, fold: Fold, config: Config) -> None:
    """Apply the records above the applied LSN, as far as they carry on its chain."""
    try:
        for record in LogReader(store).records(fold.tip.lsn):
            if not record.follows(fold.tip.lsn, fold.tip.chain):
                return
            staged = fold.restage(record, trust=True)
            for batch in fold.batches([staged], config.write_points_max):
                store.write(batch, logged=False)
            fold.settle()
    except Damaged:
        _refuse_newer(store, fold.tip.lsn, fold.tip.chain)


def _read_log(store: KeyValueStore) -> None:
    """Read the log up to where it cannot be read; refuse where that is because a newer version wrote on."""
    last, chain = 0, b""
    try:
        for record in LogReader(store).records(0):
            last, chain = record.lsn, record.mark.chain
    except Damaged:
        _refuse_newer(store, last, chain)


def _refuse_newer(store: KeyValueStore, lsn: int, chain: bytes) -> None:
    """Refuse to cut a log after an LSN if what follows there is sound, and only not known to this version."""
    try:
        data = b"".join(value for _, value in store.scan(Family.LOG, log_key(lsn + 1), log_key(lsn + 2)))
    except Damaged:
        return
    if is_of_newer(data, lsn, chain):
        raise InvalidArgument(
            f"path: record {lsn + 1} of the log is of a kind that this version of vecstore does not know: "
            "nothing is damaged, and nothing was dropped",
            hint="open it with a newer vecstore",
            details={"lsn": lsn + 1},
        )


def _drop_rest(store: KeyValueStore, fold: Fold) -> list[int]:
    """Remove what stands in the log above the tip; return the LSNs."""
    dropped: set[int] = set()
    try:
        for key, _ in store.scan(Family.LOG, log_key(fold.tip.lsn + 1)):
            dropped.add(int.from_bytes(key[:8], "big"))
    except Damaged:
        pass
    store.delete_range(Family.LOG, log_key(fold.tip.lsn + 1), b"\xff" * 12)
    return sorted(dropped)


def _is_whole(store: KeyValueStore, fold: Fold) -> bool:
    """Whether the log that is left is dense, on one chain, and ends at the tip."""
    last, chain = 0, b""
    try:
        for record in LogReader(store).records(0):
            if last and not record.follows(last, chain):
                return False
            last, chain = record.lsn, record.mark.chain
    except Damaged:
        return False
    return last in (0, fold.tip.lsn)


def _forget_log(store: KeyValueStore, fold: Fold) -> None:
    """Remove a log that cannot be folded, with the checkpoints that would need it: rows come from the points then."""
    store.delete_range(Family.LOG, log_key(0), log_key(fold.tip.lsn + 1))
    entries = [key for key, _ in store.scan(Family.META, catalog.CHECKPOINT, catalog.CHECKPOINT[:-1] + b"0")]
    store.write([(Family.META, key, None) for key in entries])


def _last_mark(directory: StoreDirectory) -> WitnessMark | None:
    try:
        witness = Witness.open(directory.witness, create=False)
    except (NotFound, Damaged):
        return None
    try:
        return witness.read()
    finally:
        witness.close()


def _new_witness(directory: StoreDirectory, mark: WitnessMark) -> None:
    """Begin a witness anew."""
    if os.path.exists(directory.witness):
        os.unlink(directory.witness)
    witness = Witness.open(directory.witness, create=True)
    try:
        witness.record(mark)
        witness.sync()
    finally:
        witness.close()
