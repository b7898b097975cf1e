"""Checking a repository: every file present and sound, every range on its chain, no gap; deep, by restoring all of it.

What is wrong is collected, each with its object and what depends on it; nothing is changed.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import xxhash

from ..errors import Damaged, InvalidArgument, NotFound, VecstoreError
from ..storage.catalog import Epoch
from . import layout
from .archive import Archive
from .layout import Branch, RangeName
from .manifest import BranchHead, Manifest, decode
from .plan import Lineage, Target, beyond, leaves, limit, owner, reached, windows
from .repository import Repository
from .restore import restore

__all__ = ["check_repository"]

READERS = 4

Progress = Callable[[int, int], None]


@dataclass(slots=True)
class _Findings:
    """What was found."""

    damaged: list[dict[str, Any]] = field(default_factory=list)
    files: int = 0
    ranges: int = 0
    bytes: int = 0

    def report(self, name: str, why: str, **more: Any) -> None:
        """Note damage of an object."""
        self.damaged.append({"object": name, "why": why, **more})


def check_repository(
    repository: Repository, *, deep: bool = False, scratch: str | None = None, progress: Progress | None = None
) -> dict[str, Any]:
    """Read everything that a repository holds and say what is not as it was written.

    Parameters
    ----------
    deep
        Restore every snapshot, and every branch to its end, and compare digests.
    scratch
        The folder for that; a temporary one by default.

    Returns
    -------
    dict
        ``ok``, ``damaged`` (a list: object, why, and what needs it), ``lineages``, and counts.
    """
    found = _Findings()
    names = repository.names("")
    lineages = _read_lineages(repository, list(names), found)
    _check_files(repository, lineages, {n: s.size for n, s in names.items()}, found, progress)
    for lineage in lineages:
        _check_archive(repository, lineage, found)
        if deep:
            _check_deep(repository, lineage, scratch, found)
    return {
        "ok": not found.damaged,
        "damaged": found.damaged,
        "snapshots": sum(len(lineage.manifests) for lineage in lineages),
        "files": found.files,
        "ranges": found.ranges,
        "bytes": found.bytes,
        "deep": deep,
        "lineages": {lineage.name: _windows(lineage) for lineage in lineages},
    }


def _windows(lineage: Lineage) -> list[dict[str, Any]]:
    return [
        {"branch": f"{history[-1].number}-{history[-1].writer}", "first_lsn": w.first, "last_lsn": w.last}
        for history in leaves(lineage)
        for w in windows(lineage, history)
    ]


def _read_lineages(repository: Repository, names: list[str], found: _Findings) -> list[Lineage]:
    """Read all that can be read, and report the rest."""
    manifests: dict[str, list[Manifest]] = {}
    heads: dict[str, dict[Branch, list[Epoch]]] = {}
    ranges: dict[str, dict[Branch, list[RangeName]]] = {}
    for name in names:
        parts = name.split("/")
        if parts[0] != layout.LINEAGES or len(parts) < 4:
            continue
        lineage = parts[1]
        try:
            if parts[2] == "snapshots":
                manifest = decode(repository.read(name), Manifest, name)
                if name != layout.manifest_name(lineage, manifest.id) or manifest.lineage != lineage:
                    raise Damaged(f"it is the manifest of {manifest.id} of {manifest.lineage}")
                manifests.setdefault(lineage, []).append(manifest)
            elif parts[2] == "archive" and len(parts) == 5:
                branch, is_range = Branch.parse(parts[3]), RangeName.parse(parts[4])
                if branch is not None and parts[4] == "epoch.json":
                    head = decode(repository.read(name), BranchHead, name)
                    if head.lineage != lineage or name != layout.epoch_name(lineage, branch):
                        raise Damaged(f"it is the head of another branch of {head.lineage}")
                    heads.setdefault(lineage, {})[branch] = head.epochs
                elif branch is not None and is_range is not None:
                    ranges.setdefault(lineage, {}).setdefault(branch, []).append(is_range)
        except (Damaged, InvalidArgument, NotFound) as exc:
            found.report(name, exc.args[0])
    return [
        Lineage(
            lineage,
            sorted(manifests.get(lineage, []), key=lambda manifest: (manifest.lsn, manifest.wall_time_us)),
            heads.get(lineage, {}),
            {branch: sorted(held) for branch, held in ranges.get(lineage, {}).items()},
        )
        for lineage in sorted({*manifests, *heads, *ranges})
    ]


# -- files -----------------------------------------------------------------------------------------------------------


def _check_files(
    repository: Repository,
    lineages: list[Lineage],
    there: dict[str, int],
    found: _Findings,
    progress: Progress | None,
) -> None:
    """Read every file that a snapshot names, and compare it with its name."""
    needed: dict[str, list[str]] = {}
    for manifest in (manifest for lineage in lineages for manifest in lineage.manifests):
        for file in manifest.files:
            needed.setdefault(file.object, []).append(f"{file.path} of snapshot {manifest.id}")
    total = sum(there.get(name, 0) for name in needed)
    with ThreadPoolExecutor(READERS, thread_name_prefix="vecstore-check") as pool:
        for name, why in zip(needed, pool.map(lambda name: _file_damage(repository, name, there), needed), strict=True):
            found.files += 1
            found.bytes += there.get(name, 0)
            if why:
                found.report(name, why, needed_by=needed[name])
            if progress is not None:
                progress(found.bytes, total)


def _file_damage(repository: Repository, name: str, there: dict[str, int]) -> str:
    if name not in there:
        return "it is missing"
    split = layout.split_object(name)
    assert split is not None, "a manifest's files have such names"
    check, size = split
    if there[name] != size:
        return f"it has {there[name]} bytes instead of {size}"
    state = xxhash.xxh3_128()
    try:
        for piece in repository.stream(name):
            state.update(piece)
    except NotFound:
        return "it is missing"
    return "" if state.hexdigest() == check else "it is not what was written: its hash is not the one in its name"


# -- the archive -----------------------------------------------------------------------------------------------------


def _check_archive(repository: Repository, lineage: Lineage, found: _Findings) -> None:
    archive = Archive(repository, lineage.name)
    histories = lineage.histories()
    for branch, ranges in lineage.ranges.items():
        if branch not in lineage.heads:
            found.report(layout.epoch_name(lineage.name, branch), "the head of the branch is missing")
        _check_ranges(archive, lineage, branch, found)
        history = histories.get(branch)
        if history is not None and ranges:
            for first, last in _gaps(lineage, history, ranges[0].first - 1):
                found.report(
                    branch.folder(lineage.name),
                    f"records {first} to {last} are missing",
                    first_lost_lsn=first,
                    last_lost_lsn=last,
                )


def _check_ranges(archive: Archive, lineage: Lineage, branch: Branch, found: _Findings) -> None:
    before: tuple[int, str] | None = None
    for name in lineage.ranges[branch]:
        where = f"{branch.folder(lineage.name)}{name}"
        try:
            held = archive.read(branch, name)
        except VecstoreError as exc:
            found.report(where, exc.args[0])
            before = None
            continue
        found.ranges += 1
        found.bytes += held.trailer.bytes
        if before is not None and before[0] + 1 == name.first and before[1] != held.trailer.chain_before:
            found.report(where, f"record {name.first} does not follow record {before[0]} of the range before")
        if any(record.header.epoch != branch.number for record in held.records):
            found.report(where, f"it holds records of another epoch than {branch.number}")
        before = (name.last, held.trailer.chain)


def _gaps(lineage: Lineage, history: list[Epoch], start: int) -> Iterator[tuple[int, int]]:
    """Yield the LSNs that are missing in a branch behind the first that it holds."""
    branch = owner(history, start + 1)
    at = start
    while True:
        at = reached(history, lineage.ranges, at)
        later = beyond(history, lineage.ranges, at)
        if later is None or branch is None:
            return
        if later.first <= (limit(history, branch) or 0):
            yield at + 1, later.first - 1
        at = later.first - 1


# -- restoring -------------------------------------------------------------------------------------------------------


def _check_deep(repository: Repository, lineage: Lineage, scratch: str | None, found: _Findings) -> None:
    """Restore every snapshot alone, and every branch to its end."""
    for manifest in lineage.manifests:
        with tempfile.TemporaryDirectory(prefix="vecstore-verify-", dir=scratch) as folder:
            where = _named(repository, lineage, str(manifest.branch))
            name = layout.manifest_name(lineage.name, manifest.id)
            try:
                made = restore(where, os.path.join(folder, "store"), Target(lsn=manifest.lsn), snapshot=manifest.id)
            except VecstoreError as exc:
                found.report(name, f"it cannot be restored: {exc.args[0]}")
                continue
            said = {c.name: (c.digest, c.points) for c in manifest.collections}
            if made.digests != said:
                found.report(name, f"it gives the digests {made.digests}, it says {said}")
    for history in leaves(lineage):
        if not windows(lineage, history):
            continue
        with tempfile.TemporaryDirectory(prefix="vecstore-verify-", dir=scratch) as folder:
            branch = Branch(history[-1].number, history[-1].writer)
            try:
                restore(_named(repository, lineage, str(branch)), os.path.join(folder, "store"), Target())
            except VecstoreError as exc:
                found.report(branch.folder(lineage.name), f"it cannot be restored to its end: {exc.args[0]}")


def _named(repository: Repository, lineage: Lineage, branch: str) -> Repository:
    return Repository(f"{repository.where}#{lineage.name}/{branch}")
