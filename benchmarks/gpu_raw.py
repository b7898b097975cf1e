"""What `gpu.py` compares with: FAISS on the device without a store around it, and what the device can do at all.

With the backend "host", which runs anywhere, the raw side is FAISS on the CPU and numpy: a smoke test of the script.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any

import faiss
import numpy as np
from dataset import Floats

from vecstore.index import device
from vecstore.index.budget import TRAIN_ITERATIONS, TRAIN_ROWS_PER_LIST, layout

__all__ = ["Raw", "described", "gathered_scan", "limit_per_s", "limits", "memory_used_bytes", "missing"]

ADD_ROWS = 65_536


def missing(backend: str) -> str:
    """Return why nothing can be measured here; empty where it can."""
    if backend != "cuda":
        return ""
    if not device.has_gpu_code():
        return "the FAISS that is installed has no GPU code, or CuPy is missing: install vecstore-db[gpu]"
    if not device.found():
        return "no NVIDIA GPU can be seen: look at nvidia-smi and CUDA_VISIBLE_DEVICES"
    return "" if faiss.get_num_gpus() else "FAISS sees no GPU: is the driver recent enough for its CUDA?"


class Raw:
    """An index of FAISS's over unit rows, of a kind that vecstore builds.

    Parameters
    ----------
    kind
        "flat", "ivf_sq" or "ivf_pq".
    backend
        "cuda" or "host".
    """

    def __init__(self, kind: str, backend: str, dim: int, rows: int) -> None:
        self.kind, self._on_gpu = kind, backend == "cuda"
        self.lists, pieces, self._width = layout(kind, rows, dim)
        self._resources = faiss.StandardGpuResources() if self._on_gpu else None
        self._index = self._empty(pieces)

    def _empty(self, pieces: int) -> Any:
        product = faiss.METRIC_INNER_PRODUCT
        if not self._on_gpu:
            name = {"flat": "Flat", "ivf_sq": f"IVF{self.lists},SQfp16", "ivf_pq": f"IVF{self.lists},PQ{pieces}"}
            return faiss.index_factory(self._width, name[self.kind], product)
        if self.kind == "flat":
            config = faiss.GpuIndexFlatConfig()
            config.useFloat16 = True
            return faiss.GpuIndexFlat(self._resources, self._width, product, config)
        if self.kind == "ivf_sq":
            half = faiss.ScalarQuantizer.QT_fp16
            config = faiss.GpuIndexIVFScalarQuantizerConfig()
            return faiss.GpuIndexIVFScalarQuantizer(
                self._resources, self._width, self.lists, half, product, False, config
            )
        config = faiss.GpuIndexIVFPQConfig()
        config.useFloat16LookupTables = pieces > 48
        return faiss.GpuIndexIVFPQ(self._resources, self._width, self.lists, pieces, 8, product, config)

    def filled_s(self, rows: Floats) -> float:
        """Train and add; return the seconds."""
        began_s = time.perf_counter()
        if self.kind != "flat":
            if hasattr(self._index, "cp"):
                self._index.cp.niter = TRAIN_ITERATIONS
            count = min(len(rows), TRAIN_ROWS_PER_LIST * self.lists)
            chosen = np.sort(np.random.default_rng(1).choice(len(rows), count, replace=False))
            self._index.train(self._padded(rows[chosen]))
        step = len(rows) if self.kind == "flat" else ADD_ROWS
        for at in range(0, len(rows), step):
            self._index.add(self._padded(rows[at : at + step]))
        return time.perf_counter() - began_s

    def search(self, queries: Floats, candidates: int, probes: int) -> Any:
        """Return the rows found."""
        parameters = None
        if self.kind != "flat":
            parameters = faiss.SearchParametersIVF(nprobe=min(probes or self.lists, self.lists))
        return self._index.search(self._padded(queries), candidates, params=parameters)[1]

    def _padded(self, rows: Floats) -> Floats:
        if rows.shape[1] == self._width:
            return np.ascontiguousarray(rows)
        return np.pad(rows, ((0, 0), (0, self._width - rows.shape[1])))


def limits(backend: str, dim: int) -> dict[str, float]:
    """Measure bytes a second that the device reads, and float16 operations a second of a product as a scan has it."""
    if backend != "cuda":
        block = np.ones((1 << 24,), np.float32)
        rows, queries = np.ones((1 << 14, dim), np.float32), np.ones((256, dim), np.float32)
        copy_s = _best_s(lambda: block.sum())
        product_s = _best_s(lambda: queries @ rows.T)
        return {"bytes_per_s": block.nbytes / copy_s, "flops": 2 * 256 * dim * (1 << 14) / product_s}
    import cupy

    block = cupy.ones((1 << 30,), cupy.uint8)
    target = cupy.empty_like(block)
    rows = cupy.ones((1 << 18, dim), cupy.float16)
    queries = cupy.ones((1_024, dim), cupy.float16)

    def waited(call: Any) -> Any:
        def run() -> None:
            call()
            cupy.cuda.get_current_stream().synchronize()

        return run

    copy_s = _best_s(waited(lambda: cupy.copyto(target, block)))
    product_s = _best_s(waited(lambda: queries @ rows.T))
    # A copy reads and writes.
    return {"bytes_per_s": 2 * block.nbytes / copy_s, "flops": 2 * 1_024 * dim * (1 << 18) / product_s}


def _best_s(call: Any, rounds: int = 10) -> float:
    call()
    times = []
    for _ in range(rounds):
        began_s = time.perf_counter()
        call()
        times.append(time.perf_counter() - began_s)
    return min(times)


def limit_per_s(backend: str, rows: int, dim: int, batch: int) -> dict[str, float]:
    """Return the queries a second that an exact scan in batches cannot exceed: by reading, by computing, the lower."""
    measured = limits(backend, dim)
    by_reading = batch * measured["bytes_per_s"] / (2 * dim * rows)
    by_computing = measured["flops"] / (2 * dim * rows)
    return {**measured, "by_reading": by_reading, "by_computing": by_computing, "limit": min(by_reading, by_computing)}


def gathered_scan(backend: str, rows: Floats, queries: Floats, k: int) -> Any:
    """Return a call that compares unit queries with a few unit rows that lie on the device already."""
    if backend != "cuda":
        return lambda: faiss.knn(queries, rows, k, metric=faiss.METRIC_INNER_PRODUCT)
    resources = faiss.StandardGpuResources()
    index = faiss.GpuIndexFlat(resources, rows.shape[1], faiss.METRIC_INNER_PRODUCT)
    index.add(rows)
    return lambda: (resources, index.search(queries, k))


def memory_used_bytes(backend: str) -> int:
    """Return what NVML says is used of the first GPU; 0 where it cannot say."""
    if backend != "cuda":
        return 0
    try:
        import pynvml
    except ImportError:
        return 0
    try:
        pynvml.nvmlInit()
        return int(pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(0)).used)
    except pynvml.NVMLError:
        return 0


def described(backend: str) -> dict[str, str]:
    """Return the device, its driver and CUDA's versions."""
    if backend != "cuda":
        return {"device": "none: a worker on the CPU"}
    import cupy

    runtime = cupy.cuda.runtime
    found = {
        "device": runtime.getDeviceProperties(0)["name"].decode(),
        "cuda_driver": str(runtime.driverGetVersion()),
        "cuda_runtime": str(runtime.runtimeGetVersion()),
        "cupy": str(cupy.__version__),
    }
    with contextlib.suppress(Exception):  # a name more or less
        import pynvml

        pynvml.nvmlInit()
        found["driver"] = str(pynvml.nvmlSystemGetDriverVersion())
    return found
