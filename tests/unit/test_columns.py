"""Columns: which rows a filter matches, against the oracle; sections of extents; growth beside readers."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.oracle import matches
from tests.support.strategies import FIELDS as NAMES
from tests.support.strategies import conditions, payloads
from vecstore.config import EXTENT_ROWS
from vecstore.engine.columns import Columns
from vecstore.errors import Damaged
from vecstore.fields import FIELD_TYPES
from vecstore.filters import Condition, Field, parse
from vecstore.payload import encode
from vecstore.values import FieldType

FIELDS: dict[str, FieldType] = NAMES  # type: ignore[assignment]
CAPACITY = 2 * EXTENT_ROWS
ROWS = st.lists(payloads(changes=True), min_size=1, max_size=8)


def filled(rows: Sequence[Any], start: int = 0, fields: dict[str, FieldType] = FIELDS) -> Columns:
    """Return columns with these payloads from a row."""
    columns = Columns(fields, CAPACITY)
    columns.put(start, rows)
    return columns


def found(columns: Columns, filter: Condition | dict[str, Any], start: int, stop: int) -> list[bool]:
    """Return which rows match."""
    mask = columns.matches(parse(filter, columns.fields), start, stop)
    assert mask.dtype == np.bool_ and mask.shape == (stop - start,)
    return [bool(matching) for matching in mask]


def expected(rows: Sequence[dict[str, Any]], filter: dict[str, Any]) -> list[bool]:
    """Return which rows the oracle says match."""
    return [matches(row, filter, NAMES) for row in rows]


@pytest.mark.parametrize(
    "name",
    ["a.b", "field_0", "Ünïcode ✓", "\U0001f600", "\x7f", 'a"b', "a\\b", "a\nb", "\x00", "\x1f", "{", "self"],
)
def test_fields_of_any_name_are_read(name: str) -> None:
    """From canonical JSON as from the mapping, beside others, and null where the payload has no such field."""
    rows: list[dict[str, Any]] = [{name: 7, "n": 1, "more": {"n": 3}}, {"n": 2}, {name: 9}]
    for each in (rows, [encode(row, "payloads") for row in rows]):
        columns = filled(each, fields={"n": "int64", name: "int64"})
        assert found(columns, Field(name) == 9, 0, 3) == [False, False, True]
        assert found(columns, Field(name) == 7, 0, 3) == [True, False, False]
        assert found(columns, Field("n") == 2, 0, 3) == [False, True, False]


@given(ROWS, conditions(), st.sampled_from([0, 5, EXTENT_ROWS - 3]), st.booleans())
def test_rows_match_as_the_oracle_says(
    rows: list[dict[str, Any]], filter: dict[str, Any], start: int, as_bytes: bool
) -> None:
    """Every operator over every type, nulls and lists included, from mappings and JSON, also across extents."""
    columns = filled([encode(row, "p") for row in rows] if as_bytes else rows, start)
    stop = start + len(rows)
    assert found(columns, filter, start, stop) == expected(rows, filter)
    assert found(columns, filter, start + 1, stop) == expected(rows, filter)[1:]


@given(ROWS, conditions())
def test_a_complement_is_exact(rows: list[dict[str, Any]], filter: dict[str, Any]) -> None:
    """A filter and its negation share no row and miss none, nulls included."""
    columns = filled(rows)
    positive = np.array(found(columns, filter, 0, len(rows)))
    assert (positive != found(columns, {"$not": filter}, 0, len(rows))).all()
    assert (positive != found(columns, ~parse(filter, FIELDS), 0, len(rows))).all()


@given(st.lists(ROWS, min_size=1, max_size=4), conditions())
def test_rows_match_the_same_however_they_were_put(batches: list[list[dict[str, Any]]], filter: dict[str, Any]) -> None:
    """Small batches, growth, rows written over and a section read back give one answer."""
    rows = [row for batch in batches for row in batch]
    columns = Columns(FIELDS, EXTENT_ROWS)
    columns.put(0, [{"word": "other", "tags": ["other"] * 3, "size": 7}] * len(rows))
    at = 0
    for batch in batches:
        columns.put(at, batch)
        at += len(batch)
        columns = columns.grown(columns.capacity + 100)
    assert found(columns, filter, 0, at) == expected(rows, filter)
    loaded = filled([{"word": "\ue001", "tags": ["\ue001"]}])
    assert loaded.load(EXTENT_ROWS - 2, at, memoryview(columns.dump(0, at))) == ()
    assert found(loaded, filter, EXTENT_ROWS - 2, EXTENT_ROWS - 2 + at) == expected(rows, filter)


@given(st.lists(st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1)), max_size=6), st.floats(-1e19, 1e19))
def test_integers_compare_with_floats_exactly(numbers: list[int | None], bound: float) -> None:
    """No int64 is rounded to a float on the way: Python's own comparison of the two is exact."""
    near = [int(bound) + step for step in (-1, 0, 1) if -(2**63) <= int(bound) + step < 2**63]
    rows = [{"size": number} for number in (*numbers, *near, 2**53, 2**53 + 1, 2**63 - 1, -(2**63))]
    columns = filled(rows)
    for operator in ("$lt", "$lte", "$gt", "$gte"):
        filter = {"size": {operator: bound}}
        assert found(columns, filter, 0, len(rows)) == expected(rows, filter)


@given(st.lists(st.one_of(st.none(), st.text(max_size=3)), min_size=1, max_size=30), st.text(max_size=3))
def test_strings_order_by_code_point(words: list[str | None], bound: str) -> None:
    """A dictionary that grows between two evaluations of one filter answers for the new strings too."""
    words = [word if word is None or word.isprintable() else repr(word) for word in words]
    bound = bound if bound.isprintable() else repr(bound)
    rows = [{"word": word} for word in words]
    columns, half = Columns(FIELDS, CAPACITY), len(rows) // 2
    for start, stop in ((0, half), (half, len(rows))):
        columns.put(start, rows[start:stop])
        for operator in ("$lt", "$lte", "$gt", "$gte", "$eq", "$ne"):
            filter = {"word": {operator: bound}}
            assert found(columns, filter, 0, stop) == expected(rows[:stop], filter)
        several = sorted({word for word in words[::2] if word is not None})
        for operator in ("$in", "$nin"):
            among: dict[str, Any] = {"word": {operator: several}}
            assert found(columns, among, 0, stop) == expected(rows[:stop], among)


def test_is_in_with_few_and_many_values_agrees() -> None:
    """The ways to look several values up give one answer, for scalars and lists."""
    fields: dict[str, FieldType] = {"s": "string", "i": "int64", "f": "float64", "b": "bool", "l": "list<int64>"}
    rows: list[dict[str, Any]] = [
        {"s": str(n), "i": n, "f": n / 2, "b": n % 2 == 0, "l": [n, n + 1]} for n in range(-20, 20)
    ]
    rows += [{}, {"l": []}, {"i": 0, "f": 0.0, "s": ""}]
    columns = filled(rows, 0, fields)
    for count in (0, 1, 2, 4, 5, 8, 9, 20):
        several = list(range(count))
        assert found(columns, Field("i").is_in(several), 0, len(rows)) == [row.get("i") in several for row in rows]
        assert found(columns, Field("f").is_in(several), 0, len(rows)) == [row.get("f") in several for row in rows]
        texts = list(map(str, several))
        assert found(columns, Field("s").is_in(texts), 0, len(rows)) == [row.get("s") in texts for row in rows]
        either = [bool({*row.get("l", ())} & {*several}) for row in rows]
        assert found(columns, Field("l").is_in(several), 0, len(rows)) == either
    assert found(columns, Field("b").is_in([True, False]), 0, len(rows)) == ["b" in row for row in rows]


@given(ROWS)
def test_everything_and_nothing(rows: list[dict[str, Any]]) -> None:
    """The empty filter matches all rows; one of no values matches none."""
    columns = filled(rows)
    assert all(found(columns, {}, 0, len(rows)))
    assert not any(found(columns, {"word": {"$in": []}}, 0, len(rows)))
    assert found(columns, {}, 0, 0) == found(columns, {"tags": "a"}, 3, 3) == []


@given(ROWS, st.sampled_from([0, EXTENT_ROWS - 3]))
def test_a_cleared_slot_is_null_and_can_be_used_again(rows: list[dict[str, Any]], start: int) -> None:
    """After clear no value is left, of lists neither; other rows stay."""
    columns = filled(rows, start)
    columns.put(CAPACITY - 1, [{"word": "a", "tags": ["b"]}])
    stop = start + len(rows)
    columns.clear(start, stop)
    for name in FIELDS:
        assert all(found(columns, Field(name).is_null(), start, stop))
    assert found(columns, {"word": "a", "tags": "b"}, CAPACITY - 1, CAPACITY) == [True]
    columns.clear(0, EXTENT_ROWS)
    columns.put(start, rows)
    assert found(columns, ~Field("tags").is_null(), start, stop) == [row.get("tags") is not None for row in rows]


def test_lists_of_a_slot_give_their_memory_back() -> None:
    """A slot that is cleared whole and used again does not pile up elements."""
    columns = Columns({"l": "list<int64>"}, CAPACITY)
    sizes = []
    for _ in range(5):
        columns.put(0, [{"l": [1, 2, 3]}] * EXTENT_ROWS)
        sizes.append(columns.nbytes)
        columns.clear(0, EXTENT_ROWS)
    assert len(set(sizes)) == 1
    assert columns.nbytes < sizes[0]


def test_no_declared_field_costs_nothing() -> None:
    """Without fields payloads are not even looked at."""
    columns = Columns({}, CAPACITY)
    columns.put(0, [b"not JSON", b""])
    assert columns.nbytes == 0
    assert columns.load(0, 2, columns.dump(0, 2)) == ()
    assert found(columns, {}, 0, 2) == [True, True]


def test_a_fixed_field_takes_at_most_nine_bytes_a_row() -> None:
    """Eight bytes of a value and, beside integers, one that says null."""
    sizes = {type: Columns({"f": type}, CAPACITY).nbytes / CAPACITY for type in ("string", "int64", "float64", "bool")}
    assert sizes == {"string": 4, "int64": 9, "float64": 8, "bool": 1}


@given(ROWS)
def test_a_new_field_is_null_until_it_is_filled(rows: list[dict[str, Any]]) -> None:
    """The other fields are shared, and columns of before stay as they were."""
    before = filled(rows)
    after = before.with_field("free", "float64")
    assert "free" not in before.fields and after.fields == {**FIELDS, "free": "float64"}
    assert all(found(after, Field("free").is_null(), 0, len(rows)))
    assert found(after, ~Field("word").is_null(), 0, len(rows)) == found(before, ~Field("word").is_null(), 0, len(rows))
    after.put(len(rows), [{"free": 2, "word": "new"}])
    assert found(after, {"free": 2, "word": "new"}, len(rows), len(rows) + 1) == [True]


@given(st.lists(st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1)), min_size=1, max_size=8))
def test_a_widened_field_keeps_its_values(numbers: list[int | None]) -> None:
    """int64 becomes float64 as if the payloads had been read again, nulls included."""
    rows = [{"n": number} for number in numbers]
    narrow, wide = filled(rows, 0, {"n": "int64"}).widened("n"), filled(rows, 0, {"n": "float64"})
    assert narrow.fields == {"n": "float64"}
    assert narrow.dump(0, len(rows)) == wide.dump(0, len(rows))


def test_a_value_that_does_not_fit_is_null() -> None:
    """Rows that died before a field was declared may hold anything; building columns over them never fails."""
    odd = [
        {"f": value} for value in ("x", 1, 1.5, True, [1], ["x", None], {"a": 1}, 2**64, "2024-13-01T00:00:00Z", None)
    ]
    for type in sorted(FIELD_TYPES):
        columns = filled(odd, 0, {"f": type})  # type: ignore[dict-item]
        assert found(columns, Field("f").is_null(), len(odd) - 2, len(odd))[1]
    assert found(filled(odd, 0, {"f": "int64"}), ~Field("f").is_null(), 0, 4) == [False, True, False, False]


# -- sections ----------------------------------------------------------------------------------------------------------


@given(ROWS, st.data())
@settings(max_examples=200)
def test_a_damaged_section_is_refused_whole(rows: list[dict[str, Any]], data: st.DataObject) -> None:
    """A flipped bit or a cut anywhere is found, and nothing is written."""
    section = bytearray(filled(rows).dump(0, len(rows)))
    if data.draw(st.booleans()):
        bit = data.draw(st.integers(0, 8 * len(section) - 1))
        section[bit // 8] ^= 1 << bit % 8
    else:
        del section[data.draw(st.integers(0, len(section) - 1)) :]
    columns = Columns(FIELDS, CAPACITY)
    with pytest.raises(Damaged, match="the fields of rows 0 to"):
        columns.load(0, len(rows), memoryview(bytes(section)))
    for name in FIELDS:
        assert all(found(columns, Field(name).is_null(), 0, len(rows)))


@given(ROWS, st.data())
@settings(max_examples=200)
def test_a_wrong_section_under_a_right_hash_never_crashes(rows: list[dict[str, Any]], data: st.DataObject) -> None:
    """Whatever the bytes say, load ends in rows that can be searched or in `Damaged`."""
    body = bytearray(filled(rows).dump(0, len(rows))[:-8])
    for _ in range(data.draw(st.integers(1, 3))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    columns = Columns(FIELDS, CAPACITY)
    try:
        columns.load(0, len(rows), bytes(body) + xxhash.xxh3_64_digest(body))
    except Damaged:
        return
    for name in FIELDS:
        found(columns, Field(name).is_null(), 0, len(rows))
    found(columns, (Field("word") > "a") | (Field("tags") <= "b") | (Field("marks") == 1), 0, len(rows))


def test_a_section_of_other_rows_is_refused() -> None:
    """A section is of so many rows; another count means that it belongs elsewhere."""
    section = filled([{}, {}]).dump(0, 2)
    with pytest.raises(Damaged, match="with 2 rows"):
        Columns(FIELDS, CAPACITY).load(0, 3, section)


def test_fields_that_a_section_lacks_are_reported() -> None:
    """Fields declared later or with another type are null and named; fields no longer known are passed over."""
    rows = [{"a": "x", "b": 1, "c": 2}]
    section = filled(rows, 0, {"a": "string", "b": "int64", "old": "bool"}).dump(0, 1)
    columns = filled([{"a": "y", "b": 9, "c": 9}], 0, {"a": "string", "b": "float64", "c": "int64"})
    assert columns.load(0, 1, section) == ("b", "c")
    filter = (Field("a") == "x") & Field("b").is_null() & Field("c").is_null()
    assert found(columns, filter, 0, 1) == [True]


# -- readers beside the writer -----------------------------------------------------------------------------------------


def test_readers_see_their_rows_unchanged_beside_a_writer() -> None:
    """While rows are put behind theirs, dictionaries and buffers grow, and capacity too, readers' answers stand."""
    rows = [{"word": f"w{n % 7}", "size": n, "tags": [f"t{n % 5}", "all"]} for n in range(500)]
    columns = filled(rows)
    filter = parse((Field("word") > "w3") & (Field("size") < 400) & (Field("tags") == "t1"), FIELDS)
    truth = columns.matches(filter, 0, len(rows)).copy()
    wrong: list[int] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            mask = columns.matches(filter, 0, len(rows))
            if not np.array_equal(mask, truth):
                wrong.append(int(mask.sum()))

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    latest = columns
    for at in range(len(rows), 3_000, 50):
        latest.put(at, [{"word": f"w{n}", "size": n, "tags": [f"t{n}"] * 3} for n in range(at, at + 50)])
        if at % 500 == 0:
            latest = latest.grown(latest.capacity + EXTENT_ROWS)
    done.set()
    for reader in readers:
        reader.join()
    assert wrong == []
    assert found(latest, Field("tags") == "t2999", 2_950, 3_000)[-1]
