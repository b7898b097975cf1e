"""Recall to effort: monotone, stored as JSON, never less under a filter."""

from __future__ import annotations

import json

import pytest

from vecstore.index.curve import Curve, table
from vecstore.index.effort import ALL, KNOWN_MAX, Setting

KINDS = ["ivf_flat", "ivf_pq", "ivf_sq8", "hnsw"]
SIZES = [1, 2, 3, 7, 10, 11, 50, 100, 999, 1000, 5000, 10000]


@pytest.mark.parametrize("kind", KINDS)
def test_more_is_never_cheaper(kind: str) -> None:
    """More hits or more recall take at least as many candidates, and never fewer than k."""
    curve = table(kind, 1, 128)
    asks = [0.5, 0.9, 0.95, 0.96, 0.99, 0.999]
    table_of = [[curve.effort(ask, k).candidates for ask in asks] for k in SIZES]
    for k, row in zip(SIZES, table_of, strict=True):
        assert row == sorted(row)
        assert row[0] >= k
    for column in zip(*table_of, strict=True):
        assert list(column) == sorted(column)


def test_whole_recall_compares_everything() -> None:
    """No code can promise every hit."""
    assert table("ivf_pq", 1, 128).effort(1.0, 10).candidates == ALL


@pytest.mark.parametrize("kind", KINDS)
def test_a_filter_never_lowers_the_effort(kind: str) -> None:
    """Nor does it skip lists."""
    curve = table(kind, 1, 128)
    for k in SIZES:
        for share in (0.5, 0.1, 0.01, 0.0049, 0.001, 3e-7):
            filtered = curve.effort(0.95, k, share=share, filtered=True)
            assert filtered.candidates >= curve.effort(0.95, k).candidates
            assert filtered.probes == 0


def probing() -> Curve:
    """Return a curve that skips lists."""
    settings = (
        Setting(10, 100, 0, 0, 0.99, 300.0),
        Setting(10, 60, 8, 0, 0.95, 40.0),
        Setting(10, 50, 4, 0, 0.90, 30.0),
        Setting(100, 900, 0, 0, 0.99, 400.0),
    )
    return Curve("ivf_pq", 64, settings, {"10@0.95": 0.97})


def test_the_cheapest_that_meets_is_taken() -> None:
    """And lists are skipped only where all rows may be returned."""
    curve = probing()
    assert curve.effort(0.90, 10).probes == 4
    assert curve.effort(0.93, 10).probes == 8
    assert curve.effort(0.97, 10).probes == 0
    assert curve.effort(0.90, 10, share=0.5, filtered=True).probes == 0
    assert 100 < curve.effort(0.90, 50).candidates <= 900
    assert curve.effort(0.90, 200).candidates > 1800


def test_curves_travel_as_json() -> None:
    """A curve read back gives the same efforts and report."""
    curve = probing()
    again = Curve.from_plain(json.loads(json.dumps(curve.to_plain())))
    assert again.settings == curve.settings
    assert again.report() == curve.report() == {"source": "measured", "recall": {"10@0.95": 0.97}}


def test_an_expert_names_the_effort() -> None:
    """Lists take nprobe, a graph efSearch."""
    assert probing().effort_for(1000, 10).probes == 64
    assert probing().effort_for(3, 10).probes == 3
    assert table("hnsw", 0, 8).effort_for(77, 10).ef == 77


def test_answers_are_remembered_and_bounded() -> None:
    """A search asks for what another one has asked for; many different asks do not fill the memory."""
    curve = table("ivf_pq", 1, 128)
    assert curve.effort(0.95, 10) is curve.effort(0.95, 10)
    assert curve.effort(0.95, 10, share=0.1234, filtered=True) is curve.effort(0.95, 10, share=0.1211, filtered=True)
    for k in range(1, KNOWN_MAX + 100):
        curve.effort(0.9, k)
    assert len(curve._known) <= KNOWN_MAX
