"""Several histories in one repository: lineages and epochs never mix."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import vecstore
from vecstore import Database
from vecstore.backup.check import check_repository
from vecstore.backup.repository import Repository
from vecstore.storage.directory import StoreDirectory

from .story import CONFIG, await_archive, digests

PUTS_MAX = 300


def put(db: Database, id: int, value: float) -> dict[str, tuple[str, int]]:
    """Write one point; return the digests after it."""
    db.create_collection("points", 4, exist_ok=True).upsert([id], np.full((1, 4), value, np.float32))
    return digests(db)


def restored(repository: str, path: Path, **target: int) -> dict[str, tuple[str, int]]:
    """Restore, and return the digests."""
    vecstore.restore(repository, str(path), **target)  # type: ignore[arg-type]
    with vecstore.open(str(path)) as db:
        return digests(db)


def test_two_lineages_share_a_repository_and_no_history(tmp_path: Path) -> None:
    """Two stores archive to one place; each is restored by its name, and none is guessed."""
    repository = str(tmp_path / "repository")
    held, lineages = [], []
    for number in range(2):
        with vecstore.open(str(tmp_path / f"store-{number}"), archive=repository, config=CONFIG) as db:
            held.append(put(db, 1, float(number + 1)))
            db.snapshot(repository)
            lineages.append(db.status()["lineage"])
    with pytest.raises(vecstore.InvalidArgument, match="2 lineages") as caught:
        vecstore.restore(repository, str(tmp_path / "any"))
    assert caught.value.details["lineages"] == sorted(lineages)
    for number, lineage in enumerate(lineages):
        assert restored(f"{repository}#{lineage}", tmp_path / f"restored-{number}") == held[number]
    assert check_repository(Repository(repository), deep=True)["damaged"] == []
    with pytest.raises(vecstore.NotFound):
        vecstore.restore(f"{repository}#{'0' * 32}", str(tmp_path / "none"))


def test_a_new_epoch_goes_on_and_the_old_one_keeps_its_own_branch(tmp_path: Path) -> None:
    """A store restored in place writes epoch 2; the lost primary comes back and goes on writing epoch 1, beside it."""
    repository, old = str(tmp_path / "repository"), str(tmp_path / "old")
    with vecstore.open(old, archive=repository, config=CONFIG) as db:
        put(db, 1, 1.0)
        db.snapshot(repository)
        common = put(db, 2, 2.0)
        fork = db.status()["lsn"]
        lineage = db.status()["lineage"]
    new = tmp_path / "new"
    made = vecstore.restore(repository, str(new), in_place=True)
    assert made.lsn == fork
    # Both write different records under the same LSNs, to the same archive.
    with (
        vecstore.open(str(new), archive=repository, config=CONFIG) as promoted,
        vecstore.open(old, archive=repository, config=CONFIG) as fenced,
    ):
        assert (promoted.status()["lineage"], promoted.status()["epoch"]) == (lineage, 2)
        assert promoted.status()["lsn"] == fork + 1
        ours = put(promoted, 3, 30.0)
        # The old branch is the longer one.
        for i in range(4):
            theirs = put(fenced, 3 + i, 31.0)
        for db in (promoted, fenced):
            put(db, 4, 4.0)
            await_archive(db)
        ours, theirs = digests(promoted), digests(fenced)
        promoted.snapshot(repository)
        fenced.snapshot(repository)
        names = {str(number): db.engine.state.fold.epochs[-1].writer for number, db in ((2, promoted), (1, fenced))}  # type: ignore[attr-defined]
    assert ours != theirs
    assert restored(repository, tmp_path / "newest") == ours
    assert restored(repository, tmp_path / "fork", to_lsn=fork) == common
    for number, expected in (("2", ours), ("1", theirs)):
        where = f"{repository}#{lineage}/{int(number):010d}-{names[number]}"
        assert restored(where, tmp_path / f"branch-{number}") == expected
    assert check_repository(Repository(repository), deep=True)["damaged"] == []


def test_in_place_from_the_archive_alone(tmp_path: Path) -> None:
    """Without a snapshot, too, the lineage and its secret come back, and the archive goes on."""
    repository = str(tmp_path / "repository")
    with vecstore.open(str(tmp_path / "store"), archive=repository, config=CONFIG) as db:
        held = put(db, 1, 1.0)
        lineage = db.status()["lineage"]
    vecstore.restore(repository, str(tmp_path / "restored"), in_place=True)
    with vecstore.open(str(tmp_path / "restored"), archive=repository, config=CONFIG) as db:
        assert digests(db) == held
        assert db.status()["lineage"] == lineage
        later = put(db, 2, 2.0)
    assert restored(repository, tmp_path / "again") == later


def test_a_copy_under_the_same_epoch_ships_nothing(tmp_path: Path) -> None:
    """A copy takes no writes; one that somebody adopts as the store adds no records to the archive of what it lost."""
    repository = str(tmp_path / "repository")
    with vecstore.open(str(tmp_path / "store"), archive=repository, config=CONFIG) as db:
        put(db, 1, 1.0)
    shutil.copytree(tmp_path / "store", tmp_path / "copy")
    with vecstore.open(str(tmp_path / "store"), archive=repository, config=CONFIG) as db:
        for i in range(3):
            held = put(db, 2 + i, 2.0)
    with vecstore.open(str(tmp_path / "copy"), config=CONFIG) as db, pytest.raises(vecstore.NotPrimary, match="copied"):
        put(db, 9, 9.0)
    adopted = StoreDirectory.open(str(tmp_path / "copy"), create=False, read_only=False)
    adopted.adopt()
    adopted.close()
    with vecstore.open(str(tmp_path / "copy"), archive=repository, config=CONFIG) as db:
        for _ in range(PUTS_MAX):
            put(db, 9, 9.0)
            if db.status()["archive"]["problem"]:
                break
        assert "holds other records under epoch 1" in db.status()["archive"]["problem"]
    assert restored(repository, tmp_path / "restored") == held
    assert check_repository(Repository(repository), deep=True)["damaged"] == []


def test_a_restore_into_something_else_is_refused(tmp_path: Path) -> None:
    """A folder that is not empty, a store, and a file stay as they are."""
    repository = str(tmp_path / "repository")
    with vecstore.open(str(tmp_path / "store"), archive=repository, config=CONFIG) as db:
        put(db, 1, 1.0)
    filled, file = tmp_path / "filled", tmp_path / "file"
    filled.mkdir()
    (filled / "mine").write_text("kept")
    file.write_text("kept")
    for wrong in (filled, file, tmp_path / "store"):
        with pytest.raises(vecstore.AlreadyExists):
            vecstore.restore(repository, str(wrong))
    assert (filled / "mine").read_text() == file.read_text() == "kept"
    assert [path.name for path in filled.iterdir()] == ["mine"]
    with vecstore.open(str(tmp_path / "store")) as db:
        assert db.verify()["ok"]
