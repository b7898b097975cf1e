"""What a comparison makes of two sides: pins brought to one LSN, bounds kept, each kind of difference named."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from vecstore.cli.compare import side_by_side
from vecstore.errors import InvalidArgument
from vecstore.record import DIGEST_MODULUS, id_key, key_id, point_key
from vecstore.replication import compare as comparing
from vecstore.replication.compare import Report, compare, pin_both
from vecstore.sums import Damage, PinnedCollection, PinnedStore, Stamp, Sum, span

Points = dict[bytes, bytes | None]
"""Contents by place: what stands for the hash; None where it cannot be read."""


class Shelf:
    """A side in memory."""

    def __init__(self, points: Points) -> None:
        self.points = points
        self.most = 0

    def summed(self, first: bytes, stop: bytes, points_max: int) -> Sum:
        places = [place for place in sorted(self.points) if first <= place < stop]
        some = places[:points_max]
        self.most = max(self.most, len(some))
        lost = tuple(Damage(place, "it cannot be read") for place in some if self.points[place] is None)
        digest = sum(int.from_bytes(self.points[place] or b"", "big") for place in some) % DIGEST_MODULUS
        return Sum(first, places[points_max] if len(places) > points_max else None, len(some), digest, lost, len(lost))

    def listed(self, first: bytes, stop: bytes) -> Iterator[Stamp]:
        for place in sorted(self.points):
            if first <= place < stop:
                check = self.points[place]
                yield Stamp(place, 0, b"") if check is None else Stamp(place, 9, check)


def points(number: int, ids: range) -> Points:
    return {point_key(number, id_key(id)): id.to_bytes(16, "big") for id in ids}


def stored(collections: dict[int, PinnedCollection]) -> PinnedStore:
    return PinnedStore("me", b"L" * 16, 7, 1, b"C" * 16, collections)


def logged(number: int, there: Points, name: str = "docs", **definition: Any) -> PinnedCollection:
    mine = [check or b"" for place, check in there.items() if place.startswith(number.to_bytes(8, "big"))]
    return PinnedCollection(name, definition, sum(int.from_bytes(one, "big") for one in mine), len(mine))


def report(a: Points, b: Points, log: Points, size: int = 10, **more: Any) -> Report:
    """Compare two sides whose logs say the same."""
    store = stored({1: logged(1, log)})
    other = replace(store, **more)
    return compare((Shelf(a), Shelf(b)), (store, other), size, lambda: 0.0)


@pytest.mark.parametrize("size", [1, 3, 10, 100])
def test_each_kind_of_difference(size: int) -> None:
    """Another content, one more on either side, one that cannot be read: named, and who left the log is known."""
    log = points(1, range(50))
    a, b = dict(log), dict(log)
    b[point_key(1, id_key(4))] = b"\0" * 15 + b"x"
    del a[point_key(1, id_key(11))]
    b[point_key(1, id_key(99))] = b"\0" * 15 + b"y"
    a[point_key(1, id_key(30))] = None
    assert report(log, log, log, size).is_equal
    (found,) = report(a, b, log, size).collections
    assert [(one.id, one.what) for one in found.ids] == [
        (4, "its content differs"),
        (11, "it is on B only"),
        (30, "it cannot be read on A"),
        (99, "it is on B only"),
    ]
    assert (found.ids_differ, found.a.points, found.b.points) == (4, 49, 51)
    assert (found.a.damaged, found.b.damaged) == (1, 0)
    assert not found.a.holds_log and not found.b.holds_log
    (found,) = report(log, b, log, size).collections
    assert found.a.holds_log and not found.b.holds_log


def test_a_lost_point_on_both_sides_is_no_agreement() -> None:
    """Two sides that cannot read a point agree on its sum, and are damaged both."""
    log = points(1, range(20))
    lost: Points = {**log, point_key(1, id_key(3)): None}
    found = report(lost, lost, log)
    assert not found.is_equal
    assert (found.collections[0].a.damaged, found.collections[0].b.damaged) == (1, 1)


def test_much_is_counted_and_some_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """However much differs, lists are bounded, and no sum reads more at once than was asked for."""
    monkeypatch.setattr(comparing, "NAMED_MAX", 5)
    few, many = points(1, range(0, 1_000, 100)), points(1, range(1_000))
    sides, store = (Shelf(few), Shelf(many)), stored({1: logged(1, few)})
    (found,) = compare(sides, (store, store), 7, lambda: 0.0).collections
    assert (found.ids_differ, len(found.ids)) == (990, 5)
    assert sides[1].most == 7 and found.ranges == 2
    lost: Points = dict.fromkeys(many)
    (found,) = compare((Shelf(lost), Shelf(many)), (store, store), 7, lambda: 0.0).collections
    assert (found.a.damaged, len(found.a.damaged_points)) == (1_000, 5)
    assert (found.ranges_differ, len(found.differing)) == (143, 5)


def test_what_no_range_shows() -> None:
    """A collection on one side only, another definition, another word of the log."""
    log = points(1, range(10))
    there = {1: logged(1, log, dim=4)}
    (found,) = report(log, log, log, collections={1: logged(1, log, dim=8)}).collections
    assert found.problems == ["dim: None on A, 8 on B"]
    (found,) = report(log, {}, log, collections={}).collections
    assert found.problems == ["it is on A only"] and not found.ids
    (found,) = report(log, log, log, collections={1: replace(logged(1, log), points=11)}).collections
    assert len(found.problems) == 1 and not found.is_equal and not found.b.holds_log
    assert compare((Shelf(log), Shelf(log)), (stored(there), stored(there)), 4, lambda: 0.0).is_equal


class Moving:
    """A store whose LSN moves whenever it is looked at."""

    def __init__(self, lsns: Iterator[int], **more: Any) -> None:
        self._lsns, self._more = lsns, more

    def hold(self) -> int:
        return next(self._lsns)

    def pin(self, lsn: int, _wait_s: float) -> PinnedStore:
        at = next(self._lsns)
        if lsn and at > lsn:
            raise InvalidArgument(f"the store is at {at} already")
        return replace(stored({}), lsn=lsn or at, **self._more)


def test_pins_are_brought_to_one_lsn() -> None:
    """The follower waits for the leader; where it went on before it was asked, both begin again; not for ever."""
    names = ("A", "B")
    a, b = pin_both(Moving(itertools.count(10)), Moving(iter([4, 9])), 1, names)
    assert a.lsn == b.lsn == 10
    a, b = pin_both(Moving(iter([10, 20])), Moving(iter([4, 11, 12, 13])), 1, names)
    assert a.lsn == b.lsn == 20
    refused: list[tuple[Callable[[], object], str]] = [
        (lambda: pin_both(Moving(itertools.repeat(5)), Moving(itertools.cycle([4, 6])), 1, names), "already"),
        (lambda: pin_both(Moving(itertools.repeat(5)), Moving(itertools.repeat(6)), 1, names), "beyond A"),
        (
            lambda: pin_both(Moving(itertools.repeat(5)), Moving(itertools.repeat(5), chain=b"x"), 1, names),
            "histories part",
        ),
        (lambda: pin_both(Moving(itertools.repeat(5)), Moving(itertools.repeat(5), lineage=b"x"), 1, names), "lineage"),
    ]
    for call, text in refused:
        with pytest.raises(InvalidArgument, match=text):
            call()


def test_places_between_points_have_no_id() -> None:
    """Damage in bytes that no known point has is told without an id, and does not end the comparison."""

    class Torn(Shelf):
        def summed(self, first: bytes, stop: bytes, points_max: int) -> Sum:
            found = super().summed(first, stop, points_max)
            behind = point_key(1, id_key(3)) + b"\0"
            return replace(found, damaged=(Damage(behind, "lost"), Damage(first[:8], "lost")), damaged_count=2)

    log = points(1, range(5))
    store = stored({1: logged(1, log)})
    (found,) = compare((Shelf(log), Torn(log)), (store, store), 10, lambda: 0.0).collections
    assert [one.id for one in found.b.damaged_points] == [None, None]
    assert key_id(id_key(3)) == 3 and not found.is_equal


class Meeting(Shelf):
    """A side that sums one range only together with the other side."""

    def __init__(self, points: Points, meeting: threading.Barrier, begins_first: bool) -> None:
        super().__init__(points)
        self._meeting, self._begins_first = meeting, begins_first

    def summed(self, first: bytes, stop: bytes, points_max: int) -> Sum:
        if (first == span(1)[0]) == self._begins_first:
            self._meeting.wait(10)
        return super().summed(first, stop, points_max)


def test_the_sides_are_read_side_by_side() -> None:
    """While B sums the first range A sums the second one, and the same is found."""
    log = points(1, range(20))
    store, meeting = stored({1: logged(1, log)}), threading.Barrier(2)
    sides = (Meeting(log, meeting, begins_first=False), Meeting(log, meeting, begins_first=True))
    with side_by_side() as begin:
        found = compare(sides, (store, store), 10, lambda: 0.0, begin=begin)
    assert found.is_equal and found.collections[0].ranges == 2
