"""A write that is tried again under its request id takes effect once, whatever its first attempt came to (I13).

An attempt that was held up is played by running the same call again, under the same id, after newer writes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vecstore
from vecstore import (
    AlreadyExists,
    Collection,
    Database,
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    VecstoreError,
    request,
)
from vecstore.engine.settled import SETTLED_MAX, Settled

Attempt = Callable[[Callable[[], Any]], Any]


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    """An empty database."""
    with vecstore.open(str(tmp_path / "store")) as database:
        yield database


@pytest.fixture
def docs(database: Database) -> Collection:
    """A collection of two points, with a field."""
    docs = database.create_collection("docs", 2, metric="l2", fields={"a": "int64"})
    docs.upsert([0, 1], [[1, 0], [0, 1]], [{"a": 0}, {"a": 1}])
    return docs


@pytest.fixture
def attempt() -> Attempt:
    """Run a call as one more attempt of one and the same request."""
    request_id = request.new()

    def run(call: Callable[[], Any]) -> Any:
        with request.use(request_id):
            return call()

    return run


def digests(database: Database) -> dict[str, Any]:
    """Return LSN and contents."""
    status = database.status()
    return {"lsn": status["lsn"], **{name: entry["digest"] for name, entry in status["collections"].items()}}


def test_a_retried_create_returns_what_it_created(database: Database, attempt: Attempt) -> None:
    """Not `AlreadyExists`, and no second record; also after the collection was renamed."""

    def create() -> Collection:
        return database.create_collection("docs", 2)

    first = attempt(create)
    before = digests(database)
    assert attempt(create).number == first.number
    assert digests(database) == before
    database.rename_collection("docs", "papers")
    database.create_collection("docs", 2)
    assert attempt(create).number == first.number
    database.drop_collection("papers")
    with pytest.raises(NotFound, match="dropped or renamed since"):
        attempt(create)


def test_create_of_another_request_is_refused(database: Database, attempt: Attempt) -> None:
    """Of two requests that race for one name only one is told that it created the collection."""
    results: list[Any] = []
    barrier = threading.Barrier(8)

    def create() -> None:
        barrier.wait()
        try:
            with request.use(request.new()):
                results.append(database.create_collection("docs", 2))
        except AlreadyExists as exc:
            results.append(exc)

    threads = [threading.Thread(target=create) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(isinstance(result, Collection) for result in results) == 1
    assert sum(isinstance(result, AlreadyExists) for result in results) == 7


def test_retried_rename_drop_and_add_field_are_done(database: Database, docs: Collection) -> None:
    """Each is answered as if it were the first time, and what came under the name since stays."""

    def twice(call: Callable[[], Any], between: Callable[[], Any]) -> None:
        request_id = request.new()
        with request.use(request_id):
            call()
        between()
        before = digests(database)
        with request.use(request_id):
            call()
        assert digests(database) == before

    twice(lambda: database.rename_collection("docs", "papers"), lambda: database.create_collection("docs", 2))
    twice(lambda: docs.add_field("b", "string"), lambda: None)
    twice(lambda: database.drop_collection("papers"), lambda: database.create_collection("papers", 2))
    assert database.collections() == ["docs", "papers"]


def test_retried_writes_of_points_change_nothing(docs: Collection, database: Database, attempt: Attempt) -> None:
    """Upsert, update and delete are answered as before and leave what newer writes made."""
    calls: list[Callable[[], Any]] = [
        lambda: docs.upsert([5, 6], [[1, 1], [2, 2]], [{"a": 5}, {}]),
        lambda: docs.update([5, 7], payloads=[{"a": 9}, {}]),
        lambda: docs.delete(ids=[5, 8]),
        lambda: docs.delete(filter={"a": {"$gte": 0}}),
    ]
    for call in calls:
        request_id = request.new()
        with request.use(request_id):
            first = call()
        docs.upsert([5, 8], [[3, 3], [4, 4]], [{"a": 50}, {"a": 80}])
        before = digests(database)
        with request.use(request_id):
            assert call() == first
        assert digests(database) == before


@pytest.mark.parametrize(
    "call",
    [
        lambda docs, database: docs.delete(ids=[5]),
        lambda docs, database: docs.delete(filter={"a": 5}),
        lambda docs, database: docs.update([5], payloads=[{"a": 6}]),
        lambda docs, database: database.drop_collection("later", missing_ok=True),
        lambda docs, database: database.create_collection("docs", 2, metric="l2", fields={"a": "int64"}, exist_ok=True),
    ],
    ids=["delete", "delete-where", "update", "drop", "create"],
)
def test_a_write_that_had_nothing_to_do_does_nothing_later(
    docs: Collection, database: Database, attempt: Attempt, call: Callable[[Collection, Database], Any]
) -> None:
    """An attempt that runs last finds something to do by then, and changes nothing: the request was answered."""
    first = attempt(lambda: call(docs, database))
    docs.upsert([5], [[3, 3]], [{"a": 5}])
    database.create_collection("later", 2)
    database.rename_collection("docs", "papers")
    before = digests(database)
    again = None
    try:
        again = attempt(lambda: call(docs, database))
    except NotFound:
        assert isinstance(first, Collection)
    if not isinstance(first, Collection):
        assert again == first
    assert digests(database) == before


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda docs, database: database.create_collection("docs", 2), AlreadyExists),
        (lambda docs, database: database.drop_collection("later"), NotFound),
        (lambda docs, database: database.rename_collection("later", "other"), NotFound),
        (lambda docs, database: docs.add_field("a", "string"), InvalidArgument),
        (lambda docs, database: docs.delete(filter={"b": {"$null": True}}), InvalidArgument),
    ],
    ids=["create", "drop", "rename", "add-field", "delete-where"],
)
def test_a_write_that_was_refused_stays_refused(
    docs: Collection,
    database: Database,
    attempt: Attempt,
    call: Callable[[Collection, Database], Any],
    error: type[VecstoreError],
) -> None:
    """What would be allowed by now was refused under this id, and is refused again with the same words."""
    with pytest.raises(error) as first:
        attempt(lambda: call(docs, database))
    database.create_collection("later", 2)
    docs.add_field("b", "string")
    if error is AlreadyExists:
        database.rename_collection("docs", "papers")
    before = digests(database)
    with pytest.raises(error) as again:
        attempt(lambda: call(docs, database))
    assert again.value.args == first.value.args
    assert digests(database) == before


def test_wait_says_what_became_of_a_request(docs: Collection, database: Database) -> None:
    """Of one that wrote a record, one that had nothing to do, one that was refused, and one that never came."""
    wrote, idle, refused, never = (request.new() for _ in range(4))
    with request.use(wrote):
        written = docs.upsert([5], [[1, 1]])
    assert database.wait(wrote.hex()) == written
    with request.use(idle):
        nothing = docs.delete(ids=[77])
    assert database.wait(idle.hex()) == nothing
    with request.use(refused), pytest.raises(AlreadyExists):
        database.create_collection("docs", 2)
    with pytest.raises(NotFound, match="refused: .*docs"):
        database.wait(refused.hex())
    with pytest.raises(NotFound, match="not known"):
        database.wait(never.hex())


def test_wait_for_a_request_makes_it_durable(docs: Collection, database: Database) -> None:
    """A memory write is synced before `wait` says that it is durable."""
    request_id = request.new()
    with request.use(request_id):
        written = docs.upsert([5], [[1, 1]], ack="memory")
    assert database.wait(request_id.hex()).lsn == written.lsn
    assert database.status()["durable_lsn"] >= written.lsn


def test_one_attempt_of_many_at_once_takes_effect(docs: Collection, database: Database) -> None:
    """Attempts that come together are one write: one record, one answer."""
    request_id, answers = request.new(), list[Any]()
    barrier = threading.Barrier(8)

    def write() -> None:
        barrier.wait()
        with request.use(request_id):
            answers.append(docs.upsert([9], np.ones((1, 2)), [{"a": 9}]))

    before = database.status()["lsn"]
    threads = [threading.Thread(target=write) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({answer.lsn for answer in answers}) == 1
    assert database.status()["lsn"] == before + 1


def test_a_request_stays_known_when_the_store_is_opened_again(tmp_path: Path) -> None:
    """Records carry their request's id: a retry after a restart is answered as before."""
    request_id = request.new()
    with vecstore.open(str(tmp_path / "store")) as database, request.use(request_id):
        number = database.create_collection("docs", 2).number
    with vecstore.open(str(tmp_path / "store")) as database, request.use(request_id):
        assert database.create_collection("docs", 2).number == number


@pytest.mark.parametrize(
    "call",
    [
        lambda docs, database: database.create_collection("later", 2),
        lambda docs, database: database.rename_collection("docs", "papers"),
        lambda docs, database: database.drop_collection("docs"),
        lambda docs, database: docs.add_field("b", "string"),
    ],
    ids=["create", "rename", "drop", "add-field"],
)
def test_a_change_whose_time_has_passed_is_not_made(
    docs: Collection, database: Database, call: Callable[[Collection, Database], Any]
) -> None:
    """Calls that take no timeout have that of their request: past it they are refused, and tried again they work."""
    before = digests(database)
    with request.use(request.new(), 0.0):
        with pytest.raises(DeadlineExceeded) as caught:
            call(docs, database)
        assert caught.value.outcome == "refused"
        assert digests(database) == before
        with request.use(request.current(), 60.0):
            call(docs, database)
    assert digests(database)["lsn"] == before["lsn"] + 1
    assert request.deadline_s() is None


def test_what_is_settled_is_bounded() -> None:
    """The oldest answers go when there are too many; what may be tried again is not kept at all."""
    settled = Settled()
    settled.refused(b"again", VecstoreError("later", retryable=True))
    settled.refused(b"unknown", VecstoreError("who knows", outcome="unknown"))
    assert (settled.find(b"again"), settled.find(b"unknown")) == (None, None)
    for i in range(SETTLED_MAX + 1):
        settled.nothing(i.to_bytes(16, "big"), i + 1, "token")
    assert settled.find(bytes(16)) is None
    assert settled.find((1).to_bytes(16, "big")) == (2, "token")
