"""The methods by which stores and operators speak with a store about the replication.

Who may call them is for the guard to decide. Who does the I/O: `Links`, the contents, and gRPC. Thread-safe.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import grpc
import msgspec

from ..config import MIB
from ..errors import AlreadyExists, InvalidArgument, NotPrimary, Unavailable
from ..replication.coding import encode_claim
from ..replication.log import Place
from ..replication.state import Member
from ..storage.reads import Reads
from ..wire.methods import REPLICATION, REPLICATION_METHODS, Method
from ..wire.v1 import replication_pb2 as pb
from .pieces import join_check, ticket_check

if TYPE_CHECKING:
    from .replication import Replication

__all__ = ["Replicate"]

CHUNK_BYTES = MIB
ID_TEXT_MAX = 255
CHAINS_MAX = 1_024


class Replicate:
    """The service `Replication` of one store.

    Parameters
    ----------
    replication
        What it speaks for.
    """

    def __init__(self, replication: Replication) -> None:
        self._replication = replication
        self._calls: dict[str, Callable[..., Any]] = {
            "Link": replication.links.serve,
            "Join": self._join,
            "Fetch": self._fetch,
            "Command": self._command,
            "Describe": self._describe,
            "Ranges": replication.ranges.serve,
        }

    def handlers(self) -> list[grpc.GenericRpcHandler]:
        """Return what a gRPC server registers."""
        made = {method.name: self._handler(method) for method in REPLICATION_METHODS}
        return [grpc.method_handlers_generic_handler(REPLICATION, made)]

    def _handler(self, method: Method) -> grpc.RpcMethodHandler:
        make = {
            (False, False): grpc.unary_unary_rpc_method_handler,
            (False, True): grpc.unary_stream_rpc_method_handler,
            (True, True): grpc.stream_stream_rpc_method_handler,
        }[method.streams_in, method.streams_out]
        return make(self._calls[method.name], method.request.FromString, method.reply.SerializeToString)

    def _join(self, asked: pb.JoinRequest, _context: grpc.ServicerContext) -> pb.SnapshotTicket:
        """Hold the log for a new standby, and take a snapshot for it."""
        if asked.check != join_check(asked):
            raise Unavailable("what was asked was changed on the way")
        for option, text in (("store_id", asked.store_id), ("slot", asked.slot)):
            if not text or len(text) > ID_TEXT_MAX:
                raise InvalidArgument(f"{option}: {text[:50]!r} given; allowed are 1 to {ID_TEXT_MAX} characters")
        replication = self._replication
        driver = replication.driver
        reads = Reads(asked.reads_format or Reads().format, asked.reads_kind or Reads().kind)

        def hold(member: Member) -> None:
            if not member.accepts_writes:
                primary = member.durable.promise
                known = "" if primary is None or primary.store_id == member.me else primary.store_id
                raise NotPrimary(
                    f"this store feeds nobody: it is {member.status}", primary=replication.links.address(known) or None
                )
            if not reads.covers(member.reads):
                raise InvalidArgument(
                    f"version: the new standby reads {reads}, and this primary is of {member.reads}",
                    hint="upgrade vecstore at the standby first",
                    details={"reads": str(reads), "needs": str(member.reads)},
                )
            for slot in member.durable.slots:
                if slot.name == asked.slot and slot.store_id != asked.store_id:
                    raise AlreadyExists(
                        f"slot: {asked.slot!r} is that of store {slot.store_id}",
                        hint="give another name, or drop the slot at the primary if that store is gone",
                    )
            lsn = member.log.durable_lsn
            member.part.feed.hold(  # type: ignore[attr-defined]
                asked.slot, asked.store_id, Place(lsn, member.log.chain(lsn) or b"")
            )

        driver.act(hold)
        replication.book.learn(asked.store_id, asked.address, asked.region)
        place, ticket = replication.contents.snapshot()
        claim = driver.state.promise
        if claim is None or claim.store_id != driver.member.me:
            raise Unavailable("this store is not the primary any more")
        made = pb.SnapshotTicket(
            id=ticket.id,
            store_id=driver.member.me,
            lineage=driver.engine.lineage,
            lsn=place.lsn,
            chain=place.chain,
            claim=encode_claim(claim),
            files=[pb.SnapshotFile(name=file.name, size=file.size, check=file.check) for file in ticket.files],
            primary_address=replication.advertised(),
        )
        made.check = ticket_check(made)
        return made

    def _fetch(self, asked: pb.FetchRequest, _context: grpc.ServicerContext) -> Iterator[pb.FileChunk]:
        contents, offset = self._replication.contents, asked.offset
        while data := contents.read(asked.id, asked.name, offset, CHUNK_BYTES):
            yield pb.FileChunk(data=data)
            offset += len(data)

    def _command(self, asked: pb.CommandRequest, _context: grpc.ServicerContext) -> pb.CommandReply:
        done, text = self._replication.commands.run(asked.name, asked.options)
        return pb.CommandReply(done=done, text=text)

    def _describe(
        self, asked: pb.DescribeReplicationRequest, _context: grpc.ServicerContext
    ) -> pb.DescribeReplicationReply:
        if len(asked.chains_at) > CHAINS_MAX:
            raise InvalidArgument(f"chains_at: {len(asked.chains_at)} LSNs given; at most {CHAINS_MAX} are allowed")
        found = self._replication.describe()
        if asked.chains_at:
            found["chains"] = self._replication.chains(asked.chains_at)
        return pb.DescribeReplicationReply(json=msgspec.json.encode(found))
