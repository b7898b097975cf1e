"""The async client of a server: what `remote` is, on an event loop of its caller's, without threads.

The public classes are `vecstore.aio.Database` and `vecstore.aio.Collection`, which stand before these. Where a sync
client would ask the server for a property, as for the name of a handle, this one tells what was last heard; `refresh`
asks. Made, used and closed on one event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy.typing as npt

from .. import inputs
from ..errors import NotFound
from ..values import (
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
from ..wire.v1 import store_pb2 as pb
from . import replies, requests
from .async_connection import AsyncConnection, load
from .call import SETTLE_POLL_S
from .endpoint import access_of
from .load import Window
from .remote import RemoteCollection, session_of
from .requests import Shape

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["AsyncRemoteCollection", "AsyncRemoteDatabase", "connect"]


async def connect(
    endpoints: str | Sequence[str],
    *,
    token: str | None = None,
    tls: bool | TLS = False,
    read_from: Literal["primary", "standby", "any"] = "primary",
    timeout: float = 10.0,
) -> AsyncRemoteDatabase:
    """Connect to servers, and ask one that suits who it is; see `vecstore.connect`."""
    session = session_of(endpoints, read_from, timeout)
    connection = AsyncConnection(session, access_of([peer.address for peer in session.peers], token, tls))
    try:
        await connection.greet()
    except BaseException:
        await connection.close()
        raise
    return AsyncRemoteDatabase(connection)


class AsyncRemoteCollection:
    """A handle on one collection of a server.

    Parameters
    ----------
    connection
        Of the database that it came from: closed with it.
    described
        What the server said of it.
    """

    def __init__(self, connection: AsyncConnection, described: pb.Collection) -> None:
        self._connection = connection
        self._shape = Shape.of(described)
        self._described = described

    def __repr__(self) -> str:
        return f"<Collection {self._described.name!r} of {self._connection.where}>"

    # -- what it is --------------------------------------------------------------------------------------------------

    async def refresh(self) -> None:
        """Ask the server what the collection is now."""
        reply = await self._connection.read(
            "GetCollection", lambda after: pb.GetCollectionRequest(number=self.number, after=after)
        )
        self._described = reply.collection

    @property
    def number(self) -> int:
        """The collection's number."""
        return self._shape.number

    @property
    def id_kind(self) -> Literal["int", "str", ""]:
        """The kind of the ids last heard."""
        return cast('Literal["int", "str", ""]', self._described.id_kind)

    @property
    def name(self) -> str:
        """The name last heard."""
        return self._described.name

    @property
    def dim(self) -> int:
        """Length of every vector."""
        return self._shape.dim

    @property
    def metric(self) -> Metric:
        """How nearness is measured."""
        return self._shape.metric

    @property
    def fields(self) -> dict[str, FieldType]:
        """The declared fields last heard, with their types."""
        return cast("dict[str, FieldType]", dict(self._described.fields))

    @property
    def metadata(self) -> dict[str, Any]:
        """What the creator said of the collection."""
        return replies.tree_of(self._described.metadata)

    # -- writing -----------------------------------------------------------------------------------------------------

    async def _write(self, name: str, make: Callable[[bytes], Any], timeout: float | None) -> Written:
        reply = await self._connection.write(name, make, timeout)
        self._connection.session.saw(reply.token)
        return replies.written_of(reply)

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
        return await self._write(
            "Upsert", lambda id: requests.upsert(self._shape, id, ids, vectors, payloads, ack), timeout
        )

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
        """See `vecstore.Collection.upsert_table`. The table is read in another thread: its source may block."""
        self._connection.check_open()
        session = self._connection.session
        deadline_s = None if timeout is None else session.deadline_s(timeout, time.monotonic())
        number = requests.new_id()
        window = Window(requests.records(self._shape, number, table, id, vector, inputs.checked_ack(ack)))
        await load(self._connection, window, number, deadline_s, progress)
        return window.result() or await self.upsert([], [], ack=ack, timeout=timeout)

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
        return await self._write(
            "Update", lambda id: requests.update(self._shape, id, ids, vectors, payloads, ack), timeout
        )

    async def delete(
        self,
        *,
        ids: Ids | None = None,
        filter: Filter | None = None,
        ack: Ack = "durable",
        timeout: float | None = None,
    ) -> Written:
        """See `vecstore.Collection.delete`."""
        return await self._write("Delete", lambda id: requests.delete(self._shape, id, ids, filter, ack), timeout)

    async def add_field(self, name: str, type: FieldType) -> None:
        """See `vecstore.Collection.add_field`."""
        await self._connection.write("AddField", lambda id: requests.add_field(self._shape, id, name, type))

    async def optimize(
        self, *, progress: Callable[[int, int], None] | None = None, timeout: float | None = None
    ) -> None:
        """See `vecstore.Collection.optimize`."""
        connection = self._connection
        connection.check_open()
        deadline_s = None if timeout is None else connection.session.deadline_s(timeout, time.monotonic())
        message = pb.OptimizeRequest(collection=self.number)
        async for reply in connection.messages("Optimize", message, deadline_s, primary=True):
            if progress is not None:
                progress(reply.done, reply.total)

    # -- reading -----------------------------------------------------------------------------------------------------

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
        part = inputs.checked_keys(with_payload)

        def make(token: str) -> pb.SearchRequest:
            return requests.search(
                self._shape,
                vector,
                k,
                filter=filter,
                recall=recall,
                exact=exact,
                effort=effort,
                offset=offset,
                score_threshold=score_threshold,
                part=part,
                with_vector=with_vector,
                after=token,
            )

        return replies.hits_of(await self._connection.read("Search", make, after, timeout), part, with_vector)

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
        part = inputs.checked_keys(with_payload)

        def make(token: str) -> pb.SearchBatchRequest:
            return requests.batch(
                self._shape,
                vectors,
                k,
                filter=filter,
                recall=recall,
                exact=exact,
                effort=effort,
                part=part,
                after=token,
            )

        reply = await self._connection.read("SearchBatch", make, after, timeout)
        if replies.is_bare(reply) and not self._described.id_kind:
            # Where there is no hit at all, the answer does not say of which kind the ids would be.
            await self.refresh()
        return replies.batch_of(reply, int(k), part, strings=self._described.id_kind == "str")

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
        part = inputs.checked_keys(with_payload)

        def make(token: str) -> pb.GetRequest:
            return requests.get(self._shape, ids, part, with_vector, token)

        return list(replies.points_of(await self._connection.read("Get", make, after, timeout), part, with_vector))

    async def scan(
        self,
        filter: Filter | None = None,
        *,
        start: Id | None = None,
        limit: int | None = None,
        with_payload: bool | Sequence[str] = True,
        with_vector: bool = False,
        after: str | Written | None = None,
    ) -> AsyncGenerator[Point]:
        """See `vecstore.Collection.scan`: an async iterator, whose view is that of its first point."""
        connection = self._connection
        part = inputs.checked_keys(with_payload)

        def make(token: str) -> pb.ScanRequest:
            return requests.scan(self._shape, filter, start, limit, part, with_vector, token)

        stream, reply = await connection.begin("Scan", make, after)
        try:
            while reply is not None:
                for point in replies.points_of(reply, part, with_vector):
                    connection.check_open()
                    yield point
                reply = await connection.next_of(stream)
        finally:
            stream.cancel()

    async def to_arrow(self, filter: Filter | None = None, *, with_vector: bool = True) -> pa.RecordBatchReader:
        """See `vecstore.Collection.to_arrow`.

        The reader is sync, so it has a sync connection of its own, which goes with this one.
        """
        await self.refresh()
        described = self._described

        def begin() -> pa.RecordBatchReader:
            return RemoteCollection(self._connection.sync(), described).to_arrow(filter, with_vector=with_vector)

        return await asyncio.to_thread(begin)

    async def count(
        self, filter: Filter | None = None, *, after: str | Written | None = None, timeout: float | None = None
    ) -> int:
        """See `vecstore.Collection.count`."""
        reply = await self._connection.read(
            "Count", lambda token: requests.count(self._shape, filter, token), after, timeout
        )
        count: int = reply.count
        return count


class AsyncRemoteDatabase:
    """A client of one store, served by one or more servers.

    Parameters
    ----------
    connection
        The channels, closed with it.
    """

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    def __repr__(self) -> str:
        return f"<Database {self._connection.where}>"

    async def close(self) -> None:
        """Cut off the calls that are under way and let the connections go. Closing twice is harmless."""
        await self._connection.close()

    # -- collections -------------------------------------------------------------------------------------------------

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
    ) -> AsyncRemoteCollection:
        """See `vecstore.Database.create_collection`."""

        def make(id: bytes) -> pb.CreateCollectionRequest:
            return requests.create(
                id,
                name,
                dim,
                metric=metric,
                fields=fields,
                index=index,
                shards=shards,
                metadata=metadata,
                exist_ok=exist_ok,
            )

        reply = await self._connection.write("CreateCollection", make)
        return AsyncRemoteCollection(self._connection, reply.collection)

    async def collection(self, name: str) -> AsyncRemoteCollection:
        """See `vecstore.Database.collection`."""
        reply = await self._connection.read("GetCollection", lambda after: requests.by_name(name, after))
        return AsyncRemoteCollection(self._connection, reply.collection)

    async def collections(self) -> list[str]:
        """See `vecstore.Database.collections`."""
        reply = await self._connection.read("ListCollections", lambda after: pb.ListCollectionsRequest(after=after))
        return list(reply.names)

    async def rename_collection(self, name: str, to: str, *, replace: bool = False) -> None:
        """See `vecstore.Database.rename_collection`."""
        await self._connection.write("RenameCollection", lambda id: requests.rename(id, name, to, replace))

    async def drop_collection(self, name: str, *, missing_ok: bool = False) -> None:
        """See `vecstore.Database.drop_collection`."""
        await self._connection.write("DropCollection", lambda id: requests.drop(id, name, missing_ok))

    # -- the store ---------------------------------------------------------------------------------------------------

    async def wait(self, token: str, *, ack: Ack = "durable", timeout: float | None = None) -> Written:
        """See `vecstore.Database.wait`."""
        session = self._connection.session
        message = requests.wait(token, ack)
        deadline_s = session.deadline_s(timeout, time.monotonic())
        while True:
            self._connection.check_open()
            settles_in_s = session.settles_in_s(token, time.monotonic())
            call = session.read(deadline_s, primary=True)
            try:
                return replies.written_of(await self._connection.run("Wait", message, call))
            except NotFound:
                # A write that may still be started has not been refused yet.
                if not settles_in_s:
                    raise
                await self._connection.wait(min(settles_in_s, SETTLE_POLL_S), call)

    async def status(self) -> dict[str, Any]:
        """See `vecstore.Database.status`."""
        reply = await self._connection.read("Status", lambda _: pb.StatusRequest())
        return replies.tree_of(reply.status)

    async def position(self) -> tuple[int, int]:
        """See `vecstore.Database.position`."""
        reply = await self._connection.read("Describe", lambda _: pb.DescribeRequest())
        return reply.epoch, reply.lsn

    async def verify(self, *, progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
        """See `vecstore.Database.verify`."""
        self._connection.check_open()
        report: dict[str, Any] = {}
        async for reply in self._connection.messages("Verify", pb.VerifyRequest(), None, primary=False):
            report = replies.tree_of(reply.report)
            if progress is not None:
                progress(reply.done, reply.total)
        return report

    async def snapshot(self, repository: str) -> Snapshot:
        """See `vecstore.Database.snapshot`."""
        self._connection.check_open()
        message = pb.SnapshotRequest(repository=repository)
        replies_made = self._connection.messages("Snapshot", message, None, primary=True)
        made = [reply async for reply in replies_made if reply.id]
        return replies.snapshot_of(made[-1])
