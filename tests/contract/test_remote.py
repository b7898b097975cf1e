"""The client of a server keeps the contract: the same suites, over gRPC to a server of a store of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import vecstore
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


class RemoteStore(DatabaseContract):
    """Supplies clients of servers in this process."""

    @pytest.fixture
    def database(self) -> Iterator[Database]:
        with (
            memory_folder() as folder,
            served(str(folder / "store")) as address,
            vecstore.connect(address) as database,
        ):
            yield database

    @pytest.fixture
    def other(self) -> Iterator[Database]:
        with (
            memory_folder() as folder,
            served(str(folder / "store")) as address,
            vecstore.connect(address) as database,
        ):
            yield database


class TestLifecycle(RemoteStore, LifecycleContract):
    """Collections and handles."""


class TestWriting(RemoteStore, WritingContract):
    """Upsert, update, delete."""


class TestTables(RemoteStore, TablesContract):
    """Arrow and copies."""


class TestReading(RemoteStore, ReadingContract):
    """Get, scan, count."""


class TestSearching(RemoteStore, SearchingContract):
    """Search and batches."""


class TestFiltering(RemoteStore, FilteringContract):
    """Filters."""


class TestSchema(RemoteStore, SchemaContract):
    """Fields."""


class TestHistory(RemoteStore, HistoryContract):
    """Tokens, status, verify."""


class TestIndexing(RemoteStore, IndexingContract):
    """Index kinds."""


class TestBadInput(RemoteStore, BadInputContract):
    """Bad input."""
