"""Filters: both forms, their normal form and key, and what is refused. What they match: `test_columns.py`."""

# ruff: noqa: PLW0177, SIM201, SIM300  (fields are compared here to make conditions)

from __future__ import annotations

import json
import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.strategies import FIELDS as NAMES
from tests.support.strategies import conditions
from vecstore.errors import InvalidArgument
from vecstore.filters import (
    FILTER_CONDITIONS_MAX,
    FILTER_DEPTH_MAX,
    FILTER_VALUES_MAX,
    All,
    Compare,
    Condition,
    Field,
    parse,
)
from vecstore.values import FieldType

FIELDS: dict[str, FieldType] = NAMES  # type: ignore[assignment]
WORD, SIZE, RATIO, OPEN = Field("word"), Field("size"), Field("ratio"), Field("open")
MADE, TAGS, MARKS = Field("made"), Field("tags"), Field("marks")
NOON = datetime(2024, 1, 1, 12, tzinfo=UTC)


def key(filter: Condition | dict[str, Any]) -> bytes:
    """Return the key of a filter's normal form."""
    return parse(filter, FIELDS).key


@pytest.mark.parametrize(
    ("built", "written"),
    [
        (WORD == "a", {"word": "a"}),
        (WORD == "a", {"word": {"$eq": "a"}}),
        (WORD != "a", {"word": {"$ne": "a"}}),
        (SIZE < 3, {"size": {"$lt": 3}}),
        (SIZE <= 3, {"size": {"$lte": 3}}),
        (SIZE > 3, {"size": {"$gt": 3}}),
        (SIZE >= 3, {"size": {"$gte": 3}}),
        (WORD.is_in(["a", "b"]), {"word": {"$in": ["b", "a", "b"]}}),
        (~WORD.is_in(["a", "b"]), {"word": {"$nin": ["a", "b"]}}),
        (TAGS.contains("a"), {"tags": {"$contains": "a"}}),
        (TAGS == "a", {"tags": {"$contains": "a"}}),
        (WORD.is_null(), {"word": {"$null": True}}),
        (~WORD.is_null(), {"word": {"$null": False}}),
        ((WORD == "a") & (SIZE < 3), {"word": "a", "size": {"$lt": 3}}),
        ((SIZE < 3) & (SIZE > 1), {"size": {"$gt": 1, "$lt": 3}}),
        ((WORD == "a") | (SIZE < 3), {"$or": [{"size": {"$lt": 3}}, {"word": "a"}]}),
        ((WORD == "a") & (SIZE < 3), {"$and": [{"size": {"$lt": 3}}, {"word": "a"}]}),
        (~(SIZE < 3), {"size": {"$not": {"$lt": 3}}}),
        (~(SIZE < 3), {"$not": {"size": {"$lt": 3}}}),
        (~~(SIZE < 3), {"$not": {"$not": {"size": {"$lt": 3}}}}),
        (SIZE < 2.5, {"size": {"$lt": 3}}),
        (SIZE <= 2.5, {"size": {"$lte": 2}}),
        (SIZE > 2.5, {"size": {"$gt": 2}}),
        (SIZE >= 2.5, {"size": {"$gte": 3}}),
        (SIZE == 2.0, {"size": 2}),
        (RATIO == 2, {"ratio": 2.0}),
        (RATIO == -0.0, {"ratio": 0}),
        (SIZE == np.int32(2), {"size": 2}),
        (MADE == NOON, {"made": "2024-01-01T12:00:00Z"}),
        (MADE == NOON.astimezone(timezone(timedelta(hours=3))), {"made": "2024-01-01t13:00:00.000000+01:00"}),
        (All(()), {}),
    ],
)
def test_both_forms_of_a_filter_have_one_key(built: Condition, written: dict[str, Any]) -> None:
    """What means the same by its form is the same to a cache, however it was written."""
    assert key(built) == key(written)
    assert hash(key(built)) == hash(key(written))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (WORD == "1", SIZE == 1),
        (SIZE == 1, RATIO == 1),
        (SIZE < 1, SIZE <= 1),
        (WORD == "a", WORD != "a"),
        ((WORD == "a") & (SIZE == 1), (WORD == "a") | (SIZE == 1)),
        (WORD == "a','b", WORD.is_in(["a", "b"])),
        (OPEN == True, SIZE == 1),  # noqa: E712
        (SIZE == 2**53, SIZE == 2**53 + 1),
    ],
)
def test_different_filters_have_different_keys(one: Condition, other: Condition) -> None:
    """No two filters that match differently share a key."""
    assert key(one) != key(other)


def test_a_filter_that_is_used_again_is_parsed_for_the_fields_given() -> None:
    """Normal forms are remembered, for equal writing and the very same fields only."""
    for filter in (SIZE == 1, {"size": 1}, {"size": {"$lt": 1}}):
        first = parse(filter, FIELDS)
        assert parse(filter, FIELDS).key == first.key
        assert parse(filter, {"size": "float64"}).key != first.key
        with pytest.raises(InvalidArgument, match="not declared"):
            parse(filter, {"word": "string"})
        assert parse(filter, FIELDS).key == first.key
    assert parse({"open": True}, FIELDS).key != parse({"size": 1}, FIELDS).key
    with pytest.raises(InvalidArgument):
        parse({"size": True}, FIELDS)
    with pytest.raises(InvalidArgument):
        parse({"open": 1}, FIELDS)


def test_a_key_tells_the_types_of_fields_apart() -> None:
    """A field that was widened to float64 doesn't find what was cached while it was int64."""
    assert parse({"size": 1}, {"size": "int64"}).key != parse({"size": 1}, {"size": "float64"}).key


@given(conditions())
def test_the_dict_form_of_the_normal_form_means_the_same(filter: dict[str, Any]) -> None:
    """A parsed filter goes through JSON and comes back with the same key; parsing twice changes nothing."""
    parsed = parse(filter, FIELDS)
    assert parse(json.loads(json.dumps(parsed.to_dict())), FIELDS).key == parsed.key
    assert parse(parsed, FIELDS).key == parsed.key


@given(conditions())
def test_what_a_filter_shows_makes_it_again(filter: dict[str, Any]) -> None:
    """The repr of a filter is code that builds it."""
    parsed = parse(filter, FIELDS)
    assert parse(eval(repr(parsed), {"Field": Field}), FIELDS).key == parsed.key


def test_a_filter_that_is_not_parsed_yet_gives_its_dict_form() -> None:
    """The dict form of a built condition holds JSON values, datetimes as text."""
    condition = (MADE >= NOON) & ~(WORD == "a") | TAGS.contains("b")
    assert json.loads(json.dumps(condition.to_dict())) == {
        "$or": [
            {"$and": [{"made": {"$gte": "2024-01-01T12:00:00.000000Z"}}, {"$not": {"word": {"$eq": "a"}}}]},
            {"tags": {"$contains": "b"}},
        ]
    }
    assert key(condition) == key(condition.to_dict())


@pytest.mark.parametrize(
    "combine",
    [
        lambda: (WORD == "a") and (SIZE < 3),
        lambda: (WORD == "a") or (SIZE < 3),
        lambda: not (WORD == "a"),
        lambda: 1 < SIZE < 3,
        lambda: bool(WORD == "a"),
    ],
)
def test_a_condition_has_no_truth_value(combine: Callable[[], object]) -> None:
    """`and`, `or`, `not` and chained comparisons would drop half of a filter in silence: they raise, with a hint."""
    with pytest.raises(InvalidArgument, match="combine conditions with & | ~"):
        combine()


@pytest.mark.parametrize(
    ("filter", "message"),
    [
        ({"colour": "red"}, "field 'colour' is not declared; declared are made, marks, open, ratio, size, tags, word"),
        (Field("colour").is_null(), "'colour' is not declared"),
        ({"colour": {"$null": True}}, "'colour' is not declared"),
        (SIZE == "3", r"filter.size: '3' \(str\) does not fit int64: an integer"),
        (SIZE == 2.5, r"filter.size: 2.5 \(float\) does not fit int64"),
        (SIZE == True, r"filter.size: True \(bool\) does not fit int64"),  # noqa: E712
        (SIZE == 2**63, "does not fit int64"),
        (SIZE < math.nan, r"filter.size: nan \(float\) does not fit int64"),
        (SIZE < math.inf, "does not fit int64: a finite number"),
        (SIZE < "3", "does not fit int64"),
        (SIZE < False, "does not fit int64"),
        (RATIO == math.nan, r"filter.ratio: nan \(float\) does not fit float64: a finite number"),
        (RATIO == 10**400, "does not fit float64"),
        (RATIO > True, "does not fit float64"),
        (WORD == 3, "does not fit string: text expected"),
        (WORD == b"a", "does not fit string"),
        (WORD == "\ud800", "valid Unicode"),
        (OPEN == 1, "does not fit bool: True or False"),
        (OPEN > False, "no order"),
        (MADE == datetime(2024, 1, 1), "without an offset"),  # noqa: DTZ001
        (MADE == "2024-01-01", "does not fit timestamp: .*RFC 3339"),
        (MADE == "2024-01-01T00:00:00", "does not fit timestamp"),
        (MADE == "2024-02-30T00:00:00Z", "does not fit timestamp"),
        (MADE > 5, "does not fit timestamp"),
        (MARKS == [1], "does not fit"),
        (MARKS.contains("a"), r"filter.marks: 'a' \(str\) does not fit list<int64>"),
        (WORD.contains("a"), "contains asks a list field, this is string"),
        (WORD == None, r"is_null\(\)"),  # noqa: E711
        ({"word": None}, r"\$null"),
        ({"word": {"$in": ["a", None]}}, r"\$null"),
        ({"word": {"$in": "abc"}}, "a list of values"),
        ({"word": {"$in": {"a": 1}}}, "a list of values"),
        ({"word": {"$in": 3}}, "a list of values"),
        ({"word": {"$like": "a"}}, r"operator '\$like' \(str\); allowed are \$eq"),
        ({"word": {"eq": "a"}}, "operator 'eq'"),
        ({"word": {3: "a"}}, "operator 3"),
        ({"word": {}}, "allowed is a value"),
        ({"word": {"$null": 1}}, "allowed are True and False"),
        ({"word": {"$not": "a"}}, "allowed is a dict"),
        ({"word": ["a"]}, "does not fit string"),
        ({"$nor": []}, r"key '\$nor'"),
        ({3: "a"}, "key 3"),
        ({"$and": []}, "at least one"),
        ({"$or": {"word": "a"}}, "list of at least one"),
        ({"$and": ["a"]}, "allowed is a condition"),
        ({"$not": [1]}, "allowed is a condition"),
        ("word = 'a'", "allowed is a condition made with Field, or a dict"),
        (None, "allowed is a condition"),
        (WORD, "allowed is a condition"),
    ],
)
def test_a_bad_filter_is_refused_by_name(filter: Any, message: str) -> None:
    """The error names field, value and type, or the place, and what is allowed."""
    with pytest.raises(InvalidArgument, match=message):
        parse(filter, FIELDS)


@pytest.mark.parametrize("name", ["", 3, None])
def test_a_field_has_a_name(name: Any) -> None:
    """A field's name is text that is not empty."""
    with pytest.raises(InvalidArgument, match="field: name"):
        Field(name)


@pytest.mark.parametrize("values", ["abc", b"abc", {"a": 1}, 3])
def test_is_in_takes_a_list(values: Any) -> None:
    """Text is no list of its letters."""
    with pytest.raises(InvalidArgument, match="a list of values"):
        WORD.is_in(values)


def test_bounds_beyond_int64_are_exact() -> None:
    """Every int64 is below 1e30 and none is above: no bound wraps around."""
    assert key(SIZE < 1e30) == key(SIZE <= 2**63 - 1)
    assert key(SIZE > 1e30) == key(SIZE > 2**63 - 1)
    assert key(SIZE > -(10**30)) == key(SIZE >= -(2**63))
    assert key(SIZE < -(10**30)) == key(SIZE < -(2**63))
    assert key(SIZE >= 2.0**63) == key(SIZE > 2**63 - 1)


def test_depth_is_bounded() -> None:
    """A filter nests 64 levels and not one more, in either form."""
    condition: Condition = WORD == "a"
    written: dict[str, Any] = {"word": "a"}
    for _ in range(FILTER_DEPTH_MAX - 1):
        condition, written = All((condition,)), {"$and": [written]}
    assert key(condition) == key(written) == key(WORD == "a")
    for deeper in (All((condition,)), {"$and": [written]}, {"$not": written}):
        with pytest.raises(InvalidArgument, match=f"deeper than {FILTER_DEPTH_MAX}"):
            parse(deeper, FIELDS)
    nested: dict[str, Any] = {"$eq": "a"}
    for _ in range(2_000):
        nested = {"$not": nested}
    with pytest.raises(InvalidArgument, match="deeper than"):
        parse({"word": nested}, FIELDS)


def test_size_is_bounded() -> None:
    """A filter has so many conditions and values and not one more; long chains do not nest."""
    chain = SIZE == 0
    for number in range(1, FILTER_CONDITIONS_MAX - 1):
        chain = chain | (SIZE == number)
    assert isinstance(parse(chain, FIELDS), Condition)
    with pytest.raises(InvalidArgument, match=f"more than {FILTER_CONDITIONS_MAX} conditions"):
        parse(chain | (SIZE == -1), FIELDS)
    assert key(SIZE.is_in(range(FILTER_VALUES_MAX)))
    with pytest.raises(InvalidArgument, match=f"more than {FILTER_VALUES_MAX} values"):
        parse(SIZE.is_in(range(FILTER_VALUES_MAX + 1)), FIELDS)


def test_conditions_combine_only_with_conditions() -> None:
    """A plain value is no condition."""
    other: Any
    for other in (True, "b", WORD):
        with pytest.raises(TypeError):
            (WORD == "a") & other
        with pytest.raises(TypeError):
            (WORD == "a") | other


@given(st.integers(-(2**63), 2**63 - 1))
def test_an_int_is_kept_exactly(number: int) -> None:
    """Integers beyond 2**53 do not pass through a float."""
    assert parse(SIZE == number, FIELDS) == Compare("size", "$eq", number, "int64")
