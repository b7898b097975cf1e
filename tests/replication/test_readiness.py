"""What a store's readiness is judged to be: each check, what makes it warn, and that nothing unknown is called ok."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from vecstore.clock import SystemClock
from vecstore.replication.facts import Archive, Certificate, Device, Facts, Here, Known
from vecstore.replication.readiness import is_ready, judge, worst
from vecstore.server.auth import Authenticator, AuthSettings, entry_text
from vecstore.server.caller import Grant
from vecstore.server.parity import AGREE, DIFFER, agreed, code_of, key_of
from vecstore.server.probe import Probe
from vecstore.server.readiness import _Load
from vecstore.server.settings import Settings

GIB = 1 << 30
DAY_S = 86_400.0
NOW_S = 1_800_000_000.0
FACTS = Facts(
    version="0.1.0",
    format=1,
    region="east",
    lsn=100,
    memory_bytes=4 * GIB,
    memory_bytes_max=16 * GIB,
    processors=8,
    busy_processors=2.0,
    reads_per_s=500.0,
    writes_per_s=20.0,
    options={"limits.searches_max": 32, "server.device": "auto"},
    marks={"archive": "aa", "auth": "bb"},
    tokens=3,
)
DESCRIBED: dict[str, Any] = {
    "role": "standby",
    "status": "following",
    "epochs": [{"number": 1}],
    "lag": {"records": 0, "bytes": 0, "seconds": 0.0},
    "seen_lsn": 100,
}
HERE = Here(
    described=DESCRIBED,
    facts=msgspec.structs.replace(FACTS, region="west"),
    now_s=NOW_S,
    lag_s_max=30.0,
    machine_bytes=20 * GIB,
    disk_free_bytes=100 * GIB,
    disk_free_bytes_min=GIB,
    log_bytes_max=4 * GIB,
    unindexed_rows=4_000,
    unindexed_rows_max=65_536,
    archive=Archive("s3://bucket/log", answered=True),
    certificates=(Certificate("tls.certificate", NOW_S + 90 * DAY_S),),
)
KNOWN = Known(FACTS, 3.0)


def here(**changes: Any) -> Here:
    """Return a store that is ready but for some changes: of its facts, its description, or what was found."""
    facts = {name: value for name, value in changes.items() if name in Facts.__struct_fields__}
    found = {name: value for name, value in changes.items() if name in Here.__struct_fields__}
    described = {name: value for name, value in changes.items() if name not in facts and name not in found}
    made = msgspec.structs.replace(HERE, facts=msgspec.structs.replace(HERE.facts, **facts), **found)
    return msgspec.structs.replace(made, described={**DESCRIBED, **described})


def primary(**changes: Any) -> Known:
    """Return what a primary said, but for some changes."""
    return Known(msgspec.structs.replace(FACTS, **changes), 3.0)


def states(store: Here, known: Known | None = KNOWN) -> dict[str, str]:
    """Return the checks that are not ok."""
    return {check.name: check.state for check in judge(store, known) if check.state != "ok"}


def test_a_standby_that_matches_its_primary_is_ready() -> None:
    """Every check is ok, says what it found and asks, and has nothing to do."""
    checks = judge(HERE, KNOWN)
    assert is_ready(checks) and worst(checks) == "ok", states(HERE)
    assert all(check.found and check.asked and not check.advice for check in checks)
    assert len({check.name for check in checks}) == len(checks) == 13


def test_a_store_that_forgot_its_epoch_says_so() -> None:
    """A check of its own, and advice that helps: where nobody writes there is nobody to rejoin."""
    fenced = {"role": "fenced", "status": "fenced"}
    assert states(here(**fenced, forgotten_epoch=0)) == {"state": "warn"}
    store = here(**fenced, forgotten_epoch=3)
    assert states(store) == {"state": "warn", "epoch": "warn"}
    found = {check.name: check for check in judge(store, KNOWN)}
    assert "wrote epoch 3" in found["epoch"].found
    for name in ("epoch", "state"):
        assert "promote the one with the longest" in found[name].advice


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"role": "fenced", "status": "fenced"}, "state"),
        ({"status": "stopped"}, "state"),
        ({"status": "fetching"}, "state"),
        ({"rejoin": {"phase": "reset"}}, "state"),
        ({"epochs": []}, "state"),
        ({"held_back": "memory: the store holds 9 of 8 bytes"}, "state"),
        ({"lag": {"records": 9, "seconds": 31.0}}, "lag"),
        ({"status": "dialling", "lag": {"records": 9, "seconds": 31.0}}, "lag"),
        ({"differences": [{}]}, "contents"),
        ({"memory_bytes_max": 4 * GIB}, "memory"),
        ({"memory_bytes": 15 * GIB}, "memory"),
        ({"machine_bytes": 8 * GIB}, "memory"),
        ({"devices": (Device("cuda0", "down"),)}, "device"),
        ({"refused_segments": 2}, "device"),
        ({"options": {"limits.searches_max": 8}}, "config"),
        ({"region": "east"}, "config"),
        ({"marks": {"archive": "aa", "auth": ""}}, "tokens"),
        ({"secrets_problem": "replication.token_file: cannot be read"}, "tokens"),
        ({"version": "0.0.9"}, "version"),
        ({"disk_free_bytes": 3 * GIB}, "disk"),
        ({"unindexed_rows": 60_000}, "indexes"),
        ({"build_problem": "no space"}, "indexes"),
        ({"archive": None}, "archive"),
        ({"archive": Archive("s3://b", answered=False, age_s=9.0)}, "archive"),
        ({"archive": Archive("s3://b", answered=True, problem="no such bucket")}, "archive"),
        ({"archive": Archive("s3://b", answered=True, is_made=False)}, "archive"),
        ({"marks": {"archive": "cc", "auth": "bb"}}, "archive"),
        ({"certificates": (Certificate("tls.certificate", NOW_S + 13 * DAY_S),)}, "certificates"),
        ({"certificates": (Certificate("replication.ca", NOW_S - DAY_S),)}, "certificates"),
        ({"certificates": (Certificate("replication.ca", None, "cannot be read"),)}, "certificates"),
        ({"names": ("server.listen",)}, "start"),
    ],
)
def test_what_is_wrong_is_said(changes: dict[str, Any], name: str) -> None:
    """One thing that is wrong makes one check warn, which says what to do; all the others stay ok."""
    store = here(**changes)
    assert states(store) == {name: "warn"}
    (found,) = (check for check in judge(store, KNOWN) if check.name == name)
    assert found.advice
    assert not is_ready(judge(store, KNOWN))


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"memory_bytes": 15 * GIB}, "memory"),
        ({"processors": 64, "busy_processors": 7.0}, "processors"),
        ({"device": "gpu", "device_bytes": GIB}, "device"),
        ({"version": "0.2.0"}, "version"),
        ({"format": 2}, "version"),
        ({"marks": {"archive": "aa", "auth": "zz"}}, "tokens"),
    ],
)
def test_the_primarys_load_is_what_is_asked(changes: dict[str, Any], name: str) -> None:
    """What the primary holds, does and knows decides, not what is usual."""
    assert states(HERE, primary(**changes)) == {name: "warn"}


def test_a_gpu_for_a_gpu_is_enough() -> None:
    """GPUs here that take what the primary's hold are ok; too little memory is not; none are needed for none."""
    store = here(device="gpu", device_bytes_max=2 * GIB)
    assert states(store, primary(device="gpu", device_bytes=GIB)) == {}
    assert states(store, primary(device="gpu", device_bytes=3 * GIB)) == {"device": "warn"}
    assert states(store) == {}


@pytest.mark.parametrize(
    ("changes", "known", "names"),
    [
        ({}, None, {"memory", "processors", "device", "config", "tokens", "version"}),
        ({"archive": None}, None, {"memory", "processors", "device", "config", "tokens", "version", "archive"}),
        ({}, primary(processors=16, busy_processors=None), {"processors"}),
        ({"seen_lsn": 0}, KNOWN, {"lag"}),
        ({"status": "dialling", "lag": {"records": 0, "seconds": 31.0}}, KNOWN, {"lag"}),
        ({"certificates": None}, KNOWN, {"certificates"}),
        ({"devices": None}, KNOWN, {"device"}),
        ({"archive": Archive("s3://b", answered=False, age_s=2.0)}, KNOWN, {"archive"}),
    ],
)
def test_what_nobody_knows_is_unknown(changes: dict[str, Any], known: Known | None, names: set[str]) -> None:
    """It is neither ok nor wrong, and a store of which something is unknown is not called ready."""
    store = here(**changes)
    assert states(store, known) == dict.fromkeys(names, "unknown")
    assert worst(judge(store, known)) == "unknown"
    assert not is_ready(judge(store, known))


def test_what_is_wrong_counts_more_than_what_is_unknown() -> None:
    """A store with both is to be looked after."""
    assert worst(judge(here(unindexed_rows=60_000), None)) == "warn"


def test_a_short_silence_is_within_what_may_be_lost() -> None:
    """A standby that had all a moment ago lacks at most that moment."""
    assert states(here(status="dialling", lag={"records": 0, "seconds": 10.0})) == {}


def test_old_facts_are_said_to_be_old() -> None:
    """They count, as there are no newer ones, and each comparison says of when they are."""
    checks = judge(HERE, Known(FACTS, 7_300.0))
    assert is_ready(checks)
    compared = [check for check in checks if "as of 2h01m ago" in check.found]
    assert {check.name for check in compared} == {"memory", "processors", "device", "config", "tokens", "version"}


def test_a_newer_standby_is_ready_and_says_what_follows() -> None:
    """Standbys are brought to a new version first; options that the older one does not know are not compared."""
    store = here(version="0.2.0", options={**FACTS.options, "limits.new": 1})
    checks = judge(store, KNOWN)
    assert is_ready(checks)
    assert next(check for check in checks if check.name == "version").advice


SLOT = {"name": "west", "lag_records": 0, "lag_seconds": 0.0, "is_lost": False, "connected": True}


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({}, {}),
        ({"slots": [SLOT]}, {}),
        ({"slots": [{**SLOT, "connected": False}]}, {"slot west": "warn"}),
        ({"slots": [{**SLOT, "is_lost": True}]}, {"slot west": "warn"}),
        ({"slots": [{**SLOT, "lag_seconds": 31.0}]}, {"slot west": "warn"}),
        ({"slots": [{**SLOT, "lag_seconds": None}]}, {"slot west": "unknown"}),
        ({"accepts_writes": False, "status": "starting"}, {"state": "warn"}),
        ({"archive": Archive("s3://b", answered=True, problem="no such bucket")}, {"archive": "warn"}),
        ({"archive": None}, {}),
        ({"device": "gpu"}, {}),
        ({"device": "gpu", "refused_segments": 2}, {"device": "warn"}),
        ({"device": "gpu", "devices": (Device("0", "the worker hangs"),)}, {"device": "warn"}),
        ({"device": "gpu", "devices": None}, {"device": "unknown"}),
    ],
)
def test_a_primary_is_asked_about_its_standbys(changes: dict[str, Any], found: dict[str, str]) -> None:
    """Whether somebody could take over from it, and what it needs itself."""
    store = here(**{"role": "primary", "status": "open", "epoch": 1, "accepts_writes": True, **changes})
    assert states(store, None) == found


def test_every_option_that_must_agree_or_differ_is_documented() -> None:
    """They exist, none is both, the table has each, and what a server says of itself has no path and no secret."""
    text = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    rows = {kind: text[text.index(f"| {kind} |") :].partition("\n")[0] for kind in ("must agree", "must differ")}
    for kind, found in (("must agree", AGREE), ("must differ", DIFFER)):
        for section, names in found.items():
            known = {field.name for field in msgspec.structs.fields(type(getattr(Settings(), section)))}
            assert set(names) <= known
            for name in names:
                assert section == "limits" or f"`{section}.{name}`" in rows[kind], (kind, section, name)
    assert set(AGREE["limits"]) == {field.name for field in msgspec.structs.fields(type(Settings().limits))}
    assert not {
        (section, name) for section, names in AGREE.items() for name in names if name in DIFFER.get(section, ())
    }
    assert not {"server.archive", "auth.tokens", "server.data"} & set(agreed(Settings()))


# -- what is gathered ------------------------------------------------------------------------------------------------


def known_by(folder: Path, *entries: tuple[str, str, Grant]) -> list[Any]:
    """Return by what the callers of a file are known."""
    file = folder / "tokens.toml"
    file.write_text("".join(entry_text(name, secret, [grant]) for name, secret, grant in entries))
    return Authenticator(AuthSettings(tokens=str(file)), SystemClock()).known_by()


def test_callers_are_compared_without_their_secrets(tmp_path: Path) -> None:
    """The same callers make the same code, in any order; another grant, secret or lineage another one; stores' none."""
    reader, writer = ("reader", "one", Grant("read")), ("writer", "two", Grant("write", frozenset({"docs"})))
    peer = ("west", "three", Grant("replicate"))
    key = key_of(b"secret of a lineage")
    both = known_by(tmp_path, reader, writer)
    code = code_of(key, both)
    assert code == code_of(key, known_by(tmp_path, writer, peer, reader))
    assert len(both) == 2
    assert code != code_of(key, known_by(tmp_path, reader))
    assert code != code_of(key, known_by(tmp_path, reader, ("writer", "two", Grant("admin"))))
    assert code != code_of(key, known_by(tmp_path, reader, ("writer", "2", writer[2])))
    assert code != code_of(key_of(b"secret of another"), both)
    assert code_of(key, known_by(tmp_path, peer)) == ""


def test_grants_of_any_kind_and_keys_are_compared(tmp_path: Path) -> None:
    """A caller with grants on all and on some collections has one form, whatever their order; keys of JWTs count."""
    some, every = Grant("read", frozenset({"b", "a"})), Grant("read")
    key, file = key_of(b"secret"), tmp_path / "tokens.toml"
    codes = set()
    for grants in ((some, every), (every, some)):
        file.write_text(entry_text("both", "secret", grants))
        codes.add(code_of(key, Authenticator(AuthSettings(tokens=str(file)), SystemClock()).known_by()))
    assert len(codes) == 1
    for _ in range(2):
        pem = Ed25519PrivateKey.generate().public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (tmp_path / "keys.pem").write_bytes(pem)
        settings = AuthSettings(jwt_keys=str(tmp_path / "keys.pem"), jwt_issuer="i", jwt_audience="a")
        codes.add(code_of(key, Authenticator(settings, SystemClock()).known_by()))
    assert len(codes) == 3


def test_the_load_is_that_of_the_highest_minute() -> None:
    """It is not known at first, is a mean over a minute, and what is older than an hour is forgotten."""
    search, upsert = "/vecstore.v1.Collections/Search", "/vecstore.v1.Collections/Upsert"
    counts = {search: 0, upsert: 0}
    load = _Load(lambda: dict(counts))
    load.sample(0.0)
    assert load.highest() == (None, None, None)
    for second in range(10, 61, 10):
        counts[search] += 100
        counts[upsert] += 10
        load.sample(float(second))
    busy, reads, writes = load.highest()
    assert busy is not None and busy >= 0
    assert (reads, writes) == (10.0, 1.0)
    for second in range(70, 4_000, 10):
        load.sample(float(second))
    assert load.highest()[1:] == (0.0, 0.0)


def test_who_asks_what_hangs_waits_no_longer_than_he_wants() -> None:
    """One question at a time; the asker goes on; the answer is as old as the question."""
    go, asked = threading.Event(), []

    def ask() -> str:
        asked.append(1)
        go.wait()
        return "there"

    probe = Probe("test", ask)
    before_s = time.monotonic()
    probe.begin(0.0)
    probe.begin(0.0)
    probe.wait(0.01)
    assert probe.waiting_s > 0
    between_s = time.monotonic()
    go.set()
    probe.wait(30.0)
    assert probe.waiting_s == 0
    answer = probe.answer
    assert answer is not None and answer.value == "there" and not answer.problem
    assert before_s <= answer.at_s <= between_s
    assert len(asked) == 1
    probe.begin(60.0)
    assert len(asked) == 1


def test_an_answer_to_an_older_question_is_not_taken_for_a_new_one() -> None:
    """What was asked before is waited for, and then asked once more."""
    gates, answers = [threading.Event(), threading.Event()], iter(("old", "new"))
    asked = iter(gates)

    def ask() -> str:
        next(asked).wait()
        return next(answers)

    probe = Probe("test", ask)
    probe.begin(0.0)
    threading.Timer(0.05, gates[0].set).start()
    threading.Timer(0.1, gates[1].set).start()
    probe.renew(0.0, 30.0)
    assert probe.answer is not None and probe.answer.value == "new"


def test_a_failure_is_an_answer() -> None:
    """It says why, and is asked again sooner than a good one."""
    probe: Probe[None] = Probe("test", lambda: (_ for _ in ()).throw(OSError("no\n way")))
    probe.begin(0.0)
    probe.wait(30.0)
    answer = probe.answer
    assert answer is not None and answer.value is None and answer.problem == "no way"
