"""A small disk that can be filled, for tests of what a store does without room."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

__all__ = ["DISK_MIB", "filled_up", "mounted"]

DISK_MIB = 48


@contextlib.contextmanager
def mounted(where: Path) -> Iterator[Path]:
    """Mount a file system of 48 MiB for a block; skips the test where this user may not."""
    where.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "vecstore-test", str(where)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as exc:
        pytest.skip(f"mounting a small file system needs privileges: {exc}")
    try:
        yield where
    finally:
        subprocess.run(["umount", "-l", str(where)], check=True)


@contextlib.contextmanager
def filled_up(disk: Path, leaving: int) -> Iterator[None]:
    """Take the free space of a disk but for so many bytes, for a block."""
    filler = disk / "filler"
    with filler.open("wb") as file:
        left = 0
        while not left:
            free = os.statvfs(disk)
            with contextlib.suppress(OSError):  # a store that writes meanwhile may have been quicker
                left = max(1, free.f_bavail * free.f_frsize - leaving)
                os.posix_fallocate(file.fileno(), 0, left)
                continue
            left = 0
    try:
        yield
    finally:
        filler.unlink()
