from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.shield.network.mesh_world import MeshWorld, mesh_world


@pytest.fixture
def mesh() -> Iterator[MeshWorld]:
    """Needs the right to make network namespaces in threads, which only root has."""
    if os.geteuid() != 0:
        pytest.skip("not root: `strongroom run` shows the same in a user namespace (tests/enclave/test_mesh.py)")
    with mesh_world() as world:
        yield world
