"""Fields: declared at creation, inferred from payloads, added later."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest

from vecstore import Collection, Database, InvalidArgument

from .base import DatabaseContract, ids_of, refused


class SchemaContract(DatabaseContract):
    """Declared, inferred and added fields."""

    @pytest.mark.parametrize(
        ("field", "value", "type"),
        [
            ("section", 5, "string"),
            ("section", ["web"], "string"),
            ("size", 1.5, "int64"),
            ("size", "1", "int64"),
            ("size", True, "int64"),
            ("size", 2**63, "int64"),
            ("ratio", "0.5", "float64"),
            ("ratio", False, "float64"),
            ("open", 1, "bool"),
            ("made", "2024-01-01", "timestamp"),
            ("made", "2024-01-01T00:00:00", "timestamp"),
            ("made", 1_700_000_000, "timestamp"),
            ("tags", "a", "list<string>"),
            ("tags", ["a", 1], "list<string>"),
            ("marks", [1.5], "list<int64>"),
        ],
    )
    def test_values_that_do_not_fit_are_refused(
        self, database: Database, docs: Collection, field: str, value: Any, type: str
    ) -> None:
        """A value that does not fit its declared field is refused by upsert and update, whole calls at a time."""
        payloads: list[dict[str, Any]] = [{}, {field: value}]
        with refused(database, InvalidArgument, field, repr(value), type):
            docs.upsert([10, 11], [[1, 2, 3, 4]] * 2, payloads)
        with refused(database, InvalidArgument, field, repr(value), type):
            docs.update([0, 1], payloads=payloads)

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("size", -(2**63)),
            ("size", 2**63 - 1),
            ("ratio", 1),
            ("ratio", 1e300),
            ("tags", []),
            ("made", "2024-01-01T00:00:00.123456789Z"),
            ("made", datetime(1, 1, 1, tzinfo=UTC)),
            ("section", ""),
        ],
    )
    def test_values_at_the_edge_fit(self, docs: Collection, field: str, value: Any) -> None:
        """The least and greatest of each type are stored, and are not null."""
        docs.upsert(10, [1, 2, 3, 4], [{field: value}])
        assert docs.count({field: {"$null": False}, "section": {"$ne": "web"}}) >= 1
        if not isinstance(value, list):
            assert 10 in ids_of(list(docs.scan({field: value})))

    def test_infer_declares_the_first_scalar(self, database: Database) -> None:
        """The first scalar under a new key declares it; lists, nested values and None declare nothing."""
        docs = database.create_collection("loose", 2, fields="infer")
        assert docs.fields == {}
        payload = {"s": "x", "i": 1, "f": 0.5, "b": True, "t": datetime(2024, 1, 1, tzinfo=UTC)}
        docs.upsert(1, [1, 2], [payload | {"l": [1], "d": {"a": 1}, "n": None}])
        assert docs.fields == {"s": "string", "i": "int64", "f": "float64", "b": "bool", "t": "timestamp"}
        assert docs.count({"s": "x", "i": 1, "f": 0.5, "b": True, "t": "2024-01-01T00:00:00Z"}) == 1
        docs.update(1, payloads=[{"n": "now"}])
        assert docs.fields["n"] == "string"

    def test_infer_widens_int64_to_float64(self, database: Database) -> None:
        """A float under an inferred int64 makes it float64; what was stored as int still matches."""
        docs = database.create_collection("loose", 2, fields="infer")
        docs.upsert([1, 2], np.ones((2, 2)), [{"n": 1}, {"n": 2}])
        assert docs.fields == {"n": "int64"}
        docs.upsert(3, [1, 1], [{"n": 1.5}])
        assert docs.fields == {"n": "float64"}
        assert ids_of(list(docs.scan({"n": {"$lt": 1.75}}))) == [1, 3]
        assert [point.payload["n"] for point in docs.scan()] == [1, 2, 1.5]
        assert type(docs.get(1)[0].payload["n"]) is int

    def test_infer_refuses_what_does_not_fit(self, database: Database) -> None:
        """A value of another type under an inferred field is an error, and declares nothing else."""
        docs = database.create_collection("loose", 2, fields="infer")
        docs.upsert(1, [1, 1], [{"n": "text"}])
        with refused(database, InvalidArgument, "n", "5", "string"):
            docs.upsert([2, 3], [[1, 1], [1, 1]], [{"new": 1}, {"n": 5}])
        assert docs.fields == {"n": "string"}

    def test_infer_sees_the_call_as_a_whole(self, database: Database) -> None:
        """Int and float under one new key in one call make it float64 at once."""
        docs = database.create_collection("loose", 2, fields="infer")
        docs.upsert([1, 2, 3], np.ones((3, 2)), [{"n": 1}, {}, {"n": 0.5}])
        assert docs.fields == {"n": "float64"}
        assert docs.count({"n": {"$lte": 1}}) == 2

    def test_infer_stops_at_64_fields(self, database: Database) -> None:
        """At most 64 fields are inferred; further keys are kept in the payload and cannot be filtered."""
        docs = database.create_collection("wide", 2, fields="infer")
        docs.upsert(1, [1, 1], [{f"k{i:02}": i for i in range(60)}])
        docs.upsert(2, [1, 1], [{f"k{i:02}": i for i in range(70)}])
        assert len(docs.fields) == 64
        assert docs.get(2)[0].payload == {f"k{i:02}": i for i in range(70)}
        assert docs.count({"k63": 63}) == 1
        with refused(database, InvalidArgument, "k64", "k00"):
            docs.count({"k64": 64})

    def test_undeclared_keys_are_kept(self, docs: Collection) -> None:
        """Keys that no field names hold anything and are not checked."""
        docs.upsert(10, [1, 2, 3, 4], [{"other": "x"}])
        docs.upsert(11, [1, 2, 3, 4], [{"other": [1]}])
        assert [point.payload["other"] for point in docs.get([10, 11])] == ["x", [1]]

    def test_add_field_fills_from_payloads(self, database: Database, docs: Collection) -> None:
        """A field that is added later matches what was written before and after, and is one record."""
        docs.upsert([10, 11], np.ones((2, 4)), [{"stars": 5}, {"stars": None}])
        lsn = database.status()["lsn"]
        docs.add_field("stars", "int64")
        assert database.status()["lsn"] == lsn + 1
        assert docs.fields["stars"] == "int64"
        assert database.collection("docs").fields["stars"] == "int64"
        docs.upsert(12, [1, 1, 1, 1], [{"stars": 6}])
        assert ids_of(list(docs.scan({"stars": {"$gte": 5}}))) == [10, 12]
        assert docs.count({"stars": {"$null": True}}) == 5

    def test_add_field_on_many_rows(self, database: Database) -> None:
        """A field is filled for sealed rows too."""
        docs = database.create_collection("many", 4)
        docs.upsert(range(6_000), np.ones((6_000, 4)), [{"n": i % 10, "w": str(i % 3)} for i in range(6_000)])
        docs.optimize()
        docs.add_field("n", "float64")
        docs.add_field("w", "string")
        assert docs.count({"n": 3}) == 600
        assert docs.count({"n": {"$lt": 5}, "w": "0"}) == 1_000
        assert len(docs.search([1, 1, 1, 1], 700, filter={"n": 3})) == 600

    def test_add_field_refuses_where_a_payload_does_not_fit(self, database: Database, docs: Collection) -> None:
        """A payload that does not fit is named, and nothing is declared."""
        docs.upsert([10, 11], np.ones((2, 4)), [{"stars": 5}, {"stars": "five"}])
        with refused(database, InvalidArgument, "stars", "five", "int64"):
            docs.add_field("stars", "int64")
        assert "stars" not in docs.fields
        docs.delete(ids=11)
        docs.add_field("stars", "int64")
        assert docs.count({"stars": 5}) == 1

    def test_add_field_checks_live_points_alone(self, docs: Collection) -> None:
        """What was replaced or deleted before does not stand in the way."""
        docs.upsert([10, 11], np.ones((2, 4)), [{"stars": "old"}, {"stars": "old"}])
        docs.upsert(10, np.ones(4), [{"stars": 4}])
        docs.update(11, payloads=[{"stars": 3}])
        docs.add_field("stars", "int64")
        assert ids_of(list(docs.scan({"stars": {"$gte": 3}}))) == [10, 11]

    def test_add_field_refuses_a_declared_one(self, database: Database, docs: Collection) -> None:
        """A declared field cannot be declared with another type."""
        with refused(database, InvalidArgument, "size", "int64"):
            docs.add_field("size", "string")

    @pytest.mark.parametrize(
        ("name", "type"), [("", "int64"), ("x", "int32"), ("x", "list<list<int64>>"), ("$x", "bool")]
    )
    def test_add_field_refuses_bad_names_and_types(
        self, database: Database, docs: Collection, name: str, type: Any
    ) -> None:
        """An unknown type or a bad name is refused, saying what is allowed."""
        with refused(database, InvalidArgument, "field", "allowed"):
            docs.add_field(name, type)
