"""Whose turn it is on a device: what asks the same is one call, and nothing overtakes what changes something."""

from __future__ import annotations

import socket
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.support.data import mixture
from vecstore.index.budget import Ledger
from vecstore.index.channel import Arena, Ask, Channel, Drop, Forget, Load, Message, Reply
from vecstore.index.host import HostBackend
from vecstore.index.turns import QUERIES_TOGETHER_MAX, Turns
from vecstore.index.worker import Worker

from .devices import source_of

ROWS, DIM = 500, 8


def ask(number: int, segment: str = "s", count: int = 1, selection: int = 0, at: int = 0) -> Ask:
    """Return a question."""
    return Ask(number, segment, at, count, at + 1_024, at + 2_048, 5, 5, 0, 0, selection, False)


def taken(turns: Turns) -> list[list[Ask] | Message]:
    """Take all."""
    found = []
    while turns:
        found.append(turns.take())
    return found


def test_callers_of_several_segments_are_one_call_for_each() -> None:
    """64 callers that ask four segments each, one after the other, are four calls and not 256."""
    turns = Turns()
    for caller in range(64):
        for segment in "abcd":
            turns.add(ask(caller, segment))
    calls = taken(turns)
    assert [[one.segment for one in call] for call in calls if isinstance(call, list)] == [[s] * 64 for s in "abcd"]
    assert all([one.id for one in call] == list(range(64)) for call in calls if isinstance(call, list))


def test_no_question_waits_for_all_of_another_kind() -> None:
    """However many ask the same, and go on asking, another's turn comes after one call of them."""
    turns = Turns()
    for number in range(20):
        turns.add(ask(number, count=1_000))
    turns.add(ask(99, "other"))
    assert [one.id for one in turns.take()] == [0, 1, 2, 3]  # type: ignore[union-attr]
    turns.add(ask(20, count=1_000))
    assert [one.id for one in turns.take()] == [99]  # type: ignore[union-attr]
    rest = taken(turns)
    assert [one.id for call in rest for one in call] == list(range(4, 21))  # type: ignore[union-attr]


MESSAGES = st.one_of(
    st.tuples(st.just("ask"), st.sampled_from("ab"), st.integers(0, 2), st.sampled_from([1, 1_500, 5_000])),
    st.tuples(st.just("drop"), st.sampled_from("ab")),
    st.tuples(st.just("forget"), st.integers(1, 2)),
    st.just(("take",)),
)


@given(st.lists(MESSAGES, max_size=60))
def test_every_message_has_its_turn_and_none_overtakes_a_change(script: list[tuple[Any, ...]]) -> None:
    """Each comes out once; a call's questions ask the same and are bounded; changes keep their place among all."""
    turns = Turns()
    given_: list[Message] = []
    out: list[Message] = []

    def take() -> None:
        turn = turns.take()
        if not isinstance(turn, list):
            out.append(turn)
            return
        assert len({(one.segment, one.selection) for one in turn}) == 1
        assert len(turn) == 1 or sum(one.count for one in turn) <= QUERIES_TOGETHER_MAX
        out.extend(turn)

    for number, step in enumerate(script):
        if step[0] == "take":
            if turns:
                take()
            continue
        message: Message = Drop(number, step[1]) if step[0] == "drop" else Forget(step[1])
        if step[0] == "ask":
            message = ask(number, step[1], step[3], step[2])
        given_.append(message)
        turns.add(message)
    while turns:
        take()
    assert Counter(map(id, out)) == Counter(map(id, given_))
    order = {id(message): at for at, message in enumerate(out)}
    for at, change in enumerate(given_):
        if not isinstance(change, Ask):
            assert all(order[id(one)] < order[id(change)] for one in given_[:at])
            assert all(order[id(one)] > order[id(change)] for one in given_[at + 1 :])


def test_a_worker_asks_its_device_once_for_all_that_wait(tmp_path: Path) -> None:
    """Twelve callers ask two segments in turns: the device is called twice, and each has its own answer."""
    calls: list[int] = []

    class Counting(HostBackend):
        def search(self, built: Any, queries: Any, find: Any, mask: Any = None) -> Any:
            calls.append(len(queries))
            return super().search(built, queries, find, mask)

    ours, theirs = socket.socketpair()
    engine, arena = Channel(ours, Reply), Arena(1 << 20)
    worker = Worker(Counting(Ledger(1 << 30)), Channel(theirs, Message), arena, 1 << 24)
    vectors = mixture(ROWS, DIM, 1)
    for number, name in enumerate("ab"):
        (tmp_path / name).mkdir()
        files = list(source_of(tmp_path / name, vectors[number * 100 :], "l2").files)
        worker._waiting.put(Load(number, name, "l2", DIM, files, "flat", 0, 0, DIM, (0, 1 << 20, 1 << 20), 1))
        while name not in worker._held:
            assert worker._take_in()
            worker._turn()
        assert engine.receive().problem == ""
    queries = mixture(12, DIM, 2)
    asked = []
    for i in range(24):
        at, segment = i * 4_096, "ab"[i % 2]
        arena.array("<f4", (1, DIM), at)[:] = queries[i // 2]
        asked.append(ask(100 + i, segment, at=at))
        worker._waiting.put(asked[-1])
    assert worker._take_in()
    while worker._turns:
        worker._turn()
    assert calls == [12, 12]
    assert {engine.receive().id for _ in asked} == {one.id for one in asked}
    for i, one in enumerate(asked):
        rows = vectors[(i % 2) * 100 :]
        near = np.argsort(((rows - queries[i // 2]) ** 2).sum(1))[:5]
        assert set(arena.array("<i8", (1, 5), one.rows_at)[0].tolist()) == set(near.tolist())
    for end in (engine, worker._channel):
        end.close()
    arena.close()
