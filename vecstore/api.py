"""The interface, embedded and remote: `Database` and `Collection`.

These are the classes that callers name in their annotations. The engine (`vecstore.engine`) and the remote client
implement them; nothing here computes. Calls are thread-safe. Everything after the data arguments is keyword-only.

Where a call takes `timeout` (seconds), None waits for ever when embedded.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy.typing as npt

from .values import (
    Ack,
    ArrowStream,
    FieldType,
    Filter,
    Hits,
    Id,
    Ids,
    Metric,
    Payload,
    Point,
    SearchBatch,
    Snapshot,
    Written,
)

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Collection", "Database"]


class Collection(ABC):
    """A handle on one collection, for good: after drop and re-create under the same name it raises `NotFound`.

    Attributes
    ----------
    name
        The collection's name now; a handle follows renames.
    dim
        Length of every vector.
    metric
        "cosine" or "ip" (higher is nearer), or "l2" (squared, lower is nearer).
    fields
        The declared fields, which filters may name, with their types.
    metadata
        What the creator said of the collection.
    number
        The collection's number: it keeps it through renames, and no other of the store ever has it.
    id_kind
        What its ids are: "int" or "str", or "" where it never had a point.
    """

    @property
    @abstractmethod
    def name(self) -> str: ...

    @property
    @abstractmethod
    def dim(self) -> int: ...

    @property
    @abstractmethod
    def metric(self) -> Metric: ...

    @property
    @abstractmethod
    def fields(self) -> dict[str, FieldType]: ...

    @property
    @abstractmethod
    def metadata(self) -> dict[str, Any]: ...

    @property
    @abstractmethod
    def number(self) -> int: ...

    @property
    @abstractmethod
    def id_kind(self) -> Literal["int", "str", ""]: ...

    @abstractmethod
    def upsert(
        self,
        ids: Ids,
        vectors: npt.ArrayLike,
        payloads: Sequence[Payload] | pa.Table | None = None,
        *,
        ack: Ack = "durable",
        timeout: float | None = None,
    ) -> Written:
        """Write points whole, in one record: all of them or none.

        Parameters
        ----------
        ids
            One id or a sequence of n; twice the same id: the last one counts.
        vectors
            Real numbers of shape (n, dim), or (dim,) for one id; rounded to float32 and kept as given.
        payloads
            n mappings of JSON values, or a table of n rows; none is ``{}``.
        ack
            "durable": synced before this returns. "memory": not yet synced, a crash may undo it.
        timeout
            Seconds to wait for the store to take the write.

        Returns
        -------
        Written
            `count` is the number of points written.

        Raises
        ------
        InvalidArgument
            Bad input, or more than a record holds (10,000 points or 32 MiB); nothing changed.
        Exhausted
            Disk or memory is below its floor; nothing changed.
        Unavailable
            The store stopped writing after an error of the disk; `outcome` says what became of this write.
        """

    @abstractmethod
    def upsert_table(
        self,
        table: ArrowStream,
        *,
        id: str = "id",
        vector: str = "vector",
        ack: Ack = "durable",
        progress: Callable[[int], None] | None = None,
        timeout: float | None = None,
    ) -> Written:
        """Write the rows of an Arrow stream, record by record.

        Parameters
        ----------
        table
            Any Arrow stream. Columns other than `id` and `vector` become the payload; nulls are left out.
        id, vector
            Names of the columns of ids, and of vectors (a list column of numbers).
        progress
            Called with the number of points committed so far.

        Returns
        -------
        Written
            `lsn` is the last record's.

        Raises
        ------
        VecstoreError
            `details["committed"]` says how many points were committed before.
        """

    @abstractmethod
    def update(
        self,
        ids: Ids,
        *,
        vectors: npt.ArrayLike | None = None,
        payloads: Sequence[Payload] | None = None,
        ack: Ack = "durable",
        timeout: float | None = None,
    ) -> Written:
        """Change existing points: given vectors replace, given payload keys are merged, a value of None removes its
        key.

        Returns
        -------
        Written
            `count` is the number of points that existed and were changed; absent ids are skipped.
        """

    @abstractmethod
    def delete(
        self,
        *,
        ids: Ids | None = None,
        filter: Filter | None = None,
        ack: Ack = "durable",
        timeout: float | None = None,
    ) -> Written:
        """Remove the points of exactly one of `ids` and `filter`.

        By ids it is one record; by filter it commits record by record.

        Returns
        -------
        Written
            `count` is the number of points that existed and were removed.
        """

    @abstractmethod
    def search(
        self,
        vector: npt.ArrayLike,
        k: int = 10,
        *,
        filter: Filter | None = None,
        recall: float | None = None,
        exact: bool = False,
        effort: int | None = None,
        offset: int = 0,
        score_threshold: float | None = None,
        with_payload: bool | Sequence[str] = True,
        with_vector: bool = False,
        after: str | Written | None = None,
        timeout: float | None = None,
    ) -> Hits:
        """Find the k points nearest to a vector.

        Parameters
        ----------
        vector
            Real numbers of shape (dim,).
        k
            1 to 10,000.
        filter
            A condition, or its dict form; only points that match are hits.
        recall
            The share of the true k nearest to expect, in (0, 1]; 0.95 unless given.
        exact
            Compare every matching point.
        effort
            For experts: nprobe or efSearch. Excludes `recall` and `exact`.
        offset
            Leave out so many of the nearest.
        score_threshold
            Leave out what is farther: lower than this for cosine and ip, higher for l2.
        with_payload
            True, False, or the keys wanted.
        after
            A token or `Written`: wait until this store has applied it.

        Returns
        -------
        Hits
            Nearest first, ties by id, scores exact.
        """

    @abstractmethod
    def search_batch(
        self,
        vectors: npt.ArrayLike,
        k: int = 10,
        *,
        filter: Filter | None = None,
        recall: float | None = None,
        exact: bool = False,
        effort: int | None = None,
        with_payload: bool | Sequence[str] = False,
        after: str | Written | None = None,
        timeout: float | None = None,
    ) -> SearchBatch:
        """Find the k points nearest to each of a batch of vectors of shape (queries, dim), all on one view."""

    @abstractmethod
    def get(
        self,
        ids: Ids,
        *,
        with_payload: bool | Sequence[str] = True,
        with_vector: bool = False,
        after: str | Written | None = None,
        timeout: float | None = None,
    ) -> list[Point]:
        """Return the points of these ids in the order asked; those that do not exist are left out."""

    @abstractmethod
    def scan(
        self,
        filter: Filter | None = None,
        *,
        start: Id | None = None,
        limit: int | None = None,
        with_payload: bool | Sequence[str] = True,
        with_vector: bool = False,
        after: str | Written | None = None,
    ) -> Iterator[Point]:
        """Iterate over the points in the order of their ids, from `start` (included), all on one view."""

    @abstractmethod
    def to_arrow(self, filter: Filter | None = None, *, with_vector: bool = True) -> pa.RecordBatchReader:
        """Return the points as an Arrow stream in the order of their ids.

        Columns: `id`, `vector` (fixed-size list of float32), one for each declared field, and `payload` (JSON text).
        """

    @abstractmethod
    def count(
        self, filter: Filter | None = None, *, after: str | Written | None = None, timeout: float | None = None
    ) -> int:
        """Return the number of points that match."""

    @abstractmethod
    def add_field(self, name: str, type: FieldType) -> None:
        """Declare a field and fill it from the payloads; refused where a payload's value does not fit."""

    @abstractmethod
    def optimize(self, *, progress: Callable[[int, int], None] | None = None, timeout: float | None = None) -> None:
        """Wait until every row present now is sealed, merged and indexed.

        `progress` is called with rows done and rows in all.
        """


class Database(ABC):
    """A store, embedded or remote. A context manager that closes it."""

    def __enter__(self) -> Database:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None:
        """Finish the calls that are under way and let the store go. Closing twice is harmless."""

    @abstractmethod
    def create_collection(
        self,
        name: str,
        dim: int,
        *,
        metric: Metric = "cosine",
        fields: Mapping[str, FieldType] | Literal["infer"] = {},
        index: str = "auto",
        shards: int = 1,
        metadata: Payload | None = None,
        exist_ok: bool = False,
    ) -> Collection:
        """Create a collection.

        Parameters
        ----------
        name
            ``[A-Za-z0-9._-]{1,255}``.
        dim
            1 to 16,384.
        fields
            The fields that filters may name, with their types; "infer" declares them as payloads bring them.
        index
            "auto", "flat", "ivf_flat", "ivf_pq", "ivf_sq8" or "hnsw".
        shards
            Hash partitions: the unit of index build and parallel search.
        metadata
            Any JSON object, kept with the collection.
        exist_ok
            Return the collection that exists, if it was created with the same arguments.
        """

    @abstractmethod
    def collection(self, name: str) -> Collection:
        """Return a handle on the collection of this name."""

    @abstractmethod
    def collections(self) -> list[str]:
        """Return the names of all collections, sorted."""

    @abstractmethod
    def rename_collection(self, name: str, to: str, *, replace: bool = False) -> None:
        """Give a collection another name; with `replace` the one that had it is dropped in the same record."""

    @abstractmethod
    def drop_collection(self, name: str, *, missing_ok: bool = False) -> None:
        """Drop a collection: immediate, in one record; its space is freed later."""

    @abstractmethod
    def wait(self, token: str, *, ack: Ack = "durable", timeout: float | None = None) -> Written:
        """Find out what became of a write: wait until this store holds the record of a token or request id."""

    @abstractmethod
    def status(self) -> dict[str, Any]:
        """Return what there is to know of the store, as one tree of plain values."""

    def position(self) -> tuple[int, int]:
        """Return epoch and LSN of the newest state that a read would be given: `status` in the shortest form."""
        status = self.status()
        return status["epoch"], status["lsn"]

    @abstractmethod
    def verify(self, *, progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
        """Recompute chain and digests from the bytes.

        Returns
        -------
        dict
            ``ok``, ``lsn``, ``chain``, ``collections`` (name to digest, count) and ``damaged``, a list with a place
            each.
        """

    def snapshot(self, repository: str) -> Snapshot:
        """Write a snapshot of the store, as it is at one LSN, to a repository; writes go on meanwhile.

        Parameters
        ----------
        repository
            A path, or a URL that begins with s3, gs or az (credentials by the usual environment). It is made where
            there is none. What it holds already is not uploaded again.

        Returns
        -------
        Snapshot
            Its id, LSN, commit time, and the bytes that were new.
        """
        raise NotImplementedError(f"{type(self).__name__} takes no snapshots")
