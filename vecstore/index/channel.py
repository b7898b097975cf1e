"""How engine and worker talk: messages through a socket, arrays through memory that both have mapped.

A message is its length in four bytes and msgpack of a tagged struct. Arrays of queries, selections and answers lie in
an arena, a piece of anonymous shared memory that is gone when both processes are; the engine alone says which bytes of
it are whose, and takes bytes back once the worker has answered, never before.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import socket
import threading
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from ..values import Metric
from .source import File

__all__ = [
    "Arena",
    "Ask",
    "Channel",
    "Done",
    "Drop",
    "Forget",
    "Load",
    "Message",
    "Ready",
    "Reply",
    "Select",
    "WorkerOptions",
]

_ALIGNED = 64
_LENGTH_BYTES = 4


class WorkerOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a worker runs.

    Attributes
    ----------
    backend
        "cuda", or "host" to do on the CPU what a GPU does.
    device
        Number or UUID of the GPU.
    budget_bytes
        For indexes; 0 for nine tenths of what is free when it starts.
    scratch_bytes
        FAISS's scratch, and as much again for what surrounds a search.
    arena_bytes
        Shared memory.
    failing_allocation
        The allocation that fails though there is room, counted from 1; 0 for none. For drills and tests.
    selections
        Of the host backend: whether its indexes with lists obey selections.
    """

    backend: str = "cuda"
    device: str = "0"
    budget_bytes: int = 0
    scratch_bytes: int = 512 << 20
    arena_bytes: int = 64 << 20
    failing_allocation: int = 0
    selections: bool = False


class Load(msgspec.Struct, frozen=True, tag=True):
    """Build an index over a segment. `lists`, `pieces` and `width` as in `budget.Choice`, with its bytes by phase."""

    id: int
    segment: str
    metric: Metric
    dim: int
    files: list[File]
    kind: str
    lists: int
    pieces: int
    width: int
    need: tuple[int, int, int]
    seed: int


class Drop(msgspec.Struct, frozen=True, tag=True):
    """Give back a segment's index."""

    id: int
    segment: str


class Select(msgspec.Struct, frozen=True, tag=True):
    """Remember the selection whose bitmap lies at some bytes of the arena, which are free again once it is answered."""

    id: int
    number: int
    at: int
    size: int


class Forget(msgspec.Struct, frozen=True, tag=True):
    """Let go of a selection."""

    number: int


class Ask(msgspec.Struct, frozen=True, tag=True):
    """A question: float32 queries at `at`, the answer's rows to `rows_at` and its bounds to `bounds_at`."""

    id: int
    segment: str
    at: int
    count: int
    rows_at: int
    bounds_at: int
    kept: int
    candidates: int
    probes: int
    ef: int
    selection: int
    exact: bool


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The worker's first message."""

    pid: int
    name: str
    budget: int
    candidates_max: int
    obedient: list[str]
    versions: dict[str, str]


class Done(msgspec.Struct, frozen=True, tag=True):
    """The answer to a message with an id: `problem` is empty, or a word and what there is to say of it.

    `used` is what is reserved of the budget by now.
    """

    id: int
    problem: str = ""
    detail: str = ""
    used: int = 0


Message = Load | Drop | Select | Forget | Ask
Reply = Ready | Done
_encoder = msgspec.msgpack.Encoder()


class Channel:
    """One end of the socket. Sending is thread-safe; one thread receives."""

    def __init__(self, end: socket.socket, received: Any) -> None:
        self._socket = end
        self._lock = threading.Lock()
        self._decoder = msgspec.msgpack.Decoder(received)

    def send(self, message: Message | Reply) -> None:
        """Send a message; raises `OSError` where the other end is gone."""
        data = _encoder.encode(message)
        with self._lock:
            self._socket.sendall(len(data).to_bytes(_LENGTH_BYTES, "little") + data)

    def receive(self) -> Any:
        """Wait for a message; None once the other end is gone."""
        try:
            head = self._exactly(_LENGTH_BYTES)
            data = None if head is None else self._exactly(int.from_bytes(head, "little"))
        except OSError:
            return None
        return None if data is None else self._decoder.decode(data)

    def close(self) -> None:
        """End the connection: whoever receives at either end is told."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _exactly(self, size: int) -> bytes | None:
        data = bytearray()
        while len(data) < size:
            part = self._socket.recv(size - len(data))
            if not part:
                return None
            data += part
        return bytes(data)


class Arena:
    """Shared memory, given out in pieces. Thread-safe.

    Parameters
    ----------
    file
        Descriptor of the memory; a new one is made without it.
    """

    def __init__(self, size: int, file: int | None = None) -> None:
        self.file = os.memfd_create("vecstore-device") if file is None else file
        if file is None:
            os.ftruncate(self.file, size)
        self.size = size
        self._data = mmap.mmap(self.file, size)
        self._lock = threading.Lock()
        self._free: list[tuple[int, int]] = [(0, size)]

    def take(self, size: int) -> int | None:
        """Return where a piece of so many bytes begins, None where no run of them is free."""
        size = -(-max(size, 1) // _ALIGNED) * _ALIGNED
        with self._lock:
            for i, (at, length) in enumerate(self._free):
                if length >= size:
                    self._free[i : i + 1] = [(at + size, length - size)] if length > size else []
                    return at
        return None

    def give(self, at: int, size: int) -> None:
        """Take back a piece."""
        size = -(-max(size, 1) // _ALIGNED) * _ALIGNED
        with self._lock:
            joined: list[tuple[int, int]] = []
            for start, length in sorted([*self._free, (at, size)]):
                if joined and joined[-1][0] + joined[-1][1] == start:
                    joined[-1] = (joined[-1][0], joined[-1][1] + length)
                else:
                    joined.append((start, length))
            self._free = joined

    @property
    def free(self) -> int:
        """Bytes that nobody has."""
        with self._lock:
            return sum(length for _, length in self._free)

    def array(self, dtype: npt.DTypeLike, shape: tuple[int, ...], at: int) -> npt.NDArray[Any]:
        """Return an array over the bytes from a place."""
        count = int(np.prod(shape))
        return np.frombuffer(self._data, dtype, count, at).reshape(shape)

    def close(self) -> None:
        """Let go of the descriptor; the memory goes with the last array over it."""
        os.close(self.file)
