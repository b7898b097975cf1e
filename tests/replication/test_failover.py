"""Promotions, switchovers and fences between processes: one writer, nothing lost that was not to be lost."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from vecstore.errors import NotPrimary, WriteLost

from .stores import Store, put
from .test_follow import counts, digest, refused


@contextlib.contextmanager
def pair(
    path: Path, *, of_a: Mapping[str, str] | None = None, of_b: Mapping[str, str] | None = None
) -> Iterator[tuple[Store, Store]]:
    """Run a primary with a hundred points, and a standby that follows it and is known by its slot's name, west.

    Parameters
    ----------
    of_a, of_b
        Variables of their environments; with one of `bent`, that is what runs.
    """
    a = Store(path / "a", "--region", "east", "--slot", "east", environment=of_a)
    a.start()
    b: Store | None = None
    try:
        with a.database() as database:
            token = put(database, 0, 100)
        arguments = ("--region", "west", "--standby-of", a.address, "--slot", "west")
        b = Store(path / "b", *arguments, environment=of_b)
        b.start()
        b.wait(lambda found: found["status"] == "following")
        assert counts(b, token) == 100
        yield a, b
    finally:
        for store in (a, b):
            if store is not None:
                store.stop()


def test_a_planned_switchover_loses_nothing(tmp_path: Path) -> None:
    """The standby takes over behind the last record; the old primary follows it at once, and back again."""
    with pair(tmp_path) as (a, b):
        verdict = a.command("switchover", target="west")
        assert verdict.done, verdict.text
        b.wait(lambda found: found["accepts_writes"])
        with b.database() as database:
            token = put(database, 100, 50)
        a.wait(lambda found: found["role"] == "standby" and found["status"] == "following")
        assert counts(a, token) == 150
        assert digest(a) == digest(b)
        assert refused(a).primary == b.address
        verdict = b.command("switchover", target=a.address)
        assert verdict.done, verdict.text
        a.wait(lambda found: found["accepts_writes"])
        with a.database() as database:
            token = put(database, 150, 50)
        assert counts(b, token) == 200
        assert [epoch["number"] for epoch in b.describe()["epochs"]] == [1, 2, 3]


def test_a_lost_primary_is_replaced_and_fenced_when_it_comes_back(tmp_path: Path) -> None:
    """A promotion while the primary is dead; by its unit file it starts as a primary, asks, and is fenced."""
    with pair(tmp_path) as (a, b):
        a.kill()
        verdict = b.command("promote", replaces=1)
        assert verdict.done, verdict.text
        again = b.command("promote", replaces=1)
        assert again.done and "epoch 2" in again.text
        b.wait(lambda found: found["accepts_writes"])
        with b.database() as database:
            token = put(database, 100, 50)
        a.start()
        # Nothing of a's was left behind: it follows by itself.
        a.wait(lambda found: found["role"] == "standby" and found["status"] == "following")
        assert counts(a, token) == 150
        assert digest(a) == digest(b)


def test_a_primary_that_wrote_on_is_fenced_by_the_new_one(tmp_path: Path) -> None:
    """Cut off, both write; at the first contact the old one is fenced, and reads go on; a lost token is told so."""
    with pair(tmp_path) as (a, b):
        b.stop()
        with a.database() as database:
            lost = put(database, 1000, 10)
        a.kill()
        b.start()
        verdict = b.command("promote", replaces=1)
        assert verdict.done, verdict.text
        with b.database() as database:
            put(database, 2000, 10)
            with pytest.raises(WriteLost):
                database.collection("docs").count(after=lost)
        a.start()
        a.wait(lambda found: found["role"] == "fenced" and found["alarms"])
        assert counts(a, lost) == 110
        assert refused(a).primary == b.address


def test_a_primary_that_steps_down_takes_no_writes_until_it_is_promoted(tmp_path: Path) -> None:
    """Also after a restart; its standby gets the rest, and reads go on."""
    with pair(tmp_path) as (a, b):
        assert a.command("step-down").done
        assert isinstance(refused(a), NotPrimary)
        a.stop()
        a.start()
        assert a.describe()["role"] == "fenced"
        assert counts(a, None) == 100
        verdict = a.command("promote")
        assert verdict.done, verdict.text
        with a.database() as database:
            token = put(database, 100, 10)
        b.wait(lambda found: found["epoch"] == 2 and found["status"] == "following")
        assert counts(b, token) == 110


def test_a_promotion_asks_the_old_primary_first(tmp_path: Path) -> None:
    """It steps down, its last record is awaited, and it follows: nothing is lost though nobody stopped writing."""
    with pair(tmp_path) as (a, b):
        with a.database() as database:
            token = put(database, 100, 100)
        verdict = b.command("promote", replaces=1)
        assert verdict.done, verdict.text
        assert counts(b, token) == 200
        a.wait(lambda found: found["role"] == "standby" and found["status"] == "following")
        with b.database() as database:
            token = put(database, 200, 10)
        assert counts(a, token) == 210


def test_a_store_with_peers_opens_alone_after_a_while(tmp_path: Path) -> None:
    """With its standby gone for good it takes writes again, with an alarm, and at once where the standby answers."""
    with pair(tmp_path) as (a, b):
        a.stop()
        a.start()
        a.wait(lambda found: found["accepts_writes"], within_s=4.0)
        b.stop()
        a.stop()
        a.start()
        assert not a.describe()["accepts_writes"]
        found = a.wait(lambda found: found["accepts_writes"])
        assert any("without having heard" in alarm["text"] for alarm in found["alarms"])


def test_a_deposed_primary_rejoins_by_itself_and_keeps_what_it_leaves_behind(tmp_path: Path) -> None:
    """Told whom to follow, a fenced store exports its own tail, is reset to the fork, and is equal in the end."""
    with pair(tmp_path) as (a, b):
        b.stop()
        with a.database() as database:
            lost = put(database, 50, 100)
        a.kill()
        b.start()
        assert b.command("promote", replaces=1).done
        with b.database() as database:
            token = put(database, 2000, 10)
        a.start("--standby-of", b.address)
        found = a.wait(lambda found: found["role"] == "standby" and found["rejoin"] is None)
        assert counts(a, token) == 110
        assert digest(a) == digest(b)
        exported = list((a.folder / "diverged").iterdir())
        assert len(exported) == 1
        with a.database() as database, pytest.raises(WriteLost):
            database.collection("docs").count(after=lost)
        assert found["epoch"] == 2
        a.stop()
        a.start()
        with b.database() as database:
            token = put(database, 3000, 10)
        assert counts(a, token) == 120
