"""A segment on its way to a device, and on it: what was ordered, and whether it is there."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..values import Metric
from .budget import Choice
from .source import File

__all__ = ["Loaded", "Order"]


@dataclass(frozen=True, slots=True)
class Order:
    """A segment to be loaded: what `Load` says of it."""

    segment: str
    metric: Metric
    dim: int
    rows: int
    files: tuple[File, ...]
    choice: Choice | None
    seed: int

    def with_choice(self, choice: Choice) -> Order:
        """Return the order with an index chosen."""
        return replace(self, choice=choice)

    @property
    def made(self) -> Choice:
        """The index chosen."""
        assert self.choice is not None, "no index was chosen"
        return self.choice


@dataclass(frozen=True, slots=True)
class Loaded:
    """A segment that the worker holds, or is about to: what was ordered, and whether it is there."""

    order: Order
    ready: bool
