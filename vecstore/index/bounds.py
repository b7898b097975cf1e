"""How far a score found on a device can be from the true one: what makes an exact answer out of rounded rows.

Rows on a device are float16, times a power of two that brings the largest near `HALF_TOP`. The nearest by rounded
scores hold the true nearest if no row that was left out can be nearer than the k-th found, whatever rounding did.
`left_out` gives the best true score that any row beyond the last candidate can have; the engine compares it with the
exact score of its k-th hit, and takes more candidates, or scans, where it does not clear it.

Rounding to float16 moves a component by at most 2^-11 of itself, or 2^-25 where it is subnormal; sums of d products in
float32, in any order, are off by at most d 2^-24 of the sum of their sizes. Both are doubled here.

Pure arithmetic: no I/O, no FAISS.
"""

from __future__ import annotations

import math
from typing import cast

import numpy as np
import numpy.typing as npt

from ..values import Metric

__all__ = ["HALF_FLOOR", "HALF_RANGE", "HALF_TOP", "TABLE_RANGE", "TABLE_TOP", "left_out", "scale_of"]

Floats = npt.NDArray[np.float32]
Wide = npt.NDArray[np.float64]
HALF_TOP = 4096.0
"""Where the largest component of a segment comes to lie: off float16's end at 65,504, and small ones keep their
bits."""
HALF_FLOOR = 2.0**-8
"""A row whose largest component lies below, in the segment's scale, has lost bits that searches may need."""
HALF_RANGE = 60_000.0
"""A query with a larger component, in the segment's scale, has no float16 form."""
TABLE_TOP = 1.5
"""Where the longest row of product codes comes to lie, or at half of it: tables of their distances are float16 where
there are many codes. Rows of unit length stay as they are: under inner products the centroids that are taken off them
have unit length, too.
"""
TABLE_RANGE = 200.0
"""A longer query, in the scale of product codes, could have distances beyond float16: (200 + 2 x 1.5)^2 is within."""
_HALF, _TINY, _SINGLE = 2.0**-10, 2.0**-23, 2.0**-22


def scale_of(largest: float, top: float = HALF_TOP) -> float:
    """Return the power of two by which rows are multiplied, so that their largest comes to lie in (top / 2, top]."""
    if not 0.0 < largest < math.inf:
        return 1.0
    mantissa, exponent = math.frexp(largest / top)
    # One half exactly is the top already, once it is doubled.
    return math.ldexp(1.0, max(-60, min(60, -exponent + (mantissa == 0.5))))


def left_out(
    metric: Metric, last: Floats, query_lengths: Floats, row_length: float, dim: int, *, half: bool, scale: float = 1.0
) -> Floats:
    """Return float32 (q,): the best true score of any row whose rounded score is no better than `last`.

    Parameters
    ----------
    metric
        Higher scores are nearer, except under l2.
    last
        Rounded score of the last candidate of each query, of rows and queries as given (not scaled).
    query_lengths, row_length
        Lengths of the queries, and of the longest row.
    dim
        Of the vectors.
    half
        Whether rows and queries were rounded to float16; else they are float32.
    scale
        By which rows were multiplied before they were rounded.
    """
    queries = query_lengths.astype(np.float64)
    sums = queries + row_length
    relative = _HALF if half else 0.0
    tiny = _TINY * math.sqrt(dim) / scale if half else 0.0
    single = _SINGLE * (dim + 8)
    if metric == "l2":
        moved = relative * sums + 2 * tiny
        nearest: Wide = np.maximum(np.sqrt(np.maximum(last - single * sums * sums, 0.0)) - moved, 0.0)
        # Rounded down: a bound may be too good, never too bad.
        return cast(Floats, np.nextafter((nearest * nearest).astype(np.float32), np.float32(-np.inf)))
    wide = last + (relative + single) * queries * row_length + tiny * sums
    return cast(Floats, np.nextafter(wide.astype(np.float32), np.float32(np.inf)))
