"""A clone of an open store: the same contents, another lineage, and nothing of it reaches the store it was made of."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest

import vecstore
from vecstore import WriteLost
from vecstore.engine.clone import take_clone
from vecstore.engine.database import EmbeddedDatabase


def filled(path: Path, count: int = 6_000) -> EmbeddedDatabase:
    """Return an open store with points, some of them in sealed segments."""
    database = vecstore.open(str(path))
    points = database.create_collection("docs", 8, fields={"n": "int64"})
    rows = np.random.default_rng(3).standard_normal((count, 8)).astype(np.float32)
    for start in range(0, count, 1_000):
        ids = range(start, start + 1_000)
        points.upsert(ids, rows[start : start + 1_000], [{"n": i % 10} for i in ids])
    assert isinstance(database, EmbeddedDatabase)
    return database


def test_a_clone_holds_the_same_and_is_another(tmp_path: Path) -> None:
    """LSN, digest, answers are those of the source; lineage, store id and chain are not, and neither are tokens."""
    source = filled(tmp_path / "store")
    with contextlib.closing(source):
        token = source.collection("docs").upsert([7], np.ones((1, 8)), [{"n": 7}]).token
        made = take_clone(source.engine, str(tmp_path / "clone"))
        before = source.status()
        with vecstore.open(str(tmp_path / "clone"), create=False) as clone:
            found = clone.status()
            assert found["lsn"] == before["lsn"] == made.source.lsn
            assert made.source.chain.hex() == before["chain"] != found["chain"]
            assert found["lineage"] != before["lineage"]
            assert found["store_id"] != before["store_id"]
            assert found["findings"] == []
            digests = [one["collections"]["docs"]["digest"] for one in (before, found, clone.verify())]
            assert len(set(digests)) == 1
            query = np.arange(8.0)
            mine, theirs = (db.collection("docs").search(query, 10, exact=True) for db in (clone, source))
            assert [hit.id for hit in mine] == [hit.id for hit in theirs]
            with pytest.raises(WriteLost):
                clone.collection("docs").get([7], after=token)


def test_what_is_done_to_a_clone_stays_there(tmp_path: Path) -> None:
    """A clone that is written to, optimized, closed and opened again changes nothing of its source, and the reverse."""
    source = filled(tmp_path / "store")
    with contextlib.closing(source):
        take_clone(source.engine, str(tmp_path / "clone"))
        before = source.status()
        with vecstore.open(str(tmp_path / "clone"), create=False) as clone:
            points = clone.collection("docs")
            points.delete(filter={"n": 3})
            points.upsert([1], np.zeros((1, 8)) + 5, [{"n": 99}])
            points.optimize()
            source.collection("docs").delete(filter={"n": 4})
            source.collection("docs").optimize()
            assert points.count() == 5_400
        with vecstore.open(str(tmp_path / "clone"), create=False) as clone:
            assert clone.verify()["ok"]
            assert clone.collection("docs").count(filter={"n": 4}) == 600
        after = source.status()
        assert source.verify()["ok"]
        assert source.collection("docs").count(filter={"n": 3}) == 600
        assert (after["slots"], after["epoch"]) == (before["slots"], before["epoch"])
