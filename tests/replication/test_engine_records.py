"""The engine's side of replication: finished records, epochs, handover, fence, who may write."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest

import vecstore
from vecstore.engine.database import EmbeddedDatabase
from vecstore.engine.engine import Engine
from vecstore.errors import DeadlineExceeded, NotPrimary, WriteLost
from vecstore.record import Token
from vecstore.replication.durable import Durable
from vecstore.replication.store_log import StoreLog
from vecstore.storage.catalog import Epoch

DIM = 8
STATE = msgspec.msgpack.encode(Durable("standby", primary="a"))


def filled(path: Path, rng: np.random.Generator) -> vecstore.Database:
    """Return a store with inserts, replacements, deletions, fields, a rename and a drop in its log."""
    database = vecstore.open(str(path))
    points = database.create_collection("a", DIM, fields={"n": "int64"}, shards=2)
    names = database.create_collection("b", DIM, metric="l2", fields="infer")
    for turn in range(6):
        ids = rng.integers(0, 300, 100)
        points.upsert(ids, rng.standard_normal((100, DIM)), [{"n": int(i) + turn} for i in ids])
        names.upsert([f"x{i}" for i in range(turn, turn + 20)], rng.standard_normal((20, DIM)), [{"k": turn}] * 20)
        points.delete(ids=rng.integers(0, 300, 20).tolist())
    names.update(["x3", "x9"], payloads=[{"k": 7}, {"k": 8}])
    points.delete(filter={"n": {"$lt": 40}})
    database.rename_collection("b", "c")
    database.create_collection("gone", 3).upsert([1], [[1.0, 2, 3]])
    database.drop_collection("gone")
    return database


def engine_of(database: vecstore.Database) -> Engine:
    """Return the engine behind a handle."""
    assert isinstance(database, EmbeddedDatabase)
    return database.engine


def copied(source: vecstore.Database, path: Path, target: Path) -> vecstore.Database:
    """Return a store of the same lineage that holds nothing but the first epoch's record yet."""
    del source
    shutil.copytree(path, target)
    return vecstore.open(str(target))


@pytest.mark.parametrize("frame", [1, 7, 1000])
def test_finished_records_make_the_same_store(tmp_path: Path, frame: int) -> None:
    """Digests, chain, answers and request ids are the source's, however the records are cut into frames."""
    rng = np.random.default_rng(frame)
    first = vecstore.open(str(tmp_path / "a"))
    first.close()
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    source = filled(tmp_path / "a", rng)
    log = StoreLog(lambda: engine_of(source))
    target = vecstore.open(str(tmp_path / "b"))
    engine = engine_of(target)
    assert engine.committer is not None
    position = StoreLog(lambda: engine)
    while position.tip.lsn < log.durable_lsn:
        records = list(log.read(position.tip.lsn, log.durable_lsn, 1 << 40))[:frame]
        engine.committer.append(records)
        assert position.durable_lsn == position.tip.lsn == records[-1].lsn
    _same(source, target)
    assert target.verify()["ok"]
    target.close()
    with vecstore.open(str(tmp_path / "b")) as again:
        _same(source, again)
    source.close()


def _same(one: vecstore.Database, other: vecstore.Database) -> None:
    mine, theirs = one.status(), other.status()
    assert (mine["lsn"], mine["chain"]) == (theirs["lsn"], theirs["chain"])
    digests = [{name: (c["digest"], c["count"]) for name, c in s["collections"].items()} for s in (mine, theirs)]
    assert digests[0] == digests[1]
    for name in one.collections():
        query = np.ones(mine["collections"][name]["dim"])
        hits = [d.collection(name).search(query, 5, exact=True) for d in (one, other)]
        assert [(h.id, h.score, h.payload) for h in hits[0]] == [(h.id, h.score, h.payload) for h in hits[1]]
    assert engine_of(one).state.fold.requests == engine_of(other).state.fold.requests


def test_a_record_that_does_not_follow_is_refused_and_those_before_it_fit_again(tmp_path: Path) -> None:
    """A frame with a gap is not taken beyond it, and the store goes on from what it took."""
    vecstore.open(str(tmp_path / "a")).close()
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    source = filled(tmp_path / "a", np.random.default_rng(0))
    records = list(StoreLog(lambda: engine_of(source)).read(1, 20, 1 << 40))
    with vecstore.open(str(tmp_path / "b")) as target:
        committer = engine_of(target).committer
        assert committer is not None
        with pytest.raises(vecstore.errors.Damaged, match="does not follow"):
            committer.append([*records[:5], *records[6:8]])
        reached = target.status()["lsn"]
        assert reached <= 6
        committer.append(records[reached - 1 :])
        assert target.status()["lsn"] == 20
    source.close()


def test_an_epoch_and_the_state_are_one(tmp_path: Path) -> None:
    """The state that is written with an epoch is there after a reopen, and so is the epoch's record."""
    with vecstore.open(str(tmp_path)) as database:
        database.create_collection("a", DIM).upsert([1], np.ones((1, DIM)))
        engine = engine_of(database)
        tip = engine.state.fold.tip
        assert engine.committer is not None and engine.replication_state is None
        engine.committer.persist(STATE, Epoch(5, "ab", tip.lsn, tip.chain.hex()))
        assert database.position() == (5, tip.lsn + 1)
        assert database.collection("a").upsert([2], np.ones((1, DIM))).lsn == tip.lsn + 2
    with vecstore.open(str(tmp_path)) as database:
        engine = engine_of(database)
        assert engine.replication_state == STATE
        assert engine.state.fold.epochs[-1] == Epoch(5, "ab", tip.lsn, tip.chain.hex())
        with pytest.raises(NotPrimary, match="standby"):
            database.collection("a").upsert([3], np.ones((1, DIM)))
        assert database.collection("a").count() == 2


def test_a_handover_is_the_last_record(tmp_path: Path) -> None:
    """It is durable when the call returns, nothing is written behind it, and the log says whom it names."""
    with vecstore.open(str(tmp_path)) as database:
        points = database.create_collection("a", DIM)
        engine = engine_of(database)
        assert engine.committer is not None
        log = StoreLog(lambda: engine)
        assert log.handover == ""
        engine.committer.handover("west", engine.not_primary)
        assert log.handover == "west" and log.durable_lsn == log.tip.lsn
        with pytest.raises(NotPrimary):
            points.upsert([1], np.ones((1, DIM)))
    with vecstore.open(str(tmp_path)) as database:
        assert StoreLog(lambda: engine_of(database)).handover == "west"


def test_a_token_of_an_epoch_that_ended_below_it_is_lost(tmp_path: Path) -> None:
    """A failover's new epoch begins below the token: the write is lost, though the log is shorter than its LSN."""
    with vecstore.open(str(tmp_path)) as database:
        database.create_collection("a", DIM)
        engine = engine_of(database)
        assert engine.committer is not None
        tip = engine.state.fold.tip
        token = Token(engine.lineage, 1, tip.lsn + 50, b"12345678").encode()
        with pytest.raises(DeadlineExceeded):
            database.collection("a").search(np.ones(DIM), after=token, timeout=0.01)
        engine.committer.persist(STATE, Epoch(2, "cd", tip.lsn, tip.chain.hex()))
        with pytest.raises(WriteLost, match="epoch 1 ended"):
            database.collection("a").search(np.ones(DIM), after=token, timeout=5)


def test_a_log_is_read_the_same_from_memory_and_disk(tmp_path: Path) -> None:
    """Chains and records agree, whether they were just written or are read after a reopen."""
    database = filled(tmp_path, np.random.default_rng(2))
    log = StoreLog(lambda: engine_of(database))
    database.collection("a").upsert([1], np.ones((1, DIM)))
    tip = log.tip
    cold = [(r.lsn, r.mark.chain) for r in log.read(0, tip.lsn, 1 << 40)]
    assert [lsn for lsn, _ in cold] == list(range(1, tip.lsn + 1))
    assert all(log.chain(lsn) == chain for lsn, chain in cold)
    assert list(log.known(1, tip.lsn)) == [lsn for lsn, _ in cold]
    assert len(log.read(3, tip.lsn, 1)) == 1
    database.close()
    with vecstore.open(str(tmp_path)) as again:
        log = StoreLog(lambda: engine_of(again))
        assert log.tip == tip
        assert log.chain(tip.lsn) == tip.chain
        assert {lsn: log.chain(lsn) for lsn in log.known(1, tip.lsn)}.items() <= dict(cold).items()
