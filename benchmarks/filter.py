"""Question: do filters keep the recall asked for, and what do they cost beside scanning the matching rows?

Filters match 50%, 10%, 1% and 0.1% of the rows: "random" ones have nothing to do with the vectors, "correlated" ones
match the rows that lie farthest along one direction, which no query is near on purpose. Recall is measured against an
exact scan of the matching rows, for single searches and batches. Batches of 100 under a filter of 1% are compared with
FAISS scanning exactly the matching rows, gathered beforehand.

    python benchmarks/filter.py
    python benchmarks/filter.py --data debian --path DIR
"""

from __future__ import annotations

import argparse

import bench
import dataset
import numpy as np
import store
from bench import Answer
from dataset import BUCKETS, Dataset

import vecstore

K = 10
BATCH = 100
ASK = 0.95
SHARES = (0.5, 0.1, 0.01, 0.001)
FIELDS = {"random": "bucket", "correlated": "topic"}


def recalls(report: bench.Report, points: vecstore.Collection, data: Dataset, ks: tuple[int, ...]) -> None:
    """Measure recall under every filter."""
    for name, field in FIELDS.items():
        values = data.bucket if field == "bucket" else data.topic
        for share in SHARES:
            below = max(1, round(share * BUCKETS))
            matching = np.flatnonzero(values < below)
            condition = {field: {"$lt": below}}
            for k in ks:
                truth = data.truth(k, matching)
                parts = [points.search_batch(q, k, filter=condition, recall=ASK) for q in _parts(data)]
                shares = data.recall(np.vstack([part.ids for part in parts]), truth)
                exact = points.search(data.queries[0], k, filter=condition, recall=ASK, with_payload=False).exact
                seconds = bench.call_times(
                    lambda query, k=k, condition=condition: points.search(
                        query, k, filter=condition, recall=ASK, with_payload=False
                    ),
                    data.queries[:300],
                )
                detail = {
                    "matching rows": len(matching),
                    "scanned exactly": str(exact),
                    "one search us": 1e6 * bench.quantile(seconds, 0.5),
                    "worst query": float(shares.min()),
                }
                report.add(
                    Answer(
                        f"recall under {name} filter of {share:.1%}, k = {k}, {ASK} asked",
                        float(shares.mean()),
                        "",
                        1.0 if exact else ASK,
                        None,
                        detail,
                    )
                )


def _parts(data: Dataset) -> list[dataset.Floats]:
    return [data.queries[at : at + BATCH] for at in range(0, len(data.queries), BATCH)]


def batches(report: bench.Report, points: vecstore.Collection, data: Dataset, args: argparse.Namespace) -> None:
    """Compare batches under a filter of 1% with an exact scan of what matches."""
    below = BUCKETS // 100
    matching = np.flatnonzero(data.bucket < below)
    exact = store.exact_index(data.unit_rows[matching])
    thread = store.RawThread()
    condition = {"bucket": {"$lt": below}}
    given = [part for part in _parts(data) if len(part) == BATCH]
    unit = [data.unit_queries[at : at + BATCH] for at in range(0, BATCH * len(given), BATCH)]

    def ours(_round: int) -> float:
        return bench.timed(lambda: [points.search_batch(part, K, filter=condition) for part in given])

    def raw(_round: int) -> float:
        return thread.timed(lambda: [exact.search(part, K) for part in unit])

    pair = bench.interleaved(ours, raw, args.rounds)
    queries = BATCH * len(given)
    detail = {
        "vecstore queries/s": queries / pair.ours,
        "faiss queries/s": queries / pair.raw,
        "matching rows": len(matching),
        "ours_s": pair.ours_s,
        "raw_s": pair.raw_s,
    }
    report.add(Answer(f"batches of {BATCH} under a filter of 1%", pair.speed_ratio, "x", 0.5, None, detail))


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    dataset.add_arguments(parser)
    bench.add_arguments(parser)
    parser.add_argument("--rounds", type=int, default=9, help="rounds of batches, in turns")
    parser.add_argument("--ks", default="10", help="which k to measure recall for")
    args = parser.parse_args()
    if args.quick:
        args.rounds = 1
    data = dataset.load(args)
    bench.warn_if_busy()
    report = bench.Report("filter", bench.question(__doc__), dataset.name(args), args.out, bench.arguments_shown(args))
    with bench.work_folder(args) as folder, store.fill(folder / "store", data) as database:
        points = database.collection(store.COLLECTION)
        recalls(report, points, data, tuple(map(int, args.ks.split(","))))
        batches(report, points, data, args)
    report.finish()


if __name__ == "__main__":
    main()
