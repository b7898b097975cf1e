"""A simulated process around a member: it carries out actions, takes calls, and dies between any two steps.

It is what an engine and a server will be to the real member. It believes what the member says; whether that was right
is for the checks.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from vecstore.clock import CommitClock
from vecstore.record import NO_REQUEST, Kind, Record, Token
from vecstore.replication import actions as do
from vecstore.replication.durable import Durable, Timing
from vecstore.replication.epochs import Identity, holds
from vecstore.replication.log import Place
from vecstore.replication.messages import (
    ArchiveRead,
    Checkpointed,
    Command,
    Exported,
    Installed,
    Mended,
    NotReplaced,
    Points,
    Report,
    Returned,
    Snapshot,
    Synced,
    Verified,
    WasReset,
)
from vecstore.replication.state import Member
from vecstore.storage.reads import Reads

from .disk import Disk, SimLog, change_of, kind_of

if TYPE_CHECKING:
    from .world import World

TIMING = Timing(
    start_alone_after_s=12.0,
    call_every_s=1.0,
    silence_s=3.0,
    stall_s=8.0,
    step_down_s=1.0,
    catch_up_s=3.0,
    retry_s=4.0,
    frame_bytes_max=1,
)
TICK_S = 0.3
STAGES = ("room", "fetch", "contents")


@dataclass(frozen=True)
class Write:
    """A client's write, the same at every attempt."""

    client: str
    request_id: bytes
    id: int
    value: int | None
    not_after_s: float
    ack: str = "durable"


@dataclass
class Pending:
    """A write that waits in a node for its acknowledgement."""

    write: Write
    attempt: int
    lsn: int


@dataclass
class SimClock:
    """A node's clocks: wall time may be set to anything, monotonic time is the simulation's."""

    world: World
    offset_us: int = 0

    def wall_us(self) -> int:
        """Microseconds since 1970, as this node believes."""
        return 1_700_000_000_000_000 + int(self.world.now_s * 1e6) + self.offset_us

    def monotonic_s(self) -> float:
        """Seconds."""
        return self.world.now_s


@dataclass
class Node:
    """One store and the process that serves it."""

    world: World
    store_id: str
    region: str
    disk: Disk
    is_copied: bool = False
    synchronous: str = ""
    slot: str = ""
    member: Member | None = None
    is_paused: bool = False
    boot: int = 0
    pending: list[Pending] = field(default_factory=list)
    is_syncing: bool = False
    inbox: deque[Any] = field(default_factory=deque)
    clock: SimClock = field(init=False)
    commit_clock: CommitClock = field(init=False)
    replies: list[do.Reply] = field(default_factory=list)
    acked: tuple[int, int] = (0, 0)
    failing: str = ""
    """The stage at which what is to be put in place of the contents fails; of a disk that is full, "room"."""
    handed_out: int = 0
    reads: Reads = field(default_factory=Reads)
    """What the version that runs here knows."""

    def __post_init__(self) -> None:
        self.clock = SimClock(self.world)

    @property
    def log(self) -> SimLog:
        """The log."""
        return self.disk.log

    @property
    def is_up(self) -> bool:
        """Whether the process runs."""
        return self.member is not None

    @property
    def status(self) -> str:
        """The member's status, "down" without a process."""
        return "down" if self.member is None else self.member.status

    # -- life --------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the process on what is on disk."""
        world, self.boot = self.world, self.boot + 1
        self.pending, self.is_syncing, self.is_paused, self.acked = [], False, False, (0, 0)
        self.inbox.clear()
        # What a kill left unsynced counts as durable only once an open has synced it.
        self.log.sync()
        self.world.checks.durable(self)
        self.commit_clock = CommitClock(self.clock, self.log.last_commit_us)
        identity = Identity(self.log.lineage, world.secrets[self.log.lineage], self.store_id, self.region)
        self.member = Member(
            identity,
            self.log,
            self.disk.synced,
            lambda: world.rng.getrandbits(64),
            timing=TIMING,
            synchronous=self.synchronous,
            slot=self.slot,
            is_copied=self.is_copied,
            reads=self.reads,
        )
        world.note("start", self.store_id, self.disk.synced.role, self.log.tip.lsn)
        self.carry_out(self.member.start(world.now_s))
        world.later(TICK_S * world.rng.random(), self._tick, self.boot)

    def crash(self, is_power_loss: bool = True) -> None:
        """Kill the process."""
        if self.member is None:
            return
        self.world.note("crash", self.store_id, self.log.durable_lsn, self.log.tip.lsn)
        for pending in self.pending:
            self.world.answer(self, pending.write, pending.attempt, "unknown")
        self.member = None
        self.disk.crash(self.world.rng, is_power_loss)

    def _tick(self, boot: int) -> None:
        if boot != self.boot or self.member is None:
            return
        if not self.is_paused:
            self.carry_out(self.member.tick(self.world.now_s))
        self.world.later(TICK_S, self._tick, boot)

    def resume(self) -> None:
        """Go on after a pause, with everything that came meanwhile."""
        self.is_paused = False
        while self.inbox and not self.is_paused and self.member is not None:
            function, arguments = self.inbox.popleft()
            function(*arguments)

    def when_running(self, function: Any, *arguments: Any) -> None:
        """Call a function now, or after the pause; never without a process."""
        if self.is_paused:
            self.inbox.append((function, arguments))
        elif self.member is not None:
            function(*arguments)

    def receive(self, sender: str, message: Any) -> None:
        """Step the member with a message."""
        assert self.member is not None
        self.carry_out(self.member.step(sender, message, self.world.now_s))
        if self.member is not None:
            self.world.checks.learned(self, message)

    def command(self, command: Command) -> None:
        """Give the member a command."""
        if self.member is not None and not self.is_paused:
            self.world.note("command", self.store_id, command)
            self.carry_out(self.member.command(command, self.world.now_s))

    def report(self, report: Report) -> None:
        """Report to the member what its engine did."""
        if self.member is not None:
            self.carry_out(self.member.step("", report, self.world.now_s))

    def report_later(self, delay_s: float, function: Any, *arguments: Any) -> None:
        """Do a part of the engine's work after a while, if the process lives."""
        boot = self.boot

        def work() -> None:
            if boot == self.boot:
                self.when_running(function, *arguments)

        self.world.later(delay_s, work)

    # -- actions -----------------------------------------------------------------------------------------------------

    def carry_out(self, actions: list[do.Action]) -> None:
        """Carry out actions in their order; a crash may come between any two."""
        world = self.world
        for action in list(actions):
            if self.member is None:
                return
            if world.crash_share and world.rng.random() < world.crash_share:
                self.crash()
                world.restart_later(self)
                return
            _CARRIED[type(action)](self, action)

    def _send(self, action: do.Send) -> None:
        self.world.checks.sent(self, action.message)
        self.world.send(self.store_id, action.to, action.message)

    def _persist(self, action: do.Persist) -> None:
        self.world.checks.persisted(self, action.state)
        if action.epoch is not None:
            body = msgspec.json.encode(action.epoch)
            # A standby's clock stood still; a writer's goes on from the last record.
            self.commit_clock = CommitClock(self.clock, self.log.last_commit_us)
            self._write(Kind.EPOCH, body, NO_REQUEST, action.epoch.number)
            self.log.sync()
            self.world.checks.durable(self)
            self.report_later(0.001, self.report, Synced())
            self.world.note("epoch", self.store_id, action.epoch.number, action.epoch.fork_lsn)
        self.disk.persist(action.state, action.is_synced)

    def _write(self, kind: Kind, body: bytes, request_id: bytes, epoch: int) -> Record:
        times_us = (self.commit_clock.next_us(), self.clock.wall_us())
        record = self.log.make(kind, body, request_id, times_us, epoch)
        self.world.checks.written(self, record)
        self.log.append(record)
        return record

    def _append(self, action: do.Append) -> None:
        for record in action.records:
            self.world.checks.appended(self, record)
            self.log.append(record)
            self.world.checks.applied(self)
        self.sync_later()

    def sync_later(self) -> None:
        """Sync in a moment what is written by then."""
        if not self.is_syncing:
            self.is_syncing = True
            self.report_later(self.world.rng.choice((0.002, 0.01, 0.1)), self._sync)

    def _sync(self) -> None:
        self.is_syncing = False
        self.log.sync()
        if self.world.rng.random() < 0.5:  # in one write-ahead log a later sync takes earlier writes with it
            self.disk.synced = self.disk.written
        self.world.checks.durable(self)
        self.report(Synced())

    def _handover(self, action: do.Handover) -> None:
        self._write(Kind.HANDOVER, action.target.encode(), NO_REQUEST, self.log.epochs[-1].number)
        self.world.note("handover", self.store_id, action.target, self.log.tip.lsn)
        self.sync_later()

    def _open(self, action: do.Open) -> None:
        self.acked = (self.log.durable_lsn, 0)
        self.world.note("open", self.store_id, self.log.tip.lsn)

    def _fence(self, action: do.Fence) -> None:
        self.world.note("fence", self.store_id, action.reason)
        pending, self.pending = self.pending, []
        for call in pending:
            self.world.answer(self, call.write, call.attempt, "unknown")

    def _acknowledge(self, action: do.Acknowledge) -> None:
        assert self.member is not None
        self.acked = (action.durable_lsn, action.replicated_lsn)
        waiting = []
        for call in self.pending:
            if call.lsn <= (action.replicated_lsn if call.write.ack == "replicated" else action.durable_lsn):
                self.done(call)
            else:
                waiting.append(call)
        self.pending = waiting

    def done(self, call: Pending) -> None:
        """Acknowledge a write."""
        self.world.checks.acknowledged(self, call)
        log = self.log
        number = max(epoch.number for epoch in log.epochs if epoch.fork_lsn < call.lsn)
        chain = log.chain(call.lsn)  # cut from the log, and no mark: there is no token for it any more
        token = None if chain is None else Token(log.lineage, number, call.lsn, chain[:8])
        self.world.answer(self, call.write, call.attempt, "done", token)

    def _snapshot(self, action: do.TakeSnapshot) -> None:
        self.handed_out += 1
        self._sync()
        if self.member is None or self.member.durable.promise is None:
            return
        place = Place(self.log.durable_lsn, self.log.chains[self.log.durable_lsn])
        snapshot = Snapshot(self.member.durable.promise, place, self.log.copy())
        self.report_later(self.world.slow_s(), self.world.send, self.store_id, action.to, snapshot)

    def _install(self, action: do.Install) -> None:
        self.report_later(self.world.slow_s(), self._installed, action.snapshot)

    def _installed(self, snapshot: Snapshot) -> None:
        if self._fails():
            return
        log: SimLog = snapshot.content.copy()
        log.truncate(snapshot.place.lsn)
        log.cut(snapshot.place.lsn)
        self.world.checks.dropped(self, log.tip, "a snapshot was installed")
        self._replace(log)
        self.world.note("installed", self.store_id, log.tip.lsn)
        self.report(Installed(log.tip.lsn))

    def _fails(self) -> bool:
        """Report that contents were not put in place, where they are not to be."""
        share = self.world.failing_share
        stage = self.failing or (self.world.rng.choice(STAGES) if share and self.world.rng.random() < share else "")
        if stage:
            self.world.note("not replaced", self.store_id, stage)
            self.report(NotReplaced("it was not to be", stage))  # type: ignore[arg-type]
        return bool(stage)

    def _replace(self, log: SimLog) -> None:
        """Put another log in place of this one, which the member keeps its hands on."""
        log.durable_lsn = log.tip.lsn
        self.log.__dict__.clear()
        self.log.__dict__.update(log.copy().__dict__)

    def _read_archive(self, action: do.ReadArchive) -> None:
        records = tuple(self.world.archived(action.after_lsn))
        self.report_later(0.2, self.report, ArchiveRead(action.after_lsn, records))

    def _read_points(self, action: do.ReadPoints) -> None:
        self._sync()
        if self.member is None or self.member.durable.promise is None:
            return
        state = self.log.state
        content = {id: state.points[id][0] if id in state.points else None for id in action.ids}
        points = Points(self.member.durable.promise, action.fork_lsn, self.log.durable_lsn, content)
        self.world.send(self.store_id, action.to, points)

    def _mend(self, action: do.Mend) -> None:
        self.world.note("mend", self.store_id, action.points.lsn, self.log.tip.lsn)
        assert action.points.fork_lsn == self.log.tip.lsn, "points were set in a store that had gone on"
        self.report_later(self.world.slow_s() / 4, self.report, Mended(action.points.lsn))

    def _checkpoint(self, action: do.Checkpoint) -> None:
        self._sync()
        self.disk.checkpoint = self.log.copy()
        if self.world.rng.random() < 0.5:  # after a checkpoint a log is cut, if nothing holds it
            self.world.cut_log(self, retained=1)
        self.report_later(0.1, self.report, Checkpointed())

    def _export(self, action: do.Export) -> None:
        self.report_later(self.world.slow_s() / 4, self._exported, action)

    def _exported(self, action: do.Export) -> None:
        exports, log = self.disk.exports, self.log
        left = self.left_behind(action.fork_lsn)
        exports.records.update({record.mark.chain: record for record in left})
        if not action.is_complete:
            newer = {id: entry for id, entry in log.state.points.items() if entry[1] > action.fork_lsn}
            exports.incomplete.append((action.fork_lsn, log.tip.lsn, newer))
        ids = {change_of(record.body)[0] for record in left if record.header.kind in (Kind.UPSERT, Kind.DELETE)}
        self.world.note("exported", self.store_id, action.fork_lsn, len(left))
        self.report(
            Exported(action.fork_lsn, tuple(sorted(ids)), any(record.header.kind == Kind.RENAME for record in left))
        )

    def left_behind(self, fork_lsn: int) -> list[Record]:
        """Return the records of the log behind a fork."""
        return [record for record in self.log.records if record.lsn > fork_lsn]

    def _reset(self, action: do.Reset) -> None:
        self.report_later(self.world.slow_s() / 4, self._was_reset, action)

    def _was_reset(self, action: do.Reset) -> None:
        if self._fails():
            return
        fork = action.fork
        self.log.chains.setdefault(fork.lsn, fork.chain)
        assert self.log.chains.get(fork.lsn, fork.chain) == fork.chain, "a fork is on this log's chain"
        self.world.checks.dropped(self, fork, "a rejoin dropped it")
        self.log.reset(fork.lsn, action.points.content, action.points.lsn)
        self.world.note("reset", self.store_id, fork.lsn, action.points.lsn)
        self.report(WasReset())

    def _return(self, action: do.Return) -> None:
        assert self.disk.checkpoint is not None
        self.world.checks.dropped(self, self.disk.checkpoint.tip, "a rejoin was aborted")
        self._replace(self.disk.checkpoint)
        self.report_later(0.05, self.report, Returned())

    def _discard(self, action: do.Discard) -> None:
        self.disk.checkpoint = None

    def _verify(self, action: do.Verify) -> None:
        marks = [record.mark.digest for record in self.log.records[-1:]]
        is_equal = not marks or marks[0] == self.log.state.digest
        self.world.checks.verified(self, is_equal)
        self.report_later(0.05, self.report, Verified(is_equal))

    def _reply(self, action: do.Reply) -> None:
        self.replies.append(action)
        self.world.note("reply", self.store_id, action.text)

    def _alarm(self, action: do.Alarm) -> None:
        self.world.alarms.append((self.store_id, action.text))
        self.world.note("alarm", self.store_id, action.text)

    # -- clients -----------------------------------------------------------------------------------------------------

    def write(self, write: Write, attempt: int) -> None:
        """Take a client's write, as a committer would."""
        assert self.member is not None
        log = self.log
        if self.world.now_s > write.not_after_s:
            self.world.answer(self, write, attempt, "late")
        elif not self.member.accepts_writes:
            promise = self.member.durable.promise
            self.world.answer(self, write, attempt, "not primary", promise.store_id if promise else "")
        elif (known := log.state.requests.get(write.request_id)) is not None:
            self._wait(Pending(write, attempt, known))
        else:
            body = msgspec.msgpack.encode((write.id, write.value))
            kind = kind_of(write.value)
            record = self._write(kind, body, write.request_id, log.epochs[-1].number)
            self.pending.append(Pending(write, attempt, record.lsn))
            self.sync_later()

    def _wait(self, call: Pending) -> None:
        """Answer a write that was done before, once what was asked of it holds."""
        durable_lsn, replicated_lsn = self.acked
        if call.lsn <= (replicated_lsn if call.write.ack == "replicated" else durable_lsn):
            self.done(call)
        else:
            self.pending.append(call)

    def read(self, client: str, token: Token | None) -> None:
        """Answer a read that asks for a token's record."""
        assert self.member is not None
        if not self.member.serves_reads:
            return
        held = True if token is None else holds(self.log, token)
        self.world.checks.read(self, token, held)
        self.world.answer_read(self, client, token, held)


_CARRIED: dict[type, Any] = {
    do.Send: Node._send,
    do.Persist: Node._persist,
    do.Append: Node._append,
    do.Handover: Node._handover,
    do.Open: Node._open,
    do.Fence: Node._fence,
    do.Acknowledge: Node._acknowledge,
    do.TakeSnapshot: Node._snapshot,
    do.Install: Node._install,
    do.ReadArchive: Node._read_archive,
    do.ReadPoints: Node._read_points,
    do.Checkpoint: Node._checkpoint,
    do.Export: Node._export,
    do.Reset: Node._reset,
    do.Return: Node._return,
    do.Discard: Node._discard,
    do.Mend: Node._mend,
    do.Verify: Node._verify,
    do.Reply: Node._reply,
    do.Alarm: Node._alarm,
}


def fresh_disk(lineage: bytes, primary: str = "") -> Disk:
    """Return an empty store's disk: a standby of a primary, which it does not know yet."""
    durable = Durable("standby", primary=primary)
    return Disk(SimLog(lineage), durable, durable)
