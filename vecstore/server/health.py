"""Health as `grpc.health.v1` has it: is the store served, and which of its services.

Everything is NOT_SERVING until the store has recovered, and again once the server was told to stop. It is asked without
credentials and answered by threads of its own, so a server that is full is not taken for one that is dead.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from grpc_health.v1.health import HealthServicer
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from ..wire.methods import SERVICES

__all__ = ["NAME", "Health"]

NAME = "grpc.health.v1.Health"
_THREADS = 2


class Health:
    """The health of one server. Thread-safe."""

    def __init__(self) -> None:
        self._servicer = HealthServicer()
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="vecstore-health")
        self._set(HealthCheckResponse.NOT_SERVING)

    def serving(self) -> None:
        """Say that all services are served."""
        self._set(HealthCheckResponse.SERVING)

    def stopping(self) -> None:
        """Say that none is served any more."""
        self._servicer.enter_graceful_shutdown()

    def shutdown(self) -> None:
        """Let its threads go."""
        self._pool.shutdown(wait=False)

    def handler(self) -> grpc.GenericRpcHandler:
        """Return the service's handlers."""

        def check(request: Any, context: grpc.ServicerContext) -> Any:
            return self._servicer.Check(request, context)

        def watch(request: Any, context: grpc.ServicerContext, send: Callable[[Any], None] | None = None) -> Any:
            return self._servicer.Watch(request, context, send)

        # Marks that grpc looks for: these threads run it, and a watch holds none of them while nothing changes.
        check.experimental_thread_pool = watch.experimental_thread_pool = self._pool  # type: ignore[attr-defined]
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

    def _set(self, state: Any) -> None:
        for service in ("", *SERVICES):
            self._servicer.set(service, state)
