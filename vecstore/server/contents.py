"""A store's contents as a whole, as the driver asks for them: handed out, brought in, kept, exported, reset, returned.

What is done to the files is `engine/contents`; here the open engine, the network and the node are put to it. All of it
but `read` runs in one thread of the driver's, one thing at a time; `read` is called by whoever fetches.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from ..backup.archive import Archive
from ..backup.catalogue import read_lineage
from ..backup.repository import Repository, is_repository
from ..config import MIB
from ..engine.contents import keep
from ..engine.contents.export import export
from ..engine.contents.incoming import Incoming
from ..engine.contents.install import install
from ..engine.contents.mend import Wanted, mend
from ..engine.contents.outgoing import Outgoing
from ..engine.contents.reset import reset
from ..engine.engine import Engine
from ..engine.verify import verify
from ..errors import Unavailable
from ..record import Record
from ..replication.coding import encode_state
from ..replication.contents import Left, ReplaceFailed
from ..replication.durable import Difference, Durable
from ..replication.log import Place
from ..replication.messages import Points, Snapshot
from ..replication.ticket import Ticket, TicketFile
from . import log

__all__ = ["StoreContents"]

ARCHIVED_BYTES_MAX = 32 * MIB
"""Of records that are read from an archive at a time."""

Fetch = Callable[[str, str, str, int], Iterator[bytes]]
Replace = Callable[[Callable[[str], Any]], Engine]


class StoreContents:
    """The contents of one served store; implements the driver's `Contents`.

    Parameters
    ----------
    engine
        Returns the engine that is open now.
    replace
        Closes the store, lets something be done to its folder, opens it again.
    fetch
        Reads a file of a ticket from an address, from an offset on.
    address
        Returns where a store is reached, by its id.
    archive
        Repository of the log; empty for none.
    """

    def __init__(
        self, engine: Callable[[], Engine], replace: Replace, fetch: Fetch, address: Callable[[str], str], archive: str
    ) -> None:
        self._engine, self._replace, self._fetch, self._address = engine, replace, fetch, address
        self._archive = archive
        self._lock = threading.Lock()
        self._log = log.logger()
        self._outgoing: tuple[Engine, Outgoing] | None = None

    # -- handed out --------------------------------------------------------------------------------------------------

    def snapshot(self) -> tuple[Place, Ticket]:
        """Take a snapshot at a durable LSN, kept for a while."""
        taken = self._current().take()
        return Place(taken.lsn, taken.chain), _ticket(taken.id, taken.files)

    def points(self, ids: Sequence[Any]) -> tuple[int, Ticket]:
        """Read points at a durable LSN, and keep them for a while."""
        taken = self._current().take_points(ids)
        return taken.lsn, _ticket(taken.id, taken.files)

    def read(self, id: str, name: str, offset: int, bytes_max: int) -> bytes:
        """Return a piece of a file that is kept for somebody, empty behind its end."""
        return self._current().read(id, name, offset, bytes_max)

    def _current(self) -> Outgoing:
        engine = self._engine()
        with self._lock:
            if self._outgoing is None or self._outgoing[0] is not engine:
                self._outgoing = (engine, Outgoing(engine))
            return self._outgoing[1]

    # -- brought in --------------------------------------------------------------------------------------------------

    def install(self, snapshot: Snapshot, state: Callable[[], Durable]) -> Engine:
        """Fetch a snapshot and put it in place of all that is here, with the durable state in it."""
        self._bring(snapshot.claim.store_id, snapshot.content)
        lineage = self._engine().lineage
        return self._put(lambda path: install(path, encode_state(state()), lineage))

    def reset(self, fork: Place, points: Points, state: Callable[[], Durable]) -> Engine:
        """Drop the log behind a fork, and set the points that it touched."""
        incoming = self._bring(points.claim.store_id, points.content)
        engine = self._put(lambda path: reset(path, fork.lsn, incoming.points, encode_state(state()), fork.chain))
        incoming.discard()
        return engine

    def tidy(self) -> None:
        """Remove what was fetched and is not needed any more: this store takes its records from the stream, or none."""
        Incoming(self._engine().directory.path).discard()

    def expire(self) -> None:
        """Let go what nobody fetches any more. Callable from any thread."""
        with self._lock:
            outgoing = self._outgoing
        if outgoing is not None:
            outgoing[1].expire()

    def _put(self, offline: Callable[[str], Any]) -> Engine:
        """Do something to the closed store; return the engine that is open then, or raise `ReplaceFailed` with it."""
        failed: list[Exception] = []

        def attempt(path: str) -> None:
            try:
                offline(path)
            except Exception as exc:  # noqa: BLE001  (the store is opened again first)
                failed.append(exc)

        engine = self._replace(attempt)
        if failed:
            raise ReplaceFailed(engine) from failed[0]
        return engine

    def mend(self, points: Points, differences: Sequence[Difference]) -> None:
        """Make points that differ what the primary has read of them, durably."""
        incoming = self._bring(points.claim.store_id, points.content)
        wanted = {point.place: Wanted(point.lsn, one.lsn) for one in differences for point in one.points}
        mended = mend(self._engine(), incoming.points, wanted)
        incoming.discard()
        self._log.warning("points mended", **asdict(mended))

    def _bring(self, store_id: str, content: Any) -> Incoming:
        ticket, address = Ticket.of(content), self._address(store_id)
        if not address:
            raise Unavailable(f"it is not known where store {store_id} is reached")
        engine = self._engine()
        incoming = Incoming(engine.directory.path, engine.config.disk_free_bytes_min)
        incoming.begin(ticket.id, [(file.name, file.size, file.check) for file in ticket.files])
        for name, offset in incoming.missing():
            incoming.receive(name, self._fetch(address, ticket.id, name, offset))
        return incoming

    def archived(self, after_lsn: int) -> Sequence[Record]:
        """Return records after an LSN from the archive, as many as memory should hold; none where it does not reach."""
        if not self._archive or not is_repository(self._archive):
            return ()
        repository, lineage = Repository(self._archive), self._engine().lineage.hex()
        tip = self._engine().state.fold.tip
        archive, found = Archive(repository, lineage), read_lineage(repository, lineage)
        taken: list[Record] = []
        place, size = Place(tip.lsn, tip.chain), 0
        if place.lsn != after_lsn:
            return ()
        # A branch goes on where another one stops: they are tried in the order of their epochs.
        for branch, names in sorted(found.ranges.items(), key=lambda item: item[0].number):
            for name in names:
                if not name.first <= place.lsn + 1 <= name.last:
                    continue
                for record in archive.read(branch, name).records:
                    if record.lsn > place.lsn and record.follows(*place):
                        taken.append(record)
                        place, size = Place(record.lsn, record.mark.chain), size + record.size
                if size >= ARCHIVED_BYTES_MAX:
                    return taken
        return taken

    # -- of a rejoin -------------------------------------------------------------------------------------------------

    def checkpoint(self) -> None:
        """Keep the store as it is, for `back`."""
        keep.checkpoint(self._engine())

    def export(self, fork_lsn: int, is_complete: bool) -> Left:
        """Export what lies behind a fork, durably."""
        left = export(self._engine(), fork_lsn, is_complete)
        return Left(tuple(left.ids), left.needs_snapshot)

    def back(self, state: Callable[[], Durable]) -> Engine:
        """Put what was kept in place again."""
        return self._put(lambda path: keep.back(path, encode_state(state())))

    def discard(self) -> None:
        """Keep it no longer."""
        keep.discard(self._engine().directory.path)

    def verify(self) -> bool:
        """Recompute the digests from the bytes; return whether they are those in the log."""
        return bool(verify(self._engine(), None)["ok"])

    def close(self) -> None:
        """Let go of what is kept for others."""
        with self._lock:
            if self._outgoing is not None:
                self._outgoing[1].close()
                self._outgoing = None


def _ticket(id: str, files: Sequence[tuple[str, int, str]]) -> Ticket:
    return Ticket(id, tuple(TicketFile(*file) for file in files))
