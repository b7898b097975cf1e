"""What a search found, copied out of the view as hits: ids, scores, payloads as bytes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..config import EXTENT_ROWS
from ..hits import BatchHits, FoundHits
from ..record import IdKind
from ..values import Hits, SearchBatch
from .search import Found, id_at, ids_at, payload_at, vector_at
from .view import CollectionView, ShardView

__all__ = ["batch_of", "hits_of", "joined", "payload_bytes", "vectors_at"]

_SLOT_SHIFT = EXTENT_ROWS.bit_length() - 1
_SLOT_MASK = EXTENT_ROWS - 1
_STRINGS = int(IdKind.STR)


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
