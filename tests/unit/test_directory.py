"""The folder of a store: what is made, what is recognised, and what is left untouched."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from vecstore.errors import Damaged, InvalidArgument, Locked, NotFound
from vecstore.storage.directory import StoreDirectory


def opened(path: Path | str, *, create: bool = True, read_only: bool = False) -> StoreDirectory:
    return StoreDirectory.open(str(path), create=create, read_only=read_only)


def made(path: Path) -> bytes:
    directory = opened(path)
    directory.close()
    return directory.store_id


def tree(path: Path) -> dict[str, tuple[int, bytes]]:
    """All files and folders under a path, with times and bytes."""
    return {
        str(p.relative_to(path)): (p.lstat().st_mtime_ns, p.read_bytes() if p.is_file() else b"")
        for p in [path, *sorted(path.rglob("*"))]
    }


def test_a_store_is_made_and_opened_again(tmp_path: Path) -> None:
    """Parents are made; the parts have their places; the second open finds the same store."""
    path = tmp_path / "some" / "where" / "store"
    first = opened(path)
    assert first.created
    assert len(first.store_id) == 16
    assert first.path == str(path)
    for part in ("rocks", "index", "quarantine"):
        assert getattr(first, part) == str(path / part)
        assert (path / part).is_dir()
    assert first.witness == str(path / "witness")
    assert not (path / "vecstore.creating").exists()
    first.close()
    first.close()
    second = opened(path, create=False)
    assert not second.created
    assert second.store_id == first.store_id
    second.close()


def test_an_empty_folder_becomes_a_store(tmp_path: Path) -> None:
    """Also through a relative path, a trailing slash and a symlink; `~` is a name like any other."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    store_id = made(tmp_path / "link")
    assert made(tmp_path / "real") == store_id
    here = os.getcwd()
    os.chdir(tmp_path)
    try:
        for name in ("real/", "./real", "link/", "real/../real"):
            directory = opened(name, create=False)
            assert directory.store_id == store_id
            assert os.path.isabs(directory.path)
            directory.close()
        opened("~").close()
        assert (tmp_path / "~" / "vecstore.json").is_file()
    finally:
        os.chdir(here)


@pytest.mark.parametrize("read_only", [False, True])
def test_a_missing_store_is_not_found(tmp_path: Path, read_only: bool) -> None:
    """Nothing is made: neither where it is missing nor where the folder is empty."""
    (tmp_path / "empty").mkdir()
    before = tree(tmp_path)
    for name in ("none", "none/deeper", "empty"):
        with pytest.raises(NotFound):
            opened(tmp_path / name, create=read_only, read_only=read_only)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("create", [False, True])
@pytest.mark.parametrize("read_only", [False, True])
def test_what_is_no_store_is_left_untouched(tmp_path: Path, create: bool, read_only: bool) -> None:
    """Files, full folders, lookalikes, newer formats: each refused, not one byte or time changed."""
    (tmp_path / "file").write_text("text")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "photo.jpg").write_text("text")
    (tmp_path / "dangling").symlink_to("nowhere")
    for name, text in {
        "foreign": '{"magic": "other", "version": 1}',
        "newer": '{"magic": "vecstore", "version": 2}',
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "vecstore.json").write_text(text)
    (tmp_path / "marked").mkdir()
    (tmp_path / "marked" / "vecstore.creating").write_text("something that we never write")
    before = tree(tmp_path)
    for name in ("file", "file/below", "full", "dangling", "foreign", "newer", "marked"):
        with pytest.raises(InvalidArgument) as caught:
            opened(tmp_path / name, create=create, read_only=read_only)
        assert str(tmp_path / name) in str(caught.value)
        assert tree(tmp_path) == before


@pytest.mark.parametrize("text", ["", "{", "[]", '{"magic": "vecstore"}', '{"magic": "vecstore", "version": true}'])
def test_a_damaged_format_file_is_not_made_anew(tmp_path: Path, text: str) -> None:
    """It is written whole or not at all, so anything else is damage, and the folder is left as it is."""
    path = tmp_path / "store"
    made(path)
    (path / "vecstore.json").write_text(text)
    before = tree(path)
    with pytest.raises((Damaged, InvalidArgument)):
        opened(path)
    assert tree(path) == before


def test_paths_that_name_nothing(tmp_path: Path) -> None:
    """An empty path does not mean the current folder."""
    for path in ("", "a\0b"):
        with pytest.raises(InvalidArgument):
            opened(path)


def test_a_store_without_its_rocks_is_damaged(tmp_path: Path) -> None:
    """It must not be filled with an empty RocksDB in silence; the other folders can be made again."""
    path = tmp_path / "store"
    made(path)
    shutil.rmtree(path / "index")
    made(path)
    assert (path / "index").is_dir()
    shutil.rmtree(path / "rocks")
    for read_only in (False, True):
        with pytest.raises(Damaged):
            opened(path, read_only=read_only)


HOLDER = """
import sys
from vecstore.storage.directory import StoreDirectory
directory = StoreDirectory.open(sys.argv[1], create=True, read_only=False)
print(directory.store_id.hex(), flush=True)
sys.stdin.read()
"""


def holder(path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_one_process_writes_and_others_read(tmp_path: Path) -> None:
    """The second writer is told who holds the store; readers need no lock; a killed holder is no obstacle."""
    path = tmp_path / "store"
    with holder(path) as process:
        assert process.stdout is not None
        store_id = process.stdout.readline().strip()
        with pytest.raises(Locked) as caught:
            opened(path)
        assert caught.value.details["pid"] == process.pid
        assert "read_only=True" in caught.value.hint
        readers = [opened(path, create=False, read_only=True) for _ in range(2)]
        assert [reader.store_id.hex() for reader in readers] == [store_id] * 2
        process.send_signal(signal.SIGKILL)
    assert (path / "lock").read_text().strip() == str(process.pid)
    directory = opened(path)
    assert directory.store_id.hex() == store_id
    with pytest.raises(Locked) as caught:
        opened(path)
    assert caught.value.details["pid"] == os.getpid()
    for open_one in (*readers, directory):
        open_one.close()


def test_a_forked_child_does_not_hold_the_lock(tmp_path: Path) -> None:
    """A child that outlives its parent's handle does not keep the store locked; nor does its end free it early."""
    directory = opened(tmp_path / "store")
    ask, answer = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(answer[1], b"1")
        os.read(ask[0], 1)
        os._exit(0)
    os.read(answer[0], 1)
    with pytest.raises(Locked):
        opened(tmp_path / "store")
    directory.close()
    again = opened(tmp_path / "store")
    os.write(ask[1], b"1")
    os.waitpid(pid, 0)
    with pytest.raises(Locked):
        opened(tmp_path / "store")
    again.close()
    for fd in (*ask, *answer):
        os.close(fd)


def test_reading_writes_nothing(tmp_path: Path) -> None:
    """Not one file or time changes, also where the identity is another folder's."""
    path, copy = tmp_path / "store", tmp_path / "copy"
    store_id = made(path)
    shutil.copytree(path, copy)
    for folder, same in ((path, True), (copy, False)):
        before = tree(folder)
        directory = opened(folder, create=False, read_only=True)
        assert (directory.store_id == store_id) is same
        directory.close()
        assert tree(folder) == before


def test_a_copy_gets_an_identity_of_its_own(tmp_path: Path) -> None:
    """A copied folder has another inode: another store_id, kept once adopted; a moved one keeps its own."""
    store_id = made(tmp_path / "store")
    shutil.copytree(tmp_path / "store", tmp_path / "copy")
    before = (tmp_path / "copy" / "identity.json").read_bytes()
    assert made(tmp_path / "copy") != store_id
    assert (tmp_path / "copy" / "identity.json").read_bytes() == before
    copy = opened(tmp_path / "copy")
    assert copy.is_copied and copy.store_id != store_id
    copy.adopt()
    copy.close()
    assert made(tmp_path / "copy") == copy.store_id
    (tmp_path / "store").rename(tmp_path / "moved")
    assert made(tmp_path / "moved") == store_id
    (tmp_path / "moved" / "identity.json").unlink()
    assert made(tmp_path / "moved") != store_id
    (tmp_path / "moved" / "identity.json").write_text(json.dumps({"store_id": "00", "inode": 1}))
    with pytest.raises(Damaged):
        opened(tmp_path / "moved")


KILLED = """
import os, sys
from vecstore.storage.directory import StoreDirectory
path, stop_at = sys.argv[1], int(sys.argv[2])
calls = 0

def watch(event, args):
    # An audit hook runs before each call: the process dies in front of the stop_at-th that touches the store.
    global calls
    if event in ("open", "os.mkdir", "os.rename", "os.remove", "os.listdir", "os.truncate", "fcntl.flock"):
        if event != "fcntl.flock" and event != "os.truncate" and not str(args[0]).startswith(path):
            return
        calls += 1
        if calls == stop_at:
            os.kill(os.getpid(), 9)

sys.addaudithook(watch)
StoreDirectory.open(path, create=True, read_only=False)
print("done")
"""


def test_a_creation_that_was_cut_short_is_completed(tmp_path: Path) -> None:
    """Killed in front of each file operation in turn: the next open completes it, wherever it stood."""
    stop_at = 0
    outcomes: list[str] = []
    while not outcomes or outcomes[-1] != "done":
        stop_at += 1
        path = tmp_path / str(stop_at) / "store"
        run = subprocess.run(
            [sys.executable, "-c", KILLED, str(path), str(stop_at)], capture_output=True, text=True, check=False
        )
        outcomes.append(run.stdout.strip() or str(run.returncode))
        complete = (path / "vecstore.json").exists()
        if not complete:
            with pytest.raises(NotFound):
                opened(path, create=False)
        directory = opened(path)
        assert directory.created is not complete
        assert not (path / "vecstore.creating").exists()
        directory.close()
        directory = opened(path, create=False)
        assert not directory.created
        directory.close()
    assert outcomes[:-1] == [str(-signal.SIGKILL)] * (stop_at - 1)
    assert stop_at > 15


def test_any_remains_of_a_creation_are_completed(tmp_path: Path) -> None:
    """After power loss any part of what the creation made may be there, once the marker is: all are completed."""
    whole = tmp_path / "whole"
    made(whole)
    names = ["identity.json", "lock", "rocks", "index", "quarantine", "identity.json.new", "vecstore.json.new"]
    for subset in range(1 << len(names)):
        path = tmp_path / f"part{subset}"
        path.mkdir()
        (path / "vecstore.creating").write_bytes(b"a vecstore st" if subset % 2 else b"")
        for bit, name in enumerate(names):
            if subset >> bit & 1:
                if name in ("rocks", "index", "quarantine"):
                    (path / name).mkdir()
                elif name == "identity.json":
                    shutil.copy(whole / name, path / name)
                else:
                    (path / name).write_bytes(b'{"mag')
        directory = opened(path)
        assert directory.created
        directory.close()
        assert json.loads((path / "vecstore.json").read_text()) == {"magic": "vecstore", "version": 1}


def test_a_marker_left_beside_the_format_file_is_removed(tmp_path: Path) -> None:
    """Power loss may bring back the marker after the creation was done; the store stays what it is."""
    store_id = made(tmp_path / "store")
    (tmp_path / "store" / "vecstore.creating").write_bytes(b"")
    directory = opened(tmp_path / "store")
    assert not directory.created
    assert directory.store_id == store_id
    assert not (tmp_path / "store" / "vecstore.creating").exists()
    directory.close()


def test_every_folder_made_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When open returns, each folder's entries are those of its last fsync: power loss can take none of them."""
    synced: dict[str, set[str]] = {}
    fsync = os.fsync

    def watched(fd: int) -> None:
        fsync(fd)
        path = os.readlink(f"/proc/self/fd/{fd}")
        synced[path] = set(os.listdir(path)) if os.path.isdir(path) else {"a file"}

    path = tmp_path / "a" / "b" / "store"
    unlink, mkdir = os.unlink, os.mkdir

    def unlink_later(name: str) -> None:
        assert "vecstore.json" in synced[str(path)], "the format file is durable before the marker goes"
        unlink(name)

    def mkdir_later(name: str) -> None:
        if os.path.dirname(name) == str(path):
            assert "vecstore.creating" in synced[str(path)], "the marker is durable before anything else is made"
        mkdir(name)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", watched)
        patch.setattr(os, "unlink", unlink_later)
        patch.setattr(os, "mkdir", mkdir_later)
        directory = opened(path)
    for folder in (tmp_path, *tmp_path.rglob("*")):
        if folder.is_dir():
            assert synced[str(folder)] == set(os.listdir(folder)), folder
    assert synced[str(path / "vecstore.json.new")] == {"a file"}
    directory.close()
