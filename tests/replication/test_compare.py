"""`vecstore compare` against real processes: equal under a writer, a difference and damage named, each error clear."""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

import vecstore
from tests.support import serve
from vecstore.api import Database
from vecstore.cli.main import cli
from vecstore.client.operator import Operator
from vecstore.config import MIB
from vecstore.engine.halts import Halts
from vecstore.errors import InvalidArgument, Overloaded, Unavailable
from vecstore.record import STAMP_BYTES, content, content_hash, id_key, point_key
from vecstore.server import ranges
from vecstore.storage import catalog
from vecstore.storage.base import Family
from vecstore.storage.catalog import COLLECTION
from vecstore.storage.rocks import RocksStore, open_store
from vecstore.sums import span

from .stores import Store, eventually, following

DIM = 8
ALONE = {"VECSTORE_SERVER_REPLICATION_SCRUB_EVERY_S": "0"}
"""No scrub: it would mend what is to be found."""
WAIT_S = 30.0


def fill(database: Database, name: str, count: int, first: int = 0) -> None:
    """Write points whose values are too large for RocksDB's tables, and so lie in blob files."""
    rng = np.random.default_rng(first)
    collection = database.create_collection(name, DIM, exist_ok=True)
    payloads = [{"text": f"{i} " * 60} for i in range(count)]
    collection.upsert(range(first, first + count), rng.standard_normal((count, DIM), dtype=np.float32), payloads)


@contextlib.contextmanager
def pair(tmp_path: Path) -> Iterator[tuple[Store, Store]]:
    """Run a primary with some points, and a standby that has them."""
    east = Store(tmp_path / "east", "--region", "east", environment=ALONE)
    with east.running():
        with east.database() as database:
            fill(database, "docs", 600)
            fill(database, "notes", 40)
            fill(database, "tags", 40)
        follows = ("--region", "west", "--standby-of", east.address, "--slot", "west")
        west = Store(tmp_path / "west", *follows, environment=ALONE)
        with west.running():
            following(east, west)
            yield east, west


@contextlib.contextmanager
def rocks_of(folder: Path) -> Iterator[RocksStore]:
    """Open the RocksDB of a stopped store, behind the engine's back."""
    store = open_store(str(folder / "rocks"), write_buffer_bytes=MIB, wal_bytes_max=64 * MIB, strict=True)
    try:
        yield store
    finally:
        store.flush()
        store.close()


def number_of(store: RocksStore, name: str) -> int:
    for key, value in store.scan(Family.META, COLLECTION, COLLECTION[:-1] + b"0"):
        if msgspec.json.decode(value)["name"] == name:
            return catalog.number_of(COLLECTION, key)
    raise AssertionError(name)


def change(store: RocksStore, name: str, id: int) -> None:
    """Give a stored point another content, with a hash that fits."""
    place = point_key(number_of(store, name), id_key(id))
    (before,) = store.get(Family.POINTS, [place])
    assert before is not None
    pieces = (id_key(id), b"{}", np.ones(DIM, np.float32).tobytes())
    stamp = before[:8] + content_hash(*pieces).to_bytes(16, "big")
    store.write([(Family.POINTS, place, stamp + content(*pieces))])


def flip(store: RocksStore, name: str, id: int) -> None:
    """Flip a bit of a stored point, where RocksDB's own checksum does not see it."""
    place = point_key(number_of(store, name), id_key(id))
    (before,) = store.get(Family.POINTS, [place])
    assert before is not None
    after = bytearray(before)
    after[STAMP_BYTES + 30] ^= 1
    store.write([(Family.POINTS, place, bytes(after))])


def by_name(report: dict[str, Any]) -> dict[str, Any]:
    return {collection["name"]: collection for collection in report["collections"]}


def compared(*arguments: str, code: int = 0) -> Any:
    """Run the command in this process, which has loaded everything, and return what it printed."""
    done = CliRunner().invoke(cli, ["compare", *arguments, "--json"])
    assert done.exit_code == code, done.output
    return json.loads(done.stdout)


def error_of(*arguments: str) -> str:
    return str(compared(*arguments, code=1)["error"]["message"])


def test_equal_under_a_writer(tmp_path: Path) -> None:
    """While the primary goes on writing, both are read at one LSN, in either order; the writer is not held up."""
    with pair(tmp_path) as (east, west), east.database() as database:
        stop, written = threading.Event(), [0]

        def write() -> None:
            while not stop.is_set():
                fill(database, "docs", 20, 600 + written[0] % 400)
                database.collection("docs").delete(ids=[written[0] % 600])
                written[0] += 20

        writer = threading.Thread(target=write)
        writer.start()
        try:
            lsns = []
            for arguments in ((east.address, west.address), (west.address, east.address, "--points-a-range", "50")):
                before = written[0]
                report = compared(*arguments)
                assert written[0] > before
                assert report["ok"]
                docs = by_name(report)["docs"]
                assert docs["a"] == docs["b"] and docs["a"]["holds_log"] and docs["a"]["points"] > 300
                lsns.append(report["lsn"])
            assert docs["ranges"] == -(-docs["a"]["points"] // 50)
            assert report["a"]["role"] == "standby" and report["b"]["role"] == "primary"
        finally:
            stop.set()
            writer.join()
        assert lsns[0] < lsns[1] < east.describe()["durable_lsn"]
        following(east, west)


def test_a_held_standby_waits_for_its_lsn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes while it is held is not applied; then it is pinned exactly where the primary was, and goes on."""
    monkeypatch.setattr(ranges, "HOLD_S_MAX", WAIT_S)
    with serve.node(tmp_path / "east") as east, contextlib.ExitStack() as stack:
        fill(east.database, "docs", 100)
        west = stack.enter_context(serve.node(tmp_path / "west", {("replication", "standby_of"): east.grpc_address}))
        describe = west.replication.describe
        eventually(describe, lambda found: found["applied_lsn"] == east.database.status()["lsn"])
        a, b = (stack.enter_context(stack.enter_context(Operator(node.grpc_address)).ranges()) for node in (east, west))
        held = b.hold()
        fill(east.database, "docs", 1)
        at = a.pin(0, 0)
        fill(east.database, "docs", 2)
        eventually(describe, lambda found: found["seen_lsn"] == at.lsn + 1)
        assert describe()["applied_lsn"] == held == at.lsn - 1
        assert b.pin(at.lsn, WAIT_S).chain == at.chain
        eventually(describe, lambda found: found["applied_lsn"] == at.lsn + 1)


def test_what_differs_and_what_is_damaged_is_named(tmp_path: Path) -> None:
    """Ranges, ids, and which side it is that left its log: the standby, the primary, or one of them damaged."""
    with pair(tmp_path) as (east, west):
        west.stop()
        east.stop()
        with rocks_of(west.folder) as store:
            change(store, "docs", 123)
        with rocks_of(east.folder) as store:
            flip(store, "notes", 7)
            store.write([(Family.POINTS, point_key(number_of(store, "tags"), id_key(5)), None)])
        with east.running(), west.running("--standby-of", east.address):
            following(east, west)
            report = compared(east.address, west.address, "--points-a-range", "100", code=1)
            printed = CliRunner().invoke(cli, ["compare", east.address, west.address])
        found = by_name(report)
        docs, notes, tags = (found[name] for name in ("docs", "notes", "tags"))

        # Changed on the standby, with a hash that fits.
        assert (docs["ranges"], docs["ranges_differ"], docs["ids_differ"]) == (6, 1, 1)
        (one,) = docs["differing"]
        assert one == {"first": 100, "points_a": 100, "points_b": 100, "ids": 1}
        (id,) = docs["ids"]
        assert (id["id"], id["what"]) == (123, "its content differs") and id["a"] == id["b"]
        assert docs["a"]["holds_log"] and not docs["b"]["holds_log"]
        assert docs["a"]["damaged"] == docs["b"]["damaged"] == 0

        # A bit flipped on the primary.
        assert notes["a"]["damaged_points"] == [{"id": 7, "why": "its content is not what was written"}]
        assert (notes["a"]["damaged"], notes["b"]["damaged"]) == (1, 0)
        assert notes["b"]["holds_log"] and not notes["a"]["holds_log"]

        # Gone from the primary, without a word in its log.
        (id,) = tags["ids"]
        assert (id["id"], id["what"], id["a"]) == (5, "it is on B only", None)
        assert tags["b"]["holds_log"] and not tags["a"]["holds_log"]
        assert (tags["a"]["points"], tags["b"]["points"]) == (39, 40)

        assert printed.exit_code == 1
        for line in ("docs: id 123: its content differs", "notes: damaged on A: 7: its content is not", "NOT EQUAL at"):
            assert line in printed.stdout
        assert "docs: B does not hold what its log says" in printed.stdout

        # Of the directories, the other way about: the same, with the sides exchanged.
        found = by_name(compared(str(west.folder), str(east.folder), code=1))
        assert found["docs"]["b"]["holds_log"] and not found["docs"]["a"]["holds_log"]
        assert [one["id"] for one in found["docs"]["ids"]] == [123]
        assert (found["notes"]["a"]["damaged"], found["notes"]["b"]["damaged"]) == (0, 1)


def test_what_cannot_be_compared_says_why(tmp_path: Path) -> None:
    """Other LSNs, histories that part, other lineages, no store at all."""
    with vecstore.open(str(tmp_path / "one")) as one:
        fill(one, "docs", 10)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    paths = str(tmp_path / "one"), str(tmp_path / "two")
    assert compared(*paths)["ok"]
    with vecstore.open(paths[0]) as one:
        fill(one, "docs", 1, 100)
    assert "one LSN" in error_of(*paths)
    assert "beyond" in error_of(*reversed(paths))
    with vecstore.open(paths[1]) as two:
        fill(two, "docs", 1, 200)
    assert "the histories part: at LSN 4" in error_of(*paths)
    with vecstore.open(str(tmp_path / "other")) as other:
        fill(other, "docs", 10)
    assert "lineage" in error_of(paths[0], str(tmp_path / "other"))
    assert "no store" in error_of(paths[0], str(tmp_path / "nowhere"))


def test_roles_that_cannot_be_compared(tmp_path: Path) -> None:
    """A store with itself; two of which neither is a primary. After a change of roles they are compared as before."""
    with pair(tmp_path) as (east, west):
        assert "the same store" in error_of(east.address, east.address)
        assert west.command("promote", replaces=1).done
        following(west, east)
        assert compared(east.address, west.address)["ok"]
        assert west.command("step-down").done
        assert "neither is a primary" in error_of(east.address, west.address)


# -- the server's side -----------------------------------------------------------------------------------------------


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Any]:
    """A primary in this process."""
    with serve.node(tmp_path / "store") as node:
        fill(node.database, "docs", 100)
        yield node


def raised(call: Callable[[], object], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        call()


def test_a_conversation_asks_in_order_and_within_bounds(served: Any) -> None:
    """What makes no sense is refused with the field; the sums it gives are those of the log."""
    with Operator(served.grpc_address) as operator:
        raised(lambda: operator.ranges().summed(b"a", b"b", 1), InvalidArgument, "nothing is pinned")
        with operator.ranges() as asking:
            at = asking.pin(0, 0)
            ((number, one),) = at.collections.items()
            assert (one.name, one.points, at.lsn) == ("docs", 100, served.database.status()["lsn"])
            found = asking.summed(*span(number), 1_000)
            assert (found.digest, found.points, found.next_place) == (one.digest, 100, None)
            assert len(list(asking.listed(*span(number)))) == 100
            raised(lambda: asking.summed(b"b", b"a", 1), InvalidArgument, "stop: 61 given")
        for points_max in (0, 200_001):
            with operator.ranges() as asking:
                asking.pin(0, 0)
                raised(lambda n=points_max: asking.summed(b"a", b"b", n), InvalidArgument, "points_max")  # type: ignore[misc]
        with operator.ranges() as asking:
            raised(lambda: asking.pin(at.lsn + 1, 0.1), Unavailable, "did not come to")
        with operator.ranges() as asking:
            raised(lambda: asking.pin(1, 0.1), InvalidArgument, "already")
        eventually(lambda: {"count": served.replication.ranges.count}, lambda found: found["count"] == 0)


def test_pages_of_a_list(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list of many points comes in pieces, each once and in order."""
    monkeypatch.setattr(ranges, "LIST_POINTS_MAX", 7)
    with Operator(served.grpc_address) as operator, operator.ranges() as asking:
        (number,) = asking.pin(0, 0).collections
        places = [stamp.place for stamp in asking.listed(*span(number))]
    assert places == [point_key(number, id_key(id)) for id in range(100)]


def test_so_many_conversations_and_no_more(served: Any) -> None:
    """Beyond, they are refused; one that ends, or whose client is gone, makes room and lets go of its pin."""
    with Operator(served.grpc_address) as operator:
        open_ones = [operator.ranges() for _ in range(ranges.CONVERSATIONS_MAX)]
        for one in open_ones:
            one.pin(0, 0)
        pins = [conversation._pin for conversation in served.replication.ranges._open]
        raised(lambda: operator.ranges().pin(0, 0), Overloaded, "under way")
        for one in open_ones:
            one.close()
        eventually(lambda: {"count": served.replication.ranges.count}, lambda found: found["count"] == 0)
        assert all(pin.is_closed for pin in pins)
        with operator.ranges() as again:
            assert again.pin(0, 0).collections


def test_an_abandoned_conversation_ends(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is asked for a while: the pin is let go, what is held goes on, and who comes back is told."""
    monkeypatch.setattr(ranges, "IDLE_S", 0.1)
    with Operator(served.grpc_address) as operator, operator.ranges() as asking:
        asking.pin(0, 0)
        eventually(lambda: {"count": served.replication.ranges.count}, lambda found: found["count"] == 0)
        raised(lambda: asking.summed(b"a", b"b", 1), Unavailable, "ended the comparison")


def test_a_hold_is_released_with_its_conversation(served: Any) -> None:
    """Held for a moment, and at the latest when the conversation is over."""
    halts: Halts = served.database.engine.committer.halts
    with Operator(served.grpc_address) as operator:
        with operator.ranges() as asking:
            assert asking.hold() == served.database.status()["lsn"]
            assert not halts._released.is_set()
        eventually(lambda: {"released": halts._released.is_set()}, lambda found: found["released"])


def test_a_server_that_stops_does_not_wait_for_a_comparison(tmp_path: Path) -> None:
    """An open conversation is ended by the drain; the other side hears of it."""
    with serve.node(tmp_path / "store") as node:
        fill(node.database, "docs", 100)
        with Operator(node.grpc_address) as operator, operator.ranges() as asking:
            asking.pin(0, 0)
            stopper = threading.Thread(target=node.drain, args=(WAIT_S,))
            stopper.start()
            stopper.join(WAIT_S / 2)
            assert not stopper.is_alive()
            raised(lambda: asking.summed(b"a", b"b", 1), Unavailable, "ended the comparison|Cancelling all calls")
