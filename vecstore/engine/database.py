"""The embedded `Database`, and how a process shares one engine among its handles."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

import msgspec
import xxhash

from .. import inputs, request
from .. import payload as payloads
from ..api import Collection, Database
from ..config import Config
from ..errors import AlreadyExists, Closed, InvalidArgument, NotFound, NotPrimary, Unavailable, VecstoreError
from ..fields import check_fields
from ..index import kinds
from ..record import NO_REQUEST, Kind, Token
from ..storage.catalog import Definition
from ..values import Ack, FieldType, Metric, Payload, Snapshot, Written
from .calls import Schema
from .collection import EmbeddedCollection
from .engine import Engine
from .status import status_of
from .verify import verify as verify_engine

__all__ = ["EmbeddedDatabase", "open_database"]

_lock = threading.Lock()
_engines: dict[str, tuple[Engine, int]] = {}
"""Open engines by real path, with the number of handles on each."""


def open_database(
    path: str,
    *,
    create: bool,
    read_only: bool,
    device: str,
    config: Mapping[str, Any] | None,
    archive: str | None = None,
) -> EmbeddedDatabase:
    """Open a store, or share the engine that this process has open on it; archive it, where that is asked for."""
    database = _opened(path, create=create, read_only=read_only, device=device, config=config)
    if archive is not None:
        try:
            database.engine.archive_to(archive)
        except BaseException:
            database.close()
            raise
    return database


def _opened(
    path: str, *, create: bool, read_only: bool, device: str, config: Mapping[str, Any] | None
) -> EmbeddedDatabase:
    if not isinstance(path, str | os.PathLike) or not os.fspath(path):
        raise InvalidArgument(f"path: {path!r} given; allowed is the path of a directory")
    options = Config.load(config)
    place = os.path.realpath(os.fspath(path))
    with _lock:
        found = _engines.get(place)
        if found is not None and _is_usable(found[0]) and found[0].read_only == read_only:
            _engines[place] = (found[0], found[1] + 1)
            return EmbeddedDatabase(found[0], place)
        engine = Engine(os.fspath(path), create=create, read_only=read_only, device=device, config=options)
        if found is None or not _is_usable(found[0]):
            _engines[place] = (engine, 1)
            return EmbeddedDatabase(engine, place)
        return EmbeddedDatabase(engine, None)


def _is_usable(engine: Engine) -> bool:
    try:
        engine.check_open()
    except Closed:
        return False
    return True


class EmbeddedDatabase(Database):
    """A handle on an open engine. Thread-safe.

    Parameters
    ----------
    place
        The key under which the engine is shared; None where it is this handle's alone.
    """

    def __init__(self, engine: Engine, place: str | None) -> None:
        self._engine = engine
        self._place = place
        self._closed = False

    def __repr__(self) -> str:
        return f"<Database {self._engine.directory.path!r}>"

    @property
    def engine(self) -> Engine:
        """The open engine; refuses use after close."""
        if self._closed:
            raise Closed(f"the store at {self._engine.directory.path} was closed", hint="open it again")
        self._engine.check_open()
        return self._engine

    def close(self) -> None:
        with _lock:
            if self._closed:
                return
            self._closed = True
            if self._place is not None:
                engine, handles = _engines.get(self._place, (self._engine, 1))
                if engine is self._engine and handles > 1:
                    _engines[self._place] = (engine, handles - 1)
                    return
                if engine is self._engine:
                    _engines.pop(self._place, None)
            self._engine.close()

    def replace(self, offline: Callable[[str], Any]) -> Engine:
        """Close the engine, let something be done to the closed store, and open it again beneath this handle.

        Calls meanwhile are refused as `Closed`. Whatever `offline` raises, the store is open again afterwards, as far
        as it can be.

        Parameters
        ----------
        offline
            Is given the store's path.
        """
        with _lock:
            if self._closed:
                raise Closed(f"the store at {self._engine.directory.path} was closed", hint="open it again")
            before = self._engine
            path, archiver = before.directory.path, before.archiver
            before.close()
            try:
                offline(path)
            finally:
                after = Engine(path, create=False, read_only=False, device=before.device, config=before.config)
                # Whoever says these is told of the engine later than callers come to it.
                after.reads_held, after.primary_hint = before.reads_held, before.primary_hint
                self._engine = after
                if self._place is not None:
                    _engines[self._place] = (self._engine, 1)
        if archiver is not None:
            self._engine.archive_to(archiver.where)
        return self._engine

    # -- collections -------------------------------------------------------------------------------------------------

    def create_collection(
        self,
        name: str,
        dim: int,
        *,
        metric: Metric = "cosine",
        fields: Mapping[str, FieldType] | Literal["infer"] = {},
        index: str = "auto",
        shards: int = 1,
        metadata: Payload | None = None,
        exist_ok: bool = False,
    ) -> Collection:
        engine = self.engine
        infer = isinstance(fields, str) and fields == "infer"
        definition = Definition(
            id=0,
            name=inputs.checked_name(name),
            dim=inputs.checked_dim(dim),
            metric=inputs.checked_metric(metric),
            fields={} if infer else _checked_fields(fields),
            infer=infer,
            index=_checked_index(index),
            shards=inputs.checked_shards(shards),
            metadata=payloads.decode(payloads.encode(metadata, "metadata"), True),
            created_lsn=0,
        )

        def make() -> tuple[Kind, int, Definition] | None:
            there = engine.state.view.names.get(name)
            if there is not None:
                self._check_same(there, definition, exist_ok)
                return None
            fold = engine.state.fold
            writer = fold.epochs[-1].writer if fold.epochs else ""
            number = xxhash.xxh3_64_intdigest(f"{writer}:{fold.tip.lsn + 1}".encode()) or 1
            made = msgspec.structs.replace(definition, id=number, created_lsn=fold.tip.lsn + 1)
            return Kind.CREATE, number, made

        call = Schema(make=make, deadline_s=request.deadline_s())
        there = engine.state.view.names.get(name)
        if there is not None and call.request_id == NO_REQUEST:
            self._check_same(there, definition, exist_ok)
            return EmbeddedCollection(self, there, name)
        written: Written = engine.submit(call)
        number = self._created_at(written.lsn) if call.wrote else engine.state.view.names.get(name)
        if number is None:
            raise NotFound(f"collection {name!r} was dropped or renamed since it was created", details={"name": name})
        return EmbeddedCollection(self, number, name)

    def _created_at(self, lsn: int) -> int | None:
        """Return the collection that the record at an LSN created, whatever it is called now."""
        for number, collection in self.engine.state.view.collections.items():
            if collection.state.definition.created_lsn == lsn:
                return number
        return None

    def _check_same(self, number: int, wanted: Definition, exist_ok: bool) -> None:
        found = self.engine.state.view.collections[number].state.definition
        if not exist_ok:
            raise AlreadyExists(
                f"name: collection {wanted.name!r} exists",
                hint="exist_ok=True returns it",
                details={"name": wanted.name},
            )
        parts = ["dim", "metric", "index", "shards", "infer"] + ([] if wanted.infer else ["fields"])
        if wanted.metadata:
            parts.append("metadata")
        for part in parts:
            if getattr(found, part) != getattr(wanted, part):
                raise AlreadyExists(
                    f"{part}: collection {wanted.name!r} exists with {part}={getattr(found, part)!r}, "
                    f"given was {getattr(wanted, part)!r}",
                    details={"name": wanted.name, "part": part},
                )

    def collection(self, name: str) -> Collection:
        return EmbeddedCollection(self, self._number(name), name)

    def _number(self, name: object) -> int:
        view = self.engine.state.view
        number = view.names.get(inputs.checked_name(name))
        if number is None:
            known = ", ".join(sorted(view.names)[:10]) or "none"
            raise NotFound(f"name: there is no collection {name!r}; there are: {known}", details={"name": name})
        return number

    def collections(self) -> list[str]:
        return sorted(self.engine.state.view.names)

    def rename_collection(self, name: str, to: str, *, replace: bool = False) -> None:
        engine = self.engine
        inputs.checked_name(name)
        inputs.checked_name(to, "to")

        def make() -> tuple[Kind, int, dict[str, Any]] | None:
            number = self._number(name)
            other = engine.state.view.names.get(to)
            if other == number:
                return None
            if other is not None and not replace:
                raise AlreadyExists(f"to: collection {to!r} exists", hint="replace=True drops it", details={"name": to})
            return Kind.RENAME, number, {"name": to, "replaces": other}

        engine.submit(Schema(make=make, deadline_s=request.deadline_s()))

    def drop_collection(self, name: str, *, missing_ok: bool = False) -> None:
        engine = self.engine
        inputs.checked_name(name)

        def make() -> tuple[Kind, int, dict[str, Any]] | None:
            if missing_ok and name not in engine.state.view.names:
                return None
            return Kind.DROP, self._number(name), {}

        engine.submit(Schema(make=make, deadline_s=request.deadline_s()))

    # -- the store ---------------------------------------------------------------------------------------------------

    def wait(self, token: str, *, ack: Ack = "durable", timeout: float | None = None) -> Written:
        engine = self.engine
        level = inputs.checked_ack(ack)
        timeout = inputs.checked_timeout(timeout)
        request = _request_id(token)
        deadline_s = None if timeout is None else time.monotonic() + timeout
        if request is not None:
            found = self._settled(request, level)
            if level == "replicated":
                engine.await_replicated(found.lsn, found.token, deadline_s)
            return found
        place = Token.decode(token)
        engine.await_token(place, timeout)
        if level != "memory" and engine.durable_lsn < place.lsn and engine.committer is not None:
            engine.committer.run(engine.committer.sync)
        if level == "replicated":
            engine.await_replicated(place.lsn, token, deadline_s)
        return Written(place.lsn, 0, token, level)

    def _settled(self, request_id: bytes, level: Ack) -> Written:
        """Return what became of a request: asked behind all that the committer had taken before."""
        engine = self.engine
        committer = engine.committer

        def find() -> Written | None:
            entry = engine.state.fold.requests.get(request_id)
            if entry is not None:
                if committer is not None and level != "memory" and engine.durable_lsn < entry[0]:
                    committer.sync()
                return Written(entry[0], entry[2], engine.history.token_at(entry[0]), level)
            answer = None if committer is None else committer.settled.find(request_id)
            return None if answer is None else Written(answer[0], 0, answer[1], level)

        why = "it is not known here, or is older than the window of request ids"
        try:
            found: Written | None = engine.at_barrier(find)
        except VecstoreError as exc:
            if exc.outcome != "refused" or exc.retryable or isinstance(exc, Closed | Unavailable):
                raise
            found, why = None, f"it was refused: {exc}"
        if found is None:
            raise NotFound(
                f"token: request {request_id.hex()} did not take effect: {why}",
                details={"request_id": request_id.hex()},
            )
        return found

    def status(self) -> dict[str, Any]:
        return status_of(self.engine)

    def position(self) -> tuple[int, int]:
        view = self.engine.state.view
        return view.epoch, view.lsn

    def verify(self, *, progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
        return verify_engine(self.engine, progress)

    def snapshot(self, repository: str) -> Snapshot:
        from .snapshot import take_snapshot

        return take_snapshot(self.engine, repository)

    def checkpoint(self) -> int:
        """Take a checkpoint now and cut the log; return its LSN. The engine does so by itself, too."""
        engine = self.engine
        if engine.checkpointer is None:
            raise NotPrimary("the store is open read-only", hint="open it with read_only=False")
        return engine.checkpointer.take().lsn


def _request_id(text: object) -> bytes | None:
    if isinstance(text, str) and len(text) == 32 and all(c in "0123456789abcdef" for c in text):
        request = bytes.fromhex(text)
        return None if request == NO_REQUEST else request
    return None


def _checked_fields(fields: object) -> dict[str, FieldType]:
    if not isinstance(fields, Mapping):
        raise InvalidArgument(
            f"fields: {inputs.shown(fields)} given; allowed is a mapping of names to types, or 'infer'"
        )
    return check_fields(fields)


def _checked_index(index: object) -> str:
    if index not in kinds.KINDS:
        raise InvalidArgument(f"index: {inputs.shown(index)} given; allowed are {', '.join(kinds.KINDS)}")
    return str(index)
