"""What is corrupted, truncated, missing or swapped in a repository is found and named, and never restored.

Each file of a repository is damaged in each way, one at a time.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import vecstore
from vecstore.backup.archive import decode_range, encode_range
from vecstore.backup.check import check_repository
from vecstore.backup.manifest import BranchHead, decode, encode
from vecstore.backup.repository import Repository
from vecstore.record import Header, Kind, Mark, Record, chain_seed, next_chain
from vecstore.storage.catalog import Epoch

from .story import CONFIG, Story, await_archive, tell

LINEAGE = "ab" * 16


def flip(path: Path) -> None:
    """Change one bit in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    """Cut off the last byte."""
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    """Leave nothing of it."""
    path.write_bytes(b"")


WAYS: dict[str, Callable[[Path], None]] = {"flipped": flip, "cut": cut, "empty": empty, "missing": Path.unlink}


@pytest.fixture(scope="module")
def story(seed: int, tmp_path_factory: pytest.TempPathFactory) -> Story:
    """Tell a history with a snapshot in the middle, and an archive before and after it."""
    folder = tmp_path_factory.mktemp("story")
    made = tell(seed, folder, calls=10, snapshots=False)
    with vecstore.open(str(made.store), archive=made.repository, config=CONFIG) as db:
        points = db.create_collection("later", 4)
        for number in range(5):
            points.upsert([number], np.ones((1, 4)))
            await_archive(db)
            if number == 2:
                db.snapshot(made.repository)
    assert check_repository(Repository(made.repository), deep=True)["damaged"] == []
    return made


def objects(repository: str) -> list[str]:
    """Return every object but the marker."""
    root = Path(repository)
    found = [str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()]
    return sorted(name for name in found if name != "vecstore-repository.json")


@pytest.mark.parametrize("way", WAYS)
def test_each_damaged_object_is_found_and_named(way: str, story: Story, tmp_path: Path) -> None:
    """Every object, damaged in one way: verify names it, and nothing that needs it is restored."""
    where = tmp_path / "repository"
    shutil.copytree(story.repository, where)
    names = objects(str(where))
    assert {name.split("/")[0] for name in names} == {"objects", "lineages"}
    for name in names:
        original = (where / name).read_bytes()
        if not original and way != "missing":
            continue
        WAYS[way](where / name)
        report = check_repository(Repository(str(where)))
        if not (way == "missing" and _leaves_no_hole(name, names)):
            found = " ".join(f"{place['object']} {place['why']}" for place in report["damaged"])
            assert not report["ok"], name
            assert name in found or name.rsplit("/", 1)[0] in found, f"{name}: {found}"
        if name.startswith("objects/"):
            with pytest.raises(vecstore.Damaged, match=name.rsplit("/", 1)[1]):
                vecstore.restore(str(where), str(tmp_path / "restored"))
            with pytest.raises(vecstore.VecstoreError):
                vecstore.open(str(tmp_path / "restored"))
            shutil.rmtree(tmp_path / "restored")
        (where / name).write_bytes(original)
    assert check_repository(Repository(str(where)))["ok"]


def _leaves_no_hole(name: str, names: list[str]) -> bool:
    """Whether what is left is whole without an object: a manifest, the first and the last range of a branch."""
    ranges = [other for other in names if other.endswith(".range")]
    return "/snapshots/" in name or name in (ranges[0], ranges[-1])


def test_swapped_objects_are_both_found(story: Story, tmp_path: Path) -> None:
    """Two files, two ranges, and a manifest under another name: each says that it is not what it should be."""
    where = tmp_path / "repository"
    shutil.copytree(story.repository, where)
    names = objects(str(where))
    files = [name for name in names if name.startswith("objects/") and (where / name).stat().st_size]
    ranges = [name for name in names if name.endswith(".range")]
    for first, second in ((files[0], files[1]), (ranges[0], ranges[1])):
        held = [(where / name).read_bytes() for name in (first, second)]
        for name, data in zip((second, first), held, strict=True):
            (where / name).write_bytes(data)
        found = {place["object"] for place in check_repository(Repository(str(where)))["damaged"]}
        assert {first, second} <= found
        for name, data in zip((first, second), held, strict=True):
            (where / name).write_bytes(data)
    manifest = next(name for name in names if "/snapshots/" in name)
    other = manifest.replace("snapshots/0", "snapshots/1")
    (where / other).write_bytes((where / manifest).read_bytes())
    assert other in {place["object"] for place in check_repository(Repository(str(where)))["damaged"]}


def test_a_snapshot_of_other_contents_is_found_by_its_digest(story: Story, tmp_path: Path) -> None:
    """A manifest that says another digest, sealed as if it were sound, is found by the deep check alone."""
    from vecstore.backup.manifest import Manifest

    where = tmp_path / "repository"
    shutil.copytree(story.repository, where)
    name = next(name for name in objects(str(where)) if "/snapshots/" in name)
    manifest = decode((where / name).read_bytes(), Manifest, name)
    import msgspec

    wrong = [msgspec.structs.replace(c, digest="0" * 32) for c in manifest.collections]
    (where / name).write_bytes(encode(msgspec.structs.replace(manifest, collections=wrong)))
    assert check_repository(Repository(str(where)))["ok"]
    report = check_repository(Repository(str(where)), deep=True)
    assert name in {place["object"] for place in report["damaged"]}


def test_a_range_that_is_missing_in_the_middle_is_named_by_its_lsns(story: Story, tmp_path: Path) -> None:
    """What is lost is said, and the way around it: before the gap, and from a snapshot behind it."""
    where = tmp_path / "repository"
    shutil.copytree(story.repository, where)
    ranges = [name for name in objects(str(where)) if name.endswith(".range")]
    lost = ranges[1].rsplit("/", 1)[1]
    first, last = int(lost[:20]), int(lost[21:41])
    (where / ranges[1]).unlink()
    report = check_repository(Repository(str(where)))
    places = [(p.get("first_lost_lsn"), p.get("last_lost_lsn")) for p in report["damaged"]]
    assert places == [(first, last)]
    with pytest.raises(vecstore.Damaged, match=f"records {first} to {last}") as caught:
        vecstore.restore(str(where), str(tmp_path / "restored"), to_lsn=last)
    assert caught.value.details == {"first_lost_lsn": first, "last_lost_lsn": last}
    assert vecstore.restore(str(where), str(tmp_path / "before"), to_lsn=first - 1).lsn == first - 1
    assert vecstore.restore(str(where), str(tmp_path / "behind")).lsn > last


def records(bodies: list[bytes]) -> tuple[list[Record], bytes]:
    """Return records with bodies, on one chain, and the chain before them."""
    before = chain = chain_seed(bytes.fromhex(LINEAGE))
    found = []
    for lsn, body in enumerate(bodies, 1):
        header = Header(lsn, Kind.UPSERT, 1, bytes(16), lsn, lsn, 7, 1, 0, len(body))
        chain = next_chain(chain, header.encode(), (body,))
        found.append(Record(header, (body,), Mark(chain, lsn, lsn)))
    return found, before


@given(st.lists(st.binary(max_size=200), min_size=1, max_size=8))
def test_a_range_comes_back_as_written(bodies: list[bytes]) -> None:
    """Whatever the records: what is read is what was written, and the name says where it is."""
    made, before = records(bodies)
    name, data = encode_range(LINEAGE, made, before)
    found = decode_range(data, str(name))
    assert [r.encode() for r in found.records] == [r.encode() for r in made]
    assert (name.first, name.last, name.chain) == (1, len(bodies), made[-1].mark.chain[:8].hex())
    assert found.trailer.digests == {7: (f"{len(bodies):032x}", len(bodies))}


@given(st.lists(st.binary(max_size=50), min_size=1, max_size=4), st.data())
def test_no_changed_byte_of_a_range_is_read(bodies: list[bytes], data: st.DataObject) -> None:
    """A range with any bit flipped, or cut anywhere, is Damaged, and the error names it."""
    made, before = records(bodies)
    name, whole = encode_range(LINEAGE, made, before)
    at = data.draw(st.integers(0, len(whole) - 1))
    flipped = bytes([*whole[:at], whole[at] ^ (1 << data.draw(st.integers(0, 7))), *whole[at + 1 :]])
    for wrong in (flipped, whole[:at], whole + b"x"):
        with pytest.raises(vecstore.Damaged, match=str(name)):
            decode_range(wrong, str(name))


@given(st.data())
def test_no_changed_byte_of_a_document_is_read(data: st.DataObject) -> None:
    """A manifest or head with any bit flipped, or cut anywhere, is Damaged."""
    head = BranchHead(lineage=LINEAGE, epochs=[Epoch(1, "aa", 0, "")], secret="00")
    whole = encode(head)
    assert decode(whole, BranchHead, "head") == head
    at = data.draw(st.integers(0, len(whole) - 1))
    flipped = bytes([*whole[:at], whole[at] ^ (1 << data.draw(st.integers(0, 7))), *whole[at + 1 :]])
    for wrong in (flipped, whole[:at]):
        with pytest.raises(vecstore.Damaged, match="head"):
            decode(wrong, BranchHead, "head")
