"""What every suite shares: the seed of this run, hypothesis's profile, who runs alone, a count of what was left out.

The seed is printed in the header; ``VECSTORE_TEST_SEED=N pytest`` runs the same choices again. The whole suite runs in
two processes of one seed (``-n 0``: in one): most tests wait for servers and disks, and leave a core to others.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

SEED = int(os.environ.get("VECSTORE_TEST_SEED") or secrets.randbits(32))
os.environ["VECSTORE_TEST_SEED"] = str(SEED)
LEFT_OUT: Counter[str] = Counter()
MARKS = ("slow", "gpu")
PROCESSES = 2

# A shared machine's time says nothing about a property, so there are no deadlines; a failure prints how to repeat it.
settings.register_profile(
    "vecstore", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
settings.load_profile("vecstore")


@pytest.fixture(scope="session")
def seed() -> int:
    """Return the seed of this run, which its header printed."""
    return SEED


@pytest.fixture
def rng(seed: int) -> np.random.Generator:
    """Return a random generator of this run's seed, fresh for each test."""
    return np.random.default_rng(seed)


@pytest.fixture(autouse=True)
def _room(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Have a test that is marked ``alone`` wait for those of other processes, and these for it."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        yield
        return
    shared = tmp_path_factory.getbasetemp().parent
    is_alone = request.node.get_closest_marker("alone") is not None
    with ExitStack() as stack:
        with _locked(shared / "door", fcntl.LOCK_EX):
            # Who waits for an empty room stands in the door: nobody else comes in.
            stack.enter_context(_locked(shared / "room", fcntl.LOCK_EX if is_alone else fcntl.LOCK_SH))
        yield


@contextmanager
def _locked(path: Path, how: int) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, how)
        yield


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let a run of the simulator have more seeds, or one again, or write its traces."""
    parser.addoption("--seeds", default="2000", help="seeds of the simulator: a count, or FIRST:END to run these again")
    parser.addoption("--write-traces", action="store_true", help="write the simulator's golden traces anew")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Run the whole suite in several processes; what was chosen by name or mark in one."""
    is_whole = config.args_source is config.ArgsSource.TESTPATHS and not config.option.keyword
    is_usual = config.option.markexpr == " and ".join(f"not {mark}" for mark in MARKS) and not config.option.usepdb
    if "PYTEST_XDIST_WORKER" in os.environ or not config.pluginmanager.hasplugin("xdist"):
        return
    if is_whole and is_usual and config.option.numprocesses is None:
        config.option.numprocesses, config.option.dist = PROCESSES, "worksteal"


def pytest_report_header() -> str:
    """Print the seed."""
    return f"seed: VECSTORE_TEST_SEED={SEED}"


def pytest_deselected(items: Sequence[pytest.Item]) -> None:
    """Count what the marks leave out."""
    for item in items:
        LEFT_OUT.update(mark for mark in MARKS if item.get_closest_marker(mark))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what the marks left out."""
    for mark, count in sorted(LEFT_OUT.items()):
        terminalreporter.write_line(f"left out: {count} tests marked {mark} (pytest -m {mark} runs them)")
