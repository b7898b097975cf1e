"""The data of the benchmarks: rows, queries that no row was drawn with, and the exact answers.

Two sets. "debian": text embeddings read from Parquet files whose folder is named on the command line. "synthetic":
points around 2,000 Gaussian centres, sigma 0.7, from a seed; its queries are drawn freshly from the same mixture by
another seed. Both are compared by cosine. This module measures nothing and knows no engine.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]

CENTRES = 2_000
SIGMA = 0.7
BUCKETS = 1_000
"""Filters are asked in thousandths of the rows: `bucket < 10` matches 1%."""
SCORE_TIE = 1e-6


@dataclass(frozen=True)
class Dataset:
    """Rows and queries.

    Attributes
    ----------
    name
        Goes into file names: "debian", "synthetic-200000x128".
    rows
        float32 (n, dim), as an application would give them; row i has the id i.
    queries
        float32 (queries, dim), none of them a row.
    payloads
        What an application keeps beside a row, one dict each; empty for data without.
    """

    name: str
    rows: Floats
    queries: Floats
    payloads: list[dict[str, Any]]

    @property
    def count(self) -> int:
        """Rows in it."""
        return len(self.rows)

    @property
    def dim(self) -> int:
        """Length of every vector."""
        return int(self.rows.shape[1])

    @property
    def raw_bytes(self) -> int:
        """Bytes of the vectors as float32."""
        return self.rows.nbytes

    @cached_property
    def unit_rows(self) -> Floats:
        """The rows at unit length."""
        return normalised(self.rows)

    @cached_property
    def unit_queries(self) -> Floats:
        """The queries at unit length."""
        return normalised(self.queries)

    @cached_property
    def bucket(self) -> Rows:
        """A number below 1,000 for each row, at random: filters that have nothing to do with the vectors."""
        return np.random.default_rng(11).integers(0, BUCKETS, self.count)

    @cached_property
    def topic(self) -> Rows:
        """A number below 1,000 for each row by its rank along one direction: filters that follow the vectors."""
        direction = np.random.default_rng(12).standard_normal(self.dim).astype(np.float32)
        order = np.argsort(self.unit_rows @ direction)
        ranks = np.empty(self.count, np.int64)
        ranks[order] = np.arange(self.count)
        return ranks * BUCKETS // self.count

    def truth(self, k: int, matching: Rows | None = None, queries: int | None = None) -> Floats:
        """Return float32 (queries, k): the exact scores of the k nearest, among `matching` rows if given."""
        rows = self.unit_rows if matching is None else self.unit_rows[matching]
        k = min(k, len(rows))
        scores, _ = faiss.knn(self.unit_queries[:queries], rows, k, metric=faiss.METRIC_INNER_PRODUCT)
        return np.asarray(scores, np.float32)

    def recall(self, found: npt.NDArray[Any], truth: Floats) -> npt.NDArray[np.float64]:
        """Return the recall of each query.

        A hit counts when its exact score, recomputed here, is among the true k: so rows that are equally near count
        alike, and what an engine says of its scores does not matter. An id found twice counts once.

        Parameters
        ----------
        found
            Ids (queries, at least k), padded with -1.
        truth
            From `truth`.
        """
        k = truth.shape[1]
        shares = np.empty(len(found))
        for i, ids in enumerate(found[:, :k]):
            distinct = np.unique(ids[ids >= 0].astype(np.int64))
            scores = self.unit_rows[distinct] @ self.unit_queries[i]
            shares[i] = np.count_nonzero(scores >= truth[i, -1] - SCORE_TIE) / k
        return np.minimum(shares, 1.0)


def normalised(vectors: Floats) -> Floats:
    """Return the vectors at unit length."""
    return np.ascontiguousarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def synthetic(rows: int, dim: int, queries: int = 2_000, query_seed: int = 2) -> Dataset:
    """Draw rows around 2,000 centres, and queries from the same mixture by a seed of their own."""
    centres = np.random.default_rng(0).standard_normal((CENTRES, dim), np.float32)
    return Dataset(f"synthetic-{rows}x{dim}", _drawn(centres, rows, 1), _drawn(centres, queries, query_seed), [])


def _drawn(centres: Floats, count: int, seed: int) -> Floats:
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((count, centres.shape[1]), np.float32)
    vectors *= SIGMA
    vectors += centres[rng.integers(0, len(centres), count)]
    return vectors


def debian(folder: Path) -> Dataset:
    """Read `debian-packages.parquet` and `debian-queries.parquet`: 384 numbers for each of 30,000 package texts."""
    import pyarrow.parquet as pq

    packages = pq.read_table(
        folder / "debian-packages.parquet", columns=["name", "section", "installed_size", "vector"]
    )
    queries = pq.read_table(folder / "debian-queries.parquet", columns=["vector"])
    payloads = packages.select(["name", "section", "installed_size"]).to_pylist()
    return Dataset("debian", _vectors(packages["vector"]), _vectors(queries["vector"]), payloads)


def _vectors(column: Any) -> Floats:
    values = column.combine_chunks()
    width = values.type.list_size
    return values.flatten().to_numpy(zero_copy_only=False).reshape(-1, width).astype(np.float32)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare `--data`, `--path`, `--rows`, `--dim`."""
    parser.add_argument("--data", choices=["synthetic", "debian"], default="synthetic", help="which data set")
    parser.add_argument("--path", type=Path, help="folder of the debian Parquet files")
    parser.add_argument("--rows", type=int, default=200_000, help="rows of the synthetic data")
    parser.add_argument("--dim", type=int, default=128, help="dimension of the synthetic data")
    parser.add_argument("--query-seed", type=int, default=2, help="another seed draws other synthetic queries")


def name(args: argparse.Namespace) -> str:
    """Return the name of the data set that the command line asks for."""
    return "debian" if args.data == "debian" else f"synthetic-{args.rows}x{args.dim}"


def load(args: argparse.Namespace) -> Dataset:
    """Return the data set that the command line asks for."""
    if args.data == "debian":
        if args.path is None:
            raise SystemExit("--data debian needs --path, the folder of its Parquet files")
        return debian(args.path)
    return synthetic(args.rows, args.dim, 100 if args.quick else 2_000, args.query_seed)


def forwarded(args: argparse.Namespace) -> list[str]:
    """Return the arguments from which another process loads the same data."""
    given = [
        "--data",
        args.data,
        "--rows",
        str(args.rows),
        "--dim",
        str(args.dim),
        "--query-seed",
        str(args.query_seed),
    ]
    return [*given, *(["--path", str(args.path)] if args.path else []), *(["--quick"] if args.quick else [])]
