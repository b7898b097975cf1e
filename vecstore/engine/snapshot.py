"""Snapshots of an open store: the state is made to stand still at one LSN, then uploaded beside writers.

At a barrier of the committer the families are flushed and their files linked into ``snapshot/`` in the store's folder;
the files of a checkpoint of the same LSN are linked beside. Links cost no space and keep the files, whatever the store
does meanwhile. What is left there by a process that died is removed by the next snapshot or open.
"""

from __future__ import annotations

import os
import shutil
import threading
import uuid
import weakref
from collections.abc import Iterable
from importlib import metadata

import msgspec

from ..backup.manifest import time_of
from ..backup.repository import Repository
from ..backup.snapshot import Checks, Source, write_snapshot
from ..backup.transfer import Progress, Throttle
from ..errors import NotPrimary
from ..storage.catalog import Epoch, Tip
from ..values import Snapshot
from .checkpoint import Entry
from .engine import Engine
from .kept import STAGING
from .view import View

__all__ = ["stand_still", "take_snapshot"]

_lock = threading.Lock()
_checks: weakref.WeakKeyDictionary[Engine, Checks] = weakref.WeakKeyDictionary()


def take_snapshot(engine: Engine, where: str, progress: Progress | None = None) -> Snapshot:
    """Write a snapshot of a store to a repository, which is made where there is none.

    Raises
    ------
    NotPrimary
        The store is open read-only.
    """
    if engine.checkpointer is None:
        raise NotPrimary("the store is open read-only", hint="open it with read_only=False, or let its server do it")
    repository = Repository(where, create=True)
    staging = os.path.join(engine.directory.path, STAGING)
    # One at a time: they would link the same files, and the second has little to upload after the first.
    with _lock, engine.metrics.snapshot_s.time():
        shutil.rmtree(staging, ignore_errors=True)
        folder = os.path.join(staging, uuid.uuid4().hex)
        os.makedirs(os.path.join(folder, "index"))
        try:
            source = stand_still(engine, folder)
            checks = _checks.setdefault(engine, {})
            throttle = Throttle(engine.config.upload_bytes_per_s_max, lambda: engine.gate.entered)
            manifest = write_snapshot(repository, source, checks, throttle, progress)
            engine.metrics.snapshot_bytes.inc(manifest.bytes_new)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return Snapshot(manifest.id, manifest.lsn, time_of(manifest.commit_time_us), manifest.bytes_new)


def stand_still(engine: Engine, folder: str) -> Source:
    """Link the files of a store at one LSN, all of it durable, into a folder that has an empty ``index/``."""
    checkpointer = engine.checkpointer
    assert checkpointer is not None
    if checkpointer.is_due:
        # Most of the work before the barrier: what is written while it goes on is little.
        checkpointer.take()
    # What is left for the barrier is what was written since.
    engine.store.flush_ahead()
    still = _Still(engine, folder)
    entry = checkpointer.take(still)
    view, tip = still.view, still.tip
    return Source(
        folder=folder,
        lineage=engine.lineage,
        epochs=still.epochs,
        lsn=tip.lsn,
        epoch=tip.epoch,
        chain=tip.chain,
        log_bytes=tip.log_bytes,
        commit_time_us=tip.commit_time_us,
        wall_time_us=engine.clock.wall_us(),
        checkpoint=(entry.file, entry.size, entry.check),
        collections={
            c.state.definition.name: (number, c.state.digest.to_bytes(16, "big").hex(), c.state.points)
            for number, c in view.collections.items()
        },
        config=msgspec.to_builtins(engine.config),
        written_by=_version(),
    )


def _version() -> str:
    try:
        return metadata.version("vecstore-db")
    except metadata.PackageNotFoundError:
        return ""


class _Still:
    """Links the files of one LSN into a folder."""

    view: View
    tip: Tip
    epochs: list[Epoch]

    def __init__(self, engine: Engine, folder: str) -> None:
        self._engine, self._folder = engine, folder

    def stand(self, view: View) -> None:
        """Link RocksDB's files. In the committer's thread."""
        engine = self._engine
        engine.store.flush()
        engine.store.checkpoint(os.path.join(self._folder, "rocks"))
        self.view, self.tip, self.epochs = view, engine.state.fold.tip, list(engine.state.fold.epochs)

    def keep(self, entry: Entry, names: Iterable[str]) -> None:
        """Link the files of rows and indexes."""
        for name in {entry.file, *names}:
            os.link(os.path.join(self._engine.directory.index, name), os.path.join(self._folder, "index", name))
