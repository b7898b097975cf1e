"""Question: how does vecstore compare with other embedded engines on the same machine, at equal measured recall?

Each engine runs in a process of its own, one after the other: durable ingest in calls of 1,000; the time until all is
indexed; then its knob is swept, and at each setting recall and queries a second are measured for one caller, for eight
threads and for batches of 100, and under filters that match 1% and 10% (chosen at random). A fresh process then opens
what is on disk and answers 1,000 queries, for the memory. Queries a second at recall 0.95 and 0.99 are interpolated
between the settings on the engine's frontier. Figures are medians of several rounds.

    python benchmarks/peers.py --data debian --path DIR
    python benchmarks/peers.py --data synthetic --engines vecstore,qdrant
    python benchmarks/peers.py --data debian --path DIR --report     # the table again, from the files of earlier runs

Writes one file an engine, `results/peers-DATA-ENGINE.json`, then `results/peers-DATA.json` and a plot from all of them.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import bench
import dataset
import numpy as np
from dataset import Dataset
from engines import ENGINES, Engine, Match, import_all

K = 10
BATCH = 100
THREADS = 8
CALL_ROWS = 1_000
FILTERS: dict[str, Match] = {"filter 1%": ("percent", 7), "filter 10%": ("decile", 3)}
MODES = ("one caller", "eight threads", "batches of 100")
AT_LEAST = {
    ("one caller", 0.95): 1.2,
    ("eight threads", 0.95): 2.0,
    ("batches of 100", 0.95): 4.0,
    ("one caller", 0.99): 1.5,
    ("eight threads", 0.99): 2.5,
    ("batches of 100", 0.99): 4.0,
    ("filter 1%", 1.0): 1.0,
    ("filter 10%", 0.95): 2.0,
}
Point = dict[str, float]


# -- one engine, in a process of its own -----------------------------------------------------------------------------


def run_engine(engine: Engine, data: Dataset, args: argparse.Namespace) -> dict[str, Any]:
    """Measure everything but memory; return plain values."""
    engine.create()
    result = {"engine": engine.name, "settings": engine.settings, "durability": engine.durability}
    result |= ingest(engine, data)
    print(
        f"  {engine.name}: {result['ingest_rows_per_s']:,.0f} rows/s, {result['indexed_rows_per_s']:,.0f} indexed",
        flush=True,
    )
    if engine.name != "qdrant-flushed":
        result["curves"] = curves(engine, data, args)
    engine.close()
    disk = bench.Disk.of(engine.folder)
    result |= {"disk_bytes": disk.file_bytes, "disk_allocated_bytes": disk.allocated_bytes}
    result["raw_bytes"] = data.raw_bytes
    np.save(args.queries, data.queries)
    return result


def ingest(engine: Engine, data: Dataset) -> dict[str, float]:
    """Write all rows, then build; both rates count from the first call."""
    payloads = filterable_payloads(data)
    start = time.perf_counter()
    for first in range(0, data.count, CALL_ROWS):
        rows = slice(first, min(first + CALL_ROWS, data.count))
        engine.ingest(list(range(rows.start, rows.stop)), data.rows[rows], payloads[rows])
    written_s = time.perf_counter() - start
    engine.build()
    indexed_s = time.perf_counter() - start
    return {"ingest_rows_per_s": data.count / written_s, "indexed_rows_per_s": data.count / indexed_s}


def filterable_payloads(data: Dataset) -> list[dict[str, Any]]:
    """Return the payloads with the two numbers that filters name."""
    own = data.payloads or [{}] * data.count
    numbers = zip(own, (data.bucket // 10).tolist(), (data.bucket // 100).tolist(), strict=True)
    return [{**payload, "percent": percent, "decile": decile} for payload, percent, decile in numbers]


def curves(engine: Engine, data: Dataset, args: argparse.Namespace) -> dict[str, list[Point]]:
    """Sweep the knob: for each way of asking a list of recall and queries a second."""
    truths = {"": data.truth(K)}
    for name, match in FILTERS.items():
        truths[name] = data.truth(K, matching(data, match))
    found: dict[str, list[Point]] = {name: [] for name in (*MODES, *FILTERS)}
    for knob in engine.knobs[::4] if args.quick else engine.knobs:
        engine.turn(knob)
        recall = recall_of(engine, data, truths[""])
        rates = unfiltered_rates(engine, data, args)
        for mode, rate in rates.items():
            found[mode].append({"knob": knob, "recall": recall, "per_s": rate})
        for name, match in FILTERS.items():
            point = {"knob": knob, "recall": recall_of(engine, data, truths[name], match)}
            call = read(engine, engine.searcher(K, match))
            point["per_s"] = one_caller(call, [engine.prepare(query) for query in data.queries], args)
            found[name].append(point)
        print(
            f"    {engine.name} {knob:g}: recall {recall:.4f}, "
            + ", ".join(f"{mode} {rate:,.0f}/s" for mode, rate in rates.items()),
            flush=True,
        )
    return found


def matching(data: Dataset, match: Match) -> dataset.Rows:
    """Return the rows that a filter matches."""
    assert match is not None
    divisor = {"percent": 10, "decile": 100}[match[0]]
    return np.flatnonzero(data.bucket // divisor == match[1])


def recall_of(engine: Engine, data: Dataset, truth: dataset.Floats, match: Match = None) -> float:
    """Return the mean recall over all queries."""
    call = engine.searcher(K, match)
    found = np.full((len(data.queries), K), -1, np.int64)
    for i, query in enumerate(data.queries):
        ids = engine.ids(call(engine.prepare(query)))
        found[i, : len(ids)] = ids
    return float(data.recall(found, truth).mean())


def unfiltered_rates(engine: Engine, data: Dataset, args: argparse.Namespace) -> dict[str, float]:
    """Return queries a second for each mode."""
    single, batch = read(engine, engine.searcher(K)), engine.batcher(K)
    prepared = [engine.prepare(query) for query in data.queries]
    batches = [
        engine.prepare_batch(data.queries[at : at + BATCH]) for at in range(0, len(data.queries) - BATCH + 1, BATCH)
    ]
    return {
        "one caller": one_caller(single, prepared, args),
        "eight threads": many_callers(single, prepared, args),
        "batches of 100": one_caller(batch, batches, args) * BATCH,
    }


def read(engine: Engine, call: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return the call with what a caller does next: take the ids out of the answer."""
    ids = engine.ids
    return lambda query: ids(call(query))


def one_caller(call: Callable[[Any], Any], queries: Sequence[Any], args: argparse.Namespace) -> float:
    """Return calls a second: the median of the rounds, each of different queries in turn."""
    return statistics.median(_calls_per_s(call, queries, args.seconds, offset) for offset in range(args.rounds))


def many_callers(call: Callable[[Any], Any], queries: Sequence[Any], args: argparse.Namespace) -> float:
    """Return calls a second of eight threads together."""
    rates = []
    for _ in range(args.rounds):
        shares = [0.0] * THREADS

        def run(number: int, shares: list[float] = shares) -> None:
            shares[number] = _calls_per_s(call, queries, args.seconds, number * len(queries) // THREADS)

        threads = [threading.Thread(target=run, args=(number,)) for number in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        rates.append(sum(shares))
    return statistics.median(rates)


def _calls_per_s(call: Callable[[Any], Any], queries: Sequence[Any], seconds: float, offset: int) -> float:
    count, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        call(queries[(offset + count) % len(queries)])
        count += 1
    return count / elapsed


def run_memory(engine: Engine, vectors: dataset.Floats) -> dict[str, float]:
    """Open what is on disk, answer 1,000 queries one by one, and count the memory beyond imports and queries."""
    queries = [engine.prepare(query) for query in vectors]
    import_all(type(engine))
    before = bench.resident_bytes()
    engine.open()
    engine.turn(engine.knob)
    call = engine.searcher(K)
    for i in range(1_000):
        call(queries[i % len(queries)])
    return {"resident_bytes": bench.resident_bytes() - before, "import_bytes": before}


# -- all engines -----------------------------------------------------------------------------------------------------


def measure(args: argparse.Namespace, data_name: str) -> None:
    """Run the engines in turns, as often as asked, and write a file for each with the medians."""
    passes: dict[str, list[dict[str, Any]]] = {}
    for _ in range(args.passes):
        for name in args.engines.split(","):
            print(f"{name}:", flush=True)
            passes.setdefault(name, []).append(measured_apart(name, args))
            bench.write_json(args.out / f"peers-{data_name}-{name}.json", median_of(passes[name]))


def measured_apart(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Measure one engine once, in processes of its own."""
    result: dict[str, Any] = {}
    with bench.work_folder(args) as folder:
        for part in ("run", "memory"):
            if part == "memory" and name == "qdrant-flushed":
                continue
            answer = folder / f"{part}.json"
            command = [sys.executable, __file__, *_forwarded(args), "--stage", part, "--engine", name]
            command += ["--folder", str(folder / "data"), "--queries", str(folder / "queries.npy")]
            subprocess.run([*command, "--answer", str(answer)], check=True)
            result |= json.loads(answer.read_text())
    return result


def median_of(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Return one result whose figures are the medians of several; graphs differ from build to build, so recall too."""
    merged = dict(results[-1])
    for name, value in merged.items():
        if isinstance(value, int | float):
            merged[name] = statistics.median(result[name] for result in results)
    if "curves" in merged:
        merged["curves"] = {
            mode: [
                {key: statistics.median(result["curves"][mode][i][key] for result in results) for key in point}
                for i, point in enumerate(points)
            ]
            for mode, points in merged["curves"].items()
        }
    return merged | {"passes": len(results)}


def _forwarded(args: argparse.Namespace) -> list[str]:
    return [*dataset.forwarded(args), "--rounds", str(args.rounds), "--seconds", str(args.seconds)]


def stage(args: argparse.Namespace) -> None:
    """Be the process of one engine."""
    args.folder.mkdir(exist_ok=True)
    if args.stage == "memory":
        # Rows are not loaded here: they must not be taken for the engine's memory.
        queries = np.load(args.queries)
        result: dict[str, Any] = run_memory(ENGINES[args.engine](args.folder, queries.shape[1]), queries)
    else:
        data = dataset.load(args)
        result = run_engine(ENGINES[args.engine](args.folder, data.dim), data, args)
    args.answer.write_text(json.dumps(result))


# -- what it comes to ------------------------------------------------------------------------------------------------


def rate_at(points: Sequence[Point], recall: float) -> float | None:
    """Return queries a second at a recall, interpolated on the frontier; None where the engine does not reach it.

    Where every setting exceeds the recall, the fastest counts. Between settings the logarithm of the rate is
    interpolated over the recall.
    """
    frontier: list[Point] = []
    for point in sorted(points, key=lambda p: (-p["recall"], -p["per_s"])):
        if not frontier or point["per_s"] > frontier[-1]["per_s"]:
            frontier.append(point)
    above = [point for point in frontier if point["recall"] >= recall]
    below = [point for point in frontier if point["recall"] < recall]
    if not above:
        return None
    if not below:
        return above[-1]["per_s"]
    high, low = above[-1], below[0]
    share = (recall - low["recall"]) / (high["recall"] - low["recall"])
    return math.exp(math.log(low["per_s"]) * (1 - share) + math.log(high["per_s"]) * share)


def figures(result: dict[str, Any]) -> dict[str, float | None]:
    """Return the figures of one engine that are compared."""
    found: dict[str, float | None] = {}
    for mode, recall in AT_LEAST:
        points = result.get("curves", {}).get(mode, [])
        found[f"{mode} at {recall:g}"] = rate_at(points, recall) if points else None
    for name in ("ingest_rows_per_s", "indexed_rows_per_s"):
        found[name] = result[name]
    for name in ("resident_bytes", "disk_bytes", "disk_allocated_bytes"):
        found[name.replace("bytes", "x raw")] = result[name] / result["raw_bytes"] if name in result else None
    return found


def report(args: argparse.Namespace, data_name: str) -> None:
    """Compare all engines that have a file."""
    results = {}
    for name in ENGINES:
        path = args.out / f"peers-{data_name}-{name}.json"
        if path.exists():
            results[name] = json.loads(path.read_text())
    compared = {name: figures(result) for name, result in results.items()}
    names = next(iter(compared.values()))
    rows = [(name, *(_cell(values[name]) for values in compared.values())) for name in names]
    print(f"\npeers on {data_name}, k = {K}: queries/s at equal recall, rows/s, multiples of the raw vectors")
    print(bench.table([("figure", *compared), *rows]))
    answers = against_qdrant(compared, data_name)
    if answers:
        print(
            bench.table([("against qdrant", "measured", "target", "met", ""), *(answer.cells() for answer in answers)])
        )
    bench.write_json(
        args.out / f"peers-{data_name}.json",
        {
            "data": data_name,
            "k": K,
            "engines": compared,
            "durability": {n: r["durability"] for n, r in results.items()},
            "settings": {n: r["settings"] for n, r in results.items()},
            "against_qdrant": [a.as_json() for a in answers],
        },
    )
    plot(
        {name: result["curves"] for name, result in results.items() if "curves" in result},
        args.out / f"peers-{data_name}.png",
        data_name,
    )


def against_qdrant(compared: dict[str, dict[str, float | None]], data_name: str) -> list[bench.Answer]:
    """Return our figures as multiples of Qdrant's, with their targets."""
    if "vecstore" not in compared or "qdrant" not in compared:
        return []
    ours, theirs = compared["vecstore"], compared["qdrant"]
    at_least = {f"{mode} at {recall:g}": target for (mode, recall), target in AT_LEAST.items()}
    at_least |= {"ingest_rows_per_s": 2.0, "indexed_rows_per_s": 3.0}
    third = 1 / 3
    at_most = {"resident_x raw": third if data_name.startswith("synthetic") else 0.6, "disk_x raw": third}
    answers = []
    for figure in ours:
        mine, other = ours[figure], theirs[figure]
        if mine is not None and other:
            detail = {"vecstore": mine, "qdrant": other}
            answers.append(bench.Answer(figure, mine / other, "x", at_least.get(figure), at_most.get(figure), detail))
    return answers


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def plot(curves_by_engine: dict[str, dict[str, list[Point]]], path: Path, data_name: str) -> None:
    """Draw recall against queries a second, one panel a way of asking."""
    try:
        import matplotlib as mpl
    except ImportError:
        print("no plot: matplotlib is not installed")
        return
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    panels = (*MODES, *FILTERS)
    figure, axes = plt.subplots(1, len(panels), figsize=(4 * len(panels), 4), sharey=True)
    for axis, mode in zip(axes, panels, strict=True):
        for name, curves_of in curves_by_engine.items():
            points = sorted(curves_of[mode], key=lambda point: point["recall"])
            style = {"linewidth": 2.5, "color": "black"} if name == "vecstore" else {}
            axis.plot(
                [p["recall"] for p in points], [p["per_s"] for p in points], "o-", markersize=3, label=name, **style
            )
        axis.set(title=mode, xlabel=f"recall at {K}", yscale="log", xlim=(0.8, 1.002))
        axis.grid(True, which="both", alpha=0.3)
    axes[0].set_ylabel("queries/s")
    axes[0].legend(fontsize=8)
    figure.suptitle(data_name)
    figure.tight_layout()
    figure.savefig(path, dpi=70)
    plt.close(figure)
    print(f"written: {path}")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    dataset.add_arguments(parser)
    bench.add_arguments(parser)
    parser.add_argument("--engines", default=",".join(ENGINES), help="which to measure")
    parser.add_argument("--passes", type=int, default=1, help="times to go through all engines; medians count")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each rate; the median counts")
    parser.add_argument("--seconds", type=float, default=0.5, help="length of each measurement")
    parser.add_argument("--report", action="store_true", help="measure nothing, compare what is there")
    for hidden in ("--stage", "--engine"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    for hidden in ("--folder", "--answer", "--queries"):
        parser.add_argument(hidden, type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.seconds = 1, 0.05
    if args.stage:
        stage(args)
        return
    data_name = dataset.name(args)
    if not args.report:
        bench.warn_if_busy()
        measure(args, data_name)
    report(args, data_name)


if __name__ == "__main__":
    main()
