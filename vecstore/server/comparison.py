"""What a scrub reads of a store: sums, listings and canaries at a pin, for either side.

Functions over a pin, called by one thread of the scrub. They give way to searches, and change nothing.
"""

from __future__ import annotations

import random
import struct
from collections import defaultdict
from collections.abc import Iterable, Sequence

import msgspec
import xxhash

from ..engine.canary import asked, chosen, is_same
from ..engine.ranges import Pin, span, summed
from ..errors import Damaged
from ..record import STAMP_BYTES, key_id
from ..replication.durable import Difference, Differing
from ..replication.scrub import PREFIX_BYTES, Bounds, Canary, Entry, Part
from ..replication.scrub_primary import Walked
from ..replication.standby import MEND_POINTS_MAX

__all__ = ["compared", "entries_of", "matched", "proven", "unequal_canaries", "walked", "with_canaries"]

PARTS_MAX = 64
"""Ranges in one mark, of as many collections."""
CANARY_K = 10
NAMED_MAX = 100
"""Points that are remembered by name of a range in which too many differ to be mended."""
DIGEST_BYTES = 16


def walked(pin: Pin, start: bytes, points_max: int, ranges: Sequence[Bounds] = ()) -> Walked:
    """Sum up ranges, or the next points from a place on, around all collections."""
    if ranges:
        return _walked_ranges(pin, ranges)
    parts: list[Part] = []
    damaged: list[Bounds] = []
    why, left = "", points_max
    numbers = [number for number in pin.collections if span(number)[1] > start]
    for i, number in enumerate(numbers):
        first, stop = span(number)
        found = summed(pin, max(first, start), stop, left)
        bounds = Bounds(max(first, start), found.next_place or stop)
        parts.append(Part(bounds, found.points, _bytes(found.digest)))
        left -= found.points
        if found.damaged_count:
            damaged.append(bounds)
            why = why or _words(pin, number, found.damaged_count, found.damaged[0].place, found.damaged[0].why)
        if found.next_place is not None:
            return Walked(tuple(parts), found.next_place, (), tuple(damaged), why)
        if (left <= 0 or len(parts) >= PARTS_MAX) and i + 1 < len(numbers):
            return Walked(tuple(parts), span(numbers[i + 1])[0], (), tuple(damaged), why)
    return Walked(tuple(parts), b"", (), tuple(damaged), why)


def _walked_ranges(pin: Pin, ranges: Sequence[Bounds]) -> Walked:
    parts: list[Part] = []
    damaged: list[Bounds] = []
    why = ""
    for bounds in ranges:
        if bounds.collection not in pin.collections:
            # Dropped since: nothing is there, on either side.
            parts.append(Part(bounds, 0, bytes(DIGEST_BYTES)))
            continue
        found = summed(pin, bounds.first, bounds.stop, _ALL)
        parts.append(Part(bounds, found.points, _bytes(found.digest)))
        if found.damaged_count:
            damaged.append(bounds)
            place, reason = found.damaged[0].place, found.damaged[0].why
            why = why or _words(pin, bounds.collection, found.damaged_count, place, reason)
    return Walked(tuple(parts), b"", (), tuple(damaged), why)


_ALL = 1 << 62


def _bytes(digest: int) -> bytes:
    return digest.to_bytes(DIGEST_BYTES, "big")


def _words(pin: Pin, number: int, count: int, place: bytes, why: str) -> str:
    name = pin.collections[number].definition.name
    try:
        what = f"id {key_id(place[PREFIX_BYTES:])!r}"
    except (ValueError, IndexError, struct.error):
        what = f"place {place.hex()}"
    return f"{count} points of collection {name!r}, {what} among them: {why}"


def with_canaries(pin: Pin, found: Walked, seed: int, count: int) -> Walked:
    """Ask exact searches with stored vectors of the collections that were walked, chosen by a seed."""
    rng = random.Random(seed)  # noqa: S311
    numbers = [part.bounds.collection for part in found.parts if part.points]
    canaries: list[Canary] = []
    for number in rng.sample(numbers, min(count, len(numbers))):
        vector = chosen(pin.view, number, rng)
        if vector is not None:
            keys, scores = asked(pin.view, number, vector, CANARY_K)
            canaries.append(Canary(number, vector, CANARY_K, keys, scores))
    return Walked(found.parts, found.next_place, tuple(canaries), found.damaged, found.why)


def compared(pin: Pin, parts: Iterable[Part]) -> tuple[Bounds, ...]:
    """Return the ranges of which this store has another sum, or in which its points are not as they were written."""
    unequal: list[Bounds] = []
    for part in parts:
        if part.bounds.collection not in pin.collections:
            is_equal = not part.points
        else:
            found = summed(pin, part.bounds.first, part.bounds.stop, part.points + 1)
            mine = (found.points, _bytes(found.digest), found.next_place, found.damaged_count)
            is_equal = mine == (part.points, part.digest, None, 0)
        if not is_equal:
            unequal.append(part.bounds)
    return tuple(unequal)


def unequal_canaries(pin: Pin, canaries: Iterable[Canary]) -> int:
    """Return how many exact searches find something else here."""
    count = 0
    for canary in canaries:
        state = pin.collections.get(canary.collection)
        mine = asked(pin.view, canary.collection, canary.vector, canary.k)
        theirs = (canary.keys, canary.scores)
        count += mine != theirs and (state is None or not is_same(mine, theirs, state.definition.metric))
    return count


def proven(pin: Pin, ranges: Iterable[Bounds]) -> str:
    """Recompute the digests of whole collections; return how they differ from the commit marks, empty if they do not.

    A range alone does not tell who is wrong where both sides are sound by themselves: a point that is missing, or was
    put there by somebody else. The digest of all of them does.
    """
    for number in sorted({bounds.collection for bounds in ranges}):
        state = pin.collections.get(number)
        if state is None:
            continue
        found = summed(pin, *span(number), _ALL)
        if found.damaged_count:
            return _words(pin, number, found.damaged_count, found.damaged[0].place, found.damaged[0].why)
        if (found.points, found.digest) != (state.points, state.digest):
            return (
                f"collection {state.definition.name!r} has {found.points} points of digest {found.digest:032x}, "
                f"its log says {state.points} of {state.digest:032x}"
            )
    return ""


def entries_of(pin: Pin, ranges: Iterable[Bounds]) -> tuple[Entry, ...]:
    """List the points of ranges; raises `Damaged` where one cannot be read."""
    entries: list[Entry] = []
    for bounds in ranges:
        if bounds.collection not in pin.collections:
            continue
        for place, value in pin.pairs(bounds.first, bounds.stop):
            if isinstance(value, Damaged):
                raise value
            entries.append(Entry(place, *_stamp(value)))
    return tuple(entries)


def _stamp(value: bytes) -> tuple[int, bytes]:
    return int.from_bytes(value[:8], "little"), xxhash.xxh3_128_digest(memoryview(value)[STAMP_BYTES:])


def matched(pin: Pin, ranges: Sequence[Bounds], entries: Sequence[Entry]) -> tuple[Difference, ...]:
    """Compare points one by one with those of the primary; return what differs, range by range."""
    theirs: defaultdict[Bounds, dict[bytes, Entry]] = defaultdict(dict)
    ordered = sorted(ranges, key=lambda bounds: bounds.first)
    at = 0
    for entry in sorted(entries, key=lambda entry: entry.place):
        while at < len(ordered) and entry.place >= ordered[at].stop:
            at += 1
        if at < len(ordered) and entry.place >= ordered[at].first:
            theirs[ordered[at]][entry.place] = entry
    found = [_matched(pin, bounds, theirs[bounds]) for bounds in ordered]
    differences = [difference for difference in found if difference is not None]
    if sum(difference.count for difference in differences) > MEND_POINTS_MAX:
        differences = [msgspec.structs.replace(one, points=one.points[:NAMED_MAX]) for one in differences]
    return tuple(differences)


def _matched(pin: Pin, bounds: Bounds, theirs: dict[bytes, Entry]) -> Difference | None:
    differing: list[Differing] = []
    state = pin.collections.get(bounds.collection)
    name = str(bounds.collection) if state is None else state.definition.name
    unseen, why = dict(theirs), ""
    for place, value in pin.pairs(bounds.first, bounds.stop) if state is not None else ():
        entry = unseen.pop(place, None)
        if isinstance(value, Damaged):
            why = why or str(value)
            if entry is not None or _is_place(place):
                differing.append(Differing(place, 0 if entry is None else entry.lsn))
            continue
        lsn, check = _stamp(value)
        if value[8:STAMP_BYTES] != check:
            why = why or "its content is not what was written"
        if entry is None or (entry.lsn, entry.check, entry.check) != (lsn, check, value[8:STAMP_BYTES]):
            differing.append(Differing(place, 0 if entry is None else entry.lsn))
    differing += [Differing(entry.place, entry.lsn) for entry in unseen.values()]
    if not differing:
        return None
    return Difference(bounds, name, pin.lsn, len(differing), tuple(differing[:MEND_POINTS_MAX]), why)


def _is_place(place: bytes) -> bool:
    """Return whether a place is a point's, not one between two of them."""
    try:
        key_id(place[PREFIX_BYTES:])
    except (ValueError, IndexError, struct.error):
        return False
    return len(place) == PREFIX_BYTES + 9 or place[PREFIX_BYTES] != 1
