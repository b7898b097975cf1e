"""Removing an export of what was left behind, which may be the only copy of acknowledged records.

So it is said first what would be lost: `loss` is what the export holds and no replay has written into a store of its
lineage. It is removed only where that is nothing, or where a human accepts it, never while a rejoin is under way, which
counts on it, and never with files that are not of it. What a crash leaves of a removal goes at the next open.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Iterator

import msgspec

from ...errors import InvalidArgument, Unavailable
from ...storage.swap import sync_folder
from ..kept import BEFORE, DIVERGED, DRAFT
from .diverged import DIFFERENCES, RECORDS, REPLAYED, SUMMARY, Summary, differing, folder_of, read_export, replays

__all__ = ["Loss", "bytes_of", "drop", "loss", "standing"]

_OWN = {SUMMARY, RECORDS, DIFFERENCES, DIFFERENCES + ".new", REPLAYED}
_TABLE = re.compile(r"\d+\.parquet")
_OF_NO_CONTENTS = {"epoch", "handover"}
_OF_ITS_DEFINITION = {"create", "rename", "fields"}


class Loss(msgspec.Struct, frozen=True, kw_only=True):
    """What an export holds that was not replayed into a store of its lineage.

    Attributes
    ----------
    points
        Points, by collection: each time that one was written or deleted counts.
    records
        Records that are about more than points, by kind. No replay writes them, but for the making of a collection.
    differences
        Lines about ids that differed, where the log had been cut. No replay writes them.
    """

    points: dict[str, int]
    records: dict[str, int]
    differences: int

    def __bool__(self) -> bool:
        return bool(self.points or self.records or self.differences)

    def __str__(self) -> str:
        said = [f"{count:,} points of {name}" for name, count in self.points.items()]
        said += [f"{count:,} {name} records" for name, count in self.records.items()]
        if self.differences:
            said.append(f"{self.differences:,} lines about ids that differed")
        return ", ".join(said) or "nothing"


@contextlib.contextmanager
def standing(root: str) -> Iterator[None]:
    """Let no export begin, and none go, in the folder of all exports meanwhile, whatever process would do it."""
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def loss(path: str, name: str) -> Loss:
    """Return what would be lost if an export were removed.

    Raises
    ------
    NotFound
        There is no such export.
    Damaged
        It does not say what it is.
    """
    summary, others = read_export(path, name)
    done = _replayed(path, summary)
    points: dict[str, int] = {}
    for left in summary.collections:
        if left.number not in done:
            points[left.name] = points.get(left.name, 0) + left.upserts + left.deletes
    made = {left.number for left in summary.collections if left.was_created and left.number in done}
    records: dict[str, int] = {}
    for other in others:
        kind = other["kind"]
        if kind not in _OF_NO_CONTENTS and not (kind in _OF_ITS_DEFINITION and other["collection"] in made):
            records[kind] = records.get(kind, 0) + 1
    return Loss(points=points, records=records, differences=sum(1 for _ in differing(path, name)))


def _replayed(path: str, summary: Summary) -> set[int]:
    mine = [done for done in replays(path, summary.name) if done.lineage == summary.lineage]
    return {number for done in mine for number in done.collections}


def bytes_of(path: str, name: str) -> int:
    """Return the bytes that an export takes."""
    with os.scandir(folder_of(path, name)) as entries:
        return sum(entry.stat(follow_symlinks=False).st_size for entry in entries)


def drop(path: str, name: str, *, accept_loss: bool = False) -> Loss:
    """Remove one export, and nothing else; return what was lost with it. The store may be open.

    Raises
    ------
    NotFound
        There is no such export.
    Damaged
        It does not say what it is.
    InvalidArgument
        It holds what was not replayed, and that is not accepted; or files that are not of it. Nothing was removed.
    Unavailable
        A rejoin of the store is under way. Nothing was removed.
    """
    folder = folder_of(path, name)
    root = os.path.dirname(folder)
    _check_no_rejoin(path)
    with standing(root):
        # A rejoin keeps the store as it was before it looks for exports, and until it is over.
        _check_no_rejoin(path)
        _check_own(folder)
        lost = loss(path, name)
        if lost and not accept_loss:
            raise InvalidArgument(
                f"export: {name} holds what was not replayed into a store of its lineage: {lost}",
                hint="`vecstore diverged show` has it, `replay` writes it again; --accept-loss removes it for good",
                details=msgspec.to_builtins(lost),
            )
        gone = os.path.join(root, DRAFT + name)
        os.rename(folder, gone)
        sync_folder(root)
        shutil.rmtree(gone)
    return lost


def _check_no_rejoin(path: str) -> None:
    kept = os.path.join(os.path.abspath(path), BEFORE)
    if os.path.isdir(kept):
        raise Unavailable(
            f"a rejoin of this store is under way, and counts on what is in {DIVERGED}/: {kept} is there",
            hint="let it end, or abort it: `vecstore rejoin DIR --abort`; then drop the export",
        )


def _check_own(folder: str) -> None:
    with os.scandir(folder) as entries:
        strange = sorted(
            entry.name
            for entry in entries
            if not entry.is_file(follow_symlinks=False) or not (entry.name in _OWN or _TABLE.fullmatch(entry.name))
        )
    if strange or os.path.islink(folder):
        named = ", ".join(strange[:10]) or "it is a link"
        raise InvalidArgument(
            f"export: {folder} holds what no export wrote: {named}", hint="move it elsewhere, then drop the export"
        )
