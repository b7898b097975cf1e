"""Question: what do snapshots cost, how fast does a store come back from a repository, and how much is lost?

A store is filled with its log archived, then snapshot, changed, and snapshot again; it is restored from the snapshot
and from the archive alone, and opened to its first answer. Searches run beside a snapshot. A process that writes all
the time is killed with SIGKILL, and what the archive alone gives back is counted. Repositories are local folders.

    python benchmarks/recovery.py
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import bench
import dataset
import numpy as np
import store
from bench import Answer

import vecstore

INTERVAL_S = 1.0
"""Of the archive in the run that is killed: the target is this and two seconds more."""


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    dataset.add_arguments(parser)
    bench.add_arguments(parser)
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each pair")
    parser.add_argument("--stage", choices=["write"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.stage == "write":
        write_until_killed(args.folder)
        return
    if args.quick:
        args.rounds = 1
    bench.warn_if_busy()
    data = dataset.load(args)
    report = bench.Report(
        "recovery", bench.question(__doc__), dataset.name(args), args.out, bench.arguments_shown(args)
    )
    with bench.work_folder(args) as folder:
        written_s = build(folder, data)
        measure_snapshots(report, folder, data, args.rounds)
        measure_restores(report, folder, data, written_s)
    with bench.work_folder(args) as folder:
        report.add(recovery_point(folder, 1.0 if args.quick else 6.0))
    report.finish()


def build(folder: Path, data: dataset.Dataset) -> float:
    """Fill a store whose log is archived; return the seconds of its writes."""
    database = vecstore.open(str(folder / "store"), archive=str(folder / "archive"))
    points = database.create_collection(store.COLLECTION, data.dim, fields=store.FIELDS)
    batches = [
        (np.arange(start, stop), data.rows[start:stop], store.payloads_of(data, start, stop))
        for start, stop in ((s, min(s + store.CALL_ROWS, data.count)) for s in range(0, data.count, store.CALL_ROWS))
    ]
    written_s = bench.timed(lambda: [points.upsert(*batch) for batch in batches])
    points.optimize()
    database.close()
    return written_s


# -- snapshots -------------------------------------------------------------------------------------------------------


def measure_snapshots(report: bench.Report, folder: Path, data: dataset.Dataset, rounds: int) -> None:
    """Rate, what is new the second time, and searches beside."""
    # As a server opens it: searches beside other threads need the short interval.
    database = vecstore.open(str(folder / "store"), config={"switch_interval_s": 0.0002})
    points = database.collection(store.COLLECTION)
    database.snapshot(str(folder / "warm"))
    shutil.rmtree(folder / "warm")

    def copy(number: int, *, synced: bool = False) -> float:
        target = folder / f"copy-{number}"
        command = ["cp", "-r", str(folder / "store"), str(target)]
        sync = ["find", str(target), "-exec", "sync", "{}", "+"]
        took_s = bench.timed(lambda: subprocess.run(command, check=True))
        took_s += bench.timed(lambda: subprocess.run(sync, check=True)) if synced else 0.0
        shutil.rmtree(target)
        return took_s

    def snap(number: int) -> float:
        target = folder / f"snapshot-{number}"
        took_s = bench.timed(lambda: database.snapshot(str(target)))
        shutil.rmtree(target)
        return took_s

    pair = bench.interleaved(snap, copy, rounds, warmups=0)
    size = bench.Disk.of(folder / "store").file_bytes
    detail = {"MB": size / 1e6, "snapshot s": pair.ours, "cp s": pair.raw, "MB/s": size / 1e6 / pair.ours}
    report.add(Answer("snapshot to a local repository against cp -r", pair.speed_ratio, "x", 0.5, None, detail))
    pair = bench.interleaved(snap, lambda number: copy(number, synced=True), rounds, warmups=0)
    detail = {"snapshot s": pair.ours, "cp and sync s": pair.raw}
    report.add(
        Answer("the same against cp -r and sync: a snapshot is durable", pair.speed_ratio, "x", None, None, detail)
    )
    first = database.snapshot(str(folder / "repository"))
    again = database.snapshot(str(folder / "repository"))
    report.add(Answer("bytes of a second snapshot, nothing changed", again.bytes_new / 1e3, "KB", None, 100.0))
    changed = np.random.default_rng(5).choice(data.count, data.count // 100, replace=False)
    points.upsert(changed, data.rows[changed], [{"bucket": 0, "topic": 0}] * len(changed))
    third = database.snapshot(str(folder / "repository"))
    share = third.bytes_new / first.bytes_new
    detail = {"first MB": first.bytes_new / 1e6, "third MB": third.bytes_new / 1e6}
    report.add(Answer("bytes of a snapshot after 1% changed, of the first", 100 * share, "%", None, 10.0, detail))
    report.add(searches_beside(folder, database, data))
    database.close()


def searches_beside(folder: Path, database: vecstore.Database, data: dataset.Dataset) -> Answer:
    """p99 of single searches during snapshots against without."""
    points = database.collection(store.COLLECTION)
    queries = data.queries

    def p99(running: threading.Event | None) -> tuple[float, int]:
        took: list[float] = []
        number = 0
        while (running is not None and running.is_set()) or (running is None and number < 4_000):
            start_s = time.perf_counter()
            points.search(queries[number % len(queries)], 10)
            took.append(time.perf_counter() - start_s)
            number += 1
        return bench.quantile(took, 0.99), number

    quiet, _ = p99(None)
    running = threading.Event()
    running.set()

    def snapshots() -> None:
        for number in range(3):
            points.upsert([number], data.rows[:1])
            database.snapshot(str(folder / f"beside-{number}"))
        running.clear()

    thread = threading.Thread(target=snapshots)
    thread.start()
    beside, count = p99(running)
    thread.join()
    for number in range(3):
        shutil.rmtree(folder / f"beside-{number}")
    detail = {"without us": quiet * 1e6, "during us": beside * 1e6, "searches": count}
    return Answer("p99 of searches during snapshots against without", beside / quiet, "x", None, 2.0, detail)


# -- restores --------------------------------------------------------------------------------------------------------


def measure_restores(report: bench.Report, folder: Path, data: dataset.Dataset, written_s: float) -> None:
    """From the snapshot to the first answer; and from the archive alone."""
    made: list[vecstore.Snapshot] = []
    restored_s = bench.timed(
        lambda: made.append(vecstore.restore(str(folder / "repository"), str(folder / "restored")))
    )

    def answer() -> None:
        with vecstore.open(str(folder / "restored"), create=False) as database:
            found = database.collection(store.COLLECTION).search(data.queries[0], 10)
            assert len(found) == 10
            assert database.status()["findings"] == []

    first_s = restored_s + bench.timed(answer)
    size = made[0].bytes_new
    detail = {"restore s": restored_s, "MB": size / 1e6, "restore MB/s": size / 1e6 / restored_s}
    report.add(Answer("from an empty machine to the first answer", first_s, "s", None, 10.0, detail))
    shutil.rmtree(folder / "restored")
    replayed_s = bench.timed(lambda: vecstore.restore(str(folder / "archive"), str(folder / "replayed")))
    detail = {
        "written points/s": data.count / written_s,
        "replayed points/s": data.count / replayed_s,
        "archive MB": bench.Disk.of(folder / "archive").file_bytes / 1e6,
    }
    report.add(Answer("replay of the archive against writing it", written_s / replayed_s, "x", 1.0, None, detail))
    shutil.rmtree(folder / "replayed")


# -- the recovery point ----------------------------------------------------------------------------------------------


def write_until_killed(folder: Path) -> None:
    """Be the process that writes steadily and says the time of each write, on a clock that the other one shares."""
    database = vecstore.open(
        str(folder / "store"), archive=str(folder / "archive"), config={"archive_interval_s": INTERVAL_S}
    )
    points = database.create_collection("steady", 16)
    number = 0
    while True:
        lsn = points.upsert([number], np.full((1, 16), 1.0 + number, np.float32)).lsn
        sys.stdout.write(f"{lsn} {time.monotonic()}\n")
        sys.stdout.flush()
        number += 1
        time.sleep(0.002)


def recovery_point(folder: Path, for_s: float) -> Answer:
    """Kill the writer, restore from the archive alone, and see how old the newest record is that came back."""
    command = [sys.executable, __file__, "--stage", "write", "--folder", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    times: dict[int, float] = {}
    for line in process.stdout:
        lsn, at_s = line.split()
        times[int(lsn)] = float(at_s)
        if float(at_s) - min(times.values()) > for_s + INTERVAL_S:
            os.kill(process.pid, signal.SIGKILL)
            break
    process.stdout.close()
    process.wait()
    made = vecstore.restore(str(folder / "archive"), str(folder / "restored"))
    last = max(times)
    lost_s = times[last] - times.get(made.lsn, min(times.values()))
    detail = {"interval s": INTERVAL_S, "records written": len(times), "records lost": last - made.lsn}
    return Answer("recovery point, archive alone, source killed", lost_s, "s", None, INTERVAL_S + 2.0, detail)


if __name__ == "__main__":
    main()
