"""The methods that stream: upserts read ahead, scans in pieces, work that tells how far it has come.

Each is made no faster than its client takes it: gRPC asks for the next message when the one before has left, and a
client that goes away ends the generator, which lets everything go.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import grpc

from .. import request
from ..api import Database
from ..clock import Clock
from ..config import MIB
from ..errors import VecstoreError
from ..record import NO_REQUEST
from ..values import Point
from ..wire.body import Body, restore_moments, unpack_body
from ..wire.codec import read_ack
from ..wire.v1 import store_pb2 as pb
from .deadline import waiting_s, write_left_s
from .directory import Directory
from .reply import Columns, written_reply

__all__ = ["pieces", "progress_of", "upserts"]

PIECE_BYTES = 256 * 1024
"""About what one message of a scan holds."""
AHEAD_RECORDS = 2
"""Records of a stream that are read and decoded while the one before them is committed."""
AHEAD_BYTES = 8 * MIB
"""Nor is the next one read ahead of so many bytes that wait: of large records it is one."""
_STEP_S = 0.2
"""Progress is told about so often."""


class _Record(NamedTuple):
    """One record of a stream, read. The message itself is let go: it holds all of the bytes once more."""

    collection: int
    write: pb.Write
    body: Body
    bytes: int


class _Ahead:
    """What one thread made and another has not taken yet; bounded. Closed by who takes, it refuses more."""

    def __init__(self) -> None:
        self._items: deque[tuple[Any, int]] = deque()
        self._bytes = 0
        self._changed = threading.Condition()
        self._closed = False

    def _is_free(self) -> bool:
        return self._closed or (len(self._items) < AHEAD_RECORDS and self._bytes < AHEAD_BYTES)

    def put(self, item: Any, size: int = 0) -> bool:
        """Wait for room and add; False once it is closed."""
        with self._changed:
            self._changed.wait_for(self._is_free)
            if self._closed:
                return False
            self._items.append((item, size))
            self._bytes += size
            self._changed.notify_all()
            return True

    def take(self) -> Any:
        """Wait for an item and return it."""
        with self._changed:
            self._changed.wait_for(lambda: self._items)
            item, size = self._items.popleft()
            self._bytes -= size
            self._changed.notify_all()
            return item

    def close(self) -> None:
        """Let go of who waits to add."""
        with self._changed:
            self._closed = True
            self._items.clear()
            self._changed.notify_all()


_END = object()


def _read_ahead(asked: Iterator[Any], ahead: _Ahead) -> None:
    """Read and decode the requests of a stream until it ends, or one of them is no good."""
    try:
        for one in asked:
            if not isinstance(one, pb.UpsertRequest):
                ahead.put(one.error())
                return
            record = _record(one)
            # What was read is not held while the next is waited for.
            del one
            if not ahead.put(record, record.bytes):
                return
            del record
        ahead.put(_END)
    except grpc.RpcError:
        # The client went away: nobody hears of what comes now.
        ahead.put(_END)
    except Exception as exc:  # noqa: BLE001  (whatever it is, who takes must hear of it)
        ahead.put(exc)


def _record(one: pb.UpsertRequest) -> _Record:
    data = one.body
    body = unpack_body(data)
    restore_moments(body.payloads, one.timestamps)
    write = pb.Write()
    write.CopyFrom(one.write)
    return _Record(one.collection, write, body, len(data))


def upserts(
    database: Database, directory: Directory, asked: Iterator[Any], context: grpc.ServicerContext, clock: Clock
) -> Iterator[pb.Written]:
    """Write the records of a stream in order; the next is read and decoded while one is committed.

    Raises
    ------
    VecstoreError
        Of the first record that failed; ``details["committed"]`` says how many points were committed before it.
    """
    ahead = _Ahead()
    reader = threading.Thread(target=_read_ahead, args=(asked, ahead), name="vecstore-stream", daemon=True)
    reader.start()
    committed = 0
    try:
        while (item := ahead.take()) is not _END:
            if isinstance(item, Exception):
                raise item
            reply = _upsert(database, directory, item, context, clock)
            committed += reply.count
            yield reply
    except VecstoreError as exc:
        exc.details["committed"] = committed
        raise
    finally:
        ahead.close()


def _upsert(
    database: Database, directory: Directory, record: _Record, context: grpc.ServicerContext, clock: Clock
) -> pb.Written:
    collection, body, write = directory.by_number(record.collection), record.body, record.write
    ack = read_ack(write.ack)
    timeout_s = waiting_s(write_left_s(write, context, clock), ack)
    with request.use(write.request_id or NO_REQUEST):
        written = collection.upsert(body.ids, body.vectors, body.payloads, ack=ack, timeout=timeout_s)
    return written_reply(written, database.position()[0])


def pieces(
    points: Iterator[Point], position: tuple[int, int], keys: bool | tuple[str, ...], with_vector: bool
) -> Iterator[pb.PointsReply]:
    """Pack the points of a scan into messages of about `PIECE_BYTES`."""
    epoch, lsn = position
    taken = Columns(keys is not False, with_vector)
    for point in points:
        taken.add(point)
        if taken.bytes >= PIECE_BYTES:
            yield pb.PointsReply(epoch=epoch, lsn=lsn, points=taken.pack())
            taken = Columns(keys is not False, with_vector)
    if taken.ids:
        yield pb.PointsReply(epoch=epoch, lsn=lsn, points=taken.pack())


class _Gone(Exception):
    """Nobody waits for the work any more."""


class _Progress:
    """How far work in another thread has come."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.at = (0, 0)
        self.ended = False
        self.gone = False
        self.result: Any = None
        self.error: BaseException | None = None

    def step(self, done: int, total: int) -> None:
        """Take note; raises where nobody waits any more."""
        self.at = (done, total)
        if self.gone:
            raise _Gone

    def run(self, work: Callable[[Callable[[int, int], None]], Any]) -> None:
        """Do the work, and keep its result or error."""
        try:
            self.result = work(self.step)
        except BaseException as exc:  # noqa: BLE001  (whatever it is, who waits must hear of it)
            self.error = exc
        with self.changed:
            self.ended = True
            self.changed.notify_all()


def progress_of(work: Callable[[Callable[[int, int], None]], Any]) -> Iterator[tuple[int, int, Any]]:
    """Do work in a thread of its own and yield how far it has come: done, total, and at the end its result."""
    progress = _Progress()
    thread = threading.Thread(target=progress.run, args=(work,), name="vecstore-progress", daemon=True)
    thread.start()
    try:
        told = (0, 0)
        while True:
            with progress.changed:
                ended = progress.changed.wait_for(lambda: progress.ended, _STEP_S)
            if ended:
                break
            if progress.at != told:
                told = progress.at
                yield *told, None
        if progress.error is not None:
            raise progress.error
        yield *progress.at, progress.result
    finally:
        progress.gone = True
