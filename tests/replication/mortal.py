"""A process whose children die at a chosen step: ``python -m tests.replication.mortal``, then a line for each child.

A line is a JSON list: STEP, COMMAND, ARGUMENTS. A child is forked, which kills itself with SIGKILL before the STEP-th
of what makes something durable, or names or removes something; 0 for never. The answer is a line with what became of
it. This process itself opens no store, so that its children find no threads gone.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vecstore.config import Config
from vecstore.engine.contents import keep
from vecstore.engine.contents.export import export
from vecstore.engine.contents.incoming import Incoming
from vecstore.engine.contents.install import install
from vecstore.engine.contents.reset import reset
from vecstore.engine.engine import Engine
from vecstore.storage.directory import begin, is_store
from vecstore.storage.rocks import RocksStore

from ..support.death import die_at

__all__ = ["Mortals", "mortals"]

ROOT = Path(__file__).parents[2]
_STEPS: list[tuple[Any, tuple[str, ...]]] = [
    (os, ("rename", "fsync", "unlink", "link", "mkdir")),
    (shutil, ("rmtree", "copy2")),
    (RocksStore, ("write", "flush", "sync", "checkpoint", "delete_range", "close")),
]


def fill(path: str, source: str, state: str) -> None:
    """Bring the files of a folder into one that is to become a store, or into a store, and put them in place."""
    if not is_store(path):
        begin(path).close()
        if is_store(path):
            return
    incoming = Incoming(path)
    files = [(name, size, check) for name, size, check in json.loads((Path(source) / "ticket").read_text())]
    incoming.begin("ticket", files)
    for name, offset in incoming.missing():
        incoming.receive(name, [(Path(source) / name).read_bytes()[offset:]])
    install(path, bytes.fromhex(state))


def reset_to(path: str, fork_lsn: int, points: str, state: str) -> None:
    """Reset a store to a fork."""
    reset(path, fork_lsn, points, bytes.fromhex(state))


def back(path: str, state: str) -> None:
    """Return to the kept checkpoint."""
    keep.back(path, bytes.fromhex(state))


def checkpoint(path: str) -> None:
    """Keep a checkpoint."""
    engine = _opened(path)
    keep.checkpoint(engine)
    engine.close()


def export_from(path: str, fork_lsn: int) -> None:
    """Export what is behind a fork."""
    engine = _opened(path)
    export(engine, fork_lsn, True)
    engine.close()


def _opened(path: str) -> Engine:
    config = Config.load({"disk_free_bytes_min": 0, "checkpoint_interval_s": 3600.0}, {})
    return Engine(path, create=False, read_only=False, device="cpu", config=config)


_COMMANDS: dict[str, Callable[..., None]] = {
    "fill": fill,
    "reset": reset_to,
    "back": back,
    "checkpoint": checkpoint,
    "export": export_from,
}


def main() -> None:
    """Fork a child for each line."""
    for line in sys.stdin:
        step, command, *arguments = json.loads(line)
        child = os.fork()
        if not child:
            code = 1
            try:
                die_at(step, _STEPS, [0])
                _COMMANDS[command](*arguments)
                code = 0
            except BaseException:  # noqa: BLE001  (all of them end the child)
                traceback.print_exc()
            finally:
                os._exit(code)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


class Mortals:
    """The process, as a test speaks to it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(self, step: int, command: str, *arguments: Any) -> bool:
        """Let a child carry out a command; return whether it came to its end."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps([step, command, *arguments]) + "\n")
        self._process.stdin.flush()
        code = int(self._process.stdout.readline())
        assert code in (0, -signal.SIGKILL), f"{command} failed"
        return code == 0

    def deaths(self, command: str, *arguments: Any, steps_max: int = 2_000) -> Iterator[int]:
        """Let a child die at each step in turn, yield after each; end when one came to its end."""
        step = 1
        while step < steps_max:
            if self.run(step, command, *arguments):
                assert step > 1
                return
            yield step
            step += 1 + step // 16
        raise AssertionError(f"{command} took more than {steps_max} steps")


@contextmanager
def mortals() -> Iterator[Mortals]:
    """Start the process, and end it afterwards."""
    module = [sys.executable, "-m", "tests.replication.mortal"]
    with subprocess.Popen(module, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Mortals(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()


if __name__ == "__main__":
    main()
