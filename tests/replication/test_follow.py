"""A standby's process bootstraps from a primary's process, follows it, and goes on after restarts of either."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest

from tests.support.serve import call
from vecstore.errors import NotPrimary
from vecstore.wire.status import error_from
from vecstore.wire.v1 import store_pb2 as pb

from .stores import Store, put


def counts(store: Store, after: str | None, name: str = "docs") -> int:
    """Return how many points a store shows after a token."""
    with store.database() as database:
        return database.collection(name).count(after=after)


def digest(store: Store) -> str:
    """Return the digest of a store's collection."""
    with store.database() as database:
        found: str = database.status()["collections"]["docs"]["digest"]
        return found


def refused(store: Store) -> NotPrimary:
    """Return the error that a store's server refuses a write with."""
    assert store.served is not None
    with store.served.channel() as channel, pytest.raises(grpc.RpcError) as caught:
        call(channel, "CreateCollection", pb.CreateCollectionRequest(name="other", dim=4))
    error = error_from(caught.value)
    assert isinstance(error, NotPrimary)
    return error


def test_an_empty_folder_becomes_a_standby_and_follows(tmp_path: Path) -> None:
    """It holds what was there, gets what comes, serves reads after a token, and refuses writes."""
    primary = Store(tmp_path / "a", "--region", "east")
    with primary.running():
        with primary.database() as database:
            put(database, 0, 500)
        standby = Store(tmp_path / "b", "--region", "west", "--standby-of", primary.address, "--slot", "west")
        with standby.running():
            standby.wait(lambda found: found["status"] == "following")
            with primary.database() as database:
                token = put(database, 500, 100)
            assert counts(standby, token) == 600
            assert digest(standby) == digest(primary)
            refusal = refused(standby)
            assert refusal.primary == primary.address and primary.address in str(refusal)
            found = primary.wait(lambda found: found["slots"][0]["lag_records"] == 0)
            assert [(slot["name"], slot["connected"], slot["region"]) for slot in found["slots"]] == [
                ("west", True, "west")
            ]
            assert standby.describe()["primary"]["address"] == primary.address


def test_both_restart_at_any_moment(tmp_path: Path) -> None:
    """Killed or stopped, in either order: the standby goes on from what it has."""
    primary = Store(tmp_path / "a", "--region", "east")
    primary.start()
    with primary.database() as database:
        put(database, 0, 100)
    standby = Store(tmp_path / "b", "--region", "west", "--standby-of", primary.address)
    standby.start()
    try:
        standby.wait(lambda found: found["status"] == "following")
        for i, end in enumerate((standby.kill, primary.kill, standby.stop, primary.stop)):
            end()
            (standby if i in (0, 2) else primary).start()
            primary.wait(lambda found: found["accepts_writes"])
            with primary.database() as database:
                token = put(database, 100 + 10 * i, 10)
            assert counts(standby, token) == 110 + 10 * i
        assert digest(standby) == digest(primary)
    finally:
        standby.stop()
        primary.stop()
