"""Whether there is room for a call: pure decisions, time handed in, no thread, no lock, no socket.

Four lanes, each with so many calls at a time, so that what is slow by nature cannot take the place of what is not:

- *reserved*: health and replication. Never shed for the load of others; bounded all the same.
- *long*: streams, and calls that wait for something. No queue: beyond the number, or one caller's share, an error.
- *search*: searches and reads, which need a core each.
- *commit*: writes and changes of collections, which share syncs and so gain from being many.

The last two have a limit that adapts to measured latency, and a queue. What waits is started class by class (searches
before reads, writes before changes), but every eighth start goes to whoever waited longest, so that no class starves;
within a class callers take turns, and each caller's calls keep their order. Order is first in, first out: last in,
first out only pays where a queue grows older than its callers' patience, and this one never does, since a call that
would have to wait longer than allowed, or than its deadline leaves, is refused at once. When a queue is full, the
latest call of the caller with the most in it makes room, unless that is the one who asks.

How long a call may wait depends on pressure, the calls that arrive for each that finishes. Callers that wait for their
answers bring no pressure, however many they are; then a queue is only a buffer, and may be long. Under pressure it can
only add latency: it is kept short, and what has waited too long in it already is refused. Facebook's adaptive
controlled delay makes the same distinction by whether the queue was empty lately ("Fail at Scale", ACM Queue 13(8),
2015).

The limit is `limit.Limit`'s.
"""

from __future__ import annotations

import random
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from math import inf
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta

from .limit import WINDOW_S, WINDOW_SAMPLES_MIN, Limit

__all__ = ["Admission", "AdmissionSettings", "Bucket", "Call", "Kind", "LaneLoad", "Queue", "Refusal"]

LaneName = Literal["reserved", "long", "search", "commit"]
Reason = Literal["rate", "points", "queue", "wait", "deadline", "streams", "evicted", "stopping"]

CALLERS_MAX = 10_000
"""Callers whose buckets are remembered; the one longest unseen is forgotten, with a full bucket."""
RESERVED_CALLS_MAX, RESERVED_QUEUE_MAX = 32, 256
PRESSURE = 1.5
"""Arrivals for each call that finishes, above which a lane is under pressure."""
PRESSURE_WINDOWS, PRESSURE_SMOOTHING, PRESSURE_KEPT_S = 3, 0.3, 1.0
OLDEST_EVERY = 8
RETRY_S_MIN, RETRY_S_MAX = 0.02, 5.0
_RANDOM = random.Random()  # noqa: S311 - spreads callers, hides nothing


class AdmissionSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How much is taken at once, and from whom.

    Attributes
    ----------
    reads_per_s
        Searches and reads that each caller may make a second; 0 for no limit.
    writes_per_s
        Writes that each caller may make a second; 0 for no limit.
    points_read_per_s
        Points that each caller may read a second, where a search counts as one for each query; 0 for no limit.
    points_written_per_s
        Points that each caller may write a second; 0 for no limit.
    burst_s
        A caller that was idle may catch up so many seconds of these rates at once.
    queue_calls_max
        Calls that may wait in each queue.
    queue_wait_s_max
        A call is refused that would have to wait longer than this while no more come than are answered.
    overload_wait_s_max
        A call is refused that would have to wait longer than this while more come than can be answered.
    searches_max
        Searches and reads at a time, at most; the limit moves between one a core and this.
    writes_min
        Writes at a time, at least; the limit moves between this and `writes_max`.
    writes_max
        Writes at a time, at most. Each may hold a message in memory.
    streams_max
        Scans, bulk loads and calls that wait, at a time. Each holds a thread.
    streams_per_caller_max
        Of these, as many may belong to one caller.
    stream_idle_s_max
        A stream that stands still for so long, because its client neither sends nor takes, is ended.
    receive_s_max
        A call whose message has not arrived after so long is ended.
    """

    reads_per_s: Annotated[float, Meta(ge=0)] = 0.0
    writes_per_s: Annotated[float, Meta(ge=0)] = 0.0
    points_read_per_s: Annotated[float, Meta(ge=0)] = 0.0
    points_written_per_s: Annotated[float, Meta(ge=0)] = 0.0
    burst_s: Annotated[float, Meta(gt=0, le=3600)] = 2.0
    queue_calls_max: Annotated[int, Meta(ge=1, le=100_000)] = 1_000
    queue_wait_s_max: Annotated[float, Meta(gt=0, le=60)] = 0.5
    overload_wait_s_max: Annotated[float, Meta(gt=0, le=60)] = 0.01
    searches_max: Annotated[int, Meta(ge=1, le=256)] = 32
    writes_min: Annotated[int, Meta(ge=1, le=256)] = 4
    writes_max: Annotated[int, Meta(ge=1, le=256)] = 16
    streams_max: Annotated[int, Meta(ge=1, le=1_000)] = 32
    streams_per_caller_max: Annotated[int, Meta(ge=1, le=1_000)] = 24
    stream_idle_s_max: Annotated[float, Meta(gt=0, le=86_400)] = 60.0
    receive_s_max: Annotated[float, Meta(gt=0, le=3600)] = 30.0


class Kind(NamedTuple):
    """What admission must know of a method.

    Attributes
    ----------
    name
        The method's; times are compared among calls of one name.
    lane
        Where it runs.
    rank
        Its place among the classes of its lane, 0 first.
    is_write
        Whether it counts against a caller's rates of writing, or of reading.
    limited
        Whether it counts against a caller's rates at all.
    """

    name: str
    lane: LaneName
    rank: int
    is_write: bool
    limited: bool

    @classmethod
    def of(cls, name: str, work: str, *, is_write: bool, long: bool) -> Kind:
        """Return the kind of a method of a class of work: "health", "replication", "search", "read", "write", "admin"
        or "bulk".
        """
        lane: LaneName
        if work in ("health", "replication"):
            lane = "reserved"
        elif long:
            lane = "long"
        else:
            lane = "commit" if is_write or work in ("write", "admin") else "search"
        rank = {"search": 0, "read": 1, "write": 0, "admin": 1, "bulk": 2}.get(work, 0)
        return cls(name, lane, rank, is_write, limited=lane != "reserved")


class LaneLoad(NamedTuple):
    """What one lane says of itself: calls that run, that wait, and that may run."""

    in_flight: int
    queued: int
    limit: float


class Refusal(NamedTuple):
    """Why there is no room, and when to try again."""

    reason: Reason
    retry_after_s: float


class Call:
    """One call on its way through. The pool and the guard keep what is theirs in it, too."""

    __slots__ = ("arrived_s", "caller", "deadline_s", "job", "kind", "more", "refusal", "service_s", "started_s")

    def __init__(self, kind: Kind, caller: str, deadline_s: float = inf, arrived_s: float = 0.0) -> None:
        self.kind = kind
        self.caller = caller
        self.deadline_s = deadline_s
        self.arrived_s = arrived_s
        self.started_s = 0.0
        self.service_s = 0.0
        """Time in the handler; 0 where it says nothing about load, as of a call that failed."""
        self.refusal: Refusal | None = None
        self.job: Any = None
        self.more: Any = None


class Bucket:
    """A token bucket that may be overdrawn: what a call costs is often known only afterwards.

    Parameters
    ----------
    rate
        Tokens a second.
    burst
        Tokens that it holds at most.
    """

    __slots__ = ("_at_s", "_burst", "_rate", "_tokens")

    def __init__(self, rate: float, burst: float, now_s: float) -> None:
        self._rate = rate
        self._burst = max(burst, 1.0)
        self._tokens = self._burst
        self._at_s = now_s

    def wait_s(self, count: float, now_s: float) -> float:
        """Return how long it takes until there are so many tokens; 0 where there are."""
        if now_s > self._at_s:
            self._tokens = min(self._burst, self._tokens + (now_s - self._at_s) * self._rate)
            self._at_s = now_s
        return max(0.0, (min(count, self._burst) - self._tokens) / self._rate)

    def take(self, count: float) -> None:
        """Take tokens, whether or not there are so many."""
        self._tokens -= count


class _Allowance(NamedTuple):
    """The buckets of one caller; None where there is no limit."""

    reads: Bucket | None
    writes: Bucket | None
    points_read: Bucket | None
    points_written: Bucket | None


class Queue:
    """What waits in one lane: classes in order, callers in turn, each caller's calls in order."""

    def __init__(self, ranks: int = 3) -> None:
        self._classes: list[OrderedDict[str, deque[Call]]] = [OrderedDict() for _ in range(ranks)]
        self._by_caller: dict[str, int] = {}
        self._starts = 0
        self.size = 0

    def push(self, call: Call) -> None:
        """Add a call at the end of its caller's line."""
        turns = self._classes[call.kind.rank]
        line = turns.get(call.caller)
        if line is None:
            line = turns[call.caller] = deque()
        line.append(call)
        self._by_caller[call.caller] = self._by_caller.get(call.caller, 0) + 1
        self.size += 1

    def pop(self) -> Call:
        """Remove the call that is next."""
        self._starts += 1
        if self._starts % OLDEST_EVERY:
            turns = next(turns for turns in self._classes if turns)
            caller = next(iter(turns))
        else:
            turns, caller = min(
                ((turns, caller) for turns in self._classes for caller in turns),
                key=lambda place: place[0][place[1]][0].arrived_s,
            )
        call = turns[caller].popleft()
        self._taken(turns, call)
        if caller in turns:
            turns.move_to_end(caller)
        return call

    def evict_for(self, call: Call) -> Call | None:
        """Remove the latest, least urgent call of the caller with most in the queue, if another than who asks."""
        counts = self._by_caller
        caller = max(counts, key=counts.__getitem__) if len(counts) > 1 else next(iter(counts))
        most = counts[caller]
        same = caller == call.caller
        if not same and most <= counts.get(call.caller, 0) + 1:
            caller, same = call.caller, True
        for rank in range(len(self._classes) - 1, -1, -1):
            turns = self._classes[rank]
            # Of one's own calls only those of a lesser class make room.
            if same and rank <= call.kind.rank:
                return None
            if caller in turns:
                found = turns[caller].pop()
                self._taken(turns, found)
                return found
        return None

    def _taken(self, turns: OrderedDict[str, deque[Call]], call: Call) -> None:
        if not turns[call.caller]:
            del turns[call.caller]
        left = self._by_caller[call.caller] - 1
        if left:
            self._by_caller[call.caller] = left
        else:
            del self._by_caller[call.caller]
        self.size -= 1

    def __iter__(self) -> Iterator[Call]:
        for turns in self._classes:
            for line in turns.values():
                yield from line


class _Lane:
    """One lane: its limit, what runs, what waits, and its pressure."""

    def __init__(self, limit: Limit, queue_max: int, waits_s: tuple[float, float]) -> None:
        self.limit = limit
        self.queue = Queue()
        self.queue_max = queue_max
        self.running = 0
        self.pressure = 1.0
        self._calm_wait_s, self._pressed_wait_s = waits_s
        self._arrived, self._finished, self._window_end_s, self._pressed_until_s = 0, 0, 0.0, -inf
        self._arrivals, self._answers, self._high_windows = 0.0, 0.0, 0

    def arrival(self, now_s: float) -> None:
        """Count a call that came."""
        if not self.running:
            # Nobody waits: whatever was, it is over.
            self._arrived, self._finished, self._high_windows, self._window_end_s = 0, 0, 0, now_s + WINDOW_S
        self._arrived += 1
        if now_s < self._window_end_s or self._arrived < WINDOW_SAMPLES_MIN:
            return
        self._arrivals += PRESSURE_SMOOTHING * (self._arrived - self._arrivals)
        self._answers += PRESSURE_SMOOTHING * (self._finished - self._answers)
        self.pressure = self._arrivals / max(1.0, self._answers)
        # Some windows in a row: what comes at random comes in bursts, and callers may all begin at once.
        self._high_windows = self._high_windows + 1 if self._arrived > PRESSURE * self._finished else 0
        if self._high_windows >= PRESSURE_WINDOWS and self.queue.size >= self.limit.places:
            self._pressed_until_s = now_s + PRESSURE_KEPT_S
        self._arrived, self._finished, self._window_end_s = 0, 0, now_s + WINDOW_S

    def finished(self) -> None:
        """Count a call that was answered."""
        self._finished += 1

    def is_pressed(self, now_s: float) -> bool:
        """Tell whether more come than are answered."""
        return now_s < self._pressed_until_s

    def wait_s_max(self, now_s: float) -> float:
        """Return how long a call may have to wait."""
        if now_s >= self._pressed_until_s:
            return self._calm_wait_s
        # At least so long that a place that becomes free finds a call that waits for it.
        return max(self._pressed_wait_s, self.limit.mean_s)

    def reason_against(self, call: Call, now_s: float) -> Reason | None:
        """Return why a call that has waited is not to be started after all."""
        if call.deadline_s - now_s < self.limit.quiet_s.get(call.kind.name, 0.0):
            return "deadline"
        # What came before the pressure was seen has waited too long already, and keeps all behind it waiting.
        if self.is_pressed(now_s) and now_s - call.arrived_s > 2 * self.wait_s_max(now_s) and self.queue.size:
            return "wait"
        return None

    def wait_s(self) -> float:
        """Return how long the next call will wait, as far as one can tell."""
        return (self.queue.size + 1) * self.limit.mean_s / self.limit.places


class Admission:
    """Decides which calls run, wait and are refused. Not thread-safe: whoever uses it holds a lock.

    Parameters
    ----------
    settings
        The limits.
    cores
        Searches that can make progress at a time.
    draw
        Gives numbers between 0 and 1, for the jitter of `Refusal.retry_after_s`.
    """

    def __init__(self, settings: AdmissionSettings, cores: int, draw: Callable[[], float] = _RANDOM.random) -> None:
        self.settings = settings
        self._draw = draw
        waits_s = (settings.queue_wait_s_max, settings.overload_wait_s_max)
        queue_max = settings.queue_calls_max
        fixed, streams = RESERVED_CALLS_MAX, settings.streams_max
        self.lanes: dict[LaneName, _Lane] = {
            "reserved": _Lane(Limit(fixed, fixed), RESERVED_QUEUE_MAX, (inf, inf)),
            "long": _Lane(Limit(streams, streams), 0, (0.0, 0.0)),
            "search": _Lane(Limit(cores, settings.searches_max), queue_max, waits_s),
            "commit": _Lane(Limit(settings.writes_min, settings.writes_max), queue_max, waits_s),
        }
        self._order = tuple(self.lanes.values())
        self._streams: dict[str, int] = {}
        self._rates = (
            settings.reads_per_s,
            settings.writes_per_s,
            settings.points_read_per_s,
            settings.points_written_per_s,
        )
        self.limits_rates = any(self._rates)
        self._allowances: OrderedDict[str, _Allowance] = OrderedDict()
        self.evicted: list[Call] = []
        """Calls that waited and made room for another, or that can no longer be answered in time: to be refused."""

    # -- a call comes, starts, ends ----------------------------------------------------------------------------------

    def offer(self, call: Call, now_s: float) -> bool:
        """Take a call. True: it is to be started now. False: it waits, or `call.refusal` says why not."""
        kind = call.kind
        lane = self.lanes[kind.lane]
        call.arrived_s = now_s
        lane.arrival(now_s)
        if self.limits_rates and kind.limited:
            call.refusal = self._beyond_rate(call, now_s)
            if call.refusal is not None:
                return False
        if kind.lane == "long":
            return self._offer_stream(lane, call, now_s)
        if lane.running < lane.limit.places and not lane.queue.size:
            lane.running += 1
            call.started_s = now_s
            return True
        if kind.limited:
            wait_s = lane.wait_s()
            if wait_s + lane.limit.quiet_s.get(kind.name, 0.0) > call.deadline_s - now_s:
                call.refusal = Refusal("deadline", self._retry_s(lane, wait_s))
                return False
            if wait_s > lane.wait_s_max(now_s) and lane.queue.size:
                return self._make_room("wait", lane, call)
        if lane.queue.size >= lane.queue_max:
            return self._make_room("queue", lane, call)
        lane.queue.push(call)
        return False

    def _offer_stream(self, lane: _Lane, call: Call, now_s: float) -> bool:
        mine = self._streams.get(call.caller, 0)
        if lane.running >= lane.limit.places or mine >= self.settings.streams_per_caller_max:
            call.refusal = Refusal("streams", self._jittered(0.5))
            return False
        self._streams[call.caller] = mine + 1
        lane.running += 1
        call.started_s = now_s
        return True

    def _make_room(self, reason: Reason, lane: _Lane, call: Call) -> bool:
        """Put a call into a queue that is full, in place of a call of who has most in it; or refuse it."""
        found = lane.queue.evict_for(call) if lane.queue.size else None
        if found is None:
            call.refusal = Refusal(reason, self._retry_s(lane, lane.wait_s()))
            return False
        found.refusal = Refusal("evicted", self._retry_s(lane, lane.wait_s()))
        self.evicted.append(found)
        lane.queue.push(call)
        return False

    def finish(self, call: Call, now_s: float) -> None:
        """A call that was started has ended; its `service_s` is how long its handler took."""
        lane = self.lanes[call.kind.lane]
        if call.service_s > 0.0:
            lane.limit.sample(call.kind.name, call.service_s, lane.running, now_s)
        lane.running -= 1
        lane.finished()
        if call.kind.lane == "long":
            left = self._streams[call.caller] - 1
            if left:
                self._streams[call.caller] = left
            else:
                del self._streams[call.caller]

    def next(self, now_s: float) -> Call | None:
        """Return a call that is to be started now, None for none; those that it is too late for go to `evicted`."""
        for lane in self._order:
            while lane.queue.size and lane.running < lane.limit.places:
                call = lane.queue.pop()
                reason = lane.reason_against(call, now_s)
                if reason is not None:
                    call.refusal = Refusal(reason, self._retry_s(lane, lane.wait_s()))
                    self.evicted.append(call)
                    continue
                lane.running += 1
                call.started_s = now_s
                return call
        return None

    def step_aside(self, call: Call) -> None:
        """A call that was started does not yet need its place: its message is still on its way."""
        self.lanes[call.kind.lane].running -= 1

    def step_in(self, call: Call) -> None:
        """Such a call needs its place now, and takes it, even if that is one too many."""
        self.lanes[call.kind.lane].running += 1

    def gives_way_s(self, now_s: float) -> float:
        """Return how long a bulk load or a scan should pause before its next message: while searches wait, a moment."""
        lane = self.lanes["search"]
        if not lane.queue.size and not lane.is_pressed(now_s):
            return 0.0
        return min(0.05, max(0.001, 4 * lane.limit.mean_s))

    # -- rates -------------------------------------------------------------------------------------------------------

    def charge(self, call: Call, points: int, now_s: float) -> float:
        """Charge points that a call reads or writes; return after how long the caller is out of debt."""
        allowance = self._allowance(call.caller, now_s)
        bucket = allowance.points_written if call.kind.is_write else allowance.points_read
        if bucket is None or not call.kind.limited:
            return 0.0
        debt_s = bucket.wait_s(0.0, now_s)
        bucket.take(points)
        return debt_s

    def _beyond_rate(self, call: Call, now_s: float) -> Refusal | None:
        reads, writes, points_read, points_written = self._allowance(call.caller, now_s)
        calls, points = (writes, points_written) if call.kind.is_write else (reads, points_read)
        if points is not None:
            wait_s = points.wait_s(0.0, now_s)
            if wait_s > 0:
                return Refusal("points", max(RETRY_S_MIN, wait_s))
        if calls is not None:
            wait_s = calls.wait_s(1.0, now_s)
            if wait_s > 0:
                return Refusal("rate", max(RETRY_S_MIN, wait_s))
            calls.take(1.0)
        return None

    def _allowance(self, caller: str, now_s: float) -> _Allowance:
        found = self._allowances.get(caller)
        if found is None:
            burst_s = self.settings.burst_s
            found = _Allowance(*(Bucket(rate, rate * burst_s, now_s) if rate else None for rate in self._rates))
            self._allowances[caller] = found
            if len(self._allowances) > CALLERS_MAX:
                self._allowances.popitem(last=False)
        else:
            self._allowances.move_to_end(caller)
        return found

    # -- what it says ------------------------------------------------------------------------------------------------

    def load(self) -> dict[str, LaneLoad]:
        """Return the load of each lane."""
        return {name: LaneLoad(lane.running, lane.queue.size, lane.limit.value) for name, lane in self.lanes.items()}

    def _retry_s(self, lane: _Lane, wait_s: float) -> float:
        """Return when to try again: the later, the more come, so that together they bring what can be answered."""
        return self._jittered(max(wait_s, RETRY_S_MIN) * max(1.0, lane.pressure))

    def _jittered(self, seconds: float) -> float:
        return min(RETRY_S_MAX, max(RETRY_S_MIN, seconds)) * (0.5 + self._draw())
