"""Extents: runs of rows, first growing in memory, then files that are mapped and never change.

The fixed-width columns of an extent live in the shard's `Rows`, at the extent's slot; this module has what is of
varying length (payloads, string ids), what only a growing extent needs (who supersedes whom), and the file.

File (docs/formats.md): one page of header, then sections that begin at page boundaries. The header is JSON and names
each section with offset, size and xxh3_64; it ends with its own xxh3_128, which is the checksum that a checkpoint
keeps. A file is read whole and checked before it is mapped: a flipped bit is `Damaged`, never an answer. Files are
written with `os.write`, synced and renamed, so that a file with its final name is complete.
"""

from __future__ import annotations

import mmap
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec
import numpy as np
import numpy.typing as npt
import xxhash

from ..config import EXTENT_ROWS
from ..errors import Damaged
from ..record import IdKind
from .mapping import PAGE_BYTES, paged
from .rows import Rows, row_sections

__all__ = [
    "NEVER",
    "Blob",
    "Extent",
    "ExtentFile",
    "Pieces",
    "Place",
    "Slot",
    "read_file",
    "remap",
    "section_offsets",
    "settled",
    "sync_folder",
    "write_at",
    "write_file",
]

NEVER = np.iinfo(np.int64).max
_MAGIC = b"vecstore extent 1\n"
_CHECK_BYTES = 16
_READ_BYTES = 4 << 20


class Pieces(Protocol):
    """Byte strings by position: a list while growing, a `Blob` afterwards."""

    def __getitem__(self, i: int, /) -> bytes: ...
    def __len__(self) -> int: ...


class Blob:
    """Byte strings laid end to end in mapped memory."""

    __slots__ = ("_data", "_ends")

    def __init__(self, ends: memoryview, data: memoryview) -> None:
        self._ends = ends
        self._data = data

    def __getitem__(self, i: int) -> bytes:
        ends = self._ends
        return self._data[ends[i - 1] if i else 0 : ends[i]].tobytes()

    def __len__(self) -> int:
        return len(self._ends)


class Slot:
    """The right to a slot of a shard, shared by all who show its rows; the slot is free again when the last of them
    goes.

    Parameters
    ----------
    number
        Row numbers begin at ``number * EXTENT_ROWS``.
    free
        Where the number goes at the end. `deque.append` is atomic, and a finaliser may run in any thread.
    """

    __slots__ = ("_free", "number")

    def __init__(self, number: int, free: deque[int]) -> None:
        self.number = number
        self._free = free

    def __del__(self) -> None:
        self._free.append(self.number)


@dataclass(slots=True, eq=False)
class Extent:
    """A run of rows at one slot of a shard.

    Written by one thread, read by any: a row below a view's row count never changes, but for `superseded`, which only
    grows meaningful for LSNs above that view's.

    Attributes
    ----------
    slot
        Where its rows are numbered.
    rows
        Rows filled so far.
    size
        Bytes of vectors, payloads and ids.
    payloads, names
        Canonical JSON of each row; UTF-8 of string ids, None where ids are integers.
    superseded
        While growing: the LSN that removed or replaced each row, `NEVER` where none did.
    previous
        While growing: the row of this extent that held the same id before, -1 where there was none.
    row_of
        While growing: the newest row (counted from the extent's first) of an id key.
    deaths
        Rows superseded so far.
    closed
        Whether it takes no more rows, though it has room.
    file
        The file that it is mapped from; None while it grows.
    saved
        While growing: a file that has its rows as they were, for a checkpoint, and for sealing if they are all.
    """

    slot: Slot
    id_kind: IdKind
    rows: int = 0
    size: int = 0
    payloads: Pieces = field(default_factory=list)
    names: Pieces | None = None
    superseded: npt.NDArray[np.int64] | None = None
    previous: npt.NDArray[np.int32] | None = None
    row_of: dict[bytes, int] | None = None
    deaths: int = 0
    closed: bool = False
    file: ExtentFile | None = None
    saved: ExtentFile | None = None

    @property
    def start(self) -> int:
        """The number of its first row."""
        return self.slot.number * EXTENT_ROWS

    @classmethod
    def growing(cls, slot: Slot, id_kind: IdKind) -> Extent:
        """Return an empty extent that takes writes."""
        return cls(
            slot,
            id_kind,
            names=[] if id_kind == IdKind.STR else None,
            superseded=np.full(EXTENT_ROWS, NEVER, np.int64),
            previous=np.full(EXTENT_ROWS, -1, np.int32),
            row_of={},
        )

    def append(self, keys: Sequence[bytes], payloads: Sequence[bytes], row_bytes: int) -> int:
        """Take rows whose fixed columns were written; return the position of the first.

        The order matters to readers: a row is complete before an id leads to it.
        """
        assert isinstance(self.payloads, list) and self.row_of is not None and self.previous is not None
        first = self.rows
        self.payloads.extend(payloads)
        if isinstance(self.names, list):
            self.names.extend([key[1:] for key in keys])
        row_of, previous = self.row_of, self.previous
        if not row_of.keys().isdisjoint(keys):
            for i, key in enumerate(keys, first):
                before = row_of.get(key)
                if before is not None:
                    previous[i] = before
        row_of.update(zip(keys, range(first, first + len(keys)), strict=True))
        self.rows = first + len(keys)
        self.size += row_bytes * len(keys) + sum(map(len, payloads))
        return first

    def find(self, key: bytes, rows: int) -> int:
        """Return the newest position below `rows` that holds an id, -1 where there is none."""
        assert self.row_of is not None and self.previous is not None
        i = self.row_of.get(key, -1)
        while i >= rows:
            i = int(self.previous[i])
        return i

    def alive(self, rows: int, lsn: int) -> npt.NDArray[np.bool_]:
        """Return which of the first rows are live in the view at an LSN."""
        assert self.superseded is not None
        return self.superseded[:rows] > lsn

    def id_of(self, i: int, code: int) -> int | str:
        """Return the id at a position, given its code."""
        return code if self.names is None else self.names[i].decode()

    def key_of(self, i: int, code: int) -> bytes:
        """Return the id key at a position, given its code."""
        return b"\x01" + code.to_bytes(8, "big") if self.names is None else b"\x02" + self.names[i]


class Place(msgspec.Struct, frozen=True, array_like=True):
    """Where a section lies in its file."""

    offset: int
    size: int
    check: int


class ExtentFile(msgspec.Struct, frozen=True):
    """What a checkpoint keeps of an extent's file: name, rows, and the checksum of its header."""

    name: str
    rows: int
    bytes: int
    check: str


class _Header(msgspec.Struct, frozen=True):
    rows: int
    dim: int
    metric: str
    id_kind: int
    sections: dict[str, Place]


def write_file(folder: str, name: str, rows: Rows, extent: Extent, count: int, fields: bytes) -> ExtentFile:
    """Write the first `count` rows of an extent to a file, durably.

    Parameters
    ----------
    fields
        The declared fields of these rows, as `Columns.dump` gives them.
    """
    pieces: dict[str, Any] = {
        section: rows.column(section, extent.slot.number, count) for section, _ in row_sections(rows.dim, rows.metric)
    }
    pieces["payload_ends"], pieces["payloads"] = _joined(extent.payloads, count)
    if extent.names is not None:
        pieces["name_ends"], pieces["names"] = _joined(extent.names, count)
    pieces["fields"] = fields
    places: dict[str, Place] = {}
    offset = PAGE_BYTES
    for section, data in pieces.items():
        places[section] = Place(offset, len(data), xxhash.xxh3_64_intdigest(data))
        offset += paged(len(data))
    header = msgspec.json.encode(_Header(count, rows.dim, rows.metric, extent.id_kind, places))
    head = _MAGIC + len(header).to_bytes(4, "little") + header
    check = xxhash.xxh3_128_digest(head)
    assert len(head) + _CHECK_BYTES <= PAGE_BYTES, "the header fits its page"
    _write_durably(os.path.join(folder, name), [(0, head + check)], places, pieces, offset)
    return ExtentFile(name, count, offset, check.hex())


def _write_durably(
    path: str, head: list[tuple[int, bytes]], places: Mapping[str, Place], pieces: Mapping[str, Any], size: int
) -> None:
    file = os.open(path + ".new", os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.ftruncate(file, size)
        for offset, data in [*head, *((places[section].offset, data) for section, data in pieces.items())]:
            write_at(file, data, offset)
        os.fsync(file)
    finally:
        os.close(file)
    os.rename(path + ".new", path)


def write_at(file: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of some bytes at an offset."""
    view = memoryview(data).cast("B")
    while len(view):
        done = os.pwrite(file, view, offset)
        view, offset = view[done:], offset + done


def sync_folder(folder: str) -> None:
    """Make renames in a folder durable."""
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def read_file(folder: str, entry: ExtentFile, rows: Rows, slot: Slot) -> tuple[Extent, memoryview]:
    """Check an extent's file, map it at a slot, and return the extent with the bytes of its declared fields.

    Raises
    ------
    Damaged
        The file is missing, or a byte of it is not what was written; details name the file and section.
    """
    path = os.path.join(folder, entry.name)
    try:
        file = os.open(path, os.O_RDONLY)
    except FileNotFoundError as exc:
        raise Damaged(f"extent {entry.name} is missing", details={"file": entry.name}) from exc
    try:
        header = _read_header(file, entry)
        for section, place in header.sections.items():
            _check(file, entry.name, section, place)
        if header.dim != rows.dim or header.metric != rows.metric or header.rows != entry.rows:
            raise Damaged(f"extent {entry.name} is of another collection", details={"file": entry.name})
        offsets = {section: place.offset for section, place in header.sections.items()}
        if any(offset % PAGE_BYTES for offset in offsets.values()):
            raise Damaged(f"extent {entry.name} was written for smaller pages", details={"file": entry.name})
        rows.map_file(slot.number, header.rows, file, offsets)
        data = memoryview(mmap.mmap(file, 0, mmap.MAP_SHARED, mmap.PROT_READ))
    finally:
        os.close(file)
    extent = Extent(slot, IdKind(header.id_kind), header.rows, entry.bytes, file=entry)
    _attach(extent, header, data)
    place = header.sections["fields"]
    return extent, data[place.offset : place.offset + place.size]


def remap(folder: str, extent: Extent, rows: Rows) -> None:
    """Map an extent's file, checked before, at its slot: in place of the memory it grew in, or into other columns."""
    with _opened(folder, extent) as (file, header):
        offsets = {section: place.offset for section, place in header.sections.items()}
        rows.map_file(extent.slot.number, header.rows, file, offsets)


def settled(folder: str, extent: Extent, entry: ExtentFile) -> Extent:
    """Return the extent as its file has it, without what only a growing one needs. Both have the same slot."""
    extent = Extent(extent.slot, extent.id_kind, entry.rows, entry.bytes, file=entry)
    with _opened(folder, extent) as (file, header):
        _attach(extent, header, memoryview(mmap.mmap(file, 0, mmap.MAP_SHARED, mmap.PROT_READ)))
    return extent


def section_offsets(folder: str, extent: Extent) -> dict[str, int]:
    """Return where each section of an extent's file begins."""
    with _opened(folder, extent) as (_, header):
        return {section: place.offset for section, place in header.sections.items()}


@contextmanager
def _opened(folder: str, extent: Extent) -> Iterator[tuple[int, _Header]]:
    assert extent.file is not None
    file = os.open(os.path.join(folder, extent.file.name), os.O_RDONLY)
    try:
        yield file, _read_header(file, extent.file)
    finally:
        os.close(file)


def _attach(extent: Extent, header: _Header, data: memoryview) -> None:
    extent.payloads = _blob(header, data, "payload_ends", "payloads")
    extent.names = _blob(header, data, "name_ends", "names") if "names" in header.sections else None


def _blob(header: _Header, data: memoryview, ends: str, pieces: str) -> Blob:
    at, where = header.sections[ends], header.sections[pieces]
    return Blob(data[at.offset : at.offset + at.size].cast("I"), data[where.offset : where.offset + where.size])


def _joined(pieces: Pieces, count: int) -> tuple[memoryview, bytes]:
    taken = [pieces[i] for i in range(count)]
    ends = np.cumsum(np.fromiter(map(len, taken), np.uint64, count)).astype("<u4")
    return ends.data.cast("B"), b"".join(taken)


def _read_header(file: int, entry: ExtentFile) -> _Header:
    page = os.pread(file, PAGE_BYTES, 0)
    start = len(_MAGIC) + 4
    size = int.from_bytes(page[len(_MAGIC) : start], "little")
    check = page[start + size : start + size + _CHECK_BYTES]
    if (
        not page.startswith(_MAGIC)
        or xxhash.xxh3_128_digest(page[: start + size]) != check
        or check.hex() != entry.check
    ):
        raise Damaged(
            f"extent {entry.name}: its header is not what was written",
            details={"file": entry.name, "section": "header"},
        )
    return msgspec.json.decode(page[start : start + size], type=_Header)


def _check(file: int, name: str, section: str, place: Place) -> None:
    state, at, end = xxhash.xxh3_64(), place.offset, place.offset + place.size
    while at < end:
        data = os.pread(file, min(_READ_BYTES, end - at), at)
        if not data:
            break
        state.update(data)
        at += len(data)
    if at != end or state.intdigest() != place.check:
        raise Damaged(
            f"extent {name}: section {section!r} at {place.offset}..{end} is not what was written",
            details={"file": name, "section": section, "offset": place.offset, "bytes": place.size},
        )
