"""The HTTP port: what it answers, and that nobody can keep others from being answered."""

from __future__ import annotations

import socket
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from vecstore import Unavailable
from vecstore.server.http import HTTPPort

TIMEOUT_S = 20.0
CONNECTIONS_MAX = 4


class Server:
    """A port over things that a test can change."""

    def __init__(self) -> None:
        self.text = b"metric 1\n"
        self.ready = (True, "serving")
        self.port = HTTPPort(("127.0.0.1", 0), lambda: self.text, lambda: self.ready, CONNECTIONS_MAX)
        self.port.start()

    def get(self, path: str, method: str = "GET") -> tuple[int, bytes]:
        """Return code and body of a request."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port.port}{path}", method=method)
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as exc:
            with exc:
                return exc.code, exc.read()

    def connection(self) -> socket.socket:
        """Return a connection on which nothing was said yet."""
        return socket.create_connection(("127.0.0.1", self.port.port), timeout=TIMEOUT_S)


@pytest.fixture
def server() -> Iterator[Server]:
    """A port that is listened on."""
    server = Server()
    yield server
    server.port.close()


def test_answers(server: Server) -> None:
    """Three paths are answered, any other is not found; HEAD has no body, other methods are refused."""
    assert server.get("/metrics") == (200, b"metric 1\n")
    assert server.get("/metrics?name[]=a") == (200, b"metric 1\n")
    assert server.get("/healthz") == (200, b"alive\n")
    assert server.get("/metrics", "HEAD") == (200, b"")
    assert server.get("/")[0] == 404
    assert server.get("/metrics", "POST")[0] == 501


def test_ready_says_why_not(server: Server) -> None:
    """`/readyz` is 503 with the reason while no calls are taken; `/healthz` is 200 all the while."""
    assert server.get("/readyz") == (200, b"serving\n")
    server.ready = (False, "draining")
    assert server.get("/readyz") == (503, b"draining\n")
    assert server.get("/healthz")[0] == 200


def test_silent_clients_keep_nobody_out(server: Server) -> None:
    """With more connections open than may be, all silent, a probe is answered at once; the oldest were ended."""
    silent = [server.connection() for _ in range(3 * CONNECTIONS_MAX)]
    try:
        for _ in range(5):
            assert server.get("/healthz") == (200, b"alive\n")
        # Ended by the server: its end of the connection reads as empty.
        assert silent[0].recv(1) == b""
    finally:
        for each in silent:
            each.close()


def test_clients_that_do_not_read_keep_nobody_out(server: Server) -> None:
    """Clients that ask for much and take nothing hold no more than their connections."""
    server.text = b"a" * 20_000_000
    greedy = [server.connection() for _ in range(3 * CONNECTIONS_MAX)]
    try:
        for each in greedy:
            each.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        assert server.get("/healthz") == (200, b"alive\n")
    finally:
        for each in greedy:
            each.close()


@pytest.mark.parametrize(
    "nonsense",
    [b"\x00" * 100, b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET /" + b"a" * 70_000, b"a: b\r\n" * 10_000],
)
def test_nonsense_is_refused(server: Server, nonsense: bytes) -> None:
    """What is no request ends its connection, with no word about the server's inside; the next one is served."""
    with server.connection() as connection:
        answer = b""
        try:
            connection.sendall(nonsense)
            connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(65_536):
                answer += part
        except OSError:
            # It was ended with bytes of ours unread.
            pass
    assert b"Traceback" not in answer
    assert b"Python" not in answer
    assert server.get("/healthz")[0] == 200


def test_a_port_that_is_taken_is_refused(server: Server) -> None:
    """The error names the address."""
    with pytest.raises(Unavailable, match=rf"127\.0\.0\.1:{server.port.port}"):
        HTTPPort(("127.0.0.1", server.port.port), lambda: b"", lambda: (True, ""), 2)


def test_close_before_start_ends() -> None:
    """A port that never answered is let go at once."""
    port = HTTPPort(("127.0.0.1", 0), lambda: b"", lambda: (True, ""), 2)
    port.close()
