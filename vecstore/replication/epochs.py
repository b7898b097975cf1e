"""Histories of epochs: claims to them, standings in them, and where two of them part. Pure.

An epoch is a term of one writer. Its record is in the log, so a log's epochs are a function of the log. What a store
says about its place in the history is signed with the lineage's secret, so that only stores of the lineage are
believed: a `Claim` ("this epoch is mine") fences whoever it exceeds, a `Standing` ("this is my log") tells how two
logs relate. Nothing rests on epochs alone: where two histories part, chains decide.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

import msgspec

from ..config import TOKEN_CHAIN_BYTES
from ..record import Token
from ..storage.catalog import Epoch
from .log import Log

__all__ = [
    "Claim",
    "ForkSearch",
    "Identity",
    "Relation",
    "Standing",
    "bound",
    "holds",
    "lost_synced",
    "relate",
    "shared",
]

ROUND_LSNS = 16
"""So many chains are asked for in one round of a search for a fork."""


class Identity(msgspec.Struct, frozen=True):
    """Who a store is.

    Attributes
    ----------
    secret
        The lineage's: all its stores hold it, nobody else does.
    region
        The name by which `synchronous` means this store.
    """

    lineage: bytes
    secret: bytes
    store_id: str
    region: str = ""


class Claim(msgspec.Struct, frozen=True):
    """A store's claim to an epoch, signed with the lineage's secret."""

    lineage: bytes
    number: int
    writer: str
    fork_lsn: int
    chain: str
    store_id: str
    mac: bytes = b""

    @classmethod
    def of(cls, identity: Identity, epoch: Epoch) -> Claim:
        """Sign a claim to an epoch of one's own."""
        bare = cls(identity.lineage, epoch.number, epoch.writer, epoch.fork_lsn, epoch.chain, identity.store_id)
        return msgspec.structs.replace(bare, mac=_mac(identity.secret, b"claim", bare))

    def is_valid(self, identity: Identity) -> bool:
        """Return whether a store of the same lineage signed it."""
        bare = msgspec.structs.replace(self, mac=b"")
        return self.lineage == identity.lineage and hmac.compare_digest(self.mac, _mac(identity.secret, b"claim", bare))

    def exceeds(self, other: Claim | None) -> bool:
        """Return whether it is of a higher epoch."""
        return other is None or self.number > other.number

    def contests(self, other: Claim | None) -> bool:
        """Return whether it is of the same epoch with another writer."""
        return other is not None and self.number == other.number and self.writer != other.writer


class Standing(msgspec.Struct, frozen=True):
    """What a store's log is: its epochs, last LSN and chain; signed with the lineage's secret."""

    lineage: bytes
    store_id: str
    region: str
    epochs: tuple[Epoch, ...]
    lsn: int
    chain: bytes
    mac: bytes = b""

    @classmethod
    def of(cls, identity: Identity, log: Log) -> Standing:
        """Sign the standing of one's own log."""
        place = log.tip
        bare = cls(identity.lineage, identity.store_id, identity.region, log.epochs, place.lsn, place.chain)
        return msgspec.structs.replace(bare, mac=_mac(identity.secret, b"standing", bare))

    def is_valid(self, identity: Identity) -> bool:
        """Return whether a store of the same lineage signed it."""
        bare = msgspec.structs.replace(self, mac=b"")
        return self.lineage == identity.lineage and hmac.compare_digest(
            self.mac, _mac(identity.secret, b"standing", bare)
        )


def _mac(secret: bytes, purpose: bytes, bare: Claim | Standing) -> bytes:
    return hmac.digest(secret, purpose + b"\0" + msgspec.msgpack.encode(bare), "sha256")


class Relation(Enum):
    """How another store's log relates to mine."""

    PREFIX = "its log is a prefix of mine"
    AHEAD = "mine may be a prefix of its"
    BESIDE = "each has something that the other has not"
    UNPROVEN = "the epochs allow a prefix, and the chain there is no longer known"


def shared(mine: Sequence[Epoch], theirs: Sequence[Epoch]) -> int:
    """Return how many epochs two histories have in common."""
    count = 0
    for one, other in zip(mine, theirs, strict=False):
        if one != other:
            break
        count += 1
    return count


def bound(mine: Sequence[Epoch], my_lsn: int, theirs: Sequence[Epoch], their_lsn: int) -> int:
    """Return the LSN up to which, by their epochs alone, two histories can agree."""
    count = shared(mine, theirs)
    my_end = mine[count].fork_lsn if count < len(mine) else my_lsn
    their_end = theirs[count].fork_lsn if count < len(theirs) else their_lsn
    return min(my_end, their_end)


def relate(log: Log, standing: Standing) -> Relation:
    """Return how another store's log relates to mine."""
    limit = bound(log.epochs, log.tip.lsn, standing.epochs, standing.lsn)
    if standing.lsn > limit:
        is_whole = limit == log.tip.lsn and shared(log.epochs, standing.epochs) == len(log.epochs)
        return Relation.AHEAD if is_whole else Relation.BESIDE
    chain = log.chain(standing.lsn)
    if chain is None:
        return Relation.UNPROVEN
    return Relation.PREFIX if chain == standing.chain else Relation.BESIDE


def lost_synced(log: Log, standing: Standing) -> bool:
    """Return whether another's log proves that mine, its writer's, lacks what was once durable here.

    Only durable records are shipped. So a store that has, in the epoch that I write, records that I have not, was given
    them before my disk went back.
    """
    return standing.epochs == log.epochs and relate(log, standing) in (Relation.AHEAD, Relation.BESIDE)


def holds(log: Log, token: Token) -> bool | None:
    """Return whether a log holds a token's record: True, False for never, None for not yet.

    A log that is shorter than the token may still know that it will never hold the record: where a later epoch begins
    below it. A record that was cut from the log, and is no mark, is judged by its epoch.
    """
    if token.lineage != log.lineage:
        return False
    if token.lsn <= log.tip.lsn:
        chain = log.chain(token.lsn)
        if chain is not None:
            return chain[:TOKEN_CHAIN_BYTES] == token.chain
        return token.lsn == 0 or _epoch_at(log.epochs, token.lsn) == token.epoch
    ended = [epoch.fork_lsn for epoch in log.epochs if epoch.number > token.epoch]
    return False if ended and min(ended) < token.lsn else None


def _epoch_at(epochs: Sequence[Epoch], lsn: int) -> int:
    return max((epoch.number for epoch in epochs if epoch.fork_lsn < lsn), default=0)


@dataclass
class ForkSearch:
    """The search for the last LSN at which two histories agree, in rounds of a few chains each.

    Agreement is monotone: chains agree up to the fork, and nowhere after. So each round asks for chains that are spread
    between the highest LSN known to agree and the lowest known to differ. LSNs that the other side no longer knows drop
    out. The answer may lie below the true fork where neither knows more; never above.

    Attributes
    ----------
    limit
        The fork is not above it.
    noted
        Chains of this log that slots have kept beyond it.
    low, high
        Highest LSN known to agree, lowest known to differ.
    """

    log: Log
    limit: int
    noted: Mapping[int, bytes] = field(default_factory=dict)
    low: int = 0
    high: int | None = None
    unknown: set[int] = field(default_factory=set)

    def ask(self) -> tuple[int, ...]:
        """Return the LSNs of the next round; empty when `low` is the answer."""
        found = list(self._between())
        if len(found) <= ROUND_LSNS:
            return tuple(found)
        step = (len(found) - 1) / (ROUND_LSNS - 1)
        return tuple(sorted({found[round(i * step)] for i in range(ROUND_LSNS)}))

    def _between(self) -> Iterator[int]:
        noted = {lsn for lsn in self.noted if self.low < lsn <= self.limit}
        for lsn in sorted(noted.union(self.log.known(self.low + 1, self.limit))):
            if lsn not in self.unknown and (self.high is None or lsn < self.high):
                yield lsn

    def take(self, chains: Sequence[tuple[int, bytes | None]]) -> None:
        """Take the other side's chains."""
        for lsn, chain in chains:
            mine = self.log.chain(lsn) or self.noted.get(lsn)
            if chain is None or mine is None:
                self.unknown.add(lsn)
            elif chain == mine:
                self.low = max(self.low, lsn)
            else:
                self.high = lsn if self.high is None else min(self.high, lsn)
