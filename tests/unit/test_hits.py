"""Hits are made when they are looked at, and are the same whichever way that is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vecstore.hits import FoundHits
from vecstore.payload import encode


def _found(count: int, keys: Any, *, vectors: bool) -> FoundHits:
    data = None if keys is False else [encode({"n": n, "m": -n}, "p") for n in range(count)]
    made = [np.full(2, n, np.float32) for n in range(count)] if vectors else None
    return FoundHits(list(range(count)), [n / 7 for n in range(count)], data, keys, made, 5, True)


@pytest.mark.parametrize("count", [0, 1, 10, 128, 129, 300])
@pytest.mark.parametrize("keys", [True, False, ("n",)])
@pytest.mark.parametrize("vectors", [False, True])
def test_hits_are_the_same_one_by_one_and_all_at_once(count: int, keys: Any, vectors: bool) -> None:
    """Going through them, asking for one, and slices give equal hits, and each is made once."""
    whole, single = _found(count, keys, vectors=vectors), _found(count, keys, vectors=vectors)
    hits = list(whole)
    assert len(hits) == len(whole) == count
    for i, hit in enumerate(hits):
        other = single[i]
        assert (hit.id, hit.payload, hit.score) == (other.id, other.payload, other.score)
        assert (hit.vector is None) == (not vectors)
        if hit.vector is not None and other.vector is not None:
            assert hit.vector.tolist() == other.vector.tolist()
        assert whole[i] is hit
        assert single[i] is other
    assert [hit.id for hit in list(whole)] == [hit.id for hit in whole[:]]
    assert all(a is b for a, b in zip(whole, hits, strict=True))
