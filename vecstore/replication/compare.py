"""Two stores compared at one LSN: both pinned there, ranges of points summed side by side, ids named where they differ.

Who is pinned first: the one that writes. It cannot come back to an LSN, so the one that follows must not be past it: it
is held for a moment, the writer says where it is, and the other one is pinned when it has come exactly there.

What is compared, and who is to blame:

- The history: lineage, and the chain at the LSN. Where it is another one, nothing else is worth comparing.
- The collections: which there are, as what, and the digest and count that the log gives each.
- The points: sums of hashes that each side recomputes from its bytes, each checking itself: a point that is not what
  was written is damage on that side.
- The log's digest is the judge. Where the chains are equal both logs say the same of a collection; the side whose
  recomputed digest or count is another one does not hold what its log says, be each of its points sound or not.

The memory is bounded: so many ranges, ids and damaged points are named of each collection, and all are counted. The
sides do the I/O. What may be done side by side is begun by what is given for that (`Begin`), as the clock is: there is
no thread here, and `vecstore compare` gives two, so that neither side waits for the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Protocol

import msgspec

from ..errors import InvalidArgument
from ..record import DIGEST_MODULUS, IdKind, key_id
from ..sums import Damage, PinnedCollection, PinnedStore, Stamp, Sum, span

__all__ = [
    "NAMED_MAX",
    "Begin",
    "Collection",
    "Damaged",
    "Difference",
    "Found",
    "Pinnable",
    "Range",
    "Report",
    "Side",
    "compare",
    "pin_both",
]

NAMED_MAX = 1_000
TRIES = 3
_NUMBER_BYTES, INT_KEY_BYTES = 8, 9

Begin = Callable[[Callable[[], Sum]], Callable[[], Sum]]
"""Begins something that takes long, and returns what waits for its result; two at most are under way, of one side each.
"""


def _when_asked(work: Callable[[], Sum]) -> Callable[[], Sum]:
    return work


class Pinnable(Protocol):
    """A store that can be pinned at an LSN."""

    def hold(self) -> int:
        """Apply nothing for a moment; return the last LSN that is applied."""
        ...

    def pin(self, lsn: int, wait_s: float, /) -> PinnedStore:
        """Keep the state of an LSN; `InvalidArgument` where the store is past it, `Unavailable` where not in time."""
        ...


class Side(Protocol):
    """A pinned store. Called from one thread at a time, not always the same."""

    def summed(self, first: bytes, stop: bytes, points_max: int, /) -> Sum:
        """Sum the points of first <= place < stop, so many at most."""
        ...

    def listed(self, first: bytes, stop: bytes, /) -> Iterator[Stamp]:
        """Iterate over the points of first <= place < stop."""
        ...


class Damaged(msgspec.Struct, frozen=True):
    """A point that is not what was written; without an id, bytes that no known point has."""

    id: int | str | None
    why: str


class Difference(msgspec.Struct, frozen=True):
    """An id whose content differs: the LSN that wrote it on each side, None where it is not there or cannot be read."""

    id: int | str | None
    a: int | None
    b: int | None
    what: str


class Range(msgspec.Struct, frozen=True):
    """A range that differs: the first id on A of it, None for the collection's beginning; points of each side in it."""

    first: int | str | None
    points_a: int
    points_b: int
    ids: int


class Found(msgspec.Struct):
    """What one side has of a collection, from the bytes.

    Attributes
    ----------
    damaged
        All points that are not what was written; `damaged_points` has `NAMED_MAX` of them at most.
    holds_log
        Whether digest and count are those that the log gives.
    """

    points: int = 0
    digest: str = ""
    damaged: int = 0
    damaged_points: list[Damaged] = []
    holds_log: bool = True


class Collection(msgspec.Struct):
    """What was found of one collection. Counts are complete, lists are `NAMED_MAX` long at most.

    Attributes
    ----------
    problems
        What no range shows: it is missing on one side, or is something else there.
    ranges_differ, ids_differ
        How many; `differing` and `ids` name them.
    """

    name: str
    number: int
    a: Found
    b: Found
    ranges: int = 0
    ranges_differ: int = 0
    ids_differ: int = 0
    problems: list[str] = []
    differing: list[Range] = []
    ids: list[Difference] = []
    seconds: float = 0.0

    @property
    def is_equal(self) -> bool:
        """Whether both sides hold what their logs say, and the same."""
        lacking = self.problems or self.ranges_differ or self.a.damaged or self.b.damaged
        return not lacking and self.a.holds_log and self.b.holds_log


class Report(msgspec.Struct, frozen=True):
    """What a comparison has found at one LSN. `chain` is hex."""

    lsn: int
    epoch: int
    chain: str
    collections: tuple[Collection, ...]

    @property
    def is_equal(self) -> bool:
        """Whether nothing differs and nothing is damaged."""
        return all(collection.is_equal for collection in self.collections)


# -- the same LSN ----------------------------------------------------------------------------------------------------


def pin_both(
    leader: Pinnable, follower: Pinnable, wait_s: float, names: tuple[str, str]
) -> tuple[PinnedStore, PinnedStore]:
    """Pin two stores at one LSN of one history; return what they are there.

    Raises
    ------
    InvalidArgument
        They are of other lineages, their histories part, or the follower is past the leader.
    Unavailable
        The follower did not come to the leader's LSN in time.
    """
    for left in reversed(range(TRIES)):
        held_lsn = follower.hold()
        at = leader.pin(0, 0.0)
        if held_lsn > at.lsn:
            raise InvalidArgument(
                f"{names[1]} is at LSN {held_lsn}, beyond {names[0]}, whose log ends at {at.lsn}: "
                "they cannot be compared at one LSN",
                hint="vecstore history of both says where they part",
            )
        try:
            other = follower.pin(at.lsn, wait_s)
        except InvalidArgument:
            # It went on before it was asked: the hold lasts for a moment.
            if not left:
                raise
            continue
        _check_history(at, other, names)
        return at, other
    raise AssertionError("the last try returns or raises")


def _check_history(a: PinnedStore, b: PinnedStore, names: tuple[str, str]) -> None:
    if a.lineage != b.lineage:
        raise InvalidArgument(
            f"{names[0]} is of lineage {a.lineage.hex()}, {names[1]} of {b.lineage.hex()}: only copies of one store "
            "are compared"
        )
    if a.chain != b.chain:
        raise InvalidArgument(
            f"the histories part: at LSN {a.lsn} the chain of {names[0]} is {a.chain.hex()}, that of {names[1]} "
            f"{b.chain.hex()}",
            hint="vecstore history of both says where; vecstore rejoin makes one a standby of the other",
        )


# -- the collections -------------------------------------------------------------------------------------------------


def compare(
    sides: tuple[Side, Side],
    stores: tuple[PinnedStore, PinnedStore],
    points_a_range: int,
    now_s: Callable[[], float],
    progress: Callable[[int, int | None], None] = lambda _done, _total: None,
    begin: Begin = _when_asked,
) -> Report:
    """Compare two stores that are pinned at one LSN of one history.

    Parameters
    ----------
    sides, stores
        A, then B: what reads them, and what they say of themselves.
    points_a_range
        Of A, for which a sum is compared.
    begin
        Begins a sum of one side while the other one's is made; left out: each is made when it is asked for.
    """
    a, b = stores
    total = sum(one.points for one in a.collections.values())
    done, found = 0, []
    for number in sorted({*a.collections, *b.collections}, key=lambda number: _name(number, a, b)):
        began_s = now_s()
        collection = Collection(_name(number, a, b), number, Found(), Found(), problems=_unlike(number, a, b))
        for points in _ranges(collection, sides, stores, begin, points_a_range):
            done += points
            progress(min(done, total), total)
        collection.seconds = round(now_s() - began_s, 3)
        found.append(collection)
    return Report(a.lsn, a.epoch, a.chain.hex(), tuple(found))


def _name(number: int, a: PinnedStore, b: PinnedStore) -> str:
    return (a.collections.get(number) or b.collections[number]).name


def _unlike(number: int, a: PinnedStore, b: PinnedStore) -> list[str]:
    """Say what differs of a collection beside its points."""
    one, other = a.collections.get(number), b.collections.get(number)
    if one is None or other is None:
        return [f"it is on {'A' if other is None else 'B'} only"]
    unlike = [key for key in {**one.definition, **other.definition} if _of(one, key) != _of(other, key)]
    problems = [f"{key}: {_of(one, key)!r} on A, {_of(other, key)!r} on B" for key in unlike]
    if (one.digest, one.points) != (other.digest, other.points):
        problems.append(
            f"the logs give {one.points:,} points of digest {one.digest:032x} on A, "
            f"{other.points:,} of {other.digest:032x} on B"
        )
    return problems


def _of(one: PinnedCollection, key: str) -> Any:
    definition: Mapping[str, Any] = one.definition
    return definition.get(key)


# -- the points ------------------------------------------------------------------------------------------------------


def _ranges(
    collection: Collection,
    sides: tuple[Side, Side],
    stores: tuple[PinnedStore, PinnedStore],
    begin: Begin,
    size: int,
) -> Iterator[int]:
    """Compare the ranges of a collection; yield the points of each. A goes ahead while B sums what A has summed."""
    is_on_both = all(collection.number in store.collections for store in stores)
    digests = [0, 0]
    first, stop = span(collection.number)
    ahead: Callable[[], Sum] | None = begin(partial(sides[0].summed, first, stop, size))
    while ahead is not None:
        mine = ahead()
        end = mine.next_place or stop
        beside = begin(partial(_whole, sides[1], first, end, size))
        ahead = begin(partial(sides[0].summed, end, stop, size)) if mine.next_place else None
        theirs = beside()
        collection.ranges += 1
        for i, (found, one) in enumerate(((collection.a, mine), (collection.b, theirs))):
            digests[i] = (digests[i] + one.digest) % DIGEST_MODULUS
            _note(found, one)
        if is_on_both and (mine.digest, mine.points) != (theirs.digest, theirs.points):
            _name_ids(collection, sides, mine, theirs, end)
        first = end
        yield mine.points
    for found, digest, store in zip((collection.a, collection.b), digests, stores, strict=True):
        log = store.collections.get(collection.number)
        found.digest = f"{digest:032x}"
        # Of a collection that was dropped, points may be left that nothing speaks of.
        found.holds_log = log is None or (digest, found.points) == (log.digest, log.points)


def _whole(side: Side, first: bytes, stop: bytes, size: int) -> Sum:
    """Return the sum of a range that the other side has bounded: this one may have many more points in it."""
    points = digest = damaged_count = 0
    damaged: list[Damage] = []
    place: bytes | None = first
    while place is not None:
        piece = side.summed(place, stop, size)
        points, digest = points + piece.points, (digest + piece.digest) % DIGEST_MODULUS
        damaged_count += piece.damaged_count
        damaged = [*damaged, *piece.damaged][:NAMED_MAX]
        place = piece.next_place
    return Sum(first, None, points, digest, tuple(damaged), damaged_count)


def _note(found: Found, one: Sum) -> None:
    found.points += one.points
    found.damaged += one.damaged_count
    room = NAMED_MAX - len(found.damaged_points)
    found.damaged_points += [Damaged(_id_of(point.place), point.why) for point in one.damaged[:room]]


def _name_ids(collection: Collection, sides: tuple[Side, Side], mine: Sum, theirs: Sum, stop: bytes) -> None:
    """Find the ids that differ in a range."""
    count = 0
    for difference in _differing(sides[0].listed(mine.first, stop), sides[1].listed(mine.first, stop)):
        count += 1
        if len(collection.ids) < NAMED_MAX:
            collection.ids.append(difference)
    collection.ids_differ += count
    collection.ranges_differ += 1
    if len(collection.differing) < NAMED_MAX:
        collection.differing.append(Range(_id_of(mine.first), mine.points, theirs.points, count))


def _differing(a: Iterator[Stamp], b: Iterator[Stamp]) -> Iterator[Difference]:
    """Merge two sequences in order; yield what is on one side alone, or has another content, or cannot be read."""
    mine, theirs = next(a, None), next(b, None)
    while mine is not None or theirs is not None:
        if theirs is None or (mine is not None and mine.place < theirs.place):
            assert mine is not None
            yield Difference(_id_of(mine.place), mine.lsn or None, None, "it is on A only")
            mine = next(a, None)
        elif mine is None or theirs.place < mine.place:
            yield Difference(_id_of(theirs.place), None, theirs.lsn or None, "it is on B only")
            theirs = next(b, None)
        else:
            if mine.check != theirs.check or not mine.check:
                what = "its content differs" if mine.check and theirs.check else _lost(mine, theirs)
                yield Difference(_id_of(mine.place), mine.lsn or None, theirs.lsn or None, what)
            mine, theirs = next(a, None), next(b, None)


def _lost(mine: Stamp, theirs: Stamp) -> str:
    where = [name for name, stamp in (("A", mine), ("B", theirs)) if not stamp.check]
    return f"it cannot be read on {' and '.join(where)}"


def _id_of(place: bytes) -> int | str | None:
    """Return the id of a place, None where it stands between points."""
    key = place[_NUMBER_BYTES:]
    if not key or (len(key) != INT_KEY_BYTES if key[0] == IdKind.INT else key.endswith(b"\0")):
        return None
    return key_id(key)
