"""What waits for a synchronous standby, and a standby whose log was cut beneath it, between processes."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from vecstore.errors import DeadlineExceeded

from .stores import Store, put
from .test_follow import counts, digest

SMALL = {
    "VECSTORE_SLOT_RETAINED_BYTES_MAX": str(1 << 20),
    "VECSTORE_CHECKPOINT_LOG_BYTES": str(64 << 10),
    "VECSTORE_CHECKPOINT_INTERVAL_S": "0.2",
    "VECSTORE_CHECKPOINTS_RETAINED": "1",
}
"""A log that is cut soon, and held for a slot up to a megabyte."""


@contextlib.contextmanager
def reading(store: Store) -> Iterator[list[int]]:
    """Count a store's points again and again; none of that may fail."""
    seen: list[int] = []
    is_over = threading.Event()

    def read() -> None:
        with store.database() as database:
            while not is_over.is_set():
                seen.append(database.collection("docs").count())

    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(read)
        try:
            yield seen
        finally:
            is_over.set()
        reader.result(60)


def test_replicated_waits_for_the_standby_and_says_what_is_durable(tmp_path: Path) -> None:
    """With it, an acknowledgement means both; without it, the error says durable, and a wait goes on."""
    primary = Store(tmp_path / "a", "--region", "east", "--synchronous", "west")
    with primary.running(), primary.database() as database:
        put(database, 0, 10)
        standby = Store(tmp_path / "b", "--region", "west", "--standby-of", primary.address)
        vector = np.ones((1, 4), np.float32)
        with standby.running():
            standby.wait(lambda found: found["status"] == "following")
            written = database.collection("docs").upsert([100], vector, ack="replicated", timeout=20)
            assert written.ack == "replicated"
            assert standby.describe()["durable_lsn"] >= written.lsn
        with pytest.raises(DeadlineExceeded) as caught:
            database.collection("docs").upsert([101], vector, ack="replicated", timeout=1)
        assert caught.value.outcome == "durable"
        token = caught.value.details["token"]
        with standby.running():
            assert database.wait(token, ack="replicated", timeout=20).ack == "replicated"


def test_a_standby_that_is_too_far_behind_takes_a_snapshot(tmp_path: Path) -> None:
    """Its slot is lost, loudly; when it comes back its contents are replaced beneath its running server."""
    primary = Store(tmp_path / "a", "--region", "east", environment=SMALL)
    with primary.running():
        with primary.database() as database:
            put(database, 0, 10)
        standby = Store(tmp_path / "b", "--region", "west", "--standby-of", primary.address, "--slot", "west")
        with standby.running():
            standby.wait(lambda found: found["status"] == "following")
        with primary.database() as database:
            for i in range(60):
                token = put(database, 1_000 * i, 1_000)
            found = primary.wait(lambda found: found["slots"][0]["is_lost"])
            assert any("slot west is lost" in alarm["text"] for alarm in found["alarms"])
            with standby.running(), reading(standby) as seen:
                assert counts(standby, token) == 60_000
                token = put(database, 100_000, 10)
                assert counts(standby, token) == 60_010
                assert digest(standby) == digest(primary)
                assert standby.describe()["status"] == "following"
                found = primary.wait(lambda found: not found["slots"][0]["is_lost"])
            assert '"event": "contents were replaced"' in standby.logs()
            assert seen == sorted(seen) and set(seen) <= {10, 60_000, 60_010}, set(seen)


def test_a_standby_is_filled_from_a_repository_and_follows(tmp_path: Path) -> None:
    """The snapshot and the archived log come from there, the rest from the primary; it keeps the lineage."""
    repository = str(tmp_path / "repository")
    primary = Store(tmp_path / "a", "--region", "east", "--archive", repository)
    with primary.running(), primary.database() as database:
        put(database, 0, 1_000)
        database.snapshot(repository)
        token = put(database, 1_000, 500)
        arguments = ("--region", "west", "--standby-of", primary.address, "--bootstrap-from", repository)
        standby = Store(tmp_path / "b", *arguments)
        with standby.running():
            assert counts(standby, token) == 1_500
            token = put(database, 5_000, 10)
            assert counts(standby, token) == 1_510
            assert digest(standby) == digest(primary)
        assert '"event": "bootstrapped"' in standby.logs() and "repository" in standby.logs()
