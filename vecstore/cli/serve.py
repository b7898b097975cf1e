"""The command `vecstore serve`: a server in this process, its signals, its exit.

SIGTERM and SIGINT drain: calls in flight finish, the store is closed, exit code 0. A second one ends the process at
once, as does one while the store recovers: nothing durable is lost, the next start recovers. SIGHUP reads tokens,
certificates and the log's level again.

Exit codes beyond those of every command: 2 where the configuration cannot be used; 128 and the signal's number where
the process was ended at once.
"""

from __future__ import annotations

import gc
import logging
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

import click

from ..errors import EngineMissing, InvalidArgument
from .output import Output, reporting
from .where import missing

if TYPE_CHECKING:
    from ..server.node import Node
    from ..server.settings import Settings

__all__ = ["serve_command"]

_ENDING = (signal.SIGTERM, signal.SIGINT)
_GARBAGE_THRESHOLDS = (10_000, 20, 20)


@click.command("serve")
@click.option("--data", metavar="DIR", help="Directory of the store; made where it does not exist.")
@click.option("--config", "file", type=click.Path(), metavar="FILE", help="TOML file of options; see: vecstore config.")
@click.option(
    "--listen", metavar="HOST:PORT", help="Address of gRPC; port 0 takes a free one.  [default: 127.0.0.1:7601]"
)
@click.option(
    "--http", metavar="HOST:PORT", help="Address of metrics and health; '' for none.  [default: 127.0.0.1:7602]"
)
@click.option("--archive", metavar="REPO", help="Ship the log there all the time: a path, or a URL of s3, gs or az.")
@click.option("--region", metavar="NAME", help="Name of the place that this server stands in.")
@click.option(
    "--standby-of", metavar="HOST:PORT", help="Follow that primary: an empty DIR is filled, a fenced store rejoins."
)
@click.option("--slot", metavar="NAME", help="Name under which the primary holds its log for this store.")
@click.option("--bootstrap-from", metavar="REPO", help="Fill an empty DIR from a repository before it follows.")
@click.option("--synchronous", metavar="REGION", help="Region whose standby ack='replicated' waits for.")
@click.option("--advertise", metavar="HOST:PORT", help="Where other stores reach this server, if not where it listens.")
@click.option("--must-exist", is_flag=True, default=None, help="Refuse to make DIR: a disk may not be mounted.")
@click.option("--tokens", metavar="FILE", help="File of tokens and their grants.")
@click.option("--certificate", metavar="FILE", help="Certificate chain for TLS, PEM.")
@click.option("--key", metavar="FILE", help="Private key for TLS, PEM.")
@click.option("--client-ca", metavar="FILE", help="Authorities whose certificates clients must show, PEM.")
@click.option("--insecure", is_flag=True, default=None, help="Let everybody in who reaches the address, unasked.")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="Least severe log level.")
@reporting
def serve_command(out: Output, *, file: str | None, **flags: Any) -> None:
    """Serve a store to clients over gRPC, until SIGTERM.

    Says on stdout when calls are taken and where: vecstore ready grpc=HOST:PORT http=HOST:PORT
    """
    # What gRPC itself has to say, as of each failed handshake, is not for a log of JSON lines that anybody can fill.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    load = _loader(file, flags)
    try:
        node = _made(load())
    except InvalidArgument as exc:
        _refused(out, exc)
    signals: queue.SimpleQueue[int] = queue.SimpleQueue()
    at_once = threading.Event()
    at_once.set()
    _watch(signals, at_once)
    node.start()
    at_once.clear()
    # What was made so far stays: looking through it for garbage would stop every thread for 20 ms now and then. Looking
    # as often as Python does by itself took a twelfth of the time in which records are written.
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GARBAGE_THRESHOLDS)
    ready = {"grpc": node.grpc_address, "http": node.http_address}
    out.result({"ready": ready}, " ".join(["vecstore ready", *(f"{name}={at}" for name, at in ready.items() if at)]))
    while True:
        number = signals.get()
        if number != signal.SIGHUP:
            break
        _reload(node, load)
    node.drain()
    _leave()


def _loader(file: str | None, flags: dict[str, Any]) -> Callable[[], Settings]:
    sections = {"tokens": "auth", "certificate": "tls", "key": "tls", "client_ca": "tls", "log_level": "log"}
    sections |= dict.fromkeys(("standby_of", "slot", "bootstrap_from", "synchronous", "advertise"), "replication")
    given = {
        (sections.get(name, "server"), name.removeprefix("log_")): value
        for name, value in flags.items()
        if value is not None
    }

    def load() -> Settings:
        try:
            from ..server import settings
        except ImportError as exc:
            raise missing(exc.name or str(exc), "server") from exc
        found = settings.load(file, given)
        if not found.server.data:
            raise InvalidArgument("server.data: not given", hint="vecstore serve --data DIR")
        return found

    return load


def _made(settings: Settings) -> Node:
    try:
        from ..server import log
        from ..server.node import Node
    except EngineMissing:
        raise
    except ImportError as exc:
        raise missing(exc.name or str(exc), "server") from exc
    node = Node(settings)
    log.begin(settings.log)
    return node


def _watch(signals: queue.SimpleQueue[int], at_once: threading.Event) -> None:
    """Put signals into a queue; one that ends the process after another, or while `at_once` is set, does so itself.

    They come through a pipe, which misses none. A handler in Python would: one that is due in the moment before its
    thread begins to wait is run only when that wait is over.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number in (*_ENDING, signal.SIGHUP):
        signal.signal(number, lambda *_: None)

    def watch() -> None:
        while True:
            (number,) = os.read(reading, 1)
            if number in _ENDING:
                if at_once.is_set():
                    os._exit(128 + number)
                at_once.set()
            signals.put(number)

    threading.Thread(target=watch, name="vecstore-signals", daemon=True).start()


def _reload(node: Node, load: Callable[[], Settings]) -> None:
    from ..server import log

    try:
        settings = load()
    except InvalidArgument as exc:
        log.logger().error("not reloaded", what="configuration", problem=str(exc))
        return
    node.reload(settings)


def _refused(out: Output, exc: InvalidArgument) -> NoReturn:
    if out.as_json:
        out.result({"error": {"kind": "InvalidArgument", "message": str(exc.args[0]), "hint": exc.hint}}, "")
    out.say(f"error: {exc}")
    raise SystemExit(2) from None


def _leave() -> NoReturn:
    """End the process now that the store is closed: a thread that hangs in a cancelled call must not hold it up."""
    sys.stdout.flush()
    sys.stderr.flush()
    logging.shutdown()
    os._exit(0)
