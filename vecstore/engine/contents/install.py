"""Putting a snapshot in place of all that a store holds, or into an empty folder, which is a store then.

The incoming files stay as they came until the end: they are linked into ``DIR/prepared/`` and made this store's there.
"""

from __future__ import annotations

import os

from ...errors import Damaged, InvalidArgument
from ...storage.directory import StoreDirectory, begin, complete, is_store
from ...storage.swap import swap
from ..kept import INCOMING
from .differences import note_differences
from .incoming import Incoming
from .manifest import Manifest, read_manifest
from .prepared import check_lineage, prepare

__all__ = ["held", "install"]


def held(path: str) -> StoreDirectory:
    """Take the lock of a store, or of a folder that is to become one; what a swap left to do is done then."""
    return StoreDirectory.open(path, create=False, read_only=False) if is_store(path) else begin(path)


def install(path: str, replication: bytes, lineage: bytes | None = None) -> Manifest:
    """Put the snapshot that has come into ``DIR/incoming/`` in place; return what it is.

    Nothing of the store that was there is left but its identity, its format file, and what lies in folders of its own:
    exports and the checkpoint before a rejoin. Where an export is incomplete, the ids that differ are noted in it.

    Parameters
    ----------
    replication
        What the store is in the replication from now on.
    lineage
        The lineage that it must be of, and that of the store that is there.

    Raises
    ------
    Damaged
        Something of it is missing, or it is of another lineage. The store is as it was.
    """
    directory = held(path)
    try:
        path = directory.path
        source = os.path.join(path, INCOMING)
        if not os.path.isdir(source):
            raise InvalidArgument(f"path: no snapshot has come to {path}")
        manifest = read_manifest(source)
        if lineage is not None:
            check_lineage(manifest, lineage)
        is_new = not is_store(path)
        if not is_new:
            note_differences(path, source)
        prepare(path, source, replication)
        swap(path, (lambda: complete(path)) if is_new else (lambda: None))
        Incoming(path).discard()
        return manifest
    except FileNotFoundError as exc:
        raise Damaged(f"the snapshot that came to {path} is not whole: {exc}") from exc
    finally:
        directory.close()
