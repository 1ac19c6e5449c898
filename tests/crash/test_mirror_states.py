"""A mirror: at every write, sync and step of the anchor, every sampled state that a power cut can leave restores.

What restores is the last commit that was acknowledged or the one under way, whole, and every older one that is kept.
"""

from __future__ import annotations

import random

import numpy as np
import pytest

from strongroom import mirror
from strongroom.sealed import Grouped, MemoryAnchor
from strongroom.storage import MemoryDirectory
from strongroom.testing.storage import FaultyDirectory
from tests.crash.world import WatchedAnchor

KEY = bytes(range(32))
BLOCK = 4096


class MirrorWorld:
    """Commits over and over, and looks at what a crash would leave at every step.

    Attributes:
        explored: how many states were looked at.
    """

    def __init__(self, seed: int, *, states: int, grouped: bool = False, **options: object) -> None:
        self.rng = random.Random(seed)  # noqa: S311  # a failure must come back
        self.explored = 0
        self._states = states
        self._options = {"key": KEY, "block_size": BLOCK, "keep": 3, **options}
        self._looking = False
        self.disk = FaultyDirectory()
        self.anchor = WatchedAnchor(watch=self._look)
        take = self.disk._steps.take

        def watched() -> None:
            self._look()
            take()

        self.disk._steps.take = watched
        self.committed: dict[int, dict[str, object]] = {}  # of every step that was begun
        self.acknowledged: int | None = None
        self.kept: list[int] = []
        self._grouped = grouped
        self.arrays = {f"a{i}": np.random.default_rng(i).integers(0, 255, size, np.uint8) for i, size in
                       enumerate((3 * BLOCK + 50, 2 * BLOCK, 100, BLOCK - 1))}  # fmt: skip

    def _anchor(self) -> object:
        if not self._grouped:
            return self.anchor
        return Grouped(self.anchor, every_commits=4, every_seconds=1.0, clock=lambda: 0.0)

    def _look(self) -> None:
        if self._looking or not self.committed:
            return
        self._looking = True
        try:
            for state in self.disk.crash_states(self._states, self.rng):
                self.explored += 1
                self._check(state)
        finally:
            self._looking = False

    def _check(self, state: MemoryDirectory) -> None:
        anchor = MemoryAnchor(self.anchor.read())
        newest = max(self.committed)
        with mirror.open(state, anchor=anchor, **self._options) as found:  # type: ignore[arg-type]
            assert found.step in (self.acknowledged, newest), (state, found.step)
            steps = found.steps
            for step in reversed(steps):
                restored = found.restore(step=step)
                assert restored is not None
                with restored:
                    self._same(dict(restored), self.committed[step])
            must = [step for step in self.kept if step > min(steps, default=0)]
            assert set(must) <= set(steps), (steps, self.kept)
        if self.explored % 5 == 0:  # and it goes on from there
            with mirror.open(state, anchor=anchor, **self._options) as found:  # type: ignore[arg-type]
                found.commit(newest + 1, {"next": np.arange(3 * BLOCK)})
                restored = found.restore()
                assert restored is not None and restored["next"].tolist() == list(range(3 * BLOCK))
                assert found._file.verify() > 0

    @staticmethod
    def _same(found: dict[str, object], wanted: dict[str, object]) -> None:
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            other = found[name]
            assert type(other) is type(value)
            assert np.array_equal(other, value) if isinstance(value, np.ndarray) else other == value, name  # type: ignore[arg-type]

    def _next_state(self, step: int) -> dict[str, object]:
        for name in list(self.arrays):
            if self.rng.random() < 0.7:
                self.arrays[name] = self.arrays[name] + np.uint8(1)
        if self.rng.random() < 0.3:  # another shape
            name = self.rng.choice(sorted(self.arrays))
            self.arrays[name] = np.full(self.rng.choice((0, 10, BLOCK, 3 * BLOCK + 1, 5 * BLOCK)), step, np.uint8)
        return {"step": step, **{name: array.copy() for name, array in self.arrays.items()}}

    def run(self, commits: int) -> None:
        step = 0
        while step < commits:
            with mirror.open(self.disk, anchor=self._anchor(), **self._options) as opened:  # type: ignore[arg-type]
                for _ in range(self.rng.randrange(1, 6)):
                    step += 1
                    self.committed[step] = self._next_state(step)
                    opened.commit(step, self.committed[step]).durable()
                    self.acknowledged = step
                    self.kept = opened.steps


KINDS = {
    "synchronous": {},
    "delta": {"delta": True},
    "overlapped": {"mode": "overlapped", "delta": True},
    "grouped": {"grouped": True},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(2))
def test_states_after_a_power_cut(seed, kind):
    world = MirrorWorld(seed, states=8, **KINDS[kind])
    world.run(10)
    assert world.explored > 200


@pytest.mark.slow
def test_many_states():
    explored, seed = 0, 100
    while explored < 50_000:
        world = MirrorWorld(seed, states=100, **list(KINDS.values())[seed % 4])
        world.run(12)
        explored += world.explored
        seed += 1
    print(f"{explored} states")


def test_three_commits_and_every_subset_of_their_writes():
    """Few blocks, so that every subset of what is not synced is looked at, with every write torn."""
    world = MirrorWorld(7, states=3000)
    world.arrays = {"w": np.zeros(2 * BLOCK, np.uint8)}
    with mirror.open(world.disk, anchor=world.anchor, **world._options) as opened:
        for step in (1, 2, 3):
            world.arrays["w"] = np.full(2 * BLOCK, step, np.uint8)
            world.committed[step] = {"w": world.arrays["w"]}
            opened.commit(step, world.committed[step])
            world.acknowledged, world.kept = step, opened.steps
    assert world.explored > 150
