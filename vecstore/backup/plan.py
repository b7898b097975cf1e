"""What to restore and what to prune: pure functions over what a repository lists.

A history is a list of epochs. An LSN belongs to the last epoch that forked below it; so two histories agree on an LSN
where the same epoch (number and writer) owns it in both, and the records of an epoch are in its branch of the archive
alone. The path of a tip is its history: from it follow the snapshots that are on the way, and the ranges that lead on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ..errors import Damaged, InvalidArgument, NotFound
from ..storage.catalog import Epoch
from .layout import Branch, RangeName
from .manifest import Manifest, branch_of

__all__ = [
    "Leftover",
    "Lineage",
    "Plan",
    "Step",
    "Target",
    "Window",
    "beyond",
    "choose_history",
    "cover",
    "is_on",
    "leaves",
    "limit",
    "owner",
    "plan_prune",
    "plan_restore",
    "reached",
    "windows",
]

LSN_MAX = 2**63
DAY_US = 86_400 * 1_000_000


@dataclass(frozen=True, slots=True)
class Lineage:
    """What a repository holds of one lineage.

    Attributes
    ----------
    manifests
        By LSN.
    heads
        The history of each branch of the archive.
    ranges
        Of each branch, sorted.
    """

    name: str
    manifests: Sequence[Manifest] = ()
    heads: Mapping[Branch, list[Epoch]] = field(default_factory=dict)
    ranges: Mapping[Branch, Sequence[RangeName]] = field(default_factory=dict)

    def histories(self) -> dict[Branch, list[Epoch]]:
        """Return the history of every branch that a snapshot or the archive knows of."""
        known = dict(self.heads)
        for manifest in self.manifests:
            for i in range(len(manifest.epochs)):
                known.setdefault(branch_of(manifest.epochs[: i + 1]), manifest.epochs[: i + 1])
        return dict(sorted(known.items()))


@dataclass(frozen=True, slots=True)
class Step:
    """A range to apply, up to and including the record at LSN `last`."""

    branch: Branch
    range: RangeName
    last: int


@dataclass(frozen=True, slots=True)
class Target:
    """Where to restore to: an LSN, a commit time, or, with neither, as far as there is."""

    lsn: int | None = None
    time_us: int | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """A restore: a snapshot (None: the empty store at LSN 0), then ranges, up to a target."""

    history: list[Epoch]
    base: Manifest | None
    steps: list[Step]
    target: Target


@dataclass(frozen=True, slots=True)
class Window:
    """States that can be restored: every LSN of it, both ends included, and their commit times."""

    first: int
    last: int
    first_us: int
    last_us: int


@dataclass(frozen=True, slots=True)
class Leftover:
    """What a prune removes."""

    manifests: list[Manifest]
    ranges: list[tuple[Branch, RangeName]]


# -- paths -----------------------------------------------------------------------------------------------------------


def limit(history: Sequence[Epoch], branch: Branch) -> int | None:
    """Return the last LSN that a branch owns in a history, None where it is not part of it."""
    for i, epoch in enumerate(history):
        if (epoch.number, epoch.writer) == (branch.number, branch.writer):
            return history[i + 1].fork_lsn if i + 1 < len(history) else LSN_MAX
    return None


def owner(history: Sequence[Epoch], lsn: int) -> Branch | None:
    """Return the branch that a record is in."""
    for epoch in reversed(history):
        if epoch.fork_lsn < lsn:
            return Branch(epoch.number, epoch.writer)
    return None


def is_on(history: Sequence[Epoch], manifest: Manifest) -> bool:
    """Return whether a snapshot is of a history."""
    last = limit(history, manifest.branch)
    return last is not None and manifest.lsn <= last


def cover(history: Sequence[Epoch], ranges: Mapping[Branch, Sequence[RangeName]], after: int) -> list[Step]:
    """Return the ranges that lead on from an LSN without a gap, as far as they do."""
    steps: list[Step] = []
    at = after
    while True:
        branch = owner(history, at + 1)
        if branch is None:
            return steps
        last = limit(history, branch) or 0
        found = [r for r in ranges.get(branch, ()) if r.first <= at + 1 <= r.last]
        if not found:
            return steps
        best = max(found, key=lambda r: r.last)
        reach = min(best.last, last)
        assert reach > at, "an owner's limit is not below what it owns"
        at = reach
        steps.append(Step(branch, best, at))


def reached(history: Sequence[Epoch], ranges: Mapping[Branch, Sequence[RangeName]], after: int) -> int:
    """Return the LSN that the archive leads to from another one."""
    steps = cover(history, ranges, after)
    return steps[-1].last if steps else after


def beyond(history: Sequence[Epoch], ranges: Mapping[Branch, Sequence[RangeName]], lsn: int) -> RangeName | None:
    """Return the first range of a history that begins above an LSN."""
    found = [r for b, held in ranges.items() for r in held if lsn < r.first <= (limit(history, b) or 0)]
    return min(found, default=None)


def _age(manifest: Manifest) -> tuple[int, int]:
    return manifest.lsn, manifest.wall_time_us


# -- restore ---------------------------------------------------------------------------------------------------------


def choose_history(lineage: Lineage, asked: str) -> list[Epoch]:
    """Return the history to restore: that of the highest epoch, or of the branch that was asked for.

    Raises
    ------
    NotFound
        Nothing is there, or no such branch.
    InvalidArgument
        Two writers have the highest epoch, and none was asked for.
    """
    known = lineage.histories()
    if asked:
        found = [
            branch for branch in known if str(branch).startswith(asked) or str(branch).lstrip("0").startswith(asked)
        ]
        if len(found) != 1:
            names = ", ".join(map(str, known)) or "none"
            raise NotFound(f"repository: {len(found)} branches are named {asked!r}; there are: {names}")
        return known[found[0]]
    if not known:
        raise NotFound("repository: it holds neither a snapshot nor an archive", details={"lineage": lineage.name})
    highest = [branch for branch in known if branch.number == max(known).number]
    if len(highest) > 1:
        raise InvalidArgument(
            f"repository: two writers have epoch {highest[0].number}: {', '.join(map(str, highest))}",
            hint=f"name one of them: REPO#{lineage.name}/{highest[0]}",
            details={"branches": [str(branch) for branch in highest]},
        )
    return known[highest[0]]


def plan_restore(lineage: Lineage, history: list[Epoch], target: Target, snapshot: str = "") -> Plan:
    """Return how to come to a target: the newest snapshot on the way that is not after it, then ranges.

    Parameters
    ----------
    snapshot
        The id of the snapshot to begin with, instead of the newest.

    Raises
    ------
    NotFound
        The target is before all that is there, or behind its end.
    Damaged
        Records between are missing; the details name them.
    """
    on_path = [m for m in lineage.manifests if is_on(history, m) and not _is_after(m.lsn, m.commit_time_us, target)]
    if snapshot:
        on_path = [m for m in on_path if m.id == snapshot]
        if not on_path:
            raise NotFound(f"repository: no snapshot {snapshot!r} leads to the target", details={"snapshot": snapshot})
    base = max(on_path, key=_age, default=None)
    start = base.lsn if base is not None else 0
    way = cover(history, lineage.ranges, start)
    steps = [step for step in way if not _is_after(step.range.first, step.range.first_us, target)]
    if target.lsn == start:
        steps = []
    end = steps[-1].last if steps else start
    if base is None and not steps and target.lsn != 0:
        raise _out_of_reach(lineage, history, target)
    if target.lsn is not None and end < target.lsn:
        raise _gap(lineage, history, end, target)
    later = beyond(history, lineage.ranges, end)
    if later is not None and later.first > end + 1 and not _is_after(later.first, later.first_us, target):
        raise _gap(lineage, history, end, target)
    return Plan(history, base, steps, target)


def _is_after(lsn: int, time_us: int, target: Target) -> bool:
    if target.lsn is not None:
        return lsn > target.lsn
    return target.time_us is not None and time_us > target.time_us


def _out_of_reach(lineage: Lineage, history: list[Epoch], target: Target) -> NotFound:
    found = windows(lineage, history)
    words = ", ".join(f"LSN {w.first} to {w.last}" for w in found) or "nothing"
    return NotFound(
        f"repository: the target is before all that can be restored: {words}",
        hint="vecstore snapshots REPO lists the points in time",
        details={"lsn": target.lsn, "windows": [[w.first, w.last] for w in found]},
    )


def _gap(lineage: Lineage, history: list[Epoch], end: int, target: Target) -> Damaged | NotFound:
    later = beyond(history, lineage.ranges, end)
    if later is None:
        return NotFound(
            f"repository: LSN {target.lsn} is behind the end of the archive, which is LSN {end}",
            details={"lsn": target.lsn, "last_lsn": end},
        )
    return Damaged(
        f"repository: records {end + 1} to {later.first - 1} are missing in the archive",
        hint=f"restore to LSN {end}, or to a snapshot after the gap",
        details={"first_lost_lsn": end + 1, "last_lost_lsn": later.first - 1},
    )


def windows(lineage: Lineage, history: list[Epoch]) -> list[Window]:
    """Return the states of a history that can be restored, as few windows, in order."""
    starts = [(m.lsn, m.commit_time_us) for m in lineage.manifests if is_on(history, m)]
    if reached(history, lineage.ranges, 0) > 0:
        starts.append((0, min(r.first_us for held in lineage.ranges.values() for r in held)))
    found: list[Window] = []
    for first, first_us in sorted(starts):
        steps = cover(history, lineage.ranges, first)
        last = steps[-1].last if steps else first
        last_us = steps[-1].range.last_us if steps else first_us
        if found and first <= found[-1].last:
            if last > found[-1].last:
                found[-1] = Window(found[-1].first, last, found[-1].first_us, last_us)
            continue
        found.append(Window(first, last, first_us, last_us))
    return found


# -- retention -------------------------------------------------------------------------------------------------------


def leaves(lineage: Lineage) -> list[list[Epoch]]:
    """Return the histories that lead to something of their own: not those that another one has taken over whole."""
    known = lineage.histories()
    found = []
    for branch, history in known.items():
        newest = max(
            [m.lsn for m in lineage.manifests if m.branch == branch] + [r.last for r in lineage.ranges.get(branch, ())],
            default=0,
        )
        limits = [limit(known[other], branch) for other in known if other != branch]
        taken_over = any(last is not None and newest <= last for last in limits)
        if not taken_over:
            found.append(history)
    return found


def plan_prune(lineage: Lineage, *, keep_last: int | None, keep_days: float | None, now_us: int) -> Leftover:
    """Return what may go: it keeps whole chains, of every branch that leads to something of its own.

    Parameters
    ----------
    keep_last
        So many snapshots of each branch stay.
    keep_days
        Every point in time of so many days stays within reach.
    now_us
        The time that days are counted from.
    """
    tips = leaves(lineage)
    kept: set[str] = set()
    needed: set[tuple[Branch, RangeName]] = set()
    for history in tips:
        on_path = sorted((m for m in lineage.manifests if is_on(history, m)), key=_age)
        stay = _stay(on_path, keep_last, keep_days, now_us)
        kept.update(m.id for m in stay)
    for history in tips:
        stay = [m for m in lineage.manifests if m.id in kept and is_on(history, m)]
        base = min((m.lsn for m in stay), default=0)
        if keep_days is not None and not any(m.commit_time_us <= _horizon_us(keep_days, now_us) for m in stay):
            # No snapshot is old enough: what leads to the first of those days is the archive from its beginning.
            base = 0
        for branch, held in lineage.ranges.items():
            last = limit(history, branch)
            if last is not None:
                needed.update((branch, r) for r in held if r.last > base and r.first <= last)
    for branch, held in lineage.ranges.items():
        # What is between two that are needed stays, too: a branch has no gaps but those that were always there.
        first = min((r.first for b, r in needed if b == branch), default=LSN_MAX)
        needed.update((branch, r) for r in held if r.first >= first)
    return Leftover(
        [m for m in lineage.manifests if m.id not in kept],
        [(branch, r) for branch, held in lineage.ranges.items() for r in held if (branch, r) not in needed],
    )


def _stay(
    on_path: Sequence[Manifest], keep_last: int | None, keep_days: float | None, now_us: int
) -> Iterable[Manifest]:
    if keep_last is None and keep_days is None:
        return on_path
    # The newest one always stays: without it an archive leads nowhere.
    stay = list(on_path[-max(1, keep_last or 0) :])
    if keep_days is not None:
        horizon_us = _horizon_us(keep_days, now_us)
        before = [m for m in on_path if m.commit_time_us <= horizon_us]
        stay += before[-1:] + [m for m in on_path if m.commit_time_us > horizon_us]
    return stay


def _horizon_us(keep_days: float, now_us: int) -> int:
    return now_us - int(keep_days * DAY_US)
