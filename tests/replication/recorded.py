"""Clients that write and read over two Regions and record what they were told, and what must hold of it in the end.

Each write is of a point of its own and of the client's register, in one call. So every write can be looked for in the
end, a register that goes back is seen, and so is half a write.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence

from vecstore.api import Database
from vecstore.client.remote import connect
from vecstore.engine.contents.diverged import exports, rows
from vecstore.errors import VecstoreError, WriteLost
from vecstore.record import Token
from vecstore.values import Ack

from .stores import Store, put
from .test_follow import counts, digest

__all__ = ["Client", "Recording", "check", "recording"]

FIRST, STEP = 100_000, 100_000
TIMEOUT_S = 4.0


class Client:
    """One writer, that reads its own writes from either store; it keeps what it was told.

    Parameters
    ----------
    register
        The point that all of its writes write; the others come behind it.
    ack
        What it waits for.

    Attributes
    ----------
    acknowledged
        The token of each write, by its number.
    stale
        What was read after a write and is not what it wrote.
    """

    def __init__(self, register: int, ack: Ack, addresses: Sequence[str], is_over: threading.Event) -> None:
        self.register, self.ack, self.addresses, self.is_over = register, ack, list(addresses), is_over
        self.acknowledged: dict[int, str] = {}
        self.stale: list[str] = []
        self.errors: list[str] = []
        self.tried = self.reads = self.lost = 0
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
                connect(self.addresses, timeout=TIMEOUT_S) as writer,
                connect(self.addresses, read_from="any", timeout=TIMEOUT_S) as reader,
            ):
                while not self.is_over.wait(0.01):
                    self.tried += 1
                    try:
                        self._write(writer, reader)
                    except VecstoreError as exc:
                        self.errors.append(f"{type(exc).__name__}: {exc}")
        except BaseException as exc:  # noqa: BLE001 - told by whoever waits for this thread
            self.failed = exc

    def _write(self, writer: Database, reader: Database) -> None:
        number = self.tried
        ids, vectors = [self.register, self.register + number], [[number, 0, 0, 0], [number, 1, 0, 0]]
        written = writer.collection("docs").upsert(ids, vectors, ack=self.ack)
        self.acknowledged[number] = written.token
        try:
            found = reader.collection("docs").get(ids, after=written.token, with_vector=True)
        except WriteLost:
            self.lost += 1
            return
        self.reads += 1
        seen = {point.id: int(point.vector[0]) for point in found if point.vector is not None}
        if seen != {self.register: number, self.register + number: number}:
            self.stale.append(f"write {number} was told as {written.token}, and read after it were {seen}")


class Recording:
    """Some clients at work."""

    def __init__(self, clients: Sequence[Client], is_over: threading.Event) -> None:
        self.clients, self._is_over = clients, is_over

    def acknowledged(self) -> list[int]:
        """Return how many writes of each client were acknowledged so far."""
        return [len(client.acknowledged) for client in self.clients]

    def end(self) -> None:
        """Let all end."""
        self._is_over.set()
        for client in self.clients:
            client.end()


def recording(stores: Iterable[Store], *acks: Ack, first: int = FIRST) -> Recording:
    """Begin a client for each kind of acknowledgement; the points of the first one begin at an id."""
    is_over, addresses = threading.Event(), [store.address for store in stores]
    made = Recording([Client(first + STEP * i, ack, addresses, is_over) for i, ack in enumerate(acks)], is_over)
    for client in made.clients:
        client.begin()
    return made


def exported(stores: Iterable[Store]) -> Iterator[int]:
    """Iterate over the ids in the exports of stores."""
    for store in stores:
        path = str(store.folder)
        for summary in exports(path):
            for left in summary.collections:
                for row in rows(path, summary.name, left.number):
                    yield row["id"]


def check(recorded: Recording, writer: Store, other: Store) -> None:
    """Assert that the history which lives holds what was acknowledged, or an export does, and both stores are equal.

    What was acknowledged as replicated is in the history that lives: a failover does not lose it.
    """
    left = set(exported((writer, other)))
    places: dict[tuple[int, int], str] = {}
    with writer.database() as database:
        token = put(database, 5_000, 1)
        docs = database.collection("docs")
        for client in recorded.clients:
            assert client.stale == []
            assert client.acknowledged and client.reads, client.errors
            numbers = {client.register + number: number for number in client.acknowledged}
            kept = {int(point.id) for point in docs.get(list(numbers), after=token)}
            lost = numbers.keys() - kept - (set() if client.ack == "replicated" else left)
            assert not lost, f"acknowledged as {client.ack} and neither kept nor exported: {sorted(lost)[:20]}"
            (register,) = docs.get([client.register], with_vector=True)
            assert register.vector is not None
            assert int(register.vector[0]) >= max(map(numbers.__getitem__, kept), default=0)
            for number, told in client.acknowledged.items():
                place = Token.decode(told)
                same = places.setdefault((place.epoch, place.lsn), told)
                assert same == told, f"epoch {place.epoch} has two writers: {same} and {told} (write {number})"
    assert counts(other, token) == counts(writer, token)
    assert digest(writer) == digest(other)
    assert writer.describe()["epochs"] == other.describe()["epochs"]
