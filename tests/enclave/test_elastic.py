"""An elastic torchrun of docs/how-to/distributed.md: replicas die, new ones are attested and join, it ends."""

from __future__ import annotations

import pytest

from tests.enclave.conftest import World
from tests.enclave.elastic import train
from tests.enclave.test_distributed import digits  # noqa: F401  # a fixture
from tests.enclave.test_frameworks import needs, results


@pytest.mark.slow
@pytest.mark.parametrize(("victim", "kills"), [("program", 10), ("enclave", 1), ("enclave", 10)])
def test_replicas_that_die_and_new_ones_that_join(victim, kills, world: World, bubblewrap, digits) -> None:  # noqa: F811
    needs("torch")
    ended = train(world, digits, victim, kills)
    assert (ended.status, ended.kills) == (0, kills)
    assert float(results(ended.job)["right"]) > 0.85
