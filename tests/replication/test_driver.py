"""Drivers over real engines in one process, on a network of queues: they follow, and they fail loudly."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vecstore
from vecstore.engine.contents.incoming import Incoming
from vecstore.engine.contents.install import install
from vecstore.engine.database import EmbeddedDatabase
from vecstore.errors import NotPrimary, Unavailable
from vecstore.replication.actions import TakeSnapshot
from vecstore.replication.coding import decode, decode_state, encode, encode_state
from vecstore.replication.driver import Driver
from vecstore.replication.durable import Durable, Timing
from vecstore.replication.epochs import Claim, Identity
from vecstore.replication.log import Place
from vecstore.replication.messages import Message, Promote, StepDown, Switchover, Synced
from vecstore.server.contents import StoreContents
from vecstore.storage.directory import begin

TIMING = Timing(start_alone_after_s=1.0, call_every_s=0.1, silence_s=0.5, retry_s=0.5, step_down_s=0.3)


class Wire:
    """The network between the drivers of one test: what is sent arrives as bytes, unless it is cut."""

    def __init__(self) -> None:
        self.drivers: dict[str, Driver] = {}
        self.is_cut = False

    def of(self, store_id: str) -> Port:
        """Return one store's way to the others."""
        return Port(self, store_id)


class Port:
    """One store's way to the others."""

    def __init__(self, wire: Wire, store_id: str) -> None:
        self._wire, self._me = wire, store_id

    def send(self, to: str, message: Message) -> None:
        """Deliver a message at once."""
        target = self._wire.drivers.get(to)
        if target is not None and not self._wire.is_cut:
            target.receive(self._me, decode(*encode(message)))

    def address(self, store_id: str) -> str:
        """Return an address that says whose it is."""
        return f"{store_id[:8]}:1"


class Member:
    """A store and its driver."""

    def __init__(self, path: Path, wire: Wire, region: str) -> None:
        database = vecstore.open(str(path))
        assert isinstance(database, EmbeddedDatabase)
        self.database = database
        engine = database.engine
        self.id = engine.directory.store_id.hex()
        identity = Identity(engine.lineage, engine.identity_secret, self.id, region)
        data = engine.replication_state
        state = (
            Durable("primary", promise=Claim.of(identity, engine.state.fold.epochs[-1]))
            if data is None
            else decode_state(data)
        )
        self.contents = StoreContents(
            lambda: self.driver.engine, database.replace, _nothing, wire.of(self.id).address, ""
        )
        self.driver: Driver = Driver(
            engine, wire.of(self.id), self.contents, state, region=region, timing=TIMING, tick_s=0.02
        )
        wire.drivers[self.id] = self.driver
        self.driver.start()

    def close(self) -> None:
        """End both."""
        self.driver.close()
        self.contents.close()
        self.database.close()

    def wait(self, what: Callable[[], object]) -> None:
        """Wait until something holds."""
        pause = threading.Event()
        for _ in range(1_000):
            if what():
                return
            pause.wait(0.01)
        raise AssertionError((self.driver.member.status, self.driver.state, list(self.driver.alarms)))

    def put(self, count: int) -> str:
        """Write points; return the token."""
        docs = self.database.create_collection("docs", 3, exist_ok=True)
        first = docs.count()
        return docs.upsert(range(first, first + count), np.ones((count, 3), np.float32)).token


def _nothing(_address: str, _ticket: str, _name: str, _offset: int) -> Iterator[bytes]:
    raise Unavailable("nothing is fetched in this test")


@pytest.fixture(name="pair")
def _pair(tmp_path: Path) -> Iterator[tuple[Member, Member, Wire]]:
    """A primary, and a standby of it that was filled from its files."""
    wire = Wire()
    with contextlib.ExitStack() as stack:
        a = Member(tmp_path / "a", wire, "east")
        stack.callback(a.close)
        a.wait(lambda: a.driver.member.accepts_writes)
        a.put(10)
        _copy(a, tmp_path / "b")
        b = Member(tmp_path / "b", wire, "west")
        stack.callback(b.close)
        b.wait(lambda: b.driver.member.status == "following")
        yield a, b, wire


def _copy(source: Member, path: Path) -> None:
    """Make a standby of a store in a new folder."""
    _place, ticket = source.contents.snapshot()
    path.mkdir()
    begin(str(path)).close()
    incoming = Incoming(str(path))
    incoming.begin(ticket.id, [(file.name, file.size, file.check) for file in ticket.files])
    for name, offset in incoming.missing():
        incoming.receive(name, [source.contents.read(ticket.id, name, offset, 1 << 30)])
    claim = source.driver.state.promise
    assert claim is not None
    install(str(path), encode_state(Durable("standby", promise=claim, primary=source.id, peers=(source.id,))))


def test_a_standby_follows_and_takes_over(pair: tuple[Member, Member, Wire]) -> None:
    """What the primary writes is read at the standby after its token; a switchover swaps them, without a loss."""
    a, b, _ = pair
    token = a.put(500)
    assert b.database.collection("docs").count(after=token, timeout=10) == 510
    with pytest.raises(NotPrimary, match="standby"):
        b.put(1)
    done, text = a.driver.command(Switchover(b.id), 10.0)
    assert done, text
    b.wait(lambda: b.driver.member.accepts_writes)
    token = b.put(5)
    assert a.database.collection("docs").count(after=token, timeout=10) == 515


def test_an_error_that_nobody_foresaw_stops_writes_and_is_told(
    pair: tuple[Member, Member, Wire], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread does not die in silence: an alarm, no write any more, and commands say why."""
    a, _, _ = pair

    def fail(*_: Any) -> None:
        raise RuntimeError("unforeseen")

    monkeypatch.setattr(a.driver.member, "step", fail)
    a.driver.receive("", Synced())  # type: ignore[arg-type]
    a.wait(lambda: a.driver.failed)
    assert any("unforeseen" in alarm.text for alarm in a.driver.alarms)
    with pytest.raises(NotPrimary):
        a.put(1)
    with pytest.raises(Unavailable, match="unforeseen"):
        a.driver.command(StepDown(), 5.0)
    assert a.database.collection("docs").count() == 10


def test_a_snapshot_that_fails_is_an_alarm_and_no_more(
    pair: tuple[Member, Member, Wire], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who asked asks again; the primary goes on."""
    a, b, _ = pair

    def fail() -> tuple[Place, Any]:
        raise Unavailable("no room")

    monkeypatch.setattr(a.contents, "snapshot", fail)
    a.driver.act(lambda member: member.act(TakeSnapshot(b.id, "west")))
    a.wait(lambda: any("no room" in alarm.text for alarm in a.driver.alarms))
    assert not a.driver.failed
    assert b.database.collection("docs").count(after=a.put(1), timeout=10) == 11


def test_a_cut_network_is_dialled_again(pair: tuple[Member, Member, Wire]) -> None:
    """What was written meanwhile comes when it is whole; a promotion in between needs force beyond what may be lost."""
    a, b, wire = pair
    wire.is_cut = True
    token = a.put(100)
    b.wait(lambda: b.driver.member.status == "dialling")
    wire.is_cut = False
    assert b.database.collection("docs").count(after=token, timeout=10) == 110
    wire.is_cut = True
    done, text = b.driver.command(Promote(1), 10.0)
    assert done, text
    b.put(1)
    a.put(2)
    wire.is_cut = False
    a.wait(lambda: a.driver.state.role == "fenced")
    with pytest.raises(NotPrimary, match="fenced"):
        a.put(1)
