"""Writers and readers over two Regions while processes are killed and paused and the writer changes: the history holds.

What was acknowledged is in the end in the history that lives, or in an export; no read after a token is older than what
its token named; no epoch has two writers; both stores end equal. The seed is in the run's header.
"""

from __future__ import annotations

import contextlib
import random
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

from vecstore.api import Database
from vecstore.client.remote import connect
from vecstore.engine.contents.diverged import exports, rows
from vecstore.errors import VecstoreError, WriteLost

from .stores import Store, put
from .test_failover import pair
from .test_follow import counts, digest

FIRST, STEP = 100_000, 100_000
STRIKES = 6
PAUSE_S = 0.6


class Client:
    """One writer, that reads its own writes from either store; it keeps what it was told.

    Parameters
    ----------
    first
        Its points are from here on, a new one for each write: so every write can be looked for in the end.
    """

    def __init__(self, first: int, addresses: list[str], is_over: threading.Event) -> None:
        self.first, self.addresses, self.is_over = first, addresses, is_over
        self.acknowledged: set[int] = set()
        self.stale: list[str] = []
        self.reads = self.lost = 0
        self.failed: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def begin(self) -> None:
        """Write and read until it is over."""
        self._thread.start()

    def end(self) -> None:
        """Wait until the last call has ended."""
        self._thread.join(60)
        assert not self._thread.is_alive()
        if self.failed is not None:
            raise self.failed

    def _run(self) -> None:
        try:
            with (
                connect(self.addresses, timeout=4) as writer,
                connect(self.addresses, read_from="any", timeout=4) as reader,
            ):
                id = self.first
                while not self.is_over.wait(0.01):
                    id += 1
                    with contextlib.suppress(VecstoreError):
                        written = writer.collection("docs").upsert([id], [[1, 2, 3, 4]])
                        self.acknowledged.add(id)
                        self._read(reader, id, written.token)
        except BaseException as exc:  # noqa: BLE001 - told by whoever waits for this thread
            self.failed = exc

    def _read(self, reader: Database, id: int, token: str) -> None:
        try:
            found = reader.collection("docs").get([id], after=token)
        except WriteLost:
            self.lost += 1
            return
        self.reads += 1
        if not found:
            self.stale.append(f"{id} was written and is not there, read after {token}")


def exported(stores: tuple[Store, Store]) -> Iterator[int]:
    """Iterate over the ids in the exports of both stores."""
    for store in stores:
        path = str(store.folder)
        for summary in exports(path):
            for left in summary.collections:
                for row in rows(path, summary.name, left.number):
                    yield row["id"]


def whole(a: Store, b: Store) -> tuple[Store, Store]:
    """Wait until one of two stores writes and the other follows it; return them in this order."""
    for store in (a, b):
        store.wait(
            lambda found: found["rejoin"] is None and (found["accepts_writes"] or found["status"] == "following"), 60
        )
    (writer,) = [store for store in (a, b) if store.describe()["accepts_writes"]]
    writer.wait(lambda found: any(slot["connected"] for slot in found["slots"]), 60)
    return writer, b if writer is a else a


def strike(rng: random.Random, writer: Store, other: Store) -> None:
    """Do something bad, and mend it."""
    assert writer.served is not None and other.served is not None
    match rng.choice(("kill", "pause", "failover", "failover", "switchover")):
        case "kill":
            victim = rng.choice((writer, other))
            victim.kill()
            victim.start()
        case "pause":
            paused = rng.choice((writer.served, other.served)).process
            paused.send_signal(signal.SIGSTOP)
            threading.Event().wait(PAUSE_S)
            paused.send_signal(signal.SIGCONT)
        case "failover":
            number = writer.describe()["epoch"]
            other.kill()
            threading.Event().wait(PAUSE_S)  # the writer goes on alone: this is what will be left behind
            writer.kill()
            other.start()
            verdict = other.command("promote", replaces=number, force=True)
            assert verdict.done, verdict.text
            writer.start("--standby-of", other.address)
        case "switchover":
            verdict = writer.command("switchover", target=other.address)
            assert verdict.done, verdict.text


def test_what_was_acknowledged_is_kept_or_exported(tmp_path: Path, seed: int) -> None:
    """Kills, pauses, failovers that leave records behind, and switchovers, under two clients."""
    rng, is_over = random.Random(seed), threading.Event()
    with pair(tmp_path) as (a, b):
        clients = [Client(FIRST + STEP * i, [a.address, b.address], is_over) for i in range(2)]
        for client in clients:
            client.begin()
        try:
            for _ in range(STRIKES):
                strike(rng, *whole(a, b))
            writer, other = whole(a, b)
        finally:
            is_over.set()
        for client in clients:
            client.end()
        with writer.database() as database:
            token = put(database, 5_000, 1)
            acknowledged = sorted(set().union(*(client.acknowledged for client in clients)))
            kept = {point.id for point in database.collection("docs").get(acknowledged, after=token)}
        assert acknowledged and set(acknowledged) <= kept | set(exported((a, b)))
        assert [client.stale for client in clients] == [[], []]
        assert sum(client.reads for client in clients) > 0
        assert counts(other, token) == counts(writer, token)
        assert digest(a) == digest(b)
        assert a.describe()["epochs"] == b.describe()["epochs"]
