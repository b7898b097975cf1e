"""Question: how much of the raw libraries' speed is left when rows are written durably, and until they are indexed?

Durable upserts of 1,000 rows a call, synced each, against rocksdict writing the same bytes: the record as chunks of
64 KiB into one family, LSN, hash and content of each point into another with blob files, one batch and one sync a call.
The raw side finds its bytes ready made; ours starts from arrays and dicts, and builds indexes in the background as it
goes.
Then the time from the first durable upsert until all is sealed and indexed, against FAISS training and adding the
same kind of index from an array, with FAISS's own defaults (as many threads as cores).

    python benchmarks/ingest.py
    python benchmarks/ingest.py --dims 128,384,1536 --rows 200000 --dim 128
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import bench
import dataset
import numpy as np
import orjson
import store
import xxhash
from bench import Answer
from dataset import Dataset
from rocksdict import DBCompressionType, Options, Rdict, WriteBatch, WriteOptions

import vecstore
from vecstore.record import IdKind, PointsBody, content, id_key, log_key, point_key

CHUNK_BYTES = 64 * 1024
MARK_AND_HEADER_BYTES = 132
BLOB_BYTES_MIN = 256


class RawLog:
    """rocksdict with a log family and a family of points: the least that durable rows cost."""

    def __init__(self, path: Path) -> None:
        points = Options(raw_mode=True)
        points.set_enable_blob_files(True)
        points.set_min_blob_size(BLOB_BYTES_MIN)
        log = Options(raw_mode=True)
        for options in (points, log):
            options.set_compression_type(DBCompressionType.none())
        base = Options(raw_mode=True)
        base.create_if_missing(True)
        base.create_missing_column_families(True)
        self._database = Rdict(str(path), base, {"log": log, "points": points})
        self._log = self._database.get_column_family_handle("log")
        self._points = self._database.get_column_family_handle("points")
        self._options = WriteOptions()

    def write(self, chunks: list[tuple[bytes, bytes]], points: list[tuple[bytes, bytes]]) -> None:
        """Write one record and its points in one batch, and sync."""
        batch = WriteBatch(raw_mode=True)
        for key, value in chunks:
            batch.put(key, value, self._log)
        for key, value in points:
            batch.put(key, value, self._points)
        self._database.write(batch, self._options)
        self._database.flush_wal(True)

    def close(self) -> None:
        """Let go."""
        del self._log, self._points
        self._database.close()


def raw_bytes_of(lsn: int, ids: range, data: Dataset, payloads: list[bytes]) -> tuple[Any, Any]:
    """Return the chunks and points that a record of these rows becomes."""
    keys = [id_key(id) for id in ids]
    vectors = data.rows[ids.start : ids.stop]
    body = b"".join(PointsBody(IdKind.INT, keys, payloads, vectors).encode())
    record = bytes(MARK_AND_HEADER_BYTES) + body
    chunks = [
        (log_key(lsn, n), record[at : at + CHUNK_BYTES]) for n, at in enumerate(range(0, len(record), CHUNK_BYTES))
    ]
    stamp = lsn.to_bytes(8, "little")
    rows = zip(keys, payloads, vectors, strict=True)
    values = [(key, content(key, payload, vector.tobytes())) for key, payload, vector in rows]
    points = [(point_key(1, key), stamp + xxhash.xxh3_128_digest(value) + value) for key, value in values]
    return chunks, points


def durable_upserts(report: bench.Report, data: Dataset, args: argparse.Namespace, folder: Path) -> None:
    """Compare durable upserts in rounds of fresh stores, in turns."""
    calls = data.count // store.CALL_ROWS
    spans = [range(n * store.CALL_ROWS, (n + 1) * store.CALL_ROWS) for n in range(calls)]
    payloads = [store.payloads_of(data, span.start, span.stop) for span in spans]
    encoded = [[orjson.dumps(p, option=orjson.OPT_SORT_KEYS) for p in part] for part in payloads]
    ready = [raw_bytes_of(n + 1, span, data, part) for n, (span, part) in enumerate(zip(spans, encoded, strict=True))]
    ids = [np.arange(span.start, span.stop) for span in spans]
    vectors = [data.rows[span.start : span.stop] for span in spans]
    names = count()

    def ours(index: str) -> Callable[[int], float]:
        def run(_round: int) -> float:
            path = folder / f"ours-{next(names)}"
            database = vecstore.open(str(path))
            points = database.create_collection("points", data.dim, fields=store.FIELDS, index=index)
            seconds = bench.timed(lambda: [points.upsert(*call) for call in zip(ids, vectors, payloads, strict=True)])
            points.optimize()
            database.close()
            shutil.rmtree(path)
            return seconds

        return run

    def raw(_round: int) -> float:
        path = folder / f"raw-{next(names)}"
        log = RawLog(path)
        seconds = bench.timed(lambda: [log.write(*call) for call in ready])
        log.close()
        shutil.rmtree(path)
        return seconds

    rows = calls * store.CALL_ROWS
    for index, at_least in (("auto", 0.5), ("flat", None)):
        pair = bench.interleaved(ours(index), raw, args.rounds)
        detail = {
            "vecstore rows/s": rows / pair.ours,
            "rocksdict rows/s": rows / pair.raw,
            "rows": rows,
            "ours_s": pair.ours_s,
            "raw_s": pair.raw_s,
        }
        report.add(
            Answer(f"durable upsert, {data.dim}-d, index {index}", pair.speed_ratio, "x", at_least, None, detail)
        )


def until_indexed(report: bench.Report, data: Dataset, args: argparse.Namespace, folder: Path) -> None:
    """Compare the time until everything is indexed with FAISS's from an array."""
    names = count()
    built: list[store.Served] = []
    thread = store.RawThread()

    def ours(_round: int) -> float:
        path = folder / f"indexed-{next(names)}"
        database = vecstore.open(str(path))
        points = database.create_collection(store.COLLECTION, data.dim)

        def write_and_wait() -> None:
            for start in range(0, data.count, store.CALL_ROWS):
                stop = min(start + store.CALL_ROWS, data.count)
                points.upsert(np.arange(start, stop), data.rows[start:stop])
            points.optimize()

        seconds = bench.timed(write_and_wait)
        built.append(store.served(database, data))
        database.close()
        shutil.rmtree(path)
        return seconds

    def raw(rows_per_list: int | None) -> Callable[[int], float]:
        return lambda _round: thread.timed(
            lambda: store.trained_index(built[-1], data, rows_per_list).add(data.unit_rows)
        )

    assert len(data.unit_rows) == data.count  # computed before any clock runs
    first = ours(0)
    ours_s, raw_s, lean_s = [], [], []
    for i in range(args.rounds_indexed):
        ours_s.append(first if i == 0 else ours(i))
        raw_s.append(raw(None)(i))
        lean_s.append(raw(64)(i))
    for name, seconds, at_least in (
        ("FAISS's defaults", raw_s, 0.5),
        ("FAISS with 64 training rows a list", lean_s, None),
    ):
        pair = bench.Pair(ours_s, seconds)
        detail = {
            "index": built[-1].text,
            "segments": built[-1].segments,
            "vecstore rows/s": data.count / pair.ours,
            "faiss rows/s": data.count / pair.raw,
            "rows": data.count,
            "ours_s": ours_s,
            "raw_s": seconds,
        }
        report.add(
            Answer(
                f"until all is indexed, {data.count:,} x {data.dim}, against {name}",
                pair.speed_ratio,
                "x",
                at_least,
                None,
                detail,
            )
        )


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    dataset.add_arguments(parser)
    bench.add_arguments(parser)
    parser.add_argument("--dims", default="128,384,1536", help="dimensions of the durable upserts")
    parser.add_argument("--upsert-bytes", type=int, default=100_000_000, help="bytes of vectors in a round of upserts")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of durable upserts")
    parser.add_argument("--rounds-indexed", type=int, default=3, help="rounds until all is indexed")
    args = parser.parse_args()
    if args.quick:
        args.dims, args.upsert_bytes, args.rounds, args.rounds_indexed = "32", 32 * 4 * 2_000, 1, 1
    bench.warn_if_busy()
    report = bench.Report("ingest", bench.question(__doc__), dataset.name(args), args.out, bench.arguments_shown(args))
    for dim in map(int, args.dims.split(",")):
        with bench.work_folder(args) as folder:
            durable_upserts(report, dataset.synthetic(max(1_000, args.upsert_bytes // (4 * dim)), dim, 1), args, folder)
    with bench.work_folder(args) as folder:
        until_indexed(report, dataset.load(args), args, folder)
    report.finish()


if __name__ == "__main__":
    main()
