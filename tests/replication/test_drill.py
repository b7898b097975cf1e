"""Drills of real standbys, as processes: what they find, that limits decide, and that production is left as it is."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import vecstore
from tests.support.serve import ROOT, Served, process
from vecstore.client.operator import Operator
from vecstore.engine.database import EmbeddedDatabase
from vecstore.replication.drill import Plan
from vecstore.server.drill import Drills

DIM = 16
COUNT = 6_000
DRILL_S_MAX = 120.0


class Pair(NamedTuple):
    """A primary and its standby, each a process, and what they are reached by."""

    primary: Served
    standby: Served
    east: vecstore.Database
    west: vecstore.Database
    folder: Path


@pytest.fixture(name="pair")
def _pair(tmp_path: Path) -> Iterator[Pair]:
    """A primary with points, some of them in sealed segments, and a standby that has all of it."""
    with contextlib.ExitStack() as stack:
        primary = stack.enter_context(process(tmp_path / "east", "--region", "east"))
        east = stack.enter_context(vecstore.connect(primary.grpc, timeout=30))
        docs = east.create_collection("docs", DIM, fields={"n": "int64"})
        rows = np.random.default_rng(1).standard_normal((COUNT, DIM)).astype(np.float32)
        for start in range(0, COUNT, 1_000):
            ids = range(start, start + 1_000)
            written = docs.upsert(ids, rows[start : start + 1_000], [{"n": i % 7} for i in ids])
        flags = ("--region", "west", "--standby-of", primary.grpc, "--slot", "west")
        standby = stack.enter_context(process(tmp_path / "west", *flags))
        west = stack.enter_context(vecstore.connect(standby.grpc, timeout=30, read_from="any"))
        caught_up(west, written)
        yield Pair(primary, standby, east, west, tmp_path)


def caught_up(west: vecstore.Database, written: vecstore.Written) -> None:
    """Wait until the standby has a write."""
    west.collection("docs").count(after=written, timeout=30)


def drill(where: str | Path, *arguments: str) -> tuple[int, dict[str, Any], str]:
    """Run the command; return exit code, what it printed as JSON, and its messages."""
    command = [sys.executable, "-m", "vecstore.cli.main", "drill", str(where), *arguments, "--json"]
    variables = {name: value for name, value in os.environ.items() if not name.startswith("VECSTORE_")}
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=variables, timeout=DRILL_S_MAX, check=False
    )
    return done.returncode, json.loads(done.stdout), done.stderr


def standing(address: str) -> dict[str, Any]:
    """Return what must not change by a drill: history, place, slots, peers, alarms."""
    with Operator(address) as operator:
        found = operator.describe()
    parts = ("store_id", "lineage", "role", "epoch", "epochs", "lsn", "durable_lsn", "alarms")
    peers = {*found["peers"]} - {found["store_id"]}
    slots = [(slot["name"], slot["store_id"], slot["lsn"], slot["is_lost"]) for slot in found["slots"]]
    return {**{part: found[part] for part in parts}, "peers": peers, "slots": slots}


def queries(folder: Path) -> str:
    """Write a file of queries, one of them with a filter."""
    rng = np.random.default_rng(2)
    lines = [{"collection": "docs", "vector": rng.standard_normal(DIM).tolist(), "k": 10} for _ in range(9)]
    lines.append({"collection": "docs", "vector": rng.standard_normal(DIM).tolist(), "k": 5, "filter": {"n": 3}})
    file = folder / "queries.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    return str(file)


def test_a_drill_finds_the_same_and_changes_nothing(pair: Pair) -> None:
    """Digest and answers are the primary's, RPO is nothing, and neither store has moved, nor knows of the clone."""
    chains = [database.status()["chain"] for database in (pair.east, pair.west)]
    before = [standing(served.grpc) for served in (pair.primary, pair.standby)]
    code, report, said = drill(pair.standby.grpc, "--queries", queries(pair.folder))
    assert code == 0, (report, said)
    assert report["passed"]
    assert report["problems"] == []
    assert (report["compared_digests"], report["compared_answers"], report["queries"]) == (1, 10, 10)
    assert report["rpo"] == {"records": 0, "bytes": 0, "seconds": 0.0}
    assert [step["name"] for step in report["steps"]] == [
        "clone",
        "verify",
        "start",
        "promote",
        "first query",
        "first write",
        "other queries",
    ]
    assert 0 < report["rto_s"] < 30
    assert [standing(served.grpc) for served in (pair.primary, pair.standby)] == before
    assert [database.status()["chain"] for database in (pair.east, pair.west)] == chains
    assert not (pair.folder / "west" / "drill").exists()
    caught_up(pair.west, pair.east.collection("docs").upsert([1], np.ones((1, DIM)), [{"n": 1}]))


def test_a_drill_is_remembered_as_metrics(pair: Pair) -> None:
    """What it found is exported by the standby, also after a restart of it."""
    code, report, _ = drill(pair.standby.grpc)
    assert (code, report["queries"], report["compared_answers"]) == (0, 5, 5)
    code, failed, said = drill(pair.standby.grpc, "--rto-max-s", "0")
    assert code == 1
    assert "RTO" in failed["problems"][0]
    assert "did not pass" in said
    metric = pair.standby.metric
    assert metric("vecstore_drills_total", result="passed") == metric("vecstore_drills_total", result="failed") == 1
    assert metric("vecstore_drill_passed") == 0
    assert metric("vecstore_drill_rto_seconds") == pytest.approx(failed["rto_s"])
    assert pair.standby.end() == 0
    with process(pair.folder / "west") as again:
        assert again.metric("vecstore_drill_rto_seconds") == pytest.approx(failed["rto_s"])


def test_a_drill_under_writes_says_what_it_could_not_compare(pair: Pair) -> None:
    """Beside writes and searches it passes; searches of the standby go on, and no write fails."""
    stop, took_s, errors = threading.Event(), [], []

    def write() -> None:
        docs = pair.east.collection("docs")
        for number in itertools.count(COUNT):
            if stop.is_set():
                return
            docs.upsert([number], np.full((1, DIM), 1.0 + number), [{"n": number % 7}])

    def search() -> None:
        docs = pair.west.collection("docs")
        while not stop.is_set():
            start_s = time.perf_counter()
            try:
                docs.search(np.ones(DIM), 10)
            except vecstore.VecstoreError as exc:
                errors.append(exc)
            took_s.append(time.perf_counter() - start_s)

    threads = [threading.Thread(target=target) for target in (write, search)]
    for thread in threads:
        thread.start()
    try:
        code, report, said = drill(pair.standby.grpc, "--queries", queries(pair.folder), "--rpo-max-s", "30")
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert code == 0, (report, said)
    assert errors == []
    assert report["notes"] or report["compared_digests"] == 1
    print(f"search p99 beside a drill: {1e3 * np.quantile(took_s, 0.99):.1f} ms of {len(took_s)}")


def test_a_stopped_standby_is_drilled_by_its_directory(pair: Pair) -> None:
    """Its start counts into RTO; the primary is asked where it is named, and afterwards it follows again."""
    assert pair.standby.end() == 0
    code, report, said = drill(pair.folder / "west", "--primary", pair.primary.grpc)
    assert code == 0, (report, said)
    assert (report["compared_digests"], report["compared_answers"]) == (1, 5)
    started = next(step["seconds"] for step in report["steps"] if step["name"] == "start")
    assert report["rto_s"] > started
    written = pair.east.collection("docs").upsert([7], np.ones((1, DIM)), [{"n": 1}])
    with (
        process(pair.folder / "west", "--region", "west", "--standby-of", pair.primary.grpc, "--slot", "west") as again,
        vecstore.connect(again.grpc, timeout=30, read_from="any") as west,
    ):
        caught_up(west, written)


def test_a_drill_goes_on_without_the_primary(pair: Pair) -> None:
    """With the primary gone the failover is rehearsed all the same, and nothing is said to be compared."""
    pair.primary.process.kill()
    pair.primary.process.wait()
    code, report, said = drill(pair.standby.grpc)
    assert code == 0, (report, said)
    assert report["compared_digests"] == report["compared_answers"] == 0
    assert "not compared" in report["notes"][0]
    assert report["rpo"]["seconds"] > 0


def running_on(folder: Path) -> list[int]:
    """Return the processes whose command line names a folder."""
    found = []
    for one in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.fsencode(folder) in (one / "cmdline").read_bytes():
                found.append(int(one.name))
    return found


def until(condition: Callable[[], object]) -> None:
    """Wait until something holds."""
    waiting = threading.Event()
    for _ in range(int(DRILL_S_MAX * 20)):
        if condition():
            return
        waiting.wait(0.05)
    raise AssertionError(condition)


def test_a_drill_ends_with_the_server_that_runs_it(pair: Pair) -> None:
    """After a kill -9 in the middle no process of the clone lives, and the next start removes what is left."""
    folder = pair.folder / "west" / "drill"
    with Operator(pair.standby.grpc) as operator:
        thread = threading.Thread(target=suppressed, args=(operator,))
        thread.start()
        until(lambda: running_on(folder))
        pair.standby.process.kill()
        pair.standby.process.wait()
        thread.join()
    until(lambda: not running_on(folder))
    assert folder.exists()
    with process(pair.folder / "west", "--region", "west", "--standby-of", pair.primary.grpc, "--slot", "west"):
        assert not folder.exists()


def suppressed(operator: Operator) -> None:
    """Ask for a drill whose answer will not come."""
    with contextlib.suppress(vecstore.VecstoreError):
        operator.command("drill", DRILL_S_MAX)


def test_a_clone_keeps_within_the_stores_memory(tmp_path: Path) -> None:
    """Where a clone does not fit beside its store the drill is refused, before anything is made."""
    database = vecstore.open(str(tmp_path / "store"), config={"memory_bytes_max": 128 << 20})
    with contextlib.closing(database):
        assert isinstance(database, EmbeddedDatabase)
        drills = Drills(lambda: database.engine, lambda: {"role": "standby"})
        with pytest.raises(vecstore.Exhausted, match="memory_bytes_max") as caught:
            drills.run(Plan())
        assert caught.value.details["limit"] == "memory"
        assert drills.history() == []
        assert not (tmp_path / "store" / "drill").exists()


def test_a_primary_is_not_drilled(pair: Pair) -> None:
    """A drill is of a standby."""
    code, answer, _ = drill(pair.primary.grpc)
    assert code == 1
    assert "primary" in answer["error"]["message"]
