"""The server's log: one line for each event on stderr, as a JSON object or as text, with the ids of the trace it is in.

What is logged is what happened, to whom and how long it took: never a payload, a vector, a filter or a token. Records
of the library (`logging`, name ``vecstore``) come out the same way.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from .trace import current_ids

if TYPE_CHECKING:
    from .settings import LogSettings

__all__ = ["begin", "logger", "set_level"]

_SECRETS = ("token", "authorization", "password", "secret", "payload", "vector", "filter")


def begin(settings: LogSettings) -> None:
    """Send what is logged from now on to stderr, as settings say."""
    last: list[Processor]
    if settings.format == "json" or (settings.format == "auto" and not sys.stderr.isatty()):
        last = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(sort_keys=True, default=str)]
    else:
        last = [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=_shared(),
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    library = logging.getLogger("vecstore")
    library.handlers = [handler]
    library.propagate = False
    # What gRPC complains about is one line, too, not a traceback among the objects.
    foreign = logging.getLogger()
    foreign.handlers = [handler]
    foreign.setLevel(logging.WARNING)
    set_level(settings)


def set_level(settings: LogSettings) -> None:
    """Write what is at least as severe as settings say."""
    logging.getLogger("vecstore").setLevel(settings.level.upper())


def logger(name: str = "server") -> structlog.stdlib.BoundLogger:
    """Return the logger of a part of the server; events are short sentences, all else are fields."""
    # Wrapped by itself: a program that has a server in it may use structlog in its own way.
    found: structlog.stdlib.BoundLogger = structlog.wrap_logger(
        logging.getLogger(f"vecstore.{name}"),
        processors=[
            structlog.stdlib.filter_by_level,
            *_shared(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    return found


def _shared() -> list[Processor]:
    """Return what is done to events, be they logged by the server or the library."""
    return [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        _with_trace,
        _without_secrets,
    ]


def _with_trace(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Add the ids of the trace that this context is in."""
    event.update(current_ids())
    return event


def _without_secrets(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Hide what must never be in a log, should a caller name it."""
    for name in _SECRETS:
        if name in event:
            event[name] = "(not logged)"
    return event
