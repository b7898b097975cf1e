"""What NVML says of GPUs: utilisation, memory, power, temperature. Where nvidia-ml-py or its driver is missing:
nothing.

It is asked when somebody looks, never by a search.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from typing import Any

__all__ = ["Telemetry"]


class Telemetry:
    """Figures of some GPUs. Thread-safe.

    Parameters
    ----------
    names
        Numbers or UUIDs, as in CUDA_VISIBLE_DEVICES.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._lock = threading.Lock()
        self._devices: dict[str, Any] = {}
        self._nvml: Any = None
        if not names:
            return
        try:
            import pynvml
        except ImportError:
            return
        try:
            pynvml.nvmlInit()
            self._nvml = pynvml
        except pynvml.NVMLError:
            return
        for name in names:
            # NVML knows no abbreviated UUIDs, and CUDA does: such a device is not told of, others are.
            with contextlib.suppress(pynvml.NVMLError):
                self._devices[name] = _device(pynvml, name)

    def read(self) -> dict[str, dict[str, float]]:
        """Return what is known of each device by name; what a device does not tell is left out."""
        with self._lock:
            return {name: self._figures(device) for name, device in self._devices.items()}

    def _figures(self, device: Any) -> dict[str, float]:
        nvml = self._nvml
        figures: dict[str, float] = {}
        with contextlib.suppress(nvml.NVMLError):
            memory = nvml.nvmlDeviceGetMemoryInfo(device)
            figures |= {"memory_used_bytes": float(memory.used), "memory_total_bytes": float(memory.total)}
        with contextlib.suppress(nvml.NVMLError):
            figures["utilisation"] = nvml.nvmlDeviceGetUtilizationRates(device).gpu / 100
        with contextlib.suppress(nvml.NVMLError):
            figures["power_w"] = nvml.nvmlDeviceGetPowerUsage(device) / 1000
        with contextlib.suppress(nvml.NVMLError):
            figures["temperature_c"] = float(nvml.nvmlDeviceGetTemperature(device, nvml.NVML_TEMPERATURE_GPU))
        return figures

    def close(self) -> None:
        """Let NVML go."""
        with self._lock:
            self._devices = {}
            if self._nvml is not None:
                with contextlib.suppress(self._nvml.NVMLError):
                    self._nvml.nvmlShutdown()
                self._nvml = None


def _device(nvml: Any, name: str) -> Any:
    if name.isdigit():
        return nvml.nvmlDeviceGetHandleByIndex(int(name))
    return nvml.nvmlDeviceGetHandleByUUID(name.encode())
