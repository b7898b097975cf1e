"""What a member tells its surroundings to do. Values only, carried out in the order of the list.

`Persist` is a barrier: nothing behind it in the list happens before it is durable. A crash may come between any two
actions, and then the rest of the list never happens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from ..record import Record
from ..storage.catalog import Epoch
from .durable import Difference, Durable
from .log import Place
from .messages import Message, Points, Snapshot

__all__ = [
    "Acknowledge",
    "Action",
    "Alarm",
    "Append",
    "Checkpoint",
    "Discard",
    "Export",
    "Fence",
    "Handover",
    "Install",
    "Mend",
    "Open",
    "Persist",
    "ReadArchive",
    "ReadPoints",
    "Reply",
    "Reset",
    "Return",
    "Send",
    "TakeSnapshot",
    "Verify",
]


class _Value(msgspec.Struct, frozen=True):
    """An action: compared by value, never changed."""


class Send(_Value, frozen=True):
    """Send a message to a store; it may be lost."""

    to: str
    message: Message


class Persist(_Value, frozen=True):
    """Write the durable state.

    Attributes
    ----------
    epoch
        Append the record of this epoch in the same synced batch, with everything before it.
    is_synced
        Whether what follows must wait until it is durable.
    """

    state: Durable
    epoch: Epoch | None = None
    is_synced: bool = True


class Append(_Value, frozen=True):
    """Append finished records and apply them; `Synced` reports when they are durable."""

    records: Sequence[Record]


class Handover(_Value, frozen=True):
    """Append a handover record behind every write that was taken; `Synced` reports when it is durable."""

    target: str


class Open(_Value, frozen=True):
    """Take writes, under the log's last epoch."""


class Fence(_Value, frozen=True):
    """Take no writes any more; calls in flight end as unknown."""

    reason: str


class Acknowledge(_Value, frozen=True):
    """Answer the calls that wait for durability up to an LSN, and those that wait for the synchronous standby."""

    durable_lsn: int
    replicated_lsn: int


class TakeSnapshot(_Value, frozen=True):
    """Take a snapshot at the durable LSN, hold the log from there for a slot, and send it as `Snapshot`."""

    to: str
    slot: str


class Install(_Value, frozen=True):
    """Replace the whole store by a snapshot, its request ids included, and report `Installed`."""

    snapshot: Snapshot


class ReadArchive(_Value, frozen=True):
    """Read records after an LSN from the archive and report `ArchiveRead`."""

    after_lsn: int


class ReadPoints(_Value, frozen=True):
    """Read points at the durable LSN and send them as `Points`."""

    to: str
    fork_lsn: int
    ids: tuple[Any, ...]


class Checkpoint(_Value, frozen=True):
    """Take a checkpoint that `Return` can go back to, and report `Checkpointed`."""


class Export(_Value, frozen=True):
    """Export what lies behind the fork, durably, and report `Exported`.

    Attributes
    ----------
    is_complete
        Whether the log holds all of it. If not: the live points newer than the fork, and a mark.
    """

    fork_lsn: int
    is_complete: bool


class Reset(_Value, frozen=True):
    """Drop the log behind the fork and its request ids, set the touched points, and report `WasReset`. Repeatable.

    Attributes
    ----------
    fork
        With its chain, on which both stores agreed: where the log begins right behind it, a slot alone may know it.
    """

    fork: Place
    points: Points


class Return(_Value, frozen=True):
    """Go back to the checkpoint, before anything else."""


class Discard(_Value, frozen=True):
    """Remove the checkpoint."""


class Mend(_Value, frozen=True):
    """Make points that differ what another store has read of them, and report `Mended`. Repeatable.

    What records behind the tip have written is left to them.
    """

    points: Points
    differences: tuple[Difference, ...]


class Verify(_Value, frozen=True):
    """Recompute the digest from the bytes and report `Verified`."""


class Reply(_Value, frozen=True):
    """Answer the operator's command."""

    done: bool
    text: str


class Alarm(_Value, frozen=True):
    """Tell a human."""

    text: str


Action = (
    Send
    | Persist
    | Append
    | Handover
    | Open
    | Fence
    | Acknowledge
    | TakeSnapshot
    | Install
    | ReadArchive
    | ReadPoints
    | Checkpoint
    | Export
    | Reset
    | Return
    | Discard
    | Mend
    | Verify
    | Reply
    | Alarm
)
