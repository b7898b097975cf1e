"""Drills: a failover rehearsed on a clone of this store, beside it, with no effect on it.

The store gives a clone of its durable state, as links: what a snapshot costs it. All the rest happens in processes of
the clone's (`clone.py`): its bytes are verified, it is served as a standby, promoted by the same command as a real one,
and asked and written to by a client. What came of it is held against the plan (`replication/drill.py`), remembered in
the store's folder, and gone from the disk otherwise.
"""

from __future__ import annotations

import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ..api import Database
from ..client.remote import connect
from ..config import MIB
from ..engine.clone import Clone, take_clone
from ..engine.engine import Engine
from ..errors import Exhausted, InvalidArgument, Unavailable, VecstoreError
from ..replication.coding import encode_state
from ..replication.drill import (
    HISTORY_MAX,
    Answer,
    Hit,
    Plan,
    Query,
    Rehearsal,
    Report,
    Seen,
    Step,
    judge,
    line,
    read_history,
)
from ..replication.durable import Durable
from ..replication.epochs import Claim, Identity
from ..replication.lag import Lag, Position, StandbyLag
from ..storage.catalog import Epoch
from ..values import Point
from .clone import CloneServer, run_quietly

__all__ = ["DRILL_FOLDER", "HISTORY_FILE", "Drills", "away"]

DRILL_FOLDER = "drill"
"""In the store's folder: clones of drills under way. What is there when a store opens was left by a crash."""
HISTORY_FILE = "drills.jsonl"
START_S_MAX = 600.0
VERIFY_S_MAX = 3_600.0
CALL_S = 30.0
DISK_SPARE_BYTES = 64 * MIB
"""A clone stops writing before its store would have to."""
MEMORY_SPARE_BYTES = 256 * MIB
"""A clone's process needs it beside its store: code, libraries, buffers."""


class Drills:
    """The drills of one store. Thread-safe; one at a time.

    Parameters
    ----------
    engine
        Returns the open engine.
    described
        What the store says of its replication; an empty mapping where it says nothing.
    was_running
        Whether the store is being served: else its start counts.
    """

    def __init__(
        self,
        engine: Callable[[], Engine],
        described: Callable[[], Mapping[str, Any]],
        *,
        region: str = "",
        was_running: bool = True,
    ) -> None:
        self._engine, self._described = engine, described
        self._region, self._was_running = region, was_running
        self._lock = threading.Lock()
        self._history: list[dict[str, Any]] | None = None
        # What was left by a process that was killed: its links hold space that the store has given up.
        shutil.rmtree(self._folder / DRILL_FOLDER, ignore_errors=True)

    @property
    def _folder(self) -> Path:
        return Path(self._engine().directory.path)

    def history(self) -> list[dict[str, Any]]:
        """Return what drills before have found, oldest first."""
        if self._history is None:
            file = self._folder / HISTORY_FILE
            self._history = read_history(file.read_bytes().splitlines() if file.exists() else [])
        return self._history

    def run(self, plan: Plan) -> Report:
        """Rehearse a failover and remember what came of it.

        Raises
        ------
        InvalidArgument
            The store is no standby.
        Unavailable
            A drill is under way already.
        Exhausted
            A clone does not fit into the memory or the disk that the store may use.
        """
        role = self._described().get("role")
        if role != "standby":
            raise InvalidArgument(f"this store is a {role}: a drill rehearses how a standby takes over")
        if not self._lock.acquire(blocking=False):
            raise Unavailable("a drill of this store is under way", hint="wait until it has ended")
        try:
            shutil.rmtree(self._folder / DRILL_FOLDER, ignore_errors=True)
            report = judge(plan, self._rehearse(plan))
            self._remember(report)
            return report
        finally:
            shutil.rmtree(self._folder / DRILL_FOLDER, ignore_errors=True)
            self._lock.release()

    def _remember(self, report: Report) -> None:
        """Append a line; the oldest go now and then, by a file that takes the place of the old one."""
        file = self._folder / HISTORY_FILE
        self.history()
        with file.open("ab") as history:
            history.write(line(report))
        kept = file.read_bytes().splitlines(keepends=True)
        if len(kept) > 2 * HISTORY_MAX:
            draft = file.with_suffix(".new")
            draft.write_bytes(b"".join(kept[-HISTORY_MAX:]))
            draft.replace(file)
        self._history = None

    # -- the rehearsal -----------------------------------------------------------------------------------------------

    def _rehearse(self, plan: Plan) -> Rehearsal:
        engine = self._engine()
        began_us, durable_lsn = engine.clock.wall_us(), engine.durable_lsn
        lag = msgspec.convert(self._described().get("lag") or {}, Lag)
        options = _options(engine)
        if plan.primary is not None:
            _meet(engine, plan.primary.lsn, plan.meet_s)
        folder = self._folder / DRILL_FOLDER / uuid.uuid4().hex
        folder.mkdir(parents=True)
        steps = _Steps()
        with steps.timed("clone"):
            clone = take_clone(engine, str(folder / "store"), _role)
        understudy = _Understudy(clone, folder, options, steps)
        problem = ""
        try:
            understudy.verify()
            understudy.play(plan)
        except VecstoreError as exc:
            problem = f"{steps.current}: {exc}"
        return Rehearsal(
            began=datetime.fromtimestamp(began_us / 1e6, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            began_s=began_us / 1e6,
            store_id=engine.directory.store_id.hex(),
            region=self._region,
            durable_lsn=durable_lsn,
            lag=lag,
            clone=Seen(clone.source.lsn, clone.source.lsn, clone.source.chain.hex(), understudy.digests),
            steps=tuple(steps.done),
            answers=tuple(understudy.answers),
            damaged=understudy.damaged,
            problem=problem,
            written_lsn=understudy.written_lsn,
            was_running=self._was_running,
            clone_bytes=clone.bytes,
        )


class _Steps:
    """What was done, and how long each took."""

    def __init__(self) -> None:
        self.done: list[Step] = []
        self.current = ""

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Time what is done inside, if it is done."""
        self.current = name
        start_s = time.perf_counter()
        yield
        self.done.append(Step(name, time.perf_counter() - start_s))


@dataclass
class _Understudy:
    """A clone that plays what its standby would have to."""

    clone: Clone
    folder: Path
    options: dict[str, int]
    steps: _Steps
    answers: list[Answer] = field(default_factory=list)
    digests: dict[str, str] = field(default_factory=dict)
    damaged: tuple[str, ...] = ()
    written_lsn: int = 0

    def verify(self) -> None:
        """Recompute the digests from the clone's bytes."""
        with self.steps.timed("verify"):
            text = run_quietly(["verify", self.clone.path, "--json"], VERIFY_S_MAX)
            try:
                found = msgspec.json.decode(text)
                self.digests = {name: one["digest"] for name, one in found["collections"].items()}
                self.damaged = tuple(map(str, found["damaged"]))
            except (msgspec.DecodeError, KeyError) as exc:
                raise Unavailable(f"the clone's bytes were not verified: {text[:200]}") from exc

    def play(self, plan: Plan) -> None:
        """Start, take over, answer, take a write."""
        with self.steps.timed("start"):
            server = CloneServer(Path(self.clone.path), self.folder, self.options)
            try:
                server.wait_ready(START_S_MAX)
            except BaseException:
                server.end()
                raise
        try:
            with connect([server.address], token=server.token, timeout=CALL_S, read_from="any") as standby:
                write = _harmless_write(standby)
            with self.steps.timed("promote"):
                server.command("promote", replaces=self.clone.source.epoch)
            self._serve(server, plan, write)
        finally:
            server.end()

    def _serve(self, server: CloneServer, plan: Plan, write: Callable[[Database], int]) -> None:
        """Be the primary of a client that comes now: its connection counts."""
        with ExitStack() as stack:
            with self.steps.timed("first query"):
                database = stack.enter_context(connect([server.address], token=server.token, timeout=CALL_S))
                if plan.queries:
                    self.answers.append(_ask(database, plan.queries[0]))
                else:
                    database.collections()
            with self.steps.timed("first write"):
                self.written_lsn = write(database)
            with self.steps.timed("other queries"):
                self.answers += [_ask(database, query) for query in plan.queries[1:]]


def _ask(database: Database, query: Query) -> Answer:
    found = database.collection(query.collection).search(query.vector, query.k, filter=query.filter, exact=True)
    return Answer(found.lsn, tuple(Hit(hit.id, float(hit.score)) for hit in found))


def _harmless_write(database: Database) -> Callable[[Database], int]:
    """Return a write that leaves every answer as it is: a point as it stands already, or a collection of its own."""
    for name in database.collections():
        for point in database.collection(name).scan(limit=1, with_vector=True):
            return partial(_write, name, point)
    return _write_new


def _write(name: str, point: Point, database: Database) -> int:
    assert point.vector is not None
    return database.collection(name).upsert([point.id], point.vector[None], [point.payload]).lsn


def _write_new(database: Database) -> int:
    return database.create_collection("drill", 2).upsert([1], np.array([[1.0, 0.0]], np.float32)).lsn


# -- what a clone is, and may take -------------------------------------------------------------------------------------


def _role(lineage: bytes, secret: bytes, epochs: Sequence[Epoch]) -> bytes:
    """Return what makes a clone the standby of a primary that nobody can reach."""
    absent = Identity(lineage, secret, uuid.uuid4().hex)
    return encode_state(Durable("standby", promise=Claim.of(absent, epochs[-1]) if epochs else None))


def away(engine: Engine) -> dict[str, Any]:
    """Return how far behind a stopped standby is, as far as it can know: for how long nothing has come."""
    tip, now_us = engine.state.fold.tip, engine.clock.wall_us()
    applied = Position(tip.lsn, tip.log_bytes, tip.commit_time_us)
    found: dict[str, Any] = msgspec.to_builtins(StandbyLag(applied, now_us, 0.0).lag(applied, 0.0, is_connected=False))
    return found


def _meet(engine: Engine, lsn: int, within_s: float) -> None:
    """Wait until the store has come to where its primary was."""
    if engine.committer is not None:
        with engine.committer.applied:
            engine.committer.applied.wait_for(lambda: engine.state.view.lsn >= lsn, within_s)


def _options(engine: Engine) -> dict[str, int]:
    """Return memory and disk that a clone may take: what is left, and the pages of files that both have mapped."""
    budget, used = engine.config.memory_budget_bytes(), engine.memory_bytes()
    shared = _mapped_bytes(engine)
    left = budget - used - MEMORY_SPARE_BYTES
    own = used - shared
    if left < own:
        raise Exhausted(
            f"a clone would need {(own + MEMORY_SPARE_BYTES) / MIB:,.0f} MiB of memory beside its store, and "
            f"{(budget - used) / MIB:,.0f} MiB of memory_bytes_max are left",
            hint="raise memory_bytes_max, or drill a copy that was restored elsewhere",
            details={"limit": "memory"},
        )
    free = shutil.disk_usage(engine.directory.path).free
    floor = engine.config.disk_free_bytes_min + DISK_SPARE_BYTES
    if free < floor + DISK_SPARE_BYTES:
        raise Exhausted(f"{free / MIB:,.0f} MiB of disk are free: too little for a drill", details={"limit": "disk"})
    return {"memory_bytes_max": left + shared, "disk_free_bytes_min": floor}


def _mapped_bytes(engine: Engine) -> int:
    segments = (
        segment
        for collection in engine.state.view.collections.values()
        for shard in collection.shards
        for segment in shard.sealed.segments
    )
    return sum(extent.size for segment in segments for extent in segment.extents)
