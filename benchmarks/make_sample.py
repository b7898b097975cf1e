"""Makes `vecstore/cli/sample.parquet`, the 4,000 packages that `vecstore demo` searches.

Input: a Parquet file of Debian packages with the columns `id`, `name`, `section`, `installed_size`, `priority` and
`vector` (a list of 384 numbers: the package's description embedded by all-MiniLM-L6-v2). A column `text` is not taken:
descriptions are under the licences of their packages.

Rows are the nearest neighbours of some packages that people know, so that the demo's questions have good answers,
filled up with others drawn by a fixed seed. The same input gives the same file.

Usage: ``python benchmarks/make_sample.py debian-packages.parquet [vecstore/cli/sample.parquet]``
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

ROWS = 4_000
NEIGHBOURS = 120
BYTES_MAX = 4_000_000
SEED = 20_241_124
KNOWN = ["nginx", "postgresql-client", "postgresql-common", "ffmpeg", "vlc", "vim", "redis"]
COLUMNS = ["id", "name", "section", "installed_size", "priority"]


def chosen_rows(names: list[str], vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """Return the rows to take, ascending: neighbours of the known packages, then others at random."""
    rows: set[int] = set()
    for name in KNOWN:
        nearest = np.argsort(-(vectors @ vectors[names.index(name)]), kind="stable")[:NEIGHBOURS]
        rows.update(int(row) for row in nearest)
    for row in np.random.default_rng(SEED).permutation(len(names)):
        if len(rows) == ROWS:
            break
        rows.add(int(row))
    return np.array(sorted(rows), np.int64)


def main(source: str, target: str = "vecstore/cli/sample.parquet") -> None:
    """Read the source, choose, write the sample."""
    table = pq.read_table(source, columns=[*COLUMNS, "vector"])
    dim = table.schema.field("vector").type.list_size
    flat = table["vector"].combine_chunks().flatten()
    vectors = flat.to_numpy(zero_copy_only=False).reshape(-1, dim).astype(np.float32)
    rows = chosen_rows(table["name"].to_pylist(), vectors)
    sample = table.select(COLUMNS).take(pa.array(rows))
    halves = pa.array(vectors[rows].astype(np.float16).reshape(-1), pa.float16())
    sample = sample.append_column("vector", pa.FixedSizeListArray.from_arrays(halves, dim))
    pq.write_table(sample, target, compression="zstd", compression_level=19, use_dictionary=["section", "priority"])
    size = Path(target).stat().st_size
    sections = pc.count_distinct(sample["section"]).as_py()
    print(f"{target}: {sample.num_rows:,} packages of {sections} sections, {size:,} bytes")
    if size > BYTES_MAX:
        sys.exit(f"the sample is larger than {BYTES_MAX:,} bytes")


if __name__ == "__main__":
    main(*sys.argv[1:])
