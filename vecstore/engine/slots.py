"""Slots: the places that consumers of the log have come to. The log is kept for them, up to a limit.

A slot is an entry in the meta family, written by the committer when its consumer has moved on. It need not be synced:
a place that is older than the truth costs the consumer a second look at what it has.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from ..record import Header, log_key
from ..storage import catalog
from ..storage.base import Family, KeyValueStore
from .committer import Committer

__all__ = ["Slot", "Slots", "Standbys"]


class Slot(msgspec.Struct, frozen=True):
    """A consumer's place: it has all records up to `lsn`.

    Attributes
    ----------
    consumer
        Who it is: for an archive, the repository.
    chain
        After record `lsn`, in hex; empty where it is not known.
    log_bytes
        Bytes of the log up to there.
    """

    name: str
    consumer: str
    lsn: int
    chain: str
    log_bytes: int


class Standbys(msgspec.Struct, frozen=True):
    """What the replication needs of the log.

    Attributes
    ----------
    lsns
        Places that standbys have come to.
    holds_all
        Nothing may be cut: what is behind a fork is still to be exported.
    """

    lsns: tuple[int, ...] = ()
    holds_all: bool = False


class Slots:
    """The slots of one open store. Read by any thread; written through the committer.

    Attributes
    ----------
    standbys
        Tells what the replication needs of the log.
    """

    def __init__(self, store: KeyValueStore, committer: Committer, retained_bytes_max: int) -> None:
        self._store, self._committer, self._retained_bytes_max = store, committer, retained_bytes_max
        self.standbys: Callable[[], Standbys] = Standbys
        found = store.scan(Family.META, catalog.SLOT, catalog.SLOT[:-1] + b"0")
        slots = [msgspec.json.decode(value, type=Slot) for _, value in found]
        self.held: dict[str, Slot] = {slot.name: slot for slot in slots}

    def set(self, slot: Slot) -> None:
        """Say where a consumer is."""

        def write() -> None:
            self._store.write([(Family.META, catalog.SLOT + slot.name.encode(), msgspec.json.encode(slot))])
            self.held = {**self.held, slot.name: slot}

        self._committer.run(write)

    def drop(self, name: str) -> None:
        """Forget a consumer: the log is no longer kept for it."""

        def remove() -> None:
            self._store.write([(Family.META, catalog.SLOT + name.encode(), None)])
            self.held = {other: slot for other, slot in self.held.items() if other != name}

        self._committer.run(remove)

    def limit(self, last: int, tip_log_bytes: int) -> int:
        """Return up to which LSN the log may be cut: `last`, or less where a consumer still needs it.

        One that is so far behind that the log would grow beyond its limit is not waited for.
        """
        standbys = self.standbys()
        if standbys.holds_all:
            return 0
        places = [slot.lsn for slot in self.held.values() if tip_log_bytes - slot.log_bytes <= self._retained_bytes_max]
        places += [lsn for lsn in standbys.lsns if lsn < last and self._retained(lsn, tip_log_bytes)]
        return min([last, *places])

    def _retained(self, lsn: int, tip_log_bytes: int) -> bool:
        """Return whether the log is kept for a standby that has come to an LSN."""
        for _, value in self._store.scan(Family.LOG, log_key(lsn + 1), log_key(lsn + 2)):
            return tip_log_bytes - Header.decode(value).log_bytes <= self._retained_bytes_max
        return False

    def is_lost(self, slot: Slot, tip_log_bytes: int) -> bool:
        """Return whether the log is no longer kept for a consumer."""
        return tip_log_bytes - slot.log_bytes > self._retained_bytes_max
