"""RocksDB behind `storage/base.py`: the module that knows rocksdict, and the place where its traps end.

What is hidden here, each with a test of its own:

- rocksdict writes a file into a folder that it opens read-only, and makes the folder where there is none. A read-only
  open goes through a throw-away folder that points at the store's files.
- Errors are bare exceptions: they are told apart by how their messages begin.
- One owner holds the families' handles for life. A handle that is dropped flushes a memtable, and one that is left
  keeps RocksDB's lock after `close`. So readers pass a gate, which `close` shuts and waits for; scans are cut off.
- `items`, `keys` and `values` end in silence at a corrupt block; iterators after `close` do, too; bounds are read after
  they are freed. Scans walk an iterator, check its status, and compare the end themselves.
- One damaged key fails a whole multi-get: the keys are bisected until it is named.
- Gets are always of lists: only these release the interpreter lock.
- A write stall would freeze every thread: writes refuse to wait, and wait here, outside the interpreter lock.
- `compact_range` keeps errors to itself, and `delete_range` alone frees nothing.
- Batches that bypass the write-ahead log must reach the files of all families together, or not at all: RocksDB's own
  flushes are atomic over the families, but a flush that is asked for is of one family. So the family that says how far
  the others are (`Family.META`) goes last, while nothing is written.

Values over 256 bytes of the log and the points live in blob files, so that compaction does not copy them again and
again. There is no compression: vectors do not shrink. All I/O is RocksDB's, but for the count of bytes on disk.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, cast

from rocksdict import (
    AccessType,
    BlockBasedOptions,
    Cache,
    Checkpoint,
    ColumnFamily,
    DbClosedError,
    DBCompressionType,
    DBPath,
    DBRecoveryMode,
    Options,
    Rdict,
    WriteBatch,
    WriteBufferManager,
    WriteOptions,
)

from ..errors import Closed, Damaged, Exhausted, Locked, NotFound, Outcome, Unavailable, VecstoreError
from .base import Batch, Family, Prepared, Stalled
from .cursor import Cursor, PinnedFamily, overlaid

__all__ = ["RocksStore", "open_store"]

KIB: Final = 1 << 10
MIB: Final = 1 << 20
BLOB_VALUE_BYTES_MIN: Final = 256
BLOB_FILE_BYTES: Final = 16 * MIB
BLOB_GARBAGE_SHARE_MAX: Final = 0.3
BLOCK_CACHE_BYTES: Final = 2 * MIB
LOG_FILE_BYTES_MAX: Final = MIB
LOG_FILES_MAX: Final = 2
OPEN_FILES_MAX: Final = 512
BACKGROUND_JOBS_MAX: Final = 2
# Many small buffers: they are flushed as they come, so that writes seldom stall and little memory waits.
BUFFERS_OF_BUDGET: Final = 8
BUFFERS_PER_FAMILY_MAX: Final = 12
STALL_WAIT_S_MAX: Final = 5.0
STALL_PAUSE_S: Final = 0.005
READ_ONLY_TRIES_MAX: Final = 5
COMPACTION_TRIES_MAX: Final = 5
# Of the small files that each flush leaves. A compaction copies what is in them and what was compacted before, large
# values too: at every fourth file it was the dearest thread of a store that is written to. Few rows are read here, so
# many files cost little; and a store that lets nobody write for a second, since one compaction lasts, costs much.
FLUSHED_FILES_COMPACTED: Final = 40
FLUSHED_FILES_SLOW: Final = 200
FLUSHED_FILES_MAX: Final = 400
_FILE_NUMBER: Final = re.compile(r"^ (\d+):", re.MULTILINE)

_BLOB_FAMILIES = frozenset({Family.LOG, Family.POINTS})
_FLUSH_ORDER: Final = (*(family for family in Family if family is not Family.META), Family.META)


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
    NotFound
        Nothing is there to be read.
    """
    options, families = _options(write_buffer_bytes, wal_bytes_max, strict)
    try:
        if read_only:
            return RocksStore(path, _open_to_read(path, options, families), read_only=True)
        return RocksStore(path, Rdict(path, options, families, AccessType.read_write()), read_only=False)
    except VecstoreError:
        raise
    except Exception as exc:
        raise _foreign(exc, f"opening {path}", read_only=read_only) from exc


class RocksStore:
    """An open RocksDB of four families. `get` and `scan` from any thread; the rest from one at a time."""

    def __init__(self, path: str, database: Rdict, *, read_only: bool) -> None:
        """Use `open_store`."""
        self.path = path
        self._read_only = read_only
        self._gate = _Gate(path)
        self._database = database
        self._families: dict[Family, Rdict] = {family: database.get_column_family(family.value) for family in Family}
        self._handles: dict[Family, ColumnFamily] = {
            family: database.get_column_family_handle(family.value) for family in Family
        }
        self._cursors: weakref.WeakSet[Cursor] = weakref.WeakSet()
        self._laid_over: dict[Family, dict[bytes, bytes | None]] = {family: {} for family in Family}
        self._logged, self._unlogged = WriteOptions(), WriteOptions()
        for options in (self._logged, self._unlogged):
            options.no_slowdown = True
        # A property, whatever the types of rocksdict say.
        self._unlogged.disable_wal = True  # type: ignore[method-assign, assignment]

    def prepare(self, batch: Batch) -> Prepared:
        """Make RocksDB's own batch now; `write` then only hands it over."""
        return _PreparedBatch(batch, self._built(batch))

    def write(self, batch: Batch | Prepared, *, logged: bool = True) -> None:
        """Apply a batch atomically; see `KeyValueStore`. It waits through a stall for up to `STALL_WAIT_S_MAX`.

        Where the store is open to be read, an unlogged batch stays in memory, and is read from there.

        Raises
        ------
        Stalled
            RocksDB still refused; nothing was written.
        """
        ready: WriteBatch | None = None
        if isinstance(batch, _PreparedBatch):
            ready, batch.built = batch.built, None
        pairs = batch.batch if isinstance(batch, _PreparedBatch) else cast("Batch", batch)
        if self._read_only and not logged:
            for family, key, value in pairs:
                self._laid_over[family][key] = value
            return

        def build() -> WriteBatch:
            nonlocal ready
            made, ready = ready, None
            return self._built(pairs) if made is None else made

        with self._gate:
            self._commit(build, self._logged if logged else self._unlogged)

    def sync(self) -> None:
        """Make all logged batches that were written durable."""
        with self._gate, self._mapped("syncing the write-ahead log", outcome="unknown"):
            self._database.flush_wal(True)

    def get(self, family: Family, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the values of keys, None where there is none.

        Raises
        ------
        Damaged
            The details name the family and the first damaged key.
        """
        if not keys:
            return []
        with self._gate:
            try:
                found = self._read(family, list(keys))
            except Exception as exc:  # noqa: BLE001  rocksdict raises nothing narrower
                found = self._get_apart(family, list(keys), exc)
        over = self._laid_over[family]
        return [over.get(key, value) for key, value in zip(keys, found, strict=True)] if over else found

    def scan(self, family: Family, start: bytes, stop: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        """Iterate over start <= key < stop in order, on the state at the time of the call.

        It holds files and memory of that state until it ends or is dropped. After `close` it raises `Closed`.
        """
        with self._gate, self._mapped(f"scanning {family}", family=family):
            iterator = self._families[family].iter()
            iterator.seek(start)
            cursor = Cursor(iterator, stop)
            self._cursors.add(cursor)
        pairs, over = self._pairs(family, cursor), self._laid_over[family]
        return overlaid(pairs, over, start, stop) if over else pairs

    def pin(self, family: Family) -> PinnedFamily:
        """Keep a family as it is now, until the pin is closed or dropped. After `close` it raises `Closed`."""

        @contextlib.contextmanager
        def inside() -> Iterator[None]:
            with self._gate, self._mapped(f"reading {family}", family=family):
                yield

        with inside():
            cursor = Cursor(self._families[family].iter())
            self._cursors.add(cursor)
        return PinnedFamily(cursor, inside, self._laid_over[family])

    def delete_range(self, family: Family, start: bytes, stop: bytes) -> None:
        """Remove start <= key < stop. Only `compact` gives back the space."""
        if start >= stop:
            return

        def build() -> WriteBatch:
            batch = WriteBatch(raw_mode=True)
            batch.delete_range(start, stop, self._handles[family])
            return batch

        with self._gate:
            self._commit(build, self._logged)

    def compact_by_itself(self) -> None:
        """Begin to compact in the background."""
        with self._gate, self._mapped("setting options"):
            for rows in self._families.values():
                rows.set_options({"disable_auto_compactions": "false"})

    def compact(self, family: Family, start: bytes | None = None, stop: bytes | None = None) -> None:
        """Give back the space of what was removed.

        Raises
        ------
        VecstoreError
            RocksDB met an error, or left files of the range as they were.
        """
        with self._gate, self._mapped(f"compacting {family}", family=family):
            rows = self._families[family]
            errors = self._property(rows, "rocksdb.background-errors")
            failed, left = True, set[str]()
            for _ in range(COMPACTION_TRIES_MAX):
                before = self._newest_files(rows)
                rows.compact_range(start, stop)
                failed = self._property(rows, "rocksdb.background-errors") != errors
                # What a flush beside it has made since is for another time: while much is written there is always some.
                left = before & self._newest_files(rows) if start is None and stop is None else set()
                if failed or not left:
                    break
        if failed or left:
            raise Unavailable(
                f"store: compacting {family} of {self.path} was not done",
                hint="RocksDB's LOG in that folder says why",
                details={"family": family.value},
            )

    def flush(self) -> None:
        """Move all that is buffered in memory into files; nothing may be written meanwhile."""
        self.flush_ahead()
        with self._gate, self._mapped("flushing"):
            self._families[Family.META].flush(True)

    def flush_ahead(self) -> None:
        """Move what is buffered of all families but the one that says how far they are; writes may go on."""
        with self._gate, self._mapped("flushing"):
            for family, rows in self._families.items():
                if family is not Family.META:
                    rows.flush(True)

    def trim(self) -> None:
        """Give freed memory back to the system."""
        _trim()

    def disk_bytes(self, suffix: str = "") -> int:
        """Bytes that RocksDB's files take on disk; those of one kind, where a suffix such as ``.log`` names it."""
        total = 0
        with os.scandir(self.path) as entries:
            for entry in entries:
                if entry.name.endswith(suffix):
                    with contextlib.suppress(FileNotFoundError):
                        total += entry.stat(follow_symlinks=False).st_blocks * 512
        return total

    def checkpoint(self, path: str) -> None:
        """Link the store's files as they are now into a new folder. Buffers should have been flushed: it holds the
        interpreter lock.
        """
        with self._gate, self._mapped(f"linking the files into {path}"):
            # It keeps RocksDB's lock as long as it lives.
            made = Checkpoint(self._database)
            made.create_checkpoint(path)
            del made

    def close(self) -> None:
        """Wait for readers, cut off scans, and let the store go. Nothing is synced. Closing twice is harmless."""
        if not self._gate.shut():
            return
        for cursor in list(self._cursors):
            cursor.drop()
        self._handles.clear()
        families = [self._families.pop(family) for family in _FLUSH_ORDER]
        # Closing a family flushes it, which fails once RocksDB has met an error. All that was synced stands in the
        # write-ahead log, so nothing is lost by it, and the handles are let go all the same. But where one family was
        # not flushed, none behind it may be.
        for rows in [*families, self._database]:
            try:
                rows.close()
            except Exception:  # noqa: BLE001  rocksdict raises nothing narrower
                with contextlib.suppress(Exception):
                    self._database.cancel_all_background(True)
        del self._database

    def _built(self, batch: Batch) -> WriteBatch:
        # Naming the family once for a run of pairs costs a tenth less than with each pair.
        built = WriteBatch(raw_mode=True)
        current: Family | None = None
        for family, key, value in batch:
            if family is not current:
                built.set_default_column_family(self._handles[family])
                current = family
            if value is None:
                del built[key]
            else:
                built[key] = value
        return built

    def _commit(self, build: Callable[[], WriteBatch], options: WriteOptions) -> None:
        """Write what `build` makes; RocksDB consumes a batch that it refuses, so each try has one of its own."""
        give_up = 0.0
        while True:
            try:
                self._database.write(build(), options)
                return
            except Exception as exc:
                if not str(exc).startswith("Result incomplete"):
                    raise _foreign(exc, f"writing to {self.path}", outcome="unknown") from exc
                now = time.monotonic()
                give_up = give_up or now + STALL_WAIT_S_MAX
                if now >= give_up:
                    raise Stalled(
                        f"store: RocksDB in {self.path} took no writes for {STALL_WAIT_S_MAX:g} s",
                        hint="its disk does not keep up; try again later",
                    ) from exc
            time.sleep(STALL_PAUSE_S)

    def _get_apart(self, family: Family, keys: list[bytes], exc: Exception) -> list[bytes | None]:
        """Halve the keys of a get that failed until the one is found that fails alone."""
        if len(keys) == 1:
            raise _foreign(exc, f"reading {family}", family=family, key=keys[0], read_only=self._read_only) from exc
        found: list[bytes | None] = []
        middle = len(keys) // 2
        for half in (keys[:middle], keys[middle:]):
            try:
                found += self._read(family, half)
            except Exception as half_exc:  # noqa: BLE001  rocksdict raises nothing narrower
                found += self._get_apart(family, half, half_exc)
        return found

    def _read(self, family: Family, keys: list[bytes]) -> list[bytes | None]:
        # Of a list also where there is one key: only that releases the interpreter lock.
        found: list[bytes | None] = self._families[family].get(cast("list[Any]", keys)) or []
        return found

    def _pairs(self, family: Family, cursor: Cursor) -> Iterator[tuple[bytes, bytes]]:
        try:
            while True:
                with self._gate, self._mapped(f"scanning {family}", family=family):
                    pairs, more = cursor.advance()
                yield from pairs
                if not more:
                    return
        finally:
            cursor.drop()

    def _newest_files(self, rows: Rdict) -> set[str]:
        """Return the numbers of a family's files that were flushed and not compacted since: those of level 0."""
        listed = rows.property_value("rocksdb.sstables") or ""
        return set(_FILE_NUMBER.findall(listed.partition("--- level 1 ---")[0]))

    def _property(self, rows: Rdict, name: str) -> int:
        value = rows.property_value(name)
        return int(value) if value is not None else 0

    @contextlib.contextmanager
    def _mapped(self, doing: str, *, family: Family | None = None, outcome: Outcome = "refused") -> Iterator[None]:
        try:
            yield
        except VecstoreError:
            raise
        except Exception as exc:
            raise _foreign(
                exc, f"{doing} of {self.path}", family=family, outcome=outcome, read_only=self._read_only
            ) from exc


class _PreparedBatch:
    """`base.Prepared`: the pairs, and RocksDB's batch of them until it is handed over, which consumes it."""

    __slots__ = ("batch", "built")

    def __init__(self, batch: Batch, built: WriteBatch) -> None:
        self.batch = batch
        self.built: WriteBatch | None = built


class _Gate:
    """Lets calls through until it is shut; shutting waits for those inside. Thread-safe; not passed after a fork."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._pid = os.getpid()
        self._changed = threading.Condition(threading.Lock())
        self._inside = 0
        self._shut = False

    def __enter__(self) -> None:
        if os.getpid() != self._pid:
            raise Closed(f"store: {self._path} was opened before a fork", hint="open it in the process that uses it")
        with self._changed:
            if self._shut:
                raise Closed(f"store: {self._path} is closed")
            self._inside += 1

    def __exit__(self, *args: object) -> None:
        with self._changed:
            self._inside -= 1
            if self._shut and not self._inside:
                self._changed.notify_all()

    def shut(self) -> bool:
        """Return whether this call shut it. In a forked child it does nothing: the handles are the parent's."""
        if os.getpid() != self._pid:
            return False
        with self._changed:
            first, self._shut = not self._shut, True
            self._changed.wait_for(lambda: not self._inside)
            return first


def _options(write_buffer_bytes: int, wal_bytes_max: int, strict: bool) -> tuple[Options, dict[str, Options]]:
    """Return the options of the store and of each family."""
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.create_missing_column_families(True)
    options.set_wal_recovery_mode(DBRecoveryMode.absolute_consistency() if strict else DBRecoveryMode.point_in_time())
    options.set_atomic_flush(True)
    options.set_write_buffer_manager(WriteBufferManager(write_buffer_bytes, False))
    options.set_max_total_wal_size(wal_bytes_max)
    options.set_max_background_jobs(BACKGROUND_JOBS_MAX)
    options.set_max_open_files(OPEN_FILES_MAX)
    options.set_max_file_opening_threads(1)
    options.set_keep_log_file_num(LOG_FILES_MAX)
    options.set_max_log_file_size(LOG_FILE_BYTES_MAX)
    options.set_stats_dump_period_sec(0)
    options.set_stats_persist_period_sec(0)
    options.set_manifest_preallocation_size(64 * KIB)
    options.set_max_manifest_file_size(4 * MIB)
    options.set_skip_stats_update_on_db_open(True)
    # Without this an iterator that is dropped deletes files while it holds the interpreter lock.
    options.set_avoid_unnecessary_blocking_io(True)
    cache = Cache(BLOCK_CACHE_BYTES)
    families = {family.value: _family_options(family, write_buffer_bytes, cache) for family in Family}
    return options, families


def _family_options(family: Family, write_buffer_bytes: int, cache: Cache) -> Options:
    options = Options(raw_mode=True)
    table = BlockBasedOptions()
    table.set_block_cache(cache)
    options.set_block_based_table_factory(table)
    options.set_compression_type(DBCompressionType.none())
    options.set_disable_auto_compactions(True)
    options.set_level_zero_file_num_compaction_trigger(FLUSHED_FILES_COMPACTED)
    options.set_level_zero_slowdown_writes_trigger(FLUSHED_FILES_SLOW)
    options.set_level_zero_stop_writes_trigger(FLUSHED_FILES_MAX)
    options.set_max_write_buffer_number(BUFFERS_PER_FAMILY_MAX)
    options.set_write_buffer_size(write_buffer_bytes // BUFFERS_OF_BUDGET)
    if family in _BLOB_FAMILIES:
        options.set_enable_blob_files(True)
        options.set_min_blob_size(BLOB_VALUE_BYTES_MIN)
        options.set_blob_file_size(BLOB_FILE_BYTES)
        options.set_blob_compression_type(DBCompressionType.none())
        options.set_enable_blob_gc(True)
        options.set_blob_gc_age_cutoff(1.0)
        options.set_blob_gc_force_threshold(BLOB_GARBAGE_SHARE_MAX)
    return options


def _open_to_read(path: str, options: Options, families: dict[str, Options]) -> Rdict:
    """Open through a throw-away folder that holds but the name of the manifest and points at the store's files.

    A writer may replace the manifest in between; then it is looked for again.
    """
    options.create_if_missing(False)
    options.create_missing_column_families(False)
    options.set_db_paths([DBPath(path, 1 << 62)])
    options.set_wal_dir(path)
    for tries_left in reversed(range(READ_ONLY_TRIES_MAX)):
        with tempfile.TemporaryDirectory(prefix="vecstore-read-") as view:
            try:
                with open(os.path.join(path, "CURRENT"), "rb") as file:
                    current = file.read()
            except FileNotFoundError as exc:
                raise NotFound(f"path: nothing was written yet to {path}") from exc
            manifest = os.fsdecode(current.strip())
            with open(os.path.join(view, "CURRENT"), "wb") as file:
                file.write(current)
            os.symlink(os.path.join(path, manifest), os.path.join(view, manifest))
            try:
                return Rdict(view, options, families, AccessType.read_only(False))
            except Exception as exc:
                if not tries_left or "No such file" not in str(exc):
                    raise
    raise AssertionError("unreachable")


def _foreign(
    exc: Exception,
    doing: str,
    *,
    family: Family | None = None,
    key: bytes | None = None,
    outcome: Outcome = "refused",
    read_only: bool = False,
) -> VecstoreError:
    """Return our error for one of RocksDB's, whose messages alone say what they are."""
    text = str(exc)
    message = f"store: {doing} failed: {text}"
    details: dict[str, object] = {}
    if family is not None:
        details["family"] = family.value
    if key is not None:
        details["key"] = key.hex()
    if isinstance(exc, DbClosedError) or text.startswith("Shutdown in progress"):
        return Closed(message, outcome=outcome, details=details)
    missing = "No such file" in text
    if text.startswith("Corruption") or (missing and not read_only):
        return Damaged(message, outcome=outcome, details=details)
    if text.startswith("IO error"):
        if "No space left" in text or "File too large" in text or "quota exceeded" in text:
            return Exhausted(message, outcome=outcome, details=details | {"limit": "disk"})
        if "lock hold by current process" in text or "While lock file" in text:
            return Locked(message, details=details)
        return Unavailable(message, outcome=outcome, details=details)
    return VecstoreError(message, outcome=outcome, details=details)


def _trim() -> None:
    """Give freed memory back to the system, where the C library can (glibc)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
