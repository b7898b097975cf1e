"""The engine's use of devices: which segments go there, what they are asked, and what becomes of their answers.

A search asks the devices first, before it passes the gate, so that many callers' questions wait together; then it goes
its usual way, and takes the devices' candidates where it has them. Every row is scored again by the engine's own
kernel. A device that cannot answer leaves a gap, which the CPU fills: it costs time, and changes no answer.

An exact search believes a device only where rounding cannot have hidden a nearer row (`Part.bounds`).

Not here: devices themselves (`index.device`). One thread, which loads what new views show; answers are asked for by
callers' threads.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import numpy as np

from ..config import SMALL_SEGMENT_ROWS_MAX, Config
from ..errors import Unavailable
from ..filters import Condition
from ..index import curve
from ..index.answer import Question
from ..index.base import Effort, Floats, Index, Selection
from ..index.base import Rows as RowNumbers
from ..index.channel import WorkerOptions
from ..index.device import Devices, found
from ..index.handle import Device
from ..index.order import Order
from ..index.pending import Pending
from ..index.placement import Wanted
from ..index.source import File
from ..inputs import Ask
from .extent import section_offsets
from .filtering import FilterCache, live_selection
from .search import Answers, Part, scan_rows_max
from .segment import Segment, rows_of
from .state import State
from .view import ShardView

__all__ = ["Accelerator"]

_log = logging.getLogger("vecstore")

_IDLE_S = 0.25
SETTLE_S = 0.5
"""A small segment is loaded once it has stayed for so long: while rows come in, it is replaced several times a
second."""
MARGIN = 32
"""Candidates taken beyond k where rows are rounded to float16, at least."""
WORK_MIN = 1 << 16
"""Rows times queries below which the CPU compares the rows of a filter before a device would be told of it."""
_CHUNK_BYTES = 1 << 23
_SEED = 20_240_229
_MEASURE_PAUSE_S = 30.0


class Accelerator:
    """Devices at the service of one engine. Thread-safe.

    Parameters
    ----------
    state
        Whose views show the segments.
    folder
        Of the segments' files.
    config
        Of the store.
    """

    def __init__(self, state: State, folder: str, config: Config) -> None:
        self._state, self._folder, self._config = state, folder, config
        names = [f"host{i}" for i in range(max(1, config.device_count))] if config.device_backend == "host" else found()
        if config.device_count:
            names = names[: config.device_count]
        options = WorkerOptions(
            backend=config.device_backend,
            budget_bytes=config.device_memory_bytes_max,
            scratch_bytes=config.device_scratch_bytes,
        )
        self._wake = threading.Event()
        self.devices = Devices(options, names, self._wake.set)
        self._lock = threading.Lock()
        self._fallbacks: Counter[str] = Counter()
        self._seen: dict[str, float] = {}
        self._curves: dict[tuple[str, str], curve.Curve] = {}
        self._measured_s: dict[str, float] = {}
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="vecstore-accelerator", daemon=True)

    def start(self) -> None:
        """Start the devices, and load what is there."""
        self.devices.start()
        self._thread.start()

    def close(self) -> None:
        """End all."""
        self._closing.set()
        self._wake.set()
        self._thread.join()
        self.devices.close()

    # -- answers ----------------------------------------------------------------------------------------------------

    def answers(
        self,
        shards: tuple[ShardView, ...],
        queries: Floats,
        k: int,
        condition: Condition | None,
        ask: Ask,
        cache: FilterCache,
        timeout_s: float | None = None,
    ) -> Answers | None:
        """Ask the devices about prepared queries (q, dim); None where they have nothing to say.

        Whoever waits longer than the time given for a device goes on without it.
        """
        until_s = time.monotonic() + (1e9 if timeout_s is None else timeout_s)
        begun: list[tuple[int, str, bool, list[Pending]]] = []
        for number, shard in enumerate(shards):
            selection, share, few = _selection(shard, condition, cache, len(queries))
            if selection is not None and not selection.count:
                continue
            for segment in shard.sealed.segments:
                device = self.devices.holder(segment.name)
                if device is None:
                    # Smaller ones are the CPU's own.
                    if segment.rows >= self._config.device_rows_min:
                        self._count(self.devices.absence(segment.name))
                    continue
                is_exact = ask.exact or segment.index is None or few
                question = self._question(segment, device, k, ask, share, is_exact, selection)
                if question is None:
                    self._count("exact")
                    continue
                parts = _begun(device, segment.name, queries, question, selection)
                if parts is not None:
                    begun.append((number, segment.name, is_exact, parts))
        answers: Answers = {}
        for number, name, is_exact, parts in begun:
            part = _collected(parts, is_exact, until_s)
            if part is not None:
                answers.setdefault(number, {})[name] = part
        return answers or None

    def _question(
        self,
        segment: Segment,
        device: Device,
        k: int,
        ask: Ask,
        share: float,
        is_exact: bool,
        selection: Selection | None,
    ) -> Question | None:
        """Return what to ask a device about a segment; None where it could not answer."""
        loaded = device.loaded(segment.name)
        if loaded is None:
            return None
        choice = loaded.order.made
        # What cannot be beyond the last row: it would only be padding.
        reach = min(k + max(MARGIN, k // 2), segment.rows)
        if is_exact or choice.kind == "flat":
            if choice.kind != "flat" and selection is None:
                return None
            return Question(reach, reach, exact=is_exact)
        known = self._curve(segment, choice.kind, choice.lists, loaded.order.dim)
        if ask.effort is not None:
            effort = known.effort_for(ask.effort, k)
        else:
            effort = known.effort(ask.recall, k, share=share, filtered=selection is not None)
        candidates = min(max(effort.candidates, reach), segment.rows)
        if candidates > device.candidates_max and candidates >= segment.rows and effort.candidates < segment.rows:
            return None
        return Question(min(reach, candidates), candidates, effort.probes, effort.ef)

    def _curve(self, segment: Segment, kind: str, lists: int, dim: int) -> curve.Curve:
        measured = self._curves.get((segment.name, kind))
        return measured if measured is not None else curve.table(_CURVE_KINDS[kind], lists, dim)

    # -- loading ----------------------------------------------------------------------------------------------------

    def _loop(self) -> None:
        while not self._closing.is_set():
            self._wake.wait(_IDLE_S)
            self._wake.clear()
            if self._closing.is_set():
                return
            try:
                self._arrange()
                self._measure_one()
            except Exception:  # noqa: BLE001  (whatever it is, searches go on without a device)
                _log.exception("devices: the segments of the newest view were not arranged; tried again")
                self._closing.wait(_IDLE_S)

    def _arrange(self) -> None:
        now_s = time.monotonic()
        wanted: dict[str, tuple[Wanted, Callable[[], Order | None]]] = {}
        seen: dict[str, float] = {}
        for collection in list(self._state.view.collections.values()):
            definition = collection.state.definition
            for shard in collection.shards:
                for segment in shard.sealed.segments:
                    first_s = seen[segment.name] = self._seen.get(segment.name, now_s)
                    is_settled = segment.rows > SMALL_SEGMENT_ROWS_MAX or now_s - first_s >= SETTLE_S
                    if not is_settled or segment.rows < self._config.device_rows_min:
                        continue
                    one = Wanted(segment.name, segment.rows, definition.dim, definition.metric, definition.index)
                    wanted[segment.name] = (one, partial(self._order, shard, segment))
        self._seen = seen
        self._curves = {key: one for key, one in self._curves.items() if key[0] in wanted}
        self._measured_s = {name: at_s for name, at_s in self._measured_s.items() if name in wanted}
        self.devices.arrange(wanted)

    def _order(self, shard: ShardView, segment: Segment) -> Order | None:
        """Return what a worker must know to read a segment; None where a file is gone, as happens to old views."""
        files = []
        for extent in segment.extents:
            if extent.file is None:
                return None
            try:
                offsets = section_offsets(self._folder, extent)
            except OSError:
                return None
            path = f"{self._folder}/{extent.file.name}"
            files.append(File(path, extent.start, extent.rows, offsets["vectors"], offsets.get("inverse_norms", -1)))
        return Order(segment.name, shard.rows.metric, shard.rows.dim, segment.rows, tuple(files), None, _SEED)

    def _measure_one(self) -> None:
        """Measure the recall of one index that has no curve of this device yet."""
        now_s = time.monotonic()
        for collection in list(self._state.view.collections.values()):
            for shard in collection.shards:
                for segment in shard.sealed.segments:
                    device = self.devices.holder(segment.name)
                    loaded = None if device is None else device.loaded(segment.name)
                    if device is None or loaded is None or loaded.order.made.kind == "flat":
                        continue
                    key = (segment.name, loaded.order.made.kind)
                    waits = now_s - self._measured_s.get(segment.name, -1e9) < _MEASURE_PAUSE_S
                    if key not in self._curves and not waits:
                        self._measured_s[segment.name] = now_s
                        self._measure(shard, segment, device, loaded.order)
                        return

    def _measure(self, shard: ShardView, segment: Segment, device: Device, order: Order) -> None:
        live = shard.sealed.live
        numbers = rows_of(segment.extents)
        numbers = numbers[(live[numbers >> 3] >> (numbers & 7).astype(np.uint8)) & 1 == 1]
        if not len(numbers):
            return
        index = cast(Index, _Searched(device, order))
        vectors = shard.rows.vectors
        try:
            measured = curve.measure(
                index, vectors.metric, vectors, numbers, threads=self._config.build_thread_count(), seed=_SEED
            )
        except Unavailable as exc:
            _log.info("the recall of %s on device %s was not measured: %s", segment.name, device.name, exc)
            return
        self._curves[segment.name, order.made.kind] = measured

    # -- reports ----------------------------------------------------------------------------------------------------

    def status(self) -> list[dict[str, Any]]:
        """Return plain values of each device."""
        plain = self.devices.status()
        for device in plain:
            for name, one in device["segments"].items():
                known = self._curves.get((name, one["kind"]))
                one["recall"] = known.report() if known is not None else {"source": "table", "recall": {}}
        return plain

    def fallback_counts(self) -> dict[str, int]:
        """Return how often the CPU answered what a device held, by reason."""
        with self._lock:
            return dict(Counter(self.devices.fallbacks()) + self._fallbacks)

    def _count(self, reason: str) -> None:
        """Count a question that no device was asked."""
        with self._lock:
            self._fallbacks[reason] += 1


_CURVE_KINDS = {"ivf_sq": "ivf_sq8", "ivf_pq": "ivf_pq", "cagra": "hnsw"}
"""By which of the CPU's tables an index on a device starts: it loses no more than that one."""


class _Searched:
    """An index on a device as `curve.measure` searches it."""

    def __init__(self, device: Device, order: Order) -> None:
        choice = order.made
        self._device, self._segment = device, order.segment
        self.kind = _CURVE_KINDS[choice.kind]
        self.count, self.bytes, self.lists = order.rows, choice.need.serve, choice.lists

    def search(self, queries: Floats, effort: Effort, selection: Selection | None = None) -> RowNumbers:
        """Return candidates in the order of the device's scores."""
        width = min(effort.candidates, self.count, self._device.candidates_max)
        question = Question(width, width, effort.probes, effort.ef)
        parts = _begun(self._device, self._segment, np.ascontiguousarray(queries), question, selection)
        part = None if parts is None else _collected(parts, False, time.monotonic() + 60)
        if part is None:
            raise Unavailable("the device did not answer", hint="it is tried again")
        return part.rows


def _selection(
    shard: ShardView, condition: Condition | None, cache: FilterCache, queries: int
) -> tuple[Selection | None, float, bool]:
    """Return the rows of a shard that may be found (None: all), their share, and whether they are few.

    Few are those that the CPU would compare one by one: then a device must not miss one either.
    """
    sealed = shard.sealed
    if condition is not None:
        match = cache.match(shard, condition)
        few = match.count <= scan_rows_max(shard.rows.dim, sealed)
        if few and match.count * queries <= WORK_MIN:
            return _nothing, 0.0, True
        return match.selection, match.count / max(1, sealed.rows), few
    if any(sealed.dead):
        return live_selection(sealed), sealed.rows / sum(segment.rows for segment in sealed.segments), False
    return None, 1.0, False


class _Nothing:
    """No rows: there is nothing to ask a device."""

    bitmap = np.empty(0, np.uint8)
    count = 0


_nothing: Selection = _Nothing()


def _begun(
    device: Device, segment: str, queries: Floats, question: Question, selection: Selection | None
) -> list[Pending] | None:
    """Ask in pieces that the shared memory has room for; None where one of them could not be asked."""
    step = max(1, _CHUNK_BYTES // (4 * queries.shape[1] + 8 * question.kept + 4))
    parts: list[Pending] = []
    for at in range(0, len(queries), step):
        pending = device.ask(segment, queries[at : at + step], question, selection)
        if isinstance(pending, str):
            for part in parts:
                part.answer()
            return None
        parts.append(pending)
    return parts or None


def _collected(parts: list[Pending], is_exact: bool, until_s: float) -> Part | None:
    """Wait for the answers to one question; None where one of them did not come."""
    answers = [part.answer(max(0.0, until_s - time.monotonic())) for part in parts]
    rows: list[RowNumbers] = []
    bounds: list[Floats] = []
    for answer in answers:
        if isinstance(answer, str):
            return None
        rows.append(answer.rows)
        bounds.append(answer.bounds)
    if len(rows) == 1:
        return Part(rows[0], bounds[0], is_exact)
    return Part(np.concatenate(rows), np.concatenate(bounds), is_exact)
