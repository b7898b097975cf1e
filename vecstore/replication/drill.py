"""A drill's plan and report: what is asked of a clone of a standby, and what is made of its answers. Pure.

A drill rehearses a failover on a clone that nobody else sees. Whoever asks for it brings a `Plan`: the queries, what
the primary answered to them and at which LSN, and the limits. What happened on the standby's machine is a `Rehearsal`.
`judge` makes the `Report` of the two; a line of it is kept in the store's folder, and shown as metrics.

What a drill measures is not a disaster: nobody had to notice, to decide, or to be woken, and the machine was well.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from ..errors import InvalidArgument
from .lag import Lag

__all__ = [
    "Answer",
    "Hit",
    "Plan",
    "Query",
    "Rehearsal",
    "Report",
    "Seen",
    "Step",
    "judge",
    "line",
    "read_history",
    "read_queries",
]

QUERIES_MAX = 1_000
HISTORY_MAX = 1_000
"""Lines that are kept of the drills of a store; the oldest go."""
GO = ("start", "promote", "first query", "first write")
"""The steps between the word "go" and a store that answers and takes writes. A standby that runs needs no start."""
SCORE_TOLERANCE = 1e-5


class Query(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One query, always answered exactly: what an index leaves out would look like a difference."""

    collection: str
    vector: tuple[float, ...]
    k: Annotated[int, Meta(ge=1, le=10_000)] = 10
    filter: dict[str, Any] | None = None


class Hit(msgspec.Struct, frozen=True, array_like=True):
    """A point that was found."""

    id: int | str
    score: float


class Answer(msgspec.Struct, frozen=True):
    """What was found, in the state of an LSN."""

    lsn: int
    hits: tuple[Hit, ...]


class Seen(msgspec.Struct, frozen=True):
    """What a store said of itself: where it is, and what it holds there.

    Attributes
    ----------
    chain
        Hex.
    digests
        Of each collection by name, hex.
    """

    lsn: int
    durable_lsn: int
    chain: str
    digests: dict[str, str] = {}


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a drill is to do, and what it is held against.

    Attributes
    ----------
    primary
        What the primary said of itself when the drill began; None where it was not asked or did not answer.
    expected
        The primary's answers to the queries, in their order; empty where it was not asked.
    rpo_max_s, rto_max_s
        Limits; None for none.
    meet_s
        The clone is taken once the standby has come to where the primary was, or after so long.
    """

    queries: tuple[Query, ...] = ()
    primary: Seen | None = None
    expected: tuple[Answer, ...] = ()
    rpo_max_s: float | None = None
    rto_max_s: float | None = None
    meet_s: Annotated[float, Meta(ge=0, le=600)] = 5.0


class Step(msgspec.Struct, frozen=True):
    """One thing that was done, and how long it took."""

    name: str
    seconds: float


class Rehearsal(msgspec.Struct, frozen=True):
    """What happened on the standby's machine.

    Attributes
    ----------
    began
        RFC 3339, by the standby's wall clock.
    durable_lsn
        Of the standby when it began.
    lag
        How far it was behind then, as it knew.
    clone
        What the clone holds: the chain is the standby's, the digests were recomputed from the clone's bytes.
    damaged
        Places of the clone whose bytes are not what was written.
    answers
        To the plan's queries, by the promoted clone.
    problem
        Why it was not played to its end; empty where it was.
    written_lsn
        Of the first accepted write, in the clone's own history.
    was_running
        Whether the standby was being served; else its start counts.
    """

    began: str
    began_s: float
    store_id: str
    region: str
    durable_lsn: int
    lag: Lag
    clone: Seen
    steps: tuple[Step, ...]
    answers: tuple[Answer, ...] = ()
    damaged: tuple[str, ...] = ()
    problem: str = ""
    written_lsn: int = 0
    was_running: bool = True
    clone_bytes: int = 0


class Report(msgspec.Struct, frozen=True):
    """What a drill found.

    Attributes
    ----------
    rpo
        Records, bytes and seconds of the primary that were not on the standby when the drill began.
    rto_s
        From "go" to the first answered query and the first accepted write; None where it did not come so far.
    compared_digests, compared_answers
        How many could be compared with the primary's at the same LSN; of a primary that is being written to, none may.
    problems
        Why it did not pass: limits, differences, damage. Empty where it did.
    notes
        What could not be compared, and why.
    """

    passed: bool
    began: str
    store_id: str
    region: str
    lsn: int
    rpo: Lag
    rto_s: float | None
    steps: tuple[Step, ...]
    compared_digests: int
    compared_answers: int
    queries: int
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    clone_bytes: int
    began_s: float


def judge(plan: Plan, rehearsal: Rehearsal) -> Report:
    """Hold what happened against what was planned."""
    rpo = _rpo(plan.primary, rehearsal)
    rto_s = _rto_s(rehearsal)
    problems = [f"damaged: {place}" for place in rehearsal.damaged]
    problems += [rehearsal.problem] if rehearsal.problem else []
    notes: list[str] = []
    digests = _compare_digests(plan.primary, rehearsal.clone, problems, notes)
    answers = _compare_answers(plan, rehearsal, problems, notes)
    if plan.rpo_max_s is not None and rpo.seconds > plan.rpo_max_s:
        problems.append(f"RPO: {rpo.seconds:.3f} s, at most {plan.rpo_max_s:g} s are allowed")
    if plan.rto_max_s is not None and rto_s is not None and rto_s > plan.rto_max_s:
        problems.append(f"RTO: {rto_s:.3f} s, at most {plan.rto_max_s:g} s are allowed")
    return Report(
        passed=not problems,
        began=rehearsal.began,
        store_id=rehearsal.store_id,
        region=rehearsal.region,
        lsn=rehearsal.clone.lsn,
        rpo=rpo,
        rto_s=rto_s,
        steps=rehearsal.steps,
        compared_digests=digests,
        compared_answers=answers,
        queries=len(plan.queries),
        problems=tuple(problems),
        notes=tuple(notes),
        clone_bytes=rehearsal.clone_bytes,
        began_s=rehearsal.began_s,
    )


def _rpo(primary: Seen | None, rehearsal: Rehearsal) -> Lag:
    """Return what was not there: the standby's own word, and the primary's where it knows of more, or of nothing."""
    lag = rehearsal.lag
    if primary is None:
        return lag
    records = max(0, primary.durable_lsn - rehearsal.durable_lsn)
    if records == 0:
        return Lag()
    return Lag(max(records, lag.records), lag.bytes, lag.seconds)


def _rto_s(rehearsal: Rehearsal) -> float | None:
    counted = GO[1:] if rehearsal.was_running else GO
    seconds = {step.name: step.seconds for step in rehearsal.steps}
    return sum(seconds[name] for name in counted) if seconds.keys() >= set(counted) else None


def _compare_digests(primary: Seen | None, clone: Seen, problems: list[str], notes: list[str]) -> int:
    if primary is None:
        notes.append("digests were not compared: the primary was not asked, or did not answer")
        return 0
    if primary.lsn != clone.lsn:
        notes.append(f"digests were not compared: the primary was at LSN {primary.lsn}, the clone at {clone.lsn}")
        return 0
    if primary.chain != clone.chain:
        problems.append(f"the histories differ at LSN {clone.lsn}: chain {clone.chain}, the primary's {primary.chain}")
    names = sorted({*primary.digests, *clone.digests})
    for name in names:
        mine, theirs = clone.digests.get(name, "none"), primary.digests.get(name, "none")
        if mine != theirs:
            problems.append(f"collection {name!r} differs at LSN {clone.lsn}: digest {mine}, the primary's {theirs}")
    return len(names)


def _compare_answers(plan: Plan, rehearsal: Rehearsal, problems: list[str], notes: list[str]) -> int:
    """Compare those that the primary gave in the state that was cloned. The clone's epoch record moves no point."""
    compared = moved = 0
    for number, (mine, theirs) in enumerate(zip(rehearsal.answers, plan.expected, strict=False)):
        if theirs.lsn != rehearsal.clone.lsn:
            moved += 1
            continue
        compared += 1
        if not _is_same(mine.hits, theirs.hits):
            query = plan.queries[number]
            problems.append(f"query {number + 1}, of {query.collection!r}: the clone finds other points")
    if moved:
        notes.append(f"{moved} answers were not compared: the primary gave them at another LSN")
    if len(rehearsal.answers) < len(plan.queries) and not rehearsal.problem:
        problems.append(f"{len(plan.queries) - len(rehearsal.answers)} of {len(plan.queries)} queries had no answer")
    return compared


def _is_same(mine: Sequence[Hit], theirs: Sequence[Hit]) -> bool:
    """Return whether two exact answers are the same, but for the last bits of scores, and ids of equal score."""
    if len(mine) != len(theirs):
        return False
    apart = [
        abs(a.score - b.score) > SCORE_TOLERANCE * max(1.0, abs(b.score)) for a, b in zip(mine, theirs, strict=True)
    ]
    if any(apart):
        return False
    if not mine:
        return True
    # Of points with the score of the last one either side may have found others.
    edge = theirs[-1].score
    inner = [{hit.id for hit in hits if not _is_near(hit.score, edge)} for hits in (mine, theirs)]
    return inner[0] == inner[1]


def _is_near(score: float, other: float) -> bool:
    return abs(score - other) <= SCORE_TOLERANCE * max(1.0, abs(other))


# -- files -----------------------------------------------------------------------------------------------------------


def read_queries(text: str) -> tuple[Query, ...]:
    """Read a file of queries: JSON lines, each with `collection` and `vector`, and perhaps `k` and `filter`.

    Raises
    ------
    InvalidArgument
        A line is not of this form, or there are too many.
    """
    queries = []
    for number, text_line in enumerate(text.splitlines(), 1):
        if not text_line.strip():
            continue
        try:
            queries.append(msgspec.json.decode(text_line, type=Query))
        except msgspec.DecodeError as exc:
            raise InvalidArgument(
                f"queries: line {number}: {exc}",
                hint='a line is {"collection": "docs", "vector": [0.1, 0.2], "k": 10, "filter": {"section": "web"}}',
            ) from exc
    if len(queries) > QUERIES_MAX:
        raise InvalidArgument(f"queries: {len(queries)} given; allowed are {QUERIES_MAX}")
    return tuple(queries)


def line(report: Report) -> bytes:
    """Return the line of a report that a store remembers."""
    kept = {
        "began": report.began,
        "time_s": report.began_s,
        "passed": report.passed,
        "lsn": report.lsn,
        "rpo_records": report.rpo.records,
        "rpo_bytes": report.rpo.bytes,
        "rpo_s": report.rpo.seconds,
        "rto_s": report.rto_s,
        "steps": {step.name: round(step.seconds, 6) for step in report.steps},
        "problems": report.problems,
    }
    return msgspec.json.encode(kept) + b"\n"


def read_history(lines: Iterable[bytes]) -> list[dict[str, Any]]:
    """Read the lines that a store remembers, oldest first; one that was cut short by a crash is left out."""
    found = []
    for one in lines:
        try:
            entry = msgspec.json.decode(one)
        except msgspec.DecodeError:
            continue
        if isinstance(entry, dict) and "passed" in entry:
            found.append(entry)
    return found[-HISTORY_MAX:]
