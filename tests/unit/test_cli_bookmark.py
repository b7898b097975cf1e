"""What an interrupted import remembers: whole or not at all, and only of the same files and options."""

from __future__ import annotations

from pathlib import Path

import pytest

from vecstore.cli.bookmark import Bookmark, Shelf

MARK = Bookmark(1, 300, 1_000, 17, "lineage", 1, "digest")


@pytest.fixture
def file(tmp_path: Path) -> str:
    """Return the path of a file to import."""
    (tmp_path / "store").mkdir()
    (tmp_path / "a.npy").write_bytes(b"content")
    return str(tmp_path / "a.npy")


def shelf(file: str, collection: str = "c", *options: str | None) -> Shelf:
    """Return the shelf of an import of one file."""
    return Shelf(str(Path(file).parent / "store"), collection, [file], list(options))


def test_what_was_put_is_taken(file: str) -> None:
    """A bookmark survives the process, and is gone once the import is done."""
    assert shelf(file).take() is None
    shelf(file).put(MARK)
    assert shelf(file).take() == MARK
    shelf(file).clear()
    assert shelf(file).take() is None
    assert list((Path(file).parent / "store").iterdir()) == []


def test_another_import_has_another_bookmark(file: str) -> None:
    """Another collection, other options, or a file that changed: none of them continues this one."""
    shelf(file).put(MARK)
    assert shelf(file, "d").take() is None
    assert shelf(file, "c", "key").take() is None
    Path(file).write_bytes(b"other content")
    assert shelf(file).take() is None


@pytest.mark.parametrize("content", [b"", b"{", b'{"file": "one"}', b"\x00" * 64])
def test_a_torn_bookmark_is_none(file: str, content: bytes) -> None:
    """What a power loss made of the file is no bookmark; the import starts over."""
    shelf(file).put(MARK)
    (path,) = (Path(file).parent / "store" / "imports").iterdir()
    path.write_bytes(content)
    assert shelf(file).take() is None
