"""What the tests of devices share: which there are, stores on them, segments of files, waiting for devices."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import vecstore
from vecstore import Database
from vecstore.engine.database import EmbeddedDatabase
from vecstore.index import device
from vecstore.index.norms import inverse_norms
from vecstore.index.source import File, Source
from vecstore.values import Metric

__all__ = ["BACKENDS", "NO_GPU", "engine_of", "loaded", "loaded_in", "opened", "source_of", "until"]

Floats = npt.NDArray[np.float32]


def no_gpu() -> str:
    """Return why nothing can run on a GPU here; empty where it can."""
    if not device.found():
        return "no NVIDIA GPU can be seen"
    if not device.has_gpu_code():
        return "the FAISS that is installed has no GPU code, or CuPy is missing"
    return ""


NO_GPU = no_gpu()
BACKENDS = [
    "host",
    pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(bool(NO_GPU), reason=NO_GPU or "there is one")]),
]
"""Backends of a worker: the one that runs anywhere, and GPUs."""
WAIT_S = 60.0
_PAUSE = threading.Event()
"""Never set: between two looks, other threads run."""


def opened(path: Path | str, backend: str, **config: Any) -> Database:
    """Open a store that searches on devices, however few rows there are."""
    options = {"device_backend": backend, "device_rows_min": 1, **config}
    return vecstore.open(str(path), device="gpu", config=options)


def engine_of(database: Database) -> Any:
    """Return the engine of an embedded database."""
    assert isinstance(database, EmbeddedDatabase)
    return database.engine


def until(what: str, true: Callable[[], Any], wait_s: float = WAIT_S) -> Any:
    """Wait until something is true; return it."""
    end_s = time.monotonic() + wait_s
    while not (value := true()):
        assert time.monotonic() < end_s, f"{what}: not within {wait_s:.0f} s"
        _PAUSE.wait(0.02)
    return value


def loaded(database: Database) -> None:
    """Wait until a device holds every sealed segment."""
    loaded_in(engine_of(database))


def loaded_in(engine: Any) -> None:
    """Do what `loaded` does, given the engine."""

    def has_all() -> bool:
        names = [
            segment.name
            for collection in engine.state.view.collections.values()
            for shard in collection.shards
            for segment in shard.sealed.segments
        ]
        return bool(names) and all(engine.accelerator.devices.holder(name) for name in names)

    until("the segments on a device", has_all)


def source_of(folder: Path, vectors: Floats, metric: Metric, file_rows: int = 1_000, gap: int = 96) -> Source:
    """Write vectors as a segment's files, their row numbers with gaps between files, and read them as a worker does."""
    files = []
    for number, at in enumerate(range(0, len(vectors), file_rows)):
        part = np.ascontiguousarray(vectors[at : at + file_rows])
        path = folder / f"part{number}"
        norms = inverse_norms(part).tobytes() if metric == "cosine" else b""
        path.write_bytes(part.tobytes() + norms)
        files.append(
            File(str(path), at + number * gap, len(part), 0, len(part.tobytes()) if metric == "cosine" else -1)
        )
    return Source(metric, vectors.shape[1], files)
