"""All that is to be found out on a machine with a GPU, in one command and within a time: checks, tests, benchmarks.

Such a machine may be there for minutes. So what is missing is said in the first seconds, the steps come in the order of
what they are worth, each in a process of its own that is ended when its time is up, and the summary is written anew
after every step: whatever ends the session, what was found by then is in the folder, in a handful of files.

    python benchmarks/gpu_session.py --out results --limit-s 540
    python benchmarks/gpu_session.py --out results --steps probe,tests,quick
    python benchmarks/gpu_session.py --out results --backend host     # anywhere: a rehearsal, on a worker on the CPU
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
HERE = ROOT / "benchmarks"
LIMIT_S = 540.0
STEP_S_MIN = 5.0
TAIL_LINES = 12
MODULES = {
    "numpy": "numpy",
    "msgspec": "msgspec",
    "xxhash": "xxhash",
    "orjson": "orjson",
    "click": "click",
    "rich": "rich",
    "grpc": "grpcio",
    "google.protobuf": "protobuf",
    "grpc_health": "grpcio-health-checking",
    "grpc_reflection": "grpcio-reflection",
    "rocksdict": "rocksdict==0.3.29",
    "pyarrow": "pyarrow",
    "obstore": "obstore",
    "zstandard": "zstandard",
    "prometheus_client": "prometheus-client",
    "opentelemetry": "opentelemetry-api",
    "structlog": "structlog",
    "jwt": "PyJWT",
    "hypothesis": "hypothesis",
    "pytest": "pytest",
    "pytest_asyncio": "pytest-asyncio",
    "yaml": "PyYAML",
    "faiss": "faiss-gpu",
}
OF_CUDA = {"cupy": "cupy-cuda12x-or-13x", "pynvml": "nvidia-ml-py"}
ENGINE = "import vecstore, vecstore.engine.database, vecstore.server.node"


@dataclass(frozen=True)
class Step:
    """One process: its name, what it runs, and the most seconds that it is worth."""

    name: str
    command: Sequence[str]
    seconds_max: float


def pytest_of(name: str, *arguments: str) -> list[str]:
    """Return the command of some tests, which leaves counts in the folder of the session."""
    fixed = ["-q", "-p", "no:cacheprovider", "--maxfail=20", f"--junitxml={{counts}}/{name}.xml"]
    return [sys.executable, "-m", "pytest", *fixed, *arguments]


def steps_of(backend: str, out: Path) -> list[Step]:
    """Return all steps, the most telling first."""
    is_cuda = backend == "cuda"
    bench = [sys.executable, str(HERE / "gpu.py"), "--backend", backend, "--out", str(out), "--limit-s", "{seconds}"]
    some = "gpu and not slow" if is_cuda else "not gpu and not slow"
    tests = "tests/gpu"
    large = ["--seconds", "3"] if is_cuda else ["--quick"]
    found = [
        Step("probe", [sys.executable, str(HERE / "gpu_probe.py"), "--backend", backend, "--out", str(out)], 60),
        Step("names", pytest_of("names", f"{tests}/test_names.py", f"{tests}/test_kernels.py"), 90),
        Step("answers", pytest_of("answers", "-m", some, f"{tests}/test_answer.py"), 120),
        Step("quick", [*bench, "--quick", "--rows", "20000", "--dim", "32"], 100),
        Step("tests", pytest_of("tests", "-m", some, f"{tests}/test_worker.py", f"{tests}/test_engine.py"), 240),
        Step("million", [*bench, *large, "--rows", "1000000" if is_cuda else "6000", "--dim", "128"], 240),
    ]
    if not is_cuda:
        return found
    slow, memory = "gpu and slow", f"{tests}/test_device_memory.py"
    parts = "indexed,batches,recalls,exact,served"
    return [
        *found,
        Step("memory", pytest_of("memory", "-m", slow, "-k", "predicted", memory), 240),
        Step("ten", [*bench, "--rows", "10000000", "--dim", "96", "--parts", parts], 420),
        Step("sanitizer", pytest_of("sanitizer", "-m", "gpu", "-k", "sanitizer", memory), 240),
        Step("contract", pytest_of("contract", "-m", slow, f"{tests}/test_contract.py"), 480),
        Step("soak", pytest_of("soak", "-m", slow, f"{tests}/test_soak.py"), 420),
    ]


def missing(backend: str) -> list[str]:
    """Return what this machine lacks, a line each."""
    wanted = MODULES | (OF_CUDA if backend == "cuda" else {})
    if backend != "cuda":
        wanted["faiss"] = "faiss-cpu"
    lacking = [distribution for name, distribution in wanted.items() if not _has(name)]
    found = [f"not installed: {' '.join(lacking)}"] if lacking else []
    done = subprocess.run(
        [sys.executable, "-c", ENGINE], env=environment(), capture_output=True, text=True, check=False
    )
    if done.returncode:
        found.append(f"vecstore cannot be imported: {(done.stderr.strip() or '?').splitlines()[-1]}")
    if backend == "cuda" and not found:
        from vecstore.index import device

        if not device.has_gpu_code():
            found.append("the FAISS that is installed has no GPU code")
        if not device.found():
            found.append("no NVIDIA GPU can be seen: look at nvidia-smi and CUDA_VISIBLE_DEVICES")
    return found


def _has(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ImportError:
        return False


def environment() -> dict[str, str]:
    """Return the environment of the steps: this tree's package, and output as it comes."""
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": paths, "PYTHONUNBUFFERED": "1"}


def carried_out(step: Step, log: Path, folder: str, seconds: float) -> dict[str, Any]:
    """Run a step for at most some seconds, its output behind that of the others; return what became of it."""
    began_s = time.monotonic()
    places = {"{counts}": folder, "{seconds}": str(int(0.9 * seconds))}
    command = [places.get(word, word.replace("{counts}", folder)) for word in step.command]
    with log.open("a") as file:
        file.write(f"\n==== {step.name}: {' '.join(command)}\n")
        file.flush()
        before = file.tell()
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment(), stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            # Servers and clients that it started are of its session, and end with it.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    taken_s = round(time.monotonic() - began_s, 1)
    verdict = "out of time" if code is None else "passed" if code == 0 else f"failed ({code})"
    said = [] if code == 0 else log.read_bytes()[before:].decode(errors="replace").splitlines()
    tests = counts(Path(folder) / f"{step.name}.xml")
    return {"step": step.name, "verdict": verdict, "seconds": taken_s, **tests, "tail": said[-TAIL_LINES:]}


def counts(file: Path) -> dict[str, int]:
    """Return how many tests there were, failed and were skipped, as pytest wrote it; nothing where it wrote nothing."""
    try:
        suite = ET.parse(file).getroot().find("testsuite")
    except (OSError, ET.ParseError):
        return {}
    if suite is None:
        return {}
    got = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    return {"tests": got["tests"], "failed": got["failures"] + got["errors"], "skipped": got["skipped"]}


def summary(done: Sequence[dict[str, Any]]) -> str:
    """Return a line for each step, with the last lines of those that did not pass."""
    lines = []
    for one in done:
        tests = f", {one['tests']} tests, {one['failed']} failed, {one['skipped']} skipped" if "tests" in one else ""
        lines.append(f"{one['step']:<10} {one['verdict']:<12} {one['seconds']:>6.1f} s{tests}")
        lines += [f"    {line}" for line in one["tail"]]
    return "\n".join(lines)


def write(out: Path, content: dict[str, Any]) -> None:
    """Put the summary in place of the last one, so that no moment has half of it."""
    part = out / "summary.json.part"
    part.write_text(json.dumps(content, indent=1) + "\n")
    part.replace(out / "summary.json")


def run(steps: Sequence[Step], out: Path, limit_s: float, clock: Callable[[], float] = time.monotonic) -> list[Any]:
    """Carry out steps while there is time; return what became of each."""
    end_s = clock() + limit_s
    done: list[dict[str, Any]] = []
    log = out / "session.log"
    log.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for step in steps:
            left_s = end_s - clock()
            if left_s < STEP_S_MIN:
                done.append({"step": step.name, "verdict": "not begun", "seconds": 0.0, "tail": []})
            else:
                print(f"{step.name}: at most {min(left_s, step.seconds_max):.0f} s", flush=True)
                done.append(carried_out(step, log, folder, min(left_s, step.seconds_max)))
                print(summary(done[-1:]), flush=True)
            write(out, {"steps": done})
    return done


def main() -> None:
    """Find out what there is to find out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of logs, results and the summary")
    parser.add_argument("--limit-s", type=float, default=LIMIT_S, help="seconds of all steps together")
    parser.add_argument("--steps", help="some of the steps, in this order; default: all")
    parser.add_argument("--backend", choices=["cuda", "host"], default="cuda", help="host rehearses without a GPU")
    args = parser.parse_args()
    out: Path = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    sys.path.insert(0, str(ROOT))
    lacks = missing(args.backend)
    if lacks:
        write(out, {"missing": lacks, "steps": []})
        raise SystemExit("\n".join(lacks))
    known = {step.name: step for step in steps_of(args.backend, out)}
    names = args.steps.split(",") if args.steps else list(known)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise SystemExit(f"--steps: {', '.join(unknown)} is none of {', '.join(known)}")
    done = run([known[name] for name in names], out, args.limit_s)
    print(f"\n{summary(done)}\nwritten: {out / 'summary.json'}")
    raise SystemExit(any(one["verdict"].startswith("failed") for one in done))


if __name__ == "__main__":
    main()
