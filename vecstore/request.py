"""The id of the request that a call belongs to: a write that is tried again under the same id takes effect once.

The id travels in a context variable, so that the interface has no argument for it: the server sets the one that its
client sent, the engine's calls pick it up, and a remote client sends it on. A call of many records gives each record
an id of its own, made from the call's.

>>> with request.use(request.new()):
...     docs.upsert(ids, vectors)
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import xxhash

from .record import NO_REQUEST

__all__ = ["current", "new", "part", "use"]

_current: ContextVar[bytes] = ContextVar("vecstore_request_id", default=NO_REQUEST)


def new() -> bytes:
    """Return an id of 16 random bytes."""
    return os.urandom(16)


def current() -> bytes:
    """Return the id of this context's request; zeros where the caller will not try again."""
    return _current.get()


@contextmanager
def use(request_id: bytes) -> Iterator[None]:
    """Make the calls of the body part of a request."""
    before = _current.set(request_id)
    try:
        yield
    finally:
        _current.reset(before)


def part(request_id: bytes, number: int) -> bytes:
    """Return the id of one record of a call of many: the first has the call's own."""
    if not number or request_id == NO_REQUEST:
        return request_id
    return xxhash.xxh3_128_digest(request_id + number.to_bytes(8, "little"))
