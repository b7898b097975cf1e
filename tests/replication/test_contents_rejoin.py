"""A store that was left behind: kept, exported, reset, filled again, and taken back to what it was."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vecstore
from tests.replication.contents import FENCED, STANDBY, fetch, part_of, part_ways, write_points
from tests.replication.pair import answers, assert_equal, committer_of, held, make_pair, opened, ship, write_history
from vecstore.engine.contents import keep
from vecstore.engine.contents.diverged import differing, exports, read_export, replay, rows
from vecstore.engine.contents.export import Left, export
from vecstore.engine.contents.install import install
from vecstore.engine.contents.outgoing import Outgoing
from vecstore.engine.contents.reset import reset
from vecstore.engine.database import EmbeddedDatabase
from vecstore.engine.slots import Standbys
from vecstore.errors import Damaged, InvalidArgument, NotFound

Pair = tuple[EmbeddedDatabase, EmbeddedDatabase, int]


@contextlib.contextmanager
def parted(path: Path, seed: int, *, before: int = 40) -> Iterator[Pair]:
    """Two stores that share a history up to a fork, and have each written points since."""
    with make_pair(path) as (a, b):
        write_history(a, seed, before)
        write_points(a, seed, 20)
        ship(a, b, seed)
        fork = part_ways(a, b)
        write_points(a, seed + 1, 15)
        write_points(b, seed + 2, 25)
        yield a, b, fork


def leave(a: EmbeddedDatabase, fork: int, *, is_complete: bool = True) -> Left:
    """Fence a store, keep it, export what is behind the fork."""
    committer_of(a.engine).fence(held)
    keep.checkpoint(a.engine)
    return export(a.engine, fork, is_complete)


def state_of(database: EmbeddedDatabase, seed: int) -> dict[str, Any]:
    """Return all that makes a store what it is: place, digests, answers, request ids, epochs, slots."""
    status, fold = database.status(), database.engine.state.fold
    assert database.verify()["ok"]
    return {
        "place": [status[key] for key in ("store_id", "lineage", "epoch", "lsn", "chain")],
        "collections": {name: (c["count"], c["digest"]) for name, c in status["collections"].items()},
        "answers": answers(database, seed),
        "requests": dict(fold.requests),
        "epochs": list(fold.epochs),
        "slots": dict(database.engine.slots.held),
    }


def test_a_reset_store_that_follows_is_the_primary(seed: int, tmp_path: Path) -> None:
    """Reset to the fork, with the primary's points, and its records appended: the same digests, answers, requests."""
    with parted(tmp_path, seed) as (a, b, fork):
        requests = {key for key, entry in a.engine.state.fold.requests.items() if entry[0] <= fork}
        left = leave(a, fork)
        assert left.ids and not left.needs_snapshot
        a.close()
        outgoing = Outgoing(b.engine)
        points = fetch(outgoing, outgoing.take_points(left.ids), tmp_path / "a").points
        tip = reset(str(tmp_path / "a"), fork, points, STANDBY)
        assert tip.lsn == fork
        with contextlib.closing(opened(tmp_path / "a")) as again:
            engine = again.engine
            assert again.status()["lsn"] == fork
            assert [epoch.number for epoch in engine.state.fold.epochs] == [1]
            assert requests == set(engine.state.fold.requests)
            assert part_of(engine.replication_state)["role"] == "standby"
            ship(b, again, seed, trust=True)
            assert_equal(b, again, seed)
        with contextlib.closing(opened(tmp_path / "a")) as again:
            assert_equal(b, again, seed)
            write_points(b, seed + 3, 5)
            ship(b, again, seed)
            assert_equal(b, again, seed)


def test_a_reset_again_is_the_same(seed: int, tmp_path: Path) -> None:
    """What was reset may be reset once more: the log ends at the fork, and nothing else changes."""
    with parted(tmp_path, seed) as (a, b, fork):
        left = leave(a, fork)
        a.close()
        outgoing = Outgoing(b.engine)
        incoming = fetch(outgoing, outgoing.take_points(left.ids), tmp_path / "a")
        first = reset(str(tmp_path / "a"), fork, incoming.points, STANDBY)
        assert reset(str(tmp_path / "a"), fork, incoming.points, STANDBY) == first
        with contextlib.closing(opened(tmp_path / "a")) as again:
            ship(b, again, seed, trust=True)
            assert_equal(b, again, seed)


def test_points_are_read_beside_writers(seed: int, tmp_path: Path) -> None:
    """Each touched point is of some LSN; once the records up to the LSN of the answer are appended all are right."""
    with parted(tmp_path, seed) as (a, b, fork):
        left = leave(a, fork)
        a.close()
        outgoing = Outgoing(b.engine)
        writer = threading.Thread(target=write_points, args=(b, seed + 3, 40))
        writer.start()
        while b.status()["lsn"] < fork + 30:
            b.wait(b.status()["token"])
        taken = outgoing.take_points(left.ids)
        writer.join()
        assert fork < taken.lsn <= b.status()["lsn"]
        points = fetch(outgoing, taken, tmp_path / "a").points
        reset(str(tmp_path / "a"), fork, points, STANDBY)
        with contextlib.closing(opened(tmp_path / "a")) as again:
            ship(b, again, seed, trust=True)
            assert_equal(b, again, seed)


def test_the_kept_checkpoint_is_the_store_as_it_was(seed: int, tmp_path: Path) -> None:
    """After a reset and records of the other history, the return gives exactly the state before, log and all."""
    with parted(tmp_path, seed) as (a, b, fork):
        committer_of(a.engine).fence(held)
        before = state_of(a, seed)
        records = [record.encode() for record in _log(a, fork)]
        left = leave(a, fork)
        a.close()
        outgoing = Outgoing(b.engine)
        points = fetch(outgoing, outgoing.take_points(left.ids), tmp_path / "a").points
        reset(str(tmp_path / "a"), fork, points, STANDBY)
        with contextlib.closing(opened(tmp_path / "a")) as between:
            ship(b, between, seed, trust=True)
        for _ in range(2):
            keep.back(str(tmp_path / "a"), FENCED)
            with contextlib.closing(opened(tmp_path / "a")) as returned:
                assert returned.status()["findings"] == []
                assert state_of(returned, seed) == before
                assert [record.encode() for record in _log(returned, fork)] == records
                assert part_of(returned.engine.replication_state)["role"] == "fenced"
        keep.discard(str(tmp_path / "a"))
        with pytest.raises(InvalidArgument, match="nothing is kept"):
            keep.back(str(tmp_path / "a"), FENCED)
        with contextlib.closing(opened(tmp_path / "a")) as returned:
            assert state_of(returned, seed) == before


def _log(database: EmbeddedDatabase, after: int) -> list[Any]:
    from vecstore.engine.recovery import LogReader

    return list(LogReader(database.engine.store).records(after))


def test_an_export_is_all_that_was_left_behind(seed: int, tmp_path: Path) -> None:
    """Each record is there, in order, and replaying them into the store at the fork gives what was left behind."""
    with parted(tmp_path, seed) as (a, b, fork):
        outgoing = Outgoing(b.engine)
        taken = outgoing.take()
        left = leave(a, fork)
        (summary,) = exports(str(tmp_path / "a"))
        assert summary.name == left.name and summary.is_complete and not summary.needs_snapshot
        assert (summary.fork_lsn, summary.tip_lsn) == (fork, a.status()["lsn"])
        assert summary.records == summary.tip_lsn - fork
        touched = 0
        for one in summary.collections:
            found = list(rows(str(tmp_path / "a"), left.name, one.number))
            assert [row["lsn"] for row in found] == sorted(row["lsn"] for row in found)
            assert len(found) == one.upserts + one.deletes
            touched += len({row["id"] for row in found})
        assert touched == len(left.ids)
        assert taken.lsn > fork
        again = export(a.engine, fork, True)
        assert again == left, "the same export is found, not made again"
        assert os.listdir(tmp_path / "a" / "diverged") == [left.name]
    with contextlib.closing(opened(tmp_path / "a")) as a, contextlib.closing(opened(tmp_path / "c")) as c:
        for name in ("ints", "strs"):
            source = a.collection(name)
            made = c.create_collection(name, source.dim, metric=source.metric, fields=source.fields)
            del made
        counts = replay(str(tmp_path / "a"), left.name, c)
        assert counts == {one.name: one.upserts + one.deletes for one in summary.collections}
        lsn = c.status()["lsn"]
        for one in summary.collections:
            last = {row["id"]: row for row in rows(str(tmp_path / "a"), left.name, one.number)}
            mine, theirs = c.collection(one.name), a.collection(one.name)
            assert mine.count() == sum(row["operation"] == "upsert" for row in last.values())
            ids = sorted(last)
            for point, truth in zip(mine.get(ids, with_vector=True), theirs.get(ids, with_vector=True), strict=True):
                assert (point.id, point.payload) == (truth.id, truth.payload)
                assert np.array_equal(np.asarray(point.vector), np.asarray(truth.vector))
        replay(str(tmp_path / "a"), left.name, c)
        assert c.status()["lsn"] == lsn, "done again it does nothing"


def test_more_than_points_needs_a_snapshot(tmp_path: Path) -> None:
    """A collection made behind the fork: the export says so, the reset refuses, the replay creates it elsewhere."""
    with parted(tmp_path, 3) as (a, b, fork):
        new = a.create_collection("new", 4, fields={"n": "int64"})
        new.upsert([1, 2], np.eye(4, dtype=np.float32)[:2], [{"n": 1}, {"n": 2}])
        left = leave(a, fork)
        assert left.needs_snapshot
        summary, others = read_export(str(tmp_path / "a"), left.name)
        assert summary.needs_snapshot
        assert [other["kind"] for other in others] == ["create"]
        a.close()
        outgoing = Outgoing(b.engine)
        points = fetch(outgoing, outgoing.take_points(left.ids), tmp_path / "a").points
        with pytest.raises(InvalidArgument, match="more than points"):
            reset(str(tmp_path / "a"), fork, points, STANDBY)
    with contextlib.closing(opened(tmp_path / "a")) as a:
        assert a.collection("new").count() == 2, "it is as it was"
    with vecstore.open(str(tmp_path / "c")) as c:
        with pytest.raises(NotFound, match="not in the database"):
            replay(str(tmp_path / "a"), left.name, c)
        assert c.collections() == []
        assert replay(str(tmp_path / "a"), left.name, c, {"new"}) == {"new": 2}
        assert c.collection("new").count() == 2
        with pytest.raises(NotFound, match="there is no"):
            replay(str(tmp_path / "a"), "../a", c)


def test_an_export_of_a_log_that_was_cut_is_incomplete(tmp_path: Path) -> None:
    """The points newer than the fork are exported as they are, with the records that are left, and marked so."""
    with parted(tmp_path, 5) as (a, _, fork):
        a.engine.slots.standbys = Standbys
        a.checkpoint()
        write_points(a, 9, 3)
        a.checkpoint()
        write_points(a, 10, 3)
        a.engine.slots.standbys = lambda: Standbys(holds_all=True)
        a.checkpoint()
        start = a.engine.checkpointer.log_start if a.engine.checkpointer else 0
        assert start > fork + 1
        left = leave(a, fork)
        summary, _ = read_export(str(tmp_path / "a"), left.name)
        assert not summary.is_complete and left.needs_snapshot and summary.first_lsn == start
        sources = set()
        for one in summary.collections:
            found = list(rows(str(tmp_path / "a"), left.name, one.number))
            sources |= {row["source"] for row in found}
            last = {row["id"]: row["operation"] for row in found}
            alive = {point.id for point in a.collection(one.name).get(list(last))}
            assert alive == {id for id, operation in last.items() if operation == "upsert"}
        assert sources == {"points", "log"}
    with contextlib.closing(opened(tmp_path / "a")) as a, contextlib.closing(opened(tmp_path / "c")) as c:
        for name in ("ints", "strs"):
            source = a.collection(name)
            c.create_collection(name, source.dim, metric=source.metric, fields=source.fields)
        replay(str(tmp_path / "a"), left.name, c)
        assert all(point in list(a.collection("ints").scan()) for point in c.collection("ints").scan())


def test_an_incomplete_export_learns_which_ids_differ(seed: int, tmp_path: Path) -> None:
    """The snapshot that replaces the store tells what was deleted behind the fork, though the log had lost it."""
    with make_pair(tmp_path) as (a, b):
        write_history(a, seed, 5)
        points = a.collection("ints")
        points.upsert(range(5_000, 5_010), np.ones((10, points.dim)), [{"owner": 0}] * 10)
        ship(a, b, seed)
        fork = part_ways(a, b)
        points.delete(ids=[5_001, 5_002])
        points.upsert([5_003], -np.ones((1, points.dim)))
        b.collection("ints").upsert([5_004], -np.ones((1, points.dim)))
        b.collection("ints").delete(ids=[5_002, 5_005])
        a.engine.slots.standbys = Standbys
        for number in range(3):
            points.upsert([6_000 + number], np.ones((1, points.dim)))
            a.checkpoint()
        left = leave(a, fork)
        assert left.needs_snapshot
        a.close()
        outgoing = Outgoing(b.engine)
        fetch(outgoing, outgoing.take(), tmp_path / "a")
        assert list(differing(str(tmp_path / "a"), left.name)) == []
        install(str(tmp_path / "a"), STANDBY, b.engine.lineage)
        found = {row["id"]: row for row in differing(str(tmp_path / "a"), left.name)}
        assert found[5_001]["here"] is None and found[5_001]["there"] <= fork, "deleted here, behind the fork"
        assert found[5_005]["there"] is None and found[5_005]["here"] <= fork, "deleted there"
        assert found[5_003]["here"] > fork >= found[5_003]["there"]
        assert found[5_004]["there"] > fork >= found[5_004]["here"]
        assert 5_002 not in found and 5_006 not in found
        with contextlib.closing(opened(tmp_path / "a")) as again:
            assert_equal(b, again, seed)


def test_a_reset_refuses_what_it_cannot_know(tmp_path: Path) -> None:
    """A fork above the log, a file of points that is cut short: the store is as it was."""
    with parted(tmp_path, 6) as (a, b, fork):
        left, before = leave(a, fork), state_of(a, 6)
        a.close()
        outgoing = Outgoing(b.engine)
        points = fetch(outgoing, outgoing.take_points(left.ids), tmp_path / "a").points
        with pytest.raises(Damaged, match="above the end"):
            reset(str(tmp_path / "a"), 1_000_000, points, STANDBY)
        os.truncate(points, os.path.getsize(points) - 3)
        with pytest.raises(Damaged, match="cut short"):
            reset(str(tmp_path / "a"), fork, points, STANDBY)
    with contextlib.closing(opened(tmp_path / "a")) as a:
        assert state_of(a, 6) == before
        assert not (tmp_path / "a" / "prepared").exists()
