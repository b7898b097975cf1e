"""What goes in and what comes out: frozen values of plain Python types, the same embedded and remote."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, overload

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import pyarrow as pa

    from .filters import Condition

__all__ = [
    "TLS",
    "Ack",
    "ArrowStream",
    "FieldType",
    "Filter",
    "Hit",
    "Hits",
    "Id",
    "Ids",
    "Metric",
    "Payload",
    "Point",
    "SearchBatch",
    "Snapshot",
    "Written",
]

Id = int | str
"""An integer from 0 to 2**63-1, or 1 to 512 bytes of UTF-8; a `uuid.UUID` counts as its string."""
Ids: TypeAlias = "Id | Sequence[Id] | npt.NDArray[Any] | pa.Array[Any]"
Filter: TypeAlias = "Condition | Mapping[str, Any]"
Payload = Mapping[str, Any]
"""JSON values by key."""
Ack = Literal["durable", "replicated", "memory"]
Metric = Literal["cosine", "ip", "l2"]
FieldType = Literal[
    "string",
    "int64",
    "float64",
    "bool",
    "timestamp",
    "list<string>",
    "list<int64>",
    "list<float64>",
    "list<bool>",
    "list<timestamp>",
]


class ArrowStream(Protocol):
    """Anything that gives an Arrow stream: pandas, polars, a pyarrow table, reader or dataset scanner."""

    def __arrow_c_stream__(self, requested_schema: object = None) -> object: ...


@dataclass(frozen=True, slots=True)
class Point:
    """One point of a collection.

    Attributes
    ----------
    id
        As it was written.
    payload
        The payload, or the part of it that was asked for.
    vector
        float32 of shape (dim,), as it was given; None unless asked for.
    """

    id: Id
    payload: dict[str, Any]
    vector: npt.NDArray[np.float32] | None


@dataclass(frozen=True, slots=True)
class Hit(Point):
    """A point that a search found, with its exact score.

    Attributes
    ----------
    score
        Cosine similarity or inner product (higher is nearer), or squared Euclidean distance (lower is nearer).
    """

    score: float


@dataclass(frozen=True, slots=True)
class Written:
    """What a write did.

    Attributes
    ----------
    lsn
        Of the last record written; of the newest record seen where nothing had to be written.
    count
        Points written, or removed.
    token
        Opaque place in the history; give it to a read as `after=`. Empty where the write is not yet durable.
    ack
        The level reached.
    """

    lsn: int
    count: int
    token: str
    ack: Ack


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot in a repository: its state is that of the source at `lsn`."""

    id: str
    lsn: int
    time: datetime
    bytes_new: int


@dataclass(frozen=True, slots=True)
class TLS:
    """How connections to servers are secured.

    Attributes
    ----------
    ca
        File of the certificate authority that signed the server's certificate, in PEM; None: the one that `VECSTORE_CA`
        names, else the authorities that come with gRPC.
    cert, key
        Files of the client's own certificate and key, in PEM, where the server asks for one (mutual TLS).
    """

    ca: str | None = None
    cert: str | None = None
    key: str | None = None


class Hits(Sequence[Hit]):
    """The hits of one query, nearest first, ties by id.

    Parameters
    ----------
    hits
        In order.
    lsn
        Of the view searched.
    exact
        Whether every matching point was compared.
    """

    __slots__ = ("_hits", "exact", "lsn")

    lsn: int
    exact: bool

    def __init__(self, hits: Sequence[Hit], lsn: int, exact: bool) -> None:
        self._hits = hits
        self.lsn = lsn
        self.exact = exact

    @overload
    def __getitem__(self, i: int) -> Hit: ...
    @overload
    def __getitem__(self, i: slice) -> Sequence[Hit]: ...
    def __getitem__(self, i: int | slice) -> Hit | Sequence[Hit]:
        return self._hits[i]

    def __len__(self) -> int:
        return len(self._hits)

    def __iter__(self) -> Iterator[Hit]:
        return iter(self._hits)

    def __repr__(self) -> str:
        return f"Hits({list(self._hits)!r}, lsn={self.lsn}, exact={self.exact})"


class SearchBatch(Sequence[Hits]):
    """The hits of a batch of queries.

    Parameters
    ----------
    ids
        Shape (queries, k): int64 padded with -1, or object padded with None.
    scores
        float32 of shape (queries, k), padded with nan.
    rows
        Makes the `Hits` of one query.
    lsn
        Of the view searched.
    """

    __slots__ = ("ids", "lsn", "rows", "scores")

    ids: npt.NDArray[Any]
    scores: npt.NDArray[np.float32]
    rows: Sequence[Hits]
    lsn: int

    def __init__(self, ids: npt.NDArray[Any], scores: npt.NDArray[np.float32], rows: Sequence[Hits], lsn: int) -> None:
        self.ids = ids
        self.scores = scores
        self.lsn = lsn
        self.rows = rows

    @overload
    def __getitem__(self, i: int) -> Hits: ...
    @overload
    def __getitem__(self, i: slice) -> Sequence[Hits]: ...
    def __getitem__(self, i: int | slice) -> Hits | Sequence[Hits]:
        return self.rows[i]

    def __len__(self) -> int:
        return len(self.scores)

    def __repr__(self) -> str:
        return f"SearchBatch(queries={len(self)}, k={self.scores.shape[1]}, lsn={self.lsn})"
