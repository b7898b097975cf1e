"""A CUDA that is none: what `vecstore.index.gpu` calls of CuPy and of FAISS's GPU half, done by numpy and faiss-cpu.

It runs every line of the backend on any machine. It is as strict as what it stands in for: names and fields that do not
exist are errors, arrays of the two sides do not mix, numbers that FAISS's kernels abort on fail, selections are
ignored, addresses are read as bytes, and the kernels are the real ones, compiled as C++. What it cannot show: streams,
races, memory, speed. That its names are the real ones is checked where a wheel is installed (`test_names`).
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from vecstore.index.budget import tile_of
from vecstore.index.kernels import SOURCE

__all__ = ["COMPILER", "Cupy", "Faiss", "compiled"]

COMPILER = shutil.which("g++") or shutil.which("clang++")
WIDTH_MAX = 2_048
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


def compiled(folder: Path) -> Any:
    """Return the kernels as a library of the CPU's, the threads of a block taken one after another."""
    assert COMPILER is not None, "there is no C++ compiler"
    (folder / "kernels.cpp").write_text(ONE_THREAD + SOURCE + RUN)
    made = folder / "kernels.so"
    subprocess.run([COMPILER, "-O1", "-w", "-shared", "-fPIC", "-o", made, folder / "kernels.cpp"], check=True)
    return ctypes.CDLL(str(made))


class _Pointer:
    def __init__(self, address: int) -> None:
        self.ptr = address


class Array:
    """An array on the device: it does what the backend asks of CuPy's, and no more."""

    __array_ufunc__ = None

    def __init__(self, host: Any) -> None:
        self.host = host

    dtype = property(lambda self: self.host.dtype)
    shape = property(lambda self: self.host.shape)

    @property
    def data(self) -> _Pointer:
        """Return where it lies; kernels and FAISS take rows without gaps alone."""
        assert self.host.flags.c_contiguous, "an array with gaps was handed over by its address"
        return _Pointer(self.host.ctypes.data)

    def __array__(self, *_: Any) -> Any:
        raise TypeError("implicit conversion to a NumPy array is not allowed")

    def __len__(self) -> int:
        return len(self.host)

    def __getitem__(self, key: Any) -> Array:
        return Array(self.host[key])

    def __setitem__(self, key: Any, value: Any) -> None:
        self.host[key] = _of_device(value)

    def __mul__(self, other: Any) -> Array:
        return Array(self.host * _of_device(other))

    def __truediv__(self, other: Any) -> Array:
        return Array(self.host / _of_device(other))

    def __iadd__(self, other: Any) -> Array:
        self.host += _of_device(other)
        return self

    def __neg__(self) -> Array:
        return Array(-self.host)

    def astype(self, dtype: Any) -> Array:
        """Return a copy of another type."""
        return Array(self.host.astype(dtype))

    def ravel(self) -> Array:
        """Return it flat."""
        return Array(self.host.ravel())

    def set(self, array: Any, stream: Any = None) -> None:
        """Fill it from the host."""
        if not isinstance(array, np.ndarray):
            raise TypeError("Only numpy.ndarray can be set to cupy.ndarray")
        if array.dtype != self.dtype:
            raise TypeError(f"{array.dtype} array cannot be set to {self.dtype} array")
        if array.shape != self.shape:
            raise ValueError(f"Shape mismatch: {array.shape} against {self.shape}")
        self.host[...] = array


def _of_device(value: Any) -> Any:
    if isinstance(value, Array):
        return value.host
    if isinstance(value, np.ndarray):
        raise TypeError(f"Unsupported type {type(value)}")
    return value


class _Stream:
    ptr = 0x5EED

    def __init__(self, *, non_blocking: bool = False) -> None:
        assert non_blocking, "the default stream would wait for it"

    def use(self) -> None:
        """Make it the current one."""

    def synchronize(self) -> None:
        """Wait for it."""


class _Event:
    def __init__(self, block: bool = False, disable_timing: bool = False) -> None:
        self._recorded = False

    def record(self, stream: Any) -> None:
        """Note where the stream is."""
        assert isinstance(stream, _Stream)
        self._recorded = True

    def synchronize(self) -> None:
        """Wait until the stream has been there."""
        assert self._recorded, "nobody recorded what is waited for"


class _Device:
    def __init__(self, number: int) -> None:
        assert number == 0, "a worker sees one device"

    def use(self) -> None:
        """Make it the current one."""


class _Runtime:
    @staticmethod
    def memGetInfo() -> tuple[int, int]:  # noqa: N802  (CUDA's name)
        """Return free and all bytes."""
        return 8 << 30, 16 << 30

    @staticmethod
    def getDeviceProperties(number: int) -> dict[str, Any]:  # noqa: N802
        """Return what a device is."""
        return {"name": b"a pretended GPU"}

    @staticmethod
    def runtimeGetVersion() -> int:  # noqa: N802
        """Return the version of the runtime."""
        return 12090

    driverGetVersion = runtimeGetVersion  # noqa: N815


class _Cuda:
    Device, Stream, Event, runtime = _Device, _Stream, _Event, _Runtime

    @staticmethod
    def alloc_pinned_memory(size: int) -> bytearray:
        """Return memory that the device can copy from."""
        return bytearray(size)


class _Pool:
    limit = 0

    def set_limit(self, size: int) -> None:
        """Set the most that it takes."""
        self.limit = size

    def free_all_blocks(self) -> None:
        """Give back what nobody uses."""


class _Module:
    library: Any = None

    def __init__(self, code: str, options: tuple[str, ...] = ()) -> None:
        assert code == SOURCE
        if _Module.library is None:
            with tempfile.TemporaryDirectory() as folder:
                _Module.library = compiled(Path(folder))

    def get_function(self, name: str) -> Any:
        """Return a kernel."""
        return {"nearest": self._nearest, "rescore": self._rescore}[name]

    def _nearest(self, grid: tuple[int], block: tuple[int], arguments: tuple[Any, ...]) -> None:
        scores, width, k, sign, best, columns = arguments
        _typed(arguments, (Array, np.int64, np.int32, np.int32, Array, Array))
        assert (scores.dtype, best.dtype, columns.dtype) == (np.float32, np.float32, np.int64)
        assert scores.shape == (grid[0], width) and best.shape == columns.shape == (grid[0], k)
        assert 0 < k <= width
        self.library.all_nearest(
            grid[0], _at(scores), ctypes.c_longlong(int(width)), int(k), int(sign), _at(best), _at(columns)
        )

    def _rescore(self, grid: tuple[int], block: tuple[int], arguments: tuple[Any, ...]) -> None:
        vectors, queries, pairs, each, dim, squared, out = arguments
        _typed(arguments, (Array, Array, np.int64, np.int32, np.int32, np.int32, Array))
        assert vectors.shape == (pairs, dim) and queries.shape == (pairs // each, dim)
        assert out.shape == (pairs // each, each)
        assert grid[0] * block[0] >= 32 * pairs, "fewer threads than pairs need"
        self.library.all_rescore(
            _at(vectors), _at(queries), ctypes.c_longlong(int(pairs)), int(each), int(dim), int(squared), _at(out)
        )


def _typed(arguments: tuple[Any, ...], kinds: tuple[type, ...]) -> None:
    """A kernel reads its arguments by the size of their types: they must be what its source says."""
    assert [type(argument) for argument in arguments] == list(kinds)


def _at(array: Array) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.data.ptr)


class Cupy:
    """The module `cupy`."""

    __version__ = "pretended"
    float16, float32, int64 = np.float16, np.float32, np.int64
    cuda, RawModule = _Cuda, _Module
    _pool = _Pool()

    def get_default_memory_pool(self) -> _Pool:
        """Return the pool."""
        return self._pool

    def empty(self, shape: Any, dtype: Any) -> Array:
        """Return an array of nothing in particular: of what would be noticed."""
        return Array(np.full(shape, -9 if np.dtype(dtype).kind == "i" else np.nan, dtype))

    def zeros(self, shape: Any, dtype: Any) -> Array:
        """Return zeros."""
        return Array(np.zeros(shape, dtype))

    def sum(self, array: Array, axis: int, out: Array) -> None:
        """Add along an axis."""
        np.sum(array.host, axis=axis, out=out.host)

    def concatenate(self, arrays: list[Array], axis: int) -> Array:
        """Join arrays."""
        return Array(np.concatenate([array.host for array in arrays], axis=axis))

    def take_along_axis(self, array: Array, places: Array, axis: int) -> Array:
        """Pick from each row."""
        return Array(np.take_along_axis(array.host, places.host, axis))

    def argsort(self, array: Array, axis: int) -> Array:
        """Return the order of each row."""
        return Array(np.argsort(array.host, axis=axis))

    def asnumpy(self, array: Array, stream: Any = None) -> Any:
        """Return a copy on the host."""
        assert isinstance(array, Array)
        return array.host.copy()


class _Resources:
    temp = calls = overflows = 0

    def setTempMemory(self, size: int) -> None:  # noqa: N802  (FAISS's names from here on)
        """Set the size of the scratch."""
        self.temp = min(size, 3 << 29)

    def getTempMemoryAvailable(self, device: int) -> int:  # noqa: N802
        """Return what the scratch has left."""
        assert device == 0
        return self.temp

    def setPinnedMemory(self, size: int) -> None:  # noqa: N802
        """Set the size of what copies go through."""
        assert size > 0

    def setDefaultStream(self, device: int, stream: Any) -> None:  # noqa: N802
        """Set the stream that everything is done on."""
        assert (device, stream) == (0, ("stream", _Stream.ptr))


class _Distances:
    """Fields of `GpuDistanceParams`."""

    __slots__ = (
        *("metric", "k", "dims", "vectors", "numVectors", "vectorType", "queries", "numQueries", "queryType"),
        *("vectorNorms", "outDistances", "outIndices", "outIndicesType", "device", "use_cuvs"),
    )

    def __init__(self) -> None:
        self.vectorNorms = self.outIndices = None


class _Config:
    __slots__ = ("device", "use_cuvs")


class _ProductConfig:
    __slots__ = ("device", "useFloat16LookupTables", "use_cuvs")


class _GraphConfig:
    __slots__ = ("build_algo", "device", "graph_degree", "intermediate_graph_degree", "use_cuvs")


class _GraphParameters:
    __slots__ = ("itopk_size", "sel")


def _read(pointer: tuple[str, int], count: int, dtype: Any) -> Any:
    memory = (ctypes.c_char * (count * np.dtype(dtype).itemsize)).from_address(pointer[1])
    return np.frombuffer(memory, dtype, count)


class _Lists:
    """An index with lists: faiss-cpu's, with the limits of the GPU's, its appetite, and its deafness to selections."""

    def __init__(self, resources: Any, index: Any, quantiser: Any, config: Any) -> None:
        assert isinstance(resources, _Resources)
        assert config.device == 0 and not config.use_cuvs, "FAISS's own lists are asked for"
        quantiser.this.disown()
        index.own_fields = True
        self._resources, self._index = resources, index
        self.cp = index.cp

    ntotal = property(lambda self: self._index.ntotal)

    def train(self, rows: Any) -> None:
        """Train."""
        self._index.train(rows)

    def add(self, rows: Any) -> None:
        """Add."""
        self._index.add(rows)

    def reclaimMemory(self) -> int:  # noqa: N802
        """Give back what lists have beyond need."""
        return 0

    def getListLength(self, number: int) -> int:  # noqa: N802
        """Return the rows of a list."""
        length: int = self._index.invlists.list_size(number)
        return length

    def _exceeds(self, count: int, probes: int, k: int) -> bool:
        """Whether the real one would allocate beyond its scratch."""
        raise NotImplementedError

    def search(self, queries: Any, k: int, *, params: Any) -> tuple[Any, Any]:
        """Search, whatever is selected."""
        self._resources.calls += 1
        self._resources.overflows += self._exceeds(len(queries), min(params.nprobe, self._index.nlist), k)
        assert type(k) is int and 0 < k <= WIDTH_MAX and 0 < params.nprobe <= WIDTH_MAX
        return self._index.search(queries, k, params=faiss.SearchParametersIVF(nprobe=params.nprobe))  # type: ignore[no-any-return]


class _Scalar(_Lists):
    def __init__(
        self, resources: Any, dims: int, lists: int, kind: int, metric: int, residual: bool, config: Any
    ) -> None:
        assert isinstance(config, _Config)
        quantiser = faiss.IndexFlat(dims, metric)
        index = faiss.IndexIVFScalarQuantizer(quantiser, dims, lists, kind, metric, residual)
        super().__init__(resources, index, quantiser, config)

    def _exceeds(self, count: int, probes: int, k: int) -> bool:
        return count * probes * k * 12 > self._resources.temp


class _Product(_Lists):
    pq = property(lambda self: self._index.pq)

    def __init__(self, resources: Any, dims: int, lists: int, pieces: int, bits: int, metric: int, config: Any) -> None:
        assert isinstance(config, _ProductConfig)
        half: bool = config.useFloat16LookupTables  # type: ignore[attr-defined]
        assert pieces * 256 * (2 if half else 4) <= 49_152, "tables beyond shared memory"
        quantiser = faiss.IndexFlat(dims, metric)
        super().__init__(resources, faiss.IndexIVFPQ(quantiser, dims, lists, pieces, bits, metric), quantiser, config)

    def _exceeds(self, count: int, probes: int, k: int) -> bool:
        longest = max(self.getListLength(number) for number in range(self._index.nlist))
        tables, scores = probes * self.pq.M * 256 * 4, probes * longest * 4
        fit = self._resources.temp // (2 * (tables + scores + (probes + 1) * 8 + min(probes, 8) * k * 12))
        return bool(fit < count and (fit < 8 or not fit))


class _Graph:
    """A graph that misses nothing, obeys its selection, and says "no row" as cuVS does."""

    def __init__(self, resources: Any, dims: int, metric: int, config: Any) -> None:
        assert isinstance(resources, _Resources) and config.use_cuvs and config.device == 0
        self._index = faiss.IndexFlat(dims, metric)

    ntotal = property(lambda self: self._index.ntotal)

    def train(self, rows: Any) -> None:
        """Build it of all rows."""
        self._index.add(rows)

    def search(self, queries: Any, k: int, *, params: Any) -> tuple[Any, Any]:
        """Search."""
        assert params.itopk_size >= k and params.itopk_size % 32 == 0
        found = faiss.SearchParameters(sel=params.sel) if params.sel is not None else None
        scores, rows = self._index.search(queries, k, params=found)
        return scores, np.where(rows < 0, np.iinfo(np.int64).max, rows)


class Faiss:
    """The module `faiss` of a wheel for GPUs; what is not of GPUs is the one that is installed.

    Parameters
    ----------
    cuvs
        Whether it has cuVS.

    Attributes
    ----------
    calls, overflows
        Calls of brute force, and those that needed more than the scratch.
    """

    DistanceDataType_F16, DistanceDataType_F32, IndicesDataType_I64 = 2, 1, 1
    StandardGpuResources, GpuDistanceParams = _Resources, _Distances
    GpuIndexIVFScalarQuantizerConfig, GpuIndexIVFScalarQuantizer = _Config, _Scalar
    GpuIndexIVFPQConfig, GpuIndexIVFPQ = _ProductConfig, _Product
    of_cuvs = {  # noqa: RUF012
        "GpuIndexCagraConfig": _GraphConfig,
        "GpuIndexCagra": _Graph,
        "SearchParametersCagra": _GraphParameters,
        "graph_build_algo_IVF_PQ": 0,
    }

    def __init__(self, *, cuvs: bool = False) -> None:
        self._cuvs = cuvs
        self.calls = self.overflows = 0

    def __getattr__(self, name: str) -> Any:
        if name in self.of_cuvs:
            if self._cuvs:
                return self.of_cuvs[name]
            raise AttributeError(name)
        return getattr(faiss, name)

    def get_compile_options(self) -> str:
        """Return what it was built with."""
        return "OPTIMIZE GPU " + ("NVIDIA_CUVS " if self._cuvs else "")

    def cast_integer_to_void_ptr(self, address: int) -> tuple[str, int]:
        """Return a pointer."""
        assert type(address) is int
        return "void", address

    def cast_integer_to_float_ptr(self, address: int) -> tuple[str, int]:
        """Return a pointer."""
        assert type(address) is int
        return "float", address

    def cast_integer_to_cudastream_t(self, address: int) -> tuple[str, int]:
        """Return a stream."""
        return "stream", address

    def bfKnn(self, resources: Any, asked: Any) -> None:  # noqa: N802
        """Compare all queries with all vectors, reading and writing where the addresses say."""
        assert asked.k == -1 or 0 < asked.k <= WIDTH_MAX
        assert asked.vectorType == asked.queryType and not asked.use_cuvs and asked.device == 0
        half = asked.vectorType == self.DistanceDataType_F16
        dtype = np.float16 if half else np.float32
        self.calls += 1
        self._measure(resources, asked, np.dtype(dtype).itemsize)
        rows = _read(asked.vectors, asked.numVectors * asked.dims, dtype).reshape(-1, asked.dims).astype(np.float32)
        queries = _read(asked.queries, asked.numQueries * asked.dims, dtype).reshape(-1, asked.dims).astype(np.float32)
        scores = queries @ rows.T
        if asked.metric == faiss.METRIC_L2:
            given = None if asked.vectorNorms is None else _read(asked.vectorNorms, asked.numVectors, np.float32)
            norms = np.einsum("ij,ij->i", rows, rows) if given is None else given
            own = np.einsum("ij,ij->i", queries, queries)[:, None]
            scores = np.maximum(own + norms - 2 * scores, 0)
        out = _read(asked.outDistances, len(queries) * (len(rows) if asked.k < 0 else asked.k), np.float32)
        if asked.k < 0:
            out[:] = scores.ravel()
            return
        assert asked.k <= asked.numVectors and asked.outIndicesType == self.IndicesDataType_I64
        order = np.argsort(scores if asked.metric == faiss.METRIC_L2 else -scores, axis=1)[:, : asked.k]
        out[:] = np.take_along_axis(scores, order, 1).ravel()
        _read(asked.outIndices, len(queries) * asked.k, np.int64)[:] = order.ravel()

    def _measure(self, resources: Any, asked: Any, item: int) -> None:
        queries, columns = tile_of(item, asked.dims)
        tiles = 8 * min(queries, asked.numQueries) * min(columns, asked.numVectors)
        self.overflows += asked.k > 0 and tiles > resources.temp
