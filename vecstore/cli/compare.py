"""The command `vecstore compare`: two stores of one history, read from their bytes at one LSN and held side by side."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import click
import msgspec

from ..errors import InvalidArgument, Unavailable
from .output import Output, duration, reporting
from .where import is_server, missing, open_as_it_is, operating, reaching

if TYPE_CHECKING:
    from ..client.ranges import Conversation
    from ..engine.engine import Engine
    from ..replication.compare import Begin, Collection, Found, Report
    from ..sums import PinnedStore, Stamp, Sum

__all__ = ["compare_command", "side_by_side"]

RANGE_POINTS, RANGE_POINTS_MAX = 8_192, 200_000
LIFE_S = 24 * 3600.0
IDS_SHOWN = 10


@click.command("compare")
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@click.option(
    "--points-a-range",
    type=click.IntRange(min=1, max=RANGE_POINTS_MAX),
    default=RANGE_POINTS,
    show_default=True,
    metavar="N",
    help="Points of A for which sums are compared.",
)
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0, max=600),
    default=60.0,
    show_default=True,
    help="Seconds to wait until the standby is at the primary's LSN.",
)
@reporting
@reaching
def compare_command(out: Output, *, a: str, b: str, points_a_range: int, timeout_s: float) -> None:
    """Compare the stores A and B at one LSN: every point, from the bytes on both sides.

    A and B are the HOST:PORT of a primary and its standby, in either order, while both are in use; or directories,
    which are read as they are. Exit code 1: something differs, or is damaged.
    """
    from ..replication.compare import compare, pin_both

    start_s = time.monotonic()
    with ExitStack() as stack:
        sides = (_Place.of(a, "A", stack), _Place.of(b, "B", stack))
        leads = _leader(sides)
        leader, follower = sides[leads], sides[1 - leads]
        try:
            pinned = pin_both(leader.side, follower.side, timeout_s, (leader.label, follower.label))
        except Unavailable as exc:
            raise _explained(exc, follower) from exc
        stores = pinned if leads == 0 else (pinned[1], pinned[0])
        with out.meter("compare", "points") as meter:
            begin = stack.enter_context(side_by_side())
            both = (sides[0].side, sides[1].side)
            report = compare(both, stores, points_a_range, time.monotonic, lambda d, t: meter(d, t), begin)
        seconds = round(time.monotonic() - start_s, 3)
        result = {
            "ok": report.is_equal,
            **msgspec.to_builtins(report),
            "a": {"where": a, "role": sides[0].role, "store_id": stores[0].store_id},
            "b": {"where": b, "role": sides[1].role, "store_id": stores[1].store_id},
            "seconds": seconds,
        }
    out.result(result, lambda: _print(out, sides, report, seconds))
    if not report.is_equal:
        count = sum(not collection.is_equal for collection in report.collections)
        out.say(f"error: {a} and {b} differ or are damaged: {count} of {len(report.collections)} collections")
        raise SystemExit(1)


@contextmanager
def side_by_side() -> Iterator[Begin]:
    """Give what begins sums in two threads, so that neither side waits for the other."""
    with ThreadPoolExecutor(2, thread_name_prefix="vecstore-compare") as pool:
        yield lambda work: pool.submit(work).result


# -- the two sides ---------------------------------------------------------------------------------------------------


class _Place(NamedTuple):
    """One of the two that are compared."""

    where: str
    name: str
    described: dict[str, Any]
    side: Conversation | _Folder

    @classmethod
    def of(cls, where: str, name: str, stack: ExitStack) -> _Place:
        if not is_server(where):
            folder = stack.enter_context(_Folder(where))
            return cls(where, name, folder.described, folder)
        operator = stack.enter_context(operating(where))
        return cls(where, name, operator.describe(), stack.enter_context(operator.ranges()))

    @property
    def label(self) -> str:
        return f"{self.name} ({self.where})"

    @property
    def role(self) -> str:
        return str(self.described["role"])

    @property
    def is_served(self) -> bool:
        return not isinstance(self.side, _Folder)


class _Folder:
    """A directory as one side: pinned where it is."""

    def __init__(self, where: str) -> None:
        try:
            from ..engine.database import EmbeddedDatabase
            from ..engine.ranges import pin
        except ImportError as exc:
            raise missing(exc.name or str(exc), "cpu") from exc
        database = open_as_it_is(where)
        assert isinstance(database, EmbeddedDatabase)
        self._database = database
        engine: Engine = database.engine
        self._pin = pin(engine, LIFE_S)
        status = database.status()
        self.described = {name: status[name] for name in ("lineage", "store_id", "epoch", "role")}

    def __enter__(self) -> _Folder:
        return self

    def __exit__(self, *_: object) -> None:
        self._pin.close()
        self._database.close()

    def hold(self) -> int:
        return self._pin.lsn

    def pin(self, lsn: int, _wait_s: float) -> PinnedStore:
        if lsn not in (0, self._pin.lsn):
            at = self._pin.lsn
            raise InvalidArgument(f"lsn: the other store is at {lsn}, this directory at {at}: they must be at one LSN")
        return self._pin.store

    def summed(self, first: bytes, stop: bytes, points_max: int) -> Sum:
        from ..engine.ranges import summed

        return summed(self._pin, first, stop, points_max)

    def listed(self, first: bytes, stop: bytes) -> Iterator[Stamp]:
        from ..engine.ranges import listed

        return listed(self._pin, first, stop)


def _leader(sides: tuple[_Place, _Place]) -> int:
    """Return which side is pinned first; refuse what cannot be brought to one LSN."""
    one, other = (side.described for side in sides)
    if one["lineage"] != other["lineage"]:
        raise InvalidArgument(
            f"A is of lineage {one['lineage']}, B of {other['lineage']}: only stores of one lineage are compared",
            hint="a restore, or a clone, is a lineage of its own",
        )
    if not sides[0].is_served or not sides[1].is_served:
        # A directory does not move: the other one comes to where it is.
        return 0 if not sides[0].is_served else 1
    if one["store_id"] == other["store_id"]:
        raise InvalidArgument(f"A and B are the same store, {one['store_id']}")
    roles = [side.role for side in sides]
    if roles.count("primary") != 1:
        count = "neither is a primary" if "primary" not in roles else "both are primaries"
        raise InvalidArgument(
            f"A is a {roles[0]} of epoch {one['epoch']}, B a {roles[1]} of epoch {other['epoch']}: {count}",
            hint="compare a standby with the primary that it follows; vecstore history says who wrote when",
        )
    leads = roles.index("primary")
    _check_follows(sides[1 - leads], sides[leads])
    return leads


def _check_follows(standby: _Place, primary: _Place) -> None:
    found = standby.described
    follows = found["primary"]["store_id"]
    if standby.role != "standby" or found["status"] in ("stopped", "failed") or found.get("rejoin"):
        why = found["problem"] or found["reason"] or (found["alarms"][-1]["text"] if found["alarms"] else "")
        rejoins = ", and rejoins" if found.get("rejoin") else ""
        raise InvalidArgument(
            f"{standby.label} does not follow: it is {found['status']}{rejoins}" + (f": {why}" if why else ""),
            hint="stop both and compare their directories, if they are at one LSN",
        )
    if follows != primary.described["store_id"]:
        raise InvalidArgument(f"{standby.label} follows {follows}, not {primary.label}")


def _explained(exc: Unavailable, follower: _Place) -> Unavailable:
    """Say of a store that did not come to an LSN what it does instead."""
    status = f"; it is {follower.described['status']}" if follower.is_served else ""
    return Unavailable(f"{follower.label}: {exc.args[0]}{status}", hint="is it connected?", details=exc.details)


# -- for people ------------------------------------------------------------------------------------------------------


def _print(out: Output, sides: tuple[_Place, _Place], report: Report, seconds: float) -> None:
    for side in sides:
        print(f"{side.name}  {side.where}, a {side.role}{'' if side.is_served else ', as it lies there'}")
    rows = []
    for one in report.collections:
        counts = [one.ranges, one.ranges_differ, one.ids_differ, one.a.damaged, one.b.damaged]
        rows.append([one.name, one.a.points, one.b.points, *counts])
    if rows:
        out.table(["collection", "points A", "points B", "ranges", "differ", "ids", "damaged A", "damaged B"], rows)
    for collection in report.collections:
        if not collection.is_equal:
            _print_collection(collection)
    points = sum(one.a.points for one in report.collections)
    ranges = sum(one.ranges for one in report.collections)
    verdict = "equal" if report.is_equal else "NOT EQUAL"
    read = f"{points:,} points in {ranges:,} ranges, in {duration(seconds)}"
    print(f"{verdict} at LSN {report.lsn:,}, chain {report.chain}: {read}")


def _print_collection(collection: Collection) -> None:
    name = collection.name
    for problem in collection.problems:
        print(f"{name}: {problem}")
    for one in collection.ids[:IDS_SHOWN]:
        print(f"{name}: id {one.id!r}: {one.what} (written by LSN {_lsn(one.a)} on A, {_lsn(one.b)} on B)")
    if collection.ids_differ > IDS_SHOWN:
        print(f"{name}: and {collection.ids_differ - IDS_SHOWN:,} more ids; --json names up to 1,000")
    for side, found in (("A", collection.a), ("B", collection.b)):
        _print_damaged(name, side, found)
    lacking = [side for side, found in (("A", collection.a), ("B", collection.b)) if not found.holds_log]
    if lacking:
        print(f"{name}: {' and '.join(lacking)} does not hold what its log says")


def _print_damaged(name: str, side: str, found: Found) -> None:
    for one in found.damaged_points[:IDS_SHOWN]:
        print(f"{name}: damaged on {side}: {one.id!r}: {one.why}")
    if found.damaged > IDS_SHOWN:
        print(f"{name}: damaged on {side}: and {found.damaged - IDS_SHOWN:,} more points")


def _lsn(lsn: int | None) -> str:
    return "none" if lsn is None else f"{lsn:,}"
