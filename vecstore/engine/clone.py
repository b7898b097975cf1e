"""A clone of an open store in a folder of its own: the same contents at one LSN, in a lineage of its own.

Its files are links, so it costs no space and little time; the store goes on, and neither sees what becomes of the
other. A clone shows nobody a claim that they could believe: it holds another lineage and another secret.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..backup.snapshot import Source
from ..config import MIB
from ..storage.catalog import Epoch
from ..storage.directory import RESTORING_FILE, complete
from ..storage.lineage import rebase
from ..storage.rocks import open_store
from ..storage.witness import Witness, WitnessMark
from .engine import Engine
from .snapshot import stand_still

__all__ = ["Clone", "take_clone"]

Replication = Callable[[bytes, bytes, Sequence[Epoch]], bytes | None]
"""Makes what the clone is in the replication, of its lineage, its secret and its epochs."""


@dataclass(frozen=True, slots=True)
class Clone:
    """A store that was cloned.

    Attributes
    ----------
    source
        The state that it was made of: LSN, chain, epochs, digests.
    bytes
        Of its files; they are links.
    """

    path: str
    source: Source
    bytes: int


def take_clone(engine: Engine, path: str, replication: Replication | None = None) -> Clone:
    """Make a store of the durable state of another in a new folder of the same file system.

    Raises
    ------
    OSError
        The folder is there, or links cannot be made in it.
    """
    os.makedirs(os.path.join(path, "index"))
    with open(os.path.join(path, RESTORING_FILE), "wb"):
        pass
    source = stand_still(engine, path)
    lineage, secret = os.urandom(16), os.urandom(32)
    store = open_store(os.path.join(path, "rocks"), write_buffer_bytes=MIB, wal_bytes_max=64 * MIB, strict=True)
    try:
        role = replication(lineage, secret, source.epochs) if replication is not None else None
        tip = rebase(store, lineage + secret, source.checkpoint, replication=role)
        store.sync()
    finally:
        store.close()
    assert tip is not None
    witness = Witness.open(os.path.join(path, "witness"), create=True)
    try:
        witness.record(WitnessMark(tip.lsn, tip.chain, tip.epoch))
        witness.sync()
    finally:
        witness.close()
    complete(path)
    return Clone(path, source, _size(path))


def _size(path: str) -> int:
    folders = [os.path.join(path, name) for name in ("rocks", "index")]
    return sum(entry.stat().st_size for folder in folders for entry in os.scandir(folder))
