"""The histories of docs/replication.md with real processes, by their numbers; A is the old primary, B its standby.

The simulator has all of them with every interleaving that a seed can find (tests/simulation/test_histories.py). Here
stand those that need processes, disks and connections to be believed, and that no other module has:

== ======================================== ==========================================================================
1  the stalled attempt                      here; `test_clients` (retried on the other side)
2  a standby again; a disk rolled back      here (B's log cut); `test_failover` (rejoin), `test_runbooks` (rolled back)
3  back as primary                          here (B out of reach); `test_failover` (asks, and is fenced or follows)
4  strangers                                here
5  a copy                                   here (both served); `test_commands` (adopt)
6  switchover with a crash                  here; `test_commands`, `test_clients` (without)
7  a token of a lost write                  here (the fork); `test_clients`
8  B dies during the rejoin                 here
9  the log behind the fork was cut          here
10 promotion races calls in flight          here; `test_history`
11 two promotions                           `test_runbooks`; here, slow (of two standbys, none of which was the primary)
12 power loss                               `test_faults_apart`
13 clocks                                   `test_faults_apart`; `test_runbooks` (a clock that jumps)
14 a lost slot                              `test_too_far_behind`; `test_replicated` (a snapshot)
== ======================================== ==========================================================================
"""

from __future__ import annotations

import contextlib
import random
import shutil
import signal
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vecstore
from tests.support.proxy import proxied
from vecstore import request
from vecstore.backup.plan import Target
from vecstore.backup.repository import Repository
from vecstore.backup.restore import restore
from vecstore.client.remote import connect
from vecstore.engine.contents.diverged import Summary, differing, exports, rows
from vecstore.engine.database import EmbeddedDatabase
from vecstore.engine.recovery import LogReader
from vecstore.errors import NotFound, VecstoreError, WriteLost
from vecstore.replication.epochs import Claim, Identity, Standing
from vecstore.replication.messages import Answer, Call, Message, SteppedDown, YieldRequest
from vecstore.server.follow import Links, Self
from vecstore.server.peers import AddressBook
from vecstore.server.reach import Reach
from vecstore.server.settings import ReplicationSettings
from vecstore.storage.catalog import Epoch

from .stores import WAIT_S, Store, eventually, following, put, vecstore_command
from .test_failover import pair
from .test_follow import counts, digest, refused
from .test_replicated import SMALL
from .test_too_far_behind import LARGE

ONE = np.ones((1, 4), np.float32)


def payload(store: Store, id: int) -> Any:
    """Return the payload of a point at a store."""
    with store.database() as database:
        return database.collection("docs").get([id])[0].payload


def part(a: Store, b: Store, *, first: int = 1_000, calls: int = 3) -> list[str]:
    """Let A write what B does not get, and die; promote B, which writes on. Return the tokens of what A wrote alone."""
    b.stop()
    with a.database() as database:
        tokens = [put(database, first + 10 * i, 10) for i in range(calls)]
    a.kill()
    b.start()
    verdict = b.command("promote", force=True)
    assert verdict.done, verdict.text
    return tokens


def exported(store: Store) -> tuple[Summary, list[dict[str, Any]]]:
    """Return the one export of a store, and its rows."""
    (summary,) = exports(str(store.folder))
    found = [row for left in summary.collections for row in rows(str(store.folder), summary.name, left.number)]
    return summary, found


# -- 1: the stalled attempt ------------------------------------------------------------------------------------------


def test_01_an_attempt_that_stalls_in_the_network_and_one_in_the_process(tmp_path: Path) -> None:
    """Three attempts of one write and a later write of the point: the first counts, here and after a failover."""
    name, answers = b"0123456789abcdef", dict[str, int]()

    def attempt(which: str, database: vecstore.Database) -> threading.Thread:
        def run() -> None:
            with request.use(name):
                answers[which] = database.collection("docs").upsert([7], ONE, [{"n": 1}]).lsn

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    with pair(tmp_path) as (a, b), proxied(a.address) as proxy:
        with connect([proxy.address], timeout=WAIT_S) as slow, a.database() as direct:
            for database in (slow, direct):
                assert database.collection("docs").count() == 100
            proxy.requests.clear()
            in_network = attempt("network", slow)
            a.signal(signal.SIGSTOP)
            in_process = attempt("process", direct)
            a.signal(signal.SIGCONT)
            in_process.join()
            direct.collection("docs").upsert([7], ONE, [{"n": 2}])
            assert "network" not in answers
            proxy.requests.set()
            in_network.join()
            assert payload(a, 7) == {"n": 2}
        following(a, b)
        a.kill()
        assert b.command("promote").done
        with b.database() as database:
            attempt("other side", database).join()
        assert len(answers) == 3 and len(set(answers.values())) == 1
        assert payload(b, 7) == {"n": 2}


# -- 2: a standby again ----------------------------------------------------------------------------------------------


def test_02_what_a_alone_has_is_exported_though_b_cut_its_log(tmp_path: Path) -> None:
    """B holds no record of the fork any more: A's tail is exported whole, and then a snapshot takes its place."""
    with pair(tmp_path, of_b=SMALL) as (a, b):
        tokens = part(a, b)
        with b.database() as database:
            for i in range(4):
                put(database, 10_000 + 1_000 * i, 1_000)
            fork_lsn = b.describe()["epochs"][-1]["fork_lsn"]
            eventually(lambda: {"first": first_lsn(b)}, lambda found: found["first"] > fork_lsn + 1)
            token = put(database, 20_000, 1)
        a.start("--standby-of", b.address)
        a.wait(lambda found: found["role"] == "standby" and found["rejoin"] is None and found["status"] == "following")
        assert counts(a, token) == 4_101
        assert digest(a) == digest(b)
        summary, found = exported(a)
        assert summary.is_complete and summary.records == len(tokens)
        assert sorted(row["id"] for row in found) == list(range(1_000, 1_030))


def first_lsn(store: Store) -> int:
    """Return the first record that a store's log holds, read beside its server."""
    with vecstore.open(str(store.folder), read_only=True) as database:
        assert isinstance(database, EmbeddedDatabase)
        first = next(iter(LogReader(database.engine.store).records(0)), None)
        return database.engine.state.fold.tip.lsn + 1 if first is None else first.lsn


# -- 3: back as primary ----------------------------------------------------------------------------------------------


def test_03_with_b_out_of_reach_a_opens_alone_and_is_fenced_once_b_reaches_it(tmp_path: Path) -> None:
    """An alarm says that nobody was heard; B, paused meanwhile, calls A as soon as it goes on."""
    with pair(tmp_path, of_a={"VECSTORE_SERVER_REPLICATION_START_ALONE_AFTER_S": "1"}) as (a, b):
        a.kill()
        assert b.command("promote", replaces=1).done
        b.signal(signal.SIGSTOP)
        a.start()
        assert not a.describe()["accepts_writes"]
        found = a.wait(lambda found: found["accepts_writes"])
        assert any("without having heard" in alarm["text"] for alarm in found["alarms"])
        with a.database() as database:
            alone = put(database, 500, 10)
        b.signal(signal.SIGCONT)
        a.wait(lambda found: found["role"] == "fenced")
        a.wait(lambda found: any(alarm["text"].startswith("fenced: ") for alarm in found["alarms"]))
        assert refused(a).primary == b.address
        assert counts(a, alone) == 110
        assert [store.describe()["accepts_writes"] for store in (a, b)] == [False, True]


# -- 4: strangers ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def stranger(identity: Identity, store: Store, shown: Mapping[str, Message] | None = None) -> Iterator[list[str]]:
    """Link to a store as another one, and say something; the list says why the link ended, once it has."""
    ended: list[str] = []
    me = Self(identity.store_id, identity.lineage, "nowhere", lambda: "127.0.0.1:1")
    links = Links(me, AddressBook(), Reach(ReplicationSettings()), lambda _from, _message: None)

    def run() -> None:
        try:
            links.connect(store.address)
        except VecstoreError as exc:
            ended.append(str(exc))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        for message in (shown or {}).values():
            links.send(store.describe()["store_id"], message)
        yield ended
    finally:
        links.close()
        thread.join()


def test_04_a_claim_that_no_store_signed_fences_nobody(tmp_path: Path) -> None:
    """A guess at the secret is an alarm; a side restore is of another lineage, and is not linked."""
    with pair(tmp_path, of_a={"VECSTORE_SERVER_REPLICATION_SYNCHRONOUS": "west"}) as (a, b):
        before = a.describe()
        guess = Identity(bytes.fromhex(before["lineage"]), b"guessed", "f" * 32)
        claim = Claim.of(guess, Epoch(9, "s", 0, ""))
        standing = Standing(guess.lineage, guess.store_id, "", (), 0, b"", b"")
        said: dict[str, Message] = {
            "call": Call(1, claim, standing),
            "answer": Answer(1, claim, standing),
            "yield": YieldRequest(1, standing),
            "stepped down": SteppedDown(1, standing),
        }
        for store in (a, b):
            with stranger(guess, store, said):
                store.wait(
                    lambda found: sum("no store of this lineage" in each["text"] for each in found["alarms"]) == 4
                )
        repository, side = str(tmp_path / "repository"), str(tmp_path / "side")
        b.stop()
        with vecstore.open(str(b.folder)) as database:
            database.snapshot(repository)
        b.start()
        restore(Repository(repository), side, Target())
        with vecstore.open(side) as database:
            assert isinstance(database, EmbeddedDatabase)
            engine = database.engine
            mine = Identity(engine.lineage, engine.identity_secret, engine.directory.store_id.hex())
        with stranger(mine, a) as ended:
            eventually(lambda: {"ended": ended}, lambda found: found["ended"])
        assert "lineage" in ended[0]
        with a.database() as database:
            written = database.collection("docs").upsert([100], ONE, ack="replicated", timeout=WAIT_S)
        assert written.ack == "replicated"
        after = a.describe()
        assert [(found["status"], found["epoch"], found["peers"]) for found in (before, after)] == [
            ("open", 1, before["peers"])
        ] * 2


# -- 5: a copy -------------------------------------------------------------------------------------------------------


def test_05_a_copy_is_silent_until_it_is_told_what_it_is(tmp_path: Path) -> None:
    """Both are served: one writes. Told that it moved, the copy writes, and the original is fenced through B."""
    with pair(tmp_path) as (a, b):
        a.stop()
        copy = Store(tmp_path / "copy", "--region", "north", "--slot", "north")
        shutil.copytree(a.folder, copy.folder)
        a.start()
        with copy.running():
            found = copy.describe()
            assert (found["status"], found["accepts_writes"], found["role"]) == ("copied", False, "primary")
            assert counts(copy, None) == 100
            refused(copy)
            for command in ("promote", "step-down"):
                assert "adopt" in copy.command(command).text
            a.wait(lambda found: found["accepts_writes"])
            with a.database() as database:
                token = put(database, 100, 10)
            assert counts(b, token) == 110
            assert found["store_id"] != a.describe()["store_id"]
            assert found["store_id"] not in b.describe()["peers"]
        assert vecstore_command("adopt", str(copy.folder), "--moved")["epoch"] == 2
        with copy.running():
            copy.wait(lambda found: found["accepts_writes"])
            a.wait(lambda found: found["role"] == "fenced")
            assert [row["number"] for row in copy.describe()["epochs"]] == [1, 2]


# -- 6: switchover ---------------------------------------------------------------------------------------------------


def switched(rng: random.Random, a: Store, b: Store, victim: str) -> tuple[Store, Store]:
    """Hand over from A to B while one of them, or the command, dies; return who writes then and who follows."""
    following(a, b)
    target, dies = b.describe()["store_id"], {"a": a, "b": b}.get(victim)
    dying = threading.Timer(rng.uniform(0.0, 0.06), lambda: None if dies is None else dies.signal(signal.SIGKILL))
    dying.start()
    with contextlib.suppress(VecstoreError):
        a.command("switchover", target=target, timeout_s=0.01 if victim == "command" else 2.0)
    dying.join()
    if dies is not None:
        dies.kill()
        dies.start()
    return settled(a, b)


def settled(a: Store, b: Store) -> tuple[Store, Store]:
    """Wait until one of two stores writes and the other follows it; return them in this order."""

    def words(store: Store) -> str:
        found = store.describe()
        return "open" if found["accepts_writes"] else str(found["status"])

    found = eventually(
        lambda: {"a": words(a), "b": words(b)}, lambda found: sorted(found.values()) == ["following", "open"]
    )
    return (a, b) if found["a"] == "open" else (b, a)


def die_handing(a: Store, b: Store) -> None:
    """Let A die between its handover and B's epoch: it starts without taking writes, and B, paused, takes over."""
    b.signal(signal.SIGSTOP)
    assert a.command("switchover", target="west").done
    a.kill()
    a.start()
    assert (a.describe()["status"], a.describe()["accepts_writes"]) == ("handing", False)
    b.signal(signal.SIGCONT)
    b.wait(lambda found: found["accepts_writes"])
    a.wait(lambda found: found["status"] == "following")


def check_switchovers(path: Path, seed: int, rounds: int) -> None:
    """Hand over again and again, each time with a death; nothing that was acknowledged is lost."""
    rng = random.Random(seed)
    with pair(path) as (a, b):
        die_handing(a, b)
        writer, other = settled(a, b)
        # A command whose caller is gone may still be taken: writes follow the primary wherever it is.
        with connect([a.address, b.address], timeout=WAIT_S) as client:
            for number in range(rounds):
                put(client, 1_000 + 10 * number, 10)
                writer, other = switched(rng, writer, other, ("a", "b", "command")[number % 3])
                token = put(client, 100_000 + number, 1)
                assert counts(other, token) == counts(writer, token) == 111 + 11 * number
                writer, other = settled(a, b)
        assert digest(a) == digest(b)
        assert a.describe()["epochs"] == b.describe()["epochs"]
        assert not (a.folder / "diverged").exists() and not (b.folder / "diverged").exists()


def test_06_switchover_with_a_death(tmp_path: Path, seed: int) -> None:
    """A, B or the command dies at some moment: one writer, nothing lost, finished or undone without the command."""
    check_switchovers(tmp_path, seed, 2)


@pytest.mark.slow
def test_06_switchover_with_a_death_at_many_moments(tmp_path: Path, seed: int) -> None:
    """The same, twelve times."""
    check_switchovers(tmp_path, seed, 12)


# -- 7: a token of a lost write --------------------------------------------------------------------------------------


def test_07_a_lost_token_says_where_the_histories_part(tmp_path: Path) -> None:
    """Whether B's log has come to the token's LSN or not: `WriteLost` with the fork, told to a remote client."""
    with pair(tmp_path) as (a, b):
        tokens = part(a, b)
        fork = b.describe()["epochs"][-1]["fork_lsn"]
        with b.database() as database:
            for shorter in (True, False):
                for token in tokens[1:] if shorter else tokens:
                    with pytest.raises(WriteLost) as caught:
                        database.collection("docs").count(after=token)
                    assert caught.value.details["fork_lsn"] == fork
                    with pytest.raises(WriteLost):
                        database.wait(token, timeout=5)
                for _ in tokens:
                    put(database, 5_000, 1)
            assert counts(b, None) == 101


# -- 8: B dies during the rejoin -------------------------------------------------------------------------------------


def half_way(a: Store, b: Store, hold: Path) -> None:
    """Let A rejoin B up to the moment at which the points that it touched are to be read."""
    a.environment = {**a.environment, "BENT_HOLD": f"reset:{hold}"}
    a.start("--standby-of", b.address)
    eventually(lambda: {"held": hold.exists()}, lambda found: found["held"])


def test_08_a_rejoin_that_cannot_end_is_aborted(tmp_path: Path) -> None:
    """B is gone for good: A is again the fenced store that it was, with all that it wrote, and can be promoted."""
    with pair(tmp_path) as (a, b):
        (lost,) = part(a, b, calls=1)
        half_way(a, b, tmp_path / "held")
        b.kill()
        assert not a.describe()["serves_reads"]
        a.kill()
        assert vecstore_command("rejoin", str(a.folder), "--abort")["role"] == "fenced"
        a.start()
        found = a.describe()
        assert (found["role"], found["rejoin"]) == ("fenced", None)
        assert counts(a, lost) == 110
        assert not a.command("promote").done
        assert a.command("promote", force=True).done
        with a.database() as database:
            put(database, 200, 1)
        assert counts(a, lost) == 111


def test_08_a_rejoin_goes_on_when_b_is_back(tmp_path: Path) -> None:
    """B was away while points were fetched from it: that is tried again, and aborted while it is tried."""
    with pair(tmp_path) as (a, b):
        part(a, b, calls=1)
        hold = tmp_path / "held"
        half_way(a, b, hold)
        b.kill()
        hold.unlink()
        found = a.wait(lambda found: any("reset failed" in alarm["text"] for alarm in found["alarms"]))
        assert (found["problem"], found["rejoin"]["phase"]) == ("", "reset")
        b.start()
        released = threading.Event()

        def release() -> None:
            while not released.wait(0.02):
                hold.unlink(missing_ok=True)

        releasing = threading.Thread(target=release)
        releasing.start()
        try:
            a.wait(lambda found: found["rejoin"] is None and found["status"] == "following")
        finally:
            released.set()
            releasing.join()
        assert digest(a) == digest(b)


# -- 9: the log behind the fork was cut ------------------------------------------------------------------------------


def test_09_what_the_log_no_longer_holds_is_exported_as_far_as_it_is_known(tmp_path: Path) -> None:
    """Live points newer than the fork, marked incomplete, and the ids that differ: also those that A had deleted."""
    with pair(tmp_path, of_a=SMALL) as (a, b):
        b.stop()
        with a.database() as database:
            database.collection("docs").delete(ids=[0, 1])
            for _ in range(4):
                database.collection("docs").upsert(range(1_000, 1_010), np.ones((10, 4), np.float32), LARGE)
        a.wait(lambda found: found["slots"][0]["is_lost"])
        a.kill()
        b.start()
        assert b.command("promote", force=True).done
        with b.database() as database:
            token = put(database, 50, 100)
        a.start("--standby-of", b.address)
        a.wait(lambda found: found["rejoin"] is None and found["status"] == "following")
        assert counts(a, token) == 150
        assert digest(a) == digest(b)
        summary, found = exported(a)
        assert not summary.is_complete
        assert {row["id"] for row in found} == set(range(1_000, 1_010))
        ids = {line["id"]: (line["here"], line["there"]) for line in differing(str(a.folder), summary.name)}
        assert {0, 1, 50, 149, 1_000, 1_009} <= set(ids)


# -- 10: promotion races calls in flight -----------------------------------------------------------------------------


def write_until_refused(store: Store, first: int, told: dict[int, tuple[str, str]], begun: threading.Barrier) -> None:
    """Write to a store until a call fails; note what each was told, and by what it can be asked for."""
    with connect([store.address], timeout=1.0) as client:
        docs, id = client.collection("docs"), first
        begun.wait()
        while told.get(id - 1, ("done", ""))[0] == "done":
            try:
                docs.upsert([id], ONE)
                told[id] = ("done", "")
            except VecstoreError as exc:
                told[id] = (exc.outcome, exc.details.get("token") or exc.details.get("request_id", ""))
            id += 1


def test_10_each_call_in_flight_is_done_refused_or_unknown(tmp_path: Path) -> None:
    """What is done is in the new history, what was refused is not, and what is unknown is settled by `wait`."""
    told, begun = dict[int, tuple[str, str]](), threading.Barrier(7)
    with pair(tmp_path) as (a, b):
        writers = [threading.Thread(target=write_until_refused, args=(a, 10_000 * i, told, begun)) for i in range(1, 7)]
        for writer in writers:
            writer.start()
        begun.wait()
        eventually(lambda: {"told": len(told)}, lambda found: found["told"] > 20)
        verdict = b.command("promote", replaces=1)
        assert verdict.done, verdict.text
        for writer in writers:
            writer.join()
        with connect([a.address, b.address], timeout=WAIT_S) as client:
            token = put(client, 500, 1)
            there = {point.id for point in client.collection("docs").get(sorted(told), after=token)}
            for id, (outcome, handle) in sorted(told.items()):
                if outcome == "unknown":
                    assert handle
                    try:
                        client.wait(handle, timeout=5)
                        assert id in there
                    except (NotFound, WriteLost):
                        assert id not in there
                else:
                    assert outcome in ("done", "refused")
                    assert (outcome == "done") == (id in there), (id, outcome)


# -- 11: two promotions ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_11_two_standbys_are_promoted_to_one_number(tmp_path: Path) -> None:
    """Each was out of the other's reach: at the first contact both stop, one is promoted higher, the other rejoins."""
    with pair(tmp_path) as (a, b):
        c = Store(tmp_path / "c", "--region", "north", "--standby-of", a.address, "--slot", "north")
        with c.running():
            for store in (b, c):
                following(a, store)
                store.wait(lambda found: len(found["peers"]) > 1)
            a.kill()
            for i, (mine, other) in enumerate(((b, c), (c, b))):
                other.signal(signal.SIGSTOP)
                mine.signal(signal.SIGCONT)
                assert mine.command("promote", replaces=1).done
                with mine.database() as database:
                    put(database, 1_000 * (i + 1), 10)
            b.signal(signal.SIGCONT)
            for store in (b, c):
                found = store.wait(lambda found: found["role"] == "fenced")
                assert "claims epoch 2 too" in found["reason"]
            assert b.command("promote").done
            with b.database() as database:
                token = put(database, 5_000, 10)
            assert c.command("rejoin", primary=b.address).done
            c.wait(lambda found: found["rejoin"] is None and found["status"] == "following")
            assert counts(c, token) == counts(b, token) == 120
            assert digest(b) == digest(c)
            summary, left = exported(c)
            assert summary.is_complete
            assert sorted(row["id"] for row in left) == list(range(2_000, 2_010))
