"""The oracle: what a store must answer, in plain dicts and numpy. The only second implementation allowed.

It is not fast, not durable and not concurrent. It recomputes everything, digests included, from what it was told; the
only thing that it shares with the package are the bytes that are fixed (`vecstore.record`): id keys and content hashes.
No I/O.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from vecstore.record import DIGEST_MODULUS, content_hash, id_key

__all__ = ["Oracle", "OracleCollection", "canonical_json", "check_hits", "matches", "timestamp_text"]

Floats = npt.NDArray[np.float32]
Id = int | str
INT64 = range(-(2**63), 2**63)
SCORE_TOLERANCE = 1e-4


# -- payloads ----------------------------------------------------------------------------------------------------------


def timestamp_text(moment: datetime) -> str:
    """Return how a datetime stands in canonical JSON."""
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def plain(value: Any) -> Any:
    """Return a payload value as it comes back: datetimes as text, tuples as lists."""
    if isinstance(value, datetime):
        return timestamp_text(value)
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def canonical_json(payload: Mapping[str, Any]) -> bytes:
    """Return the canonical JSON of a payload: keys by code point, no spaces, shortest floats."""
    return msgspec.json.encode(plain(payload), order="sorted")


def fits(type: str, value: Any) -> bool:
    """Tell whether a payload's value may stand in a field of this type."""
    if value is None:
        return True
    if type.startswith("list<"):
        return isinstance(value, list | tuple) and all(v is not None and fits(type[5:-1], v) for v in value)
    if type == "string":
        return isinstance(value, str)
    if type == "bool":
        return isinstance(value, bool)
    if type == "timestamp":
        return _moment(value) is not None
    if isinstance(value, bool):
        return False
    return isinstance(value, int) and value in INT64 if type == "int64" else isinstance(value, int | float)


def inferred(value: Any) -> str | None:
    """Return the type that the first scalar under a key declares, None for what declares nothing."""
    if isinstance(value, bool):
        return "bool"
    for kind, type in ((int, "int64"), (float, "float64"), (datetime, "timestamp"), (str, "string")):
        if isinstance(value, kind):
            return type
    return None


def _moment(value: Any) -> datetime | None:
    if isinstance(value, datetime):
        return value if value.tzinfo else None
    try:
        moment = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return None
    return moment if moment.tzinfo else None


# -- filters -----------------------------------------------------------------------------------------------------------

_ORDERED: dict[str, Callable[[Any, Any], bool]] = {
    "$eq": operator.eq,
    "$lt": operator.lt,
    "$lte": operator.le,
    "$gt": operator.gt,
    "$gte": operator.ge,
}


def matches(payload: Mapping[str, Any], condition: Mapping[str, Any], fields: Mapping[str, str]) -> bool:
    """Evaluate a filter in its dict form over one payload."""
    return all(_clause(payload, key, wanted, fields) for key, wanted in condition.items())


def _clause(payload: Mapping[str, Any], key: str, wanted: Any, fields: Mapping[str, str]) -> bool:
    if key == "$and":
        return all(matches(payload, part, fields) for part in wanted)
    if key == "$or":
        return any(matches(payload, part, fields) for part in wanted)
    if key == "$not":
        return not matches(payload, wanted, fields)
    tests = wanted if isinstance(wanted, Mapping) else {"$eq": wanted}
    return all(_test(payload.get(key), name, operand, fields[key]) for name, operand in tests.items())


def _test(value: Any, name: str, operand: Any, type: str) -> bool:
    if name == "$ne":
        return not _test(value, "$eq", operand, type)
    if name == "$nin":
        return not _test(value, "$in", operand, type)
    if name == "$null":
        return (value is None) is operand
    if value is None:
        return False
    if name == "$in":
        return any(_test(value, "$eq", one, type) for one in operand)
    compare = _ORDERED["$eq" if name == "$contains" else name]
    scalar = type[5:-1] if type.startswith("list<") else type
    elements = value if isinstance(value, list | tuple) else [value]
    return any(compare(_comparable(element, scalar), _comparable(operand, scalar)) for element in elements)


def _comparable(value: Any, type: str) -> Any:
    return _moment(value) if type == "timestamp" else value


# -- collections -------------------------------------------------------------------------------------------------------


@dataclass
class OracleCollection:
    """One collection: points by id, each a payload and a float32 vector."""

    name: str
    dim: int
    metric: str = "cosine"
    fields: dict[str, str] = field(default_factory=dict)
    infer: bool = False
    points: dict[Id, tuple[dict[str, Any], Floats]] = field(default_factory=dict)

    def upsert(self, ids: Sequence[Id], vectors: npt.ArrayLike, payloads: Sequence[Mapping[str, Any]] | None) -> None:
        """Write points whole; the last of several with one id counts."""
        rows = np.asarray(vectors, np.float32).reshape(len(ids), self.dim)
        given = [{} for _ in ids] if payloads is None else [plain(payload) for payload in payloads]
        if self.infer:
            self._infer(payloads or ())
        for id, row, payload in zip(ids, rows, given, strict=True):
            self.points[id] = (payload, row.copy())

    def update(
        self, ids: Sequence[Id], vectors: npt.ArrayLike | None, payloads: Sequence[Mapping[str, Any]] | None
    ) -> int:
        """Change the points that exist, the last of several with one id counts; return how many."""
        rows = None if vectors is None else np.asarray(vectors, np.float32).reshape(len(ids), self.dim)
        present = {id: i for i, id in enumerate(ids) if id in self.points}
        if self.infer and payloads is not None:
            self._infer([payloads[i] for i in present.values()])
        for id, i in present.items():
            payload, vector = self.points[id]
            changes = plain(payloads[i]) if payloads is not None else {}
            merged = {key: value for key, value in (payload | changes).items() if changes.get(key, 0) is not None}
            self.points[id] = (merged, vector if rows is None else rows[i].copy())
        return len(present)

    def _infer(self, payloads: Iterable[Mapping[str, Any]]) -> None:
        for payload in payloads:
            for key, value in payload.items():
                type = inferred(value)
                if type is None:
                    continue
                if self.fields.setdefault(key, type) == "int64" and type == "float64":
                    self.fields[key] = "float64"

    def fitting(self, payload: Mapping[str, Any]) -> bool:
        """Tell whether every declared field of a payload fits."""
        return all(fits(type, payload.get(name)) for name, type in self.fields.items())

    def delete(self, ids: Iterable[Id]) -> int:
        """Remove points; return how many existed."""
        return sum(self.points.pop(id, None) is not None for id in set(ids))

    def delete_where(self, condition: Mapping[str, Any]) -> int:
        """Remove the points that match; return how many."""
        return self.delete([id for id, _, _ in self.scan(condition)])

    def add_field(self, name: str, type: str) -> bool:
        """Declare a field; False where a payload's value does not fit, and nothing changes."""
        if not all(fits(type, payload.get(name)) for payload, _ in self.points.values()):
            return False
        self.fields[name] = type
        return True

    def scan(
        self, condition: Mapping[str, Any] | None = None, start: Id | None = None, limit: int | None = None
    ) -> list[tuple[Id, dict[str, Any], Floats]]:
        """Return id, payload and vector of the points that match, in the order of ids."""
        found = [
            (id, *self.points[id])
            for id in sorted(self.points, key=id_key)
            if (start is None or id_key(id) >= id_key(start))
            and (condition is None or matches(self.points[id][0], condition, self.fields))
        ]
        return found[:limit]

    def count(self, condition: Mapping[str, Any] | None = None) -> int:
        """Return the number of points that match."""
        return len(self.scan(condition))

    def search(
        self, query: npt.ArrayLike, k: int, condition: Mapping[str, Any] | None = None
    ) -> list[tuple[Id, float]]:
        """Return ids and scores of the k nearest, nearest first, ties by id."""
        found = self.scan(condition)
        if not found:
            return []
        scores = self.scores(query, np.stack([vector for _, _, vector in found]))
        nearness = scores if self.metric == "l2" else -scores
        order = np.argsort(nearness, kind="stable")[:k]
        return [(found[row][0], float(scores[row])) for row in order]

    def scores(self, query: npt.ArrayLike, rows: Floats) -> npt.NDArray[np.float64]:
        """Return the score of each row, computed in float64."""
        wide, point = rows.astype(np.float64), np.asarray(query, np.float32).astype(np.float64)
        if self.metric == "l2":
            distances: npt.NDArray[np.float64] = np.square(wide - point).sum(axis=1)
            return distances
        products: npt.NDArray[np.float64] = (wide * point).sum(axis=1)
        if self.metric == "ip":
            return products
        cosines: npt.NDArray[np.float64] = products / np.sqrt(np.square(wide).sum(axis=1) * np.square(point).sum())
        return cosines

    def digest(self) -> int:
        """Recompute the digest from all points: the sum of their content hashes modulo 2**128."""
        hashes = (
            content_hash(id_key(id), canonical_json(payload), vector.astype("<f4").tobytes())
            for id, (payload, vector) in self.points.items()
        )
        return sum(hashes) % DIGEST_MODULUS


@dataclass
class Oracle:
    """A store: collections by name."""

    collections: dict[str, OracleCollection] = field(default_factory=dict)

    def create(
        self, name: str, dim: int, metric: str = "cosine", fields: Mapping[str, str] | str | None = None
    ) -> OracleCollection:
        """Create an empty collection."""
        infer = fields == "infer"
        declared = dict(fields) if isinstance(fields, Mapping) else {}
        self.collections[name] = OracleCollection(name, dim, metric, declared, infer)
        return self.collections[name]

    def rename(self, name: str, to: str) -> None:
        """Give a collection another name; the one that had it is gone."""
        moved = self.collections.pop(name)
        moved.name = to
        self.collections[to] = moved

    def drop(self, name: str) -> None:
        """Drop a collection."""
        del self.collections[name]

    def digests(self) -> dict[str, int]:
        """Return the digest of every collection."""
        return {name: collection.digest() for name, collection in self.collections.items()}


def check_hits(
    hits: Sequence[Any], oracle: OracleCollection, query: npt.ArrayLike, condition: Mapping[str, Any] | None = None
) -> None:
    """Assert what holds of every answer, however approximate (I11), payloads included when they were asked for whole.

    Live points that match, no duplicates, exact scores, nearest first, ties by id.
    """
    ids = [hit.id for hit in hits]
    assert len(set(ids)) == len(ids), f"duplicates among {ids}"
    for hit in hits:
        assert hit.id in oracle.points, f"{hit.id!r} is not a live point"
        payload, vector = oracle.points[hit.id]
        assert hit.payload == payload
        assert condition is None or matches(payload, condition, oracle.fields), f"{hit.id!r} does not match"
        score = float(oracle.scores(query, vector[None])[0])
        assert math.isclose(hit.score, score, rel_tol=SCORE_TOLERANCE, abs_tol=SCORE_TOLERANCE)
    sign = 1 if oracle.metric == "l2" else -1
    places = [(sign * np.float32(hit.score), id_key(hit.id)) for hit in hits]
    assert places == sorted(places), f"not nearest first with ties by id: {[(h.id, h.score) for h in hits]}"
