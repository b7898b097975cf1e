"""vecstore: a vector database storage engine that people trust with their embeddings.

>>> import vecstore
>>> with vecstore.open("my-store") as db:
...     docs = db.create_collection("docs", dim=384)
...     docs.upsert(["a", "b"], vectors, [{"title": "A"}, {"title": "B"}])
...     hits = docs.search(query, k=10)

Importing the package loads neither FAISS nor RocksDB nor gRPC; `open` and `connect` do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

from .api import Collection, Database
from .errors import (
    AlreadyExists,
    Closed,
    Damaged,
    DeadlineExceeded,
    EngineMissing,
    Exhausted,
    InvalidArgument,
    Locked,
    NotFound,
    NotPrimary,
    Overloaded,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
    VecstoreError,
    WriteLost,
)
from .filters import Condition, Field
from .values import (
    TLS,
    Ack,
    ArrowStream,
    FieldType,
    Filter,
    Hit,
    Hits,
    Id,
    Ids,
    Metric,
    Payload,
    Point,
    SearchBatch,
    Snapshot,
    Written,
)

if TYPE_CHECKING:
    from . import aio as aio

EPOCH_START = datetime(1970, 1, 1, tzinfo=UTC)

__version__ = "0.1.0"

__all__ = [
    "TLS",
    "Ack",
    "AlreadyExists",
    "ArrowStream",
    "Closed",
    "Collection",
    "Condition",
    "Damaged",
    "Database",
    "DeadlineExceeded",
    "EngineMissing",
    "Exhausted",
    "Field",
    "FieldType",
    "Filter",
    "Hit",
    "Hits",
    "Id",
    "Ids",
    "InvalidArgument",
    "Locked",
    "Metric",
    "NotFound",
    "NotPrimary",
    "Overloaded",
    "Payload",
    "PermissionDenied",
    "Point",
    "SearchBatch",
    "Snapshot",
    "Unauthenticated",
    "Unavailable",
    "VecstoreError",
    "WriteLost",
    "Written",
    "aio",
    "connect",
    "copy",
    "open",
    "restore",
]


def open(
    path: str,
    *,
    create: bool = True,
    read_only: bool = False,
    archive: str | None = None,
    device: Literal["auto", "cpu", "gpu"] = "auto",
    config: Mapping[str, Any] | None = None,
) -> Database:
    """Open a store in this process, or make it.

    Parameters
    ----------
    path
        The store's directory.
    create
        Make it where it does not exist.
    read_only
        Take no lock and write nothing: see the store as it is at this moment, also while another process writes.
    archive
        A repository to which the log is shipped all the time: a path, or a URL that begins with s3, gs or az. See
        `restore`.
    device
        "cpu"; "auto" takes what there is.
    config
        Options by name, see `vecstore.config.Config`.

    Raises
    ------
    Locked
        Another process has it open for writing.
    Damaged
        Acknowledged records are gone, or bytes are not what was written; run ``vecstore doctor``.
    NotFound, InvalidArgument
        There is no store at the path, or something else is; it is left untouched.
    EngineMissing
        The engine's libraries are not installed.
    """
    try:
        from .engine.database import open_database
    except ImportError as exc:
        if isinstance(exc, VecstoreError) or (exc.name or "").startswith("vecstore"):
            raise
        raise EngineMissing(
            f"the embedded engine needs {exc.name}, which is not installed", hint="pip install 'vecstore-db[cpu]'"
        ) from exc
    return open_database(path, create=create, read_only=read_only, device=device, config=config, archive=archive)


def connect(
    endpoints: str | Sequence[str],
    *,
    token: str | None = None,
    tls: bool | TLS = False,
    read_from: Literal["primary", "standby", "any"] = "primary",
    timeout: float = 10.0,
) -> Database:
    """Connect to a store that servers serve (``vecstore serve``).

    Parameters
    ----------
    endpoints
        ``host:port``, or several of the servers of one store: writes go to the primary among them, and no other is ever
        sent anything.
    token
        Says who the caller is; else `VECSTORE_TOKEN` does. It is sent in clear to this machine's own loopback alone,
        unless ``VECSTORE_PLAINTEXT_TOKEN=allow`` says that the network is trusted.
    tls
        True, or how: see `TLS`. `VECSTORE_CA` (a file, or "public": the authorities that come with gRPC) turns it on.
    read_from
        Which servers answer reads: "primary", "standby" (what it has applied: at least all that this client has seen)
        or "any".
    timeout
        Seconds that a call has which is given none of its own; all retries are within it.

    Raises
    ------
    Unavailable
        No server answered in the time given.
    NotPrimary
        There is no primary among the endpoints, and reads are to come from it.
    Unauthenticated
        The servers want a token, and know none that was given.
    InvalidArgument
        What is no address, or a token that would travel over the network in clear.
    """
    from .client.remote import connect as connect_remote

    return connect_remote(endpoints, token=token, tls=tls, read_from=read_from, timeout=timeout)


def restore(
    repository: str,
    path: str,
    *,
    to_lsn: int | None = None,
    to_time: datetime | None = None,
    in_place: bool = False,
) -> Snapshot:
    """Make a store of what a repository holds: its newest state, or that at an LSN or a time.

    It begins with the newest snapshot that is not after the target, and goes on with the archive. Every checksum and
    chain is checked on the way, and at the end the digest of every collection is recomputed from the bytes. Where it
    fails, or is cut short, the folder is no store; the same call goes on with what is there.

    Parameters
    ----------
    repository
        A path, or a URL that begins with s3, gs or az. Where it holds several lineages or branches, one is named as in
        ``REPO#LINEAGE`` or ``REPO#LINEAGE/EPOCH-WRITER``.
    path
        A new or empty folder.
    to_lsn
        The last record to restore.
    to_time
        The last commit time to restore: an aware datetime. Commit times are the log's own, and never go back.
    in_place
        Keep the lineage and begin a new epoch, for a primary that is lost for good; it goes on with the same archive.
        Else the store is of a new lineage, and can't be confused with its source.

    Returns
    -------
    Snapshot
        What was restored: the id of the snapshot that it began with ("" for none), LSN and commit time of the last
        record, and the bytes read.

    Raises
    ------
    AlreadyExists
        Something is at the path; it is left untouched.
    Damaged
        Something in the repository is missing or not what was written; the details name it.
    NotFound
        The target is out of reach.
    """
    if to_lsn is not None and to_time is not None:
        raise InvalidArgument("to_lsn, to_time: both given; allowed is one of them")
    if to_lsn is not None and (type(to_lsn) is not int or to_lsn < 0):
        raise InvalidArgument(f"to_lsn: {to_lsn!r} given; allowed is an LSN, 0 or more")
    if to_time is not None and (not isinstance(to_time, datetime) or to_time.tzinfo is None):
        raise InvalidArgument(f"to_time: {to_time!r} given; allowed is an aware datetime")
    try:
        from .backup import restore as restoring
        from .backup.manifest import time_of
        from .backup.plan import Target
        from .backup.repository import Repository
    except ImportError as exc:
        if isinstance(exc, VecstoreError) or (exc.name or "").startswith("vecstore"):
            raise
        raise EngineMissing(
            f"a restore needs {exc.name}, which is not installed", hint="pip install 'vecstore-db[cpu]'"
        ) from exc
    time_us = None if to_time is None else int((to_time - EPOCH_START) / timedelta(microseconds=1))
    made = restoring.restore(Repository(repository), path, Target(to_lsn, time_us), in_place=in_place)
    return Snapshot(made.id, made.lsn, time_of(made.time_us), made.bytes_read)


def copy(source: Collection, target: Database, name: str) -> Written:
    """Copy a collection as it is now into another store, under a name that is free there.

    Points, payloads, fields and metadata are copied, record by record; a copy that fails half-way leaves the collection
    with what was committed, and the error says how much.

    Parameters
    ----------
    source
        A collection of any store, embedded or remote.
    target
        Any store, the source's own too.

    Returns
    -------
    Written
        `count` is the number of points copied.
    """
    from .transfer import copy_collection

    return copy_collection(source, target, name)


def __getattr__(name: str) -> Any:
    # `aio` is loaded when it is asked for: it is of no use to most programs.
    if name == "aio":
        import importlib

        return importlib.import_module(".aio", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
