"""Every write and sync of a change of the key is a crash point: one of the two keys opens the last version or the next.

The same for the commits that follow, until the old key is dropped.
"""

import contextlib
import os
import random

import pytest

from strongroom.errors import IntegrityError, WrongKeyError
from strongroom.sealed import MemoryAnchor
from strongroom.sealed.layout import SLOTS_SIZE
from strongroom.sealed.opening import open_in
from strongroom.storage import MemoryDirectory
from strongroom.testing.storage import FaultyDirectory, PowerCutError, Survives

OLD, NEW = bytes(32), bytes([1]) * 32
BLOCK = 4096
CONTENT = os.urandom(9 * BLOCK)
CHANGED = b"changed" + CONTENT[7:]


def survivors() -> list[Survives]:
    rng = random.Random(1)  # noqa: S311
    return [
        lambda offset: False,
        lambda offset: True,
        lambda offset: offset < SLOTS_SIZE,
        lambda offset: not 0 <= offset < SLOTS_SIZE,
        lambda offset: rng.random() < 0.5,
        lambda offset: rng.random() < 0.5,
    ]


def change_key(directory: FaultyDirectory, anchor: MemoryAnchor) -> None:
    with open_in(directory, "f", "r+", OLD, anchor, BLOCK, what="f") as file:
        file.rekey(NEW)
        file.write_at(0, b"changed")
        file.commit()
        while file.rekey_step(4):
            file.commit()
        file.commit()
        assert not file.rekeying


def opens(directory: MemoryDirectory, key: bytes, anchor: MemoryAnchor) -> bytes | None:
    """The content, or None if the key does not open it or what it opens is out of date."""
    files = {name: bytes(file.data) for name, file in directory.files.items()}
    try:
        with open_in(MemoryDirectory(files), "f", "r", key, MemoryAnchor(anchor.read()), BLOCK, what="f") as file:
            file.verify()
            return file.read()
    except (WrongKeyError, IntegrityError):
        return None


def test_a_change_of_the_key():
    made, start = MemoryDirectory(), MemoryAnchor()
    with open_in(made, "f", "x", OLD, start, BLOCK, what="f") as file:
        file.write(CONTENT)
    files = {"f": bytes(made.files["f"].data)}
    whole = FaultyDirectory(files)
    change_key(whole, MemoryAnchor(start.read()))
    seen = set()
    for stop in range(whole.steps + 1):
        for survives in survivors():
            disk, anchor = FaultyDirectory(files, stop_after=stop), MemoryAnchor(start.read())
            with contextlib.suppress(PowerCutError):
                change_key(disk, anchor)
            after = disk.after_crash(survives)
            old, new = opens(after, OLD, anchor), opens(after, NEW, anchor)
            assert (old, new) in ((CONTENT, None), (CONTENT, CHANGED), (None, CHANGED))
            seen.add((old is not None, new is not None))
            if new is None:
                continue
            # With the new key alone it goes on, and then the old one is of no use.
            with open_in(after, "f", "r+", NEW, anchor, BLOCK, what="f") as file:
                file.rekey_step(1000)
                file.commit()
                assert not file.rekeying
            with pytest.raises(WrongKeyError):
                open_in(after, "f", "r", OLD, anchor, BLOCK, what="f")
            assert opens(after, NEW, anchor) == CHANGED
    assert seen == {(True, False), (True, True), (False, True)}
