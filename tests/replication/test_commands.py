"""The operators' commands against real processes: what they do, what they say, what they refuse."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import vecstore

from .stores import Store, following, put, vecstore_command


def test_promotion_step_down_history_and_slots(tmp_path: Path) -> None:
    """A standby is promoted, the old primary follows it, the history says so; what makes no sense is refused."""
    a = Store(tmp_path / "a", "--region", "east")
    with a.running(points=50):
        b = Store(tmp_path / "b", "--region", "west", "--standby-of", a.address, "--slot", "west")
        with b.running():
            following(a, b)
            (slot,) = vecstore_command("slots", "list", a.address)
            assert (slot["name"], slot["is_lost"]) == ("west", False)
            assert vecstore_command("slots", "drop", a.address, "nobody", code=1)["error"]["kind"] == "InvalidArgument"
            assert vecstore_command("step-down", b.address, code=1)["error"]["kind"] == "InvalidArgument"
            assert "epoch 1" in vecstore_command("promote", a.address, code=1)["error"]["message"]
            made = vecstore_command("promote", b.address)
            assert (made["role"], made["replaced"], made["epoch"]) == ("primary", 1, 2)
            assert vecstore_command("promote", b.address, "--replaces", "1")["epoch"] == 2
            a.wait(lambda found: found["status"] == "following")
            history = vecstore_command("history", b.address)
            assert [epoch["number"] for epoch in history["epochs"]] == [1, 2]
            a.wait(lambda found: [epoch["number"] for epoch in found["epochs"]] == [1, 2])
            vecstore_command("step-down", b.address)
            assert b.describe()["role"] == "fenced"
        assert vecstore_command("history", str(tmp_path / "b"))["role"] == "fenced"


def test_a_switchover_there_and_back(tmp_path: Path) -> None:
    """It ends when the other one is the primary, and the first one follows it; and again the other way."""
    a = Store(tmp_path / "a", "--region", "east")
    with a.running(points=50):
        b = Store(tmp_path / "b", "--region", "west", "--standby-of", a.address)
        with b.running():
            following(a, b)
            assert vecstore_command("switchover", a.address, b.address)["epoch"] == 2
            with b.database() as database:
                put(database, 50, 50)
            following(b, a)
            assert vecstore_command("switchover", b.address, "east")["epoch"] == 3
            a.wait(lambda found: found["accepts_writes"])
            with a.database() as database:
                put(database, 100, 1)
                assert database.collection("docs").count() == 101


def test_a_diverged_primary_rejoins_and_is_replayed(tmp_path: Path) -> None:
    """What it alone has is foretold, exported, shown and replayed; then it follows."""
    a = Store(tmp_path / "a", "--region", "east")
    b = Store(tmp_path / "b", "--region", "west")
    with a.running(points=50):
        b.arguments += ["--standby-of", a.address]
        with b.running():
            following(a, b)
        with a.database() as database:
            put(database, 1_000, 7)
    with b.running():
        vecstore_command("promote", b.address, "--force")
        with b.database() as database:
            put(database, 50, 5)
        foretold = vecstore_command("rejoin", str(a.folder), "--primary", b.address, "--dry-run")
        assert (foretold["records"], foretold["is_complete"], foretold["kinds"]) == (1, True, {"upsert": 1})
        rejoined = vecstore_command("rejoin", str(a.folder), "--primary", b.address)
        (export,) = rejoined["exported"]
        (listed,) = vecstore_command("diverged", "list", str(a.folder))
        assert export.items() <= listed.items() and listed["bytes"] > 0
        assert listed["unreplayed"] == {"points": {"docs": 7}, "records": {}, "differences": 0}
        (kept,) = vecstore_command("doctor", str(a.folder))["kept"]
        assert (kept["folder"], kept["bytes"], kept["exports"]) == ("diverged", listed["bytes"], 1)
        error = vecstore_command("diverged", "drop", str(a.folder), export["name"], code=1)["error"]
        assert "7 points of docs" in error["message"] and "--accept-loss" in error["hint"]
        shown = vecstore_command("diverged", "show", str(a.folder), export["name"])
        assert [row["id"] for row in shown["collections"]["docs"]] == list(range(1_000, 1_007))
        assert vecstore_command("diverged", "replay", str(a.folder), export["name"], b.address) == {"docs": 7}
        dropped = vecstore_command("diverged", "drop", str(a.folder), export["name"])
        assert dropped["lost"] == {"points": {}, "records": {}, "differences": 0}
        assert vecstore_command("diverged", "list", str(a.folder)) == []
        with b.database() as database:
            assert database.collection("docs").count() == 62
        with a.running("--standby-of", b.address):
            following(b, a)
            with a.database() as database:
                assert database.collection("docs").count() == 62


def test_a_rejoin_of_the_primary_itself_is_refused(tmp_path: Path) -> None:
    """Nothing is to be aborted where nothing began, and a standby is no primary to follow."""
    a = Store(tmp_path / "a")
    with a.running(), a.database() as database:
        put(database, 0, 5)
    error = vecstore_command("rejoin", str(a.folder), "--abort", code=1)["error"]
    assert "no rejoin" in error["message"]
    error = vecstore_command("rejoin", str(a.folder), code=1)["error"]
    assert error["kind"] == "InvalidArgument"


def test_a_copy_is_adopted_as_moved_or_as_a_clone(tmp_path: Path) -> None:
    """Until then it reads; a clone has a lineage of its own, one that moved begins an epoch."""
    a = Store(tmp_path / "a", "--region", "east")
    with a.running(points=20):
        b = Store(tmp_path / "b", "--region", "west", "--standby-of", a.address)
        with b.running():
            following(a, b)
    for name in ("moved", "clone"):
        shutil.copytree(a.folder, tmp_path / name)
        with vecstore.open(str(tmp_path / name)) as database:
            assert database.collection("docs").count() == 20
    assert vecstore_command("adopt", str(a.folder), "--moved", code=1)["error"]["message"]
    assert vecstore_command("adopt", str(a.folder), "--clone", code=1)["error"]["kind"] == "InvalidArgument"
    with vecstore.open(str(a.folder)) as database:
        before = database.status()
    moved = vecstore_command("adopt", str(tmp_path / "moved"), "--moved")
    assert (moved["lineage"], moved["epoch"]) == (before["lineage"], before["epoch"] + 1)
    assert moved["store_id"] != before["store_id"]
    clone = vecstore_command("adopt", str(tmp_path / "clone"), "--clone")
    assert clone["lineage"] != before["lineage"]
    with vecstore.open(str(tmp_path / "clone")) as database:
        put(database, 20, 1)
        assert database.collection("docs").count() == 21
        assert database.verify()["ok"]


def test_regions_that_ask_who_it_is(tmp_path: Path) -> None:
    """Servers show each other a token of the role replicate, which lets nobody promote; operators need admin."""
    tokens, admin, replicate = (tmp_path / name for name in ("tokens.toml", "admin", "replicate"))
    for file, role in ((admin, "admin"), (replicate, "replicate")):
        command = [sys.executable, "-m", "vecstore.cli.main", "token", role, "--role", role, "--add-to", str(tokens)]
        file.write_text(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    shown = {"VECSTORE_SERVER_REPLICATION_TOKEN_FILE": str(replicate)}
    a = Store(tmp_path / "a", "--region", "east", "--tokens", str(tokens), environment=shown)

    def place(store: Store) -> tuple[str, int]:
        found = vecstore_command("status", store.address, "--token-file", str(admin))
        return found["role"], found["lsn"]

    with a.running():
        with vecstore.connect(a.address, token=admin.read_text().strip()) as database:
            put(database, 0, 50)
        b = Store(
            tmp_path / "b", "--region", "west", "--tokens", str(tokens), "--standby-of", a.address, environment=shown
        )
        with b.running():
            assert place(b) == ("standby", place(a)[1])
            both = ("compare", a.address, b.address, "--token-file")
            assert vecstore_command(*both, str(replicate), code=1)["error"]["kind"] == "PermissionDenied"
            assert vecstore_command(*both, str(admin))["ok"]
            refused = vecstore_command("promote", b.address, "--token-file", str(replicate), code=1)
            assert refused["error"]["kind"] == "PermissionDenied"
            made = vecstore_command("promote", b.address, "--token-file", str(admin))
            assert made["role"] == "primary"


@pytest.mark.slow
def test_a_dry_run_finds_what_the_rejoin_finds_where_a_disk_went_back(tmp_path: Path) -> None:
    """Epochs alone do not tell: one writer wrote some LSNs twice. Chains do, for the one as for the other."""
    a = Store(tmp_path / "a", "--region", "east")
    b = Store(tmp_path / "b", "--region", "west")
    with a.running(points=50):
        b.arguments += ["--standby-of", a.address]
        with b.running():
            following(a, b)
    shutil.copytree(a.folder, tmp_path / "image")
    with a.running(), b.running():
        following(a, b)
        with a.database() as database:
            put(database, 100, 5)
            put(database, 200, 5)
        following(a, b)
    with b.running():
        vecstore_command("promote", b.address, "--force")
        # The old primary's disk goes back, and its process writes on as if nothing were: the same LSNs, other records.
        for entry in list(a.folder.iterdir()):
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        shutil.copytree(tmp_path / "image", a.folder, dirs_exist_ok=True)
        alone = {"VECSTORE_SERVER_REPLICATION_START_ALONE_AFTER_S": "0"}
        c = Store(a.folder, "--region", "east", environment=alone)
        (a.folder / "peers.json").unlink()
        with c.running():
            c.wait(lambda found: found["accepts_writes"])
            with c.database() as database:
                put(database, 300, 3)
                database.collection("docs").delete(ids=[300, 0])
        lsn = vecstore_command("history", str(a.folder))["lsn"]
        before = b.describe()["peers"]
        foretold = vecstore_command("rejoin", str(a.folder), "--primary", b.address, "--dry-run")
        assert foretold["lsn"] == lsn and foretold["records"] == 2 and foretold["kinds"] == {"upsert": 1, "delete": 1}
        assert foretold["fork_lsn"] == lsn - 2
        assert (foretold["points"], foretold["needs_snapshot"], foretold["why_snapshot"]) == (4, False, "")
        assert foretold["bytes"] > 0
        found = b.describe()
        assert (found["peers"], found["role"], found["alarms"]) == (before, "primary", [])
        (export,) = vecstore_command("rejoin", str(a.folder), "--primary", b.address)["exported"]
        assert (export["fork_lsn"], export["records"]) == (foretold["fork_lsn"], foretold["records"])


def test_slots_are_dropped_in_a_directory_as_by_its_server(tmp_path: Path) -> None:
    """A primary that is down lets go of its log with the same checks; a standby holds nothing for anybody."""
    a = Store(tmp_path / "a", "--region", "east")
    b = Store(tmp_path / "b", "--region", "west")
    with a.running(points=50):
        b.arguments += ["--standby-of", a.address, "--slot", "west"]
        with b.running():
            following(a, b)
            error = vecstore_command("slots", "drop", b.address, "west", code=1)["error"]
            assert "is a standby" in error["message"] and a.address in error["hint"]
        error = vecstore_command("slots", "drop", str(a.folder), "west", code=1)["error"]
        assert error["kind"] == "Locked"
    error = vecstore_command("slots", "drop", str(a.folder), "nobody", code=1)["error"]
    assert "there is no 'nobody'" in error["message"] and "west" in error["hint"]
    error = vecstore_command("slots", "drop", str(b.folder), "west", code=1)["error"]
    assert "is a standby" in error["message"]
    done = vecstore_command("slots", "drop", str(a.folder), "west", "--gone")
    assert done == {"name": "west", "gone": True, "text": "slot west is dropped"}
    assert vecstore_command("slots", "list", str(a.folder)) == []
    with a.running():
        assert a.wait(lambda found: found["accepts_writes"])["slots"] == []


def test_refusals_say_what_to_do(tmp_path: Path) -> None:
    """Whoever reads one at night has the next command in it."""
    a = Store(tmp_path / "a", "--region", "east")
    b = Store(tmp_path / "b", "--region", "west")

    def hint(*arguments: str) -> str:
        return str(vecstore_command(*arguments, code=1)["error"]["hint"])

    assert "`vecstore serve" in hint("step-down", str(a.folder))
    with a.running(points=50):
        assert "none: no standby has followed" in hint("switchover", a.address, "west")
        b.arguments += ["--standby-of", a.address, "--slot", "west"]
        with b.running():
            following(a, b)
            assert a.address in hint("switchover", b.address, a.address)
            assert a.address in hint("step-down", b.address)
            assert "known are west" in hint("switchover", a.address, "north")
            assert f"vecstore history {b.address}" in hint("promote", b.address, "--replaces", "7")
            assert "nothing to do" in hint("promote", a.address)
        a.wait(lambda found: not found["slots"][0]["connected"])
        assert f"vecstore slots list {a.address}" in hint("switchover", a.address, "west")
        vecstore_command("step-down", a.address)
        assert f"vecstore promote {a.address}" in hint("switchover", a.address, "west")
        gone = a.address
    assert "is there a server at" in hint("step-down", gone)
    assert "diverged list" in hint("diverged", "show", str(a.folder), "nothing")


def test_a_handover_to_a_store_that_died_is_taken_back(tmp_path: Path) -> None:
    """The command that the refusal names lets the old primary go on."""
    a = Store(tmp_path / "a", "--region", "east")
    b = Store(tmp_path / "b", "--region", "west")
    with a.running(points=50):
        b.arguments += ["--standby-of", a.address, "--slot", "west"]
        b.start()
        following(a, b)
        b.kill()
        assert a.command("switchover", target="west").done
        a.wait(lambda found: found["status"] == "handing")
        error = vecstore_command("promote", a.address, code=1)["error"]
        assert f"vecstore promote {a.address} --force" in error["hint"]
        assert vecstore_command("promote", a.address, "--force")["epoch"] == 2
        with a.database() as database:
            put(database, 50, 1)
