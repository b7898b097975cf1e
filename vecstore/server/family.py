"""A metric as it is declared and exported: kind, meaning, labels, samples. Knows nothing of what is measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

__all__ = ["Family", "Samples", "counter", "gauge"]

Samples = Iterable[tuple[tuple[str, ...], float]]


class Family(NamedTuple):
    """One metric: its kind, what it means, its labels."""

    kind: str
    doc: str
    labels: tuple[str, ...] = ()


def gauge(families: Mapping[str, Family], name: str, samples: Samples) -> Metric:
    """Return a gauge with its samples."""
    family = GaugeMetricFamily(name, families[name].doc, labels=families[name].labels)
    for labels, value in samples:
        family.add_metric(labels, value)
    return family


def counter(families: Mapping[str, Family], name: str, samples: Samples) -> Metric:
    """Return a counter with its samples."""
    family = CounterMetricFamily(name.removesuffix("_total"), families[name].doc, labels=families[name].labels)
    for labels, value in samples:
        family.add_metric(labels, value)
    return family
