from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.homes import Remembered

LONGEST = (
    "tests/cluster/test_ray_up.py",
    "tests/cluster/test_federated.py",
    "tests/enclave/test_distributed.py",
    "tests/enclave/test_frameworks.py",
    "tests/mirror/test_hook.py",
    "tests/cli/test_demo.py",
    "tests/cli/test_refusals.py",
    "tests/enclave/test_run.py",
    "tests/cli/test_run_mirror.py",
    "tests/mirror/test_keras.py",
    "tests/test_readme.py",
    "tests/enclave/test_pipeline.py",
    "tests/enclave/test_compiled.py",
    "tests/enclave/test_image.py",
    "tests/cli/test_mpc_run.py",
    "tests/cli/test_policy_init.py",
    "tests/shield/test_tensorflow.py",
    "tests/enclave/test_pipeline_residue.py",
    "tests/enclave/test_dealer.py",
    "tests/enclave/test_cas_reference.py",
)
"""Files of tests that take ten seconds or more: they come first, so that at the end no process waits for another's."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.nodeid.partition("::")[0], len(places)))


@pytest.fixture(autouse=True)
def _no_cas_of_the_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who runs the tests may work with a CAS, which no test may reach."""
    for name in ("STRONGROOM_CAS", "STRONGROOM_CAS_ROOT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def remembered(tmp_path_factory: pytest.TempPathFactory) -> Remembered:
    """What homes of this run of tests remember, in all its processes."""
    own = tmp_path_factory.getbasetemp()
    return Remembered((own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "remembered")


@pytest.fixture
def warm_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, remembered: Remembered) -> Iterator[Path]:
    """This test's home, `tmp_path / "home"`, which measures and compiles only what no other test's has."""
    home = tmp_path / "home"
    monkeypatch.setenv("STRONGROOM_HOME", str(home))
    if sys.platform == "win32":  # where there are no enclaves
        yield home
        return
    yield remembered.give(home)
    remembered.take(home)
