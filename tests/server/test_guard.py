"""What a caller may and may not, on a real server: tokens, roles, collections that are not there, audit, errors."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

import vecstore
from tests.support.serve import Served, process
from tests.support.server import Wire, serving_node
from vecstore import Database
from vecstore.record import IdKind, PointsBody, id_key
from vecstore.server.auth import AuthSettings, entry_text
from vecstore.server.caller import ROLES, Caller, Grant
from vecstore.server.guard import points_in
from vecstore.server.node import Node
from vecstore.server.settings import ServerSettings
from vecstore.wire.codec import pack_floats, pack_ids
from vecstore.wire.methods import METHODS, Method
from vecstore.wire.status import error_from
from vecstore.wire.v1 import store_pb2 as pb

Code: TypeAlias = grpc.StatusCode

CALLERS = {
    "reader": (Grant("read", frozenset({"docs"})),),
    "writer": (Grant("write", frozenset({"docs"})),),
    "keeper": (Grant("admin", frozenset({"docs", "papers"})),),
    "root": (Grant("admin"),),
    "replica": (Grant("replicate"),),
    "nobody": (),
}


def tokens() -> str:
    """Return the file: each caller's secret is its name, repeated."""
    return "\n".join(entry_text(name, name * 3, grants) for name, grants in CALLERS.items())


def of(name: str) -> tuple[tuple[str, str], ...]:
    """Return the metadata of a caller's call."""
    return (("authorization", f"Bearer {name * 3}"),)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    """Return a store of two collections."""
    with vecstore.open(str(tmp_path_factory.mktemp("guard") / "store")) as database:
        for name in ("docs", "secret"):
            made = database.create_collection(name, 2, metric="l2", fields={"n": "int64"})
            made.upsert([1, 2, 3], [[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]], [{"n": 1}, {"n": 2}, {"n": 3}])
        yield database


@pytest.fixture(scope="module")
def node(store: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """Return a server that asks who calls."""
    file = tmp_path_factory.mktemp("tokens") / "tokens.toml"
    file.write_text(tokens())
    with serving_node(store, auth=AuthSettings(tokens=str(file))) as node:
        yield node


@pytest.fixture(scope="module")
def wire(node: Node) -> Iterator[Wire]:
    """Return a connection to it."""
    wire = Wire(node.grpc_address)
    yield wire
    wire.close()


def request(method: Method, number: int, name: str) -> Any:
    """Return a message that a method takes, about a collection, that changes nothing where it is refused."""
    body = PointsBody(IdKind.INT, [id_key(9)], [b"{}"], unpacked([[1.0, 2.0]]))
    given: dict[str, Any] = {
        "CreateCollection": {"name": name, "dim": 2, "metric": "l2", "index": "auto", "shards": 1, "exist_ok": True},
        "GetCollection": {"name": name},
        "RenameCollection": {"name": name, "to": "papers"},
        "DropCollection": {"name": name},
        "Wait": {"token": "00" * 16},
        "Upsert": {"collection": number, "body": b"".join(body.encode())},
        "UpsertStream": {"collection": number, "body": b"".join(body.encode())},
        "Update": {"collection": number, "ids": pack_ids([9])},
        "Delete": {"collection": number, "ids": pack_ids([9])},
        "Search": {"collection": number, "vector": b"\0" * 8, "k": 1},
        "SearchBatch": {"collection": number, "vectors": pack_floats(unpacked([[1.0, 2.0]])), "k": 1},
        "Get": {"collection": number, "ids": pack_ids([1])},
        "AddField": {"collection": number, "name": "m", "type": "int64"},
    }
    rest = {"collection": number} if "collection" in method.request.DESCRIPTOR.fields_by_name else {}
    return method.request(**given.get(method.name, rest))


def unpacked(rows: list[list[float]]) -> Any:
    """Return rows as an array."""
    import numpy as np

    return np.array(rows, np.float32)


def outcome(wire: Wire, method: Method, message: Any, **options: Any) -> tuple[Code, str]:
    """Make a call of any shape and return its code and words; the status OK where it was answered."""
    try:
        found = wire(method.name, iter([message]) if method.streams_in else message, **options)
        if method.streams_out:
            list(found)
    except grpc.RpcError as error:
        return error.code(), error.details()
    return Code.OK, ""


@contextmanager
def logged() -> Iterator[list[dict[str, Any]]]:
    """Collect what the server logs, as its events."""

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if isinstance(record.msg, dict):
                lines.append(record.msg)

    lines: list[dict[str, Any]] = []
    handler, names = Kept(), ("vecstore.audit", "vecstore.server")
    for name in names:
        logging.getLogger(name).addHandler(handler)
    try:
        yield lines
    finally:
        for name in names:
            logging.getLogger(name).removeHandler(handler)


COUNT = next(method for method in METHODS if method.name == "Count")
REFUSED = (Code.PERMISSION_DENIED, Code.UNAUTHENTICATED)


@pytest.mark.parametrize(
    "metadata",
    [
        (),
        (("authorization", ""),),
        (("authorization", "Bearer unknown"),),
        (("authorization", "Basic rootrootroot"),),
        (("authorization", "rootrootroot"),),
        (("token", "rootrootroot"),),
    ],
)
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_nobody_gets_in_without_a_token(
    wire: Wire, store: Database, method: Method, metadata: tuple[tuple[str, str], ...]
) -> None:
    """Every method refuses who does not show who it is, and tells gRPC not to try again."""
    message = request(method, store.collection("docs").number, "docs")

    def call() -> Any:
        found = wire(method.name, iter([message]) if method.streams_in else message, metadata=metadata)
        return list(found) if method.streams_out else found

    with pytest.raises(grpc.RpcError) as caught:
        call()
    assert caught.value.code() is Code.UNAUTHENTICATED
    assert dict(caught.value.trailing_metadata())["grpc-retry-pushback-ms"] == "-1"
    error = error_from(caught.value)
    assert (type(error).__name__, error.retryable, error.outcome) == ("Unauthenticated", False, "refused")


def least(role: str) -> str:
    """Return a role that is just not enough."""
    return {"read": "nobody", "write": "reader", "admin": "writer"}[role]


@pytest.mark.parametrize("method", [one for one in METHODS if one.role != "none"], ids=lambda method: method.name)
def test_every_method_needs_its_role(wire: Wire, store: Database, method: Method) -> None:
    """One role below is refused and changes nothing; the role itself is let through."""
    before = store.status()["chain"]
    message = request(method, store.collection("docs").number, "docs")
    for caller in (least(method.role), "replica"):
        code, words = outcome(wire, method, message, metadata=of(caller))
        assert (code, caller in words) == (Code.PERMISSION_DENIED, True)
    assert store.status()["chain"] == before
    if method.name not in ("DropCollection", "RenameCollection"):
        assert outcome(wire, method, message, metadata=of("root"))[0] not in REFUSED


def test_a_grant_on_a_collection_is_enough_for_it(wire: Wire, store: Database) -> None:
    """Whoever keeps one collection may change it, and make one that it is granted by name."""
    number = store.collection("docs").number
    for method in METHODS:
        if method.name not in ("Verify", "Snapshot", "DropCollection", "RenameCollection"):
            code, words = outcome(wire, method, request(method, number, "docs"), metadata=of("keeper"))
            assert code not in REFUSED, (method.name, words)
    made = pb.CreateCollectionRequest(name="papers", dim=2, metric="l2", index="auto", shards=1)
    assert wire("CreateCollection", made, metadata=of("keeper")).collection.name == "papers"
    wire("DropCollection", pb.DropCollectionRequest(name="papers"), metadata=of("keeper"))


def test_the_whole_store_needs_a_grant_on_all(wire: Wire) -> None:
    """An admin of some collections may not read the whole log."""
    code, words = next(
        outcome(wire, method, method.request(), metadata=of("keeper")) for method in METHODS if method.name == "Verify"
    )
    assert (code, "whole store" in words) == (Code.PERMISSION_DENIED, True)


@pytest.mark.parametrize(
    "method",
    [one for one in METHODS if one.role != "none" and one.name not in ("Verify", "Snapshot", "CreateCollection")],
    ids=lambda method: method.name,
)
def test_what_a_caller_does_not_see_is_not_there(wire: Wire, store: Database, method: Method) -> None:
    """A collection without a grant is answered in the words, and by the code, of one that is missing."""
    before, secret, absent = store.status()["chain"], store.collection("secret").number, 987_654_321
    codes = []
    for number, name in ((secret, "secret"), (absent, "absent")):
        code, words = outcome(wire, method, request(method, number, name), metadata=of("keeper"))
        codes.append((code, words.replace(str(number), "N").replace(name, "NAME")))
    assert codes[0] == codes[1]
    assert codes[0][0] is Code.NOT_FOUND
    assert "secret" not in codes[0][1]
    assert store.status()["chain"] == before


def test_a_name_that_is_taken_does_not_show(wire: Wire) -> None:
    """Who may not make a collection is refused in the same words whether it exists or not, as a new name too."""
    for method in METHODS:
        if method.name in ("CreateCollection", "RenameCollection"):
            found = []
            for name in ("secret", "absent"):
                message = request(method, 0, name if method.name == "CreateCollection" else "docs")
                if method.name == "RenameCollection":
                    message.to = name
                code, words = outcome(wire, method, message, metadata=of("keeper"))
                found.append((code, words.replace(name, "NAME")))
            assert found[0] == found[1]
            assert found[0][0] is Code.PERMISSION_DENIED


def test_lists_hold_what_is_seen(wire: Wire) -> None:
    """Each sees its own collections, in the list and in the status, and no other's name anywhere."""
    for caller, seen in (("reader", ["docs"]), ("root", ["docs", "secret"]), ("nobody", []), ("replica", [])):
        assert list(wire("ListCollections", pb.ListCollectionsRequest(), metadata=of(caller)).names) == seen
        status = wire("Status", pb.StatusRequest(), metadata=of(caller)).status
        assert (b'"secret"' in status) == ("secret" in seen)


def test_a_stream_is_checked_record_by_record(wire: Wire, store: Database) -> None:
    """A stream that begins where it may does not go on where it may not."""
    docs, secret = store.collection("docs"), store.collection("secret")
    upsert = next(method for method in METHODS if method.name == "UpsertStream")
    messages = [request(upsert, number, "") for number in (docs.number, secret.number)]
    replies = wire("UpsertStream", iter(messages), metadata=of("writer"))
    assert next(replies).count == 1
    with pytest.raises(grpc.RpcError) as caught:
        next(replies)
    assert caught.value.code() is Code.NOT_FOUND
    assert secret.get([9]) == []


# -- what is written down ----------------------------------------------------------------------------------------------


def test_denials_and_admin_calls_leave_a_line(node: Node) -> None:
    """One line each: who, what, from where, why; nothing for a call that is nobody's business; never the token."""
    with logged() as lines:
        wire = Wire(node.grpc_address)
        outcome(wire, COUNT, pb.CountRequest(collection=5), metadata=of("root"))
        outcome(wire, COUNT, pb.CountRequest(collection=5), metadata=(("authorization", "Bearer very-secret"),))
        outcome(wire, COUNT, pb.CountRequest(collection=5), metadata=of("nobody"))
        message = pb.GetCollectionRequest(name="secret")
        outcome(wire, next(m for m in METHODS if m.name == "GetCollection"), message, metadata=of("reader"))
        made = pb.CreateCollectionRequest(name="papers", dim=2, metric="l2", index="auto", shards=1)
        wire("CreateCollection", made, metadata=of("keeper"))
        wire("DropCollection", pb.DropCollectionRequest(name="papers"), metadata=of("keeper"))
        wire.close()
    lines = [line for line in lines if "peer" in line]
    found = [(line["event"], line["caller"], line["method"].rpartition("/")[2]) for line in lines]
    assert found == [
        ("denied", "", "Count"),
        ("denied", "nobody", "Count"),
        ("denied", "reader", "GetCollection"),
        ("admin call", "keeper", "CreateCollection"),
        ("admin call", "keeper", "DropCollection"),
    ]
    assert lines[3]["collections"] == ["papers"]
    assert all(line["peer"].startswith("ipv4:127.0.0.1") for line in lines)
    assert "very-secret" not in repr(lines)


def test_signals_revoke_and_grant(tmp_path: Path) -> None:
    """On SIGHUP a revoked token ends, a new one begins, and a bad file changes nothing and is logged."""
    file = tmp_path / "tokens.toml"
    file.write_text(entry_text("one", "first", [Grant("read")]))
    arguments = ("--config", str(tmp_path / "config.toml"))
    (tmp_path / "config.toml").write_text(f'[auth]\ntokens = "{file}"\n')
    with process(tmp_path / "data", *arguments) as served:
        wire = Wire(served.grpc)

        def code(secret: str) -> Code:
            metadata = (("authorization", f"Bearer {secret}"),)
            listing = next(method for method in METHODS if method.name == "ListCollections")
            return outcome(wire, listing, pb.ListCollectionsRequest(), metadata=metadata)[0]

        assert (code("first"), code("second")) == (Code.OK, Code.UNAUTHENTICATED)
        file.write_text("no TOML [")
        hang_up(served, 1)
        assert (code("first"), code("second")) == (Code.OK, Code.UNAUTHENTICATED)
        assert any(line["event"] == "not reloaded" and "tokens.toml" in line["problem"] for line in served.events())
        file.write_text(entry_text("two", "second", [Grant("read")]))
        hang_up(served, 2)
        assert (code("first"), code("second")) == (Code.UNAUTHENTICATED, Code.OK)
        denied = [line for line in served.events() if line["event"] == "denied"]
        assert len(denied) == 3
        assert all("first" not in repr(line) and "second" not in repr(line) for line in denied)
        wire.close()


def hang_up(served: Served, count: int) -> None:
    """Send SIGHUP and wait until it was acted upon as often as this."""
    os.kill(served.process.pid, signal.SIGHUP)
    with served.log.open() as lines:
        seen, text = 0, ""
        while seen < count:
            text += lines.readline()
            if text.endswith("\n"):
                seen += '"reloaded"' in text or '"not reloaded"' in text
                text = ""


# -- errors ------------------------------------------------------------------------------------------------------------


class _Broken:
    """Stands for a database of which one thing fails."""

    def __init__(self, inner: Database, error: Exception) -> None:
        self._inner, self._error = inner, error

    def __getattr__(self, name: str) -> Any:
        if name == "collections":
            raise self._error
        return getattr(self._inner, name)


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (RuntimeError("/etc/passwd line 7"), Code.INTERNAL, "internal error"),
        (OSError(2, "No such file", "/var/x"), Code.INTERNAL, "internal error"),
        (KeyError("secret"), Code.INTERNAL, "internal error"),
        (vecstore.Damaged("damaged"), Code.DATA_LOSS, "log"),
    ],
)
def test_what_goes_wrong_inside_stays_inside(tmp_path: Path, error: Exception, code: Code, words: str) -> None:
    """An unexpected error is a number for the client and a traceback for the log; paths leave in none."""
    path = str(tmp_path / "store")
    if isinstance(error, vecstore.Damaged):
        error = vecstore.Damaged(f"the store at {path}/log is damaged", details={"file": f"{path}/log"})
    with vecstore.open(path) as database, logged() as lines:
        server = ServerSettings(listen="127.0.0.1:0", http="", data=path)
        with serving_node(_Broken(database, error), server=server) as node:  # type: ignore[arg-type]
            wire = Wire(node.grpc_address)
            with pytest.raises(grpc.RpcError) as caught:
                wire("ListCollections", pb.ListCollectionsRequest())
            wire.close()
    assert (caught.value.code(), words in caught.value.details()) == (code, True)
    everything = caught.value.details() + repr(caught.value.trailing_metadata())
    assert path not in everything and "passwd" not in everything and "Traceback" not in everything
    if code is Code.INTERNAL:
        number = caught.value.details().rpartition(" ")[2]
        found = [line for line in lines if line.get("number") == number]
        assert len(found) == 1 and found[0]["exc_info"] is error


@given(
    grants=st.lists(
        st.tuples(st.sampled_from(ROLES), st.none() | st.frozensets(st.sampled_from("abc"), max_size=3)), max_size=5
    ),
    role=st.sampled_from(ROLES),
    name=st.none() | st.sampled_from("abcd"),
)
def test_what_a_caller_may_is_what_some_grant_allows(
    grants: list[tuple[Any, frozenset[str] | None]], role: str, name: str | None
) -> None:
    """The tables that answer quickly say what going through the grants one by one would say."""
    caller = Caller("x", tuple(Grant(given, names) for given, names in grants))
    order = ("read", "write", "admin")

    def allows(given: str, names: frozenset[str] | None) -> bool:
        enough = given == role if "replicate" in (given, role) else order.index(given) >= order.index(role)
        return enough and (names is None or (name is not None and name in names))

    assert caller.may(role, name) == any(allows(given, names) for given, names in grants)
    if role == "read" and name is not None:
        assert caller.sees(name) == caller.may("read", name)


def test_points_are_counted() -> None:
    """What a message costs: its records, its ids, one for each query."""
    body = PointsBody(IdKind.STR, [id_key("a"), id_key("b")], [b"{}", b"{}"], unpacked([[1.0], [2.0]]))
    assert points_in(pb.UpsertRequest(body=b"".join(body.encode()))) == 2
    assert points_in(pb.SearchRequest(vector=b"\0" * 40)) == 1
    assert points_in(pb.SearchBatchRequest(vectors=pack_floats(unpacked([[1.0], [2.0], [3.0]])))) == 3
    assert points_in(pb.GetRequest(ids=pack_ids([1, 2, 3, 4]))) == 4
    assert points_in(pb.DeleteRequest(ids=pack_ids(["a", "b", "c"]))) == 3
    assert points_in(pb.PointsReply(points=pb.Points(ids=pack_ids([1, 2])))) == 2
    assert points_in(pb.CountRequest()) == 1
