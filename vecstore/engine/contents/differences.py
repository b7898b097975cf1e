"""The ids that differ between a store and the snapshot that is about to replace it, where an export was incomplete.

What was deleted behind the fork, in the part of the log that was cut, is in no export. But the other store tells: a
point that it wrote at or before the fork, and that is missing here, was deleted here. So both families of points are
read side by side, and each id whose content differs becomes a line of ``differences.jsonl`` in the export's folder:
collection, id, and the LSN of the record that wrote it, here and there; null for none.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec

from ...config import MIB
from ...record import key_id
from ...storage import catalog
from ...storage.base import Family
from ...storage.catalog import Tip
from ...storage.rocks import RocksStore, open_store
from ...storage.swap import sync_folder
from ..kept import DIVERGED
from .diverged import DIFFERENCES, Summary, exports

__all__ = ["note_differences"]

_HASH = slice(8, 24)


class _Stamp(NamedTuple):
    """Where a point stands, the LSN that wrote it, and the hash of its content."""

    place: bytes
    lsn: int
    check: bytes


def note_differences(path: str, folder: str) -> None:
    """Write down how the points of a closed store differ from those in a folder, if an export of it is incomplete."""
    lacking = [found for found in exports(path) if not found.is_complete and not os.path.exists(_file(path, found))]
    if not lacking:
        return
    here = _opened(path)
    try:
        (applied,) = here.get(Family.META, [catalog.APPLIED])
        tip = None if applied is None else Tip.decode(applied)
        mine = [found for found in lacking if tip and (found.tip_lsn, found.tip_chain) == (tip.lsn, tip.chain.hex())]
        if mine:
            there = _opened(folder)
            try:
                _write(_file(path, mine[-1]), here, there)
            finally:
                there.close()
    finally:
        here.close()


def _file(path: str, summary: Summary) -> str:
    return os.path.join(path, DIVERGED, summary.name, DIFFERENCES)


def _opened(folder: str) -> RocksStore:
    return open_store(
        os.path.join(folder, "rocks"), write_buffer_bytes=MIB, wal_bytes_max=64 * MIB, strict=True, read_only=True
    )


def _write(file: str, here: RocksStore, there: RocksStore) -> None:
    with open(file + ".new", "wb") as out:
        out.writelines(msgspec.json.encode(line) + b"\n" for line in _differing(_stamps(here), _stamps(there)))
        out.flush()
        os.fsync(out.fileno())
    os.rename(file + ".new", file)
    sync_folder(os.path.dirname(file))


def _stamps(store: RocksStore) -> Iterator[_Stamp]:
    for place, value in store.scan(Family.POINTS, b""):
        yield _Stamp(place, int.from_bytes(value[:8], "little"), value[_HASH])


def _differing(here: Iterator[_Stamp], there: Iterator[_Stamp]) -> Iterator[dict[str, Any]]:
    """Merge two sequences in order; yield what is in one of them alone, or has another content."""
    mine, theirs = next(here, None), next(there, None)
    while mine is not None or theirs is not None:
        if theirs is None or (mine is not None and mine.place < theirs.place):
            assert mine is not None
            yield _line(mine, mine, None)
            mine = next(here, None)
        elif mine is None or theirs.place < mine.place:
            yield _line(theirs, None, theirs)
            theirs = next(there, None)
        else:
            if mine.check != theirs.check:
                yield _line(mine, mine, theirs)
            mine, theirs = next(here, None), next(there, None)


def _line(one: _Stamp, here: _Stamp | None, there: _Stamp | None) -> dict[str, Any]:
    return {
        "collection": int.from_bytes(one.place[:8], "big"),
        "id": key_id(one.place[8:]),
        "here": here and here.lsn,
        "there": there and there.lsn,
    }
