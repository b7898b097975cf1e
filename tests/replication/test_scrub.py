"""The scrub between two real servers: what is equal is proven, and what a disk changed is found, named, and mended."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vecstore.api import Database

from .damage import another, closed_store, flipped, points_of, replace_points
from .stores import Store, put

POINTS = 300
OFTEN = {"VECSTORE_SERVER_REPLICATION_SCRUB_EVERY_S": "0.1", "VECSTORE_SERVER_REPLICATION_SCRUB_POINTS": "100"}
WIDE = 100
"""Dimensions: beyond 256 bytes a value stands in a file of its own kind."""


@contextlib.contextmanager
def regions(folder: Path, **more: str) -> Iterator[tuple[Store, Store]]:
    """Run a primary with points and a standby that has them."""
    environment = {**OFTEN, **more}
    east = Store(folder / "east", "--region", "east", "--slot", "east", environment=environment)
    west = Store(folder / "west", "--region", "west", "--slot", "west", environment=environment)
    with east.running():
        with east.database() as database:
            put(database, 0, POINTS)
            vectors = np.random.default_rng(1).standard_normal((POINTS, WIDE), dtype=np.float32)
            database.create_collection("wide", WIDE).upsert([f"p{i:04d}" for i in range(POINTS)], vectors)
        west.arguments += ["--standby-of", east.address]
        with west.running():
            west.wait(caught_up)
            yield east, west


def caught_up(found: dict[str, Any]) -> bool:
    """Say whether a standby has all that its primary has."""
    return bool(found["status"] == "following" and 0 < found["seen_lsn"] == found["applied_lsn"])


def verified(lsn: int) -> Callable[[dict[str, Any]], bool]:
    """Say whether a standby is verified through an LSN, with nothing that differs."""

    def is_verified(found: dict[str, Any]) -> bool:
        return bool(found["verified"] and found["verified"]["lsn"] >= lsn and not found["differences"])

    return is_verified


def lsn_of(store: Store) -> int:
    """Return where a store is."""
    return int(store.describe()["lsn"])


@contextlib.contextmanager
def writing(database: Database) -> Iterator[None]:
    """Write, overwrite and delete as long as the block runs."""
    stop = threading.Event()

    def write() -> None:
        collection, number = database.collection("docs"), 0
        while not stop.is_set():
            put(database, (7 * number) % POINTS, 20)
            collection.delete(ids=[(11 * number) % POINTS])
            number += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield
    finally:
        stop.set()
        writer.join()


def test_equal_stores_are_verified_beside_a_writer(tmp_path: Path) -> None:
    """Rounds end while points are written and removed: nothing differs, no canary answers otherwise, and it is told."""
    with regions(tmp_path) as (east, west):
        with east.database() as database, writing(database):
            for _ in range(2):
                found = west.wait(verified(lsn_of(east)))
        assert found["canaries"]["asked"] > 0 and found["canaries"]["unequal"] == 0
        assert found["alarms"] == [] == east.describe()["alarms"]
        assert east.describe()["differences"] == []
        assert west.served is not None
        metrics = {name: value for (name, _), value in west.served.metrics().items()}
        assert metrics["vecstore_verified_lsn"] >= found["verified"]["lsn"]
        assert metrics["vecstore_verified_age_seconds"] < 60
        assert metrics["vecstore_scrub_differences"] == 0


def some_of(path: Path, count: int = 6) -> dict[bytes, bytes]:
    """Return some points of a closed store, as they are stored, of both collections."""
    with closed_store(path) as store:
        points = points_of(store)
    places = sorted(points)
    return {place: points[place] for place in places[:: len(places) // count]}


def flip_in_file(path: Path) -> None:
    """Flip a bit of a large value in a closed store's files, as a disk does."""
    with closed_store(path):
        pass
    file = max(path.joinpath("rocks").glob("*.blob"), key=lambda found: found.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)


def contents_of(store: Store) -> dict[bytes, bytes]:
    """Return all points of a store that was stopped."""
    with closed_store(store.folder) as families:
        return points_of(families)


def test_what_a_disk_changed_at_the_standby_is_found_and_mended(tmp_path: Path) -> None:
    """Changed, flipped and missing points are found, named and mended; applying goes on, and all is equal."""
    with regions(tmp_path, VECSTORE_SERVER_REPLICATION_SCRUB_POINTS="10000") as (east, west):
        west.stop()
        points = some_of(west.folder)
        changed = {
            place: (another(value), flipped(value), None)[i % 3] for i, (place, value) in enumerate(points.items())
        }
        replace_points(west.folder, changed)
        with east.database() as database:
            put(database, POINTS, 50)
        west.start()
        west.wait(lambda found: any("points differ from the primary's" in alarm["text"] for alarm in found["alarms"]))
        west.wait(verified(lsn_of(east)))
        assert west.served is not None
        named = [line for line in west.served.log.read_text().splitlines() if '"differs"' in line]
        assert {"docs", "wide"} == {json.loads(line)["collection"] for line in named}
        assert json.loads(named[0])["ids"]
        with east.database() as database:
            put(database, 0, 50)
        found = west.wait(verified(lsn_of(east)))
        assert found["canaries"]["unequal"] == 0
        west.stop()
        east.stop()
        assert contents_of(west) == contents_of(east)


@pytest.mark.slow
def test_a_flipped_bit_of_a_file_is_mended(tmp_path: Path) -> None:
    """Points whose block cannot be read are written anew, if the scrub meets them before a compaction does."""
    with regions(tmp_path) as (east, west):
        west.stop()
        flip_in_file(west.folder)
        west.start()
        west.wait(lambda found: any("points differ from the primary's" in alarm["text"] for alarm in found["alarms"]))
        west.wait(verified(lsn_of(east)))
        west.stop()
        east.stop()
        assert contents_of(west) == contents_of(east)


def test_a_standby_that_differs_too_much_is_stopped_for_good(tmp_path: Path) -> None:
    """More points than are mended without a human: it is stopped, also after a restart, and says so."""
    with regions(tmp_path, VECSTORE_SERVER_REPLICATION_SCRUB_POINTS="10000") as (east, west):
        with east.database() as database:
            put(database, 0, 1_300)
        west.wait(caught_up)
        west.stop()
        with closed_store(west.folder) as store:
            places = sorted(points_of(store))[:1_100]
        replace_points(west.folder, dict.fromkeys(places))
        west.start()
        found = west.wait(lambda found: found["status"] == "stopped" and found["differences"])
        assert sum(one["count"] for one in found["differences"]) == 1_100
        lsn, differences = found["applied_lsn"], found["differences"]
        assert all(one["side"] == "here" and "1000" in one["state"] for one in differences)
        west.stop()
        with east.database() as database:
            put(database, 0, 10)
        west.start()
        found = west.wait(lambda found: found["links"] and found["links"][0]["connected"])
        assert (found["status"], found["applied_lsn"], found["differences"]) == ("stopped", lsn, differences)
        assert west.served is not None
        metrics = {name: value for (name, _), value in west.served.metrics().items()}
        assert metrics["vecstore_scrub_differences"] == len(differences)
        assert not west.command("promote", replaces=1).done
        found = west.describe()
        assert (found["status"], found["applied_lsn"]) == ("stopped", lsn)
        assert east.describe()["accepts_writes"]


@pytest.mark.parametrize("change", [flipped, pytest.param(another, marks=pytest.mark.slow)])
def test_a_damaged_primary_is_never_copied(tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    """Both sides say whose points are damaged; the standby keeps its own and goes on; handed over to, it mends."""
    with regions(tmp_path) as (east, west):
        east.stop()
        points = some_of(east.folder)
        replace_points(east.folder, {place: change(value) for place, value in points.items()})
        east.start()
        east.wait(lambda found: "here" in {one["side"] for one in found["differences"]})
        west.wait(lambda found: "primary" in {one["side"] for one in found["differences"]})
        assert "primary" in " ".join(alarm["text"] for alarm in west.describe()["alarms"])
        with east.database() as database:
            put(database, POINTS, 10)
        west.wait(caught_up)
        assert east.command("switchover", target="west").done
        west.wait(lambda found: found["accepts_writes"])
        east.wait(verified(lsn_of(west)))
        west.stop()
        east.stop()
        found = contents_of(west)
        assert found == contents_of(east)
        assert {place: found[place] for place in points} == points
