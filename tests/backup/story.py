"""Random histories of a store that is archived and snapshot, with the oracle's state at every LSN that a call ended at.

A seed decides all of it. Limits are so low that checkpoints and log cuts happen all the time.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import vecstore
from tests.support.oracle import Oracle, OracleCollection
from vecstore import Database

__all__ = ["CONFIG", "Moment", "Story", "await_archive", "check_moment", "contents", "digests", "tell"]

CONFIG: Mapping[str, Any] = {
    "checkpoint_log_bytes": 64 << 10,
    "checkpoint_interval_s": 0.1,
    "group_records_max": 4,
    "write_points_max": 3,
    "write_buffer_bytes": 1 << 20,
    "wal_bytes_max": 1 << 20,
    "disk_free_bytes_min": 1 << 20,
    "archive_interval_s": 0.05,
}
DIM = 4
NAMES = ("a", "b")
ARCHIVED_S_MAX = 60.0


@dataclass(frozen=True)
class Moment:
    """The oracle's state at one LSN.

    Attributes
    ----------
    digests
        By name: digest (hex) and points.
    contents
        By name and id: payload, and the vector's bytes.
    """

    digests: dict[str, tuple[str, int]]
    contents: dict[str, dict[Any, tuple[dict[str, Any], bytes]]]


@dataclass
class Story:
    """What happened.

    Attributes
    ----------
    moments
        By LSN, at the end of each call; 0 is the empty store.
    times
        Commit times by LSN, as the snapshots said them.
    """

    seed: int
    folder: Path
    oracle: Oracle = field(default_factory=Oracle)
    moments: dict[int, Moment] = field(default_factory=lambda: {0: Moment({}, {})})
    snapshots: list[vecstore.Snapshot] = field(default_factory=list)

    @property
    def store(self) -> Path:
        """The store's folder."""
        return self.folder / "store"

    @property
    def repository(self) -> str:
        """The repository's path."""
        return str(self.folder / "repository")


def contents(collection: OracleCollection) -> dict[Any, tuple[dict[str, Any], bytes]]:
    """Return what a collection holds by id."""
    return {id: (payload, vector.tobytes()) for id, (payload, vector) in collection.points.items()}


def digests(db: Database) -> dict[str, tuple[str, int]]:
    """Return digest and count of every collection, as `status` says."""
    found = db.status()["collections"]
    return {name: (entry["digest"], entry["count"]) for name, entry in found.items()}


def tell(seed: int, folder: Path, *, calls: int, snapshots: bool = True, archive: bool = True) -> Story:
    """Let a history happen; all of it is in the repository at the end.

    Parameters
    ----------
    calls
        So many writes, and now and then a snapshot, a checkpoint, a reopening between them.
    """
    story = Story(seed, folder)
    rng = np.random.default_rng(seed)
    repository = story.repository if archive else None
    db = vecstore.open(str(story.store), archive=repository, config=CONFIG)
    try:
        for _ in range(calls):
            _change(db, story, rng)
            _note(db, story)
            chance = rng.random()
            if snapshots and chance < 0.2:
                story.snapshots.append(db.snapshot(story.repository))
            elif chance < 0.3:
                db.checkpoint()  # type: ignore[attr-defined]
            elif chance < 0.4:
                db.close()
                db = vecstore.open(str(story.store), archive=repository, config=CONFIG)
        if archive:
            await_archive(db)
    finally:
        db.close()
    return story


def await_archive(db: Database) -> None:
    """Wait until the archive has all that is durable."""
    give_up_s = time.monotonic() + ARCHIVED_S_MAX
    while db.status()["archive"]["lag_records"]:
        assert time.monotonic() < give_up_s, db.status()["archive"]
        db.wait(db.status()["token"])


def _note(db: Database, story: Story) -> None:
    found = story.oracle.collections
    story.moments[db.status()["lsn"]] = Moment(
        {name: (f"{model.digest():032x}", len(model.points)) for name, model in found.items()},
        {name: contents(model) for name, model in found.items()},
    )


def _change(db: Database, story: Story, rng: np.random.Generator) -> None:
    """Make one random call of the store and of the oracle."""
    oracle = story.oracle
    held = sorted(oracle.collections)
    chance = rng.random()
    if not held or (chance < 0.1 and len(held) < len(NAMES)):
        name = next(n for n in NAMES if n not in held)
        db.create_collection(name, DIM, metric="l2", fields={"size": "int64"}, shards=int(rng.integers(1, 3)))
        oracle.create(name, DIM, "l2", {"size": "int64"})
        return
    name = held[int(rng.integers(len(held)))]
    model, handle = oracle.collections[name], db.collection(name)
    if chance < 0.16 and len(held) > 1:
        db.drop_collection(name)
        oracle.drop(name)
    elif chance < 0.22:
        to = NAMES[int(rng.integers(len(NAMES)))]
        if to != name:
            db.rename_collection(name, to, replace=True)
            oracle.rename(name, to)
    elif chance < 0.27:
        later = f"later{len(model.fields)}"
        handle.add_field(later, "string")
        model.add_field(later, "string")
    elif chance < 0.4:
        ids = rng.integers(0, 60, 8).tolist()
        handle.delete(ids=ids)
        model.delete(ids)
    elif chance < 0.5:
        condition = {"size": {"$lt": int(rng.integers(0, 20))}}
        handle.delete(filter=condition)
        model.delete_where(condition)
    else:
        _write(handle, model, rng, update=chance < 0.6)


def _write(handle: Any, model: OracleCollection, rng: np.random.Generator, *, update: bool) -> None:
    count = 400 if rng.random() < 0.1 else int(rng.integers(1, 12))
    ids = rng.choice(500, count, replace=False).tolist()
    vectors = rng.integers(-3, 4, (count, DIM)).astype(np.float32)
    payloads = [{"size": int(rng.integers(0, 50)), "word": "x" * int(rng.integers(0, 300))} for _ in ids]
    if update:
        handle.update(ids, vectors=vectors, payloads=payloads)
        model.update(ids, vectors, payloads)
    else:
        handle.upsert(ids, vectors, payloads)
        model.upsert(ids, vectors, payloads)


def check_moment(path: Path, moment: Moment) -> None:
    """Open a restored store and compare all that it holds with the oracle."""
    with vecstore.open(str(path), config=CONFIG) as db:
        assert digests(db) == moment.digests
        assert db.verify()["ok"]
        for name, expected in moment.contents.items():
            collection = db.collection(name)
            found = {
                p.id: (p.payload, p.vector.tobytes() if p.vector is not None else b"")
                for p in collection.scan(with_vector=True)
            }
            assert found == expected
            if expected:
                query = np.ones(DIM, np.float32)
                assert {hit.id for hit in collection.search(query, len(expected), exact=True)} == set(expected)
