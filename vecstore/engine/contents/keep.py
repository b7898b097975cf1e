"""The checkpoint before a rejoin, in ``DIR/before/``: all of the store as it was, to return to until it is let go.

It is links, as a snapshot is, with the log and the slots in it; it costs the space of what the store no longer has.
Returning leaves it where it is, so that a return that was cut short is done again.
"""

from __future__ import annotations

import os
import shutil

from ...errors import InvalidArgument
from ...storage.directory import StoreDirectory
from ...storage.swap import swap, sync_folder, sync_tree
from ..engine import Engine
from ..kept import BEFORE
from ..snapshot import stand_still
from .manifest import Manifest, read_manifest, write_manifest
from .prepared import prepare

__all__ = ["BEFORE", "back", "checkpoint", "discard"]

_DRAFT = "before.new"
_GONE = "before.gone"


def checkpoint(engine: Engine) -> Manifest:
    """Keep the store as it is, instead of what was kept before; it is durable when this returns."""
    path = engine.directory.path
    draft, kept = os.path.join(path, _DRAFT), os.path.join(path, BEFORE)
    shutil.rmtree(draft, ignore_errors=True)
    os.makedirs(os.path.join(draft, "index"))
    manifest = Manifest.of(stand_still(engine, draft))
    write_manifest(draft, manifest)
    sync_tree(draft)
    _let_go(path, BEFORE)
    os.rename(draft, kept)
    sync_folder(path)
    return manifest


def back(path: str, replication: bytes) -> Manifest:
    """Put what was kept in place of all that the store holds now; return what it is.

    Raises
    ------
    InvalidArgument
        Nothing is kept. The store is as it was.
    Damaged
        What is kept is not whole. The store is as it was.
    """
    directory = StoreDirectory.open(path, create=False, read_only=False)
    try:
        kept = os.path.join(directory.path, BEFORE)
        if not os.path.isdir(kept):
            raise InvalidArgument(f"path: nothing is kept at {kept} to return to")
        prepare(directory.path, kept, replication, keeps_slots=True)
        swap(directory.path)
        return read_manifest(kept)
    finally:
        directory.close()


def discard(path: str) -> None:
    """Keep it no longer; nothing happens where nothing is kept."""
    path = os.path.abspath(path)
    for name in (BEFORE, _DRAFT):
        _let_go(path, name)


def _let_go(path: str, name: str) -> None:
    """Remove a folder under another name: half of it must never be returned to."""
    gone = os.path.join(path, _GONE)
    shutil.rmtree(gone, ignore_errors=True)
    if os.path.isdir(os.path.join(path, name)):
        os.rename(os.path.join(path, name), gone)
        sync_folder(path)
        shutil.rmtree(gone)
