"""Folders in memory, for stores of tests that do not ask what a disk keeps: a sync costs nothing there."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["memory_folder"]

_MEMORY = Path("/dev/shm")
_FREE_BYTES_MIN = 1 << 30


@contextmanager
def memory_folder() -> Iterator[Path]:
    """Give an empty folder in memory; one on disk where there is none, or little room."""
    there = _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free >= _FREE_BYTES_MIN
    with tempfile.TemporaryDirectory(dir=_MEMORY if there else None) as folder:
        yield Path(folder)
