"""The simulator finds what it is for: each planted bug breaks an invariant within a bounded number of seeds."""

from __future__ import annotations

import re

import pytest

from .checks import Violation
from .planted import BUGS, Bug, planted
from .story import Story

SEEDS_MAX = 1_500


def hunt(bug: Bug) -> str:
    """Return what the first seed that sees a bug says; "" where none does."""
    with planted(bug):
        for seed in (bug.seed, *range(SEEDS_MAX)):
            try:
                Story(seed, bug.favoured).run()
            except Violation as exc:
                return str(exc)
    return ""


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_planted_bug_is_found(bug: Bug) -> None:
    """A way in which the protocol could have been written wrong does not pass, and the failure tells its history."""
    found = hunt(bug)
    assert re.match(r"(I\d+|liveness|tokens|identity): ", found), f"{SEEDS_MAX} seeds do not see: {bug.name}"
    assert "\nseed " in found


def test_the_bugs_are_taken_out_again() -> None:
    """After a hunt the protocol is as it was."""
    before = [owner.__dict__[name] for bug in BUGS for owner, name, _ in bug.changes]
    for bug in BUGS:
        with planted(bug):
            pass
    assert before == [owner.__dict__[name] for bug in BUGS for owner, name, _ in bug.changes]


def test_there_are_many_bugs() -> None:
    """At least fifteen, and no two of one name."""
    assert len({bug.name for bug in BUGS}) == len(BUGS) >= 15
