"""What was left behind a fork, as files of its own: ``DIR/diverged/<UTC time>-<fork LSN>/``.

::

    summary.json     what it is of, and what is in it; see `Summary`
    <number>.parquet one for each collection: the points of each record, in the log's order
    records.jsonl    the records that are not about points: kind, collection, body
    differences.jsonl
                     where the log had been cut, once a snapshot came: the ids that differ, see `differences`
    replayed.jsonl   one line for each replay that came to its end: see `Replay`

Columns: ``lsn``, ``commit_time`` (UTC; null where it is not known), ``source`` (``log``, or ``points`` where the log
was cut and this is what the point was at last), ``operation`` (``upsert`` or ``delete``), ``id``, ``vector``,
``payload`` (JSON). What is in such a folder is written once, whole, and never changed, but for ``replayed.jsonl``, to
which lines are added: see `export`. Here it is read, and replayed into a database through the public interface; an end
of it is made in `drop`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import xxhash

from ... import request
from ...api import Collection, Database
from ...errors import Damaged, NotFound, PermissionDenied
from ...storage.catalog import Definition
from ...storage.swap import sync_folder
from ..kept import DIVERGED

__all__ = [
    "DIVERGED",
    "LeftBehind",
    "Replay",
    "Summary",
    "differing",
    "exports",
    "folder_of",
    "read_export",
    "replay",
    "replays",
    "rows",
]

SUMMARY = "summary.json"
RECORDS = "records.jsonl"
DIFFERENCES = "differences.jsonl"
REPLAYED = "replayed.jsonl"
_ROWS = 2_000
_LIVE_POINTS = 500


class LeftBehind(msgspec.Struct, frozen=True, kw_only=True):
    """What was left behind of one collection.

    Attributes
    ----------
    definition
        As it was at the end of the log; None where the collection was gone by then and nothing else tells.
    was_created
        The collection was created behind the fork.
    is_gone
        It was dropped, or replaced, by the end.
    """

    number: int
    name: str
    file: str
    upserts: int
    deletes: int
    definition: Definition | None
    was_created: bool = False
    is_gone: bool = False


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """What an export is of.

    Attributes
    ----------
    first_lsn
        The first record that is in it.
    is_complete
        Whether all that was left behind is in it. If not, what the log had lost is in it as the points were at last;
        points that were deleted, and values in between, are missing.
    needs_snapshot
        Some of it is about more than points.
    """

    format: int
    name: str
    store_id: str
    lineage: str
    fork_lsn: int
    first_lsn: int
    tip_lsn: int
    tip_chain: str
    is_complete: bool
    needs_snapshot: bool
    records: int
    others: int
    collections: list[LeftBehind]


class Replay(msgspec.Struct, frozen=True, kw_only=True):
    """A replay that came to its end: everything of these collections is durable where it was written.

    Attributes
    ----------
    time
        When it ended, UTC.
    lineage, store_id
        Of the store that it was written to; empty where the caller was not allowed to ask.
    collections
        Numbers of those that were replayed, all of their rows.
    """

    time: str
    lineage: str
    store_id: str
    collections: list[int]


def exports(path: str) -> list[Summary]:
    """Return what was left behind in a store's directory, oldest first. The store may be open."""
    folder = os.path.join(os.path.abspath(path), DIVERGED)
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    return [_summary(os.path.join(folder, name)) for name in names if not name.startswith(".")]


def read_export(path: str, name: str) -> tuple[Summary, list[dict[str, Any]]]:
    """Return an export's summary, and its records that are not about points.

    Raises
    ------
    NotFound
        There is none of that name.
    """
    folder = folder_of(path, name)
    with open(os.path.join(folder, RECORDS), "rb") as file:
        return _summary(folder), [msgspec.json.decode(line) for line in file]


def rows(path: str, name: str, number: int) -> Iterator[dict[str, Any]]:
    """Yield the rows of one collection of an export, in the log's order; it is read in pieces."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(os.path.join(folder_of(path, name), f"{number}.parquet"), pre_buffer=False) as file:
        for batch in file.iter_batches(_ROWS, use_threads=False):
            yield from batch.to_pylist()


def differing(path: str, name: str) -> Iterator[dict[str, Any]]:
    """Yield the ids that differed when a snapshot replaced what was here; none where that was not noted.

    Of each: collection, id, and the LSN of the record that wrote it, ``here`` and ``there``; None for none. What was
    written there at or before the fork and is missing here was deleted behind the fork.
    """
    file = os.path.join(folder_of(path, name), DIFFERENCES)
    if os.path.exists(file):
        with open(file, "rb") as lines:
            yield from map(msgspec.json.decode, lines)


def replay(path: str, name: str, database: Database, collections: set[str] | None = None) -> dict[str, int]:
    """Write and delete in a database what an export holds, record by record; return points by collection.

    Done again, it does nothing that was done already, as long as the database remembers its requests; after that it
    sets the same points again. Collections that were created behind the fork are created where they are missing.

    Parameters
    ----------
    collections
        Names of those that are replayed; None for all that were there at the end.

    Raises
    ------
    NotFound
        There is no such export, or the database lacks a collection; nothing was written.
    """
    summary, _ = read_export(path, name)
    wanted = [left for left in summary.collections if _is_wanted(left, collections)]
    there, where = set(database.collections()), _identity(database)
    for left in wanted:
        if left.name not in there and not (left.was_created and left.definition is not None):
            raise NotFound(
                f"collection {left.name!r} was written behind the fork and is not in the database",
                hint="create it, or leave it out: name the collections to replay",
                details={"collection": left.name},
            )
    done = {}
    for left in wanted:
        collection = _collection(database, left)
        done[left.name] = sum(_call(collection, summary, left, key, some) for key, some in _records(path, name, left))
    if wanted:
        moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        numbers = [left.number for left in wanted]
        _note(path, name, Replay(time=moment, lineage=where[0], store_id=where[1], collections=numbers))
    return done


def replays(path: str, name: str) -> list[Replay]:
    """Return the replays of an export that came to their end. A line that is not whole counts for nothing."""
    file, found = os.path.join(folder_of(path, name), REPLAYED), []
    if os.path.exists(file):
        with open(file, "rb") as lines:
            for line in lines:
                try:
                    found.append(msgspec.json.decode(line, type=Replay))
                except msgspec.MsgspecError:
                    continue
    return found


def _identity(database: Database) -> tuple[str, str]:
    try:
        status = database.status()
    except PermissionDenied:
        return "", ""
    return status["lineage"], status["store_id"]


def _note(path: str, name: str, done: Replay) -> None:
    """Add a line to what is known of replays; it begins a line of its own also behind one that a crash cut off."""
    folder = folder_of(path, name)
    with open(os.path.join(folder, REPLAYED), "ab") as file:
        file.write((b"\n" if file.tell() else b"") + msgspec.json.encode(done) + b"\n")
        file.flush()
        os.fsync(file.fileno())
    sync_folder(folder)


def _is_wanted(left: LeftBehind, collections: set[str] | None) -> bool:
    return not left.is_gone if collections is None else left.name in collections


def _collection(database: Database, left: LeftBehind) -> Collection:
    if left.name in database.collections() or left.definition is None:
        return database.collection(left.name)
    made = left.definition
    return database.create_collection(
        made.name, made.dim, metric=made.metric, fields=made.fields, metadata=made.metadata or None, exist_ok=True
    )


def _records(path: str, name: str, left: LeftBehind) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Yield rows as they were written together, each time with what tells them from others."""
    key, some, live = "", list[dict[str, Any]](), 0
    for row in rows(path, name, left.number):
        mine = f"log {row['lsn']}"
        if row["source"] == "points":
            mine = f"points {live // _LIVE_POINTS}"
            live += 1
        if some and mine != key:
            yield key, some
            some = []
        key = mine
        some.append(row)
    if some:
        yield key, some


def _call(collection: Collection, summary: Summary, left: LeftBehind, key: str, some: list[dict[str, Any]]) -> int:
    # The tip is in it: another export of the same name, in another store's directory, is another request.
    text = f"replay {summary.store_id} {summary.name} {summary.tip_chain} {left.number} {key}"
    with request.use(xxhash.xxh3_128_digest(text.encode())):
        ids = [row["id"] for row in some]
        if some[0]["operation"] == "delete":
            collection.delete(ids=ids)
        else:
            payloads = [msgspec.json.decode(row["payload"]) for row in some]
            collection.upsert(ids, [row["vector"] for row in some], payloads)
    return len(some)


def folder_of(path: str, name: str) -> str:
    """Return where an export is.

    Raises
    ------
    NotFound
        There is none of that name.
    """
    folder = os.path.join(os.path.abspath(path), DIVERGED, name)
    if not name or os.path.basename(name) != name or name.startswith(".") or not os.path.isdir(folder):
        raise NotFound(
            f"export: there is no {name!r} in {os.path.dirname(folder)}", hint="`vecstore diverged list DIR` names them"
        )
    return folder


def _summary(folder: str) -> Summary:
    path = os.path.join(folder, SUMMARY)
    try:
        with open(path, "rb") as file:
            return msgspec.json.decode(file.read(), type=Summary)
    except (FileNotFoundError, msgspec.MsgspecError) as exc:
        raise Damaged(f"{path} does not say what was exported: {exc}", details={"path": path}) from exc
