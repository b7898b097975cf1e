"""Every limit and option of vecstore, with its name, its cost and its relations to the others.

Two kinds: constants of the format or the interface (upper case), which no one may change, and options (`Config`), which
``vecstore.open(config=...)`` and the environment may. Each part of the engine is handed the values that it needs; there
is no global. `Config.load` refuses unknown names and values out of range.

Environment: ``VECSTORE_`` and the option's name in upper case, as in ``VECSTORE_MEMORY_BYTES_MAX=2000000000``. Defaults
are overridden by the environment, the environment by ``config=``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from .errors import InvalidArgument

__all__ = ["Config", "memory_limit_bytes"]

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

# -- the interface ---------------------------------------------------------------------------------------------------
DIM_MAX = 16_384
K_MAX = 10_000
NAME_BYTES_MAX = 255
ID_BYTES_MAX = 512
ID_INT_MAX = 2**63 - 1
PAYLOAD_BYTES_MAX = MIB
RECORD_POINTS_MAX = 10_000
RECORD_BYTES_MAX = 32 * MIB
FIELDS_INFERRED_MAX = 64
SHARDS_MAX = 64
RECALL_DEFAULT = 0.95
TOKEN_CHAIN_BYTES = 8
WRITE_TIMEOUT_S_MAX = 300.0
"""A write may ask a server for so long at most: half the time for which its request id is remembered."""

# -- the log ---------------------------------------------------------------------------------------------------------
LOG_CHUNK_BYTES = 64 * KIB
CHAIN_MARK_RECORDS = 1_024
"""A (LSN, chain) mark is kept for ever after so many records: it tells where two histories part."""
REQUEST_WINDOW_S = 600.0
"""For so much log time a request id is remembered, so that a retry takes effect once."""
CLOCKS_APART_S_MAX = 60.0
"""Where a record's commit time and its wall time are further apart than this, a time between them names no state."""

# -- rows ------------------------------------------------------------------------------------------------------------
EXTENT_ROWS = 4_096
"""Rows of one extent, and of one growing segment; with an id each, they fill whole pages in every column."""
SMALL_SEGMENT_ROWS_MAX = 65_536
EXACT_ROWS_MAX = 4_096
DEAD_SHARE_MAX = 0.30

assert PAYLOAD_BYTES_MAX < RECORD_BYTES_MAX
assert DIM_MAX * 4 < RECORD_BYTES_MAX, "one point must fit a record"
assert SMALL_SEGMENT_ROWS_MAX % EXTENT_ROWS == 0
assert WRITE_TIMEOUT_S_MAX <= REQUEST_WINDOW_S / 2, "a write that is sent again must still be known"


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The options of one store.

    Attributes
    ----------
    memory_bytes_max
        What the store may hold in memory, mapped rows included; 0 means 80% of the cgroup's or machine's memory. Writes
        are refused above it; deletes and reads go on.
    disk_free_bytes_min
        Floor of free space on the store's file system: below it writes are refused, deletes at a quarter of it.
    unsealed_rows_max
        Rows a shard may hold that no index covers yet; beyond, upserts wait. Higher makes searches during bulk loads
        slower.
    checkpoint_log_bytes
        A checkpoint is taken after so many bytes of log. Higher makes the log longer, and a reopen after a crash
        slower.
    checkpoint_interval_s
        A checkpoint is taken at least so often while there are writes.
    checkpoints_retained
        Older ones are what a damaged one falls back to; the log is kept back to the oldest.
    pending_calls_max
        Writes that may wait for the committer; beyond, `Overloaded`.
    pending_bytes_max
        Bytes of writes that may wait for the committer; beyond, `Overloaded`.
    group_records_max
        Records committed by one sync.
    group_bytes_max
        Bytes committed by one sync.
    write_points_max
        Points in one write to RocksDB, which holds the interpreter lock: lower is kinder to searches, higher is faster.
    request_ids_max
        Request ids remembered; beyond, `Overloaded`.
    search_threads
        Searches that run at once, one core each; 0 means one for each core.
    build_threads
        Threads that train, encode and measure; 0 means half of the cores, at least one, and all of them for a
        collection that `optimize` waits for.
    filter_cache_bytes
        Bitmaps of filters kept for reuse.
    view_age_s_max
        A scan may read its first view for so long; then `Exhausted`.
    switch_interval_s
        The interpreter's switch interval to set when the store opens; 0 leaves it as the host has it. 0.0002 keeps
        searches fast beside writes.
    write_buffer_bytes
        RocksDB's buffers of unflushed writes, for all families together.
    wal_bytes_max
        RocksDB's write-ahead log may grow so long before its oldest writes are flushed.
    archive_interval_s
        Records wait at most so long before they are shipped to the archive, if there is one. Shorter makes more and
        smaller objects.
    slot_retained_bytes_max
        The log is kept for a consumer that is behind, such as the archive, until it would hold so many bytes; then it
        is cut all the same.
    upload_bytes_per_s_max
        Snapshots upload no faster; 0 means as fast as they can.
    device_backend
        "cuda" searches on GPUs, where there are any and the store is opened with device="auto" or "gpu". "host" has a
        process on the CPU do what a GPU does, with device="gpu" alone: slower than the CPU, for tests and drills.
    device_count
        GPUs to use, the first ones; 0 means all that can be seen.
    device_memory_bytes_max
        Indexes take no more of a GPU's memory; 0 means nine tenths of what is free when its worker starts.
    device_scratch_bytes
        Memory of a GPU for searches under way, beside the indexes.
    device_rows_min
        Segments of fewer rows stay on the CPU, which is as fast for them.
    """

    memory_bytes_max: Annotated[int, Meta(ge=0)] = 0
    disk_free_bytes_min: Annotated[int, Meta(ge=0)] = 256 * MIB
    unsealed_rows_max: Annotated[int, Meta(ge=2 * EXTENT_ROWS)] = 65_536
    checkpoint_log_bytes: Annotated[int, Meta(ge=64 * KIB)] = 64 * MIB
    checkpoint_interval_s: Annotated[float, Meta(gt=0)] = 60.0
    checkpoints_retained: Annotated[int, Meta(ge=1, le=16)] = 2
    pending_calls_max: Annotated[int, Meta(ge=1)] = 10_000
    pending_bytes_max: Annotated[int, Meta(ge=RECORD_BYTES_MAX)] = 256 * MIB
    group_records_max: Annotated[int, Meta(ge=1)] = 256
    group_bytes_max: Annotated[int, Meta(ge=1)] = 8 * MIB
    write_points_max: Annotated[int, Meta(ge=1)] = 64
    request_ids_max: Annotated[int, Meta(ge=1)] = 1_000_000
    search_threads: Annotated[int, Meta(ge=0, le=1024)] = 0
    build_threads: Annotated[int, Meta(ge=0, le=1024)] = 0
    filter_cache_bytes: Annotated[int, Meta(ge=0)] = 32 * MIB
    view_age_s_max: Annotated[float, Meta(gt=0)] = 3600.0
    switch_interval_s: Annotated[float, Meta(ge=0, le=1)] = 0.0
    write_buffer_bytes: Annotated[int, Meta(ge=MIB)] = 16 * MIB
    wal_bytes_max: Annotated[int, Meta(ge=MIB)] = 64 * MIB
    archive_interval_s: Annotated[float, Meta(gt=0, le=3600)] = 5.0
    slot_retained_bytes_max: Annotated[int, Meta(ge=MIB)] = 4 * GIB
    upload_bytes_per_s_max: Annotated[int, Meta(ge=0)] = 0
    device_backend: Literal["cuda", "host"] = "cuda"
    device_count: Annotated[int, Meta(ge=0, le=64)] = 0
    device_memory_bytes_max: Annotated[int, Meta(ge=0)] = 0
    device_scratch_bytes: Annotated[int, Meta(ge=16 * MIB)] = 512 * MIB
    device_rows_min: Annotated[int, Meta(ge=1)] = 4 * EXTENT_ROWS

    @classmethod
    def load(cls, options: Mapping[str, Any] | None = None, environment: Mapping[str, str] = os.environ) -> Config:
        """Combine defaults, environment and options.

        Raises
        ------
        InvalidArgument
            An unknown name, or a value that is not allowed.
        """
        names = {f.name: f for f in msgspec.structs.fields(cls)}
        merged: dict[str, Any] = {}
        for name in names:
            text = environment.get(f"VECSTORE_{name.upper()}")
            if text is not None:
                merged[name] = text
        merged.update(options or {})
        unknown = sorted(set(merged) - set(names))
        if unknown:
            raise InvalidArgument(f"config: unknown option {unknown[0]!r}; allowed are {', '.join(sorted(names))}")
        try:
            return msgspec.convert(merged, cls, strict=False)
        except msgspec.ValidationError as exc:
            raise InvalidArgument(f"config: {exc}; given {merged!r}") from exc

    def memory_budget_bytes(self) -> int:
        """Bytes the store may hold in memory."""
        return self.memory_bytes_max or memory_limit_bytes() * 8 // 10

    def search_thread_count(self) -> int:
        """Searches that run at once."""
        return self.search_threads or len(os.sched_getaffinity(0))

    def build_thread_count(self, *, is_awaited: bool = False) -> int:
        """Threads that train, encode and measure; more while somebody waits for it."""
        cores = len(os.sched_getaffinity(0))
        return self.build_threads or (cores if is_awaited else max(1, cores // 2))


def memory_limit_bytes() -> int:
    """Memory that this process may use: the cgroup's limit, or the machine's memory."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        text = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return machine
    return machine if text == "max" else min(machine, int(text))
