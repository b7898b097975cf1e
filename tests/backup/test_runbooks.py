"""The runbooks of docs/operations.md, run as they stand: each block is a script, and afterwards the store is back."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import vecstore

from .story import CONFIG, await_archive, digests

ROOT = Path(__file__).parents[2]
OPERATIONS = (ROOT / "docs/operations.md").read_text()
TIMEOUT_S = 120


class Site:
    """A store that was archived and snapshot, and the shell of who is called at night."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store, self.new, self.repository = folder / "store", folder / "new", folder / "repository"
        commands = folder / "bin"
        commands.mkdir()
        script = commands / "vecstore"
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m vecstore.cli.main "$@"\n')
        script.chmod(0o755)
        with vecstore.open(str(self.store), archive=str(self.repository), config=CONFIG) as db:
            orders = db.create_collection("orders", 8, fields={"n": "int64"})
            for i in range(5):
                orders.upsert(list(range(50 * i, 50 * i + 50)), np.random.default_rng(i).standard_normal((50, 8)))
                if i == 2:
                    db.snapshot(str(self.repository))
            await_archive(db)
            self.digests = digests(db)

    def run(self, name: str, **variables: str) -> str:
        """Run a runbook's block and return what it printed."""
        found = re.search(rf"^```sh {name}\n(.*?)^```$", OPERATIONS, re.MULTILINE | re.DOTALL)
        assert found is not None, f"docs/operations.md has no runbook {name}"
        environment = {
            **os.environ,
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "REPO": str(self.repository),
            "STORE": str(self.store),
            "NEW": str(self.new),
            **variables,
        }
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", found[1]],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """Return a site where nothing has happened yet."""
    return Site(tmp_path)


def test_a_lost_disk(site: Site) -> None:
    """All that was archived is back, tokens are valid, and the archive goes on."""
    with vecstore.open(str(site.store)) as db:
        token = db.status()["token"]
    shutil.rmtree(site.store)
    site.run("lost-disk")
    with vecstore.open(str(site.new), archive=str(site.repository), config=CONFIG) as db:
        assert digests(db) == site.digests
        assert db.wait(token, timeout=5).lsn > 0
        db.collection("orders").upsert([1], np.ones((1, 8)))
        await_archive(db)


def test_a_dropped_collection(site: Site) -> None:
    """It is back under another name, as it was at that moment, and what was written since is still there."""
    with vecstore.open(str(site.store), archive=str(site.repository), config=CONFIG) as db:
        scratch = site.folder / "look"
        before = vecstore.restore(str(site.repository), str(scratch)).time
        db.drop_collection("orders")
        db.create_collection("later", 8).upsert([7], np.ones((1, 8)))
        await_archive(db)
    printed = site.run("dropped-collection", BEFORE=before.isoformat())
    assert "orders-restored" in printed
    with vecstore.open(str(site.store)) as db:
        assert db.collections() == ["later", "orders-restored"]
        assert digests(db)["orders-restored"] == site.digests["orders"]
        assert db.collection("later").count() == 1


def test_a_corrupted_store(site: Site) -> None:
    """The damaged folder is kept, and a sound store stands in its place."""
    for path in (site.store / "rocks").glob("*"):
        if path.suffix in (".sst", ".blob", ".log"):
            data = bytearray(path.read_bytes())
            data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
            path.write_bytes(data)
    site.run("corrupted-store")
    assert (site.folder / "store.damaged").is_dir()
    with vecstore.open(str(site.store)) as db:
        assert digests(db) == site.digests


def test_a_lost_region(site: Site) -> None:
    """With nothing but the repository: everything is back, and the next snapshot stands."""
    shutil.rmtree(site.store)
    site.run("lost-region")
    with vecstore.open(str(site.new)) as db:
        assert digests(db) == site.digests
    made = vecstore.restore(str(site.repository), str(site.folder / "again"))
    assert made.id
    with vecstore.open(str(site.folder / "again")) as db:
        assert digests(db) == site.digests


def test_every_runbook_has_a_test() -> None:
    """A block with a name is a runbook, and a test above runs it."""
    section = OPERATIONS.partition("\n## Runbooks\n")[2].partition("\n## ")[0]
    names = re.findall(r"^```sh (\S+)$", section, re.MULTILINE)
    source = Path(__file__).read_text()
    assert len(names) == 4
    assert [name for name in names if f'site.run("{name}"' not in source] == []
