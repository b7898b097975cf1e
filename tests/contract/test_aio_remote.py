"""The async client of a server keeps the contract: the same suites, on a loop in a thread (`tests.support.looped`)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.looped import LoopedDatabase
from tests.support.memory import memory_folder
from tests.support.server import served
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


class AsyncRemoteStore(DatabaseContract):
    """Supplies async clients of servers in this process."""

    @pytest.fixture
    def database(self) -> Iterator[Database]:
        with memory_folder() as folder, served(str(folder / "store")) as address:
            database = LoopedDatabase(address)
            yield database
            database.stop()

    @pytest.fixture
    def other(self) -> Iterator[Database]:
        with memory_folder() as folder, served(str(folder / "store")) as address:
            database = LoopedDatabase(address)
            yield database
            database.stop()


class TestLifecycle(AsyncRemoteStore, LifecycleContract):
    """Collections and handles."""


class TestWriting(AsyncRemoteStore, WritingContract):
    """Upsert, update, delete."""


class TestTables(AsyncRemoteStore, TablesContract):
    """Arrow and copies."""


class TestReading(AsyncRemoteStore, ReadingContract):
    """Get, scan, count."""


class TestSearching(AsyncRemoteStore, SearchingContract):
    """Search and batches."""


class TestFiltering(AsyncRemoteStore, FilteringContract):
    """Filters."""


class TestSchema(AsyncRemoteStore, SchemaContract):
    """Fields."""


class TestHistory(AsyncRemoteStore, HistoryContract):
    """Tokens, status, verify."""


class TestIndexing(AsyncRemoteStore, IndexingContract):
    """Index kinds."""


class TestBadInput(AsyncRemoteStore, BadInputContract):
    """Bad input."""
