"""Stores on devices keep the whole contract: with a worker on the CPU everywhere, and on a GPU where there is one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import vecstore
from tests.contract.bad_input import BadInputContract
from tests.contract.base import DatabaseContract
from tests.contract.filtering import FilteringContract
from tests.contract.history import HistoryContract
from tests.contract.indexing import IndexingContract
from tests.contract.lifecycle import LifecycleContract
from tests.contract.reading import ReadingContract
from tests.contract.schema import SchemaContract
from tests.contract.searching import SearchingContract
from tests.contract.tables import TablesContract
from tests.contract.writing import WritingContract
from vecstore import Database
from vecstore.engine.collection import EmbeddedCollection
from vecstore.engine.database import EmbeddedDatabase

from .devices import BACKENDS, engine_of, loaded_in

pytestmark = pytest.mark.slow
"""Hundreds of tests, each with a worker process of its own: minutes, beside all the others."""

FEW = 20
ASKED: Counter[str] = Counter()
"""Questions that devices answered, by class of tests."""
RUN: Counter[str] = Counter()
"""Tests of each class."""


@pytest.fixture(autouse=True, scope="module")
def _devices_were_asked() -> Iterator[None]:
    """See that devices had a part in those that search."""
    yield
    idle = [name for name in (TestSearching.__name__, TestFiltering.__name__) if RUN[name] > FEW > ASKED[name]]
    assert not idle, (ASKED, RUN)


class DeviceStore(DatabaseContract):
    """Supplies stores whose sealed segments a device searches."""

    @pytest.fixture(params=BACKENDS)
    def config(self, request: pytest.FixtureRequest) -> dict[str, Any]:
        """Return the options of a store."""
        return {"device_rows_min": 1, "device_backend": request.param}

    @pytest.fixture(autouse=True)
    def _patient(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Have `optimize` return when devices hold what was built: else most tests would be done before."""
        optimize = EmbeddedCollection.optimize
        monkeypatch.setattr("vecstore.engine.accelerator.SETTLE_S", 0.0)

        def patient(docs: Any, **keywords: Any) -> None:
            optimize(docs, **keywords)
            engine = docs._engine
            if engine.accelerator is not None and engine.state.view.collections[docs._number].shards[0].sealed.segments:
                loaded_in(engine)

        monkeypatch.setattr(EmbeddedCollection, "optimize", patient)

    @pytest.fixture
    def database(self, tmp_path: Path, config: dict[str, Any]) -> Iterator[Database]:
        with vecstore.open(str(tmp_path / "store"), device="gpu", config=config) as database:
            devices = engine_of(database).accelerator.devices
            yield database
            name = type(self).__name__
            ASKED[name] += sum(handle.asked for handle in devices.handles)
            RUN[name] += 1

    @pytest.fixture
    def other(self, tmp_path: Path, config: dict[str, Any]) -> Iterator[Database]:
        with vecstore.open(str(tmp_path / "other"), device="gpu", config=config) as database:
            yield database


class SealedStore(DeviceStore):
    """Supplies stores in which every search finds all rows sealed and loaded, few as they are."""

    @pytest.fixture(autouse=True)
    def _sealing(self, _patient: None, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("vecstore.engine.accelerator.WORK_MIN", -1)
        create, search = EmbeddedDatabase.create_collection, EmbeddedCollection.search
        batch = EmbeddedCollection.search_batch

        def flat(database: Any, name: str, dim: int, **keywords: Any) -> Any:
            return create(database, name, dim, **{"index": "flat", **keywords})

        def sealed_search(docs: Any, *arguments: Any, **keywords: Any) -> Any:
            docs.optimize()
            return search(docs, *arguments, **keywords)

        def sealed_batch(docs: Any, *arguments: Any, **keywords: Any) -> Any:
            docs.optimize()
            return batch(docs, *arguments, **keywords)

        monkeypatch.setattr(EmbeddedDatabase, "create_collection", flat)
        monkeypatch.setattr(EmbeddedCollection, "search", sealed_search)
        monkeypatch.setattr(EmbeddedCollection, "search_batch", sealed_batch)


class TestSearching(SealedStore, SearchingContract):
    """Search and batches."""


class TestFiltering(SealedStore, FilteringContract):
    """Filters."""


class TestIndexing(DeviceStore, IndexingContract):
    """Index kinds."""


class TestLifecycle(DeviceStore, LifecycleContract):
    """Collections and handles."""


class TestWriting(DeviceStore, WritingContract):
    """Upsert, update, delete."""


class TestTables(DeviceStore, TablesContract):
    """Arrow and copies."""


class TestReading(DeviceStore, ReadingContract):
    """Get, scan, count."""


class TestSchema(DeviceStore, SchemaContract):
    """Fields."""


class TestHistory(DeviceStore, HistoryContract):
    """Tokens, status, verify."""


class TestBadInput(DeviceStore, BadInputContract):
    """Bad input."""
