"""Whether a time names one state of a log: pure. The log's two clocks are asked, and where they disagree nobody is.

A restore to a time goes by commit times, which never go back. Each record has beside it what the wall clock said when
it was written. Around the time that is asked for the two may lie on different sides of it: the wall clock was set
wrong, or stood still with its machine, or the log was written with a clock that ran ahead, so that commit times wait
for it. Then the time names two states, and only an LSN says which is meant.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from ..config import CLOCKS_APART_S_MAX
from ..errors import InvalidArgument
from ..record import Header
from .plan import Step

__all__ = ["check_moment", "telling"]


def telling(later: Sequence[Step], end_us: int) -> list[Step]:
    """Return which of the ranges behind a time are to be looked into: the next, and the first of a standing clock.

    Commit times that stand still, as names of ranges tell, wait for a wall clock that is behind them.

    Parameters
    ----------
    later
        The ranges of the history that begin behind the time, in order.
    end_us
        The last commit time of the range before them.
    """
    found = list(later[:1])
    for i, step in enumerate(later):
        if step.range.first_us == step.range.last_us == end_us:
            return found if i == 0 else [*found, step]
        end_us = step.range.last_us
    return found


def check_moment(time_us: int, last: Header | None, behind: Iterable[Header]) -> None:
    """Refuse a time at which the clocks of a log disagree.

    Parameters
    ----------
    last
        The record that a restore to the time would end with; None where that is in a snapshot.
    behind
        Records that it would leave out, the first ones of them.

    Raises
    ------
    InvalidArgument
        By the wall clock the restore would end with another record. The details name both.
    """
    apart_us = int(CLOCKS_APART_S_MAX * 1e6)
    end = None if last is None else last.lsn
    if last is not None and last.wall_time_us > time_us + apart_us:
        raise _ambiguous(time_us, last, last.lsn)
    for header in behind:
        end = header.lsn - 1 if end is None else end
        if header.wall_time_us < time_us - apart_us:
            raise _ambiguous(time_us, header, end)


def _ambiguous(time_us: int, other: Header, lsn: int) -> InvalidArgument:
    said = ", ".join(
        f"{_text(us)} by {what}"
        for us, what in ((other.commit_time_us, "the log's time"), (other.wall_time_us, "the clock of its writer"))
    )
    return InvalidArgument(
        f"time: {_text(time_us)} names two states: record {other.lsn} was written at {said}",
        hint="restore to an LSN; by the log's time it is that in the details",
        details={"lsn": lsn, "ambiguous_lsn": other.lsn},
    )


def _text(time_us: int) -> str:
    return datetime.fromtimestamp(time_us / 1e6, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
