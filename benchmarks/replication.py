"""Question: what does a standby cost its primary, how far is it behind, and how long is nobody the writer?

Both Regions are processes on the same cores. A primary that holds the data is bootstrapped from; the same rows are
written to it and to a primary without a standby in turns, while the standby's process is paused, so that the shipping
alone is measured; then the standby catches up. Under writes at half of the rate that a primary alone can keep up, each
write is waited for at the standby: the lag as a reader sees it. The standby is drilled beside searches of it. Last, a
planned switchover under a writer that knows both, and a promotion after the primary was killed.

    python benchmarks/replication.py
"""

from __future__ import annotations

import argparse
import itertools
import json
import queue
import shutil
import signal
import statistics
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bench
import dataset
import numpy as np
import store
from bench import Answer
from dataset import Dataset
from regions import Region, primary, standby

import vecstore

CHUNK_ROWS = 1_000
"""Rows of one record under steady writes."""
WRITERS = 4
"""Threads that write steadily: one alone would wait for each sync."""


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    dataset.add_arguments(parser)
    bench.add_arguments(parser)
    parser.add_argument(
        "--parts", default="cost,lag,drill,switchover,promotion", help="which parts to run; all bootstrap"
    )
    parser.add_argument("--rounds", type=int, default=5, help="turns of writing with and without a standby")
    parser.add_argument("--turn-rows", type=int, default=40_000, help="rows of one turn")
    parser.add_argument("--seconds", type=float, default=30.0, help="of steady writing")
    parser.add_argument("--switch-seconds", type=float, default=4.0, help="of writing on each side of the switchover")
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.turn_rows, args.seconds, args.switch_seconds = 1, 3_000, 2.0, 1.0
    bench.warn_if_busy()
    data = dataset.load(args)
    report = bench.Report(
        "replication", bench.question(__doc__), dataset.name(args), args.out, bench.arguments_shown(args)
    )
    drawn: dict[str, list[float]] = {}
    with bench.work_folder(args) as folder:
        store.fill(folder / "east", data).close()
        with primary(folder / "east") as east:
            began_s = time.perf_counter()
            with standby(folder / "west", east) as west:
                bootstrap(report, east, west, data, began_s)
                measure(report, east, west, data, args, folder, drawn)
    report.finish()
    if drawn:
        plot(drawn, args.out / f"replication-{dataset.name(args)}.png", dataset.name(args))


def measure(
    report: bench.Report,
    east: Region,
    west: Region,
    data: Dataset,
    args: argparse.Namespace,
    folder: Path,
    drawn: dict[str, list[float]],
) -> None:
    """Run the parts that were asked for, in the order in which one leaves the Regions as the next needs them."""
    parts = args.parts.split(",")
    if "cost" in parts:
        with primary(folder / "alone", "alone") as alone:
            cost(report, east, west, alone, data, args)
        shutil.rmtree(folder / "alone")
    if "lag" in parts:
        with primary(folder / "alone", "alone") as alone:
            most = steady(alone, data).run(args.seconds / 2)
        drawn["lag"] = lag(report, east, west, data, args, most)
    if "drill" in parts:
        drill(report, west, data)
    if "switchover" in parts:
        drawn["switchover"] = switchover(report, east, west, data, args)
        east, west = west, east
    if "promotion" in parts:
        promotion(report, east, west, data)


# -- writing ---------------------------------------------------------------------------------------------------------


@dataclass
class Rows:
    """Batches of the data, taken in turns: the same for every side that starts at the same place."""

    data: Dataset
    at: int = 0

    def take(self, count: int) -> tuple[Any, Any, list[dict[str, Any]]]:
        """Return ids, vectors and payloads of the next rows; after the last come the first."""
        chosen = np.arange(self.at, self.at + count) % self.data.count
        self.at += count
        payloads = [
            {"bucket": int(self.data.bucket[i]), "topic": int(self.data.topic[i]), "name": f"point {i}"} for i in chosen
        ]
        return chosen, self.data.rows[chosen], payloads


def table_of(data: Dataset, rows: Rows, count: int) -> Any:
    """Return the next rows as a table."""
    import pyarrow as pa

    ids, vectors, payloads = rows.take(count)
    flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel(), pa.float32()), data.dim)
    return pa.table({"id": ids, "vector": flat, **{name: [p[name] for p in payloads] for name in payloads[0]}})


def written_s(region: Region, table: Any, data: Dataset) -> tuple[float, int]:
    """Write a table through the stream into a collection; return the seconds and the last LSN."""
    points = region.database.create_collection("turns", data.dim, fields=store.FIELDS, exist_ok=True)
    found: list[vecstore.Written] = []
    took_s = bench.timed(lambda: found.append(points.upsert_table(table)))
    return took_s, found[0].lsn


@dataclass
class Steady:
    """Writers of one record after the other into a collection, for a time: as fast as they can, or at a rate.

    Attributes
    ----------
    acknowledged
        Token, an id, and when it was acknowledged, of each record; None behind the last one.
    late
        Records that began half a second after their time.
    """

    region: Region
    tables: list[Any]
    acknowledged: queue.SimpleQueue[tuple[str, int, float] | None] = field(default_factory=queue.SimpleQueue)
    count: int = 0
    late: int = 0

    def run(self, seconds: float, rows_per_s: float = 0.0) -> float:
        """Write; return the rows a second that were written."""
        points = self.region.database.collection("steady")
        numbers, began_s = itertools.count(), time.perf_counter()

        def write(_: int) -> int:
            done = 0
            while (now_s := time.perf_counter()) - began_s < seconds:
                number = next(numbers)
                due_s = began_s + number * CHUNK_ROWS / rows_per_s if rows_per_s else now_s
                self.late += due_s < now_s - 0.5
                time.sleep(max(0.0, due_s - now_s))
                table = self.tables[number % len(self.tables)]
                written = points.upsert_table(table)
                self.acknowledged.put((written.token, table["id"][0].as_py(), time.perf_counter()))
                done += 1
            return done

        with ThreadPoolExecutor(WRITERS) as pool:
            self.count = sum(pool.map(write, range(WRITERS)))
        self.acknowledged.put(None)
        return self.count * CHUNK_ROWS / (time.perf_counter() - began_s)


def steady(region: Region, data: Dataset) -> Steady:
    """Return writers to a new collection; their tables are made before: the Regions are to have these cores."""
    region.database.create_collection("steady", data.dim, fields=store.FIELDS)
    rows = Rows(data)
    return Steady(region, [table_of(data, rows, CHUNK_ROWS) for _ in range(max(1, data.count // CHUNK_ROWS))])


# -- parts -----------------------------------------------------------------------------------------------------------


def bootstrap(report: bench.Report, east: Region, west: Region, data: Dataset, began_s: float) -> None:
    """Wait until a standby that began in an empty directory has all; its process's own start is included."""
    west.wait_for(east.position())
    took_s = time.perf_counter() - began_s
    assert west.database.collection(store.COLLECTION).count() == data.count
    size = east.size()
    detail = {"seconds": took_s, "points/s": data.count / took_s, "MB": size / 1e6}
    report.add(Answer("bootstrap from nothing, over the stream", size / 1e6 / took_s, "MB/s", None, None, detail))


def cost(
    report: bench.Report, east: Region, west: Region, alone: Region, data: Dataset, args: argparse.Namespace
) -> None:
    """Compare writing with a paused standby and without any; then let it catch up."""
    caught_up: list[float] = []
    rows = {"east": Rows(data), "alone": Rows(data)}

    def shipping(_: int) -> float:
        table = table_of(data, rows["east"], args.turn_rows)
        west.wait_for(east.position())
        west.signal(signal.SIGSTOP)
        before = east.position()
        took_s, lsn = written_s(east, table, data)
        west.signal(signal.SIGCONT)
        caught_up.append(apply_rate(west.wait_for(lsn), before, lsn, args.turn_rows))
        east.database.collection("turns").optimize()
        return took_s

    def without(_: int) -> float:
        took_s, _ = written_s(alone, table_of(data, rows["alone"], args.turn_rows), data)
        alone.database.collection("turns").optimize()
        return took_s

    pair = bench.interleaved(shipping, without, args.rounds)
    most = float(args.turn_rows / pair.raw)
    detail = {"with rows/s": args.turn_rows / pair.ours, "without rows/s": most}
    report.add(Answer("ingest with a paused standby against without", pair.speed_ratio, "x", 0.85, None, detail))
    rate = statistics.median(caught_up)
    detail = {"applied rows/s": rate, "written rows/s": most, "each": [round(r) for r in caught_up]}
    report.add(Answer("apply rate when catching up against ingest", rate / most, "x", 1.0, None, detail))


def apply_rate(seen: list[tuple[float, int]], before: int, last: int, rows: int) -> float:
    """Return the rows a second that were applied from the first movement to the last LSN."""
    began_s = max((at_s for at_s, lsn in seen if lsn <= before), default=seen[0][0])
    began = max((lsn for at_s, lsn in seen if at_s <= began_s), default=before)
    share = (last - max(began, before)) / max(1, last - before)
    return rows * share / max(1e-6, seen[-1][0] - began_s)


def lag(
    report: bench.Report, east: Region, west: Region, data: Dataset, args: argparse.Namespace, most: float
) -> list[float]:
    """Write at half the greatest rate, and wait for each write at the standby: how much later it was there."""
    writers = steady(east, data)
    west.wait_for(east.position())
    lags: list[float] = []

    def look() -> None:
        points = west.database.collection("steady")
        while (entry := writers.acknowledged.get()) is not None:
            token, one, at_s = entry
            assert points.get([one], after=token)
            lags.append(max(0.0, time.perf_counter() - at_s))

    thread = threading.Thread(target=look)
    thread.start()
    written = writers.run(args.seconds, most / 2)
    thread.join()
    p99_s = bench.quantile(lags, 0.99)
    detail = {
        "median ms": 1e3 * statistics.median(lags),
        "p99 ms": 1e3 * p99_s,
        "greatest ms": 1e3 * max(lags),
        "records": len(lags),
        "greatest rows/s": most,
        "asked rows/s": most / 2,
        "written rows/s": written,
        "records late": writers.late,
    }
    report.add(Answer("lag at half of the greatest ingest, p99, until read", p99_s, "s", None, 1.0, detail))
    return lags


def drill(report: bench.Report, west: Region, data: Dataset) -> None:
    """Drill the standby beside searches of it."""
    points = west.database.collection(store.COLLECTION)
    calls = itertools.cycle(data.queries)

    def searched(until: Callable[[list[float]], bool]) -> list[float]:
        took: list[float] = []
        while not until(took):
            took.append(bench.timed(lambda: points.search(next(calls), 10)))
        return took

    quiet = searched(lambda took: len(took) >= 1_000)
    answers: list[str] = []
    thread = threading.Thread(target=lambda: answers.append(west.command("drill")))
    thread.start()
    beside = searched(lambda _: not thread.is_alive())
    thread.join()
    found = json.loads(answers[0])
    assert found["passed"], found
    steps = {f"{step['name']} s": step["seconds"] for step in found["steps"]}
    report.add(Answer("drill: to the first answer and the first write", found["rto_s"], "s", None, None, steps))
    tails = [1e3 * bench.quantile(took, 0.99) for took in (beside, quiet)]
    detail = {"beside ms": tails[0], "without ms": tails[1], "searches": len(beside)}
    report.add(Answer("p99 of the standby's searches beside a drill", tails[0] / tails[1], "x", None, None, detail))


@dataclass
class Writer:
    """One who writes single points to whichever of two is the primary, and remembers what was acknowledged when."""

    endpoints: list[str]
    dim: int
    times: list[float] = field(default_factory=list)
    failed: dict[str, int] = field(default_factory=dict)
    stopped: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        """Begin to write, in a thread."""
        self._thread = threading.Thread(target=self._write)
        self._thread.start()

    def stop(self) -> int:
        """Stop; return how many writes were acknowledged."""
        self.stopped.set()
        self._thread.join()
        return len(self.times)

    def _write(self) -> None:
        with vecstore.connect(self.endpoints, timeout=30.0) as database:
            points = database.collection("writer")
            number = 0
            while not self.stopped.is_set():
                try:
                    points.upsert([number], np.full((1, self.dim), 1.0 + number, np.float32))
                except vecstore.VecstoreError as exc:
                    self.failed[type(exc).__name__] = self.failed.get(type(exc).__name__, 0) + 1
                    continue
                self.times.append(time.perf_counter())
                number += 1


def switchover(
    report: bench.Report, east: Region, west: Region, data: Dataset, args: argparse.Namespace
) -> list[float]:
    """Hand over under a writer; return when its writes were acknowledged, from the command on."""
    east.database.create_collection("writer", data.dim, metric="l2")
    west.wait_for(east.position())
    writer = Writer([east.address, west.address], data.dim)
    writer.start()
    time.sleep(args.switch_seconds)
    began_s = time.perf_counter()
    east.command("switchover", target=west.describe()["store_id"])
    answered_s = time.perf_counter() - began_s
    time.sleep(args.switch_seconds)
    count = writer.stop()
    gaps = np.diff(np.array(writer.times))
    there = west.database.collection("writer").count()
    median_ms = 1e3 * float(np.median(gaps))
    detail = {"command s": answered_s, "writes": count, "failed": writer.failed, "median gap ms": median_ms}
    report.add(Answer("planned switchover: no write acknowledged for", float(gaps.max()), "s", None, 1.0, detail))
    lost = max(0, count - there)
    report.add(Answer("acknowledged writes that a switchover lost", lost, "writes", None, 0, {"there": there}))
    assert west.describe()["role"] == "primary", west.describe()
    return [at_s - began_s for at_s in writer.times]


def promotion(report: bench.Report, east: Region, west: Region, data: Dataset) -> None:
    """Kill the primary, promote the standby, and write."""
    west.wait_for(east.position())
    epoch = west.describe()["epoch"]
    points = west.database.collection(store.COLLECTION)
    assert points.count() == data.count
    east.kill()
    began_s = time.perf_counter()
    west.command("promote", replaces=epoch)
    promoted_s = time.perf_counter() - began_s
    points.upsert([0], data.rows[:1], store.payloads_of(data, 0, 1))
    took_s = time.perf_counter() - began_s
    detail = {"promote s": promoted_s, "write s": took_s - promoted_s, "points": data.count}
    report.add(Answer("promote to the first accepted write", took_s, "s", None, 2.0, detail))


# -- plot ------------------------------------------------------------------------------------------------------------


def plot(drawn: dict[str, list[float]], path: Path, data_name: str) -> None:
    """Draw how much later writes were at the standby, and the writes around a switchover."""
    try:
        import matplotlib as mpl
    except ImportError:
        print("no plot: matplotlib is not installed")
        return
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4))
    if lags := sorted(drawn.get("lag", [])):
        shares = np.arange(1, len(lags) + 1) / len(lags)
        axes[0].plot([1e3 * one for one in lags], shares, color="black")
        axes[0].axhline(0.99, color="grey", linewidth=0.8, linestyle="--")
    axes[0].set(title="lag at half of the greatest ingest", xlabel="ms until read at the standby", ylabel="share")
    if times := drawn.get("switchover", []):
        gaps = np.diff(np.array(times))
        axes[1].plot(times[1:], 1e3 * gaps, color="black", linewidth=0.8)
        axes[1].axvline(0.0, color="grey", linewidth=0.8, linestyle="--")
    axes[1].set(title="a planned switchover", xlabel="s from the command", ylabel="ms since the write before")
    axes[1].set_yscale("log")
    for axis in axes:
        axis.grid(True, which="both", alpha=0.3)
    figure.suptitle(data_name)
    figure.tight_layout()
    figure.savefig(path, dpi=70)
    plt.close(figure)
    print(f"written: {path}")


if __name__ == "__main__":
    main()
