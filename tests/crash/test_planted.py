"""Planted bugs: each is found by a check of the crash suite, and without it the same check passes.

`bugs.py` holds the list. A finder here is a small, directed run of what the other modules do at random: it returns when
all is well, and raises `Found` when a child noticed something.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ..support.faults import Disk
from ..support.shim import OpKind, read_journal, shim_environment
from .bugs import BUGS
from .history import History
from .planted import FOUND
from .process import CHILD_TIMEOUT_S, ROOT

INTENTS = 120
THREADS = 2
MOMENTS = 5


class Found(Exception):
    """A check noticed that something is wrong."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What a finder works with: the bug (or "none"), a folder of its own, the shim, a seed."""

    bug: str
    place: Path
    shim: Path
    seed: int

    def child(self, part: str, *arguments: Any, environment: Mapping[str, str] = os.environ) -> bytes:
        """Run one part with the bug planted; return what it said."""
        command = [sys.executable, "-m", "tests.crash.planted", self.bug, part, *map(str, arguments)]
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, timeout=CHILD_TIMEOUT_S, check=False
        )
        if done.returncode == FOUND:
            raise Found(done.stderr.decode())
        assert done.returncode == 0, f"the child failed to play its part: {done.stderr.decode()[-3000:]}"
        return done.stdout

    def check(self, where: Path, history: History, *mended: str) -> None:
        """Check a store in a child that has the bug, too: it may lie in what opens the store."""
        (self.place / "history").write_bytes(pickle.dumps(history))
        self.child("check", where, self.place / "history", self.seed, *mended)

    def write(self, where: Path, *options: Any) -> History:
        """Write a history, unless told otherwise without closing the store."""
        history = History(THREADS)
        history.add(self.child("write", where, "--seed", self.seed, *(options or ("--count", INTENTS))).splitlines())
        return history


def killed(setting: Setting) -> None:
    """A writer that leaves without closing; then all checks."""
    history = setting.write(setting.place / "store")
    setting.check(setting.place / "store", history)


def power(setting: Setting) -> None:
    """Power goes directly after an acknowledgement, and all that was not synced is lost."""
    root, journal, acks = setting.place / "disk", setting.place / "journal", setting.place / "acks"
    root.mkdir()
    environment = shim_environment(setting.shim, root, journal=journal, acks=acks, skip_sync=True)
    arguments = ("--seed", setting.seed, "--count", INTENTS, "--journal", acks)
    setting.child("write", root / "store", *arguments, environment=environment)
    disk = Disk(root, read_journal(journal))
    acknowledged = [
        position
        for position, op in enumerate(disk.ops)
        if op.kind == OpKind.ACK and op.a.startswith(b'{"ack"') and b'"durable"' in op.a
    ]
    # Background flushes may have brought a record to the disk by chance, so one moment is not enough.
    for number in range(1, MOMENTS + 1):
        crash, image = acknowledged[len(acknowledged) * number // MOMENTS - 1] + 1, setting.place / f"image{number}"
        disk.image(crash, setting.seed, "weak", image, keep_share=0.0)
        history = History(THREADS)
        history.add(disk.acknowledged(crash).splitlines())
        setting.check(image / "store", history)


def died_between_pieces(setting: Setting) -> None:
    """A writer dies when some of a record's points are written and others are not."""
    history = History(THREADS)
    history.add(setting.child("die", setting.place / "store", setting.seed, "points", 3).splitlines())
    setting.check(setting.place / "store", history)


def died_when_applied(setting: Setting) -> None:
    """A writer dies directly after the last piece of a record, and the families keep all of it."""
    history = History(THREADS)
    history.add(setting.child("die", setting.place / "store", setting.seed, "meta", 1).splitlines())
    setting.check(setting.place / "store", history)


def died_between_chunks(setting: Setting) -> None:
    """A writer dies when some of a record's chunks are in the log and others are not."""
    history = History(THREADS)
    history.add(setting.child("die", setting.place / "store", setting.seed, "log", 1).splitlines())
    setting.check(setting.place / "store", history)


def died_with_a_drop(setting: Setting) -> None:
    """A writer dies between the pieces of a group that drops a collection and writes to another."""
    setting.child("drop", setting.place / "store", setting.seed)
    setting.child("dropped", setting.place / "store", setting.seed)


def written_beside_a_checkpoint(setting: Setting) -> None:
    """Records are written while checkpoints are taken."""
    history = History(THREADS)
    history.add(setting.child("checkpoint", setting.place / "store", setting.seed).splitlines())
    setting.check(setting.place / "store", history)


def retried(setting: Setting) -> None:
    """A request is retried after a later write to the same point, before and after a crash."""
    setting.child("request", setting.place / "store", setting.seed)
    setting.child("retry", setting.place / "store", setting.seed)


def flipped_extents(setting: Setting) -> None:
    """A bit of every extent's file is flipped where vectors lie, between two openings."""
    where = setting.place / "store"
    history = setting.write(where)
    files = list((where / "index").glob("*.extent"))
    assert files, "there is no extent"
    for path in files:
        data = bytearray(path.read_bytes())
        at = max(range(4096, len(data) - 3, 4096), key=lambda start: len(set(data[start : start + 4096])))
        data[at + 101] ^= 4
        path.write_bytes(data)
    setting.check(where, history, "mended")


def failed_sync(setting: Setting) -> None:
    """A sync fails, and readers go on."""
    environment = shim_environment(setting.shim, setting.place)
    history = History(THREADS)
    said = setting.child("fail", "group-eio", setting.place / "store", setting.seed, environment=environment)
    history.add(said.splitlines())
    setting.check(setting.place / "store", history)


def write_ahead_log_lost(setting: Setting) -> None:
    """The write-ahead log, which alone holds the last few records, is deleted: that must be refused."""
    where = setting.place / "store"
    history = setting.write(where, "--count", 20, "--close")
    history.add(setting.child("few", where, setting.seed).splitlines())
    for path in where.glob("rocks/*.log"):
        path.unlink()
    try:
        setting.check(where, history)
    except Found as found:
        if "Damaged" in str(found) and "lsn" in str(found).lower():
            return
        raise
    assert setting.bug != "none", "nothing was lost"


def contended(setting: Setting) -> None:
    """Many threads write the same few ids, so that groups hold an id many times."""
    setting.child("contend", setting.place / "store", setting.seed)


def churned(setting: Setting) -> None:
    """Points die while their segments are sealed, merged and rewritten."""
    setting.child("churn", setting.place / "store", setting.seed)


FINDERS: dict[str, Callable[[Setting], None]] = {
    finder.__name__: finder
    for finder in (
        killed,
        power,
        died_between_pieces,
        died_when_applied,
        died_between_chunks,
        died_with_a_drop,
        failed_sync,
        write_ahead_log_lost,
        written_beside_a_checkpoint,
        retried,
        flipped_extents,
        contended,
        churned,
    )
}


@pytest.mark.parametrize("name", list(BUGS))
def test_a_planted_bug_is_found(name: str, shim: Path, seed: int, tmp_path: Path) -> None:
    """The check that is meant to find a bug finds it."""
    with pytest.raises(Found):
        FINDERS[BUGS[name].finder](Setting(name, tmp_path, shim, seed))


@pytest.mark.parametrize("finder", list(FINDERS))
def test_without_a_bug_nothing_is_found(finder: str, shim: Path, seed: int, tmp_path: Path) -> None:
    """The same check passes on the engine as it is."""
    FINDERS[finder](Setting("none", tmp_path, shim, seed))


def test_there_are_ten_bugs() -> None:
    """The list is long enough to mean something, each with a sentence, and no finder is idle."""
    assert len(BUGS) >= 10
    assert all(bug.sentence.endswith(".") for bug in BUGS.values())
    assert {bug.finder for bug in BUGS.values()} == set(FINDERS)
