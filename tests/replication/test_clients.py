"""Clients that know both endpoints, against real processes: they follow the primary, keep tokens, and settle writes."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import vecstore
from vecstore import request
from vecstore.api import Database
from vecstore.errors import NotPrimary, Unavailable, VecstoreError, WriteLost

from .stores import WAIT_S, Store, eventually, following, put


@contextlib.contextmanager
def regions(path: Path) -> Iterator[tuple[Store, Store]]:
    """Run a primary and a standby that follows it."""
    a = Store(path / "a", "--region", "east", "--slot", "east")
    with a.running():
        with a.database() as database:
            put(database, 0, 50)
        b = Store(path / "b", "--region", "west", "--standby-of", a.address, "--slot", "west")
        with b.running():
            following(a, b)
            yield a, b


def both(a: Store, b: Store, **more: object) -> Database:
    """Connect to both, whether they run or not."""
    return vecstore.connect([f"127.0.0.1:{store.port}" for store in (a, b)], timeout=WAIT_S, **more)  # type: ignore[arg-type]


def beyond(done: list[int], errors: list[VecstoreError], wanted: int) -> None:
    """Wait until a writer has done so many writes, or has failed."""
    eventually(lambda: {"done": len(done)}, lambda found: found["done"] > wanted or errors)


def test_writes_follow_a_switchover(tmp_path: Path) -> None:
    """A writer that goes on all the while sees no error, and each of its writes is there once."""
    with regions(tmp_path) as (a, b), both(a, b) as client:
        docs, done, errors = client.collection("docs"), list[int](), list[VecstoreError]()
        ending = threading.Event()

        def write() -> None:
            number = 1_000
            while not ending.is_set():
                try:
                    docs.upsert([number], np.ones((1, 4), dtype=np.float32))
                except VecstoreError as exc:
                    errors.append(exc)
                    return
                done.append(number)
                number += 1

        writer = threading.Thread(target=write)
        writer.start()
        try:
            for source, target in ((a, b), (b, a), (a, b)):
                source.wait(lambda found: found["accepts_writes"] and found["slots"])
                following(source, target)
                verdict = source.command("switchover", target=target.address)
                assert verdict.done, verdict.text
                target.wait(lambda found: found["accepts_writes"])
                beyond(done, errors, len(done) + 5)
        finally:
            ending.set()
            writer.join()
        assert not errors
        assert docs.count() == 50 + len(done)


def test_writes_follow_a_failover(tmp_path: Path) -> None:
    """The primary dies while a client waits for it: the call ends at the one that was promoted."""
    with regions(tmp_path) as (a, b), both(a, b) as client:
        docs = client.collection("docs")
        token = docs.upsert([100], np.ones((1, 4), dtype=np.float32)).token
        following(a, b)
        a.kill()
        written = list[str]()

        def write() -> None:
            written.append(docs.upsert([2_000], np.ones((1, 4), dtype=np.float32)).token)

        writer = threading.Thread(target=write)
        writer.start()
        verdict = b.command("promote")
        assert verdict.done, verdict.text
        writer.join()
        assert len(written) == 1
        assert docs.count(after=token) == 52
        assert len(docs.get([2_000], after=written[0])) == 1


def test_a_token_of_a_write_that_was_lost(tmp_path: Path) -> None:
    """The client that wrote it is told so, and not answered from before; then it goes on."""
    with regions(tmp_path) as (a, b), both(a, b) as client:
        docs = client.collection("docs")
        b.stop()
        lost = docs.upsert([1_000], np.ones((1, 4), dtype=np.float32)).token
        a.kill()
        b.start()
        verdict = b.command("promote", force=True)
        assert verdict.done, verdict.text
        with pytest.raises(WriteLost):
            docs.count()  # it remembers the token itself, and forgets it with this
        with pytest.raises(WriteLost):
            docs.count(after=lost)
        assert docs.count() == 50
        docs.upsert([1_001], np.ones((1, 4), dtype=np.float32))
        assert docs.count() == 51


def test_a_retry_on_the_other_side_takes_effect_once(tmp_path: Path) -> None:
    """A write that was done before a failover, and is made again after it with its request id, changes nothing."""
    with regions(tmp_path) as (a, b), both(a, b) as client:
        docs, name = client.collection("docs"), b"0123456789abcdef"
        with request.use(name):
            first = docs.upsert([7], np.ones((1, 4), dtype=np.float32), [{"n": 1}])
        docs.upsert([7], np.ones((1, 4), dtype=np.float32), [{"n": 2}])
        following(a, b)
        a.kill()
        assert b.command("promote").done
        with request.use(name):
            again = docs.upsert([7], np.ones((1, 4), dtype=np.float32), [{"n": 1}])
        assert again.lsn == first.lsn
        assert docs.get([7])[0].payload == {"n": 2}
        assert client.wait(name.hex(), timeout=5).lsn == first.lsn


def test_reads_from_a_standby(tmp_path: Path) -> None:
    """It answers what its client has seen, and what it was asked for, also while the primary is gone."""
    with regions(tmp_path) as (a, b), both(a, b, read_from="standby") as client:
        docs = client.collection("docs")
        for i in range(20):
            docs.upsert([100 + i], np.ones((1, 4), dtype=np.float32))
            assert docs.count() == 51 + i
        a.kill()
        assert docs.count() == 70
        with both(a, b, read_from="any") as other:
            assert other.collection("docs").count() == 70
        with pytest.raises((Unavailable, NotPrimary)):
            docs.upsert([1], np.ones((1, 4), dtype=np.float32), timeout=1.0)
