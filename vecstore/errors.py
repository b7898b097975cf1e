"""The errors of vecstore: one tree, the same embedded and remote.

::

    VecstoreError
     ├── InvalidArgument    bad input; nothing changed                      (ValueError)
     ├── NotFound           no such collection, store or record             (LookupError)
     ├── AlreadyExists      the name is taken
     ├── DeadlineExceeded   the time given ran out                          (TimeoutError)
     ├── Overloaded         shed; try again after `retry_after_s`
     ├── Exhausted          a limit of memory, disk or batch; details name it
     ├── NotPrimary         writes go to another store
     ├── WriteLost          this history does not hold the record of a token
     ├── PermissionDenied   the caller has no grant                         (PermissionError)
     ├── Unauthenticated    the caller is not known
     ├── Unavailable        not now; a retry may succeed                    (ConnectionError)
     ├── Damaged            bytes on disk are not what was written
     ├── Locked             another process has the store
     ├── Closed             the handle was closed, or used after fork
     └── EngineMissing      a thin install; the hint names the extra        (ImportError)

What to do is decided by attributes, never by `isinstance` ladders: `retryable` says whether the same call may succeed
later; `outcome` says what became of a write (``"refused"``: nothing changed; ``"unknown"``: ask with `Database.wait`;
``"durable"``: done on this store). Every foreign error is mapped ``from exc`` by the adapter that met it.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

Outcome = Literal["refused", "unknown", "durable"]

__all__ = [
    "AlreadyExists",
    "Closed",
    "Damaged",
    "DeadlineExceeded",
    "EngineMissing",
    "Exhausted",
    "InvalidArgument",
    "Locked",
    "NotFound",
    "NotPrimary",
    "Overloaded",
    "PermissionDenied",
    "Unauthenticated",
    "Unavailable",
    "VecstoreError",
    "WriteLost",
]


class VecstoreError(Exception):
    """The root of every error that vecstore raises on purpose.

    Parameters
    ----------
    message
        What was wrong, with which value.
    outcome
        What became of the write, if the call was one.
    hint
        What to do about it; shown after the message.
    details
        Plain values for programs: the field, the limit, the LSNs.
    """

    _retryable: ClassVar[bool] = False

    retryable: bool
    outcome: Outcome
    hint: str
    details: dict[str, Any]

    def __init__(
        self,
        message: str,
        *,
        outcome: Outcome = "refused",
        hint: str = "",
        details: dict[str, Any] | None = None,
        retryable: bool | None = None,
    ) -> None:
        super().__init__(message)
        self.retryable = self._retryable if retryable is None else retryable
        self.outcome = outcome
        self.hint = hint
        self.details = details or {}

    def __str__(self) -> str:
        message = super().__str__()
        return f"{message} ({self.hint})" if self.hint else message


class InvalidArgument(VecstoreError, ValueError):
    """An argument is not allowed; the message names it, its value and what is allowed."""


class NotFound(VecstoreError, LookupError):
    """The collection, store or record does not exist."""


class AlreadyExists(VecstoreError):
    """The name is taken."""


class DeadlineExceeded(VecstoreError, TimeoutError):
    """The time given ran out; for a write, `outcome` says whether it may still take effect."""

    _retryable = True


class Overloaded(VecstoreError):
    """The call was shed to protect the others; nothing was done."""

    _retryable = True
    retry_after_s: float

    def __init__(self, message: str, *, retry_after_s: float = 1.0, **kwargs: Any) -> None:
        super().__init__(message, **kwargs)
        self.retry_after_s = retry_after_s


class Exhausted(VecstoreError):
    """A limit of memory, disk, batch or device was reached; `details` names it."""


class NotPrimary(VecstoreError):
    """This store takes no writes; `primary` is the address of the one that does, where it is known."""

    primary: str | None

    def __init__(self, message: str, *, primary: str | None = None, **kwargs: Any) -> None:
        super().__init__(message, **kwargs)
        self.primary = primary


class WriteLost(VecstoreError):
    """The token names a record that this history does not hold."""


class PermissionDenied(VecstoreError, PermissionError):
    """The caller is known and has no grant for this."""


class Unauthenticated(VecstoreError):
    """The caller did not show who it is."""


class Unavailable(VecstoreError, ConnectionError):
    """The store cannot answer now."""

    _retryable = True


class Damaged(VecstoreError):
    """Bytes on disk are not what was written; `details` name the place."""


class Locked(VecstoreError):
    """Another process has the store open; `details["pid"]` says which."""


class Closed(VecstoreError):
    """The handle was closed, or is used in a process that was forked after it was opened."""


class EngineMissing(VecstoreError, ImportError):
    """The engine's libraries are not installed; the hint names the extra that brings them."""
