"""The archive: ranges of the log under the branch of their epoch, each compressed, chained and checked.

A range is one object: magic, the records (zstd), a trailer, the trailer's length, and the xxh3_128 of all before. The
trailer says how the range fits: chain before and after, and the digests of the collections that it changed. A branch
begins with its head, which is written first; so every range can be placed in a history.

`encode_range` and `decode_range` are pure; `Archive` is the thin layer above a repository.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec
import xxhash

from ..errors import AlreadyExists, Damaged, EngineMissing, NotFound
from ..record import HEADER_BYTES, MARK_BYTES, Header, Record
from . import layout
from .layout import Branch, RangeName
from .manifest import BranchHead, branch_of, decode, encode
from .repository import Repository

try:
    import zstandard
except ImportError as exc:
    raise EngineMissing(
        f"archives need {exc.name}, which is not installed", hint="pip install 'vecstore-db[backup]'"
    ) from exc

__all__ = ["Archive", "Range", "Trailer", "decode_range", "encode_range"]

_MAGIC = b"vsrange\x01"
_LENGTH = struct.Struct("<I")
_CHECK_BYTES = 16
COMPRESSION_LEVEL = 1


class Trailer(msgspec.Struct, frozen=True, kw_only=True):
    """How a range fits.

    Attributes
    ----------
    bytes
        Of its records before compression.
    chain_before, chain
        Before its first and after its last record, in hex.
    digests
        Of the collections that it changed, after it: digest (hex) and live points by id.
    """

    lineage: str
    first: int
    last: int
    bytes: int
    chain_before: str
    chain: str
    digests: dict[int, tuple[str, int]]


@dataclass(frozen=True, slots=True)
class Range:
    """A range that was read: its trailer, and its records in order, the chain between them checked."""

    trailer: Trailer
    records: list[Record]


def encode_range(lineage: str, records: Sequence[Record], chain_before: bytes) -> tuple[RangeName, bytes]:
    """Return name and bytes of a range; it is of one epoch, dense and in order."""
    first, last = records[0], records[-1]
    raw = b"".join(piece for r in records for piece in (r.header.encode(), *r.parts, r.mark.encode()))
    digests = {
        r.header.collection: (r.mark.digest.to_bytes(16, "big").hex(), r.mark.points)
        for r in records
        if r.header.collection
    }
    trailer = msgspec.json.encode(
        Trailer(
            lineage=lineage,
            first=first.lsn,
            last=last.lsn,
            bytes=len(raw),
            chain_before=chain_before.hex(),
            chain=last.mark.chain.hex(),
            digests=digests,
        )
    )
    packed = zstandard.ZstdCompressor(level=COMPRESSION_LEVEL).compress(raw)
    body = b"".join((_MAGIC, packed, trailer, _LENGTH.pack(len(trailer))))
    name = RangeName(
        first.lsn, last.lsn, first.header.commit_time_us, last.header.commit_time_us, last.mark.chain[:8].hex()
    )
    return name, body + xxhash.xxh3_128_digest(body)


def decode_range(data: bytes, where: str) -> Range:
    """Read a range.

    Raises
    ------
    Damaged
        The bytes are not what was written, or records are not on one chain.
    """
    body, check = data[:-_CHECK_BYTES], data[-_CHECK_BYTES:]
    if not body.startswith(_MAGIC) or xxhash.xxh3_128_digest(body) != check:
        raise _damaged(where, "it is not what was written")
    try:
        (size,) = _LENGTH.unpack(body[-_LENGTH.size :])
        end = len(body) - _LENGTH.size - size
        trailer = msgspec.json.decode(body[end : end + size], type=Trailer)
        raw = zstandard.ZstdDecompressor().decompress(body[len(_MAGIC) : end], max_output_size=trailer.bytes)
    except (msgspec.MsgspecError, zstandard.ZstdError, struct.error) as exc:
        raise _damaged(where, f"it cannot be read: {exc}") from exc
    records = list(_records(raw, trailer, where))
    if not records or records[-1].lsn != trailer.last or records[-1].mark.chain.hex() != trailer.chain:
        raise _damaged(where, "its records do not end where its trailer says")
    return Range(trailer, records)


def _records(raw: bytes, trailer: Trailer, where: str) -> Iterator[Record]:
    at, lsn, chain = 0, trailer.first - 1, bytes.fromhex(trailer.chain_before)
    view = memoryview(raw)
    while at < len(raw):
        try:
            header = Header.decode(view[at : at + HEADER_BYTES])
            size = HEADER_BYTES + header.body_bytes + MARK_BYTES
            record = Record.decode(raw[at : at + size])
        except Damaged as exc:
            raise _damaged(where, str(exc)) from exc
        if not record.follows(lsn, chain):
            raise _damaged(where, f"record {record.lsn} breaks the chain")
        yield record
        at, lsn, chain = at + size, record.lsn, record.mark.chain


def _damaged(where: str, why: str) -> Damaged:
    return Damaged(f"repository: {where}: {why}", details={"object": where})


class Archive:
    """The archive of one lineage in a repository. Thread-safe."""

    def __init__(self, repository: Repository, lineage: str) -> None:
        self._repository, self._lineage = repository, lineage

    def begin(self, head: BranchHead) -> None:
        """Write the head of a branch, unless it is there."""
        name = layout.epoch_name(self._lineage, branch_of(head.epochs))
        try:
            self._repository.create(name, encode(head))
        except AlreadyExists:
            there = decode(self._repository.read(name), BranchHead, name)
            if there.epochs != head.epochs:
                raise Damaged(
                    f"repository: {name} tells another history of this epoch", details={"object": name}
                ) from None

    def put(self, branch: Branch, records: Sequence[Record], chain_before: bytes) -> int:
        """Write a range of one branch; return its bytes, 0 where it is there: its name has its chain."""
        name, data = encode_range(self._lineage, records, chain_before)
        try:
            self._repository.create(f"{branch.folder(self._lineage)}{name}", data)
        except AlreadyExists:
            return 0
        return len(data)

    def ranges(self, branch: Branch) -> list[RangeName]:
        """Return what a branch holds, sorted."""
        folder = branch.folder(self._lineage)
        found = [RangeName.parse(name.removeprefix(folder)) for name in self._repository.names(folder)]
        return sorted(name for name in found if name is not None)

    def read(self, branch: Branch, name: RangeName) -> Range:
        """Read a range; raises `Damaged` where it is missing, damaged, or another one."""
        where = f"{branch.folder(self._lineage)}{name}"
        try:
            found = decode_range(self._repository.read(where), where)
        except NotFound as exc:
            raise _damaged(where, "it is missing") from exc
        trailer = found.trailer
        if (trailer.lineage, trailer.first, trailer.last) != (self._lineage, name.first, name.last):
            raise _damaged(where, f"it holds records {trailer.first} to {trailer.last} of {trailer.lineage}")
        if trailer.chain[:16] != name.chain:
            raise _damaged(where, "its chain is not the one in its name")
        return found
