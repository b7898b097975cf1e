"""The command `vecstore drill`: a failover rehearsed on a clone of a standby, and held against its primary."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from ..api import Database
from ..errors import InvalidArgument, NotFound, VecstoreError
from .output import Output, duration, reporting
from .where import has_credentials, is_server, missing, open_for_reading, open_for_writing, operating, reaching

if TYPE_CHECKING:
    from ..replication.drill import Answer, Plan, Query, Report, Seen

__all__ = ["drill_command"]

DRILL_S_MAX = 7_200.0
SAMPLE_POINTS = 5
"""Points of each collection that are looked for where no queries are given."""
SAMPLE_COLLECTIONS = 20


@click.command("drill")
@click.argument("where", metavar="STANDBY")
@click.option("--queries", metavar="FILE", help='JSON lines: {"collection": "docs", "vector": [...], "k": 10}.')
@click.option("--primary", metavar="HOST:PORT", help="Its primary, where the standby does not name it to everybody.")
@click.option("--rpo-max-s", type=click.FloatRange(min=0), help="Fail where more seconds of writes would be lost.")
@click.option(
    "--rto-max-s", type=click.FloatRange(min=0), help="Fail where it takes longer until it answers and writes."
)
@reporting
@reaching
def drill_command(
    out: Output,
    *,
    where: str,
    queries: str | None,
    primary: str | None,
    rpo_max_s: float | None,
    rto_max_s: float | None,
) -> None:
    """Rehearse a failover to STANDBY on a clone of it, without any effect on it or on its primary.

    STANDBY is the HOST:PORT of its server, or its directory while it is stopped. The clone is made of links, served on
    the standby's machine to nobody else, promoted, asked and written to. Exit code 1: a limit was not kept, or the
    clone differs from the primary.
    """
    from ..replication.drill import Plan, Report, read_queries

    asked = read_queries(_read(queries)) if queries is not None else ()
    if is_server(where):
        if primary is None:
            primary = _named_primary(out, where)
        with open_for_reading(where, out.say) as standby:
            asked = asked or _sampled(standby)
        plan = _plan(out, asked, primary, Plan(rpo_max_s=rpo_max_s, rto_max_s=rto_max_s))
        with operating(where) as operator:
            verdict = operator.command("drill", DRILL_S_MAX, **msgspec.to_builtins(plan))
        if not verdict.done:
            raise InvalidArgument(f"drill: {verdict.text}")
        report = msgspec.json.decode(verdict.text, type=Report)
    else:
        with open_for_writing(where) as standby:
            asked = asked or _sampled(standby)
            plan = _plan(out, asked, primary, Plan(rpo_max_s=rpo_max_s, rto_max_s=rto_max_s))
            report = _drill_stopped(standby, plan)
    out.result(msgspec.to_builtins(report), lambda: _print(out, where, report))
    if not report.passed:
        out.say(f"error: the drill of {where} did not pass: {'; '.join(report.problems)}")
        raise SystemExit(1)


def _read(file: str) -> str:
    try:
        return Path(file).read_text()
    except FileNotFoundError as exc:
        raise NotFound(f"--queries: {file}: no such file") from exc


def _named_primary(out: Output, where: str) -> str | None:
    """Return the address that the standby names, where nothing secret would be sent to it."""
    with operating(where) as operator:
        found = operator.describe()
    address = str((found.get("primary") or {}).get("address") or "")
    if address and has_credentials():
        # A standby may be wrong, or lie: a token goes only to who was named on the command line.
        out.say(f"the primary is not asked: name it with --primary {address}")
        return None
    return address or None


def _sampled(database: Database) -> tuple[Query, ...]:
    """Return queries for some points of each collection: each must find itself, and what is around it."""
    from ..replication.drill import Query

    found = []
    for name in database.collections()[:SAMPLE_COLLECTIONS]:
        for point in database.collection(name).scan(limit=SAMPLE_POINTS, with_vector=True, with_payload=False):
            assert point.vector is not None
            found.append(Query(name, tuple(point.vector.tolist())))
    return tuple(found)


def _plan(out: Output, asked: tuple[Query, ...], primary: str | None, plan: Plan) -> Plan:
    """Add what the primary says now; it may be gone, and the drill goes on without it."""
    seen: Seen | None = None
    expected: tuple[Answer, ...] = ()
    if primary is not None:
        try:
            seen, expected = _ask_primary(out, primary, asked)
        except VecstoreError as exc:
            out.say(f"the primary at {primary} is not asked: {exc}")
    return msgspec.structs.replace(plan, queries=asked, primary=seen, expected=expected)


def _ask_primary(out: Output, primary: str, asked: tuple[Query, ...]) -> tuple[Seen, tuple[Answer, ...]]:
    from ..replication.drill import Answer, Hit, Seen

    with open_for_reading(primary, out.say) as database:
        status = database.status()
        digests = {name: one["digest"] for name, one in status["collections"].items()}
        seen = Seen(status["lsn"], status["durable_lsn"], status["chain"], digests)
        answers = []
        for query in asked:
            hits = database.collection(query.collection).search(
                query.vector, query.k, filter=query.filter, exact=True, with_payload=False
            )
            answers.append(Answer(hits.lsn, tuple(Hit(hit.id, float(hit.score)) for hit in hits)))
    return seen, tuple(answers)


def _drill_stopped(standby: Database, plan: Plan) -> Report:
    try:
        from ..engine.database import EmbeddedDatabase
        from ..server.drill import Drills, away
    except ImportError as exc:
        raise missing(exc.name or str(exc), "server") from exc
    assert isinstance(standby, EmbeddedDatabase)
    status = standby.status()
    described = {"role": status["role"], "lag": away(standby.engine)}
    return Drills(lambda: standby.engine, lambda: described, was_running=False).run(plan)


def _print(out: Output, where: str, report: Report) -> None:
    rows: list[list[Any]] = [[step.name, duration(step.seconds)] for step in report.steps]
    out.table(["step", "took"], rows, title=f"drill of {where}, a clone at LSN {report.lsn:,}")
    rpo = report.rpo
    print(
        f"RPO      {rpo.records:,} records, {rpo.bytes:,} bytes, {duration(rpo.seconds)} were not there when it began"
    )
    if report.rto_s is not None:
        print(f"RTO      {duration(report.rto_s)} from the word to the first answer and the first write")
    compared = f"{report.compared_digests} digests, {report.compared_answers} of {report.queries} answers"
    print(f"compared {compared} with the primary's at the same LSN")
    for note in report.notes:
        print(f"         {note}")
    for problem in report.problems:
        print(f"problem  {problem}")
    print("passed" if report.passed else "DID NOT PASS")
