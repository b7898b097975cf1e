"""Measured recall: one in so many searches is repeated in the background, as it was asked and with an exact scan.

Both are run here, one after the other, and count only where they saw the same LSN, so writes between them cannot lower
the figure. Measurements are kept out of the callers' way: few wait (the rest is left out), one runs at a time, none
while callers' calls wait, and all of them take a small share of the time. They have the same priority as
callers' searches once they run, because they hold a place at the engine's gate: one that starves there would keep
callers out.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from itertools import count
from typing import Any

import numpy as np

from ..api import Collection
from ..errors import VecstoreError
from ..values import Hits, Metric
from ..wire.codec import unpack_filter
from ..wire.v1 import store_pb2 as pb
from .settings import MetricsSettings

__all__ = ["Shadow"]

_WINDOW_SEARCHES = 200
_TRIES = 3
_PAUSE_S_MIN = 0.005
_LOG = logging.getLogger("vecstore.server")


class Shadow:
    """Measures the recall of the searches that it is offered. Thread-safe.

    Parameters
    ----------
    settings
        How often, and how much of it.
    find
        Gives the collection of a number, None where it is gone.
    is_busy
        Whether callers' calls wait: then nothing is measured.
    """

    def __init__(
        self,
        settings: MetricsSettings,
        find: Callable[[int], Collection | None],
        is_busy: Callable[[], bool] = lambda: False,
    ) -> None:
        self._every = settings.recall_every
        self._time_share = settings.recall_time_share
        self._find, self._is_busy = find, is_busy
        self._seen = count(1)
        self._queue: queue.Queue[pb.SearchRequest | None] = queue.Queue(settings.recall_queue_max)
        self._lock = threading.Lock()
        self._measured: dict[str, deque[float]] = {}
        self._results: dict[str, dict[str, int]] = {}
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="vecstore-shadow", daemon=True)

    def start(self) -> None:
        """Begin to measure."""
        self._thread.start()

    def close(self) -> None:
        """Stop, and wait until the last measurement is over: the store may be closed then."""
        self._closed.set()
        # Where it is full, whatever is taken next is not looked at any more.
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait(None)
        if self._thread.is_alive():
            self._thread.join()

    def offer(self, request: pb.SearchRequest) -> None:
        """Take one in so many of the searches that were answered."""
        if next(self._seen) % self._every or request.exact:
            return
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait(request)

    def report(self) -> Mapping[str, Mapping[str, float]]:
        """Return the recall over the latest searches of each collection, and how many were measured or not."""
        with self._lock:
            found: dict[str, dict[str, float]] = {name: dict(results) for name, results in self._results.items()}
            for name, recalls in self._measured.items():
                found[name]["recall"] = sum(recalls) / len(recalls)
        return found

    def _run(self) -> None:
        while (request := self._queue.get()) is not None and not self._closed.is_set():
            start_s = time.monotonic()
            try:
                self._repeat(request)
            except Exception:  # noqa: BLE001 - logged; the next search may go better
                _LOG.exception("a search was not repeated")
            took_s = time.monotonic() - start_s
            self._closed.wait(max(_PAUSE_S_MIN, took_s * (1 / self._time_share - 1)))

    def _repeat(self, request: pb.SearchRequest) -> None:
        collection = self._find(request.collection)
        if collection is None:
            return
        try:
            self._measure(collection, request)
        except VecstoreError:
            # Dropped meanwhile, or no longer a search that is allowed: the next one tells more.
            self._count(collection, "failed", None)

    def _measure(self, collection: Collection, request: pb.SearchRequest) -> None:
        if self._is_busy():
            self._count(collection, "busy", None)
            return
        vector = np.frombuffer(request.vector, np.float32)
        asked: dict[str, Any] = {
            "filter": unpack_filter(request.filter),
            "with_payload": False,
            "offset": request.offset,
        }
        for _ in range(_TRIES):
            found = collection.search(
                vector,
                request.k,
                recall=request.recall if request.HasField("recall") else None,
                effort=request.effort if request.HasField("effort") else None,
                **asked,
            )
            truth = collection.search(vector, request.k, exact=True, **asked)
            if found.lsn == truth.lsn:
                self._count(collection, "measured", _recall(found, truth, collection.metric))
                return
        self._count(collection, "changed", None)

    def _count(self, collection: Collection, result: str, recall: float | None) -> None:
        name = collection.name
        with self._lock:
            results = self._results.setdefault(name, {})
            results[result] = results.get(result, 0) + 1
            if recall is not None:
                self._measured.setdefault(name, deque(maxlen=_WINDOW_SEARCHES)).append(recall)


def _recall(found: Hits, truth: Hits, metric: Metric) -> float:
    """Return which share of the true hits was found; one that is as near as the last of them is as good."""
    if not truth:
        return 1.0
    farthest = truth[-1].score
    near = sum(hit.score <= farthest if metric == "l2" else hit.score >= farthest for hit in found)
    return min(1.0, near / len(truth))
