"""A process that writes a seeded random history and says what it is about to do and what was acknowledged.

``python -m tests.support.writer DIR --seed N`` opens the store DIR and lets each thread carry out an endless stream of
intents (upsert, update, delete, delete by filter, create, rename and drop a collection, optimize). For each it writes a
line before the call and one after it returned, unbuffered, to the journal: what was acknowledged is known after
SIGKILL. What an intent means is a function of the intent alone (`apply`), so that a checker can repeat the history.

Each thread has ids of its own in the shared collections (id modulo threads), and the first thread alone has the
collections that come and go; so the order of effects on one point is the order of one thread's lines, and at a crash
each thread has at most one intent whose fate is open, besides those it wrote with ``ack="memory"`` (which the first
thread does not: that a collection is there already says nothing of what is durable).

Only the public interface is used.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

import vecstore
from vecstore.api import Database
from vecstore.errors import Unavailable
from vecstore.values import Written

__all__ = ["CONFIG", "SHARED", "Intent", "State", "apply", "attempt", "carry_out", "intents", "owner", "run"]

KIB, MIB = 1 << 10, 1 << 20

CONFIG: dict[str, Any] = {
    "checkpoint_log_bytes": 256 * KIB,
    "checkpoint_interval_s": 0.05,
    "write_buffer_bytes": MIB,
    "wal_bytes_max": MIB,
    "unsealed_rows_max": 8_192,
    "disk_free_bytes_min": 0,
    "build_threads": 1,
}
"""Limits so small that checkpoints, flushes, sealing and log cutting happen all the time."""
UNFLUSHED: dict[str, Any] = {
    "checkpoint_log_bytes": 256 * MIB,
    "checkpoint_interval_s": 86_400.0,
    "write_buffer_bytes": 256 * MIB,
    "wal_bytes_max": 256 * MIB,
}
"""Limits that no history of a test reaches: all that is written stays in the write-ahead log."""

SHARED: dict[str, dict[str, Any]] = {
    "ints": {"dim": 64, "metric": "cosine", "fields": {"owner": "int64", "group": "int64"}},
    "strs": {"dim": 24, "metric": "l2", "index": "flat", "shards": 2, "fields": {"owner": "int64", "group": "int64"}},
}
"""The collections that all threads write to, by name, with the arguments of `create_collection`."""
PRIVATE = ("temp", "moved")
"""Names of the collections that the first thread creates, renames and drops."""
PRIVATE_DIM = 8
GROUPS = 7

Do = Literal["upsert", "update", "delete", "delete_filter", "create", "rename", "drop", "optimize"]
State = dict[str, dict[int | str, tuple[bytes, dict[str, Any]]]]
"""Points (bytes of the vector, payload) by id, by collection: what one thread is responsible for."""


@dataclass(frozen=True, slots=True)
class Intent:
    """One call that a thread is about to make.

    Attributes
    ----------
    thread, number
        Which of a thread's intents it is.
    collection
        Name.
    ids
        Of an upsert, update or delete.
    salt
        From which vectors and payloads are made.
    group
        Of a delete by filter.
    ack
        "durable" or "memory".
    """

    thread: int
    number: int
    do: Do
    collection: str
    ids: list[int | str] = field(default_factory=list)
    salt: int = 0
    group: int = 0
    ack: Literal["durable", "memory"] = "durable"

    def dim(self) -> int:
        """Length of the collection's vectors."""
        return int(SHARED[self.collection]["dim"]) if self.collection in SHARED else PRIVATE_DIM

    def vectors(self) -> npt.NDArray[np.float32]:
        """float32 (ids, dim)."""
        return np.random.default_rng(self.salt).standard_normal((len(self.ids), self.dim()), dtype=np.float32)

    def payloads(self) -> list[dict[str, Any]]:
        """One for each id; of an update, what is merged."""
        numbers = range(self.salt, self.salt + len(self.ids))
        if self.do == "update":
            return [{"group": n % GROUPS, "text": None, "salt": n} for n in numbers]
        return [
            {"owner": self.thread, "group": n % GROUPS, "text": f"point {n} é", "tags": [n % 3, "x"], "on": n % 2 == 0}
            for n in numbers
        ]


def owner(id: int | str, threads: int) -> int:
    """Return the thread that alone writes this id in the shared collections."""
    return (id if isinstance(id, int) else int(id[1:])) % threads


# -- what intents mean -----------------------------------------------------------------------------------------------


def apply(state: State, intent: Intent) -> None:
    """Do to a thread's state what the store does when it carries out the intent."""
    name = intent.collection
    if intent.do == "create":
        state.setdefault(name, {})
    if name not in state:
        return
    points = state[name]
    if intent.do == "rename":
        state[_other(name)] = state.pop(name)
    elif intent.do == "drop":
        del state[name]
    elif intent.do == "upsert":
        for id, vector, payload in zip(intent.ids, intent.vectors(), intent.payloads(), strict=True):
            points[id] = (vector.tobytes(), payload)
    elif intent.do == "update":
        _apply_update(points, intent)
    elif intent.do == "delete":
        for id in intent.ids:
            points.pop(id, None)
    elif intent.do == "delete_filter":
        for id in [id for id, (_, payload) in points.items() if payload["group"] == intent.group]:
            del points[id]


def _apply_update(points: dict[int | str, tuple[bytes, dict[str, Any]]], intent: Intent) -> None:
    for id, vector, payload in zip(intent.ids, intent.vectors(), intent.payloads(), strict=True):
        if id in points:
            merged = points[id][1] | payload
            points[id] = (vector.tobytes(), {key: value for key, value in merged.items() if value is not None})


def _other(name: str) -> str:
    return PRIVATE[1 - PRIVATE.index(name)]


# -- the stream of intents -------------------------------------------------------------------------------------------


def intents(seed: int, thread: int, threads: int, first: int = 0) -> Iterator[Intent]:
    """Yield the endless history of one thread."""
    rng = random.Random(f"{seed} {thread}")
    number = first
    while True:
        yield _next_intent(rng, thread, threads, number)
        number += 1


def _next_intent(rng: random.Random, thread: int, threads: int, number: int) -> Intent:
    names = ["ints"] * 6 + ["strs"] * 3 + (list(PRIVATE) if thread == 0 else [])
    name = rng.choice(names)
    salt = rng.randrange(1 << 40)
    if name in PRIVATE and rng.random() < 0.5:
        return Intent(thread, number, rng.choice(("create", "create", "rename", "drop")), name)
    do = rng.choices(("upsert", "update", "delete", "delete_filter", "optimize"), (60, 15, 12, 4, 1))[0]
    ack: Literal["durable", "memory"] = "memory" if thread and rng.random() < 0.2 else "durable"
    if do == "optimize":
        return Intent(thread, number, "optimize", name)
    if do == "delete_filter":
        return Intent(thread, number, "delete_filter", name, group=rng.randrange(GROUPS))
    count = rng.randint(200, 600) if rng.random() < 0.2 and do != "delete" else rng.randint(1, 20)
    numbers = rng.sample(range(thread, 4_000 * threads, threads), count)
    ids: list[int | str] = [f"p{n}" for n in numbers] if name == "strs" else list(numbers)
    return Intent(thread, number, do, name, ids, salt, ack=ack)  # type: ignore[arg-type]


# -- carrying them out -----------------------------------------------------------------------------------------------


def carry_out(db: Database, intent: Intent) -> Written | None:
    """Make the call; None where it returns nothing that can be waited for."""
    name = intent.collection
    if intent.do == "create":
        db.create_collection(name, PRIVATE_DIM, fields={"owner": "int64", "group": "int64"}, exist_ok=True)
    elif intent.do == "rename":
        db.rename_collection(name, _other(name), replace=True)
    elif intent.do == "drop":
        db.drop_collection(name, missing_ok=True)
    elif intent.do == "optimize":
        db.collection(name).optimize()
    elif intent.do == "upsert":
        return db.collection(name).upsert(intent.ids, intent.vectors(), intent.payloads(), ack=intent.ack)
    elif intent.do == "update":
        return db.collection(name).update(
            intent.ids, vectors=intent.vectors(), payloads=intent.payloads(), ack=intent.ack
        )
    elif intent.do == "delete":
        return db.collection(name).delete(ids=intent.ids, ack=intent.ack)
    else:
        return db.collection(name).delete(filter={"owner": intent.thread, "group": intent.group}, ack=intent.ack)
    return None


Say = Callable[[dict[str, Any]], None]


def sayer(fd: int) -> Say:
    """Return a function that writes one line of JSON in one call, past all buffers."""
    lock = threading.Lock()

    def say(line: dict[str, Any]) -> None:
        data = json.dumps(line, separators=(",", ":")).encode() + b"\n"
        with lock:
            while data:
                data = data[os.write(fd, data) :]

    return say


def run(
    db: Database,
    say: Say,
    seed: int,
    thread: int,
    threads: int,
    count: int | None,
    first: int = 0,
    durable: bool = False,
) -> None:
    """Carry out `count` intents of one thread (None: for ever), saying each before and after.

    Ends early when the store has stopped writing.
    """
    for intent in intents(seed, thread, threads, first):
        if count is not None and intent.number - first >= count:
            return
        if not attempt(db, say, replace(intent, ack="durable") if durable else intent):
            return


def attempt(db: Database, say: Say, intent: Intent) -> bool:
    """Carry out one intent, saying it before and after; return whether the store goes on writing."""
    say({"intent": asdict(intent)})
    about: dict[str, Any] = {"thread": intent.thread, "number": intent.number}
    try:
        written = carry_out(db, intent)
    except vecstore.VecstoreError as error:
        say({"error": about | {"type": type(error).__name__, "outcome": error.outcome, "text": str(error)}})
        return error.outcome != "unknown" and (not isinstance(error, Unavailable) or intent.do == "optimize")
    if written is not None:
        about |= {"lsn": written.lsn, "count": written.count, "token": written.token, "ack": written.ack}
    say({"ack": about})
    return True


def main() -> None:
    """Open, write, and leave: closed with ``--close``, else as after a kill."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--count", type=int, help="intents of each thread; endless unless given")
    parser.add_argument("--first", type=int, default=0, help="number of the first intent of each thread")
    parser.add_argument("--journal", type=Path, help="append to this file instead of writing to the standard output")
    parser.add_argument("--durable", action="store_true", help="acknowledge nothing from memory")
    parser.add_argument("--unflushed", action="store_true", help="leave in the write-ahead log all that is written")
    parser.add_argument("--close", action="store_true", help="close the store at the end")
    options = parser.parse_args()
    fd = 1
    if options.journal is not None:
        fd = os.open(options.journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    write_history(options, sayer(fd))


def write_history(options: argparse.Namespace, say: Say) -> None:
    """Open the store and let all threads write."""
    say({"event": "opening"})
    db = vecstore.open(str(options.directory), config=CONFIG | (UNFLUSHED if options.unflushed else {}))
    say({"event": "open", "lsn": db.status()["lsn"]})
    for name, arguments in SHARED.items():
        db.create_collection(name, exist_ok=True, **arguments)
    say({"event": "ready"})

    def write(thread: int) -> None:
        try:
            run(db, say, options.seed, thread, options.threads, options.count, options.first, options.durable)
        except BaseException:  # noqa: BLE001
            # No error but those of the package may reach a caller.
            traceback.print_exc()
            os._exit(70)

    threads = [threading.Thread(target=write, args=(thread,)) for thread in range(options.threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if options.close:
        db.close()
        say({"event": "closed"})
    os._exit(0)


if __name__ == "__main__":
    main()
