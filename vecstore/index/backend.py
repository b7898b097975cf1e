"""What a device can do, behind one small interface: `host` does it on the CPU, `gpu` with FAISS and CuPy on a GPU.

A backend is used by one thread, in a process of its own. It never decides: what is asked of it, and whether that fits,
is decided by who calls it. Its failures are of two kinds: `NoRoom`, after which all is as it was, and anything else,
after which the process ends.

`selected` is the guard: no index is handed a selection unless its backend says that this kind of it obeys one. FAISS
without cuVS ignores selectors on GPUs without a word.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..values import Metric
from .base import Floats, Rows
from .budget import Choice, Ledger
from .source import Source

__all__ = ["Backend", "Built", "Find", "selected"]

Mask = npt.NDArray[np.bool_]


@dataclass(slots=True, eq=False)
class Built:
    """An index on a device.

    Attributes
    ----------
    choice
        What it is.
    rows, row_length
        Rows in it, and the length of the longest.
    scale
        By which its rows were multiplied, for float16's sake: a power of two.
    data
        The backend's own.
    is_coarse
        Whether rows lost bits to float16's range: some are so much shorter than others.
    """

    choice: Choice
    rows: int
    row_length: float
    scale: float
    data: Any
    is_coarse: bool = False


@dataclass(frozen=True, slots=True)
class Find:
    """What one search of an index asks for: candidates, lists to look at (0 for all), width of the walk in a graph."""

    candidates: int
    probes: int = 0
    ef: int = 0


class Backend(Protocol):
    """A device. For one thread.

    Attributes
    ----------
    name
        Of the device, for people.
    ledger
        Every allocation is admitted to it first.
    candidates_max
        Candidates and lists that an index with lists or a graph gives at most.
    obedient
        Kinds of index that obey a selection.
    """

    name: str
    ledger: Ledger
    candidates_max: int
    obedient: frozenset[str]

    def build(self, source: Source, choice: Choice, name: str, seed: int) -> Generator[None, None, Built]:
        """Train and fill an index in steps, between which searches may run; what it reserves has this name.

        Raises `NoRoom`, and then nothing is left of it.
        """
        ...

    def search(self, built: Built, queries: Floats, find: Find, mask: Mask | None = None) -> tuple[Floats, Rows]:
        """Return rounded scores and positions, both (q, candidates), nearest first, padded with -1."""
        ...

    def block(self, metric: Metric, vectors: Floats, name: str) -> Any:
        """Put float32 vectors (n, dim) on the device, to be compared as they are; `release` gives them back."""
        ...

    def scan(self, block: Any, queries: Floats, k: int) -> tuple[Floats, Rows]:
        """Compare all vectors of a block: scores and columns, both (q, min(k, n)), nearest first."""
        ...

    def rescored(self, metric: Metric, vectors: Floats, queries: Floats) -> Floats:
        """Return the float32 scores (q, r) of each query's own vectors (q, r, dim)."""
        ...

    def release(self, name: str) -> None:
        """Give back what was reserved for an index or a block that nobody refers to any more."""
        ...


def selected(backend: Backend, kind: str, mask: Mask | None) -> Mask | None:
    """Return a selection for an index of a kind, which must obey one.

    Raises
    ------
    AssertionError
        It would ignore the selection, and rows that must not be found would be.
    """
    if mask is not None and kind not in backend.obedient:
        raise AssertionError(f"an index of kind {kind!r} on {backend.name} ignores selections, and was handed one")
    return mask
