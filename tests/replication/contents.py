"""What the tests of contents share: fetching from one store into the folder of another, in pieces."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from vecstore.engine.contents.incoming import Incoming
from vecstore.engine.contents.outgoing import Outgoing, Taken
from vecstore.replication.coding import encode_state
from vecstore.replication.durable import Durable
from vecstore.storage.catalog import Part

__all__ = ["FENCED", "PRIMARY", "STANDBY", "fetch", "part_of"]

STANDBY = encode_state(Durable("standby", primary="a"))
FENCED = encode_state(Durable("fenced", reason="a test"))
PRIMARY = encode_state(Durable("primary"))
_PIECE = 50_000


def fetch(outgoing: Outgoing, taken: Taken, path: Path) -> Incoming:
    """Bring what was taken into a folder."""
    incoming = Incoming(str(path))
    incoming.begin(taken.id, taken.files)
    for name, offset in incoming.missing():
        incoming.receive(name, _pieces(outgoing, taken.id, name, offset))
    assert incoming.missing() == []
    return incoming


def _pieces(outgoing: Outgoing, id: str, name: str, offset: int) -> Iterator[bytes]:
    while piece := outgoing.read(id, name, offset, _PIECE):
        offset += len(piece)
        yield piece


def part_of(state: bytes | None) -> dict[str, Any]:
    """Return what a replication state says, as far as an engine reads it."""
    assert state is not None
    found: dict[str, Any] = msgspec.to_builtins(Part.decode(state))
    return found
