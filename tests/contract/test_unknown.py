"""A write of unknown outcome is settled in one way, whatever the implementation: `wait` takes ``details["token"]``.

The store holds its answers back behind the sync, where it tells that records are durable: so the write is done, and its
caller's time is over before it hears of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vecstore
from tests.support.server import serving
from vecstore import Database, DeadlineExceeded, NotFound
from vecstore.engine.database import EmbeddedDatabase

ONE = np.ones((1, 4), np.float32)
TIMEOUT_S = 0.5


class Held:
    """A store whose answers may be held back.

    Attributes
    ----------
    reached
        Set when a group was synced while they are.
    """

    def __init__(self, engine: Any, database: Database) -> None:
        self.database, self._committer = database, engine.committer
        self.reached, self._go = threading.Event(), threading.Event()

    @contextlib.contextmanager
    def holding(self) -> Iterator[None]:
        """Let no write be answered meanwhile."""

        def hold() -> None:
            self.reached.set()
            self._go.wait(30)

        before, self._committer.on_durable = self._committer.on_durable, hold
        try:
            yield
        finally:
            self._go.set()
            self._committer.run(lambda: None)
            self._committer.on_durable = before


@pytest.fixture(params=["embedded", "remote"])
def held(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Held]:
    """Return a store with a collection, embedded and by a client."""
    with vecstore.open(str(tmp_path / "store")) as database:
        assert isinstance(database, EmbeddedDatabase)
        database.create_collection("docs", 4)
        if request.param == "embedded":
            yield Held(database.engine, database)
            return
        with serving(database) as address, vecstore.connect(address) as client:
            client.collection("docs")
            yield Held(database.engine, client)


def unknown(call: Callable[[], object]) -> str:
    """Make a write that is not answered in time; return what it is asked about by."""
    with pytest.raises(DeadlineExceeded) as caught:
        call()
    error = caught.value
    assert error.outcome == "unknown" and "details['token']" in error.hint
    token: str = error.details["token"]
    assert token and (error.details.get("request_id") or token) == token, "the older way names the same"
    return token


def test_a_write_of_unknown_outcome_is_settled_by_its_token(held: Held) -> None:
    """It was done: `wait` says so, once it is, and the point is there."""
    docs = held.database.collection("docs")
    with held.holding():
        token = unknown(lambda: docs.upsert(1, ONE, timeout=TIMEOUT_S))
        assert held.reached.wait(30)
    assert held.database.wait(token, timeout=30).ack == "durable"
    assert docs.count() == 1


def test_a_write_that_never_began_is_no_riddle(held: Held) -> None:
    """One that waited behind it has changed nothing: it is refused, or `wait` tells that it did not take effect."""
    docs = held.database.collection("docs")
    with held.holding():
        first = threading.Thread(target=lambda: unknown(lambda: docs.upsert(1, ONE, timeout=TIMEOUT_S)))
        first.start()
        assert held.reached.wait(30)
        with pytest.raises(DeadlineExceeded) as caught:
            docs.upsert(2, ONE, timeout=TIMEOUT_S)
        first.join(30)
    if caught.value.outcome == "unknown":
        with pytest.raises(NotFound):
            held.database.wait(caught.value.details["token"], timeout=30)
    assert docs.get([2]) == []


def test_the_async_client_names_it_alike(tmp_path: Path) -> None:
    """So that one function settles writes of both."""

    async def settled(address: str, held: Held) -> int:
        async with vecstore.aio.connect(address) as client:
            docs = await client.collection("docs")
            with pytest.raises(DeadlineExceeded) as caught:
                await docs.upsert(1, ONE, timeout=TIMEOUT_S)
            held._go.set()
            return (await client.wait(caught.value.details["token"], timeout=30)).count

    with vecstore.open(str(tmp_path / "store")) as database, serving(database) as address:
        assert isinstance(database, EmbeddedDatabase)
        database.create_collection("docs", 4)
        held = Held(database.engine, database)
        with held.holding():
            assert asyncio.run(settled(address, held)) == 1
