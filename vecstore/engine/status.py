"""The status of a store: one tree of plain values."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from .engine import Engine, disk_free_bytes
from .kept import kept
from .view import CollectionView, ShardView

__all__ = ["status_of"]


def status_of(engine: Engine) -> dict[str, Any]:
    """Return what there is to know of an open store."""
    view = engine.state.view
    broken = engine.committer.broken if engine.committer is not None else None
    held = engine.committer is not None and engine.committer.held is not None
    part = engine.part
    return {
        "lineage": engine.lineage.hex(),
        "store_id": engine.directory.store_id.hex(),
        "region": "",
        "role": "primary" if part is None else part.role,
        "read_only": engine.read_only,
        "writable": not engine.read_only and broken is None and not held,
        "problem": "" if broken is None else str(broken),
        "epoch": view.epoch,
        "lsn": view.lsn,
        "durable_lsn": engine.durable_lsn,
        "chain": view.chain.hex(),
        "token": engine.token(view),
        "device": engine.device,
        "devices": engine.accelerator.status() if engine.accelerator is not None else [],
        "device_fallbacks": engine.accelerator.fallback_counts() if engine.accelerator is not None else {},
        "device_refused": dict(engine.accelerator.devices.refused) if engine.accelerator is not None else {},
        "memory_bytes": engine.memory_bytes(),
        "memory_bytes_max": engine.config.memory_budget_bytes(),
        "disk_free_bytes": disk_free_bytes(engine.directory.path),
        "disk_free_bytes_min": engine.config.disk_free_bytes_min,
        "filter_cache": {
            "bytes": engine.filters.bytes,
            "hits": engine.filters.hits,
            "misses": engine.filters.misses,
        },
        "checkpoints": [entry.lsn for entry in engine.checkpointer.entries] if engine.checkpointer else [],
        "slots": _slots(engine),
        "archive": None if engine.archiver is None else engine.archiver.status(),
        "kept": kept(engine.directory.path),
        "findings": list(engine.findings),
        "metrics": engine.metrics.to_plain(),
        "collections": {
            collection.state.definition.name: _collection(collection, view.lsn)
            for collection in sorted(view.collections.values(), key=lambda c: c.state.definition.name)
        },
    }


def _slots(engine: Engine) -> list[dict[str, Any]]:
    if engine.read_only:
        return []
    log_bytes = engine.state.fold.tip.log_bytes
    return [
        {
            "name": slot.name,
            "consumer": slot.consumer,
            "lsn": slot.lsn,
            "retained_bytes": max(0, log_bytes - slot.log_bytes),
            "lost": engine.slots.is_lost(slot, log_bytes),
        }
        for slot in engine.slots.held.values()
    ]


def _collection(collection: CollectionView, lsn: int) -> dict[str, Any]:
    state = collection.state
    definition = state.definition
    segments = [segment for shard in collection.shards for segment in _segments(shard, lsn)]
    measured = [s["recall"] for s in segments if s.get("recall", {}).get("source") == "measured"]
    return {
        "count": state.points,
        "digest": state.digest.to_bytes(16, "big").hex(),
        "dim": definition.dim,
        "metric": definition.metric,
        "index": definition.index,
        "shards": definition.shards,
        "fields": dict(definition.fields),
        "metadata": deepcopy(definition.metadata),
        "created_lsn": definition.created_lsn,
        "unsealed_rows": sum(segment["rows"] for segment in segments if segment["state"] == "growing"),
        "recall": measured[0] if measured else {"source": "table", "recall": {}},
        "segments": segments,
    }


def _segments(shard: ShardView, lsn: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for segment, dead in zip(shard.sealed.segments, shard.sealed.dead, strict=True):
        index, curve = segment.index, segment.curve
        found.append(
            {
                "state": "sealed",
                "rows": segment.rows,
                "dead": dead,
                "extents": len(segment.extents),
                "kind": index.kind if index is not None else "flat",
                "lists": index.lists if index is not None else 0,
                "bytes": segment.bytes,
                "recall": curve.report() if curve is not None else {"source": "exact", "recall": {}},
            }
        )
    for growing in shard.growing:
        alive = shard.alive(growing, lsn)
        dead = 0 if alive is None else growing.rows - int(alive.sum())
        found.append({"state": "growing", "rows": growing.rows, "dead": dead, "kind": "flat"})
    return found
