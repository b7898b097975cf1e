"""An import that stops at any step continues where it may, and starts over where it must."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import vecstore
from vecstore.api import Database
from vecstore.cli.batch import Source
from vecstore.cli.bookmark import Bookmark, Shelf
from vecstore.cli.files import open_source
from vecstore.cli.ingest import Imported, import_sources

DIM, ROWS, BATCH = 4, 60, 10


class Stopped(Exception):
    """The process ended here."""


class StoppingShelf(Shelf):
    """A shelf in a process that ends when it would put its n-th bookmark: the record is there, the bookmark is not."""

    def __init__(self, where: str, paths: list[str], puts: int) -> None:
        super().__init__(where, "docs", paths, [])
        self._left = puts

    def put(self, bookmark: Bookmark) -> None:
        if self._left == 0:
            raise Stopped
        self._left -= 1
        super().put(bookmark)


@pytest.fixture
def where(tmp_path: Path) -> str:
    """Return where the store is made."""
    return str(tmp_path / "store")


@pytest.fixture
def db(where: str) -> Iterator[Database]:
    """Return a store with an empty collection."""
    with vecstore.open(where) as store:
        store.create_collection("docs", DIM, fields={"name": "string"})
        yield store


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    """Return two files of 60 points each."""
    made = []
    for n in range(2):
        vectors = np.random.default_rng(n).standard_normal((ROWS, DIM), dtype=np.float32)
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), DIM)
        names = [f"{n} {i}" for i in range(ROWS)]
        pq.write_table(pa.table({"vector": column, "name": names}), tmp_path / f"{n}.parquet")
        made.append(str(tmp_path / f"{n}.parquet"))
    return made


def sources(paths: list[str]) -> list[Source]:
    return [open_source(path) for path in paths]


def run(db: Database, paths: list[str], shelf: Shelf | None, said: list[str] | None = None) -> Imported:
    """Import all files."""
    say = said.append if said is not None else (lambda _message: None)
    return import_sources(db, db.collection("docs"), sources(paths), batch_rows_max=BATCH, shelf=shelf, say=say)


def digest(db: Database) -> str:
    found: str = db.status()["collections"]["docs"]["digest"]
    return found


def whole_digest(folder: Path, paths: list[str]) -> str:
    """Return the digest of an import that nothing interrupted."""
    with vecstore.open(str(folder)) as store:
        store.create_collection("docs", DIM, fields={"name": "string"})
        run(store, paths, None)
        return digest(store)


@pytest.mark.parametrize("puts", [0, 1, 3, 5, 6, 7, 11])
def test_a_record_without_its_bookmark_is_not_written_again(
    puts: int, db: Database, where: str, paths: list[str], tmp_path: Path
) -> None:
    """The process ended after record puts + 1 and before its bookmark: the next run goes on behind that record."""
    with pytest.raises(Stopped):
        run(db, paths, StoppingShelf(where, paths, puts))
    assert db.collection("docs").count() == (puts + 1) * BATCH
    lsn = db.status()["lsn"]
    done = run(db, paths, Shelf(where, "docs", paths, []))
    assert (done.rows, db.collection("docs").count()) == (2 * ROWS, 2 * ROWS)
    # Without any bookmark there is nothing to continue from.
    assert done.resumed_rows == ((puts + 1) * BATCH if puts else 0)
    assert db.status()["lsn"] == lsn + (2 * ROWS - done.resumed_rows) // BATCH
    assert digest(db) == whole_digest(tmp_path / "whole", paths)


def test_a_foreign_record_makes_it_start_over(db: Database, where: str, paths: list[str], tmp_path: Path) -> None:
    """One record after the bookmark that is not the import's own: a removed point is written again."""
    with pytest.raises(Stopped):
        run(db, paths, StoppingShelf(where, paths, 3))
    run(db, paths, StoppingShelf(where, paths, 100))
    with pytest.raises(Stopped):
        run(db, paths, StoppingShelf(where, paths, 3))
    db.collection("docs").delete(ids=[5])
    said: list[str] = []
    done = run(db, paths, Shelf(where, "docs", paths, []), said)
    assert done.resumed_rows == 0
    assert len(said) == 1
    assert digest(db) == whole_digest(tmp_path / "whole", paths)


def test_a_store_made_anew_is_filled_from_the_first_row(where: str, paths: list[str], tmp_path: Path) -> None:
    """A bookmark that outlived its store is worth nothing: neither the lineage nor the digest is the new one's."""
    other = str(tmp_path / "other")
    with vecstore.open(where) as store:
        store.create_collection("docs", DIM, fields={"name": "string"})
        with pytest.raises(Stopped):
            run(store, paths, StoppingShelf(where, paths, 4))
    with vecstore.open(other) as store:
        store.create_collection("docs", DIM, fields={"name": "string"})
        (Path(where) / "imports").rename(Path(other) / "imports")
        done = run(store, paths, Shelf(other, "docs", paths, []))
        assert (done.resumed_rows, store.collection("docs").count()) == (0, 2 * ROWS)


def test_an_import_that_is_done_leaves_no_bookmark(db: Database, where: str, paths: list[str]) -> None:
    """The next run of the same import writes all rows again, and changes nothing."""
    run(db, paths, Shelf(where, "docs", paths, []))
    before = digest(db)
    assert not (Path(where) / "imports").exists()
    assert run(db, paths, Shelf(where, "docs", paths, [])).resumed_rows == 0
    assert digest(db) == before
