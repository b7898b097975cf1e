"""Reads files of plain vectors into batches: `.npy`, `.npz`, `.fvecs`, and HDF5 in the layout of ann-benchmarks.

Vectors are read a batch at a time: `.npy` and `.fvecs` are mapped, members of `.npz` are read as a stream, HDF5 by
slices (with h5py). The number of a row is its id, unless a `.npz` or HDF5 file has ids of its own.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import numpy.typing as npt

from ..config import DIM_MAX, MIB
from ..errors import InvalidArgument
from .batch import Batch, Description, Place, Wanted, checked_ids, checked_vectors, rows_max
from .where import missing

__all__ = ["ArraySource", "Slices", "fvecs_source", "hdf5_source", "npy_source", "npz_source"]

_METRICS = {"angular": "cosine", "euclidean": "l2", "ip": "ip", "dot": "ip"}
"""What ann-benchmarks calls the distance of a data set."""
_SKIP_BYTES = MIB


class Slices(Protocol):
    """A matrix that is read by slices of rows."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, rows: slice, /) -> npt.NDArray[Any]: ...


class ArraySource:
    """Vectors of a matrix, and perhaps other columns of the same length.

    Parameters
    ----------
    path
        The file.
    matrix
        The vectors, of shape (rows, dim).
    place
        The name of the matrix, for errors.
    ids
        Ids, with their name, or None for row numbers.
    columns
        Payload by key: one value for each row.
    metric
        What the file says of it.
    """

    def __init__(
        self,
        path: str,
        matrix: Slices,
        place: Place,
        *,
        ids: tuple[str, npt.NDArray[Any]] | None = None,
        columns: dict[str, npt.NDArray[Any]] | None = None,
        metric: str | None = None,
    ) -> None:
        if len(matrix.shape) != 2:
            raise place.error(f"an array of shape {tuple(matrix.shape)}; vectors have the shape (rows, dimension)")
        self.path = path
        self._matrix, self._place, self._ids = matrix, place, ids
        self._columns = columns or {}
        self._metric = metric

    def rows(self) -> int | None:
        return int(self._matrix.shape[0])

    def describe(self) -> Description:
        kinds = {"U": "string", "i": "int64", "u": "int64", "f": "float64", "b": "bool"}
        fields = {name: kinds[values.dtype.kind] for name, values in self._columns.items()}
        return Description(int(self._matrix.shape[1]), self._metric, fields)

    def batches(self, start: int, wanted: Wanted) -> Iterator[Batch]:
        count, total = rows_max(wanted), int(self._matrix.shape[0])
        for row in range(start, total, count):
            rows = slice(row, min(row + count, total))
            vectors = checked_vectors(np.asarray(self._matrix[rows]), row, self._place, wanted)
            ids = None
            if self._ids is not None:
                name, values = self._ids
                ids = checked_ids(values[rows], row, Place(self.path, name))
            yield Batch(row, ids, vectors, self._payloads(rows))

    def _payloads(self, rows: slice) -> list[dict[str, Any]] | None:
        if not self._columns:
            return None
        values = [column[rows].tolist() for column in self._columns.values()]
        return [dict(zip(self._columns, row, strict=True)) for row in zip(*values, strict=True)]


def npy_source(path: str, id_column: str | None, vector_column: str | None) -> ArraySource:
    """Open a `.npy` file."""
    _refuse_columns(path, id_column, vector_column)
    try:
        matrix = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as exc:
        raise InvalidArgument(f"{path}: not a whole .npy file: {exc}", details={"file": path}) from exc
    return ArraySource(path, matrix, Place(path, "vector"))


def fvecs_source(path: str, id_column: str | None, vector_column: str | None) -> ArraySource:
    """Open a `.fvecs` file: for each vector its dimension as int32, then so many float32."""
    _refuse_columns(path, id_column, vector_column)
    size = Path(path).stat().st_size
    with Path(path).open("rb") as file:
        dim = int.from_bytes(file.read(4), "little", signed=True)
    if not 1 <= dim <= DIM_MAX or size % (4 * (dim + 1)):
        raise InvalidArgument(
            f"{path}: not a whole .fvecs file: {size:,} bytes, first vector of {dim} numbers", details={"file": path}
        )
    words = np.memmap(path, np.dtype("<i4"), "r").reshape(-1, dim + 1)
    return ArraySource(path, _Fvecs(words, Place(path, "vector")), Place(path, "vector"))


class _Fvecs:
    """The vectors of a `.fvecs` file, each one's dimension checked as it is read."""

    def __init__(self, words: npt.NDArray[np.int32], place: Place) -> None:
        self._words, self._place = words, place
        self.shape = (len(words), words.shape[1] - 1)

    def __getitem__(self, rows: slice, /) -> npt.NDArray[Any]:
        words = self._words[rows]
        wrong = np.flatnonzero(words[:, 0] != self.shape[1])
        if len(wrong):
            raise self._place.error(
                f"a vector of {words[wrong[0], 0]} numbers among such of {self.shape[1]}", rows.start + int(wrong[0])
            )
        return words[:, 1:].view("<f4")


# -- npz -------------------------------------------------------------------------------------------------------------


def npz_source(path: str, id_column: str | None, vector_column: str | None) -> ArraySource:
    """Open a `.npz` file: one matrix of vectors, perhaps ids and other arrays of as many values."""
    try:
        archive = zipfile.ZipFile(path)
        members = {name.removesuffix(".npy"): _Member(archive, name, path) for name in archive.namelist()}
    except (zipfile.BadZipFile, ValueError) as exc:
        raise InvalidArgument(f"{path}: not a whole .npz file: {exc}", details={"file": path}) from exc
    matrices = [name for name, member in members.items() if len(member.shape) == 2]
    vector = _pick(path, vector_column, ["vector", "vectors"], matrices, "--vector")
    assert vector is not None
    rows = members[vector].shape[0]
    values = {name: member.whole() for name, member in members.items() if member.shape == (rows,)}
    chosen = id_column or next((name for name in ("id", "ids") if name in values), None)
    if chosen is not None and chosen not in values:
        raise Place(path, chosen).error(f"no array of {rows:,} ids; the file has {', '.join(members)}")
    columns = {name: array for name, array in values.items() if name != chosen and array.dtype.kind in "Uiufb"}
    ids = None if chosen is None else (chosen, values[chosen])
    return ArraySource(path, members[vector], Place(path, vector), ids=ids, columns=columns)


class _Member:
    """An array in a `.npz` file, read in order as a stream, since a compressed member can't be mapped."""

    def __init__(self, archive: zipfile.ZipFile, name: str, path: str) -> None:
        self._archive, self._name = archive, name
        self._place = Place(path, name.removesuffix(".npy"))
        with archive.open(name) as file:
            self.shape, self._fortran, self._dtype = _header(file)
        if self._dtype.hasobject:
            raise ValueError(f"array {name!r} holds Python objects; arrays of numbers or strings are allowed")
        self._stream: IO[bytes] | None = None
        self._row = 0

    def __getitem__(self, rows: slice, /) -> npt.NDArray[Any]:
        if self._fortran:
            raise self._place.error("stored by columns", hint="save np.ascontiguousarray(vectors)")
        if self._stream is None or rows.start < self._row:
            self._stream = self._archive.open(self._name)
            _header(self._stream)
            self._row = 0
        row_bytes = self._dtype.itemsize * int(np.prod(self.shape[1:]))
        self._skip((rows.start - self._row) * row_bytes)
        data = self._read((rows.stop - rows.start) * row_bytes)
        self._row = rows.stop
        return np.frombuffer(data, self._dtype).reshape(-1, *self.shape[1:])

    def whole(self) -> npt.NDArray[Any]:
        """Return an array of one dimension."""
        return self[slice(0, self.shape[0])]

    def _skip(self, size: int) -> None:
        while size > 0:
            size -= len(self._read(min(size, _SKIP_BYTES)))

    def _read(self, size: int) -> bytes:
        assert self._stream is not None
        try:
            data = self._stream.read(size)
        except (zipfile.BadZipFile, EOFError) as exc:
            raise self._place.error(f"damaged: {exc}") from exc
        if len(data) != size:
            raise self._place.error("the file ends too early")
        return data


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read the header of an array in numpy's format."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    return tuple(shape), bool(fortran), np.dtype(dtype)


# -- HDF5 ------------------------------------------------------------------------------------------------------------


def hdf5_source(path: str, id_column: str | None, vector_column: str | None) -> ArraySource:
    """Open an HDF5 file; its vectors are the data set `train`, unless another is named."""
    try:
        import h5py
    except ImportError as exc:
        raise missing("h5py", "hdf5") from exc
    try:
        file = h5py.File(path, "r")
    except OSError as exc:
        if isinstance(exc, FileNotFoundError | PermissionError):
            raise
        raise InvalidArgument(f"{path}: not a whole HDF5 file: {exc}", details={"file": path}) from exc
    matrices = [name for name, item in file.items() if getattr(item, "ndim", 0) == 2]
    vector = _pick(path, vector_column, ["train", "vector", "vectors"], matrices, "--vector")
    assert vector is not None
    ids = None
    if id_column is not None:
        if id_column not in file or file[id_column].shape != (file[vector].shape[0],):
            raise Place(path, id_column).error(f"no data set of ids; the file has {', '.join(file)}")
        found = file[id_column]
        ids = (id_column, np.asarray(found.asstr()[:] if found.dtype.kind == "O" else found[:]))
    metric = _METRICS.get(str(file.attrs.get("distance", "")))
    return ArraySource(path, file[vector], Place(path, vector), ids=ids, metric=metric)


# -- choosing --------------------------------------------------------------------------------------------------------


def _pick(path: str, given: str | None, usual: list[str], matrices: list[str], flag: str) -> str:
    """Return the name of the matrix of vectors."""
    if given is not None:
        if given not in matrices:
            raise Place(path, given).error(f"no such matrix; the file has {', '.join(matrices) or 'none'}")
        return given
    name = next((name for name in usual if name in matrices), None)
    if name is None and len(matrices) == 1:
        name = matrices[0]
    if name is None:
        found = f"matrices are {', '.join(matrices)}" if matrices else "it has no matrix"
        raise InvalidArgument(
            f"{path}: which array holds the vectors? {found}", hint=f"{flag} NAME", details={"file": path}
        )
    return name


def _refuse_columns(path: str, id_column: str | None, vector_column: str | None) -> None:
    for flag, name in (("--id", id_column), ("--vector", vector_column)):
        if name is not None:
            raise Place(path, name).error(f"this kind of file has no columns, so {flag} has no meaning")
