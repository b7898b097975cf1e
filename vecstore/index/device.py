"""Where indexes are searched: which devices there are, and all of an engine's devices as one.

`Devices` places segments on the devices that are there and asks them; it knows nothing of views, filters or recall,
which are the engine's. What no device does, the CPU does: nothing here raises because of a device.

Not here: code that runs on a device (`worker`, `gpu`), one device's worker (`handle`), the arithmetic (`placement`,
`budget`). Looking for devices loads no CUDA into this process.
"""

from __future__ import annotations

import importlib.util
import os
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import faiss

from ..errors import EngineMissing, InvalidArgument
from .channel import WorkerOptions
from .handle import Device as Handle
from .order import Order
from .placement import Placement, Room, Wanted, levelled, place
from .telemetry import Telemetry

__all__ = ["Device", "Devices", "described", "found", "has_gpu_code", "resolve"]

Device = Literal["auto", "cpu", "gpu"]
_PROC = Path("/proc/driver/nvidia/gpus")
_DEV = Path("/dev")


def found() -> list[str]:
    """Return the GPUs that this process may use, by number or UUID, without loading CUDA."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        names = [name.strip() for name in visible.split(",")]
        return [name for name in names if name and name not in ("-1", "NoDevFiles")]
    try:
        return [str(i) for i in range(len(list(_PROC.iterdir())))]
    except OSError:
        # Sandboxes hide the driver's folder and show its devices.
        return [str(i) for i in range(len(list(_DEV.glob("nvidia[0-9]*"))))]


def has_gpu_code() -> bool:
    """Return whether what is installed can use GPUs: a FAISS built for them, and CuPy."""
    return "GPU" in str(faiss.get_compile_options()).split() and importlib.util.find_spec("cupy") is not None


def resolve(device: str, backend: str = "cuda") -> Literal["cpu", "gpu"]:
    """Return the device that searches run on.

    Parameters
    ----------
    device
        "auto" takes what there is, "cpu" the CPU, "gpu" insists.
    backend
        "cuda"; "host" has what a GPU does done by a process on the CPU, for tests and drills.

    Raises
    ------
    InvalidArgument
        Another name; or "gpu", and there is none.
    EngineMissing
        "gpu", and the FAISS that is installed has no GPU code, or CuPy is missing.
    """
    if device not in ("auto", "cpu", "gpu"):
        raise InvalidArgument(f"device: {device!r} is not one of 'auto', 'cpu', 'gpu'")
    if device == "cpu":
        return "cpu"
    if backend == "host":
        return "gpu" if device == "gpu" else "cpu"
    if device == "auto":
        return "gpu" if has_gpu_code() and found() else "cpu"
    if not has_gpu_code():
        raise EngineMissing(
            "device: 'gpu' was asked for, and the FAISS that is installed has no GPU code, or CuPy is missing",
            hint="use device='auto', or install the extra gpu or gpu-cuvs in place of cpu",
        )
    if not found():
        raise InvalidArgument(
            "device: 'gpu' was asked for, and no NVIDIA GPU can be seen",
            hint="use device='auto'; look at nvidia-smi and CUDA_VISIBLE_DEVICES",
        )
    return "gpu"


def described() -> str:
    """Return in a sentence what `device="auto"` takes, and why."""
    names = found()
    if not names:
        return "no GPU can be seen: searches run on the CPU"
    if not has_gpu_code():
        return f"{len(names)} GPUs can be seen, but FAISS has no GPU code or CuPy is missing: searches run on the CPU"
    return f"{len(names)} GPUs: {', '.join(names)}"


class Devices:
    """All devices of an engine. Thread-safe.

    Parameters
    ----------
    options
        Of the workers; the device is filled in.
    names
        Of the devices.
    changed
        Called when a device has come or gone, or has finished a load.

    Attributes
    ----------
    refused
        Why segments that were wanted have no place.
    """

    def __init__(self, options: WorkerOptions, names: Sequence[str], changed: Callable[[], None]) -> None:
        plain = {field: getattr(options, field) for field in options.__struct_fields__}
        self._handles = [Handle(name, WorkerOptions(**{**plain, "device": name}), changed) for name in names]
        self.telemetry = Telemetry([] if options.backend == "host" else names)
        self.refused: dict[str, str] = {}
        self._moving: dict[str, Handle] = {}
        self._lock = threading.Lock()

    def start(self) -> None:
        """Start the workers."""
        for handle in self._handles:
            handle.start()

    def close(self) -> None:
        """End the workers."""
        for handle in self._handles:
            handle.close()
        self.telemetry.close()

    @property
    def handles(self) -> list[Handle]:
        """The devices, one by one."""
        return list(self._handles)

    def holder(self, segment: str) -> Handle | None:
        """Return the device on which a segment is ready, None where there is none."""
        for handle in self._handles:
            if handle.is_held(segment):
                return handle
        return None

    def absence(self, segment: str) -> str:
        """Return in a word why no device holds a segment that is wanted."""
        if not any(handle.is_ready for handle in self._handles):
            return "down"
        return "refused" if segment in self.refused else "loading"

    def arrange(self, wanted: Mapping[str, tuple[Wanted, Callable[[], Order | None]]]) -> None:
        """Bring the devices to hold what is wanted, as far as it fits; everything else is dropped.

        Parameters
        ----------
        wanted
            By segment: what it is, and what gives the order to load it, without its choice of index; None where it can
            no longer be loaded.
        """
        with self._lock:
            held = self._kept(wanted)
            banned: dict[str, set[str]] = {}
            for handle in self._handles:
                for segment in handle.refused():
                    if segment not in wanted:
                        handle.drop(segment)
                    else:
                        banned.setdefault(segment, set()).add(handle.name)
            rooms = [Room(one.name, one.free_bytes, one.has_graphs) for one in self._handles if one.is_ready]
            segments = [one for one, _ in wanted.values()]
            placement = place(segments, rooms, {name: handle.name for name, handle in held.items()}, banned)
            if not placement.build:
                placement.build = self._level(segments, held, banned).build
            by_name = {handle.name: handle for handle in self._handles}
            for segment, (device, choice) in placement.build.items():
                order = wanted[segment][1]()
                if order is not None:
                    by_name[device].load(order.with_choice(choice))
            self.refused = placement.refused

    def _kept(self, wanted: Mapping[str, Any]) -> dict[str, Handle]:
        """Return which device has which segment, after dropping what is not wanted, and what has moved elsewhere."""
        self._moving = {name: target for name, target in self._moving.items() if target.loaded(name) is not None}
        held: dict[str, Handle] = {}
        for handle in self._handles:
            for segment in handle.segments():
                target = self._moving.get(segment, handle)
                if segment not in wanted or (target is not handle and target.is_held(segment)):
                    handle.drop(segment)
                elif handle.is_ready and (segment not in held or handle.is_held(segment)):
                    held[segment] = handle
        return held

    def _level(self, wanted: Sequence[Wanted], held: Mapping[str, Handle], banned: Mapping[str, set[str]]) -> Placement:
        """Place one segment on a device that has more room, while nothing is built anywhere.

        Until it is there, it stays where it was.
        """
        placement = Placement()
        rooms: list[Room] = []
        sizes: dict[str, tuple[str, int]] = {}
        for handle in self._handles:
            segments = handle.segments()
            if not all(one.ready for one in segments.values()):
                return placement
            bytes_of = {name: one.order.made.need.serve for name, one in segments.items()}
            sizes |= {name: (handle.name, size) for name, size in bytes_of.items() if held.get(name) is handle}
            if handle.is_ready:
                rooms.append(Room(handle.name, handle.free_bytes, handle.has_graphs))
        move = levelled(wanted, rooms, sizes, banned)
        if move is not None:
            name, device, choice = move
            self._moving[name] = next(handle for handle in self._handles if handle.name == device)
            placement.build[name] = (device, choice)
        return placement

    def fallbacks(self) -> dict[str, int]:
        """Return how often the CPU had to answer, by reason."""
        total: Counter[str] = Counter()
        for handle in self._handles:
            total += handle.fallbacks
        return dict(total)

    def status(self) -> list[dict[str, Any]]:
        """Return plain values of each device, with what NVML says of it."""
        measured = self.telemetry.read()
        return [{**handle.status(), "nvml": measured.get(handle.name)} for handle in self._handles]
