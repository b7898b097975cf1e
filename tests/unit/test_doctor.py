"""The doctor cuts a log that cannot be proven, never one that a newer version wrote."""

from __future__ import annotations

from pathlib import Path

import pytest
import xxhash

import vecstore
from vecstore.config import LOG_CHUNK_BYTES, Config
from vecstore.engine import doctor
from vecstore.engine.recovery import open_storage
from vecstore.errors import Damaged, InvalidArgument
from vecstore.record import HEADER_BYTES, MARK_BYTES, Header, Kind, Mark, Record, is_of_newer, log_key, next_chain
from vecstore.storage.base import Family
from vecstore.storage.directory import StoreDirectory

NEWER_KIND = 99
BODY = bytes(range(256)) * 300
Position = tuple[int, bytes]


def _newer(lsn: int, chain: bytes) -> bytes:
    """Return the bytes of the record after an LSN, of a kind that nobody knows yet."""
    header = bytearray(Header(lsn + 1, Kind.UPSERT, 1, bytes(16), 1, 1, 1, 0, 0, len(BODY)).encode())
    header[2] = NEWER_KIND
    mark = Mark(next_chain(chain, bytes(header), [BODY]), 0, 0)
    return bytes(header) + BODY + mark.encode()


@pytest.fixture
def filled(tmp_path: Path) -> tuple[str, Position]:
    """Return a store of two records, and where its log ends."""
    path = str(tmp_path / "store")
    with vecstore.open(path) as database:
        database.create_collection("docs", 4).upsert([1, 2], [[1, 0, 0, 0], [0, 1, 0, 0]])
        found = database.verify()
    return path, (found["lsn"], bytes.fromhex(found["chain"]))


def _write(path: str, lsn: int, data: bytes) -> None:
    directory = StoreDirectory.open(path, create=False, read_only=False)
    store, _ = open_storage(directory, Config.load({}), read_only=False)
    chunks = [data[at : at + LOG_CHUNK_BYTES] for at in range(0, len(data), LOG_CHUNK_BYTES)]
    store.write([(Family.LOG, log_key(lsn, n), chunk) for n, chunk in enumerate(chunks)])
    store.sync()
    store.close()
    directory.close()


def test_a_log_that_a_newer_version_wrote_is_not_cut(filled: tuple[str, Position]) -> None:
    """The record is named, and stays as it is, however often one asks."""
    path, (lsn, chain) = filled
    data = _newer(lsn, chain)
    _write(path, lsn + 1, data)
    with pytest.raises(Damaged, match=f"kind {NEWER_KIND}: not known"):
        vecstore.open(path)
    for _ in range(2):
        with pytest.raises(InvalidArgument, match=f"record {lsn + 1} of the log") as refused:
            doctor.accept_loss(path)
        assert refused.value.hint == "open it with a newer vecstore"
    directory = StoreDirectory.open(path, create=False, read_only=False)
    store, _ = open_storage(directory, Config.load({}), read_only=False)
    assert b"".join(value for _, value in store.scan(Family.LOG, log_key(lsn + 1))) == data
    store.close()
    directory.close()


@pytest.mark.parametrize("at", [2, 20, HEADER_BYTES + 100, -20])
def test_damage_that_looks_like_a_newer_version_is_cut(filled: tuple[str, Position], at: int) -> None:
    """A flipped bit in the header, the body or the mark breaks the chain: then there is nothing to wait for."""
    path, (lsn, chain) = filled
    data = bytearray(_newer(lsn, chain))
    data[at] ^= 0x10
    _write(path, lsn + 1, bytes(data))
    done = doctor.accept_loss(path)
    assert (done["lsn"], done["dropped"], done["epoch"]) == (lsn + 1, [lsn + 1], 2)
    with vecstore.open(path) as database:
        assert database.collection("docs").count() == 2


def test_what_is_of_a_newer_version() -> None:
    """Whole, next, on the chain, and not known; anything less is not."""
    chain = xxhash.xxh3_128_digest(b"somewhere")
    data = _newer(7, chain)
    assert is_of_newer(data, 7, chain)
    assert not is_of_newer(data, 6, chain)
    assert not is_of_newer(data, 7, chain[::-1])
    assert not is_of_newer(data[:-1], 7, chain)
    assert not is_of_newer(data[: HEADER_BYTES + MARK_BYTES - 1], 7, chain)
    assert not is_of_newer(b"", 7, chain)
    header = Header(8, Kind.DROP, 1, bytes(16), 1, 1, 1, 0, 0, 2)
    known = Record(header, (b"{}",), Mark(next_chain(chain, header.encode(), [b"{}"]), 0, 0))
    assert not is_of_newer(known.encode(), 7, chain)
