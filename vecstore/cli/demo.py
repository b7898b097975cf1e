"""`vecstore demo`: the store at work in under a minute, on a sample of real data that ships with the package.

It creates a store, imports 4,000 Debian packages, asks which are like nginx, and then does what a demo rarely does: it
starts a process that writes without pause, kills it with SIGKILL in the middle of a write, reopens the store and
compares every point that had been acknowledged with what was written, bit by bit. What it says it has checked; where a
check fails, the exit code is 1.

The writer (``python -m vecstore.cli.demo STORE``) is a real process with the store to itself. It says on its stdout
``begin N`` before each batch and ``acknowledged N LSN`` when the store has promised that batch N is durable. Both sides
make batch N from N alone, so the parent knows to the bit what must be there.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from ..api import Collection, Database
from ..errors import AlreadyExists, VecstoreError
from .files import open_source
from .ingest import import_sources
from .output import Output, duration, reporting
from .where import open_for_writing

__all__ = ["Killed", "batch_of", "demo_command", "kill_a_writer", "write_without_pause"]

SAMPLE = Path(__file__).with_name("sample.parquet")
PACKAGES, WRITER = "packages", "writer"
DIM = 384
BATCH_POINTS = 250
BATCHES_BEFORE_KILL = 100
IMPORT_BATCH_ROWS = 500
QUESTIONS: list[tuple[str, str, dict[str, Any]]] = [
    ("nginx", "nginx", {"section": "httpd"}),
    ("postgresql", "postgresql-client", {"section": "database", "installed_size": {"$lt": 500}}),
    ("ffmpeg", "ffmpeg", {"section": {"$in": ["video", "sound"]}}),
]
"""What is asked, the package that stands for it, and a filter."""


@click.command("demo")
@click.option(
    "--dir", "directory", metavar="DIR", help="Make the store here and keep it; else it is removed at the end."
)
@reporting
def demo_command(out: Output, *, directory: str | None) -> None:
    """See it work, in under a minute: create, import, search, kill -9, prove that nothing is lost."""
    if directory is not None and Path(directory).exists() and any(Path(directory).iterdir()):
        raise AlreadyExists(f"{directory} exists and is not empty", hint="give a directory that does not exist")
    where = directory or tempfile.mkdtemp(prefix="vecstore-demo-")
    try:
        demo = _Demo(out, where)
        demo.run()
    finally:
        if directory is None:
            shutil.rmtree(where, ignore_errors=True)
    kept = f"The store is kept. Try: vecstore search {directory} {PACKAGES} --like vim" if directory else ""
    out.result(
        demo.report, lambda: print(kept or "Run it with --dir DIR to keep the store and ask your own questions.")
    )
    if not demo.report["ok"]:
        raise SystemExit(1)


@dataclass(frozen=True, slots=True)
class Killed:
    """What the parent knows of the writer when it is dead.

    Attributes
    ----------
    acknowledged
        Numbers of the batches that the store had promised to keep.
    begun
        The last batch that was begun.
    lsn
        The highest LSN that was acknowledged.
    """

    acknowledged: list[int]
    begun: int
    lsn: int

    @property
    def under_way(self) -> bool:
        """Whether a batch had been begun and not acknowledged."""
        return self.begun not in self.acknowledged


class _Demo:
    """The steps, their times and what was found."""

    def __init__(self, out: Output, where: str) -> None:
        self._out, self._where = out, where
        self.report: dict[str, Any] = {"ok": False, "store": where, "steps_s": {}, "answers": []}

    def run(self) -> None:
        start_s = time.monotonic()
        self._tell("[bold]vecstore demo[/]: a store in one directory, and what it takes to trust it\n")
        with self._step("1", "create a store", f"in {self._where}"):
            db = open_for_writing(self._where, create=True)
        try:
            packages = self._create_and_import(db)
            self._ask(packages)
            digest = db.status()["collections"][PACKAGES]["digest"]
        finally:
            db.close()
        killed = self._kill_a_writer()
        checks = self._reopen_and_check(killed, digest)
        failed = [name for name, good in checks.items() if not good]
        self.report |= {"checks": checks, "ok": not failed, "seconds": round(time.monotonic() - start_s, 3)}
        if failed:
            self._tell(f"\n[bold red]FAILED[/]: {', '.join(failed)}")
        else:
            self._tell(f"\n[bold green]Nothing acknowledged was lost.[/] All of it took {self._seconds('seconds')}.")

    # -- the steps ---------------------------------------------------------------------------------------------------

    def _create_and_import(self, db: Database) -> Collection:
        source = open_source(str(SAMPLE), id_column="name")
        fields: Any = {"section": "string", "installed_size": "int64", "priority": "string"}
        with self._step(
            "2", "import", "4,000 Debian packages: what they are for as a vector of 384 numbers, section, size"
        ):
            packages = db.create_collection(PACKAGES, DIM, metric="cosine", fields=fields)
            with self._out.meter("  importing", "packages") as meter:
                done = import_sources(db, packages, [source], batch_rows_max=IMPORT_BATCH_ROWS, progress=meter)
        self.report["imported"] = done.rows
        rate = done.rows / self.report["steps_s"]["import"]
        self._tell(f"  {done.rows:,} points, {rate:,.0f} a second, every {IMPORT_BATCH_ROWS} of them synced to disk")
        return packages

    def _ask(self, packages: Collection) -> None:
        with self._step(
            "3", "search", "which packages are like these? beside each its similarity, 1.00 would be the same"
        ):
            for title, name, condition in QUESTIONS:
                self._answer(packages, title, name, None)
                self._answer(packages, title, name, condition)

    def _answer(self, packages: Collection, title: str, name: str, condition: dict[str, Any] | None) -> None:
        vector = packages.get([name], with_vector=True)[0].vector
        assert vector is not None
        start_s = time.perf_counter()
        found = packages.search(vector, 6, filter=condition, with_payload=["section", "installed_size"])
        seconds = time.perf_counter() - start_s
        hits = [hit for hit in found if hit.id != name][:5]
        answer = {"question": title, "like": name, "filter": condition, "seconds": round(seconds, 6)}
        self.report["answers"].append({**answer, "hits": [{"id": hit.id, "score": hit.score} for hit in hits]})
        asked = f", where {_words(condition)}" if condition else ""
        stands = f" (the package {name})" if name != title else ""
        names = ", ".join(f"{hit.id} [dim]{hit.score:.2f}[/]" for hit in hits)
        self._tell(f"  like [bold]{title}[/]{stands}{asked} [dim]{duration(seconds)}[/]\n    {names}")

    def _kill_a_writer(self) -> Killed:
        what = "a process writes without pause; it is killed in the middle of a write"
        with self._step("4", "kill -9", what):
            killed = kill_a_writer(self._where)
        points = len(killed.acknowledged) * BATCH_POINTS
        self.report |= {"acknowledged_points": points, "acknowledged_lsn": killed.lsn}
        self._tell(
            f"  {points:,} points in {len(killed.acknowledged)} batches were acknowledged as durable; "
            + ("one more batch was under way" if killed.under_way else "the next was not begun")
        )
        return killed

    def _reopen_and_check(self, killed: Killed, digest: str) -> dict[str, bool]:
        with self._step("5", "reopen", "the same directory, after the kill"):
            db = open_for_writing(self._where)
        with db:
            with self._step("6", "compare", "every acknowledged point with what was written, bit by bit"):
                writer = db.collection(WRITER)
                lost = [number for number in killed.acknowledged if _found(writer, number) != BATCH_POINTS]
                rest = _found(writer, killed.begun) if killed.under_way else 0
                extra = writer.count() - len(killed.acknowledged) * BATCH_POINTS - rest
            total = len(killed.acknowledged)
            self._tell(f"  {total - len(lost)} of {total} acknowledged batches are there, whole")
            if killed.under_way:
                self._tell(f"  the batch under way {_outcome(rest)}")
            with self._step("7", "verify", "chain and digests, recomputed from the bytes on disk"):
                proof = db.verify()
            status = db.status()
            digests = {name: one["digest"] for name, one in status["collections"].items()}
            recomputed = {name: one["digest"] for name, one in proof["collections"].items()}
            for name, value in recomputed.items():
                self._tell(f"  digest of {name}: [dim]{value}[/]")
        return {
            "every acknowledged point is there": bool(killed.acknowledged) and not lost,
            "the write under way is there wholly or not at all": rest in (0, BATCH_POINTS) and extra == 0,
            "the imported packages have the digest they had": digests[PACKAGES] == digest,
            "the digests recomputed from the bytes are those of the store": bool(proof["ok"]) and recomputed == digests,
            "the log reaches the last acknowledged LSN": status["lsn"] >= killed.lsn,
        }

    # -- telling -----------------------------------------------------------------------------------------------------

    @contextmanager
    def _step(self, number: str, name: str, what: str) -> Iterator[None]:
        self._tell(f"[bold]{number}  {name}[/]  {what}")
        start_s = time.monotonic()
        yield
        self.report["steps_s"][name] = round(time.monotonic() - start_s, 4)
        self._tell(f"  [green]done[/] in {duration(self.report['steps_s'][name])}")

    def _tell(self, text: str) -> None:
        from rich.console import Console

        console = Console(stderr=self._out.as_json, highlight=False, soft_wrap=True)
        console.print(text)

    def _seconds(self, key: str) -> str:
        return duration(self.report[key])


# -- the writer and its killer ---------------------------------------------------------------------------------------


def batch_of(number: int) -> tuple[list[str], npt.NDArray[np.float32], list[dict[str, Any]]]:
    """Return batch `number` of the writer: the same ids, vectors and payloads in every process."""
    vectors = np.random.default_rng(number).standard_normal((BATCH_POINTS, DIM)).astype(np.float32)
    ids = [f"{number:06d}-{i:04d}" for i in range(BATCH_POINTS)]
    return ids, vectors, [{"batch": number, "row": i} for i in range(BATCH_POINTS)]


def write_without_pause(where: str) -> None:
    """Write batch after batch until killed, and say on stdout what was begun and what was acknowledged."""
    with open_for_writing(where) as db:
        collection = db.create_collection(WRITER, DIM, metric="cosine", fields={"batch": "int64"}, exist_ok=True)
        number = 0
        while True:
            ids, vectors, payloads = batch_of(number)
            print(f"begin {number}", flush=True)
            written = collection.upsert(ids, vectors, payloads)
            print(f"acknowledged {number} {written.lsn}", flush=True)
            number += 1


def kill_a_writer(where: str) -> Killed:
    """Start a writer, kill it with SIGKILL while it writes, and return what it had been promised."""
    command = [sys.executable, "-m", "vecstore.cli.demo", where]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        acknowledged: list[int] = []
        begun, lsn = -1, 0
        killed = False
        try:
            # After the kill the pipe still holds what the writer said before it: that counts as acknowledged, too.
            for line in child.stdout:
                word, *numbers = line.split()
                if word == "begin":
                    begun = int(numbers[0])
                elif word == "acknowledged" and len(numbers) == 2:
                    acknowledged.append(int(numbers[0]))
                    lsn = int(numbers[1])
                if not killed and word == "begin" and begun >= BATCHES_BEFORE_KILL:
                    # A moment that differs from run to run: while the batch is encoded, logged, synced or applied.
                    time.sleep(random.uniform(0, 0.005))  # noqa: S311 - chance, not a secret
                    child.send_signal(signal.SIGKILL)
                    killed = True
        finally:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
    if not killed:
        raise VecstoreError(f"the writer ended by itself with exit code {child.returncode}")
    return Killed(acknowledged, begun, lsn)


def _found(collection: Collection, number: int) -> int:
    """Return how many points of a batch are there exactly as they were written."""
    ids, vectors, payloads = batch_of(number)
    rows = {each: i for i, each in enumerate(ids)}
    points = collection.get(ids, with_vector=True)
    return sum(
        point.vector is not None
        and np.array_equal(point.vector, vectors[rows[str(point.id)]])
        and point.payload == payloads[rows[str(point.id)]]
        for point in points
    )


def _outcome(points: int) -> str:
    """Say what became of the batch that was not acknowledged."""
    if points == 0:
        return "left no trace: all or nothing, and it was nothing"
    if points == BATCH_POINTS:
        return "is there as a whole: all or nothing, and it was all"
    return f"is there in part, {points} of {BATCH_POINTS}"


def _words(condition: dict[str, Any]) -> str:
    """Return a filter as words."""
    parts = []
    for name, value in condition.items():
        field = name.replace("_", " ")
        if not isinstance(value, dict):
            parts.append(f"{field} is {value}")
        elif "$lt" in value:
            parts.append(f"{field} is below {value['$lt']} KB")
        else:
            parts.append(f"{field} is {' or '.join(value['$in'])}")
    return " and ".join(parts)


if __name__ == "__main__":
    write_without_pause(sys.argv[1])
