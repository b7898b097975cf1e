"""The packed forms of the contract: what was packed comes out, and no bytes whatever raise another error."""

from __future__ import annotations

import enum
import json
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.support.strategies import FIELDS, conditions, payloads
from vecstore import Field, InvalidArgument
from vecstore.filters import parse
from vecstore.payload import encode_all
from vecstore.record import IdKind, PointsBody, id_key
from vecstore.wire import codec
from vecstore.wire.body import restore_moments, unpack_body
from vecstore.wire.v1 import store_pb2 as pb

INTS = st.lists(st.integers(0, 2**63 - 1))
TEXTS = st.lists(st.text(min_size=1, max_size=20))


class Word(enum.Enum):
    """Values that stand for plain ones."""

    WEB = "web"


@given(INTS | TEXTS)
def test_ids_come_out_as_they_went_in(ids: list[Any]) -> None:
    """Ids of one kind, in order, none among them; from an array as from a list."""
    packed = pb.Ids.FromString(codec.pack_ids(ids).SerializeToString())
    assert codec.unpack_ids(packed) == ids
    if ids and isinstance(ids[0], int):
        assert codec.pack_ids(np.array(ids, np.int64)) == packed


@pytest.mark.parametrize("ids", [[2**63], [-(2**63) - 1], ["a", "\ud800"], [1, "a"], [1.5]])
def test_ids_that_cannot_be_sent_are_refused(ids: list[Any]) -> None:
    """What has no packed form is refused before it leaves."""
    with pytest.raises(InvalidArgument, match="ids"):
        codec.pack_ids(ids)


@given(st.lists(st.binary(max_size=20)))
def test_pieces_come_out_as_they_went_in(pieces: list[bytes]) -> None:
    """Pieces of any sizes, empty ones among them."""
    assert codec.unpack_blobs(pb.Blobs.FromString(codec.pack_blobs(pieces).SerializeToString())) == pieces


@given(st.integers(0, 5), st.integers(0, 5))
def test_floats_keep_their_shape(rows: int, columns: int) -> None:
    """Shapes with no rows or no columns as well, from memory in any layout."""
    floats = np.arange(rows * columns, dtype=np.float32).reshape(columns, rows).T
    found = codec.unpack_floats(pb.Floats.FromString(codec.pack_floats(floats).SerializeToString()))
    assert (found.shape, found.tolist()) == (floats.shape, floats.tolist())


@pytest.mark.parametrize("part", [True, False, (), ("a",), ("a", "é")])
def test_parts_of_payloads_come_out_as_they_went_in(part: bool | tuple[str, ...]) -> None:
    """All, nothing, and keys, none among them."""
    assert codec.unpack_part(codec.pack_part(part)) == part


@given(conditions())
def test_filters_mean_the_same_after_the_way(filter: dict[str, Any]) -> None:
    """The normal form of what arrives is that of what was sent, of dicts and of conditions."""
    expected = parse(filter, FIELDS)  # type: ignore[arg-type]
    arrived = codec.unpack_filter(codec.pack_filter(filter))
    assert arrived is not None
    assert parse(arrived, FIELDS).key == expected.key  # type: ignore[arg-type]
    again = codec.unpack_filter(codec.pack_filter(expected))
    assert again is not None
    assert parse(again, FIELDS).key == expected.key  # type: ignore[arg-type]


def test_filters_may_hold_what_stands_for_plain_values() -> None:
    """Moments, UUIDs, numpy scalars and arrays, members of enums, sets."""
    some = uuid.UUID(int=5)
    given = {
        "made": {"$lt": datetime(2024, 1, 1, tzinfo=UTC)},
        "word": {"$in": (Word.WEB, some)},
        "size": {"$in": np.array([1, 2])},
        "ratio": np.float32(0.5),
    }
    assert json.loads(codec.pack_filter(given)) == {
        "made": {"$lt": "2024-01-01T00:00:00.000000Z"},
        "word": {"$in": ["web", str(some)]},
        "size": {"$in": [1, 2]},
        "ratio": 0.5,
    }
    condition = (Field("size") > 1) & ~Field("word").is_null()
    assert codec.unpack_filter(codec.pack_filter(condition)) == condition.to_dict()
    assert codec.unpack_filter(codec.pack_filter(None)) is None
    assert codec.unpack_filter(codec.pack_filter({})) == {}


def deep(levels: int) -> dict[str, Any]:
    """Return a filter that is nested."""
    found: dict[str, Any] = {"size": 1}
    for _ in range(levels):
        found = {"$not": found}
    return found


@pytest.mark.parametrize(
    ("filter", "words"),
    [
        ("size = 5", ["filter", "size = 5", "dict"]),
        ({5: 1}, ["filter", "key 5"]),
        ({"size": {5: 1}}, ["filter.size", "key 5"]),
        ({"size": object()}, ["filter.size", "object"]),
        ({"size": b"x"}, ["filter.size", "b'x'"]),
        ({"made": datetime(2024, 1, 1)}, ["made", "2024", "aware"]),  # noqa: DTZ001
        (deep(500), ["filter", "nested", "64"]),
    ],
    ids=lambda value: str(value)[:30] if isinstance(value, dict | str) else None,
)
def test_filters_that_cannot_be_sent_are_refused(filter: Any, words: list[str]) -> None:
    """What JSON cannot hold is refused before it leaves, with its place."""
    with pytest.raises(InvalidArgument) as caught:
        codec.pack_filter(filter)
    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize("filter", [{"ratio": float("nan")}, {"word": "\ud800"}, {"size": 2**70}])
def test_values_of_no_field_travel_to_be_refused_there(filter: dict[str, Any]) -> None:
    """The reader of filters refuses them with its own words, as it does in the embedded store."""
    arrived = codec.unpack_filter(codec.pack_filter(filter))
    assert arrived is not None
    for one in (filter, arrived):
        with pytest.raises(InvalidArgument, match=f"filter.{next(iter(filter))}"):
            parse(one, FIELDS)  # type: ignore[arg-type]


@pytest.mark.parametrize("ack", ["durable", "memory", "replicated"])
def test_levels_of_acknowledgement_have_numbers(ack: Any) -> None:
    """Each level has its number, and no other number is one."""
    assert codec.read_ack(codec.ACKS[ack]) == ack
    with pytest.raises(InvalidArgument, match="ack: 9"):
        codec.read_ack(9)


@given(st.data())
def test_a_body_comes_out_as_it_went_in(data: st.DataObject) -> None:
    """Ids, payloads and vectors of a record's body."""
    ids = data.draw(INTS | TEXTS)
    given = data.draw(st.lists(payloads(), min_size=len(ids), max_size=len(ids)))
    pieces = encode_all(given, len(ids))
    vectors = np.arange(3 * len(ids), dtype=np.float32).reshape(len(ids), 3)
    kind = IdKind.STR if ids and isinstance(ids[0], str) else IdKind.INT
    found = unpack_body(b"".join(PointsBody(kind, [id_key(id) for id in ids], pieces, vectors).encode()))
    assert list(found.ids) == ids
    assert encode_all(found.payloads, len(ids)) == pieces
    assert np.array_equal(found.vectors, vectors)


def test_moments_are_restored_under_their_keys_alone() -> None:
    """Text that is a moment becomes one where the caller gave one; all else stays."""
    given: list[dict[str, Any]] = [{"at": "2024-01-01T00:00:00.500000Z", "b": "2024-01-01T00:00:00Z"}, {"at": "soon"}]
    restore_moments(given, ["at", "absent"])
    assert given == [{"at": datetime(2024, 1, 1, 0, 0, 0, 500_000, UTC), "b": "2024-01-01T00:00:00Z"}, {"at": "soon"}]


GOOD = b"".join(PointsBody(IdKind.STR, [b"\x02a", b"\x02bc"], [b"{}", b"{}"], np.ones((2, 2), np.float32)).encode())


def mutated(data: bytes) -> st.SearchStrategy[bytes]:
    """Bytes like these, cut, lengthened or changed in places."""
    changes = st.lists(st.tuples(st.integers(0, len(data) - 1), st.integers(0, 255)), max_size=4)

    def change(pairs: list[tuple[int, int]]) -> bytes:
        found = bytearray(data)
        for at, value in pairs:
            found[at] = value
        return bytes(found)

    whole = changes.map(change)
    return st.one_of(whole, st.builds(lambda d, n: d[:n], whole, st.integers(0, len(data))), whole.map(lambda d: d + d))


@given(st.one_of(st.binary(max_size=60), mutated(GOOD)))
@example(b"")
@example(b"\x01" + b"\xff" * 8 + b"\x01")
@example(b"\x02" + b"\xff" * 4 + b"\x01\0\0\0" + b"\x01" + b"\xff" * 40)
def test_no_bytes_break_the_reader_of_bodies(data: bytes) -> None:
    """Any bytes are a body, or `InvalidArgument` that says so; never another error, nor a large allocation."""
    try:
        found = unpack_body(data)
    except InvalidArgument as exc:
        assert str(exc).startswith(("body", "payloads", "upsert"))
    else:
        assert len(found.ids) == len(found.payloads) == len(found.vectors)


@given(st.binary(max_size=40), st.binary(max_size=40), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
@example(b"", b"", 2**32 - 1, 0)
@example(b"", b"", 0, 2**32 - 1)
@example(b"{" * 40, b"[" * 40, 0, 0)
def test_no_bytes_break_the_other_readers(one: bytes, other: bytes, rows: int, columns: int) -> None:
    """Each reader returns something or raises `InvalidArgument` that names its field."""
    readers: list[tuple[str, Callable[[], Any]]] = [
        ("ids", lambda: codec.unpack_ids(pb.Ids(ints=one))),
        ("ids", lambda: codec.unpack_ids(pb.Ids(strings=pb.Blobs(sizes=one, data=other)))),
        ("blobs", lambda: codec.unpack_blobs(pb.Blobs(sizes=one, data=other))),
        ("vectors", lambda: codec.unpack_floats(pb.Floats(rows=rows, columns=columns, data=one))),
        ("scores", lambda: codec.unpack_scores(one)),
        ("filter", lambda: codec.unpack_filter(one)),
        ("metadata", lambda: codec.read_object(one, "metadata")),
    ]
    for name, read in readers:
        try:
            read()
        except InvalidArgument as exc:
            assert str(exc).startswith(name)


@pytest.mark.parametrize("levels", [1_000, 200_000])
def test_deep_json_is_refused(levels: int) -> None:
    """JSON that is nested without end neither exhausts the stack nor takes the reader down."""
    with pytest.raises(InvalidArgument, match="^metadata"):
        codec.read_object(b'{"a":' * levels + b"1" + b"}" * (levels - 1), "metadata")
    with pytest.raises(InvalidArgument, match="^filter"):
        parse(codec.unpack_filter(b'{"$not":' * levels + b"{}" + b"}" * levels) or {}, FIELDS)  # type: ignore[arg-type]
