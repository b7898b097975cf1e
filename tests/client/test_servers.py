"""The client against real servers that stall, restart and go away: what it bridges, and what it says of the rest."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import vecstore
import vecstore.aio
from tests.server.test_tls import LOCAL, Authority
from tests.support.memory import memory_folder
from tests.support.proxy import proxied
from tests.support.server import served, serving_node
from vecstore import TLS, Closed, Database, DeadlineExceeded, NotFound, Unauthenticated, Unavailable, request
from vecstore.server.auth import AuthSettings, entry_text
from vecstore.server.caller import Grant
from vecstore.server.node import Node
from vecstore.server.settings import ServerSettings, Settings, TLSSettings

ROW = [1.0, 2.0]


@pytest.fixture
def path() -> Iterator[str]:
    """Return where a store may be made."""
    with memory_folder() as folder:
        yield str(folder / "store")


@pytest.fixture
def address(path: str) -> Iterator[str]:
    """Return the address of a server of an empty store."""
    with served(path) as address:
        yield address


def begun(path: str, listen: str = "127.0.0.1:0") -> Node:
    """Return a server that serves; whoever calls this drains it."""
    node = Node(Settings(server=ServerSettings(listen=listen, http="")), open_store=lambda: vecstore.open(path))
    node.start()
    return node


@contextmanager
def filled(address: str, **options: Any) -> Iterator[tuple[Database, vecstore.Collection]]:
    """Connect, and make a collection."""
    with vecstore.connect(address, **options) as database:
        yield database, database.create_collection("docs", 2, metric="l2", exist_ok=True)


def table_of(rows: int) -> pa.Table:
    """Return a table of points."""
    vectors = np.random.default_rng(1).standard_normal(2 * rows).astype(np.float32)
    return pa.table({"id": np.arange(rows), "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors), 2)})


# -- writes whose answer does not come -------------------------------------------------------------------------------


def test_a_write_whose_answer_is_held_back_is_found_by_its_request_id(address: str) -> None:
    """The deadline passes, the outcome is unknown, and `wait` tells that the write was done, once."""
    with filled(address), proxied(address) as proxy, vecstore.connect(proxy.address) as database:
        docs = database.collection("docs")
        proxy.replies.clear()
        with pytest.raises(DeadlineExceeded) as caught:
            docs.upsert(1, ROW, timeout=0.4)
        assert caught.value.outcome == "unknown"
        proxy.replies.set()
        found = database.wait(caught.value.details["request_id"])
        assert (found.count, found.ack) == (1, "durable")
        assert docs.count() == 1


def test_a_write_that_arrives_after_its_deadline_changes_nothing(address: str) -> None:
    """A first attempt that was held up on the way and arrives after a newer write, is refused by its clock."""
    with filled(address) as (_, direct), proxied(address) as proxy, vecstore.connect(proxy.address) as database:
        docs = database.collection("docs")
        proxy.requests.clear()
        with pytest.raises(DeadlineExceeded) as caught:
            docs.upsert(1, ROW, [{"from": "stalled"}], timeout=0.4)
        assert caught.value.outcome == "unknown"
        direct.upsert(1, ROW, [{"from": "newer"}])
        proxy.requests.set()
        with pytest.raises(NotFound, match="did not take effect"):
            database.wait(caught.value.details["request_id"])
        assert docs.get(1)[0].payload == {"from": "newer"}


def test_a_write_that_is_made_again_under_its_id_takes_effect_once(address: str) -> None:
    """A caller may give a write's request id itself: the second call answers what the first did."""
    with filled(address) as (database, docs):
        number = request.new()
        with request.use(number):
            first = docs.upsert(1, ROW)
        docs.upsert(1, [3, 4])
        with request.use(number):
            again = docs.upsert(1, ROW)
        assert again.lsn == first.lsn
        vector = docs.get(1, with_vector=True)[0].vector
        assert vector is not None
        assert vector.tolist() == [3, 4]
        assert database.wait(number.hex()).lsn == first.lsn


# -- servers that come and go ----------------------------------------------------------------------------------------


def test_a_restart_is_bridged(path: str) -> None:
    """A write made while the only server is gone is done when it is back, within its deadline."""
    node = begun(path)
    address = node.grpc_address
    with filled(address) as (_, docs):
        docs.upsert(1, ROW)
        node.drain(0.0)
        written: list[vecstore.Written] = []
        writer = threading.Thread(target=lambda: written.append(docs.upsert(2, ROW, timeout=30)))
        writer.start()
        node = begun(path, address)
        writer.join(30)
        assert [one.count for one in written] == [1]
        assert docs.count() == 2
        node.drain(0.0)
        with pytest.raises(Unavailable, match=address.replace(".", r"\.")) as caught:
            docs.upsert(3, ROW, timeout=3)
        assert caught.value.retryable


def test_no_call_fails_while_two_servers_are_restarted_in_turn(path: str) -> None:
    """With two servers, of which one is always there, reads, writes and a bulk load never fail."""
    keeper = vecstore.open(path)
    nodes = [begun(path), begun(path)]
    addresses = [node.grpc_address for node in nodes]
    failures: list[Exception] = []
    over = threading.Event()

    with vecstore.connect(addresses, timeout=30) as database:
        docs = database.create_collection("docs", 2, metric="l2")
        counts = [0, 0]

        def work(writer: int) -> None:
            try:
                while not over.is_set():
                    docs.upsert(1_000_000 * (writer + 1) + counts[writer], ROW)
                    assert len(docs.search(ROW, 1)) == 1
                    counts[writer] += 1
            except Exception as exc:  # noqa: BLE001 - whatever it is, it is a failed call
                failures.append(exc)

        def load() -> None:
            try:
                while not over.is_set():
                    assert docs.upsert_table(table_of(20_000)).count == 20_000
            except Exception as exc:  # noqa: BLE001 - whatever it is, it is a failed call
                failures.append(exc)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(2)] + [threading.Thread(target=load)]
        for thread in threads:
            thread.start()
        for i in (0, 1, 0, 1):
            nodes[i].drain(1.0)
            nodes[i] = begun(path, addresses[i])
        over.set()
        for thread in threads:
            thread.join(60)
        assert failures == []
        assert min(counts) > 0
        assert docs.count() == sum(counts) + 20_000
    for node in nodes:
        node.drain(0.0)
    keeper.close()


def test_a_bulk_load_goes_on_after_a_restart(path: str) -> None:
    """Records that were under way when the server went are sent again to the one that comes back."""
    node = begun(path)
    address = node.grpc_address
    restarted: list[Node] = []

    def restart(done: int) -> None:
        if done >= 30_000 and not restarted:
            node.drain(0.0)
            restarted.append(begun(path, address))

    with filled(address) as (_, docs):
        written = docs.upsert_table(table_of(60_000), progress=restart)
        assert restarted != []
        assert written.count == docs.count() == 60_000
        assert docs.get([59_999])[0].id == 59_999
    restarted[0].drain(0.0)


def test_the_async_client_bridges_a_restart_too(path: str) -> None:
    """A bulk load and single writes of the async client go on when the only server comes back."""
    nodes = [begun(path)]
    address = nodes[0].grpc_address

    def restart() -> None:
        nodes[0].drain(0.0)
        nodes.append(begun(path, address))

    async def scenario() -> None:
        async with vecstore.aio.connect(address, timeout=30) as database:
            docs = await database.create_collection("docs", 2, metric="l2")
            restarting: list[asyncio.Future[None]] = []

            def progress(done: int) -> None:
                if done >= 10_000 and not restarting:
                    restarting.append(asyncio.ensure_future(asyncio.to_thread(restart)))

            written = await docs.upsert_table(table_of(40_000), progress=progress)
            singles = await asyncio.gather(*(docs.upsert(100_000 + i, ROW) for i in range(20)))
            await restarting[0]
            assert written.count == 40_000
            assert [one.count for one in singles] == [1] * 20
            assert await docs.count() == 40_020

    try:
        asyncio.run(scenario())
    finally:
        # Whatever came of it: a server that lives on would disturb the tests that follow.
        nodes[-1].drain(0.0)


def test_a_scan_that_is_cut_off_says_how_to_go_on(path: str) -> None:
    """A scan stays on one view, so it cannot go on at another server: the error says to begin at the last id."""
    node = begun(path)
    with filled(node.grpc_address) as (_, docs):
        docs.upsert_table(table_of(30_000))
        scan = docs.scan(with_vector=True)
        assert next(scan).id == 0
        node.drain(0.0)
        with pytest.raises(Unavailable, match="start="):
            list(scan)


# -- ends ------------------------------------------------------------------------------------------------------------


def test_an_iterator_that_is_closed_lets_the_server_go(path: str) -> None:
    """After close nothing more comes, and the server has no call under way: it drains at once."""
    node = begun(path)
    with filled(node.grpc_address) as (_, docs):
        docs.upsert_table(table_of(30_000))
        scan: Any = docs.scan(with_vector=True)
        assert next(scan).id == 0
        scan.close()
        assert list(scan) == []
        node.drain(None)


def test_calls_under_way_end_when_their_client_is_closed(address: str) -> None:
    """A read that waits is told that its client was closed, sync and async alike."""
    with filled(address), proxied(address) as proxy:
        database = vecstore.connect(proxy.address, timeout=30)
        docs = database.collection("docs")
        proxy.replies.clear()
        caught: list[BaseException] = []

        def count() -> None:
            try:
                docs.count()
            except Closed as exc:
                caught.append(exc)

        reader = threading.Thread(target=count)
        reader.start()
        database.close()
        reader.join(10)
        assert [type(exc) for exc in caught] == [Closed]
        proxy.replies.set()

        async def scenario() -> None:
            twin = await vecstore.aio.connect(proxy.address, timeout=30)
            docs = await twin.collection("docs")
            proxy.replies.clear()
            reading = asyncio.ensure_future(docs.count())
            await asyncio.sleep(0)
            await twin.close()
            with pytest.raises(Closed):
                await reading

        asyncio.run(scenario())


def test_a_connection_is_refused_in_a_forked_child(address: str) -> None:
    """A child that was forked after connecting is told so by every call, may close, and leaves the parent's alone."""
    code = f"""
import os, vecstore
database = vecstore.connect({address!r})
docs = database.create_collection("docs", 2)
child = os.fork()
if not child:
    try:
        docs.count()
    except vecstore.Closed as exc:
        database.close()
        os._exit(7 if "fork" in str(exc) else 8)
    os._exit(9)
_, status = os.waitpid(child, 0)
print(os.waitstatus_to_exitcode(status), docs.count())
database.close()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["7", "0"]


# -- who is who ------------------------------------------------------------------------------------------------------


def test_tls_tokens_and_certificates(tmp_path: Path) -> None:
    """TLS with the right authority and token works; with a wrong one of either nobody is let in."""
    ours, theirs = Authority(tmp_path / "ours"), Authority(tmp_path / "theirs")
    certificate, key = ours.issue("server", LOCAL)
    tokens, secret = tmp_path / "tokens.toml", "a" * 43
    tokens.write_text(entry_text("tester", secret, [Grant("admin", None)]))
    tokens.chmod(0o600)
    tls = TLSSettings(certificate=str(certificate), key=str(key))
    database = vecstore.open(str(tmp_path / "store"))
    with serving_node(database, tls=tls, auth=AuthSettings(tokens=str(tokens))) as node:
        where, right = node.grpc_address, TLS(ca=str(ours.file))
        with vecstore.connect(where, token=secret, tls=right) as client:
            assert client.collections() == []
        with pytest.raises(Unauthenticated):
            vecstore.connect(where, token="b" * 43, tls=right)
        with pytest.raises(Unauthenticated):
            vecstore.connect(where, tls=right)
        with pytest.raises(Unavailable, match="authority") as caught:
            vecstore.connect(where, token=secret, tls=TLS(ca=str(theirs.file)), timeout=600)
        assert not caught.value.retryable
        with pytest.raises(Unavailable):
            vecstore.connect(where, token=secret, timeout=2)


def test_a_call_is_part_of_its_callers_trace(address: str) -> None:
    """Where a span is current, its context travels as W3C headers; without one nothing does."""
    from opentelemetry.sdk.trace import TracerProvider

    from vecstore.client.trace import trace_headers

    assert trace_headers() == ()
    with TracerProvider().get_tracer("test").start_as_current_span("outer") as span:
        context = span.get_span_context()
        parent = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
        assert trace_headers() == (("traceparent", parent),)
        with filled(address) as (_, docs):
            assert docs.count() == 0
