"""Power loss: what was synced, and any subset of what was not, opens as a store that holds all that it acknowledged."""

from __future__ import annotations

import random
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from ..support.faults import Disk, Model, inventory
from ..support.shim import OpKind, read_journal, shim_environment
from .checks import check_store
from .conftest import IMAGES_PER_RUN
from .history import History
from .process import add_seed, run_writer

INTENTS = 70
INTENTS_AFTER_CRASH = 15
MODELS: tuple[Model, ...] = ("ordered", "weak")


@dataclass(frozen=True, slots=True)
class Recording:
    """One writer's journal, and what the store held before it began."""

    disk: Disk
    before: History

    def history(self, crash: int) -> History:
        """Return what had been acknowledged before operation `crash`."""
        history = self.before.copy()
        history.add(self.disk.acknowledged(crash).splitlines())
        return history


def record(root: Path, place: Path, shim: Path, seed: int, before: History, intents: int) -> Recording:
    """Let a writer work on the disk `root` under the shim."""
    place.mkdir()
    journal, acks = place / "journal", place / "acks"
    held = inventory(root)
    environment = shim_environment(shim, root, journal=journal, acks=acks, skip_sync=True)
    run_writer(root / "store", seed, "--count", intents, "--journal", acks, environment=environment)
    return Recording(Disk(root, read_journal(journal), held), before)


@pytest.fixture(scope="module")
def recordings(shim: Path, seed: int, tmp_path_factory: pytest.TempPathFactory) -> list[Recording]:
    """A writer on an empty disk; and one on what a crash of that left, so that its recovery crashes, too."""
    place = tmp_path_factory.mktemp("recordings")
    (place / "first").mkdir()
    first = record(place / "first", place / "1", shim, seed, History(threads=2), INTENTS)
    crash = len(first.disk.ops) * 3 // 4
    first.disk.image(crash, seed, "ordered", place / "checked", 0.5)
    first.disk.image(crash, seed, "ordered", place / "second", 0.5)
    history = first.history(crash)
    check_store(place / "checked" / "store", history, seed)
    second = record(place / "second", place / "2", shim, seed + 1, history, INTENTS_AFTER_CRASH)
    return [first, second]


def crash_point(disk: Disk, rng: random.Random) -> int:
    """Choose a moment: anywhere, directly after an acknowledgement, or directly before or after a sync."""
    kinds = rng.choice((None, (OpKind.ACK,), (OpKind.SYNC, OpKind.SYNC_FOLDER), (OpKind.RENAME, OpKind.UNLINK)))
    if kinds is None:
        return rng.randrange(len(disk.ops) + 1)
    places = [position for position, op in enumerate(disk.ops) if op.kind in kinds]
    return rng.choice(places) + rng.randint(0, 1)


def test_any_image_opens_whole(image_run: int, recordings: list[Recording], seed: int, tmp_path: Path) -> None:
    """Crash images at random moments, of writers and of recoveries, under both models of a disk."""
    rng = random.Random(f"{seed} {image_run}")
    for number in range(IMAGES_PER_RUN):
        which = int(rng.random() < 0.3)
        recording, model, choice = recordings[which], rng.choice(MODELS), rng.randrange(1 << 30)
        crash = crash_point(recording.disk, rng)
        image = tmp_path / str(number)
        try:
            recording.disk.image(crash, choice, model, image)
            check_store(image / "store", recording.history(crash), choice)
        except BaseException as error:
            add_seed(error, seed=seed, run=image_run, recording=which, crash=crash, choice=choice, model=model)
            raise
        shutil.rmtree(image)


def test_nothing_is_written_through_mappings(recordings: list[Recording]) -> None:
    """Images are complete: RocksDB and the index files are written by calls that the journal holds."""
    assert [recording.disk.mapped for recording in recordings] == [set(), set()]


def test_recordings_are_rich(recordings: list[Recording]) -> None:
    """The recordings hold what the images are to tear: unsynced writes, flushed files, checkpoints, removed files."""
    ops = recordings[0].disk.ops
    assert sum(op.kind == OpKind.ACK for op in ops) > INTENTS
    names = {op.path.suffix for op in ops if op.kind == OpKind.CREATE}
    assert {".log", ".sst"} <= names
    assert any(op.kind == OpKind.RENAME and "index" in op.path.parts for op in ops)
    assert any(op.kind == OpKind.UNLINK for op in ops)
