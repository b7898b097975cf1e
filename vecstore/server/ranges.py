"""Conversations about ranges of points: another store's operator compares this store with that one.

Each conversation pins the store at one LSN and reads it piece by piece, one answer to each request. What a pin costs
must not stay behind: a conversation ends with its call, when nothing is asked for `IDLE_S`, when its pin has lived for
`LIFE_S`, and with the server. There are `CONVERSATIONS_MAX` at once, and each answer is of bounded size. Summing rests
as soon as searches come (`engine/ranges.py`).

A standby that is about to be pinned at an LSN of its primary's is held first: it applies nothing for `HOLD_S_MAX` at
most, so that the primary can say where it is, and goes on by itself.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future

import grpc
import msgspec

from ..engine.engine import Engine
from ..engine.halts import Halts
from ..engine.ranges import Pin, listed, pin, pin_here, summed
from ..errors import InvalidArgument, Overloaded, Unavailable
from ..wire.v1 import replication_pb2 as pb

__all__ = ["Ranges"]

CONVERSATIONS_MAX = 2
IDLE_S = 60.0
LIFE_S = 4 * 3600.0
HOLD_S_MAX = 2.0
WAIT_S_MAX = 600.0
SUM_POINTS_MAX = 200_000
LIST_POINTS_MAX = 4_096
_POLL_S = 0.2


class Ranges:
    """The method `Ranges` of one server. Thread-safe.

    Parameters
    ----------
    engine
        Returns the engine that is open.
    """

    def __init__(self, engine: Callable[[], Engine]) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._open: set[_Conversation] = set()

    def serve(self, requests: Iterator[pb.RangesRequest], context: grpc.ServicerContext) -> Iterator[pb.RangesReply]:
        """Answer one conversation."""
        conversation = self._begin(context)
        try:
            for request in requests:
                yield conversation.answer(request)
        except grpc.RpcError:
            # Who asked has gone away, or the conversation was ended here.
            return
        finally:
            with self._lock:
                self._open.discard(conversation)
            conversation.close()

    def _begin(self, context: grpc.ServicerContext) -> _Conversation:
        with self._lock:
            if len(self._open) >= CONVERSATIONS_MAX:
                raise Overloaded(
                    f"{len(self._open)} comparisons are under way already", hint="wait for them", retry_after_s=10.0
                )
            conversation = _Conversation(self._engine, context)
            self._open.add(conversation)
        return conversation

    @property
    def count(self) -> int:
        """How many conversations are under way."""
        with self._lock:
            return len(self._open)

    def close(self) -> None:
        """End all conversations."""
        with self._lock:
            ending = list(self._open)
        for conversation in ending:
            conversation.end()


class _Conversation:
    """One conversation: what it pins and holds. `end` may be called by any thread."""

    def __init__(self, engine: Callable[[], Engine], context: grpc.ServicerContext) -> None:
        self._engine, self._context = engine, context
        self._pin: Pin | None = None
        self._held: Halts | None = None
        self._is_over = False
        self._idle_since_s: float | None = time.monotonic()
        self._watch(IDLE_S)

    def answer(self, request: pb.RangesRequest) -> pb.RangesReply:
        self._idle_since_s = None
        try:
            ask = request.WhichOneof("ask")
            if ask == "hold":
                return pb.RangesReply(held=self._hold())
            if ask == "pin":
                return pb.RangesReply(pinned=self._pin_at(request.pin))
            if ask == "sum":
                return pb.RangesReply(sum=self._sum(request.sum))
            if ask == "list":
                return pb.RangesReply(list=self._list(request.list))
            raise InvalidArgument("ask: nothing is asked; allowed are hold, pin, sum, list")
        finally:
            self._idle_since_s = time.monotonic()

    # -- its end -----------------------------------------------------------------------------------------------------

    def _watch(self, seconds: float) -> None:
        self._timer = threading.Timer(seconds, self._look)
        self._timer.daemon = True
        self._timer.start()

    def _look(self) -> None:
        """End it where nothing was asked for too long; else look again later."""
        if self._is_over:
            return
        since_s = self._idle_since_s
        left_s = IDLE_S if since_s is None else since_s + IDLE_S - time.monotonic()
        if left_s <= 0:
            self.end()
        else:
            self._watch(left_s)

    def end(self) -> None:
        """End the call, from outside of it."""
        self.close()
        self._context.cancel()

    def close(self) -> None:
        """Let go of what it pins and holds."""
        self._is_over = True
        self._timer.cancel()
        self._let_go()

    def _let_go(self) -> None:
        self._release()
        pinned, self._pin = self._pin, None
        if pinned is not None:
            pinned.close()

    def _release(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            held.release()

    # -- what is asked -----------------------------------------------------------------------------------------------

    def _hold(self) -> pb.Held:
        self._let_go()
        committer = self._engine().committer
        assert committer is not None, "a served store is open for writing"
        self._held = committer.halts
        return pb.Held(lsn=committer.halts.hold(HOLD_S_MAX))

    def _pin_at(self, asked: pb.PinRequest) -> pb.PinnedStore:
        if not 0 <= asked.wait_s <= WAIT_S_MAX:
            raise InvalidArgument(f"wait_s: {asked.wait_s} given; allowed are 0 to {WAIT_S_MAX:g}")
        engine = self._engine()
        engine.check_open()
        if self._pin is not None:
            self._let_go()
        pinned = self._reached(engine, asked.lsn, asked.wait_s) if asked.lsn else pin(engine, LIFE_S)
        self._pin = pinned
        if self._is_over:
            self._let_go()
        return _stored(pinned)

    def _reached(self, engine: Engine, lsn: int, wait_s: float) -> Pin:
        """Pin the store exactly at an LSN, as soon as it is there."""
        committer = engine.committer
        assert committer is not None
        future: Future[Pin] = committer.halts.at(lsn, lambda: pin_here(engine, LIFE_S))
        self._release()
        give_up_s = time.monotonic() + wait_s
        while not self._is_over and self._context.is_active():
            left_s = give_up_s - time.monotonic()
            try:
                return future.result(max(0.0, min(left_s, _POLL_S)))
            except TimeoutError:
                if left_s <= 0:
                    break
        if not future.cancel():
            return future.result()
        at = engine.state.view.lsn
        raise Unavailable(
            f"the store is at LSN {at} and did not come to {lsn} in {wait_s:g} s", details={"lsn": at}, retryable=False
        )

    def _pinned(self, first: bytes, stop: bytes) -> Pin:
        if self._pin is None:
            raise InvalidArgument("ask: nothing is pinned; ask for a pin first")
        if not first < stop:
            raise InvalidArgument(f"stop: {stop.hex()} given; it must be above first, {first.hex()}")
        return self._pin

    def _sum(self, asked: pb.SumRequest) -> pb.RangeSum:
        pinned = self._pinned(asked.first, asked.stop)
        if not 1 <= asked.points_max <= SUM_POINTS_MAX:
            raise InvalidArgument(f"points_max: {asked.points_max} given; allowed are 1 to {SUM_POINTS_MAX}")
        found = summed(pinned, asked.first, asked.stop, asked.points_max)
        return pb.RangeSum(
            next_place=found.next_place or b"",
            points=found.points,
            digest=found.digest.to_bytes(16, "big"),
            damaged=[pb.DamagedPoint(place=one.place, why=one.why) for one in found.damaged],
            damaged_count=found.damaged_count,
        )

    def _list(self, asked: pb.ListRequest) -> pb.RangeList:
        reply = pb.RangeList()
        for stamp in listed(self._pinned(asked.first, asked.stop), asked.first, asked.stop):
            if len(reply.stamps) == LIST_POINTS_MAX:
                reply.next_place = stamp.place
                break
            reply.stamps.add(place=stamp.place, lsn=stamp.lsn, check=stamp.check)
        return reply


def _stored(pinned: Pin) -> pb.PinnedStore:
    store = pinned.store
    return pb.PinnedStore(
        store_id=store.store_id,
        lineage=store.lineage,
        lsn=store.lsn,
        epoch=store.epoch,
        chain=store.chain,
        collections=[
            pb.PinnedCollection(
                number=number,
                name=one.name,
                definition=msgspec.json.encode(one.definition, order="sorted"),
                digest=one.digest.to_bytes(16, "big"),
                points=one.points,
            )
            for number, one in store.collections.items()
        ],
    )
