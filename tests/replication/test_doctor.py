"""The doctor of served stores, as a command against real processes: what it says, how it ends, what metrics say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import vecstore
from vecstore.engine.database import EmbeddedDatabase
from vecstore.replication.coding import encode_state
from vecstore.replication.durable import Durable
from vecstore.replication.epochs import Claim, Identity
from vecstore.server.readiness import PRIMARY_FILE
from vecstore.storage.catalog import Epoch

from .stores import Store, doctor, eventually


def states(report: dict[str, Any]) -> dict[str, str]:
    """Return what is not ok."""
    return {check["name"]: check["state"] for check in report["checks"] if check["state"] != "ok"}


def ready(store: Store) -> dict[str, Any]:
    """Wait until a standby says that it could take over."""
    return eventually(lambda: doctor(store)[1], lambda report: report["ready"], words=store.logs)


def test_a_standby_says_whether_it_could_take_over(tmp_path: Path) -> None:
    """Ready, by command and metric; with other limits than its primary it says which; the primary says its own."""
    archive = ("--archive", str(tmp_path / "repository"))
    a = Store(tmp_path / "a", "--region", "east", *archive)
    with a.running(points=100):
        report = eventually(lambda: doctor(a)[1], lambda report: report["ready"], words=a.logs)
        assert not any(check["name"].startswith("slot") for check in report["checks"])
        b = Store(tmp_path / "b", "--region", "west", "--standby-of", a.address, "--slot", "west", *archive)
        with b.running():
            report = ready(b)
            assert (report["role"], report["state"], report["region"]) == ("standby", "ok", "west")
            assert report["primary"]["facts"]["region"] == "east"
            code, report = doctor(a)
            assert (code, states(report), report["primary"]) == (0, {}, None), report
            assert "slot west" in {check["name"] for check in report["checks"]}
            assert b.served is not None and a.served is not None
            assert b.served.metric("vecstore_takeover_ready") == 1
            assert b.served.metric("vecstore_takeover_check", check="lag", state="ok") == 1
            assert b.served.metric("vecstore_takeover_check", check="lag", state="warn") == 0
            assert not any(name.startswith("vecstore_takeover") for name, _ in a.served.metrics())
        b.environment["VECSTORE_SERVER_LIMITS_SEARCHES_MAX"] = "7"
        with b.running():
            b.wait(lambda found: found["status"] == "following")
            code, report = doctor(b)
            assert (code, states(report)) == (1, {"config": "warn"})
            (check,) = (check for check in report["checks"] if check["name"] == "config")
            assert "limits.searches_max is 7 here, 32 there" in check["found"]
            assert b.served is not None
            assert b.served.metric("vecstore_takeover_ready") == 0
            assert b.served.metric("vecstore_takeover_check", check="config", state="warn") == 1
            # What only an admin may read is not in what anybody may.
            assert set(b.describe()["readiness"]) == {"ready", "checks", "primary_age_s"}
            # A promotion asks none of it.
            a.kill()
            verdict = b.command("promote", replaces=1)
            assert verdict.done, verdict.text


def test_a_primary_says_how_its_gpus_are(tmp_path: Path) -> None:
    """A segment that no device has room for is a warning, and exit code 1; the device itself is well."""
    devices = {"VECSTORE_SERVER_DEVICE": "gpu", "VECSTORE_DEVICE_BACKEND": "host", "VECSTORE_DEVICE_ROWS_MIN": "1"}
    a = Store(tmp_path / "a", environment=devices | {"VECSTORE_DEVICE_MEMORY_BYTES_MAX": "1000"})
    with a.running():
        with a.database() as database:
            docs = database.create_collection("docs", 4, index="flat")
            docs.upsert(range(500), [[1.0, 2.0, 3.0, float(i)] for i in range(500)])
            docs.optimize()
        eventually(lambda: doctor(a)[1], lambda report: "device" in states(report), words=a.logs)
        code, report = doctor(a)
        assert (code, states(report)) == (1, {"device": "warn"})
        (check,) = (check for check in report["checks"] if check["name"] == "device")
        assert check["found"] == "1 segments were taken by no GPU"


def forget(folder: Path) -> None:
    """Fence a store for an epoch that it wrote, of which its log holds nothing: as where its disk went back."""
    with vecstore.open(str(folder)) as database:
        assert isinstance(database, EmbeddedDatabase) and database.engine.committer is not None
        engine, committer = database.engine, database.engine.committer
        store_id = engine.directory.store_id.hex()
        identity = Identity(engine.lineage, engine.identity_secret, store_id, "")
        claim = Claim.of(identity, Epoch(3, "w" * 16, committer.tip.lsn, committer.tip.chain.hex()))
        committer.persist(encode_state(Durable("fenced", promise=claim, reason="a test", peers=(store_id,))))


def test_a_store_that_forgot_its_epoch_says_so(tmp_path: Path) -> None:
    """The doctor warns, the metric that the alert is made of has the number, and a forced promotion ends both.

    tests/replication/test_runbooks.py shows how a disk comes to forget it.
    """
    a = Store(tmp_path / "a", "--region", "east")
    with a.running(points=100):
        assert a.served is not None and a.served.metric("vecstore_epoch_forgotten") == 0
    forget(a.folder)
    with a.running():
        assert a.describe()["forgotten_epoch"] == 3
        code, report = doctor(a)
        (check,) = (check for check in report["checks"] if check["name"] == "epoch")
        assert (code, check["state"]) == (1, "warn")
        assert "wrote epoch 3" in check["found"] and "promote" in check["advice"]
        assert a.served.metric("vecstore_epoch_forgotten") == 3
        assert not a.command("promote", replaces=3).done
        assert a.command("promote", replaces=3, force=True).done
        a.wait(lambda found: found["accepts_writes"])
        assert a.served.metric("vecstore_epoch_forgotten") == 0


@pytest.mark.slow  # tests/replication/test_static_stability.py shows in short that it is remembered
def test_a_standby_knows_what_its_primary_had(tmp_path: Path) -> None:
    """It remembers it over a restart, with its age; without it nothing of the primary is known, and none of it ok."""
    a = Store(tmp_path / "a", "--region", "east")
    b = Store(tmp_path / "b", "--region", "west")
    with a.running(points=100):
        address = a.address
        b.arguments += ["--standby-of", address]
        with b.running():
            ready(b)
        a.kill()
        with b.running():
            code, report = doctor(b)
            assert (code, states(report)) == (3, {"lag": "unknown"})
            assert report["primary"]["age_s"] > 0
            assert report["primary"]["address"] == address
        (tmp_path / "b" / PRIMARY_FILE).unlink()
        with b.running():
            code, report = doctor(b)
            assert code == 3
            names = ("lag", "memory", "processors", "device", "config", "tokens", "version", "archive")
            assert states(report) == dict.fromkeys(names, "unknown")
            assert report["primary"]["age_s"] is None
