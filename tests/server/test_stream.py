"""Streams: upserts read ahead and in order, scans as fast as they are taken, and what is left when a client goes."""

from __future__ import annotations

import gc
import json
import os
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from tests.support.server import Wire
from vecstore import Collection, Database, InvalidArgument, VecstoreError
from vecstore.clock import SystemClock
from vecstore.server import stream
from vecstore.server.directory import Directory
from vecstore.wire import codec, status
from vecstore.wire.v1 import store_pb2 as pb

from .requests import ALL, upsert

DIM = 64


@pytest.fixture
def docs(database: Database) -> Collection:
    """An empty collection with a field."""
    return database.create_collection("docs", DIM, metric="l2", fields={"a": "int64"})


class Alone:
    """The context of a call that no network carried."""

    def time_remaining(self) -> float | None:
        """Return None: there is no deadline."""
        return None


def record(docs: Collection, number: int, size: int = 10, **write: Any) -> pb.UpsertRequest:
    """Return the request of one record: ids of its own, payloads that tell them."""
    ids = list(range(number * size, (number + 1) * size))
    vectors = np.arange(size * DIM, dtype=np.float32).reshape(size, DIM) + number
    return upsert(docs, ids, vectors, [{"a": id} for id in ids], **write)


def waits_until(happened: Callable[[], bool]) -> bool:
    """Look again and again for a while, for what only the state of the interpreter shows."""
    never = threading.Event()
    return any(happened() or never.wait(0.02) for _ in range(500))


def test_records_of_a_stream_are_written_in_order(database: Database, wire: Wire, docs: Collection) -> None:
    """One answer for each record, in the same order, with its own LSN; all points are there."""
    before = database.status()["lsn"]
    written = list(wire("UpsertStream", (record(docs, i) for i in range(20))))
    assert [one.lsn for one in written] == list(range(before + 1, before + 21))
    assert [one.count for one in written] == [10] * 20
    assert database.wait(written[-1].token).lsn == written[-1].lsn
    assert [point.id for point in docs.scan()] == list(range(200))
    assert all(point.payload == {"a": point.id} for point in docs.scan())


def test_the_last_of_two_records_with_one_id_counts(wire: Wire, docs: Collection) -> None:
    """Reading ahead does not change the order."""
    requests = [upsert(docs, [1], np.full((1, DIM), i, np.float32), [{"a": i}]) for i in range(30)]
    assert len(list(wire("UpsertStream", iter(requests)))) == 30
    assert docs.get(1)[0].payload == {"a": 29}


@pytest.mark.parametrize(
    "bad",
    [
        lambda docs: upsert(docs, [99], np.ones((1, DIM - 1)), [{}]),
        lambda docs: upsert(docs, [99], np.ones((1, DIM)), [{"a": "text"}]),
        lambda docs: upsert(docs, [99], np.ones((1, DIM)), [b"{"]),
        lambda docs: pb.UpsertRequest(collection=docs.number, body=b"short"),
        lambda docs: pb.UpsertRequest(collection=5, body=upsert(docs, [99], np.ones((1, DIM)), [{}]).body),
        lambda docs: upsert(docs, [99], np.ones((1, DIM)), [{}], not_after_us=1),
    ],
    ids=["dimension", "field", "json", "body", "collection", "late"],
)
def test_the_first_record_that_fails_ends_the_stream(
    database: Database, wire: Wire, docs: Collection, bad: Callable[[Collection], pb.UpsertRequest]
) -> None:
    """Those before it stay and were answered, those behind it are not written, and the error counts the points."""
    requests = [record(docs, 0), record(docs, 1), bad(docs), record(docs, 2), record(docs, 3)]
    replies = wire("UpsertStream", iter(requests))
    answered = [next(replies).count, next(replies).count]
    with pytest.raises(grpc.RpcError) as caught:
        next(replies)
    error = status.error_from(caught.value)
    assert answered == [10, 10]
    assert (error.details["committed"], error.outcome) == (20, "refused")
    assert docs.count() == 20


def test_a_message_that_is_none_ends_the_stream(wire: Wire, docs: Collection) -> None:
    """Bytes that are no request are refused like any other bad record."""
    good = record(docs, 0).SerializeToString()
    replies = wire("UpsertStream", iter([good, b"\xff\xff\xff", good]), raw=True)
    assert next(replies).count == 10
    with pytest.raises(grpc.RpcError) as caught:
        next(replies)
    assert isinstance(status.error_from(caught.value), InvalidArgument)
    assert docs.count() == 10


def test_a_stream_that_is_sent_again_is_written_once(database: Database, wire: Wire, docs: Collection) -> None:
    """Each record has its request id: what a first stream wrote, a second is told."""
    requests = [record(docs, i, request_id=os.urandom(16)) for i in range(5)]
    first = list(wire("UpsertStream", iter(requests[:3])))
    docs.delete(ids=[0])
    again = list(wire("UpsertStream", iter(requests)))
    assert again[:3] == first
    assert docs.count() == 49


def test_a_few_records_are_read_ahead(database: Database, docs: Collection) -> None:
    """While the first waits to be taken, no more are read than the bound allows; none are read after the end."""
    read: list[int] = []
    enough = threading.Event()

    def asked() -> Iterator[pb.UpsertRequest]:
        for i in range(100):
            read.append(i)
            if len(read) == stream.AHEAD_RECORDS + 2:
                enough.set()
            yield record(docs, i)

    context: Any = Alone()
    replies = stream.upserts(database, Directory(database), asked(), context, SystemClock())
    assert next(replies).count == 10
    # One was taken, as many as the bound allows wait, and one more is in the reader's hand.
    assert enough.wait(30)
    replies.close()  # type: ignore[attr-defined]
    for thread in threading.enumerate():
        if thread.name == "vecstore-stream":
            thread.join(30)
    assert len(read) <= stream.AHEAD_RECORDS + 3
    assert docs.count() == 10


def test_an_error_of_the_requests_themselves_is_not_an_end(database: Database, docs: Collection) -> None:
    """What breaks while requests are read ends the stream as a failure, never as if all had been sent."""

    def asked() -> Iterator[pb.UpsertRequest]:
        yield record(docs, 0)
        raise MemoryError("no room for the next")

    context: Any = Alone()
    replies = stream.upserts(database, Directory(database), asked(), context, SystemClock())
    assert next(replies).count == 10
    with pytest.raises(MemoryError):
        next(replies)


def test_a_client_that_leaves_ends_the_upserts(database: Database, wire: Wire, docs: Collection) -> None:
    """Cancelled in the middle: what was answered stays, and no thread is left waiting."""
    hold = threading.Event()

    def requests() -> Iterator[pb.UpsertRequest]:
        for i in range(3):
            yield record(docs, i)
        hold.wait(30)

    replies = wire("UpsertStream", requests())
    assert sum(next(replies).count for _ in range(3)) == 30
    replies.cancel()
    hold.set()
    assert waits_until(lambda: not any(thread.name == "vecstore-stream" for thread in threading.enumerate()))
    assert docs.count() == 30


def scanned(replies: Any) -> list[tuple[int, Any, list[float]]]:
    """Return the points of a scan's messages."""
    points = []
    for reply in replies:
        ids = codec.unpack_ids(reply.points.ids)
        payloads = [json.loads(one) for one in codec.unpack_blobs(reply.points.payloads)]
        points += list(zip(ids, payloads, codec.unpack_floats(reply.points.vectors).tolist(), strict=True))
    return points


def test_a_scan_comes_in_messages_of_a_size(wire: Wire, docs: Collection) -> None:
    """All points in order, whole; messages grow to about the size that they should have."""
    for i in range(5):
        wire("Upsert", record(docs, i, 1_000))
    asked = pb.ScanRequest(collection=docs.number, payload=ALL, with_vector=True)
    replies = list(wire("Scan", asked))
    sizes = [reply.ByteSize() for reply in replies]
    assert max(sizes) < 2 * stream.PIECE_BYTES
    assert min(sizes[2:-1]) > stream.PIECE_BYTES // 2
    expected = [(p.id, p.payload, p.vector.tolist()) for p in docs.scan(with_vector=True) if p.vector is not None]
    assert scanned(replies) == expected


def test_large_payloads_come_few_at_a_time(wire: Wire, docs: Collection) -> None:
    """Where payloads grow on the way, messages have fewer points."""
    docs.upsert(range(2_000), np.ones((2_000, DIM)), [{"a": 1}] * 2_000)
    text = "x" * 100_000
    for start in range(2_000, 2_200, 50):
        docs.upsert(range(start, start + 50), np.ones((50, DIM)), [{"t": text}] * 50)
    replies = list(wire("Scan", pb.ScanRequest(collection=docs.number, payload=ALL)))
    counts = [len(codec.unpack_ids(reply.points.ids)) for reply in replies]
    assert sum(counts) == 2_200
    assert counts[0] > 1_000
    assert max(counts[1:]) == 3


def test_a_scan_takes_start_limit_filter_and_part(wire: Wire, docs: Collection) -> None:
    """What the embedded scan takes, over the wire; a limit of none gives none."""
    wire("Upsert", record(docs, 0, 100))
    asked = pb.ScanRequest(
        collection=docs.number,
        start=codec.pack_ids([20]),
        limit=3,
        filter=b'{"a":{"$gte":10}}',
        payload=pb.PayloadPart(keys=["a"]),
    )
    (reply,) = wire("Scan", asked)
    assert codec.unpack_ids(reply.points.ids) == [20, 21, 22]
    assert codec.unpack_blobs(reply.points.payloads) == [b'{"a":20}', b'{"a":21}', b'{"a":22}']
    assert not reply.points.HasField("vectors")
    asked.limit = 0
    assert list(wire("Scan", asked)) == []
    asked.ClearField("limit")
    assert sum(len(codec.unpack_ids(reply.points.ids)) for reply in wire("Scan", asked)) == 80


def engine_scans() -> list[Any]:
    """Return the scans of the engine that are under way in this process."""
    return [
        one
        for one in gc.get_objects()
        if isinstance(one, types.GeneratorType) and one.__name__ == "_scanned" and one.gi_frame is not None
    ]


def test_a_scan_is_made_no_faster_than_it_is_taken(wire: Wire, docs: Collection) -> None:
    """A client that takes one message and stops has the server stop, a little further on; gone, the view is freed."""
    count = 40_000
    for start in range(0, count, 10_000):
        docs.upsert(range(start, start + 10_000), np.ones((10_000, DIM)), [{"t": "x" * 1_000}] * 10_000)
    replies = wire("Scan", pb.ScanRequest(collection=docs.number, payload=ALL, with_vector=True), timeout=120)
    first = next(replies)
    assert codec.unpack_ids(first.points.ids)[0] == 0
    seen: list[int] = []

    def stands_still() -> bool:
        (scan,) = engine_scans()
        seen.append(scan.gi_frame.f_locals.get("count", -1))
        return len(seen) > 20 and len(set(seen[-20:])) == 1

    assert waits_until(stands_still)
    # What is under way is bounded by gRPC's window, which grows to a few MiB.
    assert 0 < seen[-1] < count * 3 // 4
    replies.cancel()
    assert waits_until(lambda: engine_scans() == [])


def test_work_that_nobody_waits_for_ends() -> None:
    """Told that its client has gone, work stops at its next step."""
    stopped = threading.Event()
    steps: list[int] = []

    def work(step: Callable[[int, int], None]) -> None:
        try:
            never = threading.Event()
            for i in range(1_000):
                steps.append(i)
                step(i, 1_000)
                never.wait(0.05)
        finally:
            stopped.set()

    progress = stream.progress_of(work)
    done, total, result = next(progress)
    assert (total, result) == (1_000, None)
    assert done <= len(steps)
    progress.close()  # type: ignore[attr-defined]
    assert stopped.wait(30)
    assert len(steps) < 1_000


def test_an_error_of_the_work_is_the_calls() -> None:
    """What work raises comes out where its progress is taken; its result comes last."""

    def fail(step: Callable[[int, int], None]) -> None:
        raise VecstoreError("no")

    with pytest.raises(VecstoreError, match="no"):
        list(stream.progress_of(fail))

    def work(step: Callable[[int, int], None]) -> str:
        step(3, 3)
        return "done"

    assert list(stream.progress_of(work))[-1] == (3, 3, "done")
