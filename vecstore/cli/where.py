"""Opens WHERE: the directory of a store now, the address of a server later. The one place that tells them apart."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from ..api import Database
from ..errors import EngineMissing, Locked, NotFound, Unavailable

__all__ = ["missing", "open_for_reading", "open_for_writing", "store_directory"]

_ADDRESS = re.compile(r"[A-Za-z0-9_.\[\]:-]+:[0-9]{1,5}")


def store_directory(where: str) -> str:
    """Return the directory that WHERE names.

    Raises
    ------
    Unavailable
        WHERE is the address of a server, which this version does not have.
    """
    if _ADDRESS.fullmatch(where) and not Path(where).exists():
        raise Unavailable(
            f"{where!r} is the address of a server, and this version of vecstore has none yet",
            hint="give the directory of a store on this machine",
            retryable=False,
        )
    return where


def open_for_writing(where: str, *, create: bool = False) -> Database:
    """Open a store; with `create`, make it where there is none."""
    path = store_directory(where)
    if not create and not Path(path).exists():
        raise NotFound(f"there is no store at {where!r}", hint="vecstore create WHERE NAME --dim N makes one")
    return _open(path, create=create, read_only=False)


def open_for_reading(where: str, say: Callable[[str], None]) -> Database:
    """Open a store to read it; where another process has it, read what that process has made durable.

    The store is opened for writing where that is possible, because that brings its state up to the end of the log.
    """
    try:
        return open_for_writing(where)
    except Locked as exc:
        holder = exc.details.get("pid")
    store = _open(store_directory(where), create=False, read_only=True)
    say(f"process {holder} has {where}: reading its last state" if holder else f"reading the last state of {where}")
    return store


def missing(library: str, extra: str) -> EngineMissing:
    """Return the error for a library that only an extra installs."""
    return EngineMissing(f"this needs {library}, which is not installed", hint=f"pip install 'vecstore-db[{extra}]'")


def _open(path: str, *, create: bool, read_only: bool) -> Database:
    try:
        from vecstore import open as open_store
    except EngineMissing:
        raise
    except ImportError as exc:
        raise missing(exc.name or str(exc), "cpu") from exc
    database: Database = open_store(path, create=create, read_only=read_only)
    return database
