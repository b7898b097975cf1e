"""How long a call may take: what its client said to gRPC and, for a write, what it said of the server's clock."""

from __future__ import annotations

import grpc

from ..clock import Clock
from ..config import WRITE_TIMEOUT_S_MAX
from ..errors import DeadlineExceeded, InvalidArgument
from ..wire.v1 import store_pb2 as pb

__all__ = ["left_s", "waiting_s", "write_left_s"]

_FOREVER_S = 1e7
"""What gRPC says of a call without a deadline is longer than that."""


def left_s(context: grpc.ServicerContext) -> float | None:
    """Return the seconds that a call has left; None where it has no deadline."""
    found: float | None = context.time_remaining()
    return found if found is not None and found < _FOREVER_S else None


def waiting_s(left: float | None, ack: str) -> float | None:
    """Return for how long a write, or a wait for one, may wait: its client must still hear that it is durable here."""
    return left - min(0.25, left / 5) if left is not None and ack == "replicated" else left


def write_left_s(write: pb.Write, context: grpc.ServicerContext, clock: Clock) -> float:
    """Return the seconds that a write has left.

    Raises
    ------
    DeadlineExceeded
        It came too late to be started.
    InvalidArgument
        Its request id is none.
    """
    if len(write.request_id) not in (0, 16):
        raise InvalidArgument(f"write.request_id: {len(write.request_id)} bytes given; allowed are 16, or none")
    given_s = left_s(context)
    found = WRITE_TIMEOUT_S_MAX if given_s is None else min(given_s, WRITE_TIMEOUT_S_MAX)
    if write.not_after_us:
        found = min(found, (write.not_after_us - clock.wall_us()) / 1e6)
    if found <= 0:
        raise DeadlineExceeded(
            "the time given ran out before the write was started",
            hint="give it more time; if all writes come too late, connect again: the server's clock may have jumped",
        )
    return found
