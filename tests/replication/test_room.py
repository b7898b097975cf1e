"""An empty standby whose disk has no room for the primary's store: it says so, waits, and then is filled."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

import vecstore
from tests.replication.stores import Store
from vecstore.engine.contents.incoming import Incoming
from vecstore.errors import Exhausted
from vecstore.server import standby
from vecstore.server.reach import Reach
from vecstore.server.settings import ReplicationSettings
from vecstore.storage.directory import is_store


def test_an_empty_standby_waits_for_room_without_asking_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is filled up, and the primary does not take one snapshot after the other meanwhile."""
    a = Store(tmp_path / "a", "--region", "east")
    with a.running(points=500):
        refused, has_room, asked = threading.Event(), threading.Event(), list[str]()

        def looked(*_: object) -> bool:
            refused.set()
            return has_room.is_set()

        monkeypatch.setattr(standby, "has_room", looked)
        join = Reach.join

        def joined(self: Reach, primary: str, request: object) -> object:
            asked.append(primary)
            return join(self, primary, request)  # type: ignore[arg-type]

        monkeypatch.setattr(Reach, "join", joined)

        def incoming(path: str, free_bytes_min: int) -> Incoming:
            # So much must stay free that nothing fits, until there is room.
            return Incoming(path, 0 if has_room.is_set() else 1 << 60)

        monkeypatch.setattr(standby, "Incoming", incoming)
        path = str(tmp_path / "b")
        settings = ReplicationSettings(standby_of=a.address)
        filling = threading.Thread(target=standby.bootstrap, args=(path, settings, "west", "127.0.0.1:1"), daemon=True)
        filling.start()
        assert refused.wait(60)
        assert not is_store(path) and len(asked) == 1
        assert [file for file in (tmp_path / "b" / "incoming").rglob("*") if file.suffix == ".part"] == []
        has_room.set()
        filling.join(60)
        assert is_store(path) and len(asked) == 2
        with vecstore.open(path, read_only=True) as database:
            assert database.collection("docs").count() == 500


def test_the_refusal_names_both_numbers(tmp_path: Path) -> None:
    """What is needed and what there is, and what it is called that keeps the rest free."""
    incoming = Incoming(str(tmp_path), 1 << 60)
    with pytest.raises(Exhausted, match="disk: 12345 bytes are to be fetched, and 0 may be") as refused:
        incoming.begin("one", [("contents.json", 12_345, "0" * 32)])
    assert "disk_free_bytes_min" in str(refused.value)
