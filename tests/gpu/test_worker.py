"""Workers as processes: they come, are asked by many at once, are killed, run out of memory, and never take us with
them.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.data import mixture
from vecstore.index import handle, pending
from vecstore.index.answer import Answer, Question
from vecstore.index.budget import Choice, layout, need
from vecstore.index.channel import Arena, WorkerOptions
from vecstore.index.cpu import selection
from vecstore.index.device import Devices
from vecstore.index.handle import Device
from vecstore.index.order import Order
from vecstore.index.pending import Pending
from vecstore.index.placement import Wanted

from .devices import BACKENDS, NO_GPU, source_of, until

ROWS, DIM = 6_000, 16


def ordered(folder: Path, vectors: Any, name: str = "s", kind: str = "flat") -> Order:
    """Return the order to load vectors."""
    where = folder / name
    where.mkdir(exist_ok=True)
    files = source_of(where, vectors, "l2").files
    rows, dim = vectors.shape
    choice = Choice(kind, *layout(kind, rows, dim), need(kind, rows, dim))
    return Order(name, "l2", dim, rows, files, choice, 1)


@contextmanager
def running(name: str, **options: Any) -> Iterator[Device]:
    """Run a device's worker."""
    device = Device("0", WorkerOptions(backend=name, **options), lambda: None)
    device.start()
    try:
        until("the worker", lambda: device.is_ready)
        yield device
    finally:
        device.close()
        assert device.pid is None
        assert not [thread for thread in threading.enumerate() if thread.name == "vecstore-device-0"]


def asked(device: Device, queries: Any, k: int = 10, chosen: Any = None, name: str = "s") -> Answer | str:
    """Ask for the k nearest."""
    begun = device.ask(name, queries, Question(k, k), chosen)
    return begun.answer() if isinstance(begun, Pending) else begun


def _has_restarted(device: Device, times: int) -> bool:
    return device.restarts > times


@pytest.fixture(params=BACKENDS)
def name(request: pytest.FixtureRequest) -> str:
    """The backend of a worker."""
    return str(request.param)


def test_a_worker_answers(name: str, tmp_path: Path) -> None:
    """A loaded segment is searched, with a selection and without; what is dropped is gone, and so is its memory."""
    vectors, queries = mixture(ROWS, DIM, 1), mixture(7, DIM, 2)
    with running(name) as device:
        assert asked(device, queries) == "loading"
        device.load(ordered(tmp_path, vectors))
        until("the segment", lambda: device.is_held("s"))
        whole = asked(device, queries)
        assert isinstance(whole, Answer)
        assert whole.rows.shape == (7, 10)
        bits = np.zeros(8_000, np.bool_)
        bits[:500] = True
        few = asked(device, queries, 10, selection(np.packbits(bits, bitorder="little"), 500))
        assert isinstance(few, Answer)
        assert few.rows.max() < 500
        assert device.status()["reserved_bytes"] > 0
        free = device.free_bytes
        device.drop("s")
        assert not device.is_held("s")
        assert device.free_bytes >= free
        assert asked(device, queries) == "loading"
        assert device.fallbacks["loading"] == 2


def test_many_callers_get_their_own_answers(name: str, tmp_path: Path) -> None:
    """Questions of many threads are batched, and each gets the answer to its own; the shared memory is free again."""
    vectors, queries = mixture(ROWS, DIM, 1), mixture(64, DIM, 2)
    with running(name) as device:
        device.load(ordered(tmp_path, vectors))
        until("the segment", lambda: device.is_held("s"))
        alone = [asked(device, queries[i : i + 1], 5 + i % 3) for i in range(64)]
        together: list[Any] = [None] * 64

        def ask(i: int) -> None:
            for _ in range(5):
                together[i] = asked(device, queries[i : i + 1], 5 + i % 3)

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(64)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for one, other in zip(alone, together, strict=True):
            assert isinstance(one, Answer)
            assert isinstance(other, Answer)
            assert np.array_equal(one.rows, other.rows)
        assert device.free_arena_bytes == device.options.arena_bytes


@pytest.mark.parametrize("death", [signal.SIGKILL, signal.SIGABRT, signal.SIGSEGV])
def test_a_worker_that_dies_is_followed_by_another(name: str, death: signal.Signals, tmp_path: Path) -> None:
    """Whoever waits is told at once; a new worker comes, empty; the third death at work keeps the segment off."""
    vectors, queries = mixture(ROWS, DIM, 1), mixture(4, DIM, 2)
    with running(name) as device:
        order = ordered(tmp_path, vectors)
        device.load(order)
        until("the segment", lambda: device.is_held("s"))
        pid = device.pid
        assert pid is not None
        os.kill(pid, death)
        outcome = until("the death", lambda: isinstance(one := asked(device, queries), str) and one)
        assert outcome in ("died", "down", "loading")
        until("another worker", lambda: device.is_ready and device.pid != pid)
        assert device.restarts == 1
        assert device.segments() == {}
        device.load(order)
        until("the segment again", lambda: device.is_held("s"))
        assert isinstance(asked(device, queries), Answer)


def test_a_segment_that_kills_workers_is_kept_off(name: str, tmp_path: Path) -> None:
    """A segment that was at work at three deaths is refused, as unstable."""
    with running(name) as device:
        order = ordered(tmp_path, mixture(ROWS, DIM, 1))
        for deaths in range(handle.STRIKES_MAX):
            pid = until("a worker", lambda: device.is_ready and device.pid)
            os.kill(pid, signal.SIGSTOP)
            device.load(order)
            os.kill(pid, signal.SIGKILL)
            until("its end", partial(_has_restarted, device, deaths))
        until("a worker", lambda: device.is_ready)
        assert device.refused() == {"s": "unstable"}
        device.load(order)
        assert device.segments() == {}


@pytest.mark.alone
def test_a_worker_that_hangs_is_waited_for_once(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that is late is not waited for again: others are told at once, until it has come; the bytes are not
    lost.
    """
    monkeypatch.setattr(pending, "ANSWER_S_MAX", 0.2)
    vectors, queries = mixture(ROWS, DIM, 1), mixture(4, DIM, 2)
    with running(name) as device:
        device.load(ordered(tmp_path, vectors))
        until("the segment", lambda: device.is_held("s"))
        pid = device.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        assert asked(device, queries) == "slow"
        start_s = time.monotonic()
        assert asked(device, queries) == "slow"
        assert time.monotonic() - start_s < 0.1
        os.kill(pid, signal.SIGCONT)
        until("the late answer", lambda: isinstance(asked(device, queries), Answer))
        assert device.free_arena_bytes == device.options.arena_bytes


def test_a_worker_that_hangs_for_good_is_ended(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that owes an answer for too long is killed, and another started."""
    monkeypatch.setattr(pending, "ANSWER_S_MAX", 0.05)
    monkeypatch.setattr(handle, "HANG_S", 0.3)
    with running(name) as device:
        device.load(ordered(tmp_path, mixture(ROWS, DIM, 1)))
        until("the segment", lambda: device.is_held("s"))
        pid = device.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        assert asked(device, mixture(4, DIM, 2)) == "slow"
        until("another worker", lambda: device.is_ready and device.pid != pid)


def test_what_does_not_fit_is_refused(name: str, tmp_path: Path) -> None:
    """A budget of half of what is needed admits nothing, and says so; files that are gone are a reason, not an end."""
    order = ordered(tmp_path, mixture(ROWS, DIM, 1))
    assert order.choice is not None
    with running(name, budget_bytes=order.choice.need.peak // 2) as device:
        device.load(order)
        refused = until("the refusal", device.refused)
        assert refused["s"].startswith("memory: ")
        gone = ordered(tmp_path, mixture(ROWS, DIM, 1), "gone")
        for file in gone.files:
            os.unlink(file.path)
        device.load(gone)
        until("the other", lambda: "gone" in device.refused())
        assert device.refused()["gone"].startswith("files: ")
        assert device.is_ready
        assert device.restarts == 0


def test_a_worker_ends_with_whoever_started_it(name: str) -> None:
    """When the engine's end of the socket closes, as it does when the engine is killed, the process is gone."""
    with running(name) as device:
        pid = device.pid
    assert pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def sharing(name: str, folder: Path) -> tuple[Devices, dict[str, tuple[Wanted, Callable[[], Order]]]]:
    """Return two devices that have begun, and four segments for them."""
    if name == "cuda":
        pytest.skip("needs two GPUs")
    orders = {f"s{i}": ordered(folder, mixture(ROWS, DIM, i), f"s{i}") for i in range(4)}
    devices = Devices(WorkerOptions(backend=name, budget_bytes=1 << 30), ["a", "b"], lambda: None)
    devices.start()
    return devices, {
        key: (Wanted(key, one.rows, one.dim, one.metric), partial(orders.__getitem__, key))
        for key, one in orders.items()
    }


def test_devices_share_segments_and_take_over(name: str, tmp_path: Path) -> None:
    """Segments are spread over devices; when one goes away its segments move to the other."""
    devices, wanted = sharing(name, tmp_path)
    try:
        until("the workers", lambda: all(one.is_ready for one in devices.handles))
        devices.arrange(wanted)
        until("the segments", lambda: all(devices.holder(key) for key in wanted))
        first, second = devices.handles
        assert len(first.segments()) == len(second.segments()) == 2
        first.close()
        devices.arrange(wanted)
        until("the move", lambda: all(devices.holder(key) is second for key in wanted))
        devices.arrange({key: one for key, one in wanted.items() if key == "s0"})
        assert set(second.segments()) == {"s0"}
    finally:
        devices.close()


def test_a_device_that_is_back_gets_its_share_again(name: str, tmp_path: Path) -> None:
    """What moved away from a worker that died moves back one by one, held all the while; each lies on one device."""
    devices, wanted = sharing(name, tmp_path)

    def shares() -> list[int]:
        devices.arrange(wanted)
        return [len([one for one in handle.segments().values() if one.ready]) for handle in devices.handles]

    def is_back() -> bool:
        assert all(devices.holder(key) for key in wanted)
        return shares() == [2, 2]

    try:
        until("the workers", lambda: all(one.is_ready for one in devices.handles))
        until("two each", lambda: shares() == [2, 2])
        first, second = devices.handles
        assert first.pid is not None
        os.kill(first.pid, signal.SIGKILL)
        until("its end", lambda: not first.segments())
        until("all on the other", lambda: shares()[1] == 4)
        until("it is back", lambda: first.is_ready)
        os.kill(first.pid, signal.SIGSTOP)
        assert [is_back() for _ in range(5)] == [False] * 5
        assert (len(first.segments()), len(second.segments())) == (1, 4)
        os.kill(first.pid, signal.SIGCONT)
        until("two each again", is_back)
        assert sorted([*first.segments(), *second.segments()]) == sorted(wanted)
        assert all(is_back() for _ in range(5))
    finally:
        devices.close()


def test_the_arena_gives_each_byte_once(rng: np.random.Generator) -> None:
    """Pieces never overlap, and whatever order they come back in, all is free and whole in the end."""
    arena = Arena(1 << 16)
    held: dict[int, int] = {}
    for _ in range(500):
        if held and rng.random() < 0.45:
            at = list(held)[int(rng.integers(len(held)))]
            arena.give(at, held.pop(at))
        elif (at_ := arena.take(size := int(rng.integers(0, 3_000)))) is not None:
            assert all(at_ + size <= other or other + taken <= at_ for other, taken in held.items())
            held[at_] = size
    for at, size in held.items():
        arena.give(at, size)
    assert arena.free == 1 << 16
    assert arena.take(1 << 16) == 0
    assert arena.take(1) is None
    arena.close()


@pytest.mark.skipif(not NO_GPU, reason="there is a GPU")
def test_what_keeps_a_worker_from_starting_is_reported() -> None:
    """A worker that cannot use its device says why before it ends, and is started again ever more seldom."""
    device = Device("0", WorkerOptions(backend="cuda"), lambda: None)
    device.start()
    try:
        until("two tries", lambda: device.restarts >= 2)
        assert device.problem.startswith("the worker did not start: ")
        assert not device.is_ready
        assert device.ask("s", mixture(1, DIM, 2), Question(1, 1)) == "down"
    finally:
        device.close()
