"""All that a takeover needs is on the standby's machine: it works with the primary, the repository and names gone.

Real processes. The primary is killed, the repository's server is killed, and from then on every question for a name
hangs (`tests/support/names.c`), which is worse than an answer that there is none. Stores and repository are known to
each other by names alone.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from tests.support.names import HANG_S, Names
from tests.support.s3 import BUCKET, s3_environment, s3_server
from tests.support.serve import ROOT
from vecstore.client.remote import connect

from .stores import Store, eventually, put

TAKEOVER_S_MAX = HANG_S / 2
"""Half of what one question for a name takes: nothing on the way may have waited for an answer."""


class Scene(NamedTuple):
    """A primary and its standby, by names, and what cuts everything but the standby."""

    primary: Store
    standby: Store
    cut: Callable[[], None]


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def staged(folder: Path, archive: str, end: Callable[[], None], environment: Mapping[str, str]) -> Iterator[Scene]:
    """Run both with an archive, the standby with all that the primary has, each known to the other by name alone."""
    names = Names(folder)
    east, west = free_port(), free_port()
    with contextlib.ExitStack() as stack:

        def started(name: str, port: int, *more: str) -> Store:
            flags = ["--region", name, "--advertise", Names.of(name, port), "--archive", archive, *more]
            store = Store(folder / name, *flags, port=port, environment={**names.environment, **environment})
            stack.callback(store.stop)
            store.start()
            return store

        primary = started("east", east)
        with primary.database() as database:
            put(database, 0, 100)
        standby = started("west", west, "--standby-of", Names.of("east", east), "--slot", "west")
        found = standby.wait(lambda found: found["status"] == "following" and found["applied_lsn"] >= 3)
        assert found["primary"]["address"] == Names.of("east", east)
        eventually(lambda: asked(standby), lambda report: report["ready"], words=standby.logs)

        def cut() -> None:
            names.cut()
            primary.kill()
            end()

        yield Scene(primary, standby, cut)


def asked(store: Store) -> dict[str, Any]:
    """Return what the doctor says."""
    start_s = time.monotonic()
    verdict = store.command("doctor")
    assert verdict.done
    assert time.monotonic() - start_s < TAKEOVER_S_MAX
    report: dict[str, Any] = json.loads(verdict.text)
    return report


def doctor(store: Store) -> tuple[int, dict[str, Any], float]:
    """Run the command; return its exit code, what it said, and how long it took."""
    start_s = time.monotonic()
    command = [sys.executable, "-m", "vecstore.cli.main", "doctor", store.address, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60, check=False)
    return done.returncode, json.loads(done.stdout), time.monotonic() - start_s


def take_over(store: Store) -> float:
    """Promote, ask and write as a client that comes now; return the seconds from the word to the acknowledged write."""
    start_s = time.monotonic()
    verdict = store.command("promote", replaces=1)
    assert verdict.done, verdict.text
    with connect([store.address], timeout=30) as database:
        docs = database.collection("docs")
        assert len(docs.search(np.ones(4), 5)) == 5
        docs.upsert([1_000], np.ones((1, 4)))
        took_s = time.monotonic() - start_s
        assert docs.count() == 101
    return took_s


def states(report: Mapping[str, Any]) -> dict[str, str]:
    """Return what each check has come to."""
    return {check["name"]: check["state"] for check in report["checks"]}


def test_a_takeover_needs_nothing_beyond_its_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With everything else gone the standby says what it misses, takes over in seconds, answers and writes."""
    # Else the server takes the first part of a host's name for a bucket.
    monkeypatch.setenv("S3_IGNORE_SUBDOMAIN_BUCKETNAME", "true")
    with contextlib.ExitStack() as outside:
        endpoint = outside.enter_context(s3_server())
        repository = f"http://{Names.of('repository', int(endpoint.rpartition(':')[2]))}"
        with staged(tmp_path, f"s3://{BUCKET}/log", outside.close, s3_environment(repository)) as scene:
            standby = scene.standby
            scene.cut()
            report = eventually(lambda: asked(standby), lambda report: states(report)["archive"] == "warn")
            found = states(report)
            assert found.pop("archive") == "warn"
            assert found.pop("lag") in ("ok", "unknown")
            # What the primary said is known beyond its end.
            assert set(found.values()) == {"ok"}, found
            assert take_over(standby) < TAKEOVER_S_MAX
            assert asked(standby)["role"] == "primary"
            standby.kill()


@pytest.mark.slow
def test_a_server_stops_though_its_repository_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that has just taken over is stopped in order, within the patience of a supervisor."""
    monkeypatch.setenv("S3_IGNORE_SUBDOMAIN_BUCKETNAME", "true")
    with contextlib.ExitStack() as outside:
        endpoint = outside.enter_context(s3_server())
        repository = f"http://{Names.of('repository', int(endpoint.rpartition(':')[2]))}"
        with staged(tmp_path, f"s3://{BUCKET}/log", outside.close, s3_environment(repository)) as scene:
            scene.cut()
            take_over(scene.standby)
            start_s = time.monotonic()
            scene.standby.stop()
            assert time.monotonic() - start_s < 1.5 * HANG_S


def test_a_standby_that_starts_alone_takes_over(tmp_path: Path) -> None:
    """Started when all is gone, it serves, remembers what its primary said, and takes over."""
    repository = tmp_path / "repository"
    with staged(tmp_path, str(repository), lambda: shutil.rmtree(repository), {}) as scene:
        standby = scene.standby
        standby.stop()
        scene.cut()
        standby.start()
        code, report, took_s = doctor(standby)
        assert code == 1
        assert took_s < TAKEOVER_S_MAX
        found = states(report)
        assert (found.pop("archive"), found.pop("lag")) == ("warn", "unknown")
        assert set(found.values()) == {"ok"}, found
        assert report["primary"]["age_s"] > 0
        assert take_over(standby) < TAKEOVER_S_MAX
        standby.kill()
