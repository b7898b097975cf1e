"""The invariants, held against every step of a simulation.

The checks know what no store knows: every record that was ever written, by whom, whether it was ever durable there, and
what the fold gave. A `Violation` ends the run.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vecstore.record import NO_REQUEST, Kind, Record, Token
from vecstore.replication.durable import Durable
from vecstore.replication.epochs import Claim, Standing
from vecstore.replication.log import Place

if TYPE_CHECKING:
    from .disk import SimLog
    from .node import Node, Pending
    from .world import World


class Violation(AssertionError):
    """An invariant does not hold."""


@dataclass
class Born:
    """A record as it was written: the truth about it."""

    record: Record
    parent: bytes
    writer: str
    digest: int
    was_durable: bool = False


@dataclass
class Checks:
    """What is known of one simulation, and what must hold in it."""

    world: World
    born: dict[bytes, Born] = field(default_factory=dict)
    requests: dict[bytes, list[bytes]] = field(default_factory=dict)
    writers: dict[tuple[int, str], str] = field(default_factory=dict)
    learnt: dict[str, Claim] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)
    """stores that have seen that they lost synced records, and the writer of the epoch that they lost them of"""
    promised: dict[bytes, tuple[bytes, str]] = field(default_factory=dict)
    """chain of each acknowledged record: its request id, and the store that acknowledged it"""
    excused: set[bytes] = field(default_factory=set)
    """records that a disk which went back took with it"""

    def fail(self, invariant: str, text: str) -> None:
        """End the run."""
        raise Violation(f"{invariant}: {text}")

    # -- writing -----------------------------------------------------------------------------------------------------

    def written(self, node: Node, record: Record) -> None:
        """A writer appends a record of its own: one writer to an epoch, a request once in a history."""
        log, header = node.log, record.header
        if header.kind == Kind.EPOCH:
            epoch = (header.epoch, record.body.decode())
        else:
            last = log.epochs[-1]
            epoch = (last.number, last.writer)
            if node.disk.written.role != "primary":
                self.fail("I6", f"{node.store_id} writes {record.lsn} in the role {node.disk.written.role}")
        if self.writers.setdefault(epoch, node.store_id) != node.store_id:
            self.fail("I6", f"epoch {epoch} has two writers: {self.writers[epoch]} and {node.store_id}")
        if log.records and header.commit_time_us < log.last_commit_us:
            self.fail("clock", f"commit time of {record.lsn} goes back")
        if log.handover and header.kind != Kind.EPOCH and not self._was_refused(node):
            self.fail("I6", f"{node.store_id} writes {record.lsn} behind its handover to {log.handover}")
        if header.request_id != NO_REQUEST:
            for chain in self.requests.setdefault(header.request_id, []):
                if self.is_ancestor(chain, log.tip.chain):
                    self.fail("I13", f"request {header.request_id.hex()} takes effect again at {record.lsn}")
            self.requests[header.request_id].append(record.mark.chain)
        self.born[record.mark.chain] = Born(record, log.tip.chain, node.store_id, record.mark.digest)

    def _was_refused(self, node: Node) -> bool:
        """Return whether the target of a handover at the tip can't take it any more: nor one of an epoch that ended."""
        target = self.world.nodes.get(node.log.handover)
        if target is None or target.store_id in self.world.went_back:
            return True
        promise = target.disk.synced.promise
        is_over = promise is not None and promise.number > node.log.epochs[-1].number
        return is_over or target.disk.synced.refused_lsn >= node.log.tip.lsn

    def durable(self, node: Node) -> None:
        """A store has synced: what it wrote itself may leave it now."""
        for record in reversed(node.log.records[: max(0, node.log.durable_lsn - node.log.base.lsn)]):
            born = self.born.get(record.mark.chain)
            if born is None or born.was_durable:
                break
            if born.writer == node.store_id:
                born.was_durable = True

    def is_ancestor(self, chain: bytes, tip: bytes) -> bool:
        """Return whether a record is in the history that ends with a chain."""
        if chain not in self.born:  # the seed of the lineage
            return True
        lsn = self.born[chain].record.lsn
        while (born := self.born.get(tip)) is not None and born.record.lsn > lsn:
            tip = born.parent
        return tip == chain

    # -- standbys ----------------------------------------------------------------------------------------------------

    def appended(self, node: Node, record: Record) -> None:
        """A standby appends: a record that was durable at its writer, behind the one that it followed there."""
        born = self.born.get(record.mark.chain)
        if born is None or born.record.body != record.body:
            self.fail("I4", f"{node.store_id} takes a record {record.lsn} that nobody wrote")
        elif not born.was_durable:
            self.fail("I4", f"{node.store_id} has record {record.lsn} before it is durable at {born.writer}")
        elif born.parent != node.log.tip.chain or record.lsn != node.log.tip.lsn + 1:
            self.fail("I4", f"{node.store_id} takes record {record.lsn} behind another than it was written behind")

    def applied(self, node: Node) -> None:
        """A standby has applied: the digest is the writer's at that LSN."""
        log = node.log
        if log.tip.lsn < log.trust_lsn or log.tip.lsn == 0:
            return
        if log.state.digest != self.born[log.tip.chain].digest and not self._is_unverified(node):
            self.fail(
                "I5", f"{node.store_id} has another digest than {self.born[log.tip.chain].writer} at {log.tip.lsn}"
            )

    def _is_unverified(self, node: Node) -> bool:
        """Return whether a store is in a rejoin, and a disk went back: what it read may be of no history any more."""
        return bool(self.world.went_back) and node.disk.written.rejoin is not None

    def verified(self, node: Node, is_equal: bool) -> None:
        """A rejoin ends with a digest: another one than the log's is the work of a disk that went back."""
        if not is_equal:
            self.world.note("verified", node.store_id, "another digest")
            if not self.world.went_back:
                self.fail("I5", f"{node.store_id} has another digest after its rejoin, and no disk went back")

    # -- acknowledging -----------------------------------------------------------------------------------------------

    def learned(self, node: Node, message: Any) -> None:
        """A store has dealt with a message: what was signed in it, it knows for good."""
        self._learned_loss(node, getattr(message, "standing", None))
        claim = getattr(message, "claim", None) or getattr(message, "promise", None)
        if claim is None or node.member is None or node.is_copied or not claim.is_valid(node.member.identity):
            return
        known = self.learnt.get(node.store_id)
        own = node.log.epochs[-1].writer if node.log.epochs else ""
        if known is None or claim.number > known.number or (claim.number == known.number and claim.writer != own):
            self.learnt[node.store_id] = claim

    def _learned_loss(self, node: Node, standing: Standing | None) -> None:
        """A store has seen, in its own epoch, a log that has what it lost: from then on it knows that it did."""
        log = node.log
        if standing is None or node.member is None or standing.epochs != log.epochs or node.is_copied:
            return
        if standing.lsn > log.tip.lsn and standing.is_valid(node.member.identity):
            self.lost[node.store_id] = log.epochs[-1].writer

    def acknowledged(self, node: Node, call: Pending) -> None:
        """A store says "done": it may, it is durable, it is that write, and on the standby if that was asked."""
        log, lsn = node.log, call.lsn
        epoch = log.epochs[-1]
        known = self.learnt.get(node.store_id)
        if known is not None and (
            known.number > epoch.number or (known.number == epoch.number and known.writer != epoch.writer)
        ):
            self.fail("I6", f"{node.store_id} acknowledges {lsn} in epoch {epoch.number}, and knows of {known.number}")
        if self.lost.get(node.store_id) == epoch.writer:
            self.fail("I6", f"{node.store_id} acknowledges {lsn}, and has seen that it lost records of this epoch")
        if node.disk.synced.role != "primary":
            self.fail("I6", f"{node.store_id} acknowledges {lsn} in the role {node.disk.synced.role}")
        if lsn > log.durable_lsn:
            self.fail("I1", f"{node.store_id} acknowledges {lsn}, durable are {log.durable_lsn}")
        found = [
            chain for chain in self.requests.get(call.write.request_id, ()) if self.is_ancestor(chain, log.tip.chain)
        ]
        if not found or self.born[found[0]].record.lsn != lsn:
            self.fail("I13", f"{node.store_id} acknowledges {lsn} for a request that is not there")
        if call.write.ack == "replicated" and not self._is_replicated(node, lsn, found[0]):
            self.fail("I1", f"{node.store_id} acknowledges {lsn} as replicated, and no standby has it")
        self.promised.setdefault(found[0], (call.write.request_id, node.store_id))

    def _is_replicated(self, node: Node, lsn: int, chain: bytes) -> bool:
        """Return whether the synchronous region has a record on its disk, or had until that disk went back."""
        for other in self.world.nodes.values():
            log = other.log
            if other is node or other.region != node.synchronous or other.is_copied:
                continue
            if log.durable_lsn >= lsn and self.is_ancestor(chain, log.chains[log.durable_lsn]):
                return True
            if chain in other.disk.exports.records or other.store_id in self.world.went_back:
                return True
        return False

    # -- claims ------------------------------------------------------------------------------------------------------

    def sent(self, node: Node, message: Any) -> None:
        """A copied directory says nothing; what is said of a promise is on disk."""
        if node.is_copied and node.status == "copied":
            self.fail("identity", f"{node.store_id} is a copy and sends {type(message).__name__}")
        promise = getattr(message, "promise", None) or getattr(message, "claim", None)
        synced = node.disk.synced.promise
        if promise is not None and (synced is None or synced.number < promise.number):
            self.fail("I6", f"{node.store_id} says that it promised {promise.number} before that is durable")

    def persisted(self, node: Node, state: Durable) -> None:
        """A promise is of an epoch that a store of the lineage began, and never falls."""
        promise, before = state.promise, node.disk.written.promise
        if promise is None:
            return
        if promise.lineage != node.log.lineage:
            self.fail("I6", f"{node.store_id} believes a claim of another lineage")
        if promise.store_id != node.store_id and (promise.number, promise.writer) not in self.world.epochs:
            self.fail("I6", f"{node.store_id} believes a claim to epoch {promise.number} that nobody made")
        self.world.epochs.add((promise.number, promise.writer))
        if before is not None and promise.number < before.number:
            self.fail("I6", f"{node.store_id} promises {promise.number} after {before.number}")

    # -- dropping ----------------------------------------------------------------------------------------------------

    def dropped(self, node: Node, tip: Place, why: str) -> None:
        """A store drops records: each is in the new history, or was exported before."""
        for lsn, chain in node.log.chains.items():
            if lsn == 0 or chain not in self.born or self._is_kept(node, lsn, chain, tip):
                continue
            self.fail("I7", f"{node.store_id} drops {lsn} ({why}), and it was not exported")

    def _is_kept(self, node: Node, lsn: int, chain: bytes, tip: Place) -> bool:
        exports = node.disk.exports
        if self.is_ancestor(chain, tip.chain) or chain in exports.records:
            return True
        # Cut from the log before: marked incomplete, and if the point is as this record left it, exported as a point.
        return lsn < node.log.first_lsn and any(fork < lsn <= last for fork, last, _ in exports.incomplete)

    def went_back(self, node: Node, image: SimLog) -> None:
        """A disk is put back: what it loses by that is excused, as no protocol could keep it."""
        self.learnt.pop(node.store_id, None)
        self.lost.pop(node.store_id, None)
        chain = node.log.tip.chain
        while chain in self.born and not self.is_ancestor(chain, image.tip.chain):
            self.excused.add(chain)
            chain = self.born[chain].parent

    def at_end(self) -> None:
        """Every acknowledged record is in a history that lives, or exported, or excused."""
        nodes = [node for node in self.world.nodes.values() if not node.is_copied]
        for chain, (request_id, store_id) in self.promised.items():
            lsn = self.born[chain].record.lsn
            kept = any(
                self.is_ancestor(chain, node.log.tip.chain)
                or chain in node.disk.exports.records
                or any(fork < lsn <= last for fork, last, _ in node.disk.exports.incomplete)
                for node in nodes
            )
            if not kept and chain not in self.excused:
                self.fail("I7", f"{lsn} ({request_id.hex()}), acknowledged by {store_id}, is nowhere")

    # -- reading -----------------------------------------------------------------------------------------------------

    def read(self, node: Node, token: Token | None, held: bool | None) -> None:
        """A store answers a read: the state is that of one LSN of a history, and that history holds the token."""
        log = node.log
        if log.tip.lsn and held is not None and log.tip.lsn >= log.trust_lsn:
            self.applied(node)
        elif log.tip.lsn < log.trust_lsn:
            self.fail("I3", f"{node.store_id} reads at {log.tip.lsn} while digests are on trust until {log.trust_lsn}")
        if token is None or held is None:
            return
        chain = next((chain for chain in self.born if chain.startswith(token.chain)), b"")
        is_there = bool(chain) and self.is_ancestor(chain, log.tip.chain)
        # Where the log was cut the epoch's number decides: two writers of a number, or a disk gone back, fool it.
        if held and not is_there and log.chain(token.lsn) is not None:
            self.fail("tokens", f"{node.store_id} answers a read after {token.lsn}, which its history does not hold")
        if not held and (is_there or self.is_ancestor(log.tip.chain, chain)):
            self.fail("tokens", f"{node.store_id} says that {token.lsn} is lost, and its history holds it")
