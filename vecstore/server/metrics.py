"""What a server counts, and all that Prometheus sees of it.

`ServerMetrics` is told of calls by the guard (a lock and a few additions each) and asks the store, the pool and the
recall's shadow only when somebody scrapes. `FAMILIES` names every metric that is exported; dashboards, alert rules and
docs/operations.md are held against it. Metrics of the process itself have their usual names (``process_...``).
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import grpc
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from .. import __version__
from .admission import LaneLoad
from .device_metrics import DEVICE_FAMILIES, of_devices
from .family import Family, Samples, counter, gauge
from .region_metrics import REGION_FAMILIES, of_drills, of_replication

__all__ = ["FAMILIES", "Family", "ServerMetrics"]

_BOUNDS_S = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_STATUS_AGE_S_MAX = 1.0


FAMILIES: dict[str, Family] = {
    # -- calls
    "vecstore_requests_total": Family("counter", "Calls answered, by method and status code.", ("method", "code")),
    "vecstore_request_seconds": Family("histogram", "Time from a call's arrival to its answer.", ("method",)),
    "vecstore_requests_in_flight": Family("gauge", "Calls that are being worked on.", ("lane",)),
    "vecstore_queue_calls": Family("gauge", "Calls that wait for a place.", ("lane",)),
    "vecstore_limit_calls": Family("gauge", "Calls that may be worked on at a time: the adaptive limit.", ("lane",)),
    "vecstore_sheds_total": Family("counter", "Calls refused to protect the others, by reason.", ("reason",)),
    # -- the store
    "vecstore_ready": Family("gauge", "1 while calls are taken."),
    "vecstore_writable": Family("gauge", "1 while the store takes writes."),
    "vecstore_primary": Family("gauge", "1 on a primary, 0 on any other."),
    "vecstore_epoch": Family("gauge", "Epoch of the history."),
    "vecstore_lsn_applied": Family("gauge", "LSN of the newest record that reads see."),
    "vecstore_lsn_durable": Family("gauge", "LSN up to which every record is synced."),
    "vecstore_findings": Family("gauge", "Things that were mended when the store was opened."),
    "vecstore_log_bytes_total": Family("counter", "Bytes of records written to the log."),
    "vecstore_sync_seconds": Family("histogram", "Syncs of the log."),
    "vecstore_checkpoint_seconds": Family("histogram", "Checkpoints."),
    "vecstore_build_seconds": Family("histogram", "Seals, merges and rewrites of segments."),
    "vecstore_write_sheds_total": Family("counter", "Writes that the store refused because too many waited."),
    "vecstore_rebuilt_total": Family("counter", "Index files that were missing or damaged and were built again."),
    "vecstore_filter_cache_hits_total": Family("counter", "Filters whose bitmap was at hand."),
    "vecstore_filter_cache_misses_total": Family("counter", "Filters that had to be worked out."),
    "vecstore_filter_cache_bytes": Family("gauge", "Bytes of bitmaps of filters at hand."),
    "vecstore_archived_bytes_total": Family("counter", "Bytes written to the archive, compressed."),
    "vecstore_archive_failures_total": Family("counter", "Tries to archive that failed."),
    "vecstore_archive_lsn": Family("gauge", "Every record up to it is in the archive."),
    "vecstore_archive_lag_records": Family("gauge", "Durable records that are not in the archive."),
    "vecstore_archive_lag_bytes": Family("gauge", "Bytes of log that are not in the archive."),
    "vecstore_archive_lag_seconds": Family("gauge", "For so long the oldest of them has waited."),
    "vecstore_snapshot_seconds": Family("histogram", "Snapshots."),
    "vecstore_snapshot_bytes_total": Family("counter", "Bytes uploaded for snapshots."),
    "vecstore_memory_bytes": Family("gauge", "Bytes that the store holds, mapped rows included."),
    "vecstore_memory_bytes_max": Family("gauge", "Bytes that it may hold; above, writes are refused."),
    "vecstore_disk_free_bytes": Family("gauge", "Free space where the store is."),
    "vecstore_disk_free_bytes_min": Family("gauge", "Its floor; below, writes are refused."),
    "vecstore_kept_bytes": Family("gauge", "Bytes kept beside the store in its folder.", ("folder",)),
    # -- collections
    "vecstore_points": Family("gauge", "Live points.", ("collection",)),
    "vecstore_segments": Family("gauge", "Segments, by state.", ("collection", "state")),
    "vecstore_unindexed_rows": Family("gauge", "Rows that no index covers yet.", ("collection",)),
    "vecstore_dead_rows": Family("gauge", "Rows that were replaced or deleted and still take space.", ("collection",)),
    "vecstore_measured_recall": Family(
        "gauge", "Share of the true nearest that searches found, over the latest that were repeated.", ("collection",)
    ),
    "vecstore_recall_searches_total": Family(
        "counter", "Searches repeated with an exact scan, by what came of it.", ("collection", "result")
    ),
    # -- the server
    "vecstore_start_time_seconds": Family("gauge", "When the server became ready, in seconds since the Unix epoch."),
    "vecstore_info": Family("gauge", "1, with the version, the region and the store.", ("version", "region", "store")),
    "vecstore_certificate_expiry_seconds": Family(
        "gauge", "When the server's certificate ends, in seconds since the Unix epoch; absent without TLS."
    ),
    # -- GPUs
    **DEVICE_FAMILIES,
    # -- other stores
    **REGION_FAMILIES,
}


class _Latencies:
    """How long calls of one method took."""

    __slots__ = ("counts", "sum_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(_BOUNDS_S) + 1)
        self.sum_s = 0.0


class ServerMetrics:
    """The metrics of one server. Thread-safe.

    Parameters
    ----------
    wall_us
        The wall clock.
    region
        Where the server stands.
    """

    def __init__(self, wall_us: Callable[[], int], region: str = "") -> None:
        self._wall_us = wall_us
        self._region = region
        self._lock = threading.Lock()
        self._calls: dict[tuple[str, str], int] = {}
        self._latencies: dict[str, _Latencies] = {}
        self._sheds: dict[str, int] = {}
        self._status: Callable[[], Mapping[str, Any]] | None = None
        self._status_found: tuple[float, Mapping[str, Any] | None] = (float("-inf"), None)
        self._recall: Callable[[], Mapping[str, Mapping[str, float]]] = dict
        self._load: Callable[[], Mapping[str, LaneLoad]] = dict
        self._expiry_s: Callable[[], float | None] = lambda: None
        self._replication: Callable[[], Mapping[str, Any] | None] = lambda: None
        self._retained_bytes_max = 0
        self._drills: Callable[[], Sequence[Mapping[str, Any]]] = tuple
        self._ready_s = 0.0
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_Exported(self))
        ProcessCollector(registry=self._registry)

    # -- what calls say ----------------------------------------------------------------------------------------------

    def observe(self, method: str, code: grpc.StatusCode | str, seconds: float) -> None:
        """Count a call that was answered."""
        # As `name`, which takes as long as all the rest.
        key = (method, code if isinstance(code, str) else code._name_)
        with self._lock:
            self._calls[key] = self._calls.get(key, 0) + 1
            latencies = self._latencies.get(method)
            if latencies is None:
                latencies = self._latencies[method] = _Latencies()
            latencies.counts[bisect_left(_BOUNDS_S, seconds)] += 1
            latencies.sum_s += seconds

    def shed(self, reason: str) -> None:
        """Count a call that was refused to protect the others."""
        with self._lock:
            self._sheds[reason] = self._sheds.get(reason, 0) + 1

    def answered(self) -> dict[str, int]:
        """Return how many calls were answered with what they asked for, by method."""
        with self._lock:
            calls = dict(self._calls)
        found: dict[str, int] = {}
        for (method, code), count in calls.items():
            if code == "OK":
                found[method] = found.get(method, 0) + count
        return found

    # -- who is asked when somebody scrapes --------------------------------------------------------------------------

    def watch_load(self, load: Callable[[], Mapping[str, LaneLoad]]) -> None:
        """Export what each lane of the admission says of itself."""
        self._load = load

    def watch_recall(self, recall: Callable[[], Mapping[str, Mapping[str, float]]]) -> None:
        """Export what the shadow measured: by collection, `recall` and the counts of its results."""
        self._recall = recall

    def watch_certificate(self, expiry_s: Callable[[], float | None]) -> None:
        """Export when the certificate ends."""
        self._expiry_s = expiry_s

    def watch_replication(self, described: Callable[[], Mapping[str, Any] | None], retained_bytes_max: int) -> None:
        """Export what the store says of its replication, and how much log a slot may hold back."""
        self._replication, self._retained_bytes_max = described, retained_bytes_max

    def watch_drills(self, history: Callable[[], Sequence[Mapping[str, Any]]]) -> None:
        """Export what drills found."""
        self._drills = history

    def ready(self, status: Callable[[], Mapping[str, Any]]) -> None:
        """Export a store's status from now on: the server takes calls."""
        self._status = status
        self._ready_s = self._wall_us() / 1e6

    def not_ready(self) -> None:
        """Stop asking the store: it is about to be closed."""
        self._status = None

    def text(self) -> bytes:
        """Return all of it as Prometheus reads it."""
        return generate_latest(self._registry)

    # -- exported ----------------------------------------------------------------------------------------------------

    def families(self) -> Iterator[Metric]:
        """Iterate over what is exported."""
        yield from self._of_calls()
        yield _gauge("vecstore_ready", [((), float(self._status is not None))])
        expiry_s = self._expiry_s()
        yield _gauge("vecstore_certificate_expiry_seconds", [] if expiry_s is None else [((), expiry_s)])
        status = self._store_status()
        info = [((__version__, self._region, str(status["store_id"])), 1.0)] if status is not None else []
        yield _gauge("vecstore_info", info)
        if status is None:
            return
        yield _gauge("vecstore_start_time_seconds", [((), self._ready_s)])
        yield from _of_store(status)
        yield from _of_engine(status.get("metrics", {}), status.get("filter_cache", {}))
        yield from _of_collections(status["collections"], self._recall())
        yield from of_devices(status)
        yield from of_replication(self._replication(), self._retained_bytes_max)
        yield from of_drills(self._drills())

    def _store_status(self) -> Mapping[str, Any] | None:
        ask = self._status
        if ask is None:
            return None
        with self._lock:
            asked_s, found = self._status_found
        # Many scrapers at once ask the store once.
        if found is None or time.monotonic() - asked_s > _STATUS_AGE_S_MAX:
            found = ask()
            with self._lock:
                self._status_found = (time.monotonic(), found)
        return found

    def _of_calls(self) -> Iterator[Metric]:
        with self._lock:
            calls, sheds = dict(self._calls), dict(self._sheds)
            latencies = {method: (list(one.counts), one.sum_s) for method, one in self._latencies.items()}
        yield _counter("vecstore_requests_total", [(key, count) for key, count in sorted(calls.items())])
        times = HistogramMetricFamily(
            "vecstore_request_seconds", FAMILIES["vecstore_request_seconds"].doc, labels=("method",)
        )
        for method, (counts, sum_s) in sorted(latencies.items()):
            times.add_metric((method,), _cumulated(counts), sum_s)
        yield times
        yield _counter("vecstore_sheds_total", [((reason,), count) for reason, count in sorted(sheds.items())])
        load = self._load()
        yield _gauge("vecstore_requests_in_flight", [((lane,), one.in_flight) for lane, one in load.items()])
        yield _gauge("vecstore_queue_calls", [((lane,), one.queued) for lane, one in load.items()])
        yield _gauge("vecstore_limit_calls", [((lane,), one.limit) for lane, one in load.items()])


class _Exported(Collector):
    """What the registry asks."""

    def __init__(self, metrics: ServerMetrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics.families()


def _gauge(name: str, samples: Samples) -> Metric:
    return gauge(FAMILIES, name, samples)


def _counter(name: str, samples: Samples) -> Metric:
    return counter(FAMILIES, name, samples)


def _cumulated(counts: list[int]) -> list[tuple[str, float]]:
    """Return buckets as Prometheus wants them: each holds all below its bound."""
    found: list[tuple[str, float]] = []
    total = 0
    for bound, count in zip((*map(str, _BOUNDS_S), "+Inf"), counts, strict=True):
        total += count
        found.append((bound, float(total)))
    return found


def _of_store(status: Mapping[str, Any]) -> Iterator[Metric]:
    plain = {
        "vecstore_writable": float(status["writable"]),
        "vecstore_primary": float(status["role"] == "primary"),
        "vecstore_epoch": status["epoch"],
        "vecstore_lsn_applied": status["lsn"],
        "vecstore_lsn_durable": status["durable_lsn"],
        "vecstore_findings": len(status["findings"]),
        "vecstore_memory_bytes": status["memory_bytes"],
        "vecstore_memory_bytes_max": status["memory_bytes_max"],
        "vecstore_disk_free_bytes": status["disk_free_bytes"],
        "vecstore_disk_free_bytes_min": status["disk_free_bytes_min"],
    }
    for name, value in plain.items():
        yield _gauge(name, [((), value)])
    kept = status.get("kept") or ()
    yield _gauge("vecstore_kept_bytes", [((found["folder"],), found["bytes"]) for found in kept])
    archive = status.get("archive")
    for name, key in (
        ("vecstore_archive_lsn", "lsn"),
        ("vecstore_archive_lag_records", "lag_records"),
        ("vecstore_archive_lag_bytes", "lag_bytes"),
        ("vecstore_archive_lag_seconds", "lag_s"),
    ):
        yield _gauge(name, [((), archive[key])] if archive else [])


def _of_engine(engine: Mapping[str, Any], cache: Mapping[str, Any]) -> Iterator[Metric]:
    for name, key in (
        ("vecstore_log_bytes_total", "log_bytes"),
        ("vecstore_write_sheds_total", "shed"),
        ("vecstore_rebuilt_total", "rebuilt"),
        ("vecstore_archived_bytes_total", "archived_bytes"),
        ("vecstore_archive_failures_total", "archive_failures"),
        ("vecstore_snapshot_bytes_total", "snapshot_bytes"),
    ):
        yield _counter(name, [((), engine[key])] if key in engine else [])
    for name, key in (
        ("vecstore_sync_seconds", "sync_s"),
        ("vecstore_checkpoint_seconds", "checkpoint_s"),
        ("vecstore_build_seconds", "build_s"),
        ("vecstore_snapshot_seconds", "snapshot_s"),
    ):
        family = HistogramMetricFamily(name, FAMILIES[name].doc)
        if f"{key}_buckets" in engine:
            buckets = [*engine[f"{key}_buckets"].items(), ("+Inf", engine[f"{key}_count"])]
            family.add_metric((), buckets, engine[f"{key}_sum"])
        yield family
    if cache:
        yield _counter("vecstore_filter_cache_hits_total", [((), cache["hits"])])
        yield _counter("vecstore_filter_cache_misses_total", [((), cache["misses"])])
        yield _gauge("vecstore_filter_cache_bytes", [((), cache["bytes"])])


def _of_collections(
    collections: Mapping[str, Mapping[str, Any]], recall: Mapping[str, Mapping[str, float]]
) -> Iterator[Metric]:
    points: list[tuple[tuple[str, ...], float]] = []
    segments: list[tuple[tuple[str, ...], float]] = []
    unindexed: list[tuple[tuple[str, ...], float]] = []
    dead: list[tuple[tuple[str, ...], float]] = []
    for name, one in collections.items():
        found = one["segments"]
        points.append(((name,), one["count"]))
        states = [segment["state"] for segment in found]
        segments += [((name, state), states.count(state)) for state in ("sealed", "growing")]
        unindexed.append(((name,), sum(s["rows"] for s in found if s["state"] == "growing")))
        dead.append(((name,), sum(s["dead"] for s in found)))
    yield _gauge("vecstore_points", points)
    yield _gauge("vecstore_segments", segments)
    yield _gauge("vecstore_unindexed_rows", unindexed)
    yield _gauge("vecstore_dead_rows", dead)
    measured = {name: one for name, one in recall.items() if name in collections}
    yield _gauge(
        "vecstore_measured_recall", [((name,), one["recall"]) for name, one in measured.items() if "recall" in one]
    )
    yield _counter(
        "vecstore_recall_searches_total",
        [((name, key), value) for name, one in measured.items() for key, value in one.items() if key != "recall"],
    )
