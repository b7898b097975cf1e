"""The sync driver of calls: channels to the endpoints, and each call taken through its course (`call`) to its end.

Thread-safe. In a process that was forked a connection refuses use: its sockets and threads are the parent's.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc

from ..errors import Closed, DeadlineExceeded, VecstoreError, WriteLost
from ..values import Written
from ..wire.status import error_from
from ..wire.v1 import store_pb2 as pb
from .call import Call, Session, Step
from .channel import Headers, Stubs, credentials, headers, is_from_server, options
from .endpoint import Access
from .requests import new_id

__all__ = ["Connection", "Lifetime"]

DESCRIBE = pb.DescribeRequest()
_HANDSHAKE_FAILED = "SSL_ERROR_SSL"
"""Among what gRPC says of a connection that cannot be secured."""


class Lifetime:
    """From when until when, and in which process, a client may be used: shared by the sync and the async driver."""

    def __init__(self, session: Session, access: Access) -> None:
        self.session = session
        self.is_closed = False
        self.headers: Headers = None if access.token is None else (("authorization", f"Bearer {access.token}"),)
        self._pid = os.getpid()

    @property
    def where(self) -> str:
        """The endpoints, for people."""
        return ",".join(peer.address for peer in self.session.peers)

    @property
    def is_foreign(self) -> bool:
        """Whether this process was forked from the one that connected."""
        return os.getpid() != self._pid

    def check_open(self) -> None:
        """Refuse calls after close, and in a process that was forked."""
        if self.is_closed:
            raise self.closed()
        if os.getpid() != self._pid:
            raise Closed("the connection was made before this process was forked", hint="connect in this process")

    def closed(self) -> Closed:
        """Return the error of what is used after close."""
        return Closed(f"the connection to {self.where} was closed", hint="connect again")

    def take_description(self, step: Step, reply: pb.DescribeReply) -> None:
        """Take in what a server said of itself just now."""
        self.session.described(step.endpoint, reply.role, reply.now_us, reply.lineage, time.monotonic())

    def failed(self, call: Call, step: Step, exc: grpc.RpcError, *, is_under_way: bool = False) -> VecstoreError | None:
        """Return what the caller gets of a failed step; None where there is more to be tried: see `Call.failed`."""
        error = error_from(exc)
        if _HANDSHAKE_FAILED in str(exc.details()):
            # A certificate does not become right by waiting.
            error.retryable = False
            error.hint = "is the authority given that of the server's certificate, and does the server speak TLS?"
        if self.is_closed:
            error = call.cut(self.closed(), is_sent=not step.describe)
        else:
            try:
                now_s = time.monotonic()
                call.failed(step, error, from_server=is_from_server(exc), now_s=now_s, is_under_way=is_under_way)
            except VecstoreError as final:
                error = final
            else:
                return None
        error.__cause__ = exc
        return error


class Connection(Lifetime):
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
        self._closing = threading.Event()
        count = len(session.peers)
        self._stubs = [Stubs(_channel(peer.address, access, count)) for peer in session.peers]

    def close(self) -> None:
        """Cut off what is under way and let the sockets go."""
        if self.is_closed:
            return
        self.is_closed = True
        if self.is_foreign:
            # The sockets are the parent's.
            return
        self._closing.set()
        for stubs in self._stubs:
            stubs.channel.close()

    def wait(self, seconds: float, call: Call) -> None:
        """Wait; end the call where the client is closed meanwhile."""
        if self._closing.wait(seconds):
            raise call.cut(self.closed(), is_sent=False)

    def greet(self) -> None:
        """Ask a server that suits who it is and what its clock says."""
        session = self.session
        call = session.read(session.deadline_s(None, time.monotonic()))
        step = self.reach(call)
        if session.read_from == "any":
            self.take_description(step, self.run("Describe", DESCRIBE, call))

    def reach(self, call: Call) -> Step:
        """Return the step at which the call itself is to be made: at a server that is known to suit."""
        self.check_open()
        while True:
            step = call.step(time.monotonic())
            if step.wait_s:
                self.wait(step.wait_s, call)
            if not step.describe:
                return step
            try:
                reply = self.invoke("Describe", DESCRIBE, step)
            except grpc.RpcError as exc:
                error = self.failed(call, step, exc)
                if error is not None:
                    raise error  # noqa: B904 - its cause is set
            else:
                self.take_description(step, reply)

    def invoke(self, name: str, request: Any, step: Step) -> Any:
        """Make one gRPC call."""
        try:
            return self._stubs[step.endpoint][name](
                request,
                timeout=step.timeout_s,
                metadata=headers(self.headers),
                wait_for_ready=step.wait_for_ready or None,
            )
        except ValueError:
            # What gRPC says of a channel that was closed meanwhile.
            self.check_open()
            raise

    def run(self, name: str, request: Any, call: Call) -> Any:
        """Make a call with one request and one reply, and return the reply."""
        while True:
            step = self.reach(call)
            if call.request_id is not None:
                request.write.not_after_us = call.not_after_us(step.endpoint)
            try:
                return self.invoke(name, request, step)
            except grpc.RpcError as exc:
                error = self.failed(call, step, exc)
                if error is not None:
                    raise error  # noqa: B904 - its cause is set

    def read(
        self, name: str, make: Callable[[str], Any], after: str | Written | None = None, timeout: float | None = None
    ) -> Any:
        """Make a call that changes nothing; `make` gives its request for the token that its answer must have seen."""
        self.check_open()
        session = self.session
        deadline_s = session.deadline_s(timeout, time.monotonic())
        token, primary = session.after(after)
        try:
            return self.run(name, make(token), session.read(deadline_s, primary=primary))
        except WriteLost:
            session.lost(token)
            raise

    def write(self, name: str, make: Callable[[bytes], Any], timeout: float | None = None) -> Any:
        """Make a write; `make` gives its request for its id."""
        self.check_open()
        deadline_s = self.session.write_deadline_s(timeout, time.monotonic())
        number = new_id()
        return self.run(name, make(number), self.session.write(deadline_s, number))

    # -- streams -----------------------------------------------------------------------------------------------------

    def begin(self, name: str, make: Callable[[str], Any], after: str | Written | None) -> tuple[Any, Any]:
        """Begin a stream of replies; return it with its first reply, None where it has none.

        The connection's timeout is that of the first reply: what follows comes as it is taken.
        """
        self.check_open()
        session = self.session
        token, primary = session.after(after)
        deadline_s = session.deadline_s(None, time.monotonic())
        try:
            return self._begin(name, make(token), session.read(deadline_s, primary=primary, waits_out=True))
        except WriteLost:
            session.lost(token)
            raise

    def _begin(self, name: str, request: Any, call: Call) -> tuple[Any, Any]:
        while True:
            step = self.reach(call)
            stream = self.endless(name, request, step)
            cut = threading.Timer(step.timeout_s or 0.0, stream.cancel)
            if step.timeout_s is not None:
                cut.daemon = True
                cut.start()
            try:
                return stream, next(stream, None)
            except grpc.RpcError as exc:
                if cut.finished.is_set() and not self.is_closed and exc.code() == grpc.StatusCode.CANCELLED:
                    raise DeadlineExceeded("the time given ran out before the first points came") from exc
                error = self.failed(call, step, exc)
                if error is not None:
                    raise error  # noqa: B904 - its cause is set
            finally:
                cut.cancel()

    def endless(self, name: str, request: Any, step: Step) -> Any:
        """Make one gRPC call that may last as long as it is alive."""
        endless = Step(step.endpoint, step.describe, 0.0, None, step.wait_for_ready)
        return self.invoke(name, request, endless)

    def next_of(self, stream: Any) -> Any:
        """Return the next reply of a stream; None at its end."""
        self.check_open()
        try:
            return next(stream, None)
        except grpc.RpcError as exc:
            self.check_open()
            error = error_from(exc)
            error.hint = error.hint or "begin again with start= at the last id seen"
            raise error from exc

    def messages(self, name: str, request: Any, deadline_s: float | None, *, primary: bool) -> Iterator[Any]:
        """Iterate over the replies of a call that takes as long as it takes; it is begun again where it is cut off.

        Parameters
        ----------
        deadline_s
            When it ends; None: it goes on as long as its server answers.
        """
        patience_s = deadline_s or time.monotonic() + self.session.timeout_s
        call = self.session.read(patience_s, primary=primary, waits_out=True)
        while True:
            step = self.reach(call)
            try:
                stream = self.endless(name, request, step) if deadline_s is None else self.invoke(name, request, step)
                for reply in stream:
                    yield reply
                    call.renew(deadline_s or time.monotonic() + self.session.timeout_s)
                return
            except grpc.RpcError as exc:
                error = self.failed(call, step, exc)
                if error is not None:
                    raise error  # noqa: B904 - its cause is set


def _channel(address: str, access: Access, count: int) -> grpc.Channel:
    if access.is_tls:
        return grpc.secure_channel(address, credentials(access), options(count, access))
    return grpc.insecure_channel(address, options(count, access))
