"""What a version of vecstore can read: so that contents of a newer one are refused before they are fetched.

A record of a kind that is not known stops its reader when it comes. What records have become, the points and the
collections of a store, does not say what kinds they were of: whoever hands those out, or keeps them for later, says
what a reader must know. That is what the writer's version may write, not what it did write, which nothing remembers
once the log is cut. Pure.
"""

from __future__ import annotations

import msgspec

from ..record import Kind
from .directory import FORMAT_VERSION

__all__ = ["Reads", "this_version"]


class Reads(msgspec.Struct, frozen=True):
    """What a version of vecstore reads, and may write.

    Attributes
    ----------
    format
        The format version of stores.
    kind
        The highest kind of record. The defaults are those of versions that said nothing.
    """

    format: int = 1
    kind: int = 8

    def covers(self, other: Reads) -> bool:
        """Return whether who reads this much can read what another version may have written."""
        return self.format >= other.format and self.kind >= other.kind

    def __str__(self) -> str:
        return f"format {self.format} and records of kinds up to {self.kind}"


def this_version() -> Reads:
    """Return what this version reads."""
    return Reads(FORMAT_VERSION, max(map(int, Kind.__members__.values())))
