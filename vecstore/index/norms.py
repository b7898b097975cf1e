"""Inverse lengths of vectors, as they are kept beside rows under cosine."""

from __future__ import annotations

import faiss
import numpy as np

from .base import Floats
from .cpu import one_thread

__all__ = ["inverse_norms"]

_SQUARE_MIN, _SQUARE_MAX = 1e-30, 1e30
"""Between these a square in float32 has lost nothing to underflow or overflow."""


def inverse_norms(vectors: Floats) -> Floats:
    """Return 1 / length of each vector, float32 (n,), for vectors (n, d).

    Squares are summed in float32, which is good to the last bit or two; those of very long or short vectors in float64.
    A row's result depends on that row alone, so it is the same whenever it is computed again.
    """
    one_thread()
    vectors = np.ascontiguousarray(vectors, np.float32)
    squares = np.empty(len(vectors), np.float32)
    if len(vectors):
        faiss.fvec_norms_L2sqr(faiss.swig_ptr(squares), faiss.swig_ptr(vectors), vectors.shape[1], len(vectors))
    extreme = ~((squares > _SQUARE_MIN) & (squares < _SQUARE_MAX))
    with np.errstate(divide="ignore"):
        inverse: Floats = np.reciprocal(np.sqrt(squares))
        if extreme.any():
            wide = vectors[extreme].astype(np.float64)
            inverse[extreme] = 1 / np.sqrt(np.einsum("ij,ij->i", wide, wide))
    return inverse
