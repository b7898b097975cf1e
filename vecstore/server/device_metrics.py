"""What Prometheus sees of GPUs: made of what a store's status says of its devices.

Pure: plain values in, metrics out. A store that searches on the CPU alone exports none of them; what NVML does not tell
is absent, never zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client.core import Metric

from .family import Family, Samples, counter, gauge

__all__ = ["DEVICE_FAMILIES", "of_devices"]

DEVICE_FAMILIES: dict[str, Family] = {
    "vecstore_device_ready": Family("gauge", "1 while the worker of a GPU takes questions.", ("device",)),
    "vecstore_device_restarts_total": Family("counter", "Workers that died and were followed by another.", ("device",)),
    "vecstore_device_answers_total": Family("counter", "Questions that a GPU answered.", ("device",)),
    "vecstore_device_fallbacks_total": Family("counter", "Questions that the CPU answered in its place.", ("reason",)),
    "vecstore_device_refused_segments": Family("gauge", "Segments that no GPU took."),
    "vecstore_device_budget_bytes": Family("gauge", "Memory of a GPU that indexes may take.", ("device",)),
    "vecstore_device_reserved_bytes": Family("gauge", "Memory of a GPU that is reserved of it.", ("device",)),
    "vecstore_device_segment_bytes": Family("gauge", "Memory that an index takes.", ("device", "segment", "kind")),
    "vecstore_device_memory_used_bytes": Family("gauge", "Memory in use on a GPU, by whomever.", ("device",)),
    "vecstore_device_memory_total_bytes": Family("gauge", "Memory of a GPU.", ("device",)),
    "vecstore_device_utilisation": Family("gauge", "Share of the time in which a GPU had work.", ("device",)),
    "vecstore_device_power_watts": Family("gauge", "Power that a GPU draws.", ("device",)),
    "vecstore_device_temperature_celsius": Family("gauge", "Temperature of a GPU.", ("device",)),
}

_OF_NVML = {
    "vecstore_device_memory_used_bytes": "memory_used_bytes",
    "vecstore_device_memory_total_bytes": "memory_total_bytes",
    "vecstore_device_utilisation": "utilisation",
    "vecstore_device_power_watts": "power_w",
    "vecstore_device_temperature_celsius": "temperature_c",
}


def of_devices(status: Mapping[str, Any]) -> Iterator[Metric]:
    """Return the metrics of a store's devices."""
    devices = status.get("devices") or []

    def each(key: str) -> Samples:
        return [((str(one["device"]),), float(one[key])) for one in devices]

    ready = [((str(one["device"]),), float(one["state"] == "ready")) for one in devices]
    yield gauge(DEVICE_FAMILIES, "vecstore_device_ready", ready)
    yield counter(DEVICE_FAMILIES, "vecstore_device_restarts_total", each("restarts"))
    yield counter(DEVICE_FAMILIES, "vecstore_device_answers_total", each("asked"))
    reasons = sorted((status.get("device_fallbacks") or {}).items())
    fallbacks = [((str(reason),), float(count)) for reason, count in reasons]
    yield counter(DEVICE_FAMILIES, "vecstore_device_fallbacks_total", fallbacks)
    refused = [((), float(len(status.get("device_refused") or {})))] if devices else []
    yield gauge(DEVICE_FAMILIES, "vecstore_device_refused_segments", refused)
    yield gauge(DEVICE_FAMILIES, "vecstore_device_budget_bytes", each("budget_bytes"))
    yield gauge(DEVICE_FAMILIES, "vecstore_device_reserved_bytes", each("reserved_bytes"))
    segments = [
        ((str(one["device"]), str(name), str(segment["kind"])), float(segment["bytes"]))
        for one in devices
        for name, segment in one["segments"].items()
    ]
    yield gauge(DEVICE_FAMILIES, "vecstore_device_segment_bytes", segments)
    for name, key in _OF_NVML.items():
        known = [((str(one["device"]),), float(one["nvml"][key])) for one in devices if key in (one["nvml"] or {})]
        yield gauge(DEVICE_FAMILIES, name, known)
