"""The faulty disk itself: which states a power cut leaves, and each fault on its own."""

import contextlib
import errno
import os
import random

import pytest

from strongroom.storage import LocalDirectory, MemoryDirectory
from strongroom.testing.crash import EXHAUSTIVE, SECTOR
from strongroom.testing.storage import Faults, FaultyDirectory, FaultyStorage, PowerCutError


@pytest.fixture
def rng():
    return random.Random(1)  # noqa: S311  # a failure must come back


def contents(directory: MemoryDirectory) -> dict[str, bytes]:
    return {name: bytes(file.data) for name, file in directory.files.items()}


def error(number: int):
    return pytest.raises(OSError, match=os.strerror(number))


# Crash states.


def test_every_subset_of_few_writes(rng):
    disk = FaultyStorage(b"....")
    for at in range(4):
        disk.write_at(at, b"ABCD"[at : at + 1])
    states = list(disk.crash_states(1000, rng))
    assert len(states) == len(set(states)) == 16
    assert {b"....", b"ABCD", b"..C.", b"AB.D"} < set(states)
    disk.sync()
    assert list(disk.crash_states(1000, rng)) == [b"ABCD"]


def test_later_writes_win_where_they_overlap_and_resizes_are_writes(rng):
    disk = FaultyStorage(b"old")
    disk.resize(1)
    disk.write_at(0, b"A")
    disk.write_at(0, b"B")
    assert set(disk.crash_states(1000, rng)) == {b"old", b"o", b"Ald", b"A", b"Bld", b"B"}


def test_a_write_is_torn_between_sectors_wherever_it_began(rng):
    disk = FaultyStorage(bytes(3 * SECTOR))
    disk.write_at(100, b"x" * 2 * SECTOR)
    states = set(disk.crash_states(1000, rng))
    for state in states:
        edges = [at for at in range(1, len(state)) if state[at] != state[at - 1]]
        assert set(edges) <= {100, SECTOR, 2 * SECTOR, 2 * SECTOR + 100}
    torn = {state.count(b"x") for state in states} - {0, 2 * SECTOR}
    assert len(torn) > 1


def test_a_torn_write_may_leave_zeros_at_the_end(rng):
    disk = FaultyStorage()
    disk.write_at(0, b"x" * 4 * SECTOR)
    states = set(disk.crash_states(1000, rng))
    assert any(len(state) == 4 * SECTOR and state.endswith(b"x" + bytes(SECTOR)) for state in states)
    assert any(0 < len(state) < 4 * SECTOR for state in states)


def test_many_writes_are_sampled(rng):
    disk = FaultyStorage(bytes(40 * SECTOR))
    for at in range(EXHAUSTIVE + 10):
        disk.write_at(2 * at * SECTOR, b"x" * 2 * SECTOR)
    states = list(disk.crash_states(3000, rng))
    assert 2500 < len(states) <= 3000
    assert len(set(states)) > 2000
    assert {bytes(40 * SECTOR), b"x" * 40 * SECTOR} <= set(states)
    assert b"x" * 10 * SECTOR + bytes(30 * SECTOR) in states
    assert b"x" * 10 * SECTOR + bytes(2 * SECTOR) + b"x" * 28 * SECTOR in states
    few = list(disk.crash_states(5, rng))
    assert len(few) == 5
    assert few[:2] == [bytes(40 * SECTOR), b"x" * 40 * SECTOR]
    assert len(list(disk.crash_states(1, rng))) == 1


def test_names_that_were_not_synced(rng):
    disk = FaultyDirectory({"a": b"1", "b": b"2"})
    disk.rename("a", "b")
    disk.unlink("b")
    disk.open("c", "x").write_at(0, b"3")
    states = [contents(state) for state in disk.crash_states(1000, rng)]
    assert len(states) == 16
    for wanted in (
        {"a": b"1", "b": b"2"},
        {"b": b"1"},
        {"b": b"1", "c": b""},
        {"c": b"3"},
        {"a": b"1", "c": b"3"},  # what was unlinked had been renamed to there
    ):
        assert wanted in states
    disk.sync()
    assert [contents(state) for state in disk.crash_states(1000, rng)] == [{"c": b""}, {"c": b"3"}]


def test_a_file_keeps_what_was_synced_though_its_name_was_not(rng):
    disk = FaultyDirectory()
    file = disk.open("f", "x")
    file.write_at(0, b"synced")
    file.sync()
    assert [contents(state) for state in disk.crash_states(9, rng)] == [{}, {"f": b"synced"}]
    assert [repr(state) for state in disk.crash_states(9, rng)][1] == "<CrashState create f: True>"
    disk.sync()
    assert [repr(state) for state in disk.crash_states(9, rng)] == ["<CrashState all synced>"]


def test_states_are_independent(rng):
    disk = FaultyDirectory({"f": b"old"})
    disk.open("f", "r+").write_at(0, b"n")
    for state in disk.crash_states(9, rng):
        with contextlib.closing(state.open("f", "r+")) as file:
            file.write_at(0, b"changed")
            file.sync()
    assert [contents(state)["f"] for state in disk.crash_states(9, rng)] == [b"old", b"nld"]


def test_locks_of_a_crash_state_are_free(rng):
    disk = FaultyDirectory({"f": b""})
    held = disk.locks("f")
    assert held.acquire(1, exclusive=True)
    assert not disk.open("f", "r").locks.acquire(1, exclusive=False)
    for state in disk.crash_states(9, rng):
        assert state.locks("f").acquire(1, exclusive=True)


# Single faults.


def test_the_power_goes_for_names_too():
    for stop in range(5):
        disk = FaultyDirectory({"a": b""}, stop_after=stop)
        with contextlib.suppress(PowerCutError):
            disk.rename("a", "b")
            disk.sync()
            disk.locks("locks")
            disk.unlink("b")
            disk.open("c", "x")
        assert disk.steps == stop
        assert disk.list() == [["a"], ["b"], ["b"], ["b", "locks"], ["locks"]][stop]


@pytest.mark.parametrize("drops", [False, True])
def test_a_failed_sync_is_never_made_up_for(rng, drops):
    disk = FaultyStorage(b"...", faults=Faults(fail_sync=1, sync_drops=drops))
    disk.write_at(0, b"A")
    with error(errno.EIO):
        disk.sync()
    assert disk.data == (b"..." if drops else b"A..")
    disk.write_at(1, b"B")
    disk.sync()
    assert set(disk.crash_states(99, rng)) == {b".B.", b"AB."}
    assert disk.after_crash() == b".B."
    assert disk.after_crash(lambda offset: True) == b"AB."


def test_a_failed_sync_of_names(rng):
    disk = FaultyDirectory({"a": b""}, faults=Faults(fail_sync=1))
    disk.rename("a", "b")
    with error(errno.EIO):
        disk.sync()
    disk.open("c", "x")
    disk.sync()
    assert [state.list() for state in disk.crash_states(99, rng)] == [["a", "c"], ["b", "c"]]
    assert disk.syncs == 2


def test_a_full_disk_takes_half_a_write():
    disk = FaultyDirectory({"f": b""}, faults=Faults(full_from=2))
    file = disk.open("f", "r+")
    file.write_at(0, b"fits")
    with error(errno.ENOSPC):
        file.write_at(0, b"x" * 4 * SECTOR)
    assert file.size() == 2 * SECTOR
    with error(errno.ENOSPC):
        file.write_at(0, b"small")
    with error(errno.ENOSPC):
        file.resize(1 << 20)
    with error(errno.ENOSPC):
        disk.open("new", "x")
    file.resize(3)
    disk.faults.full_from = None
    file.write_at(3, b"room")
    assert disk.writes == 6
    assert contents(disk.after_crash(lambda offset: True)) == {"f": b"xxxroom"}


def test_a_bit_flips_on_the_medium():
    disk = FaultyDirectory({"f": b"\0\0"})
    disk.open("f", "r+").write_at(2, b"\0")
    disk.flip("f", 9)
    disk.flip("f", 16)
    buffer = bytearray(3)
    disk.open("f", "r").read_into(0, buffer)
    assert buffer == b"\0\2\1"
    assert contents(disk.after_crash()) == {"f": b"\0\2"}


def test_one_read_is_short():
    disk = FaultyDirectory({"f": b"12345678"}, faults=Faults(short_read=2))
    file = disk.open("f", "r")
    buffer = bytearray(8)
    assert [file.read_into(0, buffer), file.read_into(2, buffer), file.read_into(0, buffer)] == [8, 3, 8]
    assert disk.reads == 3


def test_every_change_is_a_step():
    disk = FaultyDirectory()
    with contextlib.closing(disk.open("f", "x")) as file:
        file.write_at(0, b"12")
        file.resize(1)
        file.sync()
    disk.locks("locks")
    disk.rename("f", "g")
    disk.sync()
    disk.locks("locks")
    assert disk.steps == 7
    assert disk.list() == ["g", "locks"]


@pytest.mark.skipif(not hasattr(os, "preadv"), reason="needs preadv and pwrite")
def test_a_file_goes_on_after_short_reads_and_writes(tmp_path, monkeypatch):
    preadv, pwrite = os.preadv, os.pwrite
    monkeypatch.setattr(os, "preadv", lambda fd, views, at: preadv(fd, [memoryview(views[0])[:3]], at))
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, data[:3], at))
    with contextlib.closing(LocalDirectory(tmp_path).open("f", "x")) as file:
        file.write_at(1, b"1234567")
        buffer = bytearray(10)
        assert file.read_into(0, buffer) == 8
        assert buffer == b"\x001234567\0\0"
