"""Snapshots on a schedule: a thread that takes one every so often, and prunes what is not to be kept.

The first is taken a whole interval after the server began; one that fails is logged and taken again after a tenth of
it. Times are monotonic: a wall clock that jumps moves nothing.
"""

from __future__ import annotations

import re
import threading
from typing import Annotated

import msgspec
from msgspec import Meta

from ..api import Database
from ..clock import SystemClock
from ..errors import InvalidArgument, VecstoreError
from . import log

__all__ = ["Schedule", "SnapshotSettings"]

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_INTERVAL = r"^[1-9][0-9]{0,5}[smhd]$"


class SnapshotSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Snapshots that the server takes by itself.

    Attributes
    ----------
    repository
        Where they go: a path, or a URL of s3, gs or az. Empty: none are taken.
    every
        How often, as in 90s, 30m, 6h or 1d.
    keep_last
        After each snapshot all but so many are pruned, with what only they need; 0 for no such rule.
    keep_days
        Every point in time of so many days stays within reach; 0 for no such rule. Without a rule all is kept.
    """

    repository: str = ""
    every: Annotated[str, Meta(pattern=_INTERVAL)] = "6h"
    keep_last: Annotated[int, Meta(ge=0)] = 0
    keep_days: Annotated[float, Meta(ge=0)] = 0.0

    def interval_s(self) -> float:
        """Return `every` in seconds."""
        if re.match(_INTERVAL, self.every) is None:
            raise InvalidArgument(f"snapshot.every: {self.every!r} given; allowed is as in 90s, 30m, 6h or 1d")
        return float(int(self.every[:-1]) * _UNITS_S[self.every[-1]])


class Schedule:
    """Takes the snapshots of one open store, until it is closed."""

    def __init__(self, settings: SnapshotSettings, database: Database) -> None:
        self._settings, self._database = settings, database
        self._interval_s = settings.interval_s()
        self._log = log.logger()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="vecstore-schedule", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """Stop; a snapshot under way is finished."""
        self._stop.set()
        self._thread.join()

    def _loop(self) -> None:
        wait_s = self._interval_s
        while not self._stop.wait(wait_s):
            wait_s = self._interval_s if self.run() else self._interval_s / 10

    def run(self) -> bool:
        """Take a snapshot now, and prune; return whether both went well."""
        settings = self._settings
        try:
            made = self._database.snapshot(settings.repository)
            self._log.info("snapshot taken", id=made.id, lsn=made.lsn, bytes_new=made.bytes_new)
            if settings.keep_last or settings.keep_days:
                self._prune()
        except (VecstoreError, OSError) as exc:
            self._log.error("snapshot failed", repository=settings.repository, problem=str(exc))
            return False
        return True

    def _prune(self) -> None:
        from ..backup.prune import prune
        from ..backup.repository import Repository

        settings = self._settings
        gone = prune(
            Repository(settings.repository),
            keep_last=settings.keep_last or None,
            keep_days=settings.keep_days or None,
            now_us=SystemClock().wall_us(),
        )
        self._log.info("repository pruned", snapshots=len(gone.snapshots), ranges=len(gone.ranges), bytes=gone.bytes)
