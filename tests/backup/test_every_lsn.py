"""Restoring random histories to every LSN: digest and contents are the oracle's at that LSN (I9).

``VECSTORE_RESTORE_HISTORIES`` draws more of them.
"""

from __future__ import annotations

import os
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

import vecstore
from vecstore.backup.plan import Target
from vecstore.backup.repository import Repository
from vecstore.backup.restore import restore

from .story import CONFIG, Story, check_moment, tell

HISTORIES = int(os.environ.get("VECSTORE_RESTORE_HISTORIES") or 4)
CALLS = 12


def check_every_lsn(story: Story, rng: np.random.Generator) -> None:
    """Restore to each LSN of a history, and look into a few of the results."""
    path = story.folder / "restored"
    looked_at = set(rng.choice(sorted(story.moments), min(3, len(story.moments)), replace=False).tolist())
    for lsn in range(max(story.moments) + 1):
        made = restore(Repository(story.repository), str(path), Target(lsn=lsn))
        assert made.lsn == lsn
        moment = story.moments.get(lsn)
        if moment is not None:
            assert made.digests == moment.digests, f"LSN {lsn} of history {story.seed}"
            if lsn in looked_at:
                check_moment(path, moment)
        shutil.rmtree(path)


@pytest.mark.parametrize("number", range(HISTORIES))
def test_every_lsn_of_a_random_history_comes_back(number: int, seed: int, tmp_path: Path) -> None:
    """Snapshots, archive, checkpoints, reopenings: whatever happened, each LSN gives the oracle's state."""
    story_seed = (seed + number) % 2**32
    story = tell(story_seed, tmp_path, calls=CALLS)
    check_every_lsn(story, np.random.default_rng(story_seed))


def test_the_archive_alone_leads_to_every_lsn(seed: int, tmp_path: Path) -> None:
    """An archive that begins with the first record needs no snapshot."""
    story = tell(seed, tmp_path, calls=CALLS, snapshots=False)
    check_every_lsn(story, np.random.default_rng(seed))


def test_snapshots_alone_lead_to_their_own_lsns(seed: int, tmp_path: Path) -> None:
    """Without an archive a snapshot gives its own LSN, and any other LSN is refused with what there is."""
    story = tell(seed, tmp_path, calls=30, archive=False)
    assert story.snapshots != []
    for number, snapshot in enumerate(story.snapshots):
        path = tmp_path / f"restored-{number}"
        made = vecstore.restore(story.repository, str(path), to_lsn=snapshot.lsn)
        assert (made.lsn, made.time) == (snapshot.lsn, snapshot.time)
        check_moment(path, story.moments[snapshot.lsn])
    missing = next(lsn for lsn in range(1, 99) if lsn not in {s.lsn for s in story.snapshots})
    with pytest.raises(vecstore.NotFound, match="LSN"):
        vecstore.restore(story.repository, str(tmp_path / "missing"), to_lsn=missing)
    assert not (tmp_path / "missing").exists()


def test_a_time_means_the_last_record_committed_by_then(seed: int, tmp_path: Path) -> None:
    """Restoring to a record's commit time gives that record's state; a microsecond before, the one before it."""
    story = tell(seed, tmp_path, calls=CALLS)
    newest = max(story.moments)
    times: dict[int, datetime] = {}
    for lsn in range(1, newest + 1):
        path = tmp_path / f"at-{lsn}"
        times[lsn] = vecstore.restore(story.repository, str(path), to_lsn=lsn).time
        shutil.rmtree(path)
    assert list(times.values()) == sorted(times.values())
    for lsn in (newest, newest // 2):
        path = tmp_path / "restored"
        last = max(other for other in times if times[other] <= times[lsn])
        assert vecstore.restore(story.repository, str(path), to_time=times[lsn]).lsn == last
        shutil.rmtree(path)
        before = max((other for other in times if times[other] < times[lsn]), default=0)
        made = vecstore.restore(story.repository, str(path), to_time=times[lsn] - timedelta(microseconds=1))
        assert made.lsn == before
        shutil.rmtree(path)
    assert (
        vecstore.restore(story.repository, str(tmp_path / "end"), to_time=datetime.max.replace(tzinfo=UTC)).lsn
        == newest
    )
    with pytest.raises(vecstore.NotFound):
        vecstore.restore(story.repository, str(tmp_path / "early"), to_time=datetime(2000, 1, 1, tzinfo=UTC))


def test_a_restored_store_is_a_lineage_of_its_own_and_goes_on(seed: int, tmp_path: Path) -> None:
    """It takes writes, checkpoints, verification, reopening, snapshots and restores like any other store."""
    story = tell(seed, tmp_path, calls=CALLS)
    path, again = tmp_path / "restored", tmp_path / "again"
    vecstore.restore(story.repository, str(path))
    with vecstore.open(str(story.store)) as source, vecstore.open(str(path), config=CONFIG) as db:
        assert db.status()["lineage"] != source.status()["lineage"]
        assert db.status()["lsn"] == source.status()["lsn"]
        with pytest.raises(vecstore.WriteLost):
            db.wait(source.status()["token"], timeout=5)
        db.create_collection("new", 4, exist_ok=True).upsert([1, 2], np.eye(2, 4, dtype=np.float32))
        db.checkpoint()  # type: ignore[attr-defined]
        token = db.status()["token"]
        snapshot = db.snapshot(story.repository)
    with vecstore.open(str(path), config=CONFIG) as db:
        assert db.status()["findings"] == []
        assert db.wait(token, timeout=5).lsn == snapshot.lsn
        assert db.verify()["ok"]
        lineage = db.status()["lineage"]
    with pytest.raises(vecstore.InvalidArgument, match="2 lineages"):
        vecstore.restore(story.repository, str(again))
    vecstore.restore(f"{story.repository}#{lineage}", str(again))
    with vecstore.open(str(again)) as db:
        assert db.collection("new").count() == 2
