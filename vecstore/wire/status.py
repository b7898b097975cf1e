"""Errors as gRPC statuses, both ways: `trailers` of what the engine raised, `error_from` of what a call came back with.

A status says the class and the message; the trailing metadata `vecstore-error-bin` says the rest, so that a client
raises the engine's own error. Statuses that gRPC or a proxy made have no such trailer: their code alone decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast, get_args

import grpc
import msgspec
from google.protobuf.message import DecodeError

from .. import errors
from ..errors import NotPrimary, Outcome, Overloaded, VecstoreError
from .v1 import store_pb2 as pb

__all__ = ["ERROR_KEY", "PUSHBACK_KEY", "Metadata", "code_of", "error_from", "trailers"]

ERROR_KEY = "vecstore-error-bin"
PUSHBACK_KEY = "grpc-retry-pushback-ms"
TEXT_BYTES_MAX, MESSAGE_BYTES_MAX, HINT_BYTES_MAX, DETAILS_BYTES_MAX = 512, 2_048, 1_024, 1_024
"""Of a status's own text (escaped, up to three bytes for one), and of the parts of the trailer (four for three): in all
less than the 8 KiB that gRPC takes as metadata; a client that gets more gets nothing."""
_NEVER_MS = "-1"

Metadata = tuple[tuple[str, str | bytes], ...]

_Code = grpc.StatusCode
_CODES: dict[type[VecstoreError], grpc.StatusCode] = {
    errors.InvalidArgument: _Code.INVALID_ARGUMENT,
    errors.NotFound: _Code.NOT_FOUND,
    errors.AlreadyExists: _Code.ALREADY_EXISTS,
    errors.DeadlineExceeded: _Code.DEADLINE_EXCEEDED,
    errors.Overloaded: _Code.RESOURCE_EXHAUSTED,
    errors.Exhausted: _Code.RESOURCE_EXHAUSTED,
    errors.NotPrimary: _Code.FAILED_PRECONDITION,
    errors.WriteLost: _Code.FAILED_PRECONDITION,
    errors.PermissionDenied: _Code.PERMISSION_DENIED,
    errors.Unauthenticated: _Code.UNAUTHENTICATED,
    errors.Unavailable: _Code.UNAVAILABLE,
    errors.Damaged: _Code.DATA_LOSS,
    errors.Locked: _Code.FAILED_PRECONDITION,
    errors.Closed: _Code.UNAVAILABLE,
    errors.EngineMissing: _Code.FAILED_PRECONDITION,
}
# What a status means that came without our trailer: from gRPC itself, a proxy, or another server at that address.
_CLASSES: dict[grpc.StatusCode, type[VecstoreError]] = {
    _Code.CANCELLED: errors.Unavailable,
    _Code.UNKNOWN: errors.Unavailable,
    _Code.INVALID_ARGUMENT: errors.InvalidArgument,
    _Code.DEADLINE_EXCEEDED: errors.DeadlineExceeded,
    _Code.NOT_FOUND: errors.NotFound,
    _Code.ALREADY_EXISTS: errors.AlreadyExists,
    _Code.PERMISSION_DENIED: errors.PermissionDenied,
    _Code.UNAUTHENTICATED: errors.Unauthenticated,
    _Code.RESOURCE_EXHAUSTED: errors.Exhausted,
    _Code.FAILED_PRECONDITION: errors.Unavailable,
    _Code.ABORTED: errors.Unavailable,
    _Code.OUT_OF_RANGE: errors.InvalidArgument,
    _Code.UNIMPLEMENTED: errors.Unavailable,
    _Code.INTERNAL: errors.Unavailable,
    _Code.UNAVAILABLE: errors.Unavailable,
    _Code.DATA_LOSS: errors.Damaged,
}
_OUTCOMES: dict[str, Outcome] = {outcome: outcome for outcome in get_args(Outcome)}
# CANCELLED by whom? Not by us, who would not ask: by a server that ends, or a proxy.
_RETRYABLE = frozenset((_Code.UNAVAILABLE, _Code.DEADLINE_EXCEEDED, _Code.ABORTED, _Code.CANCELLED))
_BROKEN_OFF = "Internal error from Core"
"""What gRPC's asyncio client says itself, under INTERNAL, where a connection ends while it begins to send or read."""
_HINTS = {
    _Code.UNIMPLEMENTED: "is there a vecstore server at this address, and is it as new as this client?",
    _Code.RESOURCE_EXHAUSTED: "send less in one call, or ask for less",
}


def code_of(error: VecstoreError) -> grpc.StatusCode:
    """Return the status code of an error."""
    for kind in type(error).__mro__:
        code = _CODES.get(kind)
        if code is not None:
            return code
    return _Code.INTERNAL


def trailers(error: VecstoreError) -> tuple[grpc.StatusCode, str, Metadata]:
    """Return code, text and trailing metadata of an error.

    Whatever refuses a retry by its nature says so to gRPC too, which else retries by the code alone.
    """
    code = code_of(error)
    message = str(error.args[0]) if error.args else ""
    packed = pb.Error(
        type=type(error).__name__,
        message=_cut(message, MESSAGE_BYTES_MAX),
        hint=_cut(error.hint, HINT_BYTES_MAX),
        retryable=error.retryable,
        outcome=error.outcome,
        details=_details(error.details),
        primary=getattr(error, "primary", None) or "",
        retry_after_s=getattr(error, "retry_after_s", 0.0),
    )
    found: list[tuple[str, str | bytes]] = [(ERROR_KEY, packed.SerializeToString())]
    if isinstance(error, Overloaded):
        found.append((PUSHBACK_KEY, str(max(1, round(1_000 * error.retry_after_s)))))
    elif not error.retryable or error.outcome == "unknown":
        found.append((PUSHBACK_KEY, _NEVER_MS))
    return code, _cut(message, TEXT_BYTES_MAX), tuple(found)


def _cut(text: str, bytes_max: int) -> str:
    """Return a text that fits and is valid Unicode."""
    data = text.encode(errors="replace")
    if len(data) <= bytes_max:
        return data.decode()
    return data[: bytes_max - 3].decode(errors="ignore") + "..."


def _details(details: dict[str, Any]) -> bytes:
    try:
        data = msgspec.json.encode(details)
    except (TypeError, ValueError, OverflowError):
        data = b""
    if 0 < len(data) <= DETAILS_BYTES_MAX:
        return data
    # Too much for a header, or not JSON: what is plain and short is kept.
    kept = {
        key: value for key, value in details.items() if isinstance(key, str) and len(key) <= 64 and _is_short(value)
    }
    return msgspec.json.encode(dict(list(kept.items())[:8]))


def _is_short(value: object) -> bool:
    if isinstance(value, str):
        return len(value) <= 64 and value.isascii()
    return isinstance(value, bool | float) or (isinstance(value, int) and abs(value) < 2**63)


def error_from(error: grpc.RpcError) -> VecstoreError:
    """Return the error of the tree that a failed call stands for.

    Parameters
    ----------
    error
        What a call raised; it has a code, details and trailing metadata.
    """
    call = cast("grpc.Call", error)
    code, message = call.code(), call.details() or ""
    for key, value in _pairs(call.trailing_metadata()):
        if key == ERROR_KEY and isinstance(value, bytes):
            found = _from_trailer(value)
            if found is not None:
                return found
    kind = _CLASSES.get(code, errors.Unavailable)
    text = f"{code.name}: {message}" if message else code.name
    may_retry = code in _RETRYABLE or (code is grpc.StatusCode.INTERNAL and message == _BROKEN_OFF)
    return kind(text, hint=_HINTS.get(code, ""), retryable=may_retry, details={"code": code.name})


def _pairs(metadata: Any) -> Sequence[tuple[str, str | bytes]]:
    return tuple((str(key), value) for key, value in metadata or ())


def _from_trailer(data: bytes) -> VecstoreError | None:
    """Return the error that a trailer holds, None where it cannot be read or is of a class that this client lacks."""
    try:
        packed = pb.Error.FromString(data)
        details = msgspec.json.decode(packed.details, type=dict[str, Any]) if packed.details else {}
    except (DecodeError, msgspec.MsgspecError, UnicodeDecodeError):
        return None
    kind = getattr(errors, packed.type, None) if packed.type in errors.__all__ else None
    if kind is None:
        return None
    outcome: Outcome = _OUTCOMES.get(packed.outcome, "unknown")
    more: dict[str, Any] = {
        "outcome": outcome,
        "hint": packed.hint,
        "details": details,
        "retryable": packed.retryable,
    }
    if kind is NotPrimary:
        more["primary"] = packed.primary or None
    elif kind is Overloaded:
        more["retry_after_s"] = packed.retry_after_s
    made: VecstoreError = kind(packed.message, **more)
    return made
