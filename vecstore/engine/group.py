"""A group: records that share one sync, and the calls that wait for it. Filled and committed by the committer."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..storage.fold import Staged
from .calls import Call

__all__ = ["Group"]


@dataclass(slots=True)
class Group:
    """Records that share a sync.

    Attributes
    ----------
    answers
        Each call with the LSN and the number of points to report; no LSN where it had nothing to write.
    located
        Rows that hold a record's ids, by position in `staged`, as long as nothing else was applied since.
    keys
        Ids written by the group, of each collection, record by record.
    written
        Whether some of it may be in the log.
    is_synced
        Whether it is synced though no call waits for that.
    """

    staged: list[Staged] = field(default_factory=list)
    answers: list[tuple[Call, int | None, int]] = field(default_factory=list)
    located: dict[int, list[int]] = field(default_factory=dict)
    keys: dict[int, list[list[bytes]]] = field(default_factory=dict)
    bytes: int = 0
    written: bool = False
    is_synced: bool = False

    @property
    def durable(self) -> bool:
        """Whether any call wants a sync."""
        return self.is_synced or any(call.ack != "memory" for call, _, _ in self.answers)
