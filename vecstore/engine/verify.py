"""Verification: chain and digests recomputed from the bytes, and each damaged range and point named.

Everything is read at one LSN: the scans are begun while the committer stands between two groups. Points are checked
three times over: against the hash beside each, by id and LSN against the rows of the view, and in the sum against the
digest of the commit marks.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import xxhash

from ..config import EXTENT_ROWS
from ..errors import Damaged
from ..record import DIGEST_MODULUS, STAMP_BYTES, key_id
from ..storage.base import Family
from ..storage.catalog import CollectionState
from ..storage.proof import get_each
from .checkpoint import needed_files
from .engine import Engine
from .extent import Slot, read_file
from .points import places
from .recovery import LogReader
from .rows import Rows
from .view import CollectionView, View

__all__ = ["store_bytes", "verify"]

_NAMED_MAX = 1_000
_PROBE = 256

Pairs = Iterator[tuple[bytes, bytes]]


@dataclass(slots=True)
class _Pinned:
    """What is read, all at one LSN."""

    view: View
    states: dict[int, CollectionState]
    points: dict[int, Pairs]


def verify(engine: Engine, progress: Callable[[int, int], None] | None) -> dict[str, Any]:
    """Read everything that the store keeps and say what is not as it was written."""
    pinned: _Pinned = engine.at_barrier(lambda: _pin(engine))
    damaged: list[dict[str, Any]] = []
    total = sum(state.points for state in pinned.states.values())
    done = 0
    collections = {}
    for number, state in pinned.states.items():

        def step(count: int) -> None:
            nonlocal done
            done += count
            if progress is not None:
                progress(min(done, total), total)

        name = state.definition.name
        digest, count = _check_points(engine, number, name, pinned, damaged, step)
        collections[name] = {"digest": digest.to_bytes(16, "big").hex(), "count": count}
        if (digest, count) != (state.digest, state.points):
            expected = {"digest": state.digest.to_bytes(16, "big").hex(), "count": state.points}
            damaged.append({"place": "digest", "collection": name, "found": collections[name], "expected": expected})
    _check_log(engine, pinned.view, damaged)
    _check_files(engine, pinned.view, damaged)
    if progress is not None:
        progress(total, total)
    return {
        "ok": not damaged,
        "lsn": pinned.view.lsn,
        "chain": pinned.view.chain.hex(),
        "collections": collections,
        "damaged": damaged,
        "findings": list(engine.findings),
    }


def _pin(engine: Engine) -> _Pinned:
    view = engine.state.view
    spans = {number: (number.to_bytes(8, "big"), (number + 1).to_bytes(8, "big")) for number in view.collections}
    return _Pinned(
        view,
        {number: collection.state for number, collection in view.collections.items()},
        {number: engine.store.scan(Family.POINTS, *span) for number, span in spans.items()},
    )


# -- points ----------------------------------------------------------------------------------------------------------


def _check_points(
    engine: Engine,
    number: int,
    name: str,
    pinned: _Pinned,
    damaged: list[dict[str, Any]],
    step: Callable[[int], None],
) -> tuple[int, int]:
    """Return digest and count of a collection, from the bytes of its points."""
    collection = pinned.view.collections[number]
    points = _Guarded(engine, number, collection, name, pinned, damaged)
    rows = places(number, collection, pinned.view.lsn)
    digest = count = 0
    row = next(rows, None)
    for place, value in points:
        while row is not None and row[0] < place:
            _report(damaged, name, row[0], "a row without a point")
            row = next(rows, None)
        found = xxhash.xxh3_128_digest(value[STAMP_BYTES:])
        digest, count = (digest + int.from_bytes(found, "big")) % DIGEST_MODULUS, count + 1
        lsn = int.from_bytes(value[:8], "little")
        if value[8:STAMP_BYTES] != found:
            _report(damaged, name, place, "its content is not what was written")
        if row is None or row[0] != place:
            _report(damaged, name, place, "a point without a row")
        else:
            if row[1] != lsn:
                _report(damaged, name, place, f"it is of LSN {lsn}, its row of LSN {row[1]}")
            row = next(rows, None)
        if count % 1_000 == 0:
            step(1_000)
    while row is not None:
        _report(damaged, name, row[0], "a row without a point")
        row = next(rows, None)
    step(count % 1_000)
    return digest, count


def _report(damaged: list[dict[str, Any]], name: str, place: bytes, why: str) -> None:
    if len(damaged) < _NAMED_MAX:
        damaged.append({"place": "points", "collection": name, "id": key_id(place[8:]), "why": why})


class _Guarded:
    """A scan that goes on behind a damaged block: the range is reported, and the keys in it are tried one by one."""

    def __init__(
        self,
        engine: Engine,
        number: int,
        collection: CollectionView,
        name: str,
        pinned: _Pinned,
        damaged: list[dict[str, Any]],
    ) -> None:
        self._engine, self._number, self._collection, self._name = engine, number, collection, name
        self._lsn, self._pairs, self._damaged = pinned.view.lsn, pinned.points[number], damaged
        self._last = number.to_bytes(8, "big")

    def __iter__(self) -> _Guarded:
        return self

    def __next__(self) -> tuple[bytes, bytes]:
        try:
            pair = next(self._pairs)
        except Damaged as exc:
            self._pairs = self._behind(exc)
            pair = next(self._pairs)
        self._last = pair[0]
        return pair

    def _behind(self, exc: Damaged) -> Pairs:
        """Yield the pairs behind the last one that can still be read by key."""
        report = {
            "place": Family.POINTS.value,
            "collection": self._name,
            "after": None if len(self._last) == 8 else key_id(self._last[8:]),
            "why": str(exc),
        }
        self._damaged.append(report)
        first = self._last[8:] + b"\0" if len(self._last) > 8 else None
        keys = [place for place, _ in places(self._number, self._collection, self._lsn, first) if place > self._last]
        for start in range(0, len(keys), _PROBE):
            yield from self._probe(keys[start : start + _PROBE])

    def _probe(self, keys: list[bytes]) -> Pairs:
        for key, found in zip(keys, get_each(self._engine.store, Family.POINTS, keys), strict=True):
            if isinstance(found, Damaged):
                _report(self._damaged, self._name, key, str(found))
            elif found is not None:
                yield key, found


# -- log and files ---------------------------------------------------------------------------------------------------


def _check_log(engine: Engine, view: View, damaged: list[dict[str, Any]]) -> None:
    """Read the log's records up to the view: dense, and on one chain that ends where the view does."""
    chain, last = b"", 0
    try:
        for record in LogReader(engine.store).records(0):
            if record.lsn > view.lsn:
                break
            if last and not record.follows(last, chain):
                damaged.append({"place": "log", "lsn": record.lsn, "why": "it breaks the chain"})
            chain, last = record.mark.chain, record.lsn
    except Damaged as exc:
        damaged.append({"place": "log", "lsn": exc.details.get("lsn", last + 1), "why": str(exc)})
        return
    if last == view.lsn and last and chain != view.chain:
        damaged.append({"place": "log", "lsn": last, "why": "the chain does not end where the view does"})


def _check_files(engine: Engine, view: View, damaged: list[dict[str, Any]]) -> None:
    """Read the files of the view's extents again."""
    folder = engine.directory.index
    for collection in view.collections.values():
        for shard in collection.shards:
            scratch = Rows(shard.rows.dim, shard.rows.metric, EXTENT_ROWS)
            for segment in shard.sealed.segments:
                for extent in segment.extents:
                    assert extent.file is not None
                    try:
                        read_file(folder, extent.file, scratch, Slot(0, deque()))
                    except Damaged as exc:
                        if extent.file.name not in needed_files([], [], engine.state.view):
                            # Rewritten or dropped since the view was taken: its file may be gone.
                            continue
                        name = collection.state.definition.name
                        report = {"place": "extent", "collection": name, "why": str(exc)} | exc.details
                        damaged.append(report)


def store_bytes(path: str) -> int:
    """Return the bytes of all files of a store."""
    return sum(
        os.path.getsize(os.path.join(folder, name))
        for folder, _, names in os.walk(path)
        for name in names
        if os.path.exists(os.path.join(folder, name))
    )
