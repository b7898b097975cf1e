"""What contents are fetched by: files that are kept for somebody for a while, with the hashes that they must have.

A snapshot's ticket names the files of a store; that of points names one file.
"""

from __future__ import annotations

from typing import Any

import msgspec

from ..errors import Damaged

__all__ = ["Ticket", "TicketFile"]


class TicketFile(msgspec.Struct, frozen=True):
    """A file: its name below the folder, its bytes, its xxh3_128 in hex."""

    name: str
    size: int
    check: str


class Ticket(msgspec.Struct, frozen=True):
    """Files that are kept under an id."""

    id: str
    files: tuple[TicketFile, ...]

    @classmethod
    def of(cls, content: Any) -> Ticket:
        """Read a ticket as it came in a message; raises `Damaged` where it is none."""
        try:
            return content if isinstance(content, Ticket) else msgspec.convert(content, cls)
        except msgspec.ValidationError as exc:
            raise Damaged(f"what came is no ticket: {exc}") from exc
