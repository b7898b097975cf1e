"""The async twins: the same names and arguments as the sync interface, with `await`.

`open` runs the engine's calls in threads, so that the event loop is never held up; a cancelled call goes on to its
end in its thread, and what became of a write is then found out with `Database.wait`. `connect` speaks with servers on
the event loop itself, without threads.

>>> async with vecstore.aio.open("my-store") as db:
...     docs = await db.collection("docs")
...     hits = await docs.search(query, k=10)

``async with vecstore.aio.open(...)`` and ``await vecstore.aio.open(...)`` both work, and so with `connect`.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import numpy.typing as npt

from . import api
from . import open as open_sync
from .values import (
    TLS,
    Ack,
    ArrowStream,
    FieldType,
    Filter,
    Hits,
    Id,
    Ids,
    Metric,
    Payload,
    Point,
    SearchBatch,
    Snapshot,
    Written,
)

if TYPE_CHECKING:
    import pyarrow as pa

    from .client.asynchronous import AsyncRemoteCollection, AsyncRemoteDatabase

__all__ = ["Collection", "Database", "connect", "open"]

_T = TypeVar("_T")
_SCAN_POINTS = 256


async def _run(call: Callable[..., _T], *args: Any, **kwargs: Any) -> _T:
    """Make a call: a server's on this loop, the engine's in a thread."""
    if inspect.iscoroutinefunction(call):
        return await cast("Callable[..., Awaitable[_T]]", call)(*args, **kwargs)
    return await asyncio.to_thread(call, *args, **kwargs)


class Collection:
    """The async twin of `vecstore.Collection`.

    Parameters
    ----------
    collection
        The collection that does the work: an embedded one, in threads, or a server's, on the event loop.
    """

    def __init__(self, collection: api.Collection | AsyncRemoteCollection) -> None:
        # What follows calls either by the same names; `_run` tells them apart.
        self._inner = cast("api.Collection", collection)
        self._remote = None if isinstance(collection, api.Collection) else collection

    async def refresh(self) -> None:
        """Ask a server what the collection is now.

        What `name`, `fields` and `id_kind` tell of a server's collection is what was last heard, because a property
        cannot wait; of an embedded one it is always what is.
        """
        if self._remote is not None:
            await self._remote.refresh()

    @property
    def name(self) -> str:
        """The collection's name now."""
        return self._inner.name

    @property
    def number(self) -> int:
        """The collection's number: it keeps it through renames."""
        return self._inner.number

    @property
    def id_kind(self) -> Literal["int", "str", ""]:
        """The kind of the ids, "" as long as nothing was written."""
        return self._inner.id_kind

    @property
    def dim(self) -> int:
        """Length of every vector."""
        return self._inner.dim

    @property
    def metric(self) -> Metric:
        """How nearness is measured."""
        return self._inner.metric

    @property
    def fields(self) -> dict[str, FieldType]:
        """The declared fields with their types."""
        return self._inner.fields

    @property
    def metadata(self) -> dict[str, Any]:
        """What the creator said of the collection."""
        return self._inner.metadata

    async def upsert(
        self,
        ids: Ids,
        vectors: npt.ArrayLike,
        payloads: Sequence[Payload] | pa.Table | None = None,
        *,
        ack: Ack = "durable",
        timeout: float | None = None,
    ) -> Written:
        """See `vecstore.Collection.upsert`."""
        return await _run(self._inner.upsert, ids, vectors, payloads, ack=ack, timeout=timeout)

    async def upsert_table(
        self,
        table: ArrowStream,
        *,
        id: str = "id",
        vector: str = "vector",
        ack: Ack = "durable",
        progress: Callable[[int], None] | None = None,
        timeout: float | None = None,
    ) -> Written:
        """See `vecstore.Collection.upsert_table`. `progress` is called in another thread."""
        return await _run(
            self._inner.upsert_table, table, id=id, vector=vector, ack=ack, progress=progress, timeout=timeout
        )

    async def update(
        self,
        ids: Ids,
        *,
        vectors: npt.ArrayLike | None = None,
        payloads: Sequence[Payload] | None = None,
        ack: Ack = "durable",
        timeout: float | None = None,
    ) -> Written:
        """See `vecstore.Collection.update`."""
        return await _run(self._inner.update, ids, vectors=vectors, payloads=payloads, ack=ack, timeout=timeout)

    async def delete(
        self,
        *,
        ids: Ids | None = None,
        filter: Filter | None = None,
        ack: Ack = "durable",
        timeout: float | None = None,
    ) -> Written:
        """See `vecstore.Collection.delete`."""
        return await _run(self._inner.delete, ids=ids, filter=filter, ack=ack, timeout=timeout)

    async def search(
        self,
        vector: npt.ArrayLike,
        k: int = 10,
        *,
        filter: Filter | None = None,
        recall: float | None = None,
        exact: bool = False,
        effort: int | None = None,
        offset: int = 0,
        score_threshold: float | None = None,
        with_payload: bool | Sequence[str] = True,
        with_vector: bool = False,
        after: str | Written | None = None,
        timeout: float | None = None,
    ) -> Hits:
        """See `vecstore.Collection.search`."""
        return await _run(
            self._inner.search,
            vector,
            k,
            filter=filter,
            recall=recall,
            exact=exact,
            effort=effort,
            offset=offset,
            score_threshold=score_threshold,
            with_payload=with_payload,
            with_vector=with_vector,
            after=after,
            timeout=timeout,
        )

    async def search_batch(
        self,
        vectors: npt.ArrayLike,
        k: int = 10,
        *,
        filter: Filter | None = None,
        recall: float | None = None,
        exact: bool = False,
        effort: int | None = None,
        with_payload: bool | Sequence[str] = False,
        after: str | Written | None = None,
        timeout: float | None = None,
    ) -> SearchBatch:
        """See `vecstore.Collection.search_batch`."""
        return await _run(
            self._inner.search_batch,
            vectors,
            k,
            filter=filter,
            recall=recall,
            exact=exact,
            effort=effort,
            with_payload=with_payload,
            after=after,
            timeout=timeout,
        )

    async def get(
        self,
        ids: Ids,
        *,
        with_payload: bool | Sequence[str] = True,
        with_vector: bool = False,
        after: str | Written | None = None,
        timeout: float | None = None,
    ) -> list[Point]:
        """See `vecstore.Collection.get`."""
        return await _run(
            self._inner.get, ids, with_payload=with_payload, with_vector=with_vector, after=after, timeout=timeout
        )

    async def scan(
        self,
        filter: Filter | None = None,
        *,
        start: Id | None = None,
        limit: int | None = None,
        with_payload: bool | Sequence[str] = True,
        with_vector: bool = False,
        after: str | Written | None = None,
    ) -> AsyncIterator[Point]:
        """See `vecstore.Collection.scan`: an async iterator."""
        if self._remote is not None:
            found = self._remote.scan(
                filter, start=start, limit=limit, with_payload=with_payload, with_vector=with_vector, after=after
            )
            async with contextlib.aclosing(found):
                async for point in found:
                    yield point
            return

        def begin() -> Iterator[Point]:
            return self._inner.scan(
                filter, start=start, limit=limit, with_payload=with_payload, with_vector=with_vector, after=after
            )

        points = await _run(begin)
        while taken := await _run(lambda: list(islice(points, _SCAN_POINTS))):
            for point in taken:
                yield point

    async def to_arrow(self, filter: Filter | None = None, *, with_vector: bool = True) -> pa.RecordBatchReader:
        """See `vecstore.Collection.to_arrow`. The reader itself is sync."""
        return await _run(self._inner.to_arrow, filter, with_vector=with_vector)

    async def count(
        self, filter: Filter | None = None, *, after: str | Written | None = None, timeout: float | None = None
    ) -> int:
        """See `vecstore.Collection.count`."""
        return await _run(self._inner.count, filter, after=after, timeout=timeout)

    async def add_field(self, name: str, type: FieldType) -> None:
        """See `vecstore.Collection.add_field`."""
        await _run(self._inner.add_field, name, type)

    async def optimize(
        self, *, progress: Callable[[int, int], None] | None = None, timeout: float | None = None
    ) -> None:
        """See `vecstore.Collection.optimize`. `progress` is called in another thread."""
        await _run(self._inner.optimize, progress=progress, timeout=timeout)


class Database:
    """The async twin of `vecstore.Database`.

    Parameters
    ----------
    database
        The database that does the work: an embedded one, in threads, or a server's, on the event loop.
    """

    def __init__(self, database: api.Database | AsyncRemoteDatabase) -> None:
        self._inner = cast("api.Database", database)

    async def __aenter__(self) -> Database:
        return self

    async def __aexit__(self, *args: object) -> None:
        await self.close()

    async def close(self) -> None:
        """See `vecstore.Database.close`."""
        await _run(self._inner.close)

    async def create_collection(
        self,
        name: str,
        dim: int,
        *,
        metric: Metric = "cosine",
        fields: Mapping[str, FieldType] | Literal["infer"] = {},
        index: str = "auto",
        shards: int = 1,
        metadata: Payload | None = None,
        exist_ok: bool = False,
    ) -> Collection:
        """See `vecstore.Database.create_collection`."""
        made = await _run(
            self._inner.create_collection,
            name,
            dim,
            metric=metric,
            fields=fields,
            index=index,
            shards=shards,
            metadata=metadata,
            exist_ok=exist_ok,
        )
        return Collection(made)

    async def collection(self, name: str) -> Collection:
        """See `vecstore.Database.collection`."""
        return Collection(await _run(self._inner.collection, name))

    async def collections(self) -> list[str]:
        """See `vecstore.Database.collections`."""
        return await _run(self._inner.collections)

    async def rename_collection(self, name: str, to: str, *, replace: bool = False) -> None:
        """See `vecstore.Database.rename_collection`."""
        await _run(self._inner.rename_collection, name, to, replace=replace)

    async def drop_collection(self, name: str, *, missing_ok: bool = False) -> None:
        """See `vecstore.Database.drop_collection`."""
        await _run(self._inner.drop_collection, name, missing_ok=missing_ok)

    async def wait(self, token: str, *, ack: Ack = "durable", timeout: float | None = None) -> Written:
        """See `vecstore.Database.wait`."""
        return await _run(self._inner.wait, token, ack=ack, timeout=timeout)

    async def status(self) -> dict[str, Any]:
        """See `vecstore.Database.status`."""
        return await _run(self._inner.status)

    async def position(self) -> tuple[int, int]:
        """See `vecstore.Database.position`."""
        return await _run(self._inner.position)

    async def verify(self, *, progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
        """See `vecstore.Database.verify`. `progress` is called in another thread."""
        return await _run(self._inner.verify, progress=progress)

    async def snapshot(self, repository: str) -> Snapshot:
        """See `vecstore.Database.snapshot`."""
        return await _run(self._inner.snapshot, repository)


class _Opening:
    """A store about to be opened: awaited, or entered as an async context manager."""

    def __init__(self, start: Callable[[], Any]) -> None:
        self._start = start
        self._database: Database | None = None

    def __await__(self) -> Generator[Any, None, Database]:
        return self._open().__await__()

    async def _open(self) -> Database:
        self._database = Database(await _run(self._start))
        return self._database

    async def __aenter__(self) -> Database:
        return await self._open()

    async def __aexit__(self, *args: object) -> None:
        if self._database is not None:
            await self._database.close()


def open(
    path: str,
    *,
    create: bool = True,
    read_only: bool = False,
    archive: str | None = None,
    device: Literal["auto", "cpu", "gpu"] = "auto",
    config: Mapping[str, Any] | None = None,
) -> _Opening:
    """Open a store in this process, or make it; see `vecstore.open`. The engine's calls run in threads."""
    return _Opening(
        lambda: open_sync(path, create=create, read_only=read_only, archive=archive, device=device, config=config)
    )


def connect(
    endpoints: str | Sequence[str],
    *,
    token: str | None = None,
    tls: bool | TLS = False,
    read_from: Literal["primary", "standby", "any"] = "primary",
    timeout: float = 10.0,
) -> _Opening:
    """Connect to a store that servers serve; see `vecstore.connect`. The calls run on the event loop."""

    async def start() -> AsyncRemoteDatabase:
        from .client.asynchronous import connect as connect_remote

        return await connect_remote(endpoints, token=token, tls=tls, read_from=read_from, timeout=timeout)

    return _Opening(start)
