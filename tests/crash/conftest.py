"""Options and places of the crash suite: how many kills and images, a small disk, the shim."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ..support.disk import mounted
from ..support.shim import build_shim

KILLS_PER_RUN = 5
IMAGES_PER_RUN = 10


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the numbers that CI keeps small."""
    parser.addoption("--kills", type=int, default=20, help="how many writing processes are killed")
    parser.addoption("--images", type=int, default=30, help="how many crash images are made of power loss")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Spread the kills and images over tests of bounded time."""
    if "killed_run" in metafunc.fixturenames:
        metafunc.parametrize("killed_run", range(-(-metafunc.config.getoption("kills") // KILLS_PER_RUN)))
    if "image_run" in metafunc.fixturenames:
        metafunc.parametrize("image_run", range(-(-metafunc.config.getoption("images") // IMAGES_PER_RUN)))


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the path of the shim, built for this run."""
    return build_shim(tmp_path_factory.mktemp("shim"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a file system of 48 MiB; skips where this user may not mount one."""
    with mounted(tmp_path / "disk") as where:
        yield where
