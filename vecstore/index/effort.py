"""How hard to search for a recall: tables for small segments, measured curves for large ones.

Not here: searching, and measuring (`curve`). A `Curve` is a plain value that is stored beside its index.

Where no list is skipped, all that is lost is lost to the codes, and that transfers from rows to other queries; what is
lost by skipping lists does not transfer so well, and gets wider margins. No I/O.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .base import Effort

__all__ = ["ASKS", "TABLE_ASKS", "Curve", "Setting", "table", "two_digits"]

ASKS = (0.90, 0.95, 0.99)
RECALL_MAX = 0.999
"""Above, every row is a candidate."""
KNOWN_MAX = 4_096
"""Answers that a curve remembers; then it begins anew."""
ALL = 1 << 30
SCALE_BEYOND = 1.5
"""Candidates for each hit, where k is larger than any that was measured."""
SHARE_SKIPPING_MIN = 0.95
"""Lists are skipped under a selection only where it allows at least this share of the rows: a filter that goes with the
query leaves the nearest lists empty, and the rows that are left lie in lists that no curve of whole data names."""
CANDIDATES_FILTERED_MIN = 96
CANDIDATES_FILTERED_LISTS_MIN = (192, 384)
"""The floors under a filter; for indexes of several lists two, up to a recall of 0.95 and above: they have more rows,
and looking at their codes costs so much more than comparing some hundred of them that there is no reason to be frugal.
"""
REACH_FILTERED = 10
"""A filter that goes with the query leaves fewer rows near it than its share says: so many times k at least count."""
SCALE_FILTERED = 1.5
SCALE_FEW = 2.5
"""Where a filter takes a topic out of its surroundings, its rows are harder to tell apart by their codes: the room for
filters that leave less than all, and less than a tenth, of the rows."""
TABLE_ASKS = (0.80, 0.90, 0.95, 0.97, 0.99, 0.999)
_CANDIDATES: Mapping[int, tuple[int, ...]] = {
    # k: candidates for the recall of TABLE_ASKS
    1: (32, 48, 64, 80, 96, 320),
    10: (40, 64, 96, 120, 192, 500),
    100: (280, 440, 700, 900, 1600, 3200),
    1000: (2600, 4000, 5600, 7000, 10000, 16000),
}


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
    """Answers, which do not change: every search asks. Bounded by `KNOWN_MAX`."""

    def effort(self, recall: float, k: int, *, share: float = 1.0, filtered: bool = False) -> Effort:
        """Return the least effort that gives this recall.

        Parameters
        ----------
        recall
            The share of the true k nearest to expect.
        k
            Hits wanted.
        share
            The share of the rows that a filter or deletions leave; above 0. Two digits of it count.
        filtered
            Whether a selection is given.
        """
        key = (recall, k, two_digits(share) if filtered else 1.0, filtered)
        found = self._known.get(key)
        if found is None:
            if len(self._known) >= KNOWN_MAX:
                self._known.clear()
            found = self._known[key] = self._effort(*key)
        return found

    def _effort(self, recall: float, k: int, share: float, filtered: bool) -> Effort:
        if recall > RECALL_MAX:
            return Effort(ALL, 0, ALL if self.kind == "hnsw" else 0)
        skipping = not filtered or share >= SHARE_SKIPPING_MIN
        reach = 2 * k if filtered and skipping else k
        able = [s for s in self.settings if s.recall >= recall and (skipping or s.probes == 0)]
        if not able:
            return Effort(ALL, 0, ALL if self.kind == "hnsw" else 0)
        above = min((s.k for s in able if s.k >= reach), default=None)
        size = max(s.k for s in able) if above is None else above
        best = min((s for s in able if s.k == size), key=lambda s: s.cost_us)
        if above is None:
            # Nothing was measured so far out: no list is skipped, and there are more candidates for each hit.
            sure = min((s for s in able if s.k == size and s.probes == 0), key=lambda s: s.cost_us, default=best)
            scale = SCALE_BEYOND * reach / size
            return Effort(math.ceil(sure.candidates * scale), 0, math.ceil(sure.ef * scale))
        candidates = self._between(reach, recall, best)
        if filtered and not skipping:
            candidates = self._filtered(recall, k, candidates, able, share)
        return Effort(max(k, candidates), best.probes, best.ef)

    def _filtered(self, recall: float, k: int, candidates: int, able: list[Setting], share: float) -> int:
        """Return the candidates under a filter.

        Where only a share of the rows may be returned, k of them reach as far out as k / share rows do without a
        filter, and are as hard to tell apart as those: as many candidates for each hit as any k up to there needs.
        """
        first: dict[int, int] = {}
        for s in able:
            if s.candidates < ALL:
                first[s.k] = min(s.candidates, first.get(s.k, ALL))
        reach = max(k / share, REACH_FILTERED * k)
        farthest = min((size for size in first if size >= reach), default=max(first, default=k))
        most = max((count / size for size, count in first.items() if k <= size <= farthest), default=1.0)
        scale = SCALE_FEW if share < 0.1 else SCALE_FILTERED
        least = CANDIDATES_FILTERED_LISTS_MIN[recall > 0.95] if self.lists > 1 else CANDIDATES_FILTERED_MIN
        return max(least, math.ceil(max(candidates, most * k) * scale))

    def _between(self, k: int, recall: float, best: Setting) -> int:
        """Return the candidates for a k below the setting's own, on a straight line of logarithms."""
        below = [s for s in self.settings if s.k < k < best.k and s.recall >= recall and s.probes == best.probes]
        if not below:
            return best.candidates
        size = max(s.k for s in below)
        low = min(s.candidates for s in below if s.k == size)
        part = math.log(k / size) / math.log(best.k / size)
        between: float = low * (best.candidates / low) ** part
        return min(best.candidates, math.ceil(between))

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


def two_digits(share: float) -> float:
    """Return a share to two significant digits, never 0: so few are told apart, and a few of many rows stay a share."""
    return float(f"{share:.2g}")


def table(index_kind: str, lists: int, dim: int) -> Curve:
    """Return the curve that an index starts with: no lists skipped, only the candidates chosen.

    Product codes of any data that clusters at all meet the asks with it; `measure` finds out what a data set needs.
    """
    settings: list[Setting] = []
    for k, row in _CANDIDATES.items():
        for recall, coded in zip(TABLE_ASKS, row, strict=True):
            # Whole vectors lose nothing, and a byte a dimension little.
            candidates = coded if index_kind == "ivf_pq" else k if index_kind == "ivf_flat" else k + k // 4 + 12
            ef = coded * 2 if index_kind == "hnsw" else 0
            settings.append(Setting(k, candidates, 0, ef, recall, candidates * dim / 4000 + ef))
    return Curve(index_kind, lists, tuple(settings))
