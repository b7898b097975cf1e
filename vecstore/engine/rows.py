"""The rows of one shard, in arrays by row number.

A shard's rows are numbered. Each column (vectors, ids, LSNs, norms) is one array over all row numbers, whatever file or
memory a row lies in: the address space is reserved and extents are mapped into it, each at its slot of `EXTENT_ROWS`
rows. So one kernel call re-ranks candidates of all segments, an index keeps row numbers as its labels, and merging two
segments moves no row.

Rows are written by the committer (a growing extent) or by a builder (slots that no view shows yet), and never change
once a view shows them. `Rows` of another capacity share the same files; growing extents are copied. A row number that
belongs to no extent must not be read: its pages are not mapped.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..config import EXTENT_ROWS
from ..index.base import Vectors
from ..index.norms import inverse_norms
from ..values import Metric
from .mapping import AddressSpace, paged

__all__ = ["Rows", "Section", "row_sections"]


@dataclass(frozen=True, slots=True)
class Section:
    """One column: its name, bytes a row, and where it begins in the address space."""

    name: str
    row_bytes: int
    offset: int


def row_sections(dim: int, metric: Metric) -> list[tuple[str, int]]:
    """Return name and bytes a row of each column."""
    sections = [("vectors", 4 * dim), ("codes", 8), ("lsns", 8)]
    if metric == "cosine":
        sections.append(("inverse_norms", 4))
    return sections


class Rows:
    """The columns of one shard.

    Attributes
    ----------
    capacity
        Row numbers that there are addresses for; a multiple of `EXTENT_ROWS`.
    vectors
        Vectors as given, float32 (capacity, dim), with inverse norms under cosine.
    codes
        uint64 (capacity,): the id itself, or xxh3_64 of a string id.
    lsns
        int64 (capacity,): LSN of the record that wrote the row.
    """

    def __init__(self, dim: int, metric: Metric, capacity: int) -> None:
        assert capacity % EXTENT_ROWS == 0
        self.dim, self.metric, self.capacity = dim, metric, capacity
        self.sections: list[Section] = []
        offset = 0
        for name, row_bytes in row_sections(dim, metric):
            self.sections.append(Section(name, row_bytes, offset))
            offset += paged(row_bytes * capacity)
        self._space = AddressSpace(offset)
        at = {section.name: section.offset for section in self.sections}
        norms = self._space.array("<f4", (capacity,), at["inverse_norms"]) if "inverse_norms" in at else None
        self.vectors = Vectors(metric, self._space.array("<f4", (capacity, dim), at["vectors"]), norms)
        self.codes: npt.NDArray[np.uint64] = self._space.array("<u8", (capacity,), at["codes"])
        self.lsns: npt.NDArray[np.int64] = self._space.array("<i8", (capacity,), at["lsns"])

    def map_memory(self, slot: int) -> None:
        """Give a slot memory to be filled."""
        for section in self.sections:
            self._space.map_memory(*self._span(section, slot, EXTENT_ROWS))

    def map_file(self, slot: int, rows: int, file: int, offsets: dict[str, int]) -> None:
        """Put an extent's file at a slot: `rows` rows, each column at its offset in the file."""
        for section in self.sections:
            self._space.map_file(*self._span(section, slot, rows), file, offsets[section.name])

    def release(self, slot: int) -> None:
        """Give back the memory of a slot that no view shows."""
        for section in self.sections:
            self._space.release(*self._span(section, slot, EXTENT_ROWS))

    def copy_slot(self, other: Rows, slot: int, rows: int) -> None:
        """Take the rows of a slot from other columns into memory of this one."""
        self.map_memory(slot)
        span = slice(slot * EXTENT_ROWS, slot * EXTENT_ROWS + rows)
        self.write(span, other.vectors.data[span], other.codes[span], other.lsns[span], other.norms(span))

    def write(
        self,
        span: slice,
        vectors: npt.NDArray[np.float32],
        codes: npt.NDArray[np.uint64],
        lsns: npt.NDArray[np.int64] | int,
        norms: npt.NDArray[np.float32] | None = None,
    ) -> None:
        """Fill rows that no view shows; inverse norms are computed unless given."""
        self.vectors.data[span] = vectors
        self.codes[span] = codes
        self.lsns[span] = lsns
        if self.vectors.inverse_norms is not None:
            self.vectors.inverse_norms[span] = inverse_norms(vectors) if norms is None else norms

    def norms(self, span: slice) -> npt.NDArray[np.float32] | None:
        """Return the inverse norms of rows, None where the metric needs none."""
        return None if self.vectors.inverse_norms is None else self.vectors.inverse_norms[span]

    def column(self, name: str, slot: int, rows: int) -> memoryview:
        """Return the bytes of a column of one slot."""
        section = next(section for section in self.sections if section.name == name)
        offset, _ = self._span(section, slot, rows)
        return self._space.array("u1", (section.row_bytes * rows,), offset).data

    def _span(self, section: Section, slot: int, rows: int) -> tuple[int, int]:
        return section.offset + slot * EXTENT_ROWS * section.row_bytes, rows * section.row_bytes
