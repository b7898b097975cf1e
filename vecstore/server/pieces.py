"""Envelopes as they travel on a link: cut into pieces, and joined again, with a check of all bytes.

What was changed on the way must not be believed, whatever part of a message it was: TCP's checksum has sixteen bits,
and not every network between two Regions is encrypted. And a record of many megabytes on a slow line must be seen to
arrive, or either side would take the other for dead and begin again, for ever.

Pure but for the iterators it is given.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator

import xxhash

from ..config import MIB
from ..errors import Unavailable
from ..wire.v1 import replication_pb2 as pb

__all__ = ["PIECE_BYTES", "cut", "join_check", "joined", "ticket_check"]

PIECE_BYTES = 128 << 10
"""A line that carries one in less than a follower's patience with silence is fast enough. Each costs both sides some
tenths of a millisecond, whatever its size."""
ENVELOPE_BYTES_MAX = 128 * MIB
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")


def cut(envelope: pb.Envelope) -> Iterator[pb.Envelope]:
    """Yield the pieces of an envelope."""
    data = envelope.SerializeToString()
    ends = range(PIECE_BYTES, len(data), PIECE_BYTES)
    for end in ends:
        yield pb.Envelope(piece=data[end - PIECE_BYTES : end], more=True)
    yield pb.Envelope(piece=data[len(ends) * PIECE_BYTES :], check=xxhash.xxh3_64_intdigest(data))


def joined(pieces: Iterable[pb.Envelope], on_piece: Callable[[bool], None]) -> Iterator[pb.Envelope]:
    """Yield whole envelopes.

    Parameters
    ----------
    on_piece
        Is told of each piece, and whether more of the same envelope is to come.

    Raises
    ------
    Unavailable
        Bytes were changed on the way: nothing of them was yielded, and nothing that follows can be trusted.
    """
    parts: list[bytes] = []
    size = 0
    for piece in pieces:
        on_piece(piece.more)
        part = piece.piece  # made anew each time it is asked for
        parts.append(part)
        size += len(part)
        if size > ENVELOPE_BYTES_MAX:
            raise Unavailable(f"more than {ENVELOPE_BYTES_MAX} bytes of one message came")
        if piece.more:
            continue
        data = b"".join(parts)
        parts, size = [], 0
        if xxhash.xxh3_64_intdigest(data) != piece.check:
            raise Unavailable(
                f"a message of {len(data)} bytes was changed on the way",
                hint="look at the network between the two stores; TLS refuses such bytes earlier",
            )
        yield pb.Envelope.FromString(data)


def join_check(asked: pb.JoinRequest) -> int:
    """Return the check of what a new standby asks."""
    fields = [text.encode() for text in (asked.store_id, asked.slot, asked.region, asked.address)]
    if asked.reads_format or asked.reads_kind:
        fields += [_U64.pack(asked.reads_format), _U64.pack(asked.reads_kind)]
    return _check(fields)


def ticket_check(ticket: pb.SnapshotTicket) -> int:
    """Return the check of a snapshot's ticket."""
    fields = [ticket.id.encode(), ticket.store_id.encode(), ticket.lineage, _U64.pack(ticket.lsn), ticket.chain]
    fields += [ticket.claim, ticket.primary_address.encode()]
    for file in ticket.files:
        fields += [file.name.encode(), _U64.pack(file.size), file.check.encode()]
    return _check(fields)


def _check(fields: Iterable[bytes]) -> int:
    return xxhash.xxh3_64_intdigest(b"".join(part for field in fields for part in (_U32.pack(len(field)), field)))
