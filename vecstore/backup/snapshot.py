"""Writing a snapshot: from files that stand still to a manifest in the repository.

The files come from the engine, which has linked them into a folder at one LSN. What the repository has already is not
uploaded again; the manifest comes last, so a snapshot is there wholly or not at all. What one that failed has uploaded
serves the next try, or is pruned.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

from ..storage.catalog import Epoch
from ..storage.reads import this_version
from . import layout
from .exclusion import pending
from .manifest import Manifest, SnapshotFile, StoredCollection, encode
from .repository import Repository
from .transfer import Progress, Throttle, check_files, upload

__all__ = ["Checks", "Source", "write_snapshot"]

Checks = MutableMapping[tuple[int, int, int], str]
"""Hashes of files that never change, by inode, bytes and time of change: a second snapshot need not read them again."""


@dataclass(frozen=True, slots=True)
class Source:
    """A state that stands still.

    Attributes
    ----------
    folder
        Holds its files, below ``rocks/`` and ``index/``.
    checkpoint
        The file in ``index/`` that names all others there: name, bytes, xxh3_128.
    collections
        By name: id, digest (hex), live points.
    """

    folder: str
    lineage: bytes
    epochs: list[Epoch]
    lsn: int
    epoch: int
    chain: bytes
    log_bytes: int
    commit_time_us: int
    wall_time_us: int
    checkpoint: tuple[str, int, str]
    collections: Mapping[str, tuple[int, str, int]]
    config: dict[str, Any]
    written_by: str


def write_snapshot(
    repository: Repository,
    source: Source,
    checks: Checks,
    throttle: Throttle,
    progress: Progress | None = None,
) -> Manifest:
    """Upload what is new of a state, then its manifest; return that."""
    lineage = source.lineage.hex()
    snapshot = f"{source.lsn:020d}-{secrets.token_hex(4)}"
    with pending(repository, lineage, snapshot):
        files = _files(source.folder, checks)
        new = _missing(repository, files)
        upload(repository, list(new.values()), throttle, progress)
        # What was counted on may be gone, where this process stood still for so long that it was taken for dead.
        upload(repository, list(_missing(repository, files).values()), throttle)
        manifest = Manifest(
            id=snapshot,
            lineage=lineage,
            epochs=source.epochs,
            lsn=source.lsn,
            epoch=source.epoch,
            chain=source.chain.hex(),
            log_bytes=source.log_bytes,
            commit_time_us=source.commit_time_us,
            wall_time_us=source.wall_time_us,
            collections=[
                StoredCollection(number, name, digest, points)
                for name, (number, digest, points) in sorted(source.collections.items())
            ],
            files=[file for _, file in files],
            checkpoint=source.checkpoint,
            bytes_new=sum(file.size for _, file in new.values()),
            config=source.config,
            written_by=source.written_by,
            needs=this_version(),
        )
        repository.create(layout.manifest_name(lineage, snapshot), encode(manifest))
    return manifest


def _missing(repository: Repository, files: list[tuple[str, SnapshotFile]]) -> dict[str, tuple[str, SnapshotFile]]:
    """Return the files whose content the repository does not have, by the name of that."""
    there = repository.names(f"{layout.OBJECTS}/")
    return {
        file.object: (path, file)
        for path, file in files
        if file.object not in there or there[file.object].size != file.size
    }


def _files(folder: str, checks: Checks) -> list[tuple[str, SnapshotFile]]:
    """Return path and description of every file, in order of their names."""
    names = [f"{part}/{name}" for part in ("index", "rocks") for name in sorted(os.listdir(os.path.join(folder, part)))]
    stats = [os.stat(os.path.join(folder, name)) for name in names]
    keys = [(stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in stats]
    unknown = [i for i, key in enumerate(keys) if key not in checks]
    read = check_files([os.path.join(folder, names[i]) for i in unknown])
    checks.update({keys[i]: check for i, (_, check) in zip(unknown, read, strict=True)})
    return [
        (os.path.join(folder, name), SnapshotFile(name, key[1], checks[key]))
        for name, key in zip(names, keys, strict=True)
    ]
