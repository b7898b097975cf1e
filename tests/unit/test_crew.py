"""The crew does all parts of a batch, each once, whoever does them."""

from __future__ import annotations

import os
import threading
from functools import partial

import pytest

from vecstore.engine.crew import Crew


def test_results_come_in_the_order_of_the_calls() -> None:
    """Four calls by three threads answer in their order, as often as they are asked."""
    crew = Crew(2)
    for _ in range(200):
        assert crew.run([partial(pow, base, 2) for base in range(4)]) == [0, 1, 4, 9]
    crew.close()


def test_an_error_of_any_part_reaches_the_caller() -> None:
    """A part that fails in another thread fails the call, and the thread goes on."""
    crew = Crew(1)
    with pytest.raises(ZeroDivisionError):
        crew.run([partial(divmod, 1, 1), partial(divmod, 1, 0)])
    assert crew.run([partial(divmod, 1, 1), partial(divmod, 2, 1)]) == [(1, 0), (2, 0)]
    crew.close()


def test_two_parts_are_at_work_at_once() -> None:
    """Each of two parts waits for the other: they end only if they run side by side."""
    crew = Crew(1)
    both = threading.Barrier(2)
    assert sorted(crew.run([partial(both.wait, 30), partial(both.wait, 30)])) == [0, 1]
    crew.close()


def test_the_caller_does_what_no_thread_has_begun() -> None:
    """While the only thread is busy, and after the crew was closed, the caller does all parts."""
    crew = Crew(1)
    begun, over = threading.Event(), threading.Event()

    def busy() -> int:
        begun.set()
        over.wait(30)
        return threading.get_native_id()

    caller = threading.Thread(target=lambda: crew.run([begun.wait, busy]))
    caller.start()
    assert begun.wait(30)
    own = threading.get_native_id()
    assert crew.run([threading.get_native_id] * 3) == [own] * 3
    over.set()
    caller.join()
    crew.close()
    assert crew.run([threading.get_native_id] * 3) == [own] * 3


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system tells no cores")
def test_the_callers_own_cores_stay_as_they_are() -> None:
    """Only threads of the crew are kept off a core, and never off the last one."""
    before = os.sched_getaffinity(0)
    crew = Crew(1)
    found = crew.run([partial(os.sched_getaffinity, 0)] * 2)
    crew.close()
    assert os.sched_getaffinity(0) == before
    assert all(cores and cores <= before for cores in found)
