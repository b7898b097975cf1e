"""The planted bugs: what could be wrong with the engine, each with a sentence, and how to bring it about.

Each replaces one function or attribute of the engine in the process that calls `plant`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vecstore.engine import extent
from vecstore.engine.checkpoint import Checkpointer
from vecstore.engine.committer import Committer
from vecstore.engine.extent import NEVER
from vecstore.engine.recovery import LogReader
from vecstore.engine.shard import Shard
from vecstore.record import content_hash, log_key
from vecstore.storage import catalog, fold, rocks, witness
from vecstore.storage.base import Batch, Family
from vecstore.storage.fold import Fold, PointsChange, Staged

__all__ = ["BUGS", "Bug"]


@dataclass(frozen=True, slots=True)
class Bug:
    """One bug.

    Attributes
    ----------
    sentence
        What is wrong.
    finder
        Which check of the suites finds it; a function of `test_planted.py`.
    plant
        Brings it about in this process.
    """

    sentence: str
    finder: str
    plant: Callable[[], None]


BUGS: dict[str, Bug] = {}


def bug(finder: str) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Enter a function into the list of bugs, by its name and docstring."""

    def enter(plant: Callable[[], None]) -> Callable[[], None]:
        assert plant.__doc__ is not None
        BUGS[plant.__name__] = Bug(plant.__doc__, finder, plant)
        return plant

    return enter


def replace(owner: Any, name: str, new: Any) -> Any:
    """Put something in place of an attribute that exists; return what was there."""
    old = getattr(owner, name)
    setattr(owner, name, new)
    return old


# -- durability ------------------------------------------------------------------------------------------------------


@bug("power")
def sync_skipped() -> None:
    """Writes are acknowledged without a sync of the log."""
    replace(rocks.RocksStore, "sync", lambda self: None)


@bug("killed")
def witness_runs_ahead() -> None:
    """The witness names a record that was not written yet, so that a sound store is refused."""
    original = witness.Witness.record

    def record(self: witness.Witness, mark: witness.WitnessMark) -> None:
        original(self, witness.WitnessMark(mark.lsn + 1, mark.chain, mark.epoch))

    replace(witness.Witness, "record", record)


@bug("write_ahead_log_lost")
def witness_ignored() -> None:
    """Opening does not compare the end of the log with the witness."""
    replace(witness.Witness, "read", lambda self: None)


# -- the fold --------------------------------------------------------------------------------------------------------


@bug("died_when_applied")
def digest_outside_the_batch() -> None:
    """The digest of a group is written with the next group, not in the batch that applies its own."""
    held: list[tuple[Family, bytes, bytes | None]] = []

    def finish(self: Fold, group: Sequence[Staged], piece: list[tuple[Family, bytes, bytes | None]]) -> None:
        original(self, group, piece)
        late = [put for put in piece if put[1].startswith(catalog.DIGEST) and put[2] is not None]
        piece[:] = [put for put in piece if put not in late] + held
        held[:] = late

    original = replace(Fold, "_finish", finish)


@bug("killed")
def payload_left_out_of_the_digest() -> None:
    """The content hash covers id and vector alone."""

    def of(body: Any, *more: Any) -> PointsChange:
        change = original(body, *more)
        rows = range(len(change.hashes))
        hashes = [content_hash(body.keys[i], b"", body.vectors[i].tobytes()).to_bytes(16, "big") for i in rows]
        return PointsChange(change.body, change.contents, hashes)

    original = replace(PointsChange, "of", staticmethod(of))


@bug("died_between_pieces")
def applied_before_the_points() -> None:
    """The applied LSN is written with the first points of a group, so that a crash forgets the rest."""

    def batches(self: Fold, group: Sequence[Staged], points_max: int) -> Iterator[Batch]:
        pieces = list(original(self, group, points_max))
        yield [*pieces[0], *pieces[-1]]
        yield from pieces[1:-1]

    original = replace(Fold, "batches", batches)


@bug("died_with_a_drop")
def dropped_before_it_is_applied() -> None:
    """A collection is removed with the first points of its group, so that its record cannot be applied again."""

    def batches(self: Fold, group: Sequence[Staged], points_max: int) -> Iterator[Batch]:
        pieces = list(original(self, group, points_max))
        gone = [put for put in pieces[-1] if put[1].startswith(catalog.COLLECTION) and put[2] is None]
        yield [*gone, *pieces[0]]
        yield from pieces[1:]

    original = replace(Fold, "batches", batches)


@bug("died_between_pieces")
def redo_counts_twice() -> None:
    """Redo recomputes digests from points that the crash left half new, instead of taking the commit mark's."""

    def restage(self: Fold, record: Any, *, trust: bool = False) -> Staged:
        if not trust:
            staged: Staged = original(self, record)
            return staged
        change = fold.decode_change(record)
        state = self._after(record.header, change, None)
        return self._take(Staged(record, change if isinstance(change, PointsChange) else None, state))

    original = replace(Fold, "restage", restage)


@bug("contended")
def id_twice_in_a_group() -> None:
    """Digests are counted from the points before the group, without its earlier records of the same id."""

    def old_hashes(self: Fold, *asked: Any) -> list[bytes]:
        self.settle()
        old: list[bytes] = original(self, *asked)
        return old

    original = replace(Fold, "_old_hashes", old_hashes)


@bug("retried")
def request_id_forgotten() -> None:
    """Request ids are not remembered, so that a retry is written again."""
    replace(Fold, "_remember", lambda self, key, entry: None)


@bug("died_between_chunks")
def commit_mark_not_checked() -> None:
    """The last record of the log is taken as whole, whether or not its commit mark is there."""
    replace(LogReader, "_is_whole", staticmethod(lambda pieces: True))


# -- checkpoints -----------------------------------------------------------------------------------------------------


@bug("power")
def checkpoint_not_synced() -> None:
    """Index files are renamed into place without a sync of their content."""

    def fsync(file: int) -> None:
        if "/index/" not in os.readlink(f"/proc/self/fd/{file}"):
            original(file)

    original = replace(os, "fsync", fsync)


@bug("written_beside_a_checkpoint")
def log_cut_above_the_checkpoint() -> None:
    """A checkpoint cuts the log up to the newest record, not up to its own."""

    def enter(self: Checkpointer, entry: Any) -> Any:
        entered = original(self, entry)
        self._store.delete_range(Family.LOG, log_key(0), log_key(self._state.fold.tip.lsn + 1))
        return entered

    original = replace(Checkpointer, "_enter", enter)


@bug("flipped_extents")
def extent_not_checked() -> None:
    """Extents are mapped without comparing their checksums."""
    replace(extent, "_check", lambda *arguments: None)


# -- the committer ---------------------------------------------------------------------------------------------------


@bug("power")
def answered_before_the_sync() -> None:
    """Callers are answered first, and their records are written and synced afterwards."""

    def commit(self: Committer, group: Any) -> None:
        self._answer(group)
        answers, group.answers = group.answers, []
        durable = any(call.ack != "memory" for call, _, _ in answers)
        original(self, group)
        if durable:
            self.sync()

    original = replace(Committer, "commit", commit)


@bug("failed_sync")
def view_published_early() -> None:
    """Readers see a group before its sync, so that they see what a failed sync leaves unknown."""

    def apply(self: Committer, group: Any) -> None:
        original(self, group)
        self.publish()

    original = replace(Committer, "_apply", apply)


# -- segments --------------------------------------------------------------------------------------------------------


@bug("churned")
def sealed_across_a_delete() -> None:
    """Sealing takes every row of the extents it was given as live, whatever died while the index was built."""

    def seal(self: Shard, segment: Any, replaced: Any, extents: Any) -> None:
        for old in extents:
            old.superseded[: old.rows] = NEVER
        original(self, segment, replaced, extents)

    original = replace(Shard, "seal", seal)


@bug("churned")
def tombstone_lost_in_a_merge() -> None:
    """Rewriting a segment takes every row that it copied as live, whatever died since."""

    def rewrite(self: Shard, segment: Any, replaced: Any, old_rows: Any, new_rows: Any) -> None:
        live = self._live_copy()
        np.bitwise_or.at(live, old_rows >> 3, np.uint8(1) << (old_rows & 7).astype(np.uint8))
        self._live, self._dead = live, list(self.sealed.dead)
        original(self, segment, replaced, old_rows, new_rows)

    original = replace(Shard, "rewrite", rewrite)
