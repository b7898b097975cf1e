"""Two stores of one history in one process, and records shipped from one to the other by hand.

What the tests of the engine's side need, and no protocol: the second store starts as a copy of the empty first one, is
held, and is appended to.
"""

from __future__ import annotations

import contextlib
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import vecstore
from tests.support.writer import CONFIG, SHARED, run
from vecstore.engine.database import EmbeddedDatabase
from vecstore.engine.engine import Engine
from vecstore.engine.slots import Standbys
from vecstore.errors import NotPrimary
from vecstore.record import Record
from vecstore.replication.store_log import StoreLog

__all__ = ["answers", "assert_equal", "committer_of", "held", "make_pair", "opened", "ship", "write_history"]


def opened(path: Path, **config: Any) -> EmbeddedDatabase:
    """Open a store with limits so small that everything happens often."""
    database = vecstore.open(str(path), config=CONFIG | config)
    assert isinstance(database, EmbeddedDatabase)
    return database


def held() -> NotPrimary:
    """Return the error that writes to a held store are refused with."""
    return NotPrimary("held by the test", primary="elsewhere:7601")


@contextlib.contextmanager
def make_pair(path: Path, **config: Any) -> Iterator[tuple[EmbeddedDatabase, EmbeddedDatabase]]:
    """Open a store that writes and another one that is appended to, both with nothing but their first epoch."""
    opened(path / "a").close()
    shutil.copytree(path / "a", path / "b")
    with contextlib.closing(opened(path / "a", **config)) as a, contextlib.closing(opened(path / "b", **config)) as b:
        a.engine.slots.standbys = lambda: Standbys(holds_all=True)
        committer_of(b.engine).fence(held)
        yield a, b


def committer_of(engine: Engine) -> Any:
    """Return the committer of a store that is open for writing."""
    assert engine.committer is not None
    return engine.committer


def write_history(database: EmbeddedDatabase, seed: int, count: int, first: int = 0) -> None:
    """Carry out a random history of all kinds of calls."""
    for name, arguments in SHARED.items():
        database.create_collection(name, exist_ok=True, **arguments)
    run(database, lambda _: None, seed, 0, 1, count, first, durable=True)


def ship(source: EmbeddedDatabase, target: EmbeddedDatabase, seed: int = 0, *, trust: bool = False) -> list[Record]:
    """Append to a store what another has durable and it has not, in frames of random sizes; return the records."""
    log, committer = StoreLog(lambda: source.engine), committer_of(target.engine)
    rng, shipped = random.Random(seed), list[Record]()
    while committer.tip.lsn < log.durable_lsn:
        frame = log.read(committer.tip.lsn, log.durable_lsn, rng.choice((1, 10_000, 300_000)))
        assert frame, "the log was cut beneath"
        committer.append(list(frame), trust=trust)
        shipped += frame
    return shipped


def answers(database: EmbeddedDatabase, seed: int) -> dict[str, Any]:
    """Return what exact searches find in each collection."""
    rng = np.random.default_rng(seed)
    found: dict[str, Any] = {}
    for name in database.collections():
        collection = database.collection(name)
        queries = rng.standard_normal((4, collection.dim), dtype=np.float32)
        hits = [collection.search(query, 10, exact=True) for query in queries]
        found[name] = [sorted((round(hit.score, 4), hit.id) for hit in some) for some in hits]
    return found


def assert_equal(one: EmbeddedDatabase, other: EmbeddedDatabase, seed: int = 0) -> None:
    """Assert that two stores are at one LSN of one history and hold the same, by status, bytes and answers."""
    mine, theirs = one.status(), other.status()
    for key in ("lineage", "epoch", "lsn", "chain"):
        assert mine[key] == theirs[key], key
    assert mine["collections"].keys() == theirs["collections"].keys()
    for name, collection in mine["collections"].items():
        for key in ("count", "digest", "fields", "created_lsn"):
            assert collection[key] == theirs["collections"][name][key], (name, key)
    for database in (one, other):
        verified = database.verify()
        assert verified["ok"], verified["damaged"]
        for name, collection in verified["collections"].items():
            assert collection["digest"] == mine["collections"][name]["digest"]
    assert answers(one, seed) == answers(other, seed)
