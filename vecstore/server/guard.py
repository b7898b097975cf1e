"""The interceptor that calls pass: who is it, may it, is there room; then count it, trace it, and word its errors.

On gRPC's serving thread, for each call: find its caller by the token, and leave a `Ticket` in the call's context.
`Pool` takes it from there and asks `look` whether the caller may call this method at all. On the thread that works on
the call, once its message is there: whether it may do so to these collections. One that it does not see is left to the
service, which has the same words for it as for one that is missing.

Errors of vecstore become statuses, with paths of this machine taken out; any other is logged under a number, and the
client is told the number. Each denial, and each call that needs the role admin, leaves a line in the log ``audit``.

Messages are read on the working thread, not on gRPC's: that one has to keep up with all of them.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from math import inf
from typing import Any, NoReturn, Protocol

import grpc
from google.protobuf.message import DecodeError

from ..errors import (
    Closed,
    DeadlineExceeded,
    InvalidArgument,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
    VecstoreError,
)
from ..wire.methods import BY_PATH, REPLICATION, Method
from ..wire.status import trailers
from . import log
from .admission import Bucket, Kind
from .auth import Authenticator, names_in
from .caller import ANYONE, Caller, enter, host_of
from .pool import TICKET, Observer, Pool, Ticket
from .watch import Watch

__all__ = ["Guard", "Served", "Spans", "points_in"]

AUDIT_LINES_PER_S, AUDIT_LINES_BURST = 100.0, 1_000.0
"""Beyond, denials are counted and the next line says how many were left out: a flood of them must not fill a disk."""
_AUTHORIZATION = "authorization"
_REFLECTION = "/grpc.reflection."
_OK = grpc.StatusCode.OK
_CREATE = "CreateCollection"
_OF_THE_STORE = ("Snapshot", "Verify")
"""Need their role on all collections."""


class Served(Protocol):
    """What the guard asks the service."""

    def collections_of(self, method: Method, request: Any) -> list[str]:
        """Return the names of the collections that a request touches."""
        ...


class Spans(Protocol):
    """Makes a span of a call."""

    def call(self, path: str, metadata: Sequence[tuple[str, Any]], /) -> AbstractContextManager[Any]:
        """Make the body a span, below the client's where metadata names one."""
        ...


@dataclass(frozen=True, slots=True)
class _Entry:
    """What is known of one method: found once, used for every call."""

    path: str
    kind: Kind
    method: Method | None
    role: str
    parse: Callable[[bytes], Any]
    inner: Callable[..., Any]
    is_audited: bool


class Guard(grpc.ServerInterceptor):  # type: ignore[misc]
    """Stands before every method of a server. Thread-safe.

    Parameters
    ----------
    pool
        The server's executor.
    authenticator
        Says who calls; None for anyone.
    served
        Says which collections a request touches; may come later, by `serve`, but before the first call.
    observer
        Is told of every answer.
    spans
        Makes spans; None for none.
    hidden
        Paths of this machine that no error may show.
    """

    def __init__(
        self,
        pool: Pool,
        authenticator: Authenticator | None = None,
        *,
        served: Served | None = None,
        observer: Observer | None = None,
        spans: Spans | None = None,
        hidden: Sequence[str] = (),
    ) -> None:
        self._pool = pool
        self._served = served
        self._authenticator = authenticator if authenticator is not None and authenticator.is_required else None
        self._observer = observer
        self._spans = spans
        self._hidden = sorted((path for path in hidden if len(path) > 1), key=len, reverse=True)
        self._counts_points = pool.counts_points
        self._entries: dict[str, tuple[_Entry, Any]] = {}
        self._log = log.logger("audit")
        self._lines = Bucket(AUDIT_LINES_PER_S, AUDIT_LINES_BURST, pool.now_s())
        self._left_out = 0
        self._watch = Watch(pool, self.check_again)
        pool.identify = self.look
        if self._authenticator is not None:
            pool.watch = self._watch.look

    def serve(self, served: Served) -> None:
        """Ask a service which collections a request touches, from now on."""
        self._served = served

    # -- on the serving thread ---------------------------------------------------------------------------------------

    def intercept_service(self, continuation: Callable[[Any], Any], handler_call_details: Any) -> Any:
        """Return the guarded handler of a call, and leave its ticket for the pool."""
        found = self._entries.get(handler_call_details.method)
        if found is None:
            found = self._find(continuation, handler_call_details)
            if found is None:
                return None
        entry, handler = found
        ticket = Ticket(entry.kind, entry.path, None)
        ticket.more = entry
        authenticator = self._authenticator
        metadata = handler_call_details.invocation_metadata
        if authenticator is None:
            ticket.who = ANYONE
        else:
            for key, value in metadata:
                if key == _AUTHORIZATION:
                    ticket.shown = value
                    try:
                        who = ticket.who = authenticator.by_token(value)
                        ticket.caller = who.name
                    except Unauthenticated as error:
                        ticket.error = error
                    except Exception as error:  # noqa: BLE001 - whatever a token makes go wrong, it is no token
                        log.logger().error("a token could not be looked at", exc_info=error)
                        ticket.error = Unauthenticated("token: not one that this server knows")
                    break
        if self._spans is not None:
            ticket.trace = metadata
        TICKET.set(ticket)
        return handler

    def look(self, ticket: Ticket) -> None:
        """Find out who a call without a token is from, and whether its caller may call this method at all.

        Where nobody is asked, callers are told apart by the hosts that they call from, for their shares alone.
        """
        authenticator = self._authenticator
        if authenticator is None:
            ticket.caller = host_of(ticket.event.call.peer().decode(errors="replace")) or ANYONE.name
            return
        entry = ticket.more
        if not isinstance(entry, _Entry):
            return
        if ticket.who is None and ticket.error is None:
            try:
                ticket.who = self._by_certificate(authenticator, ticket)
                ticket.caller = ticket.who.name
            except Unauthenticated as error:
                ticket.error = error
        who = ticket.who
        if who is not None and entry.role != "none" and not who.holds(entry.role):
            ticket.error = PermissionDenied(f"{who.name!r} has no grant of the role {entry.role}")
        if ticket.error is not None:
            self._audit("denied", ticket, reason=str(ticket.error))

    def check_again(self, ticket: Ticket) -> None:
        """Check that the caller of an open call still may what it does; what comes on it is judged by its grants now.

        Raises
        ------
        Unauthenticated
            It is not known any more, or what it showed has expired.
        PermissionDenied
            It has no such grant any more.
        """
        authenticator, entry, shown = self._authenticator, ticket.more, ticket.shown
        if authenticator is None or shown is None or not isinstance(entry, _Entry):
            return
        try:
            who = authenticator.by_token(shown) if isinstance(shown, str) else authenticator.by_certificate(shown)
            ticket.was = ticket.was or ticket.who
            ticket.who = who
            self._check_grants(entry, who, ticket.asked)
        except (Unauthenticated, PermissionDenied) as error:
            self._audit("ended", ticket, reason=str(error))
            raise

    def _check_grants(self, entry: _Entry, who: Caller, asked: Any) -> None:
        method, role = entry.method, entry.role
        if role == "none" or who.may(role):
            return
        names = self._served.collections_of(method, asked) if method and asked is not None and self._served else []
        is_held = all(who.may(role, name) for name in names) if names else who.holds(role)
        if not is_held or (method is not None and _is_of_the_store(method)):
            raise PermissionDenied(f"{who.name!r} has no grant of the role {role} any more for what this call does")

    @staticmethod
    def _by_certificate(authenticator: Authenticator, ticket: Ticket) -> Caller:
        if not authenticator.asks_certificates:
            raise Unauthenticated(
                "authorization: no token was sent",
                hint="clients take one as token=, --token-file or VECSTORE_TOKEN",
            )
        # What an interceptor is handed knows nothing of the connection; the call's event does.
        from grpc._cython import cygrpc

        ticket.shown = tuple(names_in(cygrpc.auth_context(ticket.event.call)))
        return authenticator.by_certificate(ticket.shown)

    def _find(self, continuation: Callable[[Any], Any], details: Any) -> tuple[_Entry, Any] | None:
        handler = continuation(details)
        if handler is None:
            return None
        entry = self._entry(details.method, handler)
        found = (entry, self._guarded(entry, handler))
        self._entries[details.method] = found
        return found

    @staticmethod
    def _entry(path: str, handler: Any) -> _Entry:
        method = BY_PATH.get(path)
        parse = handler.request_deserializer or bytes
        streams = bool(handler.request_streaming or handler.response_streaming)
        inner = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
        if method is None:
            # Reflection shows the contract, which is no secret, to whoever is known; of others nothing is known.
            role = "none" if path.startswith(_REFLECTION) else "admin"
            kind = Kind.of(path, "read", is_write=False, long=streams)
            return _Entry(path, kind, None, role, parse, inner, is_audited=False)
        kind = Kind.of(path, method.work, is_write=method.is_write, long=streams or method.name == "Wait")
        return _Entry(path, kind, method, method.role, parse, inner, is_audited=method.role == "admin")

    def _guarded(self, entry: _Entry, handler: Any) -> Any:
        """Return a handler that does what the entry's does, guarded."""
        forms = {"response_serializer": handler.response_serializer}
        one_in, one_out = not handler.request_streaming, not handler.response_streaming
        if one_in and one_out:
            call = self._unary(entry)
            lasts = entry.kind.lane == "long"
            return grpc.unary_unary_rpc_method_handler(self._watched(call) if lasts else call, **forms)
        if one_in:
            return grpc.unary_stream_rpc_method_handler(self._stream(entry, self._message), **forms)
        if one_out:
            return grpc.stream_unary_rpc_method_handler(self._stream_unary(entry), **forms)
        return grpc.stream_stream_rpc_method_handler(self._stream(entry, self._messages), **forms)

    # -- on the thread that works on a call --------------------------------------------------------------------------

    def _unary(self, entry: _Entry) -> Callable[[bytes, grpc.ServicerContext], Any]:
        pool, now_s, observer, spans = self._pool, self._pool.now_s, self._observer, self._spans
        inner, parse, path, is_free = entry.inner, entry.parse, entry.path, self._is_free(entry)

        def call(data: bytes, context: grpc.ServicerContext) -> Any:
            ticket = TICKET.get()
            assert ticket is not None and ticket.who is not None
            pool.enter(ticket)
            enter(ticket.who)
            try:
                request = parse(data) if is_free else self._message(entry, ticket, data)
                if spans is None:
                    reply = inner(request, context)
                else:
                    with spans.call(path, ticket.trace):
                        reply = inner(request, context)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is worded here
                self._fail(entry, ticket, context, error)
            ended_s = now_s()
            ticket.service_s = ended_s - ticket.entered_s
            if observer is not None:
                observer.observe(path, context.code() or _OK, ended_s - ticket.arrived_s)
            if entry.is_audited:
                self._audit("admin call", ticket)
            return reply

        return call

    def _watched(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(data: bytes, context: grpc.ServicerContext) -> Any:
            ticket = TICKET.get()
            assert ticket is not None
            self._watch.begin(ticket)
            try:
                return call(data, context)
            finally:
                self._watch.end(ticket)

        return watched

    def _stream(
        self, entry: _Entry, read: Callable[[_Entry, Ticket, Any], Any]
    ) -> Callable[[Any, grpc.ServicerContext], Iterator[Any]]:
        def call(data: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            ticket = TICKET.get()
            assert ticket is not None and ticket.who is not None
            pool, now_s = self._pool, self._pool.now_s
            pool.enter(ticket)
            enter(ticket.who)
            ticket.ended = threading.Event()
            if not context.add_callback(ticket.ended.set):
                return
            code: Any = grpc.StatusCode.CANCELLED
            self._watch.begin(ticket)
            try:
                for reply in self._replies(entry, ticket, read(entry, ticket, data), context):
                    ticket.replies += 1
                    ticket.out_since_s = now_s()
                    yield reply
                    ticket.out_since_s = inf
                    if self._counts_points and entry.kind.limited and not entry.kind.is_write:
                        pool.pause(pool.charge(ticket, points_in(reply)), ticket)
                    if entry.kind.limited:
                        pool.pause(pool.gives_way_s(), ticket)
                    if ticket.ended.is_set():
                        # Its client went away while it was held back: nobody takes what would be made next.
                        return
                code = context.code() or _OK
            except Exception as error:  # noqa: BLE001 - whatever it is, it is worded here
                code = None
                self._fail(entry, ticket, context, error)
            finally:
                self._watch.end(ticket)
                # Where the client went away, this generator is closed at its `yield`.
                if code is not None:
                    self._observe(ticket, code)
                if entry.is_audited and code is _OK:
                    self._audit("admin call", ticket)

        return call

    def _replies(self, entry: _Entry, ticket: Ticket, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        if self._spans is None:
            yield from entry.inner(request, context)
            return
        with self._spans.call(entry.path, ticket.trace):
            yield from entry.inner(request, context)

    def _stream_unary(self, entry: _Entry) -> Callable[[Any, grpc.ServicerContext], Any]:
        def call(data: Any, context: grpc.ServicerContext) -> Any:
            ticket = TICKET.get()
            assert ticket is not None and ticket.who is not None
            self._pool.enter(ticket)
            enter(ticket.who)
            ticket.ended = threading.Event()
            context.add_callback(ticket.ended.set)
            self._watch.begin(ticket)
            try:
                reply = entry.inner(self._messages(entry, ticket, data), context)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is worded here
                self._fail(entry, ticket, context, error)
            finally:
                self._watch.end(ticket)
            self._observe(ticket, context.code() or _OK)
            return reply

        return call

    def _messages(self, entry: _Entry, ticket: Ticket, data: Iterator[bytes]) -> Iterator[Any]:
        """Iterate over the messages of a client's stream; each is checked like a call of its own."""
        pool = self._pool
        while True:
            ticket.in_since_s = pool.now_s()
            try:
                one = next(data)
            except StopIteration:
                return
            finally:
                ticket.in_since_s = inf
            ticket.requests += 1
            request = self._message(entry, ticket, one)
            # Searches come before bulk loads: while some wait, the client of the stream is not read from.
            if entry.kind.limited:
                pool.pause(pool.gives_way_s(), ticket)
            yield request

    def _message(self, entry: _Entry, ticket: Ticket, data: bytes) -> Any:
        """Return a message that was read, and that its caller may send; charge for it."""
        request = entry.parse(data)
        who = ticket.who
        assert who is not None
        if entry.kind.lane == "long" and self._authenticator is not None:
            self._note_asked(entry, ticket, request)
        if entry.method is not None and entry.role != "none" and not who.may(entry.role):
            self._authorise(entry, ticket, request)
        elif entry.is_audited and entry.method is not None and self._served is not None:
            ticket.touches = self._served.collections_of(entry.method, request)
        if self._counts_points and entry.kind.limited and (entry.kind.is_write or entry.kind.lane != "long"):
            debt_s = self._pool.charge(ticket, points_in(request))
            if entry.kind.lane == "long":
                self._pool.pause(debt_s, ticket)
        return request

    @staticmethod
    def _note_asked(entry: _Entry, ticket: Ticket, request: Any) -> None:
        """Remember what a call that lasts is about; not what a record of a load holds."""
        method = entry.method
        if method is None or not isinstance(request, method.request):
            return
        if not method.streams_in:
            ticket.asked = request
        elif ticket.asked is None or ticket.asked.collection != request.collection:  # type: ignore[attr-defined]
            ticket.asked = method.request(collection=request.collection)  # type: ignore[attr-defined]

    def _is_free(self, entry: _Entry) -> bool:
        """Tell whether nothing is asked of a message of a method but that it can be read."""
        free = self._authenticator is None or entry.role == "none" or entry.method is None
        return free and not self._counts_points and not entry.is_audited

    def _authorise(self, entry: _Entry, ticket: Ticket, request: Any) -> None:
        """Refuse a message that its caller may not send."""
        method, who = entry.method, ticket.who
        assert method is not None and who is not None and self._served is not None
        names = self._served.collections_of(method, request)
        if not names and _is_of_the_store(method):
            raise PermissionDenied(f"{who.name!r} has no grant of the role {method.role} on the whole store")
        ticket.touches = names
        for i, name in enumerate(names):
            # The name of what is to be made, or to be named so, may be said; whether it is taken may not.
            is_new = method.name == _CREATE or i > 0
            if not is_new and not who.sees(name):
                if ticket.was is not None and ticket.was.sees(name):
                    # The service goes by what it was let in as.
                    raise PermissionDenied(f"{who.name!r} has no grant on collection {name!r} any more")
                self._audit("denied", ticket, reason="the caller does not see the collection")
                ticket.is_denied = True
                return
            if not who.may(method.role, name):
                raise PermissionDenied(f"{who.name!r} has no grant of the role {method.role} on collection {name!r}")

    # -- answers -----------------------------------------------------------------------------------------------------

    def _observe(self, ticket: Ticket, code: Any) -> None:
        if self._observer is not None:
            self._observer.observe(ticket.method, code, self._pool.now_s() - ticket.arrived_s)

    def _fail(self, entry: _Entry, ticket: Ticket, context: grpc.ServicerContext, error: Exception) -> NoReturn:
        """End a call with an error, as far as it concerns the client."""
        if context.code() is not None:
            # The service has ended it itself.
            self._observe(ticket, context.code())
            raise error
        worded = self._worded(ticket, error)
        if isinstance(worded, DeadlineExceeded):
            # That a call did not end in time says more of the load than those that did.
            ticket.service_s = self._pool.now_s() - ticket.entered_s
        if isinstance(worded, PermissionDenied):
            self._audit("denied", ticket, reason=str(worded))
        elif entry.is_audited and not ticket.is_denied:
            self._audit("admin call", ticket, error=type(worded).__name__)
        code, text, metadata = trailers(worded)
        self._observe(ticket, code)
        context.set_trailing_metadata(metadata)
        context.abort(code, text)
        raise AssertionError("abort raises")

    def _worded(self, ticket: Ticket, error: Exception) -> VecstoreError:
        if isinstance(error, DecodeError):
            return InvalidArgument("request: the bytes are not a message of this method")
        if not isinstance(error, VecstoreError):
            number = secrets.token_hex(6)
            log.logger().error(
                "internal error", number=number, method=ticket.method, caller=ticket.caller, exc_info=error
            )
            return VecstoreError(f"internal error {number}", outcome="unknown")
        if isinstance(error, Closed):
            # Whoever calls a server has closed nothing: the store is being stopped, or its contents are replaced.
            return Unavailable("the store is closed at this moment", outcome=error.outcome, details=error.details)
        if self._hidden:
            self._hide(error)
        return error

    def _hide(self, error: VecstoreError) -> None:
        """Take this machine's paths out of an error."""

        def clean(text: str) -> str:
            for path in self._hidden:
                text = text.replace(path, "(the store)")
            return text

        error.args = tuple(clean(arg) if isinstance(arg, str) else arg for arg in error.args)
        error.hint = clean(error.hint)
        error.details = {key: clean(value) if isinstance(value, str) else value for key, value in error.details.items()}

    def _audit(self, event: str, ticket: Ticket, **fields: Any) -> None:
        """Write one line of the audit, unless too many were."""
        now_s = self._pool.now_s()
        if self._lines.wait_s(1.0, now_s) > 0:
            self._left_out += 1
            return
        self._lines.take(1.0)
        left_out, self._left_out = self._left_out, 0
        if left_out:
            fields["left_out"] = left_out
        call = getattr(ticket.event, "call", None)
        peer = call.peer().decode(errors="replace") if call is not None else ""
        if ticket.touches:
            fields["collections"] = ticket.touches
        self._log.warning(event, caller=ticket.caller, method=ticket.method, peer=peer, **fields)


def _is_of_the_store(method: Method) -> bool:
    return method.name in _OF_THE_STORE or method.service == REPLICATION


def points_in(message: Any) -> int:
    """Return how many points a message holds or asks for: of a search, one for each query."""
    body = getattr(message, "body", None)
    if body is not None:
        return int.from_bytes(body[1:5], "little")
    vectors = getattr(message, "vectors", None)
    if vectors is not None and vectors.rows:
        return int(vectors.rows)
    ids = getattr(message, "ids", None)
    if ids is None:
        ids = getattr(getattr(message, "points", None), "ids", None)
    if ids is None:
        return 1
    return max(1, len(ids.ints) // 8, len(ids.strings.sizes) // 4)
