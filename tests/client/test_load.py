"""Records under way of a bulk load: bounded, kept until acknowledged, sent again where a stream was cut off."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from vecstore import InvalidArgument, Unavailable, WriteLost
from vecstore.client.async_connection import AsyncConnection, AsyncLoad
from vecstore.client.call import Session, Step
from vecstore.client.endpoint import Access
from vecstore.client.load import UNDER_WAY_BYTES_MAX, UNDER_WAY_RECORDS_MAX, Window
from vecstore.config import MIB
from vecstore.wire.v1 import store_pb2 as pb


def records(count: int, size: int = 1) -> Iterator[pb.UpsertRequest]:
    """Make records that are told apart by their collection's number."""
    for i in range(count):
        yield pb.UpsertRequest(collection=i, body=bytes(size))


def taken(window: Window) -> list[int]:
    """Take as many records as there is room for; return their numbers."""
    found = []
    while window.has_room:
        record = window.next()
        if record is None:
            break
        found.append(record.collection)
    return found


def acknowledge(window: Window, count: int) -> None:
    """Acknowledge records of ten points each, at the LSNs that follow."""
    for _ in range(count):
        lsn = 1 if window.last is None else window.last.lsn + 1
        window.acknowledged(pb.Written(lsn=lsn, count=10, token=f"t{lsn}"))


def test_so_many_records_and_bytes_are_under_way_at_most() -> None:
    """Nothing more is read from the source until the oldest is acknowledged."""
    window = Window(records(100))
    assert taken(window) == list(range(UNDER_WAY_RECORDS_MAX))
    acknowledge(window, 3)
    assert taken(window) == list(range(UNDER_WAY_RECORDS_MAX, UNDER_WAY_RECORDS_MAX + 3))
    large = Window(records(100, 10 * MIB))
    assert len(taken(large)) == -(-UNDER_WAY_BYTES_MAX // (10 * MIB))
    assert taken(Window(records(3, UNDER_WAY_BYTES_MAX + 1))) == [0], "one record fits, however large"


def test_what_is_not_acknowledged_is_sent_again_in_order() -> None:
    """After a restart the records under way come first, then the rest; a second restart does the same."""
    window = Window(records(20))
    taken(window)
    acknowledge(window, 5)
    before = window.is_under_way
    window.restart()
    assert (before, window.is_under_way) == (True, False), "of the new stream nothing was sent yet"
    assert [window.next().collection for _ in range(4)] == [5, 6, 7, 8]  # type: ignore[union-attr]
    window.restart()
    assert taken(window) == list(range(5, 20))
    acknowledge(window, 15)
    assert window.next() is None
    assert window.is_done
    result = window.result()
    assert result is not None
    assert (result.count, result.lsn, result.token) == (200, 20, "t20")


def test_an_error_of_the_source_comes_after_what_was_before_it() -> None:
    """The records before it are sent and acknowledged; then it is raised, with the points committed."""

    def source() -> Iterator[pb.UpsertRequest]:
        yield from records(2)
        raise InvalidArgument("row 5")

    window = Window(source())
    assert taken(window) == [0, 1]
    before = window.is_done
    acknowledge(window, 2)
    assert (before, window.is_done) == (False, True)
    with pytest.raises(InvalidArgument, match="20 points were committed") as caught:
        window.result()
    assert caught.value.details["committed"] == 20


def test_an_error_of_the_stream_says_what_was_committed() -> None:
    """Whatever ended a load, its error has the points that are there."""
    window = Window(records(5))
    taken(window)
    acknowledge(window, 2)
    error = window.failed(Unavailable("gone"))
    assert isinstance(error, Unavailable)
    assert error.details["committed"] == 20


def test_a_history_that_went_back_is_told() -> None:
    """Each record has an LSN above the last one's: where it has not, records that were acknowledged are gone."""
    window = Window(records(5))
    taken(window)
    acknowledge(window, 3)
    for lsn in (2, 3):
        with pytest.raises(WriteLost, match="30 points were committed") as caught:
            window.acknowledged(pb.Written(lsn=lsn, count=10))
        assert caught.value.outcome == "unknown"


def test_a_source_without_records_has_no_result() -> None:
    """Of nothing there is nothing to tell."""
    window = Window(records(0))
    assert window.next() is None
    assert window.is_done
    assert window.result() is None


def test_a_stream_that_is_over_takes_no_record_more() -> None:
    """A dead stream's feed may be asked once more: what it gave would be lost, and others taken for it."""

    async def scenario() -> None:
        known = Session(["localhost:9"])
        connection = AsyncConnection(known, Access())
        load, over = AsyncLoad(connection, Window(records(5)), None), asyncio.Event()
        step = Step(0, False, 0.0, None, False)
        dead = load.feed(step, over)
        assert [(await anext(dead)).collection for _ in range(2)] == [0, 1]
        over.set()
        await load.restart()
        assert await anext(dead, None) is None
        assert [record.collection async for record in load.feed(step, asyncio.Event())] == [0, 1, 2, 3, 4]
        await connection.close()

    asyncio.run(scenario())
