"""A call that waits for the committer: when its caller may give up, and what it is told then."""

from __future__ import annotations

import threading
import time

import pytest

from vecstore.engine.calls import Call
from vecstore.errors import DeadlineExceeded


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

    def wait() -> None:
        with pytest.raises(DeadlineExceeded) as caught:
            call.result()
        found.append(caught.value)

    caller = threading.Thread(target=wait)
    caller.start()
    caller.join(0.1)
    assert caller.is_alive(), "it has no name yet"
    call.token = "a token"
    caller.join(30)
    assert (found[0].outcome, found[0].details["token"]) == ("unknown", "a token")


def test_a_call_whose_deadline_passes_while_it_is_resolved_is_refused() -> None:
    """What takes long is in vain then, and nothing of it is written."""
    call = Call(deadline_s=time.monotonic() - 1.0)
    assert not call.take()
    with pytest.raises(DeadlineExceeded) as caught:
        call.result()
    assert caught.value.outcome == "refused"
