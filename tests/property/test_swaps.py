"""Collections are made, filled, swapped in and dropped beside everything else that a store does.

What a serving system does on its day of change: a new collection is filled and takes the old one's name in one record,
while others search by name, write, build, verify and checkpoint. A reader that finds no collection under the name, or
one that is not full, a call that fails in another way than `NotFound`, and a file that was removed while somebody
needed it are what these tests are after.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import vecstore
from vecstore import Collection, Database, NotFound

ROWS, DIM, SWAPS = 4_500, 16, 120
CONFIG = {"checkpoint_log_bytes": 1 << 18, "checkpoint_interval_s": 0.05}
VECTORS = np.random.default_rng(0).standard_normal((ROWS, DIM)).astype(np.float32)


def filled(database: Database, name: str) -> Collection:
    """Make a collection of all rows."""
    docs = database.create_collection(name, DIM, metric="l2", fields={"g": "int64"})
    for start in range(0, ROWS, 1_500):
        stop = start + 1_500
        docs.upsert(range(start, stop), VECTORS[start:stop], [{"g": 1}] * 1_500)
    return docs


def read(database: Database) -> None:
    """The collection of this name is there and full, whichever it is."""
    docs = database.collection("live")
    try:
        assert docs.count({"g": 1}) == ROWS
        assert docs.search(VECTORS[5], 3)[0].id == 5
        assert len(list(docs.scan(limit=50))) == 50
    except NotFound:  # dropped between the calls, which only a swap does
        database.collection("live")


def write(database: Database) -> None:
    """Write rows of no field, and remove them."""
    docs = database.collection("live")
    docs.upsert(range(10_000, 10_100), VECTORS[:100] + 100)
    docs.delete(ids=range(10_000, 10_100))


def build(database: Database) -> None:
    """Build what is there."""
    for name in database.collections():
        database.collection(name).optimize()


def prove(database: Database) -> None:
    """Recompute everything from the bytes."""
    report = database.verify()
    assert report["ok"], report["damaged"]


def test_swaps_beside_readers_writers_builders(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """No reader misses the name, nothing fails or is logged as an error, and after a reopen no file is missing."""
    store, faults, done = str(tmp_path / "store"), list[str](), threading.Event()

    def again_and_again(act: Callable[[Database], None]) -> None:
        while not done.is_set():
            try:
                act(database)
            except NotFound as error:
                if act is read:
                    faults.append(f"read: {error}")
            except Exception as error:  # noqa: BLE001 - shown by the assertion below
                faults.append(f"{act.__name__}: {type(error).__name__}: {error}")
                return

    with caplog.at_level(logging.WARNING), vecstore.open(store, config=CONFIG) as database:
        filled(database, "live")
        threads = [threading.Thread(target=again_and_again, args=(act,)) for act in (read, read, write, build, prove)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(SWAPS):
                filled(database, "next")
                database.rename_collection("next", "live", replace=True)
        finally:
            done.set()
            for thread in threads:
                thread.join()
        digest = database.status()["collections"]["live"]["digest"]
    assert faults == []
    assert [record.getMessage() for record in caplog.records] == []
    with vecstore.open(store, config=CONFIG) as database:
        status = database.status()
        assert (status["findings"], status["metrics"]["rebuilt"]) == ([], 0)
        assert status["collections"]["live"]["digest"] == digest
        read(database)
