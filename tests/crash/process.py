"""Writing processes: started, listened to, killed at a chosen moment."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["CHILD_TIMEOUT_S", "add_seed", "run_writer", "write_until_killed"]

ROOT = Path(__file__).parents[2]
CHILD_TIMEOUT_S = 120.0
"""No child of a test takes this long unless it hangs."""


def _command(where: Path, seed: int, *options: Any) -> list[str]:
    module = [sys.executable, "-m", "tests.support.writer", str(where), "--seed", str(seed)]
    return [*module, *map(str, options)]


def write_until_killed(where: Path, seed: int, threads: int, *, acks: int | None, delay_s: float) -> list[bytes]:
    """Let a process write and kill it with SIGKILL; return all that it said.

    Parameters
    ----------
    acks
        Kill after so many acknowledgements; None: while it opens the store.
    delay_s
        And so much later.
    """
    process = subprocess.Popen(_command(where, seed, "--threads", threads), cwd=ROOT, stdout=subprocess.PIPE)
    hung = threading.Timer(CHILD_TIMEOUT_S, process.kill)
    kill = threading.Timer(delay_s, process.kill)
    hung.start()
    lines: list[bytes] = []
    wanted = b'{"event":"opening"' if acks is None else b'{"ack"'
    missing = 1 if acks is None else acks
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            lines.append(line)
            if line.startswith(wanted):
                missing -= 1
                if missing == 0:
                    kill.start()
    code = process.wait()
    hung.cancel()
    kill.cancel()
    assert code == -9, f"the writer ended by itself with {code}; it last said {lines[-3:]}"
    assert missing <= 0, f"the writer hung; it last said {lines[-3:]}"
    return lines


def run_writer(where: Path, seed: int, *options: Any, environment: Mapping[str, str] | None = None) -> None:
    """Let a process write until it ends by itself."""
    subprocess.run(
        _command(where, seed, *options), cwd=ROOT, env=environment or os.environ, check=True, timeout=CHILD_TIMEOUT_S
    )


def add_seed(error: BaseException, **facts: Any) -> None:
    """Say with a failure how to see it again."""
    error.add_note("to repeat: " + ", ".join(f"{name}={value!r}" for name, value in facts.items()))
