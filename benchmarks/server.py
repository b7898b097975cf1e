"""Question: what does a call through the server cost beyond gRPC and the engine, and what is left of it under overload?

Against a bare gRPC server that answers the same messages (`echo.py`), in turns: single searches of 1, 8 and 64
callers, which are processes of their own on the same cores (64 are 8 processes of 8 threads). Against the embedded
engine on a copy of the same store: batches of 100, and bulk upserts through the stream. Then dear calls (exact
batches) are offered at fixed rates, through gRPC without the client's retries: at 0.8 of what the server can answer,
at ten times that, and at 0.8 again. Last, two servers are restarted one after the other under callers that know both.
With the part `chroma`, Chroma's own server is asked the same searches.

    python benchmarks/server.py --data debian --path DIR
    python benchmarks/server.py --parts unary,overload
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import bench
import dataset
import numpy as np
import store
from bench import Answer
from callers import Crew, Order, Tally
from dataset import Dataset

import vecstore

K = 10
BATCH = 100
PROCESSES = 8
CALLERS = {1: (1, 1), 8: (PROCESSES, 1), 64: (PROCESSES, 8)}
"""Callers at once: processes, threads in each."""
OVERLOAD = 10
READY = re.compile(r"vecstore ready grpc=(\S+) http=(\S+)")
DEADLINE_S = 2.0
"""Of each call under overload."""


# -- processes -------------------------------------------------------------------------------------------------------


class Server:
    """A `vecstore serve` in a process of its own, which can be stopped and started again at the same address."""

    def __init__(self, data: Path) -> None:
        self._data = data
        self.address = "127.0.0.1:0"
        self.start()

    def start(self) -> None:
        """Start it and wait until it is ready."""
        command = [sys.executable, "-m", "vecstore.cli.main", "serve", "--data", str(self._data)]
        command += ["--listen", self.address, "--http", "127.0.0.1:0"]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if found := READY.match(line):
                self.address = found[1]
                return
        raise SystemExit(f"the server did not start: exit code {self._process.wait()}")

    def stop(self) -> None:
        """Let it drain and end."""
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(60)

    def resident_bytes(self) -> int:
        """Return its resident memory."""
        text = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(next(line for line in text.splitlines() if line.startswith("VmRSS")).split()[1]) * 1024


@contextmanager
def serving(data: Path) -> Iterator[Server]:
    """Serve a store."""
    server = Server(data)
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def echoing(reply: bytes, folder: Path) -> Iterator[str]:
    """Serve the same reply to every call."""
    file = folder / "reply"
    file.write_bytes(reply)
    script = str(Path(__file__).with_name("echo.py"))
    process = subprocess.Popen([sys.executable, script, str(file)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield f"127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.wait()


# -- parts -----------------------------------------------------------------------------------------------------------


def unary(report: bench.Report, server: Server, data: Dataset, args: argparse.Namespace, folder: Path) -> None:
    """Compare single searches with the echo of the same messages."""
    with echoing(real_reply(server, data), folder) as echo:
        for callers, (processes, threads) in CALLERS.items():
            with Crew(processes, data.queries, K) as crew:
                rates: dict[str, list[float]] = {"vecstore": [], "echo": []}
                tails: list[float] = []
                for turn in range(args.rounds + 1):
                    for side, address in (("vecstore", server.address), ("echo", echo)):
                        tally = crew.carry_out(Order(side, address, args.seconds, threads))
                        assert not tally.failed, tally.failed
                        if turn:
                            rates[side].append(len(tally.seconds) / args.seconds)
                            if side == "vecstore":
                                tails.append(bench.quantile(tally.seconds, 0.99))
            ours, raw = statistics.median(rates["vecstore"]), statistics.median(rates["echo"])
            detail = {
                "vecstore/s": ours,
                "echo/s": raw,
                "p99 ms": 1e3 * statistics.median(tails),
                "beyond the echo us a call": 1e6 * (1 / ours - 1 / raw),
                "rates": rates,
            }
            at_least = 0.6 if callers == 8 else None
            report.add(
                Answer(f"single searches, {callers} callers, against echo", ours / raw, "x", at_least, None, detail)
            )


def real_reply(server: Server, data: Dataset) -> bytes:
    """Return the bytes of a reply, as the server gives it."""
    import grpc

    from vecstore.wire.v1 import store_pb2 as pb

    with vecstore.connect(server.address) as database:
        number = database.collection(store.COLLECTION).number
    with grpc.insecure_channel(server.address) as channel:
        request = pb.SearchRequest(
            collection=number, vector=data.queries[0].tobytes(), k=K, payload=pb.PayloadPart(all=True)
        )
        call = channel.unary_unary("/vecstore.v1.Collections/Search")
        reply: bytes = call(request.SerializeToString())
        return reply


def batches(report: bench.Report, server: Server, data: Dataset, args: argparse.Namespace, copy: Path) -> None:
    """Compare batches of 100 with the embedded engine."""
    with vecstore.connect(server.address, timeout=60) as remote, vecstore.open(str(copy)) as embedded:
        sides = [database.collection(store.COLLECTION) for database in (remote, embedded)]
        spans = [data.queries[at : at + BATCH] for at in range(0, len(data.queries) - BATCH + 1, BATCH)]

        def seconds(points: vecstore.Collection) -> float:
            return bench.timed(lambda: [points.search_batch(span, K) for span in spans])

        pair = bench.interleaved(lambda _: seconds(sides[0]), lambda _: seconds(sides[1]), args.rounds)
    queries = BATCH * len(spans)
    detail = {"remote queries/s": queries / pair.ours, "embedded queries/s": queries / pair.raw}
    report.add(Answer(f"search_batch of {BATCH} against embedded", pair.speed_ratio, "x", 0.8, None, detail))


def bulk(report: bench.Report, server: Server, data: Dataset, args: argparse.Namespace, copy: Path) -> None:
    """Compare bulk upserts with the embedded engine, each into a collection of its own."""
    import pyarrow as pa

    count = min(data.count, args.bulk_rows)
    payloads = store.payloads_of(data, 0, count)
    flat = pa.array(data.rows[:count].ravel(), pa.float32())
    columns = {name: [payload[name] for payload in payloads] for name in payloads[0]}
    table = pa.table({"id": np.arange(count), "vector": pa.FixedSizeListArray.from_arrays(flat, data.dim), **columns})

    def seconds(database: vecstore.Database) -> float:
        points = database.create_collection("bulk", data.dim, fields=store.FIELDS)
        took_s = bench.timed(lambda: points.upsert_table(table))
        assert points.count() == count
        points.optimize()
        database.drop_collection("bulk")
        return took_s

    with vecstore.connect(server.address, timeout=600) as remote, vecstore.open(str(copy)) as embedded:
        pair = bench.interleaved(lambda _: seconds(remote), lambda _: seconds(embedded), args.rounds)
    detail = {"remote rows/s": count / pair.ours, "embedded rows/s": count / pair.raw}
    report.add(Answer("bulk upsert through the stream against embedded", pair.speed_ratio, "x", 0.7, None, detail))


def overload(report: bench.Report, server: Server, data: Dataset, args: argparse.Namespace) -> None:
    """Offer ten times of what the server can answer."""
    with Crew(PROCESSES, data.queries, K) as crew:

        def dear(threads: int, rate: float = 0.0) -> Tally:
            order = Order(
                "bare", server.address, args.overload_seconds, threads, rate / PROCESSES, DEADLINE_S, dear=True
            )
            return crew.carry_out(order)

        dear(1)
        unloaded = [len(dear(1).seconds) / args.overload_seconds for _ in range(3)]
        most = statistics.median(unloaded)
        calm = dear(4, 0.8 * most)
        before = server.resident_bytes()
        flood = dear(16, OVERLOAD * most)
        after = server.resident_bytes()
        again = dear(4, 0.8 * most)
    goodput = len(flood.seconds) / args.overload_seconds
    p99_calm, p99_flood = bench.quantile(calm.seconds, 0.99), bench.quantile(flood.seconds, 0.99)
    offered = (len(flood.seconds) + sum(flood.failed.values())) / args.overload_seconds
    detail = {
        "answered/s": goodput,
        "unloaded maximum/s": most,
        "offered/s": offered,
        "failed": flood.failed,
        "server grew MiB": (after - before) / 2**20,
    }
    report.add(Answer(f"goodput at {OVERLOAD} x offered load", goodput / most, "x", 0.8, None, detail))
    detail = {
        "p99 ms, 0.8 of capacity": 1e3 * p99_calm,
        "p99 ms, flooded": 1e3 * p99_flood,
        "failed calmly": sum(calm.failed.values()),
    }
    report.add(Answer("p99 of accepted searches, flooded against calm", p99_flood / p99_calm, "x", None, 5.0, detail))
    detail = {"p99 ms": 1e3 * bench.quantile(again.seconds, 0.99), "failed": again.failed}
    answered = len(again.seconds) / args.overload_seconds / (0.8 * most)
    report.add(Answer("answered at 0.8 of capacity right after the flood", answered, "x", None, None, detail))


def restart(report: bench.Report, first: Server, data: Dataset, args: argparse.Namespace, copy: Path) -> None:
    """Restart two servers one after the other under callers that know both."""
    from threading import Thread

    with serving(copy) as second, Crew(2, data.queries, K) as crew:
        addresses = f"{first.address},{second.address}"
        crew.carry_out(Order("vecstore", addresses, 1.0, 4))
        tally = Tally()
        calling = Thread(
            target=lambda: tally.add(crew.carry_out(Order("vecstore", addresses, args.restart_seconds, 4)))
        )
        calling.start()
        for server in (first, second):
            time.sleep(args.restart_seconds / 8)
            server.stop()
            server.start()
        calling.join()
    detail = {"calls": len(tally.seconds), "failed": tally.failed, "slowest s": max(tally.seconds)}
    failed = sum(tally.failed.values())
    report.add(Answer("failed calls during a rolling restart of two servers", failed, "calls", None, 0, detail))


def chroma(report: bench.Report, data: Dataset, args: argparse.Namespace, folder: Path) -> None:
    """Ask Chroma's server the same searches."""
    import socket

    import chromadb

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("chroma")), "run", "--path", str(folder / "chroma")]
    process = subprocess.Popen([*command, "--host", "127.0.0.1", "--port", str(port)], stdout=subprocess.DEVNULL)
    try:
        client = _connected(chromadb, port)
        points = client.create_collection(store.COLLECTION, metadata={"hnsw:space": "cosine"})
        began_s = time.perf_counter()
        for at in range(0, data.count, 1_000):
            rows = data.rows[at : at + 1_000]
            ids = [str(i) for i in range(at, at + len(rows))]
            points.add(ids=ids, embeddings=rows, metadatas=store.payloads_of(data, at, at + len(rows)))
        took_s = time.perf_counter() - began_s
        for callers in (1, 8):
            with Crew(callers, data.queries, K) as crew:
                order = Order("chroma", f"127.0.0.1:{port}", args.seconds)
                crew.carry_out(order)
                tally = crew.carry_out(order)
            detail = {"failed": tally.failed, "rows/s in": data.count / took_s}
            rate = len(tally.seconds) / args.seconds
            report.add(Answer(f"Chroma's server: single searches, {callers} callers", rate, "/s", None, None, detail))
    finally:
        process.kill()
        process.wait()


def _connected(chromadb: Any, port: int) -> Any:
    until_s = time.monotonic() + 60
    while True:
        try:
            return chromadb.HttpClient(host="127.0.0.1", port=port)
        except Exception:
            if time.monotonic() > until_s:
                raise
            time.sleep(0.2)


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    dataset.add_arguments(parser)
    bench.add_arguments(parser)
    parser.add_argument("--parts", default="unary,batches,bulk,overload,restart", help="which parts to run")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side")
    parser.add_argument("--seconds", type=float, default=3.0, help="of one turn of single searches")
    parser.add_argument("--overload-seconds", type=float, default=10.0, help="of one turn under overload")
    parser.add_argument("--restart-seconds", type=float, default=30.0, help="of calling during the restarts")
    parser.add_argument("--bulk-rows", type=int, default=30_000, help="rows of one bulk upsert")
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.seconds, args.overload_seconds, args.restart_seconds = 1, 0.3, 1.0, 8.0
        args.bulk_rows = 2_000
    bench.warn_if_busy()
    parts = args.parts.split(",")
    report = bench.Report("server", bench.question(__doc__), dataset.name(args), args.out, bench.arguments_shown(args))
    data = dataset.load(args)
    with bench.work_folder(args) as folder:
        store.fill(folder / "store", data).close()
        shutil.copytree(folder / "store", folder / "copy")
        with serving(folder / "store") as server:
            if "unary" in parts:
                unary(report, server, data, args, folder)
            if "batches" in parts:
                batches(report, server, data, args, folder / "copy")
            if "bulk" in parts:
                bulk(report, server, data, args, folder / "copy")
            if "overload" in parts:
                overload(report, server, data, args)
            if "restart" in parts:
                restart(report, server, data, args, folder / "copy")
        if "chroma" in parts:
            chroma(report, data, args, folder)
    report.finish()


if __name__ == "__main__":
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    main()
