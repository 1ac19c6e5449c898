"""A sealed file: at every step, every sampled state that a crash can leave is the last commit or the one under way.

And on a disk that fails or fills up: the error is told, what follows it is refused, and the last commit is there.
"""

import contextlib
import os
import random

import pytest

from strongroom.errors import StrongroomError, TruncatedError
from strongroom.sealed import MemoryAnchor
from strongroom.testing.storage import Faults, FaultyDirectory
from tests.crash.sealed_world import BLOCK, SealedWorld, open_file

KEY = bytes(range(32))
KINDS = {
    "encrypted": {},
    "authenticated only": {"encrypted": False},
    "grouped": {"grouped": True},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(4))
def test_states_after_a_crash(seed, kind):
    world = SealedWorld(seed, states=6, **KINDS[kind])
    world.run(60)
    assert world.explored > 250


@pytest.mark.slow
def test_a_hundred_thousand_states():
    """STRONGROOM_SEED names another series of workloads."""
    seed, explored = int(os.environ.get("STRONGROOM_SEED", "1000")), 0
    kinds = [*KINDS.values(), {"encrypted": False, "grouped": True}]
    while explored < 100_000:
        world = SealedWorld(seed, states=60, **kinds[seed % 4])
        world.run(60)
        explored += world.explored
        seed += 1
    print(f"{explored} states")


# A disk that fails.


class Scenario:
    """Three commits that touch all there is, on a disk that fails somewhere; `committed` is the last acknowledged."""

    def __init__(self, faults: Faults) -> None:
        self.disk = FaultyDirectory(faults=faults)
        self.anchor = MemoryAnchor()
        self.committed: list[bytes] = []
        self.content = bytearray()
        self.failed: OSError | None = None

    def run(self) -> None:
        """Raises nothing: the disk's error is kept, and what the handle says afterwards is checked."""
        try:
            file = open_file(self.disk, "x", KEY, self.anchor)
        except OSError as error:
            self.failed = error
            return
        try:
            for number in range(3):
                for offset in (0, 2 * BLOCK + 5, 100 * BLOCK):
                    data = bytes([number + 1]) * (BLOCK + 10)
                    self.content.extend(bytes(max(0, offset - len(self.content))))
                    self.content[offset : offset + len(data)] = data
                    file.write_at(offset, data)
                file.punch(BLOCK, 50)
                self.content[BLOCK : BLOCK + 50] = bytes(50)
                file.commit(retain=number == 1)
                self.committed.append(bytes(self.content))
            file.close()
        except OSError as error:
            self.failed = error
            self._check_poisoned(file)
        finally:
            with contextlib.suppress(OSError):
                file.discard()

    def _check_poisoned(self, file) -> None:
        if file.closed or not file.poisoned:
            return  # a full disk: it may be tried again
        for act in (file.commit, lambda: file.write_at(0, b"x"), file.retain):
            with pytest.raises(StrongroomError, match="an earlier write or commit failed"):
                act()

    def check(self, disk) -> None:
        """Whether what is on `disk` is what the last commit promised, or the one that failed undecided."""
        promised = self.committed[-1:] or [b""]
        anchor = MemoryAnchor(self.anchor.read())
        if not self.committed:
            with contextlib.suppress(StrongroomError, OSError):
                open_file(disk, "r", KEY, anchor).discard()
            return
        with open_file(disk, "r", KEY, anchor) as file:
            assert file.read() in (promised[0], bytes(self.content))
        with open_file(disk, "r+", KEY, anchor) as file:
            file.write_at(0, b"onward")
        with open_file(disk, "r", KEY, anchor) as file:
            file.verify()


def counted() -> FaultyDirectory:
    scenario = Scenario(Faults())
    scenario.run()
    assert scenario.failed is None
    return scenario.disk


@pytest.mark.parametrize("drops", [False, True], ids=["keeps", "drops"])
def test_a_sync_that_fails(drops):
    rng = random.Random(1)  # noqa: S311
    for number in range(1, counted().syncs + 1):
        scenario = Scenario(Faults(fail_sync=number, sync_drops=drops))
        scenario.run()
        assert scenario.failed is not None, number
        for state in scenario.disk.crash_states(20, rng):
            scenario.check(state)


def test_a_disk_that_is_full():
    rng = random.Random(2)  # noqa: S311
    for number in range(1, counted().writes + 1):
        scenario = Scenario(Faults(full_from=number))
        scenario.run()
        assert scenario.failed is not None, number
        assert scenario.failed.strerror == os.strerror(scenario.failed.errno)
        scenario.disk.faults.full_from = None
        for state in scenario.disk.crash_states(10, rng):
            scenario.check(state)
        if scenario.committed:
            scenario.check(scenario.disk)


def test_a_read_that_is_short():
    scenario = Scenario(Faults())
    scenario.run()
    disk, refused = scenario.disk, 0
    first = disk.reads
    with open_file(disk, "r", KEY, scenario.anchor) as file:
        assert file.read() == scenario.committed[-1]
    for number in range(disk.reads - first):
        disk.faults.short_read = disk.reads + number + 1
        try:
            with open_file(disk, "r", KEY, MemoryAnchor(scenario.anchor.read())) as file:
                assert file.read() == scenario.committed[-1]
        except StrongroomError as error:
            assert isinstance(error, TruncatedError), error
            refused += 1
    assert refused > 5


def test_a_read_that_is_short_while_writing():
    """It tells, or it did not matter: a block that could not be read whole is not written back with zeros in it."""
    for number in range(1, 60):
        scenario = Scenario(Faults())
        scenario.run()
        disk, content = scenario.disk, bytearray(scenario.committed[-1])
        disk.faults.short_read = disk.reads + number
        try:
            with open_file(disk, "r+", KEY, scenario.anchor) as file:
                file.write_at(50 * BLOCK + 5, b"changed")
                file.write_at(101 * BLOCK + 3, b"changed")
                file.truncate(101 * BLOCK + 6)
        except StrongroomError:
            pass
        else:
            content[50 * BLOCK + 5 : 50 * BLOCK + 12] = b"changed"
            content[101 * BLOCK + 3 : 101 * BLOCK + 10] = b"changed"
            del content[101 * BLOCK + 6 :]
        disk.faults.short_read = None
        with open_file(disk, "r", KEY, scenario.anchor) as file:
            assert file.read() == content
