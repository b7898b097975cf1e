"""A TCP proxy on loopback whose network can be bad: it stalls, is cut, delays, is slow, resets, or flips bits.

Each direction is a `Way`, whose attributes may be changed while the proxy runs; what is changed holds for the next
bytes, on the connections that there are and on new ones. A network that is cut loses what was sent meanwhile, and so
does a connection that has sent something into it: it is reset once the cut is over, as TCP would give it up.
"""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from queue import Queue
from types import TracebackType

__all__ = ["Proxy", "Way", "proxied"]

PIECE_BYTES = 16_384
FLYING_MAX = 256
_RESET = struct.pack("ii", 1, 0)


class Way:
    """What becomes of bytes that go in one direction.

    Attributes
    ----------
    flow
        Whether they go on; cleared, they are held back, and come later.
    is_cut
        Whether they are lost, while the connection stays.
    delay_s
        How long each piece is on its way, beside others.
    bytes_per_s
        No more than so many; 0 for no limit.
    resets
        Share of the pieces at which the connection is reset.
    flips
        Share of the pieces in which a bit is flipped.
    flipped
        How many were.
    """

    def __init__(self, seed: int) -> None:
        self.flow = threading.Event()
        self.flow.set()
        self.is_cut = False
        self.delay_s = self.bytes_per_s = self.resets = self.flips = 0.0
        self.flipped = 0
        self._rng = random.Random(seed)

    # What the tests of clients call it.
    def set(self) -> None:
        """Let bytes go on."""
        self.flow.set()

    def clear(self) -> None:
        """Hold bytes back."""
        self.flow.clear()

    def heal(self) -> None:
        """Be a good network again."""
        self.is_cut = False
        self.delay_s = self.bytes_per_s = self.resets = self.flips = 0.0
        self.flow.set()

    def carried(self, data: bytes, wait: threading.Event) -> bytes | None:
        """Return what comes of bytes, once the line has taken them; None for the end of the connection."""
        self.flow.wait()
        if self.bytes_per_s:
            wait.wait(len(data) / self.bytes_per_s)
        if self.resets and self._rng.random() < self.resets:
            return None
        if self.flips and self._rng.random() < self.flips:
            self.flipped += 1
            changed = bytearray(data)
            changed[self._rng.randrange(len(data))] ^= 1 << self._rng.randrange(8)
            return bytes(changed)
        return data


class _Connection:
    """A client's connection and the one to the server. Ended by whoever finds it broken first."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client, self.server = client, server
        self.has_lost = False
        self.ended = threading.Event()

    def reset(self) -> None:
        """End both at once, and tell both sides."""
        self.ended.set()
        for each in (self.client, self.server):
            with contextlib.suppress(OSError):
                each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                each.shutdown(socket.SHUT_RDWR)


class Proxy:
    """Forwards connections to an address.

    Parameters
    ----------
    address
        HOST:PORT of the server; empty: nobody is there until `aim`.
    seed
        Of what is left to chance.
    host
        Address of this machine that servers are called from.

    Attributes
    ----------
    requests, replies
        The ways of what clients, servers send.
    """

    def __init__(self, address: str = "", seed: int = 0, *, host: str = "127.0.0.1") -> None:
        self._host = host
        self._target: tuple[str, int] | None = None
        self.requests, self.replies = Way(seed), Way(seed + 1)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._lock = threading.Lock()
        self._connections: list[_Connection] = []
        self._closed = threading.Event()
        if address:
            self.aim(address)
        threading.Thread(target=self._accept, daemon=True).start()

    def aim(self, address: str) -> None:
        """Forward new connections to an address."""
        host, _, port = address.rpartition(":")
        self._target = (host, int(port))

    def heal(self) -> None:
        """Be a good network again; connections that lost something are reset."""
        self.requests.heal()
        self.replies.heal()
        with self._lock:
            lossy = [each for each in self._connections if each.has_lost]
        for each in lossy:
            each.reset()

    def reset(self) -> None:
        """Reset all connections."""
        with self._lock:
            connections = list(self._connections)
        for each in connections:
            each.reset()

    def close(self) -> None:
        """Cut all connections for good."""
        self._closed.set()
        self.requests.set()
        self.replies.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.reset()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _accept(self) -> None:
        while not self._closed.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = (
                    socket.create_connection(self._target, source_address=(self._host, 0))
                    if self._target is not None
                    else None
                )
            except OSError:
                server = None
            if server is None:
                client.close()
                continue
            made = _Connection(client, server)
            with self._lock:
                self._connections.append(made)
            if self._closed.is_set():
                made.reset()
            threads = []
            for source, target, way in ((client, server, self.requests), (server, client, self.replies)):
                flying: Queue[tuple[float, bytes]] = Queue(FLYING_MAX)
                threads.append(threading.Thread(target=self._take, args=(made, source, way, flying), daemon=True))
                threads.append(threading.Thread(target=self._give, args=(made, target, flying), daemon=True))
            for thread in threads:
                thread.start()
            threading.Thread(target=self._bury, args=(made, threads), daemon=True).start()

    def _take(self, made: _Connection, source: socket.socket, way: Way, flying: Queue[tuple[float, bytes]]) -> None:
        has_lost = False
        try:
            while data := source.recv(PIECE_BYTES):
                if way.is_cut:
                    has_lost = made.has_lost = True
                    continue
                carried = None if has_lost else way.carried(data, made.ended)
                if carried is None:  # nothing is handed on behind a gap
                    made.reset()
                    break
                flying.put((time.monotonic() + way.delay_s, carried))
        except OSError:
            made.reset()
        if has_lost:
            made.ended.wait()
        flying.put((0.0, b""))

    def _give(self, made: _Connection, target: socket.socket, flying: Queue[tuple[float, bytes]]) -> None:
        while True:
            due_s, data = flying.get()
            late_s = due_s - time.monotonic()
            if late_s > 0:
                made.ended.wait(late_s)
            try:
                if not data:
                    target.shutdown(socket.SHUT_WR)
                    return
                if not made.ended.is_set():
                    target.sendall(data)
            except OSError:
                made.reset()
                if not data:
                    return

    def _bury(self, made: _Connection, threads: list[threading.Thread]) -> None:
        for thread in threads:
            thread.join()
        with self._lock:
            self._connections.remove(made)
        made.client.close()
        made.server.close()


@contextlib.contextmanager
def proxied(address: str, host: str = "127.0.0.1") -> Iterator[Proxy]:
    """Stand before a server, and call it from an address of this machine's."""
    with Proxy(address, host=host) as proxy:
        yield proxy
