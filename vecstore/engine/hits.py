"""Hits that are made when they are looked at: a search copies bytes, and decodes JSON for who asks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from ..config import EXTENT_ROWS
from ..record import IdKind
from ..values import Hit, Hits, SearchBatch
from . import payload as payloads
from .search import Found, id_at, ids_at, payload_at, vector_at
from .view import CollectionView, ShardView

__all__ = ["BatchHits", "FoundHits", "batch_of", "hits_of", "joined", "payload_bytes", "vectors_at"]

_SLOT_SHIFT = EXTENT_ROWS.bit_length() - 1
_SLOT_MASK = EXTENT_ROWS - 1
_STRINGS = int(IdKind.STR)


class FoundHits(Hits):
    """The hits of one query: ids, scores, payloads as bytes.

    Everything is copied out of the view when the search ends, so that a hit outlives the rows it was found in.
    """

    __slots__ = ("_data", "_ids", "_keys", "_made", "_scores", "_vectors")

    def __init__(
        self,
        ids: list[Any],
        scores: list[float],
        data: list[bytes] | None,
        keys: bool | tuple[str, ...],
        vectors: list[npt.NDArray[np.float32]] | None,
        lsn: int,
        exact: bool,
    ) -> None:
        self._ids, self._scores, self._data, self._keys, self._vectors = ids, scores, data, keys, vectors
        self._made: list[Hit | None] | None = None
        self.lsn = lsn
        self.exact = exact

    def _hit(self, i: int) -> Hit:
        if self._made is None:
            self._made = [None] * len(self._ids)
        hit = self._made[i]
        if hit is None:
            payload = payloads.decode(self._data[i], self._keys) if self._data is not None else {}
            vector = self._vectors[i] if self._vectors is not None else None
            hit = self._made[i] = Hit(self._ids[i], payload, vector, self._scores[i])
        return hit

    @overload
    def __getitem__(self, i: int) -> Hit: ...
    @overload
    def __getitem__(self, i: slice) -> Sequence[Hit]: ...
    def __getitem__(self, i: int | slice) -> Hit | Sequence[Hit]:
        if isinstance(i, slice):
            return [self._hit(j) for j in range(*i.indices(len(self._ids)))]
        if not -len(self._ids) <= i < len(self._ids):
            raise IndexError(f"hit {i} of {len(self._ids)}")
        return self._hit(i % len(self._ids))

    def __len__(self) -> int:
        return len(self._ids)

    def __iter__(self) -> Iterator[Hit]:
        return map(self._hit, range(len(self._ids)))

    def __repr__(self) -> str:
        return f"Hits({list(self)!r}, lsn={self.lsn}, exact={self.exact})"


class BatchHits(Sequence[Hits]):
    """The hits of each query of a batch, made when they are looked at."""

    def __init__(
        self,
        ids: npt.NDArray[Any],
        scores: npt.NDArray[np.float32],
        data: list[list[bytes]] | None,
        keys: bool | tuple[str, ...],
        lsn: int,
        exact: bool,
    ) -> None:
        self._ids, self._scores, self._data, self._keys = ids, scores, data, keys
        self._lsn, self._exact = lsn, exact

    @overload
    def __getitem__(self, i: int) -> Hits: ...
    @overload
    def __getitem__(self, i: slice) -> Sequence[Hits]: ...
    def __getitem__(self, i: int | slice) -> Hits | Sequence[Hits]:
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        count = int(np.count_nonzero(~np.isnan(self._scores[i])))
        data = None if self._data is None else self._data[i]
        ids, scores = self._ids[i, :count].tolist(), self._scores[i, :count].tolist()
        return FoundHits(ids, scores, data, self._keys, None, self._lsn, self._exact)

    def __len__(self) -> int:
        return len(self._scores)


def payload_bytes(shards: tuple[ShardView, ...], places: list[int]) -> list[bytes]:
    """Return the payloads at places."""
    if len(shards) == 1:
        extents = shards[0].extents
        # Every place that is not -1 is a row of an extent of the view.
        return [extents[place >> _SLOT_SHIFT].payloads[place & _SLOT_MASK] for place in places if place >= 0]  # type: ignore[union-attr]
    return [payload_at(shards, place) for place in places if place >= 0]


def vectors_at(shards: tuple[ShardView, ...], found: Found, count: int) -> list[npt.NDArray[np.float32]]:
    """Return copies of the vectors of the first hits of one query."""
    return [vector_at(shards, place) for place in found.places[0, :count].tolist()]


def hits_of(
    collection: CollectionView,
    lsn: int,
    found: Found,
    keys: bool | tuple[str, ...],
    with_vector: bool,
    score_threshold: float | None,
) -> Hits:
    """Return the hits of one query, cut at a threshold."""
    shards = collection.shards
    rows = found.places[0]
    places, scores = rows.tolist(), found.scores[0].tolist()
    count = len(places)
    while count and (places[count - 1] < 0 or _is_beyond(scores[count - 1], score_threshold, collection)):
        count -= 1
    if count < len(places):
        rows, places, scores = rows[:count], places[:count], scores[:count]
    if len(shards) == 1 and collection.state.definition.id_kind != _STRINGS:
        ids = shards[0].rows.codes[rows].view(np.int64).tolist()
    else:
        ids = [id_at(shards, place) for place in places]
    data = payload_bytes(shards, places) if keys is not False else None
    vectors = vectors_at(shards, found, count) if with_vector else None
    return FoundHits(ids, scores, data, keys, vectors, lsn, found.exact)


def _is_beyond(score: float, threshold: float | None, collection: CollectionView) -> bool:
    if threshold is None:
        return False
    return score > threshold if collection.state.definition.metric == "l2" else score < threshold


def batch_of(collection: CollectionView, lsn: int, found: Found, k: int, keys: bool | tuple[str, ...]) -> SearchBatch:
    """Return the hits of a batch of queries, padded to k."""
    found = _padded(found, k)
    ids = ids_at(collection.shards, found.places, collection.state.id_kind == IdKind.STR)
    data = None
    if keys is not False:
        data = [payload_bytes(collection.shards, places) for places in found.places.tolist()]
    hits = BatchHits(ids, found.scores, data, keys, lsn, found.exact)
    return SearchBatch(ids, found.scores, hits, lsn)


def _padded(found: Found, k: int) -> Found:
    missing = k - found.scores.shape[1]
    if missing <= 0:
        return found
    count = len(found.scores)
    return Found(
        np.hstack([found.scores, np.full((count, missing), np.nan, np.float32)]),
        np.hstack([found.places, np.full((count, missing), -1, np.int64)]),
        found.exact,
    )


def joined(parts: list[Found], k: int) -> Found:
    """Return what parts of a batch found as one."""
    parts = [_padded(part, k) for part in parts]
    return Found(
        np.concatenate([part.scores for part in parts]),
        np.concatenate([part.places for part in parts]),
        all(part.exact for part in parts),
    )
