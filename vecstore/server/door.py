"""The door: the first of the server's interceptors. It is open while the store is served, and only then.

Closed, it refuses each call with a retryable `Unavailable` before anything else looks at it: while the store recovers,
and once the server was told to stop. Health passes at all times, straight to its own handlers. Open, it hands each call
to the guard. Both the guard and the handlers may be made after the server began to listen.

Refusals and health run in the pool's reserved lane: neither waits behind calls, and a flood of either is bounded.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grpc

from ..errors import Unavailable
from ..wire.status import PUSHBACK_KEY, trailers
from . import health

__all__ = ["Door", "Handlers"]

_HEALTH = f"/{health.NAME}/"
_PUSHBACK_MS = (350, 700)
"""When clients should try again: once they were told to go elsewhere, and not all at once. Sooner would only use up the
few attempts that gRPC allows."""
_RANDOM = random.SystemRandom()


class Door(grpc.ServerInterceptor):  # type: ignore[misc]
    """Refuses calls or lets them pass. Thread-safe.

    Parameters
    ----------
    health
        What asks for health is handed to; nobody else looks at it.
    why
        What callers are told while it is closed.
    """

    def __init__(self, health: grpc.GenericRpcHandler, why: str) -> None:
        self._health = health
        self._guard: Any = None
        self._let_through = "\0"
        self._refusal: Any = self._refusing(why)

    def open(self, guard: grpc.ServerInterceptor) -> None:
        """Hand calls to the guard from now on."""
        self._guard = guard
        self._refusal = None

    def close(self, why: str, but: str = "") -> None:
        """Refuse calls that come from now on, but those of one service."""
        self._let_through = f"/{but}/" if but else "\0"
        self._refusal = self._refusing(why)

    def intercept_service(self, continuation: Callable[[Any], Any], handler_call_details: Any) -> Any:
        """Return the handler of a call: the service's own, or the refusal."""
        if handler_call_details.method.startswith(_HEALTH):
            return self._health.service(handler_call_details)
        refusal = self._refusal
        if refusal is not None and not handler_call_details.method.startswith(self._let_through):
            return refusal
        return self._guard.intercept_service(continuation, handler_call_details)

    def _refusing(self, why: str) -> Any:
        code, text, metadata = trailers(Unavailable(why))

        def refuse(_: Iterator[bytes], context: grpc.ServicerContext) -> None:
            pushback = (PUSHBACK_KEY, str(_RANDOM.randint(*_PUSHBACK_MS)))
            context.set_trailing_metadata((*metadata, pushback))
            context.abort(code, text)

        # A stream of bytes is what every kind of call looks like; none of it is read.
        return grpc.stream_stream_rpc_method_handler(refuse)


class Handlers(grpc.GenericRpcHandler):  # type: ignore[misc]
    """The handlers of services that are made after the server began to listen."""

    def __init__(self) -> None:
        self._inner: Sequence[grpc.GenericRpcHandler] = ()

    def set(self, inner: Sequence[grpc.GenericRpcHandler]) -> None:
        """Hand calls to these from now on."""
        self._inner = inner

    def service(self, handler_call_details: Any) -> Any:
        """Return the handler of a call, None where there is no such method."""
        for inner in self._inner:
            found = inner.service(handler_call_details)
            if found is not None:
                return found
        return None
