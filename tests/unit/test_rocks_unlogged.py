"""Batches that bypass the write-ahead log: what a crash leaves of them is consistent over the families."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from vecstore.storage.base import Family
from vecstore.storage.rocks import open_store

MIB = 1 << 20


def key(i: int) -> bytes:
    return b"%08d" % i


UNLOGGED = """
import sys, threading
from vecstore.storage.base import Family
from vecstore.storage.rocks import open_store
store = open_store(sys.argv[1], write_buffer_bytes=1 << 20, wal_bytes_max=64 << 20, strict=True)
store.compact_by_itself()
def ahead():
    while True:
        store.flush_ahead()
threading.Thread(target=ahead, daemon=True).start()
i = 0
while True:
    store.write([(Family.LOG, b"%08d" % i, bytes(2000))])
    store.sync()
    store.write([(Family.POINTS, b"%08d" % i, bytes(3000)), (Family.REQUESTS, b"%08d" % i, b"h")], logged=False)
    store.write([(Family.META, b"applied", b"%08d" % i)], logged=False)
    if i == 100:
        store.flush()
    print(i, flush=True)
    i += 1
"""


@pytest.mark.parametrize("last", [150, 700, 1_500])
def test_unlogged_batches_survive_a_kill_together(last: int, tmp_path: Path) -> None:
    """After SIGKILL no family is behind what the last one that is flushed says, the log least of all."""
    with subprocess.Popen(
        [sys.executable, "-c", UNLOGGED, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) >= last:
                break
        process.send_signal(signal.SIGKILL)
    store = open_store(str(tmp_path), write_buffer_bytes=4 * MIB, wal_bytes_max=64 * MIB, strict=True)
    applied = store.get(Family.META, [b"applied"])[0]
    assert applied is not None
    assert int(applied) >= 100
    wanted = [key(i) for i in range(int(applied) + 1)]
    for family in (Family.LOG, Family.POINTS, Family.REQUESTS):
        assert [k for k, _ in store.scan(family, b"", applied + b"\0")] == wanted, family
    assert store.get(Family.LOG, [key(last)]) == [bytes(2000)]
    store.close()


def test_what_is_written_to_a_store_that_is_read_stays_in_memory(tmp_path: Path) -> None:
    """Puts and removals are read back, by key and in a scan, over what the files have; the files stay as they are."""
    options = {"write_buffer_bytes": 4 * MIB, "wal_bytes_max": 64 * MIB, "strict": True}
    writer = open_store(str(tmp_path), **options)  # type: ignore[arg-type]
    writer.write([(Family.META, key(i), b"old") for i in (1, 3, 5, 7)])
    writer.flush()
    reader = open_store(str(tmp_path), **options, read_only=True)  # type: ignore[arg-type]
    new = {0: b"new", 3: b"new", 4: b"new", 5: None, 8: None, 9: b"new"}
    reader.write([(Family.META, key(i), value) for i, value in new.items()], logged=False)
    wanted = {0: b"new", 1: b"old", 3: b"new", 4: b"new", 7: b"old", 9: b"new"}
    assert reader.get(Family.META, [key(i) for i in range(10)]) == [wanted.get(i) for i in range(10)]
    assert list(reader.scan(Family.META, b"")) == [(key(i), value) for i, value in wanted.items()]
    assert list(reader.scan(Family.META, key(1), key(7))) == [(key(i), wanted[i]) for i in (1, 3, 4)]
    reader.close()
    assert list(writer.scan(Family.META, b"")) == [(key(i), b"old") for i in (1, 3, 5, 7)]
    writer.close()
