"""The archive as a slot: how far behind; the repository away, slow or full; the limit of the log that waits."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vecstore
from tests.support.s3 import BUCKET, Door
from vecstore import Database
from vecstore.backup.check import check_repository
from vecstore.backup.repository import Repository
from vecstore.clock import Clock, CommitClock
from vecstore.engine import archiver

from .story import CONFIG, await_archive, digests

WAIT_S_MAX = 60.0


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the archiver wait less between its tries."""
    monkeypatch.setattr(archiver, "BACK_OFF_S_MIN", 0.05)
    monkeypatch.setattr(archiver, "BACK_OFF_S_MAX", 0.2)


def wait_for(db: Database, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Ask for the archive's status until something holds of it."""
    give_up_s = time.monotonic() + WAIT_S_MAX
    while True:
        found: dict[str, Any] = db.status()["archive"]
        if holds(found):
            return found
        assert time.monotonic() < give_up_s, found
        db.wait(db.status()["token"])


def opened(path: Path, archive: str, **options: Any) -> Database:
    """Open a store with an archive."""
    config: Mapping[str, Any] = {**CONFIG, **options}
    return vecstore.open(str(path), archive=archive, config=config)


def fill(db: Database, first: int, count: int, size: int = 100) -> None:
    """Write records of one point each."""
    points = db.create_collection("points", 4, exist_ok=True)
    for i in range(first, first + count):
        points.upsert([i], np.full((1, 4), i + 1, np.float32), [{"text": "x" * size}])


def test_status_and_metrics_say_how_far_the_archive_is(tmp_path: Path) -> None:
    """Lag in records, bytes and seconds; none once it has caught up; the slot is where the archive is."""
    with opened(tmp_path / "store", str(tmp_path / "repository"), archive_interval_s=0.4) as db:
        fill(db, 0, 5)
        behind = wait_for(db, lambda a: bool(a["lag_records"] > 0 or a["lsn"] == db.status()["lsn"]))
        assert behind["problem"] == ""
        found = wait_for(db, lambda a: bool(a["lag_records"] == 0))
        assert (found["lsn"], found["lag_bytes"], found["lag_s"]) == (db.status()["lsn"], 0, 0.0)
        (slot,) = db.status()["slots"]
        assert (slot["name"], slot["consumer"], slot["lsn"]) == ("archive", found["repository"], found["lsn"])
        assert db.status()["metrics"]["archived_bytes"] > 0
    with vecstore.open(str(tmp_path / "store"), config=CONFIG) as db:
        assert db.status()["archive"] is None
        assert [slot["name"] for slot in db.status()["slots"]] == ["archive"]


def test_nothing_is_archived_that_is_not_durable(tmp_path: Path) -> None:
    """Records that were acknowledged from memory wait for the sync."""
    with opened(tmp_path / "store", str(tmp_path / "repository"), checkpoint_interval_s=3600.0) as db:
        points = db.create_collection("points", 4)
        await_archive(db)
        durable = db.status()["durable_lsn"]
        committer = db.engine.committer  # type: ignore[attr-defined]
        points.upsert([1, 2], np.ones((2, 4)), ack="memory")
        # So long that the archiver has looked several times.
        until_s = time.monotonic() + 0.5
        while time.monotonic() < until_s:
            found = db.status()["archive"]["lsn"]
            assert found <= committer.durable_lsn
        points.upsert([9], np.ones((1, 4)))
        await_archive(db)
        assert db.status()["archive"]["lsn"] > durable


@pytest.mark.parametrize("mood", ["503", "shut"])
def test_it_goes_on_when_the_repository_is_back(mood: str, door: Door, tmp_path: Path) -> None:
    """While the repository answers 503, or not at all, writes and reads go on and the log waits; then it catches up."""
    where = f"s3://{BUCKET}/{tmp_path.name}-{mood}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vecstore.backup.repository.RETRIES_MAX", 1)
        with opened(tmp_path / "store", where) as db:
            fill(db, 0, 3)
            await_archive(db)
            door.mood = mood
            fill(db, 3, 3)
            failing = wait_for(db, lambda a: bool(a["problem"]))
            assert failing["lag_records"] == 3
            for _ in range(4):
                fill(db, 6, 10)
                db.checkpoint()  # type: ignore[attr-defined]
            assert db.collection("points").count() == 16
            assert door.refused > 0
            door.mood = "open"
            await_archive(db)
            assert wait_for(db, lambda a: not a["problem"])["gap"] == ""
            expected = digests(db)
        vecstore.restore(where, str(tmp_path / "restored"))
        with vecstore.open(str(tmp_path / "restored")) as db:
            assert digests(db) == expected


def test_a_store_opens_while_its_repository_is_away(door: Door, tmp_path: Path) -> None:
    """An archive that cannot be reached keeps no store from opening, and nothing from closing."""
    door.mood = "shut"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vecstore.backup.repository.RETRIES_MAX", 1)
        with opened(tmp_path / "store", f"s3://{BUCKET}/{tmp_path.name}") as db:
            fill(db, 0, 2)
            assert wait_for(db, lambda a: bool(a["problem"]))["lag_records"] > 0


def test_a_slow_repository_slows_no_writes(door: Door, tmp_path: Path) -> None:
    """Each answer takes a while, and the snapshot and the archive with it; writes do not wait."""
    door.mood = "slow"
    where = f"s3://{BUCKET}/{tmp_path.name}"
    with opened(tmp_path / "store", where) as db:
        start_s = time.monotonic()
        fill(db, 0, 20)
        assert time.monotonic() - start_s < WAIT_S_MAX
        snapshot = db.snapshot(where)
        await_archive(db)
    door.mood = "open"
    assert check_repository(Repository(where), deep=True)["damaged"] == []
    assert vecstore.restore(where, str(tmp_path / "restored"), to_lsn=snapshot.lsn).lsn == snapshot.lsn


def test_no_record_is_cut_before_it_is_archived(tmp_path: Path) -> None:
    """While the repository is away checkpoints are taken and the log is not cut; then all of it is archived."""
    repository, away = tmp_path / "repository", tmp_path / "away"
    with opened(tmp_path / "store", str(repository)) as db:
        fill(db, 0, 3)
        await_archive(db)
        repository.rename(away)
        repository.write_text("in the way")
        for number in range(6):
            fill(db, 100 * number, 5)
            db.checkpoint()  # type: ignore[attr-defined]
        wait_for(db, lambda a: bool(a["problem"]))
        repository.unlink()
        away.rename(repository)
        found = wait_for(db, lambda a: a["lag_records"] == 0 and not a["problem"])
        assert found["gap"] == ""
        expected = digests(db)
    vecstore.restore(str(repository), str(tmp_path / "restored"))
    with vecstore.open(str(tmp_path / "restored")) as db:
        assert digests(db) == expected


def test_the_log_is_kept_for_the_archive_up_to_its_limit(tmp_path: Path) -> None:
    """While the repository is away the log waits; beyond the limit it is cut, and the archive says what is missing."""
    repository = tmp_path / "repository"
    with opened(tmp_path / "store", str(repository)) as db:
        fill(db, 0, 3)
        await_archive(db)
    away = tmp_path / "away"
    repository.rename(away)
    repository.write_text("in the way")
    with opened(tmp_path / "store", str(repository), slot_retained_bytes_max=1 << 20) as db:
        start = db.status()["archive"]["lsn"]
        for number in range(3):
            fill(db, 100 * number, 30, size=1_000)
            db.checkpoint()  # type: ignore[attr-defined]
        assert db.status()["slots"][0]["lost"] is False
        kept = db.status()["slots"][0]["retained_bytes"]
        for number in range(20):
            fill(db, 100 * number, 60, size=2_000)
            db.checkpoint()  # type: ignore[attr-defined]
        (slot,) = db.status()["slots"]
        assert slot["lost"] is True
        assert slot["retained_bytes"] > 1 << 20 > kept
        repository.unlink()
        away.rename(repository)
        found = wait_for(db, lambda a: bool(a["gap"]))
        assert f"records {start + 1} to" in found["gap"]
        snapshot = db.snapshot(str(repository))
        fill(db, 5_000, 3)
        await_archive(db)
        expected = digests(db)
    # What is behind the gap is whole again; the gap itself is named.
    (damage,) = check_repository(Repository(str(repository)))["damaged"]
    assert damage["first_lost_lsn"] == start + 1
    made = vecstore.restore(str(repository), str(tmp_path / "restored"))
    assert made.id == snapshot.id
    with vecstore.open(str(tmp_path / "restored")) as db:
        assert digests(db) == expected
    with pytest.raises(vecstore.Damaged, match="missing"):
        vecstore.restore(str(repository), str(tmp_path / "never"), to_lsn=start + 1)


def test_a_full_repository_is_said_and_survived(tmp_path: Path) -> None:
    """A repository on a full disk: the snapshot fails and says why, the archive tries again, the store goes on."""
    full = tmp_path / "full"
    full.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(full)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        with opened(tmp_path / "store", str(full / "repository")) as db:
            rng = np.random.default_rng(0)
            for i in range(20):
                points = db.create_collection("points", 64, exist_ok=True)
                points.upsert(list(range(100 * i, 100 * i + 100)), rng.standard_normal((100, 64)))
            with pytest.raises(vecstore.Exhausted, match="repository"):
                db.snapshot(str(full / "repository"))
            failing = wait_for(db, lambda a: bool(a["problem"]))
            assert "No space" in failing["problem"]
            assert db.verify()["ok"]
            assert db.collection("points").count() == 2_000
        assert check_repository(Repository(str(full / "repository")))["damaged"] == []
    finally:
        subprocess.run(["umount", str(full)], check=True)


class JumpingClock:
    """Wall time that jumps back and forth, beside monotonic time that goes on."""

    def __init__(self) -> None:
        self._calls = 0

    def wall_us(self) -> int:
        """Return a time that is hours off in either direction."""
        self._calls += 1
        hours = self._calls if self._calls % 2 else -self._calls
        return 1_800_000_000_000_000 + hours * 3_600_000_000

    def monotonic_s(self) -> float:
        """Return a time that goes on."""
        return self._calls / 10


def test_a_clock_that_goes_back_confuses_no_restore(tmp_path: Path) -> None:
    """Commit times are the log's own and never go back; where the clocks disagree, the LSN of one's state is named."""
    clock: Clock = JumpingClock()
    repository = str(tmp_path / "repository")
    with opened(tmp_path / "store", repository) as db:
        committer = db.engine.committer  # type: ignore[attr-defined]
        tip = db.engine.state.fold.tip  # type: ignore[attr-defined]
        committer._clock = CommitClock(clock, tip.commit_time_us)
        expected = {}
        for i in range(8):
            fill(db, i, 1)
            expected[db.status()["lsn"]] = digests(db)
        await_archive(db)
    times = {}
    for lsn in expected:
        path = tmp_path / f"at-{lsn}"
        times[lsn] = vecstore.restore(repository, str(path), to_lsn=lsn).time
    assert list(times.values()) == sorted(times.values())
    for number, (lsn, moment) in enumerate(times.items()):
        path = tmp_path / f"time-{number}"
        try:
            made = vecstore.restore(repository, str(path), to_time=moment)
        except vecstore.InvalidArgument as exc:
            assert times[exc.details["lsn"]] == moment
            assert exc.details["lsn"] >= lsn
            continue
        assert times[made.lsn] == moment
        assert made.lsn >= lsn
        with vecstore.open(str(path)) as db:
            assert digests(db) == expected[made.lsn]


def test_one_store_has_one_archive(tmp_path: Path) -> None:
    """The same archive may be asked for again; another one, or one of a store that is only read, is refused."""
    with opened(tmp_path / "store", str(tmp_path / "one")) as db:
        opened(tmp_path / "store", str(tmp_path / "one")).close()
        with pytest.raises(vecstore.InvalidArgument, match="archive"):
            opened(tmp_path / "store", str(tmp_path / "two"))
        with pytest.raises(vecstore.InvalidArgument, match="read-only"):
            vecstore.open(str(tmp_path / "store"), read_only=True, archive=str(tmp_path / "one"))
        with pytest.raises(vecstore.InvalidArgument, match="repository"):
            vecstore.open(str(tmp_path / "other"), archive="ftp://nowhere")
        fill(db, 0, 1)
