"""The trace that a call is part of, as W3C headers, where the program has a span open.

OpenTelemetry is not needed for this: where the program has never imported it, no span can be current.
"""

from __future__ import annotations

import sys

__all__ = ["trace_headers"]


def trace_headers() -> tuple[tuple[str, str], ...]:
    """Return the headers `traceparent` and `tracestate` of the current span; none where there is no span."""
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return ()
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return ()
    parent = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
    state = context.trace_state.to_header() if context.trace_state else ""
    return (("traceparent", parent), ("tracestate", state)) if state else (("traceparent", parent),)
