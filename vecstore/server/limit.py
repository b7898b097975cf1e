"""How many calls may run at a time, by how long they take.

The limit follows Netflix's gradient (concurrency-limits, `GradientLimit`): each window, limit x gradient + headroom,
where the gradient is the time without load over the time now, between 0.5 and 1. Three differences: times are taken
relative to their own kind of call, so that a change of mix is not taken for congestion; the time without load is the
average seen while no more run than the floor of the limit, instead of a minimum, which one lucky call would set; and to
see it under steady load the limit is lowered to the floor for one window in a hundred, as BBR does to see the round
trip time (Cardwell et al., ACM Queue 14(5), 2016). The floor is one call a core: searches need no more.

Pure: times are handed in. Not thread-safe.
"""

from __future__ import annotations

from math import sqrt

__all__ = ["Limit"]

WINDOW_S, WINDOW_SAMPLES_MIN = 0.1, 10
PROBE_WINDOWS = 100


class Limit:
    """How many may run at a time: between a floor and a ceiling, by measured latency.

    Parameters
    ----------
    floor, ceiling
        Bounds. Times seen while no more than `floor` ran count as those without load.
    """

    TOLERANCE = 1.2
    SMOOTHING = 0.5

    def __init__(self, floor: int, ceiling: int) -> None:
        self.floor = floor
        self.ceiling = max(floor, ceiling)
        self.value = float(floor)
        self.places = floor
        self.quiet_s: dict[str, float] = {}
        self.mean_s = 0.0
        self._slowness, self._samples, self._busy_max, self._window_end_s = 0.0, 0, 0, 0.0
        self._windows, self._probing = 0, False

    def sample(self, name: str, service_s: float, running: int, now_s: float) -> None:
        """Note how long a call took, and how many ran, it among them, when it ended."""
        quiet_s = self.quiet_s.get(name)
        if quiet_s is None:
            quiet_s = self.quiet_s[name] = service_s
        elif running <= self.floor:
            quiet_s = self.quiet_s[name] = quiet_s + 0.05 * (service_s - quiet_s)
        elif service_s < quiet_s:
            # Less than without load: what was taken for that was not.
            quiet_s = self.quiet_s[name] = quiet_s + 0.2 * (service_s - quiet_s)
        self.mean_s += (0.05 if self.mean_s else 1.0) * (service_s - self.mean_s)
        self._slowness += service_s / quiet_s if quiet_s > 0 else 1.0
        self._samples += 1
        if running > self._busy_max:
            self._busy_max = running
        if now_s >= self._window_end_s and self._samples >= WINDOW_SAMPLES_MIN:
            self._end_window(now_s)

    def _end_window(self, now_s: float) -> None:
        slowness, busy = self._slowness / self._samples, self._busy_max
        self._slowness, self._samples, self._busy_max, self._window_end_s = 0.0, 0, 0, now_s + WINDOW_S
        if self._probing:
            self._probing = False
            self._set(self.value)
            return
        gradient = max(0.5, min(1.0, self.TOLERANCE / slowness))
        # What was not used says nothing for more; what is slow speaks for less in any case.
        headroom = sqrt(self.value) / 2 if busy >= self.places else 0.0
        wanted = self.value * gradient + headroom
        self._set(self.value + self.SMOOTHING * (wanted - self.value))
        if self.places > self.floor:
            self._windows += 1
            if self._windows >= PROBE_WINDOWS:
                self._windows, self._probing = 0, True
                self.places = self.floor

    def _set(self, value: float) -> None:
        self.value = min(float(self.ceiling), max(float(self.floor), value))
        self.places = int(self.value)
