"""Writers and readers over two Regions under a random schedule of everything that goes wrong: the history holds.

Processes are killed and paused, disks fill up, logs are cut beneath standbys, the network between them is cut, one way
or both, is slow, resets and flips bits, and the writer changes: planned, forced while the other one is dead, cut off,
or paused and about to write on. What was acknowledged is in the end in the history that lives, or in an export; what
was acknowledged as replicated is in the history; no read after a token is older than what its token named; no place of
an epoch has two records; both stores end equal. The seed is in the run's header, and a failure tells what was done.
"""

from __future__ import annotations

import contextlib
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vecstore.errors import VecstoreError

from .bent import BUGS
from .between import Between, apart
from .recorded import Recording, check, recording
from .stores import Store, eventually
from .test_full_disk_region import limit_files
from .test_replicated import SMALL
from .test_too_far_behind import LARGE

STRIKES, STRIKES_SLOW, SEEDS_SLOW = 3, 10, 12
PAUSE_S, WHOLE_S = 0.6, 60.0
WEATHER_SHARE = 0.5
FULL_WRITES, CUT_WRITES_MAX = 8, 40
LOST = "acknowledged as durable and neither kept nor exported"
_WEATHER = (("delay_s", 0.15), ("bytes_per_s", 50_000.0), ("resets", 0.02), ("flips", 0.02))


Strike = Callable[["Schedule", Store, Store], None]


class Schedule:
    """What goes wrong, by one random generator.

    Parameters
    ----------
    weather_share
        How often the network is worse meanwhile.

    Attributes
    ----------
    done
        What was done, and when.
    """

    def __init__(self, regions: Between, seed: int, weather_share: float = WEATHER_SHARE) -> None:
        self.weather_share = weather_share
        self.regions, self.rng, self.start_s = regions, random.Random(seed), time.monotonic()
        self.done = [f"seed {seed}"]

    def note(self, what: str) -> None:
        """Remember what was done."""
        self.done.append(f"{time.monotonic() - self.start_s:.2f} {what}")

    def name(self, store: Store) -> str:
        """Return a store's name."""
        return store.folder.name

    def whole(self) -> tuple[Store, Store]:
        """Wait until one of two stores writes and the other follows it; return them in this order."""
        stores = (self.regions.a, self.regions.b)

        def is_whole(found: dict[str, Any]) -> bool:
            writes = [one["accepts_writes"] for one in found.values()]
            follows = [one["status"] == "following" for one in found.values()]
            fed = [any(slot["connected"] for slot in one["slots"]) for one in found.values()]
            is_ready = all(one["rejoin"] is None for one in found.values())
            return is_ready and sorted(writes) == [False, True] and follows == writes[::-1] and fed == writes

        def logs() -> str:
            return "\n".join(store.logs() for store in stores)

        found = eventually(lambda: {self.name(store): store.describe() for store in stores}, is_whole, WHOLE_S, logs)
        (writer,) = [store for store in stores if found[self.name(store)]["accepts_writes"]]
        self.note(f"whole: {self.name(writer)} writes")
        return writer, self.other(writer)

    def other(self, store: Store) -> Store:
        """Return the other store."""
        return self.regions.b if store is self.regions.a else self.regions.a

    def run(self, strikes: Sequence[Strike]) -> tuple[Store, Store]:
        """Let things go wrong, each mended before the next; return who writes and who follows then."""
        for strike in strikes:
            writer, other = self.whole()
            self._wait(self.rng.random())
            with self._weather():
                self.note(f"{strike.__name__.lstrip('_')}: {self.name(writer)} writes")
                strike(self, writer, other)
        return self.whole()

    @contextlib.contextmanager
    def _weather(self) -> Iterator[None]:
        """Have a worse network for a block, sometimes."""
        ways = (*self.regions.ways(self.regions.a), *self.regions.ways(self.regions.b))
        if self.rng.random() < self.weather_share:
            name, value = self.rng.choice(_WEATHER)
            chosen = self.rng.choice((ways, ways[:2], ways[2:]))
            self.note(f"{name} {value} of {len(chosen)} ways")
            for way in chosen:
                setattr(way, name, value)
        try:
            yield
        finally:
            self.regions.heal()

    # -- what goes wrong ---------------------------------------------------------------------------------------------

    def _wait(self, share: float = 1.0) -> None:
        threading.Event().wait(share * PAUSE_S)

    def _command(self, store: Store, name: str, **options: object) -> None:
        """Give a command; it may be refused, or not be answered."""
        try:
            verdict = store.command(name, **options)
            self.note(f"{name} of {self.name(store)}: {verdict.done}, {verdict.text}")
        except VecstoreError as exc:
            self.note(f"{name} of {self.name(store)}: {exc}")

    def _promote(self, other: Store) -> None:
        self._command(other, "promote", replaces=other.describe()["epoch"], force=True)

    def _kill(self, writer: Store, other: Store) -> None:
        victim = self.rng.choice((writer, other))
        victim.kill()
        self._wait(self.rng.random())
        victim.start()

    def _kill_both(self, writer: Store, other: Store) -> None:
        stores = [writer, other]
        self.rng.shuffle(stores)
        for store in stores:
            store.kill()
        for store in stores:
            store.start()

    def _pause(self, writer: Store, other: Store) -> None:
        with paused(self.rng.choice((writer, other))):
            self._wait(1 + 4 * self.rng.random())

    def _cut(self, writer: Store, other: Store) -> None:
        self.regions.cut(*self.rng.choice(((), (writer,), (other,))))
        self._wait(1 + 3 * self.rng.random())

    def _switchover(self, writer: Store, other: Store) -> None:
        self._command(writer, "switchover", target=self.regions.proxy(other).address)

    def _switchover_and_kill(self, writer: Store, other: Store) -> None:
        self._switchover(writer, other)
        victim = self.rng.choice((writer, other))
        victim.kill()
        victim.start()

    def _failover(self, writer: Store, other: Store) -> None:
        """The writer goes on alone, so that something is left behind, and dies."""
        other.kill()
        self._wait()
        writer.kill()
        other.start()
        self._promote(other)
        writer.start()

    def _failover_cut_off(self, writer: Store, other: Store) -> None:
        """Both write, for a while."""
        self.regions.cut()
        self._wait(self.rng.random())
        self._promote(other)
        self._wait()

    def _failover_half_cut_off(self, writer: Store, other: Store) -> None:
        """The old writer hears that it was deposed, or cannot be heard; not both."""
        self.regions.cut(self.rng.choice((writer, other)))
        self._promote(other)
        self._wait()

    def _failover_paused(self, writer: Store, other: Store) -> None:
        """The old writer wakes up in the middle of its calls, and knows nothing."""
        with paused(writer):
            self._wait(self.rng.random())
            self._promote(other)
            self._wait(self.rng.random())

    def _full_disk_of_writer(self, writer: Store, other: Store) -> None:
        """A disk fills up beneath a write, and who writes is replaced."""
        limit_files(writer)
        self._write_much(writer, FULL_WRITES)
        self._wait()
        self._promote(other)
        writer.kill()
        writer.start()

    def _full_disk_of_other(self, writer: Store, other: Store) -> None:
        """A disk fills up beneath who follows, which stands still; a restart mends it."""
        limit_files(other)
        self._write_much(writer, FULL_WRITES)
        other.kill()
        other.start()

    def _log_cut(self, writer: Store, other: Store) -> None:
        """What the standby needs next is gone from the log when it comes back."""
        other.kill()
        self._lose_slot(writer, other)
        other.start()

    def _log_cut_and_failover(self, writer: Store, other: Store) -> None:
        """What the standby has not is partly gone from the log when it is promoted: what is left of it is exported."""
        other.kill()
        self._lose_slot(writer, other)
        self._wait()
        writer.kill()
        other.start()
        self._promote(other)
        writer.start()

    def _lose_slot(self, writer: Store, other: Store) -> None:
        """Write until the log is no longer held for the other store."""
        slot = other.arguments[other.arguments.index("--slot") + 1]
        for _ in range(CUT_WRITES_MAX):
            self._write_much(writer, 1)
            found = writer.describe()["slots"]
            if any(one["name"] == slot and one["is_lost"] for one in found):
                break
        else:
            raise AssertionError(f"the log is not cut: {found}")

    def _write_much(self, writer: Store, times: int) -> None:
        """Write some megabytes to points that no client has; what becomes of them nobody asks."""
        try:
            with writer.database() as database:
                for _ in range(times):
                    vectors = np.ones((len(LARGE), 4), np.float32)
                    database.collection("docs").upsert(range(1_000, 1_000 + len(LARGE)), vectors, LARGE)
        except VecstoreError as exc:
            self.note(f"{self.name(writer)} does not write: {exc}")

    def _takeover(self, writer: Store, other: Store) -> None:
        """Both are well: the old writer steps down, and is waited for."""
        self._command(other, "promote", replaces=writer.describe()["epoch"])


_STRIKES = (
    Schedule._kill,
    Schedule._kill_both,
    Schedule._pause,
    Schedule._cut,
    Schedule._cut,
    Schedule._switchover,
    Schedule._switchover_and_kill,
    Schedule._failover,
    Schedule._failover_cut_off,
    Schedule._failover_half_cut_off,
    Schedule._failover_paused,
    Schedule._takeover,
    Schedule._full_disk_of_writer,
    Schedule._full_disk_of_other,
    Schedule._log_cut,
    Schedule._log_cut_and_failover,
)


def chosen(seed: int, count: int) -> Sequence[Strike]:
    """Choose what goes wrong."""
    return random.Random(f"strikes of {seed}").choices(_STRIKES, k=count)


@contextlib.contextmanager
def paused(store: Store) -> Iterator[None]:
    """Stop a server for a block, as a machine that hangs does."""
    assert store.served is not None
    process = store.served.process
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


def live_through(path: Path, seed: int, strikes: Sequence[Strike], *, bug: str = "") -> None:
    """Record what clients are told while things go wrong, and look at it."""
    with apart(path, environment=SMALL | ({"BENT_BUG": bug} if bug else {}), seed=seed) as regions:
        # Whoever is fenced rejoins the other one by itself: no human is needed here.
        regions.a.arguments += ["--standby-of", regions.to_b.address]
        regions.b.arguments += ["--standby-of", regions.to_a.address]
        regions.a.stop()
        regions.a.start()
        schedule = Schedule(regions, seed, 0.0 if bug else WEATHER_SHARE)
        recorded = recording((regions.a, regions.b), "durable", "replicated", "durable")
        try:
            try:
                writer, other = schedule.run(strikes)
            finally:
                recorded.end()
            check(recorded, writer, other)
            assert_seen(recorded, writer, other)
        except BaseException as exc:
            exc.add_note("\n".join(schedule.done))
            raise


def assert_seen(recorded: Recording, writer: Store, other: Store) -> None:
    """Assert that a check which passed would have seen one more write, which was acknowledged and is nowhere."""
    client = recorded.clients[0]
    client.acknowledged[client.tried + 1] = client.acknowledged[max(client.acknowledged)]
    with pytest.raises(AssertionError, match=LOST):
        check(recorded, writer, other)


def test_what_was_acknowledged_is_kept_or_exported(tmp_path: Path, seed: int) -> None:
    """A few things that go wrong."""
    live_through(tmp_path, seed, chosen(seed, STRIKES))


@pytest.mark.slow
@pytest.mark.parametrize("number", range(SEEDS_SLOW))
def test_what_was_acknowledged_is_kept_or_exported_for_long(tmp_path: Path, seed: int, number: int) -> None:
    """Many."""
    live_through(tmp_path, seed + number, chosen(seed + number, STRIKES_SLOW))


PLANTED = {
    "answer_once_stopped": (Schedule._full_disk_of_writer, f"{LOST}|read after it were"),
    "export_records_alone": (Schedule._log_cut_and_failover, LOST),
}
"""For each bug of `bent`, the fault under which it shows, and what is said of it."""


@pytest.mark.slow  # `assert_seen` shows in short that the check sees what it is for
@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(tmp_path: Path, seed: int, bug: str) -> None:
    """What a full disk or a log that was cut would let pass does not pass."""
    strike, said = PLANTED[bug]
    with pytest.raises(AssertionError, match=said):
        live_through(tmp_path, seed, [strike], bug=bug)
