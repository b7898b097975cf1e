"""What a member must remember beside its log: one small value, written whole.

`Persist` writes it; behind that barrier stands what may only happen once it is durable. Positions of slots are written
without a sync: an older place than the truth costs a second look.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from .epochs import Claim
from .scrub import Bounds

__all__ = [
    "Difference",
    "Differing",
    "Durable",
    "Phase",
    "RejoinState",
    "Role",
    "ScrubState",
    "Slot",
    "Timing",
    "VerifiedAt",
]

Role = Literal["primary", "standby", "fenced"]
Phase = Literal["seek", "checkpoint", "export", "reset", "follow", "verify"]


class Slot(msgspec.Struct, frozen=True):
    """A standby's place in the log.

    Attributes
    ----------
    chain
        At its LSN: once the log is cut, the proof of what that standby has.
    is_lost
        The log was cut beyond it.
    had_lsn, had_chain
        What that standby was proven to have when it asked for a snapshot, which the slot has held the log for since.
        Should none come to be installed, it asks again, from there.
    """

    name: str
    store_id: str
    lsn: int
    chain: bytes
    is_lost: bool = False
    had_lsn: int = 0
    had_chain: bytes = b""

    def proves(self, lsn: int, chain: bytes) -> bool:
        """Return whether that standby is known to have had this place of the history."""
        return (lsn, chain) in ((self.lsn, self.chain), (self.had_lsn, self.had_chain))


class RejoinState(msgspec.Struct, frozen=True):
    """How far a rejoin has come.

    Attributes
    ----------
    primary
        The store that it rejoins.
    fork_lsn
        The last LSN of both histories, once it is known.
    lowest_lsn
        The lowest fork since the checkpoint was taken: up to it the checkpoint and this log are one history.
    target_lsn
        Until this LSN is applied, digests are taken on trust. 0 until the reset may have begun.
    is_complete
        Whether the log still held everything that was left behind.
    needs_snapshot
        Setting points would not make the two equal, so that only a snapshot can be trusted: points were read at an LSN
        that is not in the history any more, or the digest was another one in the end, or what was left behind was about
        more than points.
    verifies
        How often the digest was another one in the end.
    was, reason
        What the store was, and why, for an abort.
    """

    phase: Phase
    primary: str
    fork_lsn: int = 0
    target_lsn: int = 0
    lowest_lsn: int = 0
    is_complete: bool = True
    needs_snapshot: bool = False
    verifies: int = 0
    was: Role = "fenced"
    reason: str = ""

    def at(self, phase: Phase, **changes: Any) -> RejoinState:
        """Return it in another phase."""
        return msgspec.structs.replace(self, phase=phase, **changes)


class Differing(msgspec.Struct, frozen=True, array_like=True):
    """A point that differs from the primary's: its place, and the LSN that wrote the primary's; 0 where it has none."""

    place: bytes
    lsn: int


class Difference(msgspec.Struct, frozen=True):
    """A range of points that differs from the primary's.

    Attributes
    ----------
    lsn
        At which the two were compared.
    count
        How many points differ; those that are named may be fewer.
    why
        What is wrong with them here, as far as this store knows by itself.
    """

    bounds: Bounds
    collection: str
    lsn: int
    count: int
    points: tuple[Differing, ...]
    why: str = ""


class ScrubState(msgspec.Struct, frozen=True):
    """What a scrub has found here. As long as there is any, digests are taken on trust.

    Attributes
    ----------
    is_mended
        The points that differed are as the primary has them, and applying goes on; the ranges are to be compared again.
    target_lsn
        From this LSN on they are equal, if they were mended rightly.
    attempts
        How often they were mended so far.
    refusal
        Why this store does not mend them by itself; empty where it does.
    """

    differences: tuple[Difference, ...]
    is_mended: bool = False
    target_lsn: int = 0
    attempts: int = 0
    refusal: str = ""


class VerifiedAt(msgspec.Struct, frozen=True):
    """Everything was found equal to the primary's at this LSN or later; when that was known, by the wall clock."""

    lsn: int
    time_us: int


class Durable(msgspec.Struct, frozen=True):
    """Role, promise, peers, slots.

    Attributes
    ----------
    promise
        The highest claim that this store has seen: it accepts nothing below.
    reason
        Why it is fenced.
    primary
        The store id that a standby follows.
    peers
        Store ids of the lineage that this store has met.
    replaced
        The epoch that this store's own promotion replaced: the same command again is answered, not done again.
    refused_lsn
        No handover of the promised epoch is taken up to this LSN: so far it has refused.
    bootstraps
        Snapshots installed, or begun, since the stream last moved on.
    scrub
        What a scrub has found to differ; None where nothing does.
    verified
        What the last whole round of the scrub has proven.
    mended
        Points that were mended since.
    """

    role: Role
    promise: Claim | None = None
    reason: str = ""
    primary: str = ""
    peers: tuple[str, ...] = ()
    slots: tuple[Slot, ...] = ()
    replaced: int = 0
    refused_lsn: int = 0
    bootstraps: int = 0
    rejoin: RejoinState | None = None
    scrub: ScrubState | None = None
    verified: VerifiedAt | None = None
    mended: int = 0

    @property
    def is_halted(self) -> bool:
        """Whether nothing is applied, since points differ from the primary's. A rejoin proves everything by itself."""
        return self.scrub is not None and not self.scrub.is_mended and self.rejoin is None


class Timing(msgspec.Struct, frozen=True):
    """How long a member waits for what; seconds of the monotonic clock.

    Attributes
    ----------
    start_alone_after_s
        A primary whose peers are silent opens after it, with an alarm.
    call_every_s
        Calls, questions and heartbeats are repeated so often.
    silence_s
        A stream that was silent for so long is dialled again.
    stall_s
        A stream that stands still while the tip moves is an alarm after so long.
    step_down_s
        A promotion waits so long for the old primary's word that it has stepped down.
    catch_up_s
        With that word, it waits so long for what the old primary has. A switchover whose target would need longer is
        refused.
    retry_s
        A standby that stopped looks again so often.
    frame_bytes_max
        Bytes of records in one frame.
    bootstraps_max
        Bootstraps in a row that may come to nothing; so many digests that are another one after a rejoin.
    """

    start_alone_after_s: float = 60.0
    call_every_s: float = 1.0
    silence_s: float = 5.0
    stall_s: float = 30.0
    step_down_s: float = 1.0
    catch_up_s: float = 10.0
    retry_s: float = 30.0
    frame_bytes_max: int = 4 << 20
    bootstraps_max: int = 3
