"""What stores say to each other, what operators ask, what an engine reports: all that a member is stepped with.

Values only. Messages between stores may be lost, late, repeated and out of order; commands and reports may not.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from ..record import Record, Token
from ..storage.catalog import Epoch
from ..storage.reads import Reads
from .durable import Slot
from .epochs import Claim, Standing
from .log import Place

__all__ = [
    "AbortRejoin",
    "Ack",
    "Adopt",
    "Answer",
    "ArchiveRead",
    "Arriving",
    "Call",
    "Chains",
    "ChainsRequest",
    "Checkpointed",
    "Command",
    "DropSlot",
    "Exported",
    "Frame",
    "HandoverRefusal",
    "Hello",
    "Installed",
    "Mended",
    "Message",
    "NotReplaced",
    "Points",
    "PointsRequest",
    "Promote",
    "Refusal",
    "Rejoin",
    "Report",
    "Returned",
    "Snapshot",
    "SnapshotRequest",
    "StepDown",
    "SteppedDown",
    "Switchover",
    "Synced",
    "Verified",
    "WasReset",
    "Welcome",
    "YieldRequest",
]

Why = Literal["not primary", "slot taken", "ahead", "beside", "unproven", "too old", "older version"]


class _Value(msgspec.Struct, frozen=True):
    """A message: compared by value, never changed."""


# -- between stores --------------------------------------------------------------------------------------------------


class Hello(_Value, frozen=True):
    """A standby dials: who it is, what it has, the highest claim that it knows."""

    session: int
    standing: Standing
    promise: Claim | None
    slot: str


class Welcome(_Value, frozen=True):
    """The primary accepts a standby; frames follow under this session."""

    session: int
    claim: Claim


class Refusal(_Value, frozen=True):
    """A store does not feed another, and why.

    "too old" is said only of a log that is proven: a snapshot may be installed over it. The epochs are those of the
    history that it is to follow, so that it takes nothing else from an archive. "older version" is said of who asks for
    a snapshot that it could not read: what it would need to.
    """

    session: int
    why: Why
    promise: Claim | None
    epochs: tuple[Epoch, ...] = ()
    needs: Reads | None = None


class Frame(_Value, frozen=True):
    """Records after a place, none above the primary's durable LSN; without records, a heartbeat.

    Attributes
    ----------
    tip_lsn
        The primary's durable LSN.
    """

    session: int
    claim: Claim
    before: Place
    records: tuple[Record, ...]
    tip_lsn: int
    peers: tuple[str, ...]
    slots: tuple[Slot, ...]


class Ack(_Value, frozen=True):
    """A standby has everything up to here on its disk."""

    session: int
    durable: Place
    applied_lsn: int


class Call(_Value, frozen=True):
    """A primary, new or starting, says who it is and wants an answer; the session is that of its start."""

    session: int
    promise: Claim | None
    standing: Standing


class Answer(_Value, frozen=True):
    """The answer to a call: what this store has promised, durably, and what it has."""

    session: int
    promise: Claim | None
    standing: Standing


class YieldRequest(_Value, frozen=True):
    """A standby that is being promoted asks the primary of an epoch to step down."""

    number: int
    standing: Standing


class SteppedDown(_Value, frozen=True):
    """The primary of an epoch acknowledges nothing more; this is all that it has."""

    number: int
    standing: Standing


class HandoverRefusal(_Value, frozen=True):
    """A standby that was handed the log has durably refused it."""

    place: Place
    standing: Standing


class SnapshotRequest(_Value, frozen=True):
    """A standby asks for a snapshot to install over a log that is proven, or exported; and says what it can read."""

    standing: Standing
    slot: str
    is_exported: bool
    reads: Reads = Reads()


class Snapshot(_Value, frozen=True):
    """A snapshot at a durable LSN; the content is the engine's affair."""

    claim: Claim
    place: Place
    content: Any


class ChainsRequest(_Value, frozen=True):
    """A store that rejoins asks for the history: the epochs, and the chains at some LSNs."""

    standing: Standing
    lsns: tuple[int, ...]


class Chains(_Value, frozen=True):
    """The primary's history, and its chains at the LSNs that were asked for, as far as it knows them."""

    claim: Claim
    standing: Standing
    chains: tuple[tuple[int, bytes | None], ...]


class PointsRequest(_Value, frozen=True):
    """A store that rejoins asks for the points that its left-behind records touched."""

    fork: Place
    ids: tuple[Any, ...]


class Points(_Value, frozen=True):
    """Those points at a durable LSN of the primary; the content is the engine's affair."""

    claim: Claim
    fork_lsn: int
    lsn: int
    content: Any


Message = (
    Hello
    | Welcome
    | Refusal
    | Frame
    | Ack
    | Call
    | Answer
    | YieldRequest
    | SteppedDown
    | HandoverRefusal
    | SnapshotRequest
    | Snapshot
    | ChainsRequest
    | Chains
    | PointsRequest
    | Points
)

# -- commands --------------------------------------------------------------------------------------------------------


class Promote(_Value, frozen=True):
    """Make this store the primary.

    Attributes
    ----------
    replaces
        The epoch that it replaces.
    wait
        First wait until the log holds this token's record.
    """

    replaces: int
    max_loss: int = 0
    force: bool = False
    wait: Token | None = None


class StepDown(_Value, frozen=True):
    """Make this primary acknowledge nothing more."""


class Switchover(_Value, frozen=True):
    """Hand over to a standby, through the log.

    Attributes
    ----------
    within_s
        Refused where the standby would need longer to have all that is here: nobody could write meanwhile. 0 for the
        time that a promotion waits for the records of a primary that stepped down.
    """

    target: str
    within_s: float = 0.0


class Rejoin(_Value, frozen=True):
    """Become a standby of a primary, setting aside what it does not have."""

    primary: str


class AbortRejoin(_Value, frozen=True):
    """Return to what this store was before its rejoin."""


class Adopt(_Value, frozen=True):
    """Say of a copied directory that it moved; one that is a clone leaves the lineage instead."""


class DropSlot(_Value, frozen=True):
    """Hold the log no longer for a slot.

    Attributes
    ----------
    is_gone
        Its store will never come back: forget it as a peer too. A store that is forgotten and lives is not told of new
        epochs.
    """

    name: str
    is_gone: bool = False


Command = Promote | StepDown | Switchover | Rejoin | AbortRejoin | Adopt | DropSlot

# -- reports of the engine -------------------------------------------------------------------------------------------


class Synced(_Value, frozen=True):
    """The log's durable LSN has moved on; `Log` says to where."""


class Installed(_Value, frozen=True):
    """A snapshot is in place of what was here, durably."""

    lsn: int


class ArchiveRead(_Value, frozen=True):
    """Records from the archive, after an LSN; none where it does not reach."""

    after_lsn: int
    records: tuple[Record, ...]


class Checkpointed(_Value, frozen=True):
    """The checkpoint before a rejoin is taken."""


class Exported(_Value, frozen=True):
    """What was left behind is exported, durably; these ids were touched by it.

    Attributes
    ----------
    fork_lsn
        Of the action that is reported: where another fork was found meanwhile, this is not the export of it.
    needs_snapshot
        Some of it was about more than points (collections, their fields, names): setting points does not undo it.
    """

    fork_lsn: int
    ids: tuple[Any, ...]
    needs_snapshot: bool = False


class NotReplaced(_Value, frozen=True):
    """What was to be put in place of this store's contents was not: they are as they were, or the reset was done.

    Attributes
    ----------
    stage
        Where it ended: the disk has no room for it, it did not come, or it is not what can be put in place.
    """

    why: str
    stage: Literal["room", "fetch", "contents"]


class Returned(_Value, frozen=True):
    """The store is as it was at the checkpoint."""


class WasReset(_Value, frozen=True):
    """The log ends at the fork, and the touched points are as the primary had them."""


class Verified(_Value, frozen=True):
    """The digest was recomputed from the bytes, and whether it is the one in the log."""

    is_equal: bool


class Mended(_Value, frozen=True):
    """Points that differed are what the other store had read at this LSN, durably."""

    lsn: int


class Arriving(_Value, frozen=True):
    """A large message of another store is on its way: that one is there, though nothing was heard of it yet."""

    sender: str


Report = (
    Arriving
    | Synced
    | Installed
    | ArchiveRead
    | Checkpointed
    | Exported
    | WasReset
    | NotReplaced
    | Returned
    | Verified
    | Mended
)
