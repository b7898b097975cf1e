"""The async twins: the same names, the same answers."""

from __future__ import annotations

import asyncio
import inspect
from pathlib import Path

import numpy as np
import pytest

import vecstore
import vecstore.aio
from vecstore import Closed, InvalidArgument


def test_round_trip(tmp_path: Path) -> None:
    """Every kind of call works with `async`: create, write, search, scan, status, close."""

    async def scenario() -> None:
        async with vecstore.aio.open(str(tmp_path / "store")) as database:
            docs = await database.create_collection("docs", 2, metric="l2", fields={"n": "int64"})
            assert (docs.name, docs.dim, docs.metric, docs.fields) == ("docs", 2, "l2", {"n": "int64"})
            written = await docs.upsert([1, 2, 3], [[1, 0], [0, 1], [1, 1]], [{"n": 1}, {"n": 2}, {"n": 3}])
            assert written.count == 3
            hits = await docs.search([1, 0], 2, after=written, filter={"n": {"$lt": 3}})
            assert [hit.id for hit in hits] == [1, 2]
            assert (await docs.search_batch([[1, 0]], 1)).ids.tolist() == [[1]]
            assert [point.id async for point in docs.scan(start=2)] == [2, 3]
            assert (await docs.get([3]))[0].payload == {"n": 3}
            assert (await docs.update(3, payloads=[{"n": 4}])).count == 1
            assert await docs.count({"n": 4}) == 1
            assert (await docs.delete(ids=[1])).count == 1
            await docs.add_field("m", "bool")
            await docs.optimize()
            await database.rename_collection("docs", "papers")
            assert await database.collections() == ["papers"]
            assert (await (await database.collection("papers")).count()) == 2
            assert (await database.status())["collections"]["papers"]["count"] == 2
            assert (await database.verify())["ok"] is True
            assert (await database.wait(written.token)).lsn == written.lsn
            await database.drop_collection("papers")
        with pytest.raises(Closed):
            await docs.count()

    asyncio.run(scenario())


def test_awaited_open_and_errors(tmp_path: Path) -> None:
    """`await open()` gives the database too, and errors are the engine's."""

    async def scenario() -> None:
        database = await vecstore.aio.open(str(tmp_path / "store"))
        docs = await database.create_collection("docs", 2)
        with pytest.raises(InvalidArgument, match="zero"):
            await docs.upsert(1, [0, 0])
        await database.close()

    asyncio.run(scenario())


def test_calls_run_beside_each_other(tmp_path: Path) -> None:
    """Many calls at once are each answered with their own result, and the loop goes on meanwhile."""

    async def scenario() -> None:
        async with vecstore.aio.open(str(tmp_path / "store")) as database:
            docs = await database.create_collection("docs", 4, metric="l2")
            rows = np.arange(400, dtype=np.float32).reshape(100, 4)
            written = await asyncio.gather(*(docs.upsert(i, row) for i, row in enumerate(rows)))
            lsn = (await database.status())["lsn"]
            assert sorted(one.lsn for one in written) == list(range(lsn - 99, lsn + 1))
            found = await asyncio.gather(*(docs.search(row, 1) for row in rows))
            assert [hits[0].id for hits in found] == list(range(100))

    asyncio.run(scenario())


def test_twins_have_the_same_signatures(tmp_path: Path) -> None:
    """Every public method of `Database` and `Collection` has a twin with the same parameters."""
    for plain, twin in ((vecstore.Database, vecstore.aio.Database), (vecstore.Collection, vecstore.aio.Collection)):
        for name, member in inspect.getmembers(plain, inspect.isfunction):
            if name.startswith("_"):
                continue
            parameters = list(inspect.signature(member).parameters)
            assert list(inspect.signature(getattr(twin, name)).parameters) == parameters, name
