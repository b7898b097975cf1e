"""Canaries: exact searches of two stores at one LSN have one answer, unless rows are not what was written."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from vecstore.config import EXTENT_ROWS
from vecstore.engine.canary import Hits, asked, chosen, is_same
from vecstore.engine.database import EmbeddedDatabase
from vecstore.engine.ranges import Pin, pin

from .contents import write_points
from .pair import make_pair, ship, write_history

K = 10


def answers(one: Pin, other: Pin, seed: int) -> list[tuple[Hits, Hits, bool]]:
    """Ask both the same, one query a collection; return the answers, and whether they are the same."""
    rng, found = random.Random(seed), []
    for number, state in one.collections.items():
        vector = chosen(one.view, number, rng)
        assert (vector is None) == (state.points == 0)
        if vector is None:
            continue
        mine, theirs = (asked(some.view, number, vector, K) for some in (one, other))
        found.append((mine, theirs, is_same(mine, theirs, state.definition.metric)))
    return found


def break_rows(database: EmbeddedDatabase) -> None:
    """Change the rows of live points that are in memory, as damaged ones would be."""
    for shards in database.engine.state.shards.values():
        view = shards[0].view()
        for row in view.live_rows(database.engine.state.view.lsn).tolist():
            extent = view.extents[row // EXTENT_ROWS]
            if extent is not None and extent.superseded is not None:
                shards[0].rows.vectors.data[row] *= -2.0


def test_two_stores_at_one_lsn_answer_the_same(seed: int, tmp_path: Path) -> None:
    """Whatever each has built: ids and scores are the same, also from views that are old by then."""
    with make_pair(tmp_path) as (a, b):
        write_history(a, seed, 60)
        ship(a, b, seed)
        with pin(a.engine) as one, pin(b.engine) as other:
            assert one.lsn == other.lsn
            before = answers(one, other, seed)
            write_points(a, seed + 1, 20)
            ship(a, b, seed)
            after = answers(one, other, seed)
        assert before == after
        assert all(mine[0] and same for mine, _, same in before)


def test_another_row_is_another_answer(seed: int, tmp_path: Path) -> None:
    """Rows that are not what was written change what is found, though every point on the disk is whole."""
    with make_pair(tmp_path) as (a, b):
        vectors = np.random.default_rng(seed).standard_normal((20, 8), dtype=np.float32)
        a.create_collection("docs", 8).upsert(range(20), vectors)
        ship(a, b, seed)
        break_rows(b)
        with pin(a.engine) as one, pin(b.engine) as other:
            found = [answers(one, other, seed + i) for i in range(5)]
        assert not any(same for some in found for _, _, same in some)


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (((b"a", b"b", b"c"), (0.1, 0.2, 0.3)), True),
        (((b"a", b"b", b"c"), (0.1, 0.2, 0.300001)), True),
        (((b"b", b"a", b"c"), (0.1, 0.2, 0.3)), False),
        (((b"a", b"b", b"d"), (0.1, 0.2, 0.3)), True),
        (((b"a", b"d", b"c"), (0.1, 0.2, 0.3)), False),
        (((b"a", b"b"), (0.1, 0.2)), False),
        (((b"a", b"b", b"c"), (0.1, 0.2, 0.4)), False),
    ],
    ids=["equal", "last bits", "swapped", "as near as the last", "another hit", "fewer", "another score"],
)
def test_only_the_last_bits_may_differ(other: Hits, same: bool) -> None:
    """Scores as two processors sum them, and hits as near as the last one, are the same; all else is not."""
    one = ((b"a", b"b", b"c"), (0.1, 0.2, 0.3))
    assert is_same(one, other, "l2") is same
    assert is_same(other, one, "l2") is same


def test_a_collection_that_is_not_there_answers_nothing(tmp_path: Path) -> None:
    """A collection that one of the two does not have is no error, and no answer."""
    with make_pair(tmp_path) as (a, _), pin(a.engine) as one:
        assert chosen(one.view, 77, random.Random(0)) is None
        assert asked(one.view, 77, np.zeros(4, "<f4").tobytes(), K) == ((), ())
