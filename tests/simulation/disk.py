"""A simulated store: a log of real records, the fold of it, and what of both a power loss leaves.

The fold is as simple as it can be (one collection, values for points) and follows the rules of the real one: physical
records, request ids in a window that is part of the fold, a digest that is kept up and stands in every mark.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import msgspec
import xxhash

from vecstore.record import HEADER_BYTES, MARK_BYTES, NO_REQUEST, Header, Kind, Mark, Record, chain_seed, next_chain
from vecstore.replication.durable import Durable
from vecstore.replication.log import Place
from vecstore.storage.catalog import Epoch

MARK_EVERY = 8
FIRST_NAME = 63 << 26
MODULUS = 1 << 128


@lru_cache(100_000)
def point_hash(id: int, value: int) -> int:
    """Return the hash of a point's content."""
    return xxhash.xxh3_128_intdigest(b"%d %d" % (id, value))


@lru_cache(100_000)
def change_of(body: bytes) -> tuple[int, int | None]:
    """Return the id and value of a record about a point."""
    id, value = msgspec.msgpack.decode(body)
    return id, value


def kind_of(value: int | None) -> Kind:
    """Return the kind of record that a client's write becomes: now and then a name."""
    if value is None:
        return Kind.DELETE
    return Kind.RENAME if value >= FIRST_NAME else Kind.UPSERT


@lru_cache(10_000)
def epoch_of(body: bytes) -> Epoch:
    """Return the epoch of an epoch record."""
    return msgspec.json.decode(body, type=Epoch)


@dataclass
class State:
    """The fold: points with the LSN that wrote each, names, which no setting of points undoes, request ids, digest."""

    points: dict[int, tuple[int, int]] = field(default_factory=dict)
    names: dict[int, int] = field(default_factory=dict)
    requests: dict[bytes, int] = field(default_factory=dict)
    digest: int = 0

    def copy(self) -> State:
        """Return a copy."""
        return State(dict(self.points), dict(self.names), dict(self.requests), self.digest)

    def put(self, id: int, value: int | None, lsn: int) -> None:
        """Set a point, or remove it."""
        self.digest = self.digest_with(Kind.UPSERT, id, value)
        self.points.pop(id, None)
        if value is not None:
            self.points[id] = (value, lsn)

    def name(self, id: int, value: int) -> None:
        """Give something a name."""
        self.digest = self.digest_with(Kind.RENAME, id, value)
        self.names[id] = value

    def digest_with(self, kind: Kind, id: int, value: int | None) -> int:
        """Return the digest that a change would make."""
        digest = self.digest
        if kind is Kind.RENAME:
            assert value is not None
            digest -= point_hash(-1 - id, self.names[id]) if id in self.names else 0
            return (digest + point_hash(-1 - id, value)) % MODULUS
        old = self.points.get(id)
        digest -= point_hash(id, old[0]) if old is not None else 0
        return (digest + (point_hash(id, value) if value is not None else 0)) % MODULUS

    def apply(self, record: Record) -> None:
        """Apply a record; twice is harmless."""
        header = record.header
        if header.kind in (Kind.UPSERT, Kind.DELETE):
            self.put(*change_of(record.body), header.lsn)
        if header.kind == Kind.RENAME:
            self.name(*change_of(record.body))  # type: ignore[arg-type]
        if header.request_id != NO_REQUEST:
            self.requests[header.request_id] = header.lsn


class SimLog:
    """The log of one store, and the fold up to its tip. Implements `vecstore.replication.log.Log`."""

    def __init__(self, lineage: bytes) -> None:
        self.lineage = lineage
        self.base = Place(0, chain_seed(lineage))
        self.base_state = State()
        self.records: list[Record] = []
        self.chains: dict[int, bytes] = {0: self.base.chain}
        self.all_epochs: list[Epoch] = []
        self.state = State()
        self.tip = self.base
        self.durable_lsn = 0
        self.last_commit_us = 0
        self.trust_lsn = 0

    def copy(self) -> SimLog:
        """Return a copy, as a checkpoint or a copied directory is one."""
        other = SimLog(self.lineage)
        other.__dict__.update(self.__dict__)
        other.base_state, other.state = self.base_state.copy(), self.state.copy()
        other.records, other.chains, other.all_epochs = list(self.records), dict(self.chains), list(self.all_epochs)
        return other

    # -- as replication sees it --------------------------------------------------------------------------------------

    @property
    def applied_lsn(self) -> int:
        """The LSN that readers see."""
        return self.tip.lsn

    @property
    def first_lsn(self) -> int:
        """The first record kept."""
        return self.base.lsn + 1

    @property
    def epochs(self) -> tuple[Epoch, ...]:
        """The epochs of the log."""
        return tuple(self.all_epochs)

    @property
    def handover(self) -> str:
        """The store that the tip hands over to."""
        if self.records and self.records[-1].header.kind == Kind.HANDOVER:
            return self.records[-1].body.decode()
        return ""

    def chain(self, lsn: int) -> bytes | None:
        """Return the chain at an LSN."""
        return self.chains.get(lsn)

    def known(self, first: int, last: int) -> Sequence[int]:
        """Return LSNs with a known chain."""
        return sorted(lsn for lsn in self.chains if first <= lsn <= last)

    def read(self, after_lsn: int, last_lsn: int, bytes_max: int) -> Sequence[Record]:
        """Return records after an LSN."""
        if after_lsn < self.base.lsn:
            return ()
        start = after_lsn - self.base.lsn
        return self.records[start : min(last_lsn - self.base.lsn, start + 8)]

    # -- writing -----------------------------------------------------------------------------------------------------

    def make(self, kind: Kind, body: bytes, request_id: bytes, times_us: tuple[int, int], epoch: int) -> Record:
        """Make the next record, with its digest."""
        after = self.state.digest
        if kind in (Kind.UPSERT, Kind.DELETE, Kind.RENAME):
            after = self.state.digest_with(kind, *change_of(body))
        header = Header(self.tip.lsn + 1, kind, epoch, request_id, *times_us, 1, 1, 0, len(body))
        chain = next_chain(self.tip.chain, header.encode(), (body,))
        return Record(header, (body,), Mark(chain, after, len(self.state.points)))

    def append(self, record: Record) -> None:
        """Take a record as it is: what is wrong with it is for the checks to find."""
        self.records.append(record)
        self.state.apply(record)
        self.tip = Place(self.tip.lsn + 1, record.mark.chain)
        self.chains[self.tip.lsn] = record.mark.chain
        self.last_commit_us = record.header.commit_time_us
        if record.header.kind == Kind.EPOCH:
            self.all_epochs.append(epoch_of(record.body))

    def sync(self) -> None:
        """Make everything durable."""
        self.durable_lsn = self.tip.lsn

    def lose(self, rng: random.Random, is_power_loss: bool) -> None:
        """Crash: of what was not synced a prefix may be left; power loss leaves less."""
        keep = self.durable_lsn if is_power_loss else rng.randint(self.durable_lsn, self.tip.lsn)
        self.truncate(keep)
        self.durable_lsn = self.tip.lsn

    def truncate(self, lsn: int) -> None:
        """Drop what is behind an LSN, and fold again."""
        if lsn == self.tip.lsn:
            return
        del self.records[lsn - self.base.lsn :]
        self._shorten(lsn)
        self.state = self.base_state.copy()
        for record in self.records:
            self.state.apply(record)

    def _shorten(self, lsn: int) -> None:
        chain = self.chains[lsn]
        self.tip = Place(lsn, chain)
        self.chains = {at: value for at, value in self.chains.items() if at <= lsn}
        self.all_epochs = [epoch for epoch in self.all_epochs if epoch.fork_lsn < lsn]
        self.durable_lsn = min(self.durable_lsn, lsn)

    def cut(self, lsn: int) -> None:
        """Remove records up to an LSN; marks stay."""
        while self.records and self.base.lsn < min(lsn, self.durable_lsn):
            record = self.records.pop(0)
            self.base_state.apply(record)
            if self.base.lsn % MARK_EVERY and self.base.lsn not in {epoch.fork_lsn for epoch in self.all_epochs}:
                self.chains.pop(self.base.lsn, None)
            self.base = Place(record.lsn, record.mark.chain)

    def reset(self, fork_lsn: int, points: dict[int, int | None], target_lsn: int) -> None:
        """Drop the log behind a fork with its request ids, set points, trust digests until a target."""
        chain = self.chains[fork_lsn]
        for id, value in points.items():
            self.state.put(id, value, target_lsn)
        self.state.requests = {key: lsn for key, lsn in self.state.requests.items() if lsn <= fork_lsn}
        self.records = []
        self._shorten(fork_lsn)
        self.base, self.base_state = Place(fork_lsn, chain), self.state.copy()
        self.durable_lsn, self.trust_lsn = fork_lsn, target_lsn

    def size(self, record: Record) -> int:
        """Return a record's bytes."""
        return HEADER_BYTES + record.header.body_bytes + MARK_BYTES


@dataclass
class Exports:
    """What was set aside: records by chain, and the points of exports that were incomplete."""

    records: dict[bytes, Record] = field(default_factory=dict)
    incomplete: list[tuple[int, int, dict[int, tuple[int, int]]]] = field(default_factory=list)
    """fork LSN, last LSN, and the live points newer than the fork"""


@dataclass
class Disk:
    """All that survives a crash of one store."""

    log: SimLog
    synced: Durable
    written: Durable
    checkpoint: SimLog | None = None
    exports: Exports = field(default_factory=Exports)

    def persist(self, state: Durable, is_synced: bool) -> None:
        """Write the durable state."""
        self.written = state
        if is_synced:
            self.synced = state

    def crash(self, rng: random.Random, is_power_loss: bool) -> None:
        """Lose what was not synced."""
        self.log.lose(rng, is_power_loss)
        if is_power_loss or rng.random() < 0.5:
            self.written = self.synced
        else:
            self.synced = self.written

    def image(self) -> Any:
        """Return what a backup of this disk would hold, as of its last sync."""
        log = self.log.copy()
        log.truncate(log.durable_lsn)
        return log, self.synced, self.checkpoint.copy() if self.checkpoint else None

    def restore(self, image: Any) -> None:
        """Go back to an image; exports, which are elsewhere, stay."""
        log, synced, checkpoint = image
        self.log, self.synced, self.written = log.copy(), synced, synced
        self.checkpoint = checkpoint.copy() if checkpoint else None
