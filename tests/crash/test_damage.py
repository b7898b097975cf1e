"""Bytes that are not what was written: named, never served; index files are made anew."""

from __future__ import annotations

import contextlib
import itertools
import random
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import vecstore
from vecstore.record import Token, content, content_hash, id_key

from ..support.oracle import canonical_json
from ..support.writer import CONFIG, SHARED
from .checks import check_answers, check_history, read_contents
from .history import Contents, History
from .process import add_seed, run_writer

INTENTS = 60
INTENTS_LATER = 8
FLUSHED = ("rocks/*.blob", "rocks/*.sst")
"""Where the log's records come to stand, commit marks with their chain included, once they are flushed."""
WAL_ALONE = ("--durable", "--unflushed")
FLIPS = 3


@dataclass(frozen=True, slots=True)
class Sample:
    """A store whose writer left without closing it, and what it holds.

    Attributes
    ----------
    where
        Copied for each damage, never opened.
    lsn
        The last that was acknowledged as durable.
    """

    where: Path
    contents: Contents
    lsn: int

    def copy(self, to: Path) -> Path:
        """Return a copy that may be damaged."""
        shutil.copytree(self.where, to / "store")
        return to / "store"

    def points(self, name: str) -> Iterator[tuple[bytes, bytes, bytes]]:
        """Yield id key, payload and vector of the points of a collection."""
        for id, (vector, payload) in self.contents[name].items():
            yield id_key(id), canonical_json(payload), vector


@pytest.fixture(scope="module")
def sample(seed: int, tmp_path_factory: pytest.TempPathFactory) -> Sample:
    """A store with files of all kinds: flushed and not, sealed and growing, with checkpoints.

    What the last writer wrote stands in the write-ahead log alone, whatever the clock did: a checkpoint just before its
    end would have left a write-ahead log that nobody needs, whose loss nothing could tell.
    """
    place = tmp_path_factory.mktemp("sample")
    where, journal = place / "store", place / "journal"
    run_writer(where, seed, "--count", INTENTS, "--journal", journal, "--close")
    run_writer(where, seed + 1, "--count", INTENTS_LATER, "--first", INTENTS, "--journal", journal, *WAL_ALONE)
    history = History(threads=2)
    history.add(journal.read_bytes().splitlines())
    last = max(history.tokens, key=lambda token: history.tokens[token])
    flushed = [place for pattern in FLUSHED for place in find(where, pattern, Token.decode(last).chain)]
    assert not flushed, f"the last record was flushed; seed={seed} places={flushed}"
    shutil.copytree(where, place / "opened")
    with vecstore.open(str(place / "opened"), config=CONFIG) as db:
        check_history(db, history, seed)
    return Sample(where, history.contents(), history.lsn)


def find(where: Path, pattern: str, needle: bytes) -> list[tuple[Path, int]]:
    """Return every place of a byte string in the files of a pattern."""
    places = []
    for path in sorted(where.glob(pattern)):
        data = path.read_bytes()
        at = data.find(needle)
        while at >= 0:
            places.append((path, at))
            at = data.find(needle, at + 1)
    return places


def flip(path: Path, offset: int, rng: random.Random) -> None:
    """Flip one bit."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def report(where: Path, contents: Contents, seed: int) -> str:
    """Open a damaged store, read all of it and verify it; return what it says of the damage, "" for nothing.

    Whatever it says, what it serves must be right: a wrong answer fails here.
    """
    try:
        db = vecstore.open(str(where), config=CONFIG)
    except vecstore.Damaged as error:
        return f"{error} {error.details}"
    try:
        return read_damaged(db, contents, seed)
    finally:
        # RocksDB may have met the damage in its own work, and so the last checkpoint: that is said, too.
        with contextlib.suppress(vecstore.Damaged, vecstore.Unavailable):
            db.close()


def read_damaged(db: vecstore.Database, contents: Contents, seed: int) -> str:
    """Read all of an open store and verify it; return what it says of the damage."""
    try:
        assert read_contents(db) == contents, "damage was served in silence"
        check_answers(db, seed)
    except vecstore.Damaged as error:
        return f"{error} {error.details}"
    verified = db.verify()
    return "" if verified["ok"] else str(verified["damaged"])


# -- RocksDB's files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "pattern"), [("ints", "rocks/*.blob"), ("strs", "rocks/*.sst")])
def test_a_flipped_bit_of_a_point_is_named(name: str, pattern: str, sample: Sample, seed: int, tmp_path: Path) -> None:
    """A bit of a stored point, in a blob file or a table: the collection and the range or point are named."""
    rng = random.Random(seed)
    points = list(sample.points(name))
    rng.shuffle(points)
    needles = [content(*point) for point in points]
    noticed = flip_everywhere(sample, needles, pattern, rng, tmp_path, seed)
    assert all(name in said for said in noticed), noticed


def flip_everywhere(
    sample: Sample, needles: list[bytes], pattern: str, rng: random.Random, place: Path, seed: int
) -> list[str]:
    """Flip a bit in every copy of a few byte strings, one after the other, and return what was said of each.

    Not every copy is alive: a crash leaves tables that nothing names. So one may go unnoticed, not all of them; and
    what is served is right in any case, which `report` asserts.
    """
    found = [places for needle in needles if (places := [(needle, *at) for at in find(sample.where, pattern, needle)])]
    assert found, f"nothing of it lies in {pattern}"
    said = []
    for number, places in enumerate(found[: 2 * FLIPS]):
        where = sample.copy(place / str(number))
        for needle, path, at in places:
            flip(where / path.relative_to(sample.where), at + rng.randrange(len(needle)), rng)
        try:
            said.append(report(where, sample.contents, seed))
        except BaseException as error:
            add_seed(error, seed=seed, number=number, places=[(path, at) for _, path, at in places])
            raise
    assert any(said), f"no flip was noticed; seed={seed}"
    return [text for text in said if text]


def test_a_flipped_bit_of_a_hash_is_named(sample: Sample, seed: int, tmp_path: Path) -> None:
    """A bit of the content hash that stands beside a point."""
    rng = random.Random(seed)
    hashes = [content_hash(*point).to_bytes(16, "big") for point in sample.points("strs")]
    rng.shuffle(hashes)
    flip_everywhere(sample, hashes, "rocks/*.sst", rng, tmp_path, seed)


def test_a_flipped_bit_of_the_log_is_named(sample: Sample, seed: int, tmp_path: Path) -> None:
    """A bit of a record that the log still holds, in a blob file or a table: its LSN, or the break of the chain."""
    rng = random.Random(seed)
    places = log_places(sample)
    assert places, "no record lies in a file"
    # What lies in the newest files has not been cut from the log. But a crash may leave a file that nothing names.
    places.sort(key=lambda place: (place[0].name, place[1]), reverse=True)
    files = itertools.groupby(places, key=lambda place: place[0])
    places = [place for _, found in files for place in itertools.islice(found, 2)]
    said = []
    for number, (path, at) in enumerate(places[: 2 * FLIPS]):
        where = sample.copy(tmp_path / str(number))
        flip(where / path.relative_to(sample.where), at, rng)
        said.append(report(where, sample.contents, seed))
    assert any(said), f"no flip was noticed; seed={seed} places={places[: 2 * FLIPS]}"


def log_places(sample: Sample) -> list[tuple[Path, int]]:
    """Return where vectors of the newest records stand next to each other, as only the log holds them."""
    places = []
    for pattern in (*FLUSHED, "rocks/*.log"):
        for name in SHARED:
            for _, _, vector in list(sample.points(name))[:200]:
                for path, at in find(sample.where, pattern, vector[-16:]):
                    alone = path.read_bytes()[at - len(vector) + 12 : at - len(vector) + 16]
                    if alone != len(vector).to_bytes(4, "little"):
                        places.append((path, at))
    return places


def test_a_flipped_bit_of_the_write_ahead_log_is_named(sample: Sample, seed: int, tmp_path: Path) -> None:
    """RocksDB would drop what follows in silence: the witness knows better, and lost LSNs are named."""
    rng = random.Random(seed)
    vectors = [vector for name in SHARED for _, _, vector in sample.points(name)]
    rng.shuffle(vectors)
    places = [place for vector in vectors for place in find(sample.where, "rocks/*.log", vector)][: 2 * FLIPS]
    assert places, "no point lies in the write-ahead log"
    reports = []
    for number, (path, at) in enumerate(places):
        where = sample.copy(tmp_path / str(number))
        flip(where / path.relative_to(sample.where), at + rng.randrange(16), rng)
        reports.append(report(where, sample.contents, seed))
        # A log that RocksDB needs no more loses nothing: then all is there, which `report` asserts.
        assert reports[-1] == "" or "lsn" in reports[-1].lower(), f"{reports[-1]!r}; seed={seed} path={path} at={at}"
    assert any(reports), f"no flip was noticed; seed={seed} places={places}"


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_shortened_write_ahead_log_is_named(share: float, sample: Sample, tmp_path: Path, seed: int) -> None:
    """What a deleted or shortened write-ahead log held is missed by the witness, and named by LSN."""
    where = sample.copy(tmp_path)
    logs = [path for path in sorted(where.glob("rocks/*.log")) if path.stat().st_size]
    assert logs, "the writer left no write-ahead log"
    for path in logs:
        if share:
            with path.open("rb+") as file:
                file.truncate(int(path.stat().st_size * share))
        else:
            path.unlink()
    said = report(where, sample.contents, seed)
    last = re.search(r"'last_lost_lsn': (\d+)", said)
    assert last is not None, said
    assert int(last.group(1)) >= sample.lsn


# -- index files, checkpoints, witness ---------------------------------------------------------------------------------


def index_files(where: Path) -> list[Path]:
    """Return the index files of a store."""
    return sorted(path for path in (where / "index").rglob("*") if path.is_file())


def test_without_index_files_all_is_the_same(sample: Sample, seed: int, tmp_path: Path) -> None:
    """Every index file deleted: the store opens and answers the same (I12)."""
    where = sample.copy(tmp_path)
    assert index_files(where)
    for path in index_files(where):
        path.unlink()
    assert report(where, sample.contents, seed) == ""
    assert report(where, sample.contents, seed) == "", "the second open finds what the first one made"


def test_without_one_index_file_all_is_the_same(sample: Sample, seed: int, tmp_path: Path) -> None:
    """Any one index file deleted."""
    rng = random.Random(seed)
    for path in rng.sample(index_files(sample.where), min(FLIPS, len(index_files(sample.where)))):
        where = sample.copy(tmp_path / path.name)
        (where / path.relative_to(sample.where)).unlink()
        assert report(where, sample.contents, seed) == "", f"seed={seed} path={path}"


def test_a_flipped_bit_of_an_index_file_changes_no_answer(sample: Sample, seed: int, tmp_path: Path) -> None:
    """A bit of any index file, header or data: found by its checksum, reported, and made anew from the points."""
    rng = random.Random(seed)
    for number in range(2 * FLIPS):
        path = rng.choice(index_files(sample.where))
        where = sample.copy(tmp_path / str(number))
        flip(where / path.relative_to(sample.where), rng.randrange(path.stat().st_size), rng)
        said = report(where, sample.contents, seed)
        assert said == "", f"{said}; seed={seed} number={number} path={path}"


def test_a_flipped_bit_of_a_checkpoint_changes_no_answer(sample: Sample, seed: int, tmp_path: Path) -> None:
    """A bit of a checkpoint's entry: an older one, a rebuild, or an error that says so; never another answer."""
    rng = random.Random(seed)
    places = [p for pattern in ("rocks/*.sst", "rocks/*.log") for p in find(sample.where, pattern, b"checkpoint/")]
    assert places, "there is no checkpoint"
    for number, (path, at) in enumerate(rng.sample(places, min(FLIPS, len(places)))):
        where = sample.copy(tmp_path / str(number))
        flip(where / path.relative_to(sample.where), at + len(b"checkpoint/") + 8 + rng.randrange(24), rng)
        report(where, sample.contents, seed)


def test_a_damaged_witness_is_named(sample: Sample, seed: int, tmp_path: Path) -> None:
    """The witness has two slots: one may be damaged, both not."""
    rng = random.Random(seed)
    one = sample.copy(tmp_path / "one")
    flip(one / "witness", 9, rng)
    assert report(one, sample.contents, seed) == ""
    both = sample.copy(tmp_path / "both")
    flip(both / "witness", 9, rng)
    flip(both / "witness", 4096 + 9, rng)
    assert "witness" in report(both, sample.contents, seed)


@pytest.mark.parametrize("name", ["vecstore.json", "identity.json"])
def test_a_damaged_small_file_is_named(name: str, sample: Sample, tmp_path: Path) -> None:
    """A format or identity file that cannot be read stops the open, and nothing is written."""
    where = sample.copy(tmp_path)
    (where / name).write_bytes(b"\0" * 40)
    with pytest.raises(vecstore.Damaged, match=name):
        vecstore.open(str(where), config=CONFIG)
    assert (where / name).read_bytes() == b"\0" * 40


def test_the_undamaged_sample_is_sound(sample: Sample, seed: int, tmp_path: Path) -> None:
    """What the other tests damage says nothing of damage before."""
    where = sample.copy(tmp_path)
    assert report(where, sample.contents, seed) == ""
