"""Putting other contents in place of a store's own: all of them or none, whenever the process dies.

::

    DIR/prepared/    the other contents: rocks/, index/, witness; durable before a swap begins
    DIR/swap.json    a swap began: it goes on until all of `prepared` is in place, at the next open if need be
    DIR/replaced/    what was in place before; removed once the swap is over

Before ``swap.json`` is durable the old contents are in place, untouched; from then on the new ones hold. Every step is
a rename within one file system, and each can be seen to be done, so that all may be repeated. Nothing else of the
folder is touched: identity, format file, lock and exports stay.

The caller holds the lock of the folder, and nobody has RocksDB open in it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable

__all__ = ["PREPARED", "SWAP_FILE", "finish", "swap", "sync_folder", "sync_tree"]

PREPARED = "prepared"
SWAP_FILE = "swap.json"
_REPLACED = "replaced"
_PARTS = ("rocks", "index", "witness")


def swap(path: str, then: Callable[[], None] = lambda: None) -> None:
    """Put what is in ``prepared/`` in place; everything there must be durable.

    Parameters
    ----------
    then
        Called when all is in place, before the swap is over; it may be called again after a crash.
    """
    _remove(os.path.join(path, _REPLACED))
    sync_folder(path)
    draft = os.path.join(path, SWAP_FILE + ".new")
    with open(draft, "wb") as file:
        file.write(b"{}\n")
        file.flush()
        os.fsync(file.fileno())
    os.rename(draft, os.path.join(path, SWAP_FILE))
    sync_folder(path)
    finish(path, then)


def finish(path: str, then: Callable[[], None] = lambda: None) -> bool:
    """Go on with a swap that was cut short, or clear away what never became one; return whether there was a swap."""
    marker = os.path.join(path, SWAP_FILE)
    begun = os.path.exists(marker)
    if begun:
        _exchange(path)
        then()
        os.unlink(marker)
        sync_folder(path)
    for name in (SWAP_FILE + ".new", PREPARED, _REPLACED):
        _remove(os.path.join(path, name))
    return begun


def _exchange(path: str) -> None:
    prepared, replaced = os.path.join(path, PREPARED), os.path.join(path, _REPLACED)
    os.makedirs(replaced, exist_ok=True)
    sync_folder(path)
    for part in _PARTS:
        new, place = os.path.join(prepared, part), os.path.join(path, part)
        if not os.path.exists(new):
            continue  # it is in place already
        if os.path.exists(place):
            os.rename(place, os.path.join(replaced, part))
            sync_folder(replaced)
            sync_folder(path)
        os.rename(new, place)
        sync_folder(path)
        sync_folder(prepared)


def _remove(path: str) -> None:
    if os.path.isdir(path):
        shutil.rmtree(path)
    elif os.path.exists(path):
        os.unlink(path)


def sync_folder(path: str) -> None:
    """Make the names in a folder durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_tree(path: str) -> None:
    """Make a folder durable, with everything in it."""
    for folder, _, names in os.walk(path, topdown=False):
        for name in names:
            fd = os.open(os.path.join(folder, name), os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        sync_folder(folder)
