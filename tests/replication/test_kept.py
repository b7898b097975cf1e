"""What a store's folder holds beside the store: it is shown, bounded, and gone when nobody needs it, crash or not."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

from tests.replication.contents import FENCED, fetch
from tests.replication.pair import committer_of, opened, write_history
from vecstore.engine.contents import keep
from vecstore.engine.contents.incoming import Incoming
from vecstore.engine.contents.outgoing import Outgoing
from vecstore.engine.kept import BEFORE, DIVERGED, DRAFT, INCOMING, LEAVING, OUTGOING, STAGING
from vecstore.errors import Exhausted, Overloaded
from vecstore.replication.coding import encode_state
from vecstore.replication.durable import Durable, RejoinState

PLAIN = {
    "primary": encode_state(Durable("primary", peers=("other",))),
    "standby": encode_state(Durable("standby", primary="other")),
    "fenced": encode_state(Durable("fenced")),
    "rejoining": encode_state(Durable("fenced", rejoin=RejoinState("reset", "other"))),
}


@pytest.mark.parametrize(
    ("role", "stays"),
    [("primary", set()), ("standby", {INCOMING}), ("fenced", set()), ("rejoining", {INCOMING, BEFORE})],
)
def test_what_a_crash_has_left_goes_at_the_next_open(tmp_path: Path, role: str, stays: set[str]) -> None:
    """Only what a rejoin may go back to, and what a standby may still be fetching, are kept."""
    with contextlib.closing(opened(tmp_path / "a")) as a:
        committer_of(a.engine).persist(PLAIN[role])
    all_of_them = {STAGING, OUTGOING, INCOMING, BEFORE, BEFORE + ".new", BEFORE + ".gone", LEAVING, "prepared"}
    for name in (*all_of_them, "replaced", f"{DIVERGED}/{DRAFT}one", f"{DIVERGED}/kept"):
        (tmp_path / "a" / name).mkdir(parents=True)
        (tmp_path / "a" / name / "file").write_bytes(b"left")
    with contextlib.closing(opened(tmp_path / "a")) as a:
        left = set(os.listdir(tmp_path / "a")) & {*all_of_them, "replaced"}
        assert left == stays
        assert os.listdir(tmp_path / "a" / DIVERGED) == ["kept"]
        assert {found["folder"] for found in a.status()["kept"]} == {*stays, DIVERGED}


def test_status_says_what_is_kept_what_it_costs_and_why(seed: int, tmp_path: Path) -> None:
    """What the store has too costs nothing; what it has not, costs its bytes."""
    with contextlib.closing(opened(tmp_path / "a")) as a:
        write_history(a, seed, 30)
        assert a.status()["kept"] == []
        committer_of(a.engine).persist(FENCED)
        keep.checkpoint(a.engine)
        (before,) = a.status()["kept"]
        assert before["folder"] == BEFORE and "rejoin" in before["why"]
        whole = sum(file.stat().st_size for file in (tmp_path / "a" / BEFORE).rglob("*") if file.is_file())
        assert 0 < before["bytes"] < whole
        lone = tmp_path / "a" / DIVERGED / "export"
        lone.mkdir(parents=True)
        (lone / "points").write_bytes(b"x" * 1000)
        assert {found["folder"]: found["bytes"] for found in a.status()["kept"]}[DIVERGED] == 1000


def test_what_is_handed_out_is_bounded(seed: int, tmp_path: Path) -> None:
    """The oldest that nobody reads makes room; what is being fetched stays, and one more is refused."""
    with contextlib.closing(opened(tmp_path / "a")) as a:
        write_history(a, seed, 10)
        outgoing = Outgoing(a.engine, kept_max=2)
        first, second = outgoing.take(), outgoing.take()
        with pytest.raises(Overloaded, match="2 contents of this store are being fetched, 2 may be"):
            outgoing.take()
        with pytest.raises(Overloaded):
            outgoing.take_points([])
        for kept in outgoing._kept.values():
            kept.used_s -= 100.0
        outgoing.read(first.id, "contents.json", 0, 10)
        outgoing.take()
        assert first.id in outgoing._kept and second.id not in outgoing._kept
        assert len(os.listdir(tmp_path / "a" / OUTGOING)) == 2
        for kept in outgoing._kept.values():
            kept.used_s -= 1_000.0
        outgoing.expire()
        assert os.listdir(tmp_path / "a" / OUTGOING) == []


def test_nothing_is_fetched_that_the_disk_has_no_room_for(seed: int, tmp_path: Path) -> None:
    """The refusal names what is needed and what there is; nothing was written; with room the same transfer goes on."""
    with contextlib.closing(opened(tmp_path / "a")) as a:
        write_history(a, seed, 10)
        outgoing = Outgoing(a.engine)
        taken = outgoing.take()
        size = sum(file[1] for file in taken.files)
        (tmp_path / "b").mkdir()
        incoming = Incoming(str(tmp_path / "b"), 1 << 60)
        with pytest.raises(Exhausted, match=rf"disk: {size} bytes are to be fetched, and \d+ may be") as refused:
            incoming.begin(taken.id, taken.files)
        assert (refused.value.details["needed"], refused.value.details["floor"]) == (size, 1 << 60)
        found = [file for file in (tmp_path / "b").rglob("*") if file.is_file()]
        assert [file.name for file in found] == ["ticket.json"]
        fetch(outgoing, taken, tmp_path / "b")
        Incoming(str(tmp_path / "b"), 1 << 60).begin(taken.id, taken.files)  # all of it is there
