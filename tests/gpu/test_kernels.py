"""The CUDA source, its blocks' threads taken one after another, compiled as C++: what it computes is right."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vecstore.index.kernels import SOURCE

COMPILER = shutil.which("g++") or shutil.which("clang++")
ONE_THREAD = r"""
#define LANES 1
#define __device__
#define __global__
#define __forceinline__ inline
#define __shared__ static
#define __restrict__
#include <cstring>
struct Dim { int x; };
static Dim threadIdx{0}, blockIdx{0}, blockDim{1};
inline void __syncthreads() {}
inline unsigned __float_as_uint(float f) { unsigned u; std::memcpy(&u, &f, 4); return u; }
inline float __shfl_down_sync(unsigned, float v, int) { return v; }
template <class T> T atomicAdd(T* p, T v) { T old = *p; *p += v; return old; }
"""
RUN = r"""
extern "C" void all_nearest(int rows, const float* s, long long n, int k, int sign, float* b, long long* c) {
    for (int i = 0; i < rows; i++) { blockIdx.x = i; nearest(s, n, k, sign, b, c); }
}
extern "C" void all_rescore(const float* v, const float* q, long long pairs, int each, int dim, int l2, float* out) {
    for (long long i = 0; i < pairs; i++) { blockIdx.x = (int)i; rescore(v, q, pairs, each, dim, l2, out); }
}
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The kernels as a library of the CPU's."""
    if COMPILER is None:
        pytest.skip("no C++ compiler")
    folder: Path = tmp_path_factory.mktemp("kernels")
    (folder / "kernels.cpp").write_text(ONE_THREAD + SOURCE + RUN)
    made = folder / "kernels.so"
    subprocess.run([COMPILER, "-O1", "-w", "-shared", "-fPIC", "-o", made, folder / "kernels.cpp"], check=True)
    return ctypes.CDLL(str(made))


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
