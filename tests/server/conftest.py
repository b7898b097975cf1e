"""A served database, and a bare connection to it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import vecstore
from tests.support.server import Wire, serving
from vecstore import Database


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    """Return an empty database."""
    with vecstore.open(str(tmp_path / "store")) as database:
        yield database


@pytest.fixture
def wire(database: Database) -> Iterator[Wire]:
    """Return a connection to a server of it."""
    with serving(database) as address:
        wire = Wire(address)
        yield wire
        wire.close()
