"""The types of declared fields: what a value of each is, and how a timestamp becomes a number and text.

Pure; shared by filters (values compared with) and payloads (values stored), so that both agree on what fits. A field's
*cell* is the value in the form that is compared: str, int, float, bool, or for a timestamp the microseconds since the
Unix epoch; for a list field a list of those. An int given for a float64 is rounded to the nearest float, in payloads
and in filters alike. A bool is no number, and a number is no bool.
"""

from __future__ import annotations

import enum
import math
import re
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, cast, get_args

from .errors import InvalidArgument
from .values import FieldType

__all__ = [
    "FIELD_TYPES",
    "INT64_MAX",
    "INT64_MIN",
    "Cell",
    "can_name_field",
    "cell",
    "check_fields",
    "datetime_text",
    "element_type",
    "plain_scalar",
    "scalar_cell",
    "shown",
    "timestamp_text",
    "timestamp_us",
]

Cell = str | int | float | bool
INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
FIELD_TYPES: frozenset[str] = frozenset(get_args(FieldType))

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_TIMESTAMP_MIN_US = -62_135_596_800_000_000
_TIMESTAMP_MAX_US = 253_402_300_799_999_999
_RFC_3339 = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})[Tt ]([0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.([0-9]+))?([Zz]|[+-][0-9]{2}:[0-9]{2})"
)
_EXPECTED = {
    "string": "text",
    "int64": "an integer from -2**63 to 2**63-1",
    "float64": "a finite number",
    "bool": "True or False",
    "timestamp": "an aware datetime or RFC 3339 text with an offset",
}


def timestamp_us(value: object) -> int:
    """Return the microseconds since the Unix epoch of an aware datetime, or of RFC 3339 text with an offset.

    Digits beyond microseconds are cut off.

    Raises
    ------
    ValueError
        Naive, malformed, not a time of the years 1 to 9999 in UTC, or of another type.
    """
    moment = _parsed(value) if isinstance(value, str) else value
    if not isinstance(moment, datetime):
        raise ValueError("not a timestamp")
    if moment.utcoffset() is None:
        raise ValueError("a timestamp without an offset from UTC")
    us = (moment - _EPOCH) // _MICROSECOND
    if not _TIMESTAMP_MIN_US <= us <= _TIMESTAMP_MAX_US:
        raise ValueError("a timestamp outside the years 1 to 9999 in UTC")
    return us


def _parsed(text: str) -> datetime:
    match = _RFC_3339.fullmatch(text)
    if match is None:
        raise ValueError("not RFC 3339 text")
    day, time, fraction, offset = match.groups()
    if offset in "Zz":
        offset = "+00:00"
    return datetime.fromisoformat(f"{day}T{time}.{(fraction or '')[:6]:0<6}{offset}")


def timestamp_text(us: int) -> str:
    """Return the canonical text of microseconds since the Unix epoch: RFC 3339 in UTC, six decimals and Z."""
    # isoformat pads years to four digits, as strftime does not.
    return (_EPOCH + timedelta(microseconds=us)).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def datetime_text(moment: datetime) -> str:
    """Return the canonical text of an aware datetime; raises ValueError as `timestamp_us` does."""
    if moment.tzinfo is UTC:
        return moment.isoformat(timespec="microseconds")[:-6] + "Z"
    return timestamp_text(timestamp_us(moment))


def element_type(type: str) -> str:
    """Return the scalar type of a field type: that of the elements for a list."""
    return type[5:-1] if type.startswith("list<") else type


def plain_scalar(value: object) -> object:
    """Return the plain Python value of what stands for one: numpy scalars, enum members, UUIDs, subclasses.

    Anything else comes back as it is.
    """
    if isinstance(value, enum.Enum):
        return plain_scalar(value.value)
    if isinstance(value, uuid.UUID):
        return str(value)
    # numpy is not imported for this: it is known by its scalars' attributes. Times are left out, as they are naive.
    if type(value).__module__ == "numpy" and getattr(value, "ndim", 1) == 0:
        dtype = getattr(value, "dtype", None)
        value = value.item() if getattr(dtype, "kind", "") in tuple("biufU") else value  # type: ignore[attr-defined]
    for plain in (bool, int, float, str):
        if isinstance(value, plain):
            return value if type(value) is plain else plain(value)
    return value


def cell(type: str, value: object) -> Cell | list[Cell]:
    """Return the cell of a value that is not null, for a field of this type.

    Raises
    ------
    ValueError
        The value does not fit; the message says what is allowed.
    """
    if not type.startswith("list<"):
        return scalar_cell(type, value)
    if not isinstance(value, list | tuple):
        raise ValueError(f"a list expected, each element {_EXPECTED[element_type(type)]}")
    of = element_type(type)
    return [scalar_cell(of, element) for element in value]


def scalar_cell(type: str, value: object) -> Cell:
    """Return the cell of a value for a field of a scalar type; raises ValueError as `cell` does."""
    plain = plain_scalar(value)
    if type == "timestamp":
        try:
            return timestamp_us(plain)
        except ValueError as exc:
            raise ValueError(f"{_EXPECTED[type]} expected, this is {exc}") from None
    if type == "string" and isinstance(plain, str):
        return plain
    if type == "bool" and isinstance(plain, bool):
        return plain
    if isinstance(plain, int | float) and not isinstance(plain, bool):
        if type == "int64" and isinstance(plain, int) and INT64_MIN <= plain <= INT64_MAX:
            return plain
        if type == "float64" and _is_finite(plain):
            return float(plain)
    raise ValueError(f"{_EXPECTED[type]} expected")


def _is_finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:
        return False


def shown(value: object) -> str:
    """Return the value with its type, short enough for an error message."""
    text = repr(value)
    return f"{text if len(text) <= 80 else text[:77] + '...'} ({type(value).__name__})"


def can_name_field(name: object) -> bool:
    """Whether this can be a field's name: valid Unicode, not empty, and without the ``$`` that marks operators."""
    if not isinstance(name, str) or not name or name.startswith("$"):
        return False
    try:
        return bool(name.encode())
    except UnicodeEncodeError:
        return False


def check_fields(fields: Mapping[str, Any]) -> dict[str, FieldType]:
    """Return declared fields as a dict of their own.

    Raises
    ------
    InvalidArgument
        A name that cannot be one, or a type that does not exist.
    """
    checked: dict[str, FieldType] = {}
    for name, type in fields.items():
        if not can_name_field(name):
            raise InvalidArgument(f"fields: name {shown(name)}; allowed is text that is not empty and begins without $")
        if not isinstance(type, str) or type not in FIELD_TYPES:
            raise InvalidArgument(f"fields.{name}: type {shown(type)}; allowed are {', '.join(sorted(FIELD_TYPES))}")
        checked[name] = cast(FieldType, type)
    return checked
