"""Thousands of bad days, each from one number, and the invariants at every step of each.

A failing seed prints its history. ``pytest tests/simulation/test_seeds.py --seeds 417:418`` lives through one again;
``--seeds 20000`` through more. What the checks see is shown by the planted bugs (`test_planted.py`).
"""

from __future__ import annotations

from collections import Counter

import pytest

from .story import Story

FAMILIES = {
    "the stalled attempt": ("pause", "failover"),
    "a standby again, or put back": ("failover", "cut log", "rejoin", "put back", "put back beneath"),
    "back as primary": ("failover", "long crash", "cut"),
    "a stranger": ("stranger",),
    "a copy": ("copy", "failover"),
    "switchover": ("switchover", "crash"),
    "a lost token": ("isolate", "failover"),
    "an aborted rejoin": ("failover", "rejoin", "abort", "long crash"),
    "a log that was cut": ("failover", "cut log", "rejoin"),
    "calls in flight": ("promote", "failover"),
    "two promotions": ("promote two", "isolate", "cut"),
    "power loss": ("crash",),
    "clocks": ("clock", "crash", "failover"),
    "a lost slot": ("cut log", "drop slot", "pause"),
}
"""The fourteen histories of docs/replication.md, each as the faults that bring it about."""

BLOCKS = 6
FAMILY_SHARE = 20


@pytest.fixture(scope="module")
def seeds(pytestconfig: pytest.Config) -> range:
    """Return the seeds of this run."""
    first, colon, end = str(pytestconfig.getoption("--seeds")).partition(":")
    return range(int(first), int(end)) if colon else range(int(first))


@pytest.mark.parametrize("block", range(BLOCKS))
def test_nothing_breaks_an_invariant(seeds: range, block: int) -> None:
    """Under any faults nothing is lost in silence, and in peace all comes right."""
    for seed in seeds[block::BLOCKS]:
        Story(seed).run()


@pytest.mark.parametrize("family", FAMILIES)
def test_no_history_of_a_family_breaks_an_invariant(seeds: range, family: str) -> None:
    """The same, with more of what brings about one of the fourteen histories."""
    for seed in seeds[: max(len(seeds) // FAMILY_SHARE, min(len(seeds), 8))]:
        Story(seed, FAMILIES[family]).run()


def test_a_seed_is_a_history() -> None:
    """The same seed gives the same history, to the byte: so a failure can be lived through again."""
    first, second = Story(7), Story(7)
    first.run()
    second.run()
    assert first.world.history() == second.world.history()
    assert first.world.history() != Story(8).run().history()


def test_everything_that_can_happen_does() -> None:
    """A few dozen seeds hold failovers, handovers, fences, exports, resets, snapshots, disks put back, tokens lost."""
    seen: Counter[str] = Counter()
    for seed in range(40):
        seen.update(Story(seed).run().seen)
    wanted = ["crash", "pause", "cut", "isolate", "epoch", "handover", "fence", "exported", "reset", "installed"]
    assert {what: seen[what] for what in (*wanted, "lost", "alarm", "put back", "cut log") if seen[what] < 3} == {}
