"""The file beside a store's files that says what they are: a place in a history, and the checkpoint with the rest."""

from __future__ import annotations

import os

import msgspec

from ...backup.snapshot import Source
from ...errors import Damaged
from ...storage.swap import sync_folder

__all__ = ["MANIFEST", "Manifest", "read_manifest", "write_manifest"]

MANIFEST = "contents.json"


class Manifest(msgspec.Struct, frozen=True):
    """Contents that stand still.

    Attributes
    ----------
    lineage, chain
        In hex.
    checkpoint
        The file in ``index/`` that names all others there: name, bytes, xxh3_128.
    digests
        Of each collection, by name: digest (hex) and points.
    """

    lineage: str
    lsn: int
    epoch: int
    chain: str
    log_bytes: int
    checkpoint: tuple[str, int, str]
    digests: dict[str, tuple[str, int]]

    @classmethod
    def of(cls, source: Source) -> Manifest:
        """Describe a state that stands still."""
        digests = {name: (digest, points) for name, (_, digest, points) in source.collections.items()}
        place = (source.lineage.hex(), source.lsn, source.epoch, source.chain.hex(), source.log_bytes)
        return cls(*place, source.checkpoint, digests)


def write_manifest(folder: str, manifest: Manifest) -> None:
    """Write the manifest of a folder, whole or not at all, and durably."""
    path = os.path.join(folder, MANIFEST)
    with open(path + ".new", "wb") as file:
        file.write(msgspec.json.encode(manifest))
        file.flush()
        os.fsync(file.fileno())
    os.rename(path + ".new", path)
    sync_folder(folder)


def read_manifest(folder: str) -> Manifest:
    """Read the manifest of a folder; raises `Damaged` where there is none, or something else."""
    path = os.path.join(folder, MANIFEST)
    try:
        with open(path, "rb") as file:
            return msgspec.json.decode(file.read(), type=Manifest)
    except (FileNotFoundError, msgspec.MsgspecError) as exc:
        raise Damaged(f"{path} does not say what the contents are: {exc}", details={"path": path}) from exc
