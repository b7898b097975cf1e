"""What every suite shares: the seed of this run, hypothesis's profile, and a count of what was left out.

The seed is printed in the header; ``VECSTORE_TEST_SEED=N pytest`` runs the same choices again.
"""

from __future__ import annotations

import os
import secrets
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

SEED = int(os.environ.get("VECSTORE_TEST_SEED") or secrets.randbits(32))
LEFT_OUT: Counter[str] = Counter()
MARKS = ("slow", "gpu")

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


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let a run of the simulator have more seeds, or one again, or write its traces."""
    parser.addoption("--seeds", default="300", help="seeds of the simulator: a count, or FIRST:END to run these again")
    parser.addoption("--write-traces", action="store_true", help="write the simulator's golden traces anew")


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
