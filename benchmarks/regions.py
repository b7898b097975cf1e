"""Servers of two Regions as processes: started, paused, killed, commanded, asked where they are. Measures nothing."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import bench

import vecstore
from vecstore.client.operator import Operator

__all__ = ["Region", "primary", "standby"]

READY = re.compile(r"vecstore ready grpc=(\S+)")
POLL_S = 0.02
"""Who looks more often takes a good part of what is measured: a look costs both sides half a millisecond."""
WAIT_S_MAX = 600.0
COMMAND_S_MAX = 600.0


class Region:
    """A `vecstore serve` in a process of its own, at an address that it keeps.

    Parameters
    ----------
    data
        Its directory.
    name
        Of the Region.
    follows
        The address of its primary; "" for a primary.
    """

    def __init__(self, data: Path, name: str, follows: str = "") -> None:
        self.data, self.name = data, name
        self._flags = ["--standby-of", follows, "--slot", name] if follows else []
        self.address = "127.0.0.1:0"
        self.start()

    def start(self) -> None:
        """Start it and wait until it is ready."""
        command = [sys.executable, "-m", "vecstore.cli.main", "serve", "--data", str(self.data), "--region", self.name]
        command += ["--listen", self.address, "--http", "", *self._flags]
        with Path(f"{self.data}.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if found := READY.match(line):
                self.address = found[1]
                break
        else:
            raise SystemExit(f"{self.name} did not start: {Path(f'{self.data}.log').read_text()[-2000:]}")
        self.database = vecstore.connect(self.address, timeout=WAIT_S_MAX, read_from="any")

    def signal(self, number: int) -> None:
        """Send a signal: SIGSTOP, SIGCONT."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """Kill it."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """Let it drain and end."""
        self.database.close()
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(60)

    # -- what it says ------------------------------------------------------------------------------------------------

    def position(self) -> int:
        """Return the LSN that it has applied."""
        return self.database.position()[1]

    def describe(self) -> dict[str, Any]:
        """Return what it is in the replication."""
        with Operator(self.address) as operator:
            return operator.describe()

    def command(self, name: str, **options: Any) -> str:
        """Give an operator's command."""
        with Operator(self.address) as operator:
            verdict = operator.command(name, COMMAND_S_MAX, **options)
        if not verdict.done:
            raise SystemExit(f"{name} of {self.name}: {verdict.text}")
        return verdict.text

    def wait_for(self, lsn: int) -> list[tuple[float, int]]:
        """Wait until it has applied an LSN; return the LSNs seen on the way, with their times."""
        seen: list[tuple[float, int]] = []
        until_s = time.perf_counter() + WAIT_S_MAX
        while not seen or seen[-1][1] < lsn:
            if time.perf_counter() > until_s:
                raise SystemExit(f"{self.name} stands at {seen[-1]}, waited for LSN {lsn}")
            seen.append((time.perf_counter(), self.position()))
            time.sleep(POLL_S)
        return seen

    def size(self) -> int:
        """Return the bytes of its files."""
        return bench.Disk.of(self.data).file_bytes


@contextmanager
def primary(data: Path, name: str = "east") -> Iterator[Region]:
    """Serve a store as a primary."""
    region = Region(data, name)
    try:
        yield region
    finally:
        region.stop()


@contextmanager
def standby(data: Path, of: Region, name: str = "west") -> Iterator[Region]:
    """Serve a standby of a primary; an empty directory bootstraps."""
    region = Region(data, name, of.address)
    try:
        yield region
    finally:
        region.stop()
