"""Bugs planted in snapshot, archive, restore and prune: the suite finds each of them.

A bug replaces one function or attribute; then a test of this suite is run as it stands, and must fail.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vecstore
from vecstore.backup import exclusion, plan, restore, transfer
from vecstore.backup import prune as pruning
from vecstore.backup import snapshot as snapshots
from vecstore.backup.check import check_repository
from vecstore.backup.repository import Repository
from vecstore.engine import archiver, slots
from vecstore.engine import snapshot as taking
from vecstore.engine.engine import Engine
from vecstore.errors import VecstoreError

from . import test_archive, test_branches, test_kill, test_repository
from .story import CONFIG, await_archive, digests

Plant = Callable[[pytest.MonkeyPatch], None]
Run = Callable[[Path, int], None]


# -- what is run -----------------------------------------------------------------------------------------------------


def walk(tmp_path: Path, _seed: int) -> None:
    """Write ten records with snapshots among them, damage nothing, and restore each of them."""
    repository = str(tmp_path / "repository")
    expected = {}
    with vecstore.open(str(tmp_path / "store"), archive=repository, config=CONFIG) as db:
        points = db.create_collection("points", 4)
        for i in range(8):
            points.upsert([i % 5, 7], np.full((2, 4), i + 1, np.float32))
            expected[db.status()["lsn"]] = digests(db)
            if i % 3 == 2:
                await_archive(db)
            if i in (2, 5):
                db.snapshot(repository)
    assert check_repository(Repository(repository), deep=True)["damaged"] == []
    with vecstore.open(str(tmp_path / "store")) as source:
        lineage = source.status()["lineage"]
    for lsn, held in expected.items():
        path = tmp_path / f"at-{lsn}"
        assert vecstore.restore(repository, str(path), to_lsn=lsn).lsn == lsn
        with vecstore.open(str(path)) as db:
            assert digests(db) == held
            assert db.status()["lineage"] != lineage
            assert db.status()["findings"] == []
            assert db.verify()["ok"]


def damage(tmp_path: Path, _seed: int) -> None:
    """Flip a bit in a row of an extent: no restore may give it back."""
    repository = tmp_path / "repository"
    with vecstore.open(str(tmp_path / "store"), config=CONFIG) as db:
        db.create_collection("points", 64).upsert(list(range(200)), np.ones((200, 64), np.float32))
        db.snapshot(str(repository))
    largest = max((path for path in repository.rglob("objects/*/*")), key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[5_000] ^= 1
    largest.write_bytes(data)
    with pytest.raises(vecstore.Damaged):
        vecstore.restore(str(repository), str(tmp_path / "restored"))


def keep(tmp_path: Path, _seed: int) -> None:
    """Prune to one snapshot: what it shares with the others stays."""
    repository = str(tmp_path / "repository")
    with vecstore.open(str(tmp_path / "store"), config=CONFIG) as db:
        points = db.create_collection("points", 4)
        for i in range(3):
            points.upsert([i], np.ones((1, 4), np.float32))
            db.snapshot(repository)
        expected = digests(db)
    pruning.prune(Repository(repository), keep_last=1, keep_days=None, now_us=0)
    assert check_repository(Repository(repository))["damaged"] == []
    vecstore.restore(repository, str(tmp_path / "restored"))
    with vecstore.open(str(tmp_path / "restored")) as db:
        assert digests(db) == expected


def prune_beside(tmp_path: Path, _seed: int) -> None:
    """A prune beside a pending snapshot removes no file."""
    test_repository.test_a_prune_removes_no_file_while_a_snapshot_is_pending(str(tmp_path / "repository"), tmp_path)


def forks(tmp_path: Path, _seed: int) -> None:
    """Two epochs write to one archive."""
    test_branches.test_a_new_epoch_goes_on_and_the_old_one_keeps_its_own_branch(tmp_path)


def killed(tmp_path: Path, seed: int) -> None:
    """A restore dies at each step."""
    test_kill.test_a_restore_that_was_killed_leaves_no_store_and_is_resumed(seed, tmp_path)


def rolled_back(tmp_path: Path, _seed: int) -> None:
    """A copy under the same epoch ships nothing."""
    test_branches.test_a_copy_under_the_same_epoch_ships_nothing(tmp_path)


def away(tmp_path: Path, _seed: int) -> None:
    """The log waits for the archive."""
    test_archive.test_no_record_is_cut_before_it_is_archived(tmp_path)


def unsynced(tmp_path: Path, _seed: int) -> None:
    """Only what is durable is archived."""
    test_archive.test_nothing_is_archived_that_is_not_durable(tmp_path)


# -- what is planted -------------------------------------------------------------------------------------------------


def snapshot_says_the_lsn_before(patch: pytest.MonkeyPatch) -> None:
    """The manifest says another LSN than its files are of."""
    import dataclasses

    original = snapshots.write_snapshot

    def wrong(repository: Any, source: Any, *rest: Any) -> Any:
        return original(repository, dataclasses.replace(source, lsn=source.lsn - 1), *rest)

    patch.setattr(taking, "write_snapshot", wrong)


def snapshot_leaves_a_file_out(patch: pytest.MonkeyPatch) -> None:
    """One file of the store is not in the manifest."""
    original = snapshots._files
    patch.setattr(snapshots, "_files", lambda *arguments: original(*arguments)[1:])


def archive_skips_a_record(patch: pytest.MonkeyPatch) -> None:
    """The first record of a range is left out of it."""
    original = archiver.Archiver._put

    def wrong(self: Any, archive: Any, group: Any, chain: bytes) -> bytes:
        if len(group) < 2:
            return original(self, archive, group, chain)
        return original(self, archive, group[1:], group[0].mark.chain)

    patch.setattr(archiver.Archiver, "_put", wrong)


def archive_does_not_look(patch: pytest.MonkeyPatch) -> None:
    """What the archive holds under our own epoch is not compared with the log."""
    patch.setattr(archiver.Archiver, "_compare", lambda *_: None)


def archive_ships_before_the_sync(patch: pytest.MonkeyPatch) -> None:
    """Everything that was written counts as durable for the archiver."""
    patch.setattr(Engine, "durable_lsn", property(lambda engine: engine.state.view.lsn))


def log_is_cut_without_slots(patch: pytest.MonkeyPatch) -> None:
    """The log is cut whether the archive has it or not."""
    patch.setattr(slots.Slots, "limit", lambda self, last, tip: last)


def restore_stops_a_record_late(patch: pytest.MonkeyPatch) -> None:
    """The target's next record is applied, too, and not looked at in the end."""
    original = plan.plan_restore

    def wrong(lineage: Any, history: Any, target: Any, snapshot: str = "") -> Any:
        found = original(lineage, history, target, snapshot)
        return plan.Plan(found.history, found.base, found.steps, plan.Target())

    patch.setattr("vecstore.backup.restore.plan_restore", wrong)


def plan_begins_with_the_newest_snapshot(patch: pytest.MonkeyPatch) -> None:
    """The snapshot to begin with may be after the target."""
    patch.setattr(plan, "_is_after", lambda *_: False)


def plan_follows_an_old_epoch_beyond_the_fork(patch: pytest.MonkeyPatch) -> None:
    """A range of an old epoch is taken whole, beyond the LSN at which the next one forked."""
    original = plan.limit
    patch.setattr(plan, "limit", lambda *arguments: None if original(*arguments) is None else plan.LSN_MAX)


def restore_keeps_the_lineage(patch: pytest.MonkeyPatch) -> None:
    """The restored store takes its source's lineage."""

    def wrong(self: Any) -> bytes:
        return bytes.fromhex(self._source.name) + bytes(32)

    patch.setattr(restore._Fold, "_new_lineage", wrong)


def downloads_are_not_compared(patch: pytest.MonkeyPatch) -> None:
    """Whatever the repository gives is taken."""
    patch.setattr(transfer, "_same", lambda *_: None)


def prune_forgets_what_is_shared(patch: pytest.MonkeyPatch) -> None:
    """Files of a snapshot that goes are removed, though another one needs them."""
    original = pruning._planned

    def wrong(repository: Any, *arguments: Any, **more: Any) -> Any:
        import dataclasses

        found = original(repository, *arguments, **more)
        gone = list(repository.names("objects/"))[:3]
        return dataclasses.replace(found, objects=sorted({*found.objects, *gone}))

    patch.setattr(pruning, "_planned", wrong)


def prune_overlooks_snapshots(patch: pytest.MonkeyPatch) -> None:
    """A prune does not ask whether a snapshot is being written."""
    patch.setattr(pruning, "is_snapshot_pending", lambda _: False)


BUGS: list[tuple[Plant, Run]] = [
    (snapshot_says_the_lsn_before, walk),
    (snapshot_leaves_a_file_out, walk),
    (archive_skips_a_record, walk),
    (archive_does_not_look, rolled_back),
    (archive_ships_before_the_sync, unsynced),
    (log_is_cut_without_slots, away),
    (restore_stops_a_record_late, walk),
    (plan_begins_with_the_newest_snapshot, walk),
    (plan_follows_an_old_epoch_beyond_the_fork, forks),
    (restore_keeps_the_lineage, walk),
    (downloads_are_not_compared, damage),
    (prune_forgets_what_is_shared, keep),
    (prune_overlooks_snapshots, prune_beside),
]


TRIES = 4


def run_often(run: Run, path: Path, seed: int) -> None:
    """Live through several histories: not every one comes to where a bug shows."""
    for number in range(TRIES):
        folder = path / str(number)
        folder.mkdir()
        run(folder, seed + number)


@pytest.mark.parametrize(("plant", "run"), BUGS, ids=lambda one: one.__name__)
def test_a_planted_bug_is_found(
    plant: Plant, run: Run, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the suite says of the sound program, it does not say of this one."""
    with monkeypatch.context() as patch:
        # A bug may keep the archive from ever catching up.
        patch.setattr("tests.backup.story.ARCHIVED_S_MAX", 3.0)
        patch.setattr("tests.backup.test_archive.WAIT_S_MAX", 3.0)
        patch.setattr(archiver, "BACK_OFF_S_MIN", 0.05)
        plant(patch)
        with pytest.raises((AssertionError, VecstoreError, ExceptionGroup, pytest.fail.Exception)):
            run_often(run, tmp_path, seed)


@pytest.mark.parametrize("run", [walk, damage, keep], ids=lambda run: run.__name__)
def test_without_a_bug_nothing_is_found(run: Run, seed: int, tmp_path: Path) -> None:
    """The runs that only the planted bugs have pass as long as nothing is planted."""
    run(tmp_path, seed)
    assert exclusion.PENDING_STALE_S > exclusion.BEAT_S
