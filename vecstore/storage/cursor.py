"""Walking RocksDB's iterators: places of scans, and views that stand still and can be read again and again.

An iterator sees the state at its creation, whatever is written, flushed or compacted since: RocksDB keeps the buffers
and the files of that state for it. It is the one view of rocksdict's that is right (its snapshots' iterators are not).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Final

from ..errors import Unavailable

if TYPE_CHECKING:
    from rocksdict import RdictIter

__all__ = ["Cursor", "PinnedFamily", "overlaid"]

SCAN_CHUNK_PAIRS: Final = 512
SCAN_CHUNK_BYTES: Final = 1 << 20

Pair = tuple[bytes, bytes]


class Cursor:
    """The place of one scan. It is advanced inside the store's gate only."""

    __slots__ = ("__weakref__", "_iterator", "_lock", "_stop")

    def __init__(self, iterator: RdictIter, stop: bytes | None = None) -> None:
        self._iterator: RdictIter | None = iterator
        self._stop = stop
        self._lock = threading.Lock()

    def advance(self) -> tuple[list[Pair], bool]:
        """Return the next pairs, a bounded number, and whether there may be more."""
        iterator = self._iterator
        if iterator is None:
            return [], False
        pairs: list[Pair] = []
        more = _collect(iterator, self._stop, pairs)
        return pairs, more

    def read(self, start: bytes, stop: bytes | None) -> tuple[list[Pair], bool]:
        """Return the first pairs from a key on. An error comes at the key that it is about: pairs before it first."""
        with self._lock:
            iterator = self._iterator
            if iterator is None:
                raise Unavailable("store: this view of it was let go", retryable=False)
            pairs: list[Pair] = []
            try:
                iterator.seek(start)
                return pairs, _collect(iterator, stop, pairs)
            except Exception:
                if not pairs:
                    raise
                return pairs, True

    def drop(self) -> None:
        """Let the iterator go, and with it the state that it holds."""
        with self._lock:
            self._iterator = None


def _collect(iterator: RdictIter, stop: bytes | None, pairs: list[Pair]) -> bool:
    """Gather pairs where an iterator stands, a bounded number; return whether there may be more."""
    size = 0
    while iterator.valid():
        key = iterator.key()
        if stop is not None and key >= stop:
            return False
        value = iterator.value()
        pairs.append((key, value))
        size += len(value)
        iterator.next()
        if len(pairs) == SCAN_CHUNK_PAIRS or size >= SCAN_CHUNK_BYTES:
            return True
    iterator.status()
    return False


class PinnedFamily:
    """A family as it was at one moment; see `base.Pinned`. Thread-safe; threads take turns.

    Parameters
    ----------
    inside
        Makes what a read is done in: the store's gate, and the words for its errors.
    over
        What hides the pairs of the same keys; None removes one.
    """

    def __init__(
        self, cursor: Cursor, inside: Callable[[], AbstractContextManager[None]], over: dict[bytes, bytes | None]
    ) -> None:
        self._cursor, self._inside, self._over = cursor, inside, over

    def scan(self, start: bytes, stop: bytes | None = None) -> Iterator[Pair]:
        """Iterate over start <= key < stop in order."""
        pairs, over = self._pairs(start, stop), self._over
        return overlaid(pairs, over, start, stop) if over else pairs

    def _pairs(self, start: bytes, stop: bytes | None) -> Iterator[Pair]:
        more = True
        while more:
            with self._inside():
                pairs, more = self._cursor.read(start, stop)
            yield from pairs
            if more:
                start = pairs[-1][0] + b"\0"

    def close(self) -> None:
        """Let the state go. Reading it then raises `Unavailable`."""
        self._cursor.drop()


def overlaid(
    pairs: Iterator[Pair], laid: dict[bytes, bytes | None], start: bytes, stop: bytes | None
) -> Iterator[Pair]:
    """Merge pairs in order with others of the same span: these hold, and None removes."""
    over = [(key, laid[key]) for key in sorted(laid) if start <= key and (not stop or key < stop)]
    left = len(over)
    for key, value in pairs:
        while left and over[-left][0] < key:
            kept = over[-left]
            left -= 1
            if kept[1] is not None:
                yield kept[0], kept[1]
        if left and over[-left][0] == key:
            continue
        yield key, value
    for key, value_over in over[len(over) - left :]:
        if value_over is not None:
            yield key, value_over
