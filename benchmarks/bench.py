"""How the benchmarks measure and report: interleaved timing, memory, tables, JSON with the machine and the versions.

Two sides are timed in turns (A B A B), so that a noisy machine slows both, and a ratio is one of medians. A `Report`
collects answers, prints one table, and writes one file. This module knows neither data nor engines.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

_LOAD_BEFORE = os.getloadavg()[0]
"""Work of others when the script began. OpenMP suffers from it tenfold: ratios to FAISS mean little above 0.5."""
PAUSE_S = 0.05
RESULTS = Path(__file__).parent / "results"
LIBRARIES = (
    "vecstore-db",
    "faiss-cpu",
    "rocksdict",
    "numpy",
    "pyarrow",
    "qdrant-edge-py",
    "lancedb",
    "chromadb",
    "hnswlib",
)


# -- timing ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """Seconds of two sides that were timed in turns."""

    ours_s: list[float]
    raw_s: list[float]

    @property
    def ours(self) -> float:
        """Median seconds of our side."""
        return statistics.median(self.ours_s)

    @property
    def raw(self) -> float:
        """Median seconds of the raw library."""
        return statistics.median(self.raw_s)

    @property
    def speed_ratio(self) -> float:
        """Our speed as a share of the raw library's."""
        return self.raw / self.ours


def interleaved(ours: Callable[[int], float], raw: Callable[[int], float], rounds: int, warmups: int = 1) -> Pair:
    """Call both sides in turns with the round's number; each returns the seconds that count.

    A pause stands before each: OpenMP's threads go on spinning for some milliseconds after FAISS has answered, on a
    core that the other side would be charged for.
    """
    for i in range(warmups):
        ours(i), raw(i)
    ours_s, raw_s = [], []
    for i in range(rounds):
        time.sleep(PAUSE_S)
        ours_s.append(ours(i))
        time.sleep(PAUSE_S)
        raw_s.append(raw(i))
    return Pair(ours_s, raw_s)


def timed(call: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def call_times(call: Callable[[Any], object], arguments: Sequence[Any]) -> list[float]:
    """Return the seconds of one call with each of the arguments."""
    clock, times = time.perf_counter, []
    for argument in arguments:
        start = clock()
        call(argument)
        times.append(clock() - start)
    return times


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value that this share of all values does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


# -- memory and disk -------------------------------------------------------------------------------------------------


def resident_bytes() -> int:
    """Return the resident memory of this process, mapped pages included."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Rss:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/smaps_rollup has no line of Rss")


def resident_parts() -> dict[str, int]:
    """Return the resident bytes of this process that are anonymous and that are pages of files."""
    anonymous = next(
        int(line.split()[1]) * 1024
        for line in Path("/proc/self/smaps_rollup").read_text().splitlines()
        if line.startswith("Anonymous:")
    )
    return {"anonymous": anonymous, "files": resident_bytes() - anonymous}


@dataclass(frozen=True)
class Disk:
    """What a folder takes on disk.

    Attributes
    ----------
    file_bytes
        Lengths of all files: what a copy takes, and what preallocated files promise to take.
    allocated_bytes
        Blocks that hold something now: holes of sparse files do not count.
    """

    file_bytes: int
    allocated_bytes: int

    @classmethod
    def of(cls, folder: Path) -> Disk:
        """Add up a folder."""
        found = [path.lstat() for path in folder.rglob("*") if path.is_file()]
        return cls(sum(stat.st_size for stat in found), sum(stat.st_blocks * 512 for stat in found))


# -- reporting -------------------------------------------------------------------------------------------------------


@dataclass
class Answer:
    """One line of the table.

    Attributes
    ----------
    question
        What was measured.
    value
        The figure that the target is about.
    unit
        "x" for a ratio.
    at_least, at_most
        The target, if there is one.
    detail
        The figures behind it.
    """

    question: str
    value: float
    unit: str = "x"
    at_least: float | None = None
    at_most: float | None = None
    detail: dict[str, Any] = field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without one."""
        if self.at_least is not None:
            return self.value >= self.at_least
        return None if self.at_most is None else self.value <= self.at_most

    @property
    def target(self) -> str:
        """The target as text."""
        if self.at_least is not None:
            return f">= {self.at_least:g}"
        return "" if self.at_most is None else f"<= {self.at_most:g}"

    def cells(self) -> tuple[str, ...]:
        """Return the line's cells."""
        verdict = {True: "yes", False: "NO", None: ""}[self.met]
        detail = ", ".join(f"{name} {_short(value)}" for name, value in self.detail.items() if _is_short(value))
        return self.question, f"{_short(self.value)} {self.unit}", self.target, verdict, detail

    def as_json(self) -> dict[str, Any]:
        """Return the answer as plain values."""
        return {
            "question": self.question,
            "value": self.value,
            "unit": self.unit,
            "target": self.target,
            "met": self.met,
            "detail": self.detail,
        }


@dataclass
class Report:
    """The answers of one script: printed as a table, written as JSON."""

    script: str
    question: str
    data: str
    out: Path
    arguments: dict[str, Any]
    answers: list[Answer] = field(default_factory=list)
    as_it_goes: bool = False
    """Whether the file is written with every answer, so that a run that is cut leaves those before."""

    def add(self, answer: Answer) -> None:
        """Take an answer, and show it at once: long runs should not be silent."""
        self.answers.append(answer)
        if self.as_it_goes:
            self._write(whole=False)
        cells = answer.cells()
        print(f"  {cells[0]}: {cells[1]}  [{cells[2]} {cells[3]}]  {cells[4]}", flush=True)

    def finish(self) -> Path:
        """Print the table and write the file; return its path."""
        header = ("question", "measured", "target", "met", "detail")
        print(f"\n{self.script} on {self.data}: {self.question}")
        print(table([header, *(answer.cells() for answer in self.answers)]))
        path = self._write(whole=True)
        print(f"written: {path}", flush=True)
        return path

    def _write(self, *, whole: bool) -> Path:
        content: dict[str, Any] = {
            "script": self.script,
            "question": self.question,
            "data": self.data,
            "arguments": self.arguments,
            "answers": [answer.as_json() for answer in self.answers],
        }
        if not whole:
            content["cut"] = "the run did not come to its end"
        return save_json(self.out / f"{self.script}-{self.data}.json", content)


def write_json(path: Path, content: dict[str, Any]) -> Path:
    """Write content with date, machine and library versions, and say where."""
    save_json(path, content)
    print(f"written: {path}", flush=True)
    return path


def save_json(path: Path, content: dict[str, Any]) -> Path:
    """Write content with date, machine and library versions; the file before is there until this one is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions(),
        **content,
    }
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content, indent=1) + "\n")
    part.replace(path)
    return path


def table(lines: Sequence[Sequence[str]]) -> str:
    """Return lines of cells as text in columns; the first line is the header."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    texts = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([texts[0], "  ".join("-" * width for width in widths), *texts[1:]])


def machine() -> dict[str, Any]:
    """Describe what the figures were measured on."""
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory_bytes / 2**30, 1),
        "kernel": platform.release(),
        "load_before": _LOAD_BEFORE,
    }


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that are installed."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def question(docstring: str | None) -> str:
    """Return the first sentence of a script's docstring."""
    return (docstring or "").split("\n\n")[0].replace("\n", " ").removeprefix("Question: ")


def cores() -> set[int]:
    """Return the cores that this process may use."""
    return os.sched_getaffinity(0)


def _is_short(value: object) -> bool:
    return isinstance(value, int | float | str)


def _short(value: object) -> str:
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


# -- command line ----------------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare `--quick`, `--out`, `--work`."""
    parser.add_argument(
        "--quick", action="store_true", help="a smoke test: little data, few rounds, figures mean nothing"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON files")
    parser.add_argument(
        "--work", type=Path, help="folder for the stores, on the disk to be measured; default: temporary"
    )


def arguments_shown(args: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments that a result should carry: none of them a path of this machine."""
    return {name: value for name, value in vars(args).items() if not isinstance(value, Path) and value is not None}


def warn_if_busy() -> None:
    """Say so when something else is using the machine."""
    if _LOAD_BEFORE > 0.5:
        print(f"load is {_LOAD_BEFORE:.1f} before anything was measured: figures will be off", flush=True)


@contextmanager
def work_folder(args: argparse.Namespace) -> Iterator[Path]:
    """Yield an empty folder that is removed afterwards."""
    with TemporaryDirectory(prefix="vecstore-bench-", dir=args.work) as folder:
        yield Path(folder)
