"""The folder of a store: its format, lock and identity, settled before RocksDB is touched.

::

    DIR/vecstore.json        format file: magic and version; written last, so where it stands the folder is complete
    DIR/vecstore.creating    marker: a creation began here; gone once the format file is durable
    DIR/vecstore.restoring   marker: a restore began here; gone once the format file is durable
    DIR/lock                 flock of the process that writes, its pid inside
    DIR/identity.json        store_id, and the inode of the folder that it was minted for
    DIR/rocks/               RocksDB
    DIR/index/               segment files
    DIR/quarantine/          damaged write-ahead logs, kept until they are proven to be needless
    DIR/witness              see `storage/witness.py`
    DIR/swap.json            other contents are being put in place, see `storage/swap.py`

Invariants
----------
- A folder that is not a store is left untouched: not one file is made, also where opening fails.
- A creation that was cut short at any moment is recognised by its marker, which is durable before anything else is
  made, and completed by the next writable open.
- Every folder made here, parents too, is durable (fsync of it and of what holds it) when `open` returns.
- One process writes. The lock is the kernel's and dies with its holder, so a pid left by kill -9 is no obstacle. A
  forked child does not hold it.
- A copy of the folder has another inode, and so gets a store_id of its own.

A read-only open takes no lock and writes nothing, also while a writer is alive. It sees the store as it is at that
moment: all that was synced, perhaps also writes that were not yet. It does not follow later writes, and files which the
writer removes later may be missed by a read (`Unavailable`): open again then.

This module does the I/O of these small files itself.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import stat
import uuid
import weakref
from typing import Any

from ..errors import (
    Damaged,
    Exhausted,
    InvalidArgument,
    Locked,
    NotFound,
    PermissionDenied,
    Unavailable,
    VecstoreError,
)
from .swap import SWAP_FILE, finish

__all__ = ["FORMAT_VERSION", "RESTORING_FILE", "StoreDirectory", "begin", "complete", "is_store"]

FORMAT_VERSION = 1
_FORMAT_FILE = "vecstore.json"
_MARKER_FILE = "vecstore.creating"
RESTORING_FILE = "vecstore.restoring"
"""Marks a folder in which a restore is under way, or was cut short: no store yet."""
_LOCK_FILE = "lock"
_IDENTITY_FILE = "identity.json"
_MAGIC = "vecstore"
_MARKER_TEXT = b"a vecstore store is being created here\n"
_FOLDERS = ("rocks", "index", "quarantine")

_held: weakref.WeakSet[StoreDirectory] = weakref.WeakSet()


class StoreDirectory:
    """The open folder of one store. Not thread-safe: its owner opens and closes it.

    Attributes
    ----------
    path
        Absolute; symlinks are not resolved.
    created
        Whether this call made the store, or completed a creation that was cut short.
    store_id
        16 bytes, this folder's own.
    is_copied
        The folder was copied, or moved to another file system: `store_id` is new, and not written before `adopt`.
    rocks, index, quarantine, witness
        Paths of the parts.
    """

    def __init__(self, path: str, *, created: bool, store_id: bytes, lock_fd: int, is_copied: bool = False) -> None:
        """Use `StoreDirectory.open`."""
        self.is_copied = is_copied
        self.path = path
        self.created = created
        self.store_id = store_id
        self.rocks, self.index, self.quarantine = (os.path.join(path, name) for name in _FOLDERS)
        self.witness = os.path.join(path, "witness")
        self._lock_fd = lock_fd
        _held.add(self)

    @classmethod
    def open(cls, path: str, *, create: bool, read_only: bool) -> StoreDirectory:
        """Open the folder of a store, or make it.

        Parameters
        ----------
        create
            Make the store where the path is missing or an empty folder. A read-only open makes nothing.

        Raises
        ------
        NotFound
            There is no store, and none is to be made.
        InvalidArgument
            The path is something else, or the store is of a newer format; nothing was touched.
        Damaged
            The format or identity file is not what was written, or RocksDB's folder is missing.
        Locked
            Another process, or this one, has the store open for writing.
        """
        path = _absolute(path)
        try:
            complete = _is_store(path)
            if read_only:
                return cls._open_to_read(path, complete)
            if not complete and not create:
                raise NotFound(f"path: there is no store at {path}", hint="create=True makes one")
            return cls._open_to_write(path, complete)
        except OSError as exc:
            if isinstance(exc, VecstoreError):
                raise
            raise _foreign(exc, path) from exc

    def adopt(self) -> None:
        """Take a copied folder for one of its own: its identity is durable when this returns."""
        if self.is_copied:
            _write_identity(self.path, self.store_id)
            self.is_copied = False

    def close(self) -> None:
        """Let the lock go. Closing twice is harmless."""
        fd, self._lock_fd = self._lock_fd, -1
        if fd >= 0:
            os.close(fd)

    @classmethod
    def _open_to_read(cls, path: str, complete: bool) -> StoreDirectory:
        if not complete:
            raise NotFound(f"path: there is no store at {path}", hint="a read-only open makes none")
        if os.path.exists(os.path.join(path, SWAP_FILE)):
            raise Unavailable(f"path: the contents of {path} are being replaced", hint="try again, or open it to write")
        _check_rocks(path)
        return cls(path, created=False, store_id=_read_identity(path) or uuid.uuid4().bytes, lock_fd=-1)

    @classmethod
    def _open_to_write(cls, path: str, complete: bool) -> StoreDirectory:
        if not complete:
            _make_folders(path)
            _sync_ancestors(path)
            _mark_creation(path)
        lock_fd = _lock(path)
        try:
            finish(path)
            # Another process may have created the store between the look and the lock.
            created = not _is_store(path)
            if not created:
                _check_rocks(path)
            found = _read_identity(path)
            is_copied = found is None and os.path.exists(os.path.join(path, _IDENTITY_FILE))
            store_id = found or (uuid.uuid4().bytes if is_copied else _mint_identity(path))
            for name in _FOLDERS:
                _make_folders(os.path.join(path, name))
            if created:
                _write_durably(path, _FORMAT_FILE, {"magic": _MAGIC, "version": FORMAT_VERSION})
            _remove_marker(path)
            return cls(path, created=created, store_id=store_id, lock_fd=lock_fd, is_copied=is_copied)
        except BaseException:
            os.close(lock_fd)
            raise


def is_store(path: str) -> bool:
    """Return whether a folder has the format file of a store."""
    return os.path.lexists(os.path.join(path, _FORMAT_FILE))


def begin(path: str) -> StoreDirectory:
    """Hold a new or empty folder that is to be filled with the contents of another store; it gets its identity now.

    It may be a folder in which that was begun before. Where only the end of it was missing, it is a store afterwards:
    see `is_store`. `complete` makes it one.

    Raises
    ------
    InvalidArgument
        Something else is in the folder; it was left untouched.
    Locked
        Another process is at it.
    """
    path = _absolute(path)
    marker = os.path.join(path, RESTORING_FILE)
    try:
        if not os.path.exists(marker) and _is_store(path):
            raise InvalidArgument(f"path: there is a store at {path} already; it was left untouched")
        _make_folders(path)
        _sync_ancestors(path)
        if not is_store(path):
            os.close(os.open(marker, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))
            _sync_folder(path)
        lock_fd = _lock(path)
        try:
            finish(path, lambda: complete(path))
            store_id = _read_identity(path) or _mint_identity(path)
            return StoreDirectory(path, created=True, store_id=store_id, lock_fd=lock_fd)
        except BaseException:
            os.close(lock_fd)
            raise
    except OSError as exc:
        if isinstance(exc, VecstoreError):
            raise
        raise _foreign(exc, path) from exc


def complete(path: str) -> None:
    """Make a store of a folder that a restore has filled: its parts are durable, now its format file is, too.

    Done twice it is done once.
    """
    for name in _FOLDERS:
        _make_folders(os.path.join(path, name))
        _sync_folder(os.path.join(path, name))
    _sync_folder(path)
    _write_durably(path, _FORMAT_FILE, {"magic": _MAGIC, "version": FORMAT_VERSION})
    with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(path, RESTORING_FILE))
    _sync_folder(path)


def _leave_to_parent() -> None:
    """Close the locks' descriptors in a forked child: the kernel frees a lock only when its last copy is closed."""
    for directory in list(_held):
        directory.close()


os.register_at_fork(after_in_child=_leave_to_parent)


def _absolute(path: str) -> str:
    if not isinstance(path, (str, os.PathLike)) or not os.fspath(path):
        raise InvalidArgument(f"path: must name a folder, given {path!r}")
    if "\0" in os.fspath(path):
        raise InvalidArgument(f"path: must not hold a zero byte, given {path!r}")
    return os.path.abspath(path)


def _is_store(path: str) -> bool:
    """Whether a complete store is there; False where one may be made.

    Raises
    ------
    InvalidArgument
        Something else is there, or a newer format.
    """
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        if os.path.islink(path):
            raise InvalidArgument(f"path: {path} is a symlink to nothing") from None
        return False
    except NotADirectoryError as exc:
        raise InvalidArgument(f"path: a parent of {path} is not a folder") from exc
    if not stat.S_ISDIR(mode):
        raise InvalidArgument(f"path: {path} is not a folder")
    if os.path.lexists(os.path.join(path, _FORMAT_FILE)):
        _check_format(path)
        return True
    names = os.listdir(path)
    if RESTORING_FILE in names:
        raise InvalidArgument(
            f"path: a restore into {path} was cut short, or is under way; this is no store yet",
            hint="run the restore again, or remove the folder",
        )
    if names and not _is_marked(path):
        raise InvalidArgument(
            f"path: {path} is not a store, and not empty (it holds {min(names)!r}); it was left untouched",
            hint="give an empty or new folder",
        )
    return False


def _check_format(path: str) -> None:
    found = _read_json(path, _FORMAT_FILE)
    version = found.get("version")
    if found.get("magic") != _MAGIC:
        raise InvalidArgument(f"path: {path} is not a store: {_FORMAT_FILE} is not ours; it was left untouched")
    if type(version) is not int or version < 1:
        raise Damaged(f"path: {path} has no valid format version: {version!r}", details={"path": path})
    if version > FORMAT_VERSION:
        raise InvalidArgument(
            f"path: {path} is of format version {version}, and this vecstore knows versions up to {FORMAT_VERSION}; "
            "it was left untouched",
            hint="open it with a newer vecstore",
            details={"version": version, "version_max": FORMAT_VERSION},
        )


def _check_rocks(path: str) -> None:
    rocks = os.path.join(path, "rocks")
    if not os.path.isdir(rocks):
        raise Damaged(f"path: {rocks} is missing", hint="restore the store from a copy", details={"path": rocks})


def _is_marked(path: str) -> bool:
    """Whether a creation began here: the marker may be cut short, but holds nothing else."""
    try:
        with open(os.path.join(path, _MARKER_FILE), "rb") as file:
            return _MARKER_TEXT.startswith(file.read(len(_MARKER_TEXT) + 1))
    except FileNotFoundError:
        return False


def _mark_creation(path: str) -> None:
    fd = os.open(os.path.join(path, _MARKER_FILE), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        os.pwrite(fd, _MARKER_TEXT, 0)
        os.fsync(fd)
    finally:
        os.close(fd)
    _sync_folder(path)


def _remove_marker(path: str) -> None:
    try:
        os.unlink(os.path.join(path, _MARKER_FILE))
    except FileNotFoundError:
        return
    _sync_folder(path)


def _lock(path: str) -> int:
    """Take the lock and leave our pid in it; return its descriptor."""
    fd = os.open(os.path.join(path, _LOCK_FILE), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(fd, 0)
        os.pwrite(fd, b"%d\n" % os.getpid(), 0)
        return fd
    except BlockingIOError as exc:
        holder = _lock_holder(fd)
        os.close(fd)
        mine = holder == os.getpid()
        raise Locked(
            f"path: {path} is open in {'this process' if mine else f'another process (pid {holder})'}",
            hint="use the handle that is open" if mine else "serve it from there, or open it with read_only=True",
            details={"pid": holder, "path": path},
        ) from exc
    except BaseException:
        os.close(fd)
        raise


def _lock_holder(fd: int) -> int | None:
    text = os.pread(fd, 32, 0).strip()
    return int(text) if text.isdigit() else None


def _read_identity(path: str) -> bytes | None:
    """Return the store_id; None where the folder has none that is its own."""
    try:
        found = _read_json(path, _IDENTITY_FILE)
    except FileNotFoundError:
        return None
    try:
        store_id, inode = bytes.fromhex(found["store_id"]), found["inode"]
        if len(store_id) != 16 or type(inode) is not int:
            raise ValueError("store_id or inode")
    except (KeyError, TypeError, ValueError) as exc:
        name = os.path.join(path, _IDENTITY_FILE)
        raise Damaged(
            f"path: {name} is not what was written: {found!r}",
            hint="without the file the store gets a new identity",
            details={"path": name},
        ) from exc
    return store_id if inode == os.stat(path).st_ino else None


def _mint_identity(path: str) -> bytes:
    store_id = uuid.uuid4().bytes
    _write_identity(path, store_id)
    return store_id


def _write_identity(path: str, store_id: bytes) -> None:
    _write_durably(path, _IDENTITY_FILE, {"store_id": store_id.hex(), "inode": os.stat(path).st_ino})


def _read_json(path: str, name: str) -> dict[str, Any]:
    full = os.path.join(path, name)
    with open(full, "rb") as file:
        data = file.read()
    try:
        found = json.loads(data)
    except ValueError as exc:
        raise Damaged(f"path: {full} is not JSON: {exc}", details={"path": full}) from exc
    if not isinstance(found, dict):
        raise Damaged(f"path: {full} holds no JSON object", details={"path": full})
    return found


def _write_durably(path: str, name: str, value: dict[str, Any]) -> None:
    """Write a file whole or not at all: under another name, fsync, rename, fsync of the folder."""
    full = os.path.join(path, name)
    draft = f"{full}.new"
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        os.write(fd, json.dumps(value).encode() + b"\n")
        os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(draft, full)
    _sync_folder(path)


def _make_folders(path: str) -> None:
    """Make a folder and the parents that it lacks, each durable in what holds it."""
    missing = []
    while not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path)
    for folder in reversed(missing):
        try:
            os.mkdir(folder)
        except FileExistsError:
            if not os.path.isdir(folder):
                raise
        _sync_folder(folder)
        _sync_folder(os.path.dirname(folder))


def _sync_ancestors(path: str) -> None:
    """Make the way to a folder durable, also where a creation that was cut short made it and did not sync it."""
    folder = os.path.realpath(path)
    while folder != os.path.dirname(folder):
        folder = os.path.dirname(folder)
        with contextlib.suppress(PermissionError):
            _sync_folder(folder)


def _sync_folder(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _foreign(exc: OSError, path: str) -> VecstoreError:
    if exc.errno in (errno.EACCES, errno.EPERM):
        return PermissionDenied(f"path: {path}: {exc}")
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return Exhausted(f"path: {path}: {exc}", details={"limit": "disk"})
    return Unavailable(f"path: {path}: {exc}")
