"""What a store is in the replication, as a tree of plain values: for commands, status, metrics and `vecstore doctor`.

Read beside the driver's thread, which it never waits for: a store that is busy, or whose replication has failed, can be
asked too. Each value is whole in itself; two of them may be a step apart.
"""

from __future__ import annotations

import time
from typing import Any

import msgspec

from ..replication.driver import Driver
from ..replication.feed import Feed
from ..replication.lag import Lag, Position, StandbyLag, Trail
from ..replication.standby import Standby
from .follow import Links

__all__ = ["applied_of", "describe", "end_of"]

HEARTBEATS = 3


def end_of(driver: Driver) -> Position:
    """Return where a store's durable log ends."""
    tip = driver.engine.state.fold.tip
    return Position(driver.engine.durable_lsn, tip.log_bytes, tip.commit_time_us)


def applied_of(driver: Driver) -> Position:
    """Return how much of the log readers see."""
    tip = driver.engine.state.fold.tip
    return Position(driver.engine.state.view.lsn, tip.log_bytes, tip.commit_time_us)


def describe(driver: Driver, links: Links, trail: Trail, lag: StandbyLag, region: str) -> dict[str, Any]:
    """Return what a store is in the replication."""
    member, engine = driver.member, driver.engine
    durable, promise, now_s = member.durable, member.durable.promise, time.monotonic()
    primary_id = member.me if durable.role == "primary" else durable.primary or (promise.store_id if promise else "")
    part = member.part
    # Heartbeats say where the primary's log ends: without, what it has is not known, though something arrives.
    is_heard = lag.heard_s is not None and now_s - lag.heard_s <= HEARTBEATS * member.timing.call_every_s
    is_connected = isinstance(part, Standby) and part.is_connected and is_heard
    behind = lag.lag(applied_of(driver), now_s, is_connected=is_connected) if durable.role == "standby" else Lag()
    return {
        "store_id": member.me,
        "lineage": engine.lineage.hex(),
        "region": region,
        "role": durable.role,
        "status": "failed" if driver.failed else member.status,
        "reason": durable.reason,
        "problem": driver.failed,
        "accepts_writes": driver.accepts_writes,
        "serves_reads": member.serves_reads,
        "epoch": member.number,
        "forgotten_epoch": member.forgotten_epoch,
        "epochs": [msgspec.to_builtins(epoch) for epoch in list(engine.state.fold.epochs)],
        "lsn": engine.state.fold.tip.lsn,
        "durable_lsn": engine.durable_lsn,
        "applied_lsn": engine.state.view.lsn,
        "replicated_lsn": engine.committer.replicated_lsn if engine.committer is not None else 0,
        "synchronous": member.synchronous,
        "primary": {"store_id": primary_id, "address": links.address(primary_id)},
        "peers": list(durable.peers),
        "slots": _slots(driver, links, trail, now_s),
        "lag": msgspec.to_builtins(behind),
        "first_lsn": driver.log.first_lsn,
        "held_back": driver.inflow.why,
        "seen_lsn": max(lag.seen_lsn, getattr(part, "seen_lsn", 0)),
        "verified": None,
        "rejoin": None if durable.rejoin is None else msgspec.to_builtins(durable.rejoin),
        "bootstraps": durable.bootstraps,
        "alarms": [{"time_s": alarm.time_s, "text": alarm.text} for alarm in list(driver.alarms)],
        "links": links.describe(),
    }


def _slots(driver: Driver, links: Links, trail: Trail, now_s: float) -> list[dict[str, Any]]:
    feed: Feed | None = getattr(driver.member.part, "feed", None)
    streams = {} if feed is None else dict(feed.streams)
    found = []
    for slot in driver.member.durable.slots:
        stream = streams.get(slot.store_id)
        lsn = slot.lsn if stream is None else max(slot.lsn, stream.acked.lsn)
        lag = trail.lag(lsn, now_s)
        region = links.region(slot.store_id) if stream is None else stream.region
        found.append(
            {
                "name": slot.name,
                "store_id": slot.store_id,
                "region": region,
                "lsn": lsn,
                "lag_records": max(0, driver.engine.durable_lsn - lsn),
                "lag_bytes": lag.bytes,
                "lag_seconds": lag.seconds,
                "is_lost": slot.is_lost,
                "connected": stream is not None,
            }
        )
    return found
