"""Opens a file to import: which format it is in, by its name's ending, and what reads it.

| ending | format |
|---|---|
| `.parquet`, `.pq` | Parquet |
| `.arrow`, `.feather`, `.ipc`, `.arrows` | Arrow IPC, file or stream |
| `.jsonl`, `.ndjson` | JSON lines |
| `.npy`, `.npz` | numpy |
| `.fvecs` | vectors of the TEXMEX data sets |
| `.h5`, `.hdf5` | HDF5 in the layout of ann-benchmarks |
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..errors import InvalidArgument, NotFound
from .arrays import fvecs_source, hdf5_source, npy_source, npz_source
from .batch import Source
from .lines import LineSource
from .where import missing

__all__ = ["open_source"]

_ARROW = {".parquet", ".pq", ".arrow", ".arrows", ".feather", ".ipc"}
_OTHERS: dict[str, Callable[[str, str | None, str | None], Source]] = {
    ".jsonl": LineSource,
    ".ndjson": LineSource,
    ".npy": npy_source,
    ".npz": npz_source,
    ".fvecs": fvecs_source,
    ".h5": hdf5_source,
    ".hdf5": hdf5_source,
}


def open_source(path: str, id_column: str | None = None, vector_column: str | None = None) -> Source:
    """Open a file to import.

    Parameters
    ----------
    path
        The file; its ending tells the format.
    id_column, vector_column
        Names of columns; None for what the format has by default.

    Raises
    ------
    NotFound
        There is no such file.
    InvalidArgument
        It is not in a known format, is not whole, or lacks a column; the message names it.
    EngineMissing
        A library that reads it is not installed.
    """
    if not Path(path).is_file():
        raise NotFound(f"{path}: no such file", details={"file": path})
    ending = Path(path).suffix.lower()
    if ending in _ARROW:
        try:
            from .tables import ArrowSource, ParquetSource
        except ImportError as exc:
            raise missing("pyarrow", "cpu") from exc
        kind = ParquetSource if ending in (".parquet", ".pq") else ArrowSource
        return kind(path, id_column, vector_column)
    if ending in _OTHERS:
        return _OTHERS[ending](path, id_column, vector_column)
    known = ", ".join(sorted(_ARROW | set(_OTHERS)))
    raise InvalidArgument(f"{path}: the ending {ending!r} names no format; known are {known}", details={"file": path})
