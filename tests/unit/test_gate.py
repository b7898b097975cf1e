"""The gate lets so many through at once, in order but for those who come back at once, and loses no place."""

from __future__ import annotations

import threading
import time

import pytest

from vecstore.engine import gate as module
from vecstore.engine.gate import Gate


def test_as_many_as_there_are_places() -> None:
    """Beyond, a caller waits until its time runs out, and takes no place with it."""
    gate = Gate(2)
    assert gate.enter(None)
    assert gate.enter(0.0)
    for _ in range(3):
        assert not gate.enter(0.01)
    gate.leave()
    assert gate.enter(0.0)
    gate.leave()
    gate.leave()
    assert gate.enter(1e12)
    assert gate.enter(None)


def test_places_go_to_who_waited_longest() -> None:
    """Callers that do not come back at once are let in as they came."""
    gate, order, pause = Gate(1), list[int](), threading.Event()
    assert gate.enter(None)

    def take(number: int) -> None:
        assert gate.enter(30)
        order.append(number)
        gate.leave()

    threads = []
    for number in range(5):
        threads.append(threading.Thread(target=take, args=(number,)))
        threads[-1].start()
        while len(gate._line) <= number:
            pause.wait(0.001)
    gate.leave()
    for thread in threads:
        thread.join()
    assert order == [0, 1, 2, 3, 4]


def test_no_caller_starves() -> None:
    """Of callers that never rest each gets its share."""
    gate, stop, pause, counts = Gate(2), threading.Event(), threading.Event(), [0] * 8

    def call(number: int) -> None:
        while not stop.is_set():
            assert gate.enter(30)
            pause.wait(0.0001)
            counts[number] += 1
            gate.leave()

    threads = [threading.Thread(target=call, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    while sum(counts) < 4_000:
        pause.wait(0.01)
    stop.set()
    for thread in threads:
        thread.join()
    assert min(counts) > 0.2 * max(counts), counts


def _with_one_that_comes_back() -> Gate:
    """Return a gate whose one place this thread has, which came back at once so far."""
    gate = Gate(1)
    for _ in range(2):
        assert gate.enter(None)
        gate.leave()
    assert gate.enter(None)
    return gate


def _waiting(gate: Gate) -> tuple[threading.Thread, threading.Event]:
    """Return a thread that waits in line for the one place, and what it sets once it has it."""
    served, pause = threading.Event(), threading.Event()

    def wait() -> None:
        assert gate.enter(30)
        served.set()
        gate.leave()

    thread = threading.Thread(target=wait)
    thread.start()
    while not gate._line:
        pause.wait(0.001)
    return thread, served


def test_who_comes_back_at_once_is_let_in_first_for_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits is not woken meanwhile, and gets the place when the turn is over."""
    monkeypatch.setattr(module, "TURN_S", 60.0)
    monkeypatch.setattr(module, "RETURN_S", 30.0)
    gate = _with_one_that_comes_back()
    thread, served = _waiting(gate)
    for _ in range(3):
        gate.leave()
        assert gate.enter(0.0)
    assert not served.is_set()
    gate._turn_ends_s = time.monotonic()
    gate.leave()
    assert served.wait(30)
    thread.join()


def test_a_place_that_is_kept_in_vain_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller that always came back at once, and then did not, holds nobody up for long."""
    monkeypatch.setattr(module, "RETURN_S", 30.0)
    gate = _with_one_that_comes_back()
    monkeypatch.setattr(module, "TURN_S", 0.1)
    thread, served = _waiting(gate)
    gate._turn_ends_s = time.monotonic() + 60
    gate.leave()
    assert gate._free == 1, "it was kept"
    assert served.wait(30)
    thread.join()
    assert gate.enter(0.0)


def test_a_kept_place_goes_to_the_head_whoever_sees_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who looks first, for its time is over, leaves the place to who has waited longer."""
    monkeypatch.setattr(module, "RETURN_S", 30.0)
    monkeypatch.setattr(module, "TURN_S", 60.0)
    gate = _with_one_that_comes_back()
    thread, served = _waiting(gate)
    gate.leave()
    assert gate._free == 1, "it was kept"
    monkeypatch.setattr(module, "RETURN_S", -1.0)
    assert not gate.enter(0.0)
    assert served.wait(30)
    thread.join()
    assert gate.enter(0.0)


def test_places_survive_a_race_with_time() -> None:
    """A place that comes while the time runs out is not lost."""
    gate = Gate(1)

    def call() -> None:
        for _ in range(300):
            if gate.enter(0.0002):
                gate.leave()

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert gate.enter(0.0)
    assert not gate.enter(0.0)
