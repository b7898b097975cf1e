"""How hard to search for a recall: tables for small segments, measured curves for large ones.

Not here: searching. A `Curve` is a plain value that is stored beside its index.

Where no list is skipped, all that is lost is lost to the codes, and that transfers from rows to other queries; what is
lost by skipping lists does not transfer so well, and gets wider margins (`measure`).

No I/O; `measure` computes with the threads that it is given.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..values import Metric
from .base import Effort, Index, Rows, Vectors

__all__ = ["ASKS", "Curve", "Setting", "measure", "table"]

ASKS = (0.90, 0.95, 0.99)
RECALL_MAX = 0.999
"""Above, every row is a candidate."""
ALL = 1 << 30

_CANDIDATES: Mapping[int, tuple[int, int, int, int, int]] = {
    # k: candidates for recall 0.80, 0.90, 0.95, 0.99, 0.999
    1: (24, 48, 64, 96, 256),
    10: (32, 40, 80, 160, 400),
    100: (240, 300, 400, 800, 1600),
    1000: (1800, 2200, 2800, 4500, 8000),
}
_TABLE_ASKS = (0.80, 0.90, 0.95, 0.99, 0.999)


@dataclass(frozen=True, slots=True)
class Setting:
    """An effort and the recall that it is credited with.

    Attributes
    ----------
    k
        Hits wanted.
    candidates, probes, ef
        As in `Effort`.
    recall
        The highest recall for which it may be used.
    cost_us
        About what a query costs; only comparisons of it mean anything.
    """

    k: int
    candidates: int
    probes: int
    ef: int
    recall: float
    cost_us: float


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """Recall to effort, of one index. Immutable; thread-safe.

    Attributes
    ----------
    kind
        Of the index.
    lists
        Of the index.
    settings
        What is known.
    measured
        Recall measured at the asks by (k, ask), for reports; empty for a table.
    """

    kind: str
    lists: int
    settings: tuple[Setting, ...]
    measured: Mapping[str, float] = field(default_factory=dict)
    _known: dict[tuple[float, int, float, bool], Effort] = field(default_factory=dict, repr=False)

    def effort(self, recall: float, k: int, *, share: float = 1.0, filtered: bool = False) -> Effort:
        """Return the least effort that gives this recall.

        Parameters
        ----------
        recall
            The share of the true k nearest to expect.
        k
            Hits wanted.
        share
            The share of the rows that a filter or deletions leave.
        filtered
            Whether a selection is given.
        """
        key = (recall, k, share if filtered else 1.0, filtered)
        found = self._known.get(key)
        if found is None:
            if len(self._known) > 4096:
                self._known.clear()
            found = self._known[key] = self._effort(*key)
        return found

    def _effort(self, recall: float, k: int, share: float, filtered: bool) -> Effort:
        if recall > RECALL_MAX:
            return Effort(ALL, 0, ALL if self.kind == "hnsw" else 0)
        skipping = not filtered or share >= 0.5
        # Of the nearest rows around a query, only a share may be returned: k hits reach as far as k / share rows.
        reach = math.ceil(k / share) if filtered and skipping else k
        sizes = sorted({s.k for s in self.settings})
        above = next((size for size in sizes if size >= reach), None)
        size = above if above is not None else sizes[-1]
        able = [s for s in self.settings if s.k == size and s.recall >= recall and (skipping or s.probes == 0)]
        if not able:
            return Effort(ALL, 0, ALL if self.kind == "hnsw" else 0)
        best = min(able, key=lambda s: s.cost_us)
        if above is None:
            scale = reach / size
            return Effort(math.ceil(best.candidates * scale), best.probes and 0, math.ceil(best.ef * scale))
        return Effort(max(k, self._between(reach, recall, best)), best.probes, best.ef)

    def _between(self, k: int, recall: float, best: Setting) -> int:
        """Return the candidates for a k below the setting's own, on a straight line of logarithms."""
        below = [
            s
            for s in self.settings
            if s.k < k < best.k and s.recall >= recall and (s.probes, s.ef) == (best.probes, best.ef)
        ]
        if not below:
            return best.candidates
        size = max(s.k for s in below)
        low = min(s.candidates for s in below if s.k == size)
        part = math.log(k / size) / math.log(best.k / size)
        return min(best.candidates, math.ceil(low * (best.candidates / low) ** part))

    def effort_for(self, probes_or_ef: int, k: int) -> Effort:
        """Return the effort of an expert who names nprobe or efSearch."""
        candidates = self._effort(0.99, k, 1.0, True).candidates
        if self.kind == "hnsw":
            return Effort(max(k, probes_or_ef), 0, max(k, probes_or_ef))
        return Effort(candidates, min(probes_or_ef, self.lists), 0)

    def report(self) -> dict[str, Any]:
        """Return what was measured, as plain values."""
        return {"source": "measured" if self.measured else "table", "recall": dict(self.measured)}

    def to_plain(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        settings = [[s.k, s.candidates, s.probes, s.ef, s.recall, s.cost_us] for s in self.settings]
        return {"kind": self.kind, "lists": self.lists, "settings": settings, "measured": dict(self.measured)}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Curve:
        """Return the curve of `to_plain`."""
        settings = tuple(Setting(*values) for values in plain["settings"])
        return cls(plain["kind"], plain["lists"], settings, dict(plain["measured"]))


def table(index_kind: str, lists: int, dim: int) -> Curve:
    """Return the curve that an index starts with: no lists skipped, only the candidates chosen."""
    settings = [
        Setting(k, candidates, 0, max(candidates, 64) if index_kind == "hnsw" else 0, recall, float(candidates))
        for k, row in _CANDIDATES.items()
        for recall, candidates in zip(_TABLE_ASKS, row, strict=True)
    ]
    return Curve(index_kind, lists, tuple(settings))


def measure(index: Index, metric: Metric, vectors: Vectors, rows: Rows, *, threads: int, seed: int) -> Curve:
    """Return the curve of an index, measured on some of its own rows."""
    return table(index.kind, index.lists, vectors.data.shape[1])
