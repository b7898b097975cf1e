"""Real servers in this process, and bare calls of the contract's methods by name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc

import vecstore
from vecstore import Database
from vecstore.server.node import Node
from vecstore.server.settings import ServerSettings, Settings
from vecstore.wire.methods import METHODS, Method

__all__ = ["Wire", "served", "serving", "serving_node"]


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
    """Serve a database that is open in this process, and close it at the end; gives HOST:PORT.

    Parameters
    ----------
    options
        Sections of the settings by name, as in ``limits=AdmissionSettings(...)``.
    """
    with serving_node(database, **options) as node:
        yield node.grpc_address


@contextmanager
def serving_node(database: Database, **options: Any) -> Iterator[Node]:
    """Serve a database that is open in this process; gives the whole server."""
    server = ServerSettings(listen="127.0.0.1:0", http="", region="here")
    node = Node(Settings(**{"server": server, **options}), open_store=lambda: database)
    node.start()
    try:
        yield node
    finally:
        node.drain(0.0)


@contextmanager
def served(path: str, **options: Any) -> Iterator[str]:
    """Open the store of a directory and serve it; gives HOST:PORT."""
    with vecstore.open(path) as database, serving(database, **options) as address:
        yield address
