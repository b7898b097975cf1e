"""The server's threads behind real sockets: what waits, what is refused without one, and clients that stand still."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest

from vecstore.clock import SystemClock
from vecstore.server.admission import Admission, AdmissionSettings
from vecstore.server.guard import Guard
from vecstore.server.pool import Pool
from vecstore.wire.methods import METHODS, Method
from vecstore.wire.status import error_from
from vecstore.wire.v1 import store_pb2 as pb

TIMEOUT_S = 20.0
METHOD = {method.name: method for method in METHODS}
Behaviour = Callable[[Any, grpc.ServicerContext], Any]


class Stage:
    """A server whose methods do what a test says, behind a real pool and guard."""

    def __init__(self, behaviours: dict[str, Behaviour], cores: int = 1, **settings: float) -> None:
        self.observed: list[tuple[str, str]] = []
        self.sheds: list[str] = []
        admission = Admission(AdmissionSettings(**settings), cores)  # type: ignore[arg-type]
        self.pool = Pool(admission, SystemClock(), observer=self)
        handlers: dict[str, dict[str, Any]] = {}
        for name, behaviour in behaviours.items():
            method = METHOD[name]
            make = {
                (False, False): grpc.unary_unary_rpc_method_handler,
                (False, True): grpc.unary_stream_rpc_method_handler,
                (True, True): grpc.stream_stream_rpc_method_handler,
            }[method.streams_in, method.streams_out]
            handler = make(behaviour, method.request.FromString, method.reply.SerializeToString)
            handlers.setdefault(method.service, {})[name] = handler
        self.server = grpc.server(self.pool, interceptors=[Guard(self.pool, served=self, observer=self)])
        self.server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler(service, found) for service, found in handlers.items()]
        )
        self.port = self.server.add_insecure_port("127.0.0.1:0")
        self.server.start()
        self.channel = grpc.insecure_channel(f"127.0.0.1:{self.port}", [("grpc.enable_retries", 0)])

    def collections_of(self, method: Method, request: Any) -> list[str]:
        """Return none: nobody is asked."""
        return []

    def observe(self, method: str, code: Any, seconds: float) -> None:
        """Note an answer."""
        self.observed.append((method.rpartition("/")[2], code.name))

    def shed(self, reason: str) -> None:
        """Note a shed."""
        self.sheds.append(reason)

    def start(self, name: str, timeout_s: float = TIMEOUT_S) -> Any:
        """Begin a unary call."""
        method = METHOD[name]
        call = self.channel.unary_unary(method.path, method.request.SerializeToString, method.reply.FromString)
        return call.future(method.request(), timeout=timeout_s)

    def until(self, holds: Callable[[], bool]) -> None:
        """Wait until something holds, which it will: else the run's timeout says where it stood."""
        pause = threading.Event()
        while not holds():
            pause.wait(0.002)

    def running(self, lane: str = "search") -> int:
        """Return how many run in a lane."""
        return self.pool.load()[lane].in_flight

    def queued(self, lane: str = "search") -> int:
        """Return how many wait in a lane."""
        return self.pool.load()[lane].queued

    def close(self) -> None:
        """End it."""
        self.channel.close()
        self.server.stop(0).wait()
        self.pool.shutdown()


@contextmanager
def stage(behaviours: dict[str, Behaviour], cores: int = 1, **settings: float) -> Iterator[Stage]:
    """Run a stage."""
    found = Stage(behaviours, cores, **settings)
    try:
        yield found
    finally:
        found.close()


class Held:
    """A behaviour that waits until it is let go, and remembers what it was called with."""

    def __init__(self, reply: Any) -> None:
        self.reply = reply
        self.begun = threading.Semaphore(0)
        self.let_go = threading.Event()
        self.count = 0

    def __call__(self, request: Any, context: grpc.ServicerContext) -> Any:
        self.count += 1
        self.begun.release()
        assert self.let_go.wait(TIMEOUT_S)
        return self.reply


def refusal(call: Any) -> tuple[str, dict[str, Any]]:
    """Return the code of a call that failed, and its trailing metadata."""
    error = call.exception(TIMEOUT_S)
    assert error is not None
    return error.code().name, dict(error.trailing_metadata())


def test_what_is_shed_needs_no_thread() -> None:
    """With every place and the queue taken, a call is refused at once, with the time to come again and the reason."""
    search = Held(pb.SearchReply())
    with stage({"Search": search}, searches_max=1, queue_calls_max=2) as held:
        first = held.start("Search")
        assert search.begun.acquire(timeout=TIMEOUT_S)
        waiting = [held.start("Search") for _ in range(2)]
        held.until(lambda: held.queued() == 2)
        threads = held.pool._threads
        beyond = [held.start("Search") for _ in range(20)]
        for call in beyond:
            code, trailers = refusal(call)
            assert code == "RESOURCE_EXHAUSTED"
            error = error_from(call.exception())
            assert type(error).__name__ == "Overloaded" and error.details["reason"] == "queue"
            assert int(trailers["grpc-retry-pushback-ms"]) == pytest.approx(1000 * error.retry_after_s, abs=1)  # type: ignore[attr-defined]
        assert held.pool._threads == threads == 1
        search.let_go.set()
        assert all(call.result(TIMEOUT_S) == pb.SearchReply() for call in [first, *waiting])
        assert search.count == 3
        assert held.sheds == ["queue"] * 20
        held.until(lambda: len(held.observed) == 23)
        assert held.observed.count(("Search", "RESOURCE_EXHAUSTED")) == 20


def test_a_deadline_runs_while_a_call_waits() -> None:
    """A call whose deadline passes in the queue is answered then, and is not started when its turn comes."""
    search = Held(pb.SearchReply())
    with stage({"Search": search}, searches_max=1) as held:
        first = held.start("Search")
        assert search.begun.acquire(timeout=TIMEOUT_S)
        late = held.start("Search", timeout_s=0.2)
        assert refusal(late)[0] == "DEADLINE_EXCEEDED"
        search.let_go.set()
        first.result(TIMEOUT_S)
        held.start("Search").result(TIMEOUT_S)
        assert search.count == 2


def test_searches_overtake_reads() -> None:
    """Of what waits, a search that came last is started before a read that came first."""
    search = Held(pb.SearchReply())
    order: list[str] = []

    def read(request: Any, context: grpc.ServicerContext) -> pb.CountReply:
        order.append("read")
        return pb.CountReply()

    def noted(request: Any, context: grpc.ServicerContext) -> Any:
        order.append("search")
        return search(request, context)

    with stage({"Search": noted, "Count": read}, searches_max=1) as held:
        first = held.start("Search")
        assert search.begun.acquire(timeout=TIMEOUT_S)
        second = held.start("Count")
        held.until(lambda: held.queued() == 1)
        third = held.start("Search")
        held.until(lambda: held.queued() == 2)
        search.let_go.set()
        for call in (first, second, third):
            call.result(TIMEOUT_S)
        assert order == ["search", "search", "read"]


def test_writes_do_not_wait_for_searches() -> None:
    """Searches that hold all of their places leave writes theirs, and the other way round; health has its own."""
    search, upsert = Held(pb.SearchReply()), Held(pb.Written())
    behaviours: dict[str, Behaviour] = {
        "Search": search,
        "Upsert": upsert,
        "Describe": lambda r, c: pb.DescribeReply(),
    }
    with stage(behaviours, searches_max=1, writes_min=1, writes_max=1) as held:
        calls = [held.start("Search"), held.start("Search"), held.start("Upsert"), held.start("Upsert")]
        assert search.begun.acquire(timeout=TIMEOUT_S) and upsert.begun.acquire(timeout=TIMEOUT_S)
        assert held.start("Describe").result(TIMEOUT_S) == pb.DescribeReply()
        upsert.let_go.set()
        assert all(call.result(TIMEOUT_S) == pb.Written() for call in calls[2:])
        search.let_go.set()
        assert all(call.result(TIMEOUT_S) == pb.SearchReply() for call in calls[:2])


# -- clients that stand still ------------------------------------------------------------------------------------------


def half_open(held: Stage, name: str) -> tuple[Any, threading.Event]:
    """Begin a call and send nothing more; return it, and what ends its sending."""
    ended = threading.Event()

    def nothing() -> Iterator[bytes]:
        ended.wait(TIMEOUT_S)
        yield from ()

    return held.channel.stream_stream(METHOD[name].path)(nothing(), timeout=TIMEOUT_S), ended


def test_calls_without_their_message_hold_no_place() -> None:
    """More callers that send headers alone than there are places: others are answered, and the silent are cancelled."""
    with stage({"Search": lambda r, c: pb.SearchReply()}, searches_max=1, receive_s_max=0.5) as held:
        silent = [half_open(held, "Search") for _ in range(5)]
        held.until(lambda: len(held.pool._aside) >= 1)
        assert held.start("Search").result(TIMEOUT_S) == pb.SearchReply()
        for call, ended in silent:
            with pytest.raises(grpc.RpcError) as caught:
                list(call)
            assert caught.value.code() in (grpc.StatusCode.CANCELLED, grpc.StatusCode.RESOURCE_EXHAUSTED)
            ended.set()
        held.until(lambda: held.running() == 0 and held.queued() == 0 and not held.pool._aside)
        assert held.start("Search").result(TIMEOUT_S) == pb.SearchReply()


def test_a_message_that_is_slow_to_come_is_still_answered() -> None:
    """A call that was put aside gets its place back when its message arrives, and the books agree afterwards."""
    with stage({"Search": lambda r, c: pb.SearchReply(lsn=r.k)}, searches_max=1) as held:
        ready = threading.Event()

        def late() -> Iterator[bytes]:
            ready.wait(TIMEOUT_S)
            yield pb.SearchRequest(k=7).SerializeToString()

        call = held.channel.stream_unary(METHOD["Search"].path).future(late(), timeout=TIMEOUT_S)
        held.until(lambda: len(held.pool._aside) == 1 and held.running() == 0)
        ready.set()
        assert pb.SearchReply.FromString(call.result(TIMEOUT_S)).lsn == 7
        held.until(lambda: held.running() == 0 and not held.pool._aside)


@pytest.mark.parametrize("name", ["UpsertStream", "Scan", "Wait"])
def test_a_stream_that_sends_nothing_is_ended(name: str) -> None:
    """A client that opens a bulk load, a scan or a wait and goes silent is cut off, and its place is free again."""

    def upserts(requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[pb.Written]:
        for _ in requests:
            yield pb.Written()

    behaviours: dict[str, Behaviour] = {
        "UpsertStream": upserts,
        "Scan": lambda r, c: iter(()),
        "Wait": lambda r, c: pb.Written(),
    }
    with stage(behaviours, stream_idle_s_max=0.3) as held:
        call, ended = half_open(held, name)
        held.until(lambda: held.running("long") == 1)
        with pytest.raises(grpc.RpcError) as caught:
            list(call)
        assert caught.value.code() is grpc.StatusCode.CANCELLED
        ended.set()
        held.until(lambda: held.running("long") == 0)


def test_a_scan_that_nobody_takes_is_ended() -> None:
    """The server makes no more than its client takes, and ends a scan whose client takes nothing any more."""
    made = []

    def scan(request: Any, context: grpc.ServicerContext) -> Iterator[pb.PointsReply]:
        for i in range(1_000):
            made.append(i)
            yield pb.PointsReply(points=pb.Points(payloads=pb.Blobs(data=bytes(1_000_000))))

    with stage({"Scan": scan}, stream_idle_s_max=0.3) as held:
        method = METHOD["Scan"]
        call = held.channel.unary_stream(method.path, method.request.SerializeToString, method.reply.FromString)
        replies = call(pb.ScanRequest(), timeout=TIMEOUT_S)
        next(replies)
        held.until(lambda: held.running("long") == 0)
        assert len(made) < 100
        with pytest.raises(grpc.RpcError) as caught:
            list(replies)
        assert caught.value.code() is grpc.StatusCode.CANCELLED


def test_a_client_that_goes_away_ends_its_stream() -> None:
    """A scan that its client cancels in the middle lets its place, and what it holds, go."""
    closed = threading.Event()

    def scan(request: Any, context: grpc.ServicerContext) -> Iterator[pb.PointsReply]:
        try:
            while True:
                yield pb.PointsReply(points=pb.Points(payloads=pb.Blobs(data=bytes(100_000))))
        finally:
            closed.set()

    with stage({"Scan": scan}) as held:
        method = METHOD["Scan"]
        call = held.channel.unary_stream(method.path, method.request.SerializeToString, method.reply.FromString)
        replies = call(pb.ScanRequest(), timeout=TIMEOUT_S)
        next(replies)
        assert held.running("long") == 1
        replies.cancel()
        assert closed.wait(TIMEOUT_S)
        held.until(lambda: held.running("long") == 0)
        assert ("Scan", "CANCELLED") in held.observed


def test_a_waiting_call_whose_client_goes_away_is_not_worked_on() -> None:
    """A call that is cancelled while it waits takes no time of the server when its turn comes."""
    search = Held(pb.SearchReply())
    with stage({"Search": search}, searches_max=1) as held:
        first = held.start("Search")
        assert search.begun.acquire(timeout=TIMEOUT_S)
        gone = held.start("Search")
        held.until(lambda: held.queued() == 1)
        gone.cancel()
        last = held.start("Search")
        held.until(lambda: held.queued() == 2)
        search.let_go.set()
        first.result(TIMEOUT_S)
        last.result(TIMEOUT_S)
        held.until(lambda: held.running() == 0)
        assert search.count == 2


def test_streams_end_somewhere_and_leave_the_rest_alone() -> None:
    """Beyond the number of streams the next is refused with a reason; searches do not notice."""
    scan = Held(iter(()))
    with stage({"Scan": scan, "Search": lambda r, c: pb.SearchReply()}, streams_max=3) as held:
        call = held.channel.unary_stream(METHOD["Scan"].path, pb.ScanRequest.SerializeToString)
        opened = [call(pb.ScanRequest(), timeout=TIMEOUT_S) for _ in range(3)]
        for _ in opened:
            assert scan.begun.acquire(timeout=TIMEOUT_S)
        with pytest.raises(grpc.RpcError) as caught:
            list(call(pb.ScanRequest(), timeout=TIMEOUT_S))
        assert error_from(caught.value).details == {"reason": "streams"}
        assert held.start("Search").result(TIMEOUT_S) == pb.SearchReply()
        scan.let_go.set()
        assert [list(one) for one in opened] == [[], [], []]


def test_nothing_new_is_taken_while_the_server_stops() -> None:
    """New calls get an error that may be retried; those that wait are still answered."""
    search = Held(pb.SearchReply())
    with stage({"Search": search}, searches_max=1) as held:
        first = held.start("Search")
        assert search.begun.acquire(timeout=TIMEOUT_S)
        second = held.start("Search")
        held.until(lambda: held.queued() == 1)
        held.pool.stop_taking("the server is being stopped")
        assert refusal(held.start("Search"))[0] == "UNAVAILABLE"
        search.let_go.set()
        assert first.result(TIMEOUT_S) == second.result(TIMEOUT_S) == pb.SearchReply()


# -- rates -------------------------------------------------------------------------------------------------------------


def test_rates_are_kept_on_the_wire() -> None:
    """Beyond its rate a caller is told when to come again; writes are counted apart."""
    behaviours: dict[str, Behaviour] = {
        "Search": lambda r, c: pb.SearchReply(),
        "Upsert": lambda r, c: pb.Written(),
    }
    with stage(behaviours, reads_per_s=0.5, burst_s=6) as held:
        for _ in range(3):
            held.start("Search").result(TIMEOUT_S)
        code, trailers = refusal(held.start("Search"))
        assert code == "RESOURCE_EXHAUSTED" and 1_000 < int(trailers["grpc-retry-pushback-ms"]) <= 2_000
        assert held.start("Upsert").result(TIMEOUT_S) == pb.Written()
        assert held.sheds == ["rate"]


def test_points_are_paid_for_afterwards() -> None:
    """A write of many points goes through once; until it is paid for the next is refused."""
    with stage({"Upsert": lambda r, c: pb.Written()}, points_written_per_s=10, burst_s=1) as held:
        method = METHOD["Upsert"]
        call = held.channel.unary_unary(method.path, method.request.SerializeToString, method.reply.FromString)
        body = b"\1" + (40).to_bytes(4, "little") + bytes(9)
        assert call(pb.UpsertRequest(body=body), timeout=TIMEOUT_S) == pb.Written()
        code, trailers = refusal(held.start("Upsert"))
        assert code == "RESOURCE_EXHAUSTED" and 2_000 < int(trailers["grpc-retry-pushback-ms"]) <= 3_000


def test_a_scan_that_reads_on_credit_waits_and_can_be_given_up() -> None:
    """A scan beyond its caller's rate is held back; its client need not wait for that to go away."""
    made: list[int] = []

    def scan(request: Any, context: grpc.ServicerContext) -> Iterator[pb.PointsReply]:
        for i in range(10):
            made.append(i)
            yield pb.PointsReply(points=pb.Points(ids=pb.Ids(ints=bytes(8 * 1_000))))

    with stage({"Scan": scan}, points_read_per_s=1, burst_s=1) as held:
        method = METHOD["Scan"]
        call = held.channel.unary_stream(method.path, method.request.SerializeToString, method.reply.FromString)
        replies = call(pb.ScanRequest(), timeout=2 * TIMEOUT_S)
        next(replies)
        next(replies)
        held.until(lambda: held.running("long") == 1)
        replies.cancel()
        held.until(lambda: held.running("long") == 0)
        assert len(made) == 2


def test_threads_are_bounded() -> None:
    """A hundred callers at once are answered by few threads."""
    with stage({"Search": lambda r, c: pb.SearchReply()}, cores=2, searches_max=4) as held:
        calls = [held.start("Search") for _ in range(100)]
        assert all(call.result(TIMEOUT_S) == pb.SearchReply() for call in calls)
        assert held.pool._threads <= 4 + 1
        assert held.pool.threads_max < 200


# -- what must not bring the server down -------------------------------------------------------------------------------


def test_a_call_that_cannot_be_admitted_ends_alone() -> None:
    """Whatever goes wrong while a call is looked at, it is answered, and so is the next one."""
    with stage({"Search": lambda r, c: pb.SearchReply()}) as held:
        held.start("Search").result(TIMEOUT_S)
        look = held.pool.identify
        held.pool.identify = lambda ticket: 1 / 0  # type: ignore[assignment]
        for _ in range(3):
            call = held.start("Search")
            assert refusal(call)[0] == "INTERNAL"
            assert "division" not in call.details()
        held.pool.identify = look
        assert held.start("Search").result(TIMEOUT_S) == pb.SearchReply()


def test_what_grpc_itself_holds_is_bounded() -> None:
    """While gRPC's thread is behind, calls pile up before the pool sees them: gRPC ends those beyond some thousands."""
    with stage({"Search": lambda r, c: pb.SearchReply()}) as held:
        held.start("Search").result(TIMEOUT_S)
        look, go = held.pool.identify, threading.Event()
        assert look is not None

        def wait(ticket: Any) -> None:
            go.wait(TIMEOUT_S)
            look(ticket)

        held.pool.identify = wait
        calls = [held.start("Search") for _ in range(4_000)]
        held.until(lambda: sum(call.done() for call in calls) >= 500)
        go.set()
        codes = {call.exception(TIMEOUT_S) and call.code().name for call in calls}
        assert codes <= {None, "CANCELLED", "RESOURCE_EXHAUSTED"}
        assert held.start("Search").result(TIMEOUT_S) == pb.SearchReply()
        held.until(lambda: held.running() == 0 and held.queued() == 0)
