"""A primary of a later version writes a kind of record that its standby does not know: standbys are upgraded first."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vecstore.api import Database
from vecstore.engine.kept import INCOMING
from vecstore.storage.directory import is_store

from .stores import Store, eventually, following, put, vecstore_command
from .test_failover import pair
from .test_follow import counts
from .test_replicated import SMALL

NEWER = {"BENT_NEWER": "1"}
OLD, NEW = "records of kinds up to 8", "records of kinds up to 99"


def upgrade(store: Store) -> None:
    """Stop a store, if it runs, and start it with the later version."""
    store.stop()
    store.environment = {**store.environment, **NEWER}
    store.start()


def is_told(found: dict[str, Any]) -> bool:
    """Return whether a store has said that it is too old for a snapshot, and what both read."""
    return any(OLD in alarm["text"] and NEW in alarm["text"] for alarm in found["alarms"])


@contextmanager
def renaming(store: Store) -> Iterator[Database]:
    """Rename the collection docs, which a newer store writes a record of the new kind for."""
    store.wait(lambda found: found["accepts_writes"])
    with store.database() as database:
        database.rename_collection("docs", "papers")
        yield database


def test_an_unknown_kind_stops_a_standby_until_it_is_upgraded(tmp_path: Path) -> None:
    """It stops with an error that says so, keeps all and reads on, also after a restart; upgraded, it goes on."""
    with pair(tmp_path) as (a, b):
        upgrade(a)
        following(a, b)
        before = b.describe()
        with renaming(a) as database:
            put(database, 100, 10, "papers")
        for _ in range(2):
            found = b.wait(lambda found: found["status"] == "stopped")
            assert any("kind 99: not known to this version" in alarm["text"] for alarm in found["alarms"])
            assert found["lsn"] == before["lsn"]
            assert (found["problem"], found["role"]) == ("", "standby")
            assert counts(b, None) == 100
            b.stop()
            b.start()
        upgrade(b)
        following(a, b)
        assert counts(b, None, "papers") == 110
        assert a.describe()["accepts_writes"]


def test_a_standby_too_far_behind_a_newer_primary_keeps_its_contents_until_it_is_upgraded(tmp_path: Path) -> None:
    """The record is cut from the log, and a snapshot would bring what became of it: none is fetched."""
    with pair(tmp_path, of_a=SMALL) as (a, b):
        upgrade(a)
        following(a, b)
        before = b.describe()
        a.wait(lambda found: found["slots"][0]["lsn"] >= before["lsn"])
        b.stop()
        with renaming(a) as database:
            for _ in range(4):
                large = [{"text": "a" * 40_000}] * 10
                database.collection("papers").upsert(range(100, 110), np.ones((10, 4), np.float32), large)
        a.wait(lambda found: found["slots"][0]["is_lost"])
        b.start()
        found = b.wait(lambda found: found["status"] == "stopped" and is_told(found))
        assert (found["lsn"], found["bootstraps"], found["problem"]) == (before["lsn"], 0, "")
        assert counts(b, None) == 100
        assert not (b.folder / INCOMING).exists() and "contents are being replaced" not in b.logs()
        upgrade(b)
        following(a, b)
        assert counts(b, None, "papers") == 110


@contextmanager
def refused(store: Store, why: str) -> Iterator[None]:
    """Expect that a store's server ends with an error before it serves, and that its folder is no store then."""
    try:
        with pytest.raises(AssertionError, match=why):
            store.start()
        assert not is_store(str(store.folder))
        yield
    finally:
        store.stop()


def test_an_empty_folder_is_not_filled_with_what_a_newer_version_wrote(tmp_path: Path) -> None:
    """Neither by the primary, nor from a repository: not by records, nor by a snapshot. Upgraded, it is."""
    repository = str(tmp_path / "repository")
    newer = Store(tmp_path / "a", "--region", "east", "--archive", repository, environment=NEWER)
    with newer.running(points=100), renaming(newer) as database:
        eventually(database.status, lambda found: found["archive"]["lag_records"] == 0)
        standby = ("--region", "west", "--standby-of", newer.address)
        filled, restored = Store(tmp_path / "b", *standby), Store(tmp_path / "c", *standby)
        restored.arguments += ["--bootstrap-from", repository]
        with refused(filled, f"reads format 1 and {OLD}, and this primary is of format 1 and {NEW}"):
            assert newer.describe()["slots"] == []
            upgrade(filled)
            following(newer, filled)
            assert counts(filled, None, "papers") == 100
        with refused(restored, "kind 99: not known to this version"):
            database.snapshot(repository)
        with refused(restored, f"is of format 1 and {NEW}, and this version of vecstore reads"):
            said = vecstore_command("restore", repository, str(tmp_path / "d"), code=1)
        assert NEW in said["error"]["message"] and not (tmp_path / "d").exists()
