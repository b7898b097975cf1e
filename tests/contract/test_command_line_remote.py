"""The installed command `vecstore` against a server: every command takes ``host:port`` where it took a directory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import vecstore as package
from tests.server.test_tls import LOCAL, Authority
from tests.support.server import served, serving_node
from vecstore.server.auth import AuthSettings
from vecstore.server.settings import TLSSettings

from .test_command_line import DIM, good, refused, rows_of, vecstore, write_table


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of this module."""
    return tmp_path_factory.mktemp("remote")


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    """Return the address of a server with a collection `docs` of 600 points; tests make others of their own."""
    with served(str(folder / "store")) as address:
        file = write_table(folder / "docs.parquet", 600)
        good("create", address, "docs", "--dim", DIM, "--field", "section:string", "--field", "size:int64")
        done = good("import", address, "docs", file, "--id", "key", "--batch-rows", 100)
        assert (done["rows"], done["count"], done["resumed_rows"]) == (600, 600, 0)
        yield address


def test_status_tells_of_the_servers_store(address: str) -> None:
    """Status has the tree of the store, and prints it for people, with the address."""
    status = good("status", address)
    assert status["collections"]["docs"]["count"] == 600
    assert status["role"] == "primary"
    assert address in vecstore("status", address).out
    assert "docs" in good("collections", address)


def test_search_finds_what_was_imported(address: str) -> None:
    """A search by a point, with a filter, gives its neighbours and their payloads."""
    found = good("search", address, "docs", "--like", "p000003", "--filter", '{"section": "web"}', "-k", 5)
    assert len(found["hits"]) == 5
    assert all(hit["payload"]["section"] == "web" for hit in found["hits"])
    vector = json.dumps(rows_of(600)[3].tolist())
    assert good("search", address, "docs", "--vector", vector, "-k", 1)["hits"][0]["id"] == "p000003"


def test_export_and_import_elsewhere_keep_the_digest(address: str, tmp_path: Path) -> None:
    """What is exported from a server is imported into a directory, and the other way, with the same digest."""
    file = tmp_path / "out.parquet"
    exported = good("export", address, "docs", file)
    assert exported["rows"] == 600
    there = good("import", tmp_path / "store", "docs", file, "--create")
    assert there["digest"] == exported["digest"]
    back = good("import", address, "twin", file, "--create")
    assert back["digest"] == exported["digest"]
    good("drop", address, "twin", "--yes")


def test_an_import_remembers_its_place(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a row is refused the rows before it stay, and the place is remembered in the state of the user."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    rows = rows_of(400)
    good("create", address, "resumed", "--dim", DIM, "--metric", "l2", "--field", "size:int64")
    columns = {"id": list(range(400)), "vector": pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), DIM)}
    bad = pa.table({**columns, "size": ["x" if i == 250 else None for i in range(400)]})
    file = tmp_path / "rows.parquet"
    pq.write_table(bad, file)
    error, _ = refused("import", address, "resumed", file, "--batch-rows", 100)
    assert "row 250" in error["message"]
    assert good("status", address)["collections"]["resumed"]["count"] == 250
    assert list((tmp_path / "state" / "vecstore").iterdir()) != []
    good("drop", address, "resumed", "--yes")


def test_collections_are_renamed_verified_and_dropped(address: str) -> None:
    """Names change, verify recomputes what the server keeps, and a drop asks unless told not to."""
    good("create", address, "old", "--dim", 2)
    good("rename", address, "old", "new")
    assert {"new", "docs"} <= set(good("collections", address))
    report = good("verify", address)
    assert report["ok"] is True
    assert report["collections"]["docs"]["count"] == 600
    assert good("drop", address, "new", "--yes") == {"name": "new", "count": 0}
    assert refused("drop", address, "new", "--yes")[0]["kind"] == "NotFound"


def test_a_server_that_is_not_there_is_an_error_that_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command against an address where nothing listens ends in one line, and makes no folder of that name."""
    monkeypatch.chdir(tmp_path)
    done = vecstore("status", "127.0.0.1:9", "--json")
    assert done.code == 1
    assert done.value["error"]["kind"] == "Unavailable"
    assert "127.0.0.1:9" in done.err
    assert list(tmp_path.iterdir()) == []


def test_tokens_and_authorities_by_option_and_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server with TLS and tokens is reached by `--ca` and `--token-file` or their variables, and not without."""
    authority = Authority(tmp_path / "authority")
    certificate, key = authority.issue("server", LOCAL)
    tokens, secret = tmp_path / "tokens.toml", tmp_path / "secret"
    secret.write_text(good("token", "tester", "--role", "admin", "--add-to", tokens)["secret"] + "\n")
    settings = {
        "tls": TLSSettings(certificate=str(certificate), key=str(key)),
        "auth": AuthSettings(tokens=str(tokens)),
    }
    database = package.open(str(tmp_path / "store"))
    with serving_node(database, **settings) as node:
        where = node.grpc_address
        by_option = ("--ca", authority.file, "--token-file", secret)
        good("create", where, "docs", "--dim", 2, *by_option)
        monkeypatch.setenv("VECSTORE_CA", str(authority.file))
        assert refused("collections", where)[0]["kind"] == "Unauthenticated"
        assert refused("status", where, "--token-file", tmp_path / "none")[0]["kind"] == "NotFound"
        monkeypatch.setenv("VECSTORE_TOKEN", secret.read_text().strip())
        assert good("collections", where) == ["docs"]
        monkeypatch.setenv("VECSTORE_TOKEN", "not-a-token-of-this-server")
        assert refused("collections", where)[0]["kind"] == "Unauthenticated"
        assert good("collections", where, "--token-file", secret) == ["docs"]
