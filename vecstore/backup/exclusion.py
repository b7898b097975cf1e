"""How snapshots and prunes keep out of each other's way, with nothing but objects.

A snapshot says that it is pending *before* it looks which files are there already, and a prune says that it is at
work *before* it looks for pending snapshots. So at least one of the two sees the other: a snapshot waits for a prune,
a prune removes no file while a snapshot is pending. Whoever died is recognised by age, on the repository's own clock:
a snapshot renews what it said every `BEAT_S`, a prune `PRUNING_BEAT_S`, and one that stood still removes nothing more.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec

from ..errors import AlreadyExists, NotFound, Unavailable, VecstoreError
from . import layout
from .repository import Repository

__all__ = ["Prune", "is_snapshot_pending", "pending", "pruning"]

BEAT_S = 60.0
PENDING_STALE_S = 3600.0
PRUNING_BEAT_S = 5.0
PRUNING_STALE_S = 60.0
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
        _await_prune(repository)
        yield
    finally:
        stop.set()
        thread.join()
        # One that stays is taken for dead after a while.
        with suppress(VecstoreError):
            repository.remove([name])


def _await_prune(repository: Repository) -> None:
    give_up_s = time.monotonic() + WAIT_S_MAX
    while True:
        if _stat(repository, layout.PRUNING) is None:
            return
        if _is_dead(repository):
            repository.remove([layout.PRUNING])
            return
        if time.monotonic() > give_up_s:
            raise Unavailable(f"repository: a prune of {repository.where} is still at work", hint="try again later")
        time.sleep(POLL_S)


class Prune:
    """A prune that has said that it is at work, and says so again and again."""

    def __init__(self, repository: Repository, word: bytes) -> None:
        self._repository, self._word = repository, word
        self._said_s = time.monotonic()

    def beat(self) -> None:
        """Say it again."""
        began_s = time.monotonic()
        self._repository.replace(layout.PRUNING, self._word)
        self._said_s = began_s

    def check(self) -> None:
        """Raise `Unavailable` where others may take it for dead: it must remove nothing more."""
        if time.monotonic() - self._said_s > PRUNING_STALE_S / 2:
            raise Unavailable("repository: this prune stood still for too long", hint="run it again")


@contextmanager
def pruning(repository: Repository) -> Iterator[Prune]:
    """Say that a prune is at work, until the block ends.

    Raises
    ------
    Unavailable
        Another one is.
    """
    # Random, since an object that is created again with the same bytes counts as its own.
    word = msgspec.json.encode({"word": secrets.token_hex(8), "host": _host(), "pid": os.getpid()})
    try:
        repository.create(layout.PRUNING, word)
    except AlreadyExists:
        if not _is_dead(repository):
            raise Unavailable(
                f"repository: another prune of {repository.where} is at work",
                hint=f"wait for it; if it died, its word is void after {PRUNING_STALE_S:.0f} s",
            ) from None
        repository.replace(layout.PRUNING, word)
    prune = Prune(repository, word)
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(PRUNING_BEAT_S):
            with suppress(VecstoreError):
                prune.beat()

    thread = threading.Thread(target=beat, name="vecstore-pruning", daemon=True)
    thread.start()
    try:
        yield prune
    finally:
        stop.set()
        thread.join()
        repository.remove([layout.PRUNING])


def _is_dead(repository: Repository) -> bool:
    """Return whether the prune that is said to be at work has died: on this machine by its process, else by age."""
    try:
        said = msgspec.json.decode(repository.read(layout.PRUNING), type=dict[str, Any])
        before_us = repository.stat(layout.PRUNING).modified_us
    except NotFound:
        return True
    except msgspec.MsgspecError:
        return False
    if said.get("host") == _host() and isinstance(said.get("pid"), int):
        try:
            os.kill(said["pid"], 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
    probe = f"clock-{secrets.token_hex(8)}"
    repository.replace(probe, b"")
    now_us = repository.stat(probe).modified_us
    repository.remove([probe])
    return now_us - before_us > PRUNING_STALE_S * 1e6


def _host() -> str:
    """Name this machine since its start, and the namespace in which its process ids mean something."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return secrets.token_hex(8)


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
