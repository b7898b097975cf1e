"""Hits that are made when they are looked at: an answer carries bytes, and JSON is decoded for who asks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import repeat
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from . import payload as payloads
from .values import Hit, Hits

__all__ = ["BatchHits", "FoundHits"]

Columns = tuple[
    list[Any], list[float], list[bytes] | None, bool | tuple[str, ...], list[npt.NDArray[np.float32]] | None
]
"""Ids, scores, payloads as whole canonical JSON, which part of them was asked for, vectors."""
_TOGETHER_MAX = 128
"""Up to so many hits are made together for who goes through them; of more, each when its turn comes."""


class FoundHits(Hits):
    """The hits of one query: ids, scores, payloads as bytes.

    Everything is copied out of the view when the search ends, so that a hit outlives the rows it was found in.
    """

    __slots__ = ("_data", "_ids", "_keys", "_made", "_scores", "_vectors")

    def __init__(
        self,
        ids: list[Any],
        scores: list[float],
        data: list[bytes] | None,
        keys: bool | tuple[str, ...],
        vectors: list[npt.NDArray[np.float32]] | None,
        lsn: int,
        exact: bool,
    ) -> None:
        self._ids, self._scores, self._data, self._keys, self._vectors = ids, scores, data, keys, vectors
        self._made: list[Hit | None] | None = None
        self.lsn = lsn
        self.exact = exact

    @property
    def columns(self) -> Columns:
        """What the hits are made of, as it is: for who sends them on."""
        return self._ids, self._scores, self._data, self._keys, self._vectors

    def _hit(self, i: int) -> Hit:
        if self._made is None:
            self._made = [None] * len(self._ids)
        hit = self._made[i]
        if hit is None:
            payload = payloads.decode(self._data[i], self._keys) if self._data is not None else {}
            vector = self._vectors[i] if self._vectors is not None else None
            hit = self._made[i] = Hit(self._ids[i], payload, vector, self._scores[i])
        return hit

    def _together(self) -> Iterator[Hit]:
        """Make all hits: their payloads are decoded in one call."""
        data, keys = self._data, self._keys
        found = [{} for _ in self._ids] if data is None else payloads.decode_all(data, keys)
        return map(Hit, self._ids, found, self._vectors or repeat(None), self._scores)

    @overload
    def __getitem__(self, i: int) -> Hit: ...
    @overload
    def __getitem__(self, i: slice) -> Sequence[Hit]: ...
    def __getitem__(self, i: int | slice) -> Hit | Sequence[Hit]:
        if isinstance(i, slice):
            return [self._hit(j) for j in range(*i.indices(len(self._ids)))]
        if not -len(self._ids) <= i < len(self._ids):
            raise IndexError(f"hit {i} of {len(self._ids)}")
        return self._hit(i % len(self._ids))

    def __len__(self) -> int:
        return len(self._ids)

    def __iter__(self) -> Iterator[Hit]:
        if self._made is None and len(self._ids) <= _TOGETHER_MAX:
            hits = list(self._together())
            self._made = [*hits]
            return iter(hits)
        return map(self._hit, range(len(self._ids)))

    def __repr__(self) -> str:
        return f"Hits({list(self)!r}, lsn={self.lsn}, exact={self.exact})"


class BatchHits(Sequence[Hits]):
    """The hits of each query of a batch, made when they are looked at."""

    def __init__(
        self,
        ids: npt.NDArray[Any],
        scores: npt.NDArray[np.float32],
        data: list[list[bytes]] | None,
        keys: bool | tuple[str, ...],
        lsn: int,
        exact: bool,
    ) -> None:
        self._ids, self._scores, self._data, self._keys = ids, scores, data, keys
        self._lsn, self._exact = lsn, exact

    @property
    def columns(self) -> tuple[npt.NDArray[Any], npt.NDArray[np.float32], list[list[bytes]] | None, bool]:
        """What the hits are made of, as it is: ids, scores and payloads of each query, and whether all were exact.

        The payloads are whole; `keys` says which part of them was asked for.
        """
        return self._ids, self._scores, self._data, self._exact

    @property
    def keys(self) -> bool | tuple[str, ...]:
        """Which part of the payloads was asked for."""
        return self._keys

    @overload
    def __getitem__(self, i: int) -> Hits: ...
    @overload
    def __getitem__(self, i: slice) -> Sequence[Hits]: ...
    def __getitem__(self, i: int | slice) -> Hits | Sequence[Hits]:
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        count = int(np.count_nonzero(~np.isnan(self._scores[i])))
        data = None if self._data is None else self._data[i]
        ids, scores = self._ids[i, :count].tolist(), self._scores[i, :count].tolist()
        return FoundHits(ids, scores, data, self._keys, None, self._lsn, self._exact)

    def __len__(self) -> int:
        return len(self._scores)
