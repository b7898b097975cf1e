"""Readers beside a writer see one state each time (I3): vectors and payloads of one record, never a step back.

Every record of the writer replaces all watched points with the next generation, which stands in every payload and in
every vector; between, ballast is written, moved and deleted, so that rows are sealed, merged and rebuilt meanwhile. A
reader that sees two generations at once, a payload without its vector, a number of points that never was, or an older
generation than it saw before has found more than one state.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import vecstore
from vecstore import Collection, Database

WATCHED, GENERATIONS, DIM = 40, 75, 8
BALLAST_START, BALLAST_ROWS = 1_000, 400
FAR = np.float32(1e4)
CONFIG = {
    "checkpoint_log_bytes": 64 << 10,
    "checkpoint_interval_s": 0.2,
    "write_points_max": 5,
    # Seven readers that never rest keep the interpreter lock from the writer for as long as this, each time it asks.
    "switch_interval_s": 0.0005,
}

Seen = tuple[set[int], int]
"""The generations that one read saw, and the number of watched points in it."""


def watched_vectors(generation: int) -> npt.NDArray[np.float32]:
    """Return the vectors of all watched points: the generation first, their number second."""
    rows = np.zeros((WATCHED, DIM), np.float32)
    rows[:, 0], rows[:, 1] = generation, np.arange(WATCHED)
    return rows


def write_generation(docs: Collection, generation: int) -> None:
    """Replace all watched points, in one record."""
    payloads = [{"generation": generation, "kind": "watched", "text": str(generation) * 20}] * WATCHED
    docs.upsert(range(WATCHED), watched_vectors(generation), payloads)


def write_ballast(docs: Collection, generation: int) -> None:
    """Write rows far away that are in no read, and remove half of those of a while ago."""
    start = BALLAST_START + BALLAST_ROWS * generation
    rows = np.random.default_rng(generation).random((BALLAST_ROWS, DIM), np.float32) + FAR
    docs.upsert(range(start, start + BALLAST_ROWS), rows, [{"kind": "ballast"}] * BALLAST_ROWS)
    if generation >= 10:
        old = start - 10 * BALLAST_ROWS
        docs.delete(ids=range(old, old + BALLAST_ROWS, 2))


def seen_in(points: Any) -> Seen:
    """Return what a read saw; a payload that is not its vector's is two generations."""
    generations = set[int]()
    for point in points:
        generations.add(point.payload["generation"])
        assert point.payload["text"] == str(point.payload["generation"]) * 20
        assert point.vector[1] == point.id
        generations.add(int(point.vector[0]))
    return generations, len(points)


def by_scan(docs: Collection) -> Seen:
    """Read by a filtered scan."""
    return seen_in(list(docs.scan({"kind": "watched"}, with_vector=True)))


def by_get(docs: Collection) -> Seen:
    """Read by ids."""
    return seen_in(docs.get(range(WATCHED), with_vector=True))


def by_search(docs: Collection) -> Seen:
    """Read by an exact search, without a filter: the ballast is far away."""
    return seen_in(docs.search(np.zeros(DIM), WATCHED, exact=True, with_vector=True))


def by_approximate_search(docs: Collection) -> Seen:
    """Read by a filtered search that may use the index; the scores are those of the generation's vectors."""
    hits = docs.search(np.zeros(DIM), WATCHED, filter={"kind": "watched"}, recall=0.99, with_vector=True)
    for hit in hits:
        assert hit.vector is not None
        assert hit.score == pytest.approx(float(np.square(hit.vector).sum()), rel=1e-5)
    return seen_in(hits)


def by_batch(docs: Collection) -> Seen:
    """Read by a batch: every query of it is answered from one view."""
    batch = docs.search_batch(np.zeros((3, DIM)), WATCHED, exact=True, with_payload=True)
    generations = {hit.payload["generation"] for hits in batch for hit in hits}
    return generations, max(len(hits) for hits in batch)


def by_arrow(docs: Collection) -> Seen:
    """Read the declared field from an Arrow stream."""
    column = docs.to_arrow({"kind": "watched"}).read_all()["generation"].to_pylist()
    return set(column), len(column)


def by_count(docs: Collection) -> Seen:
    """Read by a count alone."""
    return set(), docs.count({"generation": {"$gte": 0}})


READERS = [by_scan, by_get, by_search, by_approximate_search, by_batch, by_arrow, by_count]


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    """An empty store with limits so low that checkpoints happen all the time."""
    with vecstore.open(str(tmp_path / "store"), config=CONFIG) as database:
        yield database


def read_on(docs: Collection, read: Callable[[Collection], Seen], stop: threading.Event, faults: list[str]) -> None:
    """Read until told to stop; report what cannot be one state, and a step back."""
    newest = -1
    while not stop.is_set():
        try:
            generations, count = read(docs)
        except Exception as error:  # noqa: BLE001 - whatever a reader meets is a fault of the test
            faults.append(f"{read.__name__}: {type(error).__name__}: {error}")
            return
        if count != WATCHED:
            faults.append(f"{read.__name__}: {count} points, after generation {newest}")
        if len(generations) > 1:
            faults.append(f"{read.__name__}: generations {sorted(generations)} at once")
        if generations and min(generations) < newest:
            faults.append(f"{read.__name__}: generation {min(generations)} after {newest}")
        newest = max(generations, default=newest)


@pytest.mark.parametrize("shards", [1, 3])
def test_readers_see_one_state_while_rows_are_written_sealed_and_merged(database: Database, shards: int) -> None:
    """No read mixes two records or goes back, whatever happens to the rows meanwhile."""
    docs = database.create_collection(
        "docs", DIM, metric="l2", fields={"generation": "int64", "kind": "string"}, shards=shards
    )
    write_generation(docs, 0)
    stop, faults = threading.Event(), list[str]()
    readers = [threading.Thread(target=read_on, args=(docs, read, stop, faults)) for read in READERS]
    for reader in readers:
        reader.start()
    try:
        for generation in range(1, GENERATIONS):
            write_generation(docs, generation)
            write_ballast(docs, generation)
            if generation % 25 == 0:
                docs.optimize()
            if faults:
                break
    finally:
        stop.set()
        for reader in readers:
            reader.join()
    assert faults == []
    assert by_scan(docs) == by_search(docs) == ({GENERATIONS - 1}, WATCHED)


def test_an_acknowledged_write_is_seen_by_every_thread(database: Database) -> None:
    """What one thread was acknowledged, another sees at once: reads start from the newest view."""
    docs = database.create_collection("docs", DIM, metric="l2", fields={"generation": "int64", "kind": "string"})
    acknowledged, faults, done = [0], list[str](), threading.Event()
    write_generation(docs, 0)

    def read() -> None:
        while not done.is_set():
            least = acknowledged[0]
            (seen,), _ = by_get(docs)
            if seen < least:
                faults.append(f"generation {seen} read after {least} was acknowledged")

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    try:
        for generation in range(1, 100):
            write_generation(docs, generation)
            acknowledged[0] = generation
    finally:
        done.set()
        for reader in readers:
            reader.join()
    assert faults == []
