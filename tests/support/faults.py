"""What a disk may hold after power loss, made from the journal of a process that ran under the shim.

Everything that was synced is there; of what was not, any subset may be. A crash image is made in two steps: each file's
content (`File.content`), where unsynced writes are kept, lost or torn at sectors and pages independently of each other,
so that a file may have holes of zeros in front of data that survived; then the tree of names, by one of two models.

- ``ordered``: names change as on ext4 and XFS: in the order of the calls, a prefix of them is on disk, and a sync of a
  file or folder brings all changes up to the last one that concerns it.
- ``weak``: what POSIX promises: a name's change is on disk after a sync of the folder it is in; the others come or do
  not, each alone, but in order for one name. A file whose folder was never synced may be gone though it was synced.

Nothing here knows of vecstore. Images are functions of (journal, crash point, seed, model).
"""

from __future__ import annotations

import os
import random
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from .shim import Op, OpKind

__all__ = ["Disk", "Inventory", "Model", "inventory"]

Model = Literal["ordered", "weak"]
SECTOR_BYTES = 512
PAGE_BYTES = 4096


@dataclass(slots=True)
class File:
    """A file, by identity and not by name: its content before the journal, and every change of it.

    `changes` are (position in the journal, offset, data); data None sets the length to the offset.
    """

    base: bytes = b""
    changes: list[tuple[int, int, bytes | None]] = field(default_factory=list)
    syncs: list[int] = field(default_factory=list)

    def content(self, crash: int, rng: random.Random, keep_share: float) -> bytes:
        """Return what is left of the file when the power goes before operation `crash`."""
        synced = _last_before(self.syncs, crash)
        data = bytearray(self.base)
        for position, offset, change in self.changes:
            if position >= crash:
                break
            if change is None:
                if position < synced or rng.random() < keep_share:
                    _resize(data, offset)
            elif position < synced:
                _put(data, offset, change)
            else:
                for start, stop in _survivors(offset, len(change), rng, keep_share):
                    _put(data, offset + start, change[start:stop])
        return bytes(data)


@dataclass(slots=True)
class Folder:
    """A folder by identity, and when it was synced; what it holds is told by the links in force."""

    syncs: list[int] = field(default_factory=list)


Node = File | Folder
Name = tuple[int, str]
"""A name in a folder: identity of the folder, name."""


@dataclass(frozen=True, slots=True)
class NameChange:
    """One change of the tree: names that vanish, and a name that comes to stand for a node."""

    position: int
    gone: tuple[Name, ...]
    made: Name | None
    node: Node | None
    folders: tuple[Folder, ...]


Inventory = Sequence[tuple[Path, int, bytes | None]]
"""Relative path, inode and content (None for a folder) of all that a folder holds, folders before what is in them."""


def inventory(root: Path) -> Inventory:
    """Return what a folder holds now."""
    return [
        (path.relative_to(root), path.stat().st_ino, None if path.is_dir() else path.read_bytes())
        for path in sorted(root.rglob("*"))
    ]


class Disk:
    """A folder's history as the shim saw it; makes crash images.

    Parameters
    ----------
    root
        The folder that was journaled.
    ops
        The journal.
    before
        What the folder held before, from `inventory`; it counts as synced.
    """

    def __init__(self, root: Path, ops: Sequence[Op], before: Inventory = ()) -> None:
        self.ops = ops
        self.mapped: set[str] = set()
        self._root_path = root.resolve()
        self._root = Folder()
        self._tree: dict[Name, Node] = {}
        self._changes: list[NameChange] = []
        self._by_inode: dict[int, Node] = {os.stat(root).st_ino: self._root}
        for path, ino, content in before:
            node: Node = Folder() if content is None else File(content)
            self._by_inode[ino] = node
            self._link(-2, self._root_path / path, node)
        for position, op in enumerate(ops):
            self._follow(position, op)

    # -- following the journal --

    def _follow(self, position: int, op: Op) -> None:
        kind = op.kind
        node: Node
        if kind in (OpKind.CREATE, OpKind.MKDIR):
            node = File() if kind == OpKind.CREATE else Folder()
            self._by_inode[op.ino] = node
            self._link(position, op.path, node)
        elif kind in (OpKind.WRITE, OpKind.TRUNCATE):
            data = op.a if kind == OpKind.WRITE else None
            self._file(op.ino).changes.append((position, op.offset, data))
        elif kind in (OpKind.SYNC, OpKind.SYNC_FOLDER):
            self._by_inode[op.ino].syncs.append(position)
        elif kind in (OpKind.UNLINK, OpKind.RMDIR):
            name, folder = self._name(op.path)
            del self._tree[name]
            self._changes.append(NameChange(position, (name,), None, None, (folder,)))
        elif kind == OpKind.RENAME:
            old, old_folder = self._name(op.path)
            new, new_folder = self._name(op.target)
            node = self._tree.pop(old)
            self._tree[new] = node
            self._changes.append(NameChange(position, (old,), new, node, (old_folder, new_folder)))
        elif kind == OpKind.LINK:
            name, _folder = self._name(op.path)
            self._link(position, op.target, self._tree[name])
        elif kind == OpKind.MAP:
            mapped = self._by_inode[op.ino]
            self.mapped |= {name for (_, name), node in self._tree.items() if node is mapped}

    def _link(self, position: int, path: Path, node: Node) -> None:
        name, folder = self._name(path)
        self._tree[name] = node
        self._changes.append(NameChange(position, (), name, node, (folder,)))

    def _file(self, ino: int) -> File:
        node = self._by_inode[ino]
        assert isinstance(node, File), f"inode {ino} is a folder"
        return node

    def _name(self, path: Path) -> tuple[Name, Folder]:
        folder: Node = self._root
        parts = path.relative_to(self._root_path).parts
        for part in parts[:-1]:
            folder = self._tree[(id(folder), part)]
        assert isinstance(folder, Folder), f"{path} lies below a file"
        return (id(folder), parts[-1]), folder

    # -- images --

    def acknowledged(self, crash: int) -> bytes:
        """Return what had been written to the acknowledgements' file before operation `crash`."""
        return b"".join(op.a for op in self.ops[:crash] if op.kind == OpKind.ACK)

    def image(self, crash: int, seed: int, model: Model, to: Path, keep_share: float | None = None) -> None:
        """Write into the folder `to` what a disk may hold when the power goes before operation `crash`.

        `keep_share` is the share of what was not synced that is there all the same: at 0 none, at 1 all, between them
        torn writes too; chosen by the seed unless given.
        """
        rng = random.Random(seed)
        if keep_share is None:
            keep_share = rng.choice((0.0, 0.1, 0.5, 0.5, 0.9, 1.0))
        names = self._names(crash, rng, keep_share, model)
        self._write_folder(self._root, names, to, crash, rng, keep_share)

    def _names(self, crash: int, rng: random.Random, keep_share: float, model: Model) -> dict[Name, Node]:
        changes = self._changes[: bisect_left(self._changes, crash, key=lambda change: change.position)]
        kept = self._kept_ordered(changes, crash, rng, keep_share) if model == "ordered" else None
        if kept is None:
            kept = self._kept_weak(changes, crash, rng, keep_share)
        names: dict[Name, Node] = {}
        for change in kept:
            for name in change.gone:
                names.pop(name, None)
            if change.made is not None and change.node is not None:
                names[change.made] = change.node
        return names

    def _kept_ordered(
        self, changes: list[NameChange], crash: int, rng: random.Random, keep_share: float
    ) -> list[NameChange]:
        durable = 0
        for count, change in enumerate(changes, 1):
            concerned: list[Node] = [*change.folders] if change.node is None else [*change.folders, change.node]
            if any(_last_before(node.syncs, crash) > change.position for node in concerned):
                durable = count
        cut = durable
        while cut < len(changes) and rng.random() < keep_share:
            cut += 1
        return changes[:cut]

    def _kept_weak(
        self, changes: list[NameChange], crash: int, rng: random.Random, keep_share: float
    ) -> list[NameChange]:
        kept: list[NameChange] = []
        lost: set[Name] = set()
        for change in changes:
            touched = {*change.gone} if change.made is None else {*change.gone, change.made}
            # A rename is in the journal of the folder it goes to; syncing that one brings both of its ends.
            if _last_before(change.folders[-1].syncs, crash) > change.position:
                kept.append(change)
            elif not touched & lost and rng.random() < keep_share:
                kept.append(change)
            else:
                lost |= touched
        return kept

    def _write_folder(
        self, folder: Folder, names: dict[Name, Node], to: Path, crash: int, rng: random.Random, keep_share: float
    ) -> None:
        to.mkdir(exist_ok=True)
        for (parent, name), node in names.items():
            if parent != id(folder):
                continue
            if isinstance(node, Folder):
                self._write_folder(node, names, to / name, crash, rng, keep_share)
            else:
                (to / name).write_bytes(node.content(crash, rng, keep_share))


def _last_before(positions: list[int], crash: int) -> int:
    at = bisect_left(positions, crash)
    return positions[at - 1] if at else -1


def _resize(data: bytearray, size: int) -> None:
    if size <= len(data):
        del data[size:]
    else:
        data.extend(bytes(size - len(data)))


def _put(data: bytearray, offset: int, piece: bytes) -> None:
    if offset > len(data):
        data.extend(bytes(offset - len(data)))
    data[offset : offset + len(piece)] = piece


def _survivors(offset: int, size: int, rng: random.Random, keep_share: float) -> list[tuple[int, int]]:
    """Return the ranges of an unsynced write that reached the disk: all, none, or some of its sectors or pages."""
    if keep_share in (0.0, 1.0) or rng.random() >= 0.25:
        return [(0, size)] if rng.random() < keep_share else []
    unit = rng.choice((SECTOR_BYTES, PAGE_BYTES))
    ranges = []
    start = 0
    while start < size:
        stop = min(size, start + unit - (offset + start) % unit)
        if rng.random() < 0.5:
            ranges.append((start, stop))
        start = stop
    return ranges
