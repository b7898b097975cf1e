"""What the engine may expect of a key-value store: families of ordered keys, atomic batches, one sync.

Promises
--------
- A `Batch` is applied wholly or not at all, and is visible to `get` and `scan` when `write` returns. It is not durable.
- Batches become durable in the order in which they were written: after a crash the store holds a prefix of them. `sync`
  returns when every batch written before it is durable.
- Keys are ordered as bytes. `scan` reads the state at its creation.
- Any error of `write` or `sync` means that what became of the batch is unknown, but for `Stalled`, which wrote nothing.
- `write`, `sync` and `delete_range` are called by one thread at a time (the committer, or the one that syncs for it
  while it waits); `get`, `scan`, `compact` and `flush` by any.
- Corrupt bytes raise `Damaged` with the family and, where it is known, the key; they are never returned or skipped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import Protocol

from ..errors import VecstoreError

__all__ = ["Batch", "Family", "KeyValueStore", "Prepared", "Stalled"]


class Family(StrEnum):
    """The families of one store (docs/formats.md has their keys and values)."""

    LOG = "log"
    HEADS = "heads"
    POINTS = "points"
    REQUESTS = "requests"
    META = "meta"


class Stalled(VecstoreError):
    """The store refuses writes for a moment; nothing was written, and the same batch may be written again."""

    _retryable = True


Batch = Sequence[tuple[Family, bytes, bytes | None]]
"""Puts (a value) and deletes (None), in order."""


class Prepared(Protocol):
    """A batch in a store's own form, made ahead of its write."""

    batch: Batch


class KeyValueStore(Protocol):
    """An open store. See the module for what it promises."""

    def prepare(self, batch: Batch) -> Prepared:
        """Bring a batch into the store's own form, so that its write takes less time. Writes nothing."""
        ...

    def write(self, batch: Batch | Prepared) -> None:
        """Apply a batch atomically. Keep it small: it may hold the interpreter lock while it runs."""
        ...

    def sync(self) -> None:
        """Make all that was written durable."""
        ...

    def get(self, family: Family, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the values of keys, None where there is none."""
        ...

    def scan(self, family: Family, start: bytes, stop: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        """Iterate over start <= key < stop in order, on the state at the time of the call."""
        ...

    def delete_range(self, family: Family, start: bytes, stop: bytes) -> None:
        """Remove start <= key < stop."""
        ...

    def compact(self, family: Family, start: bytes | None = None, stop: bytes | None = None) -> None:
        """Give back the space of what was removed."""
        ...

    def flush(self) -> None:
        """Move what is buffered in memory into files, to give back memory and shorten recovery."""
        ...

    def disk_bytes(self) -> int:
        """Return the bytes of all files of the store."""
        ...

    def checkpoint(self, path: str) -> None:
        """Link the files of the store as it is now into a new folder on the same file system."""
        ...

    def close(self) -> None:
        """Let the store go. Closing twice is harmless."""
        ...
