"""What a store counts about itself: plain counters that cost next to nothing; `status` and exporters read them."""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["Counter", "Gauge", "Metrics", "Timing"]

_BOUNDS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0)


class Counter:
    """A number that only grows. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.value = 0

    def inc(self, by: int = 1) -> None:
        """Add to it."""
        with self._lock:
            self.value += by


class Gauge:
    """A number that is set."""

    def __init__(self) -> None:
        self.value = 0.0

    def set(self, value: float) -> None:
        """Set it."""
        self.value = value


class Timing:
    """How often something was done and how long it took, in seconds: count, sum, maximum, and counts up to bounds."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.count, self.sum_s, self.max_s = 0, 0.0, 0.0
        self._counts = [0] * (len(_BOUNDS_S) + 1)

    @contextmanager
    def time(self) -> Iterator[None]:
        """Measure what is done inside."""
        start = time.perf_counter()
        try:
            yield
        finally:
            took_s = time.perf_counter() - start
            with self._lock:
                self.count += 1
                self.sum_s += took_s
                self.max_s = max(self.max_s, took_s)
                self._counts[bisect_left(_BOUNDS_S, took_s)] += 1

    def buckets(self) -> dict[str, int]:
        """Return how often it took at most so many seconds; what took longer than every bound is in `count` alone."""
        total, found = 0, {}
        for bound, count in zip(_BOUNDS_S, self._counts, strict=False):
            total += count
            found[str(bound)] = total
        return found


class Metrics:
    """The counters of one store.

    Attributes
    ----------
    archived_bytes
        Bytes written to the archive, compressed.
    archive_failures
        Tries to archive that failed.
    archive_lsn
        Every record up to it is in the archive.
    archive_lag_records, archive_lag_bytes, archive_lag_s
        What is durable and not yet archived, and for how long its oldest record has waited.
    snapshot_s
        Snapshots.
    snapshot_bytes
        Bytes uploaded for snapshots.
    log_bytes
        Bytes of records written to the log.
    sync_s
        Syncs of the log.
    build_s
        Seals, merges and rewrites in the background.
    checkpoint_s
        Checkpoints.
    shed
        Calls refused because too much waited.
    broken
        1 once the store has stopped writing.
    rebuilt
        Index files that were missing or damaged and were built again.
    """

    def __init__(self) -> None:
        self.archived_bytes = Counter()
        self.archive_failures = Counter()
        self.archive_lsn = Gauge()
        self.archive_lag_records = Gauge()
        self.archive_lag_bytes = Gauge()
        self.archive_lag_s = Gauge()
        self.snapshot_s = Timing()
        self.snapshot_bytes = Counter()
        self.log_bytes = Counter()
        self.shed = Counter()
        self.rebuilt = Counter()
        self.sync_s = Timing()
        self.build_s = Timing()
        self.checkpoint_s = Timing()
        self.broken = Gauge()

    def to_plain(self) -> dict[str, Any]:
        """Return all of them as plain values by name."""
        plain: dict[str, Any] = {}
        for name, metric in vars(self).items():
            if isinstance(metric, Timing):
                plain |= {f"{name}_count": metric.count, f"{name}_sum": metric.sum_s, f"{name}_max": metric.max_s}
                plain[f"{name}_buckets"] = metric.buckets()
            else:
                plain[name] = metric.value
        return plain
