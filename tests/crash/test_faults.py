"""The instruments themselves: the shim sees every write of a process, and images lose what they may and no more."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ..support.faults import Disk, Model, inventory
from ..support.shim import OpKind, read_journal, shim_environment

MODELS: tuple[Model, ...] = ("ordered", "weak")
INFORMAL = ("LOG", "LOG.old")
"""What RocksDB writes for people, through stdio, which the shim does not see."""

PLAIN = """
import os, sys
os.chdir(sys.argv[1])
os.mkdir("folder")
fd = os.open("folder/a", os.O_CREAT | os.O_RDWR)
os.write(fd, b"x" * 5000)
os.fsync(fd)
os.pwrite(fd, b"y" * 700, 4000)
os.writev(fd, [b"1" * 10, b"2" * 20])
os.ftruncate(fd, 5020)
os.write(acks := os.open(os.environ["VECSTORE_SHIM_ACKS"], os.O_CREAT | os.O_WRONLY), b"acknowledged")
with open("folder/b.tmp", "wb") as file:
    file.write(b"z" * 100)
os.rename("folder/b.tmp", "folder/b")
os.link("folder/b", "c")
os.unlink("folder/b")
folder = os.open(".", os.O_RDONLY)
os.fsync(folder)
os.mkdir("gone"); os.rmdir("gone")
"""

ROCKS = """
import os, sys
from rocksdict import Rdict, Options
options = Options(raw_mode=True)
options.create_if_missing(True)
options.set_write_buffer_size(1 << 16)
db = Rdict(sys.argv[1] + "/db", options)
for i in range(400):
    db[i.to_bytes(4, "big")] = bytes([i % 251]) * 1000
    if i % 10 == 0:
        db.flush_wal(True)
db.flush()
db.close()
"""


def run_under_shim(program: str, shim: Path, tmp_path: Path) -> tuple[Path, Disk]:
    """Run a program with the folder that stands for the disk, and read its journal."""
    root, journal, acks = tmp_path / "root", tmp_path / "journal", tmp_path / "acks"
    root.mkdir(exist_ok=True)
    before = inventory(root)
    environment = shim_environment(shim, root, journal=journal, acks=acks, skip_sync=True)
    subprocess.run([sys.executable, "-c", program, str(root)], env=environment, check=True)
    return root, Disk(root, read_journal(journal), before)


def tree(root: Path) -> dict[str, bytes | None]:
    """Return all that a folder holds, by relative path."""
    return {str(path): content for path, _, content in inventory(root) if path.name not in INFORMAL}


def image(disk: Disk, to: Path, model: Model, keep_share: float, crash: int | None = None) -> dict[str, bytes | None]:
    """Make an image, by default of the end, and return what it holds."""
    disk.image(len(disk.ops) if crash is None else crash, 1, model, to, keep_share)
    return tree(to)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("program", [PLAIN, ROCKS], ids=["plain", "rocks"])
def test_an_image_that_loses_nothing_is_the_folder(program: str, model: Model, shim: Path, tmp_path: Path) -> None:
    """The shim misses nothing: with everything kept, the image is the folder byte for byte."""
    root, disk = run_under_shim(program, shim, tmp_path)
    assert len(tree(root)) > 2
    assert image(disk, tmp_path / "image", model, 1.0) == tree(root)


def test_what_was_not_synced_is_lost(shim: Path, tmp_path: Path) -> None:
    """With nothing kept, synced content survives and later writes do not; names need a sync of their folder."""
    _, disk = run_under_shim(PLAIN, shim, tmp_path)
    ordered = {"folder": None, "folder/a": b"x" * 5000, "folder/b": b"", "c": b""}
    assert image(disk, tmp_path / "ordered", "ordered", 0.0) == ordered
    assert image(disk, tmp_path / "weak", "weak", 0.0) == {"folder": None, "c": b""}


def test_a_subset_is_not_a_shorter_tail(shim: Path, tmp_path: Path) -> None:
    """Unsynced writes are lost one by one: a later one may be there without an earlier one."""
    _, disk = run_under_shim(PLAIN, shim, tmp_path)
    contents = set()
    for seed in range(200):
        disk.image(len(disk.ops), seed, "ordered", tmp_path / str(seed))
        contents.add((tmp_path / str(seed) / "folder" / "a").read_bytes())
    without_first = [c for c in contents if len(c) == 5030 and c[4000:4700] == b"x" * 700]
    assert len(contents) > 10
    assert without_first != []


def test_acknowledgements_have_their_place(shim: Path, tmp_path: Path) -> None:
    """What was acknowledged at a crash point is what had been written to the acknowledgements' file by then."""
    _, disk = run_under_shim(PLAIN, shim, tmp_path)
    at = next(position for position, op in enumerate(disk.ops) if op.kind == OpKind.ACK)
    assert disk.acknowledged(at) == b""
    assert disk.acknowledged(at + 1) == b"acknowledged"


def test_a_second_run_begins_with_what_is_there(shim: Path, tmp_path: Path) -> None:
    """A journal may begin with a folder that holds files: they count as synced."""
    run_under_shim(PLAIN, shim, tmp_path)
    (tmp_path / "journal").unlink()
    (tmp_path / "root" / "folder" / "a").unlink()
    again = PLAIN.replace('os.mkdir("folder")', 'os.unlink("c")')
    root, disk = run_under_shim(again, shim, tmp_path)
    assert image(disk, tmp_path / "first", "ordered", 0.0, crash=0) == {"folder": None, "c": b"z" * 100}
    assert image(disk, tmp_path / "last", "weak", 1.0) == tree(root)


def test_a_write_through_a_mapping_is_seen(shim: Path, tmp_path: Path) -> None:
    """A shared writable mapping is journaled, so that suites can refuse what they cannot follow."""
    program = "import mmap, sys; f = open(sys.argv[1] + '/m', 'wb+'); f.truncate(4096); mmap.mmap(f.fileno(), 4096)"
    _, disk = run_under_shim(program, shim, tmp_path)
    assert disk.mapped == {"m"}


def test_faults_reach_the_process(shim: Path, tmp_path: Path) -> None:
    """An injected error arrives as the system call's, at the call that was named, and is not journaled as a sync."""
    program = """
import errno, os, sys
from tests.support import shim
fd = os.open(sys.argv[1] + "/f", os.O_CREAT | os.O_RDWR)
shim.fail("sync", errno.EIO, after=2, times=1)
os.fsync(fd)
try:
    os.fdatasync(fd)
except OSError as error:
    assert error.errno == errno.EIO
else:
    raise SystemExit("the sync did not fail")
os.fsync(fd)
shim.fail("write", errno.ENOSPC, path="/f")
try:
    os.write(fd, b"1")
except OSError as error:
    assert error.errno == errno.ENOSPC
else:
    raise SystemExit("the write did not fail")
shim.lift()
os.write(fd, b"2")
"""
    root, disk = run_under_shim(program, shim, tmp_path)
    assert sum(op.kind == OpKind.SYNC for op in disk.ops) == 2
    assert (root / "f").read_bytes() == b"2"
