"""What only an embedded store does: folders, reopening, locks, forks, configuration."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vecstore
from vecstore import Closed, Collection, InvalidArgument, Locked, NotFound, VecstoreError

from .base import FIELDS, PAYLOADS, VECTORS, ids_of, state

ROOT = Path(__file__).parents[2]


@pytest.fixture
def path(tmp_path: Path) -> str:
    """The path of a store that is closed: the collection "docs" with four points."""
    store = str(tmp_path / "store")
    with vecstore.open(store) as database:
        docs = database.create_collection("docs", 4, metric="l2", fields=FIELDS, metadata={"a": 1})
        docs.upsert([0, 1, 2, 3], VECTORS, PAYLOADS)
    return store


@contextmanager
def child(code: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run Python code in a process that can be spoken to, and end it with SIGKILL."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


HOLD = """
import sys, vecstore
with vecstore.open(sys.argv[1]) as database:
    database.collection("docs").upsert(50, [5, 5, 5, 5])
    print("open", flush=True)
    sys.stdin.readline()
"""


def said(process: subprocess.Popen[str]) -> str:
    """Return the next line that a child prints."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def files(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Return size and bytes of every file below a folder."""
    return {
        str(entry.relative_to(folder)): (entry.stat().st_mtime_ns, entry.read_bytes())
        for entry in sorted(folder.rglob("*"))
        if entry.is_file()
    }


# -- opening -----------------------------------------------------------------------------------------------------------


def test_reopen_gives_everything_back(path: str) -> None:
    """After close and open the state, the schema, the answers and the place in the history are the same."""
    with vecstore.open(path) as database:
        before, status = state(database), database.status()
        docs = database.collection("docs")
        docs.optimize()
        expected = [(hit.id, hit.score) for hit in docs.search([1, 1, 1, 1])]
    with vecstore.open(path) as database:
        after = database.status()
        assert state(database) == before
        assert [after[name] for name in ("lineage", "store_id", "epoch", "chain")] == [
            status[name] for name in ("lineage", "store_id", "epoch", "chain")
        ]
        docs = database.collection("docs")
        assert (docs.dim, docs.metric, docs.fields, docs.metadata) == (4, "l2", FIELDS, {"a": 1})
        assert [point.payload for point in docs.scan()] == PAYLOADS
        assert [(hit.id, hit.score) for hit in docs.search([1, 1, 1, 1])] == expected
        assert ids_of(list(docs.scan({"tags": {"$contains": "b"}}))) == [0, 1]
        assert database.verify()["ok"] is True


def test_reopen_of_many_rows(tmp_path: Path) -> None:
    """Sealed rows, deletions and str ids survive a reopen, before and after `optimize`."""
    rows = np.random.default_rng(8).standard_normal((9_000, 8)).astype(np.float32)
    store = str(tmp_path / "store")
    with vecstore.open(store) as database:
        docs = database.create_collection("docs", 8, metric="l2")
        docs.upsert([f"p{i}" for i in range(9_000)], rows)
        docs.delete(ids=[f"p{i}" for i in range(0, 9_000, 3)])
        docs.upsert(["p1"], rows[:1])
    for _ in range(2):
        with vecstore.open(store) as database:
            docs = database.collection("docs")
            assert docs.count() == 6_000
            assert ids_of(docs.search(rows[0], 1)) == ["p1"]
            assert docs.search(rows[4], 1)[0].id == "p4"
            assert docs.get(["p0", "p8999"], with_vector=True)[0].id == "p8999"
            assert database.verify()["ok"] is True
            docs.optimize()


def test_tokens_hold_across_a_reopen(path: str) -> None:
    """A token of before is honoured after."""
    with vecstore.open(path) as database:
        written = database.collection("docs").upsert(9, [1, 2, 3, 4])
    with vecstore.open(path) as database:
        assert database.collection("docs").count(after=written.token) == 5
        assert database.wait(written.token).lsn == written.lsn
        assert database.collection("docs").upsert(10, [1, 2, 3, 4]).lsn == written.lsn + 1


def test_pathlike_and_missing_parents(tmp_path: Path) -> None:
    """A store is made with its parent folders."""
    with vecstore.open(str(tmp_path / "a" / "b" / "store")) as database:
        assert database.collections() == []


def test_create_false_makes_nothing(tmp_path: Path) -> None:
    """Without `create` a store that does not exist is not found, and no file is made."""
    with pytest.raises(NotFound, match="absent"):
        vecstore.open(str(tmp_path / "absent"), create=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("read_only", [True, False])
@pytest.mark.parametrize("names", [["notes.txt"], ["CURRENT", "LOG"], ["vecstore.json"]])
def test_a_folder_that_is_no_store_is_left_untouched(tmp_path: Path, names: list[str], read_only: bool) -> None:
    """A folder with other files in it is refused by name, and nothing in it changes."""
    for name in names:
        (tmp_path / name).write_text("mine")
    before = files(tmp_path)
    with pytest.raises(VecstoreError, match="not a store|no store|not JSON"):
        vecstore.open(str(tmp_path), read_only=read_only)
    assert files(tmp_path) == before


def test_a_newer_format_is_refused_untouched(path: str) -> None:
    """A store of a newer format is refused, naming both versions, and left as it is."""
    format_file = Path(path) / "vecstore.json"
    content = json.loads(format_file.read_text())
    (name,) = [key for key, value in content.items() if isinstance(value, int)]
    format_file.write_text(json.dumps(content | {name: 99}))
    before = files(Path(path))
    with pytest.raises(InvalidArgument, match="99"):
        vecstore.open(path)
    assert files(Path(path)) == before


def test_a_path_that_is_a_file_is_refused(tmp_path: Path) -> None:
    """A file is no folder of a store."""
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InvalidArgument, match="file"):
        vecstore.open(str(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "mine"


# -- sharing and locks -------------------------------------------------------------------------------------------------


def test_open_twice_in_one_process_shares_the_engine(path: str) -> None:
    """Two opens see each other's writes at once; the store stays open until the last close."""
    first, second = vecstore.open(path), vecstore.open(path)
    try:
        first.collection("docs").upsert(9, [1, 2, 3, 4])
        assert second.collection("docs").count() == 5
        first.close()
        assert second.collection("docs").count() == 5
        with pytest.raises(Closed):
            first.collections()
        second.collection("docs").upsert(10, [1, 2, 3, 4])
    finally:
        first.close()
        second.close()
    with vecstore.open(path) as database:
        assert database.collection("docs").count() == 6


def test_open_through_a_link_shares_the_engine(path: str, tmp_path: Path) -> None:
    """Another path to the same folder is the same store."""
    (tmp_path / "link").symlink_to(path)
    with vecstore.open(path) as first, vecstore.open(str(tmp_path / "link")) as second:
        first.collection("docs").upsert(9, [1, 2, 3, 4])
        assert second.collection("docs").count() == 5


def test_handles_of_a_closed_open_are_closed(path: str) -> None:
    """A handle ends with the open that it came from, though another open lives on."""
    first = vecstore.open(path)
    with vecstore.open(path) as second:
        docs = first.collection("docs")
        first.close()
        with pytest.raises(Closed):
            docs.count()
        assert second.collection("docs").count() == 4


def test_another_process_is_locked_out(path: str) -> None:
    """Where another process has the store the error has its pid and what to do; it opens once that is gone."""
    with child(HOLD, path) as process:
        assert said(process) == "open"
        with pytest.raises(Locked, match=f"(?s){process.pid}.*read_only") as caught:
            vecstore.open(path)
        assert caught.value.details["pid"] == process.pid
    with vecstore.open(path) as database:
        assert database.collection("docs").count() == 5


def test_read_only_reads_beside_a_writer(path: str) -> None:
    """A read-only open beside another process's writer reads what was synced, and writes nothing."""
    with child(HOLD, path) as process:
        assert said(process) == "open"
        with vecstore.open(path, read_only=True) as database:
            docs = database.collection("docs")
            assert docs.count() == 5
            assert docs.search([5, 5, 5, 5], 1)[0].id == 50
            assert ids_of(list(docs.scan({"section": "web"}))) == [0, 2]
            assert docs.get(1)[0].payload == PAYLOADS[1]


def test_read_only_refuses_every_write(path: str) -> None:
    """A read-only open reads everything and refuses each write, saying why; not a byte of the folder changes."""
    before = files(Path(path))
    with vecstore.open(path, read_only=True) as database:
        docs = database.collection("docs")
        reads = state(database)
        for call in (
            lambda: docs.upsert(9, [1, 2, 3, 4]),
            lambda: docs.update(0, payloads=[{"size": 1}]),
            lambda: docs.delete(ids=0),
            lambda: docs.delete(filter={"section": "web"}),
            lambda: docs.add_field("new", "bool"),
            lambda: database.create_collection("new", 4),
            lambda: database.rename_collection("docs", "new"),
            lambda: database.drop_collection("docs"),
        ):
            with pytest.raises(VecstoreError, match="read.only") as caught:
                call()
            assert caught.value.outcome == "refused"
        assert state(database) == reads
        assert ids_of(docs.search([1, 1, 1, 1], 1)) == [3]
        assert database.verify()["ok"] is True
    assert files(Path(path)) == before


def test_read_only_of_a_missing_store(tmp_path: Path) -> None:
    """A read-only open makes no store."""
    with pytest.raises(NotFound):
        vecstore.open(str(tmp_path / "absent"), read_only=True)
    assert list(tmp_path.iterdir()) == []


# -- closing and forks -------------------------------------------------------------------------------------------------


def test_close_waits_for_calls_under_way(path: str) -> None:
    """Writes that run while the store closes either are there afterwards or were refused as closed: none is half."""
    database = vecstore.open(path)
    docs, done, refusals = database.collection("docs"), list[int](), list[Exception]()
    started = threading.Barrier(5)

    def write(worker: int) -> None:
        started.wait()
        for i in range(10_000):
            try:
                docs.upsert(1_000 + worker * 10_000 + i, [worker, i, 0, 0])
            except Closed:
                return
            except Exception as error:  # noqa: BLE001 - shown by the assertion below
                refusals.append(error)
                return
            done.append(1_000 + worker * 10_000 + i)

    threads = [threading.Thread(target=write, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    started.wait()
    while len(done) < 20:
        threads[0].join(0.001)
    database.close()
    for thread in threads:
        thread.join()
    assert refusals == []
    with vecstore.open(path) as database:
        stored = set(ids_of(list(database.collection("docs").scan(start=1_000))))
        assert set(done) <= stored
        assert len(stored) <= len(done) + 4


def test_an_open_scan_survives_close_or_says_closed(path: str) -> None:
    """A scan whose store was closed under it raises `Closed` or ends on its view: it never gives wrong points."""
    database = vecstore.open(path)
    scan = database.collection("docs").scan()
    first = next(scan)
    database.close()
    try:
        assert [first.id, *ids_of(list(scan))] == [0, 1, 2, 3]
    except Closed:
        assert first.id == 0


def _in_fork(docs: Collection) -> str:
    """Return what a fork of this process gets from a call: the name of the error's class."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)  # a deadlock in the fork ends here, as an empty answer
        answer = "nothing raised"
        try:
            docs.count()
        except Exception as error:  # noqa: BLE001 - the answer is what it was
            answer = type(error).__name__
        os.write(writing, answer.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        answer = pipe.read()
    os.waitpid(pid, 0)
    return answer


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_use_after_fork_raises(path: str) -> None:
    """In a fork every handle is closed; the parent goes on, and still has the store."""
    with vecstore.open(path) as database:
        docs = database.collection("docs")
        assert _in_fork(docs) == "Closed"
        assert docs.upsert(9, [1, 2, 3, 4]).count == 1
        assert docs.count() == 5
    with vecstore.open(path) as database:
        assert database.collection("docs").count() == 5


# -- configuration -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"checkpoint_bytes": 5}, ["checkpoint_bytes", "checkpoint_log_bytes"]),
        ({"checkpoints_retained": 0}, ["checkpoints_retained", "1"]),
        ({"checkpoint_interval_s": "soon"}, ["checkpoint_interval_s"]),
        ({"write_points_max": 1.5}, ["write_points_max"]),
    ],
    ids=["unknown", "range", "type", "fraction"],
)
def test_bad_options_are_refused(tmp_path: Path, config: dict[str, Any], words: list[str]) -> None:
    """An unknown option, or a value out of range, is refused before anything is made."""
    with pytest.raises(InvalidArgument) as caught:
        vecstore.open(str(tmp_path / "store"), config=config)
    for word in words:
        assert word in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_options_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``VECSTORE_NAME`` sets an option, and a bad value is refused by name."""
    monkeypatch.setenv("VECSTORE_CHECKPOINTS_RETAINED", "99")
    with pytest.raises(InvalidArgument, match="checkpoints_retained"):
        vecstore.open(str(tmp_path / "store"))
    with vecstore.open(str(tmp_path / "store"), config={"checkpoints_retained": 3}) as database:
        assert database.collections() == []


def test_device_names(tmp_path: Path) -> None:
    """The device is one of three names."""
    with pytest.raises(InvalidArgument, match="device"):
        vecstore.open(str(tmp_path / "store"), device="tpu")  # type: ignore[arg-type]
    with vecstore.open(str(tmp_path / "store"), device="cpu") as database:
        database.create_collection("docs", 2).upsert(1, [1, 2])


# -- the index is derived ----------------------------------------------------------------------------------------------


def test_a_store_without_its_index_files_answers_the_same(tmp_path: Path) -> None:
    """With every index file gone, or cut short, the store opens and exact answers are the same (I12)."""
    store, rows = tmp_path / "store", np.random.default_rng(9).standard_normal((9_000, 8)).astype(np.float32)
    with vecstore.open(str(store)) as database:
        docs = database.create_collection("docs", 8, metric="l2", fields={"n": "int64"})
        docs.upsert(range(9_000), rows, [{"n": i % 5} for i in range(9_000)])
        docs.delete(ids=range(0, 9_000, 7))
        docs.optimize()
        digest = database.status()["collections"]["docs"]["digest"]
        expected = [[(hit.id, hit.score) for hit in docs.search(row, 5, exact=True)] for row in rows[:10]]
    index_files = [entry for entry in (store / "index").rglob("*") if entry.is_file()]
    assert index_files
    for damage in (lambda file: os.truncate(file, file.stat().st_size // 2), os.unlink):
        for file in (store / "index").rglob("*"):
            if file.is_file():
                damage(file)
        with vecstore.open(str(store)) as database:
            docs = database.collection("docs")
            assert database.status()["collections"]["docs"]["digest"] == digest
            assert [[(hit.id, hit.score) for hit in docs.search(row, 5, exact=True)] for row in rows[:10]] == expected
            assert docs.count({"n": 3}) == sum(1 for i in range(9_000) if i % 7 and i % 5 == 3)
            docs.optimize()
            assert ids_of(docs.search(rows[1], 1)) == [1]
