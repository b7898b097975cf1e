"""How a server begins and ends: health while it recovers, calls in flight while it drains, signals, reloads."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

import vecstore
from tests.support.serve import TIMEOUT_S, call, filled, health, load, logged, points, process
from vecstore import Database
from vecstore.server.auth import digest_of
from vecstore.server.health import WATCHES_MAX
from vecstore.server.node import Node
from vecstore.wire.methods import SERVICES
from vecstore.wire.v1 import store_pb2 as pb

POINTS = 60_000
RETRYING = json.dumps(
    {
        "methodConfig": [
            {
                "name": [{}],
                "retryPolicy": {
                    "maxAttempts": 5,
                    "initialBackoff": "0.1s",
                    "maxBackoff": "1s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
                },
            }
        ]
    }
)


def code_of(channel: grpc.Channel, name: str, request: Any, **more: Any) -> grpc.StatusCode:
    """Return how a call ends."""
    try:
        call(channel, name, request, **more)
    except grpc.RpcError as exc:
        code = exc.code()
        assert isinstance(code, grpc.StatusCode)
        return code
    return grpc.StatusCode.OK


@contextmanager
def scanning(channel: grpc.Channel, number: int) -> Iterator[Any]:
    """A scan of all points with their vectors: its first answer is taken, most of it still waits at the server."""
    stub = channel.unary_stream(
        "/vecstore.v1.Collections/Scan",
        request_serializer=pb.ScanRequest.SerializeToString,
        response_deserializer=pb.PointsReply.FromString,
    )
    replies = stub(pb.ScanRequest(collection=number, with_vector=True), timeout=60)
    next(replies)
    try:
        yield replies
    finally:
        replies.cancel()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of many points: a scan of it does not fit what a connection buffers."""
    path = tmp_path_factory.mktemp("drain") / "store"
    with vecstore.open(str(path)) as database:
        docs = database.create_collection("docs", 64, metric="l2")
        for start in range(0, POINTS, 10_000):
            docs.upsert(list(range(start, start + 10_000)), [[float(start)] * 64] * 10_000)
    return path


def watch_of(channel: grpc.Channel) -> Any:
    """Return what watches the health of a server."""
    return channel.unary_stream(
        "/grpc.health.v1.Health/Watch",
        request_serializer=HealthCheckRequest.SerializeToString,
        response_deserializer=HealthCheckResponse.FromString,
    )


def number_of(channel: grpc.Channel) -> int:
    """Return the number of the collection "docs"."""
    return int(call(channel, "GetCollection", pb.GetCollectionRequest(name="docs")).collection.number)


# -- beginning ---------------------------------------------------------------------------------------------------------


def test_health_is_answered_while_the_store_recovers(tmp_path: Path) -> None:
    """From the moment it listens health is NOT_SERVING and calls are UNAVAILABLE; then both turn."""
    may_open = threading.Event()

    def opened() -> Database:
        assert may_open.wait(TIMEOUT_S)
        return vecstore.open(str(tmp_path / "store"))

    flags = {("server", "listen"): "127.0.0.1:0", ("server", "http"): "127.0.0.1:0"}
    node = Node(load(flags), open_store=opened)
    node.listen()
    recovering = threading.Thread(target=node.recover)
    recovering.start()
    try:
        with grpc.insecure_channel(node.grpc_address) as channel:
            assert [health(channel, service) for service in ("", *SERVICES)] == ["NOT_SERVING"] * 3
            assert code_of(channel, "Describe", pb.DescribeRequest()) is grpc.StatusCode.UNAVAILABLE
            assert code_of(channel, "Upsert", points(1, [1])) is grpc.StatusCode.UNAVAILABLE
            assert "vecstore_ready 0.0" in node.metrics.text().decode()
            may_open.set()
            recovering.join()
            assert [health(channel, service) for service in ("", *SERVICES)] == ["SERVING"] * 3
            assert code_of(channel, "Describe", pb.DescribeRequest()) is grpc.StatusCode.OK
            assert "vecstore_ready 1.0" in node.metrics.text().decode()
    finally:
        may_open.set()
        recovering.join()
        node.drain(0.0)


def test_an_unknown_service_has_no_health(tmp_path: Path) -> None:
    """Health of a service that does not exist is NOT_FOUND; so is any other method: UNIMPLEMENTED."""
    with process(tmp_path / "store") as served, served.channel() as channel:
        with pytest.raises(grpc.RpcError) as caught:
            health(channel, "vecstore.v1.None")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        stub = channel.unary_unary("/vecstore.v1.Store/None", bytes, bytes)
        with pytest.raises(grpc.RpcError) as caught:
            stub(b"", timeout=TIMEOUT_S)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


# -- ending ------------------------------------------------------------------------------------------------------------


def test_calls_in_flight_finish_and_new_ones_are_refused(data: Path) -> None:
    """After SIGTERM a scan that has begun goes on to its end; a new call is refused, saying that nothing was done."""
    with process(data) as served, served.channel() as channel:
        number = number_of(channel)
        with scanning(channel, number) as replies:
            served.process.send_signal(signal.SIGTERM)
            assert logged(served, "draining")["in_flight"] == 1
            with pytest.raises(grpc.RpcError) as caught:
                call(channel, "Count", pb.CountRequest(collection=number))
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            error = pb.Error.FromString(dict(caught.value.trailing_metadata())["vecstore-error-bin"])
            assert (error.type, error.outcome, error.retryable) == ("Unavailable", "refused", True)
            assert 350 <= int(dict(caught.value.trailing_metadata())["grpc-retry-pushback-ms"]) <= 700
            assert health(channel) == "NOT_SERVING"
            assert served.get("/readyz")[0] == 503
            found = sum(len(reply.points.ids.ints) // 8 for reply in replies)
        assert 0 < POINTS - found < POINTS / 4
        assert served.process.wait(TIMEOUT_S) == 0
    assert logged(served, "drained")["cancelled"] == 0


def test_calls_that_take_too_long_are_cancelled(data: Path) -> None:
    """A client that takes nothing holds a server up for `drain_s` and no longer; it still closes its store well."""
    variables = {"VECSTORE_SERVER_DRAIN_S": "1"}
    with (
        process(data, environment=variables) as served,
        served.channel() as channel,
        scanning(channel, number_of(channel)) as replies,
    ):
        start_s = time.monotonic()
        assert served.end() == 0
        assert 0.9 < time.monotonic() - start_s < 10
        with pytest.raises(grpc.RpcError):
            list(replies)
    assert [event["event"] for event in served.events()][-1] == "closed"


def test_a_second_signal_ends_at_once(data: Path) -> None:
    """Who does not want to wait for the drain sends SIGTERM again; the next start has everything."""
    with process(data) as served, served.channel() as channel, scanning(channel, number_of(channel)):
        served.process.send_signal(signal.SIGTERM)
        logged(served, "draining")
        assert served.end(signal.SIGTERM) == 128 + signal.SIGTERM
    with process(data) as served, served.channel() as channel:
        assert call(channel, "Count", pb.CountRequest(collection=number_of(channel))).count == POINTS


def test_watchers_of_health_do_not_hold_it_up(tmp_path: Path) -> None:
    """Clients that watch the health are told NOT_SERVING, and then their streams are ended: the drain is quick."""
    with process(tmp_path / "store") as served, served.channel() as channel:
        watched = [watch_of(channel)(HealthCheckRequest(), timeout=60) for _ in range(10)]
        assert {next(each).status for each in watched} == {HealthCheckResponse.SERVING}
        start_s = time.monotonic()
        served.process.send_signal(signal.SIGTERM)
        assert {next(each).status for each in watched} == {HealthCheckResponse.NOT_SERVING}
        assert served.process.wait(TIMEOUT_S) == 0
        assert time.monotonic() - start_s < 10
        for each in watched:
            with pytest.raises(grpc.RpcError):
                next(each)


def test_watchers_of_health_are_bounded(tmp_path: Path) -> None:
    """Beyond so many watchers another is refused, and asked to check; once some are gone, others may come."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    request, wanted = HealthCheckRequest(), HealthCheckResponse.SERVING
    with process(tmp_path / "store", environment={"VECSTORE_SERVER_STREAMS_MAX": "2000"}) as served:
        with grpc.insecure_channel(served.grpc, options) as channel:
            watching = []
            for _ in range(WATCHES_MAX):
                watching.append(watch_of(channel)(request, timeout=60))
                assert next(watching[-1]).status == wanted
            with pytest.raises(grpc.RpcError) as caught:
                next(watch_of(channel)(request, timeout=60))
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert health(channel) == "SERVING"
            for each in watching:
                each.cancel()
            while True:
                try:
                    assert next(watch_of(channel)(request, timeout=60)).status == wanted
                    break
                except grpc.RpcError as exc:
                    assert exc.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert served.end() == 0


def test_no_call_fails_while_two_servers_are_restarted(tmp_path: Path) -> None:
    """Callers with both addresses and a retry policy see no failure while one server after the other is restarted."""
    stop, failures, answers = threading.Event(), [], [0] * 4

    def calling(which: int, target: str) -> None:
        options = [("grpc.service_config", RETRYING), ("grpc.use_local_subchannel_pool", 1)]
        options += [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 500)]
        with grpc.insecure_channel(target, options) as channel:
            while not stop.is_set():
                try:
                    call(channel, "ListCollections", pb.ListCollectionsRequest())
                    answers[which] += 1
                except grpc.RpcError as exc:
                    failures.append((exc.code(), exc.details()))

    with ExitStack() as servers:
        running = [servers.enter_context(process(tmp_path / name)) for name in ("a", "b")]
        target = f"ipv4:{','.join(served.grpc for served in running)}"
        callers = [threading.Thread(target=calling, args=(i, target)) for i in range(len(answers))]
        for caller in callers:
            caller.start()
        try:
            for i, served in enumerate(running):
                assert served.end() == 0
                again = process(tmp_path / "ab"[i], "--listen", served.grpc, "--http", served.http)
                running[i] = servers.enter_context(again)
                before = sum(answers)
                while sum(answers) < before + 100 and not failures:
                    stop.wait(0.01)
        finally:
            stop.set()
            for caller in callers:
                caller.join()
    assert failures == []
    assert min(answers) > 0


# -- reloading ---------------------------------------------------------------------------------------------------------


def entry(name: str, secret: str, role: str = "admin") -> str:
    """Return an entry of a file of tokens."""
    grants = f'[{{role = "{role}", collections = "*"}}]'
    return f'[[token]]\nname = "{name}"\nsha256 = "{digest_of(secret)}"\ngrants = {grants}\n'


def as_caller(secret: str) -> dict[str, Any]:
    """Return what makes a call one of a caller."""
    return {"metadata": (("authorization", f"Bearer {secret}"),)}


def test_a_token_is_revoked_by_sighup(tmp_path: Path) -> None:
    """After SIGHUP the token that is gone from the file is unknown, the new one is known, on the same connection."""
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(entry("old", "old-secret"))
    with process(tmp_path / "store", "--tokens", str(tokens)) as served, served.channel() as channel:

        def listed(secret: str) -> str:
            return str(code_of(channel, "ListCollections", pb.ListCollectionsRequest(), **as_caller(secret)).name)

        assert (listed("none"), listed("old-secret")) == ("UNAUTHENTICATED", "OK")
        tokens.write_text(entry("new", "new-secret"))
        served.process.send_signal(signal.SIGHUP)
        assert logged(served, "reloaded")["what"] == "tokens"
        assert (listed("old-secret"), listed("new-secret")) == ("UNAUTHENTICATED", "OK")
        # A file that cannot be used changes nothing.
        tokens.write_text("[[token]\n")
        served.process.send_signal(signal.SIGHUP)
        assert "tokens.toml" in logged(served, "not reloaded")["problem"]
        assert listed("new-secret") == "OK"
        assert health(channel) == "SERVING"
    assert "secret" not in served.log.read_text()


def test_the_log_level_is_changed_by_sighup(tmp_path: Path) -> None:
    """The level of the log follows the file; a file that cannot be used is complained of and changes nothing."""
    config = tmp_path / "server.toml"
    config.write_text("[log]\nlevel = 'error'\n")
    with process(tmp_path / "store", "--config", str(config)) as served:
        assert served.log.read_text() == ""
        config.write_text("[log]\nlevel = 'loud'\n")
        served.process.send_signal(signal.SIGHUP)
        assert "log.level" in logged(served, "not reloaded")["problem"]
        config.write_text("[log]\nlevel = 'info'\n")
        served.process.send_signal(signal.SIGHUP)
        logged(served, "reloaded")
        assert served.end() == 0
    assert served.events()[-1]["event"] == "closed"


def test_a_drained_server_leaves_nothing_open(tmp_path: Path) -> None:
    """In one process servers come and go: each gives its ports, threads and store back."""

    def threads() -> set[str]:
        return {thread.name for thread in threading.enumerate() if thread.name.startswith("vecstore")}

    before, files = threads(), len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        flags = {
            ("server", "data"): str(tmp_path / "store"),
            ("server", "listen"): "127.0.0.1:0",
            ("server", "http"): "127.0.0.1:0",
        }
        node = Node(load(flags))
        node.start()
        with grpc.insecure_channel(node.grpc_address) as channel:
            call(channel, "Describe", pb.DescribeRequest())
        node.drain(5.0)
        node.drain(5.0)
    waiting = threading.Event()
    for _ in range(500):
        if threads() <= before:
            break
        waiting.wait(0.01)
    assert threads() <= before
    assert len(os.listdir("/proc/self/fd")) < files + 20


def test_what_was_written_before_a_drain_is_there(tmp_path: Path) -> None:
    """A drained server took its last checkpoint: the next start has all points, and verifies."""
    with process(tmp_path / "store") as served, served.channel() as channel:
        filled(channel, count=100)
        assert served.end() == 0
    with vecstore.open(str(tmp_path / "store")) as database:
        assert database.collection("docs").count() == 100
        assert database.verify()["ok"] is True
