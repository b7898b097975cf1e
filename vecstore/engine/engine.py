"""One open store: its parts, put together, and the threads that run beside its callers.

An `Engine` is shared by all handles of one process on one directory, until the last of them closes it.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable
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
from ..record import NO_REQUEST, Kind, Token, log_key
from ..storage.base import Family
from ..storage.catalog import APPLIED, Epoch
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
from .recovery import Recovered, open_storage, recover
from .slots import Slots
from .state import State
from .view import CollectionView, View

__all__ = ["Engine"]

STAGING = "snapshot"
"""Folder in the store's own, where snapshots link what they upload."""


class Engine:
    """The parts of one open store. Thread-safe.

    Attributes
    ----------
    findings
        What recovery mended, in sentences.
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
        self._closed = False
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
        # The log has reached the witness: what a damaged write-ahead log held beyond was never acknowledged.
        for name in os.listdir(self.directory.quarantine):
            shutil.rmtree(os.path.join(self.directory.quarantine, name))
        # A snapshot that was under way when the process before died has left its links.
        shutil.rmtree(os.path.join(self.directory.path, STAGING), ignore_errors=True)
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
        self.committer.start()
        self.builder.start()
        self.checkpointer.start()
        if not self.state.fold.epochs:
            self._begin_epoch()

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
        if self._closed:
            raise Closed(f"the store at {self.directory.path} is closed", hint="open it again")
        if os.getpid() != self._pid:
            raise Closed("the store was opened before this process was forked", hint="open it in this process")

    def submit(self, call: Call) -> Any:
        """Hand a write to the committer and wait for its answer."""
        self.check_open()
        if self.committer is None:
            raise NotPrimary("the store is open read-only", hint="open it with read_only=False")
        result = self.committer.submit(call)
        assert self.builder is not None
        self.builder.wake()
        return result

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

    def _unsealed(self, number: int) -> int:
        view = self.state.view.collections.get(number)
        return 0 if view is None else max(sum(g.rows for g in shard.growing) for shard in view.shards)

    def view(self, after: str | Written | None, timeout: float | None) -> View:
        """Return the newest view, which has the record of a token applied."""
        self.check_open()
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
            self._await_lsn(token.lsn, timeout)
            self.history.check(token, self.state.view.lsn)

    def _await_lsn(self, lsn: int, timeout: float | None) -> None:
        if self.committer is None:
            if lsn > self.state.view.lsn:
                raise DeadlineExceeded(f"LSN {lsn} is above this read-only view's {self.state.view.lsn}")
            return
        with self.committer.applied:
            reached = self.committer.applied.wait_for(lambda: self.state.view.lsn >= lsn or self._closed, timeout)
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

    def close(self) -> None:
        """Finish what is under way, take a last checkpoint, let the directory go."""
        if self._closed:
            return
        if os.getpid() != self._pid:
            self._closed = True
            return
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


def _collection_bytes(view: CollectionView) -> int:
    total = 0
    for shard in view.shards:
        total += shard.columns.nbytes + shard.sealed.live.nbytes
        total += sum(growing.extent.size for growing in shard.growing)
        for segment in shard.sealed.segments:
            total += segment.bytes + sum(extent.size for extent in segment.extents)
    return total
