"""The CUDA backend behind a whole engine, in worker processes of its own, on any machine: CUDA alone is pretended."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vecstore.index import device

from . import pretend, test_engine

pytestmark = pytest.mark.skipif(pretend.COMPILER is None, reason="no C++ compiler for the kernels")

WORKER = """
import sys
from tests.gpu import pretend
from vecstore.index import gpu, worker
gpu.cupy, gpu.faiss = pretend.Cupy(), pretend.Faiss(cuvs={cuvs})
worker.main(sys.argv[1:])
"""
slow = pytest.mark.slow


@pytest.fixture(params=[False, True], ids=["faiss", "cuvs"])
def cuvs(request: pytest.FixtureRequest) -> bool:
    """Whether FAISS has cuVS."""
    return bool(request.param)


@pytest.fixture(autouse=True)
def _pretended(cuvs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have workers import what is pretended, and the engine see a GPU."""
    monkeypatch.setattr(device, "found", lambda: ["0"])
    monkeypatch.setattr("vecstore.engine.accelerator.found", lambda: ["0"])
    monkeypatch.setattr(device, "has_gpu_code", lambda: True)
    start = subprocess.Popen

    def started(command: list[str], **keywords: Any) -> Any:
        assert command[1:3] == ["-m", "vecstore.index.worker"]
        return start([sys.executable, "-c", WORKER.format(cuvs=cuvs), *command[3:]], **keywords)

    monkeypatch.setattr("vecstore.index.handle.subprocess.Popen", started)


@pytest.mark.parametrize("metric", ["l2", pytest.param("ip", marks=slow), pytest.param("cosine", marks=slow)])
def test_exact_answers_are_the_cpus(metric: str, tmp_path: Path) -> None:
    """The same ids in the same order, under filters and up to 10,000."""
    test_engine.test_exact_answers_are_the_cpus("cuda", metric, tmp_path)


@pytest.mark.parametrize("index", ["hnsw", *(pytest.param(one, marks=slow) for one in ("auto", "flat", "ivf_sq8"))])
def test_the_recall_asked_for_is_met(index: str, tmp_path: Path) -> None:
    """With filters and without: a graph where there is cuVS."""
    test_engine.test_the_recall_asked_for_is_met("cuda", index, tmp_path)


@slow
@pytest.mark.parametrize("kind", ["ivf_sq", "ivf_pq"])
def test_lists_on_a_device_meet_the_recall(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before their curve is measured, and after."""
    test_engine.test_lists_on_a_device_meet_the_recall("cuda", kind, tmp_path, monkeypatch)


@slow
def test_deletes_are_never_found(tmp_path: Path) -> None:
    """From none to nine tenths."""
    test_engine.test_deletes_are_never_found("cuda", tmp_path)


@slow
def test_storms_of_upserts_are_seen_at_once(tmp_path: Path) -> None:
    """What was acknowledged is found."""
    test_engine.test_storms_of_upserts_are_seen_at_once("cuda", tmp_path)


@slow
def test_no_death_of_a_worker_changes_an_answer(tmp_path: Path, rng: np.random.Generator) -> None:
    """Whatever it was at."""
    test_engine.test_no_death_of_a_worker_changes_an_answer("cuda", tmp_path, rng)


@slow
@pytest.mark.parametrize("failing", [1, 2, 3, 4, 6, 9, 14, 30])
def test_no_failed_allocation_changes_an_answer(failing: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever it is."""
    test_engine.test_no_failed_allocation_changes_an_answer("cuda", failing, tmp_path, monkeypatch)


@slow
def test_half_of_the_memory_needed_changes_no_answer(tmp_path: Path) -> None:
    """The CPU has all."""
    test_engine.test_half_of_the_memory_needed_changes_no_answer("cuda", tmp_path)


@slow
def test_a_store_filled_with_a_device_opens_without_one(tmp_path: Path) -> None:
    """And the other way round."""
    test_engine.test_a_store_filled_with_a_device_opens_without_one("cuda", tmp_path)
