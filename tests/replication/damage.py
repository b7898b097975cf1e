"""What disks do to points behind an engine's back, done on purpose to the files of a store that is closed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import xxhash

from vecstore.engine.contents.prepared import open_families
from vecstore.record import STAMP_BYTES
from vecstore.storage.base import Family
from vecstore.storage.rocks import RocksStore

__all__ = ["another", "closed_store", "flipped", "points_of", "replace_points", "without_rows"]


def another(value: bytes) -> bytes:
    """Return a stored point with another last number of its vector, and the hash of that: nothing in it tells."""
    content = value[STAMP_BYTES:-4] + bytes(byte ^ 0x15 for byte in value[-4:])
    return value[:8] + xxhash.xxh3_128_digest(content) + content


def flipped(value: bytes) -> bytes:
    """Return a stored point of which a bit has flipped: its hash tells."""
    return value[:-3] + bytes([value[-3] ^ 0x10]) + value[-2:]


@contextmanager
def closed_store(path: Path) -> Iterator[RocksStore]:
    """Open the families of a store that no engine has open."""
    store = open_families(str(path))
    try:
        yield store
    finally:
        store.flush()
        store.close()


def points_of(store: RocksStore) -> dict[bytes, bytes]:
    """Return all points as they are stored, by place."""
    return dict(store.scan(Family.POINTS, b""))


def replace_points(path: Path, points: Mapping[bytes, bytes | None]) -> None:
    """Change, add or remove points of a closed store."""
    with closed_store(path) as store:
        store.write([(Family.POINTS, place, value) for place, value in points.items()])


def without_rows(path: Path) -> None:
    """Remove the files of rows and indexes of a closed store: at its next open they are made of the points."""
    shutil.rmtree(path / "index")
    (path / "index").mkdir()
