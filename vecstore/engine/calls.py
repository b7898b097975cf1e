"""Calls that wait for the committer: what they ask for, and how their callers learn what became of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import request
from ..errors import DeadlineExceeded, VecstoreError
from ..filters import Condition
from ..record import Kind
from ..storage.catalog import Definition, Epoch
from ..storage.fold import PointsChange
from ..values import Ack, FieldType, Filter, Payload, Written

__all__ = ["Call", "Command", "Delete", "DeleteWhere", "Schema", "Update", "Upsert", "nothing_written"]


@dataclass(slots=True, eq=False)
class Call:
    """One write under way. The caller waits; the committer answers once.

    Attributes
    ----------
    ack
        The level asked for.
    request_id
        16 bytes, that of the context; zeros where the caller will not retry.
    deadline_s
        Monotonic time after which the committer does not start it; None for never.
    bytes
        What it holds in memory while it waits.
    token
        Of its record, once it has one.
    lsn
        What the answer of a call that wrote no record says; 0 before it is known.
    wrote
        Whether its answer is that of a record.
    """

    ack: Ack = "durable"
    request_id: bytes = field(default_factory=request.current)
    deadline_s: float | None = None
    bytes: int = 0
    token: str = ""
    lsn: int = 0
    wrote: bool = False
    _gate: threading.Lock = field(default_factory=threading.Lock)
    _taken: bool = False
    _late: bool = False
    _done: bool = False
    _word: threading.Event = field(default_factory=threading.Event)
    """Set once there is something to hear: the answer or, for who has no more time, the token."""
    _result: Any = None
    _error: BaseException | None = None

    def is_wanted(self) -> bool:
        """Tell whether its caller still waits and its deadline has not passed."""
        with self._gate:
            return self._is_wanted()

    def take(self) -> bool:
        """Say that it gets a record, and so a token, now; False where it is not wanted any more."""
        with self._gate:
            self._taken = self._is_wanted()
            return self._taken

    def _is_wanted(self) -> bool:
        if self._error is None and self.deadline_s is not None and time.monotonic() > self.deadline_s:
            self._error = _too_late("refused")
            self._word.set()
        return self._error is None

    def name(self, token: str) -> None:
        """Say which token its record has: a caller whose time is over waits for nothing more."""
        with self._gate:
            self.token = token
            if self._late:
                self._word.set()

    def finish(self, result: Any) -> None:
        """Answer the caller."""
        self._result = result
        self._done = True
        self._word.set()

    def fail(self, error: BaseException) -> None:
        """Answer the caller with an error."""
        self._error = error
        self._word.set()

    def result(self) -> Any:
        """Wait for the answer, until the deadline."""
        timeout_s = None if self.deadline_s is None else max(0.0, self.deadline_s - time.monotonic())
        if not self._word.wait(timeout_s):
            with self._gate:
                if not self._taken and self._error is None:
                    self._error = _too_late("refused")
                self._late = True
                has_word = self._error is not None or bool(self.token)
            if not has_word:
                # Its record is being made: by what it is asked about is known in a moment.
                self._word.wait()
            if not self._done and self._error is None:
                raise _too_late("unknown", self.token)
        if self._error is not None:
            raise self._error
        return self._result


def _too_late(outcome: Any, token: str = "") -> VecstoreError:
    hint = "give it more time" if outcome == "refused" else "ask with Database.wait(details['token']) what became of it"
    return DeadlineExceeded(
        "the time given ran out before the write was done", outcome=outcome, hint=hint, details={"token": token}
    )


@dataclass(slots=True, eq=False, kw_only=True)
class Upsert(Call):
    """Write points whole.

    Attributes
    ----------
    payloads
        As given, for declared and inferred fields.
    checked
        The fields that the payloads were checked against; checked again where the collection has others by now.
    """

    collection: int
    change: PointsChange
    codes: npt.NDArray[np.uint64]
    payloads: Sequence[Payload]
    checked: Mapping[str, FieldType]
    inferred: bool = False


@dataclass(slots=True, eq=False, kw_only=True)
class Update(Call):
    """Change existing points: vectors replace, payload keys merge."""

    collection: int
    keys: list[bytes]
    vectors: npt.NDArray[np.float32] | None
    patches: Sequence[Mapping[str, Any]] | None
    id_kind: int


@dataclass(slots=True, eq=False, kw_only=True)
class Delete(Call):
    """Remove points by id."""

    collection: int
    keys: list[bytes]
    id_kind: int


@dataclass(slots=True, eq=False, kw_only=True)
class DeleteWhere(Call):
    """Remove points that match, as many as one record holds.

    Attributes
    ----------
    filter
        As given: parsed again where the collection's fields are others by now than those it was parsed with.
    """

    collection: int
    filter: Filter
    condition: Condition
    checked: Mapping[str, FieldType]


@dataclass(slots=True, eq=False, kw_only=True)
class Schema(Call):
    """A record about a collection. `make` runs in the committer and says which, or None where nothing is to be done."""

    make: Callable[[], tuple[Kind, int, Definition | dict[str, Any] | Epoch] | None]


@dataclass(slots=True, eq=False, kw_only=True)
class Command(Call):
    """Something to run in the committer's thread between two groups; writes no record.

    Attributes
    ----------
    publishes
        Whether the next view differs.
    """

    run: Callable[[], Any]
    publishes: bool = False


def nothing_written(lsn: int, token: str, ack: Ack) -> Written:
    """Return the answer of a write that had nothing to do."""
    return Written(lsn, 0, token, ack)
