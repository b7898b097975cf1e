"""Spans, by OpenTelemetry: one for each call, one below it for the engine's part; W3C trace context comes in metadata.

The time between the two is what the call waited. Without a provider there is no `Tracing`, and
calls cost nothing. Spans hold names, counts and codes, never vectors, payloads, filters or tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, cast

from opentelemetry import trace as api
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from .. import __version__
from ..api import Collection, Database
from ..clock import SystemClock
from ..errors import EngineMissing
from .pool import TICKET

if TYPE_CHECKING:
    from opentelemetry.trace import Span, TracerProvider

    from .settings import TraceSettings

__all__ = ["Tracing", "begin", "current_ids"]

_OF_COLLECTIONS = frozenset(
    ("add_field", "count", "delete", "get", "optimize", "search", "search_batch", "update", "upsert", "upsert_table")
)
_OF_STORES = frozenset(("drop_collection", "rename_collection", "snapshot", "status", "verify", "wait"))
_HANDLES = frozenset(("collection", "create_collection"))


def begin(settings: TraceSettings) -> Tracing | None:
    """Return what makes spans: with an exporter to the settings' endpoint, or with the process's own provider.

    Raises
    ------
    EngineMissing
        An endpoint is given, and what sends spans is not installed.
    """
    if settings.endpoint:
        return Tracing(_provider(settings), owns_provider=True)
    provider = api.get_tracer_provider()
    # What nobody configured only pretends to trace.
    return None if isinstance(provider, api.ProxyTracerProvider) else Tracing(provider)


def _provider(settings: TraceSettings) -> TracerProvider:
    try:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider as SDKProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
    except ImportError as exc:
        raise _missing("opentelemetry-sdk") from exc
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    except ImportError as exc:
        raise _missing("opentelemetry-exporter-otlp-proto-grpc") from exc
    provider = SDKProvider(
        sampler=ParentBasedTraceIdRatio(settings.sample_share),
        resource=Resource.create({"service.name": settings.service_name, "service.version": __version__}),
    )
    exporter = OTLPSpanExporter(endpoint=settings.endpoint, insecure=settings.endpoint.startswith("http://"))
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider


def _missing(package: str) -> EngineMissing:
    return EngineMissing(f"trace.endpoint needs {package}, which is not installed", hint=f"pip install '{package}'")


def current_ids() -> dict[str, str]:
    """Return the ids of the trace and span that this context is in, if any."""
    context = api.get_current_span().get_span_context()
    if not context.is_valid:
        return {}
    return {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}


class Tracing:
    """Makes the spans of one server. Thread-safe.

    Parameters
    ----------
    provider
        Where they go.
    owns_provider
        Whether to flush it and let it go with the server.
    """

    def __init__(self, provider: TracerProvider, *, owns_provider: bool = False) -> None:
        self._provider = provider
        self._owns_provider = owns_provider
        self._tracer = provider.get_tracer("vecstore", __version__)
        self._clock = SystemClock()
        self._propagator = TraceContextTextMapPropagator()

    @contextmanager
    def call(self, path: str, metadata: Sequence[tuple[str, str | bytes]] = ()) -> Iterator[Span]:
        """Make the body a span of the server, below the client's where metadata names one."""
        carrier = {key: value for key, value in metadata if key in ("traceparent", "tracestate")}
        service, _, method = path.strip("/").partition("/")
        # A span begins when the call came, not when its turn did.
        ticket = TICKET.get()
        waited_s = 0.0 if ticket is None else self._clock.monotonic_s() - ticket.arrived_s
        with self._tracer.start_as_current_span(
            path.strip("/"),
            context=self._propagator.extract(carrier) if carrier else None,
            kind=api.SpanKind.SERVER,
            start_time=(self._clock.wall_us() - round(waited_s * 1e6)) * 1000,
            attributes={"rpc.system": "grpc", "rpc.service": service, "rpc.method": method},
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                yield span
            except Exception as exc:
                # The message may quote what was given; the kind is enough.
                span.set_attribute("error.type", type(exc).__name__)
                span.set_status(api.Status(api.StatusCode.ERROR))
                raise

    def engine(self, name: str) -> AbstractContextManager[Span]:
        """Make the body a span of the engine's part."""
        return self._tracer.start_as_current_span(
            f"engine.{name}", kind=api.SpanKind.INTERNAL, record_exception=False, set_status_on_exception=False
        )

    def traced(self, database: Database) -> Database:
        """Return a store whose calls are spans."""
        return cast(Database, _TracedDatabase(database, self))

    def close(self) -> None:
        """Send what waits to be sent."""
        shutdown = getattr(self._provider, "shutdown", None)
        if self._owns_provider and shutdown is not None:
            shutdown()


class _Traced:
    """Stands for an object: some of its methods are spans, all else is its own."""

    _names: frozenset[str]

    def __init__(self, inner: Any, tracing: Tracing) -> None:
        self._inner = inner
        self._tracing = tracing

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        return self._spanned(name, found) if name in self._names else found

    def _spanned(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        tracing = self._tracing

        @functools.wraps(call)
        def spanned(*args: Any, **kwargs: Any) -> Any:
            with tracing.engine(name):
                return call(*args, **kwargs)

        return spanned


class _TracedCollection(_Traced):
    _names = _OF_COLLECTIONS


class _TracedDatabase(_Traced):
    _names = _OF_STORES

    def __getattr__(self, name: str) -> Any:
        found = super().__getattr__(name)
        if name not in _HANDLES:
            return found

        @functools.wraps(found)
        def handle(*args: Any, **kwargs: Any) -> Collection:
            # Finding one is a look-up; making one is work.
            call = self._spanned(name, found) if name == "create_collection" else found
            return cast(Collection, _TracedCollection(call(*args, **kwargs), self._tracing))

        return handle
