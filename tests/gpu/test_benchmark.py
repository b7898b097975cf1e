"""The GPU benchmark runs: on tiny data, with a worker on the CPU, it answers every question."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


def test_the_benchmark_answers_its_questions(tmp_path: Path) -> None:
    """Every part writes its answers, with the device that they were measured on, and recall is met."""
    command = [sys.executable, str(SCRIPT), "--backend", "host", "--quick", "--rows", "6000", "--dim", "32"]
    command += ["--out", str(tmp_path), "--work", str(tmp_path)]
    process = subprocess.run(command, check=False, capture_output=True, text=True, timeout=180)
    assert process.returncode == 0, process.stdout + process.stderr
    written = json.loads((tmp_path / "gpu-synthetic-6000x32.json").read_text())
    assert len(written["answers"]) == 15
    assert written["arguments"]["device"] == "none: a worker on the CPU"
    recalls = [answer for answer in written["answers"] if "recall asked" in answer["question"]]
    assert len(recalls) == 4
    assert all(answer["met"] for answer in recalls)
