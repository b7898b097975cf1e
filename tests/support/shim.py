"""The LD_PRELOAD shim: building it, running a process under it, reading its journal, injecting faults.

`shim.c` says what is journaled. This module reads; `faults.py` makes of it what a disk may hold after power loss.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import struct
import subprocess
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

import pytest

__all__ = ["Op", "OpKind", "build_shim", "fail", "lift", "read_journal", "shim_environment"]

SOURCE = Path(__file__).with_name("shim.c")
_ENTRY = struct.Struct("<IIIIQQ")


class OpKind(IntEnum):
    """What was called; the numbers are those of `shim.c`."""

    CREATE = 1
    WRITE = 2
    TRUNCATE = 3
    RENAME = 4
    LINK = 5
    UNLINK = 6
    MKDIR = 7
    RMDIR = 8
    SYNC = 9
    SYNC_FOLDER = 10
    ACK = 11
    MAP = 12


@dataclass(frozen=True, slots=True)
class Op:
    """One call that succeeded.

    Attributes
    ----------
    ino
        Inode of the file or folder; 0 where paths alone say it.
    offset
        Where a write begins, or the length that a file is truncated or extended to.
    a, b
        Data of a write; or the path, and the path it becomes.
    """

    kind: OpKind
    ino: int
    offset: int
    a: bytes
    b: bytes

    @property
    def path(self) -> Path:
        """The path that the call named."""
        return Path(os.fsdecode(self.a))

    @property
    def target(self) -> Path:
        """The path that a rename or link makes."""
        return Path(os.fsdecode(self.b))


def build_shim(folder: Path) -> Path:
    """Compile the shim into a folder; skips the test where there is no gcc."""
    gcc = shutil.which("gcc")
    if gcc is None:
        pytest.skip("gcc is needed to build the shim that journals a process's writes")
    library = folder / "shim.so"
    command = [gcc, "-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror", "-o", str(library), str(SOURCE)]
    subprocess.run([*command, "-lpthread"], check=True)
    return library


def shim_environment(
    library: Path, root: Path, *, journal: Path | None = None, acks: Path | None = None, skip_sync: bool = False
) -> dict[str, str]:
    """Return the environment of a process that runs under the shim.

    Parameters
    ----------
    root
        The folder whose files are journaled; it stands for the disk.
    journal
        The binary journal, outside of `root`; None injects faults without journaling.
    acks
        A file outside of `root` whose writes are journaled among the others.
    skip_sync
        Leave real syncs out: crash images are made from the journal.
    """
    environment = os.environ | {"LD_PRELOAD": str(library), "VECSTORE_SHIM_ROOT": str(root.resolve())}
    if journal is not None:
        environment["VECSTORE_SHIM_JOURNAL"] = str(journal)
    if acks is not None:
        environment["VECSTORE_SHIM_ACKS"] = str(acks)
    if skip_sync:
        environment["VECSTORE_SHIM_SYNC"] = "skip"
    return environment


def read_journal(path: Path) -> list[Op]:
    """Return the operations in the order in which they happened; a torn last entry is left out."""
    data = path.read_bytes()
    ops, at = [], 0
    while at + _ENTRY.size <= len(data):
        kind, a_bytes, b_bytes, _zero, ino, offset = _ENTRY.unpack_from(data, at)
        at += _ENTRY.size
        end = at + a_bytes + b_bytes
        if end > len(data):
            break
        ops.append(Op(OpKind(kind), ino, offset, data[at : at + a_bytes], data[at + a_bytes : end]))
        at = end
    return ops


# -- faults, called inside the process that runs under the shim ------------------------------------------------------

_FAULT_KINDS = {"sync": 1, "write": 2}


def fail(what: str, error: int = errno.EIO, *, after: int = 1, times: int = -1, path: str = "") -> None:
    """Fail writes or syncs of this process below the shim's root.

    Parameters
    ----------
    what
        "sync" or "write".
    error
        The errno that the call gets.
    after
        The first call that fails, counted from now; 1 is the next.
    times
        How many fail; -1 for all from then on.
    path
        Only calls on files whose path contains this count and fail.
    """
    ctypes.CDLL(None).vecstore_shim_fail(_FAULT_KINDS[what], error, ctypes.c_long(after), times, path.encode())


def lift() -> None:
    """Let writes and syncs through again."""
    ctypes.CDLL(None).vecstore_shim_fail(0, 0, ctypes.c_long(0), 0, b"")
