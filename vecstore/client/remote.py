"""The client of a server: `Database` and `Collection` over gRPC, with the engine's checks, answers and errors.

Nothing is kept here that a server could change: a handle holds the collection's number, dimension and metric, which
never do. Thread-safe. What the calls mean stands in `vecstore.api`; what is different from an embedded store in
docs/guide.md.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy.typing as npt

from .. import inputs
from .. import table as tables
from ..api import Collection, Database
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
from .call import SETTLE_POLL_S, Session, checked_default_timeout, checked_read_from
from .connection import Connection
from .endpoint import access_of, endpoints_of
from .load import Window
from .loading import load
from .requests import Part, Shape

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["PointStream", "RemoteCollection", "RemoteDatabase", "connect", "session_of"]


def session_of(endpoints: Any, read_from: Any, timeout: Any) -> Session:
    """Return what a new client knows: where its servers are."""
    return Session(
        endpoints_of(endpoints), read_from=checked_read_from(read_from), timeout_s=checked_default_timeout(timeout)
    )


def connect(
    endpoints: str | Sequence[str],
    *,
    token: str | None = None,
    tls: bool | TLS = False,
    read_from: Literal["primary", "standby", "any"] = "primary",
    timeout: float = 10.0,
) -> RemoteDatabase:
    """Connect to servers, and ask one that suits who it is; see `vecstore.connect`."""
    session = session_of(endpoints, read_from, timeout)
    connection = Connection(session, access_of([peer.address for peer in session.peers], token, tls))
    try:
        connection.greet()
    except BaseException:
        connection.close()
        raise
    return RemoteDatabase(connection)


class PointStream(Iterator[Point]):
    """The points of a scan, taken from the server as they are taken from here; cancelled when closed or forgotten."""

    def __init__(self, connection: Connection, stream: Any, first: Any, part: Part, with_vector: bool) -> None:
        self._connection, self._stream, self._part, self._with_vector = connection, stream, part, with_vector
        self._points: Iterator[Point] = iter(())
        self._next = first
        self._lock = threading.Lock()

    def __next__(self) -> Point:
        with self._lock:
            while True:
                self._connection.check_open()
                point = next(self._points, None)
                if point is not None:
                    return point
                reply, self._next = self._next, None
                if reply is None and self._stream is not None:
                    reply = self._connection.next_of(self._stream)
                if reply is None:
                    self._stream = None
                    raise StopIteration
                self._points = replies.points_of(reply, self._part, self._with_vector)

    def close(self) -> None:
        """Let the server go on with something else."""
        stream, self._stream = self._stream, None
        self._next, self._points = None, iter(())
        if stream is not None and not self._connection.is_foreign:
            stream.cancel()

    def __del__(self) -> None:
        self.close()


class RemoteCollection(Collection):
    """A handle on one collection of a server. Thread-safe.

    Parameters
    ----------
    connection
        Of the database that it came from: closed with it.
    described
        What the server said of it.
    """

    def __init__(self, connection: Connection, described: pb.Collection) -> None:
        self._connection = connection
        self._shape = Shape.of(described)
        self._last_name = described.name
        self._id_kind = described.id_kind

    def __repr__(self) -> str:
        return f"<Collection {self._last_name!r} of {self._connection.where}>"

    # -- what it is --------------------------------------------------------------------------------------------------

    def _now(self) -> pb.Collection:
        """Ask the server what the collection is now."""
        reply = self._connection.read(
            "GetCollection", lambda after: pb.GetCollectionRequest(number=self.number, after=after)
        )
        found: pb.Collection = reply.collection
        self._last_name, self._id_kind = found.name, found.id_kind or self._id_kind
        return found

    @property
    def number(self) -> int:
        return self._shape.number

    @property
    def id_kind(self) -> Literal["int", "str", ""]:
        # The first write fixes it for good.
        return cast('Literal["int", "str", ""]', self._id_kind or self._now().id_kind)

    @property
    def name(self) -> str:
        return self._now().name

    @property
    def dim(self) -> int:
        return self._shape.dim

    @property
    def metric(self) -> Metric:
        return self._shape.metric

    @property
    def fields(self) -> dict[str, FieldType]:
        return cast("dict[str, FieldType]", dict(self._now().fields))

    @property
    def metadata(self) -> dict[str, Any]:
        return replies.tree_of(self._now().metadata)

    # -- writing -----------------------------------------------------------------------------------------------------

    def _write(self, name: str, make: Callable[[bytes], Any], timeout: float | None) -> Written:
        reply = self._connection.write(name, make, timeout)
        self._connection.session.saw(reply.token)
        return replies.written_of(reply)

    def upsert(
        self,
        ids: Ids,
        vectors: npt.ArrayLike,
        payloads: Sequence[Payload] | pa.Table | None = None,
        *,
        ack: Ack = "durable",
        timeout: float | None = None,
    ) -> Written:
        return self._write("Upsert", lambda id: requests.upsert(self._shape, id, ids, vectors, payloads, ack), timeout)

    def upsert_table(
        self,
        table: ArrowStream,
        *,
        id: str = "id",
        vector: str = "vector",
        ack: Ack = "durable",
        progress: Callable[[int], None] | None = None,
        timeout: float | None = None,
    ) -> Written:
        self._connection.check_open()
        session = self._connection.session
        deadline_s = None if timeout is None else session.deadline_s(timeout, time.monotonic())
        number = requests.new_id()
        window = Window(requests.records(self._shape, number, table, id, vector, inputs.checked_ack(ack)))
        load(self._connection, window, number, deadline_s, progress)
        # Of a table without rows nothing was written: then there is only the place in the history to tell.
        return window.result() or self.upsert([], [], ack=ack, timeout=timeout)

    def update(
        self,
        ids: Ids,
        *,
        vectors: npt.ArrayLike | None = None,
        payloads: Sequence[Payload] | None = None,
        ack: Ack = "durable",
        timeout: float | None = None,
    ) -> Written:
        return self._write("Update", lambda id: requests.update(self._shape, id, ids, vectors, payloads, ack), timeout)

    def delete(
        self,
        *,
        ids: Ids | None = None,
        filter: Filter | None = None,
        ack: Ack = "durable",
        timeout: float | None = None,
    ) -> Written:
        return self._write("Delete", lambda id: requests.delete(self._shape, id, ids, filter, ack), timeout)

    def add_field(self, name: str, type: FieldType) -> None:
        self._connection.write("AddField", lambda id: requests.add_field(self._shape, id, name, type))

    def optimize(self, *, progress: Callable[[int, int], None] | None = None, timeout: float | None = None) -> None:
        connection = self._connection
        connection.check_open()
        deadline_s = None if timeout is None else connection.session.deadline_s(timeout, time.monotonic())
        message = pb.OptimizeRequest(collection=self.number)
        for reply in connection.messages("Optimize", message, deadline_s, primary=True):
            if progress is not None:
                progress(reply.done, reply.total)

    # -- reading -----------------------------------------------------------------------------------------------------

    def search(
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

        return replies.hits_of(self._connection.read("Search", make, after, timeout), part, with_vector)

    def search_batch(
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

        reply = self._connection.read("SearchBatch", make, after, timeout)
        # Where there is no hit at all, the answer does not say of which kind the ids would be.
        strings = replies.is_bare(reply) and self.id_kind == "str"
        return replies.batch_of(reply, int(k), part, strings=strings)

    def get(
        self,
        ids: Ids,
        *,
        with_payload: bool | Sequence[str] = True,
        with_vector: bool = False,
        after: str | Written | None = None,
        timeout: float | None = None,
    ) -> list[Point]:
        part = inputs.checked_keys(with_payload)

        def make(token: str) -> pb.GetRequest:
            return requests.get(self._shape, ids, part, with_vector, token)

        return list(replies.points_of(self._connection.read("Get", make, after, timeout), part, with_vector))

    def scan(
        self,
        filter: Filter | None = None,
        *,
        start: Id | None = None,
        limit: int | None = None,
        with_payload: bool | Sequence[str] = True,
        with_vector: bool = False,
        after: str | Written | None = None,
    ) -> Iterator[Point]:
        part = inputs.checked_keys(with_payload)

        def make(token: str) -> pb.ScanRequest:
            return requests.scan(self._shape, filter, start, limit, part, with_vector, token)

        stream, first = self._connection.begin("Scan", make, after)
        return PointStream(self._connection, stream, first, part, with_vector)

    def to_arrow(self, filter: Filter | None = None, *, with_vector: bool = True) -> pa.RecordBatchReader:
        now = self._now()
        return tables.to_reader(
            self.scan(filter, with_vector=with_vector),
            dim=self.dim,
            strings=now.id_kind == "str",
            declared=cast("dict[str, FieldType]", dict(now.fields)),
            with_vector=with_vector,
        )

    def count(
        self, filter: Filter | None = None, *, after: str | Written | None = None, timeout: float | None = None
    ) -> int:
        reply = self._connection.read("Count", lambda token: requests.count(self._shape, filter, token), after, timeout)
        count: int = reply.count
        return count


class RemoteDatabase(Database):
    """A client of one store, served by one or more servers. Thread-safe.

    Parameters
    ----------
    connection
        The channels, closed with it.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def __repr__(self) -> str:
        return f"<Database {self._connection.where}>"

    def close(self) -> None:
        """Cut off the calls that are under way and let the connections go. Closing twice is harmless."""
        self._connection.close()

    # -- collections -------------------------------------------------------------------------------------------------

    def create_collection(
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

        return RemoteCollection(self._connection, self._connection.write("CreateCollection", make).collection)

    def collection(self, name: str) -> Collection:
        reply = self._connection.read("GetCollection", lambda after: requests.by_name(name, after))
        return RemoteCollection(self._connection, reply.collection)

    def collections(self) -> list[str]:
        reply = self._connection.read("ListCollections", lambda after: pb.ListCollectionsRequest(after=after))
        return list(reply.names)

    def rename_collection(self, name: str, to: str, *, replace: bool = False) -> None:
        self._connection.write("RenameCollection", lambda id: requests.rename(id, name, to, replace))

    def drop_collection(self, name: str, *, missing_ok: bool = False) -> None:
        self._connection.write("DropCollection", lambda id: requests.drop(id, name, missing_ok))

    # -- the store ---------------------------------------------------------------------------------------------------

    def wait(self, token: str, *, ack: Ack = "durable", timeout: float | None = None) -> Written:
        session = self._connection.session
        message = requests.wait(token, ack)
        deadline_s = session.deadline_s(timeout, time.monotonic())
        while True:
            self._connection.check_open()
            settles_in_s = session.settles_in_s(token, time.monotonic())
            call = session.read(deadline_s, primary=True)
            try:
                return replies.written_of(self._connection.run("Wait", message, call))
            except NotFound:
                # A write that may still be started has not been refused yet.
                if not settles_in_s:
                    raise
                self._connection.wait(min(settles_in_s, SETTLE_POLL_S), call)

    def status(self) -> dict[str, Any]:
        return replies.tree_of(self._connection.read("Status", lambda _: pb.StatusRequest()).status)

    def position(self) -> tuple[int, int]:
        reply = self._connection.read("Describe", lambda _: pb.DescribeRequest())
        return reply.epoch, reply.lsn

    def verify(self, *, progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
        self._connection.check_open()
        report: dict[str, Any] = {}
        for reply in self._connection.messages("Verify", pb.VerifyRequest(), None, primary=False):
            report = replies.tree_of(reply.report)
            if progress is not None:
                progress(reply.done, reply.total)
        return report

    def snapshot(self, repository: str) -> Snapshot:
        self._connection.check_open()
        message = pb.SnapshotRequest(repository=repository)
        made = [reply for reply in self._connection.messages("Snapshot", message, None, primary=True) if reply.id]
        return replies.snapshot_of(made[-1])
