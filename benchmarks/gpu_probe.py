"""Question: what is this GPU, and does what vecstore takes for granted of its driver and libraries hold on it?

Run before everything else on a new kind of machine: each fact is a line of its own as soon as it is known, so that an
abort tells where it came. The driver's pages and what a worker takes before its first index stand in the formulas of
docs/operations.md; what is found otherwise here belongs there.

    python benchmarks/gpu_probe.py --out results
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SIZES_MIB = (0.25, 0.5, 0.75, 0.9, 1.1, 1.5, 1.9, 2.1, 3.0)
BLOCKS = 64


class Probe:
    """Facts, written as they come."""

    def __init__(self, file: Path) -> None:
        self._file, self._facts = file, dict[str, Any]()

    def ask(self, name: str, question: Callable[[], Any]) -> bool:
        """Note an answer, or why there is none; return whether there is one."""
        try:
            answer = question()
        except Exception as exc:  # noqa: BLE001  (whatever it is, the next question is asked)
            answer = f"{type(exc).__name__}: {exc}"
            self._note(name, answer)
            return False
        self._note(name, answer)
        return True

    def _note(self, name: str, answer: Any) -> None:
        self._facts[name] = answer
        print(f"{name}: {answer}", flush=True)
        self._file.write_text(json.dumps(self._facts, indent=1) + "\n")


def driver() -> str:
    """Return what nvidia-smi says."""
    fields = "name,uuid,driver_version,memory.total,memory.used,mig.mode.current"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()


def libraries() -> dict[str, Any]:
    """Return the versions of both libraries, and FAISS's count of devices."""
    import cupy
    import faiss

    runtime = cupy.cuda.runtime
    return {
        "faiss": f"{faiss.__version__} {faiss.get_compile_options()}",
        "faiss devices": faiss.get_num_gpus(),
        "cupy": str(cupy.__version__),
        "runtime": runtime.runtimeGetVersion(),
        "driver": runtime.driverGetVersion(),
        "free and total bytes": list(runtime.memGetInfo()),
    }


def pages() -> dict[str, float]:
    """Return by how much an allocation is dearer than its size, for sizes around the driver's page."""
    import cupy

    runtime = cupy.cuda.runtime
    found = {}
    for mib in SIZES_MIB:
        before = runtime.memGetInfo()[0]
        taken = [runtime.malloc(int(mib * (1 << 20))) for _ in range(BLOCKS)]
        used = before - runtime.memGetInfo()[0]
        for pointer in taken:
            runtime.free(pointer)
        found[f"{mib} MiB"] = round(used / (BLOCKS * mib * (1 << 20)), 3)
    return found


def worker(backend: str) -> dict[str, Any]:
    """Start the backend as a worker does, and compare a few thousand rows in every way that it has."""
    from vecstore.index.channel import WorkerOptions
    from vecstore.index.worker import made

    began_s = time.perf_counter()
    device = made(WorkerOptions(backend=backend, budget_bytes=1 << 30, scratch_bytes=256 << 20))
    started_s = time.perf_counter() - began_s
    random = np.random.default_rng(1)
    rows, queries = random.standard_normal((9_000, 64), np.float32), random.standard_normal((20, 64), np.float32)
    block = device.block("l2", rows, "probe")
    wrong = {}
    true = ((rows[None].astype(np.float64) - queries[:, None]) ** 2).sum(-1)
    for k in (1, 100, 2_048, 5_000):
        scores, places = device.scan(block, queries, k)
        same = np.sort(np.take_along_axis(true, places, 1), 1) - np.sort(true, 1)[:, :k]
        wrong[k] = float(np.abs(same).max()), float(np.abs(np.take_along_axis(true, places, 1) - scores).max())
    again = device.rescored("l2", rows[None, :100].repeat(20, 0), queries)
    device.release("probe")
    worst = {str(k): one for k, one in wrong.items()}
    return {
        "seconds to start": round(started_s, 2),
        "device": device.name,
        "worst error of order and score, by k": worst,
        "worst error of the second kernel": float(np.abs(again - true[:, :100]).max()),
        "right": all(max(one) < 0.01 for one in wrong.values()) and bool(np.abs(again - true[:, :100]).max() < 0.01),
    }


def main() -> None:
    """Ask."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=["cuda", "host"], default="cuda")
    parser.add_argument("--out", type=Path, default=Path("."))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    probe = Probe(args.out / "probe.json")
    fine = True
    if args.backend == "cuda":
        probe.ask("driver", driver)
        fine = probe.ask("libraries", libraries) and probe.ask("pages", pages)
    fine = probe.ask("worker", lambda: worker(args.backend)) and fine
    raise SystemExit(not fine)


if __name__ == "__main__":
    main()
