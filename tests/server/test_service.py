"""The methods of the contract, called bare: what goes in, what comes out, what every answer carries."""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np
import pytest

from tests.support.server import Wire
from vecstore import Collection, Database, InvalidArgument, NotFound
from vecstore.clock import SystemClock
from vecstore.server import caller
from vecstore.server.caller import Caller, Grant
from vecstore.server.service import Service
from vecstore.wire import codec
from vecstore.wire.methods import BY_PATH
from vecstore.wire.v1 import store_pb2 as pb

from .requests import ALL, body, failed, upsert

VECTORS = np.eye(4, dtype=np.float32)
PAYLOADS: list[dict[str, Any]] = [{"a": i, "b": [i, "é"]} for i in range(4)]


@pytest.fixture
def docs(database: Database) -> Collection:
    """A collection under l2 with a field and four points."""
    docs = database.create_collection("docs", 4, metric="l2", fields={"a": "int64"})
    docs.upsert([0, 1, 2, 3], VECTORS, PAYLOADS)
    return docs


def test_describe_says_which_store_it_is(database: Database, wire: Wire, docs: Collection) -> None:
    """Lineage, place in the history, role, region and the server's clock."""
    before_us = SystemClock().wall_us()
    found = wire("Describe", pb.DescribeRequest())
    told = database.status()
    assert found.lineage.hex() == told["lineage"]
    assert (found.epoch, found.lsn) == (told["epoch"], told["lsn"])
    assert (found.role, found.region) == ("primary", "here")
    assert before_us <= found.now_us <= SystemClock().wall_us()


def test_a_collection_is_made_found_renamed_and_dropped(database: Database, wire: Wire) -> None:
    """The life of a collection over the wire is that of the embedded store."""
    made = wire(
        "CreateCollection",
        pb.CreateCollectionRequest(
            name="docs", dim=4, metric="l2", fields={"a": "int64"}, index="auto", shards=1, metadata=b'{"m":[1,null]}'
        ),
    )
    docs = database.collection("docs")
    assert made.collection.number == docs.number
    assert (made.lsn, made.collection.dim, made.collection.metric) == (database.status()["lsn"], 4, "l2")
    assert (dict(made.collection.fields), json.loads(made.collection.metadata)) == ({"a": "int64"}, {"m": [1, None]})
    assert made.collection.id_kind == ""
    docs.upsert(["x"], [[1, 0, 0, 0]])
    wire("RenameCollection", pb.RenameCollectionRequest(name="docs", to="papers"))
    for asked in (pb.GetCollectionRequest(name="papers"), pb.GetCollectionRequest(number=docs.number)):
        found = wire("GetCollection", asked).collection
        assert (found.name, found.number, found.id_kind) == ("papers", docs.number, "str")
    assert list(wire("ListCollections", pb.ListCollectionsRequest()).names) == ["papers"]
    wire("DropCollection", pb.DropCollectionRequest(name="papers"))
    assert database.collections() == []
    error = failed(lambda: wire("GetCollection", pb.GetCollectionRequest(name="papers")))
    assert isinstance(error, NotFound)


def test_search_answers_as_the_store_does(database: Database, wire: Wire, docs: Collection) -> None:
    """Ids, scores, payload bytes and vectors are those of the embedded answer, with the LSN of the view."""
    query = [1, 0.5, 0.25, 0]
    asked = pb.SearchRequest(
        collection=docs.number, vector=np.array(query, "<f4").tobytes(), k=3, payload=ALL, with_vector=True
    )
    found, expected = wire("Search", asked), docs.search(query, 3, with_vector=True)
    assert (found.lsn, found.exact) == (expected.lsn, True)
    assert codec.unpack_ids(found.points.ids) == [hit.id for hit in expected]
    assert codec.unpack_scores(found.scores).tolist() == [np.float32(hit.score) for hit in expected]
    assert [json.loads(one) for one in codec.unpack_blobs(found.points.payloads)] == [hit.payload for hit in expected]
    vectors: list[Any] = [hit.vector for hit in expected]
    assert np.array_equal(codec.unpack_floats(found.points.vectors), np.stack(vectors))


def test_search_gives_the_part_of_payloads_asked_for(wire: Wire, docs: Collection) -> None:
    """Keys alone, or no payload at all; a filter and a threshold hold."""
    asked = pb.SearchRequest(collection=docs.number, vector=VECTORS[1].tobytes(), k=10, filter=b'{"a":{"$gte":1}}')
    assert not wire("Search", asked).points.HasField("payloads")
    asked.payload.keys.append("a")
    asked.score_threshold = 0.5
    found = wire("Search", asked).points
    assert (codec.unpack_ids(found.ids), codec.unpack_blobs(found.payloads)) == ([1], [b'{"a":1}'])


@pytest.mark.parametrize("kind", ["int", "str"])
def test_a_batch_answers_as_the_store_does(database: Database, wire: Wire, kind: str) -> None:
    """Counts tell where each query's hits end; queries may find fewer than k."""
    docs = database.create_collection("docs", 4, metric="l2")
    docs.upsert([0, 1, 2] if kind == "int" else ["x", "y", "z"], VECTORS[:3], PAYLOADS[:3])
    asked = pb.SearchBatchRequest(collection=docs.number, vectors=codec.pack_floats(VECTORS), k=5, payload=ALL)
    found, expected = wire("SearchBatch", asked), docs.search_batch(VECTORS, 5, with_payload=True)
    assert np.frombuffer(found.counts, "<u4").tolist() == [3] * 4
    hits = [hit for hits in expected for hit in hits]
    assert codec.unpack_ids(found.points.ids) == [hit.id for hit in hits]
    assert [json.loads(one) for one in codec.unpack_blobs(found.points.payloads)] == [hit.payload for hit in hits]
    assert codec.unpack_scores(found.scores).tolist() == [np.float32(hit.score) for hit in hits]


def test_writes_over_the_wire_are_the_stores(database: Database, wire: Wire, docs: Collection) -> None:
    """Upsert, update and delete change what they say and answer with count, LSN and token."""
    written = wire("Upsert", upsert(docs, [7, 8], VECTORS[:2], [{"a": 7}, {}]))
    assert (written.count, written.lsn) == (2, database.status()["lsn"])
    assert database.wait(written.token).lsn == written.lsn
    changed = pb.UpdateRequest(
        collection=docs.number, ids=codec.pack_ids([7, 99]), payloads=codec.pack_blobs([b'{"b":1}', b"{}"])
    )
    assert wire("Update", changed).count == 1
    assert docs.get(7)[0].payload == {"a": 7, "b": 1}
    assert wire("Delete", pb.DeleteRequest(collection=docs.number, ids=codec.pack_ids([8, 77]))).count == 1
    assert wire("Delete", pb.DeleteRequest(collection=docs.number, filter=b'{"a":{"$lt":2}}')).count == 2
    assert [point.id for point in docs.scan()] == [2, 3, 7]


def test_get_count_and_fields(database: Database, wire: Wire, docs: Collection) -> None:
    """Points by id in the order asked, with what is asked of them; counts; a field declared later."""
    asked = pb.GetRequest(collection=docs.number, ids=codec.pack_ids([3, 99, 0]), payload=ALL, with_vector=True)
    found = wire("Get", asked).points
    assert codec.unpack_ids(found.ids) == [3, 0]
    assert [json.loads(one) for one in codec.unpack_blobs(found.payloads)] == [PAYLOADS[3], PAYLOADS[0]]
    assert np.array_equal(codec.unpack_floats(found.vectors), VECTORS[[3, 0]])
    assert wire("Count", pb.CountRequest(collection=docs.number, filter=b'{"a":1}')).count == 1
    wire("AddField", pb.AddFieldRequest(collection=docs.number, name="c", type="string"))
    assert docs.fields["c"] == "string"


def test_reads_wait_for_a_token(wire: Wire, docs: Collection) -> None:
    """Every read takes `after`; a token of another history is lost."""
    token = docs.upsert(9, [1, 2, 3, 4]).token
    lost = "00" * 16 + token[32:]
    for name, asked in (
        ("Count", pb.CountRequest(collection=docs.number)),
        ("Get", pb.GetRequest(collection=docs.number)),
        ("Search", pb.SearchRequest(collection=docs.number, vector=VECTORS[0].tobytes(), k=1)),
        ("SearchBatch", pb.SearchBatchRequest(collection=docs.number, vectors=codec.pack_floats(VECTORS), k=1)),
        ("GetCollection", pb.GetCollectionRequest(name="docs")),
        ("ListCollections", pb.ListCollectionsRequest()),
    ):
        asked.after = token
        assert wire(name, asked).lsn >= docs.upsert(9, [1, 2, 3, 4]).lsn - 1
        asked.after = lost
        error = failed(lambda name=name, asked=asked: wire(name, asked))
        assert type(error).__name__ == "WriteLost"


def test_a_write_takes_effect_once(database: Database, wire: Wire, docs: Collection) -> None:
    """The same request id again gets the same answer, also after a newer write, and changes nothing."""
    asked = upsert(docs, [9], [[1, 1, 1, 1]], [{"a": 1}], request_id=os.urandom(16))
    first = wire("Upsert", asked)
    docs.upsert(9, [2, 2, 2, 2], [{"a": 2}])
    assert wire("Upsert", asked) == first
    assert docs.get(9)[0].payload == {"a": 2}
    assert wire("Wait", pb.WaitRequest(token=asked.write.request_id.hex())).lsn == first.lsn


def test_a_change_that_is_tried_again_is_done_once(database: Database, wire: Wire) -> None:
    """Create, add, rename and drop under the id of one that was done: the same answer, and no other effect."""
    ids = [pb.Write(request_id=os.urandom(16)) for _ in range(4)]
    create = pb.CreateCollectionRequest(write=ids[0], name="docs", dim=4)
    number = wire("CreateCollection", create).collection.number
    assert wire("CreateCollection", create).collection.number == number
    for name, asked in (
        ("AddField", pb.AddFieldRequest(write=ids[1], collection=number, name="a", type="int64")),
        ("RenameCollection", pb.RenameCollectionRequest(write=ids[2], name="docs", to="papers")),
        ("DropCollection", pb.DropCollectionRequest(write=ids[3], name="papers")),
    ):
        wire(name, asked)
        # What has the name now is another collection.
        if name == "DropCollection":
            wire("CreateCollection", pb.CreateCollectionRequest(name="papers", dim=4))
        before = database.status()["lsn"]
        assert wire(name, asked).lsn == before
    assert database.collections() == ["papers"]


def test_a_write_that_comes_too_late_is_not_started(database: Database, wire: Wire, docs: Collection) -> None:
    """The server's clock decides: past `not_after_us` nothing changes, and the outcome is known."""
    late = upsert(docs, [9], [[1, 1, 1, 1]], [{}], not_after_us=SystemClock().wall_us() - 1)
    error = failed(lambda: wire("Upsert", late))
    assert (type(error).__name__, error.outcome) == ("DeadlineExceeded", "refused")
    assert docs.count() == 4
    in_time = upsert(docs, [9], [[1, 1, 1, 1]], [{}], not_after_us=SystemClock().wall_us() + 60_000_000)
    assert wire("Upsert", in_time).count == 1


def test_acks_travel_both_ways(wire: Wire, docs: Collection) -> None:
    """A memory write is answered as one, without a token; a level that does not exist is refused."""
    written = wire("Upsert", upsert(docs, [9], [[1, 1, 1, 1]], [{}], ack=pb.ACK_MEMORY))
    assert (written.ack, written.token) == (pb.ACK_MEMORY, "")
    for ack in (pb.ACK_REPLICATED, 7):
        error = failed(lambda ack=ack: wire("Upsert", upsert(docs, [9], [[1, 1, 1, 1]], [{}], ack=ack)))
        assert (type(error).__name__, "ack" in str(error)) == ("InvalidArgument", True)


def test_verify_and_optimize_tell_how_far_they_are(database: Database, wire: Wire, docs: Collection) -> None:
    """Both stream progress; the last message of verify has the report."""
    docs.upsert(range(10, 5_010), np.ones((5_000, 4), np.float32))
    reports = list(wire("Verify", pb.VerifyRequest()))
    report = json.loads(reports[-1].report)
    assert (report["ok"], report["lsn"]) == (True, database.status()["lsn"])
    steps = list(wire("Optimize", pb.OptimizeRequest(collection=docs.number)))
    assert (steps[-1].done, steps[-1].total) == (5_004, 5_004)


def test_status_is_the_stores(database: Database, wire: Wire, docs: Collection) -> None:
    """The tree of status, with this server's region."""
    tree = json.loads(wire("Status", pb.StatusRequest()).status)
    assert (tree["region"], tree["lsn"], list(tree["collections"])) == ("here", database.status()["lsn"], ["docs"])


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("Search", {"k": 0}, ["k", "0", "10000"]),
        ("Search", {"vector": b"12345"}, ["vector", "5 bytes"]),
        ("Search", {"vector": VECTORS[0].tobytes()[:8]}, ["vector", "2", "4"]),
        ("Search", {"filter": b"[1]"}, ["filter", "object"]),
        ("Search", {"filter": b'{"a"'}, ["filter", "JSON"]),
        ("Search", {"filter": b'{"z":1}'}, ["filter", "z"]),
        ("Search", {"filter": b'{"a":NaN}'}, ["a", "nan"]),
        ("Search", {"recall": 2.0}, ["recall", "2"]),
        ("Search", {"recall": 0.5, "exact": True}, ["recall", "exact"]),
        ("Search", {"effort": 0}, ["effort", "0"]),
        ("Search", {"score_threshold": float("nan")}, ["score_threshold", "nan"]),
        ("Search", {"payload": pb.PayloadPart(all=True, keys=["a"])}, ["payload", "all"]),
        ("Search", {"after": "x"}, ["token", "x"]),
        ("SearchBatch", {"k": 10_001}, ["k", "10001"]),
        ("SearchBatch", {"vectors": pb.Floats(rows=2, columns=4, data=b"1234")}, ["vectors", "4 bytes", "32"]),
        ("SearchBatch", {"vectors": pb.Floats(rows=0, columns=2**31)}, ["columns", "16384"]),
        ("Get", {"ids": pb.Ids(ints=b"123")}, ["ids", "3 bytes"]),
        ("Get", {"ids": pb.Ids(ints=b"1" * 8, strings=pb.Blobs(sizes=b"\0\0\0\0"))}, ["ids", "mixed"]),
        ("Get", {"ids": pb.Ids(strings=pb.Blobs(sizes=b"\1\0\0\0", data=b"\xff"))}, ["ids", "UTF-8"]),
        ("Get", {"ids": pb.Ids(strings=pb.Blobs(sizes=b"\1\0\0\0", data=b"ab"))}, ["ids", "2 bytes"]),
        ("Get", {"ids": pb.Ids(ints=np.array([-1], "<i8").tobytes())}, ["ids", "-1"]),
        ("Delete", {}, ["ids", "filter", "neither"]),
        ("Delete", {"ids": codec.pack_ids([1]), "filter": b"{}"}, ["ids", "filter", "both"]),
        ("Update", {"ids": codec.pack_ids([1])}, ["vectors", "payloads"]),
        ("Update", {"ids": codec.pack_ids([1]), "payloads": codec.pack_blobs([b"1"])}, ["payloads[0]", "object"]),
        ("Upsert", {"body": b""}, ["body", "0 bytes"]),
        ("Upsert", {"body": body([9], [[1, 2, 3]], [{}])}, ["vectors", "3", "4"]),
        ("Upsert", {"body": body([9], [[1, 2, 3, 4]], [b"{}"])[:-1]}, ["body", "vectors", "15"]),
        ("Upsert", {"body": body([9], [[1, 2, 3, 4]], [b"{"])}, ["payloads[0]", "JSON"]),
        ("Upsert", {"body": body([9], [[1, 2, 3, 4]], [b'{"a":18446744073709551616}'])}, ["a", "18446744073709551616"]),
        ("Upsert", {"body": body([2**63], [[1, 2, 3, 4]], [b"{}"])}, ["ids", str(2**63)]),
        ("Upsert", {"body": body(["x"], [[1, 2, 3, 4]], [b"{}"])}, ["ids", "strings", "integers"]),
        ("Upsert", {"write": pb.Write(request_id=b"short")}, ["request_id", "5 bytes"]),
        ("Scan", {"start": codec.pack_ids([1, 2])}, ["start", "one id"]),
        ("Scan", {"start": codec.pack_ids(["x"])}, ["start", "strings"]),
        ("Count", {"filter": b'{"z":1}'}, ["z"]),
        ("AddField", {"name": "a", "type": "int64"}, ["a", "declared"]),
        ("AddField", {"name": "b", "type": "int"}, ["type", "int"]),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else None,
)
def test_bad_requests_are_refused(
    database: Database, wire: Wire, docs: Collection, name: str, change: dict[str, Any], words: list[str]
) -> None:
    """What is malformed or not allowed is INVALID_ARGUMENT, says why, and changes nothing."""
    good: dict[str, dict[str, Any]] = {
        "Search": {"vector": VECTORS[0].tobytes(), "k": 1},
        "SearchBatch": {"vectors": codec.pack_floats(VECTORS), "k": 1},
        "Upsert": {"body": body([9], [[1, 2, 3, 4]], [{}])},
    }
    kind: Any = BY_PATH[f"/vecstore.v1.Collections/{name}"].request
    asked = kind(collection=docs.number, **{**good.get(name, {}), **change})
    before = database.status()["lsn"]

    def call() -> None:
        found = wire(name, asked)
        if name == "Scan":
            list(found)

    error = failed(call)
    assert type(error).__name__ == "InvalidArgument"
    assert error.outcome == "refused"
    assert [word for word in words if word.lower() not in str(error).lower()] == [], str(error)
    assert database.status()["lsn"] == before


@pytest.mark.parametrize(
    ("name", "change", "limit"),
    [
        ("Get", {"ids": pb.Ids(ints=bytes(8 * 100_001))}, "ids_max"),
        ("Delete", {"ids": pb.Ids(strings=pb.Blobs(sizes=bytes(4 * 100_001)))}, "ids_max"),
        ("SearchBatch", {"vectors": pb.Floats(rows=10_001, columns=4, data=bytes(160_016)), "k": 1}, "queries_max"),
        ("SearchBatch", {"vectors": pb.Floats(rows=2_000, columns=4, data=bytes(32_000)), "k": 10_000}, "hits_max"),
        ("Search", {"payload": pb.PayloadPart(keys=["a"] * 1_001)}, "payload_keys_max"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_asks_for_too_much_is_refused(
    wire: Wire, docs: Collection, name: str, change: dict[str, Any], limit: str
) -> None:
    """Few bytes that ask for much work or memory are RESOURCE_EXHAUSTED, with the limit named, before any is done."""
    kind: Any = BY_PATH[f"/vecstore.v1.Collections/{name}"].request
    error = failed(lambda: wire(name, kind(collection=docs.number, **change)))
    assert (type(error).__name__, error.details["limit"]) == ("Exhausted", limit)
    assert "split" in error.hint


def test_a_record_of_too_many_points_is_refused_as_ever(wire: Wire, docs: Collection) -> None:
    """The words are the engine's, and are said before the points are read."""
    with pytest.raises(InvalidArgument) as local:
        docs.upsert(range(10_001), np.ones((10_001, 4)))
    asked = upsert(docs, list(range(10_001)), np.ones((10_001, 4)), [b"not even JSON"] * 10_001)
    error = failed(lambda: wire("Upsert", asked))
    assert type(error).__name__ == "InvalidArgument"
    assert error.args[0].split(" of ")[0] == local.value.args[0].split(" of ")[0]
    assert error.details["points_max"] == local.value.details["points_max"]


def test_an_answer_beyond_one_message_is_refused(wire: Wire, docs: Collection) -> None:
    """Payloads that fill more than a message have the call refused, with what to do."""
    large = "x" * 1_000_000
    for i in range(14):
        docs.upsert(range(10 * i, 10 * i + 10), np.ones((10, 4)), [{"t": large}] * 10)
    ids = codec.pack_ids(list(range(140)))
    vector = np.ones(4, "<f4")
    for name, asked in (
        ("Get", pb.GetRequest(collection=docs.number, ids=ids, payload=ALL)),
        ("Search", pb.SearchRequest(collection=docs.number, vector=vector.tobytes(), k=140, payload=ALL)),
        (
            "SearchBatch",
            pb.SearchBatchRequest(collection=docs.number, vectors=codec.pack_floats(vector[None]), k=140, payload=ALL),
        ),
    ):
        error = failed(lambda name=name, asked=asked: wire(name, asked))
        assert (type(error).__name__, error.details["limit"]) == ("Exhausted", "reply_bytes")
    assert sum(len(reply.points.payloads.sizes) // 4 for reply in wire("Scan", scan_of(docs))) == 140


def scan_of(docs: Collection) -> pb.ScanRequest:
    """Return the request of a scan of all payloads."""
    return pb.ScanRequest(collection=docs.number, payload=ALL)


def test_an_unknown_number_is_not_found(wire: Wire, docs: Collection) -> None:
    """A number that no collection has, or that of one that is gone, is NOT_FOUND in every method."""
    number = docs.number
    for wanted in (number ^ 1, 0):
        error = failed(lambda wanted=wanted: wire("Count", pb.CountRequest(collection=wanted)))
        assert (type(error).__name__, error.details) == ("NotFound", {"number": wanted})


def test_a_dropped_collection_is_not_found_under_its_number(database: Database, wire: Wire, docs: Collection) -> None:
    """A new collection under the old name does not answer to the old number."""
    assert wire("Count", pb.CountRequest(collection=docs.number)).count == 4
    database.drop_collection("docs")
    database.create_collection("docs", 4)
    error = failed(lambda: wire("Count", pb.CountRequest(collection=docs.number)))
    assert type(error).__name__ == "NotFound"
    assert "docs" in str(error)


def test_what_a_caller_may_not_see_is_not_there(database: Database) -> None:
    """Neither lists nor status nor the words of errors tell of collections outside of a caller's grants."""
    mine, other = database.create_collection("mine", 4), database.create_collection("secret", 4)
    service = Service(database, region="", role=lambda: "primary")
    call = {name: service._calls[name] for name in service._calls}
    context = _Alone()
    with caller.use(Caller("one", (Grant("read", frozenset({"mine"})),))):
        assert list(call["ListCollections"](pb.ListCollectionsRequest(), context).names) == ["mine"]
        assert set(json.loads(call["Status"](pb.StatusRequest(), context).status)["collections"]) == {"mine"}
        assert call["GetCollection"](pb.GetCollectionRequest(number=mine.number), context).collection.name == "mine"
        for name in ("secret", "absent"):
            with pytest.raises(NotFound) as caught:
                call["GetCollection"](pb.GetCollectionRequest(name=name), context)
            assert str(caught.value) == f"name: there is no collection {name!r}; there are: mine"
        for number in (other.number, 12345):
            with pytest.raises(NotFound) as caught:
                call["Count"](pb.CountRequest(collection=number), context)
            assert str(caught.value) == f"collection: there is none of number {number}"
        with pytest.raises(NotFound, match="there are: mine$"):
            call["DropCollection"](pb.DropCollectionRequest(name="secret"), context)
    assert database.collections() == ["mine", "secret"]


def test_the_collections_of_a_request_are_named(database: Database) -> None:
    """Who checks grants learns which collections a request touches: by number, by name, both names of a rename."""
    docs = database.create_collection("docs", 4)
    service = Service(database, region="", role=lambda: "primary")

    def named(method: str, asked: Any) -> list[str]:
        service_name = "Store" if "Collection" in method or method == "Status" else "Collections"
        return service.collections_of(BY_PATH[f"/vecstore.v1.{service_name}/{method}"], asked)

    assert named("Count", pb.CountRequest(collection=docs.number)) == ["docs"]
    assert named("Count", pb.CountRequest(collection=5)) == []
    assert named("GetCollection", pb.GetCollectionRequest(number=docs.number)) == ["docs"]
    assert named("GetCollection", pb.GetCollectionRequest(name="x")) == ["x"]
    assert named("RenameCollection", pb.RenameCollectionRequest(name="docs", to="x")) == ["docs", "x"]
    assert named("AddField", pb.AddFieldRequest(collection=docs.number, name="field")) == ["docs"]
    assert named("Status", pb.StatusRequest()) == []
    database.rename_collection("docs", "papers")
    assert named("Count", pb.CountRequest(collection=docs.number)) == ["papers"]
    database.drop_collection("papers")
    assert named("Count", pb.CountRequest(collection=docs.number)) == ["papers"]


class _Alone:
    """The context of a call that no network carried."""

    def time_remaining(self) -> float | None:
        """Return None: there is no deadline."""
        return None
