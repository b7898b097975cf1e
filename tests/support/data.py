"""Data of the tests: seeded vectors, the synthetic mixture, and the sample that ships with the package."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Sample", "integer_vectors", "mixture", "normal_vectors", "recall", "sample"]

Floats = npt.NDArray[np.float32]
CENTRES = 2_000
SIGMA = 0.7


def normal_vectors(rows: int, dim: int, seed: int = 0) -> Floats:
    """Return float32 (rows, dim) of standard normal numbers."""
    return np.random.default_rng(seed).standard_normal((rows, dim), dtype=np.float32)


def integer_vectors(rows: int, dim: int, seed: int = 0, high: int = 8) -> Floats:
    """Return float32 (rows, dim) of small whole numbers from 1: every product of them is exact."""
    return np.random.default_rng(seed).integers(1, high, (rows, dim)).astype(np.float32)


def mixture(rows: int, dim: int, seed: int = 0, *, centres: int = CENTRES, sigma: float = SIGMA) -> Floats:
    """Return float32 (rows, dim) around Gaussian centres.

    The centres depend on `dim` and `centres` alone, so that rows and queries of other seeds are of one distribution.
    """
    middle = np.random.default_rng(centres * 100_003 + dim).standard_normal((centres, dim), dtype=np.float32)
    random = np.random.default_rng((seed, rows))
    noise = random.standard_normal((rows, dim), dtype=np.float32)
    mixed: Floats = middle[random.integers(0, centres, rows)] + np.float32(sigma) * noise
    return mixed


@dataclass(frozen=True, slots=True)
class Sample:
    """The packages of the sample, vectors as float32, the other columns as payloads."""

    ids: npt.NDArray[np.int64]
    vectors: Floats
    payloads: list[dict[str, Any]]


def sample() -> Sample:
    """Load the sample that ships with the package."""
    # The client is tested where there is no pyarrow, with the rest of this module.
    import pyarrow as pa
    import pyarrow.parquet as pq

    found = [entry for entry in _entries(resources.files("vecstore")) if entry.name.endswith(".parquet")]
    if len(found) != 1:
        raise FileNotFoundError(f"one sample expected in the package, {[entry.name for entry in found]} found")
    with resources.as_file(found[0]) as path:
        table = pq.read_table(path)
    flat = table["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    vectors = np.ascontiguousarray(flat, np.float32).reshape(table.num_rows, -1)
    ids = table["id"].cast(pa.int64()).to_numpy()
    return Sample(ids, vectors, table.drop_columns(["id", "vector"]).to_pylist())


def _entries(folder: Any) -> list[Any]:
    entries: list[Any] = []
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.name.startswith("__"):
            entries.extend(_entries(entry))
        elif entry.is_file():
            entries.append(entry)
    return entries


def recall(found: npt.NDArray[Any], true: npt.NDArray[Any]) -> float:
    """Return the share of the true neighbours, row by row, that were found."""
    shares = [len(set(a.tolist()) & set(b.tolist())) / len(b) for a, b in zip(found, true, strict=True)]
    return float(np.mean(shares))
