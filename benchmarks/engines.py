"""The engines of `peers.py` behind one small interface, each used as its own documentation recommends at this size.

An engine is given a folder, takes rows in calls of 1,000, builds whatever index it has, and is searched at one setting
of its knob at a time. Nothing is timed here. What a caller has to convert for an engine (lists for arrays) is done in
`prepare`, outside the time that is measured. All compare by cosine and return ids and scores alone, no payloads.
Every row has two numbers to filter by, `percent` (0..99) and `decile` (0..9); engines index both where they can.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Match = tuple[str, int] | None
"""A field and the value that it must have; None searches all."""


class Engine(ABC):
    """One engine on one folder. `create` or `open` comes first, `close` last."""

    name: ClassVar[str]
    modules: ClassVar[tuple[str, ...]]
    """What its process has imported before its memory is counted."""
    durability: ClassVar[str]
    """What has become of a batch when `ingest` returns."""
    settings: ClassVar[str]
    knobs: ClassVar[tuple[float, ...]]

    def __init__(self, folder: Path, dim: int) -> None:
        self.folder = folder
        self.dim = dim
        self.knob = self.knobs[len(self.knobs) // 2]

    @abstractmethod
    def create(self) -> None:
        """Begin with nothing."""

    @abstractmethod
    def open(self) -> None:
        """Open what an earlier process left."""

    @abstractmethod
    def ingest(self, ids: list[int], vectors: Floats, payloads: list[dict[str, Any]]) -> None:
        """Write one batch."""

    @abstractmethod
    def build(self) -> None:
        """Return when every row is indexed and no more work waits."""

    def turn(self, knob: float) -> None:
        """Set recall or effort of the searches that follow."""
        self.knob = knob

    def prepare(self, query: Floats) -> Any:
        """Return a query in the form that the engine takes."""
        return query

    def prepare_batch(self, queries: Floats) -> Any:
        """Return a batch of queries in the form that the engine takes."""
        return queries

    @abstractmethod
    def searcher(self, k: int, match: Match = None) -> Callable[[Any], Any]:
        """Return the call that answers one prepared query at the knob's setting."""

    @abstractmethod
    def batcher(self, k: int) -> Callable[[Any], Any]:
        """Return the call that answers a prepared batch at the knob's setting."""

    @abstractmethod
    def ids(self, answer: Any) -> Sequence[int]:
        """Return the ids of one answer."""

    @abstractmethod
    def close(self) -> None:
        """Let go; what is on disk then is what counts."""


class Vecstore(Engine):
    """This project, with its defaults; the knob is the recall asked for."""

    name = "vecstore"
    modules = ("vecstore", "vecstore.engine", "faiss", "rocksdict", "pyarrow", "xxhash", "orjson")
    durability = "synced, every call"
    settings = "index auto; knob: recall asked"
    knobs = (0.5, 0.7, 0.8, 0.9, 0.95, 0.97, 0.99, 0.995, 0.999)

    def create(self) -> None:
        import vecstore

        self._store = vecstore.open(str(self.folder / "store"))
        self._points = self._store.create_collection("points", self.dim, fields={"percent": "int64", "decile": "int64"})

    def open(self) -> None:
        import vecstore

        self._store = vecstore.open(str(self.folder / "store"), create=False)
        self._points = self._store.collection("points")

    def ingest(self, ids: list[int], vectors: Floats, payloads: list[dict[str, Any]]) -> None:
        self._points.upsert(ids, vectors, payloads)

    def build(self) -> None:
        self._points.optimize()

    def searcher(self, k: int, match: Match = None) -> Callable[[Any], Any]:
        condition = {match[0]: match[1]} if match else None
        search, recall = self._points.search, self.knob
        return lambda query: search(query, k, filter=condition, recall=recall, with_payload=False)

    def batcher(self, k: int) -> Callable[[Any], Any]:
        search, recall = self._points.search_batch, self.knob
        return lambda queries: search(queries, k, recall=recall)

    def ids(self, answer: Any) -> Sequence[int]:
        return [hit.id for hit in answer]

    def close(self) -> None:
        self._store.close()


class Qdrant(Engine):
    """Qdrant's engine in process (Qdrant Edge), with its defaults; the knob is `hnsw_ef`."""

    name = "qdrant"
    modules = ("qdrant_edge",)
    durability = "in its write-ahead log when update returns; it syncs as it sees fit"
    settings = "HNSW m 16, ef_construct 100, integer index on both fields before the build; knob: hnsw_ef"
    knobs = (10, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512)
    flush_each = False

    def create(self) -> None:
        import qdrant_edge as qe

        self.folder.mkdir(exist_ok=True)
        self._shard = qe.EdgeShard.create(str(self.folder), self._config(qe))
        for field in ("percent", "decile"):
            self._shard.update(qe.UpdateOperation.create_field_index(field, qe.PayloadSchemaType.Integer))

    def _config(self, qe: Any) -> Any:
        return qe.EdgeConfig(vectors=qe.EdgeVectorParams(size=self.dim, distance=qe.Distance.Cosine))

    def open(self) -> None:
        import qdrant_edge as qe

        self._shard = qe.EdgeShard.load(str(self.folder))

    def ingest(self, ids: list[int], vectors: Floats, payloads: list[dict[str, Any]]) -> None:
        import qdrant_edge as qe

        points = [
            qe.Point(id, vector, payload) for id, vector, payload in zip(ids, vectors.tolist(), payloads, strict=True)
        ]
        self._shard.update(qe.UpdateOperation.upsert_points(points))
        if self.flush_each:
            self._shard.flush()

    def build(self) -> None:
        self._shard.optimize()
        self._shard.flush()

    def prepare(self, query: Floats) -> Any:
        return query.tolist()

    def prepare_batch(self, queries: Floats) -> Any:
        return queries.tolist()

    def _params(self, qe: Any) -> Any:
        return qe.SearchParams(hnsw_ef=int(self.knob))

    def _request(self, k: int, match: Match) -> Callable[[Any], Any]:
        import qdrant_edge as qe

        params = self._params(qe)
        condition = None
        if match:
            condition = qe.Filter(must=[qe.FieldCondition(key=match[0], match=qe.MatchValue(match[1]))])
        request, nearest = qe.QueryRequest, qe.Query.Nearest
        return lambda query: request(
            limit=k, query=nearest(query), filter=condition, params=params, with_payload=False, with_vector=False
        )

    def searcher(self, k: int, match: Match = None) -> Callable[[Any], Any]:
        request, search = self._request(k, match), self._shard.query
        return lambda query: search(request(query))

    def batcher(self, k: int) -> Callable[[Any], Any]:
        import qdrant_edge as qe

        request, search, batch = self._request(k, None), self._shard.query_batch, qe.QueryBatchRequest
        return lambda queries: search(batch([request(query) for query in queries]))

    def ids(self, answer: Any) -> Sequence[int]:
        return [point.id for point in answer]

    def close(self) -> None:
        self._shard.close()


class QdrantFlushed(Qdrant):
    """The same, flushed after every batch: the durability that vecstore gives."""

    name = "qdrant-flushed"
    durability = "flush() after every call"
    flush_each = True


class QdrantInt8(Qdrant):
    """The same with int8 codes, which its documentation recommends for speed; re-scored with the float32 vectors."""

    name = "qdrant-int8"
    settings = (
        "as qdrant, with scalar quantisation (int8) held in memory, oversampled twofold, re-scored; knob: hnsw_ef"
    )

    def _config(self, qe: Any) -> Any:
        codes = qe.ScalarQuantizationConfig(type=qe.ScalarType.Int8, quantile=0.99, always_ram=True)
        return qe.EdgeConfig(
            vectors=qe.EdgeVectorParams(size=self.dim, distance=qe.Distance.Cosine), quantization_config=codes
        )

    def _params(self, qe: Any) -> Any:
        codes = qe.QuantizationSearchParams(rescore=True, oversampling=2.0)
        return qe.SearchParams(hnsw_ef=int(self.knob), quantization=codes)


class LanceDB(Engine):
    """LanceDB with IVF_HNSW_SQ in one partition, as it recommends for HNSW; the knob is `ef`, re-ranked twofold."""

    name = "lancedb"
    modules = ("lancedb", "pyarrow")
    durability = "a new table version a call, written without a sync"
    settings = "IVF_HNSW_SQ, 1 partition, m 20, ef_construction 300, refine_factor 2, BTREE on both fields; knob: ef"
    knobs = (20, 32, 48, 64, 96, 128, 192, 256, 512)

    def create(self) -> None:
        import lancedb
        import pyarrow as pa

        vector = pa.list_(pa.float32(), self.dim)
        self._schema = pa.schema(
            [
                ("id", pa.int64()),
                ("vector", vector),
                ("percent", pa.int64()),
                ("decile", pa.int64()),
                ("payload", pa.string()),
            ]
        )
        self._table = lancedb.connect(str(self.folder)).create_table("points", schema=self._schema)

    def open(self) -> None:
        import lancedb

        self._table = lancedb.connect(str(self.folder)).open_table("points")

    def ingest(self, ids: list[int], vectors: Floats, payloads: list[dict[str, Any]]) -> None:
        import orjson
        import pyarrow as pa

        columns = [
            pa.array(ids, pa.int64()),
            pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), self.dim),
            pa.array([payload["percent"] for payload in payloads], pa.int64()),
            pa.array([payload["decile"] for payload in payloads], pa.int64()),
            pa.array([orjson.dumps(payload).decode() for payload in payloads]),
        ]
        self._table.add(pa.Table.from_arrays(columns, schema=self._schema))

    def build(self) -> None:
        from datetime import timedelta

        from lancedb.index import BTree, HnswSq

        self._table.optimize(cleanup_older_than=timedelta(0))
        self._table.create_index("vector", config=HnswSq(distance_type="cosine", num_partitions=1))
        for field in ("percent", "decile"):
            self._table.create_index(field, config=BTree())
        self._table.wait_for_index([index.name for index in self._table.list_indices()], timedelta(minutes=10))

    def searcher(self, k: int, match: Match = None) -> Callable[[Any], Any]:
        table, ef = self._table, int(self.knob)
        condition = f"{match[0]} = {match[1]}" if match else None

        def search(query: Any) -> Any:
            plan = table.search(query).distance_type("cosine").ef(ef).refine_factor(2).limit(k)
            plan = plan.select(["id", "_distance"])
            if condition:
                plan = plan.where(condition, prefilter=True)
            return plan.to_arrow()

        return search

    def batcher(self, k: int) -> Callable[[Any], Any]:
        return self.searcher(k)

    def prepare_batch(self, queries: Floats) -> Any:
        return list(queries)

    def ids(self, answer: Any) -> Sequence[int]:
        found: list[int] = answer["id"].to_pylist()
        return found

    def close(self) -> None:
        del self._table


class Chroma(Engine):
    """Chroma's persistent client with its HNSW defaults; the knob is `ef_search`."""

    name = "chroma"
    modules = ("chromadb",)
    durability = "committed to SQLite in WAL mode"
    settings = "HNSW max_neighbors 16, ef_construction 100; knob: ef_search"
    knobs = (10, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512)

    def _client(self) -> Any:
        import chromadb

        return chromadb.PersistentClient(
            str(self.folder), settings=chromadb.config.Settings(anonymized_telemetry=False)
        )

    def create(self) -> None:
        self._points = self._client().create_collection(
            "points", configuration={"hnsw": {"space": "cosine"}}, embedding_function=None
        )

    def open(self) -> None:
        self._points = self._client().get_collection("points", embedding_function=None)

    def ingest(self, ids: list[int], vectors: Floats, payloads: list[dict[str, Any]]) -> None:
        self._points.add(ids=[str(id) for id in ids], embeddings=vectors, metadatas=payloads)

    def build(self) -> None:
        # Its index takes up what the log holds at the next query.
        self._points.query(query_embeddings=np.ones((1, self.dim), np.float32), n_results=1, include=[])

    def turn(self, knob: float) -> None:
        self.knob = knob
        self._points.modify(configuration={"hnsw": {"ef_search": int(knob)}})
        # An open client goes on with the setting that it was opened with.
        from chromadb.api.client import SharedSystemClient

        SharedSystemClient.clear_system_cache()
        self.open()

    def searcher(self, k: int, match: Match = None) -> Callable[[Any], Any]:
        query, where = self._points.query, ({match[0]: match[1]} if match else None)
        return lambda vector: query(query_embeddings=[vector], n_results=k, where=where, include=["distances"])

    def batcher(self, k: int) -> Callable[[Any], Any]:
        query = self._points.query
        return lambda vectors: query(query_embeddings=vectors, n_results=k, include=["distances"])

    def prepare_batch(self, queries: Floats) -> Any:
        return list(queries)

    def ids(self, answer: Any) -> Sequence[int]:
        return [int(id) for id in answer["ids"][0]]

    def close(self) -> None:
        del self._points


class Hnswlib(Engine):
    """hnswlib: a graph in memory, no payloads, no durability; the knob is `ef`. Filters are Python callbacks."""

    name = "hnswlib"
    modules = ("hnswlib",)
    durability = "none: held in memory until save_index"
    settings = "M 16, ef_construction 200; knob: ef"
    knobs = (10, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512)

    def create(self) -> None:
        import hnswlib

        self._index = hnswlib.Index(space="cosine", dim=self.dim)
        self._index.init_index(1_000_000, M=16, ef_construction=200)
        self._fields: dict[str, list[int]] = {"percent": [], "decile": []}

    def open(self) -> None:
        import hnswlib

        self._index = hnswlib.Index(space="cosine", dim=self.dim)
        self._index.load_index(str(self.folder / "graph"))

    def ingest(self, ids: list[int], vectors: Floats, payloads: list[dict[str, Any]]) -> None:
        self._index.add_items(vectors, ids)
        for field, values in self._fields.items():
            values.extend(payload[field] for payload in payloads)

    def build(self) -> None:
        self._index.resize_index(self._index.get_current_count())

    def turn(self, knob: float) -> None:
        self.knob = knob
        self._index.set_ef(int(knob))

    def searcher(self, k: int, match: Match = None) -> Callable[[Any], Any]:
        query = self._index.knn_query
        if match is None:
            return lambda vector: query(vector, k, num_threads=1)
        matches = [value == match[1] for value in self._fields[match[0]]]
        return lambda vector: query(vector, k, num_threads=1, filter=matches.__getitem__)

    def batcher(self, k: int) -> Callable[[Any], Any]:
        query = self._index.knn_query
        return lambda vectors: query(vectors, k)

    def ids(self, answer: Any) -> Sequence[int]:
        found: list[int] = answer[0][0].tolist()
        return found

    def close(self) -> None:
        self.folder.mkdir(exist_ok=True)
        self._index.save_index(str(self.folder / "graph"))


ENGINES: dict[str, type[Engine]] = {
    engine.name: engine for engine in (Vecstore, Qdrant, QdrantFlushed, QdrantInt8, LanceDB, Chroma, Hnswlib)
}


def import_all(engine: type[Engine]) -> None:
    """Import what an engine's process needs, so that the memory counted afterwards is its own."""
    for module in (*engine.modules, "numpy"):
        importlib.import_module(module)
