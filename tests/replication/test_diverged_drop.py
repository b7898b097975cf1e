"""Dropping an export: what may be the only copy goes by replay or by a human's word, and nothing goes with it."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import vecstore
from tests.replication.contents import part_ways, write_points
from tests.replication.pair import committer_of, held, make_pair, ship, write_history
from vecstore.engine.contents import keep
from vecstore.engine.contents.diverged import REPLAYED, exports, replay, replays
from vecstore.engine.contents.drop import drop, loss, standing
from vecstore.engine.contents.export import export
from vecstore.engine.database import EmbeddedDatabase
from vecstore.errors import InvalidArgument, NotFound, Unavailable

SEED = 11


@contextlib.contextmanager
def left_behind(path: Path, *, also: bool = False) -> Iterator[tuple[EmbeddedDatabase, EmbeddedDatabase, str]]:
    """Two stores of one lineage, the first with an export of what it alone has; yield them and its name."""
    with make_pair(path) as (a, b):
        write_history(a, SEED, 10)
        ship(a, b, SEED)
        fork = part_ways(a, b)
        write_points(a, SEED, 6)
        if also:
            a.create_collection("new", 4).upsert([1], np.ones((1, 4), np.float32))
            a.drop_collection("strs")
        committer_of(a.engine).fence(held)
        yield a, b, export(a.engine, fork, True).name


def folder(path: Path, name: str) -> Path:
    return path / "a" / "diverged" / name


def test_what_was_not_replayed_is_named_and_stays(tmp_path: Path) -> None:
    """Without a word of a human nothing goes that is nowhere else; with it, that export goes, and nothing beside."""
    with left_behind(tmp_path) as (a, _, name):
        store = str(tmp_path / "a")
        (summary,) = exports(store)
        counts = {one.name: one.upserts + one.deletes for one in summary.collections}
        assert loss(store, name).points == counts and set(counts) == {"ints", "strs"}
        beside = tmp_path / "a" / "diverged" / "notes"
        beside.mkdir()
        (beside / "summary.json").write_bytes((folder(tmp_path, name) / "summary.json").read_bytes())
        before = sorted(os.listdir(folder(tmp_path, name)))
        with pytest.raises(InvalidArgument, match=rf"{counts['ints']} points of ints") as refused:
            drop(store, name)
        assert "--accept-loss" in refused.value.hint and refused.value.details["points"] == counts
        assert sorted(os.listdir(folder(tmp_path, name))) == before
        assert drop(store, name, accept_loss=True).points == counts
        assert os.listdir(tmp_path / "a" / "diverged") == ["notes"]
        with pytest.raises(NotFound):
            drop(store, name)
        assert a.verify()["ok"]


def test_only_a_whole_replay_into_the_lineage_counts(tmp_path: Path) -> None:
    """Another lineage's store, some of the collections, or a line that a crash cut off are no replay of it."""
    with left_behind(tmp_path) as (_, b, name):
        store = str(tmp_path / "a")
        with vecstore.open(str(tmp_path / "stranger")) as stranger:
            for each in ("ints", "strs"):
                made = b.collection(each)
                stranger.create_collection(each, made.dim, metric=made.metric, fields=made.fields)
            replay(store, name, stranger)
        assert set(loss(store, name).points) == {"ints", "strs"}
        replay(store, name, b, {"ints"})
        assert set(loss(store, name).points) == {"strs"}
        file = folder(tmp_path, name) / REPLAYED
        file.write_bytes(file.read_bytes()[:-10])
        assert set(loss(store, name).points) == {"ints", "strs"}
        replay(store, name, b)
        assert len(replays(store, name)) == 2, "the line that was cut off took no other with it"
        assert not loss(store, name)
        drop(store, name)
        assert os.listdir(tmp_path / "a" / "diverged") == []


def test_what_no_replay_writes_is_named_too(tmp_path: Path) -> None:
    """A collection that was dropped behind the fork stays a loss; one that was made there is made by the replay."""
    with left_behind(tmp_path, also=True) as (_, b, name):
        store = str(tmp_path / "a")
        assert loss(store, name).records == {"create": 1, "drop": 1}
        assert replay(store, name, b).keys() == {"ints", "new"}
        left = loss(store, name)
        assert left.records == {"drop": 1} and len(left.points) == 1
        with pytest.raises(InvalidArgument, match="1 drop records"):
            drop(store, name)


def test_nothing_goes_while_a_rejoin_counts_on_it(tmp_path: Path) -> None:
    """A rejoin that is under way has exported, and drops its log next: until it is over the export stays."""
    with left_behind(tmp_path) as (a, _, name):
        keep.checkpoint(a.engine)
        with pytest.raises(Unavailable, match="a rejoin of this store is under way"):
            drop(str(tmp_path / "a"), name, accept_loss=True)
        assert folder(tmp_path, name).is_dir()
        keep.discard(str(tmp_path / "a"))
        drop(str(tmp_path / "a"), name, accept_loss=True)


def test_a_rejoin_that_begins_meanwhile_keeps_its_export(tmp_path: Path) -> None:
    """Whoever waited for the other to be done looks again."""
    with left_behind(tmp_path) as (a, _, name):
        found: list[Exception] = []

        def remove() -> None:
            try:
                drop(str(tmp_path / "a"), name, accept_loss=True)
            except Unavailable as exc:
                found.append(exc)

        remover = threading.Thread(target=remove)
        with standing(str(tmp_path / "a" / "diverged")):
            remover.start()
            remover.join(0.2)
            assert remover.is_alive(), "it waits while somebody exports"
            keep.checkpoint(a.engine)
        remover.join(30)
        assert len(found) == 1 and folder(tmp_path, name).is_dir()


def test_an_export_is_not_found_while_it_goes(tmp_path: Path) -> None:
    """A rejoin does not count on an export that is just being dropped: it waits, and writes it anew."""
    with left_behind(tmp_path) as (a, _, name):
        root = tmp_path / "a" / "diverged"
        (summary,) = exports(str(tmp_path / "a"))
        exporter = threading.Thread(target=export, args=(a.engine, summary.fork_lsn, True))
        with standing(str(root)):
            exporter.start()
            exporter.join(0.2)
            assert exporter.is_alive(), "it waits while somebody drops"
            os.rename(root / name, tmp_path / "gone")
        exporter.join(30)
        assert [one.tip_lsn for one in exports(str(tmp_path / "a"))] == [summary.tip_lsn]


@pytest.mark.parametrize("strange", ["notes.txt", "more/", "link"])
def test_nothing_goes_that_no_export_wrote(tmp_path: Path, strange: str) -> None:
    """A file, a folder or a link that somebody put there keeps the export in place, and is named."""
    with left_behind(tmp_path) as (_, _, name):
        place = folder(tmp_path, name) / strange.rstrip("/")
        if strange == "link":
            place.symlink_to(tmp_path / "b")
        elif strange.endswith("/"):
            place.mkdir()
        else:
            place.write_text("mine")
        with pytest.raises(InvalidArgument, match=rf"no export wrote: {place.name}"):
            drop(str(tmp_path / "a"), name, accept_loss=True)
        assert folder(tmp_path, name).is_dir() and place.exists()
        for other in ("..", "", ".draft-x", f"../diverged/{name}"):
            with pytest.raises(NotFound):
                drop(str(tmp_path / "a"), other, accept_loss=True)
