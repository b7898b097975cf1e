"""What an engine may do by itself, before anybody speaks for it: by its durable role, as a copy, and for its log."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

import vecstore
from tests.support.faults import Disk, inventory
from tests.support.shim import OpKind, build_shim, read_journal, shim_environment
from vecstore.engine.database import EmbeddedDatabase
from vecstore.engine.slots import Slot as ArchiveSlot
from vecstore.engine.slots import Standbys
from vecstore.errors import Damaged, NotPrimary
from vecstore.replication.durable import Durable, RejoinState, Slot
from vecstore.storage.catalog import Epoch, Part

from .pair import committer_of, opened

ROOT = Path(__file__).parents[2]
POINT = np.ones((1, 4), np.float32)


def state(durable: Durable) -> bytes:
    """Return a durable state as bytes."""
    return msgspec.msgpack.encode(durable)


def made(path: Path) -> EmbeddedDatabase:
    """Return an open store with one point."""
    database = opened(path)
    database.create_collection("docs", 4).upsert([1], POINT)
    return database


def persisted(path: Path, durable: Durable) -> None:
    """Make a store of a point that has a durable state, and close it."""
    with contextlib.closing(made(path)) as database:
        committer_of(database.engine).persist(state(durable))


HELD = [
    (Durable("standby", primary="aa"), "standby"),
    (Durable("fenced", reason="epoch 7 began"), "fenced: epoch 7 began"),
    (Durable("primary", peers=("bb",)), "has not heard from its peers"),
    (Durable("primary", rejoin=RejoinState("seek", "bb")), "has not heard"),
]


@pytest.mark.parametrize(("durable", "why"), HELD)
def test_a_role_on_disk_holds_writes(tmp_path: Path, durable: Durable, why: str) -> None:
    """A standby, a fenced store, and a primary that has peers open for reading; the error says why, and who writes."""
    persisted(tmp_path / "a", durable)
    with contextlib.closing(opened(tmp_path / "a")) as database:
        database.engine.primary_hint = "west:7601"
        docs = database.collection("docs")
        with pytest.raises(NotPrimary, match=why) as caught:
            docs.upsert([2], POINT)
        assert (caught.value.primary, caught.value.outcome) == ("west:7601", "refused")
        assert [point.id for point in docs.scan()] == [1]
        status = database.status()
        assert (status["role"], status["writable"]) == (durable.role, False)
        committer_of(database.engine).open_writes()
        docs.upsert([2], POINT)


def test_a_primary_without_peers_writes(tmp_path: Path) -> None:
    """A store that was served and met nobody is as free as one that never was."""
    persisted(tmp_path / "a", Durable("primary"))
    with contextlib.closing(opened(tmp_path / "a")) as database:
        database.collection("docs").upsert([2], POINT)
        assert database.status()["writable"]


def test_an_engine_reads_its_part_of_a_durable_state() -> None:
    """Whatever the protocol writes, role, peers, slots and rejoin are found; other bytes are `Damaged`."""
    slots = (Slot("west", "bb", 7, b"x" * 16), Slot("east", "cc", 3, b"", is_lost=True))
    rejoin = RejoinState("export", "bb", fork_lsn=3)
    part = Part.decode(state(Durable("fenced", reason="r", primary="p", peers=("bb",), slots=slots, rejoin=rejoin)))
    assert (part.role, part.reason, part.primary, part.peers) == ("fenced", "r", "p", ("bb",))
    assert [(slot.name, slot.lsn, slot.is_lost) for slot in part.slots] == [("west", 7, False), ("east", 3, True)]
    assert part.holds_log and not part.takes_writes
    assert not Part.decode(state(Durable("standby", rejoin=RejoinState("follow", "bb")))).holds_log
    with pytest.raises(Damaged):
        Part.decode(b"\xc1 nothing that was written")


def test_a_promotion_is_one_batch_and_the_clock_goes_on(tmp_path: Path) -> None:
    """Role and epoch are there together after a reopen; commit times of the new epoch are not below the last ones."""
    with contextlib.closing(made(tmp_path / "a")) as database:
        committer = committer_of(database.engine)
        tip = committer.tip
        epoch = Epoch(3, "ab" * 8, tip.lsn, tip.chain.hex())
        committer.persist(state(Durable("primary", replaced=1)), epoch)
        assert committer.durable_lsn == committer.tip.lsn == tip.lsn + 1
        assert committer.tip.commit_time_us >= tip.commit_time_us
        written = database.collection("docs").upsert([2], POINT)
        assert database.wait(written.token).lsn == tip.lsn + 2
        assert database.position() == (3, tip.lsn + 2)
    with contextlib.closing(opened(tmp_path / "a")) as database:
        assert database.engine.state.fold.epochs[-1] == epoch
        assert database.wait(written.token).lsn == tip.lsn + 2


def test_an_epoch_that_does_not_begin_at_the_tip_is_a_bug(tmp_path: Path) -> None:
    """Nothing is written then, and the store goes on."""
    with contextlib.closing(made(tmp_path / "a")) as database:
        committer = committer_of(database.engine)
        with pytest.raises(AssertionError):
            committer.persist(state(Durable("primary")), Epoch(2, "ab", 1, "00"))
        assert database.engine.replication_state is None and committer.broken is None
        database.collection("docs").upsert([2], POINT)


# -- copies ----------------------------------------------------------------------------------------------------------


def test_a_copy_of_a_store_that_others_know_is_read_only_until_adopted(tmp_path: Path) -> None:
    """It serves reads and refuses writes, the identity file is left alone; adopted, it has an identity of its own."""
    persisted(tmp_path / "a", Durable("primary", peers=("bb",)))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    identity = (tmp_path / "b" / "identity.json").read_bytes()
    for _ in range(2):
        with contextlib.closing(opened(tmp_path / "b")) as copy:
            assert copy.engine.is_copied
            with pytest.raises(NotPrimary, match="copied"):
                copy.collection("docs").upsert([2], POINT)
            assert copy.collection("docs").count() == 1
    assert (tmp_path / "b" / "identity.json").read_bytes() == identity
    with contextlib.closing(opened(tmp_path / "b")) as copy:
        store_id = copy.engine.directory.store_id
        copy.engine.directory.adopt()
        assert not copy.engine.is_copied and copy.engine.directory.store_id == store_id
    with contextlib.closing(opened(tmp_path / "b")) as copy, contextlib.closing(opened(tmp_path / "a")) as original:
        assert not copy.engine.is_copied and not original.engine.is_copied
        assert copy.engine.directory.store_id == store_id != original.engine.directory.store_id


def test_a_copy_of_a_store_that_is_archived_is_read_only(tmp_path: Path) -> None:
    """Two stores must not write one archive."""
    with contextlib.closing(made(tmp_path / "a")) as database:
        database.engine.slots.set(ArchiveSlot("archive", "/somewhere", 1, "", 0))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    with contextlib.closing(opened(tmp_path / "b")) as copy:
        assert copy.engine.is_copied
        with pytest.raises(NotPrimary, match="copied"):
            copy.collection("docs").upsert([2], POINT)


def test_a_copy_of_a_store_that_nobody_knows_is_a_store_of_its_own(tmp_path: Path) -> None:
    """It gets an identity at once, and keeps it; a directory that was moved keeps its own."""
    made(tmp_path / "a").close()
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    ids = []
    for _ in range(2):
        with contextlib.closing(opened(tmp_path / "b")) as copy:
            copy.collection("docs").upsert([2], POINT)
            ids.append(copy.status()["store_id"])
    os.rename(tmp_path / "b", tmp_path / "c")
    with contextlib.closing(opened(tmp_path / "c")) as moved, contextlib.closing(opened(tmp_path / "a")) as original:
        assert {*ids, moved.status()["store_id"]} == {ids[0]}
        assert original.status()["store_id"] != ids[0]


# -- the log that is kept --------------------------------------------------------------------------------------------


def fill(database: EmbeddedDatabase, count: int) -> None:
    """Write so many records of about 16 KiB."""
    docs = database.collection("docs")
    for number in range(count):
        docs.upsert(list(range(1000)), np.full((1000, 4), number + 1, np.float32))


def cut(database: EmbeddedDatabase) -> int:
    """Take checkpoints until the log is cut as far as it may be; return the first record that is kept."""
    for _ in range(3):
        database.collection("docs").upsert([1], POINT)
        database.checkpoint()
    assert database.engine.checkpointer is not None
    return database.engine.checkpointer.log_start


def test_the_log_is_kept_for_slots_and_for_a_rejoin(tmp_path: Path) -> None:
    """By the durable state alone, also after a reopen; a slot that is lost, or that is gone, holds nothing."""
    with contextlib.closing(made(tmp_path / "a")) as database:
        slots = (Slot("west", "bb", 4, b"x" * 16), Slot("lost", "cc", 1, b"", is_lost=True))
        committer_of(database.engine).persist(state(Durable("primary", slots=slots)))
        fill(database, 10)
        assert cut(database) == 5
    with contextlib.closing(opened(tmp_path / "a")) as database:
        assert cut(database) == 5
        rejoin = RejoinState("export", "bb")
        committer_of(database.engine).persist(state(Durable("fenced", rejoin=rejoin)))
        committer_of(database.engine).open_writes()
        fill(database, 5)
        assert cut(database) == 5
        committer_of(database.engine).persist(state(Durable("standby", slots=())), is_synced=False)
        assert cut(database) > 15


def test_a_slot_holds_no_more_than_its_limit(tmp_path: Path) -> None:
    """Beyond `slot_retained_bytes_max` the log is cut all the same."""
    with contextlib.closing(opened(tmp_path / "a", slot_retained_bytes_max=1 << 20)) as database:
        database.create_collection("docs", 4)
        database.engine.slots.standbys = lambda: Standbys((3,))
        fill(database, 5)
        assert cut(database) == 4
        fill(database, 80)
        assert cut(database) > 80


# -- power loss ------------------------------------------------------------------------------------------------------

CHILD = """
import sys
import msgspec, numpy as np
from pathlib import Path
from tests.replication.pair import committer_of, opened
from vecstore.replication.durable import Durable
from vecstore.storage.catalog import Epoch

database = opened(Path(sys.argv[1]))
docs, committer = database.create_collection("docs", 4), committer_of(database.engine)
with open(sys.argv[2], "ab", buffering=0) as said:
    for number in range(2, 7):
        docs.upsert([number], np.ones((1, 4)), ack="memory")
        tip = committer.tip
        epoch = Epoch(number, f"{number:016x}", tip.lsn, tip.chain.hex())
        committer.persist(msgspec.msgpack.encode(Durable("primary", replaced=number)), epoch)
        said.write(b"%d\\n" % number)
import os
os._exit(0)
"""


def test_an_epoch_and_its_role_survive_a_power_loss_together(tmp_path: Path, seed: int) -> None:
    """Cut at any write or sync, the store has the state of its last epoch, and every epoch that it spoke of."""
    root, journal, acks = tmp_path / "disk", tmp_path / "journal", tmp_path / "acks"
    root.mkdir()
    opened(root / "store").close()
    held = inventory(root)
    shim = build_shim(tmp_path)
    environment = shim_environment(shim, root, journal=journal, acks=acks, skip_sync=True)
    command = [sys.executable, "-c", CHILD, str(root / "store"), str(acks)]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=120)
    disk = Disk(root, read_journal(journal), held)
    said = [position for position, op in enumerate(disk.ops) if op.kind == OpKind.ACK]
    assert len(said) == 5
    anywhere = random.Random(seed).sample(range(len(disk.ops)), 15)
    for crash in {*(place + by for place in said for by in (-1, 0, 1)), *anywhere}:
        image = tmp_path / f"image {crash}"
        disk.image(crash, seed + crash, "weak", image)
        check_image(image / "store", disk.acknowledged(crash))
        shutil.rmtree(image)


def check_image(path: Path, said: bytes) -> None:
    """Assert that state and epochs of a store fit each other, and hold what was said."""
    with contextlib.closing(opened(path)) as database:
        epochs, found = database.engine.state.fold.epochs, database.engine.replication_state
        replaced = 1 if found is None else msgspec.msgpack.decode(found, type=Durable).replaced
        assert epochs[-1].number == replaced
        assert not said or replaced >= int(said.split()[-1])
        assert isinstance(database, vecstore.Database)
