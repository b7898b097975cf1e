"""A file of points that one store reads for another: collection, id key and stored value, or that there is none.

A sequence of pieces: length (u32, little-endian), then a msgpack array of collection (int), id key (bin) and the value
in the points family (bin), or nil where there is no such point.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from ...errors import Damaged

__all__ = ["POINTS", "encode_point", "read_points"]

POINTS = "points"
_READ_BYTES = 1 << 20


def encode_point(collection: int, key: bytes, value: bytes | None) -> bytes:
    """Return a point's piece of the file: a length of four bytes, then the array."""
    data = msgspec.msgpack.encode((collection, key, value))
    return len(data).to_bytes(4, "little") + data


def read_points(path: str) -> Iterator[tuple[int, bytes, bytes | None]]:
    """Read the points of a file; raises `Damaged` where it is not whole."""
    with open(path, "rb", buffering=_READ_BYTES) as file:
        while head := file.read(4):
            size = int.from_bytes(head, "little")
            data = file.read(size)
            if len(head) < 4 or len(data) < size:
                raise Damaged(f"the file of points {path} is cut short", details={"path": path})
            try:
                yield msgspec.msgpack.decode(data, type=tuple[int, bytes, bytes | None])
            except msgspec.MsgspecError as exc:
                raise Damaged(f"the file of points {path} cannot be read: {exc}", details={"path": path}) from exc
