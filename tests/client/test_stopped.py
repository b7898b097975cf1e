"""A server process that is stopped, continued or killed under calls: what clients are told, and what is true after."""

from __future__ import annotations

import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import vecstore
from tests.support.serve import Served, process
from vecstore import DeadlineExceeded, NotFound, VecstoreError, request

NEW, OLD = [2.0, 2.0], [1.0, 1.0]


@contextmanager
def stopped(server: Served) -> Iterator[None]:
    """Keep the process from running."""
    server.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        server.process.send_signal(signal.SIGCONT)


def collection(database: vecstore.Database) -> vecstore.Collection:
    """Return a collection with the point 1."""
    docs = database.create_collection("docs", 2, metric="l2", exist_ok=True)
    docs.upsert(1, OLD)
    return docs


def content(docs: vecstore.Collection) -> list[float]:
    """Return the vector of the point 1."""
    vector = docs.get(1, with_vector=True)[0].vector
    assert vector is not None
    found: list[float] = vector.tolist()
    return found


def test_a_write_that_a_stopped_server_never_answered_changes_nothing_later(tmp_path: Path) -> None:
    """The attempt lies in the server's socket until it runs again; by then it is too late, and a newer write stands."""
    with process(tmp_path / "store") as server, vecstore.connect(server.grpc) as database:
        docs = collection(database)
        with stopped(server), pytest.raises(DeadlineExceeded) as caught:
            docs.upsert(1, [9.0, 9.0], timeout=0.7)
        assert caught.value.outcome == "unknown"
        docs.upsert(1, NEW)
        assert content(docs) == NEW
        with pytest.raises(NotFound):
            database.wait(caught.value.details["request_id"], timeout=10)
        assert content(docs) == NEW


def test_a_stalled_attempt_that_runs_after_its_retry_and_a_newer_write_changes_nothing(tmp_path: Path) -> None:
    """Both attempts carry one id: the first lies in a stopped server until long after the second was answered."""
    with (
        process(tmp_path / "store") as server,
        vecstore.connect(server.grpc) as first,
        vecstore.connect(server.grpc) as second,
    ):
        docs, others = collection(first), second.collection("docs")
        write = request.new()
        outcome: list[Any] = []

        def attempt() -> None:
            with request.use(write):
                try:
                    outcome.append(docs.upsert(1, [9.0, 9.0], timeout=30))
                except VecstoreError as exc:
                    outcome.append(exc)

        # Attempts of both connections arrive while the server stands; which runs first is its own choice.
        with stopped(server):
            thread = threading.Thread(target=attempt)
            thread.start()
            thread.join(0.3)
            assert thread.is_alive()
        with request.use(write):
            again = others.upsert(1, [9.0, 9.0], timeout=30)
        thread.join(30)
        others.upsert(1, NEW)
        with request.use(write):
            late = docs.upsert(1, [9.0, 9.0], timeout=30)
        assert outcome[0].token == again.token == late.token
        assert content(others) == NEW


def test_a_client_of_two_servers_leaves_the_one_that_stands(tmp_path: Path) -> None:
    """A search that the stopped server does not answer is answered by the other, within its time."""
    with process(tmp_path / "store") as server, vecstore.connect(server.grpc) as database:
        collection(database)
    shutil.copytree(tmp_path / "store", tmp_path / "copy")
    with (
        process(tmp_path / "store") as one,
        process(tmp_path / "copy") as two,
        vecstore.connect([one.grpc, two.grpc], read_from="any", timeout=20) as database,
    ):
        docs = database.collection("docs")
        for standing in (one, two):
            with stopped(standing):
                lost = 0
                for _ in range(10):
                    try:
                        assert docs.search(OLD, 1, timeout=2)[0].id == 1
                    except DeadlineExceeded as exc:
                        assert exc.retryable
                        lost += 1
                assert lost <= 1
            assert docs.search(OLD, 1)[0].id == 1


def test_a_server_killed_under_a_write_leaves_it_settled(tmp_path: Path) -> None:
    """Whatever became of the write, the client is told that it does not know, or that it is done; the store knows."""
    with process(tmp_path / "store") as server, vecstore.connect(server.grpc, timeout=2) as database:
        docs = collection(database)
        write = request.new()
        with stopped(server):
            caught: list[Any] = []

            def attempt() -> None:
                with request.use(write):
                    try:
                        caught.append(docs.upsert(1, NEW, timeout=1.5))
                    except VecstoreError as exc:
                        caught.append(exc)

            thread = threading.Thread(target=attempt)
            thread.start()
            thread.join(0.2)
            server.process.kill()
            thread.join(30)
        error = caught[0]
        assert isinstance(error, VecstoreError)
        assert error.outcome == "unknown" or error.retryable
    with process(tmp_path / "store") as server, vecstore.connect(server.grpc) as database:
        docs = database.collection("docs")
        assert content(docs) == OLD
        with pytest.raises(NotFound):
            database.wait(write.hex(), timeout=10)
        with request.use(write):
            written = docs.upsert(1, NEW)
        assert database.wait(write.hex(), timeout=10).lsn == written.lsn
        assert content(docs) == NEW
