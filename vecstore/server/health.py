"""Health as `grpc.health.v1` has it: is the store served, and which of its services.

Everything is NOT_SERVING until the store has recovered, and again once the server was told to stop. It is asked without
credentials and has a lane of its own, so a server that is full is not taken for one that is dead.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import Any

import grpc
from grpc_health.v1.health import HealthServicer
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from ..wire.methods import SERVICES

__all__ = ["NAME", "Health"]

NAME = "grpc.health.v1.Health"
WATCHES_MAX = 1_000


class Health:
    """The health of one server. Thread-safe."""

    def __init__(self) -> None:
        self._servicer = HealthServicer()
        self._lock = Lock()
        self._watches = 0
        self._set(HealthCheckResponse.NOT_SERVING)

    def serving(self) -> None:
        """Say that all services are served."""
        self._set(HealthCheckResponse.SERVING)

    def stopping(self) -> None:
        """Say that none is served any more."""
        self._servicer.enter_graceful_shutdown()

    def handler(self) -> grpc.GenericRpcHandler:
        """Return the service's handlers."""

        def check(request: Any, context: grpc.ServicerContext) -> Any:
            return self._servicer.Check(request, context)

        def watch(request: Any, context: grpc.ServicerContext, send: Callable[[Any], None] | None = None) -> Any:
            with self._lock:
                if self._watches >= WATCHES_MAX:
                    context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{WATCHES_MAX} watch already; ask by Check")
                self._watches += 1
            if not context.add_callback(self._ended):
                # Its client is gone already.
                self._ended()
            return self._servicer.Watch(request, context, send)

        # A mark that grpc looks for: a watch holds no thread while nothing changes.
        watch.experimental_non_blocking = True  # type: ignore[attr-defined]
        forms = {
            "request_deserializer": HealthCheckRequest.FromString,
            "response_serializer": HealthCheckResponse.SerializeToString,
        }
        return grpc.method_handlers_generic_handler(
            NAME,
            {
                "Check": grpc.unary_unary_rpc_method_handler(check, **forms),
                "Watch": grpc.unary_stream_rpc_method_handler(watch, **forms),
            },
        )

    def _ended(self) -> None:
        with self._lock:
            self._watches -= 1

    def _set(self, state: Any) -> None:
        for service in ("", *SERVICES):
            self._servicer.set(service, state)
