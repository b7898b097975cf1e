"""The witness: a small file beside RocksDB that says how far the log was known to be durable.

RocksDB's own recovery drops the tail of a damaged write-ahead log without a word, and a deleted one too. So after each
sync of the log the committer records here the last LSN, its chain and its epoch. On open the log must reach the
witness; where it does not, acknowledged records are gone, and the store says which.

It is not a promise on its own: a witness may be older than the log (it is synced once a second, off the write path),
never newer than what was durable when it was recorded.

Format
------
Two slots of 512 bytes, at 0 and 4096, so that no write of one touches a sector or page of the other. A slot is
little-endian: magic ``VSWITNES`` (8 bytes), count of recordings (u64), LSN (u64), epoch (u64), chain (16 bytes),
xxh3_64 of all that (u64), zeros. Recordings alternate between the slots; the valid slot with the higher count holds. A
new file has two slots of zeros, which read as None: nothing was recorded yet. A slot is within one sector, so a crash
does not tear it; one that is neither valid nor zero is passed over only as long as the other is valid.

This module does its own I/O, with `os.pwrite`, one system call a recording. `record` and `sync` may be called from two
threads at a time; `record` is the committer's alone.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass

import xxhash

from ..errors import Closed, Damaged, Exhausted, NotFound, Unavailable

__all__ = ["Witness", "WitnessMark"]

_SLOT = struct.Struct("<8sQQQ16s")
_SUM = struct.Struct("<Q")
_MAGIC = b"VSWITNES"
_SLOT_OFFSETS = (0, 4096)
_SLOT_BYTES = 512
_FILE_BYTES = _SLOT_OFFSETS[1] + _SLOT_BYTES


@dataclass(frozen=True, slots=True)
class WitnessMark:
    """The end of the log when it was last known to be durable."""

    lsn: int
    chain: bytes
    epoch: int


class Witness:
    """An open witness file."""

    def __init__(self, path: str, fd: int) -> None:
        """Use `Witness.open`."""
        self.path = path
        self._fd = fd
        self._count, self._mark = self._load()

    @classmethod
    def open(cls, path: str, create: bool) -> Witness:
        """Open the file, or make it where `create` says so.

        Raises
        ------
        NotFound
            There is no file, and `create` is False.
        Damaged
            No slot is valid.
        """
        flags = os.O_RDWR | os.O_CLOEXEC
        try:
            fd = os.open(path, flags)
        except FileNotFoundError as exc:
            if not create:
                raise NotFound(f"witness: {path} does not exist") from exc
            _make(path)
            fd = os.open(path, flags)
        try:
            return cls(path, fd)
        except BaseException:
            os.close(fd)
            raise

    def read(self) -> WitnessMark | None:
        """Return what was recorded last; None when nothing ever was."""
        return self._mark

    def record(self, mark: WitnessMark) -> None:
        """Write a mark into the slot that does not hold the last one. It is not synced."""
        if self._fd < 0:
            raise Closed(f"witness: {self.path} is closed")
        count = self._count + 1
        offset = _SLOT_OFFSETS[count % 2]
        try:
            written = os.pwrite(self._fd, _encode(count, mark), offset)
        except OSError as exc:
            raise Unavailable(f"witness: writing {self.path} failed: {exc}", outcome="unknown") from exc
        if written != _SLOT_BYTES:
            raise Exhausted(f"witness: only {written} of {_SLOT_BYTES} bytes went to {self.path}", outcome="unknown")
        self._count, self._mark = count, mark

    def sync(self) -> None:
        """Make what was recorded durable (fdatasync)."""
        if self._fd < 0:
            raise Closed(f"witness: {self.path} is closed")
        try:
            os.fdatasync(self._fd)
        except OSError as exc:
            raise Unavailable(f"witness: syncing {self.path} failed: {exc}", outcome="unknown") from exc

    def close(self) -> None:
        """Close the file; it is not synced. Closing twice is harmless."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _load(self) -> tuple[int, WitnessMark | None]:
        slots = [_read_slot(self._fd, offset) for offset in _SLOT_OFFSETS]
        best: tuple[int, WitnessMark] | None = None
        for data in slots:
            found = _decode(data)
            if found is not None and (best is None or found[0] > best[0]):
                best = found
        if best is not None:
            return best
        if all(len(data) == _SLOT_BYTES and not any(data) for data in slots):
            return 0, None
        raise Damaged(
            f"witness: no valid slot in {self.path}",
            hint="the end of the log can't be proven; see what `vecstore doctor` finds",
            details={"path": self.path},
        )


def _make(path: str) -> None:
    """Make the file whole or not at all: under another name, synced, then renamed."""
    draft = f"{path}.new"
    fd = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        os.pwrite(fd, bytes(_FILE_BYTES), 0)
        os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(draft, path)
    folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _read_slot(fd: int, offset: int) -> bytes:
    return os.pread(fd, _SLOT_BYTES, offset)


def _encode(count: int, mark: WitnessMark) -> bytes:
    body = _SLOT.pack(_MAGIC, count, mark.lsn, mark.epoch, mark.chain)
    return (body + _SUM.pack(xxhash.xxh3_64_intdigest(body))).ljust(_SLOT_BYTES, b"\0")


def _decode(data: bytes) -> tuple[int, WitnessMark] | None:
    """Return a slot's count and mark; None where it is not valid."""
    if len(data) != _SLOT_BYTES:
        return None
    body = data[: _SLOT.size]
    (checksum,) = _SUM.unpack_from(data, _SLOT.size)
    magic, count, lsn, epoch, chain = _SLOT.unpack(body)
    if magic != _MAGIC or checksum != xxhash.xxh3_64_intdigest(body):
        return None
    return count, WitnessMark(lsn, chain, epoch)
