"""Data files of one process, the content of which another process replaces."""

import pytest

from strongroom.errors import LockedError
from strongroom.sealed import MemoryAnchor
from strongroom.storage import MemoryDirectory
from strongroom.vault.vault import Vault

KEY = bytes(32)


class World:
    def __init__(self) -> None:
        self.directory, self.anchor = MemoryDirectory(), MemoryAnchor()

    def open(self, mode="r+", **options) -> Vault:
        return Vault(self.directory, mode, KEY, self.anchor, what="vault", **options)

    def contents(self) -> dict[str, bytes]:
        with self.open("r") as opened:
            opened.verify()
            return {path: opened.read_bytes(path) for path in opened.files()}

    def packs(self) -> list[str]:
        return [name for name in self.directory.list() if len(name) == 32]


@pytest.fixture
def world():
    """A vault that `one` made, with a pack that it goes on to write to; `two` has replaced all that was in it."""
    world = World()
    world.one = world.open("x")
    world.one.write_bytes("a", b"1" * 5000)
    world.one.commit()
    world.two = world.open()
    world.two.write_bytes("a", b"2" * 5000)
    return world


@pytest.mark.parametrize("after", [1, 2, 3])
def test_a_pack_that_gets_new_pieces_while_others_commit(world, after):
    for number in range(after):
        if number == after - 1:
            world.one.write_bytes("b", b"3" * 6000)
        world.two.write_bytes("c", bytes([number]) * 10)
        world.two.commit()
    world.one.commit()
    expected = {"a": b"2" * 5000, "b": b"3" * 6000, "c": bytes([after - 1]) * 10}
    assert world.contents() == expected
    for number in range(3):
        for opened in (world.one, world.two):
            opened.refresh()
            opened.write_bytes("c", bytes([number]) * 20)
            opened.commit()
    world.one.close()
    world.two.close()
    assert world.contents() == expected | {"c": b"\2" * 20}


def test_pieces_that_were_written_before_the_pack_died(world):
    world.one.write_bytes("b", b"3" * 6000)
    for number in range(4):
        world.two.write_bytes("c", bytes([number]) * 10)
        world.two.commit()
    world.one.commit()
    world.two.discard()
    world.one.close()
    assert world.contents() == {"a": b"2" * 5000, "b": b"3" * 6000, "c": b"\3" * 10}


def test_a_pack_that_nobody_needs_goes(world):
    for number in range(4):
        world.two.write_bytes("c", bytes([number]) * 10)
        world.two.commit()
    for number in range(3):
        world.one.write_bytes("d", bytes([number]) * 10)
        world.one.commit()
    assert len(world.packs()) == 1
    world.two.close()
    world.one.close()
    with world.open() as opened:
        opened.write_bytes("e", b"")
    assert len(world.packs()) == 1
    assert world.contents()["a"] == b"2" * 5000


def test_what_a_dead_process_had_packed_goes(world):
    world.one.write_bytes("b", b"3" * 6000)
    world.one.discard()
    for number in range(3):
        world.two.write_bytes("c", bytes([number]) * 10)
        world.two.commit()
    world.two.close()
    assert len(world.packs()) == 1
    assert world.contents() == {"a": b"2" * 5000, "c": b"\2" * 10}


def test_a_file_stays_one_process_s_until_its_commit(world):
    """Though that has closed it, and the log has what it wrote: the places that it wrote to are free for nobody."""
    world.two.discard()
    world.one.write_bytes("big", b"b" * 200_000)
    world.one.close()
    one = world.open(log=True)
    for path in ("a", "big"):
        with one.open(path, "r+b") as file:
            file.write(b"one")
        one.fsync(one.stat(path).inode)
        assert one.read_bytes(path)[:3] == b"one"  # opened and closed once more
    two = world.open()
    for path in ("a", "big"):
        with two.open(path, "r+b") as file, pytest.raises(LockedError):
            file.write(b"two")
    one.close()
    for path in ("a", "big"):
        with two.open(path, "r+b") as file:
            file.write_at(3, b"two")
    two.close()
    assert {path: content[:7] for path, content in world.contents().items()} == {"a": b"onetwo1", "big": b"onetwob"}
