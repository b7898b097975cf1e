"""RocksDB behind the promises of `storage/base.py`: each of rocksdict's traps, on real files and processes."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from vecstore.config import MIB
from vecstore.errors import Closed, Damaged, Exhausted, Locked, NotFound, VecstoreError
from vecstore.storage import rocks
from vecstore.storage.base import Family, Stalled
from vecstore.storage.rocks import RocksStore, open_store

LOG, META, POINTS, REQUESTS = Family.LOG, Family.META, Family.POINTS, Family.REQUESTS


def opened(path: Path, *, strict: bool = True, read_only: bool = False, wal_bytes_max: int = 64 * MIB) -> RocksStore:
    return open_store(
        str(path), write_buffer_bytes=4 * MIB, wal_bytes_max=wal_bytes_max, strict=strict, read_only=read_only
    )


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RocksStore]:
    store = opened(tmp_path / "rocks")
    yield store
    store.close()


def key(i: int) -> bytes:
    return b"%08d" % i


def value(i: int, size: int = 600) -> bytes:
    return random.Random(i).randbytes(size)


def fill(store: RocksStore, family: Family, count: int, size: int = 600) -> None:
    store.write([(family, key(i), value(i, size)) for i in range(count)])


def flip(path: Path, what: bytes) -> None:
    """Flip one bit in the middle of some bytes that a file is known to hold."""
    data = bytearray(path.read_bytes())
    at = data.find(what)
    assert at >= 0, f"{path} does not hold the bytes"
    data[at + len(what) // 2] ^= 1
    path.write_bytes(data)


def holding(folder: Path, suffix: str, what: bytes) -> Path:
    return next(path for path in sorted(folder.glob(f"*{suffix}")) if what in path.read_bytes())


def test_batches_are_kept_in_order(store: RocksStore, tmp_path: Path) -> None:
    """Within a batch the later operation holds; families are apart; a reopen finds the same."""
    store.write(
        [(META, b"a", b"1"), (REQUESTS, b"a", b"2"), (META, b"a", b"3"), (META, b"b", b""), (REQUESTS, b"c", b"4")]
    )
    store.write([(REQUESTS, b"c", None), (META, b"z", None)])
    for _ in range(2):
        assert store.get(META, [b"a", b"b", b"z", b"a"]) == [b"3", b"", None, b"3"]
        assert list(store.scan(REQUESTS, b"")) == [(b"a", b"2")]
        assert store.get(LOG, []) == []
        store.close()
        store = opened(tmp_path / "rocks")
    store.close()


def test_scan_reads_the_state_at_its_creation(store: RocksStore) -> None:
    """Later writes, deletions and flushes do not change a scan that was made before."""
    fill(store, POINTS, 3_000)
    scan = store.scan(POINTS, b"")
    store.write([(POINTS, key(5), b"new"), (POINTS, key(7), None), (POINTS, key(5_000), b"new")])
    store.delete_range(POINTS, key(1_000), key(2_000))
    store.flush()
    store.compact(POINTS)
    assert list(scan) == [(key(i), value(i)) for i in range(3_000)]
    assert len(list(store.scan(POINTS, b""))) == 2_000


def test_scan_ends_before_stop_every_time(store: RocksStore) -> None:
    """RocksDB's own bounds are wrong in rocksdict; ours hold for each start and stop, also across chunks."""
    fill(store, REQUESTS, 1_500, 20)
    chooser = random.Random(3)
    for _ in range(300):
        start, stop = sorted(chooser.sample(range(1_600), 2))
        found = [k for k, _ in store.scan(REQUESTS, key(start), key(stop))]
        assert found == [key(i) for i in range(start, min(stop, 1_500))]
    assert list(store.scan(REQUESTS, key(9), key(9))) == []


def test_scan_stops_loudly_at_a_damaged_block(tmp_path: Path) -> None:
    """A damaged block raises; the pairs in front of it are right, and those behind it are not skipped in silence."""
    store = opened(tmp_path)
    fill(store, REQUESTS, 2_000, 100)
    store.flush()
    store.close()
    flip(holding(tmp_path, ".sst", value(1_234, 100)), value(1_234, 100))
    store = opened(tmp_path)
    seen: list[tuple[bytes, bytes]] = []
    with pytest.raises(Damaged) as caught:
        seen.extend(store.scan(REQUESTS, b""))
    assert caught.value.details["family"] == "requests"
    assert seen == [(key(i), value(i, 100)) for i in range(len(seen))]
    assert len(seen) <= 1_234
    store.close()


@pytest.mark.parametrize(("family", "suffix", "size"), [(REQUESTS, ".sst", 100), (POINTS, ".blob", 600)])
def test_a_get_names_the_damaged_key(tmp_path: Path, family: Family, suffix: str, size: int) -> None:
    """One damaged value among many fails the get, and the error names its key; the others can be read."""
    store = opened(tmp_path)
    fill(store, family, 500, size)
    store.flush()
    store.close()
    flip(holding(tmp_path, suffix, value(321, size)), value(321, size))
    store = opened(tmp_path)
    with pytest.raises(Damaged) as caught:
        store.get(family, [key(i) for i in range(0, 500, 107)] + [key(321), key(400)])
    assert caught.value.details == {"family": family.value, "key": key(321).hex()}
    assert store.get(family, [key(0), key(499)]) == [value(0, size), value(499, size)]
    store.close()


def test_a_flipped_bit_in_the_log_is_refused_or_cut_off(tmp_path: Path) -> None:
    """Strict recovery refuses it; the lenient one gives what was written before, and nothing from behind it."""
    store = opened(tmp_path)
    for i in range(50):
        store.write([(LOG, key(i), value(i, 2_000))])
        store.sync()
    image = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    store.close()
    copy = tmp_path / "copy"
    copy.mkdir()
    for name, data in image.items():
        (copy / name).write_bytes(data)
    flip(holding(copy, ".log", value(20, 2_000)), value(20, 2_000))
    with pytest.raises(Damaged):
        opened(copy)
    store = opened(copy, strict=False)
    assert [k for k, _ in store.scan(LOG, b"")] == [key(i) for i in range(20)]
    store.close()


def test_a_torn_tail_of_the_log_is_refused_or_cut_off(tmp_path: Path) -> None:
    """Strict recovery takes no torn tail for granted, cut or zeroed; the lenient one drops the torn write alone."""
    store = opened(tmp_path / "rocks")
    for i in range(20):
        store.write([(LOG, key(i), value(i, 2_000))])
    store.sync()
    for cut in (True, False):
        copy = tmp_path / str(cut)
        shutil.copytree(tmp_path / "rocks", copy)
        log = holding(copy, ".log", value(19, 2_000))
        data = log.read_bytes().rstrip(b"\0")
        log.write_bytes(data[:-500] + (b"" if cut else bytes(500)))
        with pytest.raises(Damaged):
            opened(copy)
        lenient = opened(copy, strict=False)
        assert [k for k, _ in lenient.scan(LOG, b"")] == [key(i) for i in range(19)]
        lenient.close()
    store.close()


def test_a_second_open_is_locked_out(store: RocksStore) -> None:
    """RocksDB's own lock is known by its words."""
    with pytest.raises(Locked):
        opened(Path(store.path))


def test_close_lets_go_though_scans_live(tmp_path: Path) -> None:
    """A half-read scan keeps neither lock nor handles; it raises, instead of ending as if there were no more."""
    store = opened(tmp_path)
    fill(store, POINTS, 3_000)
    half, fresh = store.scan(POINTS, b""), store.scan(POINTS, b"")
    next(half)
    store.close()
    store.close()
    again = opened(tmp_path)
    for scan in (half, fresh):
        with pytest.raises(Closed):
            list(scan)
    assert len(list(again.scan(POINTS, b""))) == 3_000
    again.close()
    for call in (lambda: store.get(POINTS, [b"a"]), lambda: store.write([]), store.sync, store.flush):
        with pytest.raises(Closed):
            call()


def read_until_it_ends(store: RocksStore, ready: threading.Barrier, ends: list[BaseException]) -> None:
    """Get and scan, over and over, checking the answers; say when the first round is done, and keep the error."""
    # A get so long that close comes while it runs, outside the interpreter lock.
    keys, expected = [key(i) for i in range(1_000)] * 20, [value(i) for i in range(1_000)] * 20
    rounds = 0
    try:
        while True:
            assert store.get(POINTS, keys) == expected
            assert len(list(store.scan(POINTS, key(100), key(200)))) == 100
            rounds += 1
            if rounds == 1:
                ready.wait()
    except BaseException as exc:  # noqa: BLE001  the test looks at it
        ends.append(exc)


def test_close_beside_readers(tmp_path: Path) -> None:
    """Readers in other threads get right answers until they get `Closed`, and the store opens again at once."""
    for _ in range(5):
        store = opened(tmp_path)
        fill(store, POINTS, 1_000)
        ready, ends = threading.Barrier(5), list[BaseException]()
        threads = [threading.Thread(target=read_until_it_ends, args=(store, ready, ends)) for _ in range(4)]
        for thread in threads:
            thread.start()
        ready.wait()
        store.close()
        for thread in threads:
            thread.join()
        assert [type(end) for end in ends] == [Closed] * 4


def halt_writes(store: RocksStore, halted: bool) -> None:
    """Have RocksDB stop writes as it does under too many unmerged files, or let it go on."""
    store._families[POINTS].set_options({"level0_stop_writes_trigger": "1" if halted else "36"})


def stalled(tmp_path: Path) -> RocksStore:
    store = opened(tmp_path)
    store.compact_by_itself()
    for limit in ("level0_file_num_compaction_trigger", "level0_slowdown_writes_trigger"):
        store._families[POINTS].set_options({limit: "36" if "slowdown" in limit else "30"})
    for i in range(3):
        store.write([(POINTS, key(i), b"1")])
        store.flush()
    halt_writes(store, True)
    return store


def test_a_stall_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that RocksDB refuses for too long raises, retryable, and left nothing; it succeeds later as it is."""
    monkeypatch.setattr(rocks, "STALL_WAIT_S_MAX", 0.05)
    store = stalled(tmp_path)
    batch = [(META, b"a", b"1"), (POINTS, key(100), b"2")]
    with pytest.raises(Stalled) as caught:
        store.write(batch)
    assert (caught.value.retryable, caught.value.outcome) == (True, "refused")
    assert store.get(META, [b"a"]) + store.get(POINTS, [key(100)]) == [None, None]
    halt_writes(store, False)
    store.write(batch)
    assert store.get(META, [b"a"]) + store.get(POINTS, [key(100)]) == [b"1", b"2"]
    store.close()


def test_a_write_waits_through_a_stall_and_freezes_no_one(tmp_path: Path) -> None:
    """While one thread's write waits, another runs Python code, and ends the stall; then the write is done."""
    store = stalled(tmp_path)
    writer = threading.Thread(target=store.write, args=([(META, b"a", b"1"), (POINTS, key(100), b"2")],))
    writer.start()
    assert store.get(META, [b"a"]) == [None]
    halt_writes(store, False)
    writer.join()
    assert store.get(META, [b"a"]) + store.get(POINTS, [key(100)]) == [b"1", b"2"]
    store.close()


def test_cutting_gives_back_space(store: RocksStore) -> None:
    """Removing a range frees nothing by itself; with compaction the space returns and the rest stays."""
    for i in range(400):
        store.write([(LOG, key(i), value(i, 65_536))])
    store.flush()
    before = store.disk_bytes()
    store.delete_range(LOG, key(0), key(390))
    store.flush()
    store.compact(LOG)
    after = wait_for_disk(store, before // 4)
    assert after < before // 4
    assert list(store.scan(LOG, b"")) == [(key(i), value(i, 65_536)) for i in range(390, 400)]


def wait_for_disk(store: RocksStore, goal: int, suffix: str = "") -> int:
    """RocksDB removes files in the background: look until few enough bytes are left, or a while has passed."""
    waiting = threading.Event()
    for _ in range(200):
        taken = store.disk_bytes(suffix)
        if taken < goal:
            break
        waiting.wait(0.02)
    return taken


def test_overwritten_points_are_collected(store: RocksStore) -> None:
    """Overwriting points at random, five times as many as there are, leaves less than half as much again."""
    chooser = random.Random(9)
    fill(store, POINTS, 20_000, 550)
    for _ in range(200):
        store.write([(POINTS, key(i), chooser.randbytes(550)) for i in chooser.sample(range(20_000), 500)])
    store.flush()
    store.compact(POINTS)
    raw = 20_000 * 558
    assert wait_for_disk(store, raw * 3 // 2) < raw * 3 // 2
    assert len(list(store.scan(POINTS, b""))) == 20_000


def test_compaction_ends_while_all_is_written_anew(tmp_path: Path) -> None:
    """Files that are flushed meanwhile are no reason to begin again: there are always some."""
    store = opened(tmp_path)
    batch = [(LOG, key(i), value(i)) for i in range(4_000)]
    ended, wrote = threading.Event(), threading.Event()

    def write() -> None:
        while not ended.is_set():
            store.write(batch)
            wrote.set()

    store.compact_by_itself()
    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(5):
            wrote.clear()
            assert wrote.wait(30)
            store.compact(LOG)
    finally:
        ended.set()
        writer.join()
        store.close()


def test_files_that_were_not_compacted_are_told(store: RocksStore) -> None:
    """What `compact` judges itself by: the files that flushes have left, of its family alone."""
    for _ in range(3):
        fill(store, LOG, 100)
        fill(store, META, 1)
        store.flush()
    rows = store._families[LOG]
    assert len(store._newest_files(rows)) == 3
    store.compact(LOG)
    assert not store._newest_files(rows)
    assert len(store._newest_files(store._families[META])) == 3


def test_compaction_reports_what_it_could_not_do(tmp_path: Path) -> None:
    """`compact_range` swallows the error that a damaged block gives it; `compact` does not."""
    store = opened(tmp_path)
    for _ in range(2):
        fill(store, REQUESTS, 2_000, 100)
        store.flush()
    store.close()
    for path in sorted(tmp_path.glob("*.sst")):
        if value(1_234, 100) in path.read_bytes():
            flip(path, value(1_234, 100))
    store = opened(tmp_path)
    with pytest.raises(VecstoreError):
        store.compact(REQUESTS)
    store.close()
    store = opened(tmp_path)
    assert store.get(REQUESTS, [key(0)]) == [value(0, 100)]
    store.close()


def test_logs_are_bounded(tmp_path: Path) -> None:
    """A family that is seldom written does not hold the whole write-ahead log; text logs are few after many opens."""
    for _ in range(6):
        store = opened(tmp_path, wal_bytes_max=2 * MIB)
        store.write([(META, b"rarely written", b"1")])
        for i in range(300):
            store.write([(LOG, key(i), value(i, 65_536))])
        store.sync()
        assert wait_for_disk(store, 10 * MIB, ".log") < 10 * MIB
        store.close()
    assert len(list(tmp_path.glob("LOG*"))) <= rocks.LOG_FILES_MAX + 1


def test_reading_writes_nothing_and_needs_no_lock(tmp_path: Path) -> None:
    """A read-only open beside a live writer sees what was written, and leaves each file's bytes and times alone."""
    folder = tmp_path / "rocks"
    writer = opened(folder)
    fill(writer, POINTS, 1_000)
    writer.flush()
    writer.write([(META, b"in the log", b"1")])
    before = {path.name: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.iterdir()}
    first, second = opened(folder, read_only=True), opened(folder, read_only=True)
    for reader in (first, second):
        assert reader.get(META, [b"in the log"]) == [b"1"]
        assert list(reader.scan(POINTS, b"")) == [(key(i), value(i)) for i in range(1_000)]
        with pytest.raises(VecstoreError):
            reader.write([(META, b"a", b"1")])
    writer.write([(META, b"later", b"1")])
    assert first.get(META, [b"later"]) == [None]
    first.close()
    second.close()
    after = {path.name: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.iterdir()}
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert all(name.endswith(".log") for name in changed), changed
    writer.close()


def test_reading_makes_no_folder(tmp_path: Path) -> None:
    """A read-only open of nothing says so, and makes nothing."""
    with pytest.raises(NotFound):
        opened(tmp_path / "none", read_only=True)
    assert list(tmp_path.iterdir()) == []


def test_a_torn_note_of_rocksdict_is_no_obstacle(tmp_path: Path) -> None:
    """Rocksdict rewrites a file of its own at each open, not atomically; a kill may leave it empty or cut."""
    opened(tmp_path).close()
    for torn in (b"", b'{"raw_m'):
        (tmp_path / "rocksdict-config.json").write_bytes(torn)
        store = opened(tmp_path)
        store.write([(META, b"a", b"1")])
        assert store.get(META, [b"a"]) == [b"1"]
        store.close()


WRITER = """
import sys
from vecstore.storage.base import Family
from vecstore.storage.rocks import open_store
store = open_store(sys.argv[1], write_buffer_bytes=4 << 20, wal_bytes_max=64 << 20, strict=True)
i = 0
while True:
    store.write([(Family.LOG, b"%08d" % i, bytes(5000)), (Family.REQUESTS, b"%08d" % i, b"h")])
    store.sync()
    print(i, flush=True)
    i += 1
"""


def test_what_was_synced_survives_a_kill(tmp_path: Path) -> None:
    """After SIGKILL strict recovery opens, and holds a dense prefix that reaches what was acknowledged."""
    with subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) >= 300:
                break
        process.send_signal(signal.SIGKILL)
        lines = process.stdout.read().split()
    store = opened(tmp_path)
    log = [k for k, _ in store.scan(LOG, b"")]
    assert log == [key(i) for i in range(len(log))]
    assert len(log) > (int(lines[-1]) if lines else 300)
    assert [k for k, _ in store.scan(REQUESTS, b"")] == log
    store.close()


def limit_file_bytes() -> None:
    """Run in a child before its program: no file may pass 3 MiB, and passing it is an error, not a signal."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3 * MIB, 3 * MIB))


FILLER = """
import sys
from vecstore.errors import VecstoreError
from vecstore.storage.base import Family
from vecstore.storage.rocks import open_store
store = open_store(sys.argv[1], write_buffer_bytes=64 << 20, wal_bytes_max=64 << 20, strict=True)
done = 0
try:
    while True:
        store.write([(Family.LOG, b"%08d" % done, bytes(60000))])
        store.sync()
        done += 1
except VecstoreError as exc:
    print(type(exc).__name__, exc.outcome, done, exc.details.get("limit"))
for call in (lambda: store.write([(Family.META, b"a", b"1")]), store.sync):
    try:
        call()
    except VecstoreError as exc:
        print(exc.outcome)
"""


def test_a_full_disk_is_an_unknown_outcome(tmp_path: Path) -> None:
    """The failed write and all that follow say "unknown"; what was synced before is there after a reopen."""
    run = subprocess.run(
        [sys.executable, "-c", FILLER, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=limit_file_bytes,
    )
    first, *later = run.stdout.splitlines()
    kind, outcome, done, limit = first.split()
    assert (kind, outcome, limit) == (Exhausted.__name__, "unknown", "disk")
    assert later
    assert set(later) == {"unknown"}
    store = opened(tmp_path, strict=False)
    found = [k for k, _ in store.scan(LOG, b"")]
    assert found[: int(done)] == [key(i) for i in range(int(done))]
    store.close()


FAILING_SYNC = """
#include <errno.h>
#include <unistd.h>
int fdatasync(int fd) { if (access(FLAG, F_OK) == 0) { errno = EIO; return -1; } return fsync(fd); }
"""

SYNCER = """
import sys
from vecstore.errors import VecstoreError
from vecstore.storage.base import Family
from vecstore.storage.rocks import open_store
store = open_store(sys.argv[1], write_buffer_bytes=4 << 20, wal_bytes_max=64 << 20, strict=True)
store.write([(Family.META, b"before", b"1")])
store.sync()
open(sys.argv[2], "w").close()
store.write([(Family.META, b"doubtful", b"1")])
for call in (store.sync, store.sync, lambda: store.write([(Family.META, b"after", b"1")])):
    try:
        call()
        print("done")
    except VecstoreError as exc:
        print(exc.outcome)
store.close()
"""


def test_a_failed_sync_is_an_unknown_outcome(tmp_path: Path) -> None:
    """One EIO of fdatasync surfaces, and nothing is acknowledged after it; the store opens again."""
    source, library, flag = tmp_path / "shim.c", tmp_path / "shim.so", tmp_path / "fail"
    source.write_text(FAILING_SYNC)
    subprocess.run(["gcc", "-shared", "-fPIC", f'-DFLAG="{flag}"', "-o", str(library), str(source)], check=True)
    run = subprocess.run(
        [sys.executable, "-c", SYNCER, str(tmp_path / "rocks"), str(flag)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "LD_PRELOAD": str(library)},
    )
    assert run.stdout.split() == ["unknown"] * 3
    store = opened(tmp_path / "rocks")
    assert store.get(META, [b"before"]) == [b"1"]
    store.close()


LOADER = """
import os, sys
from vecstore.storage.base import Family
from vecstore.storage.rocks import open_store

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

store = open_store(sys.argv[1], write_buffer_bytes=16 << 20, wal_bytes_max=64 << 20, strict=True)
vectors = os.urandom(512 * 64)
before = resident()
for at in range(0, 200_000, 64):
    store.write(
        [(Family.REQUESTS, b"%08d" % (at + i), bytes(32)) for i in range(64)]
        + [(Family.POINTS, b"%08d" % (at + i), vectors[i * 512 : i * 512 + 512]) for i in range(64)]
    )
    if at % 4096 == 0:
        store.sync()
loaded = resident()
store.flush()
print(loaded - before, resident() - before)
"""


@pytest.mark.alone
def test_memory_stays_small(tmp_path: Path) -> None:
    """200,000 points of 128 dimensions (100 MB) leave under 20 MB after a flush, and pass through under 60."""
    run = subprocess.run([sys.executable, "-c", LOADER, str(tmp_path)], capture_output=True, text=True, check=True)
    loaded, flushed = map(int, run.stdout.split())
    assert loaded < 60 * MIB
    assert flushed < 20 * MIB


def test_a_forked_child_is_told(store: RocksStore) -> None:
    """RocksDB's threads are not in a forked child: every call there raises, and close is harmless to the parent."""
    store.write([(META, b"a", b"1")])
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            store.get(META, [b"a"])
        except Closed:
            store.close()
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert store.get(META, [b"a"]) == [b"1"]
