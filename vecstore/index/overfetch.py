"""How many candidates to take from an index that cannot leave rows out, so that enough of them are wanted.

An index on a device without cuVS ignores selectors and cannot delete. So more candidates are taken than are wanted, and
those that a selection refuses are dropped; where too few are left, twice as many are taken, until there are enough or
all rows were looked at. Beyond what the device selects, the wanted rows are gathered and compared one by one.

Pure arithmetic: no I/O, no FAISS.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

__all__ = ["SCAN_SHARE_MAX", "first_width", "scans", "widths"]

SCAN_SHARE_MAX = 1 / 16
"""Where a selection leaves at most this share of the rows, comparing those alone is cheaper than sixteen times the
rest."""
SCAN_ROWS_MIN = 4_096
"""So few rows are always compared one by one: a device does it in less time than a call takes."""


def scans(wanted: int, selected: int, rows: int, width_max: int) -> bool:
    """Return whether the selected rows are to be gathered and compared, rather than searched for.

    Parameters
    ----------
    wanted
        Candidates wanted of them.
    selected
        Rows that the selection leaves.
    rows
        Rows of the index.
    width_max
        Candidates that the index gives at most.
    """
    if selected <= max(SCAN_ROWS_MIN, wanted):
        return True
    return selected <= SCAN_SHARE_MAX * rows or first_width(wanted, selected, rows) > width_max


def first_width(wanted: int, selected: int, rows: int) -> int:
    """Return how many candidates to take first: as many as hold enough on average, and two deviations more."""
    share = selected / max(rows, 1)
    if share >= 1.0:
        return min(wanted, rows)
    spread = 2.0 * math.sqrt(wanted * (1 - share)) / share
    return min(rows, math.ceil(wanted / share + spread) + 1)


def widths(wanted: int, selected: int, rows: int, width_max: int) -> Iterator[int]:
    """Iterate over the widths to try: the first, then twice as many each time, and at last all rows.

    Ends before a width that the index does not give: what is still missing then has to be scanned for.
    """
    width = first_width(wanted, selected, rows)
    while width <= width_max:
        yield width
        if width >= rows:
            return
        width = min(2 * width, rows)
