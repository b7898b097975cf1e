"""The commands of failback: `rejoin`, `adopt`. They work on the directory of a store that nobody serves.

The store takes part in the replication meanwhile, in this process, and is served to nobody. Each phase is durable: a
command that was cut off goes on when it is given again, or when the store is served.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import click
import msgspec

from ..errors import InvalidArgument, NotFound, Unavailable
from .diverged import summed
from .member import taking_part
from .output import Output, duration, reporting
from .where import missing, open_for_writing, operating, reaching, store_directory

if TYPE_CHECKING:
    from ..replication.foretell import Foretold
    from ..server.replication import Replication

__all__ = ["adopt_command", "rejoin_command"]

POLL_S = 0.1
STOPPED_S = 15.0
"""A standby that has stopped for so long, or a store that is still a primary, is waited for no longer."""
FRAME_BYTES = 8 << 20


@click.command("rejoin")
@click.argument("directory", metavar="DIR")
@click.option("--primary", metavar="HOST:PORT", help="The primary that it is to follow.")
@click.option("--dry-run", is_flag=True, help="Say what would be exported; change nothing.")
@click.option("--abort", is_flag=True, help="Go back to what the store was before its rejoin.")
@click.option("--config", "file", metavar="FILE", help="TOML file of the server's options, for how others are reached.")
@click.option("--timeout", "timeout_s", type=click.FloatRange(min=0), default=3_600.0, show_default=True, metavar="S")
@reporting
@reaching
def rejoin_command(
    out: Output,
    *,
    directory: str,
    primary: str | None,
    dry_run: bool,
    abort: bool,
    file: str | None,
    timeout_s: float,
) -> None:
    """Make the store in DIR, whose history parted from the primary's, a standby of it.

    What the primary does not have is exported to DIR/diverged before anything is dropped. Ends when the store follows;
    serve it then with --standby-of. `vecstore serve --standby-of` does the same by itself.
    """
    path = store_directory(directory)
    if abort:
        if primary is not None or dry_run:
            raise InvalidArgument("--abort: given with --primary or --dry-run")
        _abort(out, path, file, timeout_s)
    elif primary is None:
        raise InvalidArgument("--primary: not given", hint="--primary HOST:PORT names the store to follow")
    elif dry_run:
        _foretell(out, path, primary)
    else:
        _rejoin(out, path, primary, file, timeout_s)


def _abort(out: Output, path: str, file: str | None, timeout_s: float) -> None:
    with taking_part(path, file, "") as member:
        done, text = member.commands.run("abort-rejoin", msgspec.json.encode({"timeout_s": timeout_s}))
        role = member.role
    if not done:
        raise InvalidArgument(f"abort: {text}")
    out.result({"role": role, "text": text}, f"{path}: {text}: {role}")


def _rejoin(out: Output, path: str, primary: str, file: str | None, timeout_s: float) -> None:
    from ..engine.contents.diverged import exports

    _asked(primary)
    start_s = time.monotonic()
    before = {summary.name for summary in exports(path)}
    with taking_part(path, file, primary) as member:
        found = _followed(out, member, start_s, timeout_s)
    left = [summary for summary in exports(path) if summary.name not in before]
    result = {
        "primary": found["primary"],
        "epoch": found["epoch"],
        "lsn": found["lsn"],
        "exported": [msgspec.to_builtins(summary) for summary in left],
        "seconds": round(time.monotonic() - start_s, 3),
    }

    def show() -> None:
        for summary in left:
            print(f"left behind: {summed(summary)}, in {os.path.join(path, 'diverged', summary.name)}")
        if not left:
            print("nothing was left behind")
        print(f"{path} follows {primary} at LSN {found['lsn']:,}, epoch {found['epoch']}")

    out.result(result, show)


def _asked(primary: str) -> dict[str, Any]:
    """Return what the server at an address is, which must be a primary."""
    with operating(primary) as operator:
        found = operator.describe()
    if found["role"] != "primary":
        raise InvalidArgument(
            f"--primary: the store at {primary} is a {found['role']}",
            hint=f"its primary is at {found['primary']['address'] or 'an unknown place'}; `vecstore promote` makes one",
        )
    return found


def _followed(out: Output, member: Replication, start_s: float, timeout_s: float) -> dict[str, Any]:
    """Wait until the store follows; say each phase."""
    said, stuck_s = "", start_s
    while time.monotonic() - start_s < timeout_s:
        found = member.describe()
        phase = f"rejoin: {found['rejoin']['phase']}" if found["rejoin"] else str(found["status"])
        if phase != said:
            out.say(phase)
            said, stuck_s = phase, time.monotonic()
        if found["problem"]:
            raise Unavailable(f"rejoin: {found['problem']}", retryable=False)
        if found["rejoin"] is None and found["status"] == "following":
            return found
        if found["status"] in ("stopped", "open", "copied") and time.monotonic() - stuck_s > STOPPED_S:
            why = found["alarms"][-1]["text"] if found["alarms"] else found["reason"]
            raise InvalidArgument(f"rejoin: the store is {found['status']}, {found['role']}; {why}")
        time.sleep(POLL_S)
    raise Unavailable(
        f"rejoin: it is not over after {duration(timeout_s)}: {said}",
        hint="the same command goes on; --abort goes back",
        outcome="unknown",
    )


def _foretell(out: Output, path: str, primary: str) -> None:
    """Say what a rejoin would find: by the same search for the fork, over the same records."""
    try:
        from ..replication.coding import decode_state
        from ..replication.foretell import Theirs, foretell
    except ImportError as exc:
        raise missing(exc.name or str(exc), "cpu") from exc
    import vecstore

    theirs = _asked(primary)
    with operating(primary) as operator, vecstore.open(path, create=False, read_only=True) as database:
        from ..engine.database import EmbeddedDatabase

        assert isinstance(database, EmbeddedDatabase)
        engine = database.engine
        if engine.lineage.hex() != theirs["lineage"]:
            raise InvalidArgument(f"--primary: the store at {primary} is of another lineage: {theirs['lineage']}")
        state = engine.replication_state
        found = foretell(
            engine,
            None if state is None else decode_state(state),
            msgspec.convert(theirs, Theirs),
            lambda lsns: [
                (lsn, None if chain is None else bytes.fromhex(chain))
                for lsn, chain in operator.describe(chains_at=lsns)["chains"]
            ],
        )
    out.result(msgspec.to_builtins(found), lambda: _print_foretold(path, found))


def _print_foretold(path: str, found: Foretold) -> None:
    ends = f"this store ends at {found.lsn:,}, the primary at {found.primary_lsn:,}"
    print(f"the histories part behind LSN {found.fork_lsn:,}; {ends}")
    if found.lsn == found.fork_lsn:
        print("nothing would be left behind: the store follows at once")
        return
    told = ", ".join(f"{count:,} {name}" for name, count in sorted(found.kinds.items()))
    target = os.path.join(path, "diverged")
    print(f"{found.records:,} records of {found.bytes:,} bytes would be exported to {target} and dropped: {told}")
    if not found.is_complete:
        print("the log was cut: beyond it, points are exported as they are now, marked incomplete")
    if found.needs_snapshot:
        print(f"afterwards all is fetched from the primary, since {found.why_snapshot}")
    else:
        print(f"the {found.points:,} points that they touched are set as the primary has them")
    print("nothing was changed")


@click.command("adopt")
@click.argument("directory", metavar="DIR")
@click.option("--moved", is_flag=True, help="It is the store: its old directory is gone.")
@click.option("--clone", is_flag=True, help="It is another store: it leaves the lineage.")
@click.option("--config", "file", metavar="FILE", help="TOML file of the server's options, for how others are reached.")
@reporting
@reaching
def adopt_command(out: Output, *, directory: str, moved: bool, clone: bool, file: str | None) -> None:
    """Say what the copied directory DIR is, so that it may write again.

    A primary that moved begins a new epoch: should the original live, it is fenced as soon as it hears of it. A clone
    gets a lineage of its own, and neither believes a word of the other.
    """
    path = store_directory(directory)
    if moved == clone:
        raise InvalidArgument("--moved, --clone: give one of them")
    if clone:
        try:
            from ..engine.contents.leave import leave_lineage
        except ImportError as exc:
            raise missing(exc.name or str(exc), "cpu") from exc
        if not os.path.exists(path):
            raise NotFound(f"there is no store at {path!r}")
        leave_lineage(path)
        text = "it is a store of its own"
    else:
        with taking_part(path, file, "") as member:
            done, text = member.commands.run("adopt", b"{}")
        if not done:
            raise InvalidArgument(f"adopt: {text}")
    with open_for_writing(path) as database:
        status = database.status()
    result = {name: status[name] for name in ("store_id", "lineage", "role", "epoch", "lsn")}
    out.result({**result, "text": text}, f"{path}: {text}: store {status['store_id']}, lineage {status['lineage']}")
