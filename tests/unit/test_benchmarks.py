"""The benchmarks run: each script, on tiny data, in a process of its own, writes answers that can be read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TINY = ["--quick", "--rows", "6000", "--dim", "32"]


def run(script: str, out: Path, *arguments: str) -> dict[str, Any]:
    """Run a script and return what it wrote about its data."""
    command = [
        sys.executable,
        "-X",
        "faulthandler",
        str(BENCHMARKS / script),
        *TINY,
        "--out",
        str(out),
        "--work",
        str(out),
        *arguments,
    ]
    process = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert process.returncode == 0, process.stdout + process.stderr
    written: dict[str, Any] = json.loads((out / f"{Path(script).stem}-synthetic-6000x32.json").read_text())
    return written


@pytest.mark.parametrize(
    ("script", "answers"),
    [
        ("ingest.py", 4),
        ("search.py", 14),
        ("filter.py", 9),
        ("reopen.py", 3),
        ("memory.py", 3),
        ("recovery.py", 8),
        ("replication.py", 9),
    ],
)
def test_a_script_answers_its_questions(script: str, answers: int, tmp_path: Path) -> None:
    """Each answer has a figure, and the file says where, when and with what it was measured."""
    written = run(script, tmp_path)
    assert len(written["answers"]) == answers
    assert all(answer["value"] >= 0 or answer["unit"] == "us" for answer in written["answers"])
    assert written["question"].endswith("?")
    assert written["machine"]["cores"] >= 1
    assert written["versions"]["faiss-cpu"]
    assert written["date"].startswith("20")
    assert str(tmp_path) not in json.dumps(written)


def test_recall_is_kept_on_tiny_data(tmp_path: Path) -> None:
    """What the recall lines measure is real: at this size the store meets what is asked."""
    written = run("search.py", tmp_path, "--parts", "recalls")
    missed = [
        answer["question"] for answer in written["answers"] if answer["value"] < float(answer["target"][3:]) - 0.02
    ]
    assert missed == []


def test_peers_compares_the_engines_that_it_measured(tmp_path: Path) -> None:
    """The report holds a figure for every way of asking, and curves with a recall at each setting."""
    written = run("peers.py", tmp_path, "--engines", "vecstore", "--passes", "2")
    figures = written["engines"]["vecstore"]
    assert figures["ingest_rows_per_s"] > figures["indexed_rows_per_s"] > 0
    assert figures["resident_x raw"] > 0
    curves = json.loads((tmp_path / "peers-synthetic-6000x32-vecstore.json").read_text())["curves"]
    assert all(0 < point["recall"] <= 1 and point["per_s"] > 0 for points in curves.values() for point in points)
