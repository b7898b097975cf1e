"""Files that come from another store, in ``DIR/incoming/``: resumable, checked, durable, and nothing more than files.

A file comes piece by piece under a name of its own and gets its true name once its hash is right and it is synced. So
what is there under its true name is whole, and a transfer that was cut short goes on with the last piece; where other
contents are begun, the files that both have stay. Nothing is put in place here: see `install`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterable, Sequence

import msgspec

from ...backup.transfer import check_file
from ...errors import Damaged, Exhausted, InvalidArgument
from ...storage.swap import sync_folder
from ..engine import disk_free_bytes
from ..kept import INCOMING
from .manifest import MANIFEST
from .points import POINTS

__all__ = ["Incoming", "has_room"]

_TICKET = "ticket.json"
_PART = ".part"

_File = tuple[str, int, str]


class _Ticket(msgspec.Struct, frozen=True):
    """What is coming."""

    id: str
    files: list[_File]


class Incoming:
    """The incoming files of one store's folder. Not thread-safe.

    Attributes
    ----------
    folder
        Where they are.

    Parameters
    ----------
    free_bytes_min
        So much of the file system stays free: a transfer that would leave less is refused before it begins.
    """

    def __init__(self, path: str, free_bytes_min: int = 0) -> None:
        self.folder = os.path.join(os.path.abspath(path), INCOMING)
        self._free_bytes_min = free_bytes_min
        self._files: dict[str, _File] = {}

    def begin(self, id: str, files: Sequence[_File]) -> None:
        """Say what is coming: name, bytes and xxh3_128 of each file. What came before and is not of it goes.

        Raises
        ------
        InvalidArgument
            A name leads elsewhere.
        Exhausted
            The disk has no room for what is still to come. What came before and is of it stays.
        """
        for name, _, _ in files:
            _check_name(name)
        before = self._before()
        self._files = {file[0]: file for file in files}
        same = set() if before is None else set(before.files) & set(self._files.values())
        parts = before is not None and before.id == id
        for found in self._found():
            name = found.removesuffix(_PART)
            if self._files.get(name) not in same or (found != name and not parts):
                os.unlink(os.path.join(self.folder, found))
        for part in ("rocks", "index"):
            os.makedirs(os.path.join(self.folder, part), exist_ok=True)
            sync_folder(os.path.join(self.folder, part))
        self._write_ticket(_Ticket(id, list(files)))
        sync_folder(os.path.dirname(self.folder))
        if not has_room(self.folder, self.lacking_bytes(), self._free_bytes_min):
            raise _full(self.folder, self.lacking_bytes(), self._free_bytes_min)

    def lacking_bytes(self) -> int:
        """Return how many bytes are still to come."""
        return sum(self._files[name][1] - have for name, have in self.missing())

    def missing(self) -> list[tuple[str, int]]:
        """Return the files that are not here yet, each with how many of its bytes are."""
        lacking = [name for name in self._files if not os.path.exists(self._path(name))]
        return [(name, self._size(name + _PART)) for name in lacking]

    def receive(self, name: str, pieces: Iterable[bytes]) -> None:
        """Write the rest of a file, from where `missing` says; it is durable and checked when this returns.

        Raises
        ------
        Damaged
            It is not the file that was named. It begins anew.
        Exhausted
            The disk is full: something else has filled it meanwhile. What came stays.
        """
        _, size, check = self._files[name]
        path = self._path(name)
        try:
            with open(path + _PART, "ab") as file:
                for piece in pieces:
                    file.write(piece)
                    if file.tell() > size:
                        break
                file.flush()
                os.fsync(file.fileno())
        except OSError as exc:
            if exc.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise _full(self.folder, self.lacking_bytes(), self._free_bytes_min) from exc
        got = os.path.getsize(path + _PART)
        if got < size:
            raise Damaged(f"{got} of {size} bytes of {name} came", hint="ask for the rest")
        if check_file(path + _PART) != (size, check):
            os.unlink(path + _PART)
            raise Damaged(f"what came as {name} is not what was named: {got} bytes", details={"file": name})
        os.rename(path + _PART, path)
        sync_folder(os.path.dirname(path))

    @property
    def points(self) -> str:
        """Path of the file of points."""
        return self._path(POINTS)

    def discard(self) -> None:
        """Remove everything."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._files = {}

    def _path(self, name: str) -> str:
        return os.path.join(self.folder, name)

    def _size(self, name: str) -> int:
        with contextlib.suppress(FileNotFoundError):
            return os.path.getsize(self._path(name))
        return 0

    def _before(self) -> _Ticket | None:
        try:
            with open(self._path(_TICKET), "rb") as file:
                return msgspec.json.decode(file.read(), type=_Ticket)
        except (FileNotFoundError, msgspec.MsgspecError):
            return None

    def _found(self) -> list[str]:
        names = [
            os.path.relpath(os.path.join(folder, name), self.folder)
            for folder, _, files in os.walk(self.folder)
            for name in files
        ]
        return [name for name in names if name != _TICKET]

    def _write_ticket(self, ticket: _Ticket) -> None:
        path = self._path(_TICKET)
        with open(path + ".new", "wb") as file:
            file.write(msgspec.json.encode(ticket))
            file.flush()
            os.fsync(file.fileno())
        os.rename(path + ".new", path)
        sync_folder(self.folder)


def has_room(folder: str, needed_bytes: int, free_bytes_min: int) -> bool:
    """Return whether a folder's file system would still have as much free as it must, once so many bytes came."""
    return not needed_bytes or disk_free_bytes(folder) - needed_bytes >= free_bytes_min


def _full(folder: str, needed_bytes: int, free_bytes_min: int) -> Exhausted:
    free = disk_free_bytes(folder)
    return Exhausted(
        f"disk: {needed_bytes} bytes are to be fetched, and {max(0, free - free_bytes_min)} may be: "
        f"of {free} that are free, {free_bytes_min} stay free",
        hint="free space on it, or give the store a larger disk; disk_free_bytes_min is what stays free",
        details={"limit": "disk_free_bytes_min", "needed": needed_bytes, "free": free, "floor": free_bytes_min},
    )


def _check_name(name: str) -> None:
    folder, _, file = name.rpartition("/")
    is_ours = folder in ("rocks", "index") or (not folder and file in (MANIFEST, POINTS))
    if not is_ours or not file or file.startswith(".") or file.endswith(_PART) or "\0" in file:
        raise InvalidArgument(f"file: {name!r} given; it is not one of a store's")
