"""What a store's folder holds beside the store: what each folder in it is for, what it costs, when it goes.

Each is a copy, or links that keep files alive which the store itself no longer has: forgotten, they fill a disk. So
every one of them has an end that is certain: what belongs to a process goes at the next open (`clear`), what belongs to
a rejoin or to a transfer goes with it, also where a crash came between the two, and what a human is to look at is
shown (`kept`). ``prepared/`` and ``replaced/`` are the swap's affair: see `storage/swap.py`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import Any

from ..storage.catalog import Part

__all__ = ["BEFORE", "DIVERGED", "DRAFT", "INCOMING", "LEAVING", "OUTGOING", "STAGING", "clear", "kept"]

STAGING = "snapshot"
"""Where snapshots link what they upload."""
OUTGOING = "outgoing"
"""Where contents are linked that other stores fetch."""
INCOMING = "incoming"
"""Where what another store hands out is brought."""
BEFORE = "before"
"""The store as it was before a rejoin."""
LEAVING = "leaving"
"""A copy that is being given a lineage of its own."""
DIVERGED = "diverged"
"""What was left behind by rejoins."""
DRAFT = ".draft-"
"""Before the names of exports that are not whole yet."""

_OF_A_PROCESS = (STAGING, OUTGOING, LEAVING, BEFORE + ".new", BEFORE + ".gone")
_WHY = {
    STAGING: "a snapshot is being uploaded; goes when it is over",
    OUTGOING: "other stores fetch it; goes a while after the last of them has read from it",
    INCOMING: "it is being fetched from the primary, and a transfer that was cut short goes on; goes once this store "
    "follows",
    BEFORE: "a rejoin may be aborted and go back to it; goes when the rejoin is over",
    LEAVING: "a copy is leaving its lineage; goes when that is over",
    "drill": "a drill is under way; goes when it is over",
    "prepared": "other contents are being prepared; goes at the next open at the latest",
    "replaced": "other contents were put in its place; goes at the next open at the latest",
    "quarantine": "a damaged write-ahead log was found; goes once the log has reached its witness",
    DIVERGED: "acknowledged records that are in no other history; `vecstore diverged list` shows them, and only "
    "`vecstore diverged drop` removes them",
}


def clear(path: str, part: Part | None) -> None:
    """Remove what nobody will need again in the folder of a store that has just been opened for writing.

    Parameters
    ----------
    part
        What the store is in the replication; None where it is in none.
    """
    gone = list(_OF_A_PROCESS)
    if part is None or part.rejoin is None:
        # A rejoin forgets what it could go back to before it removes it, and a crash may come between.
        gone.append(BEFORE)
        if part is None or part.role != "standby":
            gone.append(INCOMING)
    for name in gone:
        shutil.rmtree(os.path.join(path, name), ignore_errors=True)
    left = os.path.join(path, DIVERGED)
    for name in os.listdir(left) if os.path.isdir(left) else ():
        if name.startswith(DRAFT):
            shutil.rmtree(os.path.join(left, name), ignore_errors=True)


def kept(path: str) -> list[dict[str, Any]]:
    """Return what is kept beside the store in its folder: ``folder``, ``bytes`` and ``why`` of each.

    Bytes are those that removing it would free: a link to a file that the store has anyway costs nothing. Of what
    rejoins left behind it is said how many ``exports`` there are.
    """
    found = [name for name in _WHY if _has_any(os.path.join(path, name))]
    if not found:
        return []
    own = {place for part in ("rocks", "index") for place, _ in _files(os.path.join(path, part))}
    return [
        {"folder": name, "bytes": _bytes(os.path.join(path, name), own), "why": _WHY[name], **_counted(path, name)}
        for name in found
    ]


def _counted(path: str, name: str) -> dict[str, int]:
    if name != DIVERGED:
        return {}
    with os.scandir(os.path.join(path, name)) as entries:
        return {"exports": sum(entry.is_dir() and not entry.name.startswith(DRAFT) for entry in entries)}


def _has_any(folder: str) -> bool:
    try:
        with os.scandir(folder) as entries:
            return any(True for _ in entries)
    except OSError:
        return False


def _bytes(folder: str, own: set[tuple[int, int]]) -> int:
    sizes = {place: size for place, size in _files(folder) if place not in own}
    return sum(sizes.values())


def _files(folder: str) -> Iterator[tuple[tuple[int, int], int]]:
    """Yield each file's device and inode, and its bytes; what goes meanwhile is passed over."""
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                stat = os.stat(os.path.join(parent, name), follow_symlinks=False)
            except OSError:
                continue
            yield (stat.st_dev, stat.st_ino), stat.st_size
