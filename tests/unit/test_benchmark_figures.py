"""What the benchmarks compute from measurements is right: recall, interpolation at equal recall, medians."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(name="modules")
def _modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[ModuleType, ModuleType, ModuleType]]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    names = ("bench", "dataset", "engines", "peers")
    yield tuple(importlib.import_module(name) for name in ("bench", "dataset", "peers"))  # type: ignore[misc]
    for name in names:
        sys.modules.pop(name, None)


def test_recall_counts_true_neighbours_once(modules: tuple[ModuleType, ...]) -> None:
    """A wrong hit, a missing one and one that is found twice cost the same."""
    data = modules[1].synthetic(500, 16, 3)
    exact = data.unit_queries @ data.unit_rows.T
    order = np.argsort(-exact, axis=1)[:, :10]
    truth = data.truth(10)
    wrong, missing, twice = order.copy(), order.copy(), order.copy()
    wrong[:, 9] = np.argmin(exact, axis=1)
    missing[:, 9] = -1
    twice[:, 9] = twice[:, 0]
    assert data.recall(order, truth).tolist() == [1.0, 1.0, 1.0]
    for found in (wrong, missing, twice):
        assert data.recall(found, truth).tolist() == pytest.approx([0.9, 0.9, 0.9])


def test_rate_at_a_recall_is_interpolated_on_the_frontier(modules: tuple[ModuleType, ...]) -> None:
    """Slower settings of no higher recall do not count, and nothing is extrapolated upwards."""
    points = [
        {"recall": 0.90, "per_s": 4000.0},
        {"recall": 0.94, "per_s": 100.0},
        {"recall": 0.98, "per_s": 1000.0},
    ]
    rate_at = modules[2].rate_at
    assert rate_at(points, 0.94) == pytest.approx(2000.0)
    assert rate_at(points, 0.98) == pytest.approx(1000.0)
    assert rate_at(points, 0.5) == pytest.approx(4000.0)
    assert rate_at(points, 0.99) is None


def test_passes_are_merged_by_their_medians(modules: tuple[ModuleType, ...]) -> None:
    """Numbers and the points of curves become medians; what is text stays."""
    results = [
        {"engine": "a", "disk_bytes": n, "curves": {"one": [{"knob": 1, "recall": 0.9, "per_s": 10.0 * n}]}}
        for n in (1, 2, 9)
    ]
    merged = modules[2].median_of(results)
    assert merged["engine"] == "a"
    assert merged["disk_bytes"] == 2
    assert merged["curves"]["one"] == [{"knob": 1, "recall": 0.9, "per_s": 20.0}]
    assert merged["passes"] == 3


def test_a_target_is_met_or_missed(modules: tuple[ModuleType, ...]) -> None:
    """The table says NO where a figure misses its target, and nothing where there is none."""
    answer = modules[0].Answer
    assert answer("a", 0.6, at_least=0.5).cells()[3] == "yes"
    assert answer("a", 0.4, at_least=0.5).cells()[3] == "NO"
    assert answer("a", 51.0, "us", at_most=50.0).cells()[3] == "NO"
    assert answer("a", 51.0, "us").cells()[3] == ""


def test_both_sides_are_timed_in_turns(modules: tuple[ModuleType, ...]) -> None:
    """Warm-ups are not counted, and the ratio is one of medians."""
    calls: list[str] = []

    def side(name: str, seconds: list[float]) -> object:
        def run(number: int) -> float:
            calls.append(name)
            return seconds[number]

        return run

    pair = modules[0].interleaved(side("a", [2.0, 9.0, 4.0]), side("b", [1.0, 2.0, 90.0]), 3)
    assert calls == ["a", "b"] * 4
    assert pair.speed_ratio == pytest.approx(2.0 / 4.0)
