"""One declared field of the rows of a shard, by row number: numbers, dictionary codes, and lists of either.

A `Kind` is how the cells of a scalar type lie in an array and are compared; `ScalarColumn` keeps one cell a row in one
contiguous array, `ListColumn` keeps the elements of each extent's rows in a buffer of that extent. Strings are codes
into a dictionary of the whole column, which only grows.

One thread writes. Readers run beside it on rows that were written before: what they use is never reallocated in place
and never moves, and a dictionary is read after the codes, so that it holds each of them.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..config import EXTENT_ROWS
from ..fields import INT64_MAX, INT64_MIN, Cell, element_type, timestamp_us
from ..fields import cell as cell_of

__all__ = ["Column", "Kind", "ListColumn", "NumberKind", "Reader", "ScalarColumn", "StringKind", "column"]

Mask = npt.NDArray[np.bool_]
Cells = npt.NDArray[Any]

_COUNT = struct.Struct("<Q")
_TABLES_MAX = 64
_COMPARE: dict[str, Callable[..., Any]] = {
    "$eq": np.equal,
    "$lt": np.less,
    "$lte": np.less_equal,
    "$gt": np.greater,
    "$gte": np.greater_equal,
}
_ORDER: dict[str, Callable[[str, str], bool]] = {
    "$lt": str.__lt__,
    "$lte": str.__le__,
    "$gt": str.__gt__,
    "$gte": str.__ge__,
}


class Reader:
    """Takes a section of bytes apart from the front; a ValueError where it is too short."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._at = 0

    def take(self, size: int) -> memoryview:
        """Return the next bytes."""
        if not 0 <= size <= len(self._data) - self._at:
            raise ValueError(f"{size} bytes expected at {self._at}, {len(self._data) - self._at} left")
        self._at += size
        return self._data[self._at - size : self._at]

    def count(self) -> int:
        """Return the next count."""
        value: int = _COUNT.unpack(self.take(_COUNT.size))[0]
        return value

    def array(self, dtype: npt.DTypeLike, count: int) -> Cells:
        """Return the next values."""
        return np.frombuffer(self.take(np.dtype(dtype).itemsize * count), dtype, count)

    def left(self) -> int:
        """Return how many bytes are left."""
        return len(self._data) - self._at


class Kind(Protocol):
    """How the cells of one scalar type lie in an array. `null` is the cell of null, or stands beside a mask."""

    type: str
    dtype: np.dtype[Any]
    null: Any

    def encode(self, cells: Sequence[Cell | None]) -> Cells: ...
    def compare(self, cells: Cells, operator: str, value: Any) -> Mask: ...
    def is_in(self, cells: Cells, values: tuple[Any, ...]) -> Mask: ...
    def dump(self, cells: Cells) -> bytes: ...
    def load(self, reader: Reader, count: int) -> Cells: ...


class NumberKind:
    """int64, timestamp (int64 microseconds), float64 (null is NaN) and bool (int8, null is -1)."""

    def __init__(self, type: str) -> None:
        self.type = type
        self.dtype: np.dtype[Any] = np.dtype({"float64": "<f8", "bool": "i1"}.get(type, "<i8"))
        self.null: Any = {"float64": np.nan, "bool": -1}.get(type, 0)

    def encode(self, cells: Sequence[Cell | None]) -> Cells:
        if None in cells:
            cells = [self.null if cell is None else cell for cell in cells]
        return np.array(cells, dtype=self.dtype)

    def compare(self, cells: Cells, operator: str, value: Any) -> Mask:
        mask: Mask = _COMPARE[operator](cells, value)
        return mask

    def is_in(self, cells: Cells, values: tuple[Any, ...]) -> Mask:
        if len(values) > 8:
            return np.isin(cells, np.array(values, dtype=self.dtype))
        mask = np.zeros(len(cells), dtype=np.bool_)
        for value in values:
            mask |= np.equal(cells, value)
        return mask

    def dump(self, cells: Cells) -> bytes:
        return cells.tobytes()

    def load(self, reader: Reader, count: int) -> Cells:
        cells = reader.array(self.dtype, count)
        if self.type == "bool" and count and not (cells.min() >= -1 and cells.max() <= 1):
            raise ValueError("a bool that is none")
        return cells


class StringKind:
    """Codes into a dictionary that only grows and is shared by all columns that were made of each other; null is -1.

    What depends on the order of strings is evaluated once for each string and looked up for each row.
    """

    type = "string"
    dtype: np.dtype[Any] = np.dtype("<i4")
    null = -1

    def __init__(self) -> None:
        self._codes: dict[str | None, int] = {None: -1}
        self._strings: list[str] = []
        self._tables: dict[tuple[str, Any], Mask] = {}
        self._lock = threading.Lock()
        self.nbytes = 0

    def encode(self, cells: Sequence[Cell | None]) -> Cells:
        try:
            codes = list(map(self._codes.__getitem__, cells))  # type: ignore[arg-type]
        except KeyError:
            self._add(cells)
            codes = list(map(self._codes.__getitem__, cells))  # type: ignore[arg-type]
        return np.array(codes, dtype=self.dtype)

    def _add(self, cells: Sequence[Any]) -> None:
        with self._lock:
            for text in cells:
                if text not in self._codes:
                    # First the string, then its code: who finds a code finds its string.
                    self._strings.append(text)
                    self._codes[text] = len(self._strings) - 1
                    self.nbytes += len(text) + 160

    def compare(self, cells: Cells, operator: str, value: Any) -> Mask:
        if operator == "$eq":
            return np.equal(cells, np.int32(self._codes.get(value, -2)))
        matches, bound = _ORDER[operator], value
        return self._table((operator, value), lambda text: matches(text, bound)).take(cells)

    def is_in(self, cells: Cells, values: tuple[Any, ...]) -> Mask:
        if len(values) <= 4:
            mask = np.zeros(len(cells), dtype=np.bool_)
            for value in values:
                mask |= self.compare(cells, "$eq", value)
            return mask
        return self._table(("$in", values), frozenset(values).__contains__).take(cells)

    def _table(self, key: tuple[str, Any], matches: Callable[[str], bool]) -> Mask:
        """Return whether each string matches; the entry behind the last is null's, which the code -1 finds."""
        table = self._tables.get(key)
        count = len(self._strings)
        known = 0 if table is None else len(table) - 1
        if table is not None and known >= count:
            return table
        wider = np.zeros(count + 1, dtype=np.bool_)
        if table is not None:
            wider[:known] = table[:known]
        wider[known:count] = list(map(matches, self._strings[known:count]))
        with self._lock:
            while len(self._tables) >= _TABLES_MAX:
                del self._tables[next(iter(self._tables))]
            self._tables[key] = wider
        return wider

    def dump(self, cells: Cells) -> bytes:
        """Return a dictionary of these cells alone, and codes into it."""
        codes, inverse = np.unique(cells, return_inverse=True)
        has_null = bool(len(codes)) and codes[0] == -1
        texts = [self._strings[code].encode() for code in codes[1 if has_null else 0 :].tolist()]
        sizes = np.array(list(map(len, texts)), dtype="<u4")
        local = inverse.astype(self.dtype) - np.int32(has_null)
        return b"".join((_COUNT.pack(len(texts)), sizes.tobytes(), *texts, local.tobytes()))

    def load(self, reader: Reader, count: int) -> Cells:
        texts_count = reader.count()
        sizes = reader.array("<u4", texts_count).tolist()
        texts = [str(reader.take(size), "utf-8") for size in sizes]
        local = reader.array(self.dtype, count)
        if count and not (local.min() >= -1 and local.max() < texts_count):
            raise ValueError("a code outside its dictionary")
        codes = np.append(self.encode(texts), np.int32(-1))
        return codes[local]


class Column(Protocol):
    """One field of the rows 0 .. capacity-1. A range of rows is start .. stop-1."""

    type: str

    def put(self, start: int, values: Sequence[Any]) -> None: ...
    def clear(self, start: int, stop: int) -> None: ...
    def nulls(self, start: int, stop: int) -> Mask: ...
    def compare(self, operator: str, value: Any, start: int, stop: int) -> Mask: ...
    def is_in(self, values: tuple[Any, ...], start: int, stop: int) -> Mask: ...
    def grown(self, capacity: int) -> Column: ...
    def dump(self, start: int, stop: int) -> bytes: ...
    def load(self, reader: Reader, rows: int) -> Callable[[int], None]: ...
    @property
    def nbytes(self) -> int: ...


def column(type: str, capacity: int) -> Column:
    """Return an empty column, null in every row."""
    of = element_type(type)
    kind: Kind = StringKind() if of == "string" else NumberKind(of)
    return ScalarColumn(kind, capacity) if of == type else ListColumn(kind, capacity)


_EXACT: dict[str, frozenset[type]] = {
    "string": frozenset((str, type(None))),
    "bool": frozenset((bool, type(None))),
    "float64": frozenset((float, type(None))),
}


def _cells(type: str, values: Sequence[Any]) -> Sequence[Any]:
    """Return values as cells, None where null or where a value does not fit.

    Values are checked before they are written; one that does not fit is of a row that died before the field was there.
    """
    types = set(map(_type_of, values))
    exact = _EXACT.get(type)
    if exact is not None and types <= exact:
        return values
    if type == "int64" and types <= {int, _NONE}:
        if _NONE not in types and values and min(values) >= INT64_MIN and max(values) <= INT64_MAX:
            return values
        return [value if value is not None and INT64_MIN <= value <= INT64_MAX else None for value in values]
    return [_cell(type, value) for value in values]


_type_of = type  # `type` is also the word for a field's type
_NONE = type(None)


def _cell(type: str, value: Any) -> Any:
    if value is None:
        return None
    try:
        return timestamp_us(value) if type == "timestamp" else cell_of(type, value)
    except ValueError:
        return None


class ScalarColumn:
    """One cell a row in one array over the capacity; beside integers, whose cells are all taken, a mask of nulls."""

    def __init__(self, kind: Kind, capacity: int) -> None:
        self.type = kind.type
        self._kind = kind
        self._cells: Cells = np.full(capacity, kind.null, dtype=kind.dtype)
        self._present: Mask | None = None
        if kind.type in ("int64", "timestamp"):
            self._present = np.zeros(capacity, dtype=np.bool_)

    def put(self, start: int, values: Sequence[Any]) -> None:
        cells = _cells(self.type, values)
        stop = start + len(cells)
        self._cells[start:stop] = self._kind.encode(cells)
        if self._present is not None:
            self._present[start:stop] = [cell is not None for cell in cells] if None in cells else True

    def clear(self, start: int, stop: int) -> None:
        self._cells[start:stop] = self._kind.null
        if self._present is not None:
            self._present[start:stop] = False

    def nulls(self, start: int, stop: int) -> Mask:
        if self._present is not None:
            return ~self._present[start:stop]
        cells = self._cells[start:stop]
        return np.isnan(cells) if self.type == "float64" else np.equal(cells, self._kind.null)

    def compare(self, operator: str, value: Any, start: int, stop: int) -> Mask:
        return self._of_present(self._kind.compare(self._cells[start:stop], operator, value), start, stop)

    def is_in(self, values: tuple[Any, ...], start: int, stop: int) -> Mask:
        return self._of_present(self._kind.is_in(self._cells[start:stop], values), start, stop)

    def _of_present(self, mask: Mask, start: int, stop: int) -> Mask:
        if self._present is not None:
            mask &= self._present[start:stop]
        return mask

    def grown(self, capacity: int) -> ScalarColumn:
        other = ScalarColumn(self._kind, capacity)
        other._cells[: len(self._cells)] = self._cells
        if self._present is not None and other._present is not None:
            other._present[: len(self._present)] = self._present
        return other

    def widened(self) -> ScalarColumn:
        """Return an int64 column as float64."""
        other = ScalarColumn(NumberKind("float64"), len(self._cells))
        np.copyto(other._cells, self._cells, where=self._present if self._present is not None else True)
        return other

    def dump(self, start: int, stop: int) -> bytes:
        cells = self._kind.dump(self._cells[start:stop])
        return cells if self._present is None else cells + np.packbits(self._present[start:stop]).tobytes()

    def load(self, reader: Reader, rows: int) -> Callable[[int], None]:
        cells = self._kind.load(reader, rows)
        present: Mask | None = None
        if self._present is not None:
            present = np.unpackbits(reader.array(np.uint8, -(-rows // 8)), count=rows).astype(np.bool_)

        def store(start: int) -> None:
            self._cells[start : start + rows] = cells
            if self._present is not None and present is not None:
                self._present[start : start + rows] = present

        return store

    @property
    def nbytes(self) -> int:
        beside = 0 if self._present is None else self._present.nbytes
        return self._cells.nbytes + beside + getattr(self._kind, "nbytes", 0)


class _Elements:
    """The lists of one extent's rows: where each begins in a buffer of elements, and how long it is (-1: null)."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.begins = np.zeros(EXTENT_ROWS, dtype=np.int64)
        self.counts = np.full(EXTENT_ROWS, -1, dtype=np.int32)
        self.cells: Cells = np.empty(0, dtype=dtype)
        self.used = 0

    def put(self, row: int, counts: npt.NDArray[np.int32], cells: Cells) -> None:
        """Write the lists of rows from `row`, whose elements follow each other in `cells`."""
        end = self.used + len(cells)
        if end > len(self.cells):
            # Readers keep the buffer that they took; what they read of it is the same in the new one.
            wider = np.empty(max(end, 2 * len(self.cells)), dtype=self.cells.dtype)
            wider[: self.used] = self.cells[: self.used]
            self.cells = wider
        self.cells[self.used : end] = cells
        lengths = np.maximum(counts, 0, dtype=np.int64)
        self.begins[row : row + len(counts)] = self.used + np.cumsum(lengths) - lengths
        self.counts[row : row + len(counts)] = counts
        self.used = end

    def any_of(self, start: int, stop: int, test: Callable[[Cells], Mask]) -> Mask:
        """Whether any element of each row passes the test."""
        begins = self.begins[start:stop]
        ends = begins + np.maximum(self.counts[start:stop], 0)
        passed = test(self.cells[: ends.max(initial=0)])
        sums = np.zeros(len(passed) + 1, dtype=np.int64)
        np.cumsum(passed, out=sums[1:])
        mask: Mask = sums[ends] > sums[begins]
        return mask

    def rows(self, start: int, stop: int) -> tuple[npt.NDArray[np.int32], Cells]:
        """Return the counts of rows, and their elements one after the other."""
        counts = self.counts[start:stop]
        lengths = np.maximum(counts, 0, dtype=np.int64)
        ends = np.cumsum(lengths)
        at = np.repeat(self.begins[start:stop] - (ends - lengths), lengths) + np.arange(lengths.sum())
        return counts, self.cells[at]


class ListColumn:
    """Lists by extent, so that a slot that is used again gives its elements back."""

    def __init__(self, kind: Kind, capacity: int) -> None:
        self.type = f"list<{kind.type}>"
        self._kind = kind
        self._slots: list[_Elements | None] = [None] * -(-capacity // EXTENT_ROWS)

    def put(self, start: int, values: Sequence[Any]) -> None:
        lists = [_cell(self.type, value) for value in values]
        counts = np.array([-1 if cells is None else len(cells) for cells in lists], dtype=np.int32)
        self._put(start, counts, self._kind.encode([cell for cells in lists if cells for cell in cells]))

    def _put(self, start: int, counts: npt.NDArray[np.int32], cells: Cells) -> None:
        at = 0
        for slot, row, stop, offset in _pieces(start, start + len(counts)):
            piece = counts[offset : offset + stop - row]
            size = int(np.maximum(piece, 0, dtype=np.int64).sum())
            elements = self._slots[slot]
            if elements is None:
                elements = self._slots[slot] = _Elements(self._kind.dtype)
            elements.put(row, piece, cells[at : at + size])
            at += size

    def clear(self, start: int, stop: int) -> None:
        for slot, row, end, _ in _pieces(start, stop):
            elements = self._slots[slot]
            if end - row == EXTENT_ROWS:
                self._slots[slot] = None
            elif elements is not None:
                elements.counts[row:end] = -1

    def nulls(self, start: int, stop: int) -> Mask:
        mask = np.ones(stop - start, dtype=np.bool_)
        for elements, row, end, offset in self._elements(start, stop):
            mask[offset : offset + end - row] = elements.counts[row:end] < 0
        return mask

    def compare(self, operator: str, value: Any, start: int, stop: int) -> Mask:
        return self._any_of(lambda cells: self._kind.compare(cells, operator, value), start, stop)

    def is_in(self, values: tuple[Any, ...], start: int, stop: int) -> Mask:
        return self._any_of(lambda cells: self._kind.is_in(cells, values), start, stop)

    def _any_of(self, test: Callable[[Cells], Mask], start: int, stop: int) -> Mask:
        mask = np.zeros(stop - start, dtype=np.bool_)
        for elements, row, end, offset in self._elements(start, stop):
            mask[offset : offset + end - row] = elements.any_of(row, end, test)
        return mask

    def _elements(self, start: int, stop: int) -> Iterator[tuple[_Elements, int, int, int]]:
        for slot, row, end, offset in _pieces(start, stop):
            elements = self._slots[slot]
            if elements is not None:
                yield elements, row, end, offset

    def grown(self, capacity: int) -> ListColumn:
        other = ListColumn(self._kind, capacity)
        other._slots[: len(self._slots)] = self._slots
        return other

    def dump(self, start: int, stop: int) -> bytes:
        counts = np.full(stop - start, -1, dtype="<i4")
        parts: list[Cells] = [np.empty(0, dtype=self._kind.dtype)]
        for elements, row, end, offset in self._elements(start, stop):
            counts[offset : offset + end - row], cells = elements.rows(row, end)
            parts.append(cells)
        return counts.tobytes() + self._kind.dump(np.concatenate(parts))

    def load(self, reader: Reader, rows: int) -> Callable[[int], None]:
        counts = reader.array("<i4", rows)
        if rows and counts.min() < -1:
            raise ValueError("a list of negative length")
        cells = self._kind.load(reader, int(np.maximum(counts, 0, dtype=np.int64).sum()))
        if self.type in ("list<string>", "list<bool>") and len(cells) and cells.min() < 0:
            raise ValueError("a null in a list")
        return lambda start: self._put(start, counts, cells)

    @property
    def nbytes(self) -> int:
        slots = (slot for slot in self._slots if slot is not None)
        size = sum(slot.begins.nbytes + slot.counts.nbytes + slot.cells.nbytes for slot in slots)
        return size + getattr(self._kind, "nbytes", 0)


def _pieces(start: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
    """Cut a range of rows at extents: slot, first row and end within it, and how far into the range that is."""
    at = start
    while at < stop:
        slot, row = divmod(at, EXTENT_ROWS)
        end = min(EXTENT_ROWS, row + stop - at)
        yield slot, row, end, at - start
        at += end - row
