"""Bounded generators of load, in processes of their own: they offer calls at a rate, or again and again, and tell.

A generator never has more than a number of calls under way, ends after its seconds whatever the server does, and keeps
eight bytes for each answer. What it could not even send, because so many were under way, it counts.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import msgspec

__all__ = ["Generator", "Order", "Tally", "generators"]

ROOT = Path(__file__).parents[2]


class Order(msgspec.Struct, frozen=True):
    """What a generator is to do.

    Attributes
    ----------
    address
        HOST:PORT.
    path
        The method.
    message
        The request, in hexadecimal.
    seconds
        How long.
    in_flight_max
        Calls under way at most.
    rate
        Calls a second; 0: a new one for each that ended.
    timeout_s
        Of each call.
    token
        The caller's, if any.
    """

    address: str
    path: str
    message: str
    seconds: float
    in_flight_max: int
    rate: float = 0.0
    timeout_s: float = 2.0
    token: str = ""


class Tally(msgspec.Struct):
    """What came of it: seconds of each answer, codes of the rest, calls that were not sent, and pushbacks in ms."""

    answered_s: list[float] = []
    failed: dict[str, int] = {}
    unsent: int = 0
    pushback_ms: list[int] = []

    @property
    def offered(self) -> int:
        """Calls that were to be made."""
        return len(self.answered_s) + sum(self.failed.values()) + self.unsent

    def latency_s(self, share: float) -> float:
        """Return a quantile of the answers' times."""
        return sorted(self.answered_s)[int(share * (len(self.answered_s) - 1))]

    def add(self, other: Tally) -> None:
        """Take over what another counted."""
        self.answered_s += other.answered_s
        self.failed = dict(Counter(self.failed) + Counter(other.failed))
        self.unsent += other.unsent
        self.pushback_ms += other.pushback_ms


class Generator:
    """One process that waits for orders."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.load"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )

    def begin(self, order: Order) -> None:
        """Give it an order."""
        assert self.process.stdin is not None
        self.process.stdin.write(msgspec.json.encode(order).decode() + "\n")
        self.process.stdin.flush()

    def end(self) -> Tally:
        """Wait for what came of it."""
        assert self.process.stdout is not None
        return msgspec.json.decode(self.process.stdout.readline(), type=Tally)


@contextmanager
def generators(count: int) -> Iterator[list[Generator]]:
    """Start generators; they are gone at the end."""
    found = [Generator() for _ in range(count)]
    try:
        yield found
    finally:
        for one in found:
            one.process.kill()
            one.process.wait()
            for pipe in (one.process.stdin, one.process.stdout):
                if pipe is not None:
                    pipe.close()


# -- in the process ----------------------------------------------------------------------------------------------------


class _Work:
    """One order being carried out."""

    def __init__(self, order: Order, call: Any) -> None:
        self.order = order
        self.tally = Tally([], {}, 0, [])
        self._call = call
        self._message = bytes.fromhex(order.message)
        self._metadata = (("authorization", f"Bearer {order.token}"),) if order.token else ()
        self._places = threading.Semaphore(order.in_flight_max)
        self._lock = threading.Lock()

    def run(self) -> Tally:
        """Do it."""
        end_s = time.monotonic() + self.order.seconds
        if self.order.rate:
            self._offer(end_s)
        else:
            while time.monotonic() < end_s:
                if self._places.acquire(timeout=0.1):
                    self._send()
        for _ in range(self.order.in_flight_max):
            self._places.acquire(timeout=self.order.timeout_s + 5)
        return self.tally

    def _offer(self, end_s: float) -> None:
        pause, next_s = threading.Event(), time.monotonic()
        while next_s < end_s:
            wait_s = next_s - time.monotonic()
            if wait_s > 0:
                pause.wait(wait_s)
            if self._places.acquire(blocking=False):
                self._send()
            else:
                self.tally.unsent += 1
            next_s += 1 / self.order.rate

    def _send(self) -> None:
        start_s = time.monotonic()
        call = self._call.future(self._message, timeout=self.order.timeout_s, metadata=self._metadata)
        call.add_done_callback(lambda done: self._ended(done, start_s))

    def _ended(self, call: Any, start_s: float) -> None:
        code = call.code()
        with self._lock:
            if code is grpc.StatusCode.OK:
                self.tally.answered_s.append(time.monotonic() - start_s)
            else:
                self.tally.failed[code.name] = self.tally.failed.get(code.name, 0) + 1
                for key, value in call.trailing_metadata() or ():
                    if key == "grpc-retry-pushback-ms":
                        self.tally.pushback_ms.append(int(value))
        self._places.release()


def _main() -> None:
    channels: dict[str, grpc.Channel] = {}
    for line in sys.stdin:
        order = msgspec.json.decode(line, type=Order)
        if order.address not in channels:
            options = [("grpc.enable_retries", 0), ("grpc.max_receive_message_length", -1)]
            channels[order.address] = grpc.insecure_channel(order.address, options)
        tally = _Work(order, channels[order.address].unary_unary(order.path)).run()
        sys.stdout.write(json.dumps(msgspec.to_builtins(tally)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _main()
