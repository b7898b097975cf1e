"""A repository: a folder, or a prefix of a bucket, that holds snapshots and archives. The only module with obstore.

Objects are written whole or not at all. Those named by their content may be written twice, with the same bytes; all
others are create-only, but for the two that say who is at work (`pending`, `pruning`). On a local disk an object and
the folders that it is in are synced before a call returns; what was `put` is when `settle` returns, once for all.

Errors are vecstore's: `NotFound`, `PermissionDenied`, `Exhausted` (the disk is full) and, for all that may pass,
`Unavailable`. Object stores' own errors 429 and 5xx and broken connections are tried again with back-off, for up to
`RETRY_S_MAX`. Thread-safe.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from ..errors import (
    AlreadyExists,
    Damaged,
    EngineMissing,
    Exhausted,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
    VecstoreError,
)
from . import layout

try:
    import obstore
    from obstore import exceptions, store
except ImportError as exc:
    raise EngineMissing(
        f"repositories need {exc.name}, which is not installed", hint="pip install 'vecstore-db[backup]'"
    ) from exc

__all__ = ["Repository", "Stored", "check_where", "is_repository", "look", "yield_to_others"]

REPOSITORY_VERSION = 1
REQUEST_S_MAX, CONNECT_S_MAX = 60.0, 10.0
RETRY_S_MAX = 60.0
RETRIES_MAX = 10
PART_BYTES = 8 << 20
PARTS_AT_ONCE = 4
READ_BYTES = 4 << 20
COPY_BYTES = 4 << 20
_SYNC_FILE_RANGE_WRITE = 2
NICENESS = 19
"""Of the threads that move files: who waits for an answer goes first."""
REMOVE_NAMES_MAX = 1_000

_MAGIC = "vecstore repository"
_SCHEMES = ("s3", "gs", "az")


@dataclass(frozen=True, slots=True)
class Stored:
    """What a listing says of an object: its bytes, and when it was written by the repository's own clock."""

    size: int
    modified_us: int


class Repository:
    """An open repository.

    Parameters
    ----------
    request_s_max
        A request to an object store is given up after so long.
    retry_s_max
        What failed and may pass is tried again for so long.

    Attributes
    ----------
    where
        As it was given, without a fragment.
    lineage, branch
        What the fragment asked for, as in ``REPO#LINEAGE/EPOCH-WRITER``; empty where it did not.
    """

    def __init__(
        self,
        where: str,
        *,
        create: bool = False,
        request_s_max: float = REQUEST_S_MAX,
        retry_s_max: float = RETRY_S_MAX,
    ) -> None:
        self.where, self.lineage, self.branch = layout.split_where(_checked(where))
        self._folder = _local_folder(self.where)
        self._synced: set[str] = set()
        self._made: set[str] = set()
        self._lock = threading.Lock()
        if self._folder is not None and not os.path.isdir(self._folder):
            if not create:
                raise NotFound(f"repository: there is none at {self.where}", hint="a snapshot makes one")
            _make_folder(self._folder)
        with self._mapped(self.where):
            self._store: Any = _opened(self.where, self._folder, request_s_max, retry_s_max)
        self._check_marker(create)

    def __repr__(self) -> str:
        return f"<Repository {self.where!r}>"

    def _check_marker(self, create: bool) -> None:
        try:
            data = self.read(layout.MARKER)
        except NotFound:
            if not create:
                raise NotFound(f"repository: {self.where} is not a repository of vecstore") from None
            self._make_marker()
            return
        try:
            found = msgspec.json.decode(data, type=dict[str, Any])
        except msgspec.MsgspecError as exc:
            raise Damaged(f"repository: {layout.MARKER} of {self.where} cannot be read: {exc}") from exc
        if found.get("magic") != _MAGIC:
            raise InvalidArgument(f"repository: {layout.MARKER} of {self.where} is not vecstore's")
        if found.get("version") != REPOSITORY_VERSION:
            raise InvalidArgument(
                f"repository: {self.where} is of version {found.get('version')}, this vecstore knows "
                f"{REPOSITORY_VERSION}",
                hint="use a newer vecstore",
            )

    def _make_marker(self) -> None:
        there = self.names("")
        if layout.MARKER in there:
            # Another one has made it since we looked.
            self._check_marker(create=False)
            return
        for name in there:
            raise InvalidArgument(
                f"repository: {self.where} is not a repository, and not empty: it holds {name!r}",
                hint="give an empty or new folder or prefix",
            )
        marker = msgspec.json.encode({"magic": _MAGIC, "version": REPOSITORY_VERSION})
        try:
            self.create(layout.MARKER, marker)
        except AlreadyExists:
            self._check_marker(create=False)

    @property
    def is_local(self) -> bool:
        """Whether it is a folder of a local disk."""
        return self._folder is not None

    # -- reading -----------------------------------------------------------------------------------------------------

    def names(self, prefix: str) -> dict[str, Stored]:
        """Return all objects below a prefix, which ends with a slash, by name, sorted."""
        found: dict[str, Stored] = {}
        with self._mapped(prefix or self.where):
            for page in obstore.list(self._store, prefix or None, chunk_size=1_000):
                for meta in page:
                    modified_us = int(meta["last_modified"].timestamp() * 1e6)
                    found[meta["path"]] = Stored(meta["size"], modified_us)
        return dict(sorted(found.items()))

    def stat(self, name: str) -> Stored:
        """Return what is known of one object."""
        with self._mapped(name):
            meta = obstore.head(self._store, name)
            return Stored(meta["size"], int(meta["last_modified"].timestamp() * 1e6))

    def read(self, name: str) -> bytes:
        """Return an object's bytes."""
        with self._mapped(name):
            return bytes(obstore.get(self._store, name).bytes())

    def stream(self, name: str) -> Iterator[bytes]:
        """Yield an object's bytes in pieces."""
        with self._mapped(name):
            pieces = obstore.get(self._store, name).stream(min_chunk_size=READ_BYTES)
        while True:
            with self._mapped(name):
                piece = next(pieces, None)
            if piece is None:
                return
            yield bytes(piece)

    # -- writing -----------------------------------------------------------------------------------------------------

    def create(self, name: str, data: bytes) -> None:
        """Write an object that must not exist; one that exists with the same bytes counts as written.

        Raises
        ------
        AlreadyExists
            Another one has the name.
        """
        try:
            with self._mapped(name):
                obstore.put(self._store, name, data, mode="create")
        except AlreadyExists:
            # A try whose answer was lost is tried again, and meets itself.
            if self.read(name) != data:
                raise
        self._sync(name)

    def replace(self, name: str, data: bytes) -> None:
        """Write an object, over an older one if there is one."""
        with self._mapped(name):
            obstore.put(self._store, name, data, use_multipart=False)
        self._sync(name)

    def put_file(self, name: str, path: str, size: int) -> None:
        """Write an object from a local file, in bounded memory; `settle` makes it durable."""
        with self._mapped(name):
            if self._folder is not None:
                _copy(path, size, self._place(name))
                return
            obstore.put(self._store, name, Path(path), chunk_size=PART_BYTES, max_concurrency=PARTS_AT_ONCE)

    def put(self, name: str, pieces: Iterable[bytes]) -> None:
        """Write a large object piece by piece, in bounded memory; `settle` makes it durable."""
        with self._mapped(name):
            obstore.put(self._store, name, iter(pieces), chunk_size=PART_BYTES, max_concurrency=PARTS_AT_ONCE)

    def _place(self, name: str) -> str:
        """Return the path of an object on a local disk, with its folder made."""
        assert self._folder is not None
        path = os.path.join(self._folder, name)
        folder = os.path.dirname(path)
        with self._lock:
            if folder not in self._made:
                os.makedirs(folder, exist_ok=True)
                self._made.add(folder)
        return path

    def settle(self) -> None:
        """Make all durable that was put: a bucket has done so, a local disk is synced once for all."""
        if self._folder is None:
            return
        try:
            fd = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                if _libc().syncfs(fd):
                    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            finally:
                os.close(fd)
        except OSError as exc:
            raise _of_system(exc, self.where) from exc

    def remove(self, names: Iterable[str]) -> None:
        """Remove objects; those that are gone already count as removed."""
        pending = list(names)
        for start in range(0, len(pending), REMOVE_NAMES_MAX):
            for name in pending[start : start + REMOVE_NAMES_MAX]:
                try:
                    with self._mapped(name):
                        obstore.delete(self._store, name)
                except NotFound:
                    continue

    # -- the local disk ----------------------------------------------------------------------------------------------

    def _sync(self, name: str) -> None:
        """Make a new object durable on a local disk, and the folders on the way to it."""
        if self._folder is None:
            return
        try:
            path = os.path.join(self._folder, name)
            _sync_path(path)
            folder = os.path.dirname(path)
            _sync_path(folder)
            while folder != self._folder:
                parent = os.path.dirname(folder)
                with self._lock:
                    known = folder in self._synced
                    self._synced.add(folder)
                if known:
                    return
                _sync_path(parent)
                folder = parent
        except OSError as exc:
            raise _of_system(exc, name) from exc

    @contextmanager
    def _mapped(self, name: str) -> Iterator[None]:
        try:
            yield
        except VecstoreError:
            raise
        except OSError as exc:
            raise _of_system(exc, name) from exc
        except exceptions.BaseError as exc:
            raise _foreign(exc, name) from exc


def check_where(where: str) -> None:
    """Refuse what cannot be the place of a repository; whether one is there is not asked."""
    _local_folder(layout.split_where(_checked(where))[0])


def look(where: str, within_s: float) -> bool:
    """Return whether a place is a repository already, where it answers as one that is or could be made one.

    Raises
    ------
    VecstoreError
        It does not answer within the time, or not as it should; there is no such folder or bucket.
    """
    try:
        Repository(where, request_s_max=within_s, retry_s_max=0.0)
    except NotFound:
        place = layout.split_where(where)[0]
        folder = _local_folder(place)
        if folder is not None:
            if not os.path.isdir(folder):
                raise
            return False
        try:
            next(iter(obstore.list(_opened(place, None, within_s, 0.0), chunk_size=1)), None)
        except exceptions.BaseError as exc:
            raise _foreign(exc, place) from exc
        return False
    return True


def is_repository(where: str) -> bool:
    """Return whether a place is a repository and not a store: a URL, or a folder with the marker."""
    place = layout.split_where(where)[0]
    if "://" in place and urlsplit(place).scheme in (*_SCHEMES, "file"):
        return True
    return os.path.isfile(os.path.join(place, layout.MARKER))


def _checked(where: object) -> str:
    if not isinstance(where, str | os.PathLike) or not os.fspath(where):
        raise InvalidArgument(f"repository: {where!r} given; allowed is a path, or a URL of s3, gs or az")
    return str(os.fspath(where))


def _local_folder(where: str) -> str | None:
    """Return the folder of a local repository; None for a bucket."""
    if "://" not in where:
        return os.path.abspath(where)
    parts = urlsplit(where)
    if parts.scheme == "file":
        return os.path.abspath(parts.path)
    if parts.scheme not in _SCHEMES:
        raise InvalidArgument(
            f"repository: {where!r} given; allowed is a path, or a URL that begins with {', '.join(_SCHEMES)} or file"
        )
    return None


def yield_to_others() -> None:
    """Let who waits for an answer go before this thread, and before those that it starts."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)


@cache
def _begin_runtime() -> None:
    """Let obstore start its threads from one that yields: they inherit that."""

    def begin() -> None:
        yield_to_others()
        obstore.put(store.MemoryStore(), "begin", b"")

    thread = threading.Thread(target=begin, name="vecstore-obstore")
    thread.start()
    thread.join()


def _opened(where: str, folder: str | None, request_s_max: float, retry_s_max: float) -> Any:
    _begin_runtime()
    if folder is not None:
        return store.LocalStore(folder)
    return store.from_url(
        where,
        client_options={
            "timeout": timedelta(seconds=request_s_max),
            "connect_timeout": timedelta(seconds=min(CONNECT_S_MAX, request_s_max)),
            # Options given here replace those of the environment: an endpoint of one's own may be without TLS.
            "allow_http": os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://"),
        },
        retry_config={
            "max_retries": RETRIES_MAX if retry_s_max else 0,
            "retry_timeout": timedelta(seconds=retry_s_max),
            "backoff": {"init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=10), "base": 2},
        },
    )


def _copy(path: str, size: int, target: str) -> None:
    """Copy a file whole or not at all, in the kernel; the disk begins with each piece as the next is copied.

    Without that the sync at the end is most of the time. What a copy that was cut short leaves has a name that
    obstore's listings leave out.
    """
    draft = f"{target}#{int.from_bytes(os.urandom(7), 'big')}"
    source = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        copy = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            at = 0
            while at < size:
                count = os.sendfile(copy, source, at, min(COPY_BYTES, size - at))
                if not count:
                    raise Unavailable(f"repository: {path} became shorter while it was copied")
                _begin_writing(copy, at, count)
                at += count
            os.rename(draft, target)
        except BaseException:
            with suppress(OSError):
                os.unlink(draft)
            raise
        finally:
            os.close(copy)
    finally:
        os.close(source)


def _begin_writing(fd: int, at: int, size: int) -> None:
    """Let the disk begin with a piece of a file. A hint: whether it is durable, the sync at the end says."""
    _libc().sync_file_range(fd, ctypes.c_int64(at), ctypes.c_int64(size), _SYNC_FILE_RANGE_WRITE)


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _make_folder(path: str) -> None:
    try:
        os.makedirs(path, exist_ok=True)
        _sync_path(path)
        _sync_path(os.path.dirname(path))
    except OSError as exc:
        raise _of_system(exc, path) from exc


def _sync_path(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _of_system(exc: OSError, name: str) -> VecstoreError:
    if isinstance(exc, FileNotFoundError):
        return NotFound(f"repository: {name} is not there", details={"object": name})
    return _foreign(exc, name)


def _foreign(exc: Exception, name: str) -> VecstoreError:
    """Return our error for one of obstore's, told apart by class, and by words where it has none."""
    text = str(exc).split("\n\nDebug source")[0].strip()
    message, details = f"repository: {name}: {text}", {"object": name}
    if isinstance(exc, exceptions.AlreadyExistsError):
        return AlreadyExists(message, details=details)
    if isinstance(exc, exceptions.NotFoundError):
        return NotFound(message, details=details)
    if isinstance(exc, exceptions.UnauthenticatedError):
        return Unauthenticated(message, details=details)
    if isinstance(exc, exceptions.PermissionDeniedError | PermissionError) or "os error 13" in text:
        return PermissionDenied(message, details=details)
    if "os error 28" in text or "No space left" in text or "os error 122" in text:
        return Exhausted(message, details={**details, "limit": "disk of the repository"})
    return Unavailable(message, details=details)
