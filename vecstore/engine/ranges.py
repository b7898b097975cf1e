"""Ranges of points at one LSN, their content hashes recomputed from the bytes on disk: what two stores compare.

A *place* is a key of the points family: collection, then id key. A store that is compared is pinned first: what is read
is as it was at one applied and durable LSN, whatever is written meanwhile. Then ranges of places are summed on both
sides. Each side checks itself first: the hash that stands beside a point is not believed, it is held against the one
that its bytes give, and so is the id in the bytes against the place; where a point is not what was written, the side is
damaged there, and no judge of the other.

What sums of ranges cannot see, a pin says: which collections there are, as what, and the digest and count that the
commit marks of the log give each of them. Points whose collection was dropped may lie in the family for a while; so
walk the spans of the pin's collections only.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from itertools import islice
from types import TracebackType

import msgspec
import xxhash

from ..backup.transfer import Throttle
from ..errors import Damaged, Unavailable
from ..record import DIGEST_MODULUS, STAMP_BYTES
from ..storage.base import Family, Pinned
from ..storage.catalog import CollectionState
from ..storage.fold import digest_of
from ..storage.proof import get_each
from ..sums import Damage, PinnedCollection, PinnedStore, Stamp, Sum, span
from .engine import Engine
from .points import places
from .view import View

__all__ = [
    "DAMAGE_NAMED_MAX",
    "PIN_S_MAX",
    "Damage",
    "Pin",
    "Stamp",
    "Sum",
    "listed",
    "pin",
    "pin_here",
    "span",
    "summed",
]

PIN_S_MAX = 300.0
DAMAGE_NAMED_MAX = 100
_CHUNK = 512
_NUMBER_BYTES = 8


class Pin:
    """A store at one LSN, for as long as it is open. Thread-safe; readers take turns.

    It costs no copy. But RocksDB keeps the buffers and files of that moment for it: the memory of what was not flushed
    then, and the disk space of all that is overwritten, deleted and compacted away since. So a pin ends by itself.

    Attributes
    ----------
    lsn, epoch, chain
        Where the store was: applied and durable.
    collections
        By number, as they were: definition, and digest and count as the commit marks give them.
    is_closed
        Reading raises `Unavailable` then.
    """

    def __init__(self, engine: Engine, view: View, points: Pinned, seconds_max: float) -> None:
        """Use `pin`."""
        self.lsn, self.epoch, self.chain = view.lsn, view.epoch, view.chain
        self.collections: dict[int, CollectionState] = {
            number: collection.state for number, collection in sorted(view.collections.items())
        }
        self._lineage, self._store_id = engine.lineage, engine.directory.store_id.hex()
        self.is_closed = False
        self.throttle = Throttle(0, lambda: engine.gate.entered)
        self._view: View | None = view
        self._points, self._store = points, engine.store
        self._timer = threading.Timer(seconds_max, self.close)
        self._timer.daemon = True
        self._timer.start()

    def __enter__(self) -> Pin:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let it go. Closing twice is harmless."""
        self.is_closed = True
        self._timer.cancel()
        self._points.close()
        self._view = None

    @property
    def view(self) -> View:
        """What readers saw at that LSN; raises `Unavailable` once the pin was let go."""
        return self._check_open()

    @property
    def store(self) -> PinnedStore:
        """What the store says of itself there."""
        collections = {
            number: PinnedCollection(
                state.definition.name, msgspec.to_builtins(state.definition), state.digest, state.points
            )
            for number, state in self.collections.items()
        }
        return PinnedStore(self._store_id, self._lineage, self.lsn, self.epoch, self.chain, collections)

    def pairs(self, first: bytes, stop: bytes | None) -> Iterator[tuple[bytes, bytes | Damaged]]:
        """Iterate over first <= place < stop with the stored values; the error in place of one that cannot be read.

        From damage on it goes by the rows of the view, and reads key by key: so it is only the lost ones that are lost,
        and a point that has no row is not seen there.
        """
        view = self._check_open()
        behind = first
        try:
            for place, value in self._points.scan(first, stop):
                yield place, value
                self._check_open()
                behind = place + b"\0"
            return
        except Damaged as exc:
            error = exc
        has_lost = False
        for some in _batched(self._known(view, behind, stop), _CHUNK):
            self._check_open()
            for place, found in zip(some, get_each(self._store, Family.POINTS, some), strict=True):
                seen = _as_of(view.lsn, found)
                has_lost = has_lost or isinstance(seen, Damaged)
                yield place, seen
        if not has_lost:
            yield behind, error

    def _check_open(self) -> View:
        view = self._view
        if view is None:
            raise Unavailable("the pin was let go: it lives for a limited time", hint="begin again", retryable=False)
        return view

    @staticmethod
    def _known(view: View, start: bytes, stop: bytes | None) -> Iterator[bytes]:
        """Yield the places of a range that have rows."""
        for number, collection in sorted(view.collections.items()):
            first, behind = span(number)
            if behind <= start or (stop is not None and stop <= first):
                continue
            for place, _ in places(number, collection, view.lsn, start[_NUMBER_BYTES:] if start > first else None):
                if stop is not None and place >= stop:
                    return
                yield place


def _as_of(lsn: int, found: bytes | Damaged | None) -> bytes | Damaged:
    """Return what a get has found as it was at an LSN: an error where it is something newer."""
    if isinstance(found, Damaged):
        return found
    if found is None or int.from_bytes(found[:8], "little") > lsn:
        return Damaged("its bytes are lost, or were replaced meanwhile")
    return found


def pin(engine: Engine, seconds_max: float = PIN_S_MAX) -> Pin:
    """Pin a store where it is, between two groups of writes, which wait no longer than for one another.

    Raises
    ------
    Unavailable
        It stopped writing after an error, and what is durable is not known.
    """
    engine.check_open()
    pinned: Pin = engine.at_barrier(lambda: pin_here(engine, seconds_max))
    return pinned


def pin_here(engine: Engine, seconds_max: float = PIN_S_MAX) -> Pin:
    """Pin a store, in the thread that writes to it."""
    if engine.committer is not None:
        engine.committer.sync()
    return Pin(engine, engine.state.view, engine.store.pin(Family.POINTS), seconds_max)


def summed(pin: Pin, first: bytes, stop: bytes | None, points_max: int) -> Sum:
    """Sum the points of first <= place < stop, so many at most. It gives way to searches.

    Raises
    ------
    Unavailable
        The pin was let go.
    """
    digest = points = damaged_count = 0
    damaged: list[Damage] = []
    hashes: list[bytes] = []
    next_place = None
    began_s = time.monotonic()
    for place, value in pin.pairs(first, stop):
        if points == points_max:
            next_place = place
            break
        points += 1
        check, why = _checked(place, value)
        if check is not None:
            hashes.append(check)
        if why:
            damaged_count += 1
            if damaged_count <= DAMAGE_NAMED_MAX:
                damaged.append(Damage(place, why))
        if points % _CHUNK == 0:
            digest, hashes = digest + digest_of(hashes), []
            pin.throttle.rest(time.monotonic() - began_s)
            began_s = time.monotonic()
    digest = (digest + digest_of(hashes)) % DIGEST_MODULUS
    return Sum(first, next_place, points, digest, tuple(damaged), damaged_count)


def listed(pin: Pin, first: bytes, stop: bytes | None) -> Iterator[Stamp]:
    """Iterate over the points of first <= place < stop, each with what its bytes give.

    Raises
    ------
    Unavailable
        The pin was let go.
    """
    for place, value in pin.pairs(first, stop):
        if isinstance(value, Damaged):
            yield Stamp(place, 0, b"")
            continue
        yield Stamp(place, int.from_bytes(value[:8], "little"), xxhash.xxh3_128_digest(memoryview(value)[STAMP_BYTES:]))


def _batched(places: Iterator[bytes], size: int) -> Iterator[list[bytes]]:
    while some := list(islice(places, size)):
        yield some


def _checked(place: bytes, value: bytes | Damaged) -> tuple[bytes | None, str]:
    """Return the hash that a point's bytes give, and what is wrong with it."""
    if isinstance(value, Damaged):
        return None, f"it cannot be read: {value}"
    check = xxhash.xxh3_128_digest(memoryview(value)[STAMP_BYTES:])
    if value[8:STAMP_BYTES] != check:
        return check, "its content is not what was written"
    key = place[_NUMBER_BYTES:]
    if not value.startswith(len(key).to_bytes(4, "little") + key, STAMP_BYTES):
        return check, "its content is that of another id"
    return check, ""
