"""Every write, sync and change of names of a commit is a crash point: one reads the old version or the new one."""

import contextlib
import os
import random
from collections.abc import Iterator

import pytest

from strongroom import vault
from strongroom.errors import FormatError, IntegrityError
from strongroom.sealed import MemoryAnchor, Root
from strongroom.sealed.layout import SLOTS_SIZE
from strongroom.sealed.opening import open_in
from strongroom.storage import MemoryDirectory
from strongroom.testing.storage import FaultyDirectory, FaultyStorage, PowerCutError, Survives

KEY = bytes(32)
BLOCK = 4096
SHUFFLES = 6

OLD = os.urandom(90 * BLOCK + 100)
NEW = os.urandom(50 * BLOCK) + OLD[50 * BLOCK : 88 * BLOCK]
# Contents of the commits before, so that the one under test meets free, dead and live places, and files that shrink.
HISTORIES = {
    "grown": ([b"first" * BLOCK, b"second", OLD], NEW),
    "shrunk": ([OLD, b"second", b"third", b"fourth", b"fifth"], b"sixth"),
    "emptied": ([OLD], b""),
}


def survivors() -> Iterator[Survives]:
    """What the disk kept of what was not synced: nothing, all, the slots, all but them, or some of it."""
    yield lambda offset: False
    yield lambda offset: True
    yield lambda offset: offset < SLOTS_SIZE
    yield lambda offset: not 0 <= offset < SLOTS_SIZE
    for seed in range(SHUFFLES):
        rng = random.Random(seed)  # noqa: S311  # a failure must come back
        yield lambda offset, rng=rng: rng.random() < 0.5


def old_file(contents: list[bytes]) -> tuple[dict[str, bytes], Root]:
    directory, anchor = MemoryDirectory(), MemoryAnchor()
    for content in contents:
        with open_in(directory, "f", "w", KEY, anchor, BLOCK, what="f") as file:
            file.write(content)
    return {name: bytes(file.data) for name, file in directory.files.items()}, anchor.read()


def write_new(directory: FaultyDirectory, anchor: MemoryAnchor, new: bytes) -> None:
    with open_in(directory, "f", "r+", KEY, anchor, BLOCK, what="f") as file:
        file.write(new[: 50 * BLOCK])
        file.truncate(len(new))


@pytest.mark.parametrize("history", HISTORIES)
def test_sealed_file_commit(history):
    contents, new = HISTORIES[history]
    files, root = old_file(contents)
    whole = FaultyDirectory(files)
    write_new(whole, MemoryAnchor(root), new)
    seen = set()
    for stop in range(whole.steps + 1):
        for survives in survivors():
            disk, anchor = FaultyDirectory(files, stop_after=stop), MemoryAnchor(root)
            finished = False
            with contextlib.suppress(PowerCutError):
                write_new(disk, anchor, new)
                finished = True
            after = disk.after_crash(survives)
            # The anchor outlives the crash: what is read is fresh too.
            with open_in(after, "f", "r+", KEY, anchor, BLOCK, what="f") as file:
                content = file.read()
                file.verify()
                # The survivor can be written on.
                file.seek(0)
                file.write(b"onward")
            assert content in (contents[-1], new)
            assert content == new or not finished
            seen.add(content)
    assert seen == {contents[-1], new}


def test_first_commit_of_a_file():
    def create(directory, anchor):
        with open_in(directory, "f", "x", KEY, anchor, BLOCK, what="f") as file:
            file.write(NEW)

    whole = FaultyDirectory()
    create(whole, MemoryAnchor())
    outcomes = set()
    for stop in range(whole.steps + 1):
        for survives in survivors():
            disk, anchor = FaultyDirectory(stop_after=stop), MemoryAnchor()
            with contextlib.suppress(PowerCutError):
                create(disk, anchor)
            after = disk.after_crash(survives)
            try:
                with open_in(after, "f", "r", KEY, anchor, BLOCK, what="f") as file:
                    assert file.read() == NEW
                    outcomes.add("new")
            except FileNotFoundError:
                assert anchor.read() is None
                outcomes.add("none")
            except (FormatError, IntegrityError):
                assert anchor.read() is None  # nothing was promised yet
                outcomes.add("broken")
    assert outcomes == {"new", "none", "broken"}


BEFORE = {"a": b"a" * 5000, "b/c": b"c" * 100, "gone": b"gone"}
AFTER = {"a": b"A" * 9000, "b/d": b"c" * 100, "new": b"new" * 3000}


def content_of(directory: MemoryDirectory, anchor: MemoryAnchor) -> dict[str, bytes]:
    with vault.open(directory, key=KEY, anchor=anchor) as opened:
        opened.verify()
        return {path: opened.read_bytes(path) for path in opened.files()}


def change(directory: FaultyDirectory, anchor: MemoryAnchor) -> None:
    with vault.open(directory, "r+", key=KEY, anchor=anchor) as opened:
        opened.write_bytes("a", AFTER["a"])
        opened.write_bytes("new", AFTER["new"])
        opened.rename("b/c", "b/d")
        opened.remove("gone")


def test_vault_commit():
    made, anchor = MemoryDirectory(), MemoryAnchor()
    with vault.open(made, "x", key=KEY, anchor=anchor) as opened:
        for path, content in BEFORE.items():
            opened.write_bytes(path, content)
    files, root = {name: bytes(file.data) for name, file in made.files.items()}, anchor.read()
    whole = FaultyDirectory(files)
    change(whole, MemoryAnchor(root))
    seen = []
    for stop in range(whole.steps + 1):
        for survives in survivors():
            disk, anchor = FaultyDirectory(files, stop_after=stop), MemoryAnchor(root)
            with contextlib.suppress(PowerCutError):
                change(disk, anchor)
            after = disk.after_crash(survives)
            content = content_of(after, anchor)
            assert content in (BEFORE, AFTER)
            seen.append(content == AFTER)
            # The next commit sweeps up what the crash left.
            with vault.open(after, "r+", key=KEY, anchor=anchor) as opened:
                opened.write_bytes("next", b"")
                opened.commit()
                named = {file.hex() for file in opened._state.data_files()}
                assert {name for name in after.list() if len(name) == 32} <= named
    assert any(seen)
    assert not all(seen)


def test_a_storage_alone_loses_power_too():
    disk = FaultyStorage(b"old", stop_after=2)
    disk.write_at(0, b"new")
    disk.sync()
    with pytest.raises(PowerCutError):
        disk.write_at(0, b"lost")
    assert disk.after_crash() == b"new"
    disk = FaultyStorage(b"old")
    disk.write_at(0, b"new")
    disk.resize(1)
    assert disk.after_crash() == b"old"
    assert disk.after_crash(lambda offset: True) == b"n"
    assert disk.steps == 2
