"""The GPU benchmark runs: on tiny data, with a worker on the CPU, it answers every question."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


def test_the_benchmark_answers_its_questions(tmp_path: Path) -> None:
    """Every part writes its answers, with the device that they were measured on, and recall is met.

    A part that fails, the first, is noted with its reason, the others go on, and the exit code tells.
    """
    command = [sys.executable, str(SCRIPT), "--backend", "host", "--quick", "--rows", "6000", "--dim", "32"]
    command += ["--parts", "nothing,indexed,batches,exact,recalls,singles,filter,served"]
    command += ["--out", str(tmp_path), "--work", str(tmp_path)]
    process = subprocess.run(command, check=False, capture_output=True, text=True, timeout=180)
    assert process.returncode == 1, process.stdout + process.stderr
    written = json.loads((tmp_path / "gpu-synthetic-6000x32.json").read_text())
    assert written["arguments"]["failed"] == {"nothing": "KeyError: 'nothing'"}
    assert "cut" not in written
    assert len(written["answers"]) == 18
    assert written["arguments"]["device"] == "none: a worker on the CPU"
    recalls = [answer for answer in written["answers"] if "recall asked" in answer["question"]]
    assert len(recalls) == 4
    assert all(answer["met"] for answer in recalls)
    served = [answer for answer in written["answers"] if answer["question"].startswith("served")]
    assert len(served) == 6
    for answer in served:
        asked = float(answer["question"].rpartition(" ")[2])
        assert answer["detail"]["recall"] >= asked - 0.01 and answer["detail"]["failed"] == 0
        assert 0 < answer["detail"]["p50 ms"] <= answer["detail"]["p99 ms"]


def test_a_run_that_is_cut_leaves_its_answers(tmp_path: Path) -> None:
    """With every answer the file is written, and says that more was to come, until it has."""
    spec = importlib.util.spec_from_file_location("bench_of_a_cut", SCRIPT.with_name("bench.py"))
    assert spec is not None and spec.loader is not None
    bench: Any = importlib.util.module_from_spec(spec)
    sys.modules["bench_of_a_cut"] = bench
    spec.loader.exec_module(bench)
    report = bench.Report("cut", "?", "none", tmp_path, {}, as_it_goes=True)
    report.add(bench.Answer("first", 1.0))
    written = json.loads((tmp_path / "cut-none.json").read_text())
    assert len(written["answers"]) == 1 and "cut" in written
    report.finish()
    assert "cut" not in json.loads((tmp_path / "cut-none.json").read_text())
    assert [path.name for path in tmp_path.iterdir()] == ["cut-none.json"]
