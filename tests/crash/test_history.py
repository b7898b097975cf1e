"""The judge itself: a history allows what may be after a crash, and nothing else."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from itertools import islice

import pytest

from ..support.writer import SHARED, Intent, State, apply, intents
from .history import Contents, History

FIRST = Intent(0, 0, "upsert", "ints", [0, 2, 4], salt=7)
SECOND = Intent(0, 1, "upsert", "ints", [2, 6], salt=8)
MEMORY = Intent(1, 0, "upsert", "ints", [1, 3], salt=9, ack="memory")


def line(intent: Intent) -> bytes:
    """Return what a writer says before a call."""
    return json.dumps({"intent": asdict(intent)}).encode()


def ack(intent: Intent, lsn: int) -> bytes:
    """Return what a writer says after it."""
    said = {"thread": intent.thread, "number": intent.number, "lsn": lsn, "ack": intent.ack, "token": f"t{lsn}"}
    return json.dumps({"ack": said}).encode()


def after(*done: Intent) -> Contents:
    """Return what a store holds after these intents."""
    state: State = {name: {} for name in SHARED}
    for intent in done:
        apply(state, intent)
    return state


def test_an_open_write_may_be_there_or_not() -> None:
    """A call that was not acknowledged is there whole or not at all; the history goes on from what is found."""
    for found in (after(FIRST), after(FIRST, SECOND)):
        history = History(threads=2)
        history.add([line(FIRST), ack(FIRST, 1), line(SECOND)])
        history.settle(found)
        assert {name: points for name, points in history.contents().items() if points} == {"ints": found["ints"]}


@pytest.mark.parametrize(
    "found",
    [
        after(),
        after(SECOND),
        after(FIRST, replace(SECOND, ids=[2])),
        after(FIRST, replace(SECOND, salt=99)),
        after(FIRST, Intent(1, 0, "upsert", "ints", [9], salt=1)),
        {**after(FIRST), "temp": {}},
    ],
    ids=["lost", "order", "half", "content", "stranger", "collection"],
)
def test_anything_else_is_found(found: Contents) -> None:
    """A lost or reordered write, half a record, other content, points and collections of nowhere."""
    history = History(threads=2)
    history.add([line(FIRST), ack(FIRST, 1), line(SECOND)])
    with pytest.raises(AssertionError, match="none of the allowed states"):
        history.settle(found)


@pytest.mark.parametrize(("durable", "allowed"), [(1, True), (5, False)])
def test_memory_is_durable_when_a_later_record_is(durable: int, allowed: bool) -> None:
    """A write acknowledged from memory may be lost until some later record was acknowledged as durable."""
    history = History(threads=2)
    history.add([line(MEMORY), ack(MEMORY, 3), line(FIRST), ack(FIRST, durable)])
    if allowed:
        history.settle(after(FIRST))
        return
    with pytest.raises(AssertionError, match="none of the allowed states"):
        history.settle(after(FIRST))


def test_a_refused_call_changed_nothing() -> None:
    """A refused call is forgotten; one whose outcome is unknown stays open."""

    def history(outcome: str) -> History:
        error = {"error": {"thread": 0, "number": 1, "type": "E", "outcome": outcome, "text": ""}}
        made = History(threads=2)
        made.add([line(FIRST), ack(FIRST, 1), line(SECOND), json.dumps(error).encode()])
        return made

    history("unknown").settle(after(FIRST, SECOND))
    history("refused").settle(after(FIRST))
    with pytest.raises(AssertionError, match="none of the allowed states"):
        history("refused").settle(after(FIRST, SECOND))


def test_a_torn_last_line_says_nothing() -> None:
    """What a writer was cut short in saying is as if it was not said."""
    history = History(threads=2)
    history.add([line(FIRST), ack(FIRST, 1)[:-5]])
    history.settle(after())


def test_histories_are_repeatable_and_varied() -> None:
    """One seed gives one stream of intents, of all kinds, small and large."""

    def stream() -> list[Intent]:
        return list(islice(intents(5, 0, 2), 400))

    assert stream() == stream()
    assert {intent.do for intent in stream()} == {
        "upsert", "update", "delete", "delete_filter", "create", "rename", "drop", "optimize",
    }  # fmt: skip
    assert any(len(intent.ids) > 400 for intent in stream())
