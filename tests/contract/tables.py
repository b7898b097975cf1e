"""Arrow in and out, and copies between stores."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

import vecstore
from vecstore import Collection, Database, InvalidArgument

from .base import PAYLOADS, VECTORS, DatabaseContract, ids_of, refused


def vector_column(rows: npt.NDArray[Any], type: pa.DataType | None = None) -> pa.FixedSizeListArray:
    """Return a fixed-size list column of the rows of an array."""
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel(), type), rows.shape[1])


class OnlyAStream:
    """An object that has nothing but the Arrow stream protocol, as foreign libraries' tables do."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self._table.__arrow_c_stream__(requested_schema)


class TablesContract(DatabaseContract):
    """`upsert_table`, `to_arrow`, `vecstore.copy`."""

    def test_table_rows_become_points(self, docs: Collection) -> None:
        """Columns other than id and vector become the payload; nulls are left out."""
        table = pa.table(
            {
                "id": pa.array([10, 11], pa.int32()),
                "vector": vector_column(np.ones((2, 4), np.float32)),
                "section": pa.array(["web", None]).dictionary_encode(),
                "size": pa.array([5, 6], pa.uint16()),
                "made": pa.array([datetime(2024, 1, 1, tzinfo=UTC), None], pa.timestamp("us", "UTC")),
                "tags": [["a", "b"], []],
            }
        )
        written = docs.upsert_table(table)
        assert (written.count, written.ack) == (2, "durable")
        first, second = docs.get([10, 11])
        assert first.payload == {
            "section": "web", "size": 5, "made": "2024-01-01T00:00:00.000000Z", "tags": ["a", "b"],
        }  # fmt: skip
        assert second.payload == {"size": 6, "tags": []}
        assert docs.count({"made": datetime(2024, 1, 1, tzinfo=UTC)}) == 2

    @pytest.mark.parametrize("form", ["table", "reader", "stream", "batches"])
    def test_every_form_of_stream(self, docs: Collection, form: str) -> None:
        """Tables, readers, tables of many batches and foreign stream objects are taken alike."""
        table = pa.table({"id": [10, 11, 12], "vector": vector_column(np.eye(3, 4, dtype=np.float32))})
        batches = table.to_batches(max_chunksize=1)
        streams: dict[str, Any] = {
            "table": table,
            "reader": pa.RecordBatchReader.from_batches(table.schema, batches),
            "stream": OnlyAStream(table),
            "batches": pa.Table.from_batches([*batches, batches[0].slice(0, 0)]),
        }
        assert docs.upsert_table(streams[form]).count == 3
        assert ids_of(docs.get([12, 11, 10])) == [12, 11, 10]

    @pytest.mark.parametrize(
        "column",
        [
            vector_column(np.full((2, 4), 0.5), pa.float32()),
            vector_column(np.full((2, 4), 0.5), pa.float64()),
            vector_column(np.full((2, 4), 0.5, np.float16), pa.float16()),
            pa.array([[0.5] * 4] * 2, pa.list_(pa.float64())),
            pa.array([[0.5] * 4] * 2, pa.large_list(pa.float32())),
        ],
        ids=lambda column: str(column.type).replace(" ", ""),
    )
    def test_every_list_column_of_numbers_is_a_vector(self, docs: Collection, column: pa.Array) -> None:
        """Fixed and variable lists of half, single and double floats are vectors, sliced tables included."""
        table = pa.table({"id": [99, 10], "vector": column}).slice(1)
        assert docs.upsert_table(table).count == 1
        vector = docs.get(10, with_vector=True)[0].vector
        assert vector is not None
        assert vector.tolist() == [0.5] * 4

    def test_other_names_of_columns(self, database: Database) -> None:
        """`id` and `vector` name the columns; one called "id" is then a payload key."""
        docs = database.create_collection("named", 4)
        table = pa.table({"key": ["a", "b"], "emb": vector_column(VECTORS[:2]), "id": [1, 2]})
        docs.upsert_table(table, id="key", vector="emb")
        assert [(point.id, point.payload) for point in docs.scan()] == [("a", {"id": 1}), ("b", {"id": 2})]

    def test_more_than_a_record_commits_record_by_record(self, database: Database) -> None:
        """25,000 rows are several records; progress grows to all of them, and `.lsn` is the last."""
        docs = database.create_collection("many", 4, metric="l2")
        rows = np.random.default_rng(3).standard_normal((25_000, 4)).astype(np.float32)
        table = pa.table({"id": np.arange(25_000), "vector": vector_column(rows), "n": np.arange(25_000) % 7})
        lsn, seen = database.status()["lsn"], list[int]()
        written = docs.upsert_table(table, progress=seen.append)
        assert written.count == docs.count() == 25_000
        assert lsn + 3 <= written.lsn == database.status()["lsn"]
        assert seen == sorted(set(seen))
        assert seen[-1] == 25_000
        assert len(seen) >= 3
        assert docs.get(24_999)[0].payload == {"n": 24_999 % 7}

    def test_an_error_says_how_many_were_committed(self, database: Database) -> None:
        """Where a later record is refused, `details["committed"]` and the message say how many points are there."""
        docs = database.create_collection("many", 4, metric="l2")
        rows = np.ones((25_000, 4), np.float32)
        rows[24_000, 2] = np.nan
        table = pa.table({"id": np.arange(25_000), "vector": vector_column(rows)})
        with pytest.raises(InvalidArgument) as caught:
            docs.upsert_table(table)
        committed = caught.value.details["committed"]
        assert 10_000 <= committed == docs.count() < 25_000
        assert str(committed) in str(caught.value).replace(",", "")

    def test_an_error_of_the_stream_is_passed_on(self, docs: Collection) -> None:
        """Where the stream itself fails, its error reaches the caller, and what was committed stays whole."""
        schema = pa.schema({"id": pa.int64(), "vector": pa.list_(pa.float32(), 4)})

        def batches() -> Iterator[pa.RecordBatch]:
            yield pa.record_batch([pa.array([10]), vector_column(VECTORS[:1])], schema=schema)
            raise OSError("the disk of the source is gone")

        with pytest.raises(Exception, match="the disk of the source is gone"):
            docs.upsert_table(pa.RecordBatchReader.from_batches(schema, batches()))
        assert docs.count() in (4, 5)

    @pytest.mark.parametrize(
        ("columns", "words"),
        [
            ({"vector": vector_column(VECTORS)}, ["id", "vector"]),
            ({"id": [1, 2, 3, 4]}, ["vector", "id"]),
            ({"id": [1, None, 3, 4], "vector": vector_column(VECTORS)}, ["id", "null"]),
            ({"id": [1.5, 2, 3, 4], "vector": vector_column(VECTORS)}, ["id", ("double", "1.5")]),
            ({"id": [1, 2, 3, 4], "vector": vector_column(VECTORS[:, :3])}, ["vector", "3", "4"]),
            ({"id": [1, 2, 3, 4], "vector": ["a", "b", "c", "d"]}, ["vector", "string"]),
            ({"id": [1, 2, 3, 4], "vector": pa.array([[1.0] * 4, None, [1.0] * 4, [1.0] * 4])}, ["vector", "null"]),
            ({"id": [1, 2, 3, 4], "vector": vector_column(VECTORS), "size": ["x"] * 4}, ["size", "int64"]),
        ],
        ids=["no-id", "no-vector", "null-id", "float-id", "wrong-dim", "text-vector", "null-vector", "wrong-field"],
    )
    def test_bad_tables_are_refused(
        self, database: Database, docs: Collection, columns: dict[str, Any], words: list[Any]
    ) -> None:
        """A table that lacks a column or has one of the wrong type is refused whole, naming the column."""
        with refused(database, InvalidArgument, *words):
            docs.upsert_table(pa.table(columns))

    def test_what_is_no_stream_is_refused(self, database: Database, docs: Collection) -> None:
        """An object without the Arrow stream protocol is refused, naming the argument."""
        with refused(database, InvalidArgument, "table", ("arrow", "__arrow_c_stream__")):
            docs.upsert_table([{"id": 1}])  # type: ignore[arg-type]

    def test_to_arrow_gives_all_points_in_order(self, docs: Collection) -> None:
        """The stream has id, vector, each declared field and the payload as JSON text, in the order of ids."""
        docs.upsert(2**40, [7, 7, 7, 7], [{"made": datetime(2024, 1, 1, tzinfo=UTC)}])
        reader = docs.to_arrow()
        assert isinstance(reader, pa.RecordBatchReader)
        table = reader.read_all()
        assert set(table.column_names) == {"id", "vector", "payload", *docs.fields}
        assert table["id"].to_pylist() == [0, 1, 2, 3, 2**40]
        assert table.schema.field("vector").type == pa.list_(pa.float32(), 4)
        assert table["vector"].to_pylist()[:4] == VECTORS.tolist()
        assert [json.loads(text) for text in table["payload"].to_pylist()[:4]] == PAYLOADS
        assert table["section"].to_pylist() == ["web", "database", "web", None, None]
        assert table["tags"].to_pylist() == [["a", "b"], ["b"], None, None, None]
        assert table["size"].type == pa.int64()
        assert table["open"].to_pylist() == [True, False, None, None, None]
        made = table["made"].to_pylist()
        assert made[0] == made[4] == datetime(2024, 1, 1, tzinfo=UTC)

    def test_to_arrow_takes_a_filter_and_leaves_vectors_out(self, docs: Collection) -> None:
        """A filter limits the rows; without vectors there is no such column."""
        table = docs.to_arrow({"section": "web"}, with_vector=False).read_all()
        assert table["id"].to_pylist() == [0, 2]
        assert "vector" not in table.column_names

    def test_to_arrow_of_an_empty_collection_has_a_schema(self, database: Database) -> None:
        """An empty collection gives an empty table with its columns."""
        table = database.create_collection("empty", 3, fields={"size": "int64"}).to_arrow().read_all()
        assert table.num_rows == 0
        assert {"vector", "size", "payload"} <= set(table.column_names)

    def test_to_arrow_of_many_rows_round_trips(self, database: Database) -> None:
        """What `to_arrow` gives, `upsert_table` takes: the ids and vectors are the same."""
        docs = database.create_collection("many", 4, metric="l2")
        rows = np.random.default_rng(4).standard_normal((12_000, 4)).astype(np.float32)
        docs.upsert_table(pa.table({"id": np.arange(12_000), "vector": vector_column(rows)}))
        twin = database.create_collection("twin", 4, metric="l2")
        twin.upsert_table(docs.to_arrow().read_all().select(["id", "vector"]))
        digests = {name: entry["digest"] for name, entry in database.status()["collections"].items()}
        assert digests["many"] == digests["twin"]

    def test_copy_makes_the_same_collection_elsewhere(
        self, database: Database, docs: Collection, other: Database
    ) -> None:
        """A copy between stores has the schema, the points and so the digest of its source."""
        written = vecstore.copy(docs, other, "copied")
        assert written.count == 4
        twin = other.collection("copied")
        assert (twin.dim, twin.metric, twin.fields, twin.metadata) == (4, "l2", docs.fields, docs.metadata)
        assert [point.payload for point in twin.scan()] == PAYLOADS
        source, target = database.status()["collections"]["docs"], other.status()["collections"]["copied"]
        assert source["digest"] == target["digest"]

    def test_copy_within_one_store(self, database: Database) -> None:
        """A copy of more than one record within a store under another name keeps str ids and metadata."""
        docs = database.create_collection("named", 2, metadata={"a": 1})
        rows = np.random.default_rng(6).standard_normal((10_500, 2)).astype(np.float32)
        for start in (0, 6_000):
            docs.upsert([f"p{i}" for i in range(start, min(start + 6_000, 10_500))], rows[start : start + 6_000])
        assert vecstore.copy(docs, database, "twin").count == 10_500
        digests = {name: entry["digest"] for name, entry in database.status()["collections"].items()}
        assert digests["named"] == digests["twin"]
        assert database.collection("twin").metadata == {"a": 1}

    def test_copy_onto_a_taken_name_is_refused(self, database: Database, docs: Collection) -> None:
        """A copy never mixes into a collection that exists."""
        with refused(database, vecstore.AlreadyExists, "docs"):
            vecstore.copy(docs, database, "docs")
