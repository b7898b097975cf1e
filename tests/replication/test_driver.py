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
from vecstore.errors import Damaged, NotPrimary, Unavailable
from vecstore.replication.actions import TakeSnapshot
from vecstore.replication.coding import decode, decode_state, encode, encode_state
from vecstore.replication.driver import Driver
from vecstore.replication.durable import Durable, RejoinState, Timing
from vecstore.replication.epochs import Claim, Identity, Standing
from vecstore.replication.log import Place
from vecstore.replication.messages import Call, Message, Promote, Rejoin, StepDown, Switchover, Synced
from vecstore.server.contents import StoreContents
from vecstore.storage.catalog import Epoch
from vecstore.storage.directory import begin

TIMING = Timing(start_alone_after_s=1.0, call_every_s=0.1, silence_s=0.5, retry_s=0.5, step_down_s=0.3)


class Wire:
    """The network between the drivers of one test: what is sent arrives as bytes, unless it is cut."""

    def __init__(self) -> None:
        self.drivers: dict[str, Driver] = {}
        self.contents: dict[str, StoreContents] = {}
        self.is_cut = False

    def fetch(self, address: str, ticket: str, name: str, offset: int) -> Iterator[bytes]:
        """Fetch a file that a store keeps for others."""
        while piece := self.contents[address].read(ticket, name, offset, 1 << 20):
            offset += len(piece)
            yield piece

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
        # No checkpoint but those of the test, and so small a limit that a test comes to it.
        database = vecstore.open(str(path), config={"slot_retained_bytes_max": 1 << 20, "checkpoint_interval_s": 3600})
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
            lambda: self.driver.engine, database.replace, wire.fetch, wire.of(self.id).address, ""
        )
        wire.contents[wire.of(self.id).address(self.id)] = self.contents
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

    def put(self, count: int, text: str = "") -> str:
        """Write points; return the token."""
        docs = self.database.create_collection("docs", 3, exist_ok=True)
        first = docs.count()
        payloads = [{"text": text}] * count
        return docs.upsert(range(first, first + count), np.ones((count, 3), np.float32), payloads).token

    def folders(self) -> set[str]:
        """Return what is in its folder beside the store."""
        return {found["folder"] for found in self.database.status()["kept"]}


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
    b.wait(lambda: b.database.status()["writable"])
    token = b.put(5)
    assert a.database.collection("docs").count(after=token, timeout=10) == 515


def test_a_promotion_takes_writes_once_it_is_durable(
    pair: tuple[Member, Member, Wire], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While its batch is still being synced, nobody is told that the store takes writes."""
    _, b, wire = pair
    wire.is_cut = True
    committer, going_on, begun = b.database.engine.committer, threading.Event(), threading.Event()
    assert committer is not None
    persist = committer.persist

    def slow(*arguments: Any, **more: Any) -> None:
        begun.set()
        going_on.wait(30)
        persist(*arguments, **more)

    monkeypatch.setattr(committer, "persist", slow)
    promoting = threading.Thread(target=b.driver.command, args=(Promote(1, force=True), 30.0))
    promoting.start()
    assert begun.wait(30)
    assert b.driver.member.accepts_writes and not b.driver.accepts_writes
    going_on.set()
    promoting.join()
    b.wait(lambda: b.driver.accepts_writes)
    b.put(1)


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
    b.wait(lambda: b.database.status()["writable"])
    b.put(1)
    a.put(2)
    wire.is_cut = False
    a.wait(lambda: a.driver.state.role == "fenced")
    with pytest.raises(NotPrimary, match="fenced"):
        a.put(1)


def cut_beneath(a: Member, b: Member, wire: Wire) -> None:
    """Let the primary's log be cut beneath its standby."""
    wire.is_cut = True
    for _ in range(3):
        a.put(300, "x" * 2_000)
        a.database.checkpoint()
    a.wait(lambda: a.driver.log.first_lsn > b.driver.log.tip.lsn + 1)
    wire.is_cut = False


def test_a_snapshot_that_was_not_put_in_place_is_asked_for_again(
    pair: tuple[Member, Member, Wire], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store is open as it was, and the next one is installed; nothing of either stays in the folder."""
    a, b, wire = pair
    with monkeypatch.context() as patch:
        patch.setattr("vecstore.server.contents.install", lambda *_: (_ for _ in ()).throw(Damaged("planted")))
        cut_beneath(a, b, wire)
        b.wait(lambda: any("install failed: planted" in alarm.text for alarm in b.driver.alarms))
    assert b.database.collection("docs").count() == 10
    assert not b.driver.failed
    b.wait(lambda: b.driver.member.status == "following" and b.driver.log.applied_lsn == a.driver.log.tip.lsn)
    b.wait(lambda: not b.folders())
    assert b.database.collection("docs").count() == 910


@pytest.mark.parametrize("when", ["fetched", "closed"])
def test_a_promise_that_is_made_while_contents_are_replaced_is_kept(
    pair: tuple[Member, Member, Wire], monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """A third store is promoted meanwhile: it is on disk whatever comes, and nothing stands still."""
    a, b, wire = pair
    engine = b.driver.engine
    third = Identity(engine.lineage, engine.identity_secret, "cc" * 16, "south")
    tip = a.driver.log.tip
    claim = Claim.of(third, Epoch(2, "a third", tip.lsn, tip.chain.hex()))
    brought, put_in_place = b.contents._bring, install

    def call() -> None:
        b.driver.receive(third.store_id, Call(1, claim, Standing.of(third, a.driver.log)))
        b.wait(lambda: b.driver.state.promise == claim)

    def bring(store_id: str, content: Any) -> Incoming:
        found = brought(store_id, content)
        if when == "fetched":
            call()
            b.wait(lambda: decode_state(engine.replication_state or b"").promise == claim)
        return found

    def puts(path: str, state: bytes, lineage: bytes) -> Any:
        if when == "closed":
            call()
        return put_in_place(path, state, lineage)

    monkeypatch.setattr(b.contents, "_bring", bring)
    monkeypatch.setattr("vecstore.server.contents.install", puts)
    cut_beneath(a, b, wire)
    b.wait(lambda: b.driver.engine is not engine or b.driver.failed)
    b.wait(lambda: not b.driver.member.is_replacing or b.driver.failed)
    assert b.driver.failed == ""
    data = b.driver.engine.replication_state
    assert data is not None and decode_state(data).promise == claim
    assert b.database.collection("docs").count() == 910


def test_what_was_fetched_in_vain_goes_once_the_stream_goes_on(pair: tuple[Member, Member, Wire]) -> None:
    """A transfer that was cut short and is not needed any more goes; and so does what was handed out for it."""
    a, b, wire = pair
    wire.is_cut = True
    taken = a.contents.snapshot()[1]
    incoming = Incoming(str(b.database.engine.directory.path))
    incoming.begin(taken.id, [(file.name, file.size, file.check) for file in taken.files])
    name, offset = incoming.missing()[0]
    incoming.receive(name, wire.fetch(wire.of(a.id).address(a.id), taken.id, name, offset))
    b.wait(lambda: b.driver.member.status != "following")
    assert (b.folders(), a.folders()) == ({"incoming"}, {"outgoing"})
    wire.is_cut = False
    b.wait(lambda: not b.folders())
    outgoing = a.contents._current()
    for kept in outgoing._kept.values():
        kept.used_s -= 1_000.0
    a.contents.expire()
    assert a.folders() == set()


def between(member: Member, monkeypatch: pytest.MonkeyPatch, look: Callable[[], object]) -> None:
    """Look at a store right after its contents were replaced: callers come to it, and its driver knows nothing yet."""
    replace = member.contents._replace

    def replaced(offline: Callable[[str], Any]) -> Any:
        engine = replace(offline)
        look()
        return engine

    monkeypatch.setattr(member.contents, "_replace", replaced)


def test_new_contents_are_read_before_the_driver_knows_of_them(
    pair: tuple[Member, Member, Wire], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A standby's are whole, at one LSN; and whoever writes to it then is told where the primary is."""
    a, b, wire = pair
    seen: list[object] = []

    def look() -> None:
        seen.append(b.database.collection("docs").count())
        with pytest.raises(NotPrimary) as caught:
            b.put(1)
        seen.append(caught.value.primary)

    between(b, monkeypatch, look)
    cut_beneath(a, b, wire)
    b.wait(lambda: b.driver.member.status == "following" and b.driver.log.applied_lsn == a.driver.log.tip.lsn)
    assert seen == [910, wire.of(b.id).address(a.id)]


def test_contents_of_a_rejoin_are_not_read_before_the_driver_knows_of_them(
    pair: tuple[Member, Member, Wire], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The log ends at the fork, and points are those of a later LSN: a state that never was. Nor after a restart."""
    a, b, wire = pair
    wire.is_cut = True
    a.put(5)
    assert b.driver.command(Promote(1, force=True), 10.0)[0]
    b.wait(lambda: b.database.status()["writable"])
    b.put(3)
    refused: list[Unavailable] = []

    def look() -> None:
        with pytest.raises(Unavailable, match="serves no reads") as caught:
            a.database.collection("docs").count()
        refused.append(caught.value)

    between(a, monkeypatch, look)
    wire.is_cut = False
    a.wait(lambda: a.driver.state.role == "fenced")
    assert a.driver.command(Rejoin(b.id), 10.0)[0]
    a.wait(lambda: a.driver.state.rejoin is None and a.driver.log.applied_lsn == b.driver.log.tip.lsn)
    assert [error.retryable for error in refused] == [True]
    assert a.database.collection("docs").count() == 13
    with contextlib.closing(vecstore.open(str(tmp_path / "c"))) as database:
        assert isinstance(database, EmbeddedDatabase)
        state = Durable("standby", rejoin=RejoinState("reset", b.id))
        Driver(database.engine, wire.of("c"), a.contents, state)  # it has not taken a step
        assert database.engine.reads_held


def test_a_rejoin_sets_the_points_where_a_slot_alone_knows_the_fork(
    pair: tuple[Member, Member, Wire], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log that the slot held begins behind the fork: no snapshot is taken, and nothing stays but the export."""
    a, b, wire = pair
    b.wait(lambda: [slot.lsn for slot in a.driver.state.slots] == [a.driver.log.tip.lsn])
    wire.is_cut = True
    fork_lsn = b.driver.log.tip.lsn
    for _ in range(4):
        a.put(5)
        a.database.checkpoint()
    assert a.driver.log.first_lsn == fork_lsn + 1 and a.driver.log.chain(fork_lsn) is None
    assert b.driver.command(Promote(1, force=True), 10.0)[0]
    monkeypatch.setattr(b.contents, "snapshot", lambda: pytest.fail("a snapshot was taken"))
    b.wait(lambda: b.database.status()["writable"])
    b.put(3)
    wire.is_cut = False
    a.wait(lambda: a.driver.state.role == "fenced")
    assert a.driver.command(Rejoin(b.id), 10.0)[0]
    a.wait(lambda: a.driver.state.rejoin is None and a.driver.log.applied_lsn == b.driver.log.tip.lsn)
    a.wait(lambda: a.folders() == {"diverged"})
    assert a.database.collection("docs").count() == 13
    assert a.database.verify()["ok"]


def test_a_standby_that_has_no_room_acknowledges_and_obeys(
    pair: tuple[Member, Member, Wire], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records wait with who brings them: the driver hears the primary meanwhile, and can be promoted."""
    a, b, _ = pair
    monkeypatch.setattr(b.database.engine, "memory_bytes", lambda: 1 << 60)
    a.put(5)
    b.wait(lambda: b.driver.inflow.why)
    b.wait(lambda: any("records of the primary are held back: memory" in alarm.text for alarm in b.driver.alarms))
    b.wait(lambda: getattr(b.driver.member.part, "seen_lsn", 0) == a.driver.log.durable_lsn)
    assert b.driver.member.status == "following"
    done, text = b.driver.command(Promote(1), 10.0)
    assert not done and "lacks at least 1 records" in text
