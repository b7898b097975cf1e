"""Ranges of points at one LSN: sums that tile, pins that stand still, damage and difference told apart, halts."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest

import vecstore
from tests.support.writer import CONFIG
from vecstore.engine import ranges
from vecstore.engine.database import EmbeddedDatabase
from vecstore.engine.engine import Engine
from vecstore.engine.ranges import Pin, listed, pin, pin_here, span, summed
from vecstore.errors import Closed, InvalidArgument, Unavailable
from vecstore.record import DIGEST_MODULUS, STAMP_BYTES, content, content_hash, id_key, key_id, point_key
from vecstore.replication.store_log import StoreLog
from vecstore.storage.base import Family

from .pair import committer_of, make_pair, opened, ship, write_history

WAIT_S = 30.0


@pytest.fixture
def filled(tmp_path: Path) -> Iterator[EmbeddedDatabase]:
    with contextlib.closing(opened(tmp_path / "a")) as database:
        fill(database)
        yield database


def fill(database: EmbeddedDatabase) -> None:
    rows = np.arange(1, 900 * 4 + 1, dtype=np.float32).reshape(900, 4)
    payloads = [{"text": f"{i} " * 100} for i in range(900)]
    database.create_collection("ints", 4).upsert(range(900), rows, payloads)
    database.create_collection("strs", 4).upsert([f"s{i}" for i in range(900)], rows, payloads)


def number_of(database: EmbeddedDatabase, name: str) -> int:
    return database.engine.state.view.names[name]


def sums(pinned: Pin, points_max: int) -> dict[int, tuple[int, int, int, int]]:
    """Return the digest, points and damage of each collection, from ranges of a size, and how many ranges."""
    found = {}
    for number in pinned.collections:
        first: bytes | None
        first, stop = span(number)
        digest = points = damaged = count = 0
        while first is not None:
            piece = summed(pinned, first, stop, points_max)
            assert piece.first == first
            digest, points = (digest + piece.digest) % DIGEST_MODULUS, points + piece.points
            damaged, count = damaged + piece.damaged_count, count + 1
            first = piece.next_place
        found[number] = (digest, points, damaged, count)
    return found


def marks(pinned: Pin) -> dict[int, tuple[int, int]]:
    """Return the digest and count of each collection that the log gives."""
    return {number: (state.digest, state.points) for number, state in pinned.collections.items()}


def write_behind(engine: Engine, place: bytes, value: bytes | None) -> None:
    """Change a stored point behind the engine's back."""
    committer_of(engine).run(lambda: engine.store.write([(Family.POINTS, place, value)], logged=False))


def stored(engine: Engine, place: bytes) -> bytes:
    (value,) = engine.store.get(Family.POINTS, [place])
    assert value is not None
    return value


@pytest.mark.parametrize("points_max", [1, 7, 899, 900, 901])
def test_ranges_tile_whatever_their_size(filled: EmbeddedDatabase, points_max: int) -> None:
    """The sums of ranges of any size are the digest and the count that the log gives."""
    with pin(filled.engine) as pinned:
        found = sums(pinned, points_max)
        assert {number: one[:2] for number, one in found.items()} == marks(pinned)
        assert all(one[2:] == (0, -(-900 // points_max)) for one in found.values())


@pytest.mark.parametrize("seed", range(2))
def test_a_pin_stands_still_while_the_store_is_written_to(tmp_path: Path, seed: int) -> None:
    """Pins of many LSNs, read after everything was overwritten, flushed and compacted: each as it was."""
    with contextlib.closing(opened(tmp_path / "a")) as database, contextlib.ExitStack() as stack:
        pins = []
        for part in range(4):
            write_history(database, seed, 20, 20 * part)
            pins.append(stack.enter_context(pin(database.engine)))
            assert pins[-1].lsn == database.engine.durable_lsn
        for name in database.collections():
            database.drop_collection(name)
        database.engine.at_barrier(database.engine.store.flush)
        database.engine.store.compact(Family.POINTS)
        assert [one.lsn for one in pins] == sorted({one.lsn for one in pins})
        for pinned in pins:
            assert {number: one[:2] for number, one in sums(pinned, 50).items()} == marks(pinned)


def test_what_is_pinned_is_durable(filled: EmbeddedDatabase) -> None:
    """A write that was acknowledged from memory is synced before a pin shows it."""
    written = filled.collection("ints").upsert([5], np.ones((1, 4)), ack="memory")
    with pin(filled.engine) as pinned:
        assert filled.engine.durable_lsn >= pinned.lsn >= written.lsn


def test_a_flipped_byte_is_damage_at_this_side(filled: EmbeddedDatabase) -> None:
    """A byte of the content, and one of the hash beside it: the point is named, and nothing else is."""
    number = number_of(filled, "ints")
    for at in (STAMP_BYTES + 40, 12):
        place = point_key(number, id_key(123))
        value = bytearray(stored(filled.engine, place))
        value[at] ^= 1
        write_behind(filled.engine, place, bytes(value))
        with pin(filled.engine) as pinned:
            found = summed(pinned, *span(number), 10_000)
        assert [(key_id(one.place[8:]), one.why) for one in found.damaged] == [
            (123, "its content is not what was written")
        ]
        assert (found.points, found.damaged_count) == (900, 1)
        value[at] ^= 1
        write_behind(filled.engine, place, bytes(value))
    with pin(filled.engine) as pinned:
        assert not summed(pinned, *span(number), 10_000).damaged


def test_contents_that_changed_places_are_damage(filled: EmbeddedDatabase) -> None:
    """Two stored points, each sound, under one another's ids: their sum is right, and both are named."""
    strs = number_of(filled, "strs")
    one, other = (point_key(strs, id_key(id)) for id in ("s17", "s88"))
    values = stored(filled.engine, one), stored(filled.engine, other)
    write_behind(filled.engine, one, values[1])
    write_behind(filled.engine, other, values[0])
    with pin(filled.engine) as pinned:
        found = summed(pinned, *span(strs), 10_000)
        assert found.digest == pinned.collections[strs].digest
        assert [(key_id(a.place[8:]), a.why) for a in found.damaged] == [
            ("s17", "its content is that of another id"),
            ("s88", "its content is that of another id"),
        ]


def test_another_content_with_its_own_hash_is_a_difference(filled: EmbeddedDatabase) -> None:
    """It is sound here, so it is no damage: the sum of its range alone differs, and the list says where."""
    ints = number_of(filled, "ints")
    place = point_key(ints, id_key(500))
    before = stored(filled.engine, place)
    pieces = (id_key(500), b"{}", np.ones(4, np.float32).tobytes())
    stamp = before[:8] + content_hash(*pieces).to_bytes(16, "big")
    with pin(filled.engine) as old:
        write_behind(filled.engine, place, stamp + content(*pieces))
        with pin(filled.engine) as new:
            first: bytes | None = span(ints)[0]
            different = []
            while first is not None:
                mine = summed(new, first, span(ints)[1], 100)
                theirs = summed(old, first, mine.next_place or span(ints)[1], 100_000)
                assert not mine.damaged
                if mine.digest != theirs.digest:
                    different.append((first, mine.next_place or span(ints)[1]))
                first = mine.next_place
            assert [key_id(a[8:]) for a, _ in different] == [500]
            unlike = set(listed(old, *different[0])) ^ set(listed(new, *different[0]))
            assert {key_id(stamp.place[8:]) for stamp in unlike} == {500}


@pytest.mark.parametrize("name", ["ints", "strs"])
@pytest.mark.parametrize("suffix", [".sst", ".blob"])
def test_what_lies_behind_damaged_bytes_is_read(tmp_path: Path, name: str, suffix: str) -> None:
    """A bit flipped in RocksDB's files: what is lost is named, once each, and all the rest is summed."""
    with contextlib.closing(opened(tmp_path / "a")) as database:
        fill(database)
        number = number_of(database, name)
    id = 700 if name == "ints" else "s700"
    ids = sorted(range(900)) if name == "ints" else sorted(f"s{i}" for i in range(900))
    # A blob has the whole id; of a table's keys only some are whole, and one in the middle is taken.
    found_at = places_of(tmp_path / "a", suffix, id_key(id) if suffix == ".blob" else number.to_bytes(8, "big"))
    path, at = found_at[len(found_at) // 2]
    data = bytearray(path.read_bytes())
    data[at + 7] ^= 1
    path.write_bytes(data)
    with contextlib.closing(reopened(tmp_path / "a")) as database, pin(database.engine) as pinned:
        found = summed(pinned, *span(number), 10_000)
        lost = [key_id(one.place[8:]) for one in found.damaged]
        print(f"{len(found_at)} places, {found.damaged_count} lost, {lost[:3]}")
        assert 1 <= found.damaged_count < 900
        assert found.points == 900
        # One run of ids, in their order, with the one in it whose bytes were flipped.
        at = ids.index(lost[0])  # type: ignore[arg-type]
        assert lost == ids[at : at + len(lost)]
        assert suffix == ".sst" or lost == [id]
        assert sums(pinned, 13)[number][:3] == (found.digest, found.points, found.damaged_count)
        verified = database.verify()["damaged"]
        named = {one["id"] for one in verified if one["place"] == "points" and "id" in one}
        assert len(named) == found.damaged_count


def places_of(store: Path, suffix: str, needle: bytes) -> list[tuple[Path, int]]:
    """Return where some bytes lie in RocksDB's files of a kind."""
    found = []
    for path in sorted((store / "rocks").glob(f"*{suffix}")):
        data = path.read_bytes()
        at = data.find(needle)
        while at >= 0:
            found.append((path, at))
            at = data.find(needle, at + 1)
    return found


def reopened(path: Path) -> EmbeddedDatabase:
    database = vecstore.open(str(path), read_only=True, config=CONFIG)
    assert isinstance(database, EmbeddedDatabase)
    return database


def test_a_pin_ends(filled: EmbeddedDatabase, tmp_path: Path) -> None:
    """By its time, by `close`, by the end of the store; a read says so, and never ends early in silence."""
    ints = number_of(filled, "ints")
    brief = pin(filled.engine, 0.01)
    brief._timer.join(WAIT_S)
    assert brief.is_closed
    with pin(filled.engine) as closed:
        pass
    for pinned in (brief, closed):
        with pytest.raises(Unavailable, match="let go"):
            summed(pinned, *span(ints), 10)
    cut = pin(filled.engine)
    reading = listed(cut, *span(ints))
    next(reading)
    cut.close()
    with pytest.raises(Unavailable, match="let go"):
        list(reading)
    filled.close()
    with contextlib.closing(reopened(tmp_path / "a")) as database:
        pinned = pin(database.engine)
        assert {number: one[:2] for number, one in sums(pinned, 100).items()} == marks(pinned)
    with pytest.raises(Closed):
        summed(pinned, *span(ints), 10)
    with pytest.raises(Closed):
        pin(database.engine)


# -- halts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_a_standby_is_pinned_where_its_primary_was(tmp_path: Path, seed: int) -> None:
    """Halts at LSNs in the middle of runs of records: both sides are at the same LSN, and their ranges are equal."""
    rng = random.Random(seed)
    with make_pair(tmp_path) as (a, b), contextlib.ExitStack() as stack:
        pins: list[tuple[Pin, Future[Pin]]] = []
        for part in range(6):
            write_history(a, seed, rng.randrange(1, 12), 20 * part)
            mine = stack.enter_context(pin(a.engine))
            pins.append((mine, committer_of(b.engine).halts.at(mine.lsn, lambda: pin_here(b.engine))))
        write_history(a, seed, 10, 200)
        assert not any(future.done() for _, future in pins)
        ship(a, b, seed)
        for mine, future in pins:
            theirs = stack.enter_context(future.result(0))
            assert (theirs.lsn, theirs.chain, marks(theirs)) == (mine.lsn, mine.chain, marks(mine))
            assert sums(theirs, 40) == sums(mine, 40)
        assert b.engine.state.view.lsn > pins[-1][0].lsn


def test_a_halt_in_one_frame_of_small_records(tmp_path: Path) -> None:
    """Records that would share one sync are split at each halt, and only there; a halt that is behind is refused."""
    with make_pair(tmp_path) as (a, b):
        docs = a.create_collection("docs", 4)
        ship(a, b)
        first = a.engine.durable_lsn
        for i in range(20):
            docs.upsert([i], np.full((1, 4), i + 1, np.float32))
        halts, seen = committer_of(b.engine).halts, []

        def look(lsn: int) -> Future[None]:
            future: Future[None] = halts.at(lsn, lambda: seen.append((lsn, b.engine.state.view.lsn)))
            return future

        asked = [first, first + 3, first + 4, first + 20, first + 50]
        futures = [look(lsn) for lsn in asked]
        dropped = look(first + 7)
        assert dropped.cancel()
        failing: Future[None] = halts.at(first + 5, lambda: 1 / 0)
        records = list(StoreLog(lambda: a.engine).read(first, a.engine.durable_lsn, 1 << 30))
        assert len(records) == 20
        committer_of(b.engine).append(records)
        assert seen == [(lsn, lsn) for lsn in asked[:-1]]
        assert isinstance(failing.exception(0), ZeroDivisionError)
        assert not futures[-1].done()
        assert isinstance(look(first + 19).exception(0), InvalidArgument)
    assert isinstance(futures[-1].exception(0), Closed)


def test_applying_is_held_for_a_moment(tmp_path: Path) -> None:
    """What comes while it is held is applied when it is released, or when the time is up."""
    with make_pair(tmp_path) as (a, b):
        docs = a.create_collection("docs", 4)
        ship(a, b)
        halts = committer_of(b.engine).halts
        for seconds_max, releases in ((WAIT_S, True), (0.05, False)):
            before = b.engine.state.view.lsn
            assert halts.hold(seconds_max) == before
            docs.upsert([1], np.ones((1, 4)))
            shipping = threading.Thread(target=ship, args=(a, b))
            shipping.start()
            if releases:
                assert b.engine.state.view.lsn == before
                mine = pin(a.engine)
                theirs: Future[Pin] = halts.at(mine.lsn, lambda: pin_here(b.engine))
                assert not theirs.done()
                halts.release()
                with mine, theirs.result(WAIT_S) as pinned:
                    assert pinned.chain == mine.chain
            shipping.join(WAIT_S)
            assert b.engine.state.view.lsn == a.engine.durable_lsn


def test_much_damage_is_counted_and_some_of_it_named(filled: EmbeddedDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    """The list is bounded, the count is not."""
    ints = number_of(filled, "ints")
    monkeypatch.setattr(ranges, "DAMAGE_NAMED_MAX", 10)
    for id in range(50):
        place = point_key(ints, id_key(id))
        write_behind(filled.engine, place, stored(filled.engine, place)[:-1] + b"?")
    with pin(filled.engine) as pinned:
        found = summed(pinned, *span(ints), 10_000)
    assert (len(found.damaged), found.damaged_count, found.points) == (10, 50, 900)
