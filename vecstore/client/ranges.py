"""A conversation with one server about ranges of its points: the client's side of the method `Ranges`.

It implements `Side` of `replication/compare.py` over the network. What the server pins for it lives as long as the
conversation, which ends by itself where nothing is asked for a while.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from types import TracebackType
from typing import Any

import grpc
import msgspec

from ..errors import Unavailable
from ..sums import Damage, PinnedCollection, PinnedStore, Stamp, Sum
from ..wire.status import error_from
from ..wire.v1 import replication_pb2 as pb

__all__ = ["Conversation"]

ANSWER_S = 300.0


class Conversation:
    """A conversation. Thread-safe; callers take turns.

    Parameters
    ----------
    call
        Begins it: takes the requests, returns the replies.
    address
        Of the server, for errors.
    """

    def __init__(self, call: Callable[[Iterator[pb.RangesRequest]], Any], address: str) -> None:
        self._address = address
        self._lock = threading.Lock()
        self._requests: SimpleQueue[pb.RangesRequest | None] = SimpleQueue()
        self._replies: Any = call(iter(self._requests.get, None))

    def __enter__(self) -> Conversation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End it."""
        self._requests.put(None)
        self._replies.cancel()

    def hold(self) -> int:
        """Have the server apply nothing for a moment; return the last LSN that is applied."""
        return int(self._ask(pb.RangesRequest(hold=pb.HoldRequest())).held.lsn)

    def pin(self, lsn: int, wait_s: float) -> PinnedStore:
        """Have it keep the state of an LSN, which is waited for; with 0, of where it is.

        Raises
        ------
        InvalidArgument
            It is past that LSN.
        Unavailable
            It did not come to it in time.
        """
        request = pb.RangesRequest(pin=pb.PinRequest(lsn=lsn, wait_s=wait_s))
        found = self._ask(request, wait_s).pinned
        collections = {
            one.number: PinnedCollection(
                one.name, msgspec.json.decode(one.definition), int.from_bytes(one.digest, "big"), one.points
            )
            for one in found.collections
        }
        return PinnedStore(found.store_id, found.lineage, found.lsn, found.epoch, found.chain, collections)

    def summed(self, first: bytes, stop: bytes, points_max: int) -> Sum:
        """Return the sum of a range."""
        request = pb.RangesRequest(sum=pb.SumRequest(first=first, stop=stop, points_max=points_max))
        found = self._ask(request).sum
        return Sum(
            first,
            found.next_place or None,
            found.points,
            int.from_bytes(found.digest, "big"),
            tuple(Damage(one.place, one.why) for one in found.damaged),
            found.damaged_count,
        )

    def listed(self, first: bytes, stop: bytes) -> Iterator[Stamp]:
        """Iterate over the points of a range."""
        while first:
            found = self._ask(pb.RangesRequest(list=pb.ListRequest(first=first, stop=stop))).list
            for stamp in found.stamps:
                yield Stamp(stamp.place, stamp.lsn, stamp.check)
            first = found.next_place

    def _ask(self, request: pb.RangesRequest, more_s: float = 0.0) -> pb.RangesReply:
        with self._lock:
            late = threading.Timer(ANSWER_S + more_s, self._replies.cancel)
            late.daemon = True
            late.start()
            try:
                self._requests.put(request)
                reply: pb.RangesReply = next(self._replies)
                return reply
            except StopIteration:
                raise self._ended() from None
            except grpc.RpcError as exc:
                if late.finished.is_set():
                    raise Unavailable(f"{self._address} did not answer in {ANSWER_S + more_s:g} s") from exc
                if exc.code() == grpc.StatusCode.CANCELLED:
                    raise self._ended() from exc
                raise error_from(exc) from exc
            finally:
                late.cancel()

    def _ended(self) -> Unavailable:
        return Unavailable(
            f"{self._address} ended the comparison: it is being stopped, or was asked nothing for too long",
            hint="begin again",
            retryable=False,
        )
