"""examples/service.py as a process: put, search, get and delete over HTTP, errors as statuses, a clean end."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

import vecstore
from tests.support.serve import process

PROGRAM = Path(__file__).parents[2] / "examples" / "service.py"
DOCUMENTS = [
    {"id": "1", "text": "whales sing", "section": "sea"},
    {"id": "2", "text": "noodles boil", "section": "kitchen"},
    {"id": "3", "text": "a whale on a plate"},
]


@contextmanager
def running(store: str) -> Iterator[httpx.Client]:
    """Start the service on a free port; at the end stop it and see that it stopped well."""
    command = [sys.executable, str(PROGRAM), "--port", "0", "--store", store]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            found = re.search(r"running on (http://127\.0\.0\.1:\d+)", line)
            if found:
                break
        else:
            pytest.fail("the service did not start:\n" + "".join(said))
        try:
            with httpx.Client(base_url=found.group(1), timeout=30) as client:
                yield client
        finally:
            process.send_signal(signal.SIGTERM)
            rest = process.communicate(timeout=30)[1]
    assert "Application shutdown complete" in rest, rest


@pytest.fixture
def service(tmp_path: Path) -> Iterator[httpx.Client]:
    """Run the service with a store of its own."""
    with running(str(tmp_path / "store")) as client:
        yield client


def test_documents_are_put_searched_and_removed(service: httpx.Client) -> None:
    """What was put is found by its words, filtered by its section, read by its id, and gone once removed."""
    assert service.put("/documents", json=DOCUMENTS).json() == {"written": 3}
    hits = service.get("/search", params={"q": "whale", "k": 2}).json()
    assert {hit["id"] for hit in hits} == {"1", "3"}
    assert hits[0]["score"] >= hits[1]["score"]
    filtered = service.get("/search", params={"q": "whale", "section": "kitchen"}).json()
    assert [hit["id"] for hit in filtered] == ["2"]
    assert service.get("/documents/1").json() == DOCUMENTS[0]
    assert service.get("/healthz").json() == {"documents": 3}
    assert service.delete("/documents/1").json() == {"removed": 1}
    assert service.get("/documents/1").status_code == 404


def test_bad_requests_are_answered_as_such(service: httpx.Client) -> None:
    """A caller's mistakes are 4xx with what was wrong: FastAPI's own checks and the store's."""
    assert service.get("/search", params={"q": "x", "k": 0}).status_code == 422
    assert service.put("/documents", json=[{"id": "1"}]).status_code == 422
    refused = service.put("/documents", json=[{"id": "x" * 513, "text": "x"}])
    assert (refused.status_code, refused.json()["error"]) == (422, "InvalidArgument")
    assert "512" in refused.json()["detail"]
    missing = service.get("/documents/none")
    assert missing.json() == {"error": "NotFound", "detail": "no document 'none'"}


def test_the_store_outlives_the_service(tmp_path: Path, service: httpx.Client) -> None:
    """The documents are in an ordinary store, which is locked to the service while that runs."""
    service.put("/documents", json=DOCUMENTS)
    with pytest.raises(vecstore.Locked):
        vecstore.open(str(tmp_path / "store"))
    with vecstore.open(str(tmp_path / "store"), read_only=True) as db:
        assert db.collection("documents").count() == 3


def test_two_services_share_a_server(tmp_path: Path) -> None:
    """With host:port as their store, what one service takes in the other one finds; without the server it is 503."""
    with process(tmp_path / "served") as server, running(server.grpc) as one:
        with running(server.grpc) as other:
            assert one.put("/documents", json=DOCUMENTS).json() == {"written": 3}
            assert other.get("/search", params={"q": "noodles", "k": 1}).json()[0]["id"] == "2"
            assert other.get("/documents/none").status_code == 404
        server.end()
        assert one.get("/healthz").status_code == 503
