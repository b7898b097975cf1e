"""The collections of a database by number and by name, as far as the caller sees them.

A number names a collection for good, so handles are kept; a name is looked up each time. A collection that the caller
does not see is not there, and no error speaks of it. Thread-safe.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

from ..api import Collection, Database
from ..errors import NotFound
from ..inputs import checked_name
from . import caller

__all__ = ["Directory"]

_NAMED_MAX = 10
_GONE_MAX = 1_024
"""Handles on collections that were dropped are kept for a while: an old client learns what became of its own."""


class Directory:
    """Finds collections.

    Parameters
    ----------
    database
        Whose collections they are.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = Lock()
        self._known: dict[int, tuple[Collection, str]] = {}

    def names(self) -> list[str]:
        """Return the names that the caller sees, sorted."""
        sees = caller.current().sees
        return [name for name in self._database.collections() if sees(name)]

    def by_number(self, number: int) -> Collection:
        """Return the collection of a number; raises `NotFound`."""
        entry = self._known.get(number) or self._look(number)
        if entry is None or not caller.current().sees(self._name_now(number, entry)):
            raise NotFound(f"collection: there is none of number {number}", details={"number": number})
        return entry[0]

    def name_of(self, number: int) -> str | None:
        """Return the name of the collection of a number, the last that it had where it was dropped."""
        entry = self._known.get(number) or self._look(number)
        return None if entry is None else self._name_now(number, entry)

    def _name_now(self, number: int, entry: tuple[Collection, str]) -> str:
        try:
            name = entry[0].name
        except NotFound:
            return entry[1]
        if name != entry[1]:
            self._known[number] = (entry[0], name)
        return name

    def by_name(self, name: str) -> Collection:
        """Return the collection of a name; raises `NotFound`."""
        with self.own_words(name):
            return self._database.collection(name)

    @contextmanager
    def own_words(self, name: str) -> Iterator[None]:
        """Keep a name that the caller does not see from the body, and names that it does not see from its errors."""
        checked_name(name)
        if not caller.current().sees(name):
            raise self._missing(name)
        try:
            yield
        except NotFound as exc:
            raise self._missing(name) from exc

    def _missing(self, name: str) -> NotFound:
        known = ", ".join(self.names()[:_NAMED_MAX]) or "none"
        return NotFound(f"name: there is no collection {name!r}; there are: {known}", details={"name": name})

    def _look(self, number: int) -> tuple[Collection, str] | None:
        """Learn of the collections that came since."""
        with self._lock:
            found: dict[int, tuple[Collection, str]] = {}
            for name in self._database.collections():
                try:
                    handle = self._database.collection(name)
                except NotFound:
                    continue
                found[handle.number] = (handle, name)
            gone = [old for old in self._known if old not in found]
            kept = {old: self._known[old] for old in gone[-_GONE_MAX:]}
            self._known = {**kept, **found}
            return self._known.get(number)
