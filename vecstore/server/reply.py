"""What the engine answered, as the contract's messages.

Hits that come as columns (`vecstore.hits`) are packed as they are, payloads without being read; any others point by
point. Pure; no I/O.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from .. import payload as payloads
from ..api import Collection
from ..hits import BatchHits, FoundHits
from ..values import Hits, Point, SearchBatch, Written
from ..wire.codec import ACKS, pack_blobs, pack_floats, pack_ids
from ..wire.v1 import store_pb2 as pb

__all__ = ["batch_reply", "collection_message", "json_bytes", "pack_points", "part_of", "search_reply", "written_reply"]


def json_bytes(value: object) -> bytes:
    """Return a tree of plain values as JSON."""
    return msgspec.json.encode(value)


def written_reply(written: Written, epoch: int) -> pb.Written:
    """Return what a write did."""
    return pb.Written(epoch=epoch, lsn=written.lsn, count=written.count, token=written.token, ack=ACKS[written.ack])


def collection_message(collection: Collection) -> pb.Collection:
    """Return what a collection is."""
    return pb.Collection(
        number=collection.number,
        name=collection.name,
        dim=collection.dim,
        metric=collection.metric,
        fields=collection.fields,
        metadata=json_bytes(collection.metadata),
        id_kind=collection.id_kind,
    )


def part_of(data: bytes, keys: bool | tuple[str, ...]) -> bytes:
    """Return the part of a payload that was asked for, as canonical JSON."""
    return data if keys is True else payloads.encode(payloads.decode(data, keys), "payload")


def search_reply(hits: Hits, epoch: int, keys: bool | tuple[str, ...], with_vector: bool) -> pb.SearchReply:
    """Return the hits of one query."""
    reply = pb.SearchReply(epoch=epoch, lsn=hits.lsn, exact=hits.exact)
    if not isinstance(hits, FoundHits):
        _put_points(reply.points, hits, keys, with_vector)
        reply.scores = np.array([hit.score for hit in hits], "<f4").tobytes()
        return reply
    ids, scores, data, _, vectors = hits.columns
    count = len(ids)
    if not count:
        return reply
    points = reply.points
    if type(ids[0]) is int:
        points.ids.ints = struct.pack(f"<{count}q", *ids)
    else:
        points.ids.CopyFrom(pack_ids(ids))
    reply.scores = struct.pack(f"<{count}f", *scores)
    if data is not None:
        if keys is not True:
            data = [part_of(piece, keys) for piece in data]
        blobs = points.payloads
        blobs.sizes = struct.pack(f"<{count}I", *map(len, data))
        blobs.data = b"".join(data)
    if vectors is not None:
        points.vectors.CopyFrom(pack_floats(np.stack(vectors)))
    return reply


def pack_points(points: Sequence[Point], keys: bool | tuple[str, ...], with_vector: bool) -> pb.Points:
    """Return points as columns; their payloads hold no more than what was asked for."""
    packed = pb.Points()
    _put_points(packed, points, keys, with_vector)
    return packed


def _put_points(packed: pb.Points, points: Sequence[Point], keys: bool | tuple[str, ...], with_vector: bool) -> None:
    if not points:
        return
    packed.ids.CopyFrom(pack_ids([point.id for point in points]))  # type: ignore[arg-type]
    if keys is not False:
        packed.payloads.CopyFrom(pack_blobs(payloads.encode_all([point.payload for point in points], len(points))))
    if with_vector:
        vectors: list[Any] = [point.vector for point in points]
        packed.vectors.CopyFrom(pack_floats(np.stack(vectors)))


def batch_reply(batch: SearchBatch, epoch: int, keys: bool | tuple[str, ...]) -> pb.SearchBatchReply:
    """Return the hits of each query of a batch."""
    if not isinstance(batch.rows, BatchHits):
        return _batch_by_hit(batch, epoch, keys)
    ids, scores, data, exact = batch.rows.columns
    reply = pb.SearchBatchReply(epoch=epoch, lsn=batch.lsn, exact=exact)
    there = ~np.isnan(scores)
    reply.counts = there.sum(axis=1, dtype="<u4").tobytes()
    reply.scores = scores[there].astype("<f4").tobytes()
    found: Any = ids[there]
    reply.points.ids.CopyFrom(pack_ids(found if found.dtype.kind == "i" else found.tolist()))
    if data is not None:
        pieces = [piece for row in data for piece in row]
        if keys is not True:
            pieces = [part_of(piece, keys) for piece in pieces]
        reply.points.payloads.CopyFrom(pack_blobs(pieces))
    return reply


def _batch_by_hit(batch: SearchBatch, epoch: int, keys: bool | tuple[str, ...]) -> pb.SearchBatchReply:
    rows = list(batch)
    hits = [hit for row in rows for hit in row]
    return pb.SearchBatchReply(
        epoch=epoch,
        lsn=batch.lsn,
        exact=all(row.exact for row in rows),
        counts=np.array([len(row) for row in rows], "<u4").tobytes(),
        points=pack_points(hits, keys, with_vector=False),
        scores=np.array([hit.score for hit in hits], "<f4").tobytes(),
    )
