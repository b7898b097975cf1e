"""What a repository holds, read into plain values for the plans."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from ..errors import InvalidArgument, NotFound
from ..storage.catalog import Epoch
from . import layout
from .layout import Branch, RangeName
from .manifest import BranchHead, Manifest, decode
from .plan import Lineage
from .repository import Repository

__all__ = ["choose_lineage", "read_lineage", "read_lineages"]

READERS = 8


def read_lineages(repository: Repository) -> list[Lineage]:
    """Read what a repository holds of every lineage.

    Raises
    ------
    Damaged
        A manifest or the head of a branch is not what was written.
    """
    names = list(repository.names(f"{layout.LINEAGES}/"))
    held: dict[str, list[str]] = {}
    for name in names:
        held.setdefault(name.split("/")[1], []).append(name)
    return [_read(repository, lineage, found) for lineage, found in sorted(held.items())]


def read_lineage(repository: Repository, lineage: str) -> Lineage:
    """Read what a repository holds of one lineage; nothing, where it does not know it."""
    return _read(repository, lineage, list(repository.names(f"{layout.LINEAGES}/{lineage}/")))


def choose_lineage(repository: Repository) -> Lineage:
    """Read the lineage that was asked for, or the only one.

    Raises
    ------
    InvalidArgument
        There are several, and none was asked for.
    NotFound
        There is none, or none of that name.
    """
    known = sorted({name.split("/")[1] for name in repository.names(f"{layout.LINEAGES}/")})
    found = [name for name in known if name.startswith(repository.lineage)]
    if not found:
        asked = f" of lineage {repository.lineage!r}" if repository.lineage else ""
        raise NotFound(f"repository: {repository.where} holds nothing{asked}", details={"lineages": known})
    if len(found) > 1:
        raise InvalidArgument(
            f"repository: {repository.where} holds {len(found)} lineages: {', '.join(found)}",
            hint=f"name one of them: {repository.where}#{found[0]}",
            details={"lineages": found},
        )
    return read_lineage(repository, found[0])


def _read(repository: Repository, lineage: str, names: list[str]) -> Lineage:
    prefix = f"{layout.LINEAGES}/{lineage}/"
    manifests: list[str] = []
    heads: dict[Branch, str] = {}
    ranges: dict[Branch, list[RangeName]] = {}
    for name in names:
        parts = name.removeprefix(prefix).split("/")
        if parts[0] == "snapshots" and name.endswith(".json"):
            manifests.append(name)
        elif parts[0] == "archive" and len(parts) == 3:
            branch, found = Branch.parse(parts[1]), RangeName.parse(parts[2])
            if branch is not None and parts[2] == "epoch.json":
                heads[branch] = name
            elif branch is not None and found is not None:
                ranges.setdefault(branch, []).append(found)
    with ThreadPoolExecutor(READERS) as pool:
        documents = list(pool.map(repository.read, [*manifests, *heads.values()]))
    read_manifests = [decode(data, Manifest, name) for data, name in zip(documents, manifests, strict=False)]
    read_heads: dict[Branch, list[Epoch]] = {
        branch: decode(data, BranchHead, name).epochs
        for data, (branch, name) in zip(documents[len(manifests) :], heads.items(), strict=True)
    }
    return Lineage(
        lineage,
        sorted(read_manifests, key=lambda manifest: (manifest.lsn, manifest.wall_time_us)),
        read_heads,
        {branch: sorted(found) for branch, found in ranges.items()},
    )
