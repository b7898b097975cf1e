"""A real S3 API over HTTP, in a process of its own (moto's server), and a door before it that can fail.

The door is a proxy: it passes requests on, answers 503, answers slowly, or is shut, as its `mood` says.
"""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

__all__ = ["BUCKET", "Door", "s3_environment", "s3_server"]

BUCKET = "vecstore-tests"
START_S_MAX = 60.0


def s3_environment(endpoint: str) -> dict[str, str]:
    """Return the environment in which ``s3://`` means an endpoint."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
    }


@contextmanager
def s3_server() -> Iterator[str]:
    """Run moto's server with one bucket; yield its endpoint."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    endpoint = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ)
    try:
        give_up_s = time.monotonic() + START_S_MAX
        while not _made_bucket(endpoint):
            assert process.poll() is None, "moto's server ended by itself"
            assert time.monotonic() < give_up_s, "moto's server did not come up"
            threading.Event().wait(0.05)
        yield endpoint
    finally:
        process.kill()
        process.wait()


def _made_bucket(endpoint: str) -> bool:
    request = urllib.request.Request(f"{endpoint}/{BUCKET}", method="PUT")
    request.add_header("Authorization", "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request")
    try:
        with urllib.request.urlopen(request, timeout=10):
            return True
    except (urllib.error.URLError, ConnectionError):
        return False


class Door:
    """A proxy before an endpoint. Thread-safe.

    Attributes
    ----------
    mood
        "open", "503", "slow" (each answer a while later) or "shut" (connections are cut).
    refused
        Requests that were not passed on.
    """

    def __init__(self, endpoint: str) -> None:
        self.mood, self.refused = "open", 0
        door, target = self, endpoint.removeprefix("http://")

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing."""

            def handle_any(self) -> None:
                """Pass a request on, or not."""
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if door.mood in ("503", "shut"):
                    door.refused += 1
                    self.close_connection = True
                    if door.mood == "503":
                        self.send_response(503)
                        self.send_header("Content-Length", "0")
                        self.end_headers()
                    return
                if door.mood == "slow":
                    threading.Event().wait(0.2)
                self.pass_on(target, body)

            def pass_on(self, target: str, body: bytes) -> None:
                """Ask the endpoint, and give its answer."""
                connection = http.client.HTTPConnection(target, timeout=60)
                connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                for name, value in self.headers.items():
                    connection.putheader(name, value)
                connection.endheaders(body or None)
                answer = connection.getresponse()
                data = answer.read()
                self.send_response(answer.status)
                for name, value in answer.getheaders():
                    if name.lower() not in ("content-length", "transfer-encoding", "connection", "server", "date"):
                        self.send_header(name, value)
                size = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(data))
                self.send_header("Content-Length", size or "0")
                self.end_headers()
                self.wfile.write(data)
                connection.close()

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any  # noqa: N815  (names that the base class asks for)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        """End it."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
