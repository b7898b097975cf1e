"""An empty directory becomes a standby: the primary's files come over the network, are checked, and are put in place.

The primary takes a snapshot and holds its log for the slot from then on. What was fetched is kept over a restart, so
that a bootstrap that was cut short goes on where it stopped. Until all is there the directory is no store.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ..backup.plan import Target
from ..backup.repository import Repository
from ..backup.restore import restore
from ..engine.contents.incoming import Incoming, has_room
from ..engine.contents.install import install
from ..engine.kept import INCOMING
from ..errors import AlreadyExists, Exhausted, InvalidArgument, NotPrimary, Unavailable, VecstoreError
from ..replication.coding import decode_claim, encode_state
from ..replication.durable import Durable
from ..storage.directory import begin, is_store
from ..storage.reads import Reads, this_version
from ..wire.v1 import replication_pb2 as pb
from . import log
from .peers import AddressBook
from .pieces import join_check, ticket_check
from .reach import Reach
from .settings import ReplicationSettings

__all__ = ["bootstrap"]

RETRY_S_MIN, RETRY_S_MAX = 0.5, 15.0
FULL_S_MAX = 600.0
"""A disk without room is looked at again and again for so long; then the primary is asked how much it is by now."""


def bootstrap(
    path: str,
    settings: ReplicationSettings,
    region: str,
    address: str,
    stopping: Callable[[], bool] = lambda: False,
    free_bytes_min: int = 0,
) -> None:
    """Fill a new or empty folder from the primary that the settings name; wait for it as long as it takes.

    Parameters
    ----------
    address
        Where this server is reached.
    stopping
        Says whether to give up.
    free_bytes_min
        So much of the disk stays free: what would not fit is not begun, and waited with until there is room.

    Raises
    ------
    InvalidArgument
        Something else is in the folder, or the primary refuses for good.
    """
    if settings.bootstrap_from and not os.path.exists(os.path.join(path, INCOMING)):
        _restore(path, settings)
        return
    directory = begin(path)
    store_id = directory.store_id.hex()
    directory.close()
    if is_store(path):  # only the end of an earlier bootstrap was missing
        return
    asked, wait_s, pause = settings.standby_of, RETRY_S_MIN, threading.Event()
    while not stopping():
        try:
            _fetch(path, store_id, asked, settings, region, address, free_bytes_min)
            return
        except (InvalidArgument, AlreadyExists):
            raise
        except Exhausted as exc:
            log.logger().warning("alarm", text=f"bootstrap: {exc}")
            _await_room(path, exc, stopping)
            continue
        except VecstoreError as exc:
            log.logger().warning("bootstrap is tried again", primary=asked, why=str(exc), after_s=wait_s)
            asked = exc.primary if isinstance(exc, NotPrimary) and exc.primary else settings.standby_of
        pause.wait(wait_s)
        wait_s = min(RETRY_S_MAX, 2 * wait_s)


def _await_room(path: str, refusal: Exhausted, stopping: Callable[[], bool]) -> None:
    """Wait until there is room on the disk, without asking the primary: each time it would take a snapshot."""
    needed, floor = int(refusal.details.get("needed", 0)), int(refusal.details.get("floor", 0))
    pause, start_s = threading.Event(), time.monotonic()
    pause.wait(RETRY_S_MIN)
    while not stopping() and time.monotonic() - start_s < FULL_S_MAX:
        if needed and has_room(path, needed, floor):
            return
        pause.wait(RETRY_S_MIN)


def _restore(path: str, settings: ReplicationSettings) -> None:
    """Fill a folder from a repository, as far as it goes; the primary gives what follows.

    The primary need not be there: whom the store follows it then learns from whoever reaches it.
    """
    logger = log.logger()
    store_id = ""
    with suppress(VecstoreError):
        store_id = str(Reach(settings).describe(settings.standby_of)["store_id"])
    state = Durable("standby", primary=store_id, peers=(store_id,) if store_id else ())
    logger.info("bootstrapping", repository=settings.bootstrap_from)
    found = restore(Repository(settings.bootstrap_from), path, Target(), standby=encode_state(state))
    if store_id:
        AddressBook(Path(path)).learn(store_id, settings.standby_of)
    logger.info("bootstrapped", repository=settings.bootstrap_from, lsn=found.lsn)


def _fetch(
    path: str,
    store_id: str,
    primary: str,
    settings: ReplicationSettings,
    region: str,
    address: str,
    free_bytes_min: int,
) -> None:
    reach, logger = Reach(settings), log.logger()
    request = pb.JoinRequest(store_id=store_id, slot=settings.slot or store_id, region=region, address=address)
    reads = this_version()
    if reads != Reads():  # who says nothing reads this much, as all did once
        request.reads_format, request.reads_kind = reads.format, reads.kind
    request.check = join_check(request)
    ticket = reach.join(primary, request)
    if ticket.check != ticket_check(ticket):
        raise Unavailable(f"what {primary} said was changed on the way")
    size = sum(file.size for file in ticket.files)
    logger.info("bootstrapping", primary=primary, lsn=ticket.lsn, bytes=size, files=len(ticket.files))
    incoming = Incoming(path, free_bytes_min)
    incoming.begin(ticket.id, [(file.name, file.size, file.check) for file in ticket.files])
    for name, offset in incoming.missing():
        incoming.receive(name, reach.fetch(primary, ticket.id, name, offset))
    claim = decode_claim(ticket.claim)
    state = Durable("standby", promise=claim, primary=claim.store_id, peers=(claim.store_id,))
    install(path, encode_state(state))
    AddressBook(Path(path)).learn(claim.store_id, ticket.primary_address or primary)
    logger.info("bootstrapped", primary=primary, lsn=ticket.lsn, bytes=size)
