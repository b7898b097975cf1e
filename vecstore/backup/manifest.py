"""The manifest of a snapshot, and the history of a branch of the archive: plain values, and their bytes.

A document is one line of JSON and a second line with the xxh3_128 of the first, so that a flipped bit is noticed. Pure.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, TypeVar

import msgspec
import xxhash

from ..errors import Damaged, InvalidArgument
from ..storage.catalog import Epoch
from ..storage.reads import Reads
from .layout import Branch, object_name

__all__ = ["BranchHead", "Manifest", "SnapshotFile", "StoredCollection", "branch_of", "decode", "encode", "time_of"]

MANIFEST_VERSION = 1

T = TypeVar("T", "Manifest", "BranchHead")


class SnapshotFile(msgspec.Struct, frozen=True, array_like=True):
    """A file of a snapshot: its place below the store's folder, bytes, and xxh3_128."""

    path: str
    size: int
    check: str

    @property
    def object(self) -> str:
        """The name of its content in the repository."""
        return object_name(self.check, self.size)


class StoredCollection(msgspec.Struct, frozen=True):
    """What a collection holds in a snapshot: its id, digest (hex) and live points."""

    id: int
    name: str
    digest: str
    points: int


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot: the state of a store at one LSN.

    Attributes
    ----------
    id
        Its name; sorts by LSN.
    epochs
        The history that it is of.
    chain
        After record `lsn`, in hex.
    commit_time_us
        Of record `lsn`; restore to a time means this one.
    wall_time_us
        When the snapshot was taken, by the wall clock.
    checkpoint
        Name, bytes and xxh3_128 of the file in ``index/`` that names all others of its rows and indexes.
    bytes_new
        What was uploaded for it: the rest was in the repository.
    config
        The options that the store ran with.
    needs
        What a reader must know; of versions that said nothing, the default.
    """

    version: int = MANIFEST_VERSION
    id: str
    lineage: str
    epochs: list[Epoch]
    lsn: int
    epoch: int
    chain: str
    log_bytes: int
    commit_time_us: int
    wall_time_us: int
    collections: list[StoredCollection]
    files: list[SnapshotFile]
    checkpoint: tuple[str, int, str]
    bytes_new: int
    config: dict[str, Any]
    written_by: str
    needs: Reads = Reads()

    @property
    def branch(self) -> Branch:
        """The branch that it was taken on."""
        return branch_of(self.epochs)

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(file.size for file in self.files)


class BranchHead(msgspec.Struct, frozen=True, kw_only=True):
    """What begins a branch of the archive.

    Attributes
    ----------
    epochs
        The history of epochs, this branch's own last.
    secret
        The lineage's, in hex: a store that is restored in place from the archive alone needs it.
    """

    version: int = MANIFEST_VERSION
    lineage: str
    epochs: list[Epoch]
    secret: str


def branch_of(epochs: list[Epoch]) -> Branch:
    """Return the branch of a history."""
    return Branch(epochs[-1].number, epochs[-1].writer)


def encode(document: Manifest | BranchHead) -> bytes:
    """Return a document's bytes."""
    line = msgspec.json.encode(document)
    return line + b"\n" + xxhash.xxh3_128_hexdigest(line).encode() + b"\n"


def decode(data: bytes, kind: type[T], name: str) -> T:
    """Read a document.

    Raises
    ------
    Damaged
        The bytes are not what was written.
    InvalidArgument
        A newer version wrote it.
    """
    line, _, check = data.partition(b"\n")
    if check != xxhash.xxh3_128_hexdigest(line).encode() + b"\n":
        raise Damaged(f"repository: {name} is not what was written", details={"object": name})
    try:
        plain = msgspec.json.decode(line, type=dict[str, Any])
        if plain.get("version") != MANIFEST_VERSION:
            raise InvalidArgument(
                f"repository: {name} is of version {plain.get('version')}", hint="use a newer vecstore"
            )
        return msgspec.convert(plain, kind)
    except msgspec.MsgspecError as exc:
        raise Damaged(f"repository: {name} cannot be read: {exc}", details={"object": name}) from exc


def time_of(microseconds: int) -> datetime:
    """Return a time of the log as an aware datetime in UTC."""
    seconds, rest = divmod(microseconds, 1_000_000)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest)
