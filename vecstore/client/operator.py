"""What an operator asks of one server by name: commands of the replication, and what it is in it.

Nothing is tried again, and nothing is asked of another server: a command is for the store that it names. Thread-safe.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, NamedTuple

import grpc
import msgspec

from ..errors import Unavailable, VecstoreError
from ..values import TLS
from ..wire.status import error_from
from ..wire.v1 import replication_pb2 as pb
from .channel import credentials, options
from .endpoint import access_of, endpoints_of
from .ranges import Conversation

__all__ = ["Operator", "Verdict"]

SERVICE = "/vecstore.v1.Replication/"
DESCRIBE_S = 10.0


class Verdict(NamedTuple):
    """What became of a command: done, or refused, and what the store says to it."""

    done: bool
    text: str


class Operator:
    """A connection to one server.

    Parameters
    ----------
    address
        ``host:port``.
    token, tls
        As of `vecstore.connect`.
    """

    def __init__(self, address: str, *, token: str | None = None, tls: bool | TLS = False) -> None:
        (self.address,) = endpoints_of(address)
        access = access_of([self.address], token, tls)
        self._headers = (("authorization", f"Bearer {access.token}"),) if access.token is not None else None
        made = options(1, access)
        self._channel: Any = (
            grpc.secure_channel(self.address, credentials(access), made)
            if access.is_tls
            else grpc.insecure_channel(self.address, made)
        )

    def __enter__(self) -> Operator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let the socket go."""
        self._channel.close()

    def describe(self, timeout_s: float = DESCRIBE_S, *, chains_at: Sequence[int] = ()) -> dict[str, Any]:
        """Return what the server is in the replication, as docs/operations.md describes it.

        Parameters
        ----------
        chains_at
            LSNs of which the answer says under ``chains`` what the chain of its history is there, if it knows that.
        """
        request = pb.DescribeReplicationRequest(chains_at=chains_at)
        reply = self._call("Describe", request, pb.DescribeReplicationReply, timeout_s)
        found: dict[str, Any] = msgspec.json.decode(reply.json)
        return found

    def command(self, name: str, timeout_s: float, /, **given: Any) -> Verdict:
        """Give a command, and wait until it is carried out or refused."""
        request = pb.CommandRequest(name=name, options=msgspec.json.encode(given))
        reply = self._call("Command", request, pb.CommandReply, timeout_s)
        return Verdict(bool(reply.done), str(reply.text))

    def ranges(self) -> Conversation:
        """Begin a conversation about ranges of its points."""
        call = self._channel.stream_stream(
            SERVICE + "Ranges",
            request_serializer=pb.RangesRequest.SerializeToString,
            response_deserializer=pb.RangesReply.FromString,
        )
        return Conversation(lambda requests: call(requests, metadata=self._headers), self.address)

    def _call(self, name: str, request: Any, reply: Any, timeout_s: float) -> Any:
        call = self._channel.unary_unary(
            SERVICE + name,
            request_serializer=type(request).SerializeToString,
            response_deserializer=reply.FromString,
        )
        try:
            return call(request, timeout=timeout_s, metadata=self._headers)
        except grpc.RpcError as exc:
            error: VecstoreError = error_from(exc)
            if isinstance(error, Unavailable) and not error.hint:
                error.hint = f"is there a server at {self.address}, and may this machine reach it?"
            raise error from exc
