"""The declared fields of the rows of one shard, by row number, and which rows a filter matches.

Derived from the payloads, in memory, and written beside an extent's rows so that a reopen needn't parse them. It is no
place to check values (`vecstore.payload.check` does that before the log). Nothing here does I/O.

One thread writes (`put`, `load`, `clear`); readers run beside it on rows that were written before. `grown`,
`with_field` and `widened` return another object; readers may use this one for good, but nothing more is written to it.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter, methodcaller
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import xxhash

from ..errors import Damaged
from ..filters import All, AnyOf, Compare, Condition, IsIn, IsNull, Not
from ..values import FieldType
from .column import Column, Reader, ScalarColumn, column

__all__ = ["Columns"]

_SECTION = struct.Struct("<HHI")
_FIELD = struct.Struct("<IIQ")
_HASH_BYTES = 8
_VERSION = 1


class Columns:
    """Columns of the declared fields.

    Parameters
    ----------
    fields
        The declared fields with their types.
    capacity
        Rows there is space for; all are null at first.

    Attributes
    ----------
    fields
        As given.
    capacity
        As given.
    """

    __slots__ = ("_columns", "capacity", "fields")

    def __init__(self, fields: Mapping[str, FieldType], capacity: int) -> None:
        self.fields = dict(fields)
        self.capacity = capacity
        self._columns: dict[str, Column] = {name: column(type, capacity) for name, type in fields.items()}

    def put(self, start: int, payloads: Sequence[bytes] | Sequence[Mapping[str, Any]]) -> None:
        """Write the fields of rows from `start`, one a payload (canonical JSON, or the mapping it was made of)."""
        if not self._columns:
            return
        self._check_rows(start, start + len(payloads))
        if payloads and isinstance(payloads[0], bytes):
            decode, readers = _decoder(tuple(self._columns))
            rows = [decode(payload) for payload in payloads]
            for read, of in zip(readers, self._columns.values(), strict=True):
                of.put(start, list(map(read, rows)))
            return
        for name, of in self._columns.items():
            of.put(start, [row.get(name) for row in payloads])  # type: ignore[union-attr]

    def clear(self, start: int, stop: int) -> None:
        """Make rows null, so that their slot can be used again."""
        self._check_rows(start, stop)
        for of in self._columns.values():
            of.clear(start, stop)

    def _check_rows(self, start: int, stop: int) -> None:
        assert 0 <= start <= stop <= self.capacity, f"rows {start} to {stop} of {self.capacity}"

    def grown(self, capacity: int) -> Columns:
        """Return columns with the same content and space for more rows."""
        assert capacity >= self.capacity, f"{capacity} rows are fewer than {self.capacity}"
        return self._with({name: of.grown(capacity) for name, of in self._columns.items()}, self.fields, capacity)

    def with_field(self, name: str, type: FieldType) -> Columns:
        """Return columns with this field added, or of another type: null in every row. The other fields are shared."""
        columns = {**self._columns, name: column(type, self.capacity)}
        return self._with(columns, {**self.fields, name: type}, self.capacity)

    def widened(self, name: str) -> Columns:
        """Return columns in which this int64 field is float64, with its content."""
        of = self._columns[name]
        assert isinstance(of, ScalarColumn) and of.type == "int64", f"{name} is {of.type}"
        return self._with({**self._columns, name: of.widened()}, {**self.fields, name: "float64"}, self.capacity)

    @staticmethod
    def _with(columns: dict[str, Column], fields: Mapping[str, FieldType], capacity: int) -> Columns:
        other = Columns({}, capacity)
        other.fields = dict(fields)
        other._columns = columns
        return other

    @property
    def nbytes(self) -> int:
        """Memory taken, dictionaries included (estimated)."""
        return sum(of.nbytes for of in self._columns.values())

    # -- filters -----------------------------------------------------------------------------------------------------

    def matches(self, condition: Condition, start: int, stop: int) -> npt.NDArray[np.bool_]:
        """Return which of the rows start .. stop-1 match a parsed condition; the array is the caller's."""
        match condition:
            case Compare(field, operator, value):
                return self._columns[field].compare(operator, value, start, stop)
            case IsIn(field, values):
                return self._columns[field].is_in(values, start, stop)
            case IsNull(field):
                return self._columns[field].nulls(start, stop)
            case Not(inner):
                mask = self.matches(inner, start, stop)
                return np.logical_not(mask, out=mask)
            case All(conditions):
                return self._joined(conditions, np.logical_and, start, stop)
            case AnyOf(conditions):
                return self._joined(conditions, np.logical_or, start, stop)
        raise AssertionError(f"{condition!r} is not parsed")

    def _joined(self, conditions: Sequence[Condition], join: np.ufunc, start: int, stop: int) -> npt.NDArray[np.bool_]:
        mask = np.full(stop - start, join is np.logical_and, dtype=np.bool_)
        for condition in conditions:
            join(mask, self.matches(condition, start, stop), out=mask)
        return mask

    # -- an extent's section -----------------------------------------------------------------------------------------

    def dump(self, start: int, stop: int) -> bytes:
        """Return the section that keeps the fields of rows in an extent's file.

        A header (version, fields, rows); for each field its name, type and columnar content, strings with a dictionary
        of their own; a hash of all that.
        """
        self._check_rows(start, stop)
        parts = [_SECTION.pack(_VERSION, len(self._columns), stop - start)]
        for name, of in self._columns.items():
            label, type, content = name.encode(), of.type.encode(), of.dump(start, stop)
            parts += (_FIELD.pack(len(label), len(type), len(content)), label, type, content)
        body = b"".join(parts)
        return body + xxhash.xxh3_64_digest(body)

    def load(self, start: int, rows: int, data: bytes | memoryview) -> tuple[str, ...]:
        """Write the fields of rows from their section.

        Returns
        -------
        tuple of str
            Declared fields that the section lacks, or has in another type: they are null now, to be filled from the
            payloads.

        Raises
        ------
        Damaged
            The bytes are not a section of so many rows; nothing was written.
        """
        self._check_rows(start, start + rows)
        try:
            stores = self._stores(Reader(_proven(memoryview(data))), rows)
        except (ValueError, struct.error) as exc:
            raise Damaged(f"the fields of rows {start} to {start + rows - 1} cannot be read: {exc}") from exc
        for name, of in self._columns.items():
            if name in stores:
                stores[name](start)
            else:
                of.clear(start, start + rows)
        return tuple(name for name in self._columns if name not in stores)

    def _stores(self, reader: Reader, rows: int) -> dict[str, Any]:
        version, fields, rows_there = _SECTION.unpack(reader.take(_SECTION.size))
        if version != _VERSION or rows_there != rows:
            raise ValueError(f"version {version} with {rows_there} rows; version {_VERSION} with {rows} expected")
        stores = {}
        for _ in range(fields):
            name_bytes, type_bytes, content_bytes = _FIELD.unpack(reader.take(_FIELD.size))
            name, type = str(reader.take(name_bytes), "utf-8"), str(reader.take(type_bytes), "utf-8")
            content = Reader(reader.take(content_bytes))
            of = self._columns.get(name)
            if of is not None and of.type == type:
                stores[name] = of.load(content, rows)
                if content.left():
                    raise ValueError(f"{content.left()} bytes too many in field {name}")
        if reader.left():
            raise ValueError(f"{reader.left()} bytes too many")
        return stores


@functools.lru_cache(256)
def _decoder(names: tuple[str, ...]) -> tuple[Callable[[Any], Any], tuple[Callable[[Any], Any], ...]]:
    """Return what reads these fields of a payload and skips all others, and what reads each of what it gives.

    Half the time of a dict of everything, and nothing that the garbage collector counts. Names that JSON has to escape
    are none that msgspec looks for: then it is a dict.
    """
    if any(letter in '"\\' or letter < " " for name in names for letter in name):
        return msgspec.json.decode, tuple(methodcaller("get", name) for name in names)
    attributes = [f"field_{i}" for i in range(len(names))]
    fields = [(attribute, Any, None) for attribute in attributes]
    row = msgspec.defstruct("Row", fields, rename=dict(zip(attributes, names, strict=True)), gc=False)
    return msgspec.json.Decoder(row).decode, tuple(attrgetter(attribute) for attribute in attributes)


def _proven(data: memoryview) -> memoryview:
    """Return the section without its hash, which must hold."""
    body = data[:-_HASH_BYTES]
    if len(data) < _HASH_BYTES or xxhash.xxh3_64_digest(body) != bytes(data[-_HASH_BYTES:]):
        raise ValueError("its hash does not hold")
    return body
