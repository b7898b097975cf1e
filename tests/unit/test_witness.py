"""The witness file: what it holds after crashes, tears and flipped bits."""

from __future__ import annotations

from pathlib import Path

import pytest

from vecstore.errors import Closed, Damaged, NotFound
from vecstore.storage.witness import Witness, WitnessMark


def mark(lsn: int) -> WitnessMark:
    return WitnessMark(lsn, bytes([lsn % 251]) * 16, lsn // 10)


def recorded(path: Path, count: int) -> None:
    witness = Witness.open(str(path), create=True)
    for lsn in range(1, count + 1):
        witness.record(mark(lsn))
        assert witness.read() == mark(lsn)
    witness.sync()
    witness.close()


def read(path: Path) -> WitnessMark | None:
    witness = Witness.open(str(path), create=False)
    try:
        return witness.read()
    finally:
        witness.close()


def test_a_new_witness_knows_nothing(tmp_path: Path) -> None:
    """Before anything was recorded it reads None, also after it was opened again."""
    Witness.open(str(tmp_path / "witness"), create=True).close()
    assert read(tmp_path / "witness") is None
    assert [path.name for path in tmp_path.iterdir()] == ["witness"]


def test_a_missing_witness_is_not_made_unasked(tmp_path: Path) -> None:
    """Where it must exist, its absence is an error: a deleted witness must not pass as a new store's."""
    with pytest.raises(NotFound):
        Witness.open(str(tmp_path / "witness"), create=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("count", [1, 2, 3, 10])
def test_the_last_mark_is_read_back(tmp_path: Path, count: int) -> None:
    """Whichever slot it went to."""
    recorded(tmp_path / "witness", count)
    assert read(tmp_path / "witness") == mark(count)


def test_recording_goes_on_after_a_reopen(tmp_path: Path) -> None:
    """The next recording spares the slot that holds the last one."""
    path = tmp_path / "witness"
    for _ in range(3):
        recorded(path, 1)
        before = path.read_bytes()
        recorded(path, 1)
        after = path.read_bytes()
        assert (before[:4096] == after[:4096]) != (before[4096:] == after[4096:])


@pytest.mark.parametrize("count", [2, 3])
def test_a_damaged_slot_leaves_the_other(tmp_path: Path, count: int) -> None:
    """Each flipped bit of the newer slot is seen, and the mark before it is read."""
    path = tmp_path / "witness"
    recorded(path, count)
    data = path.read_bytes()
    newest = (0, 4096)[count % 2]
    for at in range(0, 56 * 8, 5):
        flipped = bytearray(data)
        flipped[newest + at // 8] ^= 1 << at % 8
        path.write_bytes(flipped)
        assert read(path) == mark(count - 1)


def test_no_valid_slot_is_damage(tmp_path: Path) -> None:
    """Both slots bad, the only one bad, or a file cut short: it says so, and never "nothing was recorded"."""
    path = tmp_path / "witness"
    recorded(path, 2)
    both = path.read_bytes()
    recorded(tmp_path / "one", 1)
    one = (tmp_path / "one").read_bytes()
    for data, places in ((both, (20, 4096 + 20)), (one, (4096 + 20,))):
        flipped = bytearray(data)
        for place in places:
            flipped[place] ^= 1
        path.write_bytes(flipped)
        with pytest.raises(Damaged):
            read(path)
    for size in (0, 100, 4096):
        path.write_bytes(one[:size])
        with pytest.raises(Damaged):
            read(path)


def test_a_closed_witness_refuses(tmp_path: Path) -> None:
    """Closing twice is harmless; using it is not possible."""
    witness = Witness.open(str(tmp_path / "witness"), create=True)
    witness.close()
    witness.close()
    with pytest.raises(Closed):
        witness.record(mark(1))
    with pytest.raises(Closed):
        witness.sync()
