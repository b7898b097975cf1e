"""The fold: records in, state out. The only one; commit, recovery, standby and restore all go through it.

`Fold.stage` gives a change its record: LSN, chain, and the digest that results. Nothing is written by it.
`Fold.batches` then says what the staged records put into the families, in small atomic pieces; the last one carries
the new applied LSN, so that a crash between pieces leaves records that are simply applied again. `Fold.settle` makes
staged state the state.

Digests are kept up from content hashes: minus the old, plus the new. The old come from who knows the points, else from
`points`, where each stands beside its content. Within a group of records an overlay stands in for points that are not
written yet. Records that were applied in part before a crash (`trust`) cannot be counted that way, since points may be
old or new: their commit marks say what the digest is.

Who does the I/O: the key-value store given to it; this module opens nothing. Not thread-safe: the committer owns it.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import numpy as np
import xxhash

from ..config import CHAIN_MARK_RECORDS, REQUEST_WINDOW_S
from ..errors import Damaged
from ..record import (
    DIGEST_MODULUS,
    HEADER_BYTES,
    MARK_BYTES,
    NO_REQUEST,
    STAMP_BYTES,
    Header,
    Kind,
    Mark,
    PointsBody,
    Record,
    chain_seed,
    contents,
    encode_json,
    next_chain,
    point_key,
)
from . import catalog
from .base import Batch, Family, KeyValueStore
from .catalog import CollectionState, Definition, Epoch, Tip

__all__ = [
    "Change",
    "CollectionState",
    "Fold",
    "HashesOf",
    "PointsChange",
    "Position",
    "Staged",
    "decode_change",
    "digest_of",
]

_U64 = struct.Struct("<Q")
_REQUEST = struct.Struct("<QqQ")

HashesOf = Callable[[Sequence[int]], Sequence[bytes]]
"""Returns the content hashes of those of a record's points that exist before its group, by their positions in it."""


def digest_of(hashes: Sequence[bytes]) -> int:
    """Return the sum of content hashes, not yet reduced."""
    if len(hashes) < 64:
        return sum([int.from_bytes(piece, "big") for piece in hashes])
    words = np.frombuffer(b"".join(hashes), ">u4").reshape(-1, 4).sum(axis=0, dtype=np.uint64).tolist()
    return sum(word << shift for word, shift in zip(words, (96, 64, 32, 0), strict=True))


@dataclass(frozen=True, slots=True)
class PointsChange:
    """Points as a record carries them, with the content and hash of each; made outside of the committer."""

    body: PointsBody
    contents: list[bytes]
    hashes: list[bytes]
    payloads: Sequence[Mapping[str, Any]] | None = None

    @classmethod
    def of(cls, body: PointsBody, payloads: Sequence[Mapping[str, Any]] | None = None) -> PointsChange:
        """Compute content and hash of each point; for a delete there are none.

        Parameters
        ----------
        payloads
            The mappings that the body's payloads were made of, where the caller has them: it saves reading JSON.
        """
        if body.vectors is None:
            return cls(body, [], [], payloads)
        pieces = contents(body.keys, body.payloads, body.vectors)
        hashed = xxhash.xxh3_128_digest
        return cls(body, pieces, [hashed(piece) for piece in pieces], payloads)


Change = PointsChange | Definition | dict[str, Any] | Epoch
"""What a record does: points, or the JSON body of a record about a collection or an epoch."""


Position = tuple[Tip, dict[int, CollectionState], int, tuple[int, str]]
"""Where a fold is: tip, collections, how many epochs, and the last handover."""


@dataclass(frozen=True, slots=True)
class Staged:
    """A record with its place in the history, not yet written.

    Attributes
    ----------
    points
        What it does to points; None for records about collections and epochs.
    state
        Its collection afterwards; None where it is dropped, and for epochs.
    """

    record: Record
    points: PointsChange | None
    state: CollectionState | None


class Fold:
    """The state of a store's collections, kept up record by record.

    Attributes
    ----------
    tip
        After the last staged record.
    collections
        By id, after the last staged record.
    requests
        Request ids of the last ten minutes of log time: LSN, commit time, count.
    """

    def __init__(self, store: KeyValueStore, lineage: bytes) -> None:
        self._store = store
        self._overlay: dict[bytes, bytes | None] = {}
        self._counted_changes: list[tuple[bytes, PointsChange]] = []
        self._order: deque[tuple[bytes, int]] = deque()
        self.requests: dict[bytes, tuple[int, int, int]] = {}
        self.tip = Tip(0, 0, chain_seed(lineage), 0, 0)
        self.collections: dict[int, CollectionState] = {}
        self.epochs: list[Epoch] = []
        self._handover = (0, "")
        self._load()

    def _load(self) -> None:
        (applied,) = self._store.get(Family.META, [catalog.APPLIED])
        if applied is not None:
            self.tip = Tip.decode(applied)
        definitions = list(self._prefixed(catalog.COLLECTION))
        digests = dict(self._prefixed(catalog.DIGEST))
        for number, data in definitions:
            self.collections[number] = CollectionState.decode(data, digests[number])
        self.epochs = [msgspec.json.decode(data, type=Epoch) for _, data in self._prefixed(catalog.EPOCH)]
        (handover,) = self._store.get(Family.META, [catalog.HANDOVER])
        if handover is not None:
            self._handover = msgspec.json.decode(handover, type=tuple[int, str])
        found = [(key, _REQUEST.unpack(value)) for key, value in self._store.scan(Family.REQUESTS, b"")]
        for key, entry in sorted(found, key=lambda pair: pair[1][0]):
            self._remember(key, entry)

    def _prefixed(self, prefix: bytes) -> Iterator[tuple[int, bytes]]:
        for key, value in self._store.scan(Family.META, prefix, prefix[:-1] + bytes([prefix[-1] + 1])):
            yield catalog.number_of(prefix, key), value

    @property
    def handover(self) -> str:
        """The store that the record at the tip hands over to, "" where it is not a handover."""
        lsn, target = self._handover
        return target if lsn == self.tip.lsn else ""

    # -- staging -----------------------------------------------------------------------------------------------------

    def stage(
        self,
        kind: Kind,
        collection: int,
        change: Change,
        *,
        time_us: tuple[int, int],
        request_id: bytes = NO_REQUEST,
        present: Sequence[bool] | None = None,
        hashes_of: HashesOf | None = None,
    ) -> Staged:
        """Make the next record of the log.

        Parameters
        ----------
        change
            What it does: points, or the JSON body of a record about a collection.
        time_us
            Commit time and wall time.
        present
            For each point, whether it may exist already (before this group); None asks `points` for all.
        hashes_of
            Content hashes of those; without it `points` are read.
        """
        points = change if isinstance(change, PointsChange) else None
        parts = points.body.encode() if points else (encode_json(change),)
        number = self.tip.epoch
        if isinstance(change, Definition):
            collection = change.id
        elif isinstance(change, Epoch):
            number = change.number
        header = Header(
            self.tip.lsn + 1,
            kind,
            number,
            request_id,
            *time_us,
            collection,
            len(points.body.keys) if points else 0,
            self.tip.log_bytes,
            sum(map(len, parts)),
        )
        state = self._after(header, change, present, hashes_of)
        chain = next_chain(self.tip.chain, header.encode(), parts)
        mark = Mark(chain, state.digest if state else 0, state.points if state else 0)
        return self._take(Staged(Record(header, parts, mark), points, state))

    def restage(
        self,
        record: Record,
        *,
        trust: bool = False,
        change: Change | None = None,
        present: Sequence[bool] | None = None,
        hashes_of: HashesOf | None = None,
    ) -> Staged:
        """Take a finished record: from the log after a crash (`trust`), from a primary or an archive.

        Parameters
        ----------
        change
            What it does, where that was decoded already.
        present, hashes_of
            As `stage` takes them.

        Raises
        ------
        Damaged
            It does not follow the last record, or the digest that it gives is not the one in its mark.
        """
        header = record.header
        place = {"lsn": header.lsn, "expected": self.tip.lsn + 1}
        if header.lsn != self.tip.lsn + 1:
            raise Damaged(f"record {header.lsn} does not follow record {self.tip.lsn}", details=place)
        if next_chain(self.tip.chain, header.encode(), record.parts) != record.mark.chain:
            raise Damaged(f"record {header.lsn} breaks the chain", details=place)
        change = decode_change(record) if change is None else change
        if trust and isinstance(change, PointsChange):
            before = self.collections[header.collection]
            state: CollectionState | None = replace(
                before,
                definition=_with_id_kind(before.definition, change),
                digest=record.mark.digest,
                points=record.mark.points,
            )
        else:
            state = self._after(header, change, present, hashes_of)
            if state is not None and (state.digest, state.points) != (record.mark.digest, record.mark.points):
                raise Damaged(f"record {header.lsn} gives another digest than its mark says", details=place)
        return self._take(Staged(record, change if isinstance(change, PointsChange) else None, state))

    def _take(self, staged: Staged) -> Staged:
        header, mark = staged.record.header, staged.record.mark
        size = HEADER_BYTES + header.body_bytes + MARK_BYTES
        self.tip = Tip(header.lsn, header.epoch, mark.chain, header.commit_time_us, header.log_bytes + size)
        if staged.state is not None:
            self.collections[header.collection] = staged.state
        return staged

    def _after(
        self,
        header: Header,
        change: Change,
        present: Sequence[bool] | None,
        hashes_of: HashesOf | None = None,
    ) -> CollectionState | None:
        """Return the collection after a record, and note what else it does."""
        if isinstance(change, Definition):
            return CollectionState(change)
        if isinstance(change, Epoch):
            self.epochs.append(change)
            return None
        if header.kind == Kind.HANDOVER:
            assert isinstance(change, dict)
            self._handover = (header.lsn, change["to"])
            return None
        before = self.collections[header.collection]
        if isinstance(change, PointsChange):
            return self._counted(before, header, change, present, hashes_of)
        if header.kind == Kind.DROP:
            del self.collections[header.collection]
            return None
        if header.kind == Kind.RENAME:
            replaced = change.get("replaces")
            if replaced is not None:
                del self.collections[replaced]
            return replace(before, definition=msgspec.structs.replace(before.definition, name=change["name"]))
        fields = {**before.definition.fields, **change["fields"]}
        return replace(before, definition=msgspec.structs.replace(before.definition, fields=fields))

    def _counted(
        self,
        before: CollectionState,
        header: Header,
        change: PointsChange,
        present: Sequence[bool] | None,
        hashes_of: HashesOf | None,
    ) -> CollectionState:
        prefix = point_key(header.collection, b"")
        old = self._old_hashes(prefix, change.body.keys, present, hashes_of)
        new = change.hashes
        digest = (before.digest - digest_of(old) + digest_of(new)) % DIGEST_MODULUS
        self._counted_changes.append((prefix, change))
        definition = _with_id_kind(before.definition, change)
        return CollectionState(definition, digest, before.points - len(old) + len(new))

    def _old_hashes(
        self, prefix: bytes, keys: Sequence[bytes], present: Sequence[bool] | None, hashes_of: HashesOf | None
    ) -> list[bytes]:
        """Return the hashes of those points that exist before this record."""
        old: list[bytes] = []
        unknown: Sequence[int] = range(len(keys))
        if self._counted_changes or self._overlay:
            unknown = self._in_overlay(prefix, keys, old)
        if present is not None:
            unknown = [i for i in unknown if present[i]] if True in present else []
        if not unknown:
            return old
        if hashes_of is not None:
            old.extend(hashes_of(unknown))
        else:
            found = self._store.get(Family.POINTS, [prefix + keys[i] for i in unknown])
            old.extend(value[8:STAMP_BYTES] for value in found if value is not None)
        return old

    def _in_overlay(self, prefix: bytes, keys: Sequence[bytes], old: list[bytes]) -> list[int]:
        """Add the hashes that the group's earlier records gave; return the positions of points that none was about."""
        overlay = self._overlay
        for before, change in self._counted_changes:
            places = [before + key for key in change.body.keys]
            hashes: Sequence[bytes | None] = change.hashes or [None] * len(places)
            overlay.update(zip(places, hashes, strict=True))
        self._counted_changes.clear()
        unknown = []
        for i, key in enumerate(keys):
            place = prefix + key
            if place not in overlay:
                unknown.append(i)
            elif (value := overlay[place]) is not None:
                old.append(value)
        return unknown

    # -- writing -----------------------------------------------------------------------------------------------------

    def batches(self, group: Sequence[Staged], points_max: int) -> Iterator[Batch]:
        """Yield what staged records put into the families, at most `points_max` points a piece."""
        piece: list[tuple[Family, bytes, bytes | None]] = []
        # What records do to collections stands in the last piece, beside the applied LSN: a collection that is gone
        # while its record is still to be applied could not be redone.
        about: list[tuple[Family, bytes, bytes | None]] = []
        for staged in group:
            if staged.points is None:
                self._about(staged, about)
                continue
            for start in range(0, len(staged.points.body.keys), points_max):
                _put_points(staged, start, start + points_max, piece)
                if len(piece) >= points_max:
                    yield piece
                    piece = []
        piece += about
        self._finish(group, piece)
        yield piece

    def _about(self, staged: Staged, piece: list[tuple[Family, bytes, bytes | None]]) -> None:
        header = staged.record.header
        if header.kind == Kind.EPOCH:
            piece.append((Family.META, catalog.numbered(catalog.EPOCH, header.epoch), staged.record.body))
        elif header.kind == Kind.HANDOVER:
            piece.append((Family.META, catalog.HANDOVER, msgspec.json.encode(self._handover)))
        gone = []
        if header.kind == Kind.DROP:
            gone.append(header.collection)
        elif header.kind == Kind.RENAME:
            replaced = msgspec.json.decode(staged.record.body).get("replaces")
            gone.extend([] if replaced is None else [replaced])
        for number in gone:
            piece.append((Family.META, catalog.numbered(catalog.COLLECTION, number), None))
            piece.append((Family.META, catalog.numbered(catalog.DIGEST, number), None))
            piece.append((Family.META, catalog.numbered(catalog.DROPPED, number), _U64.pack(header.lsn)))

    def _finish(self, group: Sequence[Staged], piece: list[tuple[Family, bytes, bytes | None]]) -> None:
        """Add what the whole group changes in meta and requests."""
        for number in {staged.record.header.collection for staged in group}:
            state = self.collections.get(number)
            if state is not None:
                definition = msgspec.json.encode(state.definition)
                piece.append((Family.META, catalog.numbered(catalog.COLLECTION, number), definition))
                piece.append((Family.META, catalog.numbered(catalog.DIGEST, number), state.encode_digest()))
        for staged in group:
            header = staged.record.header
            if header.lsn % CHAIN_MARK_RECORDS == 0:
                piece.append((Family.META, catalog.numbered(catalog.CHAIN, header.lsn), staged.record.mark.chain))
            if header.request_id != NO_REQUEST:
                entry = (header.lsn, header.commit_time_us, header.count)
                self._remember(header.request_id, entry)
                piece.append((Family.REQUESTS, header.request_id, _REQUEST.pack(*entry)))
        horizon_us = self.tip.commit_time_us - int(REQUEST_WINDOW_S * 1e6)
        while self._order and self._order[0][1] < horizon_us:
            key, _ = self._order.popleft()
            self.requests.pop(key, None)
            piece.append((Family.REQUESTS, key, None))
        piece.append((Family.META, catalog.APPLIED, self.tip.encode()))

    def _remember(self, key: bytes, entry: tuple[int, int, int]) -> None:
        self.requests[key] = entry
        self._order.append((key, entry[1]))

    def position(self) -> Position:
        """Return where the fold is, for `rewind`."""
        return self.tip, dict(self.collections), len(self.epochs), self._handover

    def rewind(self, position: Position) -> None:
        """Forget what was staged since a position. Only for records of which nothing was written."""
        self.tip, self.collections = position[0], position[1]
        del self.epochs[position[2] :]
        self._handover = position[3]
        self.settle()

    def settle(self) -> None:
        """Forget the overlay: what was staged is in the families now."""
        self._overlay.clear()
        self._counted_changes.clear()


def decode_change(record: Record) -> Change:
    """Return what a record does, as `Fold.stage` takes it."""
    kind = record.header.kind
    if kind in (Kind.UPSERT, Kind.DELETE):
        return PointsChange.of(PointsBody.decode(record.body))
    try:
        if kind == Kind.CREATE:
            return msgspec.json.decode(record.body, type=Definition)
        if kind == Kind.EPOCH:
            return msgspec.json.decode(record.body, type=Epoch)
        return msgspec.json.decode(record.body, type=dict[str, Any])
    except msgspec.MsgspecError as exc:
        raise Damaged(f"the body of record {record.lsn} cannot be read: {exc}", details={"lsn": record.lsn}) from exc


def _with_id_kind(definition: Definition, change: PointsChange) -> Definition:
    if definition.id_kind or not change.body.keys:
        return definition
    return msgspec.structs.replace(definition, id_kind=int(change.body.kind))


def _put_points(staged: Staged, start: int, stop: int, piece: list[tuple[Family, bytes, bytes | None]]) -> None:
    assert staged.points is not None
    header, body = staged.record.header, staged.points.body
    lsn = _U64.pack(header.lsn)
    prefix = header.collection.to_bytes(8, "big")
    points = Family.POINTS
    if body.vectors is None:
        piece += [(points, prefix + key, None) for key in body.keys[start:stop]]
        return
    hashes, contents = staged.points.hashes[start:stop], staged.points.contents[start:stop]
    piece += [
        (points, prefix + key, lsn + hashed + value)
        for key, hashed, value in zip(body.keys[start:stop], hashes, contents, strict=True)
    ]
