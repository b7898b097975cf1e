"""Reads Parquet and Arrow files (both kinds of Arrow IPC) into batches. Needs pyarrow.

Every kind of list of numbers is a vector column; every kind of integer or string is an id column; all other columns
make the payload, nulls left out. In a payload, times without a zone are UTC, dates are their ISO form, decimals are
floats.

A file that `vecstore export` wrote says so in its metadata: its column `payload` then is the payload itself, whole, and
the columns of declared fields, which repeat it, are not read again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from ..errors import InvalidArgument
from .batch import BATCH_PAYLOAD_BYTES, Batch, Description, Place, Wanted, checked_ids, checked_vectors, rows_max

__all__ = ["EXPORT_KEY", "ArrowSource", "ParquetSource"]

EXPORT_KEY = b"vecstore"
"""The key of the schema's metadata under which an export describes its collection, as JSON."""
_READ_BYTES = 1 << 20


class _TableSource:
    """Columns of a file and how they become points; subclasses give the record batches."""

    def __init__(self, path: str, schema: pa.Schema, id_column: str | None, vector_column: str | None) -> None:
        self.path = path
        self._schema = schema
        exported = (schema.metadata or {}).get(EXPORT_KEY)
        self._export: dict[str, Any] | None = msgspec.json.decode(exported) if exported else None
        self._id = _id_column(path, schema, id_column)
        self._vector = _vector_column(path, schema, vector_column)
        taken = {self._id, self._vector}
        if self._export is not None:
            self._payload = ["payload"] if "payload" in schema.names else []
        else:
            self._payload = [name for name in schema.names if name not in taken]
            for name in self._payload:
                _check_payload_type(Place(path, name), schema.field(name).type)
        self.columns = [name for name in schema.names if name in taken or name in self._payload]

    def rows(self) -> int | None:
        raise NotImplementedError

    def record_batches(self, start: int, rows: int) -> Iterator[pa.RecordBatch]:
        """Read from row `start` on, about `rows` at once."""
        raise NotImplementedError

    def describe(self) -> Description:
        if self._export is not None:
            known = self._export
            return Description(known["dim"], known["metric"], known["fields"], known.get("index"), known["metadata"])
        fields = {name: _field_type(self._schema.field(name).type) for name in self._payload}
        return Description(self._dim(), fields={name: kind for name, kind in fields.items() if kind})

    def batches(self, start: int, wanted: Wanted) -> Iterator[Batch]:
        row = start
        for table in self.record_batches(start, rows_max(wanted)):
            for part in self._parts(table, rows_max(wanted)):
                yield self._batch(part, row, wanted)
                row += part.num_rows

    def _parts(self, table: pa.RecordBatch, rows: int) -> Iterator[pa.RecordBatch]:
        """Slice a record batch into parts that one record holds."""
        for offset in range(0, table.num_rows, rows):
            waiting = [table.slice(offset, rows)]
            while waiting:
                part = waiting.pop()
                if part.num_rows == 1 or _json_bytes_max(part.select(self._payload)) <= BATCH_PAYLOAD_BYTES:
                    yield part
                else:
                    middle = part.num_rows // 2
                    waiting += [part.slice(middle), part.slice(0, middle)]

    def _batch(self, part: pa.RecordBatch, row: int, wanted: Wanted) -> Batch:
        values = _matrix(part.column(self._vector), row, Place(self.path, self._vector), wanted.dim)
        vectors = checked_vectors(values, row, Place(self.path, self._vector), wanted)
        ids = None if self._id is None else _ids(part.column(self._id), row, Place(self.path, self._id))
        return Batch(row, ids, vectors, self._payloads(part, row))

    def _payloads(self, part: pa.RecordBatch, row: int) -> list[dict[str, Any]] | None:
        if self._export is not None and self._payload:
            return [_decoded(text, row + i, self.path) for i, text in enumerate(part.column("payload").to_pylist())]
        if not self._payload:
            return None
        columns = [_plain(part.column(name)) for name in self._payload]
        names = self._payload
        return [
            {name: value for name, value in zip(names, values, strict=True) if value is not None}
            for values in zip(*columns, strict=True)
        ]

    def _dim(self) -> int:
        kind = self._schema.field(self._vector).type
        if pa.types.is_fixed_size_list(kind):
            return int(kind.list_size)
        for table in self.record_batches(0, 1):
            for value in table.column(self._vector).slice(0, 1).to_pylist():
                if value:
                    return len(value)
            break
        raise Place(self.path, self._vector).error("no vector in the first row, so the dimension is not known", 0)


class ParquetSource(_TableSource):
    """A Parquet file, read a few row groups' pages at a time."""

    def __init__(self, path: str, id_column: str | None, vector_column: str | None) -> None:
        # Closed again at once: an import of thousands of files has one of them open at a time.
        try:
            with pq.ParquetFile(path) as file:
                self._metadata, schema = file.metadata, file.schema_arrow
        except (pa.ArrowException, OSError) as exc:
            raise _unreadable(path, "Parquet", exc) from exc
        super().__init__(path, schema, id_column, vector_column)

    def rows(self) -> int | None:
        return int(self._metadata.num_rows)

    def record_batches(self, start: int, rows: int) -> Iterator[pa.RecordBatch]:
        sizes = [self._metadata.row_group(i).num_rows for i in range(self._metadata.num_row_groups)]
        first = 0
        while first < len(sizes) and start >= sizes[first]:
            start -= sizes[first]
            first += 1
        yield from _after(_guarded(self.path, "Parquet", self._stored(list(range(first, len(sizes))), rows)), start)

    def _stored(self, groups: list[int], rows: int) -> Iterator[pa.RecordBatch]:
        # Without pre-buffering, memory is bounded by pages, not by row groups, which may be gigabytes.
        with pq.ParquetFile(self.path, metadata=self._metadata, pre_buffer=False, buffer_size=_READ_BYTES) as file:
            yield from file.iter_batches(rows, row_groups=groups, columns=self.columns, use_threads=False)


class ArrowSource(_TableSource):
    """An Arrow IPC file (mapped) or stream (read in order)."""

    def __init__(self, path: str, id_column: str | None, vector_column: str | None) -> None:
        with Path(path).open("rb") as file:
            self._is_file = file.read(6) == b"ARROW1"
        self._read_bytes = self._read_rows = 0
        self._rows: int | None = None
        self._size = Path(path).stat().st_size
        self.path = path
        try:
            schema = self._reader()[1].schema
        except (pa.ArrowException, OSError) as exc:
            raise _unreadable(path, "Arrow", exc) from exc
        super().__init__(path, schema, id_column, vector_column)
        if self._is_file:
            self._rows = ds.dataset(path, format="ipc").count_rows()

    def rows(self) -> int | None:
        if self._rows is None and self._read_bytes:
            return max(self._read_rows, self._read_rows * self._size // self._read_bytes)
        return self._rows

    def record_batches(self, start: int, rows: int) -> Iterator[pa.RecordBatch]:  # noqa: ARG002
        yield from _after(_guarded(self.path, "Arrow", self._stored()), start)

    def _stored(self) -> Iterator[pa.RecordBatch]:
        source, reader = self._reader()
        if self._is_file:
            for i in range(reader.num_record_batches):
                yield reader.get_batch(i).select(self.columns)
            return
        self._read_rows = 0
        for table in reader:
            self._read_rows += table.num_rows
            self._read_bytes = source.tell()
            yield table.select(self.columns)
        self._rows = self._read_rows

    def _reader(self) -> tuple[Any, Any]:
        if self._is_file:
            source = pa.memory_map(self.path)
            return source, pa.ipc.open_file(source)
        source = pa.OSFile(self.path)
        return source, pa.ipc.open_stream(source)


def _after(batches: Iterator[pa.RecordBatch], start: int) -> Iterator[pa.RecordBatch]:
    """Leave out the first `start` rows."""
    for table in batches:
        if start >= table.num_rows:
            start -= table.num_rows
            continue
        yield table.slice(start)
        start = 0


def _guarded(path: str, kind: str, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    try:
        yield from batches
    except (pa.ArrowException, OSError) as exc:
        raise _unreadable(path, kind, exc) from exc


def _unreadable(path: str, kind: str, exc: BaseException) -> Exception:
    if isinstance(exc, FileNotFoundError | PermissionError | IsADirectoryError):
        return exc
    return InvalidArgument(f"{path}: not a whole {kind} file: {exc}", details={"file": path})


# -- columns ---------------------------------------------------------------------------------------------------------


def _id_column(path: str, schema: pa.Schema, given: str | None) -> str | None:
    name = given or ("id" if "id" in schema.names else None)
    if name is None:
        return None
    if schema.names.count(name) != 1:
        raise Place(path, name).error(f"no such column, or more than one; the file has {', '.join(schema.names)}")
    kind = schema.field(name).type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if not (pa.types.is_integer(kind) or _is_text(kind)):
        raise Place(path, name).error(f"ids of {kind}; integers and strings are allowed")
    return name


def _vector_column(path: str, schema: pa.Schema, given: str | None) -> str:
    candidates: list[str] = [
        field.name for field in schema if _is_list(field.type) and _is_number(field.type.value_type)
    ]
    name = given or ("vector" if "vector" in schema.names else None)
    if name is None:
        if len(candidates) != 1:
            found = f"lists of numbers are {', '.join(candidates)}" if candidates else "no column is a list of numbers"
            raise InvalidArgument(
                f"{path}: which column holds the vectors? {found}", hint="--vector COLUMN", details={"file": path}
            )
        name = candidates[0]
    if schema.names.count(name) != 1:
        raise Place(path, name).error(f"no such column, or more than one; the file has {', '.join(schema.names)}")
    if name not in candidates:
        raise Place(path, name).error(f"vectors of {schema.field(name).type}; lists of real numbers are allowed")
    return name


def _matrix(column: pa.Array, row: int, place: Place, dim: int) -> npt.NDArray[Any]:
    """Return a list column as an array of shape (rows, dim)."""
    if column.null_count:
        raise place.error("a vector is missing", row + _first(column.is_null()))
    if not pa.types.is_fixed_size_list(column.type):
        lengths = np.asarray(pc.list_value_length(column))
        wrong = np.flatnonzero(lengths != dim)
        if len(wrong):
            found = lengths[wrong[0]]
            raise place.error(f"a vector of {found} numbers; the collection has {dim}", row + int(wrong[0]))
    elif column.type.list_size != dim:
        raise place.error(f"vectors of {column.type.list_size} numbers; the collection has {dim}")
    values = column.flatten()
    if values.null_count:
        raise place.error("a number in the vector is missing", row + _first(values.is_null()) // dim)
    return np.asarray(values.to_numpy(zero_copy_only=False)).reshape(len(column), dim)


def _ids(column: pa.Array, row: int, place: Place) -> npt.NDArray[np.int64] | list[str]:
    if column.null_count:
        raise place.error("an id is missing", row + _first(column.is_null()))
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return checked_ids(column.to_pylist() if _is_text(column.type) else np.asarray(column), row, place)


def _first(mask: pa.Array) -> int:
    return int(np.flatnonzero(np.asarray(mask))[0])


# -- payloads --------------------------------------------------------------------------------------------------------


def _decoded(text: str | None, row: int, path: str) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(text or "{}")
    except msgspec.DecodeError as exc:
        raise Place(path, "payload").error(f"not JSON: {exc}", row) from exc
    if not isinstance(value, dict):
        raise Place(path, "payload").error(f"a JSON object is expected, not {type(value).__name__}", row)
    return value


def _plain(column: pa.Array) -> list[Any]:
    """Return a column as JSON values."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.dictionary_decode()
        kind = column.type
    if pa.types.is_decimal(kind):
        column = column.cast(pa.float64())
    elif pa.types.is_timestamp(kind):
        # Nanoseconds are cut to the microseconds that a payload holds.
        column = column.cast(pa.timestamp("us", kind.tz), safe=False)
    values: list[Any] = column.to_pylist()
    return values if _is_json(kind) else [_json_value(value) for value in values]


def _json_value(value: Any) -> Any:
    if isinstance(value, datetime):
        utc = value.astimezone(UTC) if value.tzinfo else value
        return utc.replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, np.floating):
        return float(value)
    if isinstance(value, dict):
        return {key: _json_value(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_json_value(each) for each in value]
    return value


def _is_json(kind: pa.DataType) -> bool:
    return bool(_is_text(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _check_payload_type(place: Place, kind: pa.DataType) -> None:
    """Refuse a column of what JSON has no form for."""
    if pa.types.is_dictionary(kind):
        _check_payload_type(place, kind.value_type)
    elif _is_list(kind):
        _check_payload_type(place, kind.value_type)
    elif pa.types.is_struct(kind):
        for i in range(kind.num_fields):
            _check_payload_type(place, kind.field(i).type)
    elif not (_is_json(kind) or _scalar_field(kind) or pa.types.is_date(kind)):
        allowed = "strings, numbers, booleans, times, dates, and lists and structs of them are allowed in a payload"
        raise place.error(f"values of {kind}; {allowed}", hint="leave the column out of the file")


def _scalar_field(kind: pa.DataType) -> str | None:
    """Return the type of the field that holds a column of scalars."""
    tests: tuple[tuple[Callable[[pa.DataType], bool], str], ...] = (
        (_is_text, "string"),
        (pa.types.is_integer, "int64"),
        (pa.types.is_floating, "float64"),
        (pa.types.is_decimal, "float64"),
        (pa.types.is_boolean, "bool"),
        (pa.types.is_timestamp, "timestamp"),
    )
    return next((name for test, name in tests if test(kind)), None)


def _field_type(kind: pa.DataType) -> str | None:
    """Return the type of the field that holds a column, None where no field does."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_uint64(kind):
        return None
    if _is_list(kind):
        inner = _scalar_field(kind.value_type)
        return f"list<{inner}>" if inner else None
    return _scalar_field(kind)


def _json_bytes_max(part: pa.RecordBatch) -> int:
    """Return a bound on the bytes of a part's payloads as JSON: escapes and digits grow no value more than sixfold."""
    keys = sum(len(name.encode()) + 28 for name in part.schema.names)
    return 6 * int(part.nbytes) + int(part.num_rows) * keys
