"""The commands about who writes: `promote`, `step-down`, `switchover`, `history`, `slots`.

A command is for the one store that it names, and is told to its server. What becomes of it is the stores' affair: none
of them needs the command, or this process, any more once it was taken.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any

import click
import msgspec

from ..errors import InvalidArgument, Unavailable, VecstoreError
from .member import taking_part
from .output import Output, duration, reporting
from .where import is_server, open_for_reading, operating, reaching, store_directory

__all__ = ["history_command", "promote_command", "slots_command", "step_down_command", "switchover_command"]

POLL_S = 0.05
ANSWER_S = 5.0
"""So much longer than the store has for a command its answer is waited for."""

_timeout = click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0),
    default=60.0,
    show_default=True,
    help="Seconds to wait.",
)


def _told(where: str, name: str, timeout_s: float, /, **given: Any) -> str:
    """Give the server at an address a command; return what it says once it is done.

    Raises
    ------
    InvalidArgument
        The store refuses.
    """
    with operating(where) as operator:
        verdict = operator.command(name, timeout_s + ANSWER_S, timeout_s=timeout_s, **given)
        if not verdict.done:
            hint = _hint(name, where, operator.describe(), given)
            raise InvalidArgument(f"{name}: {where} refuses: {verdict.text}", hint=hint)
    return verdict.text


def _hint(name: str, where: str, found: dict[str, Any], given: dict[str, Any]) -> str:
    """Return what to do about a refusal: what the store is, and which command helps in that."""
    role, status, address = found["role"], found["status"], found["primary"]["address"]
    primary = address or found["primary"]["store_id"] or "not known"
    if status == "copied":
        return f"say what it is: `vecstore adopt {where} --moved` or `--clone`, with its server stopped"
    if found["rejoin"] is not None:
        phase = found["rejoin"]["phase"]
        return f"its rejoin ({phase}) ends by itself; `vecstore rejoin DIR --abort` goes back, with its server stopped"
    if given.get("replaces", found["epoch"]) != found["epoch"]:
        return f"`vecstore history {where}` says who wrote when; without --replaces it is the epoch that {where} knows"
    if role == "standby" and name in ("step-down", "switchover", "drop-slot"):
        return f"it is a standby ({status}); its primary is {primary}: give the command there"
    if role == "standby":
        return (
            f"it is a standby ({status}) of {primary}; if that still answers, `vecstore switchover` loses nothing; "
            "`--max-loss N` or `--force` accept that records are lost"
        )
    if role == "fenced":
        reason = f": {found['reason']}" if found["reason"] else ""
        return f"it is fenced{reason}; `vecstore promote {where}` makes it the primary, `vecstore rejoin` a standby"
    if name == "switchover":
        return f"`vecstore slots list {where}` says how far each standby is"
    return f"it is the primary ({status}) of epoch {found['epoch']}; `vecstore history {where}` says who wrote when"


@click.command("promote")
@click.argument("where", metavar="HOST:PORT")
@click.option("--wait-token", metavar="TOKEN", default="", help="Only with the record of this token.")
@click.option(
    "--max-loss",
    type=click.IntRange(min=0),
    default=0,
    metavar="RECORDS",
    help="So many may be lost.  [default: 0]",
)
@click.option("--force", is_flag=True, help="Accept any loss of records, and nothing else.")
@click.option("--replaces", type=click.IntRange(min=1), metavar="N", help="The epoch that ends.  [default: its own]")
@_timeout
@reporting
@reaching
def promote_command(
    out: Output,
    *,
    where: str,
    wait_token: str,
    max_loss: int,
    force: bool,
    replaces: int | None,
    timeout_s: float,
) -> None:
    """Make the store at HOST:PORT the primary: it begins a new epoch.

    The old primary is asked to step down first; if it does, nothing is lost. A store that lacks more records than
    --max-loss refuses, and says how many. With --replaces the same command given twice is done once.
    """
    with operating(where) as operator:
        before = operator.describe()
    epoch = replaces if replaces is not None else int(before["epoch"])
    takes_back = before["status"] == "handing" and force
    if before["role"] == "primary" and replaces is None and not takes_back:
        hints = {
            "starting": "it asks its peers first, and opens by itself after replication.start_alone_after_s at most",
            "handing": f"it hands over to a standby; `vecstore promote {where} --force` lets it go on instead",
        }
        raise InvalidArgument(
            f"promote: {where} is the primary of epoch {epoch} already",
            hint=hints.get(before["status"], "there is nothing to do"),
        )
    text = _told(where, "promote", timeout_s, replaces=epoch, max_loss=max_loss, force=force, wait_token=wait_token)
    with operating(where) as operator:
        found = operator.describe()
    result = {"replaced": epoch, **{name: found[name] for name in ("store_id", "role", "status", "epoch", "lsn")}}
    out.result({**result, "text": text}, f"{where} is the primary: {text}")


@click.command("step-down")
@click.argument("where", metavar="HOST:PORT")
@_timeout
@reporting
@reaching
def step_down_command(out: Output, *, where: str, timeout_s: float) -> None:
    """Make the primary at HOST:PORT take no writes any more. Reads go on; `promote` makes it the primary again."""
    text = _told(where, "step-down", timeout_s)
    out.result({"text": text}, f"{where} {text}")


@click.command("switchover")
@click.argument("where", metavar="FROM")
@click.argument("target", metavar="TO")
@click.option(
    "--within",
    "within_s",
    type=click.FloatRange(min=0, min_open=True, max=3_600),
    metavar="S",
    help="Refuse where TO is so far behind that it would need longer.  [default: the server's catch_up_s]",
)
@_timeout
@reporting
@reaching
def switchover_command(out: Output, *, where: str, target: str, within_s: float | None, timeout_s: float) -> None:
    """Hand over from the primary FROM (HOST:PORT) to its standby TO (HOST:PORT, region, slot or store id).

    Nothing is lost: TO begins behind the last record of FROM, which follows it. The stores finish it by themselves,
    whatever becomes of this command. Nobody can write until TO has all that FROM has: where that would take too long,
    FROM refuses and says how far TO is behind.
    """
    start_s = time.monotonic()
    with operating(where) as operator:
        epoch = int(operator.describe()["epoch"])
    text = _told(where, "switchover", timeout_s, target=target, within_s=within_s or 0.0)
    while time.monotonic() - start_s < timeout_s:
        # A store that is on its way may be silent for a moment.
        with contextlib.suppress(VecstoreError):
            found = _now(where)
            if found["epoch"] > epoch and found["role"] != "primary":
                primary, seconds = found["primary"], round(time.monotonic() - start_s, 3)
                result = {"primary": primary, "epoch": found["epoch"], "lsn": found["lsn"], "seconds": seconds}
                name = primary["address"] or primary["store_id"]
                out.result(result, f"{name} is the primary, of epoch {found['epoch']}, in {duration(seconds)}")
                return
            if found["status"] == "open":
                raise InvalidArgument(f"switchover: {target} refused to take over: {where} goes on as the primary")
        time.sleep(POLL_S)
    raise Unavailable(
        f"switchover: {text}, and it did not take over within {timeout_s:.3g} s",
        hint=f"the stores go on with it; {where} can take writes again with `vecstore promote {where} --force`",
        outcome="unknown",
    )


def _now(where: str) -> dict[str, Any]:
    with operating(where) as operator:
        return operator.describe(POLL_S * 40)


@click.command("history")
@click.argument("where")
@reporting
@reaching
def history_command(out: Output, *, where: str) -> None:
    """Say who wrote the log of the store WHERE: each epoch, its writer, and the LSN behind which it begins."""
    found = _described(out, where)
    fields = ("store_id", "lineage", "role", "status", "reason", "lsn", "epochs")
    result = {name: found[name] for name in fields if name in found}

    def show() -> None:
        reason = f" ({found['reason']})" if found.get("reason") else ""
        print(f"store {found['store_id']} of lineage {found['lineage']}: {found['role']}{reason}")
        ends = [epoch["fork_lsn"] for epoch in found["epochs"][1:]] + [found["lsn"]]
        rows = [
            [epoch["number"], epoch["writer"], epoch["fork_lsn"], end, epoch["chain"]]
            for epoch, end in zip(found["epochs"], ends, strict=True)
        ]
        out.table(["epoch", "writer", "begins behind LSN", "to LSN", "chain there"], rows)

    out.result(result, show)


def _described(out: Output, where: str) -> dict[str, Any]:
    """Return what a store is in the replication: as its server says, or as its directory does."""
    if is_server(where):
        with operating(where) as operator:
            return operator.describe()
    with open_for_reading(where, out.say) as database:
        from ..engine.database import EmbeddedDatabase
        from ..replication.coding import decode_state

        assert isinstance(database, EmbeddedDatabase)
        engine, status = database.engine, database.status()
        state = engine.replication_state
        durable = None if state is None else decode_state(state)
        return {
            "store_id": status["store_id"],
            "lineage": status["lineage"],
            "role": "primary" if durable is None else durable.role,
            "reason": "" if durable is None else durable.reason,
            "lsn": status["lsn"],
            "epochs": [msgspec.to_builtins(epoch) for epoch in engine.state.fold.epochs],
            "slots": [
                {
                    "name": slot.name,
                    "store_id": slot.store_id,
                    "region": "",
                    "lsn": slot.lsn,
                    "lag_records": status["lsn"] - slot.lsn,
                    "lag_bytes": None,
                    "lag_seconds": None,
                    "is_lost": slot.is_lost,
                    "connected": False,
                }
                for slot in (() if durable is None else durable.slots)
            ],
        }


@click.group("slots")
def slots_command() -> None:
    """List the places in the log that are held for standbys, or drop one."""


@slots_command.command("list")
@click.argument("where")
@reporting
@reaching
def list_command(out: Output, *, where: str) -> None:
    """List the slots of the store WHERE: how far each standby is, and whether the log is still held for it."""
    described = _described(out, where)
    found = described["slots"]

    def show() -> None:
        if not found:
            is_standby = described["role"] == "standby"
            print("no slots: this store is a standby, ask its primary" if is_standby else "no slots")
            return
        rows = [
            [
                slot["name"],
                slot["store_id"],
                slot["region"],
                slot["lsn"],
                slot["lag_records"],
                "" if slot["lag_bytes"] is None else slot["lag_bytes"],
                "" if slot["lag_seconds"] is None else duration(slot["lag_seconds"]),
                "LOST" if slot["is_lost"] else "connected" if slot["connected"] else "away",
            ]
            for slot in found
        ]
        out.table(["slot", "store", "region", "LSN", "records behind", "bytes", "time", ""], rows)

    out.result(found, show)


@slots_command.command("drop")
@click.argument("where")
@click.argument("name")
@click.option("--gone", is_flag=True, help="Its store never comes back: it is no longer asked about epochs either.")
@click.option("--config", "file", metavar="FILE", help="TOML file of the server's options, where WHERE is a directory.")
@_timeout
@reporting
@reaching
def drop_command(out: Output, *, where: str, name: str, gone: bool, file: str | None, timeout_s: float) -> None:
    """Hold the log no longer for the slot NAME of the primary WHERE: its address, or its directory while it is down."""
    given = {"name": name, "is_gone": gone, "timeout_s": timeout_s}
    if is_server(where):
        with operating(where) as operator:
            _check_slot(operator.describe(), name)
        text = _told(where, "drop-slot", timeout_s, name=name, is_gone=gone)
    else:
        with taking_part(store_directory(where), file, "") as member:
            found = member.describe()
            _check_slot(found, name)
            done, text = member.commands.run("drop-slot", msgspec.json.encode(given))
        if not done:
            raise InvalidArgument(f"drop-slot: {where} refuses: {text}", hint=_hint("drop-slot", where, found, given))
    out.result({"name": name, "gone": gone, "text": text}, text)


def _check_slot(found: dict[str, Any], name: str) -> None:
    if found["role"] == "standby":
        primary = found["primary"]["address"] or found["primary"]["store_id"] or "not known"
        raise InvalidArgument(
            f"slot: this store is a standby, and holds {name!r} for nobody", hint=f"its primary is {primary}"
        )
    names = [slot["name"] for slot in found["slots"]]
    if name not in names:
        raise InvalidArgument(f"slot: there is no {name!r}", hint=f"there are: {', '.join(names) or 'none'}")
