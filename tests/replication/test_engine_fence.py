"""The fence as an operation of the committer: every call ends as done, refused or unknown, each word true (I6)."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vecstore.engine.database import EmbeddedDatabase
from vecstore.errors import DeadlineExceeded, NotFound, NotPrimary, VecstoreError
from vecstore.record import Token
from vecstore.replication.store_log import StoreLog

from .pair import committer_of, held, make_pair, opened, ship

WRITERS = 6
TURNS = 8


class Writers:
    """Threads that write points of their own, one a call, and note what they were told of each."""

    def __init__(self, database: EmbeddedDatabase, **options: Any) -> None:
        self.points = database.collection("docs")
        self.options = options
        self.told: dict[int, tuple[str, str]] = {}
        self.done, self.refused = threading.Semaphore(0), threading.Event()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._write, args=(i,)) for i in range(WRITERS)]
        for thread in self._threads:
            thread.start()

    def _write(self, number: int) -> None:
        id = number
        while not self._stop.is_set():
            try:
                written = self.points.upsert([id], np.full((1, 4), id + 1.0), **self.options)
            except VecstoreError as exc:
                self.told[id] = (exc.outcome, exc.details.get("token", ""))
                if exc.outcome == "refused":
                    self.refused.set()
            else:
                self.told[id] = ("done", written.token)
                self.done.release()
            id += WRITERS

    def stop(self) -> dict[int, tuple[str, str]]:
        """Let them end once one was refused, and return what they were told: outcome and token by id."""
        assert self.refused.wait(30)
        self._stop.set()
        for thread in self._threads:
            thread.join()
        return self.told


def wait_for_writes(writers: Writers, count: int) -> None:
    """Wait until so many calls were done."""
    for _ in range(count):
        assert writers.done.acquire(timeout=30)


@pytest.mark.parametrize("turn", range(TURNS))
def test_a_fence_races_writers(tmp_path: Path, turn: int) -> None:
    """What is done was durable before the fence ended; what was refused is nowhere; unknown is settled by its token."""
    with contextlib.closing(opened(tmp_path / "a")) as a:
        a.create_collection("docs", 4)
        committer = committer_of(a.engine)
        writers = Writers(a)
        wait_for_writes(writers, 5 + 7 * turn)
        committer.fence(held)
        fenced_lsn = committer.tip.lsn
        done = {id for id, (outcome, _) in dict(writers.told).items() if outcome == "done"}
        told = writers.stop()
        assert committer.tip.lsn == fenced_lsn == committer.durable_lsn, "nothing is written after the fence"
        there = {point.id for point in a.collection("docs").scan()}
        by_outcome: dict[str, set[int]] = {
            wanted: {id for id, (outcome, _) in told.items() if outcome == wanted}
            for wanted in ("done", "refused", "unknown")
        }
        assert sum(map(len, by_outcome.values())) == len(told)
        assert done <= by_outcome["done"] <= there
        assert len(by_outcome["done"]) - len(done) <= WRITERS, "answered before the fence, noted after it"
        assert not by_outcome["refused"] & there
        assert by_outcome["refused"], "those that came later"
        for id in by_outcome["unknown"]:
            token = Token.decode(told[id][1])
            assert (token.lsn <= fenced_lsn) == (id in there)
            assert a.wait(told[id][1], timeout=5).lsn == token.lsn


def test_what_is_under_way_is_unknown(tmp_path: Path) -> None:
    """A call whose record is being synced when the fence begins is not told that it is done, nor that it is refused."""
    with contextlib.closing(opened(tmp_path / "a")) as a:
        docs = a.create_collection("docs", 4)
        committer = committer_of(a.engine)
        fences: list[threading.Thread] = []

        def fence_now() -> None:
            # In the committer's thread, behind the sync and before the answer.
            committer.on_durable = None
            thread = threading.Thread(target=committer.fence, args=(held,))
            thread.start()
            fences.append(thread)
            with committer.applied:
                assert committer.applied.wait_for(lambda: committer.is_fenced, 30)

        committer.on_durable = fence_now
        with pytest.raises(NotPrimary) as caught:
            docs.upsert([1], np.ones((1, 4)))
        fences[0].join()
        assert (caught.value.outcome, caught.value.primary) == ("unknown", "elsewhere:7601")
        assert a.wait(caught.value.details["token"], timeout=5).lsn == committer.durable_lsn


def test_a_call_that_writes_no_record_is_refused_by_a_fence(tmp_path: Path) -> None:
    """It changed nothing, so that it is refused, and is not remembered as answered."""
    with contextlib.closing(opened(tmp_path / "a")) as a:
        docs = a.create_collection("docs", 4)
        docs.upsert([1], np.ones((1, 4)))
        committer = committer_of(a.engine)
        committer.is_fenced = True
        with pytest.raises(NotPrimary) as caught:
            docs.delete(ids=[7])
        assert caught.value.outcome == "refused"
        committer.open_writes()
        assert docs.delete(ids=[7]).count == 0


def test_a_fence_holds_where_the_store_has_stopped(tmp_path: Path) -> None:
    """A committer that broke, and one that is closed, can be fenced."""
    with contextlib.closing(opened(tmp_path / "a")) as a:
        committer = committer_of(a.engine)
        committer.broken = OSError("broken by the test")
        committer.fence(held)
        assert committer.is_fenced
        committer.broken = None
    committer.fence(held)


def test_a_handover_lets_end_what_was_taken(tmp_path: Path) -> None:
    """Calls taken before the handover are done, and in the log before it; later ones are refused; none is unknown."""
    with make_pair(tmp_path) as (a, b):
        a.create_collection("docs", 4)
        committer, log = committer_of(a.engine), StoreLog(lambda: a.engine)
        writers = Writers(a)
        wait_for_writes(writers, 20)
        committer.handover("west", held)
        told = writers.stop()
        there = {point.id for point in a.collection("docs").scan()}
        assert {outcome for outcome, _ in told.values()} == {"done", "refused"}
        assert {id for id, (outcome, _) in told.items() if outcome == "done"} == there
        assert log.handover == "west" and log.tip.lsn == log.durable_lsn
        ship(a, b)
        assert StoreLog(lambda: b.engine).handover == "west"
        committer.open_writes()
        a.collection("docs").upsert([0], np.ones((1, 4)))
        assert log.handover == ""


def test_replicated_waits_and_is_unknown_when_fenced(tmp_path: Path) -> None:
    """Writers that wait for the standby end as unknown when the fence begins, also where their record was durable."""
    with contextlib.closing(opened(tmp_path / "a")) as a:
        a.create_collection("docs", 4)
        a.engine.synchronous = "west"
        committer = committer_of(a.engine)
        writers = Writers(a, ack="replicated")
        with committer.applied:
            assert committer.applied.wait_for(lambda: a.engine.state.view.lsn >= 2 + WRITERS, 30)
        assert not writers.told
        committer.replicated_to(committer.durable_lsn)
        wait_for_writes(writers, WRITERS)
        committer.fence(held)
        told = writers.stop()
        outcomes = {outcome for outcome, _ in told.values()}
        assert outcomes <= {"done", "unknown", "refused"} and "refused" in outcomes
        there = {point.id for point in a.collection("docs").scan()}
        assert {id for id, (outcome, _) in told.items() if outcome != "refused"} == there


def test_replicated_in_time_and_too_late(tmp_path: Path) -> None:
    """Too late is durable here, with a token that can be waited for; a request id that is not known is not found."""
    with contextlib.closing(opened(tmp_path / "a")) as a:
        docs = a.create_collection("docs", 4)
        a.engine.synchronous = "west"
        committer = committer_of(a.engine)
        with pytest.raises(DeadlineExceeded) as caught:
            docs.upsert([1], np.ones((1, 4)), ack="replicated", timeout=0.05)
        assert caught.value.outcome == "durable"
        token = caught.value.details["token"]
        with pytest.raises(DeadlineExceeded):
            a.wait(token, ack="replicated", timeout=0.05)
        committer.replicated_to(committer.durable_lsn)
        assert a.wait(token, ack="replicated", timeout=5).ack == "replicated"
        calls: list[Callable[[], Any]] = [
            lambda: docs.upsert([1], np.ones((1, 4)), ack="replicated", timeout=5),
            lambda: docs.update([1], payloads=[{"a": 1}], ack="replicated", timeout=5),
            lambda: docs.delete(ids=[9], ack="replicated", timeout=5),
            lambda: docs.delete(ids=[1], ack="replicated", timeout=5),
        ]
        committer.on_durable = lambda: committer.replicated_to(committer.durable_lsn)
        for call in calls:
            assert call().ack == "replicated"
        with pytest.raises(NotFound):
            a.wait("ab" * 16, ack="replicated", timeout=5)
