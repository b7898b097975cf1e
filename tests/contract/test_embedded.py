"""The embedded store keeps the contract."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import vecstore
from vecstore import Database

from .bad_input import BadInputContract
from .base import DatabaseContract
from .filtering import FilteringContract
from .history import HistoryContract
from .indexing import IndexingContract
from .lifecycle import LifecycleContract
from .reading import ReadingContract
from .schema import SchemaContract
from .searching import SearchingContract
from .tables import TablesContract
from .writing import WritingContract


class EmbeddedStore(DatabaseContract):
    """Supplies stores opened in this process."""

    @pytest.fixture
    def database(self, tmp_path: Path) -> Iterator[Database]:
        with vecstore.open(str(tmp_path / "store")) as database:
            yield database

    @pytest.fixture
    def other(self, tmp_path: Path) -> Iterator[Database]:
        with vecstore.open(str(tmp_path / "other")) as database:
            yield database


class TestLifecycle(EmbeddedStore, LifecycleContract):
    """Collections and handles."""


class TestWriting(EmbeddedStore, WritingContract):
    """Upsert, update, delete."""


class TestTables(EmbeddedStore, TablesContract):
    """Arrow and copies."""


class TestReading(EmbeddedStore, ReadingContract):
    """Get, scan, count."""


class TestSearching(EmbeddedStore, SearchingContract):
    """Search and batches."""


class TestFiltering(EmbeddedStore, FilteringContract):
    """Filters."""


class TestSchema(EmbeddedStore, SchemaContract):
    """Fields."""


class TestHistory(EmbeddedStore, HistoryContract):
    """Tokens, status, verify."""


class TestIndexing(EmbeddedStore, IndexingContract):
    """Index kinds."""


class TestBadInput(EmbeddedStore, BadInputContract):
    """Bad input."""
