"""A GPU behind `backend.Backend`: FAISS's indexes and brute force, CuPy for arrays, copies and two kernels.

Runs inside a worker's process, which sees one GPU. FAISS and CuPy share one stream, so that they never wait for each
other, and one ledger, to which every allocation is admitted before it is made. FAISS throws where an allocation fails;
any other CUDA error aborts the process, or ends it through an exception that nobody catches: the engine starts another.

Flat rows are an array of CuPy's, compared by FAISS's brute force: `GpuIndexFlat` would copy all of them with each block
that is added. FAISS is handed no more rows and queries at once than its scratch has room for: what it has none for it
allocates in every call, past the ledger.

cuVS, where the wheel has it, makes graphs alone. Lists are FAISS's own in every wheel: it hands cuVS no lists of
float16 rows, whatever the configuration asks for, and ignores their selections then; and cuVS's lists of product codes
grow by powers of two and never shrink, so that no formula is near them.
"""

from __future__ import annotations

import gc
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from ..errors import EngineMissing
from ..values import Metric
from .backend import Built, Find, Mask, selected
from .base import Floats, Rows
from .budget import (
    BLOCK_ROWS,
    GRAPH_DEGREE,
    GRAPH_DEGREE_BUILD,
    TRAIN_ITERATIONS,
    Choice,
    Ledger,
    NoRoom,
    scan_bytes,
    scanned_at_once,
    tile_of,
)
from .channel import WorkerOptions
from .host import padded, training_rows, unscaled
from .kernels import SOURCE, THREADS
from .source import Source, extremes

try:
    import cupy
except ImportError:
    # It comes with the extras gpu and gpu-cuvs; `device.resolve` looks for it before a worker is started.
    cupy = None

__all__ = ["CudaBackend"]

_PINNED_BYTES = 64 << 20
_STAGE_BYTES = 16 << 20
_SHARE = 0.9
"""Of the memory that is free when the worker starts; the rest is for what others do on the device."""
_WIDTH = 2_048
"""Candidates that FAISS's kernels select at most, and lists that they look at; they abort the process beyond."""
_FULL = ("alloc fail", "out of memory", "memory allocation error", "bad_alloc", "cudaHostAlloc")
"""Words in FAISS's messages of an allocation that failed; others of its allocations are Python's `MemoryError`."""


class CudaBackend:
    """`backend.Backend` on a GPU.

    Parameters
    ----------
    options
        Of the worker.
    """

    def __init__(self, options: WorkerOptions) -> None:
        if cupy is None:
            raise EngineMissing("CuPy is not installed", hint="install the extra gpu or gpu-cuvs")
        cupy.cuda.Device(0).use()
        self._stream = cupy.cuda.Stream(non_blocking=True)
        self._stream.use()
        self._has_cuvs = "CUVS" in str(faiss.get_compile_options())
        self._resources = faiss.StandardGpuResources()
        self._resources.setTempMemory(options.scratch_bytes)
        self._resources.setPinnedMemory(_PINNED_BYTES)
        self._resources.setDefaultStream(0, faiss.cast_integer_to_cudastream_t(self._stream.ptr))
        self._scratch_bytes = options.scratch_bytes
        module = cupy.RawModule(code=SOURCE, options=("-std=c++14",))
        self._nearest, self._rescore = module.get_function("nearest"), module.get_function("rescore")
        self._pool = cupy.get_default_memory_pool()
        self._stage = _Stage(self._stream)
        self._warm_up()
        # FAISS gives itself no more than 1.5 GiB, and less on small devices, whatever it was told.
        self._scratch_bytes = min(options.scratch_bytes, int(self._resources.getTempMemoryAvailable(0)))
        free, _ = cupy.cuda.runtime.memGetInfo()
        # As much again as FAISS's scratch is CuPy's, for queries, answers and candidates.
        budget = options.budget_bytes or int(_SHARE * max(0, free - options.scratch_bytes))
        self.ledger = Ledger(budget, options.failing_allocation)
        # Whatever the formulas say, CuPy takes no more; FAISS allocates what they say of its indexes.
        self._pool.set_limit(size=budget + options.scratch_bytes)
        properties = cupy.cuda.runtime.getDeviceProperties(0)
        self.name = properties["name"].decode()
        self.candidates_max = _WIDTH
        self.obedient = frozenset(("cagra",)) if self._has_cuvs else frozenset()
        self.versions = {
            "faiss": str(faiss.__version__) + (" cuVS" if self._has_cuvs else ""),
            "cupy": str(cupy.__version__),
            "cuda_runtime": str(cupy.cuda.runtime.runtimeGetVersion()),
            "cuda_driver": str(cupy.cuda.runtime.driverGetVersion()),
        }

    def _warm_up(self) -> None:
        """Have everything that is allocated once allocated, before free memory is counted."""
        rows = cupy.zeros((256, 8), cupy.float16)
        self._compared("l2", rows, rows[:1], 4)
        self._compared("ip", rows.astype(cupy.float32), rows[:1].astype(cupy.float32), 4)
        self._selected("l2", cupy.zeros((1, 256), cupy.float32), 4)
        self._stream.synchronize()

    # -- building ---------------------------------------------------------------------------------------------------

    def build(self, source: Source, choice: Choice, name: str, seed: int) -> Generator[None, None, Built]:
        """Train and fill an index in steps."""
        self.ledger.reserve(name, choice.need.peak)
        made: Built | None = None
        try:
            with self._memory(name, choice.need.peak):
                made = yield from self._built(source, choice, seed)
                self._stream.synchronize()
        finally:
            # What building took beyond the index goes back to the device: FAISS allocates past CuPy's pool.
            if made is None:
                self.release(name)
            else:
                gc.collect()
                self._pool.free_all_blocks()
        self.ledger.shrink(name, choice.need.serve)
        return made

    def _built(self, source: Source, choice: Choice, seed: int) -> Generator[None, None, Built]:
        found = yield from extremes(source, BLOCK_ROWS)
        scale = found.scale_for(choice.kind)
        if choice.kind == "flat":
            data = yield from self._flat(source, scale)
            return Built(choice, source.rows, found.longest, scale, data, found.is_coarse)
        if choice.kind == "cagra":
            return Built(choice, source.rows, found.longest, scale, (*self._graph(source), 0))
        index = self._lists(source.metric, choice)
        index.train(training_rows(source, choice, seed) * np.float32(scale))
        yield
        for block in source.blocks(BLOCK_ROWS):
            self.ledger.reserve("page", 0)
            index.add(padded(block, choice.width) * np.float32(scale))
            yield
        index.reclaimMemory()
        longest = max(int(index.getListLength(number)) for number in range(choice.lists))
        return Built(choice, source.rows, found.longest, scale, (source.metric, index, longest), found.is_coarse)

    def _flat(self, source: Source, scale: float) -> Generator[None, None, tuple[Metric, Any, Any]]:
        """Upload rows as float16, times a scale; with their squared lengths under l2."""
        halves = cupy.empty((source.rows, source.dim), cupy.float16)
        squares = cupy.empty(source.rows, cupy.float32) if source.metric == "l2" else None
        at = 0
        for block in source.blocks(BLOCK_ROWS):
            part = halves[at : at + len(block)]
            self.ledger.reserve("page", 0)
            part[:] = self._stage.uploaded(block) * np.float32(scale)
            if squares is not None:
                wide = part.astype(cupy.float32)
                cupy.sum(wide * wide, axis=1, out=squares[at : at + len(block)])
                del wide
            at += len(block)
            self._stream.synchronize()
            yield
        return source.metric, halves, squares

    def _lists(self, metric: Metric, choice: Choice) -> Any:
        measure = faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT
        if choice.kind == "ivf_sq":
            config = faiss.GpuIndexIVFScalarQuantizerConfig()
            half = faiss.ScalarQuantizer.QT_fp16
            index = faiss.GpuIndexIVFScalarQuantizer(
                self._resources, choice.width, choice.lists, half, measure, False, self._configured(config)
            )
        else:
            config = faiss.GpuIndexIVFPQConfig()
            # Tables of more sub-quantisers do not fit shared memory in float32.
            config.useFloat16LookupTables = choice.pieces > 48
            index = faiss.GpuIndexIVFPQ(
                self._resources, choice.width, choice.lists, choice.pieces, 8, measure, self._configured(config)
            )
            index.pq.cp.min_points_per_centroid, index.pq.cp.niter = 1, TRAIN_ITERATIONS
        index.cp.min_points_per_centroid, index.cp.niter = 1, TRAIN_ITERATIONS
        return index

    def _configured(self, config: Any) -> Any:
        config.device = 0
        config.use_cuvs = isinstance(config, getattr(faiss, "GpuIndexCagraConfig", ()))
        return config

    def _graph(self, source: Source) -> tuple[Metric, Any]:
        config = self._configured(faiss.GpuIndexCagraConfig())
        config.graph_degree = GRAPH_DEGREE
        config.intermediate_graph_degree = GRAPH_DEGREE_BUILD
        config.build_algo = faiss.graph_build_algo_IVF_PQ
        measure = faiss.METRIC_L2 if source.metric == "l2" else faiss.METRIC_INNER_PRODUCT
        index = faiss.GpuIndexCagra(self._resources, source.dim, measure, config)
        # A graph is made of all rows at once: it takes no more afterwards.
        index.train(source.gathered(np.arange(source.rows)))
        return source.metric, index

    # -- searching --------------------------------------------------------------------------------------------------

    def search(self, built: Built, queries: Floats, find: Find, mask: Mask | None = None) -> tuple[Floats, Rows]:
        """Return rounded scores and positions."""
        mask = selected(self, built.choice.kind, mask)
        with self._working("search", queries):
            if built.choice.kind == "flat":
                metric, halves, squares = built.data
                scaled = (self._stage.uploaded(queries) * np.float32(built.scale)).astype(cupy.float16)
                scores, rows = self._compared(metric, halves, scaled, min(find.candidates, built.rows), squares)
                return self._fetched(scores / np.float32(built.scale**2)), self._fetched(rows)
            return self._searched(built, queries, find, mask)

    def _searched(self, built: Built, queries: Floats, find: Find, mask: Mask | None) -> tuple[Floats, Rows]:
        choice, scale = built.choice, np.float32(built.scale)
        metric, index, longest = built.data
        assert find.candidates <= self.candidates_max, "more candidates than the device gives"
        bits = None if mask is None else np.packbits(mask, bitorder="little")
        selector = None if bits is None else faiss.IDSelectorBitmap(bits)
        if choice.kind == "cagra":
            parameters = faiss.SearchParametersCagra()
            parameters.itopk_size = -(-max(find.ef, find.candidates) // 32) * 32
            parameters.sel = selector
            step = len(queries)
        else:
            probes = min(find.probes or choice.lists, choice.lists, self.candidates_max)
            parameters = faiss.SearchParametersIVF(nprobe=probes, sel=selector)
            step = scanned_at_once(choice, scan_bytes(choice, probes, find.candidates, longest), self._scratch_bytes)
        wide = padded(queries, choice.width) * scale
        parts = [
            index.search(wide[at : at + step], find.candidates, params=parameters) for at in range(0, len(wide), step)
        ]
        scores, rows = np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])
        # Graphs say "no row" by the largest number that they have.
        rows = np.where((rows < 0) | (rows >= index.ntotal), -1, rows).astype(np.int64)
        return unscaled(metric, scores, rows, built.scale), rows

    def block(self, metric: Metric, vectors: Floats, name: str) -> Any:
        """Upload vectors as they are."""
        self.ledger.reserve(name, vectors.nbytes)
        try:
            with self._memory(name, vectors.nbytes):
                return metric, self._stage.uploaded(vectors)
        except NoRoom:
            self.release(name)
            raise

    def scan(self, block: Any, queries: Floats, k: int) -> tuple[Floats, Rows]:
        """Compare all vectors of a block."""
        metric, vectors = block
        with self._working("scan", queries):
            uploaded = self._stage.uploaded(queries)
            scores, rows = self._compared(metric, vectors, uploaded, min(k, len(vectors)))
            return self._fetched(scores), self._fetched(rows)

    def rescored(self, metric: Metric, vectors: Floats, queries: Floats) -> Floats:
        """Return the float32 scores of each query's own vectors."""
        count, each, dim = vectors.shape
        with self._working("rescore", vectors):
            out = cupy.empty((count, each), cupy.float32)
            pairs = count * each
            blocks = -(-pairs * 32 // THREADS)
            arguments = (
                self._stage.uploaded(vectors.reshape(pairs, dim)),
                self._stage.uploaded(queries),
                np.int64(pairs),
                np.int32(each),
                np.int32(dim),
                np.int32(metric == "l2"),
                out,
            )
            self._rescore((blocks,), (THREADS,), arguments)
            return self._fetched(out)

    def release(self, name: str) -> None:
        """Give back what was reserved."""
        gc.collect()
        self._pool.free_all_blocks()
        self.ledger.release(name)

    # -- arrays on the device ---------------------------------------------------------------------------------------

    def _compared(self, metric: Metric, rows: Any, queries: Any, k: int, squares: Any = None) -> tuple[Any, Any]:
        """Compare queries with all rows, both of one type, on the device: the k nearest, nearest first."""
        count = len(queries)
        best = found = None
        # Beyond what FAISS selects: all scores of a part of the rows, and the nearest of them by a kernel.
        narrow = k <= _WIDTH
        step = self._rows_at_once(rows, count) if narrow else max(k, _STAGE_BYTES // (4 * count))
        for at in range(0, len(rows), step):
            part = rows[at : at + step]
            norms = None if squares is None else squares[at : at + step]
            wanted = min(k, len(part))
            near, columns = self._nearest_of(metric, part, queries, wanted, norms, narrow=narrow)
            if narrow and step >= len(rows):
                return near, columns
            columns += at
            if best is None or found is None:
                best, found = near, columns
                continue
            near, numbers = cupy.concatenate([best, near], axis=1), cupy.concatenate([found, columns], axis=1)
            best, places = self._selected(metric, near, min(k, near.shape[1]))
            found = cupy.take_along_axis(numbers, places, axis=1)
        assert best is not None and found is not None
        order = cupy.argsort(best if metric == "l2" else -best, axis=1)
        return cupy.take_along_axis(best, order, axis=1), cupy.take_along_axis(found, order, axis=1)

    def _nearest_of(
        self, metric: Metric, rows: Any, queries: Any, k: int, squares: Any, *, narrow: bool
    ) -> tuple[Any, Any]:
        """Return the k nearest of some rows and their places: by FAISS's selection where it is wide enough."""
        count = len(queries)
        if narrow:
            scores, found = cupy.empty((count, k), cupy.float32), cupy.empty((count, k), cupy.int64)
            self._brute_force(metric, rows, queries, k, scores, found, squares)
            return scores, found
        scores = cupy.empty((count, len(rows)), cupy.float32)
        self._brute_force(metric, rows, queries, -1, scores, None, squares)
        return self._selected(metric, scores, k)

    def _rows_at_once(self, rows: Any, count: int) -> int:
        """Return how many rows are compared at once, so that FAISS's two tiles of scores fit its scratch."""
        queries_tile, rows_tile = tile_of(rows.dtype.itemsize, int(rows.shape[1]))
        room = self._scratch_bytes * 3 // 4 // (8 * min(queries_tile, count))
        return len(rows) if room >= min(rows_tile, len(rows)) else max(_WIDTH, room)

    def _selected(self, metric: Metric, scores: Any, k: int) -> tuple[Any, Any]:
        """Return the k nearest of each row of scores and their columns, unsorted."""
        count, width = scores.shape
        best, columns = cupy.empty((count, k), cupy.float32), cupy.empty((count, k), cupy.int64)
        sign = np.int32(1 if metric == "l2" else -1)
        self._nearest((count,), (THREADS,), (scores, np.int64(width), np.int32(k), sign, best, columns))
        return best, columns

    def _brute_force(
        self, metric: Metric, rows: Any, queries: Any, k: int, scores: Any, found: Any, squares: Any
    ) -> None:
        half = rows.dtype == cupy.float16
        cast = faiss.cast_integer_to_void_ptr
        kind = faiss.DistanceDataType_F16 if half else faiss.DistanceDataType_F32
        arguments = faiss.GpuDistanceParams()
        arguments.metric = faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT
        arguments.k, arguments.dims = k, int(rows.shape[1])
        arguments.vectors, arguments.numVectors, arguments.vectorType = cast(rows.data.ptr), len(rows), kind
        arguments.queries, arguments.numQueries, arguments.queryType = cast(queries.data.ptr), len(queries), kind
        if squares is not None:
            arguments.vectorNorms = faiss.cast_integer_to_float_ptr(squares.data.ptr)
        arguments.outDistances = faiss.cast_integer_to_float_ptr(scores.data.ptr)
        if found is not None:
            arguments.outIndices = cast(found.data.ptr)
            arguments.outIndicesType = faiss.IndicesDataType_I64
        arguments.device = 0
        # cuVS's brute force takes other types and widths; FAISS's own does all that is asked here.
        arguments.use_cuvs = False
        faiss.bfKnn(self._resources, arguments)

    def _fetched(self, array: Any) -> npt.NDArray[Any]:
        """Return an array of the device's as one of numpy's."""
        host: npt.NDArray[Any] = cupy.asnumpy(array, stream=self._stream)
        return host

    @contextmanager
    def _working(self, what: str, given: Floats) -> Iterator[None]:
        """Admit a call; what it takes is within the scratch, whose size bounds how much is asked at once."""
        self.ledger.reserve("call", 0)
        with self._memory(what, given.nbytes):
            yield

    @contextmanager
    def _memory(self, what: str, wanted: int) -> Iterator[None]:
        """Turn an allocation that failed, in either library, into `NoRoom`."""
        try:
            yield
        except MemoryError as exc:
            self._pool.free_all_blocks()
            raise NoRoom(f"{what}: {exc}", wanted, self.ledger.free) from exc
        except RuntimeError as exc:
            if any(words in str(exc) for words in _FULL):
                self._pool.free_all_blocks()
                raise NoRoom(f"{what}: {exc}", wanted, self.ledger.free) from exc
            raise


class _Stage:
    """Pinned memory through which arrays reach the device: one half is filled while the other is copied."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._halves = [_pinned(_STAGE_BYTES), _pinned(_STAGE_BYTES)]
        self._copied = [cupy.cuda.Event(disable_timing=True), cupy.cuda.Event(disable_timing=True)]
        for event in self._copied:
            event.record(stream)

    def uploaded(self, array: Floats) -> Any:
        """Return a float32 array on the device."""
        out = cupy.empty(array.shape, cupy.float32)
        flat, target = np.ascontiguousarray(array, np.float32).ravel(), out.ravel()
        step = _STAGE_BYTES // 4
        for number, at in enumerate(range(0, len(flat), step)):
            half, event = self._halves[number % 2], self._copied[number % 2]
            part = flat[at : at + step]
            event.synchronize()
            half[: len(part)] = part
            target[at : at + len(part)].set(half[: len(part)], stream=self._stream)
            event.record(self._stream)
        return out


def _pinned(size: int) -> Floats:
    memory = cupy.cuda.alloc_pinned_memory(size)
    return np.frombuffer(memory, np.float32, size // 4)
