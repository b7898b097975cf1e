"""Calls that are open are ended when their caller may not any more: revoked, smaller grants, an expired token."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import jwt
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

import vecstore
from tests.support.server import Wire, serving_node
from vecstore import Collection, Database, PermissionDenied, Unauthenticated
from vecstore.server.auth import AuthSettings, entry_text
from vecstore.server.caller import Grant
from vecstore.server.node import Node
from vecstore.server.pieces import cut
from vecstore.wire.methods import REPLICATION_METHODS
from vecstore.wire.status import error_from
from vecstore.wire.v1 import replication_pb2 as rpb
from vecstore.wire.v1 import store_pb2 as pb

from .requests import ALL, upsert

DIM, POINTS = 8, 3_000
WITHIN_S = 10.0
"""Seconds, as promised, and what a busy machine takes on top."""
Code = grpc.StatusCode
ROOT = entry_text("root", "root", [Grant("admin")])


def of(secret: str) -> Any:
    """Return the metadata of a caller's call."""
    return (("authorization", f"Bearer {secret}"),)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Database]:
    """Return a store that is not scanned within what a stream may hold back."""
    with vecstore.open(str(tmp_path / "store")) as database:
        docs = database.create_collection("docs", DIM, metric="l2")
        docs.upsert(range(POINTS), np.ones((POINTS, DIM)), [{"t": "x" * 10_000}] * POINTS)
        database.create_collection("other", DIM, metric="l2").upsert([1], np.ones((1, DIM)))
        yield database


class Server:
    """A server whose file of tokens is written anew."""

    def __init__(self, node: Node, file: Path) -> None:
        self.node, self._file = node, file
        self.wire = Wire(node.grpc_address)

    def grants(self, *entries: str) -> None:
        """Let these entries hold from now on, as SIGHUP does."""
        self._file.write_text("\n".join([ROOT, *entries]))
        self.node.reload(self.node.settings)


@pytest.fixture
def server(store: Database, tmp_path: Path) -> Iterator[Server]:
    """Return a server that knows `root`, a `writer` of all, a `reader` of docs and a `replica`."""
    file = tmp_path / "tokens.toml"
    file.write_text(ROOT)
    with serving_node(store, auth=AuthSettings(tokens=str(file))) as node:
        server = Server(node, file)
        server.grants(writer("*"), entry_text("reader", "reader", [Grant("read", frozenset({"docs"}))]), REPLICA)
        yield server
        server.wire.close()


REPLICA = entry_text("replica", "replica", [Grant("replicate")])


def writer(*names: str) -> str:
    """Return the entry of the caller `writer`, who may write to these collections."""
    return entry_text("writer", "writer", [Grant("write", None if names == ("*",) else frozenset(names))])


class Load:
    """A bulk upsert that was begun, and of which the client sends nothing more until it is told to."""

    def __init__(
        self, server: Server, docs: Collection, secret: str = "writer", last: Collection | None = None
    ) -> None:
        self._docs, self._last, self._more = docs, last or docs, threading.Event()
        self.replies = server.wire("UpsertStream", self._requests(), metadata=of(secret), timeout=60)
        assert next(self.replies).count == 1

    def _requests(self) -> Iterator[pb.UpsertRequest]:
        yield upsert(self._docs, [1], [[1.0] * DIM], [{"t": "x"}])
        self._more.wait(60)
        yield upsert(self._last, [2], [[1.0] * DIM], [{"t": "x"}])

    def go_on(self) -> None:
        """Send one more record, and end."""
        self._more.set()


def scan(server: Server, docs: Collection, secret: str = "reader") -> Any:
    """Begin a scan and take one message of it: the server stands still a little further on."""
    asked = pb.ScanRequest(collection=docs.number, payload=ALL, with_vector=True)
    replies = server.wire("Scan", asked, metadata=of(secret), timeout=60)
    next(replies)
    return replies


def link(server: Server, store: Database) -> Any:
    """Begin a link as a standby does, which then says nothing; take what the other side says first."""
    lineage = bytes.fromhex(store.status()["lineage"])
    said = rpb.Introduction(store_id="5" * 32, lineage=lineage, version="1")

    def requests() -> Iterator[Any]:
        yield from cut(rpb.Envelope(introduction=said))
        threading.Event().wait(60)

    method = next(method for method in REPLICATION_METHODS if method.name == "Link")
    call = server.wire.channel.stream_stream(method.path, method.request.SerializeToString, method.reply.FromString)
    replies = call(requests(), metadata=of("replica"), timeout=60)
    next(replies)
    return replies


def end_of(replies: Any) -> vecstore.VecstoreError:
    """Take what still comes; return what the call ends with, which it does within seconds."""
    start_s = time.monotonic()
    with pytest.raises(grpc.RpcError) as ended:
        for _ in replies:
            pass
    assert time.monotonic() - start_s < WITHIN_S
    return error_from(ended.value)


def test_a_revoked_token_ends_its_streams(server: Server, store: Database) -> None:
    """A load, a scan and a link of callers that are not in the file any more end, though nothing moves on them."""
    docs = store.collection("docs")
    load, scanned, linked = Load(server, docs), scan(server, docs), link(server, store)
    kept = Load(server, docs, "root")
    server.grants()
    for replies in (load.replies, scanned, linked):
        error = end_of(replies)
        assert isinstance(error, Unauthenticated) and "not one that this server knows" in str(error)
        assert not error.retryable
    kept.go_on()
    assert [reply.count for reply in kept.replies] == [1], "who is still known goes on"
    _until(lambda: server.node._pool.load()["long"].in_flight == 0)


def test_a_grant_that_is_gone_ends_what_needs_it(server: Server, store: Database) -> None:
    """Of one caller what its grants no longer allow ends, and what they still allow goes on."""
    docs, other = store.collection("docs"), store.collection("other")
    on_docs, on_other, linked = Load(server, docs), Load(server, other), link(server, store)
    scanned = scan(server, docs)
    server.grants(
        writer("other"),
        entry_text("reader", "reader", [Grant("write", frozenset({"other"}))]),
        entry_text("replica", "replica", [Grant("read")]),
    )
    for replies, words in (
        (on_docs.replies, "role write"),
        (scanned, "role read"),
        (linked, "role replicate"),
    ):
        error = end_of(replies)
        assert isinstance(error, PermissionDenied) and words in str(error), error
    on_other.go_on()
    assert [reply.count for reply in on_other.replies] == [1]


def test_what_comes_on_a_stream_is_judged_by_the_grants_of_now(server: Server, store: Database) -> None:
    """A record for a collection that its caller may not write any more is refused, and not written."""
    load = Load(server, store.collection("other"), last=store.collection("docs"))
    served = server.node._served
    assert served is not None
    server.grants(writer("other"))
    served._watch.look(float("inf"))
    load.go_on()
    assert isinstance(end_of(load.replies), PermissionDenied)
    assert store.collection("docs").get([2])[0].payload != {"t": "x"}


def test_a_call_that_waits_ends_too(server: Server) -> None:
    """Who waits for a record is not told of it once it is not known any more."""
    token = server.wire("Describe", pb.DescribeRequest(), metadata=of("root"))
    ends: list[Any] = []
    later = vecstore.record.Token(token.lineage, token.epoch, token.lsn + 1_000, bytes(8)).encode()

    def wait() -> None:
        try:
            server.wire("Wait", pb.WaitRequest(token=later), metadata=of("reader"), timeout=60)
        except grpc.RpcError as error:
            ends.append(error_from(error))

    waiting = threading.Thread(target=wait)
    waiting.start()
    _until(lambda: server.node._pool.load()["long"].in_flight == 1)
    server.grants()
    waiting.join(WITHIN_S)
    assert len(ends) == 1 and isinstance(ends[0], Unauthenticated), ends


def _until(happened: Callable[[], bool]) -> None:
    never = threading.Event()
    assert any(happened() or never.wait(0.02) for _ in range(500))


def test_a_token_that_expires_ends_its_streams(store: Database, tmp_path: Path) -> None:
    """A scan that was begun with a JSON Web Token lasts as long as that; another one's goes on."""
    key = Ed25519PrivateKey.generate()
    (tmp_path / "keys.pem").write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    settings = AuthSettings(jwt_keys=str(tmp_path / "keys.pem"), jwt_issuer="i", jwt_audience="a", jwt_leeway_s=0.0)

    def signed(for_s: float) -> str:
        grants = [{"role": "read", "collections": ["docs"]}]
        claims = {"sub": "alice", "iss": "i", "aud": "a", "exp": time.time() + for_s, "vecstore": grants}
        return jwt.encode(claims, key, algorithm="EdDSA")

    with serving_node(store, auth=settings) as node:
        server = Server(node, tmp_path / "none")
        docs = store.collection("docs")
        short, long = scan(server, docs, signed(2.0)), scan(server, docs, signed(300.0))
        _until(lambda: server.node._pool.load()["long"].in_flight == 1)
        error = end_of(short)
        assert isinstance(error, Unauthenticated) and "has expired" in str(error)
        rest = sum(len(reply.points.ids.ints) for reply in long)
        assert rest > 0, "the other one came to its end"
        server.wire.close()


def test_a_load_of_the_client_says_how_far_it_came(server: Server, store: Database) -> None:
    """The caller of a bulk load hears that it is not known any more, what was committed, and whether that is all."""
    pa = pytest.importorskip("pyarrow")
    count = 10_000
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.ones(count * DIM, np.float32)), DIM)
    table = pa.table({"id": pa.array(range(count), pa.int64()), "vector": vectors})
    docs = store.collection("docs")

    def batches() -> Iterator[Any]:
        yield from table.to_batches()
        _until(lambda: docs.count() == count)
        server.grants()
        _until(lambda: server.node._pool.load()["long"].in_flight == 0)

    with contextlib.closing(vecstore.connect([server.node.grpc_address], token="writer", timeout=30)) as database:
        reader = pa.RecordBatchReader.from_batches(table.schema, batches())
        with pytest.raises(Unauthenticated) as ended:
            database.collection("docs").upsert_table(reader)
    # All of it is there; the client may have heard of some records only.
    committed = ended.value.details["committed"]
    assert 0 <= committed <= count
    assert ended.value.outcome == ("refused" if committed == count else "unknown")
