"""A clone's server: a process of its own on this machine's loopback, which only its starter can call.

It knows no archive, no peers and no schedules, and asks for a token that nobody else has. It gives way to its starter's
server: lower priority, memory and disk within what that one leaves. What it logs is kept until it ends.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, Any

from ..client.operator import Operator
from ..errors import Unavailable
from .auth import entry_text, new_secret
from .caller import Grant

__all__ = ["CloneServer", "run_quietly"]

PRIORITY = 10
"""Of a clone's processes: production's searches go before."""
END_S_MAX = 30.0
COMMAND_S_MAX = 60.0
_READY = re.compile(r"vecstore ready grpc=(\S+)")


class CloneServer:
    """`vecstore serve` on a clone. One thread starts, uses and ends it.

    Parameters
    ----------
    data
        The clone.
    folder
        For its files, beside the clone.
    options
        Of the store: names and values.
    """

    def __init__(self, data: Path, folder: Path, options: dict[str, int]) -> None:
        self.token = new_secret()
        tokens = folder / "tokens.toml"
        tokens.touch(mode=0o600)
        tokens.write_text(entry_text("drill", self.token, [Grant("admin", None)]))
        self._log = folder / "log"
        command = [*_tied(), "serve", "--data", str(data), "--listen", "127.0.0.1:0", "--http", ""]
        command += ["--tokens", str(tokens), "--log-level", "warning"]
        # None of the parent's options: they may name its archive, its peers, its certificate.
        environment = _plain_environment() | {f"VECSTORE_{name.upper()}": str(value) for name, value in options.items()}
        with self._log.open("wb") as stderr:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment
            )
        _give_way(self._process.pid)
        self.address = ""

    def wait_ready(self, timeout_s: float) -> None:
        """Wait until it takes calls.

        Raises
        ------
        Unavailable
            It ended, or took too long; the message has the end of its log.
        """
        output = self._process.stdout
        assert output is not None
        alarm = threading.Timer(timeout_s, self._process.kill)
        alarm.start()
        try:
            found = _READY.match(_line(output))
        finally:
            alarm.cancel()
        if found is None:
            code = self._process.wait()
            raise Unavailable(f"the clone did not start (exit code {code}): {self._last_words()}")
        self.address = found[1]

    def command(self, name: str, **options: Any) -> str:
        """Give it an operator's command; return what it says to it.

        Raises
        ------
        Unavailable
            It refused.
        """
        with Operator(self.address, token=self.token) as operator:
            verdict = operator.command(name, COMMAND_S_MAX, **options)
        if not verdict.done:
            raise Unavailable(f"{name}: {verdict.text}")
        return verdict.text

    def end(self) -> None:
        """End it, whatever state it is in."""
        if self._process.stdout is not None:
            self._process.stdout.close()
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(END_S_MAX)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _last_words(self) -> str:
        return " ".join(self._log.read_text(errors="replace")[-500:].split())


_TIED = """
import ctypes, os, signal, sys
libc = ctypes.CDLL(None)
if hasattr(libc, "prctl"):
    libc.prctl(1, signal.SIGKILL)
if os.getppid() != int(sys.argv[1]):
    os._exit(1)
os.execv(sys.executable, [sys.executable, "-m", "vecstore.cli.main", *sys.argv[2:]])
"""
"""Has the kernel end the process when the thread that started it does: what outlives a server that was killed would
hold files and memory for ever."""


def _tied() -> list[str]:
    """Return the program `vecstore` as a command that does not outlive its starter."""
    return [sys.executable, "-c", _TIED, str(os.getpid())]


def run_quietly(arguments: list[str], timeout_s: float) -> str:
    """Run a command of this version on a clone, and return what it prints.

    Raises
    ------
    Unavailable
        It took too long. Its exit code is not looked at: what it prints says what it found.
    """
    process = subprocess.Popen(
        [*_tied(), *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=_plain_environment(),
    )
    _give_way(process.pid)
    try:
        return process.communicate(timeout=timeout_s)[0]
    except subprocess.TimeoutExpired as exc:
        process.kill()
        process.communicate()
        raise Unavailable(f"{arguments[0]} of the clone was not done within {timeout_s:g} s") from exc


def _give_way(pid: int) -> None:
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, os.getpriority(os.PRIO_PROCESS, 0) + PRIORITY)


def _plain_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("VECSTORE_")}


def _line(output: IO[str]) -> str:
    return output.readline()
