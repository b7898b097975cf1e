"""Admission as a pure decision: rates, order, bounds, and how it holds up in a simulated flood."""

from __future__ import annotations

import heapq
import random
from collections import Counter, deque
from collections.abc import Callable, Iterator
from itertools import count
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecstore.server.admission import CALLERS_MAX, Admission, AdmissionSettings, Bucket, Call, Kind, Queue
from vecstore.server.limit import Limit

SEARCH = Kind.of("Search", "search", is_write=False, long=False)
READ = Kind.of("Get", "read", is_write=False, long=False)
UPSERT = Kind.of("Upsert", "write", is_write=True, long=False)
CREATE = Kind.of("Create", "admin", is_write=True, long=False)
SCAN = Kind.of("Scan", "bulk", is_write=False, long=True)
HEALTH = Kind.of("Describe", "health", is_write=False, long=False)


def admission(cores: int = 2, **settings: float) -> Admission:
    """Return an admission without jitter."""
    return Admission(AdmissionSettings(**settings), cores, draw=lambda: 0.5)  # type: ignore[arg-type]


def offered(to: Admission, kind: Kind, caller: str = "a", now_s: float = 0.0, deadline_s: float = inf) -> Call:
    """Offer a call and return it."""
    call = Call(kind, caller, deadline_s)
    to.offer(call, now_s)
    return call


# -- rates -------------------------------------------------------------------------------------------------------------


@given(
    rate=st.floats(0.5, 1000),
    burst=st.floats(1, 1000),
    steps=st.lists(st.tuples(st.floats(0, 5), st.integers(1, 5)), max_size=60),
)
def test_a_bucket_never_gives_more_than_its_rate(rate: float, burst: float, steps: list[tuple[float, int]]) -> None:
    """Whatever the times of asking, what was let through is at most the burst and the rate times the time."""
    bucket, now_s, taken = Bucket(rate, burst, 0.0), 0.0, 0
    for pause_s, wanted in steps:
        now_s += pause_s
        if bucket.wait_s(wanted, now_s) <= 0:
            bucket.take(wanted)
            taken += wanted
        # More than a bucket holds is given once it is full: then it is in debt.
        assert taken <= burst + rate * now_s + 5


def test_an_overdrawn_bucket_says_when_it_is_out_of_debt() -> None:
    """What a call costs may be known only afterwards: the next one waits for it, exactly as long as it takes."""
    bucket = Bucket(10.0, 10.0, 0.0)
    bucket.take(30)
    assert bucket.wait_s(0.0, 0.0) == pytest.approx(2.0)
    assert bucket.wait_s(0.0, 1.5) == pytest.approx(0.5)
    assert bucket.wait_s(0.0, 2.0) == 0.0


def test_each_caller_has_rates_of_its_own() -> None:
    """A caller beyond its rate is refused with the time to wait; another, and its own writes, are not."""
    held = admission(reads_per_s=10, writes_per_s=10, burst_s=1)
    reads = [offered(held, SEARCH) for _ in range(12)]
    refused = [one.refusal for one in reads if one.refusal is not None]
    assert [one.reason for one in refused] == ["rate", "rate"]
    assert refused[0].retry_after_s == pytest.approx(0.1)
    assert offered(held, SEARCH, "b").refusal is None
    assert offered(held, UPSERT).refusal is None
    assert offered(held, SEARCH, now_s=0.2).refusal is None


def test_points_are_charged_to_who_brought_them() -> None:
    """A caller in debt for points is refused until it is out of it; what it reads is another account."""
    held = admission(points_written_per_s=100, burst_s=1)
    first = offered(held, UPSERT)
    held.charge(first, 250, 0.0)
    late = offered(held, UPSERT)
    assert late.refusal is not None and (late.refusal.reason, late.refusal.retry_after_s) == ("points", 1.5)
    assert offered(held, SEARCH).refusal is None
    assert offered(held, UPSERT, "b").refusal is None
    assert offered(held, UPSERT, now_s=1.6).refusal is None


def test_callers_are_forgotten_in_the_end() -> None:
    """A flood of names does not fill the memory."""
    held = admission(reads_per_s=1)
    for i in range(CALLERS_MAX + 100):
        offered(held, SCAN, str(i))
    assert len(held._allowances) == CALLERS_MAX


# -- order -------------------------------------------------------------------------------------------------------------

KINDS = st.sampled_from([SEARCH, READ, UPSERT, CREATE])


@given(calls=st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from([SEARCH, READ])), max_size=60))
def test_each_callers_calls_of_a_class_keep_their_order(calls: list[tuple[str, Kind]]) -> None:
    """Whatever else happens in a queue, a caller's calls of one class leave it as they came."""
    queue = Queue()
    for number, (caller, kind) in enumerate(calls):
        queue.push(Call(kind, caller, arrived_s=float(number)))
    out = [queue.pop() for _ in range(queue.size)]
    assert len(out) == len(calls) and queue.size == 0 and list(queue) == []
    for caller in "abc":
        for kind in (SEARCH, READ):
            mine = [one.arrived_s for one in out if one.caller == caller and one.kind is kind]
            assert mine == sorted(mine)


def test_searches_come_before_reads_and_yet_reads_come() -> None:
    """While both wait, searches are started first; one start in eight goes to what waited longest."""
    queue = Queue()
    for i in range(40):
        queue.push(Call(READ, "a", arrived_s=float(i)))
        queue.push(Call(SEARCH, "a", arrived_s=100.0 + i))
    first = Counter(queue.pop().kind.name for _ in range(40))
    assert first == {"Search": 35, "Get": 5}


def test_callers_take_turns() -> None:
    """One caller's hundred calls do not keep another's three waiting."""
    queue = Queue()
    for i in range(100):
        queue.push(Call(SEARCH, "loud", arrived_s=float(i)))
    for i in range(3):
        queue.push(Call(SEARCH, "quiet", arrived_s=100.0 + i))
    first = Counter(queue.pop().caller for _ in range(7))
    assert first["quiet"] == 3


def test_who_has_most_in_a_full_queue_makes_room() -> None:
    """A full queue takes another caller's call in place of the loudest's latest; the loudest itself is refused."""
    held = admission(cores=1, queue_calls_max=4, searches_max=1)
    loud = [offered(held, SEARCH, "loud") for _ in range(5)]
    beyond = offered(held, SEARCH, "loud")
    assert beyond.refusal is not None and beyond.refusal.reason == "queue"
    quiet = offered(held, SEARCH, "quiet")
    assert quiet.refusal is None
    assert held.evicted == [loud[-1]]
    assert loud[-1].refusal is not None and loud[-1].refusal.reason == "evicted"


def test_a_search_takes_the_place_of_its_callers_own_read() -> None:
    """In a full queue a caller's lesser class makes room for its better one, and never the other way round."""
    held = admission(cores=1, queue_calls_max=2, searches_max=1)
    offered(held, SEARCH)
    reads = [offered(held, READ) for _ in range(2)]
    assert offered(held, SEARCH).refusal is None
    assert held.evicted == [reads[-1]]
    assert offered(held, READ).refusal is not None


# -- bounds ------------------------------------------------------------------------------------------------------------


def test_what_cannot_be_answered_in_time_is_not_started() -> None:
    """A deadline that passes in the queue ends a call there, and one too short for the queue keeps it out."""
    held = admission(cores=1, searches_max=1)
    running = offered(held, SEARCH)
    running.service_s = 0.1
    waiting = offered(held, SEARCH, deadline_s=0.05)
    assert waiting.refusal is None
    held.finish(running, 0.1)
    assert held.next(0.1) is None
    assert [(one is waiting, one.refusal and one.refusal.reason) for one in held.evicted] == [(True, "deadline")]
    for _ in range(3):
        offered(held, SEARCH, now_s=0.2)
    hopeless = offered(held, SEARCH, now_s=0.2, deadline_s=0.35)
    assert hopeless.refusal is not None and hopeless.refusal.reason == "deadline"
    assert offered(held, SEARCH, now_s=0.2, deadline_s=5.0).refusal is None


def test_streams_are_bounded_in_all_and_by_caller() -> None:
    """One caller's streams leave room for others', and all together end somewhere; each ended one makes room."""
    held = admission(streams_max=4, streams_per_caller_max=3)
    mine = [offered(held, SCAN) for _ in range(4)]
    assert [one.refusal is None for one in mine] == [True, True, True, False]
    assert offered(held, SCAN, "b").refusal is None
    assert offered(held, SCAN, "c").refusal is not None
    held.finish(mine[0], 1.0)
    assert offered(held, SCAN, "c", 1.0).refusal is None


def test_health_is_answered_whatever_else_waits() -> None:
    """Full lanes and queues of searches and writes leave what is never shed alone."""
    held = admission(cores=1, queue_calls_max=2, searches_max=1, writes_min=1, writes_max=1)
    for _ in range(10):
        offered(held, SEARCH)
        offered(held, UPSERT)
    asked = [offered(held, HEALTH, "prober") for _ in range(20)]
    assert all(one.refusal is None and one.started_s == 0.0 for one in asked)
    assert held.load()["reserved"].in_flight == 20


@given(
    steps=st.lists(
        st.tuples(st.sampled_from("abcd"), KINDS, st.floats(0.0, 0.02), st.floats(0.001, 1.0), st.booleans()),
        max_size=300,
    )
)
def test_nothing_is_lost_and_nothing_grows(steps: list[tuple[str, Kind, float, float, bool]]) -> None:
    """Every call is exactly one of running, waiting, ended and refused; limits and queues keep their bounds."""
    held = admission(cores=2, queue_calls_max=5, searches_max=4, writes_min=1, writes_max=3)
    now_s, running, ended, refused = 0.0, deque[Call](), 0, 0
    for offers, (caller, kind, pause_s, patience_s, ends) in enumerate(steps, 1):
        now_s += pause_s
        if ends and running:
            done = running.popleft()
            done.service_s = now_s - done.started_s
            held.finish(done, now_s)
            ended += 1
            while (more := held.next(now_s)) is not None:
                running.append(more)
        call = Call(kind, caller, now_s + patience_s)
        if held.offer(call, now_s):
            running.append(call)
        refused += call.refusal is not None
        refused += len(held.evicted)
        assert all(one.refusal is not None for one in held.evicted)
        held.evicted.clear()
        load = held.load()
        assert load["search"].queued <= 5 and load["commit"].queued <= 5
        assert load["search"].in_flight <= 4 and load["commit"].in_flight <= 3
        assert sum(one.in_flight for one in load.values()) == len(running)
        assert ended + len(running) + sum(one.queued for one in load.values()) + refused == offers


# -- the limit ---------------------------------------------------------------------------------------------------------


def settled(time_of: Callable[[int], float], limit: Limit, seconds: float, now_s: float = 0.0) -> float:
    """Run as many calls as the limit allows, each taking what so many take; return when it ended."""
    ends, end_s = [(now_s + time_of(1), 0)], now_s + seconds
    numbers = count(1)
    while now_s < end_s:
        now_s, _ = heapq.heappop(ends)
        running = len(ends) + 1
        limit.sample("x", time_of(running), running, now_s)
        while len(ends) < limit.places:
            heapq.heappush(ends, (now_s + time_of(len(ends) + 1), next(numbers)))
    return now_s


def test_the_limit_stays_near_what_has_cores() -> None:
    """Work that shares two cores gains nothing from more: the limit stays close to its floor."""
    limit = Limit(2, 64)
    settled(lambda running: 0.004 * max(1.0, running / 2), limit, 60)
    assert 2 <= limit.value <= 8


def test_the_limit_grows_where_more_cost_nothing() -> None:
    """Work that only waits may be many: the limit reaches its ceiling within seconds."""
    limit = Limit(4, 32)
    settled(lambda _: 0.01, limit, 5)
    assert limit.value > 30


def test_the_limit_follows_a_change_within_seconds() -> None:
    """Where more begin to cost, the limit falls, and when that is over it is back within seconds."""
    limit = Limit(4, 32)
    now_s = settled(lambda _: 0.01, limit, 5)
    now_s = settled(lambda running: 0.01 * max(1.0, running / 4), limit, 5, now_s)
    assert limit.value < 16
    settled(lambda _: 0.01, limit, 5, now_s)
    assert limit.value > 28


def test_the_limit_is_not_fooled_by_a_change_of_mix() -> None:
    """Calls that take a hundred times as long by their nature are no sign of load."""
    limit = Limit(2, 32)
    for i in range(3000):
        name, service_s = ("Search", 0.001) if i < 1500 or i % 2 else ("Batch", 0.1)
        limit.sample(name, service_s, limit.places, i * 0.01)
    assert limit.value > 28


@pytest.mark.parametrize("slower_s", [0.015, 0.05])
def test_slower_for_good_is_learned(slower_s: float) -> None:
    """What became slower without load, as more points do, is measured anew, and does not hold the limit down."""
    limit = Limit(4, 32)
    now_s = settled(lambda _: 0.01, limit, 5)
    settled(lambda _: slower_s, limit, 60, now_s)
    assert limit.value > 16


# -- a flood, simulated ------------------------------------------------------------------------------------------------

CORES = 2
MEAN_S = 0.004
CAPACITY = CORES / MEAN_S


class Flood:
    """A server of two cores in simulated time: calls that were admitted share its cores first come, first served."""

    def __init__(self, seed: int, **settings: float) -> None:
        self.random = random.Random(seed)
        self.admission = Admission(AdmissionSettings(**settings), CORES, self.random.random)  # type: ignore[arg-type]
        self.now_s = 0.0
        self.free = CORES
        self.gate: deque[Call] = deque()
        self.events: list[tuple[float, int, str, Call]] = []
        self.numbers = count()
        self.answered: list[tuple[float, float, Call]] = []
        self.refused: list[tuple[float, Call]] = []
        self.queued_max = 0

    def offer(self, rates: dict[str, float], seconds: float, patience_s: float = 1.0, kind: Kind = SEARCH) -> None:
        """Let callers send at random moments, each at its rate, for some time."""
        end_s = self.now_s + seconds
        for caller, rate in rates.items():
            for at_s in self._moments(rate, end_s):
                call = Call(kind, caller, at_s + patience_s)
                heapq.heappush(self.events, (at_s, next(self.numbers), "arrives", call))
        while self.events and self.events[0][0] <= end_s:
            self.now_s, _, what, call = heapq.heappop(self.events)
            if what == "arrives":
                if self.admission.offer(call, self.now_s):
                    self._start(call)
                elif call.refusal is not None:
                    self.refused.append((self.now_s, call))
            else:
                self._end(call)
            self.refused += [(self.now_s, one) for one in self.admission.evicted]
            self.admission.evicted.clear()
            self.queued_max = max(self.queued_max, self.admission.load()["search"].queued)
        self.now_s = end_s

    def _moments(self, rate: float, end_s: float) -> Iterator[float]:
        at_s = self.now_s
        while (at_s := at_s + self.random.expovariate(rate)) < end_s:
            yield at_s

    def _start(self, call: Call) -> None:
        if self.free:
            self.free -= 1
            took_s = self.random.expovariate(1 / MEAN_S)
            heapq.heappush(self.events, (self.now_s + took_s, next(self.numbers), "ends", call))
        else:
            self.gate.append(call)

    def _end(self, call: Call) -> None:
        self.free += 1
        call.service_s = self.now_s - call.started_s
        self.answered.append((self.now_s, self.now_s - call.arrived_s, call))
        self.admission.finish(call, self.now_s)
        if self.gate:
            self._start(self.gate.popleft())
        while (more := self.admission.next(self.now_s)) is not None:
            self._start(more)

    def rate(self, since_s: float, caller: str | None = None) -> float:
        """Return the answers a second, in time, since a moment."""
        good = sum(at_s >= since_s and call.caller == (caller or call.caller) for at_s, _, call in self.answered)
        return good / (self.now_s - since_s)

    def latency_s(self, since_s: float, share: float) -> float:
        """Return a quantile of the latencies of what was answered since a moment."""
        found = sorted(latency_s for at_s, latency_s, _ in self.answered if at_s >= since_s)
        return found[int(share * (len(found) - 1))]


def test_a_flood_of_ten_times_the_capacity_keeps_the_goodput(seed: int) -> None:
    """At 10 x the capacity nearly all of it is used, and what is answered is answered quickly."""
    flood = Flood(seed)
    flood.offer({"a": 0.8 * CAPACITY}, 10)
    calm_s = flood.latency_s(1.0, 0.99)
    flood.offer({"a": 10 * CAPACITY}, 10)
    assert flood.rate(11.0) >= 0.9 * CAPACITY
    assert flood.latency_s(11.0, 0.99) <= 5 * calm_s
    assert flood.queued_max <= 1_000


def test_a_flood_is_over_seconds_after_it_ends(seed: int) -> None:
    """Two seconds after a flood, calls at 0.8 x the capacity are all answered, as quickly as before it."""
    flood = Flood(seed)
    flood.offer({"a": 0.8 * CAPACITY}, 10)
    calm_s = flood.latency_s(1.0, 0.99)
    flood.offer({"a": 10 * CAPACITY}, 10)
    flood.offer({"a": 0.8 * CAPACITY}, 10)
    late = [at_s for at_s, _ in flood.refused if at_s > 22.0]
    assert len(late) <= 0.01 * 8 * 0.8 * CAPACITY
    assert flood.rate(22.0) >= 0.75 * CAPACITY
    assert flood.latency_s(22.0, 0.99) <= 2 * calm_s


def test_a_quiet_caller_is_served_beside_a_loud_one(seed: int) -> None:
    """A caller that asks for less than its share gets it, whatever the others send."""
    flood = Flood(seed)
    flood.offer({"loud": 10 * CAPACITY, "quiet": 0.2 * CAPACITY}, 20)
    assert flood.rate(2.0, "quiet") >= 0.8 * 0.2 * CAPACITY
    assert flood.rate(2.0) >= 0.9 * CAPACITY


def test_many_patient_callers_are_no_flood(seed: int) -> None:
    """64 callers that each wait for an answer before they ask again are all served: nothing is refused."""
    flood = Flood(seed)
    for _ in range(64):
        heapq.heappush(flood.events, (0.0, next(flood.numbers), "arrives", Call(SEARCH, "a")))
    for _ in range(1000):
        before = len(flood.answered)
        flood.offer({}, 0.01)
        for at_s, _, _ in flood.answered[before:]:
            heapq.heappush(flood.events, (max(at_s, flood.now_s), next(flood.numbers), "arrives", Call(SEARCH, "a")))
    assert flood.refused == []
    assert flood.rate(1.0) >= 0.9 * CAPACITY


def test_impatient_calls_are_not_started_in_vain(seed: int) -> None:
    """With deadlines shorter than the queue, what is started still ends in time, all but a few."""
    flood = Flood(seed)
    flood.offer({"a": 10 * CAPACITY}, 10, patience_s=0.03)
    late = sum(at_s > call.deadline_s for at_s, _, call in flood.answered)
    assert late <= 0.1 * len(flood.answered)
    assert flood.rate(1.0) >= 0.8 * CAPACITY
