"""Every method of the contract, in one table: what it is called, what it takes and gives, who may call it, what it is.

The service registers its handlers by it, the guard decides by it, clients call by it; a test holds it against the
descriptors of the contract. The methods by which stores and operators speak are a table of their own: no client of data
calls them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from google.protobuf.message import Message

from .v1 import replication_pb2 as rpb
from .v1 import store_pb2 as pb

__all__ = ["BY_PATH", "METHODS", "REPLICATION", "REPLICATION_METHODS", "SERVICES", "Method"]

Role = Literal["none", "read", "write", "admin", "replicate"]
Work = Literal["health", "replication", "search", "read", "write", "bulk", "admin"]

STORE = "vecstore.v1.Store"
COLLECTIONS = "vecstore.v1.Collections"
REPLICATION = "vecstore.v1.Replication"
SERVICES = (STORE, COLLECTIONS)
"""The services of data."""


@dataclass(frozen=True, slots=True)
class Method:
    """One method of the contract.

    Attributes
    ----------
    service, name
        As the contract names them, the service with its package.
    request, reply
        The classes of its messages.
    streams_in, streams_out
        Whether requests, replies are streams.
    role
        What the caller's grant must allow; "none" where being known is enough.
    work
        Its class of work, by which what waits is ordered and shed.
    is_write
        Whether it carries a `Write`: a request id, and a time after which it must not be started.
    path
        How calls name it.
    """

    service: str
    name: str
    request: type[Message]
    reply: type[Message]
    role: Role
    work: Work
    streams_in: bool = False
    streams_out: bool = False
    is_write: bool = False

    @property
    def path(self) -> str:
        """``/service/method``."""
        return f"/{self.service}/{self.name}"


def _store(name: str, request: type[Message], reply: type[Message], role: Role, work: Work, **more: Any) -> Method:
    return Method(STORE, name, request, reply, role, work, **more)


def _points(name: str, request: type[Message], reply: type[Message], role: Role, work: Work, **more: Any) -> Method:
    return Method(COLLECTIONS, name, request, reply, role, work, **more)


METHODS: tuple[Method, ...] = (
    _store("Describe", pb.DescribeRequest, pb.DescribeReply, "none", "health"),
    _store("CreateCollection", pb.CreateCollectionRequest, pb.CollectionReply, "admin", "admin", is_write=True),
    _store("GetCollection", pb.GetCollectionRequest, pb.CollectionReply, "read", "read"),
    # What a caller may not see is left out of the answers of these.
    _store("ListCollections", pb.ListCollectionsRequest, pb.ListCollectionsReply, "none", "read"),
    _store("RenameCollection", pb.RenameCollectionRequest, pb.Done, "admin", "admin", is_write=True),
    _store("DropCollection", pb.DropCollectionRequest, pb.Done, "admin", "admin", is_write=True),
    _store("Wait", pb.WaitRequest, pb.Written, "none", "read"),
    _store("Status", pb.StatusRequest, pb.StatusReply, "none", "read"),
    _store("Verify", pb.VerifyRequest, pb.VerifyReply, "admin", "admin", streams_out=True),
    _store("Snapshot", pb.SnapshotRequest, pb.SnapshotReply, "admin", "admin", streams_out=True),
    _points("Upsert", pb.UpsertRequest, pb.Written, "write", "write", is_write=True),
    _points(
        "UpsertStream", pb.UpsertRequest, pb.Written, "write", "bulk", streams_in=True, streams_out=True, is_write=True
    ),
    _points("Update", pb.UpdateRequest, pb.Written, "write", "write", is_write=True),
    _points("Delete", pb.DeleteRequest, pb.Written, "write", "write", is_write=True),
    _points("Search", pb.SearchRequest, pb.SearchReply, "read", "search"),
    _points("SearchBatch", pb.SearchBatchRequest, pb.SearchBatchReply, "read", "search"),
    _points("Get", pb.GetRequest, pb.PointsReply, "read", "read"),
    _points("Scan", pb.ScanRequest, pb.PointsReply, "read", "bulk", streams_out=True),
    _points("Count", pb.CountRequest, pb.CountReply, "read", "read"),
    _points("AddField", pb.AddFieldRequest, pb.Done, "admin", "admin", is_write=True),
    _points("Optimize", pb.OptimizeRequest, pb.OptimizeReply, "write", "bulk", streams_out=True),
)


def _stores(name: str, request: type[Message], reply: type[Message], role: Role = "replicate", **more: Any) -> Method:
    return Method(REPLICATION, name, request, reply, role, "replication", **more)


REPLICATION_METHODS: tuple[Method, ...] = (
    _stores("Link", rpb.Envelope, rpb.Envelope, streams_in=True, streams_out=True),
    _stores("Join", rpb.JoinRequest, rpb.SnapshotTicket),
    _stores("Fetch", rpb.FetchRequest, rpb.FileChunk, streams_out=True),
    _stores("Command", rpb.CommandRequest, rpb.CommandReply, "admin"),
    _stores("Describe", rpb.DescribeReplicationRequest, rpb.DescribeReplicationReply, "none"),
    _stores("Ranges", rpb.RangesRequest, rpb.RangesReply, "admin", streams_in=True, streams_out=True),
)
BY_PATH: dict[str, Method] = {method.path: method for method in (*METHODS, *REPLICATION_METHODS)}
