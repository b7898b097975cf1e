"""The runbooks of two Regions in docs/operations.md, run as they stand against real processes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import vecstore
from tests.backup.story import CONFIG, await_archive
from vecstore.clock import SystemClock

from .stores import Store, doctor, following, put

ROOT = Path(__file__).parents[2]
OPERATIONS = (ROOT / "docs/operations.md").read_text()
TIMEOUT_S = 120
YEARS_US = 75 * 365 * 24 * 3_600 * 1_000_000


def run(name: str, folder: Path, **variables: str) -> str:
    """Run a runbook's block and return what it printed."""
    found = re.search(rf"^```sh {name}\n(.*?)^```$", OPERATIONS, re.MULTILINE | re.DOTALL)
    assert found is not None, f"docs/operations.md has no runbook {name}"
    commands = folder / "bin"
    commands.mkdir(exist_ok=True)
    script = commands / "vecstore"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m vecstore.cli.main "$@"\n')
    script.chmod(0o755)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", found[1]],
        cwd=folder,
        env={**os.environ, "PATH": f"{commands}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), **variables},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


class Regions:
    """Two Regions: East writes, West follows."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.east = Store(folder / "east", "--region", "east", "--slot", "east")
        self.east.start()
        with self.east.database() as database:
            put(database, 0, 50)
        self.west = Store(folder / "west", "--region", "west", "--slot", "west", "--standby-of", self.east.address)
        self.west.start()
        following(self.east, self.west)
        self.east_at, self.west_at = self.east.address, self.west.address

    def run(self, name: str, **variables: str) -> str:
        """Run a runbook's block."""
        folders = {"EAST_DIR": str(self.east.folder), "WEST_DIR": str(self.west.folder)}
        return run(name, self.folder, **{"EAST": self.east_at, "WEST": self.west_at, **folders, **variables})

    def close(self) -> None:
        """Stop what still runs."""
        self.east.stop()
        self.west.stop()


@pytest.fixture
def regions(tmp_path: Path) -> Iterator[Regions]:
    """Return two Regions that are well."""
    made = Regions(tmp_path)
    try:
        yield made
    finally:
        made.close()


def write(store: Store, first: int, count: int = 10) -> None:
    """Write to a store that is a primary, or is about to be."""
    store.wait(lambda found: found["accepts_writes"])
    with store.database() as database:
        put(database, first, count)


def count(store: Store) -> int:
    """Return how many points a store has."""
    with store.database() as database:
        return database.collection("docs").count()


def test_a_lost_primary_region(regions: Regions) -> None:
    """West is the primary and takes writes; East, back by its unit file, writes no more."""
    regions.east.kill()
    assert "epoch 2" in regions.run("lost-primary")
    write(regions.west, 100)
    assert count(regions.west) == 60
    regions.east.start()
    regions.east.wait(lambda found: found["role"] == "standby" and found["status"] == "following")


def test_a_planned_switchover(regions: Regions) -> None:
    """West writes behind the last record, and East follows it."""
    assert "epoch 2" in regions.run("planned-switchover")
    write(regions.west, 100)
    following(regions.west, regions.east)
    assert count(regions.east) == 60


def test_failback(regions: Regions) -> None:
    """East rejoins, follows, and is the primary again; nothing of West is lost."""
    regions.east.kill()
    regions.run("lost-primary")
    write(regions.west, 100)
    regions.run("failback")
    regions.east.start("--standby-of", regions.west_at)
    following(regions.west, regions.east)
    regions.run("planned-switchover", EAST=regions.west_at, WEST=regions.east_at)
    write(regions.east, 200)
    assert count(regions.east) == 70


def diverge(regions: Regions) -> None:
    """Let East write what West does not get, die, and West be promoted and write on."""
    regions.west.stop()
    write(regions.east, 1_000)
    regions.east.kill()
    regions.west.start()
    regions.run("lost-primary")
    write(regions.west, 100)


def test_a_diverged_primary(regions: Regions) -> None:
    """What East alone had is shown, and is in West afterwards."""
    diverge(regions)
    assert "1,000" in regions.run("diverged-primary")
    assert count(regions.west) == 70


def put_back(store: Store, kept: Path) -> None:
    """Let a store's disk go back to a copy: in place, so that it is the same folder whose contents went back."""
    for name in os.listdir(store.folder):
        gone = store.folder / name
        shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    shutil.copytree(kept, store.folder, dirs_exist_ok=True)


def roll_back(regions: Regions) -> None:
    """Let East's disk go back to what it was before its last writes, which West has."""
    kept = regions.folder / "kept"
    regions.east.stop()
    shutil.copytree(regions.east.folder, kept)
    regions.east.start()
    write(regions.east, 1_000)
    following(regions.east, regions.west)
    regions.east.kill()
    put_back(regions.east, kept)
    regions.east.start()
    regions.east.wait(lambda found: found["role"] == "fenced" and "went back" in found["reason"])
    regions.west.wait(lambda found: found["status"] == "stopped")
    assert count(regions.west) == 60


def test_a_disk_that_was_rolled_back(regions: Regions) -> None:
    """West goes on with all that it has, and East follows it."""
    roll_back(regions)
    regions.east.stop()
    assert "nothing was left behind" in regions.run("disk-rolled-back")
    regions.east.start("--standby-of", regions.west_at)
    write(regions.west, 2_000)
    following(regions.west, regions.east)
    assert count(regions.east) == 70


@pytest.mark.slow
def test_a_disk_that_forgot_an_epoch(regions: Regions) -> None:
    """West was promoted, and its disk goes back to before that: East, which follows it, says so, and writes on."""
    east, west, kept = regions.east, regions.west, regions.folder / "kept"
    west.stop()
    shutil.copytree(west.folder, kept)
    west.start()
    following(east, west)
    east.stop()
    regions.run("lost-primary")
    write(west, 100)
    east.start()
    following(west, east)
    west.kill()
    put_back(west, kept)
    west.start()
    west.wait(lambda found: found["role"] == "fenced" and "its disk does not know it" in found["reason"])
    code, report = doctor(west)
    (check,) = (check for check in report["checks"] if check["name"] == "epoch")
    assert (code, check["state"]) == (1, "warn")
    assert west.served is not None and west.served.metric("vecstore_epoch_forgotten") == 2
    west.stop()
    swapped = {"EAST_DIR": str(west.folder), "WEST_DIR": str(east.folder)}
    printed = regions.run("disk-rolled-back", EAST=regions.west_at, WEST=regions.east_at, **swapped)
    assert "nothing was left behind" in printed
    west.start()
    write(east, 2_000)
    following(east, west)
    assert count(west) == 70


def test_a_standby_that_is_ahead(regions: Regions) -> None:
    """East's shorter history stays, and what West had beyond it is set aside."""
    roll_back(regions)
    regions.west.stop()
    printed = regions.run("standby-ahead")
    assert "whole" in printed
    write(regions.east, 2_000)
    regions.west.start()
    following(regions.east, regions.west)
    assert count(regions.west) == 60


def test_a_standby_that_is_too_far_behind(regions: Regions) -> None:
    """An empty folder is filled again, and follows; the old one is kept."""
    regions.west.stop()
    write(regions.east, 1_000)
    regions.run("standby-too-far-behind")
    assert (regions.folder / "west.old").is_dir()
    regions.west.start()
    following(regions.east, regions.west)
    assert count(regions.west) == 60


def test_a_lost_slot(regions: Regions) -> None:
    """The slot is gone, nobody is asked any more, and East opens at once."""
    regions.west.stop()
    assert "no slots" in regions.run("lost-slot")
    regions.east.stop()
    regions.east.start()
    start_s = time.monotonic()
    write(regions.east, 1_000)
    assert time.monotonic() - start_s < 4


def test_two_promotions(regions: Regions) -> None:
    """Both stop; one is promoted higher, and the other one rejoins with its own part exported."""
    east, west = regions.east, regions.west
    west.stop()
    assert east.command("step-down").done
    assert east.command("promote").done
    write(east, 1_000)
    east.stop()
    west.start()
    assert west.command("promote", force=True).done
    write(west, 2_000)
    east.start()
    for store in (east, west):
        store.wait(lambda found: found["role"] == "fenced")
    east.stop()
    assert "whole" in regions.run("two-promotions")
    assert count(west) == 60


def test_a_clock_that_jumps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start under a clock of another century: what was written before is restored by its LSN."""
    store, repository, new = tmp_path / "store", tmp_path / "repository", tmp_path / "new"
    true_us, lsns = SystemClock.wall_us, []
    for first, ahead_us in ((0, 0), (100, YEARS_US), (200, 0)):
        monkeypatch.setattr(SystemClock, "wall_us", lambda self, ahead_us=ahead_us: true_us(self) + ahead_us)
        with vecstore.open(str(store), archive=str(repository), config=CONFIG) as database:
            put(database, first, 10)
            await_archive(database)
            lsns.append(database.status()["lsn"])
    run("clock-jump", tmp_path, REPO=str(repository), NEW=str(new), LSN=str(lsns[1]))
    with vecstore.open(str(new)) as database:
        assert database.collection("docs").count() == 20


def test_every_runbook_has_a_test() -> None:
    """A block with a name is a runbook, and a test above runs it."""
    section = OPERATIONS.partition("\n## Runbooks of two Regions\n")[2].partition("\n## ")[0]
    names = re.findall(r"^```sh (\S+)$", section, re.MULTILINE)
    source = Path(__file__).read_text()
    assert len(names) == 10
    assert [name for name in names if f'run("{name}"' not in source] == []
