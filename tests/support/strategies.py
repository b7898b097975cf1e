"""Hypothesis strategies for ids, vectors, payloads and filters over one small schema."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

__all__ = ["DIM", "FIELDS", "conditions", "id_lists", "payloads", "vectors"]

DIM = 4
FIELDS = {
    "word": "string",
    "size": "int64",
    "ratio": "float64",
    "open": "bool",
    "made": "timestamp",
    "tags": "list<string>",
    "marks": "list<int64>",
}
_WORDS = st.sampled_from(["", "a", "b", "ab", "Z", "é", "ﬀ", "\U0001f600", "\ue000"])
_INTS = st.one_of(st.integers(-3, 3), st.sampled_from([-(2**63), 2**63 - 1, 2**53 + 1]))
_FLOATS = st.sampled_from([-1.5, -0.0, 0.0, 0.25, 1.0, 3.0, 1e300, 5e-324])
_TIMES = st.builds(
    lambda minutes, hours: datetime(2024, 1, 1, tzinfo=timezone(timedelta(hours=hours))) + timedelta(minutes=minutes),
    st.integers(-120, 120),
    st.integers(-2, 2),
)
_SCALARS: dict[str, st.SearchStrategy[Any]] = {
    "word": _WORDS,
    "size": _INTS,
    "ratio": st.one_of(_FLOATS, st.integers(-2, 2)),
    "open": st.booleans(),
    "made": st.one_of(_TIMES, st.just("2024-01-01T00:00:00Z"), st.just("2024-01-01T01:30:00.5+01:00")),
    "tags": _WORDS,
    "marks": _INTS,
}


def id_lists(kind: str, size_max: int = 6) -> st.SearchStrategy[list[int | str]]:
    """Lists of ids of one kind from a small pool, with repeats, the edges of the range among them."""
    pool: list[Any]
    if kind == "int":
        pool = [*range(20), 255, 256, 2**32, 2**63 - 1]
    else:
        pool = ["a", "b", "aa", "A", "z", "é", "\U0001f600", "\ue000", "x" * 512, "0", "00", " ", "a\x00b"]
    return st.lists(st.sampled_from(pool), min_size=1, max_size=size_max)


def vectors(count: int) -> st.SearchStrategy[npt.NDArray[np.float32]]:
    """float32 (count, DIM) of small whole numbers, never zero: ties are frequent and scores exact."""
    row = st.lists(st.integers(-2, 3), min_size=DIM, max_size=DIM).filter(any)
    return st.lists(row, min_size=count, max_size=count).map(lambda rows: np.array(rows, np.float32))


def _values(name: str) -> st.SearchStrategy[Any]:
    scalar = _SCALARS[name]
    return st.lists(scalar, min_size=1, max_size=3) if FIELDS[name].startswith("list<") else scalar


def payloads(changes: bool = False) -> st.SearchStrategy[dict[str, Any]]:
    """Payloads with any of the fields, and a key that no field names; for `changes`, None among the values."""
    null = st.none() if changes else st.nothing()
    named = {name: st.one_of(null, _values(name)) for name in FIELDS}
    free = st.sampled_from([1, 2.5, "x", True, [1, "y", None], {"deep": {"er": []}}])
    return st.fixed_dictionaries({}, optional={**named, "free": st.one_of(null, free)})


def _leaf(name: str) -> st.SearchStrategy[dict[str, Any]]:
    value = _SCALARS[name]
    several = st.lists(value, min_size=1, max_size=3)
    tests: list[st.SearchStrategy[Any]] = [
        value,
        st.fixed_dictionaries({"$eq": value}),
        st.fixed_dictionaries({"$ne": value}),
        st.fixed_dictionaries({"$in": several}),
        st.fixed_dictionaries({"$nin": several}),
        st.fixed_dictionaries({"$null": st.booleans()}),
    ]
    if FIELDS[name].startswith("list<"):
        tests.append(st.fixed_dictionaries({"$contains": value}))
    if name != "open":
        tests.extend(st.fixed_dictionaries({op: value}) for op in ("$lt", "$lte", "$gt", "$gte"))
        tests.append(st.fixed_dictionaries({"$gte": value, "$lt": value}))
    return st.one_of(tests).map(lambda test: {name: test})


def conditions(names: tuple[str, ...] = tuple(FIELDS)) -> st.SearchStrategy[dict[str, Any]]:
    """Filters in their dict form over the fields named."""
    leaves = st.one_of([_leaf(name) for name in names])
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"$and": parts}),
            st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"$or": parts}),
            inner.map(lambda part: {"$not": part}),
        ),
        max_leaves=4,
    )
