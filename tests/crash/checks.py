"""What must hold of a store after anything that happened to it, seen from outside.

I5: digests are those of the contents, and verify agrees. I11: exact search is brute force, approximate search gives
live points with exact scores. I13: every token that was handed out is found in the history.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np

import vecstore
from vecstore.api import Database

from ..support.oracle import OracleCollection, check_hits
from ..support.writer import CONFIG
from .history import Contents, History

__all__ = ["check_answers", "check_counted", "check_digests", "check_history", "check_store", "read_contents"]

QUERIES = 3
K = 10
TOKENS = 20


def check_store(where: Path, history: History, seed: int, *, mended: bool = False) -> None:
    """Open a store, check all of it against its history, and close it.

    `mended` says that something was damaged on purpose: else a crash leaves no checkpoint that has to be given up.
    """
    with vecstore.open(str(where), config=CONFIG) as db:
        check_history(db, history, seed)
        check_digests(db)
        check_answers(db, seed)
        findings = db.verify()["findings"]
        assert mended or not [finding for finding in findings if "checkpoint" in finding or "index" in finding], (
            findings
        )


def read_contents(db: Database) -> Contents:
    """Return every point of a store."""
    return {
        name: {p.id: (_bytes(p.vector), p.payload) for p in db.collection(name).scan(with_vector=True)}
        for name in db.collections()
    }


def _bytes(vector: Any) -> bytes:
    return np.asarray(vector, dtype="<f4").tobytes()


def check_history(db: Database, history: History, seed: int) -> None:
    """Assert I1 and I2, and that what was acknowledged is found again by its token (I13)."""
    status = db.status()
    assert status["lsn"] >= history.lsn, f"LSN {history.lsn} was acknowledged, the store ends at {status['lsn']}"
    history.settle(read_contents(db))
    tokens = sorted(history.tokens, key=lambda token: history.tokens[token])
    for token in {*random.Random(seed).sample(tokens, min(TOKENS, len(tokens))), *tokens[-1:]}:
        assert db.wait(token, timeout=10).lsn == history.tokens[token]


def oracle_of(db: Database, name: str) -> OracleCollection:
    """Return the oracle of a collection, filled from a scan."""
    collection = db.collection(name)
    oracle = OracleCollection(name, collection.dim, collection.metric, {**collection.fields})
    for point in collection.scan(with_vector=True):
        assert point.vector is not None
        oracle.points[point.id] = (point.payload, point.vector)
    return oracle


def check_digests(db: Database) -> None:
    """Assert that status, verify and the contents agree on the digests (I5)."""
    status, verified = db.status(), db.verify()
    assert verified["ok"], verified["damaged"]
    assert verified["lsn"] == status["lsn"]
    assert verified["chain"] == status["chain"]
    for name in db.collections():
        oracle = oracle_of(db, name)
        for said in (status["collections"][name], verified["collections"][name]):
            assert said["count"] == len(oracle.points)
            assert int(said["digest"], 16) == oracle.digest(), f"the digest of {name} is not that of its contents"


def check_counted(db: Database) -> None:
    """Assert that status counts and digests what the contents are, also where the store no longer writes."""
    collections = db.status()["collections"]
    for name in db.collections():
        oracle, said = oracle_of(db, name), collections[name]
        assert (said["count"], int(said["digest"], 16)) == (len(oracle.points), oracle.digest()), name


def check_answers(db: Database, seed: int) -> None:
    """Assert I11 on a few random queries."""
    rng = np.random.default_rng(seed)
    for name in db.collections():
        collection, oracle = db.collection(name), oracle_of(db, name)
        assert collection.count() == len(oracle.points)
        for query in rng.standard_normal((QUERIES, collection.dim), dtype=np.float32):
            exact = collection.search(query, K, exact=True)
            check_hits(exact, oracle, query)
            wanted = oracle.search(query, K)
            assert len(exact) == len(wanted)
            np.testing.assert_allclose([h.score for h in exact], [score for _, score in wanted], rtol=1e-4, atol=1e-4)
            check_hits(collection.search(query, K), oracle, query)
            group = {"group": int(rng.integers(7))}
            check_hits(collection.search(query, K, filter=group), oracle, query, group)
