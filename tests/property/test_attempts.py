"""Histories in which attempts come late: a request that was answered has no effect any more, whatever came since (I13).

Two stores take the same random calls in the same order. In one of them calls that were answered long ago are run again
under their request ids, at random places. Its contents must be those of the other, and each late attempt must be told
what the first one was.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

import vecstore
from tests.support.strategies import DIM, FIELDS, conditions, id_lists, payloads, vectors
from vecstore import Collection, Database, NotFound, VecstoreError, request

NAMES = ("one", "two")
CALLS_MAX = 12


@dataclass(frozen=True)
class Call:
    """One call of a history: a method of the database or of the collection made `of`-th, and what it is given."""

    method: str
    of: int
    arguments: tuple[Any, ...]
    keywords: tuple[tuple[str, Any], ...] = ()

    def run(self, database: Database, made: list[Collection]) -> Any:
        """Make the call; return what it answered, or its error's class and message."""
        keywords = dict(self.keywords)
        try:
            if self.method in ("create_collection", "rename_collection", "drop_collection"):
                answer = getattr(database, self.method)(*self.arguments, **keywords)
            elif made:
                answer = getattr(made[self.of % len(made)], self.method)(*self.arguments, **keywords)
            else:
                return None
        except VecstoreError as exc:
            return type(exc), exc.args
        return answer


@st.composite
def upserts(draw: st.DrawFn) -> Call:
    """Upserts of a few points."""
    ids = draw(id_lists("int", 3))
    given = [draw(payloads()) for _ in ids]
    return Call("upsert", draw(st.integers(0, 5)), (ids, draw(vectors(len(ids))), given), (("ack", "memory"),))


@st.composite
def updates(draw: st.DrawFn) -> Call:
    """Updates of points that may not exist."""
    ids = draw(id_lists("int", 3))
    return Call(
        "update",
        draw(st.integers(0, 5)),
        (ids,),
        (("payloads", [draw(payloads(changes=True)) for _ in ids]), ("ack", "memory")),
    )


def calls() -> st.SearchStrategy[Call]:
    """Calls of every method that writes."""
    of, name = st.integers(0, 5), st.sampled_from(NAMES)
    return st.one_of(
        upserts(),
        updates(),
        st.builds(lambda of, ids: Call("delete", of, (), (("ids", ids), ("ack", "memory"))), of, id_lists("int", 3)),
        st.builds(lambda of, filter: Call("delete", of, (), (("filter", filter), ("ack", "memory"))), of, conditions()),
        st.builds(lambda of, kind: Call("add_field", of, ("free", kind)), of, st.sampled_from(["int64", "string"])),
        st.builds(
            lambda name, some, exist_ok: Call(
                "create_collection",
                0,
                (name, DIM),
                (("metric", "l2"), ("fields", FIELDS if some else {"size": "int64"}), ("exist_ok", exist_ok)),
            ),
            name,
            st.booleans(),
            st.booleans(),
        ),
        st.builds(
            lambda name, to, replace: Call("rename_collection", 0, (name, to), (("replace", replace),)),
            name,
            name,
            st.booleans(),
        ),
        st.builds(
            lambda name, missing_ok: Call("drop_collection", 0, (name,), (("missing_ok", missing_ok),)),
            name,
            st.booleans(),
        ),
    )


def contents(database: Database) -> dict[str, Any]:
    """Return LSN, and of each collection the digest, count and fields."""
    status = database.status()
    found = {name: (one["digest"], one["count"], one["fields"]) for name, one in status["collections"].items()}
    return {"lsn": status["lsn"], "collections": found}


def same(late: Any, first: Any) -> bool:
    """Tell whether a late attempt was answered as the first was, or that what it is about is gone by now."""
    if isinstance(late, tuple) and late[0] is NotFound:
        return True
    if isinstance(first, Collection):
        return bool(late.number == first.number)
    return bool(late == first)


def played(history: list[Call], late: list[tuple[int, int]], path: Path) -> dict[str, Any]:
    """Run a history; before the call at a place, run again one that was answered before it."""
    made: list[Collection] = []
    answered: list[tuple[Callable[[], Any], bytes, Any]] = []
    with vecstore.open(str(path)) as database:
        for place, call in enumerate([*history, None]):
            for at, which in late:
                if at % (len(history) + 1) == place and answered:
                    again, request_id, first = answered[which % len(answered)]
                    with request.use(request_id):
                        assert same(again(), first)
            if call is None:
                break
            # A late attempt is of the same collections as the first.
            known = list(made)
            request_id = request.new()

            def run(call: Call = call, known: list[Collection] = known) -> Any:
                return call.run(database, known)

            with request.use(request_id):
                answer = run()
            answered.append((run, request_id, answer))
            if isinstance(answer, Collection):
                made.append(answer)
        return contents(database)


@settings(max_examples=25)
@given(
    st.lists(calls(), min_size=1, max_size=CALLS_MAX),
    st.lists(st.tuples(st.integers(0, CALLS_MAX), st.integers(0, CALLS_MAX)), min_size=1, max_size=8),
)
def test_late_attempts_change_nothing(history: list[Call], late: list[tuple[int, int]]) -> None:
    """The contents and the LSN are those of a store to which no attempt came twice."""
    begun = Call("create_collection", 0, ("one", DIM), (("metric", "l2"), ("fields", FIELDS)))
    folder = Path(tempfile.mkdtemp())
    try:
        expected = played([begun, *history], [], folder / "once")
        assert played([begun, *history], late, folder / "again") == expected
    finally:
        shutil.rmtree(folder)
