"""Reads JSON lines into batches: one object a line, one key the vector, one the id, all others the payload."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np
import numpy.typing as npt

from ..config import MIB
from ..errors import InvalidArgument
from .batch import BATCH_VECTOR_BYTES, Batch, Description, Place, Wanted, checked_ids, checked_vectors, rows_max

__all__ = ["LineSource"]

LINE_BYTES_MAX = 4 * MIB
"""A payload of 1 MiB and the longest vector fit."""


class LineSource:
    """A file of JSON lines; lines without anything on them are no rows."""

    def __init__(self, path: str, id_column: str | None, vector_column: str | None) -> None:
        self.path = path
        self._size = Path(path).stat().st_size
        self._read_rows = self._read_bytes = 0
        first = next(iter(self._objects(0)), None)
        if first is None:
            raise InvalidArgument(f"{path}: no rows", details={"file": path})
        self._vector = vector_column or "vector"
        self._id = id_column or ("id" if "id" in first[1] else None)
        self._describe = Description(len(self._value(first[1], self._vector, 0)))

    def rows(self) -> int | None:
        """Return an estimate, which is exact once the last line was read."""
        if not self._read_bytes:
            return None
        return max(self._read_rows, self._read_rows * self._size // self._read_bytes)

    def describe(self) -> Description:
        return self._describe

    def batches(self, start: int, wanted: Wanted) -> Iterator[Batch]:
        count, rows, row, held = rows_max(wanted), [], start, 0
        for size, value in self._objects(start):
            rows.append(value)
            held += size
            if len(rows) == count or held >= BATCH_VECTOR_BYTES:
                yield self._batch(rows, row, wanted)
                row += len(rows)
                rows, held = [], 0
        if rows:
            yield self._batch(rows, row, wanted)

    def _batch(self, rows: list[dict[str, Any]], row: int, wanted: Wanted) -> Batch:
        place = Place(self.path, self._vector)
        vectors = np.empty((len(rows), wanted.dim), np.float64)
        for i, value in enumerate(rows):
            vectors[i] = self._numbers(value, row + i, wanted.dim)
            del value[self._vector]
        ids: npt.NDArray[np.int64] | list[str] | None = None
        if self._id is not None:
            found = [value.pop(self._id, None) for value in rows]
            ids = checked_ids(found, row, Place(self.path, self._id))
        return Batch(row, ids, checked_vectors(vectors, row, place, wanted), rows)

    def _numbers(self, value: dict[str, Any], row: int, dim: int) -> npt.NDArray[Any]:
        place = Place(self.path, self._vector)
        given = self._value(value, self._vector, row)
        if len(given) != dim:
            raise place.error(f"a vector of {len(given)} numbers; the collection has {dim}", row)
        # numpy would read strings as numbers and True as 1: a vector is a list of JSON numbers.
        wrong = next((number for number in given if type(number) is not float and type(number) is not int), None)
        if wrong is not None or None in given:
            raise place.error(f"{wrong!r} in the vector; numbers are allowed", row)
        return np.asarray(given, np.float64)

    def _value(self, value: dict[str, Any], column: str, row: int) -> list[Any]:
        found = value.get(column)
        if not isinstance(found, list):
            keys = ", ".join(value)
            what = f"{type(found).__name__} instead of a list" if column in value else f"missing; the line has {keys}"
            raise Place(self.path, column).error(f"the vector is {what}", row, hint="--vector COLUMN")
        return found

    def _objects(self, start: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """Read objects, and the bytes of each line, from row `start` on."""
        row = 0
        self._read_rows = self._read_bytes = 0
        with Path(self.path).open("rb") as file:
            for number, line in _lines(file, self.path):
                self._read_bytes += len(line)
                if not line.strip():
                    continue
                self._read_rows = row + 1
                if row >= start:
                    yield len(line), self._object(line, row, number)
                row += 1

    def _object(self, line: bytes, row: int, number: int) -> dict[str, Any]:
        try:
            value = msgspec.json.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as exc:
            raise self._error(row, number, f"not JSON: {exc}") from exc
        if not isinstance(value, dict):
            raise self._error(row, number, f"a JSON object is expected, not {type(value).__name__}")
        return value

    def _error(self, row: int, number: int, text: str) -> InvalidArgument:
        details = {"file": self.path, "row": row, "column": None, "line": number}
        return InvalidArgument(f"{self.path}: row {row} (line {number}): {text}", details=details)


def _lines(file: BinaryIO, path: str) -> Iterator[tuple[int, bytes]]:
    """Read lines with their numbers, from 1, none longer than the limit."""
    number = 0
    while line := file.readline(LINE_BYTES_MAX + 1):
        number += 1
        if len(line) > LINE_BYTES_MAX:
            details = {"file": path, "line": number}
            raise InvalidArgument(f"{path}: line {number} has more than {LINE_BYTES_MAX:,} bytes", details=details)
        yield number, line
