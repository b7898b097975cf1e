"""A time at which a log's two clocks disagree names no state: it is refused, and all other times are not."""

from __future__ import annotations

from pathlib import Path

import pytest

import vecstore
from tests.backup.story import CONFIG, await_archive
from vecstore.backup.layout import Branch, RangeName
from vecstore.backup.moment import check_moment, telling
from vecstore.backup.plan import Step, Target
from vecstore.backup.repository import Repository
from vecstore.backup.restore import restore
from vecstore.clock import SystemClock
from vecstore.errors import InvalidArgument
from vecstore.record import NO_REQUEST, Header, Kind

SECOND_US, HOUR_US = 1_000_000, 3_600_000_000


def header(lsn: int, commit_s: float, wall_s: float) -> Header:
    """Return the header of a record that was written at a time of the log and one of the wall."""
    times_us = (int(commit_s * SECOND_US), int(wall_s * SECOND_US))
    return Header(lsn, Kind.UPSERT, 1, NO_REQUEST, *times_us, 1, 1, 0, 1)


@pytest.mark.parametrize(
    ("last", "behind"),
    [
        (None, []),
        (header(5, 1_000, 1_000), []),
        (header(5, 1_000, 1_059), [header(6, 1_001, 942)]),
        (header(5, 1_000, 0), [header(6, 9_000, 9_000)]),
        (None, [header(6, 1_001, 90_000)]),
    ],
)
def test_clocks_that_agree_enough(last: Header | None, behind: list[Header]) -> None:
    """A minute apart, or on the same side of the time: it names one state."""
    check_moment(1_000 * SECOND_US, last, behind)


@pytest.mark.parametrize(
    ("last", "behind", "ambiguous"),
    [
        (header(5, 1_000, 1_061), [], 5),
        (header(5, 1_000, 1_000), [header(6, 1_001, 1_001), header(7, 1_001, 939)], 7),
        (None, [header(6, 90_000, 90_000), header(7, 90_000, 900)], 7),
    ],
)
def test_clocks_that_disagree(last: Header | None, behind: list[Header], ambiguous: int) -> None:
    """By one clock a record is before the time, by the other behind it: the error names both LSNs."""
    with pytest.raises(InvalidArgument, match="names two states") as caught:
        check_moment(1_000 * SECOND_US, last, behind)
    assert caught.value.details == {"lsn": 5, "ambiguous_lsn": ambiguous}


def test_ranges_that_tell() -> None:
    """The next one, and the first in which the log's time stood still, wherever that is."""

    def step(first: int, first_us: int, last_us: int) -> Step:
        return Step(Branch(1, "a"), RangeName(first, first + 9, first_us, last_us, "0" * 16), first + 9)

    later = [step(10, 2, 3), step(20, 4, 9), step(30, 9, 9), step(40, 9, 9)]
    assert telling(later, 1) == [later[0], later[2]]
    assert telling(later[:2], 1) == later[:1]
    assert telling(later[2:], 9) == later[2:3]
    assert telling([], 9) == []


def test_a_restore_to_a_time_of_a_clock_that_was_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start with a clock that is hours ahead: the log's time waits there, and times meanwhile are refused."""
    store, repository, true_us = str(tmp_path / "store"), str(tmp_path / "repository"), SystemClock.wall_us
    times_us, lsns = [], []
    for number, ahead_us in enumerate((0, 5 * HOUR_US, HOUR_US, 2 * HOUR_US)):
        monkeypatch.setattr(SystemClock, "wall_us", lambda self, ahead_us=ahead_us: true_us(self) + ahead_us)
        with vecstore.open(store, archive=repository, config=CONFIG) as database:
            database.create_collection("docs", 4, exist_ok=True).upsert([number], [[1, 2, 3, 4]])
            await_archive(database)
            times_us.append(true_us(SystemClock()) + ahead_us)
            lsns.append(database.status()["lsn"])
    new = str(tmp_path / "new")
    for time_us in (times_us[2], times_us[3]):
        with pytest.raises(InvalidArgument, match="names two states") as caught:
            restore(Repository(repository), new, Target(time_us=time_us + 120 * SECOND_US))
        assert caught.value.details == {"lsn": lsns[0], "ambiguous_lsn": lsns[1] + 1}
    # Before the clock went wrong, and once it was true again, the log's time is a time.
    assert restore(Repository(repository), new, Target(time_us=times_us[0] + SECOND_US)).lsn == lsns[0]
    after = str(tmp_path / "after")
    assert restore(Repository(repository), after, Target(time_us=times_us[1] + HOUR_US)).lsn == lsns[-1]
