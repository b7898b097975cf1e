"""Question: how long does a store take from `open` to its first answer, after a clean close and after kill -9?

One process builds a store and closes it, another builds one and is killed with SIGKILL right after its last upsert was
acknowledged, a third after everything was indexed. Fresh processes then open what is there and ask one question; the
clock starts after the imports. All acknowledged points must be there.

    python benchmarks/reopen.py
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
from pathlib import Path

import bench
import dataset
import numpy as np
import store
from bench import Answer

import vecstore
import vecstore.engine.database  # imported here, so that no import is timed

ENDINGS = {"closed": 2.0, "killed after the last upsert": 6.0, "killed after all was indexed": 6.0}


def build(folder: Path, ending: str, data: dataset.Dataset) -> None:
    """Be the process that builds; it does not return unless it may close."""
    np.save(folder / "query.npy", data.queries[0])
    database = store.fill(folder / "store", data, optimize=ending != "killed after the last upsert")
    if ending != "closed":
        os.kill(os.getpid(), signal.SIGKILL)
    database.close()


def answer(folder: Path, rows: int) -> None:
    """Be the process that opens and asks; print the seconds."""
    query = np.load(folder / "query.npy")
    opened: list[vecstore.Database] = []
    open_s = bench.timed(lambda: opened.append(vecstore.open(str(folder / "store"), create=False)))
    points = opened[0].collection(store.COLLECTION)
    first_s = bench.timed(lambda: points.search(query, 10))
    found = points.count()
    assert found == rows, f"{rows} points were acknowledged, {found} are there"
    print(json.dumps({"open_s": open_s, "first_answer_s": open_s + first_s}))
    # What was opened must stay as the first process left it for the next round.
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    dataset.add_arguments(parser)
    bench.add_arguments(parser)
    parser.add_argument("--rounds", type=int, default=3, help="reopens of a copy of each store")
    parser.add_argument("--stage", choices=["build", "answer"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--ending", help=argparse.SUPPRESS)
    parser.add_argument("--count", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.stage == "build":
        build(args.folder, args.ending, dataset.load(args))
        return
    if args.stage == "answer":
        answer(args.folder, args.count)
        return
    if args.quick:
        args.rounds = 1
    bench.warn_if_busy()
    report = bench.Report("reopen", bench.question(__doc__), dataset.name(args), args.out, bench.arguments_shown(args))
    for ending, at_most in ENDINGS.items():
        with bench.work_folder(args) as folder:
            report.add(measure(args, folder, ending, at_most))
    report.finish()


def measure(args: argparse.Namespace, folder: Path, ending: str, at_most: float) -> Answer:
    """Build once, reopen copies in fresh processes."""
    count = 30_000 if args.data == "debian" else args.rows
    given = [*dataset.forwarded(args), "--folder", str(folder)]
    built = subprocess.run([sys.executable, __file__, "--stage", "build", "--ending", ending, *given], check=False)
    assert built.returncode == (0 if ending == "closed" else -signal.SIGKILL), (
        f"the builder ended with {built.returncode}"
    )
    kept = folder / "kept"
    (folder / "store").rename(kept)
    times = []
    for _ in range(args.rounds):
        shutil.copytree(kept, folder / "store")
        command = [sys.executable, __file__, "--stage", "answer", "--count", str(count), *given]
        process = subprocess.run(command, check=False, capture_output=True, text=True)
        if not process.stdout:
            raise SystemExit(process.stderr)
        times.append(json.loads(process.stdout))
        shutil.rmtree(folder / "store")
    first = [time["first_answer_s"] for time in times]
    detail = {
        "open s": statistics.median(time["open_s"] for time in times),
        "slowest s": max(first),
        "rows": count,
        "disk MB": bench.Disk.of(kept).file_bytes / 1e6,
        "first_answer_s": first,
    }
    return Answer(f"reopen to first answer, {ending}", statistics.median(first), "s", None, at_most, detail)


if __name__ == "__main__":
    main()
