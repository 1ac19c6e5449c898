"""A CAS, a policy of its, and an enclave that has not attested: what the attacks on a CAS begin with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from strongroom.errors import (
    UnauthorizedError,
)
from tests.cas.world import Cas, World, cas_in, world_in


@pytest.fixture(scope="module")
def cas(tmp_path_factory) -> Iterator[Cas]:
    with cas_in(tmp_path_factory.mktemp("cas")) as running:
        yield running


@pytest.fixture
def world(cas) -> Iterator[World]:
    with world_in(cas) as made:
        yield made


@pytest.fixture
def enclave(world):
    with world.enclave() as made:
        yield made


def is_not_attested(enclave) -> bool:
    """Whether the CAS still treats the connection as anybody's."""
    with pytest.raises(UnauthorizedError):
        enclave.http.request("GET", f"/v1/policies/{enclave.policy}/anchors/out", fresh=True).expect_ok()
    with pytest.raises(UnauthorizedError, match="no enclave has attested"):
        enclave.time_token()
    return True
