"""Stores on devices keep the contract: its searching part on a worker everywhere, all of it where there is a GPU."""

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

from .devices import NO_GPU, loaded_in

pytestmark = pytest.mark.slow
"""Two hundred tests, each with a worker process of its own: minutes, beside all the others."""

NOW: dict[str, Any] = {"device_rows_min": 1}
ON_GPU = [pytest.mark.gpu, pytest.mark.skipif(bool(NO_GPU), reason=NO_GPU or "there is one")]


ASKED: Counter[str] = Counter()
"""Questions that devices answered, by class of tests."""


@pytest.fixture(autouse=True, scope="module")
def _devices_were_asked() -> Iterator[None]:
    """See that devices had a part in it."""
    yield
    assert all(count > 100 for count in ASKED.values())


class HostStore(DatabaseContract):
    """Supplies stores whose sealed segments a worker on the CPU searches as a GPU would."""

    config: dict[str, Any] = NOW | {"device_backend": "host"}

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
    def database(self, tmp_path: Path) -> Iterator[Database]:
        with vecstore.open(str(tmp_path / "store"), device="gpu", config=self.config) as database:
            yield database
            ASKED[type(self).__name__] += sum(one["asked"] for one in database.status()["devices"])

    @pytest.fixture
    def other(self, tmp_path: Path) -> Iterator[Database]:
        with vecstore.open(str(tmp_path / "other"), device="gpu", config=self.config) as database:
            yield database


class GpuStore(HostStore):
    """Supplies stores on a GPU."""

    config = NOW


class SealedStore(HostStore):
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


class TestSearchingOnHost(SealedStore, SearchingContract):
    """Search and batches, by a worker on the CPU."""


class TestFilteringOnHost(SealedStore, FilteringContract):
    """Filters, by a worker on the CPU."""


class TestIndexingOnHost(HostStore, IndexingContract):
    """Index kinds, by a worker on the CPU."""


class TestLifecycle(GpuStore, LifecycleContract):
    """Collections and handles."""

    pytestmark = ON_GPU


class TestWriting(GpuStore, WritingContract):
    """Upsert, update, delete."""

    pytestmark = ON_GPU


class TestTables(GpuStore, TablesContract):
    """Arrow and copies."""

    pytestmark = ON_GPU


class TestReading(GpuStore, ReadingContract):
    """Get, scan, count."""

    pytestmark = ON_GPU


class TestSearching(GpuStore, SearchingContract):
    """Search and batches."""

    pytestmark = ON_GPU


class TestFiltering(GpuStore, FilteringContract):
    """Filters."""

    pytestmark = ON_GPU


class TestSchema(GpuStore, SchemaContract):
    """Fields."""

    pytestmark = ON_GPU


class TestHistory(GpuStore, HistoryContract):
    """Tokens, status, verify."""

    pytestmark = ON_GPU


class TestIndexing(GpuStore, IndexingContract):
    """Index kinds."""

    pytestmark = ON_GPU


class TestBadInput(GpuStore, BadInputContract):
    """Bad input."""

    pytestmark = ON_GPU
