"""The names of objects in a repository, and what they say. Pure; docs/formats.md describes the same in prose.

::

    vecstore-repository.json                                marker: magic and version
    objects/CC/CHECK-SIZE                                   a file by its content; CC are CHECK's first two digits
    lineages/LINEAGE/snapshots/LSN-ID.json                  manifest of a snapshot
    lineages/LINEAGE/pending/ID.json                        a snapshot is being written: nothing is pruned meanwhile
    lineages/LINEAGE/archive/EPOCH-WRITER/epoch.json        the history of epochs up to this one
    lineages/LINEAGE/archive/EPOCH-WRITER/FIRST-LAST-TIME-TIME-CHAIN.range
    pruning.json                                            a prune is at work: snapshots wait

Numbers have leading zeros, so that names sort as they do. The name of a range says all that a plan needs: first and
last LSN, their commit times (microseconds), and the first 8 bytes of the chain after the last record.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = [
    "Branch",
    "RangeName",
    "epoch_name",
    "manifest_name",
    "object_name",
    "pending_name",
    "split_object",
    "split_where",
]

MARKER = "vecstore-repository.json"
PRUNING = "pruning.json"
OBJECTS = "objects"
LINEAGES = "lineages"

_RANGE = re.compile(r"(\d{20})-(\d{20})-(\d{20})-(\d{20})-([0-9a-f]{16})\.range")
_BRANCH = re.compile(r"(\d{10})-([0-9a-f]{1,32})")
_OBJECT = re.compile(r"objects/[0-9a-f]{2}/([0-9a-f]{32})-(\d+)")


@dataclass(frozen=True, slots=True, order=True)
class Branch:
    """An epoch as a place in the archive: its number and its writer, so that two writers never share one."""

    number: int
    writer: str

    def __str__(self) -> str:
        return f"{self.number:010d}-{self.writer}"

    @classmethod
    def parse(cls, text: str) -> Branch | None:
        """Read a folder's name; None for another."""
        found = _BRANCH.fullmatch(text)
        return cls(int(found[1]), found[2]) if found else None

    def folder(self, lineage: str) -> str:
        """Return the prefix of its objects."""
        return f"{LINEAGES}/{lineage}/archive/{self}/"


@dataclass(frozen=True, slots=True, order=True)
class RangeName:
    """What the name of a range says.

    Attributes
    ----------
    first, last
        LSNs of its records, both included.
    first_us, last_us
        Their commit times.
    chain
        The first 8 bytes of the chain after the last one, in hex.
    """

    first: int
    last: int
    first_us: int
    last_us: int
    chain: str

    def __str__(self) -> str:
        return f"{self.first:020d}-{self.last:020d}-{self.first_us:020d}-{self.last_us:020d}-{self.chain}.range"

    @classmethod
    def parse(cls, text: str) -> RangeName | None:
        """Read a name; None for another."""
        found = _RANGE.fullmatch(text)
        return cls(int(found[1]), int(found[2]), int(found[3]), int(found[4]), found[5]) if found else None


def object_name(check: str, size: int) -> str:
    """Return the name of a file's content."""
    return f"{OBJECTS}/{check[:2]}/{check}-{size}"


def split_object(name: str) -> tuple[str, int] | None:
    """Return check and size of such a name; None for another."""
    found = _OBJECT.fullmatch(name)
    return (found[1], int(found[2])) if found else None


def manifest_name(lineage: str, snapshot: str) -> str:
    """Return the name of a snapshot's manifest."""
    return f"{LINEAGES}/{lineage}/snapshots/{snapshot}.json"


def pending_name(lineage: str, snapshot: str) -> str:
    """Return the name of what says that a snapshot is being written."""
    return f"{LINEAGES}/{lineage}/pending/{snapshot}.json"


def epoch_name(lineage: str, branch: Branch) -> str:
    """Return the name of an epoch's own object, the first of its branch."""
    return f"{branch.folder(lineage)}epoch.json"


def split_where(where: str) -> tuple[str, str, str]:
    """Split ``REPO#LINEAGE/EPOCH-WRITER`` into repository, lineage and branch; what is not named is empty."""
    repository, _, rest = where.partition("#")
    lineage, _, branch = rest.partition("/")
    return repository, lineage, branch
