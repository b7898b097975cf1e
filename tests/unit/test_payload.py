"""Payloads: canonical JSON and its laws, what fits declared fields, and what is inferred."""

from __future__ import annotations

import enum
import math
import uuid
from collections import OrderedDict
from datetime import UTC, date, datetime, timedelta, timezone
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.oracle import canonical_json, fits
from tests.support.strategies import FIELDS as NAMES
from tests.support.strategies import payloads as some_payloads
from vecstore.config import FIELDS_INFERRED_MAX, PAYLOAD_BYTES_MAX
from vecstore.errors import Damaged, InvalidArgument
from vecstore.fields import FIELD_TYPES, check_fields
from vecstore.payload import (
    PAYLOAD_DEPTH_MAX,
    check,
    decode,
    decode_all,
    encode,
    encode_all,
    infer,
    timestamp_text,
    timestamp_us,
)
from vecstore.values import FieldType

FIELDS: dict[str, FieldType] = NAMES  # type: ignore[assignment]
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
MOMENTS = st.datetimes(
    datetime(1000, 1, 1),  # noqa: DTZ001
    datetime(9998, 1, 1),  # noqa: DTZ001
    timezones=st.sampled_from([UTC, timezone(timedelta(hours=-5, minutes=-30))]),
)
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    TEXT,
    MOMENTS,
)
JSON = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3))
PAYLOADS = st.dictionaries(TEXT, JSON, max_size=5)


class Colour(enum.StrEnum):
    RED = "red"


@given(PAYLOADS)
def test_canonical_json_is_idempotent(payload: dict[str, Any]) -> None:
    """What was decoded encodes to the same bytes, whatever the order of keys; the exact walk gives the same."""
    data = encode(payload, "payload")
    assert encode(decode(data, True), "payload") == data
    assert encode(dict(reversed(payload.items())), "payload") == data
    assert encode(MappingProxyType(payload), "payload") == data
    assert encode_all([payload, payload], 2) == [data, data]


@given(st.one_of(PAYLOADS, some_payloads()))
def test_canonical_json_is_what_the_oracle_says(payload: dict[str, Any]) -> None:
    """Keys by code point, no spaces, shortest floats: an independent encoder writes the same values."""
    assert encode(payload, "payload") == canonical_json(payload)


def test_canonical_json_by_example() -> None:
    """The bytes are fixed: digests depend on each of them."""
    moment = datetime(2024, 1, 1, 1, 30, tzinfo=timezone(timedelta(hours=1)))
    payload = {"\U0001f600": 1, "\ue000": 1.0, "b": [True, None, -0.0], "a": {"z": "é\n", "y": moment}, "": 1e300}
    assert encode(payload, "payload").decode() == (
        '{"":1e300,"a":{"y":"2024-01-01T00:30:00.000000Z","z":"é\\n"},"b":[true,null,-0.0],"\ue000":1.0,"\U0001f600":1}'
    )
    assert encode(None, "payload") == encode({}, "payload") == b"{}"
    assert encode_all(None, 3) == [b"{}"] * 3
    assert encode_all([], 0) == []


@pytest.mark.parametrize(
    ("given", "plain"),
    [
        (np.int64(3), 3),
        (np.uint64(2**64 - 1), 2**64 - 1),
        (np.float64(0.1), 0.1),
        (np.float32(0.5), 0.5),
        (np.bool_(True), True),
        (np.str_("a"), "a"),
        (Colour.RED, "red"),
        (uuid.UUID(int=1), str(uuid.UUID(int=1))),
        ((1, "a"), [1, "a"]),
        (OrderedDict(b=1, a=2), {"a": 2, "b": 1}),
        (MappingProxyType({"a": np.int8(1)}), {"a": 1}),
    ],
)
def test_what_stands_for_a_plain_value_is_taken_as_it(given: Any, plain: Any) -> None:
    """Scalars of numpy, enum members, UUIDs, tuples and mappings become JSON values; beside a null too."""
    assert encode({"x": given}, "p") == encode({"x": plain}, "p")
    assert encode({"x": given, "n": None}, "p") == encode({"x": plain, "n": None}, "p")


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        ({"price": math.nan}, r"p\[3\].price: nan \(float\); allowed are finite numbers"),
        ({"a": {"b": [0, {"c": math.inf}]}}, r"p\[3\].a.b\[1\].c: inf"),
        ({"a": "null", "b": -math.inf}, r"p\[3\].b: -inf"),
        ({"a": np.float64("nan")}, r"p\[3\].a: .*nan"),
        ({"a": 2**64}, r"p\[3\].a: 18446744073709551616 \(int\); allowed are integers from"),
        ({"a": -(2**63) - 1}, r"p\[3\].a: -9223372036854775809"),
        ({3: "a"}, r"p\[3\]: key 3 \(int\); allowed is text"),
        ({"a": {None: 1}}, r"p\[3\].a: key None"),
        ({"a": {1, 2}}, r"p\[3\].a: .* \(set\); allowed are None, bool"),
        ({"a": b"x"}, r"p\[3\].a: b'x' \(bytes\)"),
        ({"a": object()}, r"\(object\)"),
        ({"a": 1j}, r"\(complex\)"),
        ({"a": np.arange(3)}, r"\(ndarray\)"),
        ({"a": np.datetime64("2024-01-01T00:00:00", "us")}, r"\(datetime64\)"),
        ({"a": date(2024, 1, 1)}, r"\(date\)"),
        ({"a": datetime(2024, 1, 1)}, r"p\[3\].a: .* without an offset.*; allowed is an aware datetime"),  # noqa: DTZ001
        ({"a": "\ud800"}, r"p\[3\].a: .*surrogate"),
        ({"\ud800": 1}, r"p\[3\]: .*surrogate"),
        ([("a", 1)], r"p\[3\]: .*; allowed is a mapping"),
        ("a", r"p\[3\]: 'a' \(str\); allowed is a mapping"),
        ({"a": "x" * PAYLOAD_BYTES_MAX}, r"p\[3\]: 1,048,584 bytes as JSON; allowed are 1,048,576"),
    ],
)
def test_what_is_not_json_is_refused_by_place(payload: Any, message: str) -> None:
    """The error names the place within the payload, the value and what is allowed."""
    with pytest.raises(InvalidArgument, match=message):
        encode(payload, "p[3]")
    with pytest.raises(InvalidArgument, match=message.replace(r"p\[3\]", r"payloads\[1\]")):
        encode_all([{}, payload], 2)


def test_a_payload_may_be_as_large_as_the_limit() -> None:
    """The limit itself is allowed, beside a null too."""
    assert len(encode({"a": "x" * (PAYLOAD_BYTES_MAX - 8)}, "p")) == PAYLOAD_BYTES_MAX
    assert len(encode({"a": "x" * (PAYLOAD_BYTES_MAX - 17), "b": None}, "p")) == PAYLOAD_BYTES_MAX
    with pytest.raises(InvalidArgument, match="1,048,577 bytes"):
        encode({"a": "x" * (PAYLOAD_BYTES_MAX - 16), "b": None}, "p")


def test_nesting_is_bounded() -> None:
    """As deep as the limit is written, with a null too; deeper, and what holds itself, is refused."""
    for leaf in (1, None):
        payload: dict[str, Any] = {"a": leaf}
        for _ in range(PAYLOAD_DEPTH_MAX - 1):
            payload = {"a": payload}
        assert decode(encode(payload, "p"), True) == payload
        with pytest.raises(InvalidArgument, match="nested deeper"):
            encode({"a": payload}, "p")
    loop: dict[str, Any] = {}
    loop["a"] = loop
    with pytest.raises(InvalidArgument, match="nested deeper"):
        encode(loop, "p")


@pytest.mark.parametrize(
    ("payloads", "message"),
    [([{}], "1 given for 2 ids"), ({"a": 1, "b": 2}, "a sequence of 2"), ("ab", "a sequence of 2"), (3, "a sequence")],
)
def test_payloads_are_as_many_as_ids(payloads: Any, message: str) -> None:
    """Neither fewer nor more, nor one mapping for all."""
    with pytest.raises(InvalidArgument, match=message):
        encode_all(payloads, 2)


def test_decode_gives_what_is_asked_for() -> None:
    """All, nothing, or the keys that are there."""
    data = encode({"a": 1, "b": None}, "p")
    assert decode(data, True) == decode(memoryview(data), True) == {"a": 1, "b": None}
    assert decode(data, False) == {}
    assert decode(data, ["b", "c"]) == {"b": None}
    with pytest.raises(InvalidArgument, match="with_payload: 'ab'"):
        decode(data, "ab")
    with pytest.raises(Damaged, match="4 bytes"):
        decode(b'{"a"', True)


def test_payloads_are_decoded_together_as_one_by_one() -> None:
    """Of many, each is what it is alone; one that is damaged is named, though together they look whole."""
    data = [encode({"n": n, "t": "],["}, "p") for n in range(3)]
    assert decode_all(data) == [decode(each) for each in data]
    assert decode_all(data, ["n"]) == [{"n": 0}, {"n": 1}, {"n": 2}]
    assert decode_all(data, False) == [{}, {}, {}]
    assert decode_all([]) == []
    for halves in ([b'{"a":1', b'"b":2}'], [b'{"a":1},{"b":2}', b'{"c":3}']):
        with pytest.raises(Damaged, match=f"{len(halves[0])} bytes"):
            decode_all(halves)


@given(st.one_of(MOMENTS, st.datetimes(timezones=st.just(UTC))))
def test_a_timestamp_survives_its_text(moment: datetime) -> None:
    """A datetime, its canonical text and its microseconds name one moment, and text sorts as time does."""
    us = timestamp_us(moment)
    assert timestamp_us(timestamp_text(us)) == us
    assert datetime.fromisoformat(timestamp_text(us)) == moment
    assert len(timestamp_text(us)) == 27


@pytest.mark.parametrize(
    ("text", "us"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01t00:00:00z", 0),
        ("1970-01-01 01:00:00+01:00", 0),
        ("1969-12-31T23:59:59.9Z", -100_000),
        ("1970-01-01T00:00:00.1234567Z", 123_456),
        ("0001-01-01T00:00:00Z", -62_135_596_800_000_000),
        ("9999-12-31T23:59:59.999999Z", 253_402_300_799_999_999),
    ],
)
def test_rfc_3339_is_read(text: str, us: int) -> None:
    """What RFC 3339 allows, at the edges of what a datetime holds too."""
    assert timestamp_us(text) == us


@pytest.mark.parametrize(
    "value",
    [
        "", "now", "2024-01-01", "2024-01-01T00:00:00", "2024-01-01T00:00Z", "20240101T000000Z", "2024-W01-1T00:00:00Z",
        "2024-13-01T00:00:00Z", "2024-01-01T24:00:01Z", "2024-01-01T00:00:60Z", "2024-01-01T00:00:00+25:00",
        "2024-01-01T00:00:00.Z", "２０２４-01-01T00:00:00Z", "2024-01-01T00:00:00Z\n", "0001-01-01T00:00:00+01:00",
        "9999-12-31T23:59:59-01:00", datetime(2024, 1, 1), date(2024, 1, 1), 0, None,  # noqa: DTZ001
    ],
)  # fmt: skip
def test_what_is_no_timestamp_is_refused(value: object) -> None:
    """Naive, malformed, out of range or of another type."""
    with pytest.raises(ValueError):
        timestamp_us(value)


MIXED = st.one_of(LEAVES, st.lists(LEAVES, max_size=2), st.sampled_from(["2024-01-01T00:00:00Z", 2**63, 1, 0.5]))


@given(st.sampled_from(sorted(FIELD_TYPES)), st.lists(MIXED, max_size=4))
def test_check_agrees_with_the_oracle(type: FieldType, values: list[Any]) -> None:
    """What fits passes; the first that does not is named by its index."""
    payloads = [{"f": value} for value in values]
    misfits = [index for index, value in enumerate(values) if not fits(type, value)]
    if not misfits:
        check({"f": type, "absent": type}, payloads)
        return
    with pytest.raises(InvalidArgument, match=rf"payloads\[{misfits[0]}\]\.f: .* does not fit the field's type {type}"):
        check({"f": type, "absent": type}, payloads)


@pytest.mark.parametrize(
    ("type", "value", "message"),
    [
        ("int64", 2**63, r"payloads\[1\].f: 9223372036854775808 \(int\) does not fit the field's type int64"),
        ("int64", True, r"True \(bool\)"),
        ("int64", 1.0, r"1.0 \(float\)"),
        ("float64", "1", r"'1' \(str\)"),
        ("string", 1, "text expected"),
        ("bool", 0, "True or False expected"),
        ("timestamp", "yesterday", "RFC 3339"),
        ("timestamp", 5, "RFC 3339"),
        ("string", ["a"], "text expected"),
        ("list<string>", "a", "a list expected"),
        ("list<string>", ["a", None], "text expected"),
        ("list<int64>", [1, 1.5], "an integer"),
        ("list<int64>", [[1]], "an integer"),
    ],
)  # fmt: skip
def test_a_value_that_does_not_fit_is_named(type: FieldType, value: Any, message: str) -> None:
    """The error says which payload, field, value and type, and what is allowed."""
    with pytest.raises(InvalidArgument, match=message):
        check({"f": type}, [{"f": None}, {"f": value}])


def test_numpy_scalars_fit_as_their_values() -> None:
    """A field takes what its payload takes."""
    check({"i": "int64", "f": "float64", "b": "bool"}, [{"i": np.int32(1), "f": np.float64(1), "b": np.bool_(True)}])
    check({"f": "float64", "l": "list<float64>"}, [{"f": 2**64 - 1, "l": (1, np.float32(2))}])


def test_the_first_scalar_declares_a_field() -> None:
    """Each scalar type its own; lists, nested values and null declare nothing."""
    moment = datetime(2024, 1, 1, tzinfo=UTC)
    payloads: list[dict[str, Any]] = [
        {"s": None, "l": [1], "n": {"a": 1}, "$x": 1, "": 1},
        {"s": "2024-01-01T00:00:00Z", "i": 1, "f": 1.0, "b": True, "t": moment, "w": 1, "u": 2**63, "p": np.int8(1)},
        {"w": 2.5, "f": 1, "s": 3, "b": 4},
        {"w": 3},
    ]
    assert infer({"i": "float64"}, payloads) == {
        "s": "string", "f": "float64", "b": "bool", "t": "timestamp", "w": "float64", "u": "float64", "p": "int64",
    }  # fmt: skip


def test_an_inferred_int_widens_and_nothing_else_changes() -> None:
    """int64 becomes float64 when a float comes; other clashes are for check to refuse."""
    assert infer({"a": "int64", "b": "string", "c": "float64"}, [{"a": 1.5, "b": 1, "c": 1}]) == {"a": "float64"}
    assert infer({"a": "int64"}, [{"a": 1}, {"a": "x"}, {"a": True}, {"a": None}]) == {}
    assert infer({}, []) == {}


def test_inferred_fields_are_bounded() -> None:
    """Beyond the limit further keys declare nothing, while a known one still widens."""
    many = {f"k{number}": 1 for number in range(FIELDS_INFERRED_MAX + 5)}
    first = infer({}, [many])
    assert list(first) == [f"k{number}" for number in range(FIELDS_INFERRED_MAX)]
    assert infer(first, [many, {"k0": 0.5, "new": 1}]) == {"k0": "float64"}


@given(st.lists(some_payloads(changes=True), max_size=5))
def test_what_was_inferred_infers_nothing_more(payloads: list[dict[str, Any]]) -> None:
    """The same payloads again change no field."""
    fields = infer({}, payloads)
    assert infer(fields, payloads) == {}


@pytest.mark.parametrize(
    "fields", [{"": "string"}, {"$a": "string"}, {3: "string"}, {"a": "text"}, {"a": 3}, {"\ud800": "bool"}]
)
def test_a_field_has_a_name_and_a_type(fields: Any) -> None:
    """Names that an operator could be mistaken for, and unknown types, are refused."""
    with pytest.raises(InvalidArgument, match=r"fields.*allowed"):
        check_fields(fields)
    assert check_fields(FIELDS) == FIELDS
