"""Records of a bulk load that are under way: sent and not yet acknowledged. Pure; locks and streams are the driver's.

Memory is bounded: so many records and bytes are under way at most, and nothing more is read from the source. What is
not acknowledged is kept, so that a load goes on over another stream, or at another server, where it was cut off: each
record has a request id of its own, so that one that was written and not acknowledged takes effect once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from ..config import MIB
from ..errors import VecstoreError, WriteLost
from ..inputs import note_committed
from ..values import Written
from ..wire.v1 import store_pb2 as pb
from .replies import written_of

__all__ = ["Window"]

UNDER_WAY_RECORDS_MAX = 16
UNDER_WAY_BYTES_MAX = 32 * MIB


class Window:
    """The records under way of one load. One thread may take records while another takes in acknowledgements.

    Parameters
    ----------
    source
        Makes the records, in order.

    Attributes
    ----------
    error
        What the source raised; the records before it are sent all the same.
    committed
        Points acknowledged.
    last
        The newest acknowledgement; None before the first.
    """

    def __init__(self, source: Iterator[pb.UpsertRequest]) -> None:
        self._source = source
        self._sent: deque[pb.UpsertRequest] = deque()
        self._again: deque[pb.UpsertRequest] = deque()
        self._sent_bytes = 0
        self._acknowledged_bytes = 0
        self.error: Exception | None = None
        self.is_exhausted = False
        self.committed = 0
        self.last: Written | None = None

    @property
    def has_room(self) -> bool:
        """Whether one more record may be under way."""
        if self._again or not self._sent:
            return True
        under_way = self._sent_bytes - self._acknowledged_bytes
        return len(self._sent) < UNDER_WAY_RECORDS_MAX and under_way < UNDER_WAY_BYTES_MAX

    @property
    def is_done(self) -> bool:
        """Whether there is nothing left to send, and all is acknowledged."""
        return self.is_exhausted and not self._sent

    @property
    def is_under_way(self) -> bool:
        """Whether some record was sent and is not acknowledged."""
        return len(self._sent) > len(self._again)

    def next(self) -> pb.UpsertRequest | None:
        """Return the next record to send; None where there is none."""
        if self._again:
            return self._again.popleft()
        if self.is_exhausted:
            return None
        try:
            record = next(self._source, None)
        except Exception as exc:  # noqa: BLE001 - whatever the source of the rows raises is its reader's to see
            self.error, record = exc, None
        if record is None:
            self.is_exhausted = True
            return None
        self._sent.append(record)
        self._sent_bytes += len(record.body)
        return record

    def acknowledged(self, reply: pb.Written) -> Written:
        """Take in the acknowledgement of the oldest record under way.

        Raises
        ------
        WriteLost
            It is not of a later record than the one before: then this is not the history that the load began in.
        """
        if self.last is not None and reply.lsn <= self.last.lsn:
            raise self.failed(
                WriteLost(
                    f"the store went back: LSN {reply.lsn} was acknowledged after LSN {self.last.lsn}",
                    hint="a failover lost records that were acknowledged; load the table again",
                    outcome="unknown",
                    details={"lsn": reply.lsn, "lsn_before": self.last.lsn},
                )
            )
        record = self._sent.popleft()
        self._acknowledged_bytes += len(record.body)
        self.committed += reply.count
        self.last = written_of(reply)
        return self.last

    def restart(self) -> None:
        """Send what is under way again, before all else."""
        self._again = deque(self._sent)

    def result(self) -> Written | None:
        """Return what the whole load did, or raise what ended it; None where there was no record at all."""
        if self.error is not None:
            raise self.failed(self.error)
        if self.last is None:
            return None
        return Written(self.last.lsn, self.committed, self.last.token, self.last.ack)

    def failed(self, error: Exception) -> Exception:
        """Return an error with the points that were committed before it."""
        if isinstance(error, VecstoreError):
            note_committed(error, self.committed)
        return error
