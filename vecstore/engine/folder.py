"""The folder of index files: names that are never used twice, and which of the files are still needed."""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import xxhash

from ..errors import Damaged
from .extent import sync_folder, write_at

__all__ = ["IndexFolder"]


class IndexFolder:
    """Thread-safe. A file is written under a name of its own, and removed when nobody refers to it any more.

    Attributes
    ----------
    path
        The folder.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._making: list[set[str]] = []

    @contextmanager
    def making(self) -> Iterator[set[str]]:
        """Protect the files named in the set that is given, until whoever makes them has told who refers to them."""
        names: set[str] = set()
        with self._lock:
            self._making.append(names)
        try:
            yield names
        finally:
            with self._lock:
                self._making = [other for other in self._making if other is not names]

    def new_name(self, names: set[str], ending: str) -> str:
        """Return an unused name, protected by a set of `making`."""
        name = f"{uuid.uuid4().hex}.{ending}"
        with self._lock:
            names.add(name)
        return name

    def write(self, name: str, data: npt.NDArray[np.uint8] | bytes) -> tuple[int, str]:
        """Write a file durably; return its size and xxh3_128."""
        view = memoryview(data if isinstance(data, bytes) else data.data).cast("B")
        path = os.path.join(self.path, name)
        file = os.open(path + ".new", os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            write_at(file, view, 0)
            os.fsync(file)
        finally:
            os.close(file)
        os.rename(path + ".new", path)
        return len(view), xxhash.xxh3_128_hexdigest(view)

    def read(self, name: str, size: int, check: str) -> npt.NDArray[np.uint8]:
        """Read a whole file; raises `Damaged` where it is not what was written."""
        path = os.path.join(self.path, name)
        try:
            data = np.fromfile(path, np.uint8)
        except OSError as exc:
            raise Damaged(f"index file {name} cannot be read: {exc}", details={"file": name}) from exc
        if len(data) != size or xxhash.xxh3_128_hexdigest(data.data) != check:
            raise Damaged(f"index file {name} is not what was written", details={"file": name, "bytes": size})
        return data

    def sync(self) -> None:
        """Make new names durable."""
        sync_folder(self.path)

    def clean(self, needed: Callable[[], set[str]]) -> int:
        """Remove files that nobody needs or is making; return how many.

        The order counts: a file that was there is being made, or whoever made it has told who needs it by now.
        """
        found = os.listdir(self.path)
        with self._lock:
            making = set[str]().union(*self._making)
        kept = making | needed()
        removed = 0
        for name in found:
            if name not in kept and name.removesuffix(".new") not in kept:
                os.unlink(os.path.join(self.path, name))
                removed += 1
        return removed
