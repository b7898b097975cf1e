"""Remembers how far an import got, so that the same command continues after an interruption.

A small file in the folder `imports/` of the store, or for a server's store of the user's own state, written anew after
each record that was acknowledged: the place in the files, and the collection's digest and the store's LSN at that
moment.

Why resuming there is safe: the digest stands for the contents of the collection. Where the collection still has the
digest of the bookmark, all rows before the place are in it exactly as the import left them, whatever happened in
between, so they need not be written again. In all other cases the import starts over, which is only slower: writing a
point again changes nothing. One case between the two is common, a process that was killed after its record was
committed and before the bookmark was: then the LSN is one further, and the import continues behind that record's rows
once it has compared each of them with what the store holds.

The file is not synced. One that is torn, missing or old after a power loss fails these tests, and the import starts
over.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import msgspec
import xxhash

__all__ = ["Bookmark", "Shelf"]

_FOLDER = "imports"


class Bookmark(msgspec.Struct, frozen=True):
    """A place in a list of files.

    Attributes
    ----------
    file
        Index of the file in the list.
    row
        The next row of that file.
    base
        Rows of all files before it.
    lsn, lineage, epoch
        The store's, when all rows before the place were written.
    digest
        The collection's, at that LSN.
    """

    file: int = 0
    row: int = 0
    base: int = 0
    lsn: int = 0
    lineage: str = ""
    epoch: int = 0
    digest: str = ""


class Shelf:
    """Holds the bookmark of one import: of these files, with these options, into this collection.

    A file that changed (another size or time) makes it another import.
    """

    def __init__(self, where: str | Path, collection: str, paths: Sequence[str], options: Sequence[str | None]) -> None:
        files = []
        for path in paths:
            state = os.stat(path)
            files.append([os.path.realpath(path), state.st_size, state.st_mtime_ns])
        identity = msgspec.json.encode([collection, files, list(options)])
        self._path = Path(where) / _FOLDER / f"{xxhash.xxh3_128_hexdigest(identity)}.json"

    def take(self) -> Bookmark | None:
        """Return the bookmark, or None where there is none that can be read."""
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=Bookmark)
        except (FileNotFoundError, msgspec.DecodeError):
            return None

    def put(self, bookmark: Bookmark) -> None:
        """Replace the bookmark, whole."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        new = self._path.with_suffix(".new")
        new.write_bytes(msgspec.json.encode(bookmark))
        new.replace(self._path)

    def clear(self) -> None:
        """Remove the bookmark: the import is done."""
        self._path.unlink(missing_ok=True)
        try:
            self._path.parent.rmdir()
        except OSError:
            # Other imports have theirs there.
            return
