"""Reflection: clients such as grpcurl ask which services there are. It shows the contract, which is no secret.

Both names that clients know the service by are answered; their messages are the same. A stream holds a thread while it
is open: it has two of its own, and takes none from calls.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from grpc_reflection.v1alpha.reflection import ReflectionServicer
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest, ServerReflectionResponse

from ..wire.methods import SERVICES
from .health import NAME as HEALTH

__all__ = ["handlers"]

_NAMES = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")
_THREADS = 2


def handlers() -> list[grpc.GenericRpcHandler]:
    """Return the handlers of the service under both of its names."""
    servicer = ReflectionServicer((*SERVICES, HEALTH))

    def info(requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        found: Iterator[Any] = servicer.ServerReflectionInfo(requests, context)
        return found

    # A mark that grpc looks for: these threads run it.
    info.experimental_thread_pool = ThreadPoolExecutor(  # type: ignore[attr-defined]
        _THREADS, thread_name_prefix="vecstore-reflection"
    )
    handler = grpc.stream_stream_rpc_method_handler(
        info,
        request_deserializer=ServerReflectionRequest.FromString,
        response_serializer=ServerReflectionResponse.SerializeToString,
    )
    return [grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": handler}) for name in _NAMES]
