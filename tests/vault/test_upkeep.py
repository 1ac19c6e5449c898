"""Compaction, and another key."""

import os

import pytest

from strongroom import vault
from strongroom.crypto import random_key
from strongroom.errors import WrongKeyError
from strongroom.sealed import NO_FRESHNESS, MemoryAnchor
from strongroom.storage import MemoryDirectory
from strongroom.vault.vault import Vault

KEY = bytes(range(32))


def sizes(directory: MemoryDirectory) -> int:
    return sum(len(file.data) for file in directory.files.values())


@pytest.fixture
def world():
    directory, anchor, files = MemoryDirectory(), MemoryAnchor(), {}
    with vault.open(directory, "x", key=KEY, anchor=anchor) as opened:
        for number in range(40):
            files[f"small/{number}"] = os.urandom(5000)
        files["inline"], files["big"], files["empty"] = b"inline", os.urandom(2_000_000), b""
        for path, content in files.items():
            opened.write_bytes(path, content)
    return directory, anchor, files


def contents(directory, anchor, key=KEY):
    with vault.open(directory, key=key, anchor=anchor) as opened:
        opened.verify()
        return {path: opened.read_bytes(path) for path in opened.files()}


def test_compaction_gives_space_back(world):
    directory, anchor, files = world
    with vault.open(directory, "r+", key=KEY, anchor=anchor) as opened:
        for number in range(30):
            opened.remove(f"small/{number}")
            del files[f"small/{number}"]
        with opened.open("big", "r+b") as file:
            file.seek(0)
            file.write(files["big"][::-1])
        opened.commit()
        with opened.open("big", "r+b") as file:
            file.truncate(300_000)
        files["big"] = files["big"][::-1][:300_000]
        before = sizes(directory)
        saved = opened.compact()
        assert saved == before - sizes(directory)
        assert {path: opened.read_bytes(path) for path in opened.files()} == files
        opened.write_bytes("after", b"a" * 3000)
    assert saved > 1_500_000
    assert sizes(directory) < 700_000
    assert contents(directory, anchor) == files | {"after": b"a" * 3000}


@pytest.mark.parametrize("log", [False, True])
def test_another_key(world, log):
    directory, anchor, files = world
    new = random_key()
    old_copy = {name: bytes(file.data) for name, file in directory.files.items()}
    with vault.open(directory, "r+", key=KEY, anchor=anchor) as opened:
        before = set(opened._state.data_files())
    told = []
    opened = Vault(directory, "r+", KEY, anchor, what="vault", log=log)
    opened.rekey(new, told.append)
    opened.write_bytes("later", b"l" * 5000)
    opened.fsync(opened.stat("later").inode)
    files["later"] = b"l" * 5000
    if log:
        opened.discard()  # killed: the log alone holds what came last
    else:
        opened.close()
    assert sum(told) == 2_200_000
    with pytest.raises(WrongKeyError):
        vault.open(directory, key=KEY, anchor=NO_FRESHNESS)
    assert contents(directory, anchor, new) == files
    with vault.open(directory, "r+", key=new, anchor=anchor) as opened:
        assert not before & opened._state.data_files()
        opened.write_bytes("and on", b"1")
    # What was copied before can be read for ever: that is said, and is why one rekeys early.
    assert contents(MemoryDirectory(old_copy), NO_FRESHNESS)["inline"] == b"inline"


def test_a_crash_while_the_key_changes(world):
    directory, anchor, files = world
    opened = vault.open(directory, "r+", key=KEY, anchor=anchor)
    states = []
    opened.rekey(random_key(), lambda size: states.append({n: bytes(f.data) for n, f in directory.files.items()}))
    opened.discard()
    for state in states[::20]:
        assert contents(MemoryDirectory(state), NO_FRESHNESS) == files
