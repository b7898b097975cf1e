"""Disks that are full or fail: callers learn what became of their writes, reads go on, a reopen is right."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import vecstore

from ..support.shim import shim_environment
from ..support.writer import CONFIG
from .checks import check_digests, check_store
from .history import History
from .process import CHILD_TIMEOUT_S, ROOT, add_seed

Floats = npt.NDArray[np.float32]
MIB = 1 << 20
DIM = 64
POINTS = 400


def play(scene: str, where: Path, seed: int, environment: Mapping[str, str] = os.environ) -> tuple[History, str]:
    """Run a failing writer; return its history, and what it said."""
    command = [sys.executable, "-m", "tests.crash.failing", scene, str(where), str(seed)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, check=True, timeout=CHILD_TIMEOUT_S
    )
    history = History(threads=2)
    history.add(done.stdout.splitlines())
    return history, done.stdout.decode()


@pytest.mark.parametrize("scene", ["sync-eio", "group-eio", "write-enospc", "write-eio"])
def test_a_failed_call_stops_the_store(scene: str, shim: Path, seed: int, tmp_path: Path) -> None:
    """After one failed write or sync the outcome is unknown, the store stops for good, and only a reopen settles it."""
    try:
        history, said = play(scene, tmp_path / "store", seed, shim_environment(shim, tmp_path))
        assert '"outcome":"unknown"' in said
        check_store(tmp_path / "store", history, seed)
    except BaseException as error:
        add_seed(error, seed=seed, scene=scene)
        raise


def test_index_files_that_cannot_be_written_lose_nothing(shim: Path, seed: int, tmp_path: Path) -> None:
    """Checkpoints and sealing that fail cost time: writes that were acknowledged are there, and answers are right."""
    history, _ = play("index", tmp_path / "store", seed, shim_environment(shim, tmp_path))
    check_store(tmp_path / "store", history, seed)


def test_a_full_disk_stops_writes_alone(small_disk: Path, seed: int) -> None:
    """With the floor of free space lifted, a full disk ends in an error with an outcome; a reopen is right."""
    history, said = play("full", small_disk / "store", seed)
    assert '"error"' in said
    check_store(small_disk / "store", history, seed)


def test_limited_files_stop_writes_alone(seed: int, tmp_path: Path) -> None:
    """A limit of file size, which needs no privileges, is met as a full disk is."""
    history, said = play("files", tmp_path / "store", seed)
    assert '"error"' in said
    check_store(tmp_path / "store", history, seed)


def test_the_floor_refuses_before_the_log_can_tear(small_disk: Path, seed: int) -> None:
    """Below the floor upserts are refused with nothing changed; deletes and reads go on; above it all is as before."""
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((POINTS, DIM), dtype=np.float32)
    floor = 16 * MIB
    with vecstore.open(str(small_disk / "store"), config=CONFIG | {"disk_free_bytes_min": floor}) as db:
        points = db.create_collection("points", DIM)
        points.upsert(list(range(POINTS)), vectors)
        before = db.status()["lsn"]
        free = os.statvfs(small_disk)
        with open(small_disk / "filler", "wb") as filler:
            os.posix_fallocate(filler.fileno(), 0, free.f_bavail * free.f_frsize - floor // 2)
        with pytest.raises(vecstore.Exhausted) as caught:
            write_until_refused(points, vectors)
        assert caught.value.outcome == "refused"
        assert os.statvfs(small_disk).f_bavail * free.f_frsize > floor // 4, "it was noticed too late"
        assert db.status()["lsn"] - before < 20
        assert points.delete(ids=[1, 2, 3]).count == 3
        assert points.count() == POINTS - 3
        assert points.search(vectors[5], 1, exact=True)[0].id == 5
        (small_disk / "filler").unlink()
        retry_until_accepted(points, vectors)
        check_digests(db)


def write_until_refused(points: vecstore.Collection, vectors: Floats) -> None:
    """Write the same points until the store refuses."""
    for _ in range(1_000):
        points.upsert(list(range(POINTS)), vectors)


def retry_until_accepted(points: vecstore.Collection, vectors: Floats) -> None:
    """Write one point as soon as the store has seen that there is space again."""
    for attempt in range(10_000):
        try:
            assert points.upsert(1, vectors[1]).count == 1
            return
        except vecstore.Exhausted:
            assert attempt < 9_999, "space came back and writes did not"
