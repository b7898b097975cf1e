"""On a GPU: the formulas against what NVML adds, and compute-sanitizer finds nothing."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.data import mixture
from vecstore.index.budget import Choice, layout, need
from vecstore.index.channel import WorkerOptions
from vecstore.index.handle import Device
from vecstore.index.order import Order
from vecstore.index.telemetry import Telemetry

from .devices import NO_GPU, source_of, until

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(NO_GPU), reason=NO_GPU or "there is one")]
SANITIZER = shutil.which("compute-sanitizer")
PAGE_BYTES = 2 << 20
"""The driver gives memory out in pages of so much."""


def used_bytes() -> int:
    """Return what NVML says is used of the first GPU."""
    telemetry = Telemetry(["0"])
    try:
        figures = telemetry.read().get("0", {})
        if "memory_used_bytes" not in figures:
            pytest.skip("NVML says nothing: install nvidia-ml-py")
        return int(figures["memory_used_bytes"])
    finally:
        telemetry.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "rows", "dim"),
    [("flat", 4_000_000, 128), ("flat", 1_000_000, 768), ("ivf_sq", 4_000_000, 128), ("ivf_pq", 20_000_000, 96)],
)
def test_predicted_memory_is_what_is_used(kind: str, rows: int, dim: int, tmp_path: Path) -> None:
    """An index of a gigabyte takes what the formula says, within a tenth and never more, over the worker's baseline."""
    files = source_of(tmp_path, mixture(100_000, dim, 1), "l2", file_rows=100_000).files
    # The same rows again and again: positions, not contents, take memory.
    repeated = tuple(type(files[0])(files[0].path, i * 100_000, 100_000, 0, -1) for i in range(rows // 100_000))
    choice = Choice(kind, *layout(kind, rows, dim), need(kind, rows, dim))
    device = Device("0", WorkerOptions(), lambda: None)
    device.start()
    try:
        until("the worker", lambda: device.is_ready, 120)
        before = used_bytes()
        device.load(Order("s", "l2", dim, rows, repeated, choice, 1))
        highest = before
        end_s = time.monotonic() + 900
        while not device.is_held("s"):
            assert time.monotonic() < end_s and not device.refused(), device.refused()
            highest = max(highest, used_bytes())
        added = used_bytes() - before
        assert added <= choice.need.serve + PAGE_BYTES
        assert added >= 0.9 * choice.need.serve
        assert highest - before <= choice.need.peak + PAGE_BYTES
    finally:
        device.close()


@pytest.mark.skipif(SANITIZER is None, reason="compute-sanitizer is not installed")
def test_the_sanitizer_finds_nothing(tmp_path: Path) -> None:
    """A small case of every kernel and index, under memcheck."""
    case = """
import sys
from pathlib import Path
from tests.gpu import test_answer
folder = Path(sys.argv[1])
for number, metric in enumerate(test_answer.METRICS):
    (folder / str(number)).mkdir()
    test_answer.test_flat_answers_are_exact_where_they_say_so("cuda", metric, 0.1, folder / str(number))
(folder / "far").mkdir()
test_answer.test_k_reaches_ten_thousand("cuda", folder / "far")
"""
    command: list[Any] = [
        SANITIZER,
        "--tool",
        "memcheck",
        "--error-exitcode",
        "9",
        sys.executable,
        "-c",
        case,
        tmp_path,
    ]
    root = Path(__file__).parents[2]
    process = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, timeout=900)
    assert process.returncode == 0, process.stdout[-4_000:] + process.stderr[-4_000:]
