"""The embedded `Collection`: checks what is given, asks the committer or a view, and forms the answer."""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from .. import inputs, request, table
from .. import payload as payloads
from ..api import Collection
from ..config import RECORD_BYTES_MAX, RECORD_POINTS_MAX
from ..errors import DeadlineExceeded, Exhausted, InvalidArgument, NotFound, NotPrimary, VecstoreError
from ..fields import check_fields
from ..filters import Condition, parse
from ..index import cpu
from ..inputs import Ask
from ..payload import check as check_payloads
from ..payload import encode_all, encode_simple
from ..record import IdKind, Kind, PointsBody
from ..storage.fold import PointsChange
from ..values import (
    Ack,
    ArrowStream,
    FieldType,
    Filter,
    Hits,
    Id,
    Ids,
    Metric,
    Payload,
    Point,
    SearchBatch,
    Written,
)
from .calls import Delete, DeleteWhere, Schema, Update, Upsert
from .engine import Engine
from .filtering import count_rows
from .hits import batch_of, hits_of, joined
from .points import in_order, in_shard, located, payloads_by_extent, point_at
from .query import prepared_query
from .resolve import check_id_kind
from .rowmap import id_codes
from .search import Answers, Found, search, sliced
from .view import CollectionView, View

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["EmbeddedCollection", "Handle"]

_BATCH_SPLIT_MIN = 8


class Handle(Protocol):
    """What a collection needs of the handle of its store."""

    @property
    def engine(self) -> Engine:
        """The open engine; refuses use after close."""
        ...


class EmbeddedCollection(Collection):
    """A handle on one collection of an open engine. Thread-safe.

    Parameters
    ----------
    owner
        The handle of the store that it came from: closed with it.
    number
        The collection's id: a handle follows renames, and does not follow the name.
    """

    def __init__(self, owner: Handle, number: int, name: str) -> None:
        self._owner = owner
        self._number = number
        self._last_name = name

    def __repr__(self) -> str:
        return f"<Collection {self._last_name!r} of {self._owner!r}>"

    @property
    def _engine(self) -> Engine:
        return self._owner.engine

    # -- what it is --------------------------------------------------------------------------------------------------

    def _in(self, view: View) -> CollectionView:
        found = view.collections.get(self._number)
        if found is None:
            raise NotFound(f"collection {self._last_name!r} was dropped", details={"collection": self._last_name})
        self._last_name = found.state.definition.name
        return found

    def _now(self) -> CollectionView:
        self._engine.check_open()
        return self._in(self._engine.state.view)

    @property
    def name(self) -> str:
        return self._now().state.definition.name

    @property
    def dim(self) -> int:
        return self._now().state.definition.dim

    @property
    def metric(self) -> Metric:
        return self._now().state.definition.metric

    @property
    def fields(self) -> dict[str, FieldType]:
        return dict(self._now().state.definition.fields)

    @property
    def metadata(self) -> dict[str, Any]:
        return deepcopy(self._now().state.definition.metadata)

    @property
    def number(self) -> int:
        return self._number

    @property
    def id_kind(self) -> Literal["int", "str", ""]:
        kind = self._now().state.id_kind
        return "" if kind is None else "int" if kind == IdKind.INT else "str"

    # -- writing -----------------------------------------------------------------------------------------------------

    def upsert(
        self,
        ids: Ids,
        vectors: npt.ArrayLike,
        payloads: Sequence[Payload] | pa.Table | None = None,
        *,
        ack: Ack = "durable",
        timeout: float | None = None,
    ) -> Written:
        definition = self._now().state.definition
        ack, deadline_s = inputs.checked_ack(ack), _deadline(timeout)
        kind, keys, _ = inputs.key_list(ids)
        if len(keys) > RECORD_POINTS_MAX:
            raise inputs.too_large("upsert", len(keys), 4 * definition.dim * len(keys))
        floats = inputs.checked_vectors(vectors, definition.dim, definition.metric, count=len(keys))
        rows = inputs.payload_rows(payloads, len(keys))
        encoded = None if rows is None else encode_simple(rows)
        # What columns read of plain mappings is what they would read of the JSON.
        plain = rows if encoded is not None else None
        if encoded is None:
            encoded = encode_all(rows, len(keys))
        state = self._now().state
        if kind is None:
            return self._nothing(ack)
        check_id_kind(state, kind)
        kept = inputs.last_of_each(keys)
        if kept is not None:
            keys, encoded, floats = [keys[i] for i in kept], [encoded[i] for i in kept], floats[kept]
            rows = None if rows is None else [rows[i] for i in kept]
            plain = None if plain is None else rows
        elif not floats.flags.owndata or floats is vectors:
            # The caller may change its array while the write waits: what is checked and hashed must be what is kept.
            floats = floats.copy()
        size = floats.nbytes + sum(map(len, encoded))
        if size > RECORD_BYTES_MAX:
            raise inputs.too_large("upsert", len(keys), size)
        fields = state.definition.fields
        if fields and rows is not None and not state.definition.infer:
            check_payloads(fields, rows)
        change = PointsChange.of(PointsBody(kind, keys, encoded, floats), plain)
        self._engine.admit_rows(self._number, deadline_s)
        call = Upsert(
            ack=ack,
            deadline_s=deadline_s,
            bytes=2 * size,
            collection=self._number,
            change=change,
            codes=id_codes(kind, keys),
            payloads=rows if rows is not None else (),
            checked=fields,
            inferred=state.definition.infer and rows is not None,
        )
        written: Written = self._engine.submit(call)
        return written

    def upsert_table(
        self,
        table: ArrowStream,
        *,
        id: str = "id",
        vector: str = "vector",
        ack: Ack = "durable",
        progress: Callable[[int], None] | None = None,
        timeout: float | None = None,
    ) -> Written:
        return _upsert_table(self, table, id, vector, ack, progress, timeout)

    def update(
        self,
        ids: Ids,
        *,
        vectors: npt.ArrayLike | None = None,
        payloads: Sequence[Payload] | None = None,
        ack: Ack = "durable",
        timeout: float | None = None,
    ) -> Written:
        definition = self._now().state.definition
        ack, deadline_s = inputs.checked_ack(ack), _deadline(timeout)
        kind, keys, _ = inputs.key_list(ids)
        if vectors is None and payloads is None:
            raise InvalidArgument("vectors, payloads: neither given; an update needs at least one of them")
        if len(keys) > RECORD_POINTS_MAX:
            raise inputs.too_large("update", len(keys), 4 * definition.dim * len(keys))
        floats = None
        if vectors is not None:
            floats = inputs.checked_vectors(vectors, definition.dim, definition.metric, count=len(keys))
        patches = _patches(payloads, len(keys))
        if kind is None:
            return self._nothing(ack)
        check_id_kind(self._now().state, kind)
        kept = inputs.last_of_each(keys)
        if kept is not None:
            keys = [keys[i] for i in kept]
            floats = None if floats is None else floats[kept]
            patches = None if patches is None else [patches[i] for i in kept]
        self._engine.admit_rows(self._number, deadline_s)
        call = Update(
            ack=ack,
            deadline_s=deadline_s,
            bytes=2 * (4 * definition.dim + 256) * len(keys),
            collection=self._number,
            keys=keys,
            vectors=floats,
            patches=patches,
            id_kind=int(kind),
        )
        written: Written = self._engine.submit(call)
        return written

    def delete(
        self,
        *,
        ids: Ids | None = None,
        filter: Filter | None = None,
        ack: Ack = "durable",
        timeout: float | None = None,
    ) -> Written:
        state = self._now().state
        ack, deadline_s = inputs.checked_ack(ack), _deadline(timeout)
        if (ids is None) == (filter is None):
            given = "both" if ids is not None else "neither"
            raise InvalidArgument(f"ids, filter: {given} given; allowed is exactly one of them")
        if filter is not None:
            return self._delete_where(filter, ack, deadline_s)
        kind, keys, _ = inputs.key_list(ids)
        if len(keys) > RECORD_POINTS_MAX:
            raise inputs.too_large("delete", len(keys), 16 * len(keys))
        if kind is None:
            return self._nothing(ack)
        check_id_kind(state, kind)
        keys = list(dict.fromkeys(keys))
        size = sum(map(len, keys))
        call = Delete(ack=ack, deadline_s=deadline_s, bytes=size, collection=self._number, keys=keys, id_kind=int(kind))
        written: Written = self._engine.submit(call)
        return written

    def _delete_where(self, filter: Filter, ack: Ack, deadline_s: float | None) -> Written:
        fields = self._now().state.definition.fields
        call_id = request.current()
        try:
            condition = parse(filter, fields)
        except InvalidArgument as exc:
            # Once the field is declared, another attempt of this request would find something to remove.
            self._engine.settle(call_id, exc)
            raise
        total = 0
        for number in itertools.count():
            call = DeleteWhere(
                ack=ack,
                request_id=request.part(call_id, number),
                deadline_s=deadline_s,
                bytes=4096,
                collection=self._number,
                filter=filter,
                condition=condition,
                checked=fields,
            )
            try:
                written: Written = self._engine.submit(call)
            except VecstoreError as exc:
                inputs.note_committed(exc, total)
                raise
            total += written.count
            if written.count < RECORD_POINTS_MAX:
                return Written(written.lsn, total, written.token, written.ack)
        raise AssertionError("unreachable")

    def _nothing(self, ack: Ack) -> Written:
        if self._engine.committer is None:
            raise NotPrimary("the store is open read-only", hint="open it with read_only=False")
        if self._engine.committer.held is not None:
            raise self._engine.committer.held()
        if ack == "replicated":
            self._engine.check_synchronous()
        view = self._engine.state.view
        return Written(view.lsn, 0, "" if ack == "memory" else self._engine.token(view), ack)

    def add_field(self, name: str, type: FieldType) -> None:
        self._now()
        fields = check_fields({name: type})

        def make() -> tuple[Kind, int, dict[str, Any]] | None:
            view = self._in(self._engine.state.view)
            declared = view.state.definition.fields
            if name in declared:
                raise InvalidArgument(f"name: field {name!r} is declared already, as {declared[name]}")
            for shard in view.shards:
                for extent_rows in payloads_by_extent(shard, self._engine.state.view.lsn):
                    payloads.check(fields, [payloads.decode(data, True) for data in extent_rows])
            return Kind.FIELDS, self._number, {"fields": fields}

        self._engine.submit(Schema(make=make, deadline_s=request.deadline_s()))

    def optimize(self, *, progress: Callable[[int, int], None] | None = None, timeout: float | None = None) -> None:
        self._now()
        if self._engine.builder is None:
            raise NotPrimary("the store is open read-only", hint="open it with read_only=False")
        self._engine.builder.optimize(self._number, progress, _deadline(timeout))

    # -- reading -----------------------------------------------------------------------------------------------------

    def search(
        self,
        vector: npt.ArrayLike,
        k: int = 10,
        *,
        filter: Filter | None = None,
        recall: float | None = None,
        exact: bool = False,
        effort: int | None = None,
        offset: int = 0,
        score_threshold: float | None = None,
        with_payload: bool | Sequence[str] = True,
        with_vector: bool = False,
        after: str | Written | None = None,
        timeout: float | None = None,
    ) -> Hits:
        engine = self._engine
        if timeout is not None:
            timeout = inputs.checked_timeout(timeout)
        if score_threshold is not None:
            score_threshold = inputs.checked_threshold(score_threshold)
        view = engine.view(after, timeout)
        collection = self._in(view)
        definition = collection.state.definition
        ask = inputs.ask_of(recall, exact, effort)
        k, offset = inputs.checked_k(k, offset)
        keys = inputs.checked_keys(with_payload)
        condition = None if filter is None else parse(filter, definition.fields)
        query = prepared_query(vector, definition.dim, definition.metric)
        answers = None
        if engine.accelerator is not None:
            shards, cache = collection.shards, engine.filters
            answers = engine.accelerator.answers(shards, query, k + offset, condition, ask, cache, timeout)
        if not engine.gate.enter(timeout):
            raise DeadlineExceeded("the time given ran out before the search could start", hint="give it more time")
        try:
            found = search(collection.shards, view.lsn, query, k + offset, condition, ask, engine.filters, answers)
        finally:
            engine.gate.leave()
        if offset:
            found = Found(found.scores[:, offset:], found.places[:, offset:], found.exact)
        return hits_of(collection, view.lsn, found, keys, with_vector, score_threshold)

    def search_batch(
        self,
        vectors: npt.ArrayLike,
        k: int = 10,
        *,
        filter: Filter | None = None,
        recall: float | None = None,
        exact: bool = False,
        effort: int | None = None,
        with_payload: bool | Sequence[str] = False,
        after: str | Written | None = None,
        timeout: float | None = None,
    ) -> SearchBatch:
        engine = self._engine
        deadline_s = _deadline(timeout)
        view = engine.view(after, timeout)
        collection = self._in(view)
        definition = collection.state.definition
        ask = inputs.ask_of(recall, exact, effort)
        k, _ = inputs.checked_k(k)
        keys = inputs.checked_keys(with_payload)
        condition = None if filter is None else parse(filter, definition.fields)
        floats = inputs.checked_vectors(vectors, definition.dim, definition.metric)
        found = self._search_parts(collection, view.lsn, floats, k, condition, ask, deadline_s)
        return batch_of(collection, view.lsn, found, k, keys)

    def _search_parts(
        self,
        collection: CollectionView,
        lsn: int,
        vectors: npt.NDArray[np.float32],
        k: int,
        condition: Condition | None,
        ask: Ask,
        deadline_s: float | None,
    ) -> Found:
        """Search a batch in parts, one on each core; every part passes the gate on its own."""
        engine = self._engine
        metric = collection.state.definition.metric
        answers: Answers | None = None
        if engine.accelerator is not None and len(vectors):
            left_s = None if deadline_s is None else deadline_s - time.monotonic()
            answers = engine.accelerator.answers(
                collection.shards, cpu.prepare(metric, vectors), k, condition, ask, engine.filters, left_s
            )

        def part(span: slice) -> Found:
            left_s = None if deadline_s is None else deadline_s - time.monotonic()
            if (left_s is not None and left_s <= 0) or not engine.gate.enter(left_s):
                raise DeadlineExceeded("the time given ran out before the search was done", hint="give it more time")
            try:
                queries = cpu.prepare(metric, vectors[span])
                said = None if answers is None else sliced(answers, span)
                return search(collection.shards, lsn, queries, k, condition, ask, engine.filters, said)
            finally:
                engine.gate.leave()

        threads = engine.config.search_thread_count()
        if threads == 1 or len(vectors) < _BATCH_SPLIT_MIN:
            return part(slice(0, len(vectors)))
        count = min(threads, len(vectors) // (_BATCH_SPLIT_MIN // 2))
        cuts = [len(vectors) * i // count for i in range(count + 1)]
        spans = [slice(start, stop) for start, stop in itertools.pairwise(cuts)]
        return joined(engine.crew.run([partial(part, span) for span in spans]), k)

    def get(
        self,
        ids: Ids,
        *,
        with_payload: bool | Sequence[str] = True,
        with_vector: bool = False,
        after: str | Written | None = None,
        timeout: float | None = None,
    ) -> list[Point]:
        view = self._engine.view(after, inputs.checked_timeout(timeout))
        collection = self._in(view)
        kind, keys, _ = inputs.key_list(ids)
        wanted = inputs.checked_keys(with_payload)
        if kind is None or collection.state.id_kind is None:
            return []
        check_id_kind(collection.state, kind)
        points = []
        for key, (shard, row) in zip(keys, located(collection, view.lsn, kind, keys), strict=True):
            if row >= 0:
                points.append(point_at(collection.shards[shard], row, key, wanted, with_vector))
        return points

    def scan(
        self,
        filter: Filter | None = None,
        *,
        start: Id | None = None,
        limit: int | None = None,
        with_payload: bool | Sequence[str] = True,
        with_vector: bool = False,
        after: str | Written | None = None,
    ) -> Iterator[Point]:
        view = self._engine.view(after, None)
        collection = self._in(view)
        condition = None if filter is None else parse(filter, collection.state.definition.fields)
        first = None
        if start is not None:
            kind, first = inputs.one_key(start, "start")
            check_id_kind(collection.state, kind, f"start: {inputs.shown(start)}")
        if limit is not None:
            limit = inputs.checked_int(limit, "limit", 0, 2**63 - 1)
        wanted = inputs.checked_keys(with_payload)
        return self._scanned(collection, view.lsn, condition, first, limit, wanted, with_vector)

    def _scanned(
        self,
        collection: CollectionView,
        lsn: int,
        condition: Condition | None,
        first: bytes | None,
        limit: int | None,
        wanted: bool | tuple[str, ...],
        with_vector: bool,
    ) -> Iterator[Point]:
        began_s = time.monotonic()
        streams = [
            in_shard(i, in_order(shard, lsn, condition, first, self._engine.filters))
            for i, shard in enumerate(collection.shards)
        ]
        for count, (key, i, row) in enumerate(heapq.merge(*streams) if len(streams) > 1 else streams[0]):
            if limit is not None and count >= limit:
                return
            self._engine.check_open()
            if time.monotonic() - began_s > self._engine.config.view_age_s_max:
                raise Exhausted(
                    f"the scan's view is older than {self._engine.config.view_age_s_max} s",
                    hint="begin again with start= at the last id seen, or raise view_age_s_max",
                    details={"limit": "view_age_s_max"},
                )
            yield point_at(collection.shards[i], row, key, wanted, with_vector)

    def to_arrow(self, filter: Filter | None = None, *, with_vector: bool = True) -> pa.RecordBatchReader:
        definition = self._now().state.definition
        points = self.scan(filter, with_vector=with_vector)
        return table.to_reader(
            points,
            dim=definition.dim,
            strings=definition.id_kind == IdKind.STR,
            declared=definition.fields,
            with_vector=with_vector,
        )

    def count(
        self, filter: Filter | None = None, *, after: str | Written | None = None, timeout: float | None = None
    ) -> int:
        view = self._engine.view(after, inputs.checked_timeout(timeout))
        collection = self._in(view)
        if filter is None:
            return collection.state.points
        condition = parse(filter, collection.state.definition.fields)
        return sum(count_rows(shard, view.lsn, condition, self._engine.filters) for shard in collection.shards)


# -- forms -----------------------------------------------------------------------------------------------------------


def _deadline(timeout: object) -> float | None:
    checked = inputs.checked_timeout(timeout)
    return None if checked is None else time.monotonic() + checked


def _patches(given: Sequence[Payload] | None, count: int) -> list[Mapping[str, Any]] | None:
    rows = inputs.payload_rows(given, count)
    if rows is None:
        return None
    for i, row in enumerate(rows):
        payloads.encode(row, f"payloads[{i}]")
    return [dict(row) for row in rows]


def _upsert_table(
    collection: EmbeddedCollection,
    stream: ArrowStream,
    id: str,
    vector: str,
    ack: Ack,
    progress: Callable[[int], None] | None,
    timeout: float | None,
) -> Written:
    deadline_s = _deadline(timeout)
    committed = 0
    last = collection._nothing(inputs.checked_ack(ack))
    call_id = request.current()
    for number, piece in enumerate(table.pieces(stream, id, vector, collection.dim)):
        left_s = None if deadline_s is None else max(0.0, deadline_s - time.monotonic())
        try:
            with request.use(request.part(call_id, number)):
                last = collection.upsert(*piece.read(), ack=ack, timeout=left_s)
        except VecstoreError as exc:
            inputs.note_committed(exc, committed)
            raise
        committed += last.count
        if progress is not None:
            progress(committed)
    return Written(last.lsn, committed, last.token, last.ack)
