"""How this server reaches other stores' servers: channels with its token and authorities, and the calls on them.

The token is read from its file for each call, so that it can be replaced while the server runs. Nothing is tried again
here: who calls knows what a failure means.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import msgspec

from ..client.channel import REPLY_BYTES_MAX, credentials
from ..client.endpoint import Access, access_of
from ..errors import InvalidArgument
from ..values import TLS
from ..wire.methods import REPLICATION_METHODS, Method
from ..wire.status import error_from
from ..wire.v1 import replication_pb2 as pb
from .settings import ReplicationSettings

__all__ = ["Reach"]

_BY_NAME = {method.name: method for method in REPLICATION_METHODS}
DESCRIBE_S, JOIN_S = 5.0, 600.0
KEEPALIVE_S, KEEPALIVE_TIMEOUT_S = 6.0, 4.0
"""Servers take no more than one ping in five seconds."""


class Reach:
    """Reaches servers by their addresses. Thread-safe.

    Parameters
    ----------
    settings
        Token and certificates.
    """

    def __init__(self, settings: ReplicationSettings) -> None:
        self._settings = settings

    def _access(self, address: str) -> Access:
        settings = self._settings
        token = None
        if settings.token_file:
            try:
                token = Path(settings.token_file).read_text().strip()
            except OSError as exc:
                raise InvalidArgument(f"replication.token_file: cannot be read: {exc}") from exc
        tls: bool | TLS = False
        if settings.ca or settings.certificate:
            tls = TLS(ca=settings.ca or None, cert=settings.certificate or None, key=settings.key or None)
        return access_of([address], token, tls, {"VECSTORE_PLAINTEXT_TOKEN": "allow" if settings.plaintext else ""})

    def open(self, address: str) -> tuple[Any, tuple[tuple[str, str], ...]]:
        """Return a channel to a server, for its opener to close, and the metadata of calls on it."""
        access = self._access(address)
        options = [
            ("grpc.enable_retries", 0),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_receive_message_length", REPLY_BYTES_MAX),
            ("grpc.keepalive_time_ms", round(KEEPALIVE_S * 1000)),
            ("grpc.keepalive_timeout_ms", round(KEEPALIVE_TIMEOUT_S * 1000)),
            ("grpc.http2.max_pings_without_data", 0),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1_000),
            ("grpc.use_local_subchannel_pool", 1),
        ]
        if access.is_tls:
            channel = grpc.secure_channel(address, credentials(access), options)
        else:
            # A proxy would read the token.
            channel = grpc.insecure_channel(address, [*options, ("grpc.enable_http_proxy", 0)])
        headers = (("authorization", f"Bearer {access.token}"),) if access.token is not None else ()
        return channel, headers

    def describe(self, address: str, timeout_s: float = DESCRIBE_S) -> dict[str, Any]:
        """Ask a server what it is in the replication."""
        reply = self._unary(address, "Describe", pb.DescribeReplicationRequest(), timeout_s)
        found: dict[str, Any] = msgspec.json.decode(reply.json)
        return found

    def join(self, address: str, request: pb.JoinRequest, timeout_s: float = JOIN_S) -> pb.SnapshotTicket:
        """Ask a server for a snapshot to become its standby by."""
        ticket: pb.SnapshotTicket = self._unary(address, "Join", request, timeout_s)
        return ticket

    def fetch(self, address: str, ticket: str, name: str, offset: int = 0) -> Iterator[bytes]:
        """Iterate over the bytes of a file that a server keeps for somebody, from an offset.

        Raises
        ------
        VecstoreError
            The connection failed, or it is not kept any more; what came before is sound as far as it goes.
        """
        channel, headers = self.open(address)
        try:
            request = pb.FetchRequest(id=ticket, name=name, offset=offset)
            for chunk in _call(channel, _BY_NAME["Fetch"])(request, metadata=headers):
                yield chunk.data
        except grpc.RpcError as exc:
            raise error_from(exc) from exc
        finally:
            channel.close()

    def _unary(self, address: str, name: str, request: Any, timeout_s: float) -> Any:
        channel, headers = self.open(address)
        try:
            return _call(channel, _BY_NAME[name])(request, timeout=timeout_s, metadata=headers)
        except grpc.RpcError as exc:
            raise error_from(exc) from exc
        finally:
            channel.close()

    def link(self, channel: Any) -> Callable[..., Any]:
        """Return the call of a link on a channel."""
        return _call(channel, _BY_NAME["Link"])


def _call(channel: Any, method: Method) -> Callable[..., Any]:
    kind = f"{'stream' if method.streams_in else 'unary'}_{'stream' if method.streams_out else 'unary'}"
    make = getattr(channel, kind)
    made: Callable[..., Any] = make(
        method.path, method.request.SerializeToString, method.reply.FromString, _registered_method=True
    )
    return made
