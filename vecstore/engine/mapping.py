"""Address space reserved at once and filled piece by piece: what lets many files look like one array.

Python's `mmap` cannot place a mapping at an address of the caller's choice, so this module calls the C library. It is
the only one that does. Pages that nothing was mapped to take no memory and fault when touched.

Replacing a mapping is atomic for readers in other threads: the kernel swaps it under its own lock, and content that is
the same before and after is all that they can see.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import Exhausted

__all__ = ["PAGE_BYTES", "AddressSpace", "paged", "trim_memory"]

PAGE_BYTES = mmap.PAGESIZE
_PROT_NONE = 0
_MAP_FIXED = 0x10
_MAP_NORESERVE = 0x4000
_FAILED = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


def paged(size: int) -> int:
    """Return `size` rounded up to whole pages."""
    return -(-size // PAGE_BYTES) * PAGE_BYTES


def trim_memory() -> None:
    """Give freed memory back to the system: glibc keeps it otherwise, after a build more than the rows take."""
    with contextlib.suppress(AttributeError):
        _libc.malloc_trim(0)


class AddressSpace:
    """A run of reserved addresses. Its memory is given back when the object goes.

    Arrays made by `array` do not keep it alive: who holds one holds the space too.

    Parameters
    ----------
    size
        Bytes to reserve; whole pages.
    """

    def __init__(self, size: int) -> None:
        self.size = max(paged(size), PAGE_BYTES)
        self._munmap = _libc.munmap
        self.address = 0
        self.address = self._map(None, self.size, _PROT_NONE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)

    def __del__(self) -> None:
        if self.address:
            self._munmap(self.address, self.size)

    def map_memory(self, offset: int, size: int) -> None:
        """Put zeroed private memory at an offset, in place of what was there."""
        self._place(offset, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)

    def map_file(self, offset: int, size: int, file: int, file_offset: int) -> None:
        """Put a part of an open file at an offset, read-only, in place of what was there."""
        self._place(offset, size, mmap.PROT_READ, mmap.MAP_SHARED, file, file_offset)

    def release(self, offset: int, size: int) -> None:
        """Give back the memory at an offset; touching it faults."""
        self._place(offset, size, _PROT_NONE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)

    def array(self, dtype: npt.DTypeLike, shape: tuple[int, ...], offset: int) -> npt.NDArray[Any]:
        """Return an array over the addresses from an offset, mapped or not."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        assert offset >= 0 and offset + size <= self.size, "outside of the space"
        buffer: Any = (ctypes.c_char * size).from_address(self.address + offset)
        array: npt.NDArray[Any] = np.frombuffer(buffer, dtype).reshape(shape)
        return array

    def _place(self, offset: int, size: int, protection: int, flags: int, file: int = -1, at: int = 0) -> None:
        size = paged(size)
        assert offset % PAGE_BYTES == 0 and at % PAGE_BYTES == 0 and offset + size <= self.size, "not a place in it"
        if size:
            self._map(self.address + offset, size, protection, flags | _MAP_FIXED, file, at)

    def _map(self, address: int | None, size: int, protection: int, flags: int, file: int = -1, at: int = 0) -> int:
        place: int | None = _libc.mmap(address, size, protection, flags, file, at)
        if place is None or place == _FAILED:
            code = ctypes.get_errno()
            raise Exhausted(
                f"cannot map {size} bytes: {os.strerror(code)}",
                hint="raise the process's limits of address space and mappings (ulimit -v, vm.max_map_count)",
                details={"limit": "address space", "bytes": size},
            )
        return place
