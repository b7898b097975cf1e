"""What the engine answered, as the contract's messages.

Hits that come as columns (`vecstore.hits`) are packed as they are, payloads without being read; any others point by
point. Pure; no I/O.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Any

import msgspec
import numpy as np

from .. import payload as payloads
from ..api import Collection
from ..config import MIB, PAYLOAD_BYTES_MAX
from ..errors import Exhausted
from ..hits import BatchHits, FoundHits
from ..record import encode_json
from ..values import Hits, Point, SearchBatch, Written
from ..wire.codec import ACKS, pack_blobs, pack_floats, pack_ids
from ..wire.v1 import store_pb2 as pb

__all__ = [
    "Columns",
    "batch_reply",
    "collection_message",
    "json_bytes",
    "pack_points",
    "part_of",
    "search_reply",
    "too_much",
    "written_reply",
]


REPLY_BYTES_MAX = 128 * MIB
"""Of ids, payloads and vectors in one message: what a client must be able to take."""
_SMALL_COUNT = REPLY_BYTES_MAX // PAYLOAD_BYTES_MAX
"""So few payloads always fit."""


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
        reply.points.CopyFrom(pack_points(hits, keys, with_vector))
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
        sizes = list(map(len, data))
        if count > _SMALL_COUNT and sum(sizes) > REPLY_BYTES_MAX:
            raise too_much(sum(sizes))
        blobs = points.payloads
        blobs.sizes = struct.pack(f"<{count}I", *sizes)
        blobs.data = b"".join(data)
    if vectors is not None:
        points.vectors.CopyFrom(pack_floats(np.stack(vectors)))
    return reply


class Columns:
    """Points on their way into a message, one after another.

    Parameters
    ----------
    with_payload, with_vector
        Which columns there are.

    Attributes
    ----------
    ids
        Of the points so far.
    bytes
        About what the message will have.
    """

    def __init__(self, with_payload: bool, with_vector: bool) -> None:
        self.ids: list[Any] = []
        self.bytes = 0
        self._payloads: list[bytes] | None = [] if with_payload else None
        self._vectors: list[Any] | None = [] if with_vector else None

    def add(self, point: Point) -> None:
        """Take a point; its payload holds no more than what was asked for."""
        self.ids.append(point.id)
        self.bytes += 8 if isinstance(point.id, int) else 4 + len(point.id)
        if self._payloads is not None:
            # What was read is plain: written again it is canonical.
            data = encode_json(point.payload)
            self._payloads.append(data)
            self.bytes += 4 + len(data)
        if self._vectors is not None and point.vector is not None:
            self._vectors.append(point.vector)
            self.bytes += point.vector.nbytes

    def pack(self) -> pb.Points:
        """Return the message."""
        packed = pb.Points()
        if not self.ids:
            return packed
        packed.ids.CopyFrom(pack_ids(self.ids))
        if self._payloads is not None:
            packed.payloads.CopyFrom(pack_blobs(self._payloads))
        if self._vectors is not None:
            packed.vectors.CopyFrom(pack_floats(np.stack(self._vectors)))
        return packed


def pack_points(points: Iterable[Point], keys: bool | tuple[str, ...], with_vector: bool) -> pb.Points:
    """Return points as columns; raises `Exhausted` for more than one message holds."""
    columns = Columns(keys is not False, with_vector)
    for point in points:
        columns.add(point)
        if columns.bytes > REPLY_BYTES_MAX:
            raise too_much(columns.bytes)
    return columns.pack()


def too_much(size: int) -> Exhausted:
    """Return the error for an answer that one message does not hold."""
    return Exhausted(
        f"reply: the answer has {size} bytes or more; one message holds {REPLY_BYTES_MAX}",
        hint="ask for fewer points, for less of their payloads, or scan",
        details={"limit": "reply_bytes", "reply_bytes_max": REPLY_BYTES_MAX},
    )


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
        size = sum(map(len, pieces))
        if size > REPLY_BYTES_MAX:
            raise too_much(size)
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
