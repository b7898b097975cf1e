"""A real `vecstore serve` in a process of its own, and plain gRPC calls to it, for tests that look from outside."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from prometheus_client.parser import text_string_to_metric_families

from vecstore.record import IdKind, PointsBody, id_key
from vecstore.server import settings
from vecstore.server.node import Node
from vecstore.server.settings import Settings
from vecstore.wire.methods import METHODS
from vecstore.wire.v1 import store_pb2 as pb

__all__ = ["Served", "call", "filled", "health", "load", "logged", "node", "points", "process", "started"]

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 30.0
END_S = 45.0
_BY_NAME = {method.name: method for method in METHODS}


class Served:
    """A server process: where it listens, what it logs.

    Parameters
    ----------
    running
        The process; its stdout has given the ready line.
    log
        The file of its stderr.
    ready
        The ready line.
    """

    def __init__(self, running: subprocess.Popen[str], log: Path, ready: str) -> None:
        self.process = running
        self.log = log
        self.ready = ready
        found = re.fullmatch(r"vecstore ready grpc=(\S+)(?: http=(\S+))?\n", ready)
        assert found is not None, f"{ready!r}\n{log.read_text()}"
        self.grpc, self.http = found[1], found[2] or ""

    def events(self) -> list[dict[str, Any]]:
        """Return what it has logged so far."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def get(self, path: str) -> tuple[int, str]:
        """Return code and text of an HTTP request."""
        try:
            with urllib.request.urlopen(f"http://{self.http}{path}", timeout=TIMEOUT_S) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as exc:
            with exc:
                return exc.code, exc.read().decode()

    def metrics(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        """Return every sample by name and labels."""
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(self.get("/metrics")[1])
            for sample in family.samples
        }

    def metric(self, name: str, **labels: str) -> float:
        """Return one sample; 0 where it is not there."""
        return self.metrics().get((name, frozenset(labels.items())), 0.0)

    @contextmanager
    def channel(self) -> Iterator[grpc.Channel]:
        """A connection without any retries."""
        with grpc.insecure_channel(self.grpc, options=[("grpc.enable_retries", 0)]) as channel:
            yield channel

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit code; a process that goes on says where each of its threads is."""
        self.process.send_signal(number)
        try:
            return self.process.wait(END_S)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)
            self.process.wait()
            raise AssertionError(f"still there {END_S:.0f} s after signal {number}:\n{self.log.read_text()}") from None


def started(
    data: Path | str,
    *arguments: str,
    log: Path,
    environment: Mapping[str, str] | None = None,
    program: str = "vecstore.cli.main",
) -> subprocess.Popen[str]:
    """Start a server process; whoever calls this ends it."""
    command = [sys.executable, "-X", "faulthandler", "-m", program, "serve", "--data", str(data)]
    if "--listen" not in arguments:
        command += ["--listen", "127.0.0.1:0"]
    if "--http" not in arguments:
        command += ["--http", "127.0.0.1:0"]
    variables = {name: value for name, value in os.environ.items() if not name.startswith("VECSTORE_")}
    with log.open("w") as stderr:
        return subprocess.Popen(
            [*command, *arguments],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            cwd=ROOT,
            env={**variables, **(environment or {})},
        )


@contextmanager
def process(
    data: Path | str,
    *arguments: str,
    log: Path | None = None,
    environment: Mapping[str, str] | None = None,
    program: str = "vecstore.cli.main",
) -> Iterator[Served]:
    """Run a server on a directory, ready when the body begins; killed when it ends, if it still runs.

    Parameters
    ----------
    arguments
        Beyond ``--data``; ports are free ones unless given.
    log
        File for its stderr; beside the data unless given.
    environment
        Variables beyond the process's own, of which those of vecstore are left out.
    program
        The module to run: vecstore's own, or one that bends it.
    """
    log = log or Path(f"{data}.log")
    with started(data, *arguments, log=log, environment=environment, program=program) as running:
        try:
            assert running.stdout is not None
            yield Served(running, log, running.stdout.readline())
        finally:
            running.kill()


def logged(served: Served, event: str, **fields: Any) -> dict[str, Any]:
    """Wait until a server has logged an event with some fields; return it."""
    waiting = threading.Event()
    for _ in range(int(TIMEOUT_S * 100)):
        for line in served.log.read_text().splitlines(keepends=True):
            found = json.loads(line) if line.endswith("\n") else {}
            if found.get("event") == event and fields.items() <= found.items():
                return dict(found)
        waiting.wait(0.01)
    raise AssertionError(served.log.read_text())


# -- plain calls -------------------------------------------------------------------------------------------------------


def call(channel: grpc.Channel, name: str, request: Any, timeout_s: float = TIMEOUT_S, **more: Any) -> Any:
    """Make one unary call of the contract."""
    method = _BY_NAME[name]
    stub = channel.unary_unary(
        method.path,
        request_serializer=method.request.SerializeToString,
        response_deserializer=method.reply.FromString,
    )
    return stub(request, timeout=timeout_s, **more)


def health(channel: grpc.Channel, service: str = "", timeout_s: float = TIMEOUT_S) -> str:
    """Return what a server says of a service's health."""
    stub = channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=HealthCheckRequest.SerializeToString,
        response_deserializer=HealthCheckResponse.FromString,
    )
    answer = stub(HealthCheckRequest(service=service), timeout=timeout_s, wait_for_ready=True)
    return str(HealthCheckResponse.ServingStatus.Name(answer.status))


def filled(channel: grpc.Channel, name: str = "docs", dim: int = 4, count: int = 10) -> int:
    """Make a collection with points of a fixed random set; return its number."""
    wanted = pb.CreateCollectionRequest(name=name, dim=dim, metric="l2", index="auto", shards=1)
    made = call(channel, "CreateCollection", wanted)
    number = int(made.collection.number)
    if count:
        call(channel, "Upsert", points(number, range(count), dim))
    return number


def points(number: int, ids: Sequence[int], dim: int = 4) -> pb.UpsertRequest:
    """Return a write of points; the same ids have the same vectors."""
    rows = np.stack([np.random.default_rng(i).standard_normal(dim).astype(np.float32) for i in ids])
    body = PointsBody(IdKind.INT, [id_key(i) for i in ids], [b"{}"] * len(ids), rows)
    return pb.UpsertRequest(collection=number, body=b"".join(body.encode()))


@contextmanager
def node(data: Path | str, flags: Mapping[tuple[str, str], Any] | None = None, **more: Any) -> Iterator[Node]:
    """Run a server in this process, on free ports; drained when the body ends.

    Parameters
    ----------
    flags
        Options by section and name.
    more
        Of `Node`.
    """
    places = {("server", "data"): str(data), ("server", "listen"): "127.0.0.1:0", ("server", "http"): "127.0.0.1:0"}
    running = Node(load({**places, **(flags or {})}), **more)
    running.start()
    try:
        yield running
    finally:
        running.drain(0.0)


def load(flags: Mapping[tuple[str, str], Any]) -> Settings:
    """Return settings of flags alone, whatever the environment says."""
    return settings.load(None, flags, {})
