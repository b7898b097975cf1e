"""Histories 12 and 13: what the disk and the clock of one machine do is not the other's. Between processes."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vecstore
from tests.support.faults import Disk
from tests.support.shim import build_shim, read_journal, shim_environment
from vecstore.backup.plan import Target
from vecstore.backup.repository import Repository
from vecstore.backup.restore import restore
from vecstore.client.remote import connect
from vecstore.engine.database import EmbeddedDatabase
from vecstore.engine.recovery import LogReader
from vecstore.errors import InvalidArgument, VecstoreError
from vecstore.record import Header

from .stores import FAST, WAIT_S, Store, eventually, following, put
from .test_failover import pair
from .test_follow import counts, digest

HEARTBEAT_S = float(FAST["VECSTORE_SERVER_REPLICATION_CALL_EVERY_S"])
HOUR_S, YEARS_S = 3_600, 75 * 365 * 24 * 3_600


# -- 12: power loss --------------------------------------------------------------------------------------------------


def write_until_dead(store: Store, first: int, ack: Any, done: list[int], ending: threading.Event) -> None:
    """Write points one by one until it is over or the server is gone; note which were acknowledged."""
    with connect([store.address], timeout=2.0) as client, contextlib.suppress(VecstoreError):
        docs, id = client.collection("docs"), first
        while not ending.is_set():
            docs.upsert([id], np.ones((1, 4), np.float32), ack=ack)
            done.append(id)
            id += 1


def test_12_a_standby_has_nothing_that_the_primary_loses_with_its_power(tmp_path: Path, seed: int) -> None:
    """A's disk keeps what was synced and any part of the rest; B has no record beyond it, and follows what is left."""
    rng, durable, unsynced = random.Random(seed), list[int](), list[int]()
    journal = tmp_path / "journal"
    a = Store(tmp_path / "a", "--region", "east")
    a.folder.mkdir()
    plain = a.environment
    a.environment = plain | shim_environment(build_shim(tmp_path), a.folder, journal=journal, skip_sync=True)
    b: Store | None = None
    try:
        a.start()
        with a.database() as database:
            put(database, 0, 100)
        b = Store(tmp_path / "b", "--region", "west", "--standby-of", a.address, "--slot", "west")
        b.start()
        following(a, b)
        endings = [threading.Event(), threading.Event()]
        writers = [
            threading.Thread(target=write_until_dead, args=(a, 1_000, "durable", durable, endings[0])),
            threading.Thread(target=write_until_dead, args=(a, 20_000, "memory", unsynced, endings[1])),
        ]
        for writer in writers:
            writer.start()
        wanted = rng.randint(20, 60)
        eventually(lambda: {"done": min(len(durable), len(unsynced))}, lambda found: found["done"] > wanted)
        if rng.random() < 0.7:  # a tail that nothing syncs any more, for as long as a few heartbeats
            endings[0].set()
            writers[0].join()
            over_s = time.monotonic() + 5 * HEARTBEAT_S
            eventually(lambda: {"now_s": time.monotonic()}, lambda found: found["now_s"] > over_s)
            assert a.describe()["durable_lsn"] < a.describe()["lsn"]
        a.kill()
        endings[1].set()
        for writer in writers:
            writer.join()
        had = b.describe()["lsn"]
        disk = Disk(a.folder, read_journal(journal))
        shutil.rmtree(tmp_path / "image", ignore_errors=True)
        disk.image(len(disk.ops), seed, "ordered", tmp_path / "image", rng.choice((0.0, 0.5)))
        # In place: it is the same folder of the same machine.
        for name in os.listdir(a.folder):
            gone = a.folder / name
            shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
        shutil.copytree(tmp_path / "image", a.folder, dirs_exist_ok=True)
        a.environment = plain
        a.start()
        found = a.wait(lambda found: found["accepts_writes"])
        assert found["lsn"] >= had
        with a.database() as database:
            token = put(database, 0, 1)
            assert len(database.collection("docs").get(durable)) == len(durable)
        assert counts(b, token) == counts(a, token)
        assert digest(a) == digest(b)
    finally:
        a.stop()
        if b is not None:
            b.stop()


# -- 13: clocks ------------------------------------------------------------------------------------------------------


def headers(store: Store) -> list[Header]:
    """Return the headers of all records that a store's log holds."""
    with vecstore.open(str(store.folder), read_only=True) as database:
        assert isinstance(database, EmbeddedDatabase)
        return [record.header for record in LogReader(database.engine.store).records(0)]


def test_13_one_clock_jumps_and_another_is_behind(tmp_path: Path) -> None:
    """To 2100 and back at A, an hour behind at B, which takes over: commit times stay monotone and near the truth."""
    clocks, repository = [tmp_path / "clock-a", tmp_path / "clock-b"], str(tmp_path / "repository")
    clocks[0].write_text("0")
    clocks[1].write_text(str(-HOUR_S))
    of_a, of_b = ({"BENT_CLOCK": str(clock), "VECSTORE_SERVER_ARCHIVE": repository} for clock in clocks)
    with pair(tmp_path, of_a=of_a, of_b=of_b) as (a, b):
        with a.database() as database:
            for number, ahead_s in enumerate((YEARS_S, 0)):
                clocks[0].write_text(str(ahead_s))
                token = put(database, 200 + number, 1)
                jumped = database.status()["lsn"] - 1
        following(a, b)
        a.stop()
        assert b.command("promote", replaces=1).done
        for number in range(3):
            with connect([f"127.0.0.1:{a.port}", b.address], timeout=WAIT_S) as client:
                token = put(client, 300 + number, 1)
        assert counts(b, token) == 105
        with b.database() as database:
            eventually(database.status, lambda found: found["archive"] and not found["archive"]["lag_records"])
        b.stop()
        found = headers(b)
    times_us = [header.commit_time_us for header in found]
    assert times_us == sorted(times_us)
    assert times_us[-1] - times_us[0] < HOUR_S * 1e6
    (far,) = [header for header in found if header.wall_time_us - header.commit_time_us > HOUR_S * 1e6]
    assert far.lsn == jumped
    behind = [header for header in found if header.commit_time_us - header.wall_time_us > HOUR_S * 9e5]
    assert len(behind) >= 4, "the epoch's record and the three writes"
    # The log's time stands still until B's clock has caught up: by B's clock these were written an hour before.
    for time_us in (far.commit_time_us, behind[-1].commit_time_us - 1):
        with pytest.raises(InvalidArgument, match="names two states") as caught:
            restore(Repository(repository), str(tmp_path / "new"), Target(time_us=time_us))
    restored = restore(Repository(repository), str(tmp_path / "new"), Target(lsn=found[-1].lsn))
    assert restored.lsn == found[-1].lsn
    assert 0 < caught.value.details["lsn"] < found[-1].lsn
