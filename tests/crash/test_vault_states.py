"""A vault under a random workload: at every step, every sampled state that a power cut can leave is a promised one."""

import os

import pytest

from tests.crash.world import World


@pytest.mark.parametrize("log", [False, True], ids=["commits", "log"])
@pytest.mark.parametrize("seed", range(3))
def test_states_after_a_power_cut(seed, log):
    world = World(seed, states=6, log=log)
    world.run(50)
    assert world.explored > 400


@pytest.mark.parametrize("log", [False, True], ids=["commits", "log"])
def test_states_of_one_that_is_authenticated_only(log):
    world = World(7, states=4, log=log, encrypted=False)
    world.run(25)
    assert world.explored > 100


@pytest.mark.slow
def test_a_hundred_thousand_states():
    """STRONGROOM_SEED names another series of workloads."""
    seed, explored = int(os.environ.get("STRONGROOM_SEED", "1000")), 0
    while explored < 100_000:
        world = World(seed, states=60, log=bool(seed % 4), encrypted=seed % 3 > 0)
        world.run(60)
        explored += world.explored
        seed += 1
    print(f"{explored} states")
