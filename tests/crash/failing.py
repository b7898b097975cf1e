"""A writer whose disk fails: ``python -m tests.crash.failing SCENE DIR SEED`` under the shim, or on a small disk.

It writes a history as `tests.support.writer` does, brings about the failure, asserts what callers see, and says its
history on the standard output for the test to check after a reopen.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import vecstore
from vecstore.api import Database
from vecstore.errors import VecstoreError

from ..support import shim
from ..support.writer import CONFIG, SHARED, Intent, Say, attempt, run, sayer
from .checks import check_answers, check_counted, read_contents
from .history import History

__all__ = ["SCENES"]

THREADS = 2
WRITES = 15
FILE_BYTES_MAX = 600_000
SAID: list[bytes] = []
"""The lines of this process, for its own judgement."""


def open_store(where: str, **options: Any) -> Database:
    """Open the store with its shared collections."""
    db = vecstore.open(where, config=CONFIG | options)
    for name, arguments in SHARED.items():
        db.create_collection(name, exist_ok=True, **arguments)
    return db


def remembering(say: Say) -> Say:
    """Return a function that keeps each line, and says it."""

    def both(line: dict[str, Any]) -> None:
        SAID.append(json.dumps(line).encode())
        say(line)

    return both


def write(db: Database, say: Say, seed: int, count: int | None, first: int = 0) -> None:
    """Let all threads carry out so many intents each; None: until the store stops."""
    threads = [
        threading.Thread(target=run, args=(db, say, seed, thread, THREADS, count, first)) for thread in range(THREADS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def stopped(db: Database, seed: int) -> None:
    """Assert that the store has stopped writing for good, and still reads right: the last view, and no open call."""
    history = History(threads=THREADS)
    history.add(SAID)
    before = read_contents(db)
    wanted = history.acknowledged_contents()
    assert {name: before[name] for name in before if before[name]} == {n: wanted[n] for n in wanted if wanted[n]}
    for _ in range(3):
        with pytest.raises(VecstoreError) as caught:
            db.collection("ints").upsert(0, np.ones(64, np.float32), [{"owner": 0, "group": 0}])
        assert caught.value.outcome == "refused", "a store that has stopped writes nothing"
    with pytest.raises(VecstoreError):
        db.create_collection("later", 4)
    assert read_contents(db) == before
    check_counted(db)
    check_answers(db, seed)


def failing_call(what: str, code: int, path: str) -> Callable[[Database, Say, int], None]:
    """Return a scene in which one system call fails once, and the next ones would succeed."""

    def scene(db: Database, say: Say, seed: int) -> None:
        write(db, say, seed, WRITES)
        shim.fail(what, code, after=3, times=1, path=path)
        write(db, say, seed + 1, None, first=WRITES)
        shim.lift()
        stopped(db, seed)

    return scene


def failing_group(db: Database, say: Say, seed: int) -> None:
    """The sync of one group fails, in which a point is written that nobody may see."""
    write(db, say, seed, WRITES)
    shim.fail("sync", errno.EIO, times=1, path=".log")
    assert not attempt(db, say, Intent(0, WRITES, "upsert", "ints", [0, 2, 4], salt=seed))
    shim.lift()
    stopped(db, seed)


def failing_index(db: Database, say: Say, seed: int) -> None:
    """Index files cannot be written: nothing of it may reach a caller as a lost write."""
    write(db, say, seed, WRITES)
    shim.fail("write", errno.ENOSPC, path="/index/")
    write(db, say, seed + 1, 3 * WRITES, first=WRITES)
    check_answers(db, seed)
    shim.lift()


def full_disk(db: Database, say: Say, seed: int) -> None:
    """Something else takes the space; the store is told to use the last byte.

    Calls that see that they cannot fit are refused, others fail half way: both are allowed, lost writes are not.
    """
    write(db, say, seed, WRITES)
    fill(leaving=1 << 20)
    write(db, say, seed + 1, 20 * WRITES, first=WRITES)
    failed = [line for line in SAID if b'"Exhausted"' in line or b'"unknown"' in line]
    assert failed, "the disk was not full"
    empty()
    if any(b'"unknown"' in line for line in failed):
        stopped(db, seed)
    else:
        check_counted(db)
        check_answers(db, seed)


def limited_files(db: Database, say: Say, seed: int) -> None:
    """No file may grow beyond a limit, which the write-ahead log or an index file reaches.

    Where an index file does, writes go on, or are refused because rows cannot be indexed; nothing is lost either way.
    """
    write(db, say, seed, 3)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES_MAX, hard))
    write(db, say, seed + 1, 20 * WRITES, first=3)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    if any(b'"unknown"' in line for line in SAID):
        stopped(db, seed)
    else:
        check_counted(db)
        check_answers(db, seed)


def _filler() -> str:
    return os.path.join(os.path.dirname(os.path.abspath(sys.argv[2])), "filler")


def fill(leaving: int) -> None:
    """Take the free space of the disk but for so many bytes; the store may take some meanwhile."""
    done = False
    while not done:
        free = os.statvfs(os.path.dirname(_filler()))
        with open(_filler(), "wb") as file, contextlib.suppress(OSError):
            os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize - leaving)
            done = True


def empty() -> None:
    """Give the space back."""
    os.unlink(_filler())


SCENES: dict[str, Callable[[Database, Say, int], None]] = {
    "sync-eio": failing_call("sync", errno.EIO, ".log"),
    "group-eio": failing_group,
    "write-enospc": failing_call("write", errno.ENOSPC, ".log"),
    "write-eio": failing_call("write", errno.EIO, ".log"),
    "index": failing_index,
    "full": full_disk,
    "files": limited_files,
}


def main() -> None:
    """Play one scene and close the store."""
    scene, where, seed = sys.argv[1], sys.argv[2], int(sys.argv[3])
    db = open_store(where, **({"checkpoint_interval_s": 3600.0} if scene == "group-eio" else {}))
    SCENES[scene](db, remembering(sayer(1)), seed)
    db.close()


if __name__ == "__main__":
    main()
