"""From messages to values: what the embedded store gives, made of what a server sent. Pure; no I/O.

Hits are lazy, as those of the engine are: payloads stay bytes until they are looked at.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from .. import payload as payload_json
from ..hits import BatchHits, FoundHits
from ..values import Hits, Point, SearchBatch, Snapshot, Written
from ..wire.codec import read_ack, unpack_blobs, unpack_floats, unpack_ids, unpack_scores
from ..wire.v1 import store_pb2 as pb
from .requests import Part

__all__ = ["batch_of", "hits_of", "is_bare", "points_of", "snapshot_of", "tree_of", "written_of"]


def written_of(reply: pb.Written) -> Written:
    """Return what a write did."""
    return Written(reply.lsn, reply.count, reply.token, read_ack(reply.ack))


def snapshot_of(reply: pb.SnapshotReply) -> Snapshot:
    """Return what a snapshot became."""
    time = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=reply.time_us)
    return Snapshot(reply.id, reply.lsn, time, reply.bytes_new)


def tree_of(data: bytes) -> dict[str, Any]:
    """Return a JSON object."""
    return msgspec.json.decode(data, type=dict[str, Any]) if data else {}


def hits_of(reply: pb.SearchReply, part: Part, with_vector: bool) -> Hits:
    """Return the hits of one query."""
    points = reply.points
    ids = unpack_ids(points.ids)
    data = unpack_blobs(points.payloads) if part is not False else None
    vectors = [row.copy() for row in unpack_floats(points.vectors)] if with_vector else None
    return FoundHits(ids, unpack_scores(reply.scores).tolist(), data, part, vectors, reply.lsn, reply.exact)


def is_bare(reply: pb.SearchBatchReply) -> bool:
    """Tell whether no query of a batch has a hit: then its ids do not say of which kind they would be."""
    return not reply.scores


def batch_of(reply: pb.SearchBatchReply, k: int, part: Part, *, strings: bool) -> SearchBatch:
    """Return the hits of a batch of queries, padded to k.

    Parameters
    ----------
    strings
        Whether the ids are strings where there are none to tell.
    """
    counts = np.frombuffer(reply.counts, "<u4")
    shape = (len(counts), k)
    data = None
    if part is not False:
        pieces = iter(unpack_blobs(reply.points.payloads))
        data = [[next(pieces) for _ in range(count)] for count in counts.tolist()]
    if len(reply.points.ids.ints) == 8 * len(counts) * k == 2 * len(reply.scores):
        # Numbers, k for each query, as nearly always: they are the arrays as they came.
        ids: npt.NDArray[Any] = np.frombuffer(reply.points.ids.ints, "<i8").reshape(shape).copy()
        scores = np.frombuffer(reply.scores, "<f4").reshape(shape).copy()
        return SearchBatch(ids, scores, BatchHits(ids, scores, data, part, reply.lsn, reply.exact), reply.lsn)
    there = np.arange(k) < counts[:, None]
    found = unpack_ids(reply.points.ids)
    is_text = isinstance(found[0], str) if found else strings
    ids = np.full(shape, None if is_text else -1, object if is_text else np.int64)
    scores = np.full(shape, np.nan, np.float32)
    if found:
        ids[there], scores[there] = found, unpack_scores(reply.scores)
    return SearchBatch(ids, scores, BatchHits(ids, scores, data, part, reply.lsn, reply.exact), reply.lsn)


def points_of(reply: pb.PointsReply, part: Part, with_vector: bool) -> Iterator[Point]:
    """Iterate over the points of a message, making each as it is taken."""
    points = reply.points
    ids = unpack_ids(points.ids)
    payloads = unpack_blobs(points.payloads) if part is not False and ids else None
    vectors = unpack_floats(points.vectors) if with_vector and ids else None
    for i, id in enumerate(ids):
        payload = payload_json.decode(payloads[i], True) if payloads is not None else {}
        yield Point(id, payload, vectors[i].copy() if vectors is not None else None)
