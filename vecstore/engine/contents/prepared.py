"""Contents that are about to be put in place: links to files of a folder, with what makes them this store's.

Files that are never changed once they are written are linked, the others copied: so the folder that they come from
stays as it was, whatever is done to these.
"""

from __future__ import annotations

import os
import shutil

import msgspec

from ...config import MIB
from ...errors import Damaged
from ...storage import catalog
from ...storage.base import Batch, Family
from ...storage.catalog import Tip
from ...storage.rocks import RocksStore, open_store
from ...storage.swap import PREPARED, sync_tree
from ...storage.witness import Witness, WitnessMark
from ..checkpoint import Entry
from .manifest import Manifest, read_manifest

__all__ = ["check_lineage", "open_families", "prepare", "record_witness", "set_part"]

_WRITE_BUFFER_BYTES = 16 * MIB
_LINKED = (".sst", ".blob")
META = Family.META


def prepare(path: str, source: str, replication: bytes, *, keeps_slots: bool = False) -> Tip:
    """Make the contents in a folder this store's, durably, in ``DIR/prepared/``; return their tip.

    Parameters
    ----------
    keeps_slots
        The archive of these contents is this store's: its slot stays.
    """
    manifest = read_manifest(source)
    prepared = os.path.join(path, PREPARED)
    shutil.rmtree(prepared, ignore_errors=True)
    for part in ("rocks", "index"):
        os.makedirs(os.path.join(prepared, part))
        for name in os.listdir(os.path.join(source, part)):
            place = os.path.join(source, part, name)
            bring = os.link if part == "index" or name.endswith(_LINKED) else shutil.copy2
            bring(place, os.path.join(prepared, part, name))
    store = open_families(prepared)
    try:
        tip = _check(store, manifest)
        store.write([*_checkpoints(store, manifest), *set_part(store, replication, keeps_slots=keeps_slots)])
        store.flush()
        store.sync()
    finally:
        store.close()
    record_witness(prepared, tip)
    sync_tree(prepared)
    return tip


def open_families(folder: str) -> RocksStore:
    """Open the families in a folder's ``rocks/``."""
    return open_store(
        os.path.join(folder, "rocks"),
        write_buffer_bytes=_WRITE_BUFFER_BYTES,
        wal_bytes_max=4 * _WRITE_BUFFER_BYTES,
        strict=True,
    )


def check_lineage(manifest: Manifest, lineage: bytes) -> None:
    """Raise `Damaged` where contents are of another lineage."""
    if manifest.lineage != lineage.hex():
        raise Damaged(f"the contents are of lineage {manifest.lineage}, this store is of {lineage.hex()}")


def _check(store: RocksStore, manifest: Manifest) -> Tip:
    """Return the tip, which must be the one that the manifest says."""
    lineage, applied = store.get(META, [catalog.LINEAGE, catalog.APPLIED])
    if lineage is None or applied is None:
        raise Damaged("the contents hold no place in a history")
    check_lineage(manifest, lineage[:16])
    tip = Tip.decode(applied)
    if (tip.lsn, tip.chain.hex()) != (manifest.lsn, manifest.chain):
        raise Damaged(f"the contents are at LSN {tip.lsn}, not at {manifest.lsn} as they say")
    return tip


def _checkpoints(store: RocksStore, manifest: Manifest) -> Batch:
    """Return what leaves the one checkpoint whose files are here."""
    gone = store.scan(META, catalog.CHECKPOINT, catalog.CHECKPOINT[:-1] + b"0")
    entry = Entry(manifest.lsn, manifest.chain, manifest.log_bytes, *manifest.checkpoint)
    kept = (META, catalog.numbered(catalog.CHECKPOINT, entry.lsn), msgspec.json.encode(entry))
    return [*((META, key, None) for key, _ in gone), kept]


def set_part(store: RocksStore, replication: bytes, *, keeps_slots: bool) -> Batch:
    """Return what says what the store is in the replication; slots of another store's consumers go."""
    slots = [] if keeps_slots else list(store.scan(META, catalog.SLOT, catalog.SLOT[:-1] + b"0"))
    return [*((META, key, None) for key, _ in slots), (META, catalog.REPLICATION, replication)]


def record_witness(folder: str, tip: Tip) -> None:
    """Write the witness that these contents are proven by."""
    witness = Witness.open(os.path.join(folder, "witness"), create=True)
    try:
        if tip.lsn:
            witness.record(WitnessMark(tip.lsn, tip.chain, tip.epoch))
        witness.sync()
    finally:
        witness.close()
