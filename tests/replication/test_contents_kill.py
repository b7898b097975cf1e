"""SIGKILL at every step of what replaces contents: the store is what it was or what it becomes, and never between."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.replication.contents import FENCED, STANDBY, fetch, part_of, part_ways, write_points
from tests.replication.mortal import mortals
from tests.replication.pair import committer_of, held, make_pair, opened, ship, write_history
from vecstore.engine.contents import keep
from vecstore.engine.contents.diverged import exports, rows
from vecstore.engine.contents.export import export
from vecstore.engine.contents.outgoing import Outgoing
from vecstore.storage.directory import is_store

pytestmark = pytest.mark.slow

LEFTOVERS = {"prepared", "replaced", "swap.json", "swap.json.new"}


class Scene:
    """A store that was left behind, and a folder with what the other one hands out; both closed."""

    def __init__(self, path: Path, seed: int) -> None:
        self.path, self.template = path / "a", path / "template"
        self.source, self.points = path / "source", path / "points"
        with make_pair(path, checkpoint_interval_s=3_600.0) as (a, b):
            write_history(a, seed, 15)
            write_points(a, seed, 6)
            ship(a, b, seed)
            self.fork = part_ways(a, b)
            write_points(a, seed + 1, 4)
            write_points(b, seed + 2, 4)
            committer_of(a.engine).persist(FENCED)
            committer_of(a.engine).fence(held)
            left = export(a.engine, self.fork, True)
            shutil.rmtree(self.path / "diverged")
            self._hand_out(Outgoing(b.engine), left.ids)
        self.before = self.state()
        self.save()

    def _hand_out(self, outgoing: Outgoing, ids: Any) -> None:
        taken = outgoing.take()
        shutil.copytree(Path(outgoing._root) / taken.id, self.source)
        (self.source / "ticket").write_text(json.dumps(taken.files))
        shutil.copy(fetch(outgoing, outgoing.take_points(ids), self.source).points, self.points)

    def save(self) -> None:
        """Keep the folder as it is."""
        shutil.rmtree(self.template, ignore_errors=True)
        shutil.copytree(self.path, self.template)

    def restore(self) -> None:
        """Bring the folder back, but for itself: it is the same folder."""
        for name in os.listdir(self.path):
            found = self.path / name
            shutil.rmtree(found) if found.is_dir() else found.unlink()
        shutil.copytree(self.template, self.path, dirs_exist_ok=True)

    def state(self) -> dict[str, Any]:
        """Return what the store is; it is whole, or this fails."""
        with contextlib.closing(opened(self.path, checkpoint_interval_s=3_600.0)) as database:
            status, role = database.status(), part_of(database.engine.replication_state)["role"]
            # After a reset, rows are of the fork and touched points are newer, until the records between were appended.
            assert database.verify()["ok"] or (role == "standby" and status["lsn"] == self.fork)
            assert not LEFTOVERS & set(os.listdir(self.path))
            return {
                "place": [status[key] for key in ("store_id", "lineage", "lsn", "chain")],
                "collections": {name: (c["count"], c["digest"]) for name, c in status["collections"].items()},
                "requests": dict(database.engine.state.fold.requests),
                "role": role,
            }


def check_each_death(scene: Scene, command: str, *arguments: Any) -> None:
    """Let a command die at each step: it did not happen, or it did; done again it did."""
    with mortals() as processes:
        assert processes.run(0, command, str(scene.path), *arguments)
        after = scene.state()
        scene.restore()
        became = []
        for _ in processes.deaths(command, str(scene.path), *arguments):
            found = scene.state()
            assert found in (scene.before, after)
            became.append(found == after)
            assert processes.run(0, command, str(scene.path), *arguments)
            assert scene.state() == after
            scene.restore()
        assert False in became and True in became
        assert became == sorted(became), "from one step on it is done"


def test_an_install_that_was_killed(seed: int, tmp_path: Path) -> None:
    """A snapshot in place of all that is there."""
    scene = Scene(tmp_path, seed)
    check_each_death(scene, "fill", str(scene.source), STANDBY.hex())
    assert scene.before["role"] == "fenced"


def test_a_reset_that_was_killed(seed: int, tmp_path: Path) -> None:
    """The log behind the fork goes, and the touched points change, at one moment."""
    scene = Scene(tmp_path, seed)
    check_each_death(scene, "reset", scene.fork, str(scene.points), STANDBY.hex())


def test_a_return_that_was_killed(seed: int, tmp_path: Path) -> None:
    """The kept checkpoint is there until the store is what it was."""
    scene = Scene(tmp_path, seed)
    with contextlib.closing(opened(scene.path)) as a:
        keep.checkpoint(a.engine)
    kept = scene.before
    with mortals() as processes:
        assert processes.run(0, "reset", str(scene.path), scene.fork, str(scene.points), STANDBY.hex())
    scene.before = scene.state()
    scene.save()
    check_each_death(scene, "back", FENCED.hex())
    with mortals() as processes:
        assert processes.run(0, "back", str(scene.path), FENCED.hex())
    assert scene.state() == kept


def test_a_bootstrap_that_was_killed(seed: int, tmp_path: Path) -> None:
    """It is no store, or the whole one, with the identity that it began with."""
    scene = Scene(tmp_path, seed)
    path, stores = tmp_path / "new", []
    with mortals() as processes:
        assert processes.run(0, "fill", str(scene.path), str(scene.source), STANDBY.hex())
        after = scene.state()
        for _ in processes.deaths("fill", str(path), str(scene.source), STANDBY.hex()):
            stores.append(is_store(str(path)))
            assert processes.run(0, "fill", str(path), str(scene.source), STANDBY.hex())
            scene.path = path
            found = scene.state()
            assert found["place"][1:] == after["place"][1:]
            assert (found["collections"], found["requests"]) == (after["collections"], after["requests"])
            shutil.rmtree(path)
    assert False in stores and True in stores


def test_a_checkpoint_that_was_killed(seed: int, tmp_path: Path) -> None:
    """There is a whole one to return to, or none; the store is what it was."""
    scene = Scene(tmp_path, seed)
    whole = []
    with mortals() as processes:
        for _ in processes.deaths("checkpoint", str(scene.path)):
            whole.append((scene.path / "before").exists())
            if whole[-1]:
                assert processes.run(0, "back", str(scene.path), FENCED.hex())
            assert scene.state() == scene.before
            keep.discard(str(scene.path))
            assert not {name for name in os.listdir(scene.path) if name.startswith("before")}
            scene.restore()
    assert False in whole


def test_an_export_that_was_killed(seed: int, tmp_path: Path) -> None:
    """There is a whole one or none, and after the next there is exactly one."""
    scene = Scene(tmp_path, seed)
    path = str(scene.path)
    with mortals() as processes:
        assert processes.run(0, "export", path, scene.fork)
        (whole,) = exports(path)
        scene.restore()
        found = []
        for _ in processes.deaths("export", path, scene.fork):
            found.append(len(exports(path)))
            assert processes.run(0, "export", path, scene.fork)
            (summary,) = exports(path)
            assert (summary.collections, summary.records) == (whole.collections, whole.records)
            assert os.listdir(scene.path / "diverged") == [summary.name]
            for one in summary.collections:
                assert len(list(rows(path, summary.name, one.number))) == one.upserts + one.deletes
            assert scene.state() == scene.before
            scene.restore()
    assert set(found) == {0, 1}
