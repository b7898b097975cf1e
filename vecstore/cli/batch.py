"""What importers read files into: batches of points, checked row by row, each small enough for one record.

Pure: nothing here opens a file. An error names the file, the row (from 0) and the column.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..config import ID_BYTES_MAX, ID_INT_MAX, MIB, RECORD_POINTS_MAX
from ..errors import InvalidArgument
from ..values import Id

__all__ = ["Batch", "Description", "Place", "Source", "Wanted", "checked_ids", "checked_vectors", "rows_max"]

BATCH_VECTOR_BYTES = 8 * MIB
BATCH_PAYLOAD_BYTES = 16 * MIB
"""With the vectors it leaves room for ids in a record of 32 MiB."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows that follow each other in one file.

    Attributes
    ----------
    row
        Of the first of them, from 0.
    ids
        int64 or strings; None where the number of a row is its id.
    vectors
        float32 of shape (rows, dim).
    payloads
        One for each row, or None for none.
    """

    row: int
    ids: npt.NDArray[np.int64] | list[str] | None
    vectors: npt.NDArray[np.float32]
    payloads: list[dict[str, Any]] | None

    def __len__(self) -> int:
        return len(self.vectors)

    def named(self, base: int) -> list[Id]:
        """Return the ids, where the file's first row has the number `base`."""
        if self.ids is None:
            return list(range(base + self.row, base + self.row + len(self)))
        return self.ids.tolist() if isinstance(self.ids, np.ndarray) else list(self.ids)

    def halves(self) -> tuple[Batch, Batch]:
        """Split a batch of two or more rows."""
        middle = len(self) // 2
        first = Batch(
            self.row,
            None if self.ids is None else self.ids[:middle],
            self.vectors[:middle],
            self.payloads and self.payloads[:middle],
        )
        second = Batch(
            self.row + middle,
            None if self.ids is None else self.ids[middle:],
            self.vectors[middle:],
            self.payloads and self.payloads[middle:],
        )
        return first, second


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the collection asks of a batch.

    Attributes
    ----------
    dim
        Length of every vector.
    cosine
        Whether a zero vector has no place.
    batch_rows_max
        Rows in one batch.
    """

    dim: int
    cosine: bool
    batch_rows_max: int


@dataclass(frozen=True, slots=True)
class Description:
    """What a file says of the collection that would hold it; None where it says nothing."""

    dim: int
    metric: str | None = None
    fields: Mapping[str, str] | None = None
    index: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


class Source(Protocol):
    """A file of points."""

    path: str

    def rows(self) -> int | None:
        """Return how many rows the file has: exact, or estimated from what was read so far, or None."""
        ...

    def describe(self) -> Description:
        """Return what the file says of itself."""
        ...

    def batches(self, start: int, wanted: Wanted) -> Iterator[Batch]:
        """Read from row `start` on, in batches that one record holds, in bounded memory."""
        ...


@dataclass(frozen=True, slots=True)
class Place:
    """A column of a file, for errors."""

    path: str
    column: str

    def error(self, text: str, row: int | None = None, hint: str = "") -> InvalidArgument:
        """Return the error for what stands in this column, at this row."""
        where = f"row {row}, " if row is not None else ""
        details = {"file": self.path, "row": row, "column": self.column}
        return InvalidArgument(f"{self.path}: {where}column {self.column!r}: {text}", hint=hint, details=details)


def rows_max(wanted: Wanted) -> int:
    """Return how many rows a batch may have, so that its vectors leave room in a record."""
    return max(1, min(wanted.batch_rows_max, RECORD_POINTS_MAX, BATCH_VECTOR_BYTES // (wanted.dim * 4)))


def checked_vectors(values: npt.NDArray[Any], row: int, place: Place, wanted: Wanted) -> npt.NDArray[np.float32]:
    """Return vectors as float32, or say which row is not one.

    Parameters
    ----------
    values
        Real numbers of shape (rows, dim).
    row
        Number of the first row.
    """
    if values.dtype.kind not in "iuf":
        raise place.error(f"vectors of {values.dtype}; real numbers are allowed")
    if values.ndim != 2 or values.shape[1] != wanted.dim:
        width = values.shape[1] if values.ndim == 2 else f"shape {values.shape}"
        raise place.error(f"vectors of {width} numbers; the collection has {wanted.dim}", row)
    with np.errstate(over="ignore"):
        vectors = np.ascontiguousarray(values, np.float32)
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        bad = int(np.flatnonzero(~finite)[0])
        value = values[bad][~np.isfinite(vectors[bad])][0]
        raise place.error(f"{value} in the vector; finite float32 numbers are allowed", row + bad)
    if wanted.cosine:
        alive = vectors.any(axis=1)
        if not alive.all():
            bad = int(np.flatnonzero(~alive)[0])
            raise place.error("a zero vector has no direction, which the metric cosine needs", row + bad)
    return vectors


def checked_ids(values: npt.NDArray[Any] | Sequence[Any], row: int, place: Place) -> npt.NDArray[np.int64] | list[str]:
    """Return ids as int64 or strings, or say which row is not one."""
    if isinstance(values, np.ndarray) and values.dtype.kind in "iu":
        bad = (values < 0) if values.dtype.kind == "i" else (values > ID_INT_MAX)
        if bad.any():
            first = int(np.flatnonzero(bad)[0])
            raise place.error(f"id {values[first]}; integers from 0 to {ID_INT_MAX} are allowed", row + first)
        return values.astype(np.int64)
    listed: list[Any] = values.tolist() if isinstance(values, np.ndarray) else list(values)
    kind: type = str if listed and isinstance(listed[0], str) else int
    for i, value in enumerate(listed):
        _check_id(value, kind, row + i, place)
    return np.array(listed, np.int64) if kind is int else listed


def _check_id(value: Any, kind: type, row: int, place: Place) -> None:
    if value is None:
        raise place.error("an id is missing", row)
    if type(value) is not kind or not isinstance(value, int | str):
        allowed = "integers and strings, of one kind, are allowed"
        raise place.error(f"id {value!r} is a {type(value).__name__}; {allowed}", row)
    if isinstance(value, int):
        if not 0 <= value <= ID_INT_MAX:
            raise place.error(f"id {value}; integers from 0 to {ID_INT_MAX} are allowed", row)
    elif not 1 <= len(value.encode()) <= ID_BYTES_MAX:
        raise place.error(f"id of {len(value.encode())} bytes; 1 to {ID_BYTES_MAX} are allowed", row)
