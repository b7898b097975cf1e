"""From arguments to messages: checked as the engine checks them, with its own words, and packed.

What only the server can know, whether a filter's fields exist and a payload's values fit theirs, it refuses itself,
with the same words. Pure; no I/O. A message that writes gets its request id here, its deadline with each attempt.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from .. import inputs
from .. import payload as payload_json
from .. import request as request_ids
from .. import table as tables
from ..config import RECORD_BYTES_MAX, RECORD_POINTS_MAX
from ..errors import InvalidArgument
from ..fields import check_fields
from ..record import NO_REQUEST, IdKind, PointsBody, Token
from ..values import Ack, ArrowStream, FieldType, Filter, Id, Ids, Metric, Payload
from ..wire.codec import ACKS, pack_blobs, pack_filter, pack_floats, pack_part
from ..wire.v1 import store_pb2 as pb

__all__ = [
    "Part",
    "Shape",
    "add_field",
    "batch",
    "by_name",
    "count",
    "create",
    "delete",
    "drop",
    "get",
    "new_id",
    "records",
    "rename",
    "scan",
    "search",
    "update",
    "upsert",
    "wait",
]

Part = bool | tuple[str, ...]
"""Which part of the payloads is wanted."""
_FLOAT32 = np.dtype(np.float32)
_REQUEST_ID = re.compile(r"[0-9a-f]{32}")


def new_id() -> bytes:
    """Return the id of a new write: the context's, or one of its own."""
    current = request_ids.current()
    return request_ids.new() if current == NO_REQUEST else current


@dataclass(frozen=True, slots=True)
class Shape:
    """What never changes of a collection, and decides what may be asked of it."""

    number: int
    dim: int
    metric: Metric

    @classmethod
    def of(cls, described: pb.Collection) -> Shape:
        """Return it of what a server said of a collection."""
        return cls(described.number, described.dim, cast("Metric", described.metric))


def _write(request_id: bytes, ack: Ack = "durable") -> pb.Write:
    return pb.Write(request_id=request_id, ack=ACKS[ack])


def _packed_keys(kind: IdKind | None, keys: list[bytes]) -> pb.Ids:
    """Return id keys as a message."""
    if kind == IdKind.STR:
        return pb.Ids(strings=pack_blobs([key[1:] for key in keys]))
    numbers = np.frombuffer(b"".join([key[1:] for key in keys]), ">u8")
    return pb.Ids(ints=numbers.astype("<i8").tobytes())


def _encoded(rows: Sequence[Payload] | None, count: int) -> tuple[list[bytes], list[str]]:
    """Return payloads as JSON, and the keys under which they hold moments."""
    plain = None if rows is None else payload_json.encode_simple(rows)
    if plain is not None and len(plain) == count:
        return plain, []
    return payload_json.encode_all(rows, count), _moments(rows or ())


def _moments(rows: Sequence[Payload]) -> list[str]:
    # As JSON a moment is text: a collection that infers its fields could not tell.
    return sorted({key for row in rows for key, value in row.items() if isinstance(value, datetime)})


# -- writing ---------------------------------------------------------------------------------------------------------


def upsert(
    shape: Shape, request_id: bytes, ids: Ids, vectors: npt.ArrayLike, payloads: Any, ack: Ack
) -> pb.UpsertRequest:
    """Return the message of one record."""
    ack = inputs.checked_ack(ack)
    kind, keys, _ = inputs.key_list(ids)
    if len(keys) > RECORD_POINTS_MAX:
        raise inputs.too_large("upsert", len(keys), 4 * shape.dim * len(keys))
    floats = inputs.checked_vectors(vectors, shape.dim, shape.metric, count=len(keys))
    rows = inputs.payload_rows(payloads, len(keys))
    encoded, moments = _encoded(rows, len(keys))
    kept = inputs.last_of_each(keys)
    if kept is not None:
        keys, encoded, floats = [keys[i] for i in kept], [encoded[i] for i in kept], floats[kept]
    size = floats.nbytes + sum(map(len, encoded))
    if size > RECORD_BYTES_MAX:
        raise inputs.too_large("upsert", len(keys), size)
    body = b"".join(PointsBody(kind or IdKind.INT, keys, encoded, floats).encode())
    return pb.UpsertRequest(write=_write(request_id, ack), collection=shape.number, body=body, timestamps=moments)


def records(
    shape: Shape, request_id: bytes, table: ArrowStream, id: str, vector: str, ack: Ack
) -> Iterator[pb.UpsertRequest]:
    """Make the messages of a table, one for each record, each with a request id of its own."""
    for number, piece in enumerate(tables.pieces(table, id, vector, shape.dim)):
        yield upsert(shape, request_ids.part(request_id, number), *piece.read(), ack)


def update(
    shape: Shape,
    request_id: bytes,
    ids: Ids,
    vectors: npt.ArrayLike | None,
    payloads: Sequence[Payload] | None,
    ack: Ack,
) -> pb.UpdateRequest:
    """Return the message of an update."""
    ack = inputs.checked_ack(ack)
    kind, keys, _ = inputs.key_list(ids)
    if vectors is None and payloads is None:
        raise InvalidArgument("vectors, payloads: neither given; an update needs at least one of them")
    if len(keys) > RECORD_POINTS_MAX:
        raise inputs.too_large("update", len(keys), 4 * shape.dim * len(keys))
    floats = None
    if vectors is not None:
        floats = inputs.checked_vectors(vectors, shape.dim, shape.metric, count=len(keys))
    rows = inputs.payload_rows(payloads, len(keys))
    patches = None if rows is None else [payload_json.encode(row, f"payloads[{i}]") for i, row in enumerate(rows)]
    kept = inputs.last_of_each(keys)
    if kept is not None:
        keys = [keys[i] for i in kept]
        floats = None if floats is None else floats[kept]
        patches = None if patches is None else [patches[i] for i in kept]
    size = (0 if floats is None else floats.nbytes) + sum(map(len, patches or ()))
    if size > RECORD_BYTES_MAX:
        raise inputs.too_large("update", len(keys), size)
    return pb.UpdateRequest(
        write=_write(request_id, ack),
        collection=shape.number,
        ids=_packed_keys(kind, keys),
        vectors=None if floats is None else pack_floats(floats),
        payloads=None if patches is None else pack_blobs(patches),
        timestamps=_moments(rows or ()),
    )


def delete(shape: Shape, request_id: bytes, ids: Ids | None, filter: Filter | None, ack: Ack) -> pb.DeleteRequest:
    """Return the message of a delete."""
    ack = inputs.checked_ack(ack)
    if (ids is None) == (filter is None):
        given = "both" if ids is not None else "neither"
        raise InvalidArgument(f"ids, filter: {given} given; allowed is exactly one of them")
    write = _write(request_id, ack)
    if filter is not None:
        return pb.DeleteRequest(write=write, collection=shape.number, filter=pack_filter(filter))
    kind, keys, _ = inputs.key_list(ids)
    if len(keys) > RECORD_POINTS_MAX:
        raise inputs.too_large("delete", len(keys), 16 * len(keys))
    return pb.DeleteRequest(write=write, collection=shape.number, ids=_packed_keys(kind, list(dict.fromkeys(keys))))


def add_field(shape: Shape, request_id: bytes, name: str, type: FieldType) -> pb.AddFieldRequest:
    """Return the message that declares a field."""
    check_fields({name: type})
    return pb.AddFieldRequest(write=_write(request_id), collection=shape.number, name=name, type=type)


# -- reading ---------------------------------------------------------------------------------------------------------


def _query(vector: npt.ArrayLike, dim: int, metric: Metric) -> bytes:
    """Return one query as packed float32."""
    array: Any = vector
    if type(vector) is not np.ndarray or vector.dtype != _FLOAT32:
        array = inputs.real_array(vector, "vector")
    if array.shape != (dim,):
        if array.ndim == 1:
            raise InvalidArgument(f"vector: dimension {array.shape[0]} given; the collection's is {dim}")
        raise InvalidArgument(f"vector: an array of shape {array.shape} given; allowed is ({dim},)")
    floats = array
    if array.dtype != _FLOAT32:
        with np.errstate(over="ignore"):
            floats = array.astype(np.float32)
    # Of a vector that is finite and has a direction this is a number above 0. Only else is it worth a closer look.
    if not 0.0 < float(np.dot(floats, floats)) < math.inf:
        floats = inputs.finite(array[None, :], metric, "vector")
    data: bytes = floats.tobytes()
    return data


def _asked(request: Any, recall: Any, exact: bool, effort: int | None) -> None:
    """Say in a request how its caller asks for quality."""
    if recall is None and not exact and effort is None:
        return
    ask = inputs.ask_of(recall, exact, effort)
    if ask.effort is not None:
        request.effort = ask.effort
    elif ask.exact:
        request.exact = True
    else:
        request.recall = ask.recall


def search(
    shape: Shape,
    vector: npt.ArrayLike,
    k: int,
    *,
    filter: Filter | None,
    recall: float | None,
    exact: bool,
    effort: int | None,
    offset: int,
    score_threshold: float | None,
    part: Part,
    with_vector: bool,
    after: str,
) -> pb.SearchRequest:
    """Return the message of a search."""
    k, offset = inputs.checked_k(k, offset)
    request = pb.SearchRequest(
        collection=shape.number,
        vector=_query(vector, shape.dim, shape.metric),
        k=k,
        payload=pack_part(part),
        after=after,
    )
    _asked(request, recall, exact, effort)
    if offset:
        request.offset = offset
    if score_threshold is not None:
        request.score_threshold = cast("float", inputs.checked_threshold(score_threshold))
    if with_vector:
        request.with_vector = True
    if filter is not None:
        request.filter = pack_filter(filter)
    return request


def batch(
    shape: Shape,
    vectors: npt.ArrayLike,
    k: int,
    *,
    filter: Filter | None,
    recall: float | None,
    exact: bool,
    effort: int | None,
    part: Part,
    after: str,
) -> pb.SearchBatchRequest:
    """Return the message of a batch of searches."""
    k, _ = inputs.checked_k(k)
    request = pb.SearchBatchRequest(collection=shape.number, k=k, payload=pack_part(part), after=after)
    _asked(request, recall, exact, effort)
    if filter is not None:
        request.filter = pack_filter(filter)
    request.vectors.CopyFrom(pack_floats(_queries(shape, vectors)))
    return request


def _queries(shape: Shape, vectors: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """Return the vectors of a batch; of those that are arrays already the server looks at the numbers."""
    if isinstance(vectors, np.ndarray) and vectors.dtype == np.float32 and vectors.ndim == 2 and len(vectors):
        plain: npt.NDArray[np.float32] = vectors
        if plain.shape[1] == shape.dim:
            return plain
    return inputs.checked_vectors(vectors, shape.dim, shape.metric)


def get(shape: Shape, ids: Ids, part: Part, with_vector: bool, after: str) -> pb.GetRequest:
    """Return the message of a get."""
    kind, keys, _ = inputs.key_list(ids)
    return pb.GetRequest(
        collection=shape.number,
        ids=_packed_keys(kind, keys),
        payload=pack_part(part),
        with_vector=bool(with_vector),
        after=after,
    )


def scan(
    shape: Shape,
    filter: Filter | None,
    start: Id | None,
    limit: int | None,
    part: Part,
    with_vector: bool,
    after: str,
) -> pb.ScanRequest:
    """Return the message of a scan."""
    first = None
    if start is not None:
        kind, key = inputs.one_key(start, "start")
        first = _packed_keys(kind, [key])
    return pb.ScanRequest(
        collection=shape.number,
        filter=pack_filter(filter),
        start=first,
        limit=None if limit is None else inputs.checked_int(limit, "limit", 0, 2**63 - 1),
        payload=pack_part(part),
        with_vector=bool(with_vector),
        after=after,
    )


def count(shape: Shape, filter: Filter | None, after: str) -> pb.CountRequest:
    """Return the message of a count."""
    return pb.CountRequest(collection=shape.number, filter=pack_filter(filter), after=after)


# -- collections -----------------------------------------------------------------------------------------------------


def create(
    request_id: bytes,
    name: str,
    dim: int,
    *,
    metric: Metric,
    fields: Any,
    index: str,
    shards: int,
    metadata: Payload | None,
    exist_ok: bool,
) -> pb.CreateCollectionRequest:
    """Return the message that creates a collection."""
    infer = isinstance(fields, str) and fields == "infer"
    if not infer and not isinstance(fields, Mapping):
        raise InvalidArgument(
            f"fields: {inputs.shown(fields)} given; allowed is a mapping of names to types, or 'infer'"
        )
    if not isinstance(index, str):
        raise InvalidArgument(f"index: {inputs.shown(index)} given; allowed is the name of a kind, such as 'auto'")
    return pb.CreateCollectionRequest(
        write=_write(request_id),
        name=inputs.checked_name(name),
        dim=inputs.checked_dim(dim),
        metric=inputs.checked_metric(metric),
        fields={} if infer else check_fields(fields),
        infer_fields=infer,
        index=index,
        shards=inputs.checked_shards(shards),
        metadata=b"" if metadata is None else payload_json.encode(metadata, "metadata"),
        exist_ok=bool(exist_ok),
    )


def by_name(name: str, after: str) -> pb.GetCollectionRequest:
    """Return the message that finds a collection."""
    return pb.GetCollectionRequest(name=inputs.checked_name(name), after=after)


def rename(request_id: bytes, name: str, to: str, replace: bool) -> pb.RenameCollectionRequest:
    """Return the message that renames a collection."""
    inputs.checked_name(to, "to")
    name = inputs.checked_name(name)
    return pb.RenameCollectionRequest(write=_write(request_id), name=name, to=to, replace=bool(replace))


def drop(request_id: bytes, name: str, missing_ok: bool) -> pb.DropCollectionRequest:
    """Return the message that drops a collection."""
    return pb.DropCollectionRequest(
        write=_write(request_id), name=inputs.checked_name(name), missing_ok=bool(missing_ok)
    )


def wait(token: Any, ack: Ack) -> pb.WaitRequest:
    """Return the message that asks what became of a write: by its token, or its request id."""
    ack = inputs.checked_ack(ack)
    if not isinstance(token, str) or not _REQUEST_ID.fullmatch(token):
        Token.decode(token)
    return pb.WaitRequest(token=token, ack=ACKS[ack])
