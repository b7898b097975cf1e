"""What became of requests that wrote no record: those that had nothing to do, and those that were refused for good.

Records carry their request's id; a write without a record leaves no trace in the log, and yet no other attempt of its
may have an effect once it was answered: an attempt that was held up somewhere could otherwise remove today what was
not there yesterday. Kept in memory alone, since an attempt that was held up in this process ends with it. Bounded: the
oldest go first. Owned by the committer.
"""

from __future__ import annotations

from collections import OrderedDict
from copy import copy

from ..errors import VecstoreError

__all__ = ["Settled"]

SETTLED_MAX = 65_536
"""About 20 MiB; at a thousand such requests a second, more than a minute."""


class Settled:
    """Answers by request id."""

    def __init__(self) -> None:
        self._answers: OrderedDict[bytes, tuple[int, str] | VecstoreError] = OrderedDict()

    def nothing(self, request_id: bytes, lsn: int, token: str) -> None:
        """Remember that a request had nothing to do, and what it was told."""
        self._keep(request_id, (lsn, token))

    def refused(self, request_id: bytes, error: VecstoreError) -> None:
        """Remember that a request was refused, where it was for good: what may be tried again is not settled."""
        if not error.retryable and error.outcome == "refused":
            kept = copy(error)
            kept.__traceback__ = kept.__cause__ = kept.__context__ = None
            self._keep(request_id, kept)

    def _keep(self, request_id: bytes, answer: tuple[int, str] | VecstoreError) -> None:
        self._answers[request_id] = answer
        if len(self._answers) > SETTLED_MAX:
            self._answers.popitem(last=False)

    def find(self, request_id: bytes) -> tuple[int, str] | None:
        """Return LSN and token that a request without a record was answered with, None for one that is not known.

        Raises
        ------
        VecstoreError
            It was refused: the error again.
        """
        answer = self._answers.get(request_id)
        if isinstance(answer, VecstoreError):
            raise copy(answer)
        return answer
