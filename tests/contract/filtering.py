"""Filters: both forms, every operator, nulls, lists and timestamps, on one collection whose answers are known."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support import strategies
from tests.support.oracle import OracleCollection, check_hits
from vecstore import Collection, Condition, Database, Field, InvalidArgument

from .base import DatabaseContract, ids_of, refused

section, size, ratio, opened, made, tags, marks = map(
    Field, ("section", "size", "ratio", "open", "made", "tags", "marks")
)
NOON = datetime(2024, 6, 1, 12, tzinfo=UTC)
BERLIN = timezone(timedelta(hours=2))

# The points of `base.docs`: 0 web/10/0.5/open/2024-01-01/[a b]; 1 database/20/1.5/shut/2024-06-01T12/[b];
# 2 web/30/marks [1 2]; 3 nothing.
CASES: list[tuple[Condition, dict[str, Any], list[int]]] = [
    (section == "web", {"section": "web"}, [0, 2]),
    (section == "web", {"section": {"$eq": "web"}}, [0, 2]),
    (section != "web", {"section": {"$ne": "web"}}, [1, 3]),
    (section.is_in(["database", "x"]), {"section": {"$in": ["database", "x"]}}, [1]),
    (section.is_in([]), {"section": {"$in": []}}, []),
    (~section.is_in(["database"]), {"section": {"$nin": ["database"]}}, [0, 2, 3]),
    (section < "e", {"section": {"$lt": "e"}}, [1]),
    (section >= "web", {"section": {"$gte": "web"}}, [0, 2]),
    (size < 20, {"size": {"$lt": 20}}, [0]),
    (size <= 20, {"size": {"$lte": 20}}, [0, 1]),
    (size > 20, {"size": {"$gt": 20}}, [2]),
    (size >= 20, {"size": {"$gte": 20}}, [1, 2]),
    (size > 19.5, {"size": {"$gt": 19.5}}, [1, 2]),
    (~(size < 20), {"$not": {"size": {"$lt": 20}}}, [1, 2, 3]),
    (~(size >= 20), {"$not": {"size": {"$gte": 20}}}, [0, 3]),
    ((size > 10) & (size < 30), {"size": {"$gt": 10, "$lt": 30}}, [1]),
    (ratio == 0.5, {"ratio": 0.5}, [0]),
    (ratio > 1, {"ratio": {"$gt": 1}}, [1]),
    (opened == True, {"open": True}, [0]),  # noqa: E712
    (opened != True, {"open": {"$ne": True}}, [1, 2, 3]),  # noqa: E712
    (size.is_null(), {"size": {"$null": True}}, [3]),
    (~size.is_null(), {"size": {"$null": False}}, [0, 1, 2]),
    (made == NOON, {"made": "2024-06-01T12:00:00Z"}, [1]),
    (made == NOON.astimezone(BERLIN), {"made": "2024-06-01T14:00:00.000+02:00"}, [1]),
    (made < NOON, {"made": {"$lt": NOON}}, [0]),
    (made >= "2024-01-01T00:00:00Z", {"made": {"$gte": "2024-01-01T00:00:00Z"}}, [0, 1]),
    (tags.contains("a"), {"tags": {"$contains": "a"}}, [0]),
    (tags == "b", {"tags": "b"}, [0, 1]),
    (tags != "b", {"tags": {"$ne": "b"}}, [2, 3]),
    (tags < "b", {"tags": {"$lt": "b"}}, [0]),
    (tags.is_in(["a", "c"]), {"tags": {"$in": ["a", "c"]}}, [0]),
    (tags.is_null(), {"tags": {"$null": True}}, [2, 3]),
    (marks > 1, {"marks": {"$gt": 1}}, [2]),
    (marks.contains(3), {"marks": {"$contains": 3}}, []),
    ((section == "web") & (size == 30), {"section": "web", "size": 30}, [2]),
    ((section == "database") | (size == 30), {"$or": [{"section": "database"}, {"size": 30}]}, [1, 2]),
    (~((section == "web") | size.is_null()), {"$not": {"$or": [{"section": "web"}, {"size": {"$null": True}}]}}, [1]),
    ((section == "web") & ~(size == 10), {"$and": [{"section": "web"}, {"$not": {"size": 10}}]}, [2]),
]


class FilteringContract(DatabaseContract):
    """Filters."""

    @pytest.mark.parametrize(("condition", "as_dict", "expected"), CASES, ids=lambda value: repr(value)[:60])
    def test_both_forms_match_what_they_say(
        self, docs: Collection, condition: Condition, as_dict: dict[str, Any], expected: list[int]
    ) -> None:
        """Count, scan, search and batch find exactly what matches, by either form of the filter."""
        for filter in (condition, as_dict):
            assert ids_of(list(docs.scan(filter))) == expected
            assert docs.count(filter) == len(expected)
            assert sorted(ids_of(docs.search([1, 1, 1, 1], filter=filter))) == expected
            assert sorted(ids_of(docs.search([1, 1, 1, 1], filter=filter, exact=True))) == expected
            found = docs.search_batch([[1, 1, 1, 1]], 4, filter=filter).ids[0]
            assert sorted(found[found >= 0].tolist()) == expected

    @pytest.mark.parametrize(("condition", "as_dict", "expected"), CASES, ids=lambda value: repr(value)[:60])
    def test_delete_by_filter_removes_what_matches(
        self, docs: Collection, condition: Condition, as_dict: dict[str, Any], expected: list[int]
    ) -> None:
        """A delete by filter removes what a count finds."""
        assert docs.delete(filter=condition).count == len(expected)
        assert docs.count() == 4 - len(expected)
        assert docs.count(as_dict) == 0

    def test_complements_are_exact(self, docs: Collection) -> None:
        """A filter and its complement share no point and leave out none."""
        for condition, _, _ in CASES:
            matching, others = list(docs.scan(condition)), list(docs.scan(~condition))
            assert sorted(ids_of(matching) + ids_of(others)) == [0, 1, 2, 3]

    def test_an_empty_filter_matches_all(self, docs: Collection) -> None:
        """``{}`` is no condition, so everything matches."""
        assert docs.count({}) == 4

    def test_null_in_a_payload_is_absent(self, docs: Collection) -> None:
        """A key that holds None counts as null, as an absent one does."""
        docs.upsert(9, [1, 2, 3, 4], [{"size": None, "tags": None}])
        assert ids_of(list(docs.scan(size.is_null()))) == [3, 9]
        assert docs.get(9)[0].payload == {"size": None, "tags": None}

    def test_filters_follow_writes(self, docs: Collection) -> None:
        """The same filter, asked again after writes, sees each of them."""
        assert docs.count(size == 10) == 1
        docs.upsert(8, [1, 2, 3, 4], [{"size": 10}])
        assert docs.count(size == 10) == 2
        docs.update(8, payloads=[{"size": 11}])
        assert docs.count(size == 10) == 1
        docs.delete(ids=0)
        assert docs.count(size == 10) == 0

    def test_filter_of_more_matches_than_k(self, docs: Collection) -> None:
        """A filtered search gives the k nearest of what matches."""
        hits = docs.search([0, 0, 3, 0], 1, filter=section == "web")
        assert ids_of(hits) == [2]
        assert len(docs.search([0, 0, 3, 0], 2, filter=~section.is_null())) == 2

    @pytest.mark.parametrize(
        ("filter", "words"),
        [
            ({"absent": 1}, ["absent", "section", "size"]),
            (Field("absent") > 1, ["absent", "section"]),
            ({"free": 1}, ["free", "section"]),
            ({"size": "ten"}, ["size", "ten", "int64"]),
            ({"size": {"$lt": "ten"}}, ["size", "ten"]),
            ({"size": True}, ["size", "True", "int64"]),
            ({"section": 5}, ["section", "5", "string"]),
            ({"section": {"$in": ["web", 5]}}, ["section", "5", "string"]),
            ({"section": {"$in": "web"}}, ["section", "web", "list"]),
            ({"open": "yes"}, ["open", "yes", "bool"]),
            ({"made": "yesterday"}, ["made", "yesterday", "timestamp"]),
            ({"made": datetime(2024, 1, 1)}, ["made", "2024", ("aware", "offset", "timezone")]),  # noqa: DTZ001
            ({"ratio": float("nan")}, ["ratio", "nan", ("finite", "number")]),
            ({"tags": {"$contains": 5}}, ["tags", "5"]),
            ({"section": {"$contains": "w"}}, ["section", "contains", "list"]),
            ({"size": {"$near": 5}}, ["size", "$near", "$lt"]),
            ({"$xor": [{"size": 5}]}, ["$xor", "$and", "$or"]),
            ({"$and": {"size": 5}}, ["$and", "list"]),
            ({"size": {"$null": 1}}, ["size", "$null", "True"]),
            ("size = 5", ["filter", "size = 5", "dict"]),
        ],
        ids=lambda value: repr(value)[:50],
    )
    def test_bad_filters_are_refused(self, database: Database, docs: Collection, filter: Any, words: list[Any]) -> None:
        """An undeclared field, a value of the wrong type or an unknown operator is refused by every call alike."""
        calls: list[Callable[[], object]] = [
            lambda: docs.count(filter),
            lambda: list(docs.scan(filter)),
            lambda: docs.search([1, 1, 1, 1], filter=filter),
            lambda: docs.search_batch([[1, 1, 1, 1]], filter=filter),
            lambda: docs.delete(filter=filter),
            lambda: docs.to_arrow(filter).read_all(),
        ]
        for call in calls:
            with refused(database, InvalidArgument, *words):
                call()

    def test_a_condition_has_no_truth_value(self, database: Database, docs: Collection) -> None:
        """`and`, `or`, `not` and chained comparisons raise instead of dropping half of the filter."""
        with refused(database, InvalidArgument, "filter", "&", "|", "~"):
            docs.count((section == "web") and (size == 10))
        with refused(database, InvalidArgument, "&"):
            docs.count((section == "web") or (size == 10))
        with refused(database, InvalidArgument, "&"):
            docs.count({"$not": bool(section == "web")})
        with refused(database, InvalidArgument, "&"):
            docs.count(5 < size < 10)

    def test_timestamps_in_every_form_are_one_moment(self, database: Database) -> None:
        """Aware datetimes and RFC 3339 text of any offset compare as moments, to the microsecond."""
        docs = database.create_collection("times", 2, fields={"at": "timestamp", "all": "list<timestamp>"})
        moments = [
            NOON,
            NOON.astimezone(BERLIN),
            "2024-06-01T12:00:00Z",
            "2024-06-01T13:00:00.000000+01:00",
            NOON + timedelta(microseconds=1),
        ]
        docs.upsert(range(5), np.ones((5, 2)), [{"at": moment, "all": [moment, NOON]} for moment in moments])
        assert ids_of(list(docs.scan({"at": NOON}))) == [0, 1, 2, 3]
        assert ids_of(list(docs.scan({"at": {"$gt": NOON}}))) == [4]
        assert ids_of(list(docs.scan({"all": {"$gt": "2024-06-01T12:00:00.000000Z"}}))) == [4]
        texts = [point.payload["at"] for point in docs.scan()]
        assert texts[0] == texts[1] == "2024-06-01T12:00:00.000000Z"
        assert all(datetime.fromisoformat(text).utcoffset() is not None for text in texts)

    @settings(
        max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.differing_executors]
    )
    @given(data=st.data())
    def test_any_filter_matches_as_the_oracle_says(self, database: Database, data: st.DataObject) -> None:
        """Drawn filters over drawn payloads find in the store what plain Python finds."""
        name = f"drawn-{len(database.collections())}"
        count = 12
        payloads = data.draw(st.lists(strategies.payloads(), min_size=count, max_size=count))
        vectors = data.draw(strategies.vectors(count))
        docs = database.create_collection(name, strategies.DIM, metric="l2", fields=strategies.FIELDS)  # type: ignore[arg-type]
        oracle = OracleCollection(name, strategies.DIM, "l2", strategies.FIELDS)
        docs.upsert(range(count), vectors, payloads)
        oracle.upsert(range(count), vectors, payloads)
        for condition in data.draw(st.lists(strategies.conditions(), min_size=1, max_size=8)):
            expected = [id for id, _, _ in oracle.scan(condition)]
            assert ids_of(list(docs.scan(condition))) == expected, condition
            hits = docs.search(vectors[0], 5, filter=condition)
            check_hits(hits, oracle, vectors[0], condition)
            assert ids_of(hits) == [id for id, _ in oracle.search(vectors[0], 5, condition)]
