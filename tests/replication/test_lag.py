"""How far behind a standby is said to be: of one clock, growing in silence, and not fooled by a primary that rested."""

from __future__ import annotations

import pytest

from vecstore.replication.lag import SAMPLES_MAX, Lag, Position, StandbyLag, Trail

HOUR_US = 3_600_000_000


def at(lsn: int, commit_s: float = 0.0) -> Position:
    """Return a position at which every record had 100 bytes."""
    return Position(lsn, 100 * lsn, round(1e6 * commit_s))


def standby(lsn: int = 10, commit_s: float = 1000.0) -> StandbyLag:
    """Return the lag of a standby that opened at an LSN, at 50 s of its own clock."""
    return StandbyLag(at(lsn, commit_s), round(1e6 * commit_s), 50.0)


def test_a_standby_that_has_all_is_not_behind() -> None:
    """At the primary's tip, and connected, the lag is nothing, however long ago the last record was written."""
    lag = standby()
    lag.heard(at(10, 1000.0), 60.0)
    assert lag.lag(at(10, 1000.0), 60.9, is_connected=True) == Lag()


def test_lag_is_the_difference_of_commit_times() -> None:
    """Records, bytes and the primary's own time between what is applied and its tip."""
    lag = standby()
    lag.heard(at(30, 1004.0), 60.0)
    assert lag.lag(at(20, 1001.5), 60.0, is_connected=True) == Lag(10, 1000, 2.5)


def test_an_hour_of_rest_is_no_lag() -> None:
    """One record after an hour without any: the store was whole a moment ago, and is that moment behind."""
    lag = standby()
    lag.heard(at(10, 1000.0), 100.0)
    lag.heard(at(11, 1000.0 + 3600.0), 100.5)
    found = lag.lag(at(10, 1000.0), 100.7, is_connected=True)
    assert found.records == 1
    assert found.seconds == pytest.approx(0.7)


def test_lag_grows_in_silence() -> None:
    """What is not heard may be being written: disconnected, the lag in seconds goes on, from all the store had."""
    lag = standby()
    lag.heard(at(10, 1000.0), 60.0)
    for silence_s in (1.0, 5.0, 500.0):
        found = lag.lag(at(10, 1000.0), 60.0 + silence_s, is_connected=False)
        assert found == Lag(0, 0, silence_s)
    lag.heard(at(12, 1400.0), 600.0)
    behind = lag.lag(at(10, 1000.0), 610.0, is_connected=False)
    assert (behind.records, behind.bytes) == (2, 200)
    assert behind.seconds == pytest.approx(410.0)


def test_a_standby_that_opens_alone_says_how_long_it_was_away() -> None:
    """Before the primary is heard the wall clock bounds the lag, and it goes on from there."""
    lag = StandbyLag(at(10, 1000.0), round(1e6 * 1030.0), 5.0)
    assert lag.lag(at(10, 1000.0), 7.0, is_connected=False) == Lag(0, 0, 32.0)
    lag.heard(at(10, 1000.0), 8.0)
    assert lag.lag(at(10, 1000.0), 8.1, is_connected=True) == Lag()


def test_catching_up_is_counted_from_what_is_applied() -> None:
    """Under steady writing with the standby two seconds behind, it is two seconds at every moment."""
    lag = standby(0, 1000.0)
    for tick in range(1, 200):
        now_s = 60.0 + tick
        lag.heard(at(100 * tick, 1000.0 + tick), now_s)
        if tick > 3:
            found = lag.lag(at(100 * (tick - 2), 1000.0 + tick - 2), now_s, is_connected=True)
            assert found == Lag(200, 20_000, 2.0)


def test_a_clock_that_jumps_moves_the_lag_no_further_than_time_went() -> None:
    """Commit times a century apart, from a wall clock that jumped: the standby's own clock is the bound."""
    lag = standby()
    lag.heard(at(10, 1000.0), 60.0)
    lag.heard(at(11, 1000.0 + 3e9), 61.0)
    assert lag.lag(at(10, 1000.0), 62.0, is_connected=True).seconds == pytest.approx(2.0)


def test_a_tip_that_is_heard_late_does_not_go_back() -> None:
    """Messages that overtake each other do not make a standby look ahead of its primary."""
    lag = standby()
    lag.heard(at(30, 1004.0), 60.0)
    lag.heard(at(25, 1003.0), 60.1)
    assert lag.seen_lsn == 30
    assert lag.lag(at(25, 1003.0), 60.1, is_connected=True).records == 5


def test_another_primary_may_have_less() -> None:
    """After a failover the old primary's tip is not waited for."""
    lag = standby()
    lag.heard(at(30, 1004.0), 60.0)
    lag.begin_history()
    lag.heard(at(20, 1005.0), 61.0)
    assert lag.lag(at(20, 1005.0), 61.0, is_connected=True) == Lag()


def test_a_trail_tells_the_age_of_the_oldest_record_that_is_missing() -> None:
    """A slot at 15 lacks what was written since the tip went beyond it."""
    trail = Trail()
    for lsn in range(10, 40, 10):
        trail.note(at(lsn), float(lsn))
    assert trail.lag(30, 99.0) == Lag()
    assert trail.lag(15, 99.0) == Lag(15, 2000, 79.0)
    assert trail.lag(15, 99.0, log_bytes=1500) == Lag(15, 1500, 79.0)
    assert trail.lag(5, 99.0).seconds == 89.0
    trail.restart()
    assert trail.lag(5, 99.0) == Lag()


def test_a_long_trail_is_bounded_and_nearly_right() -> None:
    """A trail of a hundred thousand moves keeps few samples; its ages are right within some hundredths."""
    trail = Trail()
    for lsn in range(1, 100_001):
        trail.note(at(lsn), lsn / 1000)
    assert len(trail._lsns) <= SAMPLES_MAX
    for lsn in (10, 1_000, 50_000, 98_000, 99_999):
        assert trail.lag(lsn, 100.0).seconds == pytest.approx(100.0 - (lsn + 1) / 1000, rel=0.03)


def test_a_standby_that_is_far_behind_remembers_little() -> None:
    """Tips that are heard and not reached are bounded too, and the lag is still told."""
    lag = standby(0, 1000.0)
    for tick in range(1, 20_001):
        lag.heard(at(tick, 1000.0 + tick / 100), 60.0 + tick / 100)
    assert len(lag._heard_at) <= SAMPLES_MAX
    found = lag.lag(at(10_000, 1100.0), 260.0, is_connected=True)
    assert found.records == 10_000
    assert found.seconds == pytest.approx(100.0, rel=0.03)
