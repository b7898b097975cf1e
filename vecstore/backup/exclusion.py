"""How snapshots and prunes keep out of each other's way, with nothing but objects.

A snapshot says that it is pending *before* it looks which files are there already, and a prune says that it is at
work *before* it looks for pending snapshots. So at least one of the two sees the other: a snapshot waits for a prune,
a prune removes no file while a snapshot is pending. Whoever died is recognised by age, on the repository's own clock:
a snapshot renews what it said every `BEAT_S`, a prune stops by itself long before its word is taken to be stale.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import msgspec

from ..errors import AlreadyExists, NotFound, Unavailable, VecstoreError
from . import layout
from .repository import Repository

__all__ = ["PRUNE_S_MAX", "is_snapshot_pending", "pending", "pruning"]

BEAT_S = 60.0
PENDING_STALE_S = 3600.0
PRUNING_STALE_S = 3600.0
PRUNE_S_MAX = 1200.0
"""A prune works for so long at most: by then no one may take it for dead."""
WAIT_S_MAX = 600.0
POLL_S = 0.2


@contextmanager
def pending(repository: Repository, lineage: str, snapshot: str) -> Iterator[None]:
    """Say that a snapshot is being written, until the block ends; wait first until no prune is at work."""
    name = layout.pending_name(lineage, snapshot)
    repository.replace(name, b"{}\n")
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(BEAT_S):
            with suppress(VecstoreError):
                repository.replace(name, b"{}\n")

    thread = threading.Thread(target=beat, name="vecstore-snapshot-pending", daemon=True)
    thread.start()
    try:
        _await_prune(repository, name)
        yield
    finally:
        stop.set()
        thread.join()
        # One that stays is taken for dead after a while.
        with suppress(VecstoreError):
            repository.remove([name])


def _await_prune(repository: Repository, mine: str) -> None:
    give_up_s = time.monotonic() + WAIT_S_MAX
    while True:
        at_work = _stat(repository, layout.PRUNING)
        if at_work is None:
            return
        written_us = _stat(repository, mine)
        if written_us is not None and written_us - at_work > PRUNING_STALE_S * 1e6:
            repository.remove([layout.PRUNING])
            return
        if time.monotonic() > give_up_s:
            raise Unavailable(f"repository: a prune of {repository.where} is still at work", hint="try again later")
        time.sleep(POLL_S)
        repository.replace(mine, b"{}\n")


@contextmanager
def pruning(repository: Repository, now_us: int) -> Iterator[None]:
    """Say that a prune is at work, until the block ends.

    Raises
    ------
    Unavailable
        Another one is.
    """
    # Random, since an object that is created again with the same bytes counts as its own.
    word = msgspec.json.encode({"who": secrets.token_hex(8), "since_us": now_us})
    try:
        repository.create(layout.PRUNING, word)
    except AlreadyExists:
        since_us = _stat(repository, layout.PRUNING) or now_us
        if now_us - since_us < PRUNING_STALE_S * 1e6:
            raise Unavailable(
                f"repository: another prune of {repository.where} is at work",
                hint="wait for it; if it died, its word is void an hour after it began",
            ) from None
        repository.replace(layout.PRUNING, word)
    try:
        yield
    finally:
        repository.remove([layout.PRUNING])


def is_snapshot_pending(repository: Repository) -> bool:
    """Return whether a snapshot is being written; what dead ones said is removed. Called while `pruning`."""
    now_us = _stat(repository, layout.PRUNING)
    alive = False
    for name, stored in repository.names(f"{layout.LINEAGES}/").items():
        if name.split("/")[2] != "pending":
            continue
        if now_us is not None and now_us - stored.modified_us > PENDING_STALE_S * 1e6:
            repository.remove([name])
        else:
            alive = True
    return alive


def _stat(repository: Repository, name: str) -> int | None:
    try:
        return repository.stat(name).modified_us
    except NotFound:
        return None
