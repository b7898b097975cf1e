"""RocksDB behind `storage/base.py`: the only module that knows rocksdict, and the place where its traps end.

What is hidden here, each with a test of its own:

- Errors are bare exceptions: they are told apart by how their messages begin.
- One owner holds the families' handles for life. A handle that is dropped flushes a memtable, and one that is left keeps
  RocksDB's lock after `close`. So readers pass a gate, which `close` shuts and waits for; scans are cut off.
- `items`, `keys` and `values` end in silence at a corrupt block; iterators after `close` do, too; bounds are read after
  they are freed. Scans walk an iterator, check its status, and compare the end themselves.
- One damaged key fails a whole multi-get: the keys are bisected until it is named.
- Gets are always of lists: only these release the interpreter lock.
- A write stall would freeze every thread: writes refuse to wait, and wait here, outside the interpreter lock.
- `compact_range` keeps errors to itself, and `delete_range` alone frees nothing.

Values over 256 bytes of the log and the points live in blob files, so that compaction does not copy them again and
again. There is no compression: vectors do not shrink. All I/O is RocksDB's, but for the count of bytes on disk.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import rocksdict

from ..errors import Closed, Damaged, Exhausted, Locked, Outcome, Unavailable, VecstoreError
from .base import Batch, Family, Stalled

__all__ = ["RocksStore", "open_store"]

MIB: Final = 1 << 20
BLOB_VALUE_BYTES_MIN: Final = 256
BLOCK_CACHE_BYTES: Final = 2 * MIB
LOG_FILE_BYTES_MAX: Final = MIB
LOG_FILES_MAX: Final = 2
OPEN_FILES_MAX: Final = 512
BACKGROUND_JOBS_MAX: Final = 2
STALL_WAIT_S_MAX: Final = 5.0
STALL_PAUSE_S: Final = 0.005
SCAN_CHUNK_PAIRS: Final = 256
SCAN_CHUNK_BYTES: Final = MIB

_BLOB_FAMILIES = frozenset({Family.LOG, Family.POINTS})


def open_store(
    path: str, *, write_buffer_bytes: int, wal_bytes_max: int, strict: bool, read_only: bool = False
) -> RocksStore:
    """Open RocksDB in a folder, or make it there.

    Parameters
    ----------
    write_buffer_bytes
        Buffers of unflushed writes, for all families together.
    wal_bytes_max
        The write-ahead log may grow so long before its oldest writes are flushed.
    strict
        Refuse a write-ahead log that is damaged anywhere; else open with what stands before the damage.
    read_only
        See the state at this moment, without the lock, and change nothing.

    Raises
    ------
    Damaged
        RocksDB refuses what it finds.
    Locked
        The folder is open already.
    """
    raise NotImplementedError


class RocksStore:
    """An open RocksDB of five families. `get` and `scan` from any thread; the rest from one at a time."""

    def write(self, batch: Batch) -> None: raise NotImplementedError
    def sync(self) -> None: raise NotImplementedError
    def get(self, family: Family, keys: Sequence[bytes]) -> list[bytes | None]: raise NotImplementedError
    def scan(self, family: Family, start: bytes, stop: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        raise NotImplementedError
    def delete_range(self, family: Family, start: bytes, stop: bytes) -> None: raise NotImplementedError
    def compact(self, family: Family, start: bytes | None = None, stop: bytes | None = None) -> None:
        raise NotImplementedError
    def flush(self) -> None: raise NotImplementedError
    def disk_bytes(self) -> int: raise NotImplementedError
    def close(self) -> None: raise NotImplementedError
