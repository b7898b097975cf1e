"""The body of an upsert as it travels: ids, payloads and vectors in the layout of a record's body (docs/formats.md).

What arrives is checked here as far as it can be read, never further: counts and lengths against the bytes that are
there, before anything is made of them, and payloads as JSON objects. What a collection allows is for the engine to
say. Pure; no I/O.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from ..config import DIM_MAX, RECORD_POINTS_MAX
from ..errors import InvalidArgument
from ..fields import timestamp_text, timestamp_us
from ..inputs import too_large
from ..record import IdKind

__all__ = ["Body", "read_payloads", "restore_moments", "unpack_body"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MOMENT_LENGTH = len("1970-01-01T00:00:00.000000Z")
_HEAD = struct.Struct("<BIIB")
_decode = msgspec.json.Decoder(dict[str, Any]).decode


class Body(NamedTuple):
    """Points as they arrived.

    Attributes
    ----------
    ids
        uint64, or text.
    payloads
        One JSON object for each.
    vectors
        float32 of shape (n, dim); read-only.
    """

    ids: npt.NDArray[np.uint64] | list[str]
    payloads: list[dict[str, Any]]
    vectors: npt.NDArray[np.float32]


def unpack_body(data: bytes) -> Body:
    """Read the body of an upsert; raises `InvalidArgument` for bytes that are none."""
    if len(data) < _HEAD.size:
        raise InvalidArgument(f"body: {len(data)} bytes given; it has at least {_HEAD.size}")
    kind, count, dim, full = _HEAD.unpack_from(data)
    if kind not in (IdKind.INT, IdKind.STR) or full != 1:
        raise InvalidArgument(f"body: kind of ids {kind}, flag {full} given; allowed are 1 or 2, and 1")
    if dim > DIM_MAX:
        raise InvalidArgument(f"body: dimension {dim} given; allowed are up to {DIM_MAX}")
    if count > RECORD_POINTS_MAX:
        # Before anything is made of them: the message for it is that of the engine.
        raise too_large("upsert", count, len(data))
    at = _HEAD.size
    if kind == IdKind.INT:
        _check_room(data, at + 8 * count, "ids")
        ids: npt.NDArray[np.uint64] | list[str] = np.frombuffer(data, ">u8", count, at).astype(np.uint64)
        at += 8 * count
    else:
        pieces, at = _pieces(data, at, count, "ids")
        try:
            ids = [piece.decode() for piece in pieces]
        except UnicodeDecodeError as exc:
            raise InvalidArgument(f"body: an id is not UTF-8: {exc}") from None
    payloads, at = _pieces(data, at, count, "payloads")
    if len(data) - at != 4 * count * dim:
        raise InvalidArgument(
            f"body: {len(data) - at} bytes of vectors given; for {count} of dimension {dim} there must be "
            f"{4 * count * dim}"
        )
    vectors = np.frombuffer(data, "<f4", count * dim, at).reshape(count, dim)
    return Body(ids, read_payloads(payloads), vectors)


def restore_moments(payloads: Sequence[dict[str, Any]], keys: Sequence[str]) -> None:
    """Make moments again of the text under keys where the caller gave moments: only they declare a timestamp.

    Text that the caller gave beside them stays text, but where it is written as moments are: then it stays as written.
    """
    wanted = set(keys)
    for payload in payloads if wanted else ():
        # Of the keys, which may be many, only those that are there.
        for key in wanted.intersection(payload):
            text = payload[key]
            if isinstance(text, str) and len(text) == _MOMENT_LENGTH:
                with contextlib.suppress(ValueError):
                    us = timestamp_us(text)
                    if timestamp_text(us) == text:
                        payload[key] = _EPOCH + timedelta(microseconds=us)


def _check_room(data: bytes, end: int, what: str) -> None:
    if end > len(data):
        raise InvalidArgument(f"body: {len(data)} bytes given; its {what} alone need {end}")


def _pieces(data: bytes, at: int, count: int, what: str) -> tuple[list[bytes], int]:
    _check_room(data, at + 4 * count, what)
    sizes = struct.unpack_from(f"<{count}I", data, at)
    at += 4 * count
    _check_room(data, at + sum(sizes), what)
    pieces = []
    for size in sizes:
        pieces.append(data[at : at + size])
        at += size
    return pieces, at


def read_payloads(pieces: Sequence[bytes], what: str = "payloads") -> list[dict[str, Any]]:
    """Return the JSON objects of pieces of bytes; numbers beyond 64 bits stay whole, so that they can be refused."""
    try:
        return list(map(_decode, pieces))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        pass
    # One of them: say which.
    for i, piece in enumerate(pieces):
        try:
            _decode(piece)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
            raise InvalidArgument(f"{what}[{i}]: {piece[:64]!r} is not a JSON object: {exc}") from None
    raise AssertionError("unreachable")
