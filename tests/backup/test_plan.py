"""Plans against brute force: random trees of epochs, snapshots and ranges with gaps and overlaps.

A record is known by the branch that owns its LSN; a commit time is the LSN times 1,000, the same on every branch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vecstore.backup.layout import Branch, RangeName
from vecstore.backup.manifest import Manifest, branch_of
from vecstore.backup.plan import (
    DAY_US,
    Lineage,
    Target,
    choose_history,
    is_on,
    leaves,
    owner,
    plan_prune,
    plan_restore,
    reached,
    windows,
)
from vecstore.errors import InvalidArgument, NotFound, VecstoreError
from vecstore.storage.catalog import Epoch

TICK_US = 1_000


@dataclass
class World:
    """A lineage as it is and what a repository has of it.

    Attributes
    ----------
    ends
        The last LSN that each branch wrote.
    """

    lineage: Lineage
    ends: dict[Branch, int]


def manifest(epochs: list[Epoch], lsn: int, name: str) -> Manifest:
    """Return a snapshot at an LSN of a history."""
    return Manifest(
        id=name,
        lineage="aa",
        epochs=epochs,
        lsn=lsn,
        epoch=epochs[-1].number,
        chain="",
        log_bytes=0,
        commit_time_us=lsn * TICK_US,
        wall_time_us=lsn * TICK_US,
        collections=[],
        files=[],
        checkpoint=("", 0, ""),
        bytes_new=0,
        config={},
        written_by="",
    )


def range_of(first: int, last: int) -> RangeName:
    """Return the name of a range."""
    return RangeName(first, last, first * TICK_US, last * TICK_US, "0" * 16)


@st.composite
def worlds(draw: Any) -> World:
    """Draw a tree of up to four epochs, and what a repository has of it."""
    histories: list[list[Epoch]] = [[Epoch(1, "aa", 0, "")]]
    ends = {Branch(1, "aa"): draw(st.integers(1, 12))}
    for number in range(2, 2 + draw(st.integers(0, 3))):
        parent = draw(st.sampled_from(histories))
        fork = draw(st.integers(parent[-1].fork_lsn + 1, ends[branch_of(parent)]))
        history = [*parent, Epoch(number, f"{number:02x}", fork, "")]
        histories.append(history)
        ends[branch_of(history)] = fork + draw(st.integers(1, 8))
    manifests, ranges, heads = [], {}, {}
    for history in histories:
        branch, start = branch_of(history), history[-1].fork_lsn + 1
        lsns = st.integers(start, ends[branch])
        for i, lsn in enumerate(sorted(draw(st.lists(lsns, max_size=3, unique=True)))):
            manifests.append(manifest(history, lsn, f"{branch}-{i}"))
        pairs = draw(st.lists(st.tuples(lsns, lsns), max_size=6))
        held = {range_of(min(pair), max(pair)) for pair in pairs}
        if draw(st.booleans()):
            held.add(range_of(start, ends[branch]))
        if held:
            ranges[branch], heads[branch] = sorted(held), history
    return World(Lineage("aa", sorted(manifests, key=lambda m: m.lsn), heads, ranges), ends)


def reachable(lineage: Lineage, history: list[Epoch], lsn: int) -> bool:
    """Say by brute force whether each record from some start to an LSN is there."""
    starts = {0} | {m.lsn for m in lineage.manifests if is_on(history, m)}
    return any(start <= lsn and all(_has(lineage, history, n) for n in range(start + 1, lsn + 1)) for start in starts)


def _has(lineage: Lineage, history: list[Epoch], lsn: int) -> bool:
    branch = owner(history, lsn)
    return branch is not None and any(r.first <= lsn <= r.last for r in lineage.ranges.get(branch, ()))


def follow(lineage: Lineage, history: list[Epoch], target: Target) -> int:
    """Walk a plan and assert that each record comes once, in order, from the branch that owns it; return its end."""
    plan = plan_restore(lineage, history, target)
    at = plan.base.lsn if plan.base is not None else 0
    assert plan.base is None or is_on(history, plan.base)
    for step in plan.steps:
        assert step.range in lineage.ranges[step.branch]
        last = min(step.last, target.lsn or step.last, (target.time_us or 2**60) // TICK_US)
        for lsn in range(at + 1, last + 1):
            assert step.range.first <= lsn <= step.range.last
            assert owner(history, lsn) == step.branch
        at = max(at, last)
    return at


@given(worlds())
@settings(max_examples=400)
def test_a_plan_leads_to_every_lsn_that_is_within_reach_and_to_no_other(world: World) -> None:
    """For each history and LSN: the plan is followed record by record, or brute force finds no way either."""
    lineage = world.lineage
    for history in lineage.histories().values():
        for lsn in range(world.ends[branch_of(history)] + 2):
            if reachable(lineage, history, lsn):
                assert follow(lineage, history, Target(lsn=lsn)) == lsn
            else:
                with pytest.raises(VecstoreError, match="LSN|records|archive|target"):
                    plan_restore(lineage, history, Target(lsn=lsn))


@given(worlds(), st.integers(0, 30))
@settings(max_examples=300)
def test_a_time_leads_to_the_last_record_by_then(world: World, tick: int) -> None:
    """The plan for a time ends at the newest record of that time or before, or says that it is not there."""
    lineage = world.lineage
    for history in lineage.histories().values():
        try:
            end = follow(lineage, history, Target(time_us=tick * TICK_US))
        except VecstoreError:
            continue
        later = [lsn for lsn in range(end + 1, tick + 1) if reachable(lineage, history, lsn)]
        assert end <= tick
        assert later == []


@given(worlds())
@settings(max_examples=200)
def test_windows_hold_what_can_be_restored(world: World) -> None:
    """An LSN is in a window of a history where it can be restored, and nowhere else."""
    lineage = world.lineage
    for history in lineage.histories().values():
        found = windows(lineage, history)
        for lsn in range(1, world.ends[branch_of(history)] + 2):
            assert any(w.first <= lsn <= w.last for w in found) == reachable(lineage, history, lsn)


@given(worlds(), st.none() | st.integers(1, 3), st.none() | st.integers(0, 20), st.integers(0, 25))
@settings(max_examples=400)
def test_a_prune_breaks_no_chain(world: World, keep_last: int | None, keep_ticks: int | None, now_tick: int) -> None:
    """What kept snapshots and kept days need stays; of each branch that leads somewhere the last snapshots stay."""
    lineage = world.lineage
    keep_days = None if keep_ticks is None else keep_ticks * TICK_US / DAY_US
    gone = plan_prune(lineage, keep_last=keep_last, keep_days=keep_days, now_us=now_tick * TICK_US)
    left = Lineage(
        lineage.name,
        [m for m in lineage.manifests if m not in gone.manifests],
        lineage.heads,
        {b: [r for r in held if (b, r) not in gone.ranges] for b, held in lineage.ranges.items()},
    )
    if keep_last is None and keep_days is None:
        assert gone.manifests == []
    for history in leaves(lineage):
        before = [m.lsn for m in lineage.manifests if is_on(history, m)]
        after = [m.lsn for m in left.manifests if is_on(history, m)]
        assert bool(before) == bool(after)
        if keep_last is not None:
            assert set(sorted(before)[-keep_last:]) <= set(after)
        for lsn in after or [0]:
            assert reached(history, left.ranges, lsn) == reached(history, lineage.ranges, lsn)
        if keep_ticks is not None:
            for lsn in range(max(1, now_tick - keep_ticks), world.ends[branch_of(history)] + 1):
                assert reachable(left, history, lsn) == reachable(lineage, history, lsn), lsn


def test_the_highest_epoch_is_restored_and_two_of_one_number_are_asked_about() -> None:
    """A promoted standby's branch comes first; where two writers have one number, nobody guesses."""
    first = [Epoch(1, "aa", 0, "")]
    second, rival = [*first, Epoch(2, "bb", 3, "")], [*first, Epoch(2, "cc", 4, "")]
    heads = {branch_of(h): h for h in (first, second)}
    assert choose_history(Lineage("aa", (), heads), "") == second
    assert choose_history(Lineage("aa", (), heads), "1-aa") == first
    both = Lineage("aa", (), {**heads, branch_of(rival): rival})
    with pytest.raises(InvalidArgument, match="two writers"):
        choose_history(both, "")
    assert choose_history(both, "0000000002-cc") == rival
    with pytest.raises(NotFound):
        choose_history(both, "7")


def test_a_branch_that_was_taken_over_whole_is_no_leaf() -> None:
    """An old epoch whose records all live on in the next keeps no snapshots of its own; one with a tail does."""
    first = [Epoch(1, "aa", 0, "")]
    second = [*first, Epoch(2, "bb", 5, "")]
    whole = Lineage("aa", (), {branch_of(h): h for h in (first, second)}, {Branch(1, "aa"): [range_of(1, 5)]})
    assert leaves(whole) == [second]
    tail = Lineage("aa", (), whole.heads, {Branch(1, "aa"): [range_of(1, 6)]})
    assert leaves(tail) == [first, second]
