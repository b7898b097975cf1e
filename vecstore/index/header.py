"""The first bytes of a dumped index: what it is, before FAISS's own bytes (docs/formats.md). No I/O."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt

from ..errors import Damaged
from ..values import Metric

__all__ = ["Header"]

_FORM = struct.Struct("<4sHBBII")
_MAGIC = b"vsix"
_VERSION = 1
_KINDS = {1: "ivf_flat", 2: "ivf_pq", 3: "ivf_sq8", 4: "hnsw"}
_METRICS = {1: "cosine", 2: "ip", 3: "l2"}


@dataclass(frozen=True, slots=True)
class Header:
    """What is known of a dumped index without FAISS.

    Attributes
    ----------
    kind, metric, dim
        Of the index.
    rows
        Row numbers (int64, little-endian) between header and FAISS's bytes; 0 where FAISS's bytes hold them.
    """

    kind: str
    metric: Metric
    dim: int
    rows: int = 0

    @property
    def size(self) -> int:
        """Bytes before FAISS's own."""
        return _FORM.size + 8 * self.rows

    def encode(self) -> npt.NDArray[np.uint8]:
        """Return the header's bytes."""
        kinds = {name: code for code, name in _KINDS.items()}
        metrics = {name: code for code, name in _METRICS.items()}
        packed = _FORM.pack(_MAGIC, _VERSION, kinds[self.kind], metrics[self.metric], self.dim, self.rows)
        return np.frombuffer(packed, np.uint8)

    @classmethod
    def decode(cls, data: npt.NDArray[np.uint8]) -> Header:
        """Read a header; raises `Damaged` where these are not the bytes of an index."""
        if len(data) < _FORM.size:
            raise Damaged(f"an index of {len(data)} bytes is too short")
        magic, version, kind, metric, dim, rows = _FORM.unpack_from(data[: _FORM.size].tobytes())
        if magic != _MAGIC or version != _VERSION or kind not in _KINDS or metric not in _METRICS:
            raise Damaged(f"these bytes are not an index of version {_VERSION}: they begin with {bytes(data[:8])!r}")
        header = cls(_KINDS[kind], cast(Metric, _METRICS[metric]), dim, rows)
        if header.size > len(data):
            raise Damaged(f"an index of {len(data)} bytes names {rows} rows")
        return header

    @property
    def rows_at(self) -> int:
        """Where the row numbers begin."""
        return _FORM.size
