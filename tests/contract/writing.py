"""Upsert, update and delete: what they accept, what they change, what they return."""

from __future__ import annotations

import uuid
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from vecstore import Collection, Database, Field, InvalidArgument, Written

from .base import PAYLOADS, VECTORS, DatabaseContract, ids_of, refused, state


def vector_of(docs: Collection, id: int | str) -> Any:
    """Return the stored vector of one point."""
    found = docs.get([id], with_vector=True)[0].vector
    assert found is not None
    return found


class WritingContract(DatabaseContract):
    """Upsert, update, delete."""

    def test_upsert_returns_what_was_written(self, database: Database, docs: Collection) -> None:
        """`Written` has the LSN of the one record, the number of points, a token and the level reached."""
        lsn = database.status()["lsn"]
        written = docs.upsert([7, 8], [[1, 2, 3, 4], [5, 6, 7, 8]])
        assert isinstance(written, Written)
        assert (written.lsn, written.count, written.ack) == (lsn + 1, 2, "durable")
        assert isinstance(written.token, str)
        assert written.token
        assert database.status()["lsn"] == database.status()["durable_lsn"] == lsn + 1

    def test_one_id_takes_one_vector(self, docs: Collection) -> None:
        """A single id goes with a vector of shape (dim,) or (1, dim)."""
        assert docs.upsert(10, [1, 2, 3, 4], [{"size": 1}]).count == 1
        assert docs.upsert(11, [[1, 2, 3, 4]]).count == 1
        assert ids_of(docs.get([10, 11])) == [10, 11]

    @pytest.mark.parametrize(
        "ids",
        [
            [5, 6],
            (5, 6),
            range(5, 7),
            np.array([5, 6], np.uint8),
            np.array([5, 6], np.int32),
            np.array([5, 6], np.uint64),
            [np.int64(5), np.int16(6)],
            pa.array([5, 6], pa.int64()),
            pa.array([5, 6], pa.uint32()),
        ],
        ids=lambda ids: type(ids).__name__ + "-" + str(getattr(ids, "dtype", getattr(ids, "type", ""))),
    )
    def test_every_form_of_int_ids(self, docs: Collection, ids: Any) -> None:
        """Sequences, ranges, numpy and Arrow arrays of any integer type name the same ids, read back as plain int."""
        assert docs.upsert(ids, [[1, 2, 3, 4], [5, 6, 7, 8]]).count == 2
        found = ids_of(docs.get(ids))
        assert found == [5, 6]
        assert all(type(id) is int for id in found)
        assert docs.delete(ids=ids).count == 2

    @pytest.mark.parametrize(
        "ids",
        [
            ["é", "b"],
            np.array(["é", "b"]),
            np.array(["é", "b"], object),
            pa.array(["é", "b"]),
            pa.array(["é", "b"], pa.large_string()),
        ],
        ids=["list", "numpy-str", "numpy-object", "arrow", "arrow-large"],
    )
    def test_every_form_of_str_ids(self, database: Database, ids: Any) -> None:
        """Lists, numpy and Arrow arrays of text name the same ids, read back as plain str."""
        docs = database.create_collection("named", 2)
        assert docs.upsert(ids, [[1, 0], [0, 1]]).count == 2
        found = ids_of(docs.get(ids))
        assert found == ["é", "b"]
        assert all(type(id) is str for id in found)

    @pytest.mark.parametrize("id", [0, 2**63 - 1, 2**32])
    def test_int_ids_to_the_edge(self, docs: Collection, id: int) -> None:
        """The least and the greatest int id are stored, found and removed."""
        docs.upsert(id, [9, 9, 9, 9])
        assert docs.search([9, 9, 9, 9], 1)[0].id == id
        assert docs.delete(ids=id).count == 1

    @pytest.mark.parametrize("id", ["a", "x" * 512, "\U0001f600" * 128, " ", "a/b\nc", "0"])
    def test_str_ids_to_the_edge(self, database: Database, id: str) -> None:
        """Any text of 1 to 512 bytes is an id, and comes back as it was."""
        docs = database.create_collection("named", 2)
        docs.upsert(id, [1, 2])
        assert ids_of(docs.search([1, 2])) == [id]
        assert ids_of(list(docs.scan(start=id))) == [id]

    def test_uuid_counts_as_its_text(self, database: Database) -> None:
        """A `uuid.UUID` is the id of its string."""
        docs = database.create_collection("named", 2)
        ids = [uuid.UUID(int=n) for n in (2, 1)]
        docs.upsert(ids, [[1, 0], [0, 1]])
        assert ids_of(docs.get(ids)) == [str(ids[0]), str(ids[1])]
        assert ids_of(docs.get(str(ids[0]))) == [str(ids[0])]
        assert docs.delete(ids=ids[1]).count == 1

    @pytest.mark.parametrize(
        "given",
        [
            [[0.1, 0.2, 0.3, 0.4]],
            np.array([[0.1, 0.2, 0.3, 0.4]], np.float64),
            np.array([[0.1, 0.2, 0.3, 0.4]], np.float16),
            np.array([[1, 2, 3, 4]], np.int8),
            np.array([[1, 2, 3, 4]], np.uint64),
            np.asfortranarray(np.arange(4, dtype=np.float32).reshape(1, 4)),
            np.arange(8, dtype=">f4")[::2].reshape(1, 4),
            (np.float32(1.5), 2, 3.25, np.int8(4)),
        ],
        ids=["lists", "f8", "f2", "i1", "u8", "fortran", "big-endian-strided", "tuple"],
    )
    def test_real_numbers_are_rounded_to_float32(self, docs: Collection, given: Any) -> None:
        """Any real numbers are taken, and come back as the nearest float32."""
        docs.upsert(50, given)
        expected = np.asarray(given).astype(np.float32).reshape(4)
        stored = vector_of(docs, 50)
        assert (stored.dtype, stored.shape) == (np.float32, (4,))
        assert stored.tobytes() == expected.tobytes()

    @pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
    def test_vectors_come_back_bit_equal(self, database: Database, metric: Any) -> None:
        """Vectors come back as they were given under every metric, denormal numbers and negative zero included."""
        docs = database.create_collection("bits", 3, metric=metric)
        rows = np.random.default_rng(5).standard_normal((200, 3)).astype(np.float32)
        rows[0], rows[1], rows[2] = [1e-42, 0, 1], [-0.0, 3, -0.0], [3e30, -3e8, 1e-30]
        docs.upsert(np.arange(200), rows)
        by_get = np.stack(
            [point.vector for point in docs.get(range(200), with_vector=True) if point.vector is not None]
        )
        by_scan = np.stack([point.vector for point in docs.scan(with_vector=True) if point.vector is not None])
        assert by_get.tobytes() == by_scan.tobytes() == rows.tobytes()
        hit = docs.search(rows[77], 1, exact=True, with_vector=True)[0]
        assert hit.vector is not None
        assert hit.vector.tobytes() == rows[hit.id].tobytes()  # type: ignore[index]

    def test_the_store_keeps_a_copy(self, docs: Collection) -> None:
        """Changing what was given, or what a read returned, changes nothing in the store."""
        vectors, payload = np.ones((1, 4), np.float32), {"list": [1]}
        docs.upsert(60, vectors, [payload])
        vectors[:] = 9
        payload["list"].append(2)
        point = docs.get(60, with_vector=True)[0]
        assert point.vector is not None
        assert (point.vector.tolist(), point.payload) == ([1, 1, 1, 1], {"list": [1]})
        point.payload["list"].append(3)
        assert docs.get(60)[0].payload == {"list": [1]}

    def test_upsert_replaces_the_whole_point(self, docs: Collection) -> None:
        """An upsert of an id that exists leaves nothing of the old payload and vector."""
        docs.upsert(0, [9, 9, 9, 9], [{"size": 1}])
        assert docs.get(0)[0].payload == {"size": 1}
        assert vector_of(docs, 0).tolist() == [9, 9, 9, 9]
        assert docs.count() == 4
        assert docs.count({"section": "web"}) == 1

    def test_no_payload_is_an_empty_one(self, docs: Collection) -> None:
        """An upsert without payloads stores ``{}``, also over a point that had one."""
        docs.upsert([0, 70], [[1, 2, 3, 4], [1, 2, 3, 4]])
        assert [point.payload for point in docs.get([0, 70])] == [{}, {}]

    def test_same_id_twice_the_last_one_counts(self, docs: Collection) -> None:
        """Of points with one id in one call the last is stored, and counted once."""
        payloads = [{"size": 1}, {"size": 2}, {"size": 3}]
        written = docs.upsert([8, 9, 8], [[1, 0, 0, 0], [2, 0, 0, 0], [3, 0, 0, 0]], payloads)
        assert written.count == 2
        assert docs.get(8)[0].payload == {"size": 3}
        assert vector_of(docs, 8).tolist() == [3, 0, 0, 0]
        assert docs.count() == 6

    def test_no_ids_write_nothing(self, database: Database, docs: Collection) -> None:
        """An upsert, update or delete of no ids changes nothing and counts 0."""
        before = state(database)
        assert docs.upsert([], np.empty((0, 4), np.float32)).count == 0
        assert docs.delete(ids=[]).count == 0
        assert docs.update([], payloads=[]).count == 0
        assert state(database)[1] == before[1]

    def test_payloads_are_any_json(self, docs: Collection) -> None:
        """Nested values, big integers, floats, text of any plane and empty things come back equal and of their type."""
        payload = {
            "": "empty key",
            "é\U0001f600": ["\u0000", "\u2028", '"\\/'],
            "ints": [0, -(2**63), 2**64 - 1],
            "floats": [0.1, -0.0, 1e300, 5e-324, 1.0],
            "deep": {"a": {"b": [{}, [], None, True, False]}},
        }
        docs.upsert(80, [1, 2, 3, 4], [payload])
        assert docs.get(80)[0].payload == payload
        assert type(docs.get(80)[0].payload["floats"][4]) is float
        assert docs.search([1, 2, 3, 4], 10)[-1].payload is not None

    def test_payloads_as_an_arrow_table(self, docs: Collection) -> None:
        """A table of n rows gives n payloads; nulls are left out."""
        table = pa.table({"section": ["web", None], "size": pa.array([1, 2], pa.int16()), "tags": [["a"], None]})
        docs.upsert([90, 91], [[1, 2, 3, 4], [1, 2, 3, 4]], table)
        assert [point.payload for point in docs.get([90, 91])] == [
            {"section": "web", "size": 1, "tags": ["a"]},
            {"size": 2},
        ]
        assert docs.count({"size": 2}) == 1

    def test_a_full_record_is_one_record(self, database: Database) -> None:
        """10,000 points in one call are one record."""
        docs = database.create_collection("full", 2, metric="l2")
        rows = np.arange(20_000, dtype=np.float32).reshape(-1, 2)
        lsn = database.status()["lsn"]
        written = docs.upsert(np.arange(10_000), rows)
        assert (written.lsn, written.count) == (lsn + 1, 10_000)
        assert docs.count() == 10_000
        assert docs.search(rows[9_999], 1)[0].id == 9_999
        assert docs.delete(ids=np.arange(10_000)).lsn == lsn + 2

    def test_memory_ack_is_written_without_a_token(self, docs: Collection) -> None:
        """With ack="memory" the token is empty; the next durable write makes both durable."""
        written = docs.upsert(20, [1, 2, 3, 4], ack="memory")
        assert (written.token, written.ack, written.count) == ("", "memory", 1)
        later = docs.upsert(21, [1, 2, 3, 4])
        assert later.lsn == written.lsn + 1
        assert docs.count(after=later) == 6
        assert docs.update(20, payloads=[{"size": 1}], ack="memory").token == ""
        assert docs.delete(ids=20, ack="memory").token == ""

    def test_update_merges_payloads(self, docs: Collection) -> None:
        """Given keys are merged, None removes, other keys and the vector stay."""
        written = docs.update([0, 1], payloads=[{"size": 11, "section": None, "new": {"a": None}}, {}])
        assert written.count == 2
        expected = PAYLOADS[0] | {"size": 11, "new": {"a": None}}
        del expected["section"]
        assert [point.payload for point in docs.get([0, 1])] == [expected, PAYLOADS[1]]
        assert vector_of(docs, 0).tolist() == VECTORS[0].tolist()
        assert docs.count({"size": 11}) == 1
        assert docs.count({"section": "web"}) == 1
        assert docs.count({"size": 10}) == 0

    def test_update_keeps_what_it_does_not_name(self, docs: Collection) -> None:
        """A stored None under a key that the change does not name stays, and so does None deeper down."""
        docs.upsert(9, [1, 2, 3, 4], [{"a": None, "b": 1, "c": {"d": None}}])
        docs.update(9, payloads=[{"b": 2}])
        assert docs.get(9)[0].payload == {"a": None, "b": 2, "c": {"d": None}}

    def test_update_replaces_vectors(self, docs: Collection) -> None:
        """Given vectors replace, payloads stay, and a search finds the new place only."""
        assert docs.update([3], vectors=[[50, 50, 50, 50]]).count == 1
        docs.update(0, vectors=[60, 60, 60, 60], payloads=[{"size": 12}])
        assert docs.search([50, 50, 50, 50], 1)[0].id == 3
        assert docs.search([1, 1, 1, 1], 4)[-1].id == 0
        assert docs.get(0)[0].payload == PAYLOADS[0] | {"size": 12}

    def test_update_skips_absent_ids(self, docs: Collection) -> None:
        """Absent ids are skipped and not counted; nothing is created."""
        assert docs.update([0, 99], payloads=[{"size": 1}, {"size": 2}]).count == 1
        assert docs.update([98, 99], payloads=[{}, {}]).count == 0
        assert docs.count() == 4
        assert docs.get([98, 99]) == []

    def test_update_twice_the_last_one_counts(self, docs: Collection) -> None:
        """Of changes to one id in one call only the last is made."""
        assert docs.update([3, 3], payloads=[{"a": 1}, {"b": 2}]).count == 1
        assert docs.get(3)[0].payload == {"b": 2}

    def test_delete_by_ids(self, database: Database, docs: Collection) -> None:
        """`count` is the number of points that existed; they are gone from every read."""
        lsn = database.status()["lsn"]
        written = docs.delete(ids=[0, 99, 0, 2])
        assert (written.count, written.lsn) == (2, lsn + 1)
        assert ids_of(list(docs.scan())) == [1, 3]
        assert ids_of(docs.get([0, 1, 2])) == [1]
        assert ids_of(sorted(docs.search([0, 0, 0, 0]), key=lambda hit: hit.id)) == [1, 3]
        assert docs.count() == 2
        assert docs.delete(ids=[0, 2]).count == 0

    def test_delete_by_filter(self, docs: Collection) -> None:
        """Both forms of a filter remove what matches, and nothing else."""
        assert docs.delete(filter={"section": "web", "size": {"$lt": 20}}).count == 1
        assert docs.delete(filter=Field("section") == "database").count == 1
        assert docs.delete(filter={"section": "nowhere"}).count == 0
        assert ids_of(list(docs.scan())) == [2, 3]

    def test_delete_by_filter_beyond_one_record(self, database: Database) -> None:
        """A delete by filter of more than a record holds commits record by record and counts all."""
        docs = database.create_collection("many", 2, metric="l2", fields={"half": "int64"})
        for start in (0, 10_000):
            ids = range(start, start + 10_000)
            rows = np.zeros((10_000, 2), np.float32)
            docs.upsert(ids, rows, [{"half": id // 15_000} for id in ids])
        lsn = database.status()["lsn"]
        written = docs.delete(filter={"half": 0})
        assert written.count == 15_000
        assert lsn + 2 <= written.lsn == database.status()["lsn"]
        assert docs.count() == 5_000
        assert next(docs.scan()).id == 15_000

    def test_a_deleted_point_can_come_back(self, docs: Collection) -> None:
        """An id that was deleted takes a new point with nothing of the old."""
        docs.delete(ids=0)
        docs.upsert(0, [5, 5, 5, 5])
        assert docs.get(0)[0].payload == {}
        assert docs.search([5, 5, 5, 5], 1)[0].id == 0
        assert docs.count() == 4

    def test_delete_wants_exactly_one_of_ids_and_filter(self, database: Database, docs: Collection) -> None:
        """Both or neither is refused: neither would be everything."""
        with refused(database, InvalidArgument, "ids", "filter"):
            docs.delete()
        with refused(database, InvalidArgument, "ids", "filter"):
            docs.delete(ids=[1], filter={"section": "web"})

    def test_digest_depends_on_contents_alone(self, database: Database, other: Database) -> None:
        """Two stores with the same points, reached by other ways, have the same digest."""
        first = database.create_collection("docs", 4, metric="l2")
        second = other.create_collection("docs", 4, metric="l2")
        first.upsert([0, 1, 2], VECTORS[:3], [{"a": 1, "b": 2}, {}, {"x": 0.5}])
        second.upsert([2, 7], VECTORS[[2, 0]], [{"x": 0.5}, {}])
        second.upsert([0], VECTORS[[1]], [{"z": 0}])
        second.delete(ids=7)
        second.upsert([1, 0], VECTORS[[1, 0]], [{}, {"b": 2, "a": 1}])
        digests = [db.status()["collections"]["docs"]["digest"] for db in (database, other)]
        assert digests[0] == digests[1]
        first.update(1, payloads=[{"a": 1}])
        assert database.status()["collections"]["docs"]["digest"] != digests[1]
