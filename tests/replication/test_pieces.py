"""Envelopes in pieces: what was said arrives whole, or not at all, and that it arrives is seen."""

from __future__ import annotations

import random

import pytest

from vecstore.errors import Unavailable
from vecstore.server.pieces import PIECE_BYTES, cut, join_check, joined, ticket_check
from vecstore.wire.v1 import replication_pb2 as pb


def envelopes() -> list[pb.Envelope]:
    """Return an introduction, a message, a frame that is larger than a piece, and one of several."""
    return [
        pb.Envelope(introduction=pb.Introduction(store_id="ab", addresses={"c": "h:1", "d": "h:2"})),
        pb.Envelope(message=b"\x92"),
        pb.Envelope(message=b"frame", records=[b"x" * PIECE_BYTES], end=pb.LogEnd(lsn=7)),
        pb.Envelope(message=b"frame", records=[bytes([i]) * (PIECE_BYTES * 4 // 5) for i in range(9)]),
    ]


def test_what_is_said_arrives() -> None:
    """Envelopes of any size, in order; of each piece one is told whether more of it come."""
    told: list[bool] = []
    pieces = [piece for envelope in envelopes() for piece in cut(envelope)]
    assert all(len(piece.piece) <= PIECE_BYTES for piece in pieces)
    assert list(joined(pieces, told.append)) == envelopes()
    assert told == [piece.more for piece in pieces] and sum(told) >= 7


def test_no_flipped_bit_is_believed(seed: int) -> None:
    """Wherever it is: the envelope is not given, nor any behind it."""
    rng = random.Random(seed)
    sent = [piece.SerializeToString() for envelope in envelopes() for piece in cut(envelope)]
    refused = 0
    for _ in range(400):
        at = rng.choice([0, 1, rng.randrange(len(sent))])
        changed = bytearray(sent[at])
        changed[rng.randrange(rng.choice((len(changed), min(16, len(changed)))))] ^= 1 << rng.randrange(8)
        found: list[pb.Envelope] = []
        try:
            pieces = [pb.Envelope.FromString(data) for data in (*sent[:at], bytes(changed), *sent[at + 1 :])]
        except Exception:  # noqa: BLE001  (protobuf refuses it: the call fails, and so the link)
            continue
        try:
            found += joined(pieces, lambda _: None)
        except Unavailable as exc:
            assert "changed on the way" in str(exc)
            refused += 1
        assert found == envelopes()[: len(found)]
    assert refused > 100


def test_what_never_ends_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded, whatever comes."""
    monkeypatch.setattr("vecstore.server.pieces.ENVELOPE_BYTES_MAX", 1_000)
    with pytest.raises(Unavailable, match="more than 1000 bytes"):
        list(joined([pb.Envelope(piece=b"x" * 600, more=True)] * 3, lambda _: None))


def test_a_ticket_and_a_request_tell_each_field() -> None:
    """No two differ and have the same check."""
    requests = [pb.JoinRequest(store_id="a", slot="b"), pb.JoinRequest(store_id="ab"), pb.JoinRequest(region="ab")]
    requests += [pb.JoinRequest(reads_format=1), pb.JoinRequest(reads_kind=1)]
    assert len({join_check(request) for request in requests}) == 5
    tickets = [
        pb.SnapshotTicket(id="t", lsn=1, files=[pb.SnapshotFile(name="n", size=2, check="c")]),
        pb.SnapshotTicket(id="t", lsn=1, files=[pb.SnapshotFile(name="n", size=3, check="c")]),
        pb.SnapshotTicket(id="t", lsn=2, files=[pb.SnapshotFile(name="n", size=2, check="c")]),
        pb.SnapshotTicket(id="t", lsn=1, claim=b"n", files=[pb.SnapshotFile(size=2, check="c")]),
    ]
    assert len({ticket_check(ticket) for ticket in tickets}) == 4
