"""Points that differ are made what the primary has: in the family, in the rows, and for good."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.replication.contents import fetch, write_points
from tests.replication.damage import another, closed_store, flipped, points_of, replace_points, without_rows
from tests.replication.pair import assert_equal, committer_of, held, make_pair, opened, ship, write_history
from vecstore.engine.contents.mend import Wanted, mend
from vecstore.engine.contents.outgoing import Outgoing
from vecstore.engine.database import EmbeddedDatabase
from vecstore.engine.slots import Standbys
from vecstore.errors import Damaged
from vecstore.storage.base import Family

HOW_MANY = 12


@contextlib.contextmanager
def damaged(path: Path, seed: int, rows: bool) -> Iterator[tuple[EmbeddedDatabase, EmbeddedDatabase, dict[bytes, int]]]:
    """Make two equal stores, then change, flip, remove and add points of the second one; yield them and the places.

    Parameters
    ----------
    rows
        Whether the rows of the second store are made of the damaged points.
    """
    with make_pair(path) as (a, b):
        write_history(a, seed, 60)
        ship(a, b, seed)
        lsn = b.status()["lsn"]
    with closed_store(path / "b") as store:
        before = points_of(store)
    places = sorted(before)[:: max(1, len(before) // HOW_MANY)][:HOW_MANY]
    changes: dict[bytes, bytes | None] = {}
    for i, place in enumerate(places):
        value = before[place]
        changes[place] = (another(value), None if rows else flipped(value), None)[i % 3]
    extra = places[0][:9] + (b"\xff" * 8 if places[0][8] == 1 else b"\xf4\x8f\xbf\xbf")
    value = before[places[0]]
    size = int.from_bytes(value[24:28], "little")
    content = len(extra[8:]).to_bytes(4, "little") + extra[8:] + value[28 + size :]
    changes[extra] = another(value[:24] + content)
    replace_points(path / "b", changes)
    if rows:
        without_rows(path / "b")
    wanted = {place: int.from_bytes(before[place][:8], "little") for place in places} | {extra: 0}
    with contextlib.closing(opened(path / "a")) as a, contextlib.closing(opened(path / "b")) as b:
        a.engine.slots.standbys = lambda: Standbys(holds_all=True)
        committer_of(b.engine).fence(held)
        assert b.status()["lsn"] == lsn
        if rows:
            assert b.engine.checkpointer is not None
            b.engine.checkpointer.take()
        yield a, b, wanted


def mend_from(a: EmbeddedDatabase, b: EmbeddedDatabase, wanted: dict[bytes, int], path: Path) -> None:
    """Read points of one store and mend those of the other."""
    outgoing = Outgoing(a.engine)
    taken = outgoing.take_points([(int.from_bytes(place[:8], "big"), place[8:]) for place in wanted])
    compared_lsn = b.status()["lsn"]
    points = fetch(outgoing, taken, path / "b").points
    mend(b.engine, points, {place: Wanted(lsn, compared_lsn) for place, lsn in wanted.items()})


@pytest.mark.parametrize("rows", [False, True], ids=["points", "points and rows"])
def test_what_differs_is_mended_where_the_primary_stands_still(seed: int, rows: bool, tmp_path: Path) -> None:
    """Changed, flipped, missing and surplus points are the primary's again: digests, rows, answers, also reopened."""
    with damaged(tmp_path, seed, rows) as (a, b, wanted):
        with pytest.raises(AssertionError):
            assert_equal(a, b, seed)
        mend_from(a, b, wanted, tmp_path)
        # As a kill would leave it.
        shutil.copytree(tmp_path / "b", tmp_path / "killed")
        assert_equal(a, b, seed)
        with contextlib.closing(opened(tmp_path / "killed")) as killed:
            assert_equal(a, killed, seed)
        mend_from(a, b, wanted, tmp_path)
        assert_equal(a, b, seed)
        a.close()
        b.close()
        with contextlib.closing(opened(tmp_path / "a")) as a, contextlib.closing(opened(tmp_path / "b")) as b:
            assert_equal(a, b, seed)
            write_points(a, seed + 1, 10)
            ship(a, b, seed)
            assert_equal(a, b, seed)


@pytest.mark.parametrize("rows", [False, True], ids=["points", "points and rows"])
def test_what_the_primary_wrote_meanwhile_is_left_to_its_records(seed: int, rows: bool, tmp_path: Path) -> None:
    """Points read while the primary goes on: those it wrote since come with their records, digests on trust."""
    with damaged(tmp_path, seed, rows) as (a, b, wanted):
        write_points(a, seed + 1, 40)
        before = dict(zip(wanted, b.engine.store.get(Family.POINTS, list(wanted)), strict=True))
        mend_from(a, b, wanted, tmp_path)
        for place, value in zip(wanted, a.engine.store.get(Family.POINTS, list(wanted)), strict=True):
            if value is None and wanted[place]:
                # It was removed since: until that record comes, it is there.
                assert b.engine.store.get(Family.POINTS, [place]) == [before[place]]
        ship(a, b, seed, trust=True)
        assert_equal(a, b, seed)
        write_points(a, seed + 2, 5)
        ship(a, b, seed)
        assert_equal(a, b, seed)


def test_what_was_written_behind_the_comparison_is_not_removed(seed: int, tmp_path: Path) -> None:
    """A point that neither had, that both have written since and the primary has removed, is there until that comes."""
    with make_pair(tmp_path) as (a, b):
        write_history(a, seed, 10)
        ship(a, b, seed)
        compared_lsn = b.status()["lsn"]
        collection = a.collection("ints")
        collection.upsert([77_777], np.ones((1, collection.dim), np.float32))
        ship(a, b, seed)
        (place,) = [place for place in points_of_open(b) if place.endswith((77_777).to_bytes(8, "big"))]
        collection.delete(ids=[77_777])
        outgoing = Outgoing(a.engine)
        points = fetch(outgoing, outgoing.take_points([(int.from_bytes(place[:8], "big"), place[8:])]), tmp_path / "b")
        mended = mend(b.engine, points.points, {place: Wanted(0, compared_lsn)})
        assert (mended.removed, mended.left) == (0, 1)
        assert b.collection("ints").get([77_777])
        ship(a, b, seed)
        assert_equal(a, b, seed)


def points_of_open(database: EmbeddedDatabase) -> list[bytes]:
    """Return the places of all points of an open store."""
    return [place for place, _ in database.engine.store.scan(Family.POINTS, b"")]


def test_nothing_is_copied_from_a_primary_that_is_damaged(seed: int, tmp_path: Path) -> None:
    """A point whose bytes are not what the primary wrote stops the whole: nothing is changed."""
    with damaged(tmp_path, seed, False) as (a, b, wanted):
        place = min(wanted)
        (value,) = a.engine.store.get(Family.POINTS, [place])
        assert value is not None
        committer_of(a.engine).run(lambda: a.engine.store.write([(Family.POINTS, place, flipped(value))]))
        before = b.engine.store.get(Family.POINTS, sorted(wanted))
        with pytest.raises(Damaged, match="nothing is copied"):
            mend_from(a, b, wanted, tmp_path)
        assert b.engine.store.get(Family.POINTS, sorted(wanted)) == before
