"""What every repository must do, on a local disk and on a real S3 API; and what a place that is none is told."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

import vecstore
from tests.support.s3 import BUCKET, Door
from vecstore.backup import layout
from vecstore.backup.check import check_repository
from vecstore.backup.exclusion import is_snapshot_pending, pending, pruning
from vecstore.backup.prune import prune
from vecstore.backup.repository import Repository, is_repository, look
from vecstore.errors import AlreadyExists, InvalidArgument, NotFound, Unavailable

from .story import CONFIG, await_archive, digests


def test_objects_come_back_as_written(where: str) -> None:
    """Small and large objects, listed with their sizes under their prefix; what is not there is NotFound."""
    repository = Repository(where, create=True)
    large = [bytes([i]) * (5 << 20) for i in range(3)]
    repository.replace("objects/aa/small", b"1")
    repository.replace("objects/aa/small", b"22")
    repository.put("objects/bb/large", large)
    assert repository.read("objects/aa/small") == b"22"
    assert b"".join(repository.stream("objects/bb/large")) == b"".join(large)
    assert {name: stored.size for name, stored in repository.names("objects/").items()} == {
        "objects/aa/small": 2,
        "objects/bb/large": 15 << 20,
    }
    repository.remove(["objects/aa/small", "objects/never"])
    with pytest.raises(NotFound):
        repository.read("objects/aa/small")
    with pytest.raises(NotFound):
        repository.stat("objects/aa/small")


def test_a_look_changes_nothing_and_gives_up(where: str, tmp_path: Path) -> None:
    """It tells a repository from a place that could be one, and a place that is not there is an error."""
    if "://" not in where:
        Path(where).mkdir()
    assert not look(where, 5.0)
    assert not look(where, 5.0), "the look before has made one"
    Repository(where, create=True)
    assert look(where, 5.0)
    absent = "s3://no-such-bucket/log" if "://" in where else str(tmp_path / "absent")
    with pytest.raises((NotFound, Unavailable), match=r"NoSuchBucket|there is none"):
        look(absent, 5.0)


def test_a_look_asks_once(door: Door) -> None:
    """A repository that fails is not asked again and again: whoever looks wants to know now."""
    door.mood = "503"
    with pytest.raises(Unavailable):
        look(f"s3://{BUCKET}/looked-at", 5.0)
    assert door.refused == 1


def test_create_only_means_that_one_wins(where: str) -> None:
    """Of many who create one object with other bytes, one succeeds; who comes again with its bytes does, too."""
    repository = Repository(where, create=True)
    won: list[bytes] = []

    def race(mine: bytes) -> None:
        try:
            repository.create("lineages/x", mine)
        except AlreadyExists:
            return
        won.append(mine)

    threads = [threading.Thread(target=race, args=(bytes([i]),)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert repository.read("lineages/x") == won[0]
    repository.create("lineages/x", won[0])


def test_many_make_one_repository_at_once(where: str) -> None:
    """Whoever comes second finds what the first has made, at whatever moment."""
    failed: list[Exception] = []

    def make() -> None:
        try:
            Repository(where, create=True)
        except vecstore.VecstoreError as exc:
            failed.append(exc)

    threads = [threading.Thread(target=make) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


def test_a_whole_life(where: str, tmp_path: Path) -> None:
    """Snapshot, archive, check, prune and restore, of one store, at either kind of place."""
    with vecstore.open(str(tmp_path / "store"), archive=where, config=CONFIG) as db:
        points = db.create_collection("points", 4)
        points.upsert(list(range(100)), np.random.default_rng(0).standard_normal((100, 4)))
        first = db.snapshot(where)
        assert db.snapshot(where).bytes_new < 20_000
        points.delete(ids=[1, 2, 3])
        await_archive(db)
        expected = digests(db)
    repository = Repository(where)
    assert check_repository(repository, deep=True)["damaged"] == []
    pruned = prune(repository, keep_last=1, keep_days=None, now_us=0)
    assert pruned.done
    assert [name for name in pruned.snapshots if first.id in name] != []
    assert check_repository(repository, deep=True)["damaged"] == []
    vecstore.restore(where, str(tmp_path / "restored"))
    with vecstore.open(str(tmp_path / "restored")) as db:
        assert digests(db) == expected


def test_what_is_no_repository_is_left_alone(tmp_path: Path) -> None:
    """A folder with something else in it is refused, and nothing is written to it."""
    other = tmp_path / "other"
    other.mkdir()
    (other / "file").write_text("mine")
    with pytest.raises(InvalidArgument, match="not empty"):
        Repository(str(other), create=True)
    with pytest.raises(NotFound):
        Repository(str(other))
    assert [path.name for path in other.iterdir()] == ["file"]
    with pytest.raises(NotFound):
        Repository(str(tmp_path / "nothing"))
    assert not (tmp_path / "nothing").exists()
    for wrong in ("ftp://host/path", "", None):
        with pytest.raises(InvalidArgument, match="repository"):
            Repository(wrong)  # type: ignore[arg-type]


def test_a_newer_repository_is_refused(tmp_path: Path) -> None:
    """A version that this one does not know is named, and nothing is touched."""
    where = str(tmp_path / "repository")
    Repository(where, create=True)
    (tmp_path / "repository" / layout.MARKER).write_bytes(b'{"magic":"vecstore repository","version":2}')
    with pytest.raises(InvalidArgument, match="version 2"):
        Repository(where, create=True)


def test_stores_and_repositories_are_told_apart(tmp_path: Path) -> None:
    """By their marker files; a URL is a repository."""
    vecstore.open(str(tmp_path / "store")).close()
    Repository(str(tmp_path / "repository"), create=True)
    assert not is_repository(str(tmp_path / "store"))
    assert is_repository(str(tmp_path / "repository"))
    assert is_repository(f"{tmp_path / 'repository'}#aabb")
    assert is_repository("s3://bucket/prefix")


def test_a_prune_removes_no_file_while_a_snapshot_is_pending(where: str, tmp_path: Path) -> None:
    """Files that nobody names stay until the snapshot is done: it may have counted on them."""
    repository = Repository(where, create=True)
    repository.replace(layout.object_name("ab" * 16, 1), b"1")
    with pending(repository, "aa" * 16, "one"):
        pruned = prune(repository, keep_last=1, keep_days=None, now_us=0)
        assert pruned.waits
        assert pruned.objects == []
        assert repository.names("objects/") != {}
    pruned = prune(repository, keep_last=1, keep_days=None, now_us=0)
    assert len(pruned.objects) == 1
    assert repository.names("objects/") == {}


def test_a_snapshot_waits_for_a_prune(where: str) -> None:
    """Whoever says first that it is at work goes first, and both see each other."""
    repository = Repository(where, create=True)
    begun, entered = threading.Event(), threading.Event()

    def snapshot() -> None:
        begun.set()
        with pending(repository, "aa" * 16, "one"):
            entered.set()

    thread = threading.Thread(target=snapshot)
    with pruning(repository):
        thread.start()
        begun.wait()
        while not is_snapshot_pending(repository):
            assert not entered.is_set()
        assert not entered.wait(0.5)
        with pytest.raises(Unavailable, match="another prune"), pruning(repository):
            raise AssertionError("two prunes at once")
    thread.join()
    assert entered.is_set()
    assert not is_snapshot_pending(repository)
