"""A process with a bug planted in the engine: ``python -m tests.crash.planted BUG PART ARGUMENTS``.

`BUGS` names each bug and says in a sentence what is wrong with it. A bug is planted by replacing a function or an
attribute of the engine in this process alone; "none" plants nothing. `PARTS` are what the process then does: pieces of
the crash suite, unchanged. A part that notices something exits with `FOUND`, after saying what.
"""

from __future__ import annotations

import os
import pickle
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import vecstore
from vecstore import request as request_ids
from vecstore.engine.folder import IndexFolder
from vecstore.errors import VecstoreError
from vecstore.storage.rocks import RocksStore
from vecstore.values import Written

from ..support import writer
from ..support.writer import CONFIG
from . import failing
from .bugs import BUGS
from .checks import check_answers, check_digests, check_store
from .history import History

__all__ = ["FOUND", "PARTS"]

FOUND = 3
DIM = 16
CHECKPOINTS = 4
"""More than are retained, so that the log is cut."""
HOT_IDS = 40
HOT_THREADS = 6
HOT_WRITES = 40


def write(arguments: list[str]) -> None:
    """Write a history; the arguments are those of `tests.support.writer`."""
    sys.argv[1:] = arguments
    writer.main()


def fail(arguments: list[str]) -> None:
    """Play a scene of a failing disk; the arguments are those of `tests.crash.failing`."""
    sys.argv[1:] = arguments
    failing.main()


def check(arguments: list[str]) -> None:
    """Open a store and check it against a pickled history."""
    where, history, seed, *mended = arguments
    held = pickle.loads(Path(history).read_bytes())  # The test wrote it.
    assert isinstance(held, History)
    check_store(Path(where), held, int(seed), mended=bool(mended))


def die(arguments: list[str]) -> None:
    """Write a record of many pieces, and die when one of them has been written to a family."""
    where, seed, family, piece = arguments
    db = failing.open_store(where)
    failing.write(db, writer.sayer(1), int(seed), 5)
    _die_at(family, int(piece))
    intent = writer.Intent(0, 5, "upsert", "ints", list(range(0, 6000, 2)), salt=int(seed))
    say = writer.sayer(1)
    say({"intent": {name: getattr(intent, name) for name in writer.Intent.__slots__}})
    writer.carry_out(db, intent)
    raise SystemExit("the record had fewer pieces")


def _die_at(family: str, piece: int) -> None:
    """Let the process end, with all that was written on disk, after so many more writes to a family."""
    original, seen = RocksStore.write, [0]

    def write_and_die(self: RocksStore, batch: Any, **options: Any) -> None:
        original(self, batch, **options)
        if any(put[0] == family for put in getattr(batch, "batch", batch)):
            seen[0] += 1
            if seen[0] == piece:
                self.flush()
                os._exit(0)

    RocksStore.write = write_and_die  # type: ignore[method-assign]


def drop(arguments: list[str]) -> None:
    """Drop a collection in one group with a large write to another, and die when some of that is written."""
    where, _ = arguments
    db: Any = vecstore.open(where, config=CONFIG)
    db.create_collection("gone", DIM).upsert(1, [1.0] * DIM)
    kept = db.create_collection("kept", DIM)
    ids, vectors = list(range(300)), np.ones((300, DIM), np.float32)
    kept.upsert(ids, vectors)
    committer = db.engine.committer
    held, go = threading.Event(), threading.Event()

    def hold() -> None:
        held.set()
        go.wait()

    threading.Thread(target=lambda: committer.run(hold), daemon=True).start()
    held.wait()
    for count, call in enumerate(
        (lambda: db.drop_collection("gone"), lambda: kept.update(ids, vectors=2 * vectors)), 1
    ):
        threading.Thread(target=call, daemon=True).start()
        while committer._queue.qsize() < count:
            threading.Event().wait(0.001)
    _die_at("points", 1)
    go.set()
    threading.Event().wait()


def dropped(arguments: list[str]) -> None:
    """Open what `drop` left: both records were in the log, so both happened."""
    where, _ = arguments
    with vecstore.open(where, config=CONFIG) as db:
        assert db.collections() == ["kept"]
        assert all(
            point.vector is not None and point.vector[0] == 2 for point in db.collection("kept").scan(with_vector=True)
        )
        check_digests(db)


def few(arguments: list[str]) -> None:
    """Write three small records that nothing flushes, and leave without closing."""
    where, seed = arguments
    db = failing.open_store(where, checkpoint_interval_s=3600.0)
    for number in range(1_000, 1_003):
        intent = writer.Intent(0, number, "upsert", "ints", [2 * number], salt=int(seed) + number)
        assert writer.attempt(db, writer.sayer(1), intent)
    os._exit(0)


def checkpoint(arguments: list[str]) -> None:
    """Take a checkpoint during which another record is written, and leave without closing."""
    where, seed = arguments
    db: Any = failing.open_store(where, checkpoint_interval_s=3600.0)
    say = writer.sayer(1)

    def one(number: int) -> None:
        assert writer.attempt(
            db, say, writer.Intent(0, number, "upsert", "ints", [2 * number], salt=int(seed) + number)
        )

    original, number = IndexFolder.sync, [1]

    def write_and_sync(self: IndexFolder) -> None:
        one(number[0])
        number[0] += 1
        original(self)

    IndexFolder.sync = write_and_sync  # type: ignore[method-assign]
    one(0)
    for _ in range(CHECKPOINTS):
        db.engine.checkpointer.take()
    os._exit(0)


REQUEST = b"written only once"[:16]


def under_request(points: Any) -> Written:
    """Write the request's point, under its id."""
    with request_ids.use(REQUEST):
        written: Written = points.upsert(1, [1.0] * DIM)
    return written


def request(arguments: list[str]) -> None:
    """Write a point with a request id, and over it; then retry the request, and leave without closing."""
    where, _ = arguments
    db = vecstore.open(where, config=CONFIG)
    points: Any = db.create_collection("points", DIM)
    retry_request(db, points, first=under_request(points))
    os._exit(0)


def retry_request(db: Any, points: Any, first: Written | None) -> None:
    """Write over the request's point, repeat the request, and assert that it took effect once (I13)."""
    points.upsert(1, [2.0] * DIM)
    lsn = db.status()["lsn"]
    again = under_request(points)
    assert db.status()["lsn"] == lsn, "the request was written again"
    assert points.get(1, with_vector=True)[0].vector[0] == 2.0, "the request came back over a later write"
    assert again.count == 1
    assert first is None or again.token == first.token
    assert db.wait(again.token).lsn <= lsn


def retry(arguments: list[str]) -> None:
    """Retry the request of `request` after a crash."""
    where, _ = arguments
    with vecstore.open(where, config=CONFIG) as db:
        retry_request(db, db.collection("points"), first=None)


def contend(arguments: list[str]) -> None:
    """Write the same few ids from several threads, so that one group holds an id many times; then check."""
    where, seed = arguments
    db = vecstore.open(where, config=CONFIG)
    hot = db.create_collection("hot", DIM, metric="l2", fields={"owner": "int64", "group": "int64"})

    def hammer(thread: int) -> None:
        rng = np.random.default_rng((int(seed), thread))
        for number in range(HOT_WRITES):
            ids = rng.choice(HOT_IDS, rng.integers(1, 6), replace=False).tolist()
            if rng.random() < 0.25:
                hot.delete(ids=ids)
                continue
            payloads = [{"owner": thread, "group": number % 7}] * len(ids)
            vectors = rng.standard_normal((len(ids), DIM), dtype=np.float32)
            if rng.random() < 0.3:
                hot.update(ids, payloads=payloads, vectors=vectors)
            else:
                hot.upsert(ids, vectors, payloads)

    threads = [threading.Thread(target=hammer, args=(thread,)) for thread in range(HOT_THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    check_digests(db)
    check_answers(db, int(seed))
    db.close()
    with vecstore.open(where, config=CONFIG) as again:
        check_digests(again)
        check_answers(again, int(seed))


def churn(arguments: list[str]) -> None:
    """Delete and replace points while their segments are sealed, merged and rebuilt; then check."""
    where, seed = arguments
    rows, step = 14_000, 500
    rng = np.random.default_rng(int(seed))
    vectors = rng.standard_normal((rows, DIM), dtype=np.float32)
    payloads = [{"owner": 0, "group": i % 7} for i in range(rows)]
    db = vecstore.open(where, config=CONFIG)
    points = db.create_collection(
        "points", DIM, metric="l2", index="ivf_pq", fields={"owner": "int64", "group": "int64"}
    )
    ready, done, choice = threading.Event(), threading.Event(), np.random.default_rng((int(seed), 1))

    def remove() -> None:
        ready.wait()
        while not done.is_set():
            points.delete(ids=choice.choice(rows, 60, replace=False).tolist())

    remover = threading.Thread(target=remove)
    remover.start()
    for start in range(0, rows, step):
        part = slice(start, start + step)
        points.upsert(list(range(start, start + step)), vectors[part], payloads[part])
        ready.set()
    for _ in range(3):
        points.upsert(list(range(0, rows, 2)), vectors[::2], payloads[::2])
        # So many that the segment is rewritten, while the other thread goes on.
        points.delete(ids=rng.choice(rows, rows // 2, replace=False).tolist())
        points.optimize()
    done.set()
    remover.join()
    check_digests(db)
    check_answers(db, int(seed))
    db.close()
    with vecstore.open(where, config=CONFIG) as again:
        check_digests(again)
        check_answers(again, int(seed))


PARTS: dict[str, Callable[[list[str]], None]] = {
    "write": write,
    "fail": fail,
    "check": check,
    "die": die,
    "few": few,
    "checkpoint": checkpoint,
    "drop": drop,
    "dropped": dropped,
    "request": request,
    "retry": retry,
    "contend": contend,
    "churn": churn,
}


def main() -> None:
    """Plant the bug and do the part."""
    bug, part, *arguments = sys.argv[1:]
    if bug != "none":
        BUGS[bug].plant()
    try:
        PARTS[part](arguments)
    except (AssertionError, LookupError, VecstoreError) as error:
        print(f"found: {type(error).__name__}: {str(error)[:2000]}", file=sys.stderr)
        traceback.print_exc()
        sys.stderr.flush()
        # Not by way of the interpreter's exit: threads of a store that is open would keep it.
        os._exit(FOUND)


if __name__ == "__main__":
    main()
