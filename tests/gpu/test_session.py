"""A session with a GPU wastes nothing: what is missing is said, steps end in time, and each leaves its verdict."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .devices import NO_GPU, until

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SCRIPT = BENCHMARKS / "gpu_session.py"


@pytest.fixture(scope="module")
def session() -> Any:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("gpu_session", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_session"] = module
    spec.loader.exec_module(module)
    return module


def shell(session: Any, name: str, command: str, seconds: float = 20.0) -> Any:
    """Return a step that is a command of the shell."""
    return session.Step(name, ["sh", "-c", command], seconds)


def is_alive(pid: int) -> bool:
    """Return whether a process is there, and no corpse."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_every_step_leaves_its_verdict(session: Any, tmp_path: Path) -> None:
    """One that passes, one that fails, one that hangs with a child: the last lines are kept, and nothing lives on."""
    steps = [
        shell(session, "good", "echo fine"),
        shell(session, "bad", "seq 50; exit 3"),
        shell(session, "hangs", f"sleep 600 & echo $! > {tmp_path}/pid; wait", 1.5),
        shell(session, "last", "echo reached"),
    ]
    done = session.run(steps, tmp_path, 60.0)
    assert [one["verdict"] for one in done] == ["passed", "failed (3)", "out of time", "passed"]
    assert done[1]["tail"] == [str(i) for i in range(39, 51)]
    assert json.loads((tmp_path / "summary.json").read_text()) == {"steps": done}
    log = (tmp_path / "session.log").read_text()
    assert all(f"==== {step.name}:" in log for step in steps) and "reached" in log
    until("the child is gone", lambda: not is_alive(int((tmp_path / "pid").read_text())))


def test_what_there_is_no_time_for_is_not_begun(session: Any, tmp_path: Path) -> None:
    """When the time is up, the summary says which steps were left out."""
    now = iter([0.0, 1.0, 596.0, 597.0])
    steps = [shell(session, name, f"touch {tmp_path}/{name}") for name in ("a", "b", "c")]
    done = session.run(steps, tmp_path, 600.0, lambda: next(now))
    assert [one["verdict"] for one in done] == ["passed", "not begun", "not begun"]
    assert not (tmp_path / "b").exists()


def test_a_rehearsal_counts_tests(session: Any, tmp_path: Path) -> None:
    """Pytest's own counts are in the summary, and a benchmark is told how long it has."""
    tests = "tests/gpu/test_kernels.py"
    steps = [
        session.Step("few", session.pytest_of("few", "-k", "scored", tests), 60.0),
        session.Step("told", ["echo", "{seconds}"], 10.0),
    ]
    done = session.run(steps, tmp_path, 100.0)
    assert (done[0]["verdict"], done[0]["tests"], done[0]["failed"]) == ("passed", 2, 0), done
    assert "\n9\n" in (tmp_path / "session.log").read_text()


def test_every_step_names_files_that_there_are(session: Any, tmp_path: Path) -> None:
    """No step of either kind fails for a path that is gone."""
    for backend in ("cuda", "host"):
        for step in session.steps_of(backend, tmp_path):
            paths = [word for word in step.command if word.endswith(".py")]
            assert paths and all((session.ROOT / path).exists() for path in paths)


@pytest.mark.skipif(not NO_GPU, reason="there is a GPU")
def test_what_is_missing_is_said_at_once(tmp_path: Path) -> None:
    """Without a GPU or its libraries nothing is begun, and the reason is in the summary."""
    command = [sys.executable, str(SCRIPT), "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=dict(os.environ))
    assert done.returncode == 1
    written = json.loads((tmp_path / "summary.json").read_text())
    assert written["steps"] == [] and written["missing"]
    assert all(line in done.stderr for line in written["missing"])


def test_the_probe_finds_the_worker_right(tmp_path: Path) -> None:
    """Every way to compare rows is held against float64; each fact is in the file."""
    command = [sys.executable, str(BENCHMARKS / "gpu_probe.py"), "--backend", "host", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    facts = json.loads((tmp_path / "probe.json").read_text())
    assert facts["worker"]["right"] is True
