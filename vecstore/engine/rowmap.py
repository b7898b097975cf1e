"""From ids to rows of sealed extents: sorted arrays and binary search, no Python object per point.

The code of an id is the id itself where ids are integers, xxh3_64 of its UTF-8 where they are strings. A code may stand
for several rows: rows that are dead but not yet rewritten, and, for strings, other ids of the same hash. The caller
checks liveness and, for strings, the bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import xxhash

from ..record import IdKind

__all__ = ["RowMap", "id_codes"]

Codes = npt.NDArray[np.uint64]


def id_codes(kind: IdKind, keys: Sequence[bytes]) -> Codes:
    """Return the codes of id keys."""
    if kind == IdKind.INT:
        rows = np.frombuffer(b"".join(keys), np.uint8).reshape(-1, 9)
        return np.ascontiguousarray(rows[:, 1:]).view(">u8").reshape(-1).astype(np.uint64)
    hashed = xxhash.xxh3_64_intdigest
    return np.fromiter([hashed(key[1:]) for key in keys], np.uint64, len(keys))


class RowMap:
    """Rows of one segment by code. Immutable; 12 bytes a row.

    Parameters
    ----------
    codes
        uint64 (n,), in any order.
    rows
        The row number of each.
    """

    __slots__ = ("codes", "rows")

    def __init__(self, codes: Codes, rows: npt.NDArray[np.int64]) -> None:
        order = np.argsort(codes, kind="stable")
        self.codes: Codes = codes[order]
        self.rows: npt.NDArray[np.uint32] = rows[order].astype(np.uint32)

    def find(self, codes: Codes) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return (position in `codes`, row) of each row that has one of them; both arrays of the same length."""
        if not len(codes) or not len(self.codes) or codes.max() < self.codes[0] or codes.min() > self.codes[-1]:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        starts = np.searchsorted(self.codes, codes, "left")
        here = starts < len(self.codes)
        here[here] = self.codes[starts[here]] == codes[here]
        positions = np.flatnonzero(here)
        if not len(positions):
            return positions, np.empty(0, np.int64)
        starts = starts[positions]
        counts = np.searchsorted(self.codes, codes[positions], "right") - starts
        if counts.max() == 1:
            return positions, self.rows[starts].astype(np.int64)
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return np.repeat(positions, counts), self.rows[np.repeat(starts, counts) + within].astype(np.int64)

    @property
    def bytes(self) -> int:
        """Memory that it takes."""
        return self.codes.nbytes + self.rows.nbytes
