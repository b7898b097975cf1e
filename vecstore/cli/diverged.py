"""The command `diverged`: what rejoins of a store have left behind a fork is listed, shown, replayed, and dropped.

It works on the store's directory, whoever serves it. An export may be the only copy of what is in it: nothing else
removes one.
"""

from __future__ import annotations

import os
from typing import Any

import click
import msgspec

from .output import Output, reporting
from .where import open_for_writing, reaching, store_directory

__all__ = ["diverged_command", "summed"]


def summed(summary: Any) -> str:
    """Return what an export is of, in a few words."""
    points = sum(left.upserts + left.deletes for left in summary.collections)
    whole = "" if summary.is_complete else ", INCOMPLETE: the log was cut"
    return f"{summary.records:,} records behind LSN {summary.fork_lsn:,}, {points:,} points{whole}"


@click.group("diverged")
def diverged_command() -> None:
    """List, show, replay or drop what a rejoin has left behind."""


@diverged_command.command("list")
@click.argument("directory", metavar="DIR")
@reporting
def list_command(out: Output, *, directory: str) -> None:
    """List the exports in the directory DIR of a store; it may be served meanwhile."""
    from ..engine.contents.diverged import exports
    from ..engine.contents.drop import bytes_of, loss

    path = store_directory(directory)
    found = exports(path)
    sizes = [bytes_of(path, one.name) for one in found]
    lost = [loss(path, one.name) for one in found]

    def show() -> None:
        if not found:
            print("nothing was left behind")
            return
        rows = [
            [
                one.name,
                one.fork_lsn,
                one.tip_lsn,
                one.records,
                size,
                "whole" if one.is_complete else "INCOMPLETE",
                str(left),
            ]
            for one, size, left in zip(found, sizes, lost, strict=True)
        ]
        out.table(["export", "behind LSN", "to LSN", "records", "bytes", "", "not replayed"], rows)

    result = [
        {**msgspec.to_builtins(one), "bytes": size, "unreplayed": msgspec.to_builtins(left)}
        for one, size, left in zip(found, sizes, lost, strict=True)
    ]
    out.result(result, show)


@diverged_command.command("show")
@click.argument("directory", metavar="DIR")
@click.argument("name")
@click.option("--limit", type=click.IntRange(min=0), default=20, show_default=True, help="Rows of each collection.")
@reporting
def show_command(out: Output, *, directory: str, name: str, limit: int) -> None:
    """Show what the export NAME holds: points of each collection, and records that are about more than points."""
    from itertools import islice

    from ..engine.contents.diverged import read_export, rows

    path = store_directory(directory)
    summary, others = read_export(path, name)
    shown = {left.name: list(islice(rows(path, name, left.number), limit)) for left in summary.collections}
    result = {
        "summary": msgspec.to_builtins(summary),
        "records": others,
        "collections": {
            each: [{**row, "commit_time": str(row["commit_time"])} for row in some] for each, some in shown.items()
        },
    }

    def show() -> None:
        print(f"{summary.name}: {summed(summary)}")
        for other in others:
            print(f"record {other}")
        for each, some in shown.items():
            table = [[row["lsn"], row["operation"], row["id"], row["payload"] or ""] for row in some]
            out.table(["LSN", "operation", "id", "payload"], table, title=each)

    out.result(result, show)


@diverged_command.command("replay")
@click.argument("directory", metavar="DIR")
@click.argument("name")
@click.argument("where")
@click.option("--collection", "collections", multiple=True, metavar="NAME", help="Only this one; may be repeated.")
@reporting
@reaching
def replay_command(out: Output, *, directory: str, name: str, where: str, collections: tuple[str, ...]) -> None:
    """Write what the export NAME in DIR holds into the store WHERE, over what is there.

    Records are written again in their order, each once, whatever has been written to those points since: look at them
    first (`vecstore diverged show`).
    """
    from ..engine.contents.diverged import replay

    path = store_directory(directory)
    with open_for_writing(where) as database:
        done = replay(path, name, database, set(collections) or None)

    def show() -> None:
        for each, count in done.items():
            print(f"{count:,} points of {each} were written or deleted")
        if not done:
            print("nothing to replay")

    out.result(done, show)


@diverged_command.command("drop")
@click.argument("directory", metavar="DIR")
@click.argument("name")
@click.option("--accept-loss", is_flag=True, help="Remove also what was replayed nowhere: it is lost for good.")
@reporting
def drop_command(out: Output, *, directory: str, name: str, accept_loss: bool) -> None:
    """Remove the export NAME from the directory DIR of a store; it may be served meanwhile.

    It may be the only copy of acknowledged records. What was not replayed into a store of its lineage is named, and the
    export then stays, unless --accept-loss is given.
    """
    from ..engine.contents.drop import bytes_of, drop

    path = store_directory(directory)
    size = bytes_of(path, name)
    lost = drop(path, name, accept_loss=accept_loss)
    said = f"lost for good: {lost}" if lost else "all of it had been replayed"
    text = f"{os.path.join(path, 'diverged', name)} is removed, {size:,} bytes; {said}"
    out.result({"name": name, "bytes": size, "lost": msgspec.to_builtins(lost)}, text)
