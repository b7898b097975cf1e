"""Canary queries: exact searches of a pinned view with vectors of stored points, and whether two answers are the same.

What a scrub compares are the points on disk; searches read rows. A canary goes the way of a search, through rows, live
bitmaps and views, at exactly the LSN of the pin. It compares every row and asks no index of its own kind: what an index
answers depends on how it was built, and two stores build on their own.

Scores of one machine have the same bits on every path; those of two may differ in the last ones, and so may the order
of hits that are as good as equally near.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from ..config import RECALL_DEFAULT
from ..index.cpu import prepare
from ..inputs import Ask
from ..record import id_key
from ..values import Metric
from .filtering import FilterCache
from .search import id_at, search
from .view import View

__all__ = ["Hits", "asked", "chosen", "is_same"]

SCORE_TOLERANCE = 1e-4
"""Of scores, relative; what the order of a sum of float32 can change is far less."""

Hits = tuple[tuple[bytes, ...], tuple[float, ...]]
"""Id keys and scores, nearest first."""


def chosen(view: View, number: int, rng: random.Random) -> bytes | None:
    """Return the vector of a stored point of a collection, as float32 bytes; None where there is none."""
    collection = view.collections.get(number)
    if collection is None:
        return None
    shards = [shard for shard in collection.shards if len(shard.live_rows(view.lsn))]
    if not shards:
        return None
    shard = rng.choice(shards)
    rows = shard.live_rows(view.lsn)
    vector: bytes = shard.rows.vectors.data[int(rows[rng.randrange(len(rows))])].astype("<f4").tobytes()
    return vector


def asked(view: View, number: int, vector: bytes, k: int) -> Hits:
    """Return what an exact search finds in a view."""
    collection = view.collections.get(number)
    if collection is None:
        return (), ()
    definition = collection.state.definition
    query = np.frombuffer(vector, "<f4")
    if query.shape != (definition.dim,):
        return (), ()
    prepared = prepare(definition.metric, query[None, :].astype(np.float32))
    found = search(collection.shards, view.lsn, prepared, k, None, Ask(RECALL_DEFAULT, exact=True), FilterCache(0))
    places = [place for place in found.places[0].tolist() if place >= 0] if len(found.places) else []
    keys = tuple(id_key(id_at(collection.shards, place)) for place in places)
    return keys, tuple(float(score) for score in found.scores[0, : len(places)])


def is_same(one: Hits, other: Hits, metric: Metric) -> bool:
    """Return whether two answers are the same but for the last bits of scores."""
    if len(one[0]) != len(other[0]):
        return False
    if not one[0]:
        return True
    scores = [dict(zip(*answer, strict=True)) for answer in (one, other)]
    last = min(one[1][-1], other[1][-1]) if metric != "l2" else max(one[1][-1], other[1][-1])
    for mine, theirs in (scores, scores[::-1]):
        for key, score in mine.items():
            if key not in theirs:
                # Only what is as near as the last hit may be left out by one of the two.
                if not _is_near(score, last):
                    return False
            elif not _is_near(score, theirs[key]):
                return False
    return _in_step(one[1], other[1])


def _in_step(one: Sequence[float], other: Sequence[float]) -> bool:
    return all(_is_near(a, b) for a, b in zip(one, other, strict=True))


def _is_near(a: float, b: float) -> bool:
    return abs(a - b) <= SCORE_TOLERANCE * max(1.0, abs(a), abs(b))
