"""The vectors of one segment as a worker reads them: the engine's own files, mapped.

Rows are numbered twice: by row number, as in the shard, and by position, from 0 without gaps, as an index on a device
does. The files are immutable and mapped at once, so that it does not matter when the engine removes them.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Generator, Iterator, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from ..values import Metric
from .base import Floats, Rows
from .bounds import HALF_FLOOR, TABLE_TOP, scale_of

__all__ = ["Extremes", "File", "Source", "extremes"]


class File(msgspec.Struct, frozen=True, array_like=True):
    """One extent's file.

    Attributes
    ----------
    path
        Of the file.
    start, rows
        Row numbers that it has: ``start`` to ``start + rows - 1``.
    vectors_at, norms_at
        Where its vectors and inverse norms begin; -1 where it has no norms.
    """

    path: str
    start: int
    rows: int
    vectors_at: int
    norms_at: int


class Extremes(NamedTuple):
    """What float16 must hold of the vectors of a source.

    Attributes
    ----------
    longest
        Length of the longest vector.
    scale
        What components are multiplied by, so that the largest one fits.
    is_coarse
        Whether some components are so small then that float16 holds few of their bits.
    """

    longest: float
    scale: float
    is_coarse: bool

    def scale_for(self, kind: str) -> float:
        """Return what rows of an index of a kind are multiplied by: a graph's stay float32, as they are."""
        if kind == "cagra":
            return 1.0
        return scale_of(self.longest, TABLE_TOP) if kind == "ivf_pq" else self.scale


def extremes(source: Source, rows_max: int) -> Generator[None, None, Extremes]:
    """Read all of a source, some rows at a time, and return what float16 must hold of it."""
    longest = 0.0
    largest: list[Floats] = []
    for length, components in source.extent(rows_max):
        longest = max(longest, length)
        largest.append(components)
        yield
    scale = scale_of(float(max(part.max(initial=0) for part in largest)))
    is_coarse = any(((part > 0) & (part * np.float32(scale) < HALF_FLOOR)).any() for part in largest)
    return Extremes(longest, scale, is_coarse)


class Source:
    """Vectors by position.

    Parameters
    ----------
    metric, dim
        Of the collection.
    files
        In the order in which rows get their positions.

    Attributes
    ----------
    files
        What it is made of.
    rows
        Vectors that it has.

    Raises
    ------
    OSError
        A file is gone, or cannot be mapped.
    """

    def __init__(self, metric: Metric, dim: int, files: Sequence[File]) -> None:
        self.metric, self.dim = metric, dim
        self.files = tuple(files)
        self._vectors: list[Floats] = []
        self._norms: list[Floats] = []
        for file in files:
            vectors, norms = _mapped(file, dim)
            self._vectors.append(vectors)
            if norms is not None:
                self._norms.append(norms)
        self._firsts = np.cumsum([0] + [file.rows for file in files])
        self.rows = int(self._firsts[-1])

    def blocks(self, rows_max: int) -> Iterator[Floats]:
        """Iterate over all vectors as codes are taken of them: of unit length under cosine; float32 (n, dim)."""
        for start in range(0, self.rows, rows_max):
            stop = min(start + rows_max, self.rows)
            first = int(np.searchsorted(self._firsts, start, side="right")) - 1
            out = np.empty((stop - start, self.dim), np.float32)
            at = start
            while at < stop:
                begin = int(self._firsts[first])
                span = slice(at - begin, min(stop, int(self._firsts[first + 1])) - begin)
                part = out[at - start : at - start + span.stop - span.start]
                part[:] = self._vectors[first][span]
                if self._norms:
                    part *= self._norms[first][span, None]
                at, first = begin + span.stop, first + 1
            yield out

    def gathered(self, positions: Rows) -> Floats:
        """Return float32 (n, dim), the vectors at sorted or unsorted positions, of unit length under cosine."""
        out = np.empty((len(positions), self.dim), np.float32)
        file = np.searchsorted(self._firsts, positions, side="right") - 1
        order = np.argsort(file, kind="stable")
        cuts = np.flatnonzero(np.diff(file[order])) + 1
        for at in np.split(order, cuts):
            if not len(at):
                continue
            i = int(file[at[0]])
            local = positions[at] - self._firsts[i]
            rows = self._vectors[i][local]
            if self._norms:
                rows *= self._norms[i][local, None]
            out[at] = rows
        return out

    def extent(self, rows_max: int) -> Iterator[tuple[float, Floats]]:
        """Iterate over blocks: the length of the longest row of each, and the largest component of each of its rows."""
        for block in self.blocks(rows_max):
            squares = np.einsum("ij,ij->i", block, block, dtype=np.float64)
            yield float(np.sqrt(squares.max(initial=0))), np.abs(block).max(axis=1, initial=0)

    def sample(self, count: int, seed: int) -> Floats:
        """Return at most so many vectors without repetition, the same for the same seed."""
        if count >= self.rows:
            return self.gathered(np.arange(self.rows))
        chosen = np.random.default_rng(seed).choice(self.rows, count, replace=False)
        return self.gathered(np.sort(chosen).astype(np.int64))

    def row_numbers(self, positions: Rows) -> Rows:
        """Return the row numbers of positions (any shape); -1 stays."""
        starts = np.array([file.start for file in self.files], np.int64) - self._firsts[:-1]
        file = np.searchsorted(self._firsts, positions, side="right") - 1
        numbers: Rows = positions + starts[np.clip(file, 0, len(starts) - 1)]
        numbers[positions < 0] = -1
        return numbers

    def mask(self, bitmap: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
        """Return bool (rows,): which positions a bitmap by row number has; rows beyond its end it has not."""
        out = np.zeros(self.rows, np.bool_)
        for file, first in zip(self.files, self._firsts.tolist(), strict=False):
            at = file.start >> 3
            bits = np.unpackbits(bitmap[at : at + (file.rows + 7) // 8 + 1], bitorder="little")[file.start & 7 :]
            bits = bits[: file.rows]
            out[first : first + len(bits)] = bits
        return out


def _mapped(file: File, dim: int) -> tuple[Floats, Floats | None]:
    descriptor = os.open(file.path, os.O_RDONLY)
    try:
        data: Any = mmap.mmap(descriptor, 0, mmap.MAP_SHARED, mmap.PROT_READ)
    finally:
        os.close(descriptor)
    vectors = np.frombuffer(data, "<f4", file.rows * dim, file.vectors_at).reshape(file.rows, dim)
    return vectors, None if file.norms_at < 0 else np.frombuffer(data, "<f4", file.rows, file.norms_at)
