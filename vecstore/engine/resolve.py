"""From a call to the physical change that its record carries. Runs in the committer, against the state before the call.

A record says what each point becomes, never a predicate: here `update` reads the points that it changes and `delete` by
filter finds those that it removes. All checks are made here or before, so that applying a record cannot fail on input.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash

from .. import payload as payloads
from ..config import EXTENT_ROWS, RECORD_BYTES_MAX, RECORD_POINTS_MAX
from ..errors import InvalidArgument, NotFound
from ..filters import parse
from ..inputs import too_large
from ..record import IdKind, PointsBody, content
from ..storage.catalog import CollectionState
from ..storage.fold import HashesOf, PointsChange
from ..values import FieldType
from .calls import Delete, DeleteWhere, Update, Upsert
from .filtering import matching_rows
from .rowmap import Codes, id_codes
from .state import State, shard_of

__all__ = ["Resolved", "Resolver", "check_id_kind"]


@dataclass(frozen=True, slots=True)
class Resolved:
    """What a call comes to.

    Attributes
    ----------
    change
        None where nothing is to be written.
    present
        Which of its points exist now.
    located
        The rows that hold them, of a collection with one shard.
    fields
        Fields that a record before it has to declare.
    hashes_of
        Gives the content hashes of those that exist.
    """

    change: PointsChange | None
    present: list[bool] | None = None
    located: list[int] | None = None
    fields: dict[str, FieldType] | None = None
    hashes_of: HashesOf | None = None


class Resolver:
    """Turns calls into changes. Owned by the committer."""

    def __init__(self, state: State) -> None:
        self._state = state

    def collection(self, number: int) -> CollectionState:
        """Return a collection as the last staged record left it."""
        try:
            return self._state.fold.collections[number]
        except KeyError:
            raise NotFound("the collection was dropped", details={"collection": number}) from None

    def upsert(self, call: Upsert) -> Resolved:
        """Check the payloads against the fields of now, and find which points exist."""
        state = self.collection(call.collection)
        check_id_kind(state, call.change.body.kind)
        fields = state.definition.fields
        new: dict[str, FieldType] = {}
        if (fields is not call.checked and fields != call.checked) or call.inferred:
            if state.definition.infer:
                new = payloads.infer(fields, call.payloads)
            payloads.check({**fields, **new}, call.payloads)
        keys = call.change.body.keys
        located = self._locate(call.collection, keys, call.codes)
        # New ids alone, the common case, need no look at each.
        present = [row >= 0 for row in located] if max(located, default=-1) >= 0 else [False] * len(keys)
        single = len(self._state.shards[call.collection]) == 1
        hashes_of = self._hashes_of(call.collection, keys, located)
        return Resolved(call.change, present, located if single else None, new or None, hashes_of)

    def finished(self, number: int, change: PointsChange, codes: Codes) -> Resolved:
        """Find which points of a finished record exist."""
        keys = change.body.keys
        located = self._locate(number, keys, codes)
        present = [row >= 0 for row in located] if max(located, default=-1) >= 0 else [False] * len(keys)
        single = len(self._state.shards[number]) == 1
        return Resolved(change, present, located if single else None, hashes_of=self._hashes_of(number, keys, located))

    def delete(self, call: Delete) -> Resolved:
        """Find which of the ids exist."""
        state = self.collection(call.collection)
        if state.id_kind is None:
            return Resolved(None)
        check_id_kind(state, IdKind(call.id_kind))
        located = self._locate(call.collection, call.keys, None)
        keys = [key for key, row in zip(call.keys, located, strict=True) if row >= 0]
        rows = [row for row in located if row >= 0]
        return Resolved(_removal(keys), [True] * len(keys), hashes_of=self._hashes_of(call.collection, keys, rows))

    def delete_where(self, call: DeleteWhere) -> Resolved:
        """Find as many points that match as one record holds."""
        fields = self.collection(call.collection).definition.fields
        # A bound of an int64 field is not the bound of the float64 field that it has become.
        condition = call.condition if fields == call.checked else parse(call.filter, fields)
        view = self._state.view
        keys: list[bytes] = []
        for shard in view.collections[call.collection].shards:
            for row in matching_rows(shard, view.lsn, condition)[: RECORD_POINTS_MAX - len(keys)].tolist():
                extent = shard.extents[row // EXTENT_ROWS]
                assert extent is not None
                keys.append(extent.key_of(row % EXTENT_ROWS, int(shard.rows.codes[row])))
        return Resolved(_removal(keys), [True] * len(keys))

    def update(self, call: Update) -> Resolved:
        """Read the points that exist, and make of each what it becomes."""
        state = self.collection(call.collection)
        if state.id_kind is None:
            return Resolved(None)
        check_id_kind(state, IdKind(call.id_kind))
        located = self._locate(call.collection, call.keys, None)
        there = [i for i, row in enumerate(located) if row >= 0]
        if not there:
            return Resolved(None)
        keys = [call.keys[i] for i in there]
        old_payloads, vectors = self._read(call.collection, keys, [located[i] for i in there])
        if call.vectors is not None:
            vectors = np.ascontiguousarray(call.vectors[there])
        new: dict[str, FieldType] = {}
        if call.patches is not None:
            old_payloads, new = self._merged(state, old_payloads, [call.patches[i] for i in there], there)
        body = PointsBody(state.id_kind, keys, old_payloads, vectors)
        size = sum(map(len, old_payloads)) + vectors.nbytes
        if size > RECORD_BYTES_MAX:
            raise too_large("update", len(keys), size)
        hashes_of = self._hashes_of(call.collection, keys, [located[i] for i in there])
        return Resolved(PointsChange.of(body), [True] * len(keys), None, new or None, hashes_of)

    def _merged(
        self, state: CollectionState, old: list[bytes], patches: list[Mapping[str, Any]], places: Sequence[int]
    ) -> tuple[list[bytes], dict[str, FieldType]]:
        merged = []
        for data, patch in zip(old, patches, strict=True):
            value = payloads.decode(data, True)
            for key, item in patch.items():
                if item is None:
                    value.pop(key, None)
                else:
                    value[key] = item
            merged.append(value)
        fields = state.definition.fields
        new = payloads.infer(fields, merged) if state.definition.infer else {}
        payloads.check({**fields, **new}, merged)
        return [payloads.encode(item, f"payloads[{i}]") for item, i in zip(merged, places, strict=True)], new

    def _hashes_of(self, number: int, keys: list[bytes], located: list[int]) -> HashesOf:
        """Return who tells the content hashes of points by their rows: RocksDB would have to read all of each."""

        def of(positions: Sequence[int]) -> list[bytes]:
            some = [keys[i] for i in positions]
            payloads, vectors = self._read(number, some, [located[i] for i in positions])
            hashed = xxhash.xxh3_128_digest
            return [hashed(content(*point)) for point in zip(some, payloads, map(bytes, vectors), strict=True)]

        return of

    def _read(
        self, number: int, keys: list[bytes], located: list[int]
    ) -> tuple[list[bytes], np.ndarray[tuple[int, int], np.dtype[np.float32]]]:
        shards = self._state.shards[number]
        places = shard_of(keys, len(shards)).tolist() if len(shards) > 1 else [0] * len(keys)
        found, vectors = [], np.empty((len(keys), shards[0].rows.dim), np.float32)
        for i, (row, place) in enumerate(zip(located, places, strict=True)):
            extent = shards[place].extents[row // EXTENT_ROWS]
            assert extent is not None
            found.append(extent.payloads[row % EXTENT_ROWS])
            vectors[i] = shards[place].rows.vectors.data[row]
        return found, vectors

    def _locate(self, number: int, keys: list[bytes], codes: Codes | None) -> list[int]:
        """Return the row of each id in its shard, -1 where there is none, before the records of this group."""
        shards = self._state.shards[number]
        if codes is None:
            codes = id_codes(IdKind(keys[0][0]), keys) if keys else np.empty(0, np.uint64)
        if len(shards) == 1:
            return shards[0].locate(keys, codes)
        located = [-1] * len(keys)
        places = shard_of(keys, len(shards))
        for i, shard in enumerate(shards):
            mine = np.flatnonzero(places == i)
            for at, row in zip(mine.tolist(), shard.locate([keys[j] for j in mine], codes[mine]), strict=True):
                located[at] = row
        return located


def _removal(keys: list[bytes]) -> PointsChange | None:
    if not keys:
        return None
    return PointsChange.of(PointsBody(IdKind(keys[0][0]), keys, [], None))


def check_id_kind(state: CollectionState, kind: IdKind, what: str = "ids") -> None:
    """Refuse ids of another kind than the collection's."""
    if state.id_kind is not None and state.id_kind != kind:
        given, kept = ("integers", "strings") if kind == IdKind.INT else ("strings", "integers")
        raise InvalidArgument(
            f"{what}: {given} given, but the ids of collection {state.definition.name!r} are {kept}",
            hint="the first write of a collection fixes the kind of its ids",
        )
