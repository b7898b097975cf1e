"""SIGKILL at every step of a snapshot, an archive, a restore and a prune; then the same again, which succeeds."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import vecstore
from vecstore.backup.catalogue import read_lineages
from vecstore.backup.check import check_repository
from vecstore.backup.repository import Repository

from .mortal import CONFIG, ROOT, deaths
from .story import check_moment, digests, tell


def sound(repository: str, *, deep: bool = False) -> None:
    """Assert that nothing in a repository is damaged or missing."""
    assert check_repository(Repository(repository), deep=deep)["damaged"] == []


def test_a_snapshot_that_was_killed_is_invisible_and_the_next_one_goes_on(seed: int, tmp_path: Path) -> None:
    """At every step: no half snapshot is listed, and at the end there is one, and what others left is pruned."""
    story = tell(seed, tmp_path, calls=8, snapshots=False, archive=False)
    died = 0
    for step in deaths("snapshot", str(story.store), story.repository):
        died = step
        if (Path(story.repository) / "vecstore-repository.json").exists():
            sound(story.repository)
            assert [lineage for lineage in read_lineages(Repository(story.repository)) if lineage.manifests] == []
    assert died > 3
    (lineage,) = read_lineages(Repository(story.repository))
    assert len(lineage.manifests) == 1
    sound(story.repository, deep=True)
    vecstore.restore(story.repository, str(tmp_path / "restored"))
    check_moment(tmp_path / "restored", story.moments[max(story.moments)])


def test_an_archive_that_was_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    """At every step of shipping: what is archived has no gap, and at the end it has everything."""
    store, repository = str(tmp_path / "store"), str(tmp_path / "repository")
    died = 0
    for step in deaths("write", store, repository):
        died = step
        if (tmp_path / "repository" / "vecstore-repository.json").exists():
            sound(repository)
    assert died > 3
    sound(repository, deep=True)
    vecstore.restore(repository, str(tmp_path / "restored"))
    with vecstore.open(store) as source, vecstore.open(str(tmp_path / "restored")) as db:
        assert digests(db) == digests(source)
        assert db.status()["lsn"] == source.status()["lsn"]


def test_a_restore_that_was_killed_leaves_no_store_and_is_resumed(seed: int, tmp_path: Path) -> None:
    """At every step: what is there does not open, and the same restore makes the whole store of it."""
    story = tell(seed, tmp_path, calls=10)
    path = tmp_path / "restored"
    died = 0
    for step in deaths("restore", story.repository, str(path)):
        died = step
        if (path / "vecstore.json").exists():
            raise AssertionError(f"step {step} left a store")
        with pytest.raises(vecstore.VecstoreError):
            vecstore.open(str(path), create=False).close()
        with pytest.raises(vecstore.VecstoreError):
            vecstore.open(str(path)).close()
    assert died > 5
    check_moment(path, story.moments[max(story.moments)])


def test_a_prune_that_was_killed_breaks_nothing_and_is_done_again(seed: int, tmp_path: Path) -> None:
    """At every step: all that is listed can be restored; at the end one snapshot is left, and no orphan."""
    story = tell(seed, tmp_path, calls=12)
    with vecstore.open(str(story.store)) as db:
        for i in range(3):
            db.create_collection("more", 4, exist_ok=True).upsert([i], np.ones((1, 4)))
            db.snapshot(story.repository)
        expected = digests(db)
    died = 0
    for step in deaths("prune", story.repository):
        died = step
        sound(story.repository)
    assert died > 3
    repository = Repository(story.repository)
    (lineage,) = read_lineages(repository)
    assert len(lineage.manifests) == 1
    needed = {file.object for file in lineage.manifests[0].files}
    assert set(repository.names("objects/")) == needed
    vecstore.restore(story.repository, str(tmp_path / "restored"))
    with vecstore.open(str(tmp_path / "restored")) as db:
        assert digests(db) == expected


def test_a_snapshot_goes_on_after_a_prune_was_killed(seed: int, tmp_path: Path) -> None:
    """The word of a prune that died on this machine is void at once."""
    story = tell(seed, tmp_path, calls=5, snapshots=False, archive=False)
    with vecstore.open(str(story.store)) as db:
        db.snapshot(story.repository)
        stop_at = 2
        module = [sys.executable, "-m", "tests.backup.mortal", str(stop_at), "prune", story.repository]
        assert subprocess.run(module, cwd=ROOT, check=False, timeout=60).returncode == -9
        assert (Path(story.repository) / "pruning.json").exists()
        db.snapshot(story.repository)
    assert not (Path(story.repository) / "pruning.json").exists()


def test_the_store_itself_is_none_the_worse(seed: int, tmp_path: Path) -> None:
    """What a killed snapshot has left in the store's folder is gone with the next open, and nothing is damaged."""
    story = tell(seed, tmp_path, calls=6, snapshots=False, archive=False)
    for number, _ in enumerate(deaths("snapshot", str(story.store), story.repository)):
        if number == 4:
            break
    assert list((story.store / "snapshot").iterdir()) != []
    with vecstore.open(str(story.store), config=CONFIG) as db:
        assert not (story.store / "snapshot").exists()
        assert db.verify()["ok"]
        assert digests(db) == story.moments[max(story.moments)].digests


def test_writes_go_on_during_snapshots(tmp_path: Path) -> None:
    """Each of many snapshots beside writers is of one LSN: a record is in it whole or not at all."""
    store, repository = str(tmp_path / "store"), str(tmp_path / "repository")
    with vecstore.open(store, config={**CONFIG, "checkpoint_log_bytes": 64 << 10}) as db:
        points = db.create_collection("points", 4)
        stop = threading.Event()

        def go_on(thread: int) -> None:
            number = 0
            while not stop.is_set():
                # Each record writes five points of one value: a state between records would show.
                number += 1
                points.upsert([10 * thread + i for i in range(5)], np.full((5, 4), number, np.float32))

        threads = [threading.Thread(target=go_on, args=(thread,)) for thread in range(2)]
        for thread in threads:
            thread.start()
        taken = [db.snapshot(repository) for _ in range(5)]
        stop.set()
        for thread in threads:
            thread.join()
    assert [s.lsn for s in taken] == sorted(s.lsn for s in taken)
    assert taken[-1].lsn > taken[0].lsn
    for snapshot in taken:
        path = str(tmp_path / "restored")
        assert vecstore.restore(repository, path, to_lsn=snapshot.lsn).id == snapshot.id
        with vecstore.open(path) as db:
            held = {p.id: p.vector[0] for p in db.collection("points").scan(with_vector=True) if p.vector is not None}
            for first in (0, 10):
                assert len({held[first + i] for i in range(5) if first in held}) <= 1
        shutil.rmtree(path)
