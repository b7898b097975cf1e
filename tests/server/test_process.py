"""A server as a process: what it says, how it starts, how it refuses to, how it comes back after kill -9."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest, ServerReflectionResponse

import vecstore
from tests.server.test_tls import Authority
from tests.support.serve import TIMEOUT_S, call, filled, health, logged, points, process
from vecstore.wire.methods import SERVICES
from vecstore.wire.v1 import store_pb2 as pb


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `vecstore` to its end."""
    command = [sys.executable, "-m", "vecstore.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)


def test_a_server_from_start_to_end(tmp_path: Path) -> None:
    """The ready line names ports that answer, health is SERVING for each service, SIGTERM ends it with exit code 0."""
    with process(tmp_path / "store", "--region", "north") as served, served.channel() as channel:
        assert int(served.grpc.rpartition(":")[2]) > 0
        assert [health(channel, service) for service in ("", *SERVICES)] == ["SERVING"] * 3
        assert served.get("/healthz") == (200, "alive\n")
        assert served.get("/readyz") == (200, "serving\n")
        described = call(channel, "Describe", pb.DescribeRequest())
        assert (described.region, described.version) == ("north", vecstore.__version__)
        number = filled(channel)
        assert call(channel, "Count", pb.CountRequest(collection=number)).count == 10
        assert served.end() == 0
    with vecstore.open(str(tmp_path / "store")) as database:
        assert database.collection("docs").count() == 10
        assert database.verify()["ok"] is True


def test_what_it_logs_is_json(tmp_path: Path) -> None:
    """Each line of the log is an object with time, level and event; a server that asks nobody who it is says so."""
    with process(tmp_path / "store") as served:
        assert served.end(signal.SIGINT) == 0
    events = served.events()
    assert all({"time", "level", "event"} <= set(event) for event in events)
    names = [event["event"] for event in events]
    order = ["listening", "no authentication is configured", "serving", "draining", "drained", "closed"]
    assert [name for name in names if name in order] == order
    assert events[names.index("listening")]["grpc"] == served.grpc


def test_kill_and_restart_on_the_same_port(tmp_path: Path) -> None:
    """After kill -9 the next server on the same port has all that was acknowledged, and the same connection goes on."""
    with process(tmp_path / "store") as served:
        with served.channel() as channel:
            number = filled(channel, count=0)
            token = call(channel, "Upsert", points(number, range(100))).token
        assert served.end(signal.SIGKILL) == -signal.SIGKILL
    with process(tmp_path / "store", "--listen", served.grpc) as again, again.channel() as channel:
        assert again.grpc == served.grpc
        assert call(channel, "Count", pb.CountRequest(collection=number, after=token)).count == 100
        assert again.end() == 0


def test_a_second_server_on_the_same_data_is_refused(tmp_path: Path) -> None:
    """Another server on a store that is served ends with exit code 1, naming the process that has it."""
    with process(tmp_path / "store") as served:
        done = run("serve", "--data", str(tmp_path / "store"), "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0")
        assert done.returncode == 1
        assert done.stdout == ""
        last = done.stderr.splitlines()[-1]
        assert last.startswith("error: ")
        assert str(served.process.pid) in last
        assert "Traceback" not in done.stderr
        with served.channel() as channel:
            assert health(channel) == "SERVING"


def test_a_port_that_is_taken_is_refused(tmp_path: Path) -> None:
    """Two servers never share a port: the second one ends with exit code 1 and leaves its store alone."""
    with process(tmp_path / "first") as served:
        for option, taken in (("--listen", served.grpc), ("--http", served.http)):
            other = {"--listen": "127.0.0.1:0", "--http": "127.0.0.1:0", option: taken}
            done = run("serve", "--data", str(tmp_path / "second"), *(part for pair in other.items() for part in pair))
            assert done.returncode == 1
            assert taken in done.stderr.splitlines()[-1]
    assert not (tmp_path / "second").exists()


def test_a_bad_configuration_is_refused(tmp_path: Path) -> None:
    """Exit code 2 and one line that names the place, the option and its value; no store is made."""
    config, store = tmp_path / "server.toml", tmp_path / "store"
    config.write_text("[server]\ndrain_s = 'soon'\n")
    done = run("serve", "--data", str(store), "--config", str(config))
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    for word in (str(config), "server.drain_s", "float", "'soon'"):
        assert word in line
    assert not store.exists()


def test_without_data_it_says_what_to_give() -> None:
    """The directory has no default; with --json the refusal is an object on stdout, too."""
    done = run("serve", "--json")
    assert done.returncode == 2
    assert "--data" in done.stderr
    assert "server.data" in json.loads(done.stdout)["error"]["message"]


def test_without_its_extra_it_says_what_to_install(tmp_path: Path) -> None:
    """On an install without the server's libraries help works, and the command names the extra; nothing is made."""
    blocked = "import sys; sys.modules['prometheus_client'] = sys.modules['structlog'] = None; "
    code = f"{blocked} from vecstore.cli.main import main; sys.argv[0] = 'vecstore'; main()"
    store = tmp_path / "store"
    for arguments, exit_code, word in ((["--help"], 0, "--listen"), (["--data", str(store)], 1, "vecstore-db[server]")):
        command = [sys.executable, "-c", code, "serve", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == exit_code
        assert word in done.stdout + done.stderr
        assert "Traceback" not in done.stderr
    assert not store.exists()


def test_insecure_listens_everywhere(tmp_path: Path) -> None:
    """With --insecure it listens on all addresses, and the log warns of it."""
    with process(tmp_path / "store", "--listen", "0.0.0.0:0", "--insecure") as served, served.channel() as channel:
        assert served.grpc.startswith("0.0.0.0:")
        assert health(channel) == "SERVING"
        (warning,) = [event for event in served.events() if event["level"] == "warning"]
        assert "everybody" in warning["served"]


def reflected(channel: grpc.Channel, name: str) -> list[str]:
    """Return the services that reflection lists."""
    stub = channel.stream_stream(
        f"/grpc.reflection.{name}.ServerReflection/ServerReflectionInfo",
        request_serializer=ServerReflectionRequest.SerializeToString,
        response_deserializer=ServerReflectionResponse.FromString,
    )
    (answer,) = stub(iter([ServerReflectionRequest(list_services="*")]), timeout=TIMEOUT_S)
    return [service.name for service in answer.list_services_response.service]


def test_reflection_can_be_turned_off(tmp_path: Path) -> None:
    """Reflection lists the services under both of its names; turned off, there is no such service."""
    with process(tmp_path / "on") as served, served.channel() as channel:
        for name in ("v1", "v1alpha"):
            assert set(SERVICES) < set(reflected(channel, name))
    off = {"VECSTORE_SERVER_REFLECTION": "false"}
    with process(tmp_path / "off", environment=off) as served, served.channel() as channel:
        with pytest.raises(grpc.RpcError) as caught:
            reflected(channel, "v1")
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_server_with_tls_reads_its_certificate_again(tmp_path: Path) -> None:
    """SIGHUP takes over a new certificate and leaves a bad one; handshakes that fail leave no mark in the log."""
    authority = Authority(tmp_path / "ours")
    certificate, key = authority.issue("localhost", [x509.DNSName("localhost")])
    arguments = ("--certificate", str(certificate), "--key", str(key))
    with process(tmp_path / "store", *arguments) as served:
        credentials = grpc.ssl_channel_credentials(authority.file.read_bytes())
        with grpc.secure_channel(f"localhost:{served.grpc.rpartition(':')[2]}", credentials) as channel:
            assert health(channel) == "SERVING"
        assert answers(served.grpc, b"this is no handshake\r\n\r\n") == b""
        assert served.metric("vecstore_certificate_expiry_seconds") > served.metric("vecstore_start_time_seconds")
        authority.issue("localhost")
        served.process.send_signal(signal.SIGHUP)
        reloaded = {logged(served, "reloaded", what=what)["what"] for what in ("tokens", "certificates")}
        assert reloaded == {"tokens", "certificates"}
        key.write_text("none")
        served.process.send_signal(signal.SIGHUP)
        assert "localhost.key" in logged(served, "not reloaded")["problem"]
        assert served.end() == 0
    assert {event["level"] for event in served.events()} == {"info", "warning", "error"}


def test_a_store_that_does_not_open_is_one_line(tmp_path: Path) -> None:
    """What keeps a store from opening is an error with exit code 1, not a traceback."""
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "notes.txt").write_text("mine")
    done = run("serve", "--data", str(tmp_path / "store"), "--listen", "127.0.0.1:0", "--http", "")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in done.stderr


def test_a_message_beyond_the_limit_is_refused(tmp_path: Path) -> None:
    """A request above the limit gets RESOURCE_EXHAUSTED, and the connection serves the next call."""
    with process(tmp_path / "store") as served, served.channel() as channel:
        number = filled(channel, count=0)
        with pytest.raises(grpc.RpcError) as caught:
            call(channel, "Upsert", pb.UpsertRequest(collection=number, body=bytes(41 << 20)))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert call(channel, "Count", pb.CountRequest(collection=number)).count == 0


def watched(channel: grpc.Channel) -> Any:
    """Begin to watch the health of a server; return the stream, whose first answer was taken."""
    stub = channel.unary_stream(
        "/grpc.health.v1.Health/Watch",
        request_serializer=HealthCheckRequest.SerializeToString,
        response_deserializer=HealthCheckResponse.FromString,
    )
    stream = stub(HealthCheckRequest(), timeout=TIMEOUT_S)
    assert next(stream).status == HealthCheckResponse.SERVING
    return stream


def test_clients_that_ping_too_often_are_disconnected(tmp_path: Path) -> None:
    """A client that pings many times a second loses its connection, with a word why; others keep theirs."""
    often = [("grpc.keepalive_time_ms", 50), ("grpc.http2.max_pings_without_data", 0)]
    own = [("grpc.use_local_subchannel_pool", 1)]
    with process(tmp_path / "store") as served, grpc.insecure_channel(served.grpc, own) as patient:
        quiet = watched(patient)
        with grpc.insecure_channel(served.grpc, [*own, *often]) as channel, pytest.raises(grpc.RpcError) as caught:
            next(watched(channel))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert re.search("too.many.pings", caught.value.debug_error_string(), re.IGNORECASE)
        assert quiet.is_active()
        quiet.cancel()


def test_calls_of_one_connection_are_bounded(tmp_path: Path) -> None:
    """Beyond `streams_max` calls of a connection the next one waits in the client until another has ended."""
    two = {"VECSTORE_SERVER_STREAMS_MAX": "2"}
    with process(tmp_path / "store", environment=two) as served, served.channel() as channel:
        first, second = watched(channel), watched(channel)
        with pytest.raises(grpc.RpcError) as caught:
            health(channel, timeout_s=0.5)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        first.cancel()
        assert health(channel) == "SERVING"
        second.cancel()


def answers(address: str, data: bytes) -> bytes:
    """Return all that is answered to some bytes until the other side ends the connection."""
    host, port = address.split(":")
    with socket.create_connection((host, int(port)), timeout=TIMEOUT_S) as connection:
        connection.sendall(data)
        found = b""
        while part := connection.recv(4_096):
            found += part
        return found


def test_nonsense_on_the_ports_hurts_nobody(tmp_path: Path) -> None:
    """Bytes that are neither gRPC nor HTTP end their connection; others are served on."""
    with process(tmp_path / "store") as served, served.channel() as channel:
        for address in (served.grpc, served.http):
            answers(address, b"\x00\xff" * 200 + b"\r\n\r\n")
        answers(served.http, b"GET /" + b"a" * 100_000 + b" HTTP/1.0\r\n\r\n")
        assert served.get("/nothing")[0] == 404
        assert health(channel) == "SERVING"
        assert [event for event in served.events() if event["level"] == "error"] == []
