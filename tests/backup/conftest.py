"""A real S3 for the suite, started once, and repositories by name."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.s3 import BUCKET, Door, s3_environment, s3_server


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """Run a real S3 API for the session; return its endpoint."""
    pytest.importorskip("moto.server")
    with s3_server() as endpoint:
        yield endpoint


@pytest.fixture
def s3(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the URL of an empty prefix of a bucket that the environment leads to."""
    for name, value in s3_environment(s3_endpoint).items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"


@pytest.fixture
def door(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Door]:
    """Return a door before the S3 that can fail; the environment leads through it."""
    made = Door(s3_endpoint)
    for name, value in s3_environment(made.endpoint).items():
        monkeypatch.setenv(name, value)
    yield made
    made.close()


@pytest.fixture(params=["local", "s3"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the place of an empty repository: a folder, or a prefix of a bucket."""
    if request.param == "local":
        return str(tmp_path / "repository")
    url: str = request.getfixturevalue("s3")
    return url
