"""What the engine may expect of a key-value store: families of ordered keys, atomic batches, one sync.

Promises
--------
- A `Batch` is applied wholly or not at all, and is visible to `get` and `scan` when `write` returns. It is not durable.
- Batches become durable in the order in which they were written: after a crash the store holds a prefix of them. `sync`
  returns when every batch written before it is durable.
- A batch that is written with ``logged=False`` becomes durable by `flush` (or by itself, some time), not by `sync`:
  after a crash the store may lack it, and every unlogged batch behind it, though it has logged ones that were written
  later. What it has of unlogged batches is a prefix of them, and where it has one, it has the logged ones before it.
  (While a `flush` is under way it may have later ones, but never of `Family.META`.) A store that is open to be read
  keeps unlogged batches in memory alone: so an opening applies there, too, what the families lack.
- Keys are ordered as bytes. `scan` reads the state at its creation; `pin` keeps that state, to be read again and again.
- Any error of `write` or `sync` means that what became of the batch is unknown, but for `Stalled`, which wrote nothing.
- `write`, `sync`, `flush` and `delete_range` are called by one thread at a time (the committer, or the one that syncs
  for it while it waits); `get`, `scan`, `pin`, `compact`, `flush_ahead` and `trim` by any.
- Corrupt bytes raise `Damaged` with the family and, where it is known, the key; they are never returned or skipped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import Protocol

from ..errors import VecstoreError

__all__ = ["Batch", "Family", "KeyValueStore", "Pinned", "Prepared", "Stalled"]


class Family(StrEnum):
    """The families of one store (docs/formats.md has their keys and values)."""

    LOG = "log"
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


class Pinned(Protocol):
    """A family as it was at one moment.

    While it lives, the buffers and files of that moment are kept: memory of what was not flushed yet, and the disk of
    what was compacted away since. A read that meets corrupt bytes has returned the pairs in front of them; one that
    begins behind them goes on.
    """

    def scan(self, start: bytes, stop: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        """Iterate over start <= key < stop in order."""
        ...

    def close(self) -> None:
        """Let it go. Closing twice is harmless."""
        ...


class KeyValueStore(Protocol):
    """An open store. See the module for what it promises."""

    def prepare(self, batch: Batch) -> Prepared:
        """Bring a batch into the store's own form, so that its write takes less time. Writes nothing."""
        ...

    def write(self, batch: Batch | Prepared, *, logged: bool = True) -> None:
        """Apply a batch atomically. Keep it small: it may hold the interpreter lock while it runs."""
        ...

    def sync(self) -> None:
        """Make all logged batches that were written durable."""
        ...

    def get(self, family: Family, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the values of keys, None where there is none."""
        ...

    def scan(self, family: Family, start: bytes, stop: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        """Iterate over start <= key < stop in order, on the state at the time of the call."""
        ...

    def pin(self, family: Family) -> Pinned:
        """Keep a family as it is now."""
        ...

    def delete_range(self, family: Family, start: bytes, stop: bytes) -> None:
        """Remove start <= key < stop."""
        ...

    def compact_by_itself(self) -> None:
        """Begin to compact in the background. An open store does not, so that no damage it meets stops what an open
        has to write.
        """
        ...

    def compact(self, family: Family, start: bytes | None = None, stop: bytes | None = None) -> None:
        """Give back the space of what was removed."""
        ...

    def flush(self) -> None:
        """Move all that is buffered in memory into files: then all that was written is durable."""
        ...

    def flush_ahead(self) -> None:
        """Move most of what is buffered into files, so that a `flush` that follows takes little time."""
        ...

    def trim(self) -> None:
        """Give freed memory back to the system."""
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
