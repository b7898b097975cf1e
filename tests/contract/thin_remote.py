"""The client of a thin install keeps the contract; what needs pyarrow by its nature, tables, is left out.

Not part of the suite: run by name in an environment that holds the wheel without extras, pytest and hypothesis. Servers
run in a process of the Python that VECSTORE_TEST_PYTHON names, on the checkout that VECSTORE_TEST_ROOT names.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator

import pytest

import vecstore
from tests.support.fresh import FreshServers, fresh_servers
from vecstore import Database, EngineMissing

from .bad_input import BadInputContract
from .base import DatabaseContract
from .filtering import FilteringContract
from .history import HistoryContract
from .lifecycle import LifecycleContract
from .reading import ReadingContract
from .schema import SchemaContract
from .searching import SearchingContract

EXTRAS = ("faiss", "obstore", "prometheus_client", "pyarrow", "rocksdict", "structlog")


@pytest.fixture(scope="session")
def servers() -> Iterator[FreshServers]:
    """Return what serves empty stores."""
    with fresh_servers(os.environ["VECSTORE_TEST_PYTHON"], os.environ["VECSTORE_TEST_ROOT"]) as servers:
        yield servers


def test_no_extra_is_installed() -> None:
    """The libraries of the extras are not there, so nothing below can have used them."""
    assert [name for name in EXTRAS if importlib.util.find_spec(name)] == []
    assert "site-packages" in vecstore.__file__, "the wheel is tested, not the checkout"


def test_tables_say_what_they_need(servers: FreshServers) -> None:
    """What is about Arrow tables names the extra that brings it."""
    with servers.served() as address, vecstore.connect(address) as database:
        docs = database.create_collection("docs", 2)
        docs.upsert([1], [[1, 2]])
        with pytest.raises(EngineMissing, match="vecstore-db"):
            docs.to_arrow()
        assert "faiss" not in sys.modules


class ThinClient(DatabaseContract):
    """Supplies clients of servers in another process."""

    @pytest.fixture
    def database(self, servers: FreshServers) -> Iterator[Database]:
        with servers.served() as address, vecstore.connect(address) as database:
            yield database

    @pytest.fixture
    def other(self, servers: FreshServers) -> Iterator[Database]:
        with servers.served() as address, vecstore.connect(address) as database:
            yield database


class TestLifecycle(ThinClient, LifecycleContract):
    """Collections and handles."""


class TestReading(ThinClient, ReadingContract):
    """Get, scan, count."""


class TestSearching(ThinClient, SearchingContract):
    """Search and batches."""


class TestFiltering(ThinClient, FilteringContract):
    """Filters."""


class TestSchema(ThinClient, SchemaContract):
    """Fields."""


class TestHistory(ThinClient, HistoryContract):
    """Tokens, status, verify."""


class TestBadInput(ThinClient, BadInputContract):
    """Bad input."""
