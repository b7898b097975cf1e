"""The HTTP port: ``/metrics`` for Prometheus, ``/healthz`` and ``/readyz`` for whoever starts and stops servers.

Bounded whatever arrives: one small thread a connection, few connections, each ended after a short time, and the oldest
ended where a new one finds no room, so that clients which say nothing cannot keep a probe out. Nothing is read but the
request's head, and nothing of it is answered or logged.
"""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler

from ..errors import Unavailable

__all__ = ["HTTPPort"]

_IDLE_S_MAX = 5.0
_POLL_S = 0.1
_CONTENT = "text/plain; version=0.0.4; charset=utf-8"


class HTTPPort:
    """A listening port and its threads.

    Parameters
    ----------
    address
        Host and port; port 0 takes a free one.
    metrics
        Gives the metrics' text.
    ready
        Says whether calls are taken, and if not, why.
    connections_max
        Connections at a time.

    Raises
    ------
    Unavailable
        The port cannot be had.
    """

    def __init__(
        self,
        address: tuple[str, int],
        metrics: Callable[[], bytes],
        ready: Callable[[], tuple[bool, str]],
        connections_max: int,
    ) -> None:
        try:
            self._server = _Server(address, metrics, ready, connections_max)
        except OSError as exc:
            host, port = address
            raise Unavailable(f"http: {host}:{port} cannot be listened on: {exc.strerror}") from exc
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(_POLL_S,), name="vecstore-http", daemon=True
        )

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return int(self._server.server_address[1])

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def close(self) -> None:
        """End every connection and let the port go."""
        if self._thread.is_alive():
            self._server.shutdown()
        self._server.end_all()
        self._server.server_close()


class _Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 64

    def __init__(
        self,
        address: tuple[str, int],
        metrics: Callable[[], bytes],
        ready: Callable[[], tuple[bool, str]],
        connections_max: int,
    ) -> None:
        self.metrics, self.ready = metrics, ready
        self._connections_max = connections_max
        self._lock = threading.Lock()
        self._open: dict[socket.socket, float] = {}
        self._scraping = threading.Lock()
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, _Handler)

    def scrape(self) -> bytes:
        """Return the metrics' text; one thread at a time makes it."""
        with self._scraping:
            return self.metrics()

    def process_request(self, request: socket.socket | tuple[bytes, socket.socket], client_address: object) -> None:
        """Make room for a connection, and handle it in a thread."""
        assert isinstance(request, socket.socket)
        with self._lock:
            while len(self._open) >= self._connections_max:
                self._end(next(iter(self._open)))
            self._open[request] = time.monotonic()
        super().process_request(request, client_address)

    def service_actions(self) -> None:
        """End what takes too long; called some times a second."""
        with self._lock:
            late_s = time.monotonic() - 2 * _IDLE_S_MAX
            for connection in [each for each, since_s in self._open.items() if since_s < late_s]:
                self._end(connection)

    def end_all(self) -> None:
        """End every connection."""
        with self._lock:
            for connection in list(self._open):
                self._end(connection)

    def _end(self, connection: socket.socket) -> None:
        self._open.pop(connection, None)
        with contextlib.suppress(OSError):
            # Its thread wakes up, finds the connection gone, and closes it.
            connection.shutdown(socket.SHUT_RDWR)

    def close_request(self, request: socket.socket | tuple[bytes, socket.socket]) -> None:
        """Forget a connection and close it."""
        assert isinstance(request, socket.socket)
        with self._lock:
            self._open.pop(request, None)
        super().close_request(request)

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: a client that went away is its own affair."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = _IDLE_S_MAX
    server_version = "vecstore"
    sys_version = ""

    def do_GET(self) -> None:
        """Answer one request; the connection then ends."""
        path = self.path.partition("?")[0]
        if path == "/metrics":
            self._answer(200, self.server.scrape(), _CONTENT)
        elif path == "/healthz":
            self._answer(200, b"alive\n")
        elif path == "/readyz":
            is_ready, why = self.server.ready()
            self._answer(200 if is_ready else 503, f"{why}\n".encode())
        else:
            self._answer(404, b"not found; there are /metrics, /healthz and /readyz\n")

    do_HEAD = do_GET  # noqa: N815

    def _answer(self, code: int, body: bytes, content: str = "text/plain; charset=utf-8") -> None:
        self.send_response(code)
        self.send_header("Content-Type", content)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing: probes come every second."""
