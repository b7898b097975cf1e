"""The packed forms of the contract: ids, pieces of bytes, floats, parts of payloads, filters.

What `proto/vecstore/v1/store.proto` calls `Ids`, `Blobs`, `Floats` and `PayloadPart`, both ways. Nothing here knows a
collection: whether an id or a vector is allowed in one is for who checks input everywhere (`vecstore.inputs`, the
engine). What is decided here is only whether the bytes can be read: where they cannot, the error is `InvalidArgument`,
which names the field, and never another. Pure; no I/O.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from ..config import DIM_MAX
from ..errors import InvalidArgument
from ..fields import datetime_text, plain_scalar, shown
from ..filters import FILTER_DEPTH_MAX, Condition
from ..values import Ack, Filter
from .v1 import store_pb2 as pb

__all__ = [
    "ACKS",
    "ACK_NAMES",
    "pack_blobs",
    "pack_filter",
    "pack_floats",
    "pack_ids",
    "pack_part",
    "read_ack",
    "read_object",
    "unpack_blobs",
    "unpack_filter",
    "unpack_floats",
    "unpack_ids",
    "unpack_part",
    "unpack_scores",
]

ACKS: dict[Ack, pb.Ack] = {
    "durable": pb.ACK_DURABLE,
    "memory": pb.ACK_MEMORY,
    "replicated": pb.ACK_REPLICATED,
}
ACK_NAMES: dict[int, Ack] = {number: name for name, number in ACKS.items()}
_JSON_DEPTH_MAX = 2 * FILTER_DEPTH_MAX + 4
"""More than any filter needs, of which a level is at most a dict and a list."""


def read_ack(number: int) -> Ack:
    """Return the level of acknowledgement that a number stands for."""
    name = ACK_NAMES.get(number)
    if name is None:
        raise InvalidArgument(f"ack: {number} given; allowed are {', '.join(map(repr, ACKS))}")
    return name


# -- pieces and ids --------------------------------------------------------------------------------------------------


def pack_blobs(pieces: Sequence[bytes]) -> pb.Blobs:
    """Return pieces of bytes in one message."""
    return pb.Blobs(sizes=struct.pack(f"<{len(pieces)}I", *map(len, pieces)), data=b"".join(pieces))


def unpack_blobs(blobs: pb.Blobs, what: str = "blobs") -> list[bytes]:
    """Return the pieces of a message.

    Parameters
    ----------
    what
        The field's name, for errors.
    """
    sizes, data = blobs.sizes, blobs.data
    lengths = _numbers("I", sizes, f"{what}.sizes")
    if sum(lengths) != len(data):
        raise InvalidArgument(f"{what}.data: {len(data)} bytes given; its sizes add up to {sum(lengths)}")
    pieces, at = [], 0
    for length in lengths:
        pieces.append(data[at : at + length])
        at += length
    return pieces


def pack_ids(ids: Sequence[int] | Sequence[str] | npt.NDArray[Any]) -> pb.Ids:
    """Return ids of one kind in one message."""
    if isinstance(ids, np.ndarray) and ids.dtype.kind in "iu":
        return pb.Ids(ints=ids.astype("<i8").tobytes())
    if not len(ids):
        return pb.Ids()
    if isinstance(ids[0], str):
        try:
            return pb.Ids(strings=pack_blobs([id.encode() for id in ids]))  # type: ignore[union-attr]
        except UnicodeEncodeError as exc:
            raise InvalidArgument(f"ids: {shown(exc.object)} is not valid Unicode") from None
    try:
        return pb.Ids(ints=struct.pack(f"<{len(ids)}q", *ids))
    except struct.error as exc:
        raise InvalidArgument(f"ids: {shown(list(ids))} cannot be sent: {exc}") from None


def unpack_ids(ids: pb.Ids, what: str = "ids") -> list[Any]:
    """Return the ids of a message: all integers, or all text; none where the message has neither."""
    if not ids.HasField("strings"):
        return list(_numbers("q", ids.ints, f"{what}.ints"))
    if ids.ints:
        raise InvalidArgument(f"{what}: integers and strings are mixed; the ids of one collection are of one kind")
    try:
        return [piece.decode() for piece in unpack_blobs(ids.strings, f"{what}.strings")]
    except UnicodeDecodeError as exc:
        raise InvalidArgument(f"{what}.strings: {shown(exc.object[:64])} is not UTF-8") from None


def _numbers(kind: str, data: bytes, what: str) -> tuple[int, ...]:
    size = struct.calcsize(f"<{kind}")
    if len(data) % size:
        raise InvalidArgument(f"{what}: {len(data)} bytes given; allowed are {size} for each number")
    return struct.unpack(f"<{len(data) // size}{kind}", data)


# -- floats ----------------------------------------------------------------------------------------------------------


def pack_floats(rows: npt.NDArray[np.float32]) -> pb.Floats:
    """Return float32 of shape (n, d) in one message."""
    return pb.Floats(rows=rows.shape[0], columns=rows.shape[1], data=np.ascontiguousarray(rows, "<f4").tobytes())


def unpack_floats(floats: pb.Floats, what: str = "vectors") -> npt.NDArray[np.float32]:
    """Return the float32 of a message as they are shaped there; the array is read-only."""
    rows, columns, data = floats.rows, floats.columns, floats.data
    if columns > DIM_MAX:
        raise InvalidArgument(f"{what}.columns: {columns} given; allowed are up to {DIM_MAX}")
    if 4 * rows * columns != len(data):
        raise InvalidArgument(
            f"{what}.data: {len(data)} bytes given; of shape ({rows}, {columns}) there must be {4 * rows * columns}"
        )
    # Of no bytes there may be any number of rows of no columns: such a shape costs nothing.
    return np.frombuffer(data, "<f4").reshape(rows, columns)


def unpack_scores(data: bytes, what: str = "scores") -> npt.NDArray[np.float32]:
    """Return float32 that have no shape of their own; the array is read-only."""
    if len(data) % 4:
        raise InvalidArgument(f"{what}: {len(data)} bytes given; allowed are 4 for each number")
    return np.frombuffer(data, "<f4")


# -- parts of payloads -----------------------------------------------------------------------------------------------


def pack_part(with_payload: bool | tuple[str, ...]) -> pb.PayloadPart | None:
    """Return which part of the payloads is wanted; None for nothing of them."""
    if with_payload is False:
        return None
    try:
        return pb.PayloadPart(all=True) if with_payload is True else pb.PayloadPart(keys=with_payload)
    except (UnicodeEncodeError, ValueError) as exc:
        raise InvalidArgument(f"with_payload: {shown(with_payload)} cannot be sent: {exc}") from None


def unpack_part(part: pb.PayloadPart | None, what: str = "payload") -> bool | tuple[str, ...]:
    """Return True, False or the keys wanted."""
    if part is None:
        return False
    if not part.all:
        return tuple(part.keys)
    if part.keys:
        raise InvalidArgument(f"{what}: all and keys {shown(list(part.keys))} given; allowed is one of them")
    return True


# -- JSON ------------------------------------------------------------------------------------------------------------


def pack_filter(filter: Filter | None) -> bytes:
    """Return a filter as JSON in its dict form; empty for none.

    Whether the fields exist, and whether the values fit them, is for the server to say; numbers that JSON does not know
    travel as Python's `json` writes them, so that they are refused there, with the words of the embedded store.
    """
    if filter is None:
        return b""
    given = filter.to_dict() if isinstance(filter, Condition) else filter
    if not isinstance(given, Mapping):
        raise InvalidArgument(f"filter: {shown(given)}; allowed is a condition made with Field, or a dict")
    return json.dumps(_plain(given, "filter", 1), separators=(",", ":")).encode()


def _plain(value: object, where: str, depth: int) -> object:
    """Return a value made of what JSON has, or raise with its place."""
    if depth > _JSON_DEPTH_MAX:
        raise InvalidArgument(f"filter: nested deeper than {FILTER_DEPTH_MAX} levels")
    if isinstance(value, Condition):
        value = value.to_dict()
    if isinstance(value, Mapping):
        for name in value:
            if not isinstance(name, str):
                raise InvalidArgument(f"{where}: key {shown(name)}; allowed are a field's name, $and, $or and $not")
        return {str(name): _plain(inner, f"{where}.{name}", depth + 1) for name, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset | range | np.ndarray):
        return [_plain(inner, where, depth + 1) for inner in value]
    plain = plain_scalar(value)
    if isinstance(plain, datetime):
        try:
            return datetime_text(plain)
        except ValueError as exc:
            raise InvalidArgument(f"{where}: {shown(value)} is {exc}; allowed is an aware datetime") from None
    if plain is None or isinstance(plain, bool | int | float | str):
        return plain
    raise InvalidArgument(f"{where}: {shown(value)}; allowed are values that a field may have")


def unpack_filter(data: bytes) -> dict[str, Any] | None:
    """Return a filter's dict form; None for none."""
    return read_object(data, "filter") if data else None


def read_object(data: bytes, what: str) -> dict[str, Any]:
    """Return a JSON object."""
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        value = _read_loosely(data, what)
    if not isinstance(value, dict):
        raise InvalidArgument(f"{what}: {shown(value)}; allowed is a JSON object")
    return value


def _read_loosely(data: bytes, what: str) -> Any:
    """Read what strict readers refuse: NaN, infinities and surrogates, which whoever checks values refuses by name."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise InvalidArgument(f"{what}: {shown(data[:64])} is not JSON: {exc}") from None
