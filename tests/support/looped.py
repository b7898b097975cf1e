"""The async twins behind the sync interface: a loop in a thread of its own, so that one suite tests both."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import vecstore.aio
from vecstore import Collection, Database, Point

__all__ = ["LoopedDatabase"]


class _Loop:
    """An event loop in a thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="looped", daemon=True)
        self._thread.start()

    def run(self, coroutine: Any) -> Any:
        """Run a coroutine to its end and return what it returns."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def stop(self) -> None:
        """Let the thread go."""
        self.run(self._loop.shutdown_asyncgens())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def _calling(name: str) -> Any:
    """Return a method that calls the twin's method of this name."""

    def call(self: Any, *args: Any, **keywords: Any) -> Any:
        return self._loop.run(getattr(self._twin, name)(*args, **keywords))

    return call


def _heard(name: str) -> Any:
    """Return a property of the twin's, asked for first."""

    def heard(self: Any) -> Any:
        self._loop.run(self._twin.refresh())
        return getattr(self._twin, name)

    return property(heard)


class _Points(Iterator[Point]):
    """The points of an async scan; the first is taken at once, so that the view is that of the call."""

    def __init__(self, loop: _Loop, points: Any) -> None:
        self._loop, self._points = loop, points
        self._first: list[Any] = [self._take()]

    def _take(self) -> Any:
        return self._loop.run(anext(self._points, None))

    def __next__(self) -> Point:
        point = self._first.pop() if self._first else self._take()
        if point is None:
            raise StopIteration
        found: Point = point
        return found


class LoopedCollection(Collection):
    """An async collection, called from a sync program."""

    def __init__(self, loop: _Loop, twin: vecstore.aio.Collection) -> None:
        self._loop, self._twin = loop, twin

    name = _heard("name")
    fields = _heard("fields")
    metadata = _heard("metadata")
    id_kind = _heard("id_kind")
    dim = property(lambda self: self._twin.dim)
    metric = property(lambda self: self._twin.metric)
    number = property(lambda self: self._twin.number)
    upsert = _calling("upsert")
    upsert_table = _calling("upsert_table")
    update = _calling("update")
    delete = _calling("delete")
    search = _calling("search")
    search_batch = _calling("search_batch")
    get = _calling("get")
    to_arrow = _calling("to_arrow")
    count = _calling("count")
    add_field = _calling("add_field")
    optimize = _calling("optimize")

    def scan(self, *args: Any, **keywords: Any) -> Iterator[Point]:
        return _Points(self._loop, self._twin.scan(*args, **keywords))


def _giving_collection(name: str) -> Any:
    def call(self: Any, *args: Any, **keywords: Any) -> Collection:
        return LoopedCollection(self._loop, self._loop.run(getattr(self._twin, name)(*args, **keywords)))

    return call


class LoopedDatabase(Database):
    """An async database, called from a sync program.

    Parameters
    ----------
    address
        HOST:PORT of a server.
    """

    def __init__(self, address: str) -> None:
        self._loop = _Loop()

        async def begin() -> vecstore.aio.Database:
            return await vecstore.aio.connect(address)

        self._twin = self._loop.run(begin())

    def stop(self) -> None:
        """Close, and let the loop go."""
        self.close()
        self._loop.stop()

    create_collection = _giving_collection("create_collection")
    collection = _giving_collection("collection")
    close = _calling("close")
    collections = _calling("collections")
    rename_collection = _calling("rename_collection")
    drop_collection = _calling("drop_collection")
    wait = _calling("wait")
    status = _calling("status")
    verify = _calling("verify")
    position = _calling("position")
