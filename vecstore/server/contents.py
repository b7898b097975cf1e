"""A store's contents as a whole, as the driver asks for them: handed out, and put in place of what is here."""
# What a rejoin needs of them follows.

from __future__ import annotations

from typing import Any

from ..engine.contents.incoming import Incoming
from ..engine.contents.install import install
from ..engine.contents.outgoing import Outgoing
from ..replication.coding import encode_state
from ..replication.log import Place
from ..replication.ticket import Ticket, TicketFile


__all__ = ["StoreContents"]


class StoreContents:
    """The contents of one served store."""

    def __init__(self, engine: Any, replace: Any, fetch: Any, address: Any, archive: str = "") -> None:  # noqa: ARG002
        self._engine, self._replace, self._fetch, self._address = engine, replace, fetch, address
        self._outgoing: Any = None

    def _out(self) -> Any:
        if self._outgoing is None or self._outgoing[0] is not self._engine():
            self._outgoing = (self._engine(), Outgoing(self._engine()))
        return self._outgoing[1]

    def snapshot(self) -> Any:
        taken = self._out().take()
        return Place(taken.lsn, taken.chain), Ticket(taken.id, tuple(TicketFile(*file) for file in taken.files))

    def read(self, id: str, name: str, offset: int, bytes_max: int) -> bytes:
        found: bytes = self._out().read(id, name, offset, bytes_max)
        return found

    def install(self, snapshot: Any, state: Any) -> Any:
        ticket = Ticket.of(snapshot.content)
        address = self._address(snapshot.claim.store_id)
        incoming = Incoming(self._engine().directory.path)
        incoming.begin(ticket.id, [(file.name, file.size, file.check) for file in ticket.files])
        for name, offset in incoming.missing():
            incoming.receive(name, self._fetch(address, ticket.id, name, offset))
        return self._replace(lambda path: install(path, encode_state(state), self._engine().lineage))

    def archived(self, after_lsn: int) -> Any:  # noqa: ARG002
        return ()

    def points(self, ids: Any) -> Any:
        raise NotImplementedError

    def checkpoint(self) -> None:
        raise NotImplementedError

    def export(self, fork_lsn: int, is_complete: bool) -> Any:
        raise NotImplementedError

    def reset(self, fork_lsn: int, points: Any, state: Any) -> Any:
        raise NotImplementedError

    def back(self, state: Any) -> Any:
        raise NotImplementedError

    def discard(self) -> None:
        return

    def verify(self) -> bool:
        raise NotImplementedError

    def close(self) -> None:
        return
