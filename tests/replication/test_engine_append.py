"""Records that one store wrote, appended to another: it becomes the same, whatever happens between."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import vecstore
from tests.crash.checks import check_answers, check_digests
from vecstore.errors import Damaged, NotPrimary
from vecstore.record import Mark, Record
from vecstore.replication.store_log import StoreLog

from .pair import assert_equal, committer_of, held, make_pair, opened, ship, write_history

ROOT = Path(__file__).parents[2]
KILLS = 6


@pytest.mark.parametrize("seed", range(3))
def test_a_store_that_is_appended_to_becomes_the_same(tmp_path: Path, seed: int) -> None:
    """Every kind of record, in frames of any size, with a reopen between: digests, chain, bytes, answers are equal."""
    with make_pair(tmp_path) as (a, b):
        for part in range(3):
            write_history(a, seed, 40, 40 * part)
            ship(a, b, seed)
            assert_equal(a, b, seed)
        b.close()
        with contextlib.closing(opened(tmp_path / "b")) as again:
            assert_equal(a, again, seed)
            check_digests(again)
            committer_of(again.engine).fence(held)
            write_history(a, seed, 20, 120)
            ship(a, again, seed)
            assert_equal(a, again, seed)
            check_answers(again, seed)


def test_it_follows_while_the_other_writes(tmp_path: Path) -> None:
    """Shipping live, with readers at the standby: each token of the writer is readable there, soon, and never stale."""
    with make_pair(tmp_path) as (a, b):
        docs = a.create_collection("docs", 8)
        ship(a, b)
        done = threading.Event()
        wrong: list[str] = []

        def follow() -> None:
            while not done.is_set():
                ship(a, b)
            ship(a, b)

        def read(token: str, id: int, value: float) -> None:
            (point,) = b.collection("docs").get([id], with_vector=True, after=token, timeout=30)
            if point.vector is None or point.vector[0] < value:
                wrong.append(f"{id}: {point.vector} < {value}")

        follower = threading.Thread(target=follow)
        follower.start()
        for number in range(1, 60):
            ids = list(range(number % 7, 300, 7))
            written = docs.upsert(ids, np.full((len(ids), 8), number, np.float32))
            read(written.token, ids[0], number)
        done.set()
        follower.join()
        assert not wrong
        assert_equal(a, b)


def test_writes_are_refused_meanwhile(tmp_path: Path) -> None:
    """A held store takes no write of any kind, names the primary, and goes on taking records."""
    with make_pair(tmp_path) as (a, b):
        a.create_collection("docs", 4, fields={"a": "int64"}).upsert([1], np.ones((1, 4)))
        ship(a, b)
        docs = b.collection("docs")
        calls: list[Callable[[], object]] = [
            lambda: docs.upsert([2], np.ones((1, 4))),
            lambda: docs.update([1], payloads=[{"a": 1}]),
            lambda: docs.delete(ids=[1]),
            lambda: docs.delete(filter={"a": 1}),
            lambda: docs.add_field("b", "int64"),
            lambda: docs.upsert([], np.empty((0, 4))),
            lambda: b.create_collection("more", 4),
            lambda: b.drop_collection("docs"),
            lambda: b.rename_collection("docs", "papers"),
        ]
        for call in calls:
            with pytest.raises(NotPrimary) as caught:
                call()
            assert (caught.value.outcome, caught.value.primary) == ("refused", "elsewhere:7601")
        a.collection("docs").upsert([2], np.ones((1, 4)))
        ship(a, b)
        assert_equal(a, b)


def test_a_record_that_does_not_fit_changes_nothing(tmp_path: Path) -> None:
    """A gap, a broken chain, another digest: refused as `Damaged`; the right one fits then."""
    with make_pair(tmp_path) as (a, b):
        write_history(a, 5, 30)
        records = list(StoreLog(lambda: a.engine).read(1, a.engine.durable_lsn, 1 << 30))
        committer = committer_of(b.engine)
        at = next(i for i, record in enumerate(records) if i > 6 and record.header.count)
        mark = records[at].mark
        bodies = (bytes(len(records[at].body) - 1) + b"\1",)
        wrong = [
            records[at + 1],
            replace(records[at], mark=Mark(bytes(16), mark.digest, mark.points)),
            replace(records[at], mark=Mark(mark.chain, mark.digest ^ 1, mark.points)),
            replace(records[at], mark=Mark(mark.chain, mark.digest, mark.points + 1)),
            replace(records[at], parts=bodies),
        ]
        committer.append(records[: at - 3])
        for record in wrong:
            before = b.status()
            with pytest.raises(Damaged):
                committer.append([record])
            after = b.status()
            assert [before[k] for k in ("lsn", "chain")] == [after[k] for k in ("lsn", "chain")]
        with pytest.raises(Damaged):
            committer.append([*records[at - 3 : at], wrong[2]])
        assert committer.broken is None
        committer.append(records[committer.tip.lsn - 1 :])
        assert_equal(a, b)


def test_a_request_id_is_known_where_its_record_was_shipped(tmp_path: Path) -> None:
    """A retry at the promoted store is answered with the first attempt's LSN and changes nothing."""
    with make_pair(tmp_path) as (a, b):
        docs = a.create_collection("docs", 4)
        with vecstore.request.use(b"r" * 16):
            first = docs.upsert([1], np.ones((1, 4)))
        docs.upsert([1], np.full((1, 4), 2.0))
        ship(a, b)
        committer_of(b.engine).open_writes()
        with vecstore.request.use(b"r" * 16):
            again = b.collection("docs").upsert([1], np.ones((1, 4)))
        assert again.lsn == first.lsn
        (point,) = b.collection("docs").get([1], with_vector=True)
        assert point.vector is not None and point.vector[0] == 2.0


def test_records_that_were_decoded_ahead(tmp_path: Path) -> None:
    """By another thread, twice, never appended, or with another body under the same mark: only what fits is taken."""
    with make_pair(tmp_path) as (a, b):
        write_history(a, 6, 40)
        records = list(StoreLog(lambda: a.engine).read(1, a.engine.durable_lsn, 1 << 30))
        committer = committer_of(b.engine)
        reader = threading.Thread(target=committer.decode_ahead, args=(records + records,))
        reader.start()
        reader.join()
        at = next(i for i, record in enumerate(records) if record.header.count)
        false = replace(records[at], parts=(bytes(len(records[at].body)),))
        committer.decode_ahead([false, replace(false, mark=records[0].mark)])
        committer.append(records[:at])
        with pytest.raises(Damaged):
            committer.append([false])
        committer.append(records[at:])
        assert_equal(a, b)


def test_digests_on_trust(tmp_path: Path) -> None:
    """Where points are newer than records, marks are believed, and the digest is right once all is applied."""
    with make_pair(tmp_path) as (a, b):
        write_history(a, 9, 60)
        ship(a, b, trust=True)
        assert_equal(a, b)


CHILD = """
import sys
from pathlib import Path
from tests.replication.pair import committer_of, held, opened
from vecstore.record import Record

database = opened(Path(sys.argv[1]))
committer = committer_of(database.engine)
committer.fence(held)
data, records = Path(sys.argv[2]).read_bytes(), []
while data:
    size = int.from_bytes(data[:4], "little")
    records.append(Record.decode(data[4 : 4 + size]))
    data = data[4 + size :]
step = int(sys.argv[3])
while committer.tip.lsn < records[-1].lsn:
    at = committer.tip.lsn - records[0].lsn + 1
    committer.append(records[at : at + step])
    print(committer.durable_lsn, flush=True)
print("end", flush=True)
sys.stdin.read()
"""


def append_until_killed(store: Path, records: Path, step: int, acks: int) -> int:
    """Append records in a process that is killed after so many acknowledgements; return the last durable LSN."""
    command = [sys.executable, "-c", CHILD, str(store), str(records), str(step)]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ)
    assert process.stdout is not None and process.stdin is not None
    reached = 0
    with process.stdin, process.stdout:
        for number, line in enumerate(process.stdout):
            if line == b"end\n":
                break
            reached = int(line)
            if number == acks:
                break
        process.kill()
        process.wait()
    return reached


def test_kill_while_it_appends(tmp_path: Path, record_file: tuple[vecstore.Database, Path]) -> None:
    """After SIGKILL at any moment the store holds a prefix with all that it called durable, and goes on."""
    a, file = record_file
    place = tmp_path / "b"
    for kill in range(KILLS):
        reached = append_until_killed(place, file, 1 + 3 * kill, 4)
        with contextlib.closing(opened(place)) as b:
            assert b.status()["lsn"] >= reached
            check_digests(b)
    append_until_killed(place, file, 50, 1_000)
    with contextlib.closing(opened(place)) as b:
        assert_equal(a, b)  # type: ignore[arg-type]


@pytest.fixture
def record_file(tmp_path: Path) -> object:
    """A store with a history, and its records in a file; ``b`` beside it is the empty store to append to."""
    with make_pair(tmp_path) as (a, b):
        b.close()
        write_history(a, 11, 90)
        records: list[Record] = list(StoreLog(lambda: a.engine).read(1, a.engine.durable_lsn, 1 << 30))
        file = tmp_path / "records"
        pieces = [record.encode() for record in records]
        file.write_bytes(b"".join(len(piece).to_bytes(4, "little") + piece for piece in pieces))
        yield a, file
