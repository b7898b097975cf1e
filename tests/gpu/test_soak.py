"""Mixed load leaks nothing: memory of devices and processes, shared memory and descriptors come back."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.data import mixture
from vecstore import Collection, Database
from vecstore.index.telemetry import Telemetry

from .devices import BACKENDS, engine_of, loaded, opened, until

DIM = 64
IDS = 20_000
PAGE_BYTES = 2 << 20
"""The driver gives memory out in pages of so much."""


class Load:
    """Searches, filters, upserts and deletes, from a seed."""

    def __init__(self, docs: Collection) -> None:
        self._docs = docs
        self._random = np.random.default_rng(1)

    def write(self, count: int) -> None:
        """Upsert some points."""
        ids = np.unique(self._random.integers(0, IDS, count))
        rows = mixture(len(ids), DIM, int(self._random.integers(1 << 30)))
        self._docs.upsert(ids.tolist(), rows, [{"n": int(i) % 100} for i in ids])

    def go_on(self, seconds: float) -> int:
        """Load for some seconds; return how many rounds there were."""
        end_s, rounds = time.monotonic() + seconds, 0
        while time.monotonic() < end_s:
            queries = mixture(100, DIM, int(self._random.integers(1 << 30)))
            self._docs.search_batch(queries, 10)
            # From where the CPU would do it itself to most of the rows: gathered, and taken with more than is wanted.
            wanted = {"n": {"$lt": int(self._random.integers(5, 95))}}
            self._docs.search_batch(queries, 10, exact=True, filter=wanted)
            self._docs.search(queries[0], 1_000, filter={"n": {"$lt": int(self._random.integers(1, 100))}})
            self.write(50)
            self._docs.delete(ids=np.unique(self._random.integers(0, IDS, 20)).tolist())
            rounds += 1
        return rounds


def descriptors(store: str) -> int:
    """Return how many descriptors this process has, but for files that the store has now: they come and go with it."""
    found = 0
    for entry in os.scandir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            target = os.readlink(entry.path)
            found += not (target.startswith(store) and os.path.exists(target))
    return found


def held(database: Database) -> dict[str, int]:
    """Return what could leak: descriptors of both processes, the worker's memory, and the device's by NVML."""
    (device,) = engine_of(database).accelerator.devices.handles
    resident = int(Path(f"/proc/{device.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    found = {
        "descriptors": descriptors(engine_of(database).directory.path),
        "descriptors of the worker": len(os.listdir(f"/proc/{device.pid}/fd")),
        "memory of the worker": resident,
    }
    telemetry = Telemetry(["0"] if device.options.backend == "cuda" else [])
    for figures in telemetry.read().values():
        found["memory of the device"] = int(figures.get("memory_used_bytes", 0))
    telemetry.close()
    return found


@pytest.mark.parametrize(
    "seconds", [pytest.param(5, id="seconds"), pytest.param(300, id="minutes", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_mixed_load_leaks_nothing(backend: str, seconds: int, tmp_path: Path) -> None:
    """A fifth of the time warms up. Afterwards nothing has grown, and once the rows are gone nothing is reserved."""
    with opened(tmp_path / "store", backend) as database:
        docs = database.create_collection("docs", DIM, metric="cosine", fields={"n": "int64"})
        load = Load(docs)
        for _ in range(3):
            load.write(9_000)
        docs.optimize()
        loaded(database)
        (device,) = engine_of(database).accelerator.devices.handles
        load.go_on(0.2 * seconds)
        before = held(database)
        rounds = load.go_on(0.8 * seconds)
        after = held(database)
        print(f"{rounds} rounds: {before} {after}")
        assert device.restarts == 0
        assert database.status()["device_fallbacks"].get("memory", 0) == 0
        assert after["descriptors"] <= before["descriptors"] + 2
        assert after["descriptors of the worker"] <= before["descriptors of the worker"] + 2
        assert after["memory of the worker"] <= 1.2 * before["memory of the worker"] + (64 << 20)
        assert after.get("memory of the device", 0) <= 1.05 * before.get("memory of the device", 0) + 64 * PAGE_BYTES
        asked: Any = device.asked
        assert asked > rounds
        database.drop_collection("docs")
        until("the device is empty", lambda: not device.segments() and device.status()["reserved_bytes"] == 0)
        until("no question has memory", lambda: device.free_arena_bytes == device.options.arena_bytes)
