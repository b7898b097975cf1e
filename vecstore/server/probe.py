"""Something that may hang, asked by a thread of its own, so that nobody else ever waits for it longer than he wants."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

from ..errors import VecstoreError

__all__ = ["Answer", "Probe"]

T = TypeVar("T")
AGAIN_S = 10.0
"""What failed is asked again after so long, at the latest."""
PROBLEM_TEXT_MAX = 300


class Answer(NamedTuple, Generic[T]):
    """What came of a question: a value, or why there is none.

    Attributes
    ----------
    at_s
        When it was asked, of the monotonic clock: the answer may be as old as that.
    """

    value: T | None
    error: Exception | None
    at_s: float

    @property
    def problem(self) -> str:
        """Why there is no value, in a line; empty where there is one."""
        if self.error is None:
            return ""
        text = str(self.error.args[0] if isinstance(self.error, VecstoreError) else self.error)
        return " ".join(text.split())[:PROBLEM_TEXT_MAX] or type(self.error).__name__


class Probe(Generic[T]):
    """One question, asked again and again, never twice at a time. Thread-safe.

    Parameters
    ----------
    ask
        May hang, and may raise.
    """

    def __init__(self, name: str, ask: Callable[[], T]) -> None:
        self._name, self._ask = name, ask
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._done.set()
        self._began_s = 0.0
        self.answer: Answer[T] | None = None

    def begin(self, older_than_s: float) -> None:
        """Ask, unless it is being asked, or was answered not so long ago."""
        now_s = time.monotonic()
        with self._lock:
            if self.answer is not None:
                older_than_s = min(older_than_s, AGAIN_S) if self.answer.error is not None else older_than_s
                if now_s - self.answer.at_s <= older_than_s:
                    return
            if not self._done.is_set():
                return
            self._done.clear()
            self._began_s = now_s
        threading.Thread(target=self._run, name=f"vecstore-probe-{self._name}", daemon=True).start()

    def wait(self, within_s: float) -> None:
        """Wait until nothing is being asked, but no longer than this."""
        self._done.wait(within_s)

    def renew(self, older_than_s: float, within_s: float) -> None:
        """Ask, and wait for an answer that is not older than this as of now, but no longer than this.

        What is being asked already was asked before: where its answer is too old, it is asked once more.
        """
        start_s = time.monotonic()
        while (left_s := start_s + within_s - time.monotonic()) > 0:
            self.begin(older_than_s)
            self.wait(left_s)
            answer = self.answer
            if answer is not None and answer.at_s >= start_s - older_than_s:
                return

    @property
    def waiting_s(self) -> float:
        """For how long a question has been without an answer; 0 where none is."""
        return 0.0 if self._done.is_set() else time.monotonic() - self._began_s

    def _run(self) -> None:
        value, error = None, None
        try:
            value = self._ask()
        except Exception as exc:  # noqa: BLE001  (whatever it is, it is the answer)
            error = exc
        self.answer = Answer(value, error, self._began_s)
        self._done.set()
