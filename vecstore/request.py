"""The id of the request that a call belongs to: a write that is tried again under the same id takes effect once.

The id travels in a context variable, so that the interface has no argument for it: the server sets the one that its
client sent, the engine's calls pick it up, and a remote client sends it on. A call of many records gives each record
an id of its own, made from the call's.

So does the time after which the request must not be started: calls that change collections take no ``timeout``, and a
server must not make a change that its client has given up on.

>>> with request.use(request.new()):
...     docs.upsert(ids, vectors)
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import xxhash

from .record import NO_REQUEST

__all__ = ["current", "deadline_s", "new", "part", "use"]

_current: ContextVar[bytes] = ContextVar("vecstore_request_id", default=NO_REQUEST)
_deadline_s: ContextVar[float | None] = ContextVar("vecstore_deadline_s", default=None)


def new() -> bytes:
    """Return an id of 16 random bytes."""
    return os.urandom(16)


def current() -> bytes:
    """Return the id of this context's request; zeros where the caller will not try again."""
    return _current.get()


def deadline_s() -> float | None:
    """Return the monotonic time after which this context's request must not be started; None for never."""
    return _deadline_s.get()


@contextmanager
def use(request_id: bytes, timeout_s: float | None = None) -> Iterator[None]:
    """Make the calls of the body part of a request.

    Parameters
    ----------
    timeout_s
        Seconds from now in which it may be started; None leaves that as it is.
    """
    before = _current.set(request_id)
    limit = None if timeout_s is None else _deadline_s.set(time.monotonic() + timeout_s)
    try:
        yield
    finally:
        _current.reset(before)
        if limit is not None:
            _deadline_s.reset(limit)


def part(request_id: bytes, number: int) -> bytes:
    """Return the id of one record of a call of many: the first has the call's own."""
    if not number or request_id == NO_REQUEST:
        return request_id
    return xxhash.xxh3_128_digest(request_id + number.to_bytes(8, "little"))
