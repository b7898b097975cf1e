"""The async driver of calls: what `connection` and `loading` are, on an event loop. Made and used on one loop."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import grpc
import grpc.aio

from ..errors import DeadlineExceeded, WriteLost
from ..values import Written
from ..wire.status import error_from
from ..wire.v1 import store_pb2 as pb
from .call import Call, Session, Step
from .channel import Stubs, credentials, headers, options
from .connection import DESCRIBE, Connection, Lifetime
from .endpoint import Access
from .load import Window
from .requests import new_id

__all__ = ["AsyncConnection", "AsyncLoad", "load"]

_T = TypeVar("_T")


class AsyncConnection(Lifetime):
    """Channels to the endpoints of one client.

    Parameters
    ----------
    session
        What the client knows.
    access
        With what the servers are reached.
    """

    def __init__(self, session: Session, access: Access) -> None:
        super().__init__(session, access)
        self._access = access
        self._closing = asyncio.Event()
        self._sync: Connection | None = None
        count = len(session.peers)
        self._stubs = [Stubs(_channel(peer.address, access, count)) for peer in session.peers]

    async def close(self) -> None:
        """Cut off what is under way and let the sockets go."""
        if self.is_closed:
            return
        self.is_closed = True
        if self.is_foreign:
            # The sockets are the parent's.
            return
        self._closing.set()
        for stubs in self._stubs:
            await stubs.channel.close()
        if self._sync is not None:
            self._sync.close()

    def sync(self) -> Connection:
        """Return a sync connection with the same knowledge, for what is sync by its nature."""
        self.check_open()
        if self._sync is None:
            self._sync = Connection(self.session, self._access)
        return self._sync

    async def wait(self, seconds: float, call: Call) -> None:
        """Wait; end the call where the client is closed meanwhile."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._closing.wait(), seconds)
        if self.is_closed:
            raise call.cut(self.closed(), is_sent=False)

    async def greet(self) -> None:
        """Ask a server that suits who it is and what its clock says."""
        session = self.session
        call = session.read(session.deadline_s(None, time.monotonic()))
        step = await self.reach(call)
        if session.read_from == "any":
            self.take_description(step, await self.run("Describe", DESCRIBE, call))

    async def reach(self, call: Call) -> Step:
        """Return the step at which the call itself is to be made: at a server that is known to suit."""
        self.check_open()
        while True:
            step = call.step(time.monotonic())
            if step.wait_s:
                await self.wait(step.wait_s, call)
            if not step.describe:
                return step
            try:
                reply = await self.outcome(self.invoke("Describe", DESCRIBE, step), call)
            except grpc.RpcError as exc:
                error = self.failed(call, step, exc)
                if error is not None:
                    raise error  # noqa: B904 - its cause is set
            else:
                self.take_description(step, reply)

    def invoke(self, name: str, request: Any, step: Step) -> Any:
        """Begin one gRPC call."""
        try:
            return self._stubs[step.endpoint][name](
                request,
                timeout=step.timeout_s,
                metadata=headers(self.headers),
                wait_for_ready=step.wait_for_ready or None,
            )
        except grpc.aio.UsageError:
            # What gRPC says of a channel that was closed meanwhile.
            self.check_open()
            raise

    def endless(self, name: str, request: Any, step: Step) -> Any:
        """Begin one gRPC call that may last as long as it is alive."""
        return self.invoke(name, request, Step(step.endpoint, step.describe, 0.0, None, step.wait_for_ready))

    async def outcome(self, waiting: Awaitable[_T], call: Call) -> _T:
        """Wait for what a gRPC call gives; where the channel is closed meanwhile gRPC cancels who waits."""
        try:
            return await waiting
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self.is_closed and (task is None or not task.cancelling()):
                raise call.cut(self.closed(), is_sent=True) from None
            raise

    async def run(self, name: str, request: Any, call: Call) -> Any:
        """Make a call with one request and one reply, and return the reply."""
        while True:
            step = await self.reach(call)
            if call.request_id is not None:
                request.write.not_after_us = call.not_after_us(step.endpoint)
            try:
                return await self.outcome(self.invoke(name, request, step), call)
            except grpc.RpcError as exc:
                error = self.failed(call, step, exc)
                if error is not None:
                    raise error  # noqa: B904 - its cause is set

    async def read(
        self, name: str, make: Callable[[str], Any], after: str | Written | None = None, timeout: float | None = None
    ) -> Any:
        """Make a call that changes nothing; `make` gives its request for the token that its answer must have seen."""
        self.check_open()
        session = self.session
        deadline_s = session.deadline_s(timeout, time.monotonic())
        token, primary = session.after(after)
        try:
            return await self.run(name, make(token), session.read(deadline_s, primary=primary))
        except WriteLost:
            session.lost(token)
            raise

    async def write(self, name: str, make: Callable[[bytes], Any], timeout: float | None = None) -> Any:
        """Make a write; `make` gives its request for its id."""
        self.check_open()
        deadline_s = self.session.write_deadline_s(timeout, time.monotonic())
        number = new_id()
        return await self.run(name, make(number), self.session.write(deadline_s, number))

    # -- streams -----------------------------------------------------------------------------------------------------

    async def begin(self, name: str, make: Callable[[str], Any], after: str | Written | None) -> tuple[Any, Any]:
        """Begin a stream of replies; return it with its first reply, None where it has none.

        The connection's timeout is that of the first reply: what follows comes as it is taken.
        """
        self.check_open()
        session = self.session
        token, primary = session.after(after)
        deadline_s = session.deadline_s(None, time.monotonic())
        request, call = make(token), session.read(deadline_s, primary=primary, waits_out=True)
        while True:
            step = await self.reach(call)
            stream = self.endless(name, request, step)
            try:
                return stream, _or_none(await asyncio.wait_for(self.outcome(stream.read(), call), step.timeout_s))
            except TimeoutError as exc:
                stream.cancel()
                raise DeadlineExceeded("the time given ran out before the first points came") from exc
            except grpc.RpcError as exc:
                error = self.failed(call, step, exc)
                if isinstance(error, WriteLost):
                    session.lost(token)
                if error is not None:
                    raise error  # noqa: B904 - its cause is set

    async def next_of(self, stream: Any) -> Any:
        """Return the next reply of a stream; None at its end."""
        self.check_open()
        try:
            return _or_none(await stream.read())
        except grpc.RpcError as exc:
            self.check_open()
            error = error_from(exc)
            error.hint = error.hint or "begin again with start= at the last id seen"
            raise error from exc
        except asyncio.CancelledError:
            # So gRPC says that the channel was closed meanwhile.
            self.check_open()
            raise

    async def messages(self, name: str, request: Any, deadline_s: float | None, *, primary: bool) -> AsyncIterator[Any]:
        """Iterate over the replies of a call that takes as long as it takes; it is begun again where it is cut off."""
        patience_s = deadline_s or time.monotonic() + self.session.timeout_s
        call = self.session.read(patience_s, primary=primary, waits_out=True)
        while True:
            step = await self.reach(call)
            stream = (self.endless if deadline_s is None else self.invoke)(name, request, step)
            try:
                while (reply := _or_none(await self.outcome(stream.read(), call))) is not None:
                    yield reply
                    call.renew(deadline_s or time.monotonic() + self.session.timeout_s)
                return
            except grpc.RpcError as exc:
                error = self.failed(call, step, exc)
                if error is not None:
                    raise error  # noqa: B904 - its cause is set
            finally:
                stream.cancel()


def _or_none(reply: Any) -> Any:
    return None if reply is grpc.aio.EOF else reply


def _channel(address: str, access: Access, count: int) -> grpc.aio.Channel:
    if access.is_tls:
        return grpc.aio.secure_channel(address, credentials(access), options(count, access))
    return grpc.aio.insecure_channel(address, options(count, access))


class AsyncLoad:
    """One bulk load: see `vecstore.client.loading`.

    Parameters
    ----------
    deadline_s
        When it ends; None: each record has the connection's timeout.
    """

    def __init__(self, connection: AsyncConnection, window: Window, deadline_s: float | None) -> None:
        self._connection, self._window, self._deadline_s = connection, window, deadline_s
        self._session = connection.session
        self._reading: asyncio.Future[pb.UpsertRequest | None] | None = None
        self._room = asyncio.Event()

    async def restart(self) -> None:
        """Begin anew with what is under way, once nobody reads the table any more."""
        if self._reading is not None:
            await asyncio.wait([self._reading])
        self._window.restart()

    async def feed(self, step: Step, over: asyncio.Event) -> AsyncIterator[pb.UpsertRequest]:
        """Give gRPC the records of one stream, and none once it is over: the next stream sends them all."""
        while not over.is_set():
            if not self._window.has_room:
                self._room.clear()
                await self._room.wait()
                continue
            # Reading a table blocks for as long as its source does.
            self._reading = asyncio.ensure_future(asyncio.to_thread(self._window.next))
            record = await asyncio.shield(self._reading)
            if record is None or over.is_set():
                return
            record.write.not_after_us = self._session.peers[step.endpoint].wall_us(self._by_s())
            yield record

    def _by_s(self) -> float:
        return self._deadline_s or self._session.write_deadline_s(None, time.monotonic())

    async def stream(self, step: Step, call: Call, progress: Callable[[int], None] | None) -> None:
        """Send records over one stream and take in what comes back."""
        invoke = self._connection.endless if self._deadline_s is None else self._connection.invoke
        over = asyncio.Event()
        stream = invoke("UpsertStream", self.feed(step, over), step)
        try:
            while (reply := _or_none(await self._connection.outcome(stream.read(), call))) is not None:
                written = self._window.acknowledged(reply)
                self._room.set()
                self._session.saw(written.token)
                if progress is not None:
                    progress(self._window.committed)
        finally:
            # gRPC may ask for one more record although the stream has ended.
            over.set()
            self._room.set()
            stream.cancel()

    async def run(self, request_id: bytes, progress: Callable[[int], None] | None) -> None:
        """Send all records."""
        window, connection = self._window, self._connection
        call = self._session.write(self._by_s(), request_id, waits_out=True)
        while not window.is_done:
            step = await connection.reach(call)
            committed = window.committed
            await self.restart()
            try:
                await self.stream(step, call, progress)
            except grpc.RpcError as exc:
                if window.committed > committed:
                    call.renew(self._by_s())
                error = connection.failed(call, step, exc, is_under_way=window.is_under_way)
                if error is not None:
                    raise window.failed(error)  # noqa: B904 - its cause is set


async def load(
    connection: AsyncConnection,
    window: Window,
    request_id: bytes,
    deadline_s: float | None,
    progress: Callable[[int], None] | None,
) -> None:
    """Send all records of a window; see `vecstore.client.loading.load`."""
    await AsyncLoad(connection, window, deadline_s).run(request_id, progress)
