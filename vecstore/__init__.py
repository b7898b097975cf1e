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
        Not part of this version: must be None.
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
    if archive is not None:
        raise InvalidArgument(f"archive: {archive!r} given; this version has no archive, allowed is None")
    try:
        from .engine.database import open_database
    except ImportError as exc:
        if isinstance(exc, VecstoreError) or (exc.name or "").startswith("vecstore"):
            raise
        raise EngineMissing(
            f"the embedded engine needs {exc.name}, which is not installed", hint="pip install 'vecstore-db[cpu]'"
        ) from exc
    return open_database(path, create=create, read_only=read_only, device=device, config=config)


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
