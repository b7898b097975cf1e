"""Metrics of the replication: a standby's, a primary's, and what is absent because nobody knows it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from prometheus_client.core import Metric

from vecstore.server.region_metrics import REGION_FAMILIES, of_drills, of_replication

STANDBY: dict[str, Any] = {
    "store_id": "b",
    "lineage": "0a",
    "role": "standby",
    "status": "following",
    "epoch": 3,
    "lsn": 90,
    "durable_lsn": 90,
    "applied_lsn": 90,
    "primary": {"store_id": "a", "address": "127.0.0.1:7601"},
    "peers": ["a"],
    "slots": [],
    "lag": {"records": 10, "bytes": 1000, "seconds": 2.5},
    "seen_lsn": 100,
    "verified": {"lsn": 80, "age_s": 7.0},
    "rejoin": {"phase": "follow"},
    "readiness": {"ready": False, "checks": {"lag": "ok", "archive": "unknown"}, "primary_age_s": 4.5},
    "alarms": [{"time_s": 1767225600.0, "text": "slot lost"}],
    "held_back": "memory: the store holds 2 of 1 bytes",
    "links": [
        {
            "store_id": "a",
            "address": "",
            "connected": True,
            "reconnects": 4,
            "sent_bytes": 300,
            "received_bytes": 70_000,
            "clock_skew_s": -0.25,
        }
    ],
}
SLOT = {"name": "west", "store_id": "b", "region": "west", "lsn": 90, "lag_records": 10, "lag_bytes": 1000}
PRIMARY: dict[str, Any] = {
    "store_id": "a",
    "role": "primary",
    "status": "open",
    "slots": [
        {**SLOT, "lag_seconds": 2.0, "is_lost": False, "connected": True},
        {**SLOT, "name": "east", "lag_seconds": 900.0, "is_lost": True, "connected": False},
    ],
    "lag": {"records": 0, "bytes": 0, "seconds": 0.0},
    "seen_lsn": 0,
    "rejoin": None,
    "links": [],
}


def values(metrics: Iterable[Metric]) -> dict[str, Any]:
    """Return samples as ``name`` or ``name{label}`` to value."""
    return {
        sample.name + (f"{{{','.join(sample.labels.values())}}}" if sample.labels else ""): sample.value
        for metric in metrics
        for sample in metric.samples
    }


def test_a_standby_tells_how_far_it_is_behind() -> None:
    """Lag, the primary's tip, what was proven, the rejoin, the link with its skew."""
    found = values(of_replication(STANDBY, 1 << 30))
    assert found["vecstore_role{0a,standby,following}"] == 1
    assert found["vecstore_lag_records"] == 10
    assert found["vecstore_lag_bytes"] == 1000
    assert found["vecstore_lag_seconds"] == found["vecstore_rpo_seconds"] == 2.5
    assert found["vecstore_primary_lsn_seen"] == 100
    assert (found["vecstore_verified_lsn"], found["vecstore_verified_age_seconds"]) == (80, 7.0)
    assert found["vecstore_rejoin_phase{follow}"] == 1
    assert found["vecstore_rejoin_phase{reset}"] == 0
    assert found["vecstore_takeover_ready"] == 0
    assert found["vecstore_takeover_check{lag,ok}"] == found["vecstore_takeover_check{archive,unknown}"] == 1
    assert found["vecstore_takeover_check{archive,ok}"] == found["vecstore_takeover_check{archive,warn}"] == 0
    assert found["vecstore_takeover_facts_age_seconds"] == 4.5
    assert found["vecstore_alarm_time_seconds"] == 1767225600.0
    assert found["vecstore_link_connected{a}"] == 1
    assert found["vecstore_link_reconnects_total{a}"] == 4
    assert found["vecstore_link_clock_skew_seconds{a}"] == -0.25
    assert (found["vecstore_link_sent_bytes_total{a}"], found["vecstore_link_received_bytes_total{a}"]) == (300, 70_000)
    assert found["vecstore_held_back"] == 1
    assert values(of_replication({**STANDBY, "held_back": ""}, 1))["vecstore_held_back"] == 0


def test_a_primary_tells_of_its_slots() -> None:
    """What is kept for each, which is lost, and the lag of the nearest as what a failover would lose."""
    found = values(of_replication(PRIMARY, 1 << 30))
    assert found["vecstore_rpo_seconds"] == 2.0
    assert found["vecstore_slot_connected{west}"] == 1
    assert found["vecstore_slot_lag_records{west}"] == 10
    assert found["vecstore_slot_retained_bytes{west}"] == 1000
    assert found["vecstore_slot_retained_bytes_max"] == 1 << 30
    assert found["vecstore_slot_lost{east}"] == 1
    assert "vecstore_slot_retained_bytes{east}" not in found
    assert "vecstore_lag_seconds" not in found
    assert "vecstore_rejoin_phase{follow}" not in found


def test_an_epoch_that_was_forgotten_is_told() -> None:
    """By its number; 0 of a store that knows what it wrote."""
    assert values(of_replication({"role": "fenced", "forgotten_epoch": 3}, 1))["vecstore_epoch_forgotten"] == 3
    assert values(of_replication({"role": "fenced", "forgotten_epoch": 0}, 1))["vecstore_epoch_forgotten"] == 0


def test_what_is_not_known_is_absent() -> None:
    """A store without peers has no lag of zero, no proof, no drill; every family is declared all the same."""
    metrics = [*of_replication(None, 5), *of_drills(())]
    assert values(metrics) == {"vecstore_slot_retained_bytes_max": 5}
    assert {metric.name for metric in metrics} == {name.removesuffix("_total") for name in REGION_FAMILIES}


def test_drills_are_told() -> None:
    """The last one's figures, and how many came to what."""
    history = [
        {"passed": False, "time_s": 1.0},
        {"passed": True, "time_s": 2.0, "rpo_records": 3, "rpo_bytes": 400, "rpo_s": 0.5, "rto_s": 1.25},
    ]
    found = values(of_drills(history))
    assert (found["vecstore_drills_total{passed}"], found["vecstore_drills_total{failed}"]) == (1, 1)
    assert found["vecstore_drill_time_seconds"] == 2.0
    assert found["vecstore_drill_passed"] == 1
    assert found["vecstore_drill_rpo_records"] == 3
    assert found["vecstore_drill_rpo_bytes"] == 400
    assert found["vecstore_drill_rpo_seconds"] == 0.5
    assert found["vecstore_drill_rto_seconds"] == 1.25
