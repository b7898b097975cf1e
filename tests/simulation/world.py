"""The world of a simulation: time, network, clients, faults; one seed decides all of it.

Nothing here reads a clock or a global generator, so a seed is a history: run again, it is the same, to the byte.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from vecstore.record import NO_REQUEST, Kind, Record, Token
from vecstore.replication.durable import Durable
from vecstore.replication.epochs import Claim, Identity
from vecstore.replication.messages import Frame
from vecstore.storage.catalog import Epoch

from .checks import Checks, Violation
from .client import Client
from .disk import Disk, SimLog
from .node import Node, Write, fresh_disk

__all__ = ["Network", "Violation", "World"]

LINEAGE, SECRET = b"L" * 16, b"the secret of the lineage"
NOTES_MAX = 400


@dataclass
class Network:
    """How bad the network is.

    Attributes
    ----------
    is_ordered
        Messages of one direction arrive in order, as in one connection.
    """

    lost: float = 0.0
    twice: float = 0.0
    slow: float = 0.0
    flipped: float = 0.0
    is_ordered: bool = True
    cut: set[tuple[str, str]] = field(default_factory=set)


class World:
    """A few stores, a network, clients, and the time that they live in."""

    def __init__(self, seed: int, stores: str = "ab", *, network: Network | None = None) -> None:
        self.seed, self.rng = seed, random.Random(seed)
        self.now_s = 0.0
        self.events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self.count = 0
        self.notes: list[tuple[Any, ...]] = []
        self.seen: Counter[str] = Counter()
        self.alarms: list[tuple[str, str]] = []
        self.network = network or Network()
        self.last_arrival: dict[tuple[str, str], float] = {}
        self.crash_share = 0.0
        self.failing_share = 0.0
        self.slow_max_s = 0.5
        self.retained = 40
        self.secrets = {LINEAGE: SECRET}
        self.epochs: set[tuple[int, str]] = set()
        self.went_back: set[str] = set()
        self.archive: dict[int, dict[bytes, Record]] | None = None
        self.checks = Checks(self)
        self.nodes: dict[str, Node] = {}
        self.clients: dict[str, Client] = {}
        for store_id in stores:
            self._add_first(store_id) if not self.nodes else self.add_standby(store_id, stores[0])

    # -- making it ---------------------------------------------------------------------------------------------------

    def _add_first(self, store_id: str) -> None:
        """Add the first store, which creates the lineage: epoch 1 is its first record."""
        log = SimLog(LINEAGE)
        epoch = Epoch(1, "first", 0, log.tip.chain.hex())
        claim = Claim.of(Identity(LINEAGE, SECRET, store_id), epoch)
        durable = Durable("primary", claim)
        node = Node(self, store_id, f"region-{store_id}", Disk(log, durable, durable))
        self.epochs.add((1, "first"))
        record = log.make(Kind.EPOCH, msgspec.json.encode(epoch), NO_REQUEST, (node.clock.wall_us(),) * 2, 1)
        self.checks.written(node, record)
        log.append(record)
        log.sync()
        self.checks.durable(node)
        self._add(node)

    def add_standby(self, store_id: str, primary: str, lineage: bytes = LINEAGE) -> Node:
        """Add an empty store that follows another."""
        node = Node(self, store_id, f"region-{store_id}", fresh_disk(lineage, primary))
        return self._add(node)

    def _add(self, node: Node) -> Node:
        node.slot = node.region
        node.synchronous = "region-b" if node.store_id == "a" else "region-a"
        self.nodes[node.store_id] = node
        node.start()
        return node

    def add_copy(self, store_id: str, original: str) -> Node:
        """Copy a store's directory, as it is on disk, and start the copy."""
        disk = self.nodes[original].disk
        log, synced, checkpoint = disk.image()
        copy = Disk(log, synced, synced, checkpoint)
        copy.exports.records.update(disk.exports.records)
        node = Node(self, store_id, f"region-{store_id}", copy, is_copied=True)
        return self._add(node)

    def add_client(self, name: str, stores: str, **options: Any) -> Client:
        """Add a client that knows some stores."""
        client = Client(self, name, list(stores), **options)
        self.clients[name] = client
        return client

    # -- time --------------------------------------------------------------------------------------------------------

    def later(self, delay_s: float, function: Callable[..., None], *arguments: Any) -> None:
        """Call a function after a while."""
        self.count += 1
        heapq.heappush(self.events, (self.now_s + delay_s, self.count, function, arguments))

    def run(self, duration_s: float, until: Callable[[], bool] | None = None) -> bool:
        """Let time pass; returns whether the condition came true."""
        end_s = self.now_s + duration_s
        while self.events and self.events[0][0] <= end_s:
            self.now_s, _, function, arguments = heapq.heappop(self.events)
            function(*arguments)
            if until is not None and until():
                return True
        self.now_s = end_s
        return until() if until is not None else True

    def slow_s(self) -> float:
        """Return how long something long takes: snapshots, installing, exporting."""
        return self.rng.random() ** 2 * self.slow_max_s

    def note(self, what: str, *details: Any) -> None:
        """Remember what happened, for the history of a run that fails."""
        self.seen[what] += 1
        self.notes.append((self.now_s, what, *details))
        if len(self.notes) > NOTES_MAX:
            del self.notes[: NOTES_MAX // 4]

    def history(self) -> str:
        """Return what happened last, as text."""
        lines = [f"{note[0]:9.3f} {note[1]:9s} {' '.join(map(_short, note[2:]))}" for note in self.notes]
        stores = [
            f"{node.store_id}: {node.status} {node.log.epochs[-1:]} first {node.log.first_lsn} tip {node.log.tip.lsn}"
            f" durable {node.log.durable_lsn} {_short(node.disk.written)}"
            for node in self.nodes.values()
        ]
        return "\n".join((f"seed {self.seed}", *lines, *stores))

    # -- network -----------------------------------------------------------------------------------------------------

    def send(self, sender: str, to: str, message: Any) -> None:
        """Send a message between stores; now and then a bit flips in a frame."""
        if self.network.flipped and isinstance(message, Frame) and self.rng.random() < self.network.flipped:
            message = msgspec.structs.replace(message, records=tuple(map(_flipped, message.records)))
        self._carry(sender, to, self._arrive, sender, to, message)

    def _carry(self, sender: str, to: str, function: Callable[..., None], *arguments: Any) -> None:
        network, rng = self.network, self.rng
        if (sender, to) in network.cut or (network.lost and rng.random() < network.lost):
            return
        for _ in range(2 if network.twice and rng.random() < network.twice else 1):
            delay_s = 0.002 + rng.random() * 0.03
            if network.slow and rng.random() < network.slow:
                delay_s += rng.random() * 8
            arrival_s = self.now_s + delay_s
            if network.is_ordered:
                arrival_s = max(arrival_s, self.last_arrival.get((sender, to), 0.0))
                self.last_arrival[(sender, to)] = arrival_s
            self.later(arrival_s - self.now_s, function, *arguments)

    def _arrive(self, sender: str, to: str, message: Any) -> None:
        node = self.nodes.get(to)
        if node is not None and (sender, to) not in self.network.cut:
            node.when_running(node.receive, sender, message)

    def cut(self, one: str, other: str, *, both: bool = True) -> None:
        """Cut the network from one store to another."""
        self.network.cut.add((one, other))
        if both:
            self.network.cut.add((other, one))

    def heal(self) -> None:
        """Mend the network."""
        self.network.cut.clear()

    # -- clients -----------------------------------------------------------------------------------------------------

    def call(self, client: str, to: str, write: Write, attempt: int) -> None:
        """Carry a write to a store."""
        node = self.nodes[to]
        self._carry(client, to, node.when_running, node.write, write, attempt)

    def call_read(self, client: str, to: str, token: Token | None) -> None:
        """Carry a read to a store."""
        node = self.nodes[to]
        self._carry(client, to, node.when_running, node.read, client, token)

    def answer(self, node: Node, write: Write, attempt: int, outcome: str, value: Any = None) -> None:
        """Carry the answer of a write to its client."""
        if write.client in self.clients:
            client = self.clients[write.client]
            self._carry(node.store_id, write.client, client.answered, write, attempt, outcome, value)

    def answer_read(self, node: Node, client: str, token: Token | None, held: bool | None) -> None:
        """Carry the answer of a read to its client."""
        if client in self.clients:
            self._carry(node.store_id, client, self.clients[client].read_answered, token, held)

    # -- faults ------------------------------------------------------------------------------------------------------

    def restart_later(self, node: Node, delay_s: float | None = None) -> None:
        """Start a process again after a while."""

        def start() -> None:
            if not node.is_up:
                node.start()

        self.later(self.rng.random() * 6 if delay_s is None else delay_s, start)

    def put_back(self, node: Node, image: Any) -> None:
        """Put a disk back to an image of it, as a wrong restore does; the process is down."""
        assert not node.is_up
        self.note("put back", node.store_id, image[0].tip.lsn, node.log.tip.lsn)
        self.checks.went_back(node, image[0])
        self.went_back.add(node.store_id)
        node.disk.restore(image)

    def cut_log(self, node: Node, retained: int | None = None) -> None:
        """Cut a log as a checkpoint allows: below every slot, but no further back than retention."""
        if node.member is not None and node.member.holds_log:
            return
        slots = [slot.lsn for slot in node.disk.written.slots]
        lsn = max(
            min([*slots, node.log.durable_lsn]),
            node.log.durable_lsn - (self.retained if retained is None else retained),
        )
        if lsn > node.log.base.lsn:
            node.log.cut(lsn)
            self.note("cut log", node.store_id, lsn)

    # -- the archive -------------------------------------------------------------------------------------------------

    def archive_from(self, node: Node) -> None:
        """Let a primary archive what is durable."""
        if self.archive is not None and node.is_up and node.disk.synced.role == "primary":
            for record in node.log.records[: node.log.durable_lsn - node.log.base.lsn]:
                self.archive.setdefault(record.lsn, {})[record.mark.chain] = record

    def archived(self, after_lsn: int) -> Iterator[Record]:
        """Iterate over archived records after an LSN, of whichever branch comes first: the member must choose."""
        lsn, chain = after_lsn + 1, None
        while self.archive is not None and lsn in self.archive and lsn < after_lsn + 60:
            records = list(self.archive[lsn].values())
            fitting = [
                record for record in records if chain is None or self.checks.born[record.mark.chain].parent == chain
            ]
            record = self.rng.choice(fitting or records)
            yield record
            lsn, chain = lsn + 1, record.mark.chain

    # -- looking -----------------------------------------------------------------------------------------------------

    def own(self) -> list[Node]:
        """Return the stores of the lineage that are no copies."""
        return [node for node in self.nodes.values() if node.log.lineage == LINEAGE and not node.is_copied]

    def primary(self) -> Node | None:
        """Return the open primary of the highest epoch."""
        found = [node for node in self.own() if node.status == "open"]
        return max(found, key=lambda node: node.log.epochs[-1].number, default=None)


def _flipped(record: Record) -> Record:
    """Return a record of which a byte of the body is another one."""
    body = record.body
    return replace(record, parts=(body[:-1] + bytes([body[-1] ^ 1]),))


def _short(value: Any) -> str:
    text = repr(value) if not isinstance(value, str) else value
    return text if len(text) < 300 else text[:300] + "..."
