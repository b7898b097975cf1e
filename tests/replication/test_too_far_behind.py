"""History 14, and what else befalls a standby whose log the primary has cut: the archive bridges it, a snapshot does,
or it stops with an alarm. Between processes; without an archive and without pressure, see `test_replicated`.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vecstore.api import Database

from .stores import Store, eventually, following, put
from .test_follow import counts, digest
from .test_replicated import SMALL

QUICK = {**SMALL, "VECSTORE_ARCHIVE_INTERVAL_S": "0.2"}
BEGUN, REPLACED = '"event": "contents are being replaced"', '"event": "contents were replaced"'
LARGE = [{"text": "a" * 40_000}] * 10


def lose_slot(primary: Store, database: Database) -> str:
    """Write as much as no slot holds, until that of west is lost; return the last token. The archive has all of it."""
    docs = database.collection("docs")
    for _ in range(4):
        token = docs.upsert(range(1_000, 1_000 + len(LARGE)), np.ones((len(LARGE), 4), np.float32), LARGE).token
        eventually(database.status, lambda found: not (found["archive"] or {}).get("lag_records"))
    primary.wait(lambda found: any(slot["name"] == "west" and slot["is_lost"] for slot in found["slots"]))
    return token


@contextlib.contextmanager
def starting(standby: Store, hold: Path) -> Iterator[None]:
    """Start a standby in another thread, up to where its bootstrap is held; it is ready when this ends."""
    thread = threading.Thread(target=standby.start)
    thread.start()
    eventually(lambda: {"held": hold.exists()}, lambda found: found["held"])
    try:
        yield
    finally:
        hold.unlink()
        thread.join()


def test_14_the_archive_bridges_what_the_log_no_longer_holds(tmp_path: Path) -> None:
    """A standby that was away for too long goes on with the archive's records: nothing of it is replaced."""
    repository = str(tmp_path / "repository")
    primary = Store(tmp_path / "a", "--region", "east", "--archive", repository, environment=QUICK)
    with primary.running(), primary.database() as database:
        put(database, 0, 100)
        arguments = ("--region", "west", "--standby-of", primary.address, "--slot", "west", "--archive", repository)
        standby = Store(tmp_path / "b", *arguments)
        with standby.running():
            following(primary, standby)
        lose_slot(primary, database)
        token = put(database, 50, 100)
        with standby.running():
            assert counts(standby, token) == 160
            assert digest(standby) == digest(primary)
            found = standby.wait(lambda found: found["status"] == "following")
            assert found["bootstraps"] == 0
            primary.wait(lambda found: not found["slots"][0]["is_lost"])
        assert BEGUN not in standby.logs()


def test_14_the_archive_bridges_a_bootstrap_that_took_too_long(tmp_path: Path) -> None:
    """The slot of an empty folder is lost while its snapshot comes: it is installed, and the archive leads on."""
    repository, hold = str(tmp_path / "repository"), tmp_path / "hold"
    primary = Store(tmp_path / "a", "--region", "east", "--archive", repository, environment=QUICK)
    with primary.running(), primary.database() as database:
        put(database, 0, 100)
        arguments = ("--region", "west", "--standby-of", primary.address, "--slot", "west", "--archive", repository)
        standby = Store(tmp_path / "b", *arguments, environment={"BENT_HOLD": f"bootstrap:{hold}"})
        try:
            with starting(standby, hold):
                token = lose_slot(primary, database)
            assert counts(standby, token) == 110
            assert digest(standby) == digest(primary)
            assert BEGUN not in standby.logs()
        finally:
            standby.stop()


def test_14_without_an_archive_it_backs_off_and_stops(tmp_path: Path) -> None:
    """Each snapshot takes longer than the log is held: after the third it stops with an alarm, keeps all, and reads."""
    hold = tmp_path / "hold"
    primary = Store(tmp_path / "a", "--region", "east", environment=QUICK)
    with primary.running(), primary.database() as database:
        put(database, 0, 100)
        arguments = ("--region", "west", "--standby-of", primary.address, "--slot", "west")
        standby = Store(tmp_path / "b", *arguments, environment={"BENT_HOLD": f"bootstrap,install:{hold}"})
        try:
            with starting(standby, hold):
                lose_slot(primary, database)
            for number in range(1, 4):
                eventually(lambda: {"held": hold.exists()}, lambda found: found["held"], words=standby.logs)
                assert standby.describe()["bootstraps"] == number
                lose_slot(primary, database)
                hold.unlink()
            found = standby.wait(lambda found: found["status"] == "stopped")
            assert any("3 bootstraps came to nothing" in alarm["text"] for alarm in found["alarms"])
            assert found["problem"] == ""
            assert counts(standby, None) == 110
            assert standby.logs().count(REPLACED) == 3
            for _ in range(3):
                database.collection("docs").count()
                standby.wait(lambda found: found["status"] == "stopped")
            assert not hold.exists()
        finally:
            hold.unlink(missing_ok=True)
            standby.stop()
