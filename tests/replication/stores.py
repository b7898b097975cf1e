"""Real servers in processes of their own, one following another, for tests that look from outside."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.serve import ROOT, Served, process
from vecstore.api import Database
from vecstore.client.operator import Operator, Verdict
from vecstore.client.remote import connect
from vecstore.errors import VecstoreError

__all__ = ["FAST", "Store", "doctor", "eventually", "following", "put", "run_command", "vecstore_command"]

FAST = {
    "VECSTORE_SERVER_REPLICATION_CALL_EVERY_S": "0.2",
    "VECSTORE_SERVER_REPLICATION_SILENCE_S": "1.0",
    "VECSTORE_SERVER_REPLICATION_RETRY_S": "1.0",
    "VECSTORE_SERVER_REPLICATION_STEP_DOWN_S": "0.5",
    "VECSTORE_SERVER_REPLICATION_START_ALONE_AFTER_S": "5",
}
"""Timings so short that a test sees what takes a minute otherwise."""
WAIT_S = 30.0
COMMAND_S = 90.0


class Store:
    """A store's folder, and the server on it while there is one.

    Parameters
    ----------
    folder
        Its place; the log of the server stands beside it.
    arguments
        Of `vecstore serve`, at each start.
    environment
        Variables of its process; with one of `bent`, that is what runs. May be changed between two starts.
    """

    def __init__(
        self, folder: Path, *arguments: str, port: int = 0, environment: Mapping[str, str] | None = None
    ) -> None:
        self.folder = folder
        self.arguments = list(arguments)
        self.environment = {**FAST, **(environment or {})}
        self.port = port
        self.starts = 0
        self.served: Served | None = None
        self._stack = contextlib.ExitStack()

    @property
    def address(self) -> str:
        """Where it listens; the same at each start."""
        assert self.served is not None
        return self.served.grpc

    @contextlib.contextmanager
    def running(self, *more: str, points: int = 0) -> Iterator[Store]:
        """Run it for a block, which begins once so many points were written to the collection `docs`."""
        self.start(*more)
        try:
            if points:
                with self.database() as database:
                    put(database, 0, points)
            yield self
        finally:
            self.stop()

    def start(self, *more: str) -> None:
        """Start it, at the address that it had before."""
        self.starts += 1
        log = self.folder.with_name(f"{self.folder.name}-{self.starts}.log")
        arguments = [*self.arguments, *more, "--listen", f"127.0.0.1:{self.port}"]
        is_bent = any(name.startswith("BENT_") for name in self.environment)
        program = "tests.replication.bent" if is_bent else "vecstore.cli.main"
        running = process(self.folder, *arguments, log=log, environment=self.environment, program=program)
        self.served = self._stack.enter_context(running)
        self.port = int(self.served.grpc.rpartition(":")[2])

    def stop(self) -> None:
        """End it in order, also where it was paused."""
        if self.served is not None and self.served.process.poll() is None:
            self.signal(signal.SIGCONT)
            self.served.end()
        self._stack.close()
        self.served = None

    def kill(self) -> None:
        """End it at once."""
        assert self.served is not None
        self.served.process.kill()
        self.served.process.wait()
        self.stop()

    def signal(self, number: int) -> None:
        """Send its process a signal."""
        assert self.served is not None
        self.served.process.send_signal(number)

    def describe(self) -> dict[str, Any]:
        """Return what it is in the replication."""
        with Operator(self.address) as operator:
            return operator.describe()

    def command(self, name: str, **options: Any) -> Verdict:
        """Give it a command."""
        with Operator(self.address) as operator:
            return operator.command(name, WAIT_S, **options)

    @contextlib.contextmanager
    def database(self) -> Iterator[Database]:
        """Connect to it alone."""
        with connect([self.address], read_from="any", timeout=WAIT_S) as database:
            yield database

    def wait(self, what: Callable[[dict[str, Any]], object], within_s: float = WAIT_S) -> dict[str, Any]:
        """Wait until it says something of itself."""
        return eventually(self.describe, what, within_s, self.logs)

    def logs(self) -> str:
        """Return what its servers have logged."""
        return "\n".join(file.read_text() for file in sorted(self.folder.parent.glob(f"{self.folder.name}-*.log")))


def eventually(
    ask: Callable[[], dict[str, Any]],
    what: Callable[[dict[str, Any]], object],
    within_s: float = WAIT_S,
    words: Callable[[], str] = str,
) -> dict[str, Any]:
    """Ask until the answer is as it should be."""
    deadline_s = time.monotonic() + within_s
    found: Any = None
    pause = threading.Event()
    while time.monotonic() < deadline_s:
        with contextlib.suppress(VecstoreError):
            found = ask()
            if what(found):
                answer: dict[str, Any] = found
                return answer
        pause.wait(0.02)
    raise AssertionError(f"not within {within_s} s: {found}\n{words()}")


def following(primary: Store, standby: Store) -> None:
    """Wait until a standby has what its primary has."""
    standby.wait(lambda found: found["status"] == "following")
    lsn = primary.describe()["durable_lsn"]
    standby.wait(lambda found: found["applied_lsn"] >= lsn)


def run_command(*arguments: str) -> tuple[int, str, str]:
    """Run a command of `vecstore` with ``--json``; return its exit code, and what it printed to stdout and stderr."""
    command = [sys.executable, "-m", "vecstore.cli.main", *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=COMMAND_S, check=False)
    return done.returncode, done.stdout, done.stderr


def vecstore_command(*arguments: str, code: int = 0) -> Any:
    """Run a command that ends with an exit code; return the value that it printed."""
    ended, printed, said = run_command(*arguments)
    assert ended == code, printed + said
    return json.loads(printed)


def doctor(store: Store, *more: str) -> tuple[int, dict[str, Any]]:
    """Ask the doctor of a served store; return its exit code and what it said."""
    code, printed, _ = run_command("doctor", store.address, *more)
    return code, json.loads(printed)


def put(database: Database, first: int, count: int, name: str = "docs") -> str:
    """Write points to a collection, and return the token of the last."""
    collection = database.create_collection(name, 4, exist_ok=True)
    rng = np.random.default_rng(first)
    ids = list(range(first, first + count))
    return collection.upsert(ids, rng.standard_normal((count, 4), dtype=np.float32)).token
