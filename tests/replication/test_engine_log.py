"""The log as the protocol reads it: chains, places and records, from memory, from the log, and where it was cut."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path

import numpy as np

from vecstore.config import CHAIN_MARK_RECORDS
from vecstore.engine.engine import Engine
from vecstore.engine.slots import Standbys
from vecstore.record import Kind, chain_seed
from vecstore.replication.epochs import Identity, Relation, Standing, relate
from vecstore.replication.store_log import StoreLog
from vecstore.storage.catalog import Epoch

from .contents import PRIMARY
from .pair import committer_of, make_pair, opened, ship, write_history

ALL = 1 << 40


def test_memory_and_disk_give_the_same(tmp_path: Path) -> None:
    """Records and chains are the same whether they were seen while they were written or read behind it."""
    with contextlib.closing(opened(tmp_path / "a")) as a:
        a.engine.slots.standbys = lambda: Standbys(holds_all=True)
        warm = StoreLog(lambda: a.engine)
        a.create_collection("docs", 4)
        assert warm.read(0, warm.tip.lsn, ALL), "from now on it watches"
        before = warm.tip.lsn
        write_history(a, 3, 40)
        last = warm.tip.lsn
        recent = warm.read(before, last, ALL)
        cold = StoreLog(lambda: a.engine)
        assert [r.encode() for r in recent] == [r.encode() for r in cold.read(before, last, ALL)]
        assert [r.lsn for r in cold.read(0, last, ALL)] == list(range(1, last + 1))
        for record in cold.read(0, last, ALL):
            assert warm.chain(record.lsn) == StoreLog(lambda: a.engine).chain(record.lsn) == record.mark.chain
        for log in (warm, cold):
            assert len(log.read(before, last, 1)) == 1
            assert [r.lsn for r in log.read(before, before + 3, ALL)] == [before + 1, before + 2, before + 3]
            assert not log.read(last, last + 10, ALL)
            assert log.chain(last + 1) is None
            assert log.chain(0) == chain_seed(a.engine.lineage)
            sizes = [sum(r.size for r in log.read(before, last, limit)) for limit in (20_000, 60_000)]
            assert sizes[0] <= 20_000 and sizes[1] <= 60_000


def test_where_the_log_was_cut(tmp_path: Path) -> None:
    """Marks are known for ever, what lies between them is not, and nothing is read across the cut."""
    with contextlib.closing(opened(tmp_path / "a")) as a:
        docs = a.create_collection("docs", 4)
        fork = committer_of(a.engine).tip
        committer_of(a.engine).persist(PRIMARY, Epoch(2, "b" * 16, fork.lsn, fork.chain.hex()))
        for number in range(2 * CHAIN_MARK_RECORDS + 20):
            docs.upsert([number % 50], np.ones((1, 4)), ack="memory")
        engine = a.engine
        engine.slots.standbys = lambda: Standbys(holds_all=True)
        log = StoreLog(lambda: engine)
        lsns = (1, 500, CHAIN_MARK_RECORDS, 1500, 2 * CHAIN_MARK_RECORDS)
        chains = {lsn: log.chain(lsn) for lsn in lsns if lsn >= log.first_lsn}
        engine.slots.standbys = Standbys
        for _ in range(3):
            docs.upsert([1], np.ones((1, 4)))
            a.checkpoint()
        log = StoreLog(lambda: engine)
        assert log.first_lsn > 2 * CHAIN_MARK_RECORDS
        marks = [CHAIN_MARK_RECORDS, 2 * CHAIN_MARK_RECORDS]
        assert [lsn for lsn in log.known(1, log.first_lsn - 2) if lsn % CHAIN_MARK_RECORDS == 0] == marks
        for lsn in marks:
            assert chains.get(lsn) in (None, log.chain(lsn)) and log.chain(lsn) is not None
        assert log.chain(500) is None
        assert log.chain(fork.lsn) == fork.chain, "an epoch says for ever where it begins"
        assert fork.lsn in log.known(1, 10) and log.chain(fork.lsn + 1) is None
        assert not log.read(log.first_lsn - 3, log.tip.lsn, ALL), "what follows is gone"
        assert log.read(log.first_lsn - 1, log.tip.lsn, ALL)[0].lsn == log.first_lsn
        known = log.known(log.first_lsn, log.tip.lsn + 5)
        assert list(known) == list(range(log.first_lsn, log.tip.lsn + 1))
        assert all(log.chain(lsn) is not None for lsn in log.known(1, log.tip.lsn))


def test_it_follows_the_engine(tmp_path: Path) -> None:
    """Another engine beneath it, with other records at the same LSNs: nothing of the old one is remembered."""
    with make_pair(tmp_path) as (a, b):
        committer_of(b.engine).open_writes()
        engines: list[Engine] = [a.engine]
        log = StoreLog(lambda: engines[0])
        for database, value in ((a, 1.0), (b, 2.0)):
            docs = database.create_collection("docs", 4)
            log.read(0, 1, ALL)
            docs.upsert([1], np.full((1, 4), value))
        mine = [log.chain(lsn) for lsn in (1, 2)]
        engines[0] = b.engine
        theirs = [log.chain(lsn) for lsn in (1, 2)]
        assert mine[0] == theirs[0] and mine[1] != theirs[1]
        assert log.read(1, 3, ALL)[1].mark.chain == log.chain(3) == b.engine.state.view.chain


def test_the_protocol_relates_two_stores_by_it(tmp_path: Path) -> None:
    """A store that was shipped a part is a prefix, the other is ahead of it; parted, they are beside each other."""
    with make_pair(tmp_path) as (a, b):
        write_history(a, 4, 20)
        ship(a, b)
        logs = [StoreLog(lambda: a.engine), StoreLog(lambda: b.engine)]

        def standing(i: int) -> Standing:
            return Standing.of(Identity(a.engine.lineage, a.engine.identity_secret, "ab"[i]), logs[i])

        assert relate(logs[0], standing(1)) is Relation.PREFIX
        write_history(a, 4, 10, 20)
        assert relate(logs[0], standing(1)) is Relation.PREFIX
        assert relate(logs[1], standing(0)) is Relation.AHEAD
        committer_of(b.engine).open_writes()
        b.create_collection("other", 4)
        assert relate(logs[0], standing(1)) is Relation.BESIDE
        assert standing(1).is_valid(Identity(a.engine.lineage, a.engine.identity_secret, "x"))


def test_it_is_read_beside_a_writer(tmp_path: Path) -> None:
    """Nothing above the durable LSN, no gap, one chain, while another thread writes and the log is cut."""
    with contextlib.closing(opened(tmp_path / "a")) as a:
        docs = a.create_collection("docs", 8)
        a.engine.slots.standbys = lambda: Standbys((place,))
        log, place = StoreLog(lambda: a.engine), 0
        done = threading.Event()

        def write() -> None:
            rng = np.random.default_rng(0)
            for number in range(150):
                docs.upsert(list(range(number % 40, 400)), rng.standard_normal((400 - number % 40, 8)))
            done.set()

        writer = threading.Thread(target=write)
        writer.start()
        chain = chain_seed(a.engine.lineage)
        while not (done.is_set() and place == log.durable_lsn):
            durable = log.durable_lsn
            assert durable <= log.tip.lsn
            for record in log.read(place, durable, 100_000):
                assert record.follows(place, chain) and record.lsn <= durable
                place, chain = record.lsn, record.mark.chain
                assert log.chain(place) == chain
        writer.join()


def test_a_handover_that_was_not_written_leaves_the_one_before(tmp_path: Path) -> None:
    """Where the disk refuses a second handover, the log still says whom the one at its tip names."""
    with contextlib.closing(opened(tmp_path / "a")) as a:
        fold, committer = a.engine.state.fold, committer_of(a.engine)
        committer.handover("west", a.engine.not_primary)

        def refused() -> None:
            before = fold.position()
            fold.stage(Kind.HANDOVER, 0, {"to": "south"}, time_us=(1, 1))
            assert fold.handover == "south"
            fold.rewind(before)

        committer.run(refused)
        assert StoreLog(lambda: a.engine).handover == "west"
