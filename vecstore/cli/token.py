"""The command `token`: makes a secret for one caller of a server, and the entry for the server's file of tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..errors import AlreadyExists, InvalidArgument
from ..inputs import checked_name
from .output import Output, reporting

__all__ = ["token_command"]


@click.command("token")
@click.argument("name")
@click.option(
    "--role",
    type=click.Choice(["read", "write", "admin", "replicate"]),
    default="read",
    show_default=True,
    help="What the caller may do; write includes read, admin includes both.",
)
@click.option(
    "--collection",
    "collections",
    multiple=True,
    metavar="NAME",
    help="A collection that it may do so to; may be given again. Without, all of them and the store itself.",
)
@click.option(
    "--add-to",
    "file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Append the entry to this file, which the server reads as auth.tokens.",
)
@reporting
def token_command(out: Output, *, name: str, role: Any, collections: tuple[str, ...], file: Path | None) -> None:
    """Make a token for the caller NAME. Its secret is printed once and kept nowhere."""
    # The server's parts are read when the command runs, so that help stays fast.
    from ..server.auth import entry_text, new_secret
    from ..server.caller import Grant

    for collection in collections:
        checked_name(collection, "collection")
    secret = new_secret()
    entry = entry_text(name, secret, [Grant(role, frozenset(collections) if collections else None)])
    if file is not None:
        _append(file, name, entry)
        out.say(f"added to {file}; a running server reads it again on SIGHUP")
    else:
        out.say("entry for the server's file of tokens:")
    out.say("the secret follows; it is shown this once")
    text = secret if file is not None else f"{entry}\n{secret}"
    out.result({"name": name, "entry": entry, "secret": secret}, text)


def _append(file: Path, name: str, entry: str) -> None:
    """Add an entry to a file that only its owner can write."""
    import tomllib

    old = file.read_text() if file.exists() else ""
    try:
        names = [one.get("name") for one in tomllib.loads(old).get("token", [])]
    except (ValueError, AttributeError, TypeError) as exc:
        raise InvalidArgument(f"--add-to: {file} is no file of tokens: {exc}") from exc
    if name in names:
        raise AlreadyExists(f"name: {file} has a token {name!r} already", details={"name": name})
    file.touch(mode=0o600)
    with file.open("a") as open_file:
        open_file.write(f"\n{entry}" if old else entry)
