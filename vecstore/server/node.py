"""One server: a store, the services on it, and the ports they are reached by, from the first to the last moment.

Ports are open before the store is: health answers NOT_SERVING and every other call a retryable `Unavailable` while the
store recovers. `drain` ends a server without a failed call, as far as clients try again: health says NOT_SERVING, new
calls are refused, connections are told to go elsewhere, calls in flight finish, and then the store is closed.

This module puts the parts together and decides nothing itself: who may is the guard's, how much the admission's. It
handles no signals; `vecstore serve` does.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import grpc
import msgspec

from ..api import Collection, Database
from ..clock import SystemClock
from ..errors import InvalidArgument, NotFound, Unavailable, VecstoreError
from ..storage.directory import is_store
from ..wire.methods import COLLECTIONS, REPLICATION
from . import log, reflection, trace
from .admission import Admission
from .auth import Authenticator
from .door import Door, Handlers
from .guard import Guard
from .health import Health
from .http import HTTPPort
from .metrics import ServerMetrics
from .pool import Pool
from .schedule import Schedule
from .service import Service
from .settings import Settings
from .shadow import Shadow
from .tls import Certificates

if TYPE_CHECKING:
    from ..engine.engine import Engine
    from .readiness import Readiness
    from .replication import Replication

__all__ = ["Node", "address_of"]

_NOTICE_S, _SETTLE_S = 0.3, 0.1
"""New calls are refused for so long before connections are ended: gRPC cancels what arrives in the very moment that it
tells a client to go elsewhere, and CANCELLED is nothing that clients try again. By then they have all been refused, and
are elsewhere, or waiting to try again. And how often it is looked whether calls in flight have ended."""
_HANDSHAKE_S_MAX = 20
_STOPPING = "the server is being stopped"
_REPLACING = "the contents of this store are being replaced"
_REPLACE_WAIT_S = 10.0
"""So long calls in flight are waited for before the store is closed beneath them."""
_SEARCH = f"/{COLLECTIONS}/Search"


class Node:
    """A server and all that belongs to it. Start it, serve, drain it; once.

    Parameters
    ----------
    settings
        All of it.
    open_store
        Opens the store; None opens the directory that the settings name.
    tracing
        Makes spans; None makes what the settings say.

    Raises
    ------
    InvalidArgument
        Settings contradict each other, or name files that cannot be used.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        open_store: Callable[[], Database] | None = None,
        tracing: trace.Tracing | None = None,
    ) -> None:
        clock = SystemClock()
        self.settings = settings
        self._log = log.logger()
        self._open_store = open_store or self._open_directory
        self._tls = Certificates(settings.tls) if _has_tls(settings) else None
        self._auth = Authenticator(settings.auth, clock, with_certificates=bool(settings.tls.client_ca))
        _check_exposure(settings, self._auth.is_required)
        self.tracing = tracing or trace.begin(settings.trace)
        self.metrics = ServerMetrics(clock.wall_us, settings.server.region)
        self.metrics.watch_certificate(lambda: self._tls.expiry_s if self._tls is not None else None)
        self._health = Health()
        self._pool = Pool(
            Admission(settings.limits, settings.store.search_thread_count()), clock, observer=self.metrics
        )
        self.metrics.watch_load(self._pool.load)
        self._handlers = Handlers()
        self._door = Door(self._health.handler(), "the server is starting: the store recovers")
        self._phase = "starting"
        self._database: Database | None = None
        self._shadow: Shadow | None = None
        self._schedule: Schedule | None = None
        self._http: HTTPPort | None = None
        self._replication: Replication | None = None
        self._judge: Readiness | None = None
        self._served: Guard | None = None
        self._server: Any = None
        self.grpc_port = 0
        self._http_port = 0

    # -- life --------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Listen, open the store, serve it: when this returns, calls are answered.

        Raises
        ------
        VecstoreError
            A port cannot be had, or the store does not open; nothing is left open then.
        """
        try:
            self.listen()
            self.recover()
        except BaseException:
            self.drain(0.0)
            raise

    def listen(self) -> None:
        """Open the ports. Health is answered from now on; other calls are refused."""
        server = self.settings.server
        if server.http:
            self._http = HTTPPort(
                address_of(server.http, "http"),
                self.metrics.text,
                self._readiness,
                self.settings.metrics.connections_max,
            )
        self._server = self._grpc_server()
        self.grpc_port = self._bind(*address_of(server.listen, "listen"))
        self._server.start()
        if self._http is not None:
            self._http.start()
        self._log.info("listening", grpc=self.grpc_address, http=self.http_address, tls=self._tls is not None)
        if not self._auth.is_required:
            reach = "everybody who reaches these addresses" if server.insecure else "this machine only"
            self._log.warning("no authentication is configured", served=reach)

    def recover(self) -> None:
        """Open the store, and let calls through."""
        start_s = time.monotonic()
        database = self._open_store()
        self._database = database
        replication = self._replicated(database)
        seen = database if self.tracing is None else self.tracing.traced(database)
        service = Service(
            seen,
            region=self.settings.server.region,
            role=self._role,
            replication=None if replication is None else replication.describe,
            message_bytes_max=self.settings.server.message_bytes_max,
            repositories=frozenset({self.settings.server.archive, self.settings.snapshot.repository} - {""}),
        )
        handlers = service.handlers()
        if self.settings.metrics.recall_every:
            self._shadow = Shadow(self.settings.metrics, _finder(database), self._is_busy)
            self._shadow.start()
            self.metrics.watch_recall(self._shadow.report)
            handlers = [_Offering(handler, self._shadow) for handler in handlers]
        if self.settings.snapshot.repository:
            self._schedule = Schedule(self.settings.snapshot, database)
            self._schedule.start()
        if replication is not None:
            from .replicate import Replicate

            handlers += Replicate(replication).handlers()
        if self.settings.server.reflection:
            handlers += reflection.handlers()
        self._handlers.set(handlers)
        self.metrics.ready(database.status)
        self._phase = "serving"
        self._served = self._guard(service)
        if replication is not None:
            # Before calls are taken: until then a store with peers, or a standby, refuses writes.
            replication.start()
        if self._judge is not None:
            self._judge.start()
        self._door.open(self._served)
        self._health.serving()
        epoch, lsn = database.position()
        took_s = round(time.monotonic() - start_s, 3)
        self._log.info("serving", grpc=self.grpc_address, http=self.http_address, epoch=epoch, lsn=lsn, took_s=took_s)

    def drain(self, within_s: float | None = None) -> None:
        """Refuse new calls, let those in flight finish, close the store and the ports. May be called twice.

        Parameters
        ----------
        within_s
            Seconds that calls in flight have; None for what the settings say.
        """
        if self._phase == "closed":
            return
        within_s = self.settings.server.drain_s if within_s is None else within_s
        self._phase = "draining"
        self._health.stopping()
        self._door.close(_STOPPING)
        self._pool.stop_taking(_STOPPING)
        if self._server is not None:
            self._end_calls(within_s)
        self._close()

    def _end_calls(self, within_s: float) -> None:
        start_s = time.monotonic()
        self._log.info("draining", in_flight=self._in_flight(), within_s=within_s)
        threading.Event().wait(min(_NOTICE_S, within_s))
        ended: threading.Event = self._server.stop(max(0.0, within_s - _NOTICE_S))
        while not ended.wait(_SETTLE_S) and self._in_flight():
            pass
        # What is left are those who watch the health, which else would hold the server up to the last second; or
        # calls whose time is over.
        left = self._in_flight()
        self._server.stop(None)
        took_s = round(time.monotonic() - start_s, 3)
        self._log.info("drained", cancelled=left, took_s=took_s)

    def _replicated(self, database: Database) -> Replication | None:
        """Make an open store a member of the replication; one that is not this process's own is none."""
        from ..engine.database import EmbeddedDatabase

        if not isinstance(database, EmbeddedDatabase) or database.engine.read_only:
            return None
        from .replication import Replication

        made = self._replication = Replication(
            database.engine, self.settings, self._reached_at, lambda offline: self.replace(offline)
        )
        self.metrics.watch_replication(made.describe, self.settings.store.slot_retained_bytes_max)
        self.metrics.watch_drills(made.drills.history)
        from .readiness import Readiness

        self._judge = Readiness(made, self.settings, self._auth, self._tls, self.metrics.answered)
        return made

    def replace(self, offline: Callable[[str], Any]) -> Engine:
        """Close the store, let something be done to its folder, and open it again; calls meanwhile are refused."""
        from ..engine.database import EmbeddedDatabase

        database = self.database
        assert isinstance(database, EmbeddedDatabase)
        self._log.warning("contents are being replaced")
        self._door.close(_REPLACING, but=REPLICATION)
        database.engine.leave()
        start_s = time.monotonic()
        pause = threading.Event()
        while self._data_in_flight() and time.monotonic() - start_s < _REPLACE_WAIT_S:
            pause.wait(0.01)
        try:
            engine = database.replace(offline)
        finally:
            if self._phase == "serving" and self._served is not None:
                self._door.open(self._served)
        epoch, lsn = database.position()
        self._log.warning("contents were replaced", epoch=epoch, lsn=lsn, took_s=round(time.monotonic() - start_s, 3))
        return engine

    def _reached_at(self) -> str:
        """Return where other stores reach this server; only the port where it listens to all addresses."""
        host = address_of(self.settings.server.listen, "listen")[0]
        with contextlib.suppress(ValueError):
            if ipaddress.ip_address(host).is_unspecified:
                return f":{self.grpc_port}"
        return self.grpc_address

    def _close(self) -> None:
        if self._judge is not None:
            self._judge.close()
        if self._replication is not None:
            self._replication.close()
        if self._shadow is not None:
            self._shadow.close()
        if self._schedule is not None:
            self._schedule.close()
        self.metrics.not_ready()
        try:
            if self._database is not None:
                self._database.close()
        finally:
            self._pool.shutdown(wait=False)
            if self._http is not None:
                self._http.close()
            if self.tracing is not None:
                self.tracing.close()
            self._phase = "closed"
            self._log.info("closed")

    def reload(self, settings: Settings) -> None:
        """Take over what may change while the server runs: tokens, certificates, the log's level.

        What cannot be used is logged, and what was in force stays.
        """
        log.set_level(settings.log)
        for what, reload in self._reloads():
            try:
                reload()
            except VecstoreError as exc:
                self._log.error("not reloaded", what=what, problem=str(exc))
            else:
                self._log.info("reloaded", what=what)

    # -- what it says of itself --------------------------------------------------------------------------------------

    @property
    def grpc_address(self) -> str:
        """HOST:PORT of gRPC."""
        return _joined(address_of(self.settings.server.listen, "listen")[0], self.grpc_port)

    @property
    def http_address(self) -> str:
        """HOST:PORT of HTTP, empty where it is off."""
        if self._http is None:
            return ""
        return _joined(address_of(self.settings.server.http, "http")[0], self._http.port)

    @property
    def database(self) -> Database:
        """The store that is served."""
        if self._database is None:
            raise Unavailable("the store recovers")
        return self._database

    def _readiness(self) -> tuple[bool, str]:
        return self._phase == "serving", self._phase

    def _role(self) -> str:
        return str(self.database.status()["role"]) if self._replication is None else self._replication.role

    @property
    def replication(self) -> Replication:
        """The store as a member of the replication."""
        if self._replication is None:
            raise Unavailable("the store recovers")
        return self._replication

    def _reloads(self) -> list[tuple[str, Callable[[], None]]]:
        found = [("tokens", self._auth.reload)]
        return [*found, ("certificates", self._tls.reload)] if self._tls is not None else found

    def _in_flight(self) -> int:
        endless = 0 if self._replication is None else self._replication.endless_count
        return sum(one.in_flight + one.queued for one in self._pool.load().values()) - endless

    def _data_in_flight(self) -> int:
        return sum(one.in_flight + one.queued for name, one in self._pool.load().items() if name != "reserved")

    def _is_busy(self) -> bool:
        return any(one.queued for one in self._pool.load().values())

    # -- parts -------------------------------------------------------------------------------------------------------

    def _open_directory(self) -> Database:
        # Loaded once the ports are open: the engine's libraries take a while.
        from .. import open as open_store
        from ..engine.database import EmbeddedDatabase

        server = self.settings.server
        options = msgspec.structs.asdict(self.settings.store)
        path = os.path.abspath(server.data)
        if not is_store(path):
            if server.must_exist:
                raise NotFound(
                    f"server.data: there is no store at {path}",
                    hint="is its disk mounted? Without --must-exist a new store is made",
                )
            if self.settings.replication.standby_of:
                from .standby import bootstrap

                bootstrap(
                    path,
                    self.settings.replication,
                    server.region,
                    self.settings.replication.advertise or self._reached_at(),
                    lambda: self._phase != "starting",
                    self.settings.store.disk_free_bytes_min,
                )
        database = open_store(path, device=server.device, config=options)
        assert isinstance(database, EmbeddedDatabase)
        part = database.engine.part
        if server.archive and (part is None or part.role == "primary"):
            # A standby begins when it is promoted: two that archive one history would be in each other's way.
            try:
                database.engine.archive_to(server.archive)
            except BaseException:
                database.close()
                raise
        return database

    def _grpc_server(self) -> Any:
        server = self.settings.server
        options = [
            ("grpc.max_receive_message_length", server.message_bytes_max),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_concurrent_streams", server.streams_max),
            # Two servers on one port would each get some of the calls.
            ("grpc.so_reuseport", 0),
            ("grpc.keepalive_time_ms", round(server.keepalive_interval_s * 1000)),
            ("grpc.keepalive_timeout_ms", round(server.keepalive_timeout_s * 1000)),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", round(server.ping_interval_s_min * 1000)),
            ("grpc.http2.max_ping_strikes", 2),
            ("grpc.server_handshake_timeout_ms", _HANDSHAKE_S_MAX * 1000),
        ]
        if server.connection_age_s_max:
            options += [
                ("grpc.max_connection_age_ms", round(server.connection_age_s_max * 1000)),
                ("grpc.max_connection_age_grace_ms", round(server.drain_s * 1000)),
            ]
        return grpc.server(self._pool, [self._handlers], [self._door], options)

    def _guard(self, service: Service) -> Guard:
        # As the store was opened, and as the system calls it.
        data = os.path.abspath(self.settings.server.data)
        return Guard(
            self._pool,
            self._auth,
            served=service,
            observer=self.metrics,
            spans=self.tracing,
            hidden=(data, os.path.realpath(data)) if self.settings.server.data else (),
        )

    def _bind(self, host: str, port: int) -> int:
        address = _joined(host, port)
        try:
            if self._tls is not None:
                found = self._server.add_secure_port(address, self._tls.credentials())
            else:
                found = self._server.add_insecure_port(address)
        except RuntimeError:
            found = 0
        if not found:
            raise Unavailable(f"listen: {address} cannot be listened on: it is taken, or not this machine's")
        return int(found)


class _Offering(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Handlers of which searches are offered to the shadow once they were answered."""

    def __init__(self, inner: grpc.GenericRpcHandler, shadow: Shadow) -> None:
        self._inner, self._shadow = inner, shadow

    def service(self, handler_call_details: Any) -> Any:
        """Return the handler of a call."""
        found = self._inner.service(handler_call_details)
        if found is None or handler_call_details.method != _SEARCH:
            return found
        search, offer = found.unary_unary, self._shadow.offer

        def offered(request: Any, context: grpc.ServicerContext) -> Any:
            reply = search(request, context)
            offer(request)
            return reply

        return grpc.unary_unary_rpc_method_handler(
            offered,
            request_deserializer=found.request_deserializer,
            response_serializer=found.response_serializer,
        )


def _finder(database: Database) -> Callable[[int], Collection | None]:
    """Return what finds the collection of a number."""
    known: dict[int, Collection] = {}

    def find(number: int) -> Collection | None:
        if number not in known:
            known.clear()
            for name in database.collections():
                with contextlib.suppress(NotFound):
                    collection = database.collection(name)
                    known[collection.number] = collection
        return known.get(number)

    return find


def address_of(text: str, option: str) -> tuple[str, int]:
    """Return host and port of HOST:PORT; an IPv6 host stands in brackets.

    Raises
    ------
    InvalidArgument
        It is not of this form.
    """
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isdecimal() or int(port) > 65_535 or (":" in host and "[" not in text):
        raise InvalidArgument(f"server.{option}: {text!r} given; allowed is HOST:PORT, as in 127.0.0.1:7601")
    return host, int(port)


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False


def _has_tls(settings: Settings) -> bool:
    return bool(settings.tls.certificate or settings.tls.key or settings.tls.client_ca)


def _check_exposure(settings: Settings, asks_who: bool) -> None:
    """Refuse to let strangers in: a server that asks nobody who it is is for its own machine."""
    server = settings.server
    if server.insecure:
        return
    for option, text in (("listen", server.listen), ("http", server.http)):
        if not text:
            continue
        host, _ = address_of(text, option)
        if not asks_who and not _is_loopback(host):
            raise InvalidArgument(
                f"server.{option}: {text!r} given, and no authentication is configured: then only this machine's own "
                "addresses are allowed, as in 127.0.0.1",
                hint="configure [auth], or give --insecure to let everybody in",
            )
