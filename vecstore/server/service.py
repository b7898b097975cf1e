"""The methods of the contract over any `Database`: requests read and checked, the call made, its answer packed.

What a caller may is for the guard to decide; here only what it may not see is kept out of answers and of the words of
errors. Errors leave as those of `vecstore.errors`, and the guard makes statuses of them. Who does the I/O: the
database, and gRPC. Thread-safe.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import numpy as np
from google.protobuf.message import DecodeError, Message

from .. import __version__, inputs, request
from ..api import Collection, Database
from ..clock import Clock, SystemClock
from ..config import MIB, RECORD_BYTES_MAX
from ..errors import InvalidArgument
from ..record import NO_REQUEST
from ..wire.body import read_payloads, restore_moments, unpack_body
from ..wire.codec import (
    read_ack,
    read_object,
    unpack_blobs,
    unpack_filter,
    unpack_floats,
    unpack_scores,
)
from ..wire.methods import COLLECTIONS, METHODS, REPLICATION, SERVICES, Method
from ..wire.v1 import store_pb2 as pb
from . import caller, stream
from .bounds import bounded_batch, bounded_ids, bounded_part
from .deadline import left_s, waiting_s, write_left_s
from .directory import Directory
from .reply import batch_reply, collection_message, json_bytes, pack_points, search_reply, written_reply

__all__ = ["Malformed", "Service"]

_EPOCH_START = datetime(1970, 1, 1, tzinfo=UTC)


class Malformed:
    """A request whose bytes are no message of its type.

    Parameters
    ----------
    reason
        What the reader of messages said.
    """

    __slots__ = ("reason",)

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def error(self) -> InvalidArgument:
        """Return the error that it comes to."""
        return InvalidArgument(f"request: the bytes are not a message of this method: {self.reason}")


class Service:
    """The service of one database.

    Parameters
    ----------
    database
        Embedded or remote; it stays the caller's to close.
    region
        What this server says of where it is.
    role
        Says "primary", "standby" or "fenced", now.
    replication
        Says what the store is in the replication; None where it is in none.
    message_bytes_max
        What this server takes in one message, as `Describe` tells clients.
    repositories
        Paths of this machine that callers may name for snapshots.
    """

    def __init__(
        self,
        database: Database,
        *,
        region: str,
        role: Callable[[], str],
        message_bytes_max: int = RECORD_BYTES_MAX + 8 * MIB,
        clock: Clock | None = None,
        replication: Callable[[], Mapping[str, Any]] | None = None,
        repositories: frozenset[str] = frozenset(),
    ) -> None:
        self._database = database
        self._region = region
        self._role = role
        self._replication = replication
        self._message_bytes_max = message_bytes_max
        self._repositories = repositories
        self._clock = clock or SystemClock()
        self._directory = Directory(database)
        self._lineage = b""
        self._calls: dict[str, Callable[..., Any]] = {
            "Describe": self._describe,
            "CreateCollection": self._create,
            "GetCollection": self._get_collection,
            "ListCollections": self._list,
            "RenameCollection": self._rename,
            "DropCollection": self._drop,
            "Wait": self._wait,
            "Status": self._status,
            "Verify": self._verify,
            "Snapshot": self._snapshot,
            "Upsert": self._upsert,
            "UpsertStream": self._upsert_stream,
            "Update": self._update,
            "Delete": self._delete,
            "Search": self._search,
            "SearchBatch": self._search_batch,
            "Get": self._get,
            "Scan": self._scan,
            "Count": self._count,
            "AddField": self._add_field,
            "Optimize": self._optimize,
        }

    # -- for the server ----------------------------------------------------------------------------------------------

    def handlers(self) -> list[grpc.GenericRpcHandler]:
        """Return what a gRPC server registers."""
        return [
            grpc.method_handlers_generic_handler(
                service, {method.name: self._handler(method) for method in METHODS if method.service == service}
            )
            for service in SERVICES
        ]

    def _handler(self, method: Method) -> grpc.RpcMethodHandler:
        call = self._calls[method.name]
        if not method.streams_in:
            call = _refusing_malformed(call)
        make = {
            (False, False): grpc.unary_unary_rpc_method_handler,
            (False, True): grpc.unary_stream_rpc_method_handler,
            (True, True): grpc.stream_stream_rpc_method_handler,
        }[method.streams_in, method.streams_out]
        return make(call, _reader(method.request), method.reply.SerializeToString)

    def collections_of(self, method: Method, request: Any) -> list[str]:
        """Return the names of the collections that a request touches now.

        A collection that was dropped, while some know its number still, is known by the last name it had here. Of a
        stream of requests each message is asked about.
        """
        if isinstance(request, Malformed):
            raise request.error()
        if method.service == REPLICATION:
            return []
        number = request.collection if method.service == COLLECTIONS else getattr(request, "number", 0)
        if number:
            name = self._directory.name_of(number)
            return [] if name is None else [name]
        if method.name == "RenameCollection":
            return [request.name, request.to]
        name = getattr(request, "name", "") if method.service != COLLECTIONS else ""
        return [name] if name else []

    # -- the store ---------------------------------------------------------------------------------------------------

    def _describe(self, _asked: pb.DescribeRequest, _context: grpc.ServicerContext) -> pb.DescribeReply:
        epoch, lsn = self._database.position()
        if not self._lineage:
            self._lineage = bytes.fromhex(self._database.status()["lineage"])
        return pb.DescribeReply(
            epoch=epoch,
            lsn=lsn,
            lineage=self._lineage,
            role=self._role(),
            region=self._region,
            now_us=self._clock.wall_us(),
            version=__version__,
            message_bytes_max=self._message_bytes_max,
        )

    def _create(self, asked: pb.CreateCollectionRequest, context: grpc.ServicerContext) -> pb.CollectionReply:
        if asked.infer_fields and asked.fields:
            raise InvalidArgument("fields, infer_fields: both given; allowed is one of them")
        fields: Any = "infer" if asked.infer_fields else dict(asked.fields)
        with self._writing(asked.write, context):
            made = self._database.create_collection(
                asked.name,
                asked.dim,
                metric=asked.metric or "cosine",  # type: ignore[arg-type]
                fields=fields,
                index=asked.index or "auto",
                shards=asked.shards or 1,
                metadata=read_object(asked.metadata, "metadata") if asked.metadata else None,
                exist_ok=asked.exist_ok,
            )
        return self._collection_reply(made)

    def _collection_reply(self, collection: Collection) -> pb.CollectionReply:
        epoch, lsn = self._database.position()
        return pb.CollectionReply(epoch=epoch, lsn=lsn, collection=collection_message(collection))

    def _get_collection(self, asked: pb.GetCollectionRequest, context: grpc.ServicerContext) -> pb.CollectionReply:
        self._await(asked.after, context)
        if asked.number:
            return self._collection_reply(self._directory.by_number(asked.number))
        return self._collection_reply(self._directory.by_name(asked.name))

    def _await(self, token: str, context: grpc.ServicerContext) -> None:
        if token:
            self._database.wait(token, ack="memory", timeout=left_s(context))

    def _list(self, asked: pb.ListCollectionsRequest, context: grpc.ServicerContext) -> pb.ListCollectionsReply:
        self._await(asked.after, context)
        epoch, lsn = self._database.position()
        return pb.ListCollectionsReply(epoch=epoch, lsn=lsn, names=self._directory.names())

    def _rename(self, asked: pb.RenameCollectionRequest, context: grpc.ServicerContext) -> pb.Done:
        with self._writing(asked.write, context), self._directory.own_words(asked.name):
            self._database.rename_collection(asked.name, asked.to, replace=asked.replace)
        return self._done()

    def _drop(self, asked: pb.DropCollectionRequest, context: grpc.ServicerContext) -> pb.Done:
        with self._writing(asked.write, context), self._directory.own_words(asked.name):
            self._database.drop_collection(asked.name, missing_ok=asked.missing_ok)
        return self._done()

    def _done(self) -> pb.Done:
        epoch, lsn = self._database.position()
        return pb.Done(epoch=epoch, lsn=lsn)

    def _wait(self, asked: pb.WaitRequest, context: grpc.ServicerContext) -> pb.Written:
        ack = read_ack(asked.ack)
        written = self._database.wait(asked.token, ack=ack, timeout=waiting_s(left_s(context), ack))
        return written_reply(written, self._database.position()[0])

    def _status(self, _asked: pb.StatusRequest, _context: grpc.ServicerContext) -> pb.StatusReply:
        tree = self._database.status()
        sees = caller.current().sees
        tree["collections"] = {name: entry for name, entry in tree["collections"].items() if sees(name)}
        tree["region"], tree["role"] = self._region, self._role()
        if self._replication is not None:
            tree["replication"] = self._replication()
        return pb.StatusReply(epoch=tree["epoch"], lsn=tree["lsn"], status=json_bytes(tree))

    def _verify(self, _asked: pb.VerifyRequest, _context: grpc.ServicerContext) -> Iterator[pb.VerifyReply]:
        for done, total, report in stream.progress_of(lambda step: self._database.verify(progress=step)):
            yield pb.VerifyReply(done=done, total=total, report=b"" if report is None else json_bytes(report))

    def _snapshot(self, asked: pb.SnapshotRequest, _context: grpc.ServicerContext) -> Iterator[pb.SnapshotReply]:
        where = asked.repository
        on_disk = "://" not in where or where.startswith("file:")
        if on_disk and where not in self._repositories:
            # A caller must not choose files of this machine.
            raise InvalidArgument(
                "repository: a path given; allowed are URLs of s3, gs, az, and what the server's configuration names",
                hint="name it there as snapshot.repository or server.archive",
            )
        for _done, _total, made in stream.progress_of(lambda _: self._database.snapshot(where)):
            if made is not None:
                time_us = int((made.time - _EPOCH_START) / timedelta(microseconds=1))
                yield pb.SnapshotReply(id=made.id, lsn=made.lsn, time_us=time_us, bytes_new=made.bytes_new)

    # -- writing -----------------------------------------------------------------------------------------------------

    def _writing(self, write: pb.Write, context: grpc.ServicerContext) -> Any:
        """Return the context of a write's request id and deadline; refuse the write where its time has passed."""
        return request.use(write.request_id or NO_REQUEST, write_left_s(write, context, self._clock))

    def _upsert(self, asked: pb.UpsertRequest, context: grpc.ServicerContext) -> pb.Written:
        body = unpack_body(asked.body)
        restore_moments(body.payloads, asked.timestamps)
        collection = self._directory.by_number(asked.collection)
        ack = read_ack(asked.write.ack)
        timeout_s = waiting_s(write_left_s(asked.write, context, self._clock), ack)
        with request.use(asked.write.request_id or NO_REQUEST):
            written = collection.upsert(body.ids, body.vectors, body.payloads, ack=ack, timeout=timeout_s)
        return written_reply(written, self._database.position()[0])

    def _upsert_stream(
        self, asked: Iterator[pb.UpsertRequest | Malformed], context: grpc.ServicerContext
    ) -> Iterator[pb.Written]:
        return stream.upserts(self._database, self._directory, asked, context, self._clock)

    def _update(self, asked: pb.UpdateRequest, context: grpc.ServicerContext) -> pb.Written:
        ids = bounded_ids(asked.ids)
        vectors = unpack_floats(asked.vectors) if asked.HasField("vectors") else None
        payloads = None
        if asked.HasField("payloads"):
            payloads = read_payloads(unpack_blobs(asked.payloads, "payloads"))
            restore_moments(payloads, asked.timestamps)
        collection = self._directory.by_number(asked.collection)
        ack = read_ack(asked.write.ack)
        timeout_s = waiting_s(write_left_s(asked.write, context, self._clock), ack)
        with request.use(asked.write.request_id or NO_REQUEST):
            written = collection.update(ids, vectors=vectors, payloads=payloads, ack=ack, timeout=timeout_s)
        return written_reply(written, self._database.position()[0])

    def _delete(self, asked: pb.DeleteRequest, context: grpc.ServicerContext) -> pb.Written:
        ids = bounded_ids(asked.ids) if asked.HasField("ids") else None
        filter = unpack_filter(asked.filter)
        collection = self._directory.by_number(asked.collection)
        ack = read_ack(asked.write.ack)
        timeout_s = waiting_s(write_left_s(asked.write, context, self._clock), ack)
        with request.use(asked.write.request_id or NO_REQUEST):
            written = collection.delete(ids=ids, filter=filter, ack=ack, timeout=timeout_s)
        return written_reply(written, self._database.position()[0])

    def _add_field(self, asked: pb.AddFieldRequest, context: grpc.ServicerContext) -> pb.Done:
        collection = self._directory.by_number(asked.collection)
        with self._writing(asked.write, context):
            collection.add_field(asked.name, asked.type)  # type: ignore[arg-type]
        return self._done()

    def _optimize(self, asked: pb.OptimizeRequest, context: grpc.ServicerContext) -> Iterator[pb.OptimizeReply]:
        collection = self._directory.by_number(asked.collection)
        timeout_s = left_s(context)
        for done, total, _ in stream.progress_of(lambda step: collection.optimize(progress=step, timeout=timeout_s)):
            epoch, lsn = self._database.position()
            yield pb.OptimizeReply(epoch=epoch, lsn=lsn, done=done, total=total)

    # -- reading -----------------------------------------------------------------------------------------------------

    def _search(self, asked: pb.SearchRequest, context: grpc.ServicerContext) -> pb.SearchReply:
        vector = asked.vector
        query = np.frombuffer(vector, "<f4") if not len(vector) & 3 else unpack_scores(vector, "vector")
        keys = bounded_part(asked.payload) if asked.HasField("payload") else False
        filter, with_vector = asked.filter, asked.with_vector
        hits = self._directory.by_number(asked.collection).search(
            query,
            asked.k,
            filter=unpack_filter(filter) if filter else None,
            recall=asked.recall if asked.HasField("recall") else None,
            exact=asked.exact,
            effort=asked.effort if asked.HasField("effort") else None,
            offset=asked.offset,
            score_threshold=asked.score_threshold if asked.HasField("score_threshold") else None,
            with_payload=keys,
            with_vector=with_vector,
            after=asked.after or None,
            timeout=left_s(context),
        )
        return search_reply(hits, self._database.position()[0], keys, with_vector)

    def _search_batch(self, asked: pb.SearchBatchRequest, context: grpc.ServicerContext) -> pb.SearchBatchReply:
        bounded_batch(asked.vectors.rows, asked.k)
        keys = bounded_part(asked.payload) if asked.HasField("payload") else False
        batch = self._directory.by_number(asked.collection).search_batch(
            unpack_floats(asked.vectors),
            asked.k,
            filter=unpack_filter(asked.filter),
            recall=asked.recall if asked.HasField("recall") else None,
            exact=asked.exact,
            effort=asked.effort if asked.HasField("effort") else None,
            with_payload=keys,
            after=asked.after or None,
            timeout=left_s(context),
        )
        return batch_reply(batch, self._database.position()[0], keys)

    def _get(self, asked: pb.GetRequest, context: grpc.ServicerContext) -> pb.PointsReply:
        keys = bounded_part(asked.payload) if asked.HasField("payload") else False
        collection = self._directory.by_number(asked.collection)
        ids = bounded_ids(asked.ids)
        self._await(asked.after, context)
        epoch, lsn = self._database.position()
        points = collection.get(ids, with_payload=keys, with_vector=asked.with_vector, timeout=left_s(context))
        return pb.PointsReply(epoch=epoch, lsn=lsn, points=pack_points(points, keys, asked.with_vector))

    def _count(self, asked: pb.CountRequest, context: grpc.ServicerContext) -> pb.CountReply:
        collection = self._directory.by_number(asked.collection)
        filter = unpack_filter(asked.filter)
        self._await(asked.after, context)
        epoch, lsn = self._database.position()
        return pb.CountReply(epoch=epoch, lsn=lsn, count=collection.count(filter, timeout=left_s(context)))

    def _scan(self, asked: pb.ScanRequest, context: grpc.ServicerContext) -> Iterator[pb.PointsReply]:
        keys = bounded_part(asked.payload) if asked.HasField("payload") else False
        start = bounded_ids(asked.start, "start")
        if len(start) > 1:
            raise InvalidArgument(f"start: {inputs.shown(start)} given; allowed is one id, or none")
        collection = self._directory.by_number(asked.collection)
        self._await(asked.after, context)
        position = self._database.position()
        points = collection.scan(
            unpack_filter(asked.filter),
            start=start[0] if start else None,
            limit=asked.limit if asked.HasField("limit") else None,
            with_payload=keys,
            with_vector=asked.with_vector,
        )
        yield from stream.pieces(points, position, keys, asked.with_vector)


def _reader(kind: type[Message]) -> Callable[[bytes], Message | Malformed]:
    """Return what reads a method's requests: never an error, so that even what cannot be read is answered."""
    read = kind.FromString

    def read_or_not(data: bytes) -> Message | Malformed:
        try:
            return read(data)
        except DecodeError as exc:
            return Malformed(str(exc))

    return read_or_not


def _refusing_malformed(call: Callable[[Any, grpc.ServicerContext], Any]) -> Callable[[Any, grpc.ServicerContext], Any]:
    def checked(asked: Any, context: grpc.ServicerContext) -> Any:
        if type(asked) is Malformed:
            raise asked.error()
        return call(asked, context)

    return checked
