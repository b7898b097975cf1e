"""A program that serves an empty store to whoever asks for one: for tests of an install that has no engine itself.

Run by a Python that has the engine. A line on stdin is ``open``, answered by the address of a new server on stdout, or
an address to close, answered by ``closed``. It ends with its stdin.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

__all__ = ["FreshServers", "fresh_servers"]

ROOT = Path(__file__).parents[2]


class FreshServers:
    """The program, seen from the tests: gives addresses of empty stores.

    Parameters
    ----------
    running
        Its process.
    """

    def __init__(self, running: subprocess.Popen[str]) -> None:
        self._running = running

    def _ask(self, line: str) -> str:
        assert self._running.stdin is not None
        assert self._running.stdout is not None
        self._running.stdin.write(line + "\n")
        self._running.stdin.flush()
        return self._running.stdout.readline().strip()

    @contextmanager
    def served(self) -> Iterator[str]:
        """Serve an empty store; gives HOST:PORT."""
        address = self._ask("open")
        assert address, "the program of servers ended"
        try:
            yield address
        finally:
            assert self._ask(address) == "closed"


@contextmanager
def fresh_servers(python: str, root: str) -> Iterator[FreshServers]:
    """Run the program with this Python in the folder of a checkout."""
    command = [python, "-m", "tests.support.fresh"]
    with subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        yield FreshServers(running)


def _serve() -> None:
    from tests.support.memory import memory_folder
    from tests.support.server import served

    # What servers log is not for who waits for addresses.
    out, sys.stdout = sys.stdout, sys.stderr
    there: dict[str, ExitStack] = {}
    for line in map(str.strip, sys.stdin):
        if line == "open":
            stack = ExitStack()
            line = stack.enter_context(served(str(stack.enter_context(memory_folder()) / "store")))
            there[line] = stack
            print(line, file=out, flush=True)
        else:
            there.pop(line).close()
            print("closed", file=out, flush=True)
    for stack in there.values():
        stack.close()


if __name__ == "__main__":
    _serve()
