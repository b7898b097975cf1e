"""A server that archives and takes snapshots by itself."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import vecstore
from vecstore.backup.catalogue import read_lineages
from vecstore.backup.plan import Lineage
from vecstore.backup.repository import Repository
from vecstore.errors import InvalidArgument
from vecstore.server import settings
from vecstore.server.node import Node
from vecstore.server.schedule import Schedule, SnapshotSettings

from .story import CONFIG, digests


def test_each_run_takes_a_snapshot_and_prunes(tmp_path: Path) -> None:
    """So many stay as are to be kept, and the newest is of now."""
    where = str(tmp_path / "repository")
    with vecstore.open(str(tmp_path / "store"), config=CONFIG) as db:
        schedule = Schedule(SnapshotSettings(repository=where, keep_last=2), db)
        for i in range(4):
            db.create_collection("points", 4, exist_ok=True).upsert([i], np.ones((1, 4)))
            assert schedule.run()
        expected = digests(db)
    (lineage,) = read_lineages(Repository(where))
    assert len(lineage.manifests) == 2
    vecstore.restore(where, str(tmp_path / "restored"))
    with vecstore.open(str(tmp_path / "restored")) as db:
        assert digests(db) == expected


def test_a_run_that_fails_ends_nothing(tmp_path: Path) -> None:
    """A repository that is out of reach is logged, and the next run tries again."""
    (tmp_path / "file").write_text("in the way")
    with vecstore.open(str(tmp_path / "store"), config=CONFIG) as db:
        assert not Schedule(SnapshotSettings(repository=str(tmp_path / "file")), db).run()
        db.create_collection("points", 4).upsert([1], np.ones((1, 4)))


def test_a_served_store_is_archived_and_snapshot(tmp_path: Path) -> None:
    """What clients wrote before the server ended is in the archive; the schedule takes its snapshots meanwhile."""
    where = str(tmp_path / "repository")
    flags = {
        ("server", "data"): str(tmp_path / "store"),
        ("server", "archive"): where,
        ("server", "listen"): "127.0.0.1:0",
        ("server", "http"): "",
        ("snapshot", "repository"): where,
        ("snapshot", "every"): "1s",
        ("snapshot", "keep_last"): 1,
        ("store", "archive_interval_s"): 0.1,
    }
    node = Node(settings.load(None, flags, {}))
    node.start()
    try:
        with vecstore.connect(node.grpc_address) as db:
            points = db.create_collection("points", 4)
            number = 0
            while not any(lineage.manifests for lineage in _lineages(where)):
                number += 1
                points.upsert([number], np.ones((1, 4)))
            expected = digests(db)
    finally:
        node.drain()
    vecstore.restore(where, str(tmp_path / "restored"))
    with vecstore.open(str(tmp_path / "restored")) as db:
        assert digests(db) == expected


def _lineages(where: str) -> list[Lineage]:
    try:
        return read_lineages(Repository(where))
    except vecstore.NotFound:
        return []


def test_a_client_has_its_server_take_a_snapshot(s3: str, tmp_path: Path) -> None:
    """Through the command line and the client, to a bucket or a configured path; other paths are refused."""
    local = str(tmp_path / "repository")
    flags = {
        ("server", "data"): str(tmp_path / "store"),
        ("server", "listen"): "127.0.0.1:0",
        ("server", "http"): "",
        ("snapshot", "repository"): local,
    }
    node = Node(settings.load(None, flags, {}))
    node.start()
    try:
        with vecstore.connect(node.grpc_address) as db:
            db.create_collection("points", 4).upsert([1], np.ones((1, 4)))
            expected, lsn = digests(db), db.status()["lsn"]
            for where in (local, s3):
                made = db.snapshot(where)
                assert made.lsn == lsn
                assert made.bytes_new > 0
            for wrong in (str(tmp_path / "elsewhere"), f"file://{tmp_path}/elsewhere", ""):
                with pytest.raises(InvalidArgument, match="repository"):
                    db.snapshot(wrong)
        command = [sys.executable, "-m", "vecstore.cli.main", "snapshot", node.grpc_address, local, "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        assert json.loads(done.stdout)["lsn"] == lsn
    finally:
        node.drain()
    assert not (tmp_path / "elsewhere").exists()
    for number, where in enumerate((local, s3)):
        vecstore.restore(where, str(tmp_path / f"restored-{number}"))
        with vecstore.open(str(tmp_path / f"restored-{number}")) as db:
            assert digests(db) == expected


def test_an_async_client_has_its_server_take_a_snapshot(tmp_path: Path) -> None:
    """The async twin does the same."""
    local = str(tmp_path / "repository")
    flags = {
        ("server", "data"): str(tmp_path / "store"),
        ("server", "listen"): "127.0.0.1:0",
        ("server", "http"): "",
        ("snapshot", "repository"): local,
    }
    node = Node(settings.load(None, flags, {}))
    node.start()

    async def take() -> vecstore.Snapshot:
        async with await vecstore.aio.connect(node.grpc_address) as db:
            return await db.snapshot(local)

    try:
        made = asyncio.run(take())
        assert made == vecstore.Snapshot(made.id, 1, made.time, made.bytes_new)
        assert made.time.tzinfo is not None
    finally:
        node.drain()


@pytest.mark.parametrize("wrong", ["", "6", "h", "0h", "6 h", "1w"])
def test_intervals_are_checked(wrong: str) -> None:
    """What is no interval is refused with the option's name, when the settings are read."""
    with pytest.raises(InvalidArgument, match="every"):
        settings.load(None, {("snapshot", "every"): wrong}, {})
    assert SnapshotSettings(every="90s").interval_s() == 90
    assert SnapshotSettings(every="2d").interval_s() == 172_800
