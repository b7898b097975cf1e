"""Get, scan and count: order, omissions, parts of payloads, one view."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from vecstore import Collection, Database, Field, Point

from .base import PAYLOADS, VECTORS, DatabaseContract, ids_of


class ReadingContract(DatabaseContract):
    """Get, scan, count."""

    def test_get_keeps_the_order_asked(self, docs: Collection) -> None:
        """Points come in the order asked; those that do not exist are left out."""
        assert ids_of(docs.get([3, 99, 0, 2])) == [3, 0, 2]
        assert docs.get([99]) == []
        assert docs.get([]) == []

    def test_get_returns_frozen_points(self, docs: Collection) -> None:
        """A point is a frozen value with id, payload and, when asked for, the vector."""
        (point,) = docs.get(0)
        assert type(point) is Point
        assert (point.id, point.payload, point.vector) == (0, PAYLOADS[0], None)
        with pytest.raises(dataclasses.FrozenInstanceError):
            point.id = 5  # type: ignore[misc]
        vector = docs.get([0], with_vector=True)[0].vector
        assert isinstance(vector, np.ndarray)
        assert vector.tolist() == VECTORS[0].tolist()

    def test_get_of_the_other_kind_of_id_finds_nothing(self, docs: Collection) -> None:
        """No point has a str id in a collection of int ids: a get finds none, or says why."""
        try:
            assert docs.get(["0"]) == []
        except ValueError as error:
            assert "int" in str(error)

    @pytest.mark.parametrize(
        ("wanted", "expected"),
        [
            (True, PAYLOADS[0]),
            (False, {}),
            (["size"], {"size": 10}),
            (("size", "section", "absent"), {"size": 10, "section": "web"}),
            ([], {}),
        ],
        ids=["all", "none", "one", "some", "empty"],
    )
    def test_with_payload_chooses_keys(self, docs: Collection, wanted: Any, expected: dict[str, Any]) -> None:
        """`with_payload` gives all, nothing or the keys named, alike in get, scan, search and batches."""
        assert docs.get(0, with_payload=wanted)[0].payload == expected
        assert next(docs.scan(with_payload=wanted)).payload == expected
        assert docs.search(VECTORS[0], 1, with_payload=wanted)[0].payload == expected
        assert docs.search_batch(VECTORS[:1], 1, with_payload=wanted)[0][0].payload == expected

    def test_a_key_that_no_field_names_can_be_chosen(self, docs: Collection) -> None:
        """`with_payload` also picks keys that are not declared."""
        assert docs.get(2, with_payload=["free"])[0].payload == {"free": {"kept": [1, None]}}

    def test_scan_goes_in_id_order(self, docs: Collection) -> None:
        """A scan is an iterator over all points in the order of ids."""
        docs.upsert([2**40, 256, 255, 7], np.ones((4, 4)))
        scan = docs.scan()
        assert isinstance(scan, Iterator)
        points = list(scan)
        assert ids_of(points) == [0, 1, 2, 3, 7, 255, 256, 2**40]
        assert [point.payload for point in points[:4]] == PAYLOADS
        assert all(point.vector is None for point in points)

    def test_str_ids_are_ordered_by_code_point(self, database: Database) -> None:
        """Str ids are ordered by code point, not by UTF-16 or locale."""
        docs = database.create_collection("named", 2)
        ids = ["\U0001f600", "\ue000", "é", "z", "aa", "a", "A", "0", "00"]
        docs.upsert(ids, np.ones((9, 2)))
        assert ids_of(list(docs.scan())) == sorted(ids)
        assert ids_of(list(docs.scan(start="a"))) == ["a", "aa", "z", "é", "\ue000", "\U0001f600"]

    def test_scan_start_and_limit(self, docs: Collection) -> None:
        """`start` is included, need not exist; `limit` ends the scan, counted over what matches."""
        docs.delete(ids=1)
        assert ids_of(list(docs.scan(start=1))) == [2, 3]
        assert ids_of(list(docs.scan(start=2))) == [2, 3]
        assert ids_of(list(docs.scan(limit=2))) == [0, 2]
        assert ids_of(list(docs.scan({"section": "web"}, start=1, limit=5))) == [2]
        assert list(docs.scan(limit=0)) == []
        assert list(docs.scan(start=100)) == []

    def test_scan_with_a_filter_in_both_forms(self, docs: Collection) -> None:
        """A scan gives the points that match, with vectors when asked for."""
        points = list(docs.scan(Field("section") == "web", with_vector=True))
        assert ids_of(points) == [0, 2]
        assert points[1].vector is not None
        assert points[1].vector.tolist() == VECTORS[2].tolist()
        assert ids_of(list(docs.scan({"section": "web"}))) == [0, 2]

    def test_scan_stays_on_its_first_view(self, database: Database) -> None:
        """Upserts, updates and deletes made while a scan is open do not show in it."""
        docs = database.create_collection("many", 2, metric="l2")
        docs.upsert(range(0, 6_000, 2), np.ones((3_000, 2)), [{"n": 0}] * 3_000)
        scan = docs.scan(with_vector=True)
        points = [next(scan) for _ in range(10)]
        docs.upsert(range(1, 6_000, 2), np.zeros((3_000, 2)), [{"n": 1}] * 3_000)
        docs.update(range(0, 2_000, 2), vectors=np.zeros((1_000, 2)), payloads=[{"n": 2}] * 1_000)
        docs.delete(ids=range(3_000, 6_000))
        docs.upsert(range(10_000, 13_000), np.zeros((3_000, 2)))
        docs.optimize()
        points.extend(scan)
        assert ids_of(points) == list(range(0, 6_000, 2))
        assert {(point.payload["n"], *point.vector.tolist()) for point in points} == {(0, 1.0, 1.0)}  # type: ignore[union-attr]
        assert docs.count() == 3_000 + 3_000

    def test_a_scan_begins_when_it_is_called(self, docs: Collection) -> None:
        """The view of a scan is that of the call, not of the first `next`."""
        scan = docs.scan()
        docs.delete(ids=[0, 1, 2, 3])
        assert ids_of(list(scan)) == [0, 1, 2, 3]

    def test_count(self, docs: Collection) -> None:
        """Count is the number of live points, or of those that match."""
        assert docs.count() == 4
        assert docs.count({"section": "web"}) == docs.count(Field("section") == "web") == 2
        assert docs.count({"section": "nowhere"}) == 0
        docs.delete(ids=0)
        docs.upsert(1, [0, 0, 0, 1])
        assert docs.count() == 3
        assert docs.count({"section": "database"}) == 0

    def test_empty_collection_reads(self, database: Database) -> None:
        """Reads of an empty collection find nothing, and no error."""
        docs = database.create_collection("empty", 3, fields={"size": "int64"})
        assert docs.count() == docs.count({"size": 1}) == 0
        assert list(docs.scan()) == []
        assert docs.get([1]) == []
        assert len(docs.search([1, 2, 3])) == 0
        docs.optimize()
