"""Question: how much memory and disk does a store take, beside the raw float32 vectors?

One process builds a store with the index "auto" and answers 1,000 queries; a fresh one opens it and answers them too.
Counted is the resident memory of each, mapped pages included, beyond what the interpreter and the imported libraries
take. The benchmark's own rows are not held in either: the builder draws them call by call.

    python benchmarks/memory.py
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
from pathlib import Path

import bench
import dataset
import numpy as np
import store
from bench import Answer

import vecstore

QUERIES = 1_000
MODULES = (
    "vecstore.engine",
    "vecstore.engine.database",
    "faiss",
    "rocksdict",
    "pyarrow",
    "pyarrow.parquet",
    "xxhash",
    "orjson",
)


def serve(folder: Path, stage: str) -> None:
    """Be the process that is counted: build or open, answer, print the memory."""
    for module in MODULES:
        importlib.import_module(module)
    rows = np.load(folder / "rows.npy", mmap_mode="r")
    queries = np.load(folder / "queries.npy")
    before = bench.resident_parts()
    if stage == "build":
        database = vecstore.open(str(folder / "store"))
        points = database.create_collection(store.COLLECTION, rows.shape[1])
        for start in range(0, len(rows), store.CALL_ROWS):
            part = np.array(rows[start : start + store.CALL_ROWS])
            points.upsert(np.arange(start, start + len(part)), part)
        points.optimize()
    else:
        database = vecstore.open(str(folder / "store"), create=False)
        points = database.collection(store.COLLECTION)
    # The rows' own mapping is the benchmark's, not the store's.
    del rows
    for i in range(QUERIES):
        points.search(queries[i % len(queries)], 10)
    after = bench.resident_parts()
    database.close()
    print(json.dumps({name: after[name] - before[name] for name in after} | {"imports": sum(before.values())}))


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    dataset.add_arguments(parser)
    bench.add_arguments(parser)
    parser.add_argument("--stage", choices=["build", "open"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.stage:
        serve(args.folder, args.stage)
        return
    data = dataset.load(args)
    bench.warn_if_busy()
    report = bench.Report("memory", bench.question(__doc__), dataset.name(args), args.out, bench.arguments_shown(args))
    with bench.work_folder(args) as folder:
        np.save(folder / "rows.npy", data.rows)
        np.save(folder / "queries.npy", data.queries)
        for stage, name, at_most in (("build", "the process that built it", None), ("open", "a fresh process", 1.5)):
            command = [sys.executable, __file__, "--stage", stage, "--folder", str(folder)]
            process = subprocess.run(command, check=True, capture_output=True, text=True)
            used = json.loads(process.stdout)
            resident = used["anonymous"] + used["files"]
            detail = {
                "MB": resident / 1e6,
                "anonymous MB": used["anonymous"] / 1e6,
                "files MB": used["files"] / 1e6,
                "imports MB": used["imports"] / 1e6,
                "raw MB": data.raw_bytes / 1e6,
                "rows": data.count,
            }
            report.add(
                Answer(
                    f"memory of {name} after {QUERIES:,} queries",
                    resident / data.raw_bytes,
                    "x raw",
                    None,
                    at_most,
                    detail,
                )
            )
        disk = bench.Disk.of(folder / "store")
        detail = {"MB": disk.file_bytes / 1e6, "allocated MB": disk.allocated_bytes / 1e6}
        report.add(Answer("disk after a clean close", disk.file_bytes / data.raw_bytes, "x raw", None, None, detail))
    report.finish()


if __name__ == "__main__":
    main()
