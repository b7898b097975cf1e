"""Callers in processes of their own: they call a server in turns or at a rate, and say how long each call took.

A crew is started once and told what to do through pipes, so that no round pays for imports. All of its processes begin
at the same moment. This module knows how to call each side and measures nothing but calls.
"""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

import vecstore

__all__ = ["Crew", "Order", "Tally"]

Call = Callable[[Any], object]
DEAR_VECTORS = 32
START_S = 0.3
"""Between an order and its beginning: long enough for every process to have read it."""


@dataclass(frozen=True)
class Order:
    """What each process of a crew is to do.

    Attributes
    ----------
    side
        How to call: "vecstore", "bare" (vecstore's messages without the client's retries), "echo", or "chroma".
    address
        ``host:port`` of the server; of several servers with the same content, joined by commas.
    seconds
        How long.
    threads
        Calls under way at once in each process.
    rate
        Calls a second that each process offers, whether the server keeps up or not; 0 calls again as soon as answered.
    timeout_s
        Of each call; an offered call that cannot even begin within it counts as failed.
    dear
        Searches of 32 vectors that compare every point: of such calls a few are all that a server can answer, so that
        ten times as many can be offered, and refused, by the cores that are left.
    recall
        That "vecstore" asks for; 0 for what it asks for by itself.
    batch
        Queries of each of its calls; 0 for single searches.
    """

    side: str
    address: str
    seconds: float
    threads: int = 1
    rate: float = 0.0
    timeout_s: float = 10.0
    dear: bool = False
    recall: float = 0.0
    batch: int = 0


@dataclass
class Tally:
    """What came of an order: seconds of each answered call, and how many failed, by the reason."""

    seconds: list[float] = field(default_factory=list)
    failed: dict[str, int] = field(default_factory=dict)

    def add(self, other: Tally) -> None:
        """Take over what another counted."""
        self.seconds += other.seconds
        for reason, count in other.failed.items():
            self.failed[reason] = self.failed.get(reason, 0) + count

    def fail(self, reason: str) -> None:
        """Count a failed call."""
        self.failed[reason] = self.failed.get(reason, 0) + 1


class Crew:
    """Processes that call.

    Parameters
    ----------
    size
        How many.
    queries
        float32 (n, dim): what they search for.
    k
        Hits of a search.
    """

    def __init__(self, size: int, queries: Any, k: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.size = size
        self._pipes: list[Connection] = []
        self._processes = []
        for number in range(size):
            here, there = context.Pipe()
            process = context.Process(target=_work, args=(there, np.roll(queries, 97 * number, axis=0), k), daemon=True)
            process.start()
            self._pipes.append(here)
            self._processes.append(process)

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *args: object) -> None:
        for pipe in self._pipes:
            with suppress(OSError):
                pipe.send(None)
        for process in self._processes:
            process.join(10)
            process.kill()

    def carry_out(self, order: Order) -> Tally:
        """Let all processes do the same, and add up what came of it."""
        start_s = time.monotonic() + START_S
        for pipe in self._pipes:
            pipe.send((order, start_s))
        total = Tally()
        for pipe in self._pipes:
            total.add(pipe.recv())
        return total


def _work(pipe: Connection, queries: Any, k: int) -> None:
    calls: dict[tuple[Any, ...], Call] = {}
    while (given := pipe.recv()) is not None:
        order, start_s = given
        key = (order.side, order.address, order.dear, order.timeout_s, order.recall, order.batch)
        step = order.batch
        asked = [queries[at : at + step] for at in range(0, len(queries) - step + 1, step)] if step else queries
        if key not in calls:
            calls[key] = _SIDES[order.side](order, k)
            calls[key](asked[0])
        tallies = [Tally() for _ in range(order.threads)]
        work = _offer if order.rate else _repeat
        threads = [
            threading.Thread(target=work, args=(order, calls[key], asked, start_s, number, tallies[number]))
            for number in range(order.threads)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for tally in tallies[1:]:
            tallies[0].add(tally)
        pipe.send(tallies[0])


def _repeat(order: Order, call: Call, queries: Any, start_s: float, number: int, tally: Tally) -> None:
    """Call again as soon as answered."""
    time.sleep(max(0.0, start_s - time.monotonic()))
    end_s, at = start_s + order.seconds, 31 * number
    while (began_s := time.monotonic()) < end_s:
        at += 1
        _one(call, queries[at % len(queries)], began_s, tally)


def _offer(order: Order, call: Call, queries: Any, start_s: float, number: int, tally: Tally) -> None:
    """Call at fixed moments, of which this thread has every so many-th; late where the last call took too long."""
    step_s = order.threads / order.rate
    due_s, at = start_s + step_s * number / order.threads, 31 * number
    while due_s < start_s + order.seconds:
        at += 1
        now_s = time.monotonic()
        if now_s < due_s:
            time.sleep(due_s - now_s)
        elif now_s > due_s + order.timeout_s:
            tally.fail("never begun")
            due_s += step_s
            continue
        _one(call, queries[at % len(queries)], time.monotonic(), tally)
        due_s += step_s


def _one(call: Call, query: Any, began_s: float, tally: Tally) -> None:
    try:
        call(query)
    except Exception as exc:  # noqa: BLE001 - whatever a call ends with is what is counted
        code = getattr(exc, "code", None)
        tally.fail(code().name if callable(code) else f"{type(exc).__name__}: {exc}"[:200])
    else:
        tally.seconds.append(time.monotonic() - began_s)


# -- sides -----------------------------------------------------------------------------------------------------------


def _vecstore(order: Order, k: int) -> Call:
    database = vecstore.connect(order.address.split(","), read_from="any", timeout=order.timeout_s)
    points = database.collection("points")
    recall = order.recall or None
    search = points.search_batch if order.batch else points.search
    return lambda query: search(query, k, recall=recall)


def _bare(order: Order, k: int) -> Call:
    import grpc

    from vecstore.wire.v1 import store_pb2 as pb

    number = vecstore.connect(order.address, timeout=order.timeout_s).collection("points").number
    channel = grpc.insecure_channel(order.address, options=[("grpc.enable_retries", 0)])
    method, reply = ("SearchBatch", pb.SearchBatchReply) if order.dear else ("Search", pb.SearchReply)
    search = channel.unary_unary(f"/vecstore.v1.Collections/{method}", response_deserializer=reply.FromString)
    part = pb.PayloadPart(all=True)

    def cheap(query: Any) -> bytes:
        asked = pb.SearchRequest(collection=number, vector=query.tobytes(), k=k, payload=part)
        return asked.SerializeToString()

    def dear(query: Any) -> bytes:
        vectors = np.stack([np.roll(query, shift) for shift in range(DEAR_VECTORS)])
        floats = pb.Floats(rows=DEAR_VECTORS, columns=len(query), data=vectors.tobytes())
        return pb.SearchBatchRequest(collection=number, vectors=floats, k=k, exact=True).SerializeToString()

    # Made once: what a flood costs its senders is paid by the same cores.
    made: dict[bytes, bytes] = {}

    def call(query: Any) -> object:
        key = query.tobytes()
        if key not in made:
            made[key] = (dear if order.dear else cheap)(query)
        return search(made[key], timeout=order.timeout_s)

    return call


def _echo(order: Order, k: int) -> Call:
    import grpc

    from vecstore.wire.v1 import store_pb2 as pb

    search = grpc.insecure_channel(order.address).unary_unary(
        "/echo/Search",
        request_serializer=pb.SearchRequest.SerializeToString,
        response_deserializer=pb.SearchReply.FromString,
    )
    part = pb.PayloadPart(all=True)
    return lambda query: search(pb.SearchRequest(collection=1, vector=query.tobytes(), k=k, payload=part), timeout=10)


def _chroma(order: Order, k: int) -> Call:
    import chromadb

    host, port = order.address.rsplit(":", 1)
    points = chromadb.HttpClient(host=host, port=int(port)).get_collection("points")
    return lambda query: points.query(query_embeddings=[query], n_results=k, include=["metadatas", "distances"])


_SIDES: dict[str, Callable[[Order, int], Call]] = {
    "vecstore": _vecstore,
    "bare": _bare,
    "echo": _echo,
    "chroma": _chroma,
}
