"""Question: what does a search cost beyond the FAISS call in it, does it keep the recall asked for, and beside writes?

On one store whose building is done, against FAISS with the same kind of index over the same rows (codes, exact
re-ranking, as many candidates and lists as the engine takes): batches of 100, and single queries one after the other,
each with a query of its own; payloads count with what reading them takes. Recall is measured on queries that neither
training nor calibration saw, at three asks for three k. Last, the tail of one caller's searches while another thread
writes durably at half the rate that it can reach, with a short interpreter switch interval, as a server would set it.

    python benchmarks/search.py
    python benchmarks/search.py --rows 20000 --dim 1536
    python benchmarks/search.py --data debian --path DIR
"""

from __future__ import annotations

import argparse
import gc
import threading
import time
from collections.abc import Callable
from pathlib import Path

import bench
import dataset
import faiss
import numpy as np
import store
from bench import Answer
from dataset import Dataset, Floats

import vecstore

K = 10
RECALL = 0.95
BATCH = 100
ASKS = (0.90, 0.95, 0.99)
KS = (1, 10, 100)
SWITCH_INTERVAL_S = 0.0002
_PAYLOAD_CALLS = 20


def batches(report: bench.Report, database: vecstore.Database, data: Dataset, args: argparse.Namespace) -> None:
    """Compare batches of 100 queries."""
    points = database.collection(store.COLLECTION)
    raw, search = _raw_search(database, data)
    thread = store.RawThread()
    spans = [slice(at, at + BATCH) for at in range(0, len(data.queries) - BATCH + 1, BATCH)]

    def ours(_round: int) -> float:
        return bench.timed(lambda: [points.search_batch(data.queries[span], K, recall=RECALL) for span in spans])

    def theirs(_round: int) -> float:
        return thread.timed(lambda: [search(data.unit_queries[span]) for span in spans])

    pair = bench.interleaved(ours, theirs, args.rounds)
    queries = BATCH * len(spans)
    detail = {
        "vecstore queries/s": queries / pair.ours,
        "faiss queries/s": queries / pair.raw,
        **raw,
        "ours_s": pair.ours_s,
        "raw_s": pair.raw_s,
    }
    report.add(Answer(f"search_batch of {BATCH}, k = {K}", pair.speed_ratio, "x", 0.85, None, detail))


def singles(report: bench.Report, database: vecstore.Database, data: Dataset, args: argparse.Namespace) -> None:
    """Measure what one search takes beyond the FAISS call, without and with payloads."""
    points = database.collection(store.COLLECTION)
    raw, search = _raw_search(database, data)
    unit = [data.unit_queries[i : i + 1] for i in range(len(data.queries))]
    given = list(data.queries)
    sides: dict[str, tuple[Callable[[Floats], object], list[Floats]]] = {
        "faiss": (search, unit),
        "without payloads": (lambda query: points.search(query, K, recall=RECALL, with_payload=False), given),
        "with payloads": (lambda query: points.search(query, K, recall=RECALL), given),
        "payloads, each read": (lambda query: [hit.payload for hit in points.search(query, K, recall=RECALL)], given),
    }
    times: dict[str, list[float]] = {name: [] for name in sides}
    # A single query is fastest in one thread, for FAISS as well.
    faiss.omp_set_num_threads(1)
    for block in range(args.rounds_single + 1):
        for number, (name, (call, queries)) in enumerate(sides.items()):
            # Each side begins elsewhere, so that none finds what another has just brought into the caches.
            start = (block * len(sides) + number) * 200 % len(queries)
            seconds = bench.call_times(call, (queries + queries)[start : start + 200])
            times[name] += seconds if block else []
    raw_us = 1e6 * bench.quantile(times["faiss"], 0.5)
    for name, at_most in (("without payloads", 30.0), ("with payloads", None), ("payloads, each read", 50.0)):
        us = 1e6 * bench.quantile(times[name], 0.5)
        detail = {"search us": us, "faiss us": raw_us, "p99 us": 1e6 * bench.quantile(times[name], 0.99), **raw}
        report.add(
            Answer(f"one search, k = {K}, {name}: beyond the FAISS call", us - raw_us, "us", None, at_most, detail)
        )


def _raw_search(database: vecstore.Database, data: Dataset) -> tuple[dict[str, object], Callable[[Floats], object]]:
    """Return the FAISS search of the same effort: over the same index and re-ranking, or the exact scan."""
    built = store.served(database, data)
    shown: dict[str, object] = {"index": built.text, "segments": built.segments}
    if built.kind == "flat":
        exact = store.exact_index(data.unit_rows)
        return shown, lambda queries: exact.search(queries, K)
    effort = store.effort_at(database, RECALL, K)
    refined = store.refined(store.trained_index(built, data), data)
    parameters = store.refine_parameters(effort, K, built.lists)
    shown |= {"candidates": effort.candidates, "probes": effort.probes or built.lists}
    return shown, lambda queries: refined.search(queries, K, params=parameters)


def recalls(report: bench.Report, database: vecstore.Database, data: Dataset) -> None:
    """Measure recall at every ask and k, by batches and one by one."""
    points = database.collection(store.COLLECTION)
    for k in KS:
        truth = data.truth(k)
        for ask in ASKS:
            found = np.vstack(
                [points.search_batch(part, k, recall=ask).ids for part in np.array_split(data.queries, 10)]
            )
            shares = data.recall(found, truth)
            single = np.full((min(200, len(shares)), k), -1, np.int64)
            for i in range(len(single)):
                ids = [hit.id for hit in points.search(data.queries[i], k, recall=ask, with_payload=False)]
                single[i, : len(ids)] = ids
            one_by_one = data.recall(single, truth[: len(single)])
            error = float(shares.std() / np.sqrt(len(shares)))
            detail = {
                "standard error": error,
                "queries": len(shares),
                "one by one": float(one_by_one.mean()),
                "same queries batched": float(shares[: len(single)].mean()),
                "worst query": float(shares.min()),
            }
            report.add(Answer(f"recall asked {ask:.2f}, k = {k}", float(shares.mean()), "", ask, None, detail))


class Writer(threading.Thread):
    """Upserts durably, 1,000 rows a call, so many rows a second, until told to stop."""

    def __init__(self, points: vecstore.Collection, data: Dataset, rows_per_s: float) -> None:
        super().__init__(daemon=True)
        self._points, self._data = points, data
        # Made before any clock runs, and few, so that neither making them nor collecting garbage is measured.
        spans = range(0, min(data.count, _PAYLOAD_CALLS * store.CALL_ROWS) - store.CALL_ROWS + 1, store.CALL_ROWS)
        self._calls = [(at, store.payloads_of(data, at, at + store.CALL_ROWS)) for at in spans]
        self._pause_s = store.CALL_ROWS / rows_per_s
        self._stop_asked = threading.Event()
        self.rows = 0
        self.failure: BaseException | None = None

    def run(self) -> None:
        """Write at an even pace; a call that took too long is not made up for."""
        try:
            while not self._stop_asked.is_set():
                start = time.perf_counter()
                self.write_one()
                self._stop_asked.wait(max(0.0, self._pause_s - (time.perf_counter() - start)))
        except BaseException as error:  # noqa: BLE001 - it is raised again by `stop`
            self.failure = error

    def write_one(self) -> None:
        """Write one call's rows: fresh ids, vectors of the data set."""
        ids = np.arange(store.CALL_ROWS) + 10_000_000 + self.rows
        at, payloads = self._calls[self.rows // store.CALL_ROWS % len(self._calls)]
        self._points.upsert(ids, self._data.rows[at : at + store.CALL_ROWS], payloads)
        self.rows += store.CALL_ROWS

    def stop(self) -> None:
        """Wait for the thread; raise what it met."""
        self._stop_asked.set()
        self.join()
        if self.failure is not None:
            raise self.failure


def beside_writes(report: bench.Report, data: Dataset, args: argparse.Namespace, folder: Path) -> None:
    """Compare the p99 of searches beside a writer with that at rest, in turns, each time after all is indexed."""
    database = store.fill(folder / "beside", data, {"switch_interval_s": SWITCH_INTERVAL_S})
    points = database.collection(store.COLLECTION)
    probe = Writer(points, data, 1.0)
    seconds = bench.timed(lambda: [probe.write_one() for _ in range(args.probe_calls)])
    most_rows_per_s = probe.rows / seconds
    points.optimize()
    rest: list[float] = []
    beside: list[float] = []
    written = probe.rows
    for _ in range(args.rounds_beside):
        rest += _search_for(points, data, args.seconds)
        writer = Writer(points, data, most_rows_per_s / 2)
        writer.rows = written
        writer.start()
        beside += _search_for(points, data, args.seconds)
        writer.stop()
        reached = (writer.rows - written) / args.seconds
        written = writer.rows
        points.optimize()
    database.close()
    detail = {
        "rest p50 us": 1e6 * bench.quantile(rest, 0.5),
        "rest p99 us": 1e6 * bench.quantile(rest, 0.99),
        "beside p50 us": 1e6 * bench.quantile(beside, 0.5),
        "beside p99 us": 1e6 * bench.quantile(beside, 0.99),
        "beside p99.9 us": 1e6 * bench.quantile(beside, 0.999),
        "written rows/s": reached,
        "most rows/s": most_rows_per_s,
    }
    ratio = bench.quantile(beside, 0.99) / bench.quantile(rest, 0.99)
    report.add(
        Answer("p99 of searches beside durable writes at half rate, against rest", ratio, "x", None, 5.0, detail)
    )


def _search_for(points: vecstore.Collection, data: Dataset, seconds: float) -> list[float]:
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = len(times) % len(data.queries)
        times += bench.call_times(
            lambda query: points.search(query, K, with_payload=False), data.queries[start : start + 50]
        )
    return times


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    dataset.add_arguments(parser)
    bench.add_arguments(parser)
    parser.add_argument("--rounds", type=int, default=9, help="rounds of batches, in turns")
    parser.add_argument("--rounds-single", type=int, default=10, help="rounds of 200 single queries a side")
    parser.add_argument("--rounds-beside", type=int, default=3, help="rounds at rest and beside writes")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of such a round")
    parser.add_argument("--probe-calls", type=int, default=30, help="calls that tell how fast writing can be")
    parser.add_argument("--parts", default="batches,singles,recalls,beside", help="which parts to run")
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.rounds_single, args.rounds_beside, args.seconds, args.probe_calls = 1, 1, 1, 0.2, 2
    parts = args.parts.split(",")
    data = dataset.load(args)
    # The rows' payloads are the benchmark's own: walking them for garbage must not count as a pause of the store.
    gc.freeze()
    bench.warn_if_busy()
    report = bench.Report("search", bench.question(__doc__), dataset.name(args), args.out, bench.arguments_shown(args))
    with bench.work_folder(args) as folder:
        with store.fill(folder / "store", data) as database:
            if "batches" in parts:
                batches(report, database, data, args)
            if "singles" in parts:
                singles(report, database, data, args)
            if "recalls" in parts:
                recalls(report, database, data)
        if "beside" in parts:
            beside_writes(report, data, args, folder)
    report.finish()


if __name__ == "__main__":
    main()
