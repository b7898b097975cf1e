"""Arrow at the edge: tables in, as pieces that fit a record; points out, as record batches."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .config import RECORD_BYTES_MAX, RECORD_POINTS_MAX
from .errors import EngineMissing, InvalidArgument
from .fields import timestamp_us
from .values import ArrowStream, FieldType, Payload, Point

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Piece", "arrow", "pieces", "to_reader"]

_ROWS = 1_000
"""Rows of one record made from a table: large enough to share a sync, small enough to be kind to readers."""
_BATCH_ROWS = 4_096


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows of a table that go into one record."""

    batch: Any
    id: str
    vector: str

    def read(self) -> tuple[Any, npt.NDArray[Any], list[Payload] | None]:
        """Return ids, vectors and payloads.

        Raises
        ------
        InvalidArgument
            A column is of the wrong type, or has a null where there must be none.
        """
        return _read(self.batch, self.id, self.vector)


def arrow() -> Any:
    """Return pyarrow, or say which extra brings it."""
    try:
        import pyarrow as pa
    except ImportError as exc:
        raise EngineMissing("pyarrow is not installed", hint="pip install 'vecstore-db[cpu]'") from exc
    return pa


def pieces(stream: ArrowStream, id: str, vector: str, dim: int) -> Iterator[Piece]:
    """Cut an Arrow stream into pieces that fit a record.

    Raises
    ------
    InvalidArgument
        It is no Arrow stream, or a column is missing.
    """
    pa = arrow()
    if not hasattr(stream, "__arrow_c_stream__"):
        raise InvalidArgument(
            f"table: {type(stream).__name__} given; allowed is anything with __arrow_c_stream__ (a pyarrow table, "
            "a reader, pandas, polars)"
        )
    reader = pa.RecordBatchReader.from_stream(stream)
    for name, what in ((id, "id"), (vector, "vector")):
        if name not in reader.schema.names:
            raise InvalidArgument(f"{what}: the table has no column {name!r}; it has {', '.join(reader.schema.names)}")
    rows = max(1, min(_ROWS, RECORD_POINTS_MAX, RECORD_BYTES_MAX // (8 * dim)))
    for batch in reader:
        for start in range(0, batch.num_rows, rows):
            yield Piece(batch.slice(start, rows), id, vector)


def _read(batch: Any, id: str, vector: str) -> tuple[Any, npt.NDArray[Any], list[Payload] | None]:
    ids = batch.column(id)
    if ids.null_count:
        raise InvalidArgument(f"id: column {id!r} has a null; every point needs an id")
    others = [name for name in batch.schema.names if name not in (id, vector)]
    payloads: list[Payload] | None = None
    if others:
        rows = batch.select(others).to_pylist()
        payloads = [{key: value for key, value in row.items() if value is not None} for row in rows]
    given = ids.to_numpy(zero_copy_only=False) if _is_integer(ids.type) else ids.to_pylist()
    return given, _vectors(batch.column(vector), vector), payloads


def _is_integer(type: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_integer(type))


def _vectors(column: Any, name: str) -> npt.NDArray[Any]:
    import pyarrow as pa

    if not (
        pa.types.is_fixed_size_list(column.type) or pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
    ):
        raise InvalidArgument(f"vector: column {name!r} is of type {column.type}; allowed is a list of numbers")
    if column.null_count:
        raise InvalidArgument(f"vector: column {name!r} has a null; every point needs a vector")
    flat = column.flatten()
    if not (pa.types.is_floating(flat.type) or pa.types.is_integer(flat.type)):
        raise InvalidArgument(f"vector: column {name!r} is a list of {flat.type}; allowed are numbers")
    if flat.null_count:
        raise InvalidArgument(f"vector: column {name!r} has a null among its numbers")
    count = len(column)
    if not count or len(flat) % count:
        raise InvalidArgument(f"vector: column {name!r} has vectors of different lengths")
    if not pa.types.is_fixed_size_list(column.type):
        lengths = column.value_lengths().to_numpy(zero_copy_only=False)
        if (lengths != lengths[0]).any():
            raise InvalidArgument(f"vector: column {name!r} has vectors of different lengths")
    numbers: npt.NDArray[Any] = flat.to_numpy(zero_copy_only=False)
    return numbers.reshape(count, -1)


def to_reader(
    points: Iterator[Point], *, dim: int, strings: bool, declared: Mapping[str, FieldType], with_vector: bool
) -> pa.RecordBatchReader:
    """Return points as an Arrow stream: `id`, `vector`, one column a declared field, `payload` as JSON text.

    Parameters
    ----------
    strings
        Whether the ids are strings.
    declared
        The collection's fields with their types.
    """
    pa = arrow()
    columns = [pa.field("id", pa.string() if strings else pa.int64(), nullable=False)]
    if with_vector:
        columns.append(pa.field("vector", pa.list_(pa.float32(), dim), nullable=False))
    fields = {name: type for name, type in declared.items() if name not in ("id", "vector", "payload")}
    columns.extend(pa.field(name, _arrow_type(pa, type)) for name, type in fields.items())
    columns.append(pa.field("payload", pa.string(), nullable=False))
    schema = pa.schema(columns)

    def batches() -> Iterator[Any]:
        taken: list[Point] = []
        for point in points:
            taken.append(point)
            if len(taken) == _BATCH_ROWS:
                yield _batch(pa, schema, taken, fields, dim, with_vector)
                taken = []
        if taken:
            yield _batch(pa, schema, taken, fields, dim, with_vector)

    return pa.RecordBatchReader.from_batches(schema, batches())


def _batch(pa: Any, schema: Any, points: list[Point], fields: dict[str, Any], dim: int, with_vector: bool) -> Any:
    arrays = [pa.array([point.id for point in points], schema.field("id").type)]
    if with_vector:
        flat = np.concatenate([point.vector for point in points if point.vector is not None])
        arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(flat, pa.float32()), dim))
    for name, type in fields.items():
        values = [_arrow_value(type, point.payload.get(name)) for point in points]
        arrays.append(pa.array(values, schema.field(name).type))
    arrays.append(
        pa.array([json.dumps(p.payload, ensure_ascii=False, separators=(",", ":")) for p in points], pa.string())
    )
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _arrow_type(pa: Any, type: str) -> Any:
    if type.startswith("list<"):
        return pa.list_(_arrow_type(pa, type[5:-1]))
    scalar = {"string": pa.string(), "int64": pa.int64(), "float64": pa.float64(), "bool": pa.bool_()}
    return scalar.get(type) or pa.timestamp("us", tz="UTC")


def _arrow_value(type: str, value: Any) -> Any:
    if value is None:
        return None
    if type.startswith("list<"):
        return [_arrow_value(type[5:-1], item) for item in value]
    if type == "timestamp":
        return timestamp_us(value)
    return float(value) if type == "float64" else value
