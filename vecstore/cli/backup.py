"""The commands about repositories: `snapshot`, `snapshots`, `restore`, `prune`, and what `verify` does with one."""

from __future__ import annotations

import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from ..errors import AlreadyExists, InvalidArgument
from .output import Output, duration, reporting
from .where import is_server, missing, open_for_writing, reaching

if TYPE_CHECKING:
    from ..backup.plan import Lineage, Target
    from ..backup.repository import Repository
    from ..backup.restore import Restored
    from ..values import Snapshot

__all__ = ["prune_command", "restore_command", "snapshot_command", "snapshots_command", "verify_repository"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@click.command("snapshot")
@click.argument("where")
@click.argument("repository", metavar="REPO")
@click.option(
    "--rate-limit", type=click.IntRange(min=1), metavar="BYTES", help="Upload so many bytes a second at most."
)
@reporting
@reaching
def snapshot_command(out: Output, *, where: str, repository: str, rate_limit: int | None) -> None:
    """Write a snapshot of the store WHERE to REPO: a path, or a URL of s3, gs or az. It is made where there is none."""
    start_s = time.monotonic()
    made = _taken(out, where, repository, rate_limit)
    seconds = round(time.monotonic() - start_s, 3)
    result = {
        "id": made.id,
        "lsn": made.lsn,
        "time": _text(made.time),
        "bytes_new": made.bytes_new,
        "seconds": seconds,
    }
    out.result(
        result,
        f"snapshot {made.id}: LSN {made.lsn:,} of {_text(made.time)}, {made.bytes_new:,} bytes new, "
        f"in {duration(seconds)}",
    )


def _taken(out: Output, where: str, repository: str, rate_limit: int | None) -> Snapshot:
    """Take a snapshot of a store of this machine, or ask its server to."""
    if is_server(where):
        if rate_limit is not None:
            raise InvalidArgument("--rate-limit: a server uploads at its own upload_bytes_per_s_max")
        with open_for_writing(where) as db:
            return db.snapshot(repository)
    try:
        from ..engine.database import open_database
        from ..engine.snapshot import take_snapshot
    except ImportError as exc:
        raise missing(exc.name or str(exc), "cpu") from exc
    options = {} if rate_limit is None else {"upload_bytes_per_s_max": rate_limit}
    store = open_database(where, create=False, read_only=False, device="auto", config=options)
    with store, out.meter("snapshot", "bytes") as meter:
        return take_snapshot(store.engine, repository, progress=meter)


@click.command("snapshots")
@click.argument("repository", metavar="REPO")
@reporting
def snapshots_command(out: Output, *, repository: str) -> None:
    """List what REPO holds: snapshots with their own and shared bytes, and which LSNs and times can be restored."""
    from ..backup.catalogue import read_lineages

    opened = _opened(repository)
    lineages = [one for one in read_lineages(opened) if one.name.startswith(opened.lineage)]
    result = {one.name: _lineage(one) for one in lineages}
    out.result(result, lambda: _print_lineages(out, result))


def _lineage(lineage: Lineage) -> dict[str, Any]:
    from ..backup.manifest import time_of
    from ..backup.plan import leaves, windows

    sizes = _sizes(lineage.manifests)
    return {
        "snapshots": [
            {
                "id": m.id,
                "branch": str(m.branch),
                "lsn": m.lsn,
                "time": _text(time_of(m.commit_time_us)),
                "taken": _text(time_of(m.wall_time_us)),
                "bytes": m.size,
                "bytes_own": sizes[m.id],
                "bytes_shared": m.size - sizes[m.id],
                "collections": {c.name: {"count": c.points, "digest": c.digest} for c in m.collections},
            }
            for m in lineage.manifests
        ],
        "windows": [
            {
                "branch": f"{history[-1].number:010d}-{history[-1].writer}",
                "first_lsn": window.first,
                "last_lsn": window.last,
                "first_time": _text(time_of(window.first_us)),
                "last_time": _text(time_of(window.last_us)),
            }
            for history in leaves(lineage)
            for window in windows(lineage, history)
        ],
    }


def _sizes(manifests: Any) -> dict[str, int]:
    """Return the bytes of each snapshot that no other one needs."""
    users: dict[str, int] = {}
    for manifest in manifests:
        for name in {file.object for file in manifest.files}:
            users[name] = users.get(name, 0) + 1
    return {m.id: sum(file.size for file in m.files if users[file.object] == 1) for m in manifests}


def _print_lineages(out: Output, result: dict[str, Any]) -> None:
    if not result:
        print("nothing yet")
    for name, one in result.items():
        print(f"lineage {name}")
        rows = [[s["id"], s["lsn"], s["time"], s["bytes"], s["bytes_own"], s["bytes_shared"]] for s in one["snapshots"]]
        if rows:
            out.table(["snapshot", "LSN", "time", "bytes", "own", "shared"], rows)
        windows = [
            [w["branch"], w["first_lsn"], w["last_lsn"], w["first_time"], w["last_time"]] for w in one["windows"]
        ]
        if windows:
            out.table(["to restore, on branch", "from LSN", "to LSN", "from", "to"], windows)


@click.command("restore")
@click.argument("repository", metavar="REPO")
@click.argument("where", metavar="DIR")
@click.option("--to-lsn", type=click.IntRange(min=0), metavar="N", help="The last record to restore.")
@click.option("--to-time", metavar="ISO", help="The last commit time to restore, as in 2026-11-25T14:02:59Z.")
@click.option("--from-snapshot", metavar="ID", default="", help="Begin with this snapshot instead of the newest.")
@click.option(
    "--in-place", is_flag=True, help="Keep the lineage, begin a new epoch: for a primary that is lost for good."
)
@click.option("--collection", metavar="NAME", help="Restore this one alone, into the store DIR that is there.")
@click.option("--as", "new_name", metavar="NAME", help="With --collection: its name there.  [default: NAME-restored]")
@click.option("--scratch", metavar="DIR", help="With --collection: where the store is restored to on the way.")
@reporting
@reaching
def restore_command(
    out: Output,
    *,
    repository: str,
    where: str,
    to_lsn: int | None,
    to_time: str | None,
    from_snapshot: str,
    in_place: bool,
    collection: str | None,
    new_name: str | None,
    scratch: str | None,
) -> None:
    """Restore the store in REPO into the new folder DIR: its newest state, or that of an LSN or a time.

    With --collection one collection of that state is written into the store DIR, under another name: the answer to a
    wrong delete. Every checksum and chain is checked, and digests are recomputed; what failed is no store, and the same
    command goes on with what is there.
    """
    start_s = time.monotonic()
    target = _target(to_lsn, to_time)
    opened = _opened(repository)
    if collection is not None:
        if in_place:
            raise InvalidArgument("--in-place: it makes no sense with --collection")
        result = _restore_one(out, opened, where, target, from_snapshot, collection, new_name, scratch)
    else:
        if new_name is not None or scratch is not None:
            raise InvalidArgument("--as, --scratch: given without --collection")
        result = _plain(_restored(out, opened, where, target, from_snapshot, in_place=in_place))
    result["seconds"] = round(time.monotonic() - start_s, 3)
    out.result(result, lambda: _print_restored(out, result))


def _restored(
    out: Output, repository: Repository, path: str, target: Target, snapshot: str, *, in_place: bool
) -> Restored:
    try:
        from ..backup.restore import restore
    except ImportError as exc:
        raise missing(exc.name or str(exc), "cpu") from exc
    with out.meter("restore", "bytes") as meter:
        return restore(repository, path, target, in_place=in_place, snapshot=snapshot, progress=meter)


def _plain(made: Restored) -> dict[str, Any]:
    from ..backup.manifest import time_of

    return {
        "snapshot": made.id,
        "lsn": made.lsn,
        "time": _text(time_of(made.time_us)),
        "lineage": made.lineage,
        "epoch": made.epoch,
        "records_from_archive": made.records,
        "bytes_read": made.bytes_read,
        "collections": {name: {"digest": d, "count": count} for name, (d, count) in sorted(made.digests.items())},
    }


def _restore_one(
    out: Output,
    repository: Repository,
    where: str,
    target: Target,
    snapshot: str,
    collection: str,
    new_name: str | None,
    scratch: str | None,
) -> dict[str, Any]:
    """Restore all into a scratch folder, and copy one collection from there."""
    import vecstore

    name = new_name or f"{collection}-restored"
    with (
        open_for_writing(where) as store,
        tempfile.TemporaryDirectory(prefix="vecstore-restore-", dir=scratch) as folder,
    ):
        if name in store.collections():
            raise AlreadyExists(f"--as: {where} has a collection {name!r}", hint="give another name")
        path = str(Path(folder) / "store")
        made = _restored(out, repository, path, target, snapshot, in_place=False)
        with vecstore.open(path, create=False) as source:
            written = vecstore.copy(source.collection(collection), store, name)
        digest = store.status()["collections"][name]["digest"]
    if digest != made.digests[collection][0]:
        raise vecstore.Damaged(f"{name} has digest {digest}, {collection} had {made.digests[collection][0]}")
    result = _plain(made)
    result["collections"] = {collection: result["collections"][collection]}
    return {**result, "as": name, "count": written.count}


def _print_restored(out: Output, result: dict[str, Any]) -> None:
    begin = f"from snapshot {result['snapshot']}" if result["snapshot"] else "from the archive alone"
    print(
        f"restored to LSN {result['lsn']:,} of {result['time']}, {begin} and {result['records_from_archive']:,} "
        f"records of the archive, in {duration(result['seconds'])}"
    )
    if "as" in result:
        print(f"{result['count']:,} points are in collection {result['as']}")
    else:
        print(f"lineage {result['lineage']}, epoch {result['epoch']}")
    rows = [[name, one["count"], one["digest"]] for name, one in result["collections"].items()]
    if rows:
        out.table(["collection", "points", "digest, recomputed"], rows)


@click.command("prune")
@click.argument("repository", metavar="REPO")
@click.option("--keep-last", type=click.IntRange(min=1), metavar="N", help="Keep the last N snapshots of each branch.")
@click.option("--keep-days", type=click.FloatRange(min=0), metavar="D", help="Keep every point in time of D days.")
@click.option("--dry-run", is_flag=True, help="Say what would go, and remove nothing.")
@reporting
def prune_command(
    out: Output, *, repository: str, keep_last: int | None, keep_days: float | None, dry_run: bool
) -> None:
    """Remove from REPO what is not to be kept. What a kept snapshot or point in time needs stays."""
    from ..backup.prune import prune
    from ..clock import SystemClock

    if keep_last is None and keep_days is None:
        raise InvalidArgument("--keep-last, --keep-days: none given; say what is to be kept")
    now_us = SystemClock().wall_us()
    made = prune(_opened(repository), keep_last=keep_last, keep_days=keep_days, now_us=now_us, dry_run=dry_run)
    result = {**{name: getattr(made, name) for name in made.__slots__}, "dry_run": dry_run}

    def show() -> None:
        word = "would go" if dry_run else "removed"
        print(
            f"{word}: {len(made.snapshots)} snapshots, {len(made.ranges)} ranges of the archive, {len(made.objects)} "
            f"files; {made.bytes:,} bytes. {len(made.kept)} snapshots stay"
        )
        if made.waits:
            print("a snapshot is being written: files that nobody needs any more go with the next prune")

    out.result(result, show)


def verify_repository(out: Output, where: str, *, deep: bool, scratch: str | None) -> None:
    """Read all that a repository holds; exit code 1 where something is damaged or missing."""
    from ..backup.check import check_repository

    start_s = time.monotonic()
    with out.meter("verify", "bytes") as meter:
        report = check_repository(_opened(where), deep=deep, scratch=scratch, progress=meter)
    report["seconds"] = round(time.monotonic() - start_s, 3)

    def show() -> None:
        for place in report["damaged"]:
            needed = f"; needed by {', '.join(place['needed_by'][:3])}" if "needed_by" in place else ""
            print(f"damaged: {place['object']}: {place['why']}{needed}")
        verdict = "all as it was written" if report["ok"] else "DAMAGED"
        print(
            f"{verdict}: {report['snapshots']} snapshots, {report['files']} files, {report['ranges']} ranges, "
            f"{report['bytes']:,} bytes{', restored' if deep else ''}, in {duration(report['seconds'])}"
        )

    out.result(report, show)
    if not report["ok"]:
        raise SystemExit(1)


def _opened(where: str) -> Repository:
    from ..backup.repository import Repository

    return Repository(where)


def _target(lsn: int | None, text: str | None) -> Target:
    from ..backup.plan import Target

    if lsn is not None and text is not None:
        raise InvalidArgument("--to-lsn, --to-time: both given; allowed is one of them")
    if text is None:
        return Target(lsn=lsn)
    try:
        moment = msgspec.convert(text, datetime)
    except msgspec.ValidationError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise InvalidArgument(f"--to-time: {text!r} given; allowed is a time with its zone, as in 2026-11-25T14:02:59Z")
    return Target(time_us=int((moment - _EPOCH) / timedelta(microseconds=1)))


def _text(moment: datetime) -> str:
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")
