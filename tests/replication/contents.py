"""What the tests of contents share: fetching from one store into the folder of another, in pieces."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from tests.replication.pair import committer_of
from tests.support.writer import SHARED
from vecstore.api import Database
from vecstore.engine.contents.incoming import Incoming
from vecstore.engine.contents.outgoing import Outgoing, Taken
from vecstore.engine.database import EmbeddedDatabase
from vecstore.engine.slots import Standbys
from vecstore.replication.coding import encode_state
from vecstore.replication.durable import Durable, RejoinState
from vecstore.storage.catalog import Epoch, Part

__all__ = ["FENCED", "PRIMARY", "STANDBY", "fetch", "part_of", "part_ways", "write_points"]

STANDBY = encode_state(Durable("standby", primary="a", rejoin=RejoinState("follow", "a")))
FENCED = encode_state(Durable("fenced", reason="a test", rejoin=RejoinState("reset", "a")))
"""In a rejoin, both: else what it could go back to would be gone at the next open."""
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


def write_points(database: Database, seed: int, count: int) -> None:
    """Write, overwrite and delete points of the collections that are there: nothing but points."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        name = sorted(SHARED)[number % len(SHARED)]
        collection = database.collection(name)
        ids = rng.choice(3_000, int(rng.integers(1, 60)), replace=False).tolist()
        named = ids if name == "ints" else [f"s{id}" for id in ids]
        if rng.random() < 0.3:
            collection.delete(ids=named)
        else:
            vectors = rng.standard_normal((len(ids), collection.dim), dtype=np.float32)
            collection.upsert(named, vectors, [{"owner": 0, "group": id % 7, "text": f"p{seed}-{id}"} for id in ids])


def part_ways(a: EmbeddedDatabase, b: EmbeddedDatabase) -> int:
    """Promote the second of two equal stores; return the fork. The first one still takes writes."""
    committer = committer_of(b.engine)
    tip = committer.tip
    b.engine.slots.standbys = lambda: Standbys(holds_all=True)
    committer.persist(PRIMARY, Epoch(2, "b" * 16, tip.lsn, tip.chain.hex()))
    committer.open_writes()
    assert committer_of(a.engine).tip.lsn == tip.lsn
    lsn: int = tip.lsn
    return lsn
