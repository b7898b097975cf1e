"""One open store: its parts, put together, and the threads that run beside its callers.

An `Engine` is shared by all handles of one process on one directory, until the last of them closes it.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..clock import CommitClock, SystemClock
from ..config import Config
from ..errors import (
    Closed,
    Damaged,
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    NotPrimary,
    Overloaded,
    Unavailable,
    VecstoreError,
)
from ..index import device as devices
from ..metrics import Metrics
from ..record import NO_REQUEST, Kind, Record, Token, log_key
from ..storage.base import Family
from ..storage.catalog import APPLIED, LINEAGE, REPLICATION, Epoch, Part
from ..storage.directory import StoreDirectory
from ..storage.witness import Witness, WitnessMark
from ..values import Written
from .accelerator import Accelerator
from .archiver import Archiver
from .builder import Builder
from .calls import Call, Schema
from .checkpoint import Checkpointer, needed_files
from .committer import Committer
from .crew import Crew
from .filtering import FilterCache
from .folder import IndexFolder
from .gate import Gate
from .kept import clear
from .recovery import Recovered, open_storage, recover
from .slots import Slots, Standbys
from .state import State
from .view import CollectionView, View

__all__ = ["Engine", "disk_free_bytes"]

_STANDBY_MEMORY = 1.1
"""A standby's share of the memory budget: its rows lie otherwise than its primary's, and take a little more or less."""


class Engine:
    """The parts of one open store. Thread-safe.

    Attributes
    ----------
    findings
        What recovery mended, in sentences.
    synchronous
        The region whose standby `ack="replicated"` waits for; empty for none.
    primary_hint
        Where the primary is reached, as far as it is known; for errors.
    reads_held
        Why reads are refused; empty while they are served.
    """

    def __init__(self, path: str, *, create: bool, read_only: bool, device: str, config: Config) -> None:
        self.device = devices.resolve(device, config.device_backend)
        self.config = config
        self.read_only = read_only
        self.clock = SystemClock()
        self.metrics = Metrics()
        self.witness: Witness | None = None
        self.directory = StoreDirectory.open(path, create=create, read_only=read_only)
        try:
            self._open()
        except BaseException:
            self.directory.close()
            raise

    def _open(self) -> None:
        self.store, self.findings = open_storage(self.directory, self.config, read_only=self.read_only)
        try:
            mark = self._open_witness()
            recovered = recover(self.store, self.directory, mark, self.config, read_only=self.read_only)
        except BaseException:
            self.store.close()
            if self.witness is not None:
                self.witness.close()
            raise
        self._assemble(recovered)
        self.accelerator: Accelerator | None = None
        if self.device == "gpu":
            self.accelerator = Accelerator(self.state, self.directory.index, self.config)
            self.accelerator.start()

    def _open_witness(self) -> WitnessMark | None:
        """Open the witness. A store that had one and has lost it cannot prove that its log is whole."""
        try:
            self.witness = Witness.open(self.directory.witness, create=not self.read_only and self._is_new)
        except NotFound as exc:
            if self.read_only and self._is_new:
                return None
            raise Damaged(
                f"the witness of the store at {self.directory.path} is missing",
                hint="run `vecstore doctor DIR --accept-loss` if the log is known to be whole",
                details={"file": "witness"},
            ) from exc
        return self.witness.read()

    @property
    def _is_new(self) -> bool:
        """Whether nothing was ever applied: then there may be no witness yet."""
        applied, first = self.store.get(Family.META, [APPLIED]), self.store.get(Family.LOG, [log_key(1)])
        return applied[0] is None and first[0] is None

    def _assemble(self, recovered: Recovered) -> None:
        self.findings = [*self.findings, *recovered.findings]
        self.lineage = recovered.lineage
        self.state: State = recovered.state
        self.history = recovered.history
        self.archiver: Archiver | None = None
        self.filters = FilterCache(self.config.filter_cache_bytes)
        self.gate = Gate(self.config.search_thread_count())
        self.crew = Crew(self.config.search_thread_count() - 1)
        self._pid = os.getpid()
        self._closed = self._leaving = False
        self.synchronous = ""
        self.primary_hint = ""
        self.reads_held = ""
        self._memory = (0.0, 0)
        if self.config.switch_interval_s:
            sys.setswitchinterval(self.config.switch_interval_s)
        folder = IndexFolder(self.directory.index)
        if self.read_only:
            self.committer: Committer | None = None
            self.builder: Builder | None = None
            self.checkpointer: Checkpointer | None = None
            return
        assert self.witness is not None
        self._clear_leftovers()
        folder.clean(lambda: needed_files(recovered.entries, recovered.contents.values(), self.state.view))
        clock = CommitClock(self.clock, self.state.fold.tip.commit_time_us)
        self.committer = Committer(
            self.state,
            self.store,
            self.witness,
            self.history,
            clock,
            self.clock.wall_us,
            self.config,
            self.directory.path,
            self.metrics,
        )
        self.committer.watch_memory(self.memory_bytes)
        self.builder = Builder(self.state, self.committer, folder, self.config, self.metrics)
        self.checkpointer = Checkpointer(
            self.state,
            self.committer,
            self.store,
            self.witness,
            folder,
            self.config,
            self.metrics,
            recovered.entries,
            recovered.log_start,
        )
        for lsn, contents in recovered.contents.items():
            self.checkpointer.know(lsn, contents)
        self.slots = Slots(self.store, self.committer, self.config.slot_retained_bytes_max)
        self.checkpointer.slots = self.slots
        self._take_part()
        self.committer.start()
        self.builder.start()
        self.checkpointer.start()
        if not self.state.fold.epochs and self.committer.held is None:
            self._begin_epoch()

    def _clear_leftovers(self) -> None:
        # The log has reached the witness: what a damaged write-ahead log held beyond was never acknowledged.
        for name in os.listdir(self.directory.quarantine):
            shutil.rmtree(os.path.join(self.directory.quarantine, name))
        clear(self.directory.path, self.part)

    def _take_part(self) -> None:
        """Find out what this store may do before anybody speaks for it: whether it takes writes, what log it keeps."""
        assert self.committer is not None
        self.slots.standbys = self._standbys
        part = self.part
        if part is None and not self.slots.held:
            # Nobody knows the original of a copy by its name: the copy may have one of its own at once.
            self.directory.adopt()
        if self.is_copied or not (part is None or part.takes_writes):
            self.committer.hold(self.not_primary)

    @property
    def is_copied(self) -> bool:
        """Whether the directory is a copy of which nobody has said yet what it is: `directory.adopt` ends that."""
        return self.directory.is_copied

    @property
    def identity_secret(self) -> bytes:
        """The lineage's secret, which only its stores hold."""
        (held,) = self.store.get(Family.META, [LINEAGE])
        assert held is not None
        return held[16:]

    @property
    def replication_state(self) -> bytes | None:
        """What the store is in the replication, as it was written last; None where it never was in one."""
        (held,) = self.store.get(Family.META, [REPLICATION])
        return held

    @property
    def part(self) -> Part | None:
        """What it is in the replication, as far as an engine reads it; None where it never was in one."""
        state = self.replication_state
        return None if state is None else Part.decode(state)

    def not_primary(self) -> NotPrimary:
        """Return the error that writes are refused with as long as nobody has opened them."""
        part = self.part
        if self.is_copied:
            why, hint = "its directory was copied", "say what it is: `vecstore adopt DIR --moved | --clone`"
        elif part is not None and part.role == "standby":
            why, hint = "it is a standby", "write to the primary, or `vecstore promote` this store"
        elif part is not None and part.role == "fenced":
            reason = f": {part.reason}" if part.reason else ""
            why, hint = f"it is fenced{reason}", "write to the primary; `vecstore rejoin` makes it a standby"
        else:
            why = "it is a primary that has not heard from its peers yet"
            hint = "`vecstore serve` asks them; a store with peers takes no writes when it is opened in a process"
        primary = self.primary_hint
        where = f"; the primary is at {primary}" if primary else ""
        return NotPrimary(f"this store takes no writes, since {why}{where}", primary=primary or None, hint=hint)

    def _standbys(self) -> Standbys:
        """Return what the replication needs of the log, as it was written down last."""
        part = self.part
        if part is None:
            return Standbys()
        return Standbys(tuple(slot.lsn for slot in part.slots if not slot.is_lost), part.holds_log)

    def _begin_epoch(self) -> None:
        """Write the record of the first epoch: it names this writer."""
        tip = self.state.fold.tip
        epoch = Epoch(1, os.urandom(8).hex(), tip.lsn, tip.chain.hex())
        self.submit(Schema(make=lambda: (Kind.EPOCH, 0, epoch)))

    def archive_to(self, where: str) -> None:
        """Begin to archive the log to a repository; nothing changes where that is done already.

        Raises
        ------
        InvalidArgument
            It goes to another repository.
        """
        if self.checkpointer is None:
            raise InvalidArgument(f"archive: {where!r} given, but the store is open read-only")
        if self.archiver is None:
            from ..backup.repository import check_where

            check_where(where)
            self.archiver = Archiver(self, where)
            self.archiver.start()
        elif self.archiver.where != where:
            raise InvalidArgument(f"archive: {where!r} given; this store is archived to {self.archiver.where!r}")

    # -- callers' side -----------------------------------------------------------------------------------------------

    def check_open(self) -> None:
        """Refuse calls after close, and in a process that was forked."""
        if self._closed or self._leaving:
            raise Closed(f"the store at {self.directory.path} is closed", hint="open it again")
        if os.getpid() != self._pid:
            raise Closed("the store was opened before this process was forked", hint="open it in this process")

    def submit(self, call: Call) -> Any:
        """Hand a write to the committer and wait for its answer."""
        self.check_open()
        if self.committer is None:
            raise NotPrimary("the store is open read-only", hint="open it with read_only=False")
        replicates = call.ack == "replicated"
        if replicates:
            self.check_synchronous()
        result = self.committer.submit(call)
        assert self.builder is not None
        self.builder.wake()
        if not replicates:
            return result
        self.await_replicated(result.lsn, result.token, call.deadline_s)
        return replace(result, ack="replicated")

    def append(self, records: Sequence[Record], *, trust: bool = False) -> None:
        """Write finished records of another store behind the tip, durably; see `Committer.append`."""
        self.check_open()
        assert self.committer is not None and self.builder is not None
        self.committer.append(records, trust=trust)
        self.builder.wake()

    def check_synchronous(self) -> None:
        """Refuse to wait for a synchronous standby where there is none."""
        if not self.synchronous:
            raise InvalidArgument(
                "ack: 'replicated' needs a synchronous standby, and this store has none; "
                "allowed are 'durable', 'memory'"
            )

    def await_replicated(self, lsn: int, token: str, deadline_s: float | None) -> None:
        """Wait until the synchronous standby has a record that is durable here.

        Raises
        ------
        DeadlineExceeded
            Not in time; the record is durable here.
        NotPrimary
            The store was fenced meanwhile: what becomes of the record is not known.
        """
        self.check_synchronous()
        committer = self.committer
        if committer is None:
            raise NotPrimary("the store is open read-only", hint="ask the store that is served")

        def is_over() -> bool:
            return committer.replicated_lsn >= lsn or committer.is_fenced or self._closed or self._leaving

        with committer.applied:
            committer.applied.wait_for(is_over, None if deadline_s is None else max(0.0, deadline_s - time.monotonic()))
        if committer.is_fenced:
            refusal = committer.held() if committer.held is not None else self.not_primary()
            raise NotPrimary(
                f"what becomes of this write is not known: {refusal.args[0]}",
                primary=refusal.primary,
                outcome="unknown",
                hint="ask the primary with Database.wait(details['token'])",
                details={"token": token},
            )
        if committer.replicated_lsn >= lsn:
            return
        late = not (self._closed or self._leaving)
        raise (DeadlineExceeded if late else Closed)(
            f"the write is durable here; {self.synchronous} did not acknowledge it "
            + ("in time" if late else "before the store was closed"),
            outcome="durable",
            hint="Database.wait(details['token'], ack='replicated') goes on waiting",
            details={"token": token, "lsn": lsn},
        )

    def settle(self, request_id: bytes, error: VecstoreError) -> None:
        """Let a request that was refused before it came to the committer be refused for good."""
        if request_id != NO_REQUEST and self.committer is not None:
            committer = self.committer
            committer.run(lambda: committer.settled.refused(request_id, error))

    def admit_rows(self, number: int, deadline_s: float | None) -> None:
        """Wait until a collection takes more rows: those that no index has are bounded."""
        if self.builder is None:
            return
        while self._unsealed(number) > self.config.unsealed_rows_max:
            self.builder.wake()
            if self.builder.failed is not None:
                raise Overloaded(f"rows cannot be indexed: {self.builder.failed}", retry_after_s=5.0)
            self.check_open()
            with self.builder.progress:
                if self._unsealed(number) <= self.config.unsealed_rows_max:
                    return
                left_s = 0.5 if deadline_s is None else deadline_s - time.monotonic()
                if left_s <= 0:
                    raise DeadlineExceeded(
                        f"{self._unsealed(number)} rows wait to be indexed, more than {self.config.unsealed_rows_max}",
                        hint="give it more time, or raise unsealed_rows_max",
                    )
                self.builder.progress.wait(min(0.5, left_s))

    def lacks_room(self, rows: Mapping[int, int], more_bytes: int, *, has_upserts: bool) -> tuple[str, bool]:
        """Return why records of another store must wait, "" where they need not, and whether a budget is the reason.

        The bounds are those of writers, and a little of memory more: a primary that was just allowed a write must not
        bring its standby to a stop. Where building has failed, nothing waits for it.

        Parameters
        ----------
        rows
            Of each collection that they write to: how many rows are on their way that no view shows.
        """
        config = self.config
        floor, free = config.disk_free_bytes_min // (1 if has_upserts else 4), disk_free_bytes(self.directory.path)
        if free < floor + more_bytes:
            return f"disk: {free} bytes are free, below the floor of {floor}", True
        used, budget = self.memory_bytes(), int(config.memory_budget_bytes() * _STANDBY_MEMORY)
        if has_upserts and used + more_bytes > budget:
            return f"memory: the store holds {used} of {budget} bytes", True
        if self.builder is not None and self.builder.failed is None:
            for number, coming in rows.items():
                waiting = self._unsealed(number) + coming
                if waiting > config.unsealed_rows_max:
                    self.builder.wake()
                    return f"{waiting} rows wait to be indexed, more than {config.unsealed_rows_max}", False
        return "", False

    def await_progress(self, timeout_s: float) -> None:
        """Wait until the builder has done something, or for a while."""
        assert self.builder is not None
        with self.builder.progress:
            self.builder.progress.wait(timeout_s)

    def _unsealed(self, number: int) -> int:
        view = self.state.view.collections.get(number)
        return 0 if view is None else max(sum(g.rows for g in shard.growing) for shard in view.shards)

    def view(self, after: str | Written | None, timeout: float | None) -> View:
        """Return the newest view, which has the record of a token applied."""
        self.check_open()
        if self.reads_held:
            raise Unavailable(f"this store serves no reads: {self.reads_held}", hint="read from another one")
        if after is None:
            return self.state.view
        text = after.token if isinstance(after, Written) else after
        if not text and isinstance(after, Written):
            self._await_lsn(after.lsn, timeout)
            return self.state.view
        self.await_token(Token.decode(text), timeout)
        return self.state.view

    def await_token(self, token: Token, timeout: float | None) -> None:
        """Wait until the history has come to a token's LSN; raise `WriteLost` if it holds another record there."""
        self.history.check(token, token.lsn if token.lsn <= self.state.view.lsn else 0)
        if token.lsn > self.state.view.lsn:
            self._await_lsn(token.lsn, timeout, lambda: self.history.check(token, 0))
            self.history.check(token, self.state.view.lsn)

    def _await_lsn(self, lsn: int, timeout: float | None, check: Callable[[], object] = lambda: None) -> None:
        """Wait for an LSN; `check`, asked after each change, may raise where the wait is in vain."""
        if self.committer is None:
            if lsn > self.state.view.lsn:
                raise DeadlineExceeded(f"LSN {lsn} is above this read-only view's {self.state.view.lsn}")
            return
        with self.committer.applied:
            reached = self.committer.applied.wait_for(
                lambda: self.state.view.lsn >= lsn or self._closed or self._leaving or bool(check()), timeout
            )
        self.check_open()
        if not reached:
            raise DeadlineExceeded(f"LSN {lsn} was not reached in time: this store is at {self.state.view.lsn}")

    @property
    def durable_lsn(self) -> int:
        """Every record up to it is synced."""
        return self.state.view.lsn if self.committer is None else self.committer.durable_lsn

    def token(self, view: View) -> str:
        """Return the token of a view that is durable."""
        return self.history.token(view.epoch, view.lsn, view.chain)

    def memory_bytes(self) -> int:
        """Return about what the store holds in memory, mapped rows included; counted at most once a second."""
        now = time.monotonic()
        if now - self._memory[0] > 1.0:
            views = list(self.state.view.collections.values())
            self._memory = (now, sum(map(_collection_bytes, views)) + self.filters.bytes)
        return self._memory[1]

    def at_barrier(self, action: Callable[[], Any]) -> Any:
        """Run something while no group is under way."""
        return action() if self.committer is None else self.committer.run(action)

    def leave(self) -> None:
        """Refuse calls from now on, and let those that wait for something end: the store will be closed."""
        self._leaving = True
        if self.committer is not None:
            with self.committer.applied:
                self.committer.applied.notify_all()

    def close(self) -> None:
        """Finish what is under way, take a last checkpoint, let the directory go."""
        if self._closed:
            return
        if os.getpid() != self._pid:
            self._closed = True
            return
        self.leave()
        if self.builder is not None and self.checkpointer is not None and self.committer is not None:
            if self.archiver is not None:
                self.archiver.close()
            self.builder.close()
            self.checkpointer.close()
            try:
                if self.committer.broken is None and self.checkpointer.is_due:
                    self.checkpointer.take()
                if self.committer.broken is None and self.witness is not None:
                    self.witness.sync()
            except OSError as exc:
                if isinstance(exc, VecstoreError):
                    raise
                raise Unavailable(
                    f"the last checkpoint of {self.directory.path} was not taken: {exc}",
                    hint="nothing is lost: the log has all, and the next open folds it",
                ) from exc
            finally:
                # Whatever kept the last checkpoint from being taken: the log has all, and the lock must go.
                self.committer.close()
                self._release()
            return
        self._release()

    def _release(self) -> None:
        """Let go of files, threads and the lock."""
        self._closed = True
        if self.accelerator is not None:
            self.accelerator.close()
        self.crew.close()
        self.store.close()
        if self.witness is not None:
            self.witness.close()
        self.directory.close()


def disk_free_bytes(path: str) -> int:
    """Return how much is free on a folder's file system, for who is not root."""
    stat = os.statvfs(path)
    return stat.f_bavail * stat.f_frsize


def _collection_bytes(view: CollectionView) -> int:
    total = 0
    for shard in view.shards:
        total += shard.columns.nbytes + shard.sealed.live.nbytes
        total += sum(growing.extent.size for growing in shard.growing)
        for segment in shard.sealed.segments:
            total += segment.bytes + sum(extent.size for extent in segment.extents)
    return total
