"""What is foretold of a rejoin is what the rejoin then finds: the same fork, the same records, the same points."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest

import vecstore
from tests.replication.contents import part_ways, write_points
from tests.replication.pair import committer_of, held, make_pair, opened, ship, write_history
from vecstore.engine.contents.export import export
from vecstore.engine.database import EmbeddedDatabase
from vecstore.record import log_key
from vecstore.replication.durable import Durable, Slot
from vecstore.replication.foretell import Foretold, Theirs, foretell
from vecstore.replication.store_log import StoreLog
from vecstore.storage.base import Family


def foretold(path: Path, primary: EmbeddedDatabase, durable: Durable | None = None, first_lsn: int = 1) -> Foretold:
    """Return what is foretold of a closed store's rejoin with an open primary."""
    log = StoreLog(lambda: primary.engine)

    def ask(lsns: Sequence[int]) -> list[tuple[int, bytes | None]]:
        return [(lsn, log.chain(lsn) if lsn <= log.durable_lsn else None) for lsn in lsns]

    theirs = Theirs(list(log.epochs), log.durable_lsn, max(first_lsn, log.first_lsn))
    with closing(vecstore.open(str(path), create=False, read_only=True)) as database:
        assert isinstance(database, EmbeddedDatabase)
        return foretell(database.engine, durable, theirs, ask)


def tree(path: Path) -> dict[str, bytes]:
    """Return what a store's folder holds."""
    return {str(file): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


@pytest.mark.parametrize("adds_collection", [False, True])
def test_it_is_what_the_export_finds(seed: int, tmp_path: Path, adds_collection: bool) -> None:
    """Records, points, and whether a snapshot is needed and why; and nothing is changed."""
    with make_pair(tmp_path) as (a, b):
        write_history(a, seed, 40)
        write_points(a, seed, 20)
        ship(a, b, seed)
        fork = part_ways(a, b)
        write_points(a, seed + 1, 15)
        write_points(b, seed + 2, 25)
        if adds_collection:
            a.create_collection("more", 3)
        tip, log = a.status()["lsn"], StoreLog(lambda: a.engine)
        size = sum(record.size for record in log.read(fork, tip, 1 << 40))
        a.close()
        before = tree(tmp_path / "a")
        found = foretold(tmp_path / "a", b)
        assert tree(tmp_path / "a") == before
        assert (found.fork_lsn, found.lsn, found.records, found.bytes) == (fork, tip, tip - fork, size)
        assert found.is_complete
        with closing(opened(tmp_path / "a")) as again:
            committer_of(again.engine).fence(held)
            left = export(again.engine, fork, True)
        assert (found.points, found.needs_snapshot) == (len(left.ids), left.needs_snapshot)
        if adds_collection:
            assert "about more than points" in found.why_snapshot
        later = foretold(tmp_path / "a", b, first_lsn=fork + 2)
        assert later.needs_snapshot and (adds_collection or f"begins at LSN {fork + 2}" in later.why_snapshot)


def test_a_disk_that_went_back_is_told_by_its_chains(seed: int, tmp_path: Path) -> None:
    """One writer wrote some LSNs twice: the epochs are the same in both, and the fork lies before where they end."""
    with make_pair(tmp_path) as (a, b):
        write_history(a, seed, 20)
        ship(a, b, seed)
        fork = a.status()["lsn"]
        a.close()
        shutil.copytree(tmp_path / "a", tmp_path / "image")
        with closing(opened(tmp_path / "a")) as again:
            write_points(again, seed + 1, 6)
            ship(again, b, seed)
        with closing(opened(tmp_path / "image")) as image:
            write_points(image, seed + 2, 4)
            count = image.status()["lsn"] - fork
        found = foretold(tmp_path / "image", b)
        assert count > 0 and (found.fork_lsn, found.records) == (fork, count)


def test_a_slot_may_be_all_that_knows_the_fork(seed: int, tmp_path: Path) -> None:
    """Where the log begins behind the fork, which is no mark: so it is for the rejoin."""
    with make_pair(tmp_path, checkpoints_retained=1) as (a, b):
        write_history(a, seed, 20)
        ship(a, b, seed)
        tip = committer_of(a.engine).tip
        fork = part_ways(a, b)
        for number in range(3):
            write_points(a, seed + number, 3)
        a.engine.store.delete_range(Family.LOG, log_key(0), log_key(fork + 1))
        a.close()
        slot = Slot("west", "b", tip.lsn, tip.chain)
        known = foretold(tmp_path / "a", b, Durable("fenced", slots=(slot,)))
        assert (known.fork_lsn, known.is_complete) == (fork, True)
