"""Over-fetch and rounding: the arithmetic that makes right answers of what a device can do."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecstore.index import overfetch
from vecstore.index.bounds import HALF_TOP, TABLE_RANGE, TABLE_TOP, left_out, scale_of
from vecstore.values import Metric


@given(
    rows=st.integers(1, 10_000_000),
    share=st.floats(0.0001, 1.0),
    wanted=st.integers(1, 10_000),
    width_max=st.integers(1, 20_000),
)
def test_widths_double_until_all_rows_or_the_limit(rows: int, share: float, wanted: int, width_max: int) -> None:
    """Widths begin with enough on average, double, end with all rows, and never pass what the device gives."""
    selected = max(1, int(share * rows))
    widths = list(overfetch.widths(min(wanted, selected), selected, rows, width_max))
    assert all(width <= min(width_max, rows) for width in widths)
    for before, after in itertools.pairwise(widths):
        assert after == min(2 * before, rows)
    first = overfetch.first_width(min(wanted, selected), selected, rows)
    assert first * selected >= rows * min(wanted, selected) or first == rows
    if rows <= width_max:
        assert widths[-1] == rows
    elif widths:
        assert 2 * widths[-1] > width_max


def test_few_selected_rows_are_scanned_for() -> None:
    """Few rows, a small share, and more candidates than the device gives: each is compared instead of searched for."""
    assert overfetch.scans(10, 100, 1_000_000, 2_048)
    assert overfetch.scans(10, 50_000, 1_000_000, 2_048)
    assert not overfetch.scans(10, 500_000, 1_000_000, 2_048)
    assert overfetch.scans(1_500, 500_000, 1_000_000, 2_048)
    assert not overfetch.scans(1_500, 500_000, 1_000_000, 1_000_000)


def test_unit_rows_of_product_codes_stay() -> None:
    """Rows of unit length are not scaled: their residuals are taken of centroids of unit length."""
    for longest, scale in ((1.0, 1.0), (0.9999, 1.0), (1.0001, 1.0), (0.75, 2.0), (1.5, 1.0), (1e6, 2.0**-20)):
        assert scale_of(longest, TABLE_TOP) == scale
    assert (TABLE_RANGE + 2 * TABLE_TOP) ** 2 < 65_504


@given(st.floats(1e-30, 1e30))
def test_rows_are_scaled_to_the_middle_of_the_range(largest: float) -> None:
    """A scale is a power of two that brings the largest component near the top, within bounds."""
    scale = scale_of(largest)
    assert np.frexp(scale)[0] == 0.5
    if 1e-10 < largest < 1e10:
        assert HALF_TOP / 2 <= largest * scale <= HALF_TOP
    assert scale_of(0.0) == scale_of(float("inf")) == 1.0


@pytest.mark.parametrize("metric", ["l2", "ip", "cosine"])
@given(
    seed=st.integers(0, 2**32),
    dim=st.integers(1, 300),
    size=st.sampled_from([1e-8, 1e-3, 1.0, 37.0, 1e6]),
    spread=st.sampled_from([0.0, 1.0, 4.0]),
)
def test_no_row_is_better_than_the_bound(metric: Metric, seed: int, dim: int, size: float, spread: float) -> None:
    """Whatever rounding does, a row whose rounded score is no better than the last one's has no better true score."""
    random = np.random.default_rng(seed)
    rows = (random.standard_normal((60, dim)) * size * 10.0 ** (-spread * random.random((60, 1)))).astype(np.float32)
    query = (random.standard_normal((1, dim)) * size).astype(np.float32)
    if metric == "cosine":
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        query /= np.linalg.norm(query)
    scale = np.float32(scale_of(float(np.abs(rows).max())))
    half_rows = (rows * scale).astype(np.float16).astype(np.float32)
    half_query = (query * scale).astype(np.float16).astype(np.float32)
    wide = rows.astype(np.float64)
    if metric == "l2":
        squares = (half_rows**2).sum(1) + (half_query**2).sum() - 2 * (half_query @ half_rows.T)[0]
        rounded = np.maximum(squares, 0) / scale**2
        true = ((wide - query.astype(np.float64)) ** 2).sum(1)
    else:
        rounded = (half_query @ half_rows.T)[0] / scale**2
        true = wide @ query[0].astype(np.float64)
    order = np.argsort(rounded if metric == "l2" else -rounded)
    lengths = np.linalg.norm(query, axis=1).astype(np.float32)
    longest = float(np.linalg.norm(wide, axis=1).max())
    for width in (1, 10, 59):
        last = rounded[order[width - 1 : width]].astype(np.float32)
        (bound,) = left_out(metric, last, lengths, longest, dim, half=True, scale=float(scale))
        beyond = true[order[width:]]
        assert (beyond >= bound).all() if metric == "l2" else (beyond <= bound).all()
