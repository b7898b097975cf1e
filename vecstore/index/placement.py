"""Which segment's index goes to which device, and which to none: by free memory, the largest first.

What has a place keeps it while its device is there; what a lost device held is placed again on the others, and when it
is back, one segment after the other moves to it until no move would bring them nearer to each other. A segment is never
split: a collection's shards are what spreads over devices.

Pure: no I/O, no FAISS; how much an index takes is `budget`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..values import Metric
from .budget import Choice, choose, need

__all__ = ["Placement", "Room", "Wanted", "levelled", "place"]


@dataclass(frozen=True, slots=True)
class Wanted:
    """A segment that would like an index on a device.

    Attributes
    ----------
    name
        Of the segment.
    rows, dim, metric, index
        Of the segment, and the kind of index that its collection asks for.
    """

    name: str
    rows: int
    dim: int
    metric: Metric
    index: str = "auto"


@dataclass(frozen=True, slots=True)
class Room:
    """A device that takes indexes: its name, the bytes left in its budget, and whether it has cuVS."""

    name: str
    free: int
    cuvs: bool = False


@dataclass(slots=True)
class Placement:
    """Where to build what, and why something has no place.

    Attributes
    ----------
    build
        Device and index of each segment that is to be built.
    refused
        Why, of each segment without a place.
    """

    build: dict[str, tuple[str, Choice]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)


def place(
    wanted: Sequence[Wanted],
    rooms: Sequence[Room],
    held: Mapping[str, str],
    banned: Mapping[str, set[str]] | None = None,
) -> Placement:
    """Place segments that have no place yet.

    Parameters
    ----------
    wanted
        All segments.
    rooms
        The devices that are there.
    held
        Device of each segment that has a place. Those on devices that are not there are placed again.
    banned
        Devices on which a segment failed, by segment.
    """
    result = Placement()
    free = {room.name: room.free for room in rooms}
    cuvs = {room.name: room.cuvs for room in rooms}
    for segment in sorted(wanted, key=lambda one: (-one.rows * one.dim, one.name)):
        if held.get(segment.name) in free:
            continue
        allowed = [name for name in free if banned is None or name not in banned.get(segment.name, ())]
        if not allowed:
            result.refused[segment.name] = "no device" if not free else "failed on every device"
            continue
        device = max(allowed, key=lambda name: (free[name], name))
        choice = choose(segment.rows, segment.dim, segment.metric, free[device], cuvs=cuvs[device], index=segment.index)
        if choice is None:
            smallest = need("flat" if segment.index == "flat" else "ivf_pq", segment.rows, segment.dim, segment.metric)
            result.refused[segment.name] = f"budget: {smallest.peak:,} bytes wanted, {free[device]:,} free"
            continue
        free[device] -= choice.need.serve
        result.build[segment.name] = (device, choice)
    return result


def levelled(
    wanted: Sequence[Wanted],
    rooms: Sequence[Room],
    held: Mapping[str, tuple[str, int]],
    banned: Mapping[str, set[str]] | None = None,
) -> tuple[str, str, Choice] | None:
    """Return a segment to move, the device to move it to, and its index there; None where all are well placed.

    It goes from the device with the least memory left to the one with the most, and takes at most half of the
    difference: so each move brings them nearer to each other, and they come to an end.

    Parameters
    ----------
    wanted, rooms, banned
        As for `place`.
    held
        Device of each segment, and the bytes that its index takes.
    """
    if len(rooms) < 2:
        return None
    source, target = (pick(rooms, key=lambda room: (room.free, room.name)) for pick in (min, max))
    gap = target.free - source.free
    for segment in sorted(wanted, key=lambda one: (-held.get(one.name, ("", 0))[1], one.name)):
        device, size = held.get(segment.name, ("", 0))
        is_barred = banned is not None and target.name in banned.get(segment.name, ())
        if device != source.name or 2 * size > gap or is_barred:
            continue
        choice = choose(segment.rows, segment.dim, segment.metric, target.free, cuvs=target.cuvs, index=segment.index)
        if choice is not None and 2 * choice.need.serve <= gap:
            return segment.name, target.name, choice
    return None
