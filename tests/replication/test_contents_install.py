"""Contents that are handed out, fetched and put in place: the same store, in a directory that is still itself."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

import numpy as np
import pytest

import vecstore
from tests.replication.contents import PRIMARY, STANDBY, fetch, part_of
from tests.replication.pair import assert_equal, committer_of, held, opened, ship, write_history
from vecstore import request
from vecstore.engine.contents.incoming import Incoming
from vecstore.engine.contents.install import install
from vecstore.engine.contents.outgoing import Outgoing
from vecstore.engine.database import EmbeddedDatabase
from vecstore.errors import Damaged, InvalidArgument, NotFound, NotPrimary
from vecstore.storage.directory import begin, is_store


def identity(path: Path) -> str:
    """Return the store id of a directory, as its file says."""
    found: str = json.loads((path / "identity.json").read_text())["store_id"]
    return found


def bootstrapped(source: EmbeddedDatabase, path: Path) -> str:
    """Make a standby of an empty folder; return its store id."""
    directory = begin(str(path))
    directory.close()
    outgoing = Outgoing(source.engine)
    fetch(outgoing, outgoing.take(), path)
    install(str(path), STANDBY, source.engine.lineage)
    return directory.store_id.hex()


def test_an_empty_folder_becomes_a_store(seed: int, tmp_path: Path) -> None:
    """Digests, answers, request ids and the log are those of the source; identity and role are its own."""
    with contextlib.closing(opened(tmp_path / "a")) as source:
        write_history(source, seed, 60)
        store_id = bootstrapped(source, tmp_path / "b")
        with contextlib.closing(opened(tmp_path / "b")) as made:
            assert made.status()["findings"] == []
            assert_equal(source, made, seed)
            assert made.engine.state.fold.requests == source.engine.state.fold.requests
            assert identity(tmp_path / "b") == store_id == made.status()["store_id"]
            assert part_of(made.engine.replication_state)["role"] == "standby"
            with pytest.raises(NotPrimary):
                made.create_collection("more", 4)
            write_history(source, seed + 1, 30, first=60)
            ship(source, made, seed)
            assert_equal(source, made, seed)
        with contextlib.closing(opened(tmp_path / "b")) as made:
            assert_equal(source, made, seed)
    assert sorted(os.listdir(tmp_path / "b")) == [
        "identity.json", "index", "lock", "quarantine", "rocks", "vecstore.json", "witness"
    ]  # fmt: skip


def test_a_retried_request_is_answered_as_the_source_did(tmp_path: Path) -> None:
    """The window of request ids travels: a retry on the installed store changes nothing, and gives the same LSN."""
    with contextlib.closing(opened(tmp_path / "a")) as source:
        points = source.create_collection("points", 4)
        with request.use(b"r" * 16):
            first = points.upsert([1], np.ones((1, 4)))
        points.upsert([1], -np.ones((1, 4)))
        outgoing = Outgoing(source.engine)
        begin(str(tmp_path / "b")).close()
        fetch(outgoing, outgoing.take(), tmp_path / "b")
        install(str(tmp_path / "b"), PRIMARY)
    with contextlib.closing(opened(tmp_path / "b")) as made:
        with request.use(b"r" * 16):
            again = made.collection("points").upsert([1], np.ones((1, 4)))
        assert again.lsn == first.lsn
        (found,) = made.collection("points").get([1], with_vector=True)
        assert found is not None and found.vector is not None and found.vector[0] < 0


def test_a_snapshot_replaces_all_that_a_store_holds(seed: int, tmp_path: Path) -> None:
    """What it held is gone, slots of the source's archive stay away, and it is the directory that it was."""
    opened(tmp_path / "b").close()
    before = identity(tmp_path / "b")
    with contextlib.closing(vecstore.open(str(tmp_path / "a"), archive=str(tmp_path / "archive"))) as source:
        assert isinstance(source, EmbeddedDatabase)
        write_history(source, seed, 40)
        source.wait(source.status()["token"])
        outgoing = Outgoing(source.engine)
        while not source.engine.slots.held:
            source.checkpoint()
        fetch(outgoing, outgoing.take(), tmp_path / "b")
        with pytest.raises(Damaged, match="lineage"):
            install(str(tmp_path / "b"), STANDBY, bytes(16))
        install(str(tmp_path / "b"), STANDBY)
        with contextlib.closing(opened(tmp_path / "b")) as made:
            assert_equal(source, made, seed)
            assert made.engine.slots.held == {}
            assert made.status()["store_id"] == before
            committer_of(made.engine).fence(held)
    with contextlib.closing(opened(tmp_path / "b")) as made:
        assert made.status()["findings"] == []


def test_a_transfer_that_was_cut_short_goes_on(tmp_path: Path) -> None:
    """Whole files stay, the piece of the last one too; damaged ones begin anew; what is the same stays."""
    with contextlib.closing(opened(tmp_path / "a")) as source:
        source.create_collection("points", 4).upsert(range(500), np.ones((500, 4)))
        outgoing = Outgoing(source.engine)
        taken = outgoing.take()
        begin(str(tmp_path / "b")).close()
        incoming = Incoming(str(tmp_path / "b"))
        incoming.begin(taken.id, taken.files)
        names = [name for name, _, _ in taken.files]
        incoming.receive(names[0], [outgoing.read(taken.id, names[0], 0, 1 << 30)])
        with pytest.raises(Damaged, match="of "):
            incoming.receive(names[1], [outgoing.read(taken.id, names[1], 0, 5)])
        again = Incoming(str(tmp_path / "b"))
        again.begin(taken.id, taken.files)
        assert again.missing()[0] == (names[1], 5)
        assert [name for name, _ in again.missing()] == names[1:]
        size = taken.files[1][1]
        with pytest.raises(Damaged, match="not what was named"):
            again.receive(names[1], [bytes(size - 5)])
        assert dict(again.missing())[names[1]] == 0
        fetch(outgoing, taken, tmp_path / "b")
        source.collection("points").upsert([7], -np.ones((1, 4)))
        later = outgoing.take()
        again.begin(later.id, later.files)
        same = set(taken.files) & set(later.files)
        assert same and {name for name, _ in again.missing()} == {name for name, *_ in set(later.files) - same}
        fetch(outgoing, later, tmp_path / "b")
        assert install(str(tmp_path / "b"), STANDBY).lsn == later.lsn


def test_contents_are_let_go(tmp_path: Path) -> None:
    """Released, expired, and left by a process that died: the files go, and reading says that they are gone."""
    with contextlib.closing(opened(tmp_path / "a")) as source:
        source.create_collection("points", 4).upsert([1], np.ones((1, 4)))
        outgoing = Outgoing(source.engine, expiry_s=0.0)
        one = outgoing.take()
        with pytest.raises(InvalidArgument, match="no such file"):
            outgoing.read(one.id, "../vecstore.json", 0, 10)
        outgoing.release(one.id)
        with pytest.raises(NotFound):
            outgoing.read(one.id, "contents.json", 0, 10)
        two, three = outgoing.take(), outgoing.take()
        assert os.listdir(tmp_path / "a" / "outgoing") == [three.id] != [two.id]
    with contextlib.closing(opened(tmp_path / "a")):
        assert not (tmp_path / "a" / "outgoing").exists()


@pytest.mark.parametrize(
    "name", ["../x", "rocks/../x", "/etc/x", "rocks/", "index/.x", "identity.json", "a/b", "x.part"]
)
def test_a_file_that_leads_elsewhere_is_refused(name: str, tmp_path: Path) -> None:
    """Nothing is made outside of the folder of incoming files, whatever a store says."""
    with pytest.raises(InvalidArgument, match="file"):
        Incoming(str(tmp_path)).begin("x", [(name, 1, "")])
    assert os.listdir(tmp_path) == []


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    """Only a new or empty folder is filled, or one in which that was begun."""
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InvalidArgument, match="not empty"):
        begin(str(tmp_path))
    assert os.listdir(tmp_path) == ["file"]
    first = begin(str(tmp_path / "new"))
    first.close()
    second = begin(str(tmp_path / "new"))
    second.close()
    assert first.store_id == second.store_id
    assert not is_store(str(tmp_path / "new"))
