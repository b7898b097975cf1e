"""Deaths at a chosen step: calls of a process are counted, and before one of them it kills itself with SIGKILL."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["die_at"]


def die_at(last: int, steps: Sequence[tuple[Any, tuple[str, ...]]], taken: list[int]) -> None:
    """Let this process die before the `last` of all calls of some functions; 0 for never.

    Parameters
    ----------
    steps
        Modules or classes, and the names of their functions that count.
    taken
        One number: how many were called so far.
    """
    for owner, names in steps:
        for name in names:
            original = getattr(owner, name)

            def step(*arguments: Any, original: Callable[..., Any] = original, **more: Any) -> Any:
                taken[0] += 1
                if taken[0] == last:
                    os.kill(os.getpid(), signal.SIGKILL)
                return original(*arguments, **more)

            setattr(owner, name, step)
