"""The CUDA source, its blocks' threads taken one after another, compiled as C++: what it computes is right."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest

from .pretend import COMPILER, compiled


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The kernels as a library of the CPU's."""
    if COMPILER is None:
        pytest.skip("no C++ compiler")
    return compiled(tmp_path_factory.mktemp("kernels"))


def pointer(array: Any) -> ctypes.c_void_p:
    """Return where an array lies."""
    return ctypes.c_void_p(array.ctypes.data)


def nearest(library: Any, scores: Any, k: int, sign: int) -> tuple[Any, Any]:
    """Run the kernel on rows of scores."""
    rows, count = scores.shape
    best, columns = np.full((rows, k), np.nan, np.float32), np.full((rows, k), -7, np.int64)
    library.all_nearest(rows, pointer(scores), ctypes.c_longlong(count), k, sign, pointer(best), pointer(columns))
    return best, columns


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("k", [1, 7, 100, 1_000])
def test_the_k_nearest_are_selected(library: Any, k: int, sign: int, rng: np.random.Generator) -> None:
    """Of random scores, of many ties, of zeros of both signs and infinities, the k nearest come with their columns."""
    random = rng.standard_normal((5, 1_000)).astype(np.float32)
    coarse = np.round(random * 2).astype(np.float32)
    odd = random.copy()
    odd[:, ::3] = np.inf
    odd[:, 1::3] = -np.inf
    odd[:, 2::6] = -0.0
    for scores in (random, coarse, odd, np.zeros((2, 1_000), np.float32), random * np.float32(1e-40)):
        best, columns = nearest(library, scores, k, sign)
        assert np.array_equal(np.take_along_axis(scores, columns, 1), best)
        assert all(len(set(row)) == k for row in columns.tolist())
        wanted = np.sort(sign * scores, axis=1)[:, :k]
        assert np.array_equal(np.sort(sign * best, axis=1), wanted)


@pytest.mark.parametrize("squared", [0, 1])
def test_candidates_are_scored(library: Any, squared: int, rng: np.random.Generator) -> None:
    """Each candidate is scored against its own query, by inner product or squared distance."""
    vectors = rng.standard_normal((4, 6, 33)).astype(np.float32)
    queries = rng.standard_normal((4, 33)).astype(np.float32)
    out = np.empty((4, 6), np.float32)
    library.all_rescore(pointer(vectors), pointer(queries), ctypes.c_longlong(24), 6, 33, squared, pointer(out))
    wide = vectors.astype(np.float64)
    own = queries[:, None, :].astype(np.float64)
    wanted = ((wide - own) ** 2).sum(-1) if squared else (wide * own).sum(-1)
    assert out == pytest.approx(wanted, rel=1e-4, abs=1e-4)
