"""The sync driver of a bulk load: a stream of records out, a stream of acknowledgements in, begun again where cut off.

gRPC takes the records in a thread of its own, which waits here while enough of them are under way (`load.Window`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc

from ..wire.v1 import store_pb2 as pb
from .call import Step
from .connection import Connection
from .load import Window

__all__ = ["load"]


class _Feed(Iterator[pb.UpsertRequest]):
    """The records of one stream, as gRPC's thread takes them.

    Parameters
    ----------
    changed
        Guards the window, and is notified of acknowledgements.
    stamp
        Puts a record's deadline on it.
    """

    def __init__(self, window: Window, changed: threading.Condition, stamp: Callable[[Any], None]) -> None:
        self._window, self._changed, self._stamp = window, changed, stamp
        self._is_over = False

    def __next__(self) -> pb.UpsertRequest:
        with self._changed:
            while not self._is_over and not self._window.has_room:
                self._changed.wait()
            record = None if self._is_over else self._window.next()
            if record is None:
                raise StopIteration
            self._stamp(record.write)
            return record

    def end(self) -> None:
        """Let gRPC's thread go: its stream is over."""
        self._is_over = True
        with self._changed:
            self._changed.notify_all()


def load(
    connection: Connection,
    window: Window,
    request_id: bytes,
    deadline_s: float | None,
    progress: Callable[[int], None] | None,
) -> None:
    """Send all records of a window.

    Parameters
    ----------
    deadline_s
        When it ends; None: each record has the connection's timeout.
    progress
        Called with the points committed.
    """
    session = connection.session
    changed = threading.Condition()

    def by_s() -> float:
        return deadline_s or session.write_deadline_s(None, time.monotonic())

    call = session.write(by_s(), request_id, waits_out=True)
    while not window.is_done:
        step = connection.reach(call)
        committed = window.committed
        with changed:
            window.restart()
        try:
            _stream(connection, window, changed, step, deadline_s, progress)
        except grpc.RpcError as exc:
            if window.committed > committed:
                call.renew(by_s())
            error = connection.failed(call, step, exc, is_under_way=window.is_under_way)
            if error is not None:
                raise window.failed(error)  # noqa: B904 - its cause is set


def _stream(
    connection: Connection,
    window: Window,
    changed: threading.Condition,
    step: Step,
    deadline_s: float | None,
    progress: Callable[[int], None] | None,
) -> None:
    session = connection.session

    def stamp(write: pb.Write) -> None:
        by_s = session.write_deadline_s(None, time.monotonic()) if deadline_s is None else deadline_s
        write.not_after_us = session.peers[step.endpoint].wall_us(by_s)

    feed = _Feed(window, changed, stamp)
    invoke = connection.endless if deadline_s is None else connection.invoke
    stream = invoke("UpsertStream", feed, step)
    try:
        for reply in stream:
            with changed:
                written = window.acknowledged(reply)
                changed.notify_all()
            session.saw(written.token)
            if progress is not None:
                progress(window.committed)
    finally:
        feed.end()
        stream.cancel()
