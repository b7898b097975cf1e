"""A bad network between two Regions under a running writer: what is acknowledged is kept, and silence is not health.

Both stores are real processes, each reached by the other through a proxy (`tests/support/proxy.py`). In every test one
client writes with `ack="durable"` and one with `ack="replicated"`; in the end the standby has caught up by itself, both
stores are equal, and nothing is missing that anybody was told of.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator

import numpy as np
import pytest

from vecstore.errors import DeadlineExceeded

from .between import Between, apart
from .recorded import FIRST, STEP, check, recording
from .stores import eventually, put
from .test_follow import digest
from .test_metrics import metrics_of

FIRST_OF_RUN = itertools.count(FIRST, 2 * STEP)
BIG_DIM, BIG_POINTS = 256, 600
SLOW_BYTES_PER_S = 300_000
"""A record of `BIG_POINTS` takes two seconds, twice as long as a stream may be silent."""


@pytest.fixture(scope="module")
def regions(tmp_path_factory: pytest.TempPathFactory, seed: int) -> Iterator[Between]:
    """Return two Regions."""
    with apart(tmp_path_factory.mktemp("network"), seed=seed) as made:
        yield made


@contextlib.contextmanager
def written(regions: Between) -> Iterator[None]:
    """Let clients write while the network is bad; heal it, wait until all is well, and look at what they were told."""
    recorded = recording((regions.a, regions.b), "durable", "replicated", first=next(FIRST_OF_RUN))
    try:
        eventually(lambda: {"told": recorded.acknowledged()}, lambda found: min(found["told"]) > 3)
        yield
        regions.heal()
        caught_up(regions)
        before = recorded.acknowledged()
        eventually(lambda: {"told": recorded.acknowledged()}, lambda found: all(map(int.__lt__, before, found["told"])))
    finally:
        regions.heal()
        recorded.end()
    check(recorded, regions.a, regions.b)


def caught_up(regions: Between) -> None:
    """Wait until the standby has what the primary has now."""
    lsn = regions.a.describe()["durable_lsn"]
    regions.b.wait(lambda found: found["status"] == "following" and found["applied_lsn"] >= lsn)


@pytest.mark.parametrize("sides", ["both", "from the primary", "from the standby"])
def test_a_cut_is_seen_and_survived(regions: Between, sides: str) -> None:
    """The primary goes on, and says that its standby is behind; a standby that hears nothing says so, too."""
    a, b = regions.a, regions.b
    with written(regions):
        regions.cut(*{"both": (a, b), "from the primary": (a,), "from the standby": (b,)}[sides])
        with a.database() as database:
            put(database, 20_000, 1)
            with pytest.raises(DeadlineExceeded) as caught:
                database.collection("docs").upsert([20_001], np.ones((1, 4)), ack="replicated", timeout=0.5)
            assert caught.value.outcome == "durable"
        before = metrics_of(a)["vecstore_slot_lag_seconds,west"]
        there = eventually(lambda: metrics_of(a), lambda found: found["vecstore_slot_lag_seconds,west"] > before + 0.5)
        assert there["vecstore_rpo_seconds"] > 0 and there["vecstore_slot_lag_records,west"] > 0
        assert there["vecstore_writable"] == there["vecstore_primary"] == 1
        if sides != "from the standby":
            here = eventually(lambda: metrics_of(b), lambda found: found["vecstore_lag_seconds"] > 1.2)
            assert here["vecstore_rpo_seconds"] > 1.2
            assert b.describe()["status"] == "dialling"


def test_a_long_way_is_no_obstacle(regions: Between) -> None:
    """Also where an answer takes longer than one waits before one asks again: begun on such a line, the stream runs."""
    with written(regions):
        (before,) = [link["reconnects"] for link in regions.b.describe()["links"]]
        for way in (*regions.ways(regions.a), *regions.ways(regions.b)):
            way.delay_s = 0.3
        for proxy in (regions.to_a, regions.to_b):
            proxy.reset()
        # That it stopped following may be over before anybody looks; that it was linked anew stays.
        regions.b.wait(lambda found: found["links"][0]["reconnects"] > before)
        caught_up(regions)


def test_a_slow_line_is_not_taken_for_a_dead_one(regions: Between) -> None:
    """A record that takes longer than a stream may be silent arrives at once, and meanwhile both say who is behind."""
    a, b = regions.a, regions.b
    rng = np.random.default_rng(1)
    with written(regions):
        links = b.describe()["links"]
        for way in regions.ways(a):
            way.bytes_per_s = SLOW_BYTES_PER_S
        with a.database() as database:
            big = database.create_collection("big", BIG_DIM, exist_ok=True)
            for first in (0, BIG_POINTS):
                ids = list(range(first, first + BIG_POINTS))
                token = big.upsert(ids, rng.standard_normal((BIG_POINTS, BIG_DIM), np.float32)).token
        behind = eventually(lambda: metrics_of(a), lambda found: found["vecstore_slot_lag_seconds,west"] > 1.2)
        assert behind["vecstore_slot_connected,west"] == 1
        eventually(lambda: metrics_of(b), lambda found: found["vecstore_lag_seconds"] > 1.0)
        with b.database() as database:
            assert database.collection("big").count(after=token) == 2 * BIG_POINTS
        assert [link["reconnects"] for link in b.describe()["links"]] == [link["reconnects"] for link in links]


@pytest.mark.slow
def test_connections_that_are_reset_are_made_again(regions: Between) -> None:
    """At any byte, many times: the stream goes on from what the standby has."""
    with written(regions):
        (before,) = [link["reconnects"] for link in regions.b.describe()["links"]]
        for way in (*regions.ways(regions.a), *regions.ways(regions.b)):
            way.resets = 0.03
        regions.b.wait(lambda found: found["links"][0]["reconnects"] >= before + 3)


@pytest.mark.parametrize("source", [pytest.param("primary", marks=pytest.mark.slow), "standby"])
def test_flipped_bits_are_never_believed(regions: Between, source: str) -> None:
    """Whatever they hit, records, messages or the places that are acknowledged: the link ends, and a human is told."""
    store, other = (regions.a, regions.b) if source == "primary" else (regions.b, regions.a)
    ways = regions.ways(store)
    flipped = sum(way.flipped for way in ways)
    with written(regions):
        for way in ways:
            way.flips = 0.05
        other.wait(lambda found: any("changed on the way" in alarm["text"] for alarm in found["alarms"]))
        eventually(lambda: {"flipped": sum(way.flipped for way in ways)}, lambda found: found["flipped"] >= flipped + 3)
        assert not any("stopped" in alarm["text"] for alarm in regions.b.describe()["alarms"])
    assert digest(regions.a) == digest(regions.b)
