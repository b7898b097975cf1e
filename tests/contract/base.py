"""The fixtures and checks that all topics of the contract share. Not a suite of its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from vecstore import Collection, Database, VecstoreError

__all__ = ["FIELDS", "PAYLOADS", "VECTORS", "DatabaseContract", "ids_of", "refused", "state"]

FIELDS: dict[str, Any] = {
    "section": "string",
    "size": "int64",
    "ratio": "float64",
    "open": "bool",
    "made": "timestamp",
    "tags": "list<string>",
    "marks": "list<int64>",
}
PAYLOADS: list[dict[str, Any]] = [
    {"section": "web", "size": 10, "ratio": 0.5, "open": True, "made": "2024-01-01T00:00:00Z", "tags": ["a", "b"]},
    {"section": "database", "size": 20, "ratio": 1.5, "open": False, "made": "2024-06-01T12:00:00Z", "tags": ["b"]},
    {"section": "web", "size": 30, "marks": [1, 2], "free": {"kept": [1, None]}},
    {},
]
VECTORS = np.array([[1, 0, 0, 0], [0, 2, 0, 0], [0, 0, 3, 0], [1, 1, 1, 1]], np.float32)
"""Of the points 0 to 3, whose payloads are `PAYLOADS`."""


class DatabaseContract(ABC):
    """What a module that supplies an implementation gives."""

    @pytest.fixture
    @abstractmethod
    def database(self) -> Iterator[Database]:
        """An empty database."""

    @pytest.fixture
    @abstractmethod
    def other(self) -> Iterator[Database]:
        """Another empty database, of another lineage."""

    @pytest.fixture
    def docs(self, database: Database) -> Collection:
        """A collection under l2 with a field of every sort and four points."""
        collection = database.create_collection("docs", 4, metric="l2", fields=FIELDS)
        collection.upsert([0, 1, 2, 3], VECTORS, PAYLOADS)
        return collection


def ids_of(points: Sequence[Any]) -> list[Any]:
    """Return the ids of points, in order."""
    return [point.id for point in points]


def state(database: Database) -> tuple[int, dict[str, Any]]:
    """Return LSN, and of every collection the digest, count and fields."""
    status = database.status()
    contents = {
        name: (entry["digest"], entry["count"], database.collection(name).fields)
        for name, entry in status["collections"].items()
    }
    return status["lsn"], contents


@contextmanager
def refused(database: Database, error: type[VecstoreError], *words: str | tuple[str, ...]) -> Iterator[None]:
    """Assert that the body raises this error, that its message has the words, and that nothing changed.

    A tuple of words stands for any one of them. Case does not count.
    """
    before = state(database)
    with pytest.raises(error) as caught:
        yield
    message = str(caught.value).lower()
    for word in words:
        choices = (word,) if isinstance(word, str) else word
        assert any(choice.lower() in message for choice in choices), f"{choices} not in {message!r}"
    assert caught.value.outcome == "refused"
    assert state(database) == before
