"""A store in a directory takes part in the replication, in this process and for one command, and serves nobody."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from .where import missing, open_for_writing, reached_by

if TYPE_CHECKING:
    from ..server.replication import Replication

__all__ = ["taking_part"]


@contextmanager
def taking_part(path: str, file: str | None, primary: str) -> Iterator[Replication]:
    """Open the store in a directory as a member of the replication that serves nobody."""
    try:
        from ..engine.database import EmbeddedDatabase
        from ..server import log, settings
        from ..server.replication import Replication
    except ImportError as exc:
        raise missing(exc.name or str(exc), "server") from exc
    flags: dict[tuple[str, str], Any] = {("server", "data"): path, ("log", "level"): "error"}
    flags |= {("replication", name): value for name, value in reached_by().items()}
    if primary:
        flags["replication", "standby_of"] = primary
    loaded = settings.load(file, flags)
    log.begin(loaded.log)
    with open_for_writing(path) as database:
        assert isinstance(database, EmbeddedDatabase)
        made = Replication(database.engine, loaded, lambda: "", database.replace)
        made.start()
        try:
            yield made
        finally:
            made.close()
