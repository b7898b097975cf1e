"""A TCP proxy on loopback that can hold back what one side sends: a network that stalls."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

__all__ = ["Proxy", "proxied"]


class Proxy:
    """Forwards connections to an address.

    Parameters
    ----------
    address
        HOST:PORT of the server.

    Attributes
    ----------
    requests, replies
        Whether what clients, servers send goes on; clear them to hold it back.
    """

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._target = (host, int(port))
        self.requests, self.replies = threading.Event(), threading.Event()
        self.requests.set()
        self.replies.set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._sockets: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._target)
                self._sockets += [client, server]
                for source, target, gate in ((client, server, self.requests), (server, client, self.replies)):
                    threading.Thread(target=self._forward, args=(source, target, gate), daemon=True).start()

    def _forward(self, source: socket.socket, target: socket.socket, gate: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                gate.wait()
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Cut all connections."""
        self.requests.set()
        self.replies.set()
        self._listener.close()
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


@contextlib.contextmanager
def proxied(address: str) -> Iterator[Proxy]:
    """Stand before a server."""
    proxy = Proxy(address)
    try:
        yield proxy
    finally:
        proxy.close()
