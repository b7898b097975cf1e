"""A process that dies at a chosen step: ``python -m tests.backup.mortal STEP COMMAND ARGUMENTS``.

Steps are what changes a repository, and what brings a restore on: the process kills itself with SIGKILL before the
STEP-th of them. Without one left to die at it ends by itself, and says how many it took.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import vecstore
from vecstore.backup import restore, transfer
from vecstore.backup.plan import Target
from vecstore.backup.prune import prune
from vecstore.backup.repository import Repository
from vecstore.storage.rocks import RocksStore

from ..support.death import die_at

__all__ = ["COMMANDS", "deaths"]

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 120
CONFIG = {"archive_interval_s": 0.05, "checkpoint_interval_s": 3600.0, "disk_free_bytes_min": 1 << 20}


def snapshot(store: str, repository: str) -> None:
    """Take a snapshot."""
    with vecstore.open(store, config=CONFIG) as db:
        db.snapshot(repository)


def write(store: str, repository: str) -> None:
    """Write, and let the archive follow."""
    with vecstore.open(store, archive=repository, config=CONFIG) as db:
        points = db.create_collection("points", 4, exist_ok=True)
        for i in range(3):
            points.upsert([i, i + 1], np.full((2, 4), i + 1, np.float32))
            while db.status()["archive"]["lag_records"]:
                db.wait(db.status()["token"])


def restore_to(repository: str, path: str) -> None:
    """Restore everything."""
    restore.restore(Repository(repository), path, Target())


def prune_to_one(repository: str) -> None:
    """Prune to the last snapshot."""
    prune(Repository(repository), keep_last=1, keep_days=None, now_us=0)


COMMANDS: dict[str, Callable[..., None]] = {
    "snapshot": snapshot,
    "write": write,
    "restore": restore_to,
    "prune": prune_to_one,
}


def main() -> None:
    """Do the command, until death."""
    last, command, *arguments = sys.argv[1:]
    taken = [0]
    steps: list[tuple[Any, tuple[str, ...]]] = [(Repository, ("create", "replace", "put", "put_file"))]
    if command == "prune":
        # One object at a time.
        from vecstore.backup import prune as pruning

        pruning.BATCH_NAMES = 1
        steps.append((Repository, ("remove",)))
    if command == "restore":
        steps.append((transfer, ("_fetch",)))
        steps.append((RocksStore, ("write", "delete_range", "compact", "close")))
        steps.append((restore, ("_record_witness", "complete", "prove")))
    die_at(int(last), steps, taken)
    COMMANDS[command](*arguments)
    sys.stdout.write(f"{taken[0]}\n")


def deaths(command: str, *arguments: str, steps_max: int = 200) -> Iterator[int]:
    """Let a process die at each step in turn, yield after each death; end when one came to its end.

    Every other step is left out beyond the twentieth, and ever more of them.
    """
    step = 1
    while step < steps_max:
        module = [sys.executable, "-m", "tests.backup.mortal", str(step), command, *arguments]
        done = subprocess.run(module, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        if done.returncode == 0:
            assert int(done.stdout) < step
            return
        assert done.returncode == -signal.SIGKILL, done.stderr
        yield step
        step += 1 + step // 8
    raise AssertionError(f"{command} took more than {steps_max} steps")


if __name__ == "__main__":
    main()
