"""Bad input: an error that names the field, what was given and what is allowed, and nothing changes (I10).

Names, filters, fields and tables have their cases beside what they are refused by; here is all the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import pytest

from vecstore import Collection, Database, InvalidArgument

from .base import DatabaseContract, refused

NAN, INFINITY = float("nan"), float("inf")
ROW = [1.0, 2.0, 3.0, 4.0]


@dataclass(frozen=True)
class Case:
    """A call that is refused, and the words of its error: the field, what was given, what is allowed."""

    name: str
    call: Callable[[Collection], object]
    words: tuple[str | tuple[str, ...], ...]


def upsert(ids: Any, vectors: Any, payloads: Any = None, **keywords: Any) -> Callable[[Collection], object]:
    """Return the call of an upsert."""
    return lambda docs: docs.upsert(ids, vectors, payloads, **keywords)


def search(vector: Any = ROW, k: Any = 10, **keywords: Any) -> Callable[[Collection], object]:
    """Return the call of a search."""
    return lambda docs: docs.search(vector, k, **keywords)


def batch(vectors: Any = (ROW,), k: Any = 10, **keywords: Any) -> Callable[[Collection], object]:
    """Return the call of a batch."""
    return lambda docs: docs.search_batch(vectors, k, **keywords)


RAGGED = [[1.0, 2.0, 3.0, 4.0], [1.0]]
OBJECTS = np.array([[1, None, "x", 4]], object)
REAL = ("real", "float32", "number")

CASES = [
    Case("dimension-upsert", upsert(9, [1, 2, 3]), ("vector", "3", "4")),
    Case("dimension-upsert-wide", upsert([9], [[1, 2, 3, 4, 5]]), ("vector", "5", "4")),
    Case("dimension-update", lambda docs: docs.update(0, vectors=[1, 2, 3]), ("vector", "3", "4")),
    Case("dimension-search", search([1, 2, 3]), ("vector", "3", "4")),
    Case("dimension-batch", batch([[1, 2, 3]]), ("vector", "3", "4")),
    Case("shape-search", search([ROW, ROW]), ("vector", "2", "4")),
    Case("shape-upsert", upsert([9], [[ROW]]), ("vector", "1", "4")),
    Case("shape-number", upsert([9], 5), ("vector", "4")),
    Case("ragged", upsert([8, 9], RAGGED), ("vector",)),
    Case("complex", upsert(9, [1j, 0, 0, 1]), ("vector", "complex", REAL)),
    Case("complex-array", search(np.ones(4, np.complex64)), ("vector", "complex", REAL)),
    Case("object", upsert([9], OBJECTS), ("vector", "object", REAL)),
    Case("none", upsert([9], [[1, 2, 3, None]]), ("vector", REAL)),
    Case("text", upsert(9, ["1", "2", "3", "4"]), ("vector", ("str", "<u", "text"), REAL)),
    Case("text-search", search("abcd"), ("vector", ("str", "<u", "text"), REAL)),
    Case("datetime", upsert(9, np.zeros(4, "M8[s]")), ("vector", "datetime", REAL)),
    Case("nan", upsert([8, 9], [ROW, [1, 2, NAN, 4]]), ("vector", "nan", ("finite", "number"), "1")),
    Case("infinity", upsert(9, [1, 2, 3, -INFINITY]), ("vector", "inf", ("finite", "number"))),
    Case("nan-search", search([1, 2, NAN, 4]), ("vector", "nan", ("finite", "number"))),
    Case("nan-batch", batch([ROW, [1, 2, NAN, 4]]), ("vector", "nan", ("finite", "number"))),
    Case("overflow", upsert(9, [1, 2, 3, 1e39]), ("vector", "1e+39", ("float32", "3.4"))),
    Case("overflow-int", upsert(9, [1, 2, 3, 10**40]), ("vector",)),
    Case("overflow-search", search([1, 2, 3, -1e39]), ("vector", "1e+39", ("float32", "3.4"))),
    Case("more-vectors", upsert([8, 9], [ROW] * 3), (("ids", "vectors"), "2", "3")),
    Case("fewer-vectors", upsert([7, 8, 9], [ROW] * 2), (("ids", "vectors"), "2", "3")),
    Case("more-payloads", upsert([8, 9], [ROW] * 2, [{}] * 3), ("payloads", "3", "2")),
    Case("fewer-payloads", upsert([8, 9], [ROW] * 2, [{}]), ("payloads", "1", "2")),
    Case("update-lengths", lambda docs: docs.update([0, 1], payloads=[{}]), ("payloads", "1", "2")),
    Case("update-vectors", lambda docs: docs.update([0, 1], vectors=[ROW]), ("vectors", "1", "2")),
    Case("update-nothing", lambda docs: docs.update([0]), ("vectors", "payloads")),
    Case("id-negative", upsert([8, -1], [ROW] * 2), ("id", "-1", ("2**63", "9223372036854775807"))),
    Case("id-too-large", upsert(2**63, ROW), ("id", str(2**63), ("2**63-1", "9223372036854775807"))),
    Case("id-far-too-large", upsert([10**30], [ROW]), ("id", ("2**63-1", "9223372036854775807"))),
    Case("id-numpy-too-large", upsert(np.array([2**64 - 1], np.uint64), [ROW]), ("id", str(2**64 - 1))),
    Case("id-float", upsert([1.5], [ROW]), ("id", ("1.5", "float"), "int")),
    Case("id-float-array", upsert(np.array([1.0]), [ROW]), ("id", ("1.0", "float"), "int")),
    Case("id-bool", upsert([True], [ROW]), ("id", ("true", "bool"), "int")),
    Case("id-none", upsert([None], [ROW]), ("id", "none", "int")),
    Case("id-bytes", upsert([b"a"], [ROW]), ("id", ("b'a'", "bytes"), "int")),
    Case("id-nested", upsert(np.array([[1]]), [ROW]), ("ids",)),
    Case("ids-mixed", upsert([8, "a"], [ROW] * 2), ("id", ("'a'", "str"), "int")),
    Case("id-other-kind", upsert(["a"], [ROW]), ("id", ("'a'", "str"), "int")),
    Case("id-negative-delete", lambda docs: docs.delete(ids=[0, -1]), ("id", "-1")),
    Case(
        "payload-too-long",
        upsert(9, ROW, [{"text": "x" * 2**20}]),
        ("payload", ("1,048,57", "104857"), ("1 MiB", "1,048,576")),
    ),
    Case("payload-object", upsert(9, ROW, [{"a": {"b": [1, object()]}}]), ("payload", "object", ("json", "allowed"))),
    Case("payload-set", upsert(9, ROW, [{"a": {1}}]), ("payload", "{1}", ("json", "allowed"))),
    Case("payload-bytes", upsert(9, ROW, [{"a": b"x"}]), ("payload", "b'x'", ("json", "allowed"))),
    Case("payload-key", upsert(9, ROW, [{5: 1}]), ("payload", "5", ("text", "str"))),
    Case("payload-nan", upsert(9, ROW, [{"a": NAN}]), ("payload", "nan", "finite")),
    Case("payload-nan-deep", upsert(9, ROW, [{"a": [None, {"b": -INFINITY}]}]), ("payload", "inf", "finite")),
    Case(
        "payload-big-int", upsert(9, ROW, [{"a": 2**64}]), ("payload", str(2**64), ("2**64-1", "18446744073709551615"))
    ),
    Case("payload-small-int", upsert(9, ROW, [{"a": -(2**63) - 1}]), ("payload", "2**63")),
    Case("payload-surrogate", upsert(9, ROW, [{"a": "\ud800"}]), ("payload", "unicode")),
    Case("payload-naive", upsert(9, ROW, [{"a": datetime(2024, 1, 1)}]), ("payload", "2024", ("aware", "offset"))),  # noqa: DTZ001
    Case("payload-not-mapping", upsert(9, ROW, ["text"]), ("payload", "text", "mapping")),
    Case("payloads-not-sequence", upsert([8, 9], [ROW] * 2, {"a": 1, "b": 2}), ("payloads",)),
    Case("payloads-text", upsert(9, ROW, "x"), ("payloads", "x", "sequence")),
    Case("update-payload", lambda docs: docs.update(0, payloads=[{"a": NAN}]), ("payload", "nan", "finite")),
    Case("k-zero", search(k=0), ("k", "0", ("10,000", "10000"))),
    Case("k-negative", batch(k=-1), ("k", "-1", ("10,000", "10000"))),
    Case("k-too-large", search(k=10_001), ("k", ("10,001", "10001"), ("10,000", "10000"))),
    Case("k-float", search(k=1.5), ("k", "1.5", ("10,000", "10000", "int"))),
    Case("recall-zero", search(recall=0), ("recall", "0", "1")),
    Case("recall-negative", batch(recall=-0.5), ("recall", "-0.5", "1")),
    Case("recall-above-one", search(recall=1.01), ("recall", "1.01", "1")),
    Case("recall-nan", search(recall=NAN), ("recall", "nan", "1")),
    Case("recall-text", search(recall="high"), ("recall", "high", "1")),
    Case("effort-zero", search(effort=0), ("effort", "0", "1")),
    Case("offset-negative", search(offset=-1), ("offset", "-1", "0")),
    Case("threshold-nan", search(score_threshold=NAN), ("score_threshold", "nan")),
    Case("threshold-text", search(score_threshold="0.5"), ("score_threshold", "0.5")),
    Case("with-payload-text", search(with_payload="size"), ("with_payload", "size", ("list", "sequence", "keys"))),
    Case("with-payload-batch", batch(with_payload="size"), ("with_payload", "size")),
    Case("with-payload-get", lambda docs: docs.get(0, with_payload="size"), ("with_payload", "size")),
    Case("with-payload-scan", lambda docs: list(docs.scan(with_payload="size")), ("with_payload", "size")),
    Case("limit-negative", lambda docs: list(docs.scan(limit=-1)), ("limit", "-1", "0")),
    Case("start-other-kind", lambda docs: list(docs.scan(start="a")), ("start", "'a'", "int")),
    Case("ack", upsert(9, ROW, ack="fast"), ("ack", "fast", "durable", "memory")),
    Case("timeout-negative", upsert(9, ROW, timeout=-1), ("timeout", "-1")),
    Case("timeout-search", search(timeout=NAN), ("timeout", "nan")),
    Case(
        "record-points",
        upsert(range(10_001), np.ones((10_001, 4))),
        (("ids", "points"), ("10,001", "10001"), ("10,000", "10000"), ("split", "upsert_table")),
    ),
    Case(
        "record-bytes",
        upsert(range(40), np.ones((40, 4)), [{"text": "x" * 900_000}] * 40),
        (("bytes", "mib"), ("33,554,432", "33554432", "32 mib"), ("split", "upsert_table")),
    ),
    Case(
        "record-delete",
        lambda docs: docs.delete(ids=range(10_001)),
        (("10,001", "10001"), ("10,000", "10000"), ("split", "filter")),
    ),
    Case(
        "record-update",
        lambda docs: docs.update(range(10_001), payloads=[{}] * 10_001),
        (("10,001", "10001"), ("10,000", "10000"), "split"),
    ),
]

CREATE_CASES: list[tuple[dict[str, Any], tuple[str | tuple[str, ...], ...]]] = [
    ({"dim": 0}, ("dim", "0", ("16,384", "16384"))),
    ({"dim": 16_385}, ("dim", ("16,385", "16385"), ("16,384", "16384"))),
    ({"dim": 2.5}, ("dim", "2.5", ("16,384", "16384"))),
    ({"dim": "3"}, ("dim", "3", ("16,384", "16384"))),
    ({"metric": "hamming"}, ("metric", "hamming", "cosine", "ip", "l2")),
    ({"index": "magic"}, ("index", "magic", "auto", "hnsw")),
    ({"shards": 0}, ("shards", "0", "64")),
    ({"shards": 65}, ("shards", "65", "64")),
    ({"fields": {"a": "int32"}}, ("field", "int32", "int64")),
    ({"fields": {"": "int64"}}, ("field", "empty")),
    ({"fields": "guess"}, ("fields", "guess", "infer")),
    ({"metadata": {"a": object()}}, ("metadata", "object")),
    ({"metadata": {"a": NAN}}, ("metadata", "nan")),
    ({"metadata": "text"}, ("metadata", "text")),
    ({"name": 5}, ("name", "5", "[A-Za-z0-9._-]{1,255}")),
]


class BadInputContract(DatabaseContract):
    """Bad input."""

    @pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
    def test_bad_input_is_refused_and_changes_nothing(self, database: Database, docs: Collection, case: Case) -> None:
        """The error names field, value and what is allowed; LSN, digest and fields stay."""
        with refused(database, InvalidArgument, *case.words):
            case.call(docs)
        assert docs.upsert(9, ROW, [{"size": 1}]).count == 1

    @pytest.mark.parametrize(
        "call",
        [upsert(9, [0, 0, 0, 0]), upsert(9, [0, -0.0, 1e-60, 0]), search([0, 0, 0, 0]), batch([ROW, [0, 0, 0, 0]])],
    )
    def test_a_zero_vector_has_no_direction(self, database: Database, call: Callable[[Collection], object]) -> None:
        """Under cosine a vector that is zero, or rounds to it, is refused; under ip and l2 it is a vector."""
        docs = database.create_collection("angles", 4)
        docs.upsert(1, ROW)
        with refused(database, InvalidArgument, "vector", "zero", "cosine"):
            call(docs)
        call(database.create_collection("distances", 4, metric="l2"))
        call(database.create_collection("products", 4, metric="ip"))

    @pytest.mark.parametrize(
        "id", ["", "x" * 513, "\U0001f600" * 129, "\ud800"], ids=["empty", "long", "bytes", "surrogate"]
    )
    def test_bad_text_ids(self, database: Database, id: str) -> None:
        """An id is 1 to 512 bytes of UTF-8, whatever its number of characters."""
        docs = database.create_collection("named", 2)
        docs.upsert("a", [1, 2])
        with refused(database, InvalidArgument, "id", ("512", "utf-8", "unicode")):
            docs.upsert(["b", id], [[1, 2], [1, 2]])
        with refused(database, InvalidArgument, "id", ("str", "text"), ("5", "integer")):
            docs.upsert(5, [1, 2])

    @pytest.mark.parametrize(("arguments", "words"), CREATE_CASES, ids=lambda value: repr(value)[:40])
    def test_bad_schemas_are_refused(
        self, database: Database, docs: Collection, arguments: dict[str, Any], words: tuple[Any, ...]
    ) -> None:
        """A collection of a bad dimension, metric, index, shards, fields or metadata is not made."""
        with refused(database, InvalidArgument, *words):
            database.create_collection(**{"name": "bad", "dim": 4, **arguments})
        assert database.collections() == ["docs"]

    def test_one_bad_point_refuses_the_whole_call(self, database: Database, docs: Collection) -> None:
        """Where the last of 5,000 points is bad, none is written."""
        rows = np.ones((5_000, 4), np.float32)
        rows[-1, -1] = np.nan
        with refused(database, InvalidArgument, "vectors", "nan", ("4999", "4,999")):
            docs.upsert(range(100, 5_100), rows)
        payloads: list[dict[str, Any]] = [{"size": i} for i in range(5_000)]
        payloads[-1]["size"] = "five"
        with refused(database, InvalidArgument, "size", "five", ("4999", "4,999")):
            docs.upsert(range(100, 5_100), np.ones((5_000, 4)), payloads)

    def test_a_first_write_that_is_refused_fixes_no_kind_of_id(self, database: Database) -> None:
        """The kind of id is fixed by the first write that is made, not by one that is refused."""
        docs = database.create_collection("fresh", 2)
        with refused(database, InvalidArgument, "vector"):
            docs.upsert(["a"], [[NAN, 1]])
        docs.upsert([1], [[2, 1]])
        assert docs.count() == 1
