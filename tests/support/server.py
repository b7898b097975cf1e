"""Real servers in this process, and bare calls of the contract's methods by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc

import vecstore
from vecstore import Database, VecstoreError
from vecstore.config import MIB
from vecstore.server.service import Service
from vecstore.wire import status
from vecstore.wire.methods import METHODS, Method

__all__ = ["Wire", "served", "serving"]

MESSAGE_BYTES_MAX = 40 * MIB


class _Answering(grpc.ServerInterceptor):  # type: ignore[misc]
    """Makes statuses of errors, and nothing else that a server's own interceptors do."""

    def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:
        handler = continuation(details)
        if handler is None:
            return None
        call = handler.unary_unary or handler.unary_stream or handler.stream_stream

        def refuse(error: VecstoreError, context: Any) -> None:
            code, message, metadata = status.trailers(error)
            context.set_trailing_metadata(metadata)
            context.abort(code, message)

        def answered(request: Any, context: Any) -> Any:
            try:
                return call(request, context)
            except VecstoreError as exc:
                refuse(exc, context)

        def streamed(request: Any, context: Any) -> Any:
            try:
                yield from call(request, context)
            except VecstoreError as exc:
                refuse(exc, context)

        if handler.unary_unary:
            return handler._replace(unary_unary=answered)
        return handler._replace(**{"stream_stream" if handler.request_streaming else "unary_stream": streamed})


class Wire:
    """The methods of the contract by name, without any client of ours.

    Parameters
    ----------
    address
        HOST:PORT.
    """

    def __init__(self, address: str) -> None:
        limit = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        self.channel = grpc.insecure_channel(address, limit)
        self._methods = {method.name: method for method in METHODS}

    def __call__(self, name: str, request: Any, *, raw: bool = False, **options: Any) -> Any:
        """Call a method: a message in, or an iterator of messages, and so out.

        Parameters
        ----------
        raw
            Whether requests are bytes already.
        """
        method = self._methods[name]
        return self._callable(method, raw)(request, **{"timeout": 30, **options})

    def _callable(self, method: Method, raw: bool) -> Any:
        make = {
            (False, False): self.channel.unary_unary,
            (False, True): self.channel.unary_stream,
            (True, True): self.channel.stream_stream,
        }[method.streams_in, method.streams_out]
        write = None if raw else method.request.SerializeToString
        return make(method.path, write, method.reply.FromString)

    def close(self) -> None:
        """Close the connection."""
        self.channel.close()


@contextmanager
def serving(database: Database, **options: Any) -> Iterator[str]:
    """Serve a database that is open in this process; gives HOST:PORT."""
    threads = ThreadPoolExecutor(16)
    limit = [("grpc.max_receive_message_length", MESSAGE_BYTES_MAX), ("grpc.so_reuseport", 0)]
    service = Service(database, **{"region": "here", "role": lambda: "primary", **options})
    server = grpc.server(threads, service.handlers(), [_Answering()], limit)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()
        threads.shutdown()


@contextmanager
def served(path: str, **options: Any) -> Iterator[str]:
    """Open the store of a directory and serve it; gives HOST:PORT."""
    with vecstore.open(path) as database, serving(database, **options) as address:
        yield address
