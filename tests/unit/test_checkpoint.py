"""Checkpoints keep what the builder made, also where no record came since the last one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import vecstore

ROWS, DIM = 12_000, 8


def segments(database: Any) -> list[tuple[int, bool]]:
    """Return rows of each sealed segment, and whether it was measured as it is."""
    view = database.engine.state.view
    shards = [shard for collection in view.collections.values() for shard in collection.shards]
    return [(segment.rows, segment.measured) for shard in shards for segment in shard.sealed.segments]


def test_what_was_built_after_the_last_checkpoint_is_there_after_a_reopen(tmp_path: Path) -> None:
    """A checkpoint at the last record stands in front of the builder's work; closing takes another one."""
    where = str(tmp_path / "store")
    rows = np.random.default_rng(1).standard_normal((ROWS, DIM)).astype(np.float32)
    with vecstore.open(where) as database:
        docs = database.create_collection("docs", DIM)
        for start in range(0, ROWS, 1_000):
            docs.upsert(range(start, start + 1_000), rows[start : start + 1_000])
        database.checkpoint()  # type: ignore[attr-defined]
        docs.optimize()
        assert segments(database) == [(ROWS, True)]
    with vecstore.open(where) as database:
        assert segments(database) == [(ROWS, True)]
        database.collection("docs").optimize(timeout=30)


def test_nothing_new_needs_no_checkpoint(tmp_path: Path) -> None:
    """A store that was opened and closed, and searched between, is left as it was."""
    where = str(tmp_path / "store")
    with vecstore.open(where) as database:
        docs = database.create_collection("docs", DIM)
        docs.upsert(range(ROWS // 2), np.random.default_rng(1).random((ROWS // 2, DIM), np.float32))
        docs.optimize()
    with vecstore.open(where) as database:
        checkpointer = database.engine.checkpointer  # type: ignore[attr-defined]
        newest = checkpointer.entries[-1]
        database.collection("docs").search([1.0] * DIM)
        assert not checkpointer.is_due
    with vecstore.open(where) as database:
        assert database.engine.checkpointer.entries[-1] == newest  # type: ignore[attr-defined]
