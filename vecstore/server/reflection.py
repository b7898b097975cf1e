"""Reflection: clients such as grpcurl ask which services there are. It shows the contract, which is no secret.

Both names that clients know the service by are answered; their messages are the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
from grpc_reflection.v1alpha.reflection import ReflectionServicer
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest, ServerReflectionResponse

from ..wire.methods import REPLICATION, SERVICES
from .health import NAME as HEALTH

__all__ = ["handlers"]

_NAMES = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")


def handlers() -> list[grpc.GenericRpcHandler]:
    """Return the handlers of the service under both of its names."""
    servicer = ReflectionServicer((*SERVICES, REPLICATION, HEALTH))

    def info(requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        found: Iterator[Any] = servicer.ServerReflectionInfo(requests, context)
        return found

    handler = grpc.stream_stream_rpc_method_handler(
        info,
        request_deserializer=ServerReflectionRequest.FromString,
        response_serializer=ServerReflectionResponse.SerializeToString,
    )
    return [grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": handler}) for name in _NAMES]
