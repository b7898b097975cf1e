"""The commands of whoever runs a store: `status`, `verify`, `doctor`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click
import msgspec

from ..errors import InvalidArgument
from .output import Output, duration, reporting
from .where import is_server, missing, open_for_reading, open_for_writing, operating, reaching, store_directory

__all__ = ["doctor_command", "status_command", "verify_command"]

DOCTOR_S, PROBES_S = 10.0, 2.0
"""So long a server's answer is waited for, of which it may wait for what hangs."""
UNKNOWN_CODE = 3
"""Exit code where nothing is known to be wrong, and something is not known."""


@click.command("status")
@click.argument("where")
@reporting
@reaching
def status_command(out: Output, *, where: str) -> None:
    """Say what there is to know of the store WHERE."""
    with open_for_reading(where, out.say) as db:
        status = db.status()
    out.result(status, lambda: _print_status(out, where, status))


def _print_status(out: Output, where: str, status: dict[str, Any]) -> None:
    print(f"store    {where}, {status['role']}, epoch {status['epoch']}")
    print(f"log      LSN {status['lsn']:,}, durable to {status['durable_lsn']:,}, chain {status['chain']}")
    print(f"lineage  {status['lineage']}, store {status['store_id']}")
    _print_kept(status, "kept     ")
    archive = status.get("archive")
    if archive:
        behind = f"{archive['lag_records']:,} records, {duration(archive['lag_s'])} behind"
        print(f"archive  {archive['repository']}, to LSN {archive['lsn']:,}, {behind}")
        for trouble in (archive["problem"], archive["gap"]):
            if trouble:
                print(f"         {trouble}")
    for device in status.get("devices", ()):
        of = f"{device['reserved_bytes']:,} of {device['budget_bytes']:,} bytes, {len(device['segments'])} segments"
        print(f"device   {device['device']} {device['name']}: {device['problem'] or device['state']}, {of}")
    for segment, reason in status.get("device_refused", {}).items():
        print(f"         {segment} is on the CPU: {reason}")
    collections = status["collections"]
    if not collections:
        print("no collections")
        return
    rows = [
        [name, one["count"], one["dim"], one["metric"], one["index"], one["digest"]]
        for name, one in sorted(collections.items())
    ]
    out.table(["collection", "points", "dim", "metric", "index", "digest"], rows)


def _print_kept(report: dict[str, Any], head: str) -> None:
    """Print what the folder of a store holds beside it, and what that costs."""
    for found in report.get("kept", ()):
        counted = f" of {found['exports']:,} exports" if "exports" in found else ""
        print(f"{head}{found['folder']}/, {found['bytes']:,} bytes{counted}: {found['why']}")


@click.command("verify")
@click.argument("where")
@click.option("--deep", is_flag=True, help="Of a repository: restore all of it, and compare digests.")
@click.option("--scratch", metavar="DIR", help="With --deep: where to restore to.")
@reporting
@reaching
def verify_command(out: Output, *, where: str, deep: bool, scratch: str | None) -> None:
    """Recompute chain and digests of the store WHERE from the bytes; exit code 1 where something is damaged.

    WHERE may be a repository, too: then every file and range in it is read and compared with its checksum.
    """
    if _is_repository(where):
        from .backup import verify_repository

        verify_repository(out, where, deep=deep, scratch=scratch)
        return
    if deep or scratch is not None:
        raise InvalidArgument("--deep, --scratch: they are for repositories; a store is always read whole")
    start_s = time.monotonic()
    # Verification is about what is on disk: no other process may be writing it.
    with open_for_writing(where) as db, out.meter("verify", "points") as meter:
        report = db.verify(progress=meter)
    report = {**report, "seconds": round(time.monotonic() - start_s, 3)}
    out.result(report, lambda: _print_verified(out, report))
    if not report["ok"]:
        out.say(f"error: {where}: {len(report['damaged'])} damaged places (vecstore doctor {where})")
        raise SystemExit(1)


def _is_repository(where: str) -> bool:
    """Return whether WHERE is a repository: a URL, or a folder with a repository's marker."""
    if "://" in where:
        return True
    folder = Path(where.partition("#")[0])
    return (folder / "vecstore-repository.json").is_file()


def _print_verified(out: Output, report: dict[str, Any]) -> None:
    rows = [[name, one["count"], one["digest"]] for name, one in sorted(report["collections"].items())]
    if rows:
        out.table(["collection", "points", "digest, recomputed"], rows)
    for place in report["damaged"]:
        print(f"damaged: {place}")
    verdict = "all as it was written" if report["ok"] else "DAMAGED"
    print(f"{verdict}: LSN {report['lsn']:,}, chain {report['chain']}, in {duration(report['seconds'])}")


@click.command("doctor")
@click.argument("where")
@click.option(
    "--accept-loss", is_flag=True, help="Cut the log where it ends and begin a new epoch; lost LSNs stay lost."
)
@reporting
@reaching
def doctor_command(out: Output, *, where: str, accept_loss: bool) -> None:
    """Say what is wrong with the store WHERE, and what to do. Changes nothing by itself.

    WHERE is the directory of a store that may not open, or the HOST:PORT of a server. Of a standby it says whether it
    could take over now. Exit codes: 0 all is well; 1 something is not; 3 nothing is wrong as far as can be known, and
    something cannot.
    """
    if is_server(where) and not accept_loss:
        _diagnose_served(out, where)
        return
    path = store_directory(where)
    try:
        from ..engine import doctor
        from ..index import device
    except ImportError as exc:
        raise missing(exc.name or str(exc), "cpu") from exc
    with_loss: dict[str, Any] | None = doctor.accept_loss(path) if accept_loss else None
    found: dict[str, Any] = doctor.diagnose(path)
    accepted = {"accepted": with_loss} if with_loss is not None else {}
    report = {**found, "devices": device.described(), **accepted}
    out.result(report, lambda: _print_diagnosis(where, report))
    if not found["ok"]:
        raise SystemExit(1)


def _diagnose_served(out: Output, where: str) -> None:
    """Ask a server about itself, and end with what its checks have come to."""
    with operating(where) as operator:
        verdict = operator.command("doctor", DOCTOR_S, wait_s=PROBES_S)
    if not verdict.done:
        raise InvalidArgument(f"doctor: {where} refuses: {verdict.text}")
    report: dict[str, Any] = msgspec.json.decode(verdict.text)
    out.result(report, lambda: _print_checks(out, where, report))
    if report["state"] != "ok":
        raise SystemExit(1 if report["state"] == "warn" else UNKNOWN_CODE)


def _print_checks(out: Output, where: str, report: dict[str, Any]) -> None:
    checks = report["checks"]
    rows = [
        [check["name"], check["state"].upper() if check["state"] != "ok" else "ok", check["found"]] for check in checks
    ]
    out.table(["check", "", "found"], rows)
    for check in checks:
        if check["state"] != "ok":
            print(f"{check['name']}: asked is {check['asked']}")
        if check["advice"]:
            print(f"{check['name']}: what to do: {check['advice']}")
    primary = report["primary"]
    if primary is not None:
        at = primary["address"] or primary["store_id"] or "nowhere that is known"
        heard = "it never said what it has" if primary["age_s"] is None else f"heard {duration(primary['age_s'])} ago"
        print(f"the primary is at {at}, {heard}")
    _print_kept(report, "kept beside the store: ")
    print(
        f"{where}, {report['role']} at LSN {report['lsn']:,}: {_VERDICTS[report['role'] == 'standby', report['state']]}"
    )


_VERDICTS = {
    (True, "ok"): "it could take over now",
    (True, "warn"): "a takeover now would disappoint",
    (True, "unknown"): "nothing is known to be wrong, and not everything is known",
    (False, "ok"): "all is as it should be",
    (False, "warn"): "something is not as it should be",
    (False, "unknown"): "nothing is known to be wrong, and not everything is known",
}


def _print_diagnosis(where: str, report: dict[str, Any]) -> None:
    """Print what is wrong and what to do about it."""
    if "accepted" in report:
        _print_accepted(report["accepted"])
    if report["ok"]:
        print(f"{where} is well: it opens, and its log is whole")
    else:
        print(f"problem: {report['problem']}")
        if report["hint"]:
            print(f"what to do: {report['hint']}")
        for name, value in report["details"].items():
            print(f"  {name.replace('_', ' ')}: {value}")
    for finding in report["findings"]:
        print(f"found, and mended by the next open: {finding}")
    _print_kept(report, "kept beside the store: ")
    print(f"devices: {report['devices']}")


def _print_accepted(accepted: dict[str, Any]) -> None:
    """Print what was given up."""
    lost = accepted["lost"]
    gone = f"records {lost[0]} to {lost[1]} are lost for good" if lost else "no record that was acknowledged is lost"
    dropped = f", {len(accepted['dropped'])} that could not be proven were dropped" if accepted["dropped"] else ""
    print(f"the log was cut: {gone}{dropped}; epoch {accepted['epoch']} begins with LSN {accepted['lsn']}")
