"""Contents of an open store for others to fetch: files of one LSN, kept under an id for a while.

They are links, made by the mechanism of snapshots: they cost no space while the store has those files too. The log of
the kept records is in them, and so is the window of request ids. An id that nobody has read from for some time is
let go, and all are when the store is opened again.

Points that somebody asks for by their ids are handed out the same way, as one file.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
import uuid
from collections.abc import Iterable
from typing import NamedTuple

from ...backup.transfer import check_files
from ...errors import InvalidArgument, NotFound, NotPrimary, Overloaded
from ...record import point_key
from ...storage.base import Family
from ...storage.catalog import Tip
from ..engine import Engine
from ..kept import OUTGOING
from ..snapshot import stand_still
from .manifest import MANIFEST, Manifest, write_manifest
from .points import POINTS, encode_point

__all__ = ["EXPIRY_S", "Outgoing", "Taken"]

EXPIRY_S = 900.0
KEPT_MAX = 8
"""Of what is handed out at a time: each holds files that the store may no longer have."""
BUSY_S = 60.0
"""What was read from so lately is being fetched."""
_READ_POINTS = 512


class Taken(NamedTuple):
    """What was taken: its id, its place in the history, and its files as name, bytes, xxh3_128 in hex."""

    id: str
    lsn: int
    chain: bytes
    files: tuple[tuple[str, int, str], ...]


class _Kept:
    """What is kept under one id."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = frozenset(names)
        self.used_s = time.monotonic()


class Outgoing:
    """The contents that an open store hands out. Thread-safe.

    Parameters
    ----------
    expiry_s
        What nobody has read from for so long is let go, when something else is taken or `expire` is called.
    kept_max
        So much is kept at a time; beyond, what was not read from for longest is let go, unless it is being fetched.
    """

    def __init__(self, engine: Engine, expiry_s: float = EXPIRY_S, kept_max: int = KEPT_MAX) -> None:
        self._engine, self._expiry_s, self._kept_max = engine, expiry_s, kept_max
        self._root = os.path.join(engine.directory.path, OUTGOING)
        self._lock = threading.Lock()
        self._kept: dict[str, _Kept] = {}

    def take(self) -> Taken:
        """Keep all of the store as it is now, at a durable LSN.

        Raises
        ------
        NotPrimary
            The store is open read-only.
        Overloaded
            So much is being fetched already that no more is kept.
        """
        if self._engine.checkpointer is None:
            raise NotPrimary("the store is open read-only", hint="let its server do it")
        self._make_room()
        name, folder = self._new()
        try:
            os.makedirs(os.path.join(folder, "index"))
            source = stand_still(self._engine, folder)
            write_manifest(folder, Manifest.of(source))
            names = [f"{part}/{file}" for part in ("index", "rocks") for file in os.listdir(os.path.join(folder, part))]
            names.append(MANIFEST)
            return self._keep(name, source.lsn, source.chain, names)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def take_points(self, ids: Iterable[tuple[int, bytes]]) -> Taken:
        """Keep points, by collection and id key; one that there is not is kept as gone.

        Each is as it was at some LSN since the call began, writers are not held up: whoever sets these points and then
        applies the records up to the LSN that is returned, has them as they were at that.

        Raises
        ------
        Overloaded
            So much is being fetched already that no more is kept.
        """
        self._make_room()
        name, folder = self._new()
        try:
            os.makedirs(folder)
            places = [(int(number), bytes(key)) for number, key in ids]
            with open(os.path.join(folder, POINTS), "wb") as file:
                for start in range(0, len(places), _READ_POINTS):
                    some = places[start : start + _READ_POINTS]
                    found = self._engine.store.get(Family.POINTS, [point_key(number, key) for number, key in some])
                    file.writelines(encode_point(*place, value) for place, value in zip(some, found, strict=True))
            tip = self._engine.at_barrier(self._durable_tip)
            return self._keep(name, tip.lsn, tip.chain, [POINTS])
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def _make_room(self) -> None:
        """Let go what is old, and then, where still too much is kept, what was not read from for longest."""
        self.expire()
        with self._lock:
            oldest = sorted(self._kept, key=lambda id: self._kept[id].used_s)
            over = oldest[: max(0, len(oldest) - self._kept_max + 1)]
            busy = [id for id in over if time.monotonic() - self._kept[id].used_s < min(BUSY_S, self._expiry_s)]
        if busy:
            raise Overloaded(
                f"{len(oldest)} contents of this store are being fetched, {self._kept_max} may be",
                hint="let those that fetch come to an end",
                retry_after_s=BUSY_S,
                details={"kept": len(oldest), "kept_max": self._kept_max},
            )
        for id in over:
            self.release(id)

    def _durable_tip(self) -> Tip:
        if self._engine.committer is not None:
            self._engine.committer.sync()
        return self._engine.state.fold.tip

    def _new(self) -> tuple[str, str]:
        name = uuid.uuid4().hex
        return name, os.path.join(self._root, name)

    def _keep(self, name: str, lsn: int, chain: bytes, names: list[str]) -> Taken:
        folder = os.path.join(self._root, name)
        checks = check_files([os.path.join(folder, file) for file in names])
        with self._lock:
            self._kept[name] = _Kept(names)
        return Taken(name, lsn, chain, tuple((file, *check) for file, check in zip(names, checks, strict=True)))

    def read(self, id: str, name: str, offset: int, bytes_max: int) -> bytes:
        """Return a piece of a file, shorter at its end, empty behind it.

        Raises
        ------
        NotFound
            Nothing is kept under that id, or it was let go.
        InvalidArgument
            It has no such file.
        """
        with self._lock:
            kept = self._kept.get(id)
            if kept is None:
                raise NotFound(f"no contents are kept under {id!r}", hint="ask for them again")
            if name not in kept.names:
                raise InvalidArgument(f"file: {name!r} given; there is no such file in {id}")
            kept.used_s = time.monotonic()
        with open(os.path.join(self._root, id, name), "rb", buffering=0) as file:
            return os.pread(file.fileno(), bytes_max, offset)

    def release(self, id: str) -> None:
        """Let contents go; nothing happens where they are gone."""
        with self._lock:
            known = self._kept.pop(id, None) is not None
        if known:
            shutil.rmtree(os.path.join(self._root, id), ignore_errors=True)

    def expire(self) -> None:
        """Let go what nobody has read from for too long."""
        with self._lock:
            old = [id for id, kept in self._kept.items() if time.monotonic() - kept.used_s >= self._expiry_s]
        for id in old:
            self.release(id)

    def close(self) -> None:
        """Let everything go."""
        for id in list(self._kept):
            self.release(id)
