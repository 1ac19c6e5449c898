"""Data that are loaded once: at every write, sync, change of a name and step of the anchor, whatever a crash leaves.

The next start finds all of it or makes it; it never reads a part, and after the call has returned it makes nothing.
"""

from __future__ import annotations

import random

import numpy as np
import pytest

from strongroom.data import SealedDataset, seal_arrays
from strongroom.data.once import _Once
from strongroom.sealed import NO_FRESHNESS, MemoryAnchor
from strongroom.sealed.opening import open_in
from strongroom.storage import MemoryDirectory
from strongroom.testing.storage import FaultyDirectory
from tests.crash.world import WatchedAnchor

KEY = bytes(range(32))
BLOCK = 4096
ARRAYS = {"x": np.arange(5 * BLOCK, dtype=np.uint8).reshape(-1, 128), "y": np.arange(5 * BLOCK // 128)}


class OnceWorld:
    """Loads data, and looks at what a crash would leave at every step.

    Attributes:
        explored, made: how many states were looked at, and after how many of them the data were made again.
    """

    def __init__(self, seed: int, *, fresh: bool, states: int = 20) -> None:
        self.rng = random.Random(seed)  # noqa: S311  # a failure must come back
        self.explored = self.made = 0
        self.returned = False
        self._fresh = fresh
        self._states = states
        self._looking = False
        self.anchor = WatchedAnchor(watch=lambda: self.look())
        self.watch(FaultyDirectory())

    def watch(self, disk: FaultyDirectory) -> None:
        """Look at every step of this disk."""
        self.disk = disk
        take = disk._steps.take

        def watched() -> None:
            self.look()
            take()

        disk._steps.take = watched  # type: ignore[method-assign]

    def start(self, disk, anchor) -> bool:
        """Whether the data were made at this start."""
        once = _Once(disk, "data", "data", KEY, anchor if self._fresh else NO_FRESHNESS)
        return once.get(lambda file: seal_arrays(file, ARRAYS), BLOCK)

    def look(self) -> None:
        if self._looking:
            return
        self._looking = True
        try:
            for state in self.disk.crash_states(self._states, self.rng):
                self.explored += 1
                self._check(state, MemoryAnchor(self.anchor.read()))
        finally:
            self._looking = False

    def _check(self, state: MemoryDirectory, anchor: MemoryAnchor) -> None:
        if "data" in state.list():
            self._read(state, anchor)  # what has its name is whole, before anybody looks after it
        made = self.start(state, anchor)
        assert not (made and self.returned), repr(state)
        self.made += made
        self._read(state, anchor)
        assert not self.start(state, anchor)
        assert state.list() == ["data", "data.lock"]

    def _read(self, state: MemoryDirectory, anchor: MemoryAnchor) -> None:
        file = open_in(state, "data", "r", KEY, anchor if self._fresh else NO_FRESHNESS, what="data")
        with file, SealedDataset(file) as dataset:
            x, y = next(dataset.batches(len(dataset), shuffle=False))
        assert np.array_equal(x, ARRAYS["x"])
        assert np.array_equal(y, ARRAYS["y"])


@pytest.mark.parametrize("fresh", [True, False], ids=["anchor", "no freshness"])
@pytest.mark.parametrize("seed", range(2))
def test_states_after_a_crash(seed, fresh):
    world = OnceWorld(seed, fresh=fresh)
    assert world.start(world.disk, world.anchor)
    world.returned = True
    world.look()
    assert world.explored > 100
    assert 0 < world.made < world.explored


def test_a_crash_while_it_is_made_again_after_a_crash():
    first = OnceWorld(3, fresh=True)
    left: list[MemoryDirectory] = []
    first.look = lambda: left.extend(first.disk.crash_states(8, first.rng))  # type: ignore[method-assign]
    first.start(first.disk, MemoryAnchor())
    halves = [state for state in left if "data.new" in state.list()]
    assert len(halves) > 10
    for state in halves[::3]:
        world = OnceWorld(4, fresh=True, states=3)
        world.watch(FaultyDirectory({name: _bytes(state, name) for name in state.list()}))
        world.start(world.disk, world.anchor)
        assert world.explored > 20


def _bytes(state: MemoryDirectory, name: str) -> bytes:
    storage = state.open(name, "r", shared=True)
    content = bytearray(storage.size())
    storage.read_into(0, content)
    return bytes(content)
