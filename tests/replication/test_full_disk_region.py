"""A full disk in one of two Regions: the other one goes on, and it comes back by itself, or by a restart.

The disks are small file systems of their own. What a store does alone on a full disk is `tests/crash/test_disk.py`.
"""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.support.disk import filled_up, mounted
from vecstore.api import Database
from vecstore.errors import Exhausted, VecstoreError

from .stores import Store, eventually, put
from .test_follow import counts, digest
from .test_metrics import metrics_of

MIB = 1 << 20
FLOOR = 8 * MIB
DIM, POINTS = 256, 500
"""Half a megabyte a write."""
ROOM = {"VECSTORE_DISK_FREE_BYTES_MIN": str(FLOOR), "VECSTORE_WRITE_BUFFER_BYTES": str(2 * MIB)}
FILE_BYTES_MAX = 900_000


@contextlib.contextmanager
def regions(a: Path, b: Path, environment_a: dict[str, str], environment_b: dict[str, str]) -> Iterator[list[Store]]:
    """Run a primary and a standby in two folders."""
    for each in (a, b):
        each.mkdir(exist_ok=True)
    east = Store(a / "east", "--region", "east", "--slot", "east", environment=environment_a)
    west = Store(b / "west", "--region", "west", "--slot", "west", environment=environment_b)
    try:
        east.start()
        with east.database() as database:
            put(database, 0, 100)
        west.start("--standby-of", east.address)
        west.wait(lambda found: found["status"] == "following")
        yield [east, west]
    finally:
        west.stop()
        east.stop()


def write(database: Database, times: int) -> str:
    """Write some megabytes; return the last token."""
    big = database.create_collection("big", DIM, exist_ok=True)
    rng = np.random.default_rng(times)
    for _ in range(times):
        token = big.upsert(list(range(POINTS)), rng.standard_normal((POINTS, DIM), np.float32)).token
    return token


def write_until_it_fails(database: Database) -> str:
    """Write until nobody knows what became of a write; return the last token."""
    token = ""
    try:
        for _ in range(8):
            token = write(database, 1)
    except VecstoreError as exc:
        assert exc.outcome == "unknown"
        return token
    raise AssertionError("all writes were acknowledged")


def alarms(found: dict[str, object], text: str) -> bool:
    """Return whether a store has raised an alarm with some words."""
    assert isinstance(found["alarms"], list)
    return any(text in alarm["text"] for alarm in found["alarms"])


def test_a_standby_without_room_stops_applying_and_goes_on_by_itself(tmp_path: Path) -> None:
    """It says why, answers reads, and is held the log; the primary takes writes. With room again it catches up."""
    with mounted(tmp_path / "disk") as disk, regions(tmp_path / "a", disk, {}, ROOM) as (east, west):
        with filled_up(disk, FLOOR // 4 + MIB // 2), east.database() as database:
            token = write(database, 6)
            west.wait(lambda found: found["held_back"] and alarms(found, "disk"))
            token = write(database, 4)
            with west.database() as there:
                assert there.collection("docs").count() == 100
            held = eventually(lambda: metrics_of(east), lambda found: found["vecstore_slot_retained_bytes,west"] > MIB)
            assert held["vecstore_slot_lost,west"] == 0 and held["vecstore_slot_lag_seconds,west"] > 0
            here = metrics_of(west)
            assert here["vecstore_disk_free_bytes"] < here["vecstore_disk_free_bytes_min"]
            assert west.describe()["problem"] == "", "nothing was begun that it could not end"
        assert counts(west, token, "big") == POINTS
        west.wait(lambda found: found["status"] == "following")
        assert digest(east) == digest(west)


@pytest.mark.slow
def test_a_standby_whose_write_fails_half_way_goes_on_after_a_restart(tmp_path: Path) -> None:
    """Where no floor could see it coming: it says that it stands still, answers reads, and a restart is enough."""
    with regions(tmp_path / "a", tmp_path / "b", {}, {}) as (east, west), east.database() as database:
        limit_files(west)
        token = write(database, 4)
        found = west.wait(lambda found: found["status"] == "failed")
        assert "stands still" in found["problem"] and alarms(found, "stands still")
        with west.database() as there:
            assert there.collection("docs").count() == 100
        write(database, 1)
        west.kill()
        west.start()
        assert counts(west, token, "big") == POINTS
        token = put(database, 1_000, 1)
        assert counts(west, token) == 101
        assert digest(east) == digest(west)


def test_a_primary_without_room_refuses_writes_and_its_standby_takes_over(tmp_path: Path) -> None:
    """Nothing that it acknowledged is missing there; it follows by itself once there is room again."""
    with mounted(tmp_path / "disk") as disk, regions(disk, tmp_path / "b", ROOM, {}) as (east, west):
        with east.database() as database, filled_up(disk, FLOOR // 2):
            with pytest.raises(Exhausted) as caught:
                write(database, 1)
            assert caught.value.outcome == "refused"
            token = written_by(west, east)
            assert west.describe()["accepts_writes"] and not east.describe()["accepts_writes"]
        assert counts(east, token) == 110
        assert digest(east) == digest(west)


@pytest.mark.slow
def test_a_primary_whose_write_fails_half_way_is_replaced_without_loss(tmp_path: Path) -> None:
    """It takes no more writes; what it acknowledged is in its standby, which is promoted, and which it then follows."""
    with regions(tmp_path / "a", tmp_path / "b", {}, {}) as (east, west), east.database() as database:
        limit_files(east)
        acknowledged = write_until_it_fails(database)
        token = written_by(west, east)
        with west.database() as there:
            assert there.collection("big").count(after=acknowledged) == POINTS
        east.kill()
        east.start("--standby-of", west.address)
        east.wait(lambda found: found["status"] == "following" and found["rejoin"] is None, 60)
        assert counts(east, token) == counts(west, token) == 110
        assert digest(east) == digest(west)


def written_by(west: Store, east: Store) -> str:
    """Promote a store over another, and write to it."""
    verdict = west.command("promote", replaces=east.describe()["epoch"])
    assert verdict.done, verdict.text
    with west.database() as there:
        return put(there, 1_000, 10)


def limit_files(store: Store) -> None:
    """Let no file of a running server grow beyond a limit: a write that reaches it fails after a part of it."""
    assert store.served is not None
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.prlimit(store.served.process.pid, resource.RLIMIT_FSIZE, (FILE_BYTES_MAX, hard))
