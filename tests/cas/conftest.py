from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cas.postgres import PostgresServer, binaries, postgres_server
from tests.cas.world import Cas, World, cas_in, world_in


@pytest.fixture(scope="session")
def cas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cas]:
    with cas_in(tmp_path_factory.mktemp("cas")) as running:
        yield running


@pytest.fixture
def world(cas: Cas) -> Iterator[World]:
    """An owner and a policy of this test's own, in the one CAS of all tests."""
    with world_in(cas) as made:
        yield made


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A server that all tests share; none may stop it."""
    if binaries() is None:
        pytest.skip("PostgreSQL's server is not installed (package postgresql)")
    with postgres_server() as server:
        yield server
