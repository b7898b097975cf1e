"""The client of a thin install keeps the contract; what needs pyarrow by its nature, tables, is left out.

Not part of the suite: run by name in an environment that holds the wheel without extras, pytest and hypothesis. Servers
run in a process of the Python that VECSTORE_TEST_PYTHON names, on the checkout that VECSTORE_TEST_ROOT names.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
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


def test_the_command_line_works_against_a_server(servers: FreshServers, tmp_path: Path) -> None:
    """Commands make, fill, search and describe a server's collection without any extra."""
    np.save(tmp_path / "rows.npy", np.eye(4, dtype=np.float32))
    command = str(Path(sys.executable).with_name("vecstore"))

    def run(name: str, *arguments: str) -> Any:
        done = subprocess.run(
            [command, name, address, *arguments, "--json"], capture_output=True, text=True, check=True
        )
        return json.loads(done.stdout)

    with servers.served() as address:
        run("create", "docs", "--dim", "4", "--metric", "l2")
        assert run("import", "docs", str(tmp_path / "rows.npy"))["count"] == 4
        assert run("search", "docs", "--like", "2", "-k", "1")["hits"][0]["score"] == 2.0
        assert run("status")["collections"]["docs"]["count"] == 4
        assert run("verify")["ok"] is True


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
