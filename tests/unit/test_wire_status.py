"""Errors as statuses and back: nothing of an error is lost on the way, and no status is without an error."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from vecstore import errors
from vecstore.errors import (
    Closed,
    DeadlineExceeded,
    Exhausted,
    InvalidArgument,
    NotPrimary,
    Overloaded,
    Unavailable,
    VecstoreError,
)
from vecstore.wire import status
from vecstore.wire.v1 import store_pb2 as pb

CLASSES = sorted({getattr(errors, name) for name in errors.__all__}, key=lambda kind: kind.__name__)
HEADER_BYTES_MAX = 8 * 1024


class Failed(grpc.RpcError):  # type: ignore[misc]
    """A call that failed, as gRPC's client tells it."""

    def __init__(self, code: grpc.StatusCode, text: str | None, metadata: Any) -> None:
        self._parts = code, text, metadata

    def code(self) -> grpc.StatusCode:
        """Return the status code."""
        return self._parts[0]

    def details(self) -> str | None:
        """Return the status's text."""
        return self._parts[1]

    def trailing_metadata(self) -> Any:
        """Return what came behind the answer."""
        return self._parts[2]


def travelled(error: VecstoreError) -> VecstoreError:
    """Return what a client makes of an error."""
    return status.error_from(Failed(*status.trailers(error)))


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("outcome", ["refused", "unknown", "durable"])
def test_an_error_comes_out_as_it_went_in(kind: type[VecstoreError], outcome: Any) -> None:
    """Class, words, hint, details, whether to retry and what became of a write."""
    details = {"field": "é", "limit": 5, "list": [1, "a", None]}
    error = kind("was wrong: é", outcome=outcome, hint="do it", details=details, retryable=outcome == "unknown")
    found = travelled(error)
    assert type(found) is kind
    assert str(found) == str(error)
    for name in ("hint", "details", "retryable", "outcome"):
        assert getattr(found, name) == getattr(error, name)


def test_what_some_errors_have_besides_travels_too() -> None:
    """The primary's address, and when to try again: in the trailer, and for gRPC's own retries."""
    elsewhere = travelled(NotPrimary("not here", primary="host:7601"))
    assert isinstance(elsewhere, NotPrimary)
    assert elsewhere.primary == "host:7601"
    assert travelled(NotPrimary("nobody knows")).primary is None  # type: ignore[attr-defined]
    shed = Overloaded("too much", retry_after_s=0.25)
    found = travelled(shed)
    assert isinstance(found, Overloaded)
    assert found.retry_after_s == 0.25
    assert (status.PUSHBACK_KEY, "250") in status.trailers(shed)[2]


@pytest.mark.parametrize(
    ("error", "pushback"),
    [
        (Exhausted("disk"), "-1"),
        (Closed("closed"), "-1"),
        (Unavailable("broken", outcome="unknown"), "-1"),
        (Unavailable("starting"), None),
        (DeadlineExceeded("late"), None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, VecstoreError) else None,
)
def test_only_what_may_succeed_later_is_tried_again(error: VecstoreError, pushback: str | None) -> None:
    """What retries calls looks at the code alone; an error that is no use trying again says so to it."""
    assert dict(status.trailers(error)[2]).get(status.PUSHBACK_KEY) == pushback


@pytest.mark.parametrize("filling", ["x", "é", "\U0001f600", "\ud800", "\n"])
def test_no_error_is_too_long_for_a_header(filling: str) -> None:
    """Words and details of any length are cut, so that the client gets them at all."""
    details = {"list": [filling * 100] * 100, "limit": 5, "field": "a", "big": 2**200, "object": object()}
    error = InvalidArgument(filling * 100_000, hint=filling * 100_000, details=details)
    code, text, metadata = status.trailers(error)
    size = 3 * len(text.encode()) + sum(len(key) + 32 + len(value) * 4 // 3 for key, value in metadata)
    assert size < HEADER_BYTES_MAX
    found = status.error_from(Failed(code, text, metadata))
    assert type(found) is InvalidArgument
    assert found.details == {"limit": 5, "field": "a"}


@pytest.mark.parametrize(
    "code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK], ids=lambda code: code.name
)
def test_a_status_without_a_trailer_is_an_error_of_the_tree(code: grpc.StatusCode) -> None:
    """Of gRPC itself or a proxy: the code decides, and the words say it."""
    found = status.error_from(Failed(code, "said a proxy", None))
    assert isinstance(found, VecstoreError)
    assert code.name in str(found)
    assert "said a proxy" in str(found)
    assert found.details["code"] == code.name
    assert found.retryable == (code.name in ("UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "CANCELLED"))


@pytest.mark.parametrize(
    "trailer",
    [
        b"\xff\xff",
        pb.Error(type="Unheard").SerializeToString(),
        pb.Error(type="VecstoreError.__init__").SerializeToString(),
        pb.Error(type="Any").SerializeToString(),
        pb.Error(type="NotFound", details=b"{").SerializeToString(),
        pb.Error(type="NotFound", details=b"[1]").SerializeToString(),
        b"",
    ],
    ids=["bytes", "unheard", "dotted", "import", "half", "list", "empty"],
)
def test_a_trailer_that_is_none_does_not_count(trailer: bytes) -> None:
    """What cannot be read, or names a class that this client lacks, leaves the code to decide."""
    found = status.error_from(Failed(grpc.StatusCode.UNAVAILABLE, "", ((status.ERROR_KEY, trailer),)))
    assert type(found) is Unavailable


def test_an_outcome_that_is_none_is_unknown() -> None:
    """Of two evils the safe one: a write of unknown outcome is asked about."""
    packed = pb.Error(type="Unavailable", outcome="later").SerializeToString()
    found = status.error_from(Failed(grpc.StatusCode.UNAVAILABLE, "", ((status.ERROR_KEY, packed),)))
    assert found.outcome == "unknown"


def test_a_connection_that_ends_while_something_is_sent_may_be_tried_again() -> None:
    """The asyncio client of gRPC words that as an internal error of its own; one of a server is not tried again."""
    broken = status.error_from(Failed(grpc.StatusCode.INTERNAL, "Internal error from Core", None))
    assert isinstance(broken, Unavailable) and broken.retryable
    said = status.error_from(Failed(grpc.StatusCode.INTERNAL, "internal error 7f3a", None))
    assert not said.retryable


def test_every_class_has_a_code() -> None:
    """No class of the tree but its root is INTERNAL."""
    missing = [kind for kind in CLASSES if status.code_of(kind("")) is grpc.StatusCode.INTERNAL]
    assert missing == [VecstoreError]
