"""Histories that part: bounds, relations and forks against what was really written; what is signed and what is not."""

from __future__ import annotations

import random

import msgspec
import pytest

from vecstore.record import NO_REQUEST, Kind, Token
from vecstore.replication.epochs import (
    Claim,
    ForkSearch,
    Identity,
    Relation,
    Standing,
    bound,
    holds,
    lost_synced,
    relate,
    shared,
)
from vecstore.storage.catalog import Epoch

from .disk import SimLog

LINEAGE = b"L" * 16
ME = Identity(LINEAGE, b"secret", "a")


def write(log: SimLog, rng: random.Random, count: int) -> None:
    """Append records to a log, with values of chance."""
    for _ in range(count):
        body = msgspec.msgpack.encode((rng.randrange(5), rng.getrandbits(40)))
        number = log.epochs[-1].number
        log.append(log.make(Kind.UPSERT, body, NO_REQUEST, (1, 1), number))
    log.sync()


def promote(log: SimLog, number: int, writer: str) -> None:
    """Begin an epoch in a log."""
    epoch = Epoch(number, writer, log.tip.lsn, log.tip.chain.hex())
    log.append(log.make(Kind.EPOCH, msgspec.json.encode(epoch), NO_REQUEST, (1, 1), number))
    log.sync()


def pair(seed: int, *, went_back: bool = False) -> tuple[SimLog, SimLog, int]:
    """Return two logs of one lineage, and the LSN at which they really part."""
    rng = random.Random(seed)
    one = SimLog(LINEAGE)
    promote(one, 1, "w1")
    write(one, rng, rng.randrange(40))
    if rng.random() < 0.5:
        promote(one, 2, "w2")
        write(one, rng, rng.randrange(40))
    other = one.copy()
    fork_lsn = one.tip.lsn
    if went_back:  # one writer, the same epoch, written twice
        write(one, rng, 1 + rng.randrange(20))
        write(other, rng, 1 + rng.randrange(20))
        return one, other, fork_lsn
    if rng.random() < 0.7:
        write(one, rng, rng.randrange(20))
    promote(other, other.epochs[-1].number + 1, "w9")
    write(other, rng, rng.randrange(20))
    return one, other, fork_lsn


def search(one: SimLog, other: SimLog) -> int:
    """Return the fork that a search between two logs finds."""
    limit = bound(one.epochs, one.tip.lsn, other.epochs, other.tip.lsn)
    found = ForkSearch(one, limit)
    for _ in range(50):
        lsns = found.ask()
        if not lsns:
            return found.low
        found.take([(lsn, other.chain(lsn)) for lsn in lsns])
    raise AssertionError("the search does not end")


@pytest.mark.parametrize("went_back", [False, True])
def test_the_fork_is_found(went_back: bool) -> None:
    """From epochs and chains the very LSN at which two logs part is found, also where one writer wrote it twice."""
    for seed in range(150):
        one, other, fork_lsn = pair(seed, went_back=went_back)
        assert search(one, other) == search(other, one) == fork_lsn, seed


def test_the_fork_is_never_found_too_late() -> None:
    """Where logs were cut and only marks are left, the answer is at the fork or below it."""
    for seed in range(150):
        one, other, fork_lsn = pair(seed, went_back=seed % 2 == 0)
        rng = random.Random(seed)
        one.cut(rng.randint(0, one.tip.lsn))
        other.cut(rng.randint(0, other.tip.lsn))
        assert search(one, other) <= fork_lsn, seed


def test_relations() -> None:
    """A log is a prefix, ahead, beside, or cannot be told."""
    one, other, fork_lsn = pair(3)
    write(one, random.Random(0), 3)
    early = one.copy()
    early.truncate(fork_lsn)
    assert relate(one, Standing.of(ME, early)) is Relation.PREFIX
    assert relate(early, Standing.of(ME, one)) is Relation.AHEAD
    assert relate(one, Standing.of(ME, other)) is Relation.BESIDE
    assert relate(other, Standing.of(ME, one)) is Relation.BESIDE
    write(one, random.Random(0), 20)
    one.cut(one.tip.lsn)
    assert relate(one, Standing.of(ME, early)) in (Relation.PREFIX, Relation.UNPROVEN)
    early.truncate(max(lsn for lsn in range(fork_lsn) if one.chain(lsn) is None))
    assert relate(one, Standing.of(ME, early)) is Relation.UNPROVEN


def test_lost_records_are_proven_by_another_log() -> None:
    """Only a log of the same epochs proves that this one lacks what it had."""
    one, other, fork_lsn = pair(5)
    write(one, random.Random(1), 3)
    early = one.copy()
    early.truncate(one.tip.lsn - 2)
    assert lost_synced(early, Standing.of(ME, one))
    assert not lost_synced(one, Standing.of(ME, early))
    assert not lost_synced(one, Standing.of(ME, other))
    assert fork_lsn > 0


def test_tokens() -> None:
    """A token is held, lost, or not yet there; a later epoch below it tells a shorter log that it is lost."""
    one, other, fork_lsn = pair(6)
    write(one, random.Random(2), 20)
    old = Token(LINEAGE, 1, 1, one.chains[1][:8])
    late = Token(LINEAGE, one.epochs[-1].number, one.tip.lsn, one.tip.chain[:8])
    assert holds(one, old) is holds(other, old) is True
    assert holds(one, late) is True
    assert holds(other, late) is False
    assert other.tip.lsn < one.tip.lsn
    early = one.copy()
    early.truncate(fork_lsn)
    assert holds(early, late) is None
    assert holds(one, Token(b"M" * 16, 1, 1, old.chain)) is False


def test_shared_epochs_are_equal_in_all_parts() -> None:
    """The same number with another writer, or from another place, is another epoch."""
    first = Epoch(1, "w", 0, "00")
    for other in (Epoch(1, "v", 0, "00"), Epoch(1, "w", 1, "00"), Epoch(1, "w", 0, "01"), Epoch(2, "w", 0, "00")):
        assert shared((first,), (other,)) == 0
    assert shared((first,), (first, Epoch(2, "v", 5, "02"))) == 1


def test_only_the_secret_signs() -> None:
    """A claim or standing that was changed, or signed with another secret or for another lineage, is not valid."""
    claim = Claim.of(ME, Epoch(2, "w", 7, "0a"))
    standing = Standing.of(ME, pair(1)[0])
    stranger = Identity(LINEAGE, b"guess", "a")
    assert claim.is_valid(ME)
    assert standing.is_valid(ME)
    for change in ({"number": 3}, {"writer": "v"}, {"fork_lsn": 8}, {"chain": "0b"}, {"store_id": "b"}, {"mac": b""}):
        assert not msgspec.structs.replace(claim, **change).is_valid(ME)
    for changed in (
        {"lsn": 1},
        {"chain": b"0"},
        {"store_id": "b"},
        {"epochs": ()},
        {"region": "r"},
        {"mac": claim.mac},
    ):
        assert not msgspec.structs.replace(standing, **changed).is_valid(ME)
    assert not claim.is_valid(stranger)
    assert not standing.is_valid(stranger)
    assert not claim.is_valid(Identity(b"M" * 16, b"secret", "a"))
