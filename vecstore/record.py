"""The bytes of the log: records, keys, chain, tokens. Pure; `docs/formats.md` describes the same layout in prose.

A record is ``header + body + mark``. The header says what it is, the body what it changes, the mark commits it: it
carries the chain (a running hash of the log) and the digest of the collection that results. Records are physical: they
say what each point becomes, so that replay evaluates nothing and applying one twice is harmless. All integers are
little-endian, but in keys, where big-endian sorts.

This module does no I/O. It knows nothing of collections' schemas; `storage/fold.py` gives records their meaning.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

import msgspec
import numpy as np
import numpy.typing as npt
import xxhash

from .config import LOG_CHUNK_BYTES, TOKEN_CHAIN_BYTES
from .errors import Damaged, InvalidArgument

__all__ = [
    "STAMP_BYTES",
    "Header",
    "IdKind",
    "Kind",
    "Mark",
    "PointsBody",
    "Record",
    "Token",
    "chain_seed",
    "content",
    "content_hash",
    "contents",
    "encode_json",
    "id_key",
    "is_of_newer",
    "key_id",
    "lineage_chain",
    "log_key",
    "log_key_lsn",
    "next_chain",
    "point_key",
    "split_content",
]

Bytes = bytes | memoryview

RECORD_VERSION = 1
_HEADER = struct.Struct("<HBBQQ16sqqQIQI")
"""version, kind, zero, LSN, epoch, request id, commit and wall time, collection, count, log bytes, body bytes"""
_MARK = struct.Struct("<16s16sQQ")
"""chain, digest, live points, xxh3_64 of the three"""
_LOG_KEY = struct.Struct(">QI")
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_U64_BE = struct.Struct(">Q")

HEADER_BYTES = _HEADER.size
MARK_BYTES = _MARK.size
NO_REQUEST = bytes(16)
STAMP_BYTES = 24
"""LSN and content hash, which stand before the content in a value of the points family."""
DIGEST_MODULUS = 1 << 128


class Kind(IntEnum):
    """What a record does. An unknown kind stops a reader."""

    UPSERT = 1
    DELETE = 2
    CREATE = 3
    RENAME = 4
    DROP = 5
    FIELDS = 6
    EPOCH = 7
    HANDOVER = 8


class IdKind(IntEnum):
    """The kind of the ids of one collection: also the first byte of every id key."""

    INT = 1
    STR = 2


@dataclass(frozen=True, slots=True)
class Header:
    """What stands in front of a record's body.

    Attributes
    ----------
    commit_time_us
        Monotone in the log; restore to a time means this one. Microseconds since the Unix epoch.
    wall_time_us
        What the wall clock said.
    count
        Points in the body, or points removed.
    log_bytes
        Bytes of all records of the log before this one.
    """

    lsn: int
    kind: Kind
    epoch: int
    request_id: bytes
    commit_time_us: int
    wall_time_us: int
    collection: int
    count: int
    log_bytes: int
    body_bytes: int

    def encode(self) -> bytes:
        """Return the header's bytes."""
        return _HEADER.pack(
            RECORD_VERSION,
            self.kind,
            0,
            self.lsn,
            self.epoch,
            self.request_id,
            self.commit_time_us,
            self.wall_time_us,
            self.collection,
            self.count,
            self.log_bytes,
            self.body_bytes,
        )

    @classmethod
    def decode(cls, data: bytes | memoryview) -> Header:
        """Read a header.

        Raises
        ------
        Damaged
            The version or kind is not one that this version knows, or the bytes are too few.
        """
        if len(data) < HEADER_BYTES:
            raise Damaged(f"record header of {len(data)} bytes, {HEADER_BYTES} expected")
        version, kind, _zero, lsn, epoch, request, commit_us, wall_us, collection, count, log_bytes, body = (
            _HEADER.unpack_from(data)
        )
        if version != RECORD_VERSION or kind not in Kind.__members__.values():
            raise Damaged(f"record {lsn} has version {version} and kind {kind}: not known to this version of vecstore")
        return cls(lsn, Kind(kind), epoch, request, commit_us, wall_us, collection, count, log_bytes, body)


@dataclass(frozen=True, slots=True)
class Mark:
    """What commits a record: the chain after it, and the digest and live points of its collection after it."""

    chain: bytes
    digest: int
    points: int

    def encode(self) -> bytes:
        """Return the mark's bytes."""
        body = self.chain + self.digest.to_bytes(16, "big") + _U64.pack(self.points)
        return body + _U64.pack(xxhash.xxh3_64_intdigest(body))

    @classmethod
    def decode(cls, data: bytes | memoryview) -> Mark:
        """Read a mark; raises `Damaged` where its own hash does not hold."""
        chain, digest, points, check = _MARK.unpack(data)
        if xxhash.xxh3_64_intdigest(data[: MARK_BYTES - 8]) != check:
            raise Damaged("commit mark does not match its hash")
        return cls(chain, int.from_bytes(digest, "big"), points)


@dataclass(frozen=True, slots=True)
class Record:
    """One log entry. `parts` are the body's pieces, joined only as they are written."""

    header: Header
    parts: tuple[Bytes, ...]
    mark: Mark

    @property
    def lsn(self) -> int:
        """The record's LSN."""
        return self.header.lsn

    @property
    def body(self) -> bytes:
        """The body in one piece."""
        return bytes(self.parts[0]) if len(self.parts) == 1 else b"".join(self.parts)

    @property
    def size(self) -> int:
        """Bytes of the whole record."""
        return HEADER_BYTES + self.header.body_bytes + MARK_BYTES

    def follows(self, lsn: int, chain: bytes) -> bool:
        """Return whether this is the next record after an LSN with a chain."""
        return self.lsn == lsn + 1 and next_chain(chain, self.header.encode(), self.parts) == self.mark.chain

    def encode(self) -> bytes:
        """Return header, body and mark."""
        return b"".join((self.header.encode(), *self.parts, self.mark.encode()))

    @classmethod
    def decode(cls, data: bytes) -> Record:
        """Read a whole record; raises `Damaged` where lengths or hashes do not fit."""
        header = Header.decode(data)
        end = HEADER_BYTES + header.body_bytes
        if len(data) != end + MARK_BYTES:
            raise Damaged(f"record {header.lsn} has {len(data)} bytes, {end + MARK_BYTES} expected")
        return cls(header, (data[HEADER_BYTES:end],), Mark.decode(data[end:]))

    def chunks(self) -> Iterator[tuple[bytes, bytes]]:
        """Cut the record into keys and values of the log family; the last one carries the mark's end."""
        pieces = (self.header.encode(), *self.parts, self.mark.encode())
        for number, chunk in enumerate(_cut(pieces, LOG_CHUNK_BYTES)):
            yield log_key(self.header.lsn, number), chunk


def _cut(pieces: Sequence[Bytes], size: int) -> Iterator[bytes]:
    """Join pieces and cut them again into chunks of a size, copying each byte once."""
    taken: list[Bytes] = []
    room = size
    for piece in pieces:
        view = memoryview(piece)
        while len(view) >= room:
            taken.append(view[:room])
            yield b"".join(taken)
            view, taken, room = view[room:], [], size
        if len(view):
            taken.append(view)
            room -= len(view)
    if taken:
        yield b"".join(taken)


def log_key(lsn: int, chunk: int = 0) -> bytes:
    """Return the key of a chunk of a record in the log family."""
    return _LOG_KEY.pack(lsn, chunk)


def log_key_lsn(key: bytes) -> tuple[int, int]:
    """Return LSN and chunk number of a key of the log family."""
    lsn, chunk = _LOG_KEY.unpack(key)
    return lsn, chunk


# -- chain and tokens ------------------------------------------------------------------------------------------------


def chain_seed(lineage: bytes) -> bytes:
    """Return chain(0) of a lineage."""
    return xxhash.xxh3_128_digest(b"vecstore chain\0" + lineage)


def lineage_chain(lineage: bytes, source: bytes, lsn: int, chain: bytes) -> bytes:
    """Return the chain at an LSN of a lineage that begins there, as a copy of another one with its chain."""
    return xxhash.xxh3_128_digest(b"vecstore restore\0" + lineage + source + _U64.pack(lsn) + chain)


def next_chain(chain: bytes, header: bytes, parts: Sequence[Bytes]) -> bytes:
    """Return chain(n): xxh3_128 over chain(n-1), the record's header and body."""
    state = xxhash.xxh3_128(chain)
    state.update(header)
    for part in parts:
        state.update(part)
    return state.digest()


def is_of_newer(data: bytes, lsn: int, chain: bytes) -> bool:
    """Return whether these are the bytes of the record after an LSN with a chain, as a newer version wrote it.

    It is whole and carries on the chain, which covers its header: a record of which a bit was flipped is none.
    """
    end = len(data) - MARK_BYTES
    if end < HEADER_BYTES:
        return False
    version, kind, _, number, *_, body = _HEADER.unpack_from(data)
    is_known = version == RECORD_VERSION and kind in Kind.__members__.values()
    if is_known or number != lsn + 1 or end != HEADER_BYTES + body:
        return False
    try:
        mark = Mark.decode(data[end:])
    except Damaged:
        return False
    return next_chain(chain, data[:HEADER_BYTES], [data[HEADER_BYTES:end]]) == mark.chain


@dataclass(frozen=True, slots=True)
class Token:
    """A place in the history: what `Written.token` says."""

    lineage: bytes
    epoch: int
    lsn: int
    chain: bytes

    def encode(self) -> str:
        """Return the token as text."""
        return f"{self.lineage.hex()}-{self.epoch:x}-{self.lsn:x}-{self.chain[:TOKEN_CHAIN_BYTES].hex()}"

    @classmethod
    def decode(cls, text: str) -> Token:
        """Read a token; raises `InvalidArgument` for other text."""
        try:
            lineage, epoch, lsn, chain = text.split("-")
            token = cls(bytes.fromhex(lineage), int(epoch, 16), int(lsn, 16), bytes.fromhex(chain))
            if len(token.lineage) != 16 or len(token.chain) != TOKEN_CHAIN_BYTES or token.encode() != text:
                raise ValueError(text)
        except (ValueError, AttributeError) as exc:
            raise InvalidArgument(f"token: {text!r} is not a token; pass `Written.token` as it was returned") from exc
        return token


# -- ids -------------------------------------------------------------------------------------------------------------


def id_key(id: int | str) -> bytes:
    """Return the bytes of an id that sort as ids do."""
    return b"\x01" + _U64_BE.pack(id) if isinstance(id, int) else b"\x02" + id.encode()


def key_id(key: bytes) -> int | str:
    """Return the id of an id key."""
    if key[0] == IdKind.INT:
        number: int = _U64_BE.unpack(key[1:])[0]
        return number
    return key[1:].decode()


def point_key(collection: int, key: bytes) -> bytes:
    """Return the key of a point in the points family."""
    return _U64_BE.pack(collection) + key


# -- points ----------------------------------------------------------------------------------------------------------


def content_hash(key: bytes, payload: bytes, vector: bytes | memoryview) -> int:
    """Return the 128-bit hash of a point's content: length-prefixed id key, payload and vector."""
    return xxhash.xxh3_128_intdigest(content(key, payload, vector))


def content(key: bytes, payload: bytes, vector: bytes | memoryview) -> bytes:
    """Return a point's content as it is hashed, and as it is stored in the points family behind LSN and hash."""
    return b"".join((_U32.pack(len(key)), key, _U32.pack(len(payload)), payload, _U32.pack(len(vector)), vector))


def contents(keys: Sequence[bytes], payloads: Sequence[bytes], vectors: npt.NDArray[np.float32]) -> list[bytes]:
    """Return the content of each point: `content` of many, with what they share made once."""
    size = 4 * vectors.shape[1]
    data = vectors.data.cast("B") if len(vectors) else memoryview(b"")
    tail, sized, join = _U32.pack(size), _U32.pack, b"".join
    key_sizes = {count: sized(count) for count in set(map(len, keys))}
    return [
        join((key_sizes[len(key)], key, sized(len(payload)), payload, tail, data[at : at + size]))
        for key, payload, at in zip(keys, payloads, range(0, len(data), size), strict=True)
    ]


def split_content(data: bytes | memoryview) -> tuple[bytes, bytes, bytes]:
    """Return id key, payload and vector of a content; raises `Damaged` where the lengths do not fit."""
    pieces, at = [], 0
    for _ in range(3):
        if at + 4 > len(data):
            raise Damaged("a stored point is too short")
        size = _U32.unpack_from(data, at)[0]
        pieces.append(bytes(data[at + 4 : at + 4 + size]))
        at += 4 + size
    if at != len(data):
        raise Damaged("a stored point has the wrong length")
    return pieces[0], pieces[1], pieces[2]


@dataclass(frozen=True, slots=True)
class PointsBody:
    """The columnar body of an upsert (with vectors and payloads) or a delete (ids alone).

    Attributes
    ----------
    kind
        Of every id in it.
    keys
        The id keys, each id once.
    payloads
        Canonical JSON, one for each id; empty for a delete.
    vectors
        float32 of shape (n, dim), little-endian, C order; None for a delete.
    """

    kind: IdKind
    keys: list[bytes]
    payloads: list[bytes]
    vectors: npt.NDArray[np.float32] | None

    def encode(self) -> tuple[Bytes, ...]:
        """Return the body's parts: counts, ids, payload sizes, payloads, vectors (not copied)."""
        dim = 0 if self.vectors is None else self.vectors.shape[1]
        head = struct.pack("<BIIB", self.kind, len(self.keys), dim, self.vectors is not None)
        if self.kind == IdKind.INT:
            ids = np.frombuffer(b"".join(self.keys), np.uint8).reshape(-1, 9)[:, 1:].tobytes()
        else:
            ids = _sized([key[1:] for key in self.keys])
        if self.vectors is None:
            return (head, ids)
        vectors = self.vectors.data.cast("B") if len(self.vectors) else b""
        return (head, ids, _sized(self.payloads), vectors)

    @classmethod
    def decode(cls, data: bytes) -> PointsBody:
        """Read a body; raises `Damaged` where lengths do not fit."""
        try:
            kind, count, dim, full = struct.unpack_from("<BIIB", data)
            at = struct.calcsize("<BIIB")
            tag = bytes([kind])
            if kind == IdKind.INT:
                keys = [tag + data[at + 8 * i : at + 8 * i + 8] for i in range(count)]
                at += 8 * count
            else:
                names, at = _unsized(data, at, count)
                keys = [tag + name for name in names]
            if not full:
                if at != len(data):
                    raise ValueError(at)
                return cls(IdKind(kind), keys, [], None)
            payloads, at = _unsized(data, at, count)
            vectors = np.frombuffer(data, "<f4", count * dim, at).reshape(count, dim)
            if at + vectors.nbytes != len(data):
                raise ValueError(at)
            return cls(IdKind(kind), keys, payloads, vectors)
        except (struct.error, ValueError) as exc:
            raise Damaged(f"the body of a record of {len(data)} bytes cannot be read: {exc}") from exc


def _sized(pieces: Sequence[bytes]) -> bytes:
    sizes = np.fromiter(map(len, pieces), "<u4", len(pieces))
    return sizes.tobytes() + b"".join(pieces)


def _unsized(data: bytes, at: int, count: int) -> tuple[list[bytes], int]:
    sizes = np.frombuffer(data, "<u4", count, at)
    at += 4 * count
    ends = (at + np.cumsum(sizes, dtype=np.int64)).tolist()
    if ends and ends[-1] > len(data):
        raise ValueError(f"{ends[-1]} bytes named, {len(data)} there")
    starts = [at, *ends[:-1]]
    return [data[start:end] for start, end in zip(starts, ends, strict=True)] if count else [], ends[-1] if ends else at


def encode_json(value: object) -> bytes:
    """Return the body of a record about a collection: JSON with sorted keys."""
    return msgspec.json.encode(value, order="sorted")
