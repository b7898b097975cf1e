"""How far a standby is behind: in records, bytes and seconds, each of one clock.

Two parties ask. A **standby** (`StandbyLag`) knows what it has applied and what its primary last said of its own tip:
both commit times are of the primary's clock, and so is their difference. Nothing was committed for a while before most
records, though, so that difference alone would call a store an hour behind because of one record that has just come
after an hour of rest: hence the time since it is known that all was here, of the standby's own monotonic clock, is the
other bound, and the smaller one counts. Silence adds to it: what is not heard may be being written. A **primary**
(`Trail`) notes when its tip moved, so it knows how old the oldest record is that a slot has not got.

Pure: the time is given, nothing is read or sent. Not thread-safe, but for the reading of a `Lag`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

__all__ = ["Lag", "Pace", "Position", "StandbyLag", "Trail"]

SAMPLES_MAX = 4096
"""Of a trail. Beyond, samples go that stand nearer to each other than a hundredth of their age."""
APART_SHARE = 0.01
PACE_S, PACE_APART_S = 10.0, 0.2
"""A pace is that of so many seconds, from samples that are so far apart."""


class Position(NamedTuple):
    """Where a log ends, or how much of it was applied.

    Attributes
    ----------
    log_bytes
        Bytes of all records up to there.
    commit_us
        Commit time of the last of them, of the primary's clock; 0 where it is not known.
    """

    lsn: int
    log_bytes: int
    commit_us: int = 0


class Lag(msgspec.Struct, frozen=True):
    """How far behind: what a failover would lose if the primary were gone now, as far as it is known.

    Attributes
    ----------
    seconds
        Age of the oldest record that is not here; or, in silence, for how long nobody knows that all is here.
    """

    records: int = 0
    bytes: int = 0
    seconds: float = 0.0


class Trail:
    """When a tip came to where: one store's own, by its own clock."""

    def __init__(self) -> None:
        self._lsns: list[int] = []
        self._samples: list[tuple[Position, float]] = []

    def note(self, tip: Position, now_s: float) -> None:
        """Say where the tip is. Cheap enough for every sync."""
        if self._lsns and tip.lsn <= self._lsns[-1]:
            return
        self._lsns.append(tip.lsn)
        self._samples.append((tip, now_s))
        if len(self._lsns) > SAMPLES_MAX:
            kept = _thinned([at_s for _, at_s in self._samples], now_s)
            self._lsns = [self._lsns[i] for i in kept]
            self._samples = [self._samples[i] for i in kept]

    def restart(self) -> None:
        """Forget all: the log was replaced, or went back."""
        self._lsns, self._samples = [], []

    def lag(self, lsn: int, now_s: float, log_bytes: int | None = None) -> Lag:
        """Return how far somebody is behind who has all records up to an LSN.

        Parameters
        ----------
        log_bytes
            Bytes of the log up to there, where the caller knows; else the trail's nearest sample before it tells.
        """
        if not self._lsns or lsn >= self._lsns[-1]:
            return Lag()
        tip = self._samples[-1][0]
        later = bisect_right(self._lsns, lsn)
        if log_bytes is None:
            log_bytes = self._samples[max(0, later - 1)][0].log_bytes
        since_s = self._samples[later][1]
        return Lag(tip.lsn - lsn, max(0, tip.log_bytes - log_bytes), max(0.0, now_s - since_s))


class Pace:
    """How fast somebody's place in a log moved of late."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()

    def note(self, lsn: int, now_s: float) -> None:
        """Say where it is. Cheap enough for every acknowledgement."""
        samples = self._samples
        if not samples or now_s - samples[-1][0] >= PACE_APART_S:
            samples.append((now_s, lsn))
        while len(samples) > 2 and now_s - samples[1][0] > PACE_S:
            samples.popleft()

    def records_per_s(self, lsn: int, now_s: float) -> float:
        """Return how many records it moved in a second, up to where it is now; 0 where it did not, or nothing tells."""
        since_s, first = self._samples[0] if self._samples else (now_s, lsn)
        return max(0, lsn - first) / max(now_s - since_s, PACE_APART_S)


class StandbyLag:
    """How far a standby is behind the primary that it hears.

    Parameters
    ----------
    applied
        What it holds as it opens.
    wall_us
        Wall time then. Until the primary is heard nothing else tells for how long this store has been away; its clock
        may differ from the primary's, and the primary may have rested, so this is the most that it can be.
    now_s
        Monotonic time then.
    """

    def __init__(self, applied: Position, wall_us: int, now_s: float) -> None:
        self._away_s = max(0.0, (wall_us - applied.commit_us) / 1e6) if applied.commit_us else 0.0
        self._opened_s = now_s
        self._heard: tuple[Position, float] | None = None
        self._heard_at: list[tuple[int, float]] = []
        self._whole_s: float | None = None

    @property
    def seen_lsn(self) -> int:
        """The highest LSN that the primary has said to have."""
        return 0 if self._heard is None else self._heard[0].lsn

    @property
    def heard_s(self) -> float | None:
        """When the primary last said where its log ends; None for never."""
        return None if self._heard is None else self._heard[1]

    def heard(self, tip: Position, now_s: float) -> None:
        """Take what the primary says of its durable tip; `now_s` is when it arrived."""
        if self._heard is not None and tip.lsn < self._heard[0].lsn:
            tip = self._heard[0]
        self._heard = (tip, now_s)
        if self._heard_at and self._heard_at[-1][0] == tip.lsn:
            self._heard_at[-1] = (tip.lsn, now_s)
            return
        self._heard_at.append((tip.lsn, now_s))
        if len(self._heard_at) > SAMPLES_MAX:
            self._heard_at = [self._heard_at[i] for i in _thinned([at_s for _, at_s in self._heard_at], now_s)]

    def begin_history(self) -> None:
        """Forget what was heard: the primary is another one, and may have less."""
        self._heard, self._heard_at = None, []

    def lag(self, applied: Position, now_s: float, *, is_connected: bool) -> Lag:
        """Return how far behind what is applied here is."""
        self._note_whole(applied.lsn)
        if self._heard is None:
            return Lag(0, 0, self._away_s + now_s - self._opened_s)
        tip, heard_s = self._heard
        records, missing = max(0, tip.lsn - applied.lsn), max(0, tip.log_bytes - applied.log_bytes)
        if records == 0 and is_connected:
            return Lag()
        silence_s = 0.0 if is_connected else now_s - heard_s
        bounds = [] if self._whole_s is None else [now_s - self._whole_s]
        if records == 0:
            bounds.append(silence_s)
        elif tip.commit_us and applied.commit_us:
            bounds.append((tip.commit_us - applied.commit_us) / 1e6 + silence_s)
        return Lag(records, missing if records else 0, max(0.0, min(bounds, default=now_s - heard_s)))

    def _note_whole(self, lsn: int) -> None:
        """Remember the last moment of which it is known that all was here which the primary had."""
        at = bisect_right(self._heard_at, (lsn, float("inf")))
        if at:
            self._whole_s = self._heard_at[at - 1][1]
            del self._heard_at[: at - 1]


def _thinned(times_s: Sequence[float], now_s: float) -> list[int]:
    """Return which samples stay: the first and the newest, and of those between the ones that stand apart."""
    kept = [0]
    for i in range(1, len(times_s) - 1):
        # The next one decides: dropping this one must leave no gap that is long for its age.
        if times_s[i + 1] - times_s[kept[-1]] > APART_SHARE * (now_s - times_s[i]):
            kept.append(i)
    return [*kept[-SAMPLES_MAX // 2 :], len(times_s) - 1]
