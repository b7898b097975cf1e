"""Opens WHERE: the directory of a store, or the address of a server. The one place that tells them apart."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from ..api import Database
from ..errors import EngineMissing, InvalidArgument, Locked, NotFound

if TYPE_CHECKING:
    from ..client.operator import Operator

__all__ = [
    "has_credentials",
    "is_server",
    "missing",
    "open_as_it_is",
    "open_for_reading",
    "open_for_writing",
    "operating",
    "reached_by",
    "reaching",
    "state_folder",
    "store_directory",
]

_token_file: ContextVar[str | None] = ContextVar("vecstore_token_file", default=None)
_ca: ContextVar[str | None] = ContextVar("vecstore_ca", default=None)


def reaching(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command that takes WHERE the options with which a server is reached."""

    @click.option("--token-file", metavar="FILE", help="File of the token for a server; else VECSTORE_TOKEN has it.")
    @click.option("--ca", metavar="FILE", help="Authority of a server's certificate, PEM; else VECSTORE_CA names it.")
    @functools.wraps(function)
    def run(*arguments: Any, token_file: str | None, ca: str | None, **more: Any) -> None:
        _token_file.set(token_file)
        _ca.set(ca)
        function(*arguments, **more)

    return run


def is_server(where: str) -> bool:
    """Tell whether WHERE is an address, or several with commas between; a directory of that name goes before."""
    if ":" not in where or Path(where).exists():
        return False
    from ..client.endpoint import is_address

    return all(map(is_address, where.split(",")))


def store_directory(where: str) -> str:
    """Return the directory that WHERE names, for what works on a store of this machine alone.

    Raises
    ------
    InvalidArgument
        WHERE is the address of a server.
    """
    if is_server(where):
        raise InvalidArgument(
            f"{where!r} is the address of a server, and this command works on a directory",
            hint="run it on the server's machine, with the directory of its store",
        )
    return where


def state_folder(where: str) -> Path:
    """Return where this machine remembers how far work on a store has come: beside the store, or the user's own."""
    if not is_server(where):
        return Path(where)
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(home) / "vecstore" / where.replace(":", "_")


def open_for_writing(where: str, *, create: bool = False) -> Database:
    """Open a store; with `create`, make it where there is none."""
    if is_server(where):
        return _connect(where, "primary")
    if not create and not Path(where).exists():
        raise NotFound(f"there is no store at {where!r}", hint="vecstore create WHERE NAME --dim N makes one")
    return _open(where, create=create, read_only=False)


def open_for_reading(where: str, say: Callable[[str], None]) -> Database:
    """Open a store to read it; where another process has it, read what that process has made durable.

    The store is opened for writing where that is possible, because that brings its state up to the end of the log.
    """
    if is_server(where):
        return _connect(where, "any")
    try:
        return open_for_writing(where)
    except Locked as exc:
        holder = exc.details.get("pid")
    store = _open(where, create=False, read_only=True)
    say(f"process {holder} has {where}: reading its last state" if holder else f"reading the last state of {where}")
    return store


def open_as_it_is(where: str) -> Database:
    """Open a directory to read the last state in it, and change nothing there, whoever else has it open."""
    if not Path(where).exists():
        raise NotFound(f"there is no store at {where!r}")
    return _open(where, create=False, read_only=True)


def operating(where: str) -> Operator:
    """Return a connection to the one server that WHERE names, for commands to it.

    Raises
    ------
    InvalidArgument
        WHERE is no address of one server.
    """
    if not is_server(where) or "," in where:
        raise InvalidArgument(
            f"{where!r} is not the HOST:PORT of one server",
            hint="such a command is given to a store that is served: `vecstore serve --data DIR`",
        )
    from ..client.operator import Operator
    from ..values import TLS

    file, ca = _token_file.get(), _ca.get()
    return Operator(where, token=None if file is None else _token_of(file), tls=TLS(ca=ca) if ca else False)


def reached_by() -> dict[str, str]:
    """Return with what other stores are reached, as options of `[replication]`."""
    found = {"token_file": _token_file.get(), "ca": _ca.get() or os.environ.get("VECSTORE_CA")}
    return {name: value for name, value in found.items() if value}


def has_credentials() -> bool:
    """Tell whether calls carry something that must not be shown to others than those named."""
    return _token_file.get() is not None or bool(os.environ.get("VECSTORE_TOKEN", "").strip())


def missing(library: str, extra: str) -> EngineMissing:
    """Return the error for a library that only an extra installs."""
    return EngineMissing(f"this needs {library}, which is not installed", hint=f"pip install 'vecstore-db[{extra}]'")


def _connect(where: str, read_from: Literal["primary", "any"]) -> Database:
    from vecstore import TLS, connect

    file, ca = _token_file.get(), _ca.get()
    token = None if file is None else _token_of(file)
    return connect(where.split(","), token=token, tls=TLS(ca=ca) if ca else False, read_from=read_from)


def _token_of(file: str) -> str:
    try:
        return Path(file).read_text().strip()
    except FileNotFoundError as exc:
        raise NotFound(f"--token-file: {file}: no such file") from exc
    except (OSError, UnicodeDecodeError) as exc:
        raise InvalidArgument(f"--token-file: {file} cannot be read: {exc}") from exc


def _open(path: str, *, create: bool, read_only: bool) -> Database:
    try:
        from vecstore import open as open_store
    except EngineMissing:
        raise
    except ImportError as exc:
        raise missing(exc.name or str(exc), "cpu") from exc
    database: Database = open_store(path, create=create, read_only=read_only)
    return database
