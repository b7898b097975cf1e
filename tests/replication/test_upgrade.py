"""A primary of a later version writes a kind of record that its standby does not know: standbys are upgraded first."""

from __future__ import annotations

from pathlib import Path

from .stores import following, put
from .test_failover import pair
from .test_follow import counts

NEWER = {"BENT_NEWER": "1"}


def test_an_unknown_kind_stops_a_standby_until_it_is_upgraded(tmp_path: Path) -> None:
    """It stops with an error that says so, keeps all and reads on, also after a restart; upgraded, it goes on."""
    with pair(tmp_path, of_a=NEWER) as (a, b):
        before = b.describe()
        with a.database() as database:
            database.rename_collection("docs", "papers")
            put(database, 100, 10, "papers")
        for _ in range(2):
            found = b.wait(lambda found: found["status"] == "stopped")
            assert any("kind 99: not known to this version" in alarm["text"] for alarm in found["alarms"])
            assert found["lsn"] == before["lsn"]
            assert (found["problem"], found["role"]) == ("", "standby")
            assert counts(b, None) == 100
            b.stop()
            b.start()
        b.stop()
        b.environment = {**b.environment, **NEWER}
        b.start()
        following(a, b)
        assert counts(b, None, "papers") == 110
        assert a.describe()["accepts_writes"]
