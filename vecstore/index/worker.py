"""The process that owns one device: `python -m vecstore.index.worker SOCKET ARENA OPTIONS`.

It is started by `handle`, has nothing that the engine could not lose, and ends when the engine does. One thread
receives; the main thread alone touches the device. Questions that wait for the same index and ask the same of it are
one call (`turns`). Indexes are built in steps, and what waits is answered between two of them.

What is not understood is fatal: a device in an unknown state ends with its process, and the engine starts another.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Generator
from queue import Empty, SimpleQueue

import msgspec
import numpy as np
import numpy.typing as npt

from .answer import Held, Question, Unable, answered
from .backend import Backend, Built
from .budget import Choice, Ledger, Need, NoRoom
from .channel import Arena, Ask, Channel, Done, Drop, Forget, Load, Message, Ready, Select, WorkerOptions
from .source import Source
from .turns import Turns

__all__ = ["Worker", "made", "main"]


def made(options: WorkerOptions) -> Backend:
    """Return the backend that the options name."""
    if options.backend == "host":
        from .host import HostBackend

        ledger = Ledger(options.budget_bytes or 1 << 40, options.failing_allocation)
        return HostBackend(ledger, selections=options.selections)
    from .gpu import CudaBackend

    return CudaBackend(options)


class Worker:
    """The loop of one device.

    Parameters
    ----------
    backend
        Of the device.
    channel, arena
        What is shared with the engine.
    scratch_bytes
        What one call may take beside indexes.
    """

    def __init__(self, backend: Backend, channel: Channel, arena: Arena, scratch_bytes: int) -> None:
        self._backend, self._channel, self._arena = backend, channel, arena
        self._scratch_bytes = scratch_bytes
        self._waiting: SimpleQueue[Message | None] = SimpleQueue()
        self._turns = Turns()
        self._held: dict[str, Held] = {}
        self._bitmaps: dict[int, npt.NDArray[np.uint8]] = {}
        self._building: list[tuple[Load, Source, Generator[None, None, Built]]] = []

    def run(self) -> None:
        """Work until the engine is gone."""
        threading.Thread(target=self._receive, name="vecstore-receiver", daemon=True).start()
        while self._take_in():
            self._turn()

    def _take_in(self) -> bool:
        """Take in what was received, waiting for it where there is nothing else to do; return False at the end."""
        with contextlib.suppress(Empty):
            while True:
                message = self._waiting.get(block=not (self._turns or self._building))
                if message is None:
                    return False
                self._turns.add(message)
        return True

    def _turn(self) -> None:
        """Do what is next."""
        turn = self._turns.take() if self._turns else []
        if not isinstance(turn, list):
            self._obey(turn)
            return
        if turn:
            self._answer(turn)
        if self._building:
            self._build_on()

    def _receive(self) -> None:
        while (message := self._channel.receive()) is not None:
            self._waiting.put(message)
        self._waiting.put(None)
        # The main thread may be in a call for minutes, for an engine that is gone.
        threading.Event().wait(5.0)
        os._exit(0)

    def _answer(self, asks: list[Ask]) -> None:
        ask = asks[0]
        held = self._held.get(ask.segment)
        if held is None or (ask.selection and ask.selection not in self._bitmaps):
            self._reply(asks, "gone", ask.segment)
            return
        dim = held.source.dim
        parts = [self._arena.array("<f4", (one.count, dim), one.at) for one in asks]
        queries = np.concatenate(parts) if len(parts) > 1 else parts[0].copy()
        question = Question(ask.kept, ask.candidates, ask.probes, ask.ef, ask.selection, ask.exact)
        try:
            bitmap = self._bitmaps.get(ask.selection)
            answer = answered(self._backend, held, queries, question, bitmap, self._scratch_bytes)
        except Unable as exc:
            self._reply(asks, str(exc), "")
            return
        except NoRoom as exc:
            held.forget_all(self._backend)
            self._reply(asks, "memory", str(exc))
            return
        at = 0
        for one in asks:
            self._arena.array("<i8", (one.count, one.kept), one.rows_at)[:] = answer.rows[at : at + one.count]
            self._arena.array("<f4", (one.count,), one.bounds_at)[:] = answer.bounds[at : at + one.count]
            at += one.count
        self._reply(asks, "", "")

    def _reply(self, messages: list[Ask] | list[Load] | list[Drop] | list[Select], problem: str, detail: str) -> None:
        used = self._backend.ledger.used
        for message in messages:
            self._channel.send(Done(message.id, problem, detail, used))

    def _obey(self, message: Message) -> None:
        if isinstance(message, Load):
            self._begin(message)
        elif isinstance(message, Drop):
            self._drop(message.segment)
            self._reply([message], "", "")
        elif isinstance(message, Select):
            self._bitmaps[message.number] = self._arena.array("u1", (message.size,), message.at).copy()
            self._reply([message], "", "")
        elif isinstance(message, Forget):
            self._bitmaps.pop(message.number, None)
            for held in self._held.values():
                held.forget(self._backend, message.number)

    def _begin(self, load: Load) -> None:
        self._drop(load.segment)
        try:
            source = Source(load.metric, load.dim, load.files)
        except (OSError, ValueError) as exc:
            self._reply([load], "files", str(exc))
            return
        choice = Choice(load.kind, load.lists, load.pieces, load.width, Need(*load.need))
        self._building.append((load, source, self._backend.build(source, choice, load.segment, load.seed)))

    def _build_on(self) -> None:
        """Do one step of the build that was asked for first."""
        load, source, steps = self._building[0]
        try:
            if self._backend.ledger.free < max(load.need) and load.segment not in self._backend.ledger.reserved:
                for held in self._held.values():
                    held.forget_all(self._backend)
            next(steps)
        except StopIteration as end:
            self._building.pop(0)
            self._held[load.segment] = Held(load.segment, source, end.value)
            self._reply([load], "", "")
        except NoRoom as exc:
            self._building.pop(0)
            self._reply([load], "memory", str(exc))

    def _drop(self, segment: str) -> None:
        for i, (load, _, steps) in enumerate(self._building):
            if load.segment == segment:
                steps.close()
                del self._building[i]
                self._reply([load], "dropped", "")
                break
        held = self._held.pop(segment, None)
        if held is not None:
            held.forget_all(self._backend)
            held.built.data = None
            self._backend.release(segment)


def main(arguments: list[str]) -> None:
    """Run a worker on inherited descriptors."""
    # Whoever interrupts the engine from a terminal leaves it to the engine when this process ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    options = msgspec.json.decode(arguments[2], type=WorkerOptions)
    channel = Channel(socket.socket(fileno=int(arguments[0])), Message)
    arena = Arena(options.arena_bytes, int(arguments[1]))
    try:
        backend = made(options)
    except Exception as exc:
        # Whoever looks at the store's status reads why; the traceback is for the log.
        channel.send(Done(0, "start", f"{type(exc).__name__}: {exc}"))
        raise
    versions = {"faiss": "", "cupy": ""} | getattr(backend, "versions", {})
    ready = Ready(
        os.getpid(),
        backend.name,
        backend.ledger.budget,
        backend.candidates_max,
        sorted(backend.obedient),
        versions,
    )
    try:
        channel.send(ready)
        Worker(backend, channel, arena, options.scratch_bytes).run()
    except (BrokenPipeError, ConnectionResetError):
        # The engine is gone.
        return


if __name__ == "__main__":
    main(sys.argv[1:])
    # Without the interpreter's end, in which FAISS's resources meet a driver that is gone, and abort.
    sys.stderr.flush()
    os._exit(0)
