"""The gate lets so many through at once, in order, and loses no place."""

from __future__ import annotations

import threading

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
    """Callers that come back at once do not pass those that wait."""
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
