"""Pruning: removing what retention no longer needs, in an order that leaves whole chains at every moment.

Manifests go first, then ranges, then files that no manifest names. A prune that was killed leaves files that nobody
names; the next one removes them. No file goes while a snapshot is pending (see `exclusion`).
"""

from __future__ import annotations

from dataclasses import dataclass

from . import layout
from .catalogue import read_lineages
from .exclusion import is_snapshot_pending, pruning
from .plan import Leftover, Lineage, plan_prune
from .repository import Repository

__all__ = ["Pruned", "prune"]

BATCH_NAMES = 64


@dataclass(frozen=True, slots=True)
class Pruned:
    """What a prune removed, or would.

    Attributes
    ----------
    snapshots, ranges, objects
        Names of what goes.
    kept
        Names of the snapshots that stay.
    bytes
        Of the files and ranges that go.
    waits
        Whether files were left because a snapshot is being written.
    done
        Whether all of it was removed; False for a dry run.
    """

    snapshots: list[str]
    ranges: list[str]
    objects: list[str]
    kept: list[str]
    bytes: int
    waits: bool
    done: bool


def prune(
    repository: Repository, *, keep_last: int | None, keep_days: float | None, now_us: int, dry_run: bool = False
) -> Pruned:
    """Remove snapshots, ranges and files that retention does not keep."""
    if dry_run:
        return _planned(repository, keep_last, keep_days, now_us, waits=False)
    with pruning(repository) as at_work:
        # Pending snapshots first, manifests after: one that ends in between is seen in the second look.
        waits = is_snapshot_pending(repository)
        plan = _planned(repository, keep_last, keep_days, now_us, waits=waits)
        names = [*plan.snapshots, *plan.ranges, *plan.objects]
        for start in range(0, len(names), BATCH_NAMES):
            at_work.check()
            repository.remove(names[start : start + BATCH_NAMES])
    return Pruned(plan.snapshots, plan.ranges, plan.objects, plan.kept, plan.bytes, waits, done=True)


def _planned(
    repository: Repository, keep_last: int | None, keep_days: float | None, now_us: int, *, waits: bool
) -> Pruned:
    # The files are listed before the manifests: a file that is new since then is not in the list.
    objects = repository.names(f"{layout.OBJECTS}/")
    lineages = read_lineages(repository)
    stored = repository.names(f"{layout.LINEAGES}/")
    snapshots: list[str] = []
    ranges: list[str] = []
    kept: list[str] = []
    needed: set[str] = set()
    for lineage in lineages:
        leftover = plan_prune(lineage, keep_last=keep_last, keep_days=keep_days, now_us=now_us)
        gone = {manifest.id for manifest in leftover.manifests}
        snapshots += _manifests(lineage, leftover)
        ranges += [f"{branch.folder(lineage.name)}{name}" for branch, name in leftover.ranges]
        for manifest in lineage.manifests:
            if manifest.id not in gone:
                kept.append(layout.manifest_name(lineage.name, manifest.id))
                needed.update(file.object for file in manifest.files)
    unneeded = [] if waits else [name for name in objects if name not in needed]
    size = sum(objects[name].size for name in unneeded) + sum(stored[n].size for n in ranges if n in stored)
    return Pruned(snapshots, ranges, unneeded, kept, size, waits, done=False)


def _manifests(lineage: Lineage, leftover: Leftover) -> list[str]:
    return [layout.manifest_name(lineage.name, manifest.id) for manifest in leftover.manifests]
