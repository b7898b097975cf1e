"""What a drill makes of what happened: RPO, RTO, limits, differences, and what it must not claim to have compared."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from vecstore.errors import InvalidArgument
from vecstore.replication.drill import (
    HISTORY_MAX,
    Answer,
    Hit,
    Plan,
    Query,
    Rehearsal,
    Seen,
    Step,
    judge,
    line,
    read_history,
    read_queries,
)
from vecstore.replication.lag import Lag

HITS = (Hit(1, 0.1), Hit(2, 0.2), Hit(3, 0.3))
QUERY = Query("docs", (1.0, 0.0), 3)
SEEN = Seen(100, 100, "c0", {"docs": "d0"})


def rehearsal(**changes: Any) -> Rehearsal:
    """Return what happened in a drill in which all went well."""
    plain = Rehearsal(
        began="2026-01-01T00:00:00Z",
        began_s=1767225600.0,
        store_id="b",
        region="west",
        durable_lsn=100,
        lag=Lag(),
        clone=SEEN,
        steps=(
            Step("clone", 0.5),
            Step("start", 3.0),
            Step("promote", 1.0),
            Step("first query", 0.25),
            Step("first write", 0.125),
        ),
        answers=(Answer(101, HITS),),
        written_lsn=103,
    )
    return msgspec.structs.replace(plain, **changes)


def plan(**changes: Any) -> Plan:
    """Return a plan of one query that the primary has answered."""
    return msgspec.structs.replace(Plan((QUERY,), SEEN, (Answer(100, HITS),)), **changes)


def test_a_drill_in_which_all_agrees_passes() -> None:
    """Digest and answer were compared, nothing was missing, and RTO counts from the word "go"."""
    report = judge(plan(), rehearsal())
    assert report.passed
    assert report.problems == report.notes == ()
    assert (report.compared_digests, report.compared_answers) == (1, 1)
    assert report.rpo == Lag()
    assert report.rto_s == 1.375


def test_the_start_counts_where_the_standby_was_stopped() -> None:
    """Who must first start a server waits for that, too."""
    assert judge(plan(), rehearsal(was_running=False)).rto_s == 4.375


def test_what_was_not_there_is_the_recovery_point() -> None:
    """Records by the primary's word, bytes and seconds by the standby's."""
    behind = rehearsal(durable_lsn=90, lag=Lag(7, 900, 1.5))
    assert judge(plan(), behind).rpo == Lag(10, 900, 1.5)
    assert judge(plan(primary=None, expected=()), behind).rpo == Lag(7, 900, 1.5)


@pytest.mark.parametrize(("limits", "passed"), [((2.0, 2.0), True), ((1.0, 2.0), False), ((2.0, 1.0), False)])
def test_limits_decide(limits: tuple[float, float], passed: bool) -> None:
    """A drill fails where it lost or took more than allowed."""
    behind = rehearsal(durable_lsn=90, lag=Lag(10, 900, 1.5))
    assert judge(plan(rpo_max_s=limits[0], rto_max_s=limits[1]), behind).passed is passed


def test_differences_are_named() -> None:
    """Another digest, another chain, other points: each is a problem that says where."""
    other = rehearsal(clone=Seen(100, 100, "c1", {"docs": "d1", "more": "d2"}), answers=(Answer(101, HITS[:2]),))
    report = judge(plan(), other)
    assert not report.passed
    text = "\n".join(report.problems)
    assert "chain c1" in text
    assert "'docs' differs" in text
    assert "'more' differs" in text
    assert "query 1" in text


def test_what_is_not_at_the_same_lsn_is_not_compared() -> None:
    """A primary that moved on proves nothing about the clone, and the report says so instead of passing silently."""
    report = judge(plan(primary=Seen(120, 120, "c9", {"docs": "d9"}), expected=(Answer(121, ()),)), rehearsal())
    assert report.passed
    assert (report.compared_digests, report.compared_answers) == (0, 0)
    assert len(report.notes) == 2


def test_damage_and_missing_answers_fail() -> None:
    """Bytes of the clone that are not what was written, and queries without an answer."""
    assert judge(plan(), rehearsal(damaged=("docs: 5",))).problems == ("damaged: docs: 5",)
    assert not judge(plan(), rehearsal(answers=())).passed
    cut_short = judge(plan(rto_max_s=0.1), rehearsal(answers=(), problem="start: no", steps=(Step("clone", 0.5),)))
    assert cut_short.problems == ("start: no",)
    assert cut_short.rto_s is None


def test_equal_scores_may_come_in_any_order() -> None:
    """Points as far away as the last hit may be others; nearer ones may not."""
    tied = (Hit(1, 0.1), Hit(9, 0.3), Hit(3, 0.3))
    other = (Hit(1, 0.1), Hit(8, 0.3), Hit(9, 0.3000001))
    assert judge(plan(expected=(Answer(100, tied),)), rehearsal(answers=(Answer(101, other),))).passed
    nearer = (Hit(2, 0.1), Hit(9, 0.3), Hit(3, 0.3))
    assert not judge(plan(expected=(Answer(100, tied),)), rehearsal(answers=(Answer(101, nearer),))).passed


def test_queries_are_read_line_by_line() -> None:
    """Empty lines do not count; a line that is wrong is named."""
    text = (
        '{"collection": "docs", "vector": [1, 2.5]}\n\n{"collection": "d", "vector": [0], "k": 3, "filter": {"a": 1}}\n'
    )
    assert read_queries(text) == (Query("docs", (1.0, 2.5)), Query("d", (0.0,), 3, {"a": 1}))
    for wrong in ('{"collection": "docs"}', "nothing", '{"collection": "d", "vector": [1], "j": 2}'):
        with pytest.raises(InvalidArgument, match="line 2"):
            read_queries(f"{text.splitlines()[0]}\n{wrong}")
    with pytest.raises(InvalidArgument, match="1001 given"):
        read_queries(text.splitlines()[0] + ("\n" + text.splitlines()[0]) * 1000)


def test_a_store_remembers_its_drills() -> None:
    """Lines are read again, oldest first; one that was cut short is left out, and very old ones go."""
    good, bad = judge(plan(), rehearsal()), judge(plan(), rehearsal(answers=()))
    lines = [line(bad), line(good), line(good)[:40]]
    found = read_history(lines)
    assert [one["passed"] for one in found] == [False, True]
    assert (found[1]["rto_s"], found[1]["rpo_records"], found[1]["time_s"]) == (1.375, 0, 1767225600.0)
    assert len(read_history([line(good)] * (HISTORY_MAX + 5))) == HISTORY_MAX


def test_plan_and_report_travel_as_json() -> None:
    """What is asked and what is answered survive the wire."""
    asked = plan(rpo_max_s=1.0)
    assert msgspec.json.decode(msgspec.json.encode(asked), type=Plan) == asked
    report = judge(asked, rehearsal())
    assert msgspec.json.decode(msgspec.json.encode(report), type=type(report)) == report
