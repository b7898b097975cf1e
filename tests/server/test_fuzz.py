"""Bytes that no client of ours would send: a server answers each with an error of its contract, and goes on."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from tests.support.server import Wire
from vecstore import Database
from vecstore.wire import codec, status
from vecstore.wire.methods import METHODS, Method
from vecstore.wire.v1 import store_pb2 as pb

from .requests import ALL, upsert

ROUNDS = 150
ALLOWED = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}
"""Of these the last three come of a changed time or token, and of large numbers."""
VECTORS = np.eye(3, 8, dtype=np.float32)
FILTER = b'{"$and":[{"a":{"$gte":1,"$in":[1,2,3]}},{"$not":{"s":"x"}}]}'


def requests(database: Database) -> dict[str, Any]:
    """Return a good request of every method, with every field set."""
    docs = database.create_collection("docs", 8, metric="l2", fields={"a": "int64", "s": "string"})
    docs.upsert([1, 2, 3], VECTORS, [{"a": i, "s": "x"} for i in range(3)])
    number, write = docs.number, pb.Write(request_id=b"", not_after_us=2**62, ack=pb.ACK_MEMORY)
    ids = codec.pack_ids([1, 2, 3])
    record = upsert(docs, [1, 2], VECTORS[:2], [{"a": 1, "b": [1, {"c": None}]}, {}])
    record.timestamps.append("a")
    vector = VECTORS[0].tobytes()
    create: dict[str, Any] = {
        "dim": 4,
        "metric": "ip",
        "fields": {"a": "int64"},
        "index": "auto",
        "shards": 1,
        "metadata": b'{"a":1}',
    }
    return {
        "Describe": pb.DescribeRequest(),
        "CreateCollection": pb.CreateCollectionRequest(write=write, name="made", exist_ok=True, **create),
        "GetCollection": pb.GetCollectionRequest(name="docs", number=number),
        "ListCollections": pb.ListCollectionsRequest(after="x"),
        "RenameCollection": pb.RenameCollectionRequest(write=write, name="made", to="other", replace=True),
        "DropCollection": pb.DropCollectionRequest(write=write, name="other", missing_ok=True),
        "Wait": pb.WaitRequest(token="ab" * 16, ack=pb.ACK_MEMORY),
        "Status": pb.StatusRequest(),
        "Verify": pb.VerifyRequest(),
        "Snapshot": pb.SnapshotRequest(repository="somewhere"),
        "Upsert": record,
        "UpsertStream": record,
        "Update": pb.UpdateRequest(
            write=write,
            collection=number,
            ids=ids,
            vectors=codec.pack_floats(VECTORS),
            payloads=codec.pack_blobs([b'{"a":1}', b"{}", b'{"b":null}']),
            timestamps=["a"],
        ),
        "Delete": pb.DeleteRequest(write=write, collection=number, ids=codec.pack_ids(["a", "bc"]), filter=FILTER),
        "Search": pb.SearchRequest(
            collection=number,
            vector=vector,
            k=3,
            recall=0.9,
            exact=False,
            offset=1,
            score_threshold=9.0,
            payload=pb.PayloadPart(keys=["a"]),
            with_vector=True,
            filter=FILTER,
        ),
        "SearchBatch": pb.SearchBatchRequest(
            collection=number, vectors=codec.pack_floats(VECTORS), k=3, effort=5, payload=ALL, filter=FILTER
        ),
        "Get": pb.GetRequest(collection=number, ids=ids, payload=ALL, with_vector=True),
        "Scan": pb.ScanRequest(
            collection=number, filter=FILTER, start=codec.pack_ids([1]), limit=5, payload=ALL, with_vector=True
        ),
        "Count": pb.CountRequest(collection=number, filter=FILTER),
        "AddField": pb.AddFieldRequest(write=write, collection=number, name="new", type="int64"),
        "Optimize": pb.OptimizeRequest(collection=number),
    }


def mutated(data: bytes, chance: random.Random) -> bytes:
    """Return bytes with some changed, cut out, doubled or put in."""
    found = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(found) + 1)
        match chance.randrange(5):
            case 0 if found:
                found[min(at, len(found) - 1)] = chance.randrange(256)
            case 1 if found:
                found[min(at, len(found) - 1)] ^= 1 << chance.randrange(8)
            case 2:
                del found[at : at + chance.randint(1, 8)]
            case 3:
                found[at:at] = found[at : at + chance.randint(1, 8)]
            case _:
                found[at:at] = chance.randbytes(chance.randint(1, 8))
    return bytes(found)


def leaves(message: Message) -> Iterator[tuple[Message, FieldDescriptor]]:
    """Yield every field that is set and holds one value, with the message that it is in."""
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            if isinstance(value, Message):
                yield from leaves(value)
        elif isinstance(value, bytes | str | int | float):
            yield message, field


def varied(message: Any, chance: random.Random) -> Any:
    """Return a message of which a value or two are others: what arrives can be read, and means something else."""
    found = type(message)()
    found.CopyFrom(message)
    for _ in range(chance.randint(1, 2)):
        places = list(leaves(found))
        if not places:
            break
        inner, field = chance.choice(places)
        value = getattr(inner, field.name)
        other: Any
        if isinstance(value, bytes):
            other = mutated(value, chance)
        elif isinstance(value, str):
            other = mutated(value.encode(), chance).decode(errors="replace")
        elif isinstance(value, bool):
            other = not value
        elif isinstance(value, float):
            other = chance.choice([0.0, -1.0, 1e300, float("nan"), float("inf")])
        else:
            other = chance.choice([0, 1, 2, 5, 10_001, 2**31 - 1])
        setattr(inner, field.name, other)
    return found


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_no_bytes_break_the_server(database: Database, wire: Wire, method: Method, seed: int) -> None:
    """Mutated requests are answered, or refused by a code of the contract; what is refused changes nothing."""
    good = requests(database)[method.name]
    chance = random.Random(f"{seed} {method.name}")
    for i in range(ROUNDS):
        data = varied(good, chance).SerializeToString() if i % 3 else mutated(good.SerializeToString(), chance)
        before = database.status()["lsn"]
        try:
            found = wire(method.name, iter([data]) if method.streams_in else data, raw=True, timeout=2)
            if method.streams_out:
                for _ in found:
                    pass
        except grpc.RpcError as exc:
            error = status.error_from(exc)
            assert exc.code() in ALLOWED, (data.hex(), error)
            if exc.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                assert database.status()["lsn"] == before, (data.hex(), error)
    assert wire("Describe", pb.DescribeRequest()).lsn == database.status()["lsn"]
    report = database.verify()
    assert report["ok"], report


def test_a_message_beyond_the_limit_is_refused_by_name(wire: Wire) -> None:
    """A request that is larger than a message may be is refused before it is read, and the limit is named."""
    limit = wire("Describe", pb.DescribeRequest()).message_bytes_max
    with pytest.raises(grpc.RpcError) as caught:
        wire("Upsert", pb.UpsertRequest(body=bytes(limit)))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert str(limit) in (caught.value.details() or "")
