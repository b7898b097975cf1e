"""Channels: gRPC's options, its service config, and the calls of one endpoint. The one place that makes a channel.

Retries, back-off with jitter, retry throttling and the server's pushback are gRPC's own, by its service config;
with one endpoint UNAVAILABLE too; with several, another endpoint is asked at once instead (`call`). Writes are
safe to send again, because each carries a request id. Streams are not retried: what of them can be resumed is known to
who reads or writes them. Nor is `Describe`, which is asked first, so that a caller learns at once why nobody answers.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import grpc

from ..config import MIB
from ..wire.methods import METHODS, Method
from ..wire.status import ERROR_KEY
from .endpoint import Access
from .trace import trace_headers

__all__ = [
    "Headers",
    "Stubs",
    "credentials",
    "headers",
    "is_from_server",
    "options",
    "service_config",
]

Headers = tuple[tuple[str, str], ...] | None

REPLY_BYTES_MAX = 256 * MIB
ATTEMPTS_MAX = 5
"""Of gRPC itself, which caps them at this."""
KEEPALIVE_S, KEEPALIVE_TIMEOUT_S = 20, 10
_BY_NAME: dict[str, Method] = {method.name: method for method in METHODS}


def service_config(endpoints: int) -> str:
    """Return gRPC's service config for a client of so many endpoints."""
    codes = ["RESOURCE_EXHAUSTED", "UNAVAILABLE"] if endpoints == 1 else ["RESOURCE_EXHAUSTED"]
    retried = [
        {"service": method.service, "method": method.name}
        for method in METHODS
        if not method.streams_in and not method.streams_out and method.name != "Describe"
    ]
    policy = {
        "maxAttempts": ATTEMPTS_MAX,
        "initialBackoff": "0.05s",
        "maxBackoff": "1s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": codes,
    }
    config = {
        "methodConfig": [{"name": retried, "retryPolicy": policy}],
        "retryThrottling": {"maxTokens": 100, "tokenRatio": 0.1},
    }
    return json.dumps(config)


def options(endpoints: int, access: Access) -> list[tuple[str, Any]]:
    """Return the options of each channel of a client of so many endpoints."""
    found: list[tuple[str, Any]] = [
        ("grpc.service_config", service_config(endpoints)),
        ("grpc.enable_retries", 1),
        # What a server takes is for the server to say; what a client takes is bounded, whatever a server sends.
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", REPLY_BYTES_MAX),
        # A server that does not answer pings while calls wait is gone, whatever its kernel says.
        ("grpc.keepalive_time_ms", KEEPALIVE_S * 1_000),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_S * 1_000),
        ("grpc.http2.max_pings_without_data", 0),
        # A server that comes back is found soon.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        # A connection of its own for each client: closing one is felt by no other.
        ("grpc.use_local_subchannel_pool", 1),
    ]
    if not access.is_tls:
        # A proxy would read the token.
        found.append(("grpc.enable_http_proxy", 0))
    return found


def credentials(access: Access) -> grpc.ChannelCredentials:
    """Return the credentials of an encrypted channel."""
    return grpc.ssl_channel_credentials(
        root_certificates=access.ca, private_key=access.key, certificate_chain=access.cert
    )


def headers(fixed: Headers) -> Headers:
    """Return the metadata of one call: what all calls have, and the trace it is part of."""
    traced = trace_headers()
    return (*(fixed or ()), *traced) if traced else fixed


def is_from_server(error: grpc.RpcError) -> bool:
    """Tell whether a vecstore server made this error, and not gRPC or something on the way."""
    return any(key == ERROR_KEY for key, _ in error.trailing_metadata() or ())


class Stubs:
    """The calls of one endpoint, made as they are asked for. Thread-safe.

    Parameters
    ----------
    channel
        Of `grpc`, or of `grpc.aio`.
    """

    def __init__(self, channel: Any) -> None:
        self.channel = channel
        self._made: dict[str, Callable[..., Any]] = {}

    def __getitem__(self, name: str) -> Callable[..., Any]:
        """Return the call of a method by its name in the contract."""
        made = self._made.get(name)
        if made is None:
            method = _BY_NAME[name]
            kind = f"{'stream' if method.streams_in else 'unary'}_{'stream' if method.streams_out else 'unary'}"
            make = getattr(self.channel, kind)
            made = make(method.path, method.request.SerializeToString, method.reply.FromString, _registered_method=True)
            self._made[name] = made
        return made
