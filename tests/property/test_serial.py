"""Writes of many threads are one history: done again one by one in the order of their LSNs, they give the same.

The committer takes waiting calls in groups, and resolves updates and deletes against records of the same group that no
view shows yet. A change that was resolved against an older state shows here as a count or a digest that the serial
history does not have.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vecstore
from tests.support.oracle import OracleCollection
from vecstore import Collection, Written

DIM, THREADS, CALLS, IDS = 3, 8, 60, 12
FIELDS: dict[str, Any] = {"n": "int64", "by": "string"}


@dataclass(frozen=True)
class Call:
    """One write: the method's name, and its arguments."""

    name: str
    ids: tuple[int, ...] = ()
    vectors: Any = None
    payloads: tuple[dict[str, Any], ...] = ()
    condition: Any = None


def drawn(random: np.random.Generator, worker: int, number: int) -> Call:
    """Draw a call over few ids, so that calls of one group meet each other."""
    ids = tuple(random.choice(IDS, random.integers(1, 4), replace=False).tolist())
    vectors = random.integers(1, 9, (len(ids), DIM)).astype(np.float32)
    payloads = tuple({"n": int(random.integers(0, 4)), "by": f"{worker}-{number}"} for _ in ids)
    match random.integers(0, 6):
        case 0 | 1:
            return Call("upsert", ids, vectors, payloads)
        case 2:
            return Call("update", ids, None, tuple({f"key{worker}": number} | one for one in payloads))
        case 3:
            return Call("update", ids, vectors, ({"n": None},) * len(ids))
        case 4:
            return Call("delete", ids)
        case _:
            return Call("delete_where", condition={"n": int(random.integers(0, 4))})


def done(docs: Collection, call: Call, ack: Any) -> Written:
    """Make a call of the store."""
    if call.name == "upsert":
        return docs.upsert(call.ids, call.vectors, call.payloads, ack=ack)
    if call.name == "update":
        return docs.update(call.ids, vectors=call.vectors, payloads=call.payloads, ack=ack)
    if call.name == "delete":
        return docs.delete(ids=call.ids, ack=ack)
    return docs.delete(filter=call.condition, ack=ack)


def replayed(model: OracleCollection, call: Call) -> int:
    """Make a call of the oracle; return its count."""
    if call.name == "upsert":
        model.upsert(call.ids, call.vectors, call.payloads)
        return len(call.ids)
    if call.name == "update":
        return model.update(call.ids, call.vectors, call.payloads)
    return model.delete(call.ids) if call.name == "delete" else model.delete_where(call.condition)


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("round", range(4))
def test_concurrent_writes_are_a_serial_history(tmp_path: Path, shards: int, round: int, seed: int) -> None:
    """Counts, digest and points are those of the same calls made one by one in the order of their LSNs."""
    history: list[tuple[Written, Call]] = []
    with vecstore.open(str(tmp_path / "store"), config={"group_records_max": 16}) as database:
        docs = database.create_collection("docs", DIM, metric="l2", fields=FIELDS, shards=shards)
        first = database.status()["lsn"] + 1
        ready = threading.Barrier(THREADS)

        def write(worker: int) -> None:
            random = np.random.default_rng((seed, round, worker))
            ready.wait()
            for number in range(CALLS):
                call = drawn(random, worker, number)
                history.append((done(docs, call, "memory" if number % 5 == 0 else "durable"), call))

        threads = [threading.Thread(target=write, args=(worker,)) for worker in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(history) == THREADS * CALLS, "a call failed; its thread's traceback is above"
        records = sorted(((written, call) for written, call in history if written.count), key=lambda one: one[0].lsn)
        status = database.status()
        assert [written.lsn for written, _ in records] == list(range(first, status["lsn"] + 1))
        model = OracleCollection("docs", DIM, "l2", FIELDS)
        for written, call in records:
            assert replayed(model, call) == written.count, f"count of {call} at LSN {written.lsn}"
        assert [(point.id, point.payload) for point in docs.scan()] == [(id, load) for id, load, _ in model.scan()]
        assert int(status["collections"]["docs"]["digest"], 16) == model.digest()
        assert status["collections"]["docs"]["count"] == docs.count() == len(model.points)
        assert database.verify()["ok"] is True


def test_merges_of_many_threads_into_one_point_are_all_there(tmp_path: Path) -> None:
    """Each thread merges keys of its own into one point: none is lost to another's merge."""
    with vecstore.open(str(tmp_path / "store")) as database:
        docs = database.create_collection("docs", 2)
        docs.upsert(1, [1, 2])

        def merge(worker: int) -> None:
            for number in range(25):
                docs.update(1, payloads=[{f"{worker}-{number}": number}])

        threads = [threading.Thread(target=merge, args=(worker,)) for worker in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        expected = {f"{worker}-{number}": number for worker in range(THREADS) for number in range(25)}
        assert docs.get(1)[0].payload == expected


def test_a_delete_by_filter_keeps_its_meaning_while_a_field_widens(tmp_path: Path) -> None:
    """A filter checked while a field was int64 never removes a float that came before the delete and does not match."""
    with vecstore.open(str(tmp_path / "store")) as database:
        for round in range(40):
            docs = database.create_collection(f"docs-{round}", 2, fields="infer")
            docs.upsert([1, 2], [[1, 1], [2, 2]], [{"n": 1}, {"n": 2}])
            removed, ready, widened = list[int](), threading.Barrier(5), threading.Event()

            def remove(
                docs: Collection = docs,
                removed: list[int] = removed,
                ready: threading.Barrier = ready,
                widened: threading.Event = widened,
            ) -> None:
                ready.wait()
                while not widened.is_set():
                    removed.append(docs.delete(filter={"n": {"$lt": 2.5}}).count)

            threads = [threading.Thread(target=remove) for _ in range(4)]
            for thread in threads:
                thread.start()
            ready.wait()
            docs.upsert(3, [3, 3], [{"n": 2.7}])
            widened.set()
            for thread in threads:
                thread.join()
            assert [point.id for point in docs.scan()] == [3], f"round {round}"
            assert sum(removed) == 2
