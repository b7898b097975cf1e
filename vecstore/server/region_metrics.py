"""What Prometheus sees of the replication: made of what a store says of itself to anybody who asks (`Describe`).

Pure: plain values in, metrics out. A store that knows of no other exports its role, and no lag: that nobody is behind
it is not the same as a lag of zero. What is not known is absent, never zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prometheus_client.core import Metric

from .family import Family, Samples, counter, gauge

__all__ = ["REGION_FAMILIES", "of_drills", "of_replication"]

CHECK_STATES = ("ok", "warn", "unknown")
PHASES = ("seek", "checkpoint", "export", "reset", "follow", "verify")

REGION_FAMILIES: dict[str, Family] = {
    "vecstore_role": Family("gauge", "1 for what this store is, and what it is doing.", ("lineage", "role", "status")),
    "vecstore_epoch_forgotten": Family(
        "gauge", "Epoch that this store wrote and its disk does not know any more; 0 for none."
    ),
    "vecstore_rpo_seconds": Family(
        "gauge", "Seconds of writes that a failover now would lose, as far as this store knows."
    ),
    "vecstore_lag_records": Family("gauge", "Records of the primary that this standby has not applied."),
    "vecstore_lag_bytes": Family("gauge", "Bytes of log of the primary that this standby has not applied."),
    "vecstore_lag_seconds": Family("gauge", "Age of the oldest record that this standby lacks; grows in silence."),
    "vecstore_held_back": Family("gauge", "1 while records of the primary wait, since this standby has no room."),
    "vecstore_primary_lsn_seen": Family("gauge", "Durable LSN of the primary, as this standby last heard."),
    "vecstore_verified_lsn": Family("gauge", "LSN up to which the contents were last proven equal to the primary's."),
    "vecstore_verified_age_seconds": Family("gauge", "Seconds since then."),
    "vecstore_scrub_differences": Family("gauge", "Ranges of keys that differ from the primary's and are not mended."),
    "vecstore_takeover_ready": Family("gauge", "1 while this standby could take over: every check is ok."),
    "vecstore_takeover_check": Family("gauge", "1 for what a check of a standby has come to.", ("check", "state")),
    "vecstore_takeover_facts_age_seconds": Family(
        "gauge", "Age of what the primary last said of itself, which the checks compare with."
    ),
    "vecstore_rejoin_phase": Family("gauge", "1 for the phase of the rejoin that is under way.", ("phase",)),
    "vecstore_alarm_time_seconds": Family(
        "gauge", "When the replication last raised an alarm, in seconds since the Unix epoch."
    ),
    "vecstore_link_connected": Family("gauge", "1 while a store of the lineage is connected.", ("peer",)),
    "vecstore_link_reconnects_total": Family("counter", "Times that the link to a store was made again.", ("peer",)),
    "vecstore_link_sent_bytes_total": Family("counter", "Bytes of messages and records sent to a store.", ("peer",)),
    "vecstore_link_received_bytes_total": Family("counter", "The same that came from it.", ("peer",)),
    "vecstore_link_clock_skew_seconds": Family("gauge", "A store's clock against this one's.", ("peer",)),
    "vecstore_slot_connected": Family("gauge", "1 while the standby of a slot is fed.", ("slot",)),
    "vecstore_slot_lag_records": Family("gauge", "Records that the standby of a slot has not synced.", ("slot",)),
    "vecstore_slot_lag_seconds": Family("gauge", "Age of the oldest of them.", ("slot",)),
    "vecstore_slot_retained_bytes": Family("gauge", "Bytes of log that are kept for a slot.", ("slot",)),
    "vecstore_slot_retained_bytes_max": Family("gauge", "Bytes of log kept for a slot at most; beyond, it is lost."),
    "vecstore_slot_lost": Family("gauge", "1 for a slot beneath which the log was cut.", ("slot",)),
    "vecstore_drills_total": Family("counter", "Drills of this store, by what came of them.", ("result",)),
    "vecstore_drill_time_seconds": Family("gauge", "When the last drill began, in seconds since the Unix epoch."),
    "vecstore_drill_passed": Family("gauge", "1 where the last drill kept its limits and found no difference."),
    "vecstore_drill_rpo_records": Family("gauge", "Records that were not there when the last drill began."),
    "vecstore_drill_rpo_bytes": Family("gauge", "Their bytes of log."),
    "vecstore_drill_rpo_seconds": Family("gauge", "Age of the oldest of them."),
    "vecstore_drill_rto_seconds": Family(
        "gauge", "From its beginning to the first answered query and the first accepted write."
    ),
}


def of_replication(found: Mapping[str, Any] | None, retained_bytes_max: int) -> Iterator[Metric]:
    """Iterate over the metrics of what a store says of its replication; None where it says nothing."""
    state: Mapping[str, Any] = found or {}
    lag = state.get("lag") or {} if state.get("role") == "standby" else {}
    verified, rejoin, readiness = (state.get(key) or {} for key in ("verified", "rejoin", "readiness"))
    one: dict[str, Any] = {
        "vecstore_epoch_forgotten": state.get("forgotten_epoch"),
        "vecstore_rpo_seconds": _rpo_s(state, lag),
        "vecstore_lag_records": lag.get("records"),
        "vecstore_lag_bytes": lag.get("bytes"),
        "vecstore_lag_seconds": lag.get("seconds"),
        "vecstore_held_back": float(bool(state.get("held_back"))) if lag else None,
        "vecstore_primary_lsn_seen": state.get("seen_lsn") if lag else None,
        "vecstore_verified_lsn": verified.get("lsn"),
        "vecstore_verified_age_seconds": verified.get("age_s"),
        "vecstore_scrub_differences": _count(state.get("differences")),
        "vecstore_takeover_ready": _is(readiness, "ready"),
        "vecstore_takeover_facts_age_seconds": readiness.get("primary_age_s"),
        "vecstore_alarm_time_seconds": max((alarm["time_s"] for alarm in state.get("alarms") or ()), default=None),
        "vecstore_slot_retained_bytes_max": retained_bytes_max,
    }
    role = tuple(str(state.get(key, "")) for key in ("lineage", "role", "status"))
    yield _gauge("vecstore_role", [(role, 1.0)] if state else [])
    for name, value in one.items():
        yield _gauge(name, [] if value is None else [((), float(value))])
    checks = (readiness.get("checks") or {}).items()
    states = [((name, known), float(known == found)) for name, found in checks for known in CHECK_STATES]
    yield _gauge("vecstore_takeover_check", states)
    phase = rejoin.get("phase")
    yield _gauge("vecstore_rejoin_phase", [((known,), float(known == phase)) for known in PHASES] if phase else [])
    yield from _of_links(state.get("links") or ())
    yield from _of_slots(state.get("slots") or ())


def _rpo_s(state: Mapping[str, Any], lag: Mapping[str, Any]) -> float | None:
    """Return a standby's own lag; a primary's is that of the standby which is nearest."""
    if lag:
        return lag.get("seconds")
    seconds = [slot.get("lag_seconds") for slot in state.get("slots") or () if not slot.get("is_lost")]
    return min((found for found in seconds if found is not None), default=None)


def _of_links(links: Sequence[Mapping[str, Any]]) -> Iterator[Metric]:
    yield _gauge("vecstore_link_connected", _by(links, "store_id", "connected"))
    yield counter(REGION_FAMILIES, "vecstore_link_reconnects_total", _by(links, "store_id", "reconnects"))
    yield counter(REGION_FAMILIES, "vecstore_link_sent_bytes_total", _by(links, "store_id", "sent_bytes"))
    yield counter(REGION_FAMILIES, "vecstore_link_received_bytes_total", _by(links, "store_id", "received_bytes"))
    yield _gauge("vecstore_link_clock_skew_seconds", _by(links, "store_id", "clock_skew_s"))


def _of_slots(slots: Sequence[Mapping[str, Any]]) -> Iterator[Metric]:
    yield _gauge("vecstore_slot_connected", _by(slots, "name", "connected"))
    yield _gauge("vecstore_slot_lag_records", _by(slots, "name", "lag_records"))
    yield _gauge("vecstore_slot_lag_seconds", _by(slots, "name", "lag_seconds"))
    held = [slot for slot in slots if not slot.get("is_lost")]
    yield _gauge("vecstore_slot_retained_bytes", _by(held, "name", "lag_bytes"))
    yield _gauge("vecstore_slot_lost", _by(slots, "name", "is_lost"))


def of_drills(history: Sequence[Mapping[str, Any]]) -> Iterator[Metric]:
    """Iterate over the metrics of the drills that a store remembers, oldest first."""
    passed = sum(bool(one["passed"]) for one in history)
    counts = [(("passed",), float(passed)), (("failed",), float(len(history) - passed))] if history else []
    yield counter(REGION_FAMILIES, "vecstore_drills_total", counts)
    last: Mapping[str, Any] = history[-1] if history else {}
    for name, key in (
        ("vecstore_drill_time_seconds", "time_s"),
        ("vecstore_drill_passed", "passed"),
        ("vecstore_drill_rpo_records", "rpo_records"),
        ("vecstore_drill_rpo_bytes", "rpo_bytes"),
        ("vecstore_drill_rpo_seconds", "rpo_s"),
        ("vecstore_drill_rto_seconds", "rto_s"),
    ):
        value = last.get(key)
        yield _gauge(name, [] if value is None else [((), float(value))])


def _gauge(name: str, samples: Samples) -> Metric:
    return gauge(REGION_FAMILIES, name, samples)


def _by(found: Sequence[Mapping[str, Any]], label: str, key: str) -> list[tuple[tuple[str, ...], float]]:
    """Return what is known under a key, by a label; the newest where one stands twice."""
    values = {str(one[label]): one.get(key) for one in found if one.get(label)}
    return [((name,), float(value)) for name, value in values.items() if value is not None]


def _count(found: Any) -> int | None:
    return None if found is None else len(found)


def _is(found: Any, key: str) -> float | None:
    return float(found[key]) if isinstance(found, Mapping) and key in found else None
