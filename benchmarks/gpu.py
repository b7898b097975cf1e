"""Question: how near does a store on a GPU come to FAISS on that GPU, and an exact scan to what the GPU can do at all?

One store with `device="gpu"` against raw faiss-gpu with the same kind of index at the same effort: from the first
durable upsert to all indexed against train and add, batches of 1,000, recall and rate of both at three asks, single
searches, a filter of 1% against comparing the matching rows alone, and an exact scan against the bytes that it must
read and the operations that it must do. Then the same store served over gRPC from client processes on this machine:
batches of 1,000 and 100, and single searches of 1, 8, 64 and 256 callers, at the same three asks.

    python benchmarks/gpu.py --rows 1000000 --dim 128
    python benchmarks/gpu.py --rows 10000000 --dim 96 --parts indexed,batches,recalls,served
    python benchmarks/gpu.py --data debian --path DIR
    python benchmarks/gpu.py --backend host --quick      # anywhere: a smoke test, its figures mean nothing

What is missing is said in the first seconds. Each answer is in the file as soon as it is known, and once `--limit-s`
seconds are over no part is begun: a machine that is lent for minutes leaves what it had time for. A part that fails is
noted, and the others go on. `gpu_session.py` runs this with the tests.
"""

from __future__ import annotations

import argparse
import os
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import bench
import dataset
import gpu_raw
import numpy as np
import store
from bench import Answer
from callers import Crew, Order, Tally
from dataset import Dataset, Floats
from server import Server

import vecstore

K = 10
BATCH = 1_000
ASKS = (0.90, 0.95, 0.99)
PROCESSES = 8
CALLERS = {1: (1, 1), 8: (8, 1), 64: (8, 8), 256: (16, 16)}
PARTS = ("indexed", "batches", "exact", "recalls", "singles", "filter", "served")
BEGAN_S = time.perf_counter()
LOADED_S_MAX = 3_600.0
PART_S_MIN = 5.0


class Measured:
    """What all parts share: the data, the open store, and the raw index beside it."""

    def __init__(self, report: bench.Report, data: Dataset, args: argparse.Namespace, folder: Path) -> None:
        self.report, self.data, self.args, self.folder = report, data, args, folder
        self.backend: str = args.backend
        self.batch = min(BATCH, len(data.queries))
        self.config = {"device_backend": self.backend, "device_rows_min": 1}
        began_s = time.perf_counter()
        self.used_before = gpu_raw.memory_used_bytes(self.backend)
        self.database = vecstore.open(str(folder), device="gpu", config=self.config)
        self.points = self.database.create_collection(store.COLLECTION, data.dim, fields=store.FIELDS)
        step = min(10_000, 7_000_000 // data.dim)
        for start in range(0, data.count, step):
            stop = min(start + step, data.count)
            payloads = store.payloads_of(data, start, stop)
            self.points.upsert(np.arange(start, stop), data.rows[start:stop], payloads)
        self.durable_s = time.perf_counter() - began_s
        self.points.optimize()
        self.built_s = time.perf_counter() - began_s
        self.held = self._loaded()
        self.indexed_s = time.perf_counter() - began_s
        self.used_bytes = gpu_raw.memory_used_bytes(self.backend) - self.used_before
        self.raw = gpu_raw.Raw(self.held["kind"], self.backend, data.dim, data.count)
        self.raw_s = self.raw.filled_s(data.unit_rows)

    def _loaded(self) -> dict[str, Any]:
        """Wait until a device holds every row, and, of an index with lists, its curve; return what it holds."""
        end_s = time.perf_counter() + min(LOADED_S_MAX, self.left_s())
        while time.perf_counter() < end_s:
            status = self.database.status()
            held = [one for device in status["devices"] for one in device["segments"].values() if one["ready"]]
            known = all(one["kind"] == "flat" or one["recall"]["source"] == "measured" for one in held)
            if sum(one["rows"] for one in held) >= self.data.count and known:
                return max(held, key=lambda one: int(one["rows"]))
            if status["device_refused"]:
                raise SystemExit(f"the device takes none of it: {status['device_refused']}")
            time.sleep(0.05)
        raise SystemExit(f"the device did not load the rows in time: {self.database.status()['devices']}")

    def left_s(self) -> float:
        """Return the seconds that are left of what the command line allows."""
        return float(self.args.limit_s) - (time.perf_counter() - BEGAN_S)

    def search(self, queries: Floats, **keywords: Any) -> Any:
        """Search a batch of the store."""
        return self.points.search_batch(queries, K, **keywords)

    def fallbacks(self) -> dict[str, int]:
        """Return how often the CPU had to answer."""
        found: dict[str, int] = self.database.status()["device_fallbacks"]
        return found


def indexed(m: Measured) -> None:
    """Compare filling the store until all is indexed with training and adding."""
    rate = m.data.count / m.durable_s
    m.report.add(Answer("durable ingest", rate, "rows/s", None, None, {"seconds": m.durable_s}))
    devices = m.database.status()["devices"]
    detail = {
        "store s": m.indexed_s,
        "indexed on the CPU s": m.built_s,
        "raw s": m.raw_s,
        "kind": m.held["kind"],
        "lists": m.held["lists"],
        "predicted bytes": sum(device["reserved_bytes"] for device in devices),
        "device bytes of the store": m.used_bytes,
    }
    m.report.add(Answer("until all indexed, against train and add", m.raw_s / m.indexed_s, "x", 0.3, None, detail))


def batches(m: Measured) -> None:
    """Compare batches with raw FAISS of the same index and effort."""
    queries, unit = m.data.queries[: m.batch], m.data.unit_queries[: m.batch]
    candidates, probes = effort(m, 0.95)
    ours = bench.interleaved(
        lambda _: bench.timed(lambda: m.search(queries, recall=0.95)),
        lambda _: bench.timed(lambda: m.raw.search(unit, candidates, probes)),
        m.args.rounds,
    )
    detail = {
        "vecstore queries/s": m.batch / ours.ours,
        "faiss queries/s": m.batch / ours.raw,
        "candidates": candidates,
        "probes": probes,
        "fallbacks": m.fallbacks(),
    }
    m.report.add(Answer(f"search_batch of {m.batch}, embedded", ours.speed_ratio, "x", 0.9, None, detail))


def effort(m: Measured, recall: float) -> tuple[int, int]:
    """Return candidates and lists that the store asks its device for."""
    from vecstore.inputs import Ask

    accelerator = m.database.engine.accelerator  # type: ignore[attr-defined]
    segment = max(store.sealed_segments(m.database), key=lambda one: int(one.rows))
    device = accelerator.devices.holder(segment.name)
    question = accelerator._question(segment, device, K, Ask(recall), 1.0, False, None)
    return question.candidates, question.probes


def exact(m: Measured) -> None:
    """Compare exact batches with the bytes that a scan must read, and the operations that it must do."""
    queries = m.data.queries[: m.batch]
    seconds = [bench.timed(lambda: m.search(queries, exact=True)) for _ in range(m.args.rounds + 1)][1:]
    rate = m.batch / bench.quantile(seconds, 0.5)
    limit = gpu_raw.limit_per_s(m.backend, m.data.count, m.data.dim, m.batch)
    detail = {"queries/s": rate, **limit, "kind": m.held["kind"], "fallbacks": m.fallbacks()}
    m.report.add(
        Answer(f"exact scan in batches of {m.batch}, of its limit", rate / limit["limit"], "x", 0.5, None, detail)
    )


def recalls(m: Measured) -> None:
    """Measure recall and rate at each ask, and those of raw FAISS with the same effort."""
    truth = m.data.truth(K, queries=m.batch)
    queries, unit = m.data.queries[: m.batch], m.data.unit_queries[: m.batch]
    for ask in ASKS:
        candidates, probes = effort(m, ask)
        found = m.search(queries, recall=ask).ids
        pair = bench.interleaved(
            lambda _, ask=ask: bench.timed(lambda: m.search(queries, recall=ask)),
            lambda _, asked=(candidates, probes): bench.timed(lambda: m.raw.search(unit, *asked)),
            m.args.rounds,
        )
        raw = m.raw.search(unit, candidates, probes)[:, :K]
        detail = {
            "queries/s": m.batch / pair.ours,
            **milliseconds(pair.ours_s),
            "faiss queries/s": m.batch / pair.raw,
            "faiss recall, by its own scores": float(m.data.recall(raw, truth).mean()),
            "candidates": candidates,
            "probes": probes,
        }
        recall = float(m.data.recall(found, truth).mean())
        m.report.add(Answer(f"recall asked {ask:.2f}, k = {K}", recall, "", ask - 0.01, None, detail))


def milliseconds(seconds: list[float]) -> dict[str, float]:
    """Return the median and the slow end of some times."""
    return {f"p{share:.0%}"[:-1] + " ms": 1e3 * bench.quantile(seconds, share) for share in (0.5, 0.99)}


def singles(m: Measured) -> None:
    """Measure single searches, one after the other."""
    queries = list(m.data.queries[:500])
    for ask in ASKS:
        times = bench.call_times(lambda query, ask=ask: m.points.search(query, K, recall=ask), queries)
        p50, p99 = (1e6 * bench.quantile(times, share) for share in (0.5, 0.99))
        detail = {"p99 us": p99, "queries/s": len(times) / sum(times)}
        m.report.add(Answer(f"one search, recall {ask:.2f}", p50, "us", None, None, detail))


def filtered(m: Measured) -> None:
    """Compare batches under a filter of 1% with comparing the matching rows, which lie on the device already."""
    queries, unit = m.data.queries[: m.batch], m.data.unit_queries[: m.batch]
    matching = np.flatnonzero(m.data.bucket < dataset.BUCKETS // 100)
    wanted: dict[str, Any] = {"bucket": {"$lt": dataset.BUCKETS // 100}}
    scan = gpu_raw.gathered_scan(m.backend, m.data.unit_rows[matching], unit, K)
    pair = bench.interleaved(
        lambda _: bench.timed(lambda: m.search(queries, recall=0.95, filter=wanted)),
        lambda _: bench.timed(scan),
        m.args.rounds,
    )
    found = m.search(queries, recall=0.95, filter=wanted).ids
    recall = float(m.data.recall(found, m.data.truth(K, matching, m.batch)).mean())
    m.report.add(Answer("filter of 1%: recall asked 0.95", recall, "", 0.95, None, {"matching": len(matching)}))
    detail = {"vecstore queries/s": m.batch / pair.ours, "scan queries/s": m.batch / pair.raw}
    m.report.add(Answer("filter of 1%, against an exact scan of its rows", pair.speed_ratio, "x", 0.5, None, detail))


def served(m: Measured) -> None:
    """Serve the store over gRPC, and compare batches with the embedded store."""
    queries, seconds = m.data.queries, m.args.seconds
    embedded = {
        ask: [bench.timed(lambda ask=ask: m.search(queries[: m.batch], recall=ask)) for _ in range(m.args.rounds)]
        for ask in ASKS
    }
    m.database.close()
    os.environ |= {"VECSTORE_SERVER_DEVICE": "gpu", "VECSTORE_DEVICE_BACKEND": m.backend}
    os.environ |= {"VECSTORE_DEVICE_ROWS_MIN": "1"}
    server = Server(m.folder)
    try:
        await_device(server.address, m.data.count, m.left_s())
        recall = served_recalls(m, server.address)
        with Crew(2 if m.args.quick else PROCESSES, queries, K) as crew:
            for size in sorted({m.batch, min(100, m.batch)}, reverse=True):
                for ask in ASKS:
                    embedded_per_s = m.batch / bench.quantile(embedded[ask], 0.5)
                    order = Order("vecstore", server.address, seconds, timeout_s=60, recall=ask, batch=size)
                    crew.carry_out(replace(order, seconds=0.1))
                    tally = crew.carry_out(order)
                    rate = size * len(tally.seconds) / seconds
                    what = f"served, batches of {size}, {crew.size} processes, recall {ask:.2f}"
                    at_least = 0.5 if size == m.batch and ask == 0.95 else None
                    detail = {"queries/s": rate, "embedded queries/s": embedded_per_s, **called(tally, recall[ask])}
                    m.report.add(Answer(what, rate / embedded_per_s, "x", at_least, None, detail))
        for callers, (processes, threads) in CALLERS.items():
            if m.args.quick and callers > 1:
                continue
            with Crew(processes, queries, K) as crew:
                for ask in ASKS:
                    order = Order("vecstore", server.address, seconds, threads, recall=ask)
                    crew.carry_out(replace(order, seconds=0.2))
                    tally = crew.carry_out(order)
                    what = f"served, single searches of {callers} callers, recall {ask:.2f}"
                    rate = len(tally.seconds) / seconds
                    m.report.add(Answer(what, rate, "queries/s", None, None, called(tally, recall[ask])))
    finally:
        server.stop()


def served_recalls(m: Measured, address: str) -> dict[float, float]:
    """Measure the recall of what the server answers, at each ask."""
    queries, truth = m.data.queries[: m.batch], m.data.truth(K, queries=m.batch)
    with vecstore.connect(address, timeout=60) as database:
        points = database.collection(store.COLLECTION)
        return {
            ask: float(m.data.recall(points.search_batch(queries, K, recall=ask).ids, truth).mean()) for ask in ASKS
        }


def called(tally: Tally, recall: float) -> dict[str, float]:
    """Return what there is to say of calls besides their rate."""
    if not tally.seconds:
        raise RuntimeError(f"no call was answered: {tally.failed}")
    return {**milliseconds(tally.seconds), "recall": recall, "failed": sum(tally.failed.values())}


def await_device(address: str, rows: int, seconds: float) -> None:
    """Wait until the server's device holds every row."""
    with vecstore.connect(address) as database:
        end_s = time.perf_counter() + min(LOADED_S_MAX, seconds)
        while time.perf_counter() < end_s:
            segments = [one for device in database.status()["devices"] for one in device["segments"].values()]
            if sum(one["rows"] for one in segments if one["ready"]) >= rows:
                return
            time.sleep(0.1)
    raise RuntimeError("the server's device did not load the rows in time")


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    bench.add_arguments(parser)
    dataset.add_arguments(parser)
    parser.add_argument("--backend", choices=["cuda", "host"], default="cuda", help="host runs without a GPU")
    parser.add_argument("--parts", default=",".join(PARTS), help="some of: " + ",".join(PARTS))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement of the server")
    parser.add_argument("--limit-s", type=float, default=1e9, help="no part is begun after so many seconds")
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.seconds = 2, 0.3
    lacks = gpu_raw.missing(args.backend)
    if lacks:
        raise SystemExit(lacks)
    bench.warn_if_busy()
    data = dataset.load(args)
    report = bench.Report("gpu", bench.question(__doc__), data.name, args.out, bench.arguments_shown(args))
    report.arguments |= gpu_raw.described(args.backend)
    parts: dict[str, Callable[[Measured], None]] = {
        "indexed": indexed,
        "batches": batches,
        "exact": exact,
        "recalls": recalls,
        "singles": singles,
        "filter": filtered,
        "served": served,
    }
    report.as_it_goes = True
    failed: dict[str, str] = {}
    report.arguments["failed"] = failed
    with bench.work_folder(args) as folder:
        measured = Measured(report, data, args, folder / "store")
        try:
            for name in args.parts.split(","):
                if measured.left_s() < PART_S_MIN:
                    failed[name] = "out of time"
                    continue
                try:
                    parts[name](measured)
                except Exception as exc:  # noqa: BLE001  (the other parts go on)
                    failed[name] = f"{type(exc).__name__}: {exc}"
                    traceback.print_exc()
        finally:
            measured.database.close()
    report.finish()
    raise SystemExit("\n".join(f"{name}: {why}" for name, why in failed.items()) or None)


if __name__ == "__main__":
    main()
