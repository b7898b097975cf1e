"""What one call may ask for: few bytes can ask for much work and memory, and a caller's rate says nothing of that.

Each bound is far above what one call needs, and its error says how to ask for less at a time.
"""

from __future__ import annotations

from typing import Any

from ..errors import Exhausted
from ..wire.codec import unpack_ids, unpack_part
from ..wire.v1 import store_pb2 as pb
from .reply import REPLY_BYTES_MAX

__all__ = ["bounded_batch", "bounded_ids", "bounded_part"]

IDS_MAX = 100_000
"""Ids in one message; a record takes fewer."""
QUERIES_MAX = 10_000
"""Queries of one batch: some seconds of work, in which no deadline is looked at."""
HITS_MAX = REPLY_BYTES_MAX // 12
"""Hits that a batch may ask for: id and score of each fill an answer."""
PAYLOAD_KEYS_MAX = 1_000
"""Keys of which the payloads' parts are made, for each hit anew."""


def bounded_ids(ids: pb.Ids, what: str = "ids") -> list[Any]:
    """Return the ids of a message; raises `Exhausted` for too many."""
    count = max(len(ids.ints) // 8, len(ids.strings.sizes) // 4)
    if count > IDS_MAX:
        raise _beyond(what, f"{count} ids given; one call takes {IDS_MAX}", "ids_max", IDS_MAX)
    return unpack_ids(ids, what)


def bounded_batch(queries: int, k: int) -> None:
    """Refuse a batch of too many queries, or of too many hits."""
    if queries > QUERIES_MAX:
        raise _beyond("vectors", f"{queries} queries given; one call takes {QUERIES_MAX}", "queries_max", QUERIES_MAX)
    if queries * k > HITS_MAX:
        text = f"{queries} queries of {k} hits each asked for; one answer holds {HITS_MAX} hits"
        raise _beyond("vectors, k", text, "hits_max", HITS_MAX)


def bounded_part(part: pb.PayloadPart) -> bool | tuple[str, ...]:
    """Return which part of the payloads is wanted; raises `Exhausted` for too many keys."""
    count = len(part.keys)
    if count > PAYLOAD_KEYS_MAX:
        text = f"{count} keys given; one call takes {PAYLOAD_KEYS_MAX}"
        raise _beyond("with_payload", text, "payload_keys_max", PAYLOAD_KEYS_MAX)
    return unpack_part(part)


def _beyond(what: str, text: str, limit: str, bound: int) -> Exhausted:
    return Exhausted(f"{what}: {text}", hint="split the call", details={"limit": limit, limit: bound})
