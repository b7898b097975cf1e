"""Spans and logs: a call is followed from the client into the engine; nothing that it carries shows up in either."""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from tests.support.serve import call, filled, node, process
from vecstore import EngineMissing, Unavailable
from vecstore.clock import SystemClock
from vecstore.server import log, trace
from vecstore.server.admission import Kind
from vecstore.server.pool import TICKET, Ticket
from vecstore.server.settings import LogSettings, TraceSettings
from vecstore.wire.v1 import store_pb2 as pb

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = ("traceparent", f"00-{TRACE}-{PARENT}-01")
SECRET = "a-secret-that-nobody-logs"


class Traced:
    """Spans that are kept, and what makes them."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracing = trace.Tracing(provider)

    def spans(self) -> dict[str, ReadableSpan]:
        """Return the latest span of each name."""
        return {span.name: span for span in self._exporter.get_finished_spans()}


@pytest.fixture
def traced() -> Traced:
    """Spans that are kept."""
    return Traced()


@pytest.fixture
def logs() -> Iterator[io.StringIO]:
    """What is logged, as JSON; the loggers are as before afterwards."""
    named, root = logging.getLogger("vecstore"), logging.getLogger()
    before = [(each, list(each.handlers), each.level, each.propagate) for each in (named, root)]
    written = io.StringIO()
    with redirect_stderr(written):
        log.begin(LogSettings(format="json", level="debug"))
    yield written
    for each, handlers, level, propagate in before:
        each.handlers, each.propagate = handlers, propagate
        each.setLevel(level)


def events(written: io.StringIO) -> list[dict[str, Any]]:
    """Return what was logged."""
    return [json.loads(line) for line in written.getvalue().splitlines()]


def search(number: int) -> pb.SearchRequest:
    """Return a search."""
    return pb.SearchRequest(collection=number, vector=np.ones(4, np.float32).tobytes(), k=3)


def test_a_call_is_followed_into_the_engine(tmp_path: Path, traced: Traced) -> None:
    """The server's span is below the client's, the engine's below the server's; all are of the client's trace."""
    with (
        node(tmp_path / "store", tracing=traced.tracing) as served,
        grpc.insecure_channel(served.grpc_address) as channel,
    ):
        number = filled(channel)
        call(channel, "Search", search(number), metadata=(TRACEPARENT, ("authorization", f"Bearer {SECRET}")))
    spans = traced.spans()
    server, engine = spans["vecstore.v1.Collections/Search"], spans["engine.search"]
    assert server.parent is not None and engine.parent is not None
    assert (f"{server.context.trace_id:032x}", f"{server.parent.span_id:016x}") == (TRACE, PARENT)
    assert server.parent.is_remote
    assert (engine.context.trace_id, engine.parent.span_id) == (server.context.trace_id, server.context.span_id)
    assert (server.kind, engine.kind) == (SpanKind.SERVER, SpanKind.INTERNAL)
    assert dict(server.attributes or {}) == {
        "rpc.system": "grpc",
        "rpc.service": "vecstore.v1.Collections",
        "rpc.method": "Search",
    }
    assert engine.start_time is not None and server.start_time is not None
    assert engine.start_time >= server.start_time
    assert all(SECRET not in span.to_json() for span in spans.values())


def test_a_span_begins_when_its_call_came(traced: Traced) -> None:
    """What a call waited for its turn is part of its span, before the engine's part."""
    ticket = Ticket(Kind("Search", "search", 0, is_write=False, limited=True), "/a.B/Search", None)
    ticket.arrived_s = SystemClock().monotonic_s() - 2.0
    left = TICKET.set(ticket)
    try:
        with traced.tracing.call("/a.B/Search"), traced.tracing.engine("search"):
            pass
    finally:
        TICKET.reset(left)
    server, engine = traced.spans()["a.B/Search"], traced.spans()["engine.search"]
    assert server.start_time is not None and server.end_time is not None and engine.start_time is not None
    assert 2.0 <= (server.end_time - server.start_time) / 1e9 < 10
    assert 2.0 <= (engine.start_time - server.start_time) / 1e9 < 10


def test_every_call_has_a_span_of_the_engine(tmp_path: Path, traced: Traced) -> None:
    """Reads, writes and streams are followed, too; a call without a trace context begins a trace of its own."""
    with (
        node(tmp_path / "store", tracing=traced.tracing) as served,
        grpc.insecure_channel(served.grpc_address) as channel,
    ):
        number = filled(channel)
        call(channel, "Count", pb.CountRequest(collection=number))
        call(channel, "DropCollection", pb.DropCollectionRequest(name="docs"))
    spans = traced.spans()
    assert spans["vecstore.v1.Collections/Count"].parent is None
    assert {"engine.upsert", "engine.count", "engine.drop_collection", "engine.create_collection"} <= set(spans)


def test_a_failed_call_is_an_error_without_its_words(tmp_path: Path, traced: Traced) -> None:
    """A span of a call that failed says which kind of error, not what was given."""
    with (
        node(tmp_path / "store", tracing=traced.tracing) as served,
        grpc.insecure_channel(served.grpc_address) as channel,
        pytest.raises(grpc.RpcError),
    ):
        call(channel, "GetCollection", pb.GetCollectionRequest(name=SECRET))
    span = traced.spans()["vecstore.v1.Store/GetCollection"]
    assert span.status.status_code is StatusCode.ERROR
    assert (span.attributes or {})["error.type"] == "NotFound"
    assert SECRET not in span.to_json()


def test_without_a_provider_nothing_is_traced() -> None:
    """A process without a tracer provider makes no spans, and its calls cost nothing."""
    assert trace.begin(TraceSettings()) is None
    assert trace.current_ids() == {}


@contextmanager
def collector() -> Iterator[tuple[str, list[Any]]]:
    """A collector that takes spans over OTLP: its URL, and the spans that have come."""
    spans: list[Any] = []

    def export(request: ExportTraceServiceRequest, _: grpc.ServicerContext) -> ExportTraceServiceResponse:
        for of_resource in request.resource_spans:
            for of_scope in of_resource.scope_spans:
                spans.extend((of_resource.resource, span) for span in of_scope.spans)
        return ExportTraceServiceResponse()

    handler = grpc.unary_unary_rpc_method_handler(
        export,
        request_deserializer=ExportTraceServiceRequest.FromString,
        response_serializer=ExportTraceServiceResponse.SerializeToString,
    )
    service = "opentelemetry.proto.collector.trace.v1.TraceService"
    handlers = grpc.method_handlers_generic_handler(service, {"Export": handler})
    server = grpc.server(ThreadPoolExecutor(1), [handlers])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"http://127.0.0.1:{port}", spans
    finally:
        server.stop(None)


def test_spans_reach_a_collector(tmp_path: Path) -> None:
    """A server with an endpoint sends its spans there, the last ones when it ends; those not sampled stay home."""
    with collector() as (url, spans):
        variables = {"VECSTORE_SERVER_TRACE_ENDPOINT": url, "VECSTORE_SERVER_TRACE_SAMPLE_SHARE": "0"}
        with process(tmp_path / "store", environment=variables) as served, served.channel() as channel:
            number = filled(channel)
            call(channel, "Count", pb.CountRequest(collection=number), metadata=(TRACEPARENT,))
            assert served.end() == 0
    assert {span.name for _, span in spans} == {"vecstore.v1.Collections/Count", "engine.count"}
    assert {span.trace_id.hex() for _, span in spans} == {TRACE}
    names = {attribute.key: attribute.value.string_value for attribute in spans[0][0].attributes}
    assert names["service.name"] == "vecstore"


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """An endpoint without what sends spans is an error that names the package."""
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.grpc.trace_exporter", None)
    with pytest.raises(EngineMissing, match="opentelemetry-exporter-otlp-proto-grpc"):
        trace.begin(TraceSettings(endpoint="http://127.0.0.1:4317"))


def test_lines_of_a_traced_call_have_its_ids(traced: Traced, logs: io.StringIO) -> None:
    """What is logged inside a call, by the server or the library, has the ids of its trace."""
    with traced.tracing.call("/vecstore.v1.Store/Status", [TRACEPARENT]):
        log.logger().info("inside")
        logging.getLogger("vecstore").warning("of the library: %s", 7)
    log.logger().info("outside")
    inside, library, outside = events(logs)
    assert inside["trace_id"] == library["trace_id"] == TRACE
    assert len(inside["span_id"]) == 16
    assert "trace_id" not in outside
    assert (library["event"], library["level"]) == ("of the library: 7", "warning")


def test_secrets_are_not_logged(logs: io.StringIO) -> None:
    """Fields that could hold what must not be logged are hidden, should code ever name them."""
    log.logger().info("a call", token=SECRET, authorization=SECRET, payload={"a": SECRET}, caller="me")
    (event,) = events(logs)
    assert event["caller"] == "me"
    assert SECRET not in logs.getvalue()


def test_errors_are_one_line(logs: io.StringIO) -> None:
    """A traceback is a field of its event: the log stays one object a line."""
    try:
        raise Unavailable("not now")
    except Unavailable:
        log.logger().exception("failed")
        logging.getLogger("vecstore").exception("failed, in the library")
    ours, library = events(logs)
    assert "Unavailable: not now" in ours["exception"]
    assert "Unavailable: not now" in library["exception"]
    assert (ours["level"], library["level"]) == ("error", "error")


def test_a_level_is_kept(logs: io.StringIO) -> None:
    """What is less severe than the level is not written."""
    log.set_level(LogSettings(level="error"))
    log.logger().warning("no")
    logging.getLogger("vecstore").warning("no")
    log.logger().error("yes")
    assert [event["event"] for event in events(logs)] == ["yes"]


def test_as_text_for_people(logs: io.StringIO) -> None:
    """The other format is lines for people."""
    written = io.StringIO()
    with redirect_stderr(written):
        log.begin(LogSettings(format="text"))
        log.logger().info("listening", port=7)
    assert "listening" in written.getvalue()
    assert "port=7" in written.getvalue()
    assert logs.getvalue() == ""
