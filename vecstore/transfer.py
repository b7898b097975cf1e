"""Copying a collection between any two stores, through the public interface alone."""

from __future__ import annotations

from itertools import islice

from .api import Collection, Database
from .errors import InvalidArgument
from .values import Written

__all__ = ["copy_collection"]

_BYTES = 4 << 20
_POINTS_MAX = 1_000


def copy_collection(source: Collection, target: Database, name: str) -> Written:
    """Create `name` in `target` like `source`, and copy its points in the order of their ids, on one view."""
    if not isinstance(source, Collection):
        raise InvalidArgument(f"source: {source!r} given; allowed is a collection")
    if not isinstance(target, Database):
        raise InvalidArgument(f"target: {target!r} given; allowed is a database")
    made = target.create_collection(
        name, source.dim, metric=source.metric, fields=source.fields, metadata=source.metadata or None
    )
    points = source.scan(with_vector=True)
    count = max(1, min(_POINTS_MAX, _BYTES // (4 * source.dim)))
    copied = 0
    last = Written(0, 0, "", "durable")
    while taken := list(islice(points, count)):
        vectors = [point.vector for point in taken if point.vector is not None]
        last = made.upsert([point.id for point in taken], vectors, [point.payload for point in taken])
        copied += last.count
    return Written(last.lsn, copied, last.token, last.ack)
