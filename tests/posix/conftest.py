"""Mounts for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from strongroom import vault
from strongroom.errors import MissingDependencyError, UnsupportedPlatformError
from strongroom.sealed import NO_FRESHNESS
from strongroom.shield.files import mount
from strongroom.storage import MemoryDirectory
from tests.posix.server import KEY, Server, served


@pytest.fixture(scope="session")
def fuse(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skips, saying why, where nothing can be mounted."""
    point = tmp_path_factory.mktemp("probe")
    with vault.open(MemoryDirectory(), "x", key=KEY, anchor=NO_FRESHNESS) as empty:
        try:
            mount(empty, point).unmount()
        except (MissingDependencyError, UnsupportedPlatformError) as error:
            pytest.skip(f"no FUSE here: {error.message} ({error.hint})")


@pytest.fixture
def places(fuse: None, tmp_path: Path) -> tuple[Path, Path]:
    """An empty directory for a vault, and one to mount it at."""
    for name in ("v", "m"):
        (tmp_path / name).mkdir()
    return tmp_path / "v", tmp_path / "m"


@pytest.fixture
def server(places: tuple[Path, Path]) -> Iterator[Server]:
    with served(*places) as running:
        yield running


@pytest.fixture
def point(server: Server) -> Path:
    return server.point
