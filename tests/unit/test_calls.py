"""A call that waits for the committer: when its caller may give up, and what it is told then."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest

import vecstore
from vecstore.engine.calls import Call, Schema
from vecstore.engine.database import EmbeddedDatabase
from vecstore.errors import DeadlineExceeded, Overloaded
from vecstore.record import Kind


def test_a_call_that_is_not_taken_is_refused() -> None:
    """Its caller gave up before it had a record: nothing changes, and the committer lets go of it."""
    call = Call(deadline_s=time.monotonic() + 0.01)
    assert call.is_wanted()
    with pytest.raises(DeadlineExceeded) as caught:
        call.result()
    assert caught.value.outcome == "refused"
    assert not call.is_wanted() and not call.take()


def test_a_call_that_is_taken_is_named() -> None:
    """Where its record is just being made, its caller waits for the token by which it is asked about."""
    call = Call(deadline_s=time.monotonic() + 0.01)
    assert call.take()
    found: list[DeadlineExceeded] = []

    def ask() -> None:
        with pytest.raises(DeadlineExceeded) as caught:
            call.result()
        found.append(caught.value)

    caller = threading.Thread(target=ask)
    caller.start()
    caller.join(0.1)
    assert caller.is_alive(), "it has no name yet"
    call.name("a token")
    caller.join(30)
    assert (found[0].outcome, found[0].details["token"]) == ("unknown", "a token")


def test_a_call_whose_token_was_known_in_time_waits_for_its_answer_alone() -> None:
    """A name is no answer while there is time; where that is over, it is all that is waited for."""
    call = Call(deadline_s=time.monotonic() + 0.3)
    assert call.take()
    call.name("a token")
    call_in_time = Call(deadline_s=time.monotonic() + 30)
    assert call_in_time.take()
    call_in_time.name("another")
    threading.Timer(0.1, call_in_time.finish, ("done",)).start()
    assert call_in_time.result() == "done"
    with pytest.raises(DeadlineExceeded) as caught:
        call.result()
    assert (caught.value.outcome, caught.value.details["token"]) == ("unknown", "a token")


@pytest.mark.parametrize("error", [None, Overloaded("too much")])
def test_a_late_call_is_told_its_answer_where_that_comes_before_a_token(error: Overloaded | None) -> None:
    """It has nothing to be written, or is refused while it is staged: that is no unknown outcome."""
    call = Call(deadline_s=time.monotonic() + 0.01)
    assert call.take()
    with ThreadPoolExecutor(1) as pool:
        caller = pool.submit(call.result)
        assert not wait([caller], 0.1).done, "it has neither"
        if error is None:
            call.finish("nothing to do")
            assert caller.result(30) == "nothing to do"
        else:
            call.fail(error)
            assert caller.exception(30) is error


def test_a_call_whose_deadline_passes_while_it_is_resolved_is_refused() -> None:
    """What takes long is in vain then, and nothing of it is written."""
    call = Call(deadline_s=time.monotonic() - 1.0)
    assert not call.take()
    with pytest.raises(DeadlineExceeded) as caught:
        call.result()
    assert caught.value.outcome == "refused"


def test_a_call_that_is_given_up_while_it_is_looked_at_writes_nothing(tmp_path: Path) -> None:
    """Its caller was told that it is refused: then no record may come of it."""
    with vecstore.open(str(tmp_path / "store")) as database:
        assert isinstance(database, EmbeddedDatabase)
        database.create_collection("docs", 2)
        before, number = database.status()["lsn"], database.collection("docs").number
        gone = threading.Event()

        def make() -> tuple[Kind, int, dict[str, object]]:
            assert gone.wait(30)
            return Kind.DROP, number, {}

        with pytest.raises(DeadlineExceeded) as caught:
            database.engine.submit(Schema(make=make, deadline_s=time.monotonic() + 0.05))
        gone.set()
        assert caught.value.outcome == "refused"
        assert database.collections() == ["docs"]
        written = database.collection("docs").upsert([1], [[0.0, 1.0]])
        assert written.lsn == before + 1
