"""Payloads: canonical JSON, and what of them fits the declared fields.

Canonical JSON is what is hashed, logged and stored: UTF-8, keys by code point, no spaces, integers within
-2**63..2**64-1, shortest floats, neither NaN nor infinity, datetimes as RFC 3339 in UTC with six decimals and Z. It is
idempotent: encoding what was decoded gives the same bytes.

Every function is pure. The fast walk over a payload passes what is plain and leaves all else to the exact one, which
names what is wrong, and turns numpy scalars, UUIDs, enum members and subclasses into plain values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import chain
from typing import Any, cast

import msgspec
import orjson

from .config import FIELDS_INFERRED_MAX, PAYLOAD_BYTES_MAX
from .errors import Damaged, InvalidArgument
from .fields import (
    INT64_MAX,
    INT64_MIN,
    can_name_field,
    cell,
    datetime_text,
    plain_scalar,
    shown,
    timestamp_text,
    timestamp_us,
)
from .values import FieldType, Payload

__all__ = [
    "check",
    "decode",
    "decode_all",
    "encode",
    "encode_all",
    "encode_simple",
    "infer",
    "timestamp_text",
    "timestamp_us",
]

PAYLOAD_DEPTH_MAX = 254
"""Levels of nesting, the payload's own included; far from where the interpreter or a reader of JSON gives up."""
_UINT64_MAX = 2**64 - 1
_PLAIN = frozenset((str, bool, type(None)))
_SIMPLE = frozenset((str, bool, int, float, type(None)))
_DICT = frozenset((dict,))
_DIGITS_ALONE = bytes(ord("0") if chr(byte).isdecimal() and byte < 128 else ord(" ") for byte in range(256))
"""Makes each digit a zero and all else a space: a number is found by its length, faster than by a pattern."""
_LONG_NUMBER = b"0" * 19
_encoder = msgspec.json.Encoder(order="sorted")
_encode_sorted, _encode_lines = _encoder.encode, _encoder.encode_lines
_EXACT: dict[str, set[type]] = {
    "string": {str, type(None)},
    "int64": {int, type(None)},
    "float64": {float, type(None)},
    "bool": {bool, type(None)},
}
"""Types of which every value fits (integers by their range too), so that most columns are checked without a loop."""


def encode(payload: Payload | None, where: str) -> bytes:
    """Return the canonical JSON of a payload.

    Parameters
    ----------
    payload
        JSON values by key; None is ``{}``.
    where
        How errors call it, as in ``payloads[3]``.

    Raises
    ------
    InvalidArgument
        Not JSON, too deep, or longer than 1 MiB; names the place, the value and what is allowed.
    """
    if payload is None:
        return b"{}"
    if type(payload) is dict:
        try:
            data = _encode_sorted(_plain_dict(payload, 1))
        except (TypeError, ValueError, OverflowError):
            return _encode_exactly(payload, where)
        if len(data) <= PAYLOAD_BYTES_MAX:
            return data
    return _encode_exactly(payload, where)


def encode_all(payloads: Sequence[Payload] | None, count: int) -> list[bytes]:
    """Return the canonical JSON of the payloads of `count` points; None stands for ``{}`` each."""
    if payloads is None:
        return [b"{}"] * count
    if isinstance(payloads, str | bytes | Mapping) or not hasattr(payloads, "__len__"):
        raise InvalidArgument(f"payloads: {shown(payloads)}; allowed is a sequence of {count} mappings")
    if len(payloads) != count:
        raise InvalidArgument(f"payloads: {len(payloads)} given for {count} ids; allowed are as many as ids")
    simple = encode_simple(payloads)
    if simple is not None:
        return simple
    encoded = []
    for index, payload in enumerate(payloads):
        try:
            data = _encode_sorted(_plain_dict(payload, 1)) if type(payload) is dict else b""
        except (TypeError, ValueError, OverflowError):
            data = b""
        if not 0 < len(data) <= PAYLOAD_BYTES_MAX:
            data = encode(payload, f"payloads[{index}]")
        encoded.append(data)
    return encoded


def encode_simple(payloads: Sequence[Payload]) -> list[bytes] | None:
    """Return the canonical JSON of flat payloads of plain values, in one call for all; None where one is not.

    Nothing is refused here: whatever is not plain, is out of range, or only looks so, is left to the exact walk.
    """
    try:
        if not set(map(type, payloads)) <= _DICT:
            return None
        # Text joins with text only: no other key passes.
        "".join(chain.from_iterable(payloads))
        kinds = set(map(type, chain.from_iterable(map(dict.values, cast("Sequence[dict[str, Any]]", payloads)))))
        if not kinds <= _SIMPLE:
            return None
        data = _encode_lines(payloads)
    except (TypeError, ValueError, OverflowError):
        return None
    # NaN and infinity come out as null; a number of 19 digits may be beyond 64 bits. Text that holds such is rare.
    if (float in kinds and b"null" in data) or (int in kinds and _LONG_NUMBER in data.translate(_DIGITS_ALONE)):
        return None
    lines = data.split(b"\n")[:-1]
    return lines if max(map(len, lines), default=0) <= PAYLOAD_BYTES_MAX else None


def _plain_dict(payload: dict[Any, Any], depth: int) -> dict[str, Any]:
    """Return a dict of plain values, fast, or raise a TypeError or ValueError where the exact walk has to look."""
    # Text joins with text only: no other key passes.
    "".join(payload)
    return {key: value if type(value) in _PLAIN else _plain_fast(value, depth) for key, value in payload.items()}


def _plain_fast(value: Any, depth: int) -> Any:
    kind = type(value)
    if kind is int:
        if INT64_MIN <= value <= _UINT64_MAX:
            return value
    elif kind is float:
        # Of NaN and infinity the difference from itself is NaN.
        if value - value == 0.0:
            return value
    elif kind is datetime:
        return datetime_text(value)
    elif depth < PAYLOAD_DEPTH_MAX:
        if kind is dict:
            return _plain_dict(value, depth + 1)
        if kind is list or kind is tuple:
            return [inner if type(inner) in _PLAIN else _plain_fast(inner, depth + 1) for inner in value]
    raise TypeError


def _encode_exactly(payload: object, where: str) -> bytes:
    if not isinstance(payload, Mapping):
        raise InvalidArgument(f"{where}: {shown(payload)}; allowed is a mapping of JSON values by key")
    data = _encode_sorted(_plain(payload, where, 1))
    if len(data) > PAYLOAD_BYTES_MAX:
        raise InvalidArgument(
            f"{where}: {len(data):,} bytes as JSON; allowed are {PAYLOAD_BYTES_MAX:,}",
            details={"bytes": len(data), "bytes_max": PAYLOAD_BYTES_MAX},
        )
    return data


def _plain(value: object, where: str, depth: int) -> object:
    """Return the value made of dict, list, str, int, float, bool and None alone, or raise with its place."""
    is_container = isinstance(value, Mapping | list | tuple)
    if is_container and depth > PAYLOAD_DEPTH_MAX:
        raise InvalidArgument(f"{where}: nested deeper than {PAYLOAD_DEPTH_MAX} levels")
    if isinstance(value, Mapping):
        return {_key(key, where): _plain(inner, f"{where}.{key}", depth + 1) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner, f"{where}[{index}]", depth + 1) for index, inner in enumerate(value)]
    return _plain_leaf(value, where)


def _key(key: object, where: str) -> str:
    plain = plain_scalar(key)
    if not isinstance(plain, str):
        raise InvalidArgument(f"{where}: key {shown(key)}; allowed is text")
    return _unicode(plain, where)


def _unicode(text: str, where: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidArgument(f"{where}: {shown(text)} holds a surrogate; allowed is valid Unicode") from None
    return text


def _plain_leaf(value: object, where: str) -> object:
    plain = plain_scalar(value)
    match plain:
        case None | bool():
            return plain
        case str():
            return _unicode(plain, where)
        case int() if INT64_MIN <= plain <= _UINT64_MAX:
            return plain
        case int():
            raise InvalidArgument(f"{where}: {shown(value)}; allowed are integers from -2**63 to 2**64-1")
        case float() if math.isfinite(plain):
            return plain
        case float():
            raise InvalidArgument(f"{where}: {shown(value)}; allowed are finite numbers")
        case datetime():
            try:
                return datetime_text(plain)
            except ValueError as exc:
                raise InvalidArgument(f"{where}: {shown(value)} is {exc}; allowed is an aware datetime") from None
    raise InvalidArgument(
        f"{where}: {shown(value)}; allowed are None, bool, int, float, str, aware datetime, list and dict"
    )


def decode(data: bytes | memoryview, keys: bool | Sequence[str] = True) -> dict[str, Any]:
    """Return a payload, or the part of it that is asked for.

    Parameters
    ----------
    data
        Canonical JSON.
    keys
        True for all, False for none, or the keys wanted; those that are absent are left out.
    """
    if keys is False:
        return {}
    try:
        payload = cast("dict[str, Any]", orjson.loads(data))
    except orjson.JSONDecodeError as exc:
        raise Damaged(f"a stored payload of {len(data)} bytes is not JSON: {exc}") from exc
    if keys is True:
        return payload
    if isinstance(keys, str):
        raise InvalidArgument(f"with_payload: {keys!r}; allowed are True, False and a list of keys")
    return {key: payload[key] for key in keys if key in payload}


def decode_all(data: Sequence[bytes], keys: bool | Sequence[str] = True) -> list[dict[str, Any]]:
    """Return payloads as `decode` does, read in one call where all of each is asked for."""
    if keys is True:
        try:
            found = orjson.loads(b"[" + b",".join(data) + b"]")
        except orjson.JSONDecodeError:
            found = ()
        if len(found) == len(data):
            return cast("list[dict[str, Any]]", found)
        # One of them is damaged, and must be named.
    return [decode(each, keys) for each in data]


def check(fields: Mapping[str, FieldType], payloads: Sequence[Payload]) -> None:
    """Check that every value under a declared field fits it; absent and None are null.

    Raises
    ------
    InvalidArgument
        Names the payload's index, the field, its type and the value.
    """
    for name, type in fields.items():
        values = [payload.get(name) for payload in payloads]
        if not _fits_exactly(type, values):
            _check_field(name, type, values)


def _fits_exactly(type: str, values: list[Any]) -> bool:
    """Whether it is plain that every value fits, without a look at each."""
    exact = _EXACT.get(type)
    if exact is None or not exact.issuperset(map(_type_of, values)):
        return False
    if type != "int64":
        return True
    present = [value for value in values if value is not None]
    return not present or (min(present) >= INT64_MIN and max(present) <= INT64_MAX)


_type_of = type  # `type` is also the word for a field's type


def _check_field(name: str, type: str, values: Sequence[Any]) -> None:
    for index, value in enumerate(values):
        if value is None:
            continue
        try:
            cell(type, value)
        except ValueError as exc:
            raise InvalidArgument(
                f"payloads[{index}].{name}: {shown(value)} does not fit the field's type {type}: {exc}",
                details={"field": name, "type": type, "index": index},
            ) from None


def infer(fields: Mapping[str, FieldType], payloads: Sequence[Payload]) -> dict[str, FieldType]:
    """Return the fields that these payloads declare or widen, of a collection that infers its fields.

    The first scalar under a new key declares it; lists and nested values declare nothing. An int64 widens to float64
    when a float comes. Beyond 64 fields further keys are ignored, and so are keys that no filter could name.

    Returns
    -------
    dict
        Only what changes. Whether the other values fit is for `check` to say, with these fields added.
    """
    changed: dict[str, FieldType] = {}
    settled = {name: kind for name, kind in fields.items() if kind != "int64"}
    open_count = FIELDS_INFERRED_MAX - len(fields)
    for payload in payloads:
        for name, value in payload.items():
            if name in settled or value is None:
                continue
            kind = _inferred_type(value)
            known = changed.get(name) or fields.get(name)
            if kind is None or kind == known:
                continue
            if known is None:
                if open_count <= 0 or not can_name_field(name):
                    continue
                open_count -= 1
                changed[name] = kind
            elif kind == "float64":
                changed[name] = kind
            else:
                continue
            if kind != "int64":
                settled[name] = kind
    return changed


_INFERRED: dict[type, FieldType] = {
    str: "string", bool: "bool", int: "int64", float: "float64", datetime: "timestamp"
}  # fmt: skip


def _inferred_type(value: object) -> FieldType | None:
    plain = value if _type_of(value) in _INFERRED else plain_scalar(value)
    if isinstance(plain, datetime):
        return "timestamp"
    if type(plain) is int and not INT64_MIN <= plain <= INT64_MAX:
        return "float64"
    return _INFERRED.get(_type_of(plain))
