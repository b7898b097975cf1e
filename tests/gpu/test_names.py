"""What the CUDA code calls of FAISS, CuPy and NVML is there, by the names and with the arguments that it uses.

This needs the wheels of the extra `gpu` or `gpu-cuvs`, and no GPU: FAISS finds the function for some arguments before
it looks for a device, so a call that ends at the missing device was a right one. One call ends in an abort, and has a
process of its own. The kernels are compiled for real chips, by NVRTC where CuPy has it and by nvcc where it is
installed.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from vecstore.index.kernels import SOURCE

from . import pretend

ROOT = Path(__file__).parents[2]
FILES = ["vecstore/index/gpu.py", "vecstore/index/telemetry.py", "benchmarks/gpu_raw.py"]
CALLS = {"faiss": "faiss", "cupy": "cupy", "pynvml": "pynvml", "nvml": "pynvml"}
CHIPS = ["75", "80", "90"]
NVCC = shutil.which("nvcc")
OPTIONS = str(faiss.get_compile_options()).split()
HAS_CUVS = any("CUVS" in option for option in OPTIONS)
OF_CUVS = pretend.Faiss.of_cuvs
MISSING = "" if "GPU" in OPTIONS else "the FAISS that is installed has no GPU code: install the extra gpu or gpu-cuvs"
for_gpus = pytest.mark.skipif(bool(MISSING), reason=MISSING or "it has")


def module(name: str) -> Any:
    """Return a module, or skip."""
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    return importlib.import_module(name)


def chains(path: str) -> set[tuple[str, ...]]:
    """Return every name with dots of a file that begins with one of the libraries."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        names: list[str] = []
        at: ast.AST = node
        while isinstance(at, ast.Attribute):
            names.insert(0, at.attr)
            at = at.value
        if isinstance(at, ast.Name) and at.id in CALLS and names:
            found.add((CALLS[at.id], *names))
    return found


@pytest.mark.parametrize("path", FILES)
def test_the_libraries_are_called_by_name(path: str) -> None:
    """Each file that this looks at has names to look for: none is overlooked because it imports otherwise."""
    assert len(chains(path)) >= 5


@for_gpus
@pytest.mark.parametrize("library", ["faiss", "cupy", "pynvml"])
def test_every_name_is_there(library: str) -> None:
    """Whatever is called of a library exists, attributes of attributes too; what is cuVS's, where the wheel has it."""
    loaded = module(library)
    names = sorted({chain for path in FILES for chain in chains(path) if chain[0] == library})
    assert names
    for chain in names:
        if chain[1] in OF_CUVS and not HAS_CUVS:
            assert not hasattr(faiss, chain[1])
            continue
        at = loaded
        for name in chain[1:]:
            assert hasattr(at, name), ".".join(chain)
            at = getattr(at, name)


@for_gpus
def test_what_is_pretended_has_real_names() -> None:
    """Names and fields of the stand-ins are those of the libraries; a field more would hide a mistake."""
    cupy = module("cupy")
    for name in [*vars(pretend.Faiss), *(OF_CUVS if HAS_CUVS else ())]:
        if not name.startswith("_") and name != "of_cuvs":
            assert hasattr(faiss, name), name
    modules: list[Any] = [(pretend.Cupy, cupy), (pretend._Cuda, cupy.cuda), (pretend._Runtime, cupy.cuda.runtime)]
    for stand_in, real in modules:
        for name in vars(stand_in):
            assert name.startswith("_") or hasattr(real, name), f"{real.__name__}.{name}"
    kinds: list[Any] = [
        (pretend.Array, cupy.ndarray),
        (pretend._Stream, cupy.cuda.Stream),
        (pretend._Event, cupy.cuda.Event),
        (pretend._Pool, cupy.cuda.MemoryPool),
        (pretend._Module, cupy.RawModule),
        (pretend._Resources, faiss.StandardGpuResources),
        (pretend._Product, faiss.GpuIndexIVFPQ),
        (pretend._Lists, faiss.GpuIndexIVFPQ),
        (pretend._Lists, faiss.GpuIndexIVFScalarQuantizer),
    ]
    for stand_in, real in kinds:
        known = {"calls", "host", "limit", "library", "overflows", "ptr", "temp"}
        for name in vars(stand_in):
            assert name.startswith("_") or name in known or hasattr(real, name), f"{real}.{name}"
    pairs: list[Any] = [
        ("GpuDistanceParams", pretend._Distances),
        ("GpuIndexIVFScalarQuantizerConfig", pretend._Config),
    ]
    pairs += [("GpuIndexIVFPQConfig", pretend._ProductConfig)]
    if HAS_CUVS:
        pairs += [("GpuIndexCagraConfig", pretend._GraphConfig), ("SearchParametersCagra", pretend._GraphParameters)]
    for name, stand_in in pairs:
        real = getattr(faiss, name)()
        for field in stand_in.__slots__:
            assert hasattr(real, field), f"{name}.{field}"


@for_gpus
def test_cupy_is_called_with_arguments_that_it_takes() -> None:
    """Keywords of CuPy's Python functions are those that the backend gives; compiled ones name theirs in their text."""
    cupy = module("cupy")
    assert {"stream"} <= inspect.signature(cupy.asnumpy).parameters.keys()
    assert {"axis"} <= inspect.signature(cupy.take_along_axis).parameters.keys()
    assert {"axis"} <= inspect.signature(cupy.argsort).parameters.keys()
    assert {"axis"} <= inspect.signature(cupy.concatenate).parameters.keys()
    assert {"axis", "out"} <= inspect.signature(cupy.sum).parameters.keys()
    for made, keyword in [
        (cupy.RawModule, "options=()"),
        (cupy.cuda.MemoryPool.set_limit, "size"),
        (cupy.ndarray.set, "stream"),
        (cupy.cuda.Event, "disable_timing"),
        (cupy.cuda.Stream, "non_blocking"),
    ]:
        assert keyword in (made.__doc__ or ""), made
    assert issubclass(cupy.cuda.memory.OutOfMemoryError, MemoryError)


def resources() -> Any:
    """Return resources, set as the backend sets them: nothing of it touches a device."""
    made = faiss.StandardGpuResources()
    made.setTempMemory(1 << 29)
    made.setPinnedMemory(64 << 20)
    made.setDefaultStream(0, faiss.cast_integer_to_cudastream_t(1 << 40))
    return made


@for_gpus
def test_faiss_takes_what_its_indexes_are_made_with() -> None:
    """Each constructor finds its overload and ends at the device that is not there; wrong arguments end before."""
    if faiss.get_num_gpus():
        pytest.skip("there is a GPU: the tests marked gpu make real ones")
    half, l2 = faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_L2
    scalar, product = faiss.GpuIndexIVFScalarQuantizerConfig(), faiss.GpuIndexIVFPQConfig()
    flat = faiss.GpuIndexFlatConfig()
    scalar.device = product.device = flat.device = 0
    scalar.use_cuvs = product.use_cuvs = False
    product.useFloat16LookupTables = flat.useFloat16 = True
    kept = resources()
    makers: list[Any] = [
        lambda: faiss.GpuIndexIVFScalarQuantizer(kept, 64, 16, half, l2, False, scalar),
        lambda: faiss.GpuIndexIVFPQ(kept, 64, 16, 8, 8, l2, product),
        lambda: faiss.GpuIndexFlat(kept, 64, l2, flat),
        lambda: faiss.GpuIndexFlat(kept, 64, l2),
    ]
    if HAS_CUVS:
        graph = faiss.GpuIndexCagraConfig()
        graph.device, graph.use_cuvs, graph.graph_degree, graph.intermediate_graph_degree = 0, True, 64, 128
        graph.build_algo = faiss.graph_build_algo_IVF_PQ
        makers.append(lambda: faiss.GpuIndexCagra(kept, 64, l2, graph))
        walk = faiss.SearchParametersCagra()
        walk.itopk_size, walk.sel = 64, faiss.IDSelectorBitmap(np.zeros(8, np.uint8))
        walk.sel = None
    for maker in makers:
        with pytest.raises(RuntimeError, match="Invalid GPU device"):
            maker()
    with pytest.raises(TypeError):
        faiss.GpuIndexIVFPQ(kept, 64, 16, 8, l2, product)


@for_gpus
@pytest.mark.parametrize("name", ["GpuIndexIVFScalarQuantizer", "GpuIndexIVFPQ", "GpuIndexFlat", "GpuIndexCagra"])
def test_indexes_are_searched_and_trained_as_they_want(name: str) -> None:
    """They take the positional and keyword arguments that are given, and have the attributes that are set."""
    if name in OF_CUVS and not HAS_CUVS:
        pytest.skip("the wheel has no cuVS")
    kind = getattr(faiss, name)
    inspect.signature(kind.search).bind(None, np.zeros((1, 4)), 3, params=None)
    inspect.signature(kind.train).bind(None, np.zeros((1, 4)))
    inspect.signature(kind.add).bind(None, np.zeros((1, 4)))
    assert hasattr(kind, "ntotal")
    if "IVF" in name:
        assert hasattr(kind, "cp") and hasattr(kind, "reclaimMemory")
        assert faiss.SearchParametersIVF(nprobe=3, sel=None).nprobe == 3
    if name == "GpuIndexIVFPQ":
        assert hasattr(kind, "pq")


BRUTE_FORCE = """
import faiss
p = faiss.GpuDistanceParams()
p.metric, p.k, p.dims, p.device, p.use_cuvs = faiss.METRIC_L2, 5, 8, 0, False
void, real = faiss.cast_integer_to_void_ptr, faiss.cast_integer_to_float_ptr
p.vectors, p.numVectors, p.vectorType = void(1 << 40), 50, faiss.DistanceDataType_F16
p.queries, p.numQueries, p.queryType = void(1 << 41), 5, faiss.DistanceDataType_F16
p.vectorNorms, p.outDistances = real(1 << 42), real(1 << 43)
p.outIndices, p.outIndicesType = void(1 << 44), faiss.IndicesDataType_I64
resources = faiss.StandardGpuResources()
print("called", flush=True)
faiss.bfKnn(resources, p)
"""


@for_gpus
def test_brute_force_is_called_as_it_wants() -> None:
    """Addresses and counts are taken, and the call gets as far as the device, where FAISS aborts."""
    if faiss.get_num_gpus():
        pytest.skip("there is a GPU: the addresses are nobody's")
    done = subprocess.run([sys.executable, "-c", BRUTE_FORCE], capture_output=True, text=True, check=False)
    assert done.stdout == "called\n"
    assert done.returncode == -signal.SIGABRT, done.stderr
    assert "CUDA error" in done.stderr


@pytest.mark.parametrize("chip", CHIPS)
def test_the_kernels_compile_with_nvrtc(chip: str) -> None:
    """As CuPy compiles them when a worker starts, with the same options."""
    module("cupy")
    nvrtc: Any = importlib.import_module("cupy_backends.cuda.libs.nvrtc")
    try:
        nvrtc.getVersion()
    except RuntimeError as exc:
        pytest.skip(f"NVRTC is not there: {exc}")
    program = nvrtc.createProgram(SOURCE, "kernels.cu", (), ())
    try:
        nvrtc.compileProgram(program, (f"-arch=sm_{chip}", *OPTIONS_OF_BACKEND))
    except nvrtc.NVRTCError:
        pytest.fail(nvrtc.getProgramLog(program))
    assert len(nvrtc.getCUBIN(program)) > 1_000
    assert nvrtc.getProgramLog(program).strip("\0\n ") == ""


def options_of_backend() -> tuple[str, ...]:
    """Return the options that the backend's source gives to its module."""
    for node in ast.walk(ast.parse((ROOT / FILES[0]).read_text())):
        if isinstance(node, ast.keyword) and node.arg == "options":
            return tuple(ast.literal_eval(node.value))
    raise AssertionError("the backend gives no options")


OPTIONS_OF_BACKEND = options_of_backend()


@pytest.mark.skipif(NVCC is None, reason="nvcc is not installed")
@pytest.mark.parametrize("chip", CHIPS)
def test_the_kernels_compile_with_nvcc(chip: str, tmp_path: Path) -> None:
    """Without a warning, without spilling registers, and small enough to have a full block of threads."""
    source = tmp_path / "kernels.cu"
    source.write_text(SOURCE)
    command = [NVCC or "", f"-arch=sm_{chip}", *OPTIONS_OF_BACKEND, "-Xptxas", "-v", "-cubin"]
    done = subprocess.run([*command, "-o", tmp_path / "k", source], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr.replace("nvcc warning : Support for offline compilation", "")
    assert done.stderr.count("0 bytes spill stores") == 2, done.stderr
