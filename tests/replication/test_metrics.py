"""Metrics of two Regions, from outside: lag, slots and links, while both run, when the primary is gone, and after."""

from __future__ import annotations

from pathlib import Path

from tests.support.serve import Served

from .stores import Store, eventually, put


def metrics_of(store: Store) -> dict[str, float]:
    """Return samples by name, with the values of labels that are no store's id behind it."""
    served = store.served
    assert isinstance(served, Served)
    return {
        name + "".join(f",{value}" for key, value in sorted(labels) if key not in ("lineage", "peer")): value
        for (name, labels), value in served.metrics().items()
    }


def test_both_sides_tell_of_the_lag(tmp_path: Path) -> None:
    """A standby at the tip is not behind; gone from its primary it is ever more so; promoted it has no lag at all."""
    east = Store(tmp_path / "east", "--region", "east")
    west = Store(tmp_path / "west", "--region", "west", "--slot", "west")
    with east.running(), east.database() as primary:
        put(primary, 0, 10)
        with west.running("--standby-of", east.address):
            west.wait(lambda found: found["status"] == "following" and found["applied_lsn"] == found["seen_lsn"])
            here = eventually(lambda: metrics_of(west), lambda found: found.get("vecstore_link_connected") == 1)
            assert here["vecstore_role,standby,following"] == 1
            assert here["vecstore_lag_records"] == here["vecstore_lag_bytes"] == here["vecstore_lag_seconds"] == 0
            assert here["vecstore_rpo_seconds"] == 0
            assert here["vecstore_primary_lsn_seen"] == here["vecstore_lsn_applied"]
            assert here["vecstore_epoch"] == 1
            assert abs(here["vecstore_link_clock_skew_seconds"]) < 5

            def fed(found: dict[str, float]) -> bool:
                return found.get("vecstore_slot_connected,west") == 1 and found["vecstore_slot_lag_records,west"] == 0

            there = eventually(lambda: metrics_of(east), fed)
            assert there["vecstore_role,primary,open"] == 1
            assert there["vecstore_slot_lost,west"] == 0
            assert there["vecstore_slot_retained_bytes,west"] < there["vecstore_slot_retained_bytes_max"]
            assert "vecstore_lag_seconds" not in there

            east.kill()
            gone = eventually(lambda: metrics_of(west), lambda found: found["vecstore_lag_seconds"] > 1.5)
            assert gone["vecstore_link_connected"] == 0
            assert gone["vecstore_lag_records"] == 0
            assert west.command("promote", replaces=1).done
            now = eventually(lambda: metrics_of(west), lambda found: found["vecstore_epoch"] == 2)
            assert now["vecstore_role,primary,open"] == now["vecstore_primary"] == 1
            assert "vecstore_lag_seconds" not in now


def test_a_slot_without_its_standby_pins_the_log(tmp_path: Path) -> None:
    """While a standby is away its slot is not fed, and bytes of the log are kept for it."""
    east = Store(tmp_path / "east", "--region", "east")
    west = Store(tmp_path / "west", "--region", "west", "--slot", "west")
    with east.running(), east.database() as primary:
        put(primary, 0, 10)
        with west.running("--standby-of", east.address):
            west.wait(lambda found: found["status"] == "following")
        put(primary, 0, 500)

        def pinned(found: dict[str, float]) -> bool:
            return found.get("vecstore_slot_connected,west") == 0 and found["vecstore_slot_retained_bytes,west"] > 1_000

        found = eventually(lambda: metrics_of(east), pinned)
        assert found["vecstore_slot_lag_records,west"] >= 1
        assert found["vecstore_slot_lag_seconds,west"] > 0
        assert found["vecstore_rpo_seconds"] > 0
