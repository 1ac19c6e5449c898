"""Several processes with one vault: openings of one directory exclude each other just as processes do."""

import os
import subprocess
import sys
import threading

import pytest

from strongroom import vault
from strongroom.errors import ConflictError, LockedError
from strongroom.sealed import MemoryAnchor
from strongroom.storage import LocalDirectory, MemoryDirectory
from strongroom.vault.vault import Vault

KEY = bytes(range(32))
BIG = os.urandom(300_000)


class World:
    def __init__(self) -> None:
        self.directory, self.anchor = MemoryDirectory(), MemoryAnchor()
        with self.open("x") as made:
            made.write_bytes("big", BIG)
            made.write_bytes("small", b"s" * 5000)
            made.write_bytes("folder/file", b"f")

    def open(self, mode: str = "r+", **more) -> Vault:
        return Vault(self.directory, mode, KEY, self.anchor, what="vault", **more)

    def files(self) -> dict[str, bytes]:
        with self.open("r") as opened:
            opened.verify()
            return {path: opened.read_bytes(path) for path in opened.files()}


@pytest.fixture
def world() -> World:
    return World()


def test_commits_of_different_files_add_up(world):
    before = world.files()
    with world.open() as one, world.open() as two:
        one.write_bytes("one", b"1" * 100_000)
        two.write_bytes("two", b"2" * 5000)
        two.rename("small", "folder/small")
        one.commit()
        two.commit()
        assert two.read_bytes("one") == b"1" * 100_000
        one.write_bytes("three", b"3")
        one.commit()
        assert one.read_bytes("folder/small") == b"s" * 5000
    expected = before | {"one": b"1" * 100_000, "two": b"2" * 5000, "three": b"3", "folder/small": before["small"]}
    del expected["small"]
    assert world.files() == expected


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (lambda v: v.write_bytes("small", b"1"), lambda v: v.write_bytes("small", b"2")),
        (lambda v: v.write_bytes("new", b"1"), lambda v: v.write_bytes("new", b"2")),
        (lambda v: v.remove("small"), lambda v: v.rename("small", "elsewhere")),
        (lambda v: v.chmod("small", 0o600), lambda v: v.chmod("small", 0o640)),
        (lambda v: (v.remove("folder/file"), v.remove_dir("folder")), lambda v: v.write_bytes("folder/new", b"")),
        (lambda v: v.write_bytes("folder/new", b""), lambda v: v.remove_dir("folder", recursive=True)),
        (lambda v: v.rename("small", "other"), lambda v: v.remove("small")),
    ],
)
def test_the_second_of_two_that_meet_is_refused(world, first, second):
    one, two = world.open(), world.open()
    first(one)
    second(two)
    one.commit()
    after = world.files()
    with pytest.raises(ConflictError, match="another process committed"):
        two.commit()
    two.discard()
    one.close()
    assert world.files() == after


def test_directories_moved_into_each_other(world):
    with world.open() as opened:
        opened.mkdir("a")
        opened.mkdir("b")
    one, two = world.open(), world.open()
    one.rename("a", "b/a")
    two.rename("b", "a/b")
    one.commit()
    with pytest.raises(ConflictError):
        two.commit()
    two.discard()
    one.discard()


def test_one_writer_of_a_file(world):
    with world.open() as one, world.open() as two:
        with one.open("big", "r+b") as file:
            file.write(b"one")
            with two.open("big", "r+b") as other, pytest.raises(LockedError, match="another process is writing"):
                other.write(b"two")
        one.commit()
        with two.open("big", "r+b") as other:  # free again, and from the newest on
            other.seek(3)
            other.write(b"two")
    assert world.files()["big"] == b"onetwo" + BIG[6:]


def test_a_reader_keeps_its_version_while_others_commit(world):
    with world.open("r") as reader, reader.open("big") as file:
        head = file.read(10)
        for number in range(25):
            with world.open() as writer, writer.open("big", "r+b") as changed:
                changed.write(os.urandom(300_000))
            if number % 5 == 0:
                with world.open() as writer:
                    writer.write_bytes("small", os.urandom(6000))
        file.seek(0)
        assert file.read() == BIG
        assert head == BIG[:10]
        assert reader.read_bytes("small") == b"s" * 5000
        assert reader.verify() == 3
    assert world.files()["big"] != BIG


def test_what_no_reader_needs_is_given_back(world):
    for _ in range(6):
        with world.open() as writer:
            writer.write_bytes("big", os.urandom(300_000))
            writer.write_bytes("small", os.urandom(5000))
    sizes = {name: len(file.data) for name, file in world.directory.files.items() if name != "meta"}
    assert sum(sizes.values()) < 3 * 393_216


def test_fsyncs_of_a_dead_process_are_taken_in(world):
    dead = world.open(log=True)
    dead.write_bytes("big2", BIG)
    with dead.open("small", "r+b") as file:
        file.write(b"logged")
    dead.fsync(dead.stat("small").inode)
    dead.write_bytes("never", b"synced")
    dead.discard()
    found = world.files()
    assert found["small"] == b"logged" + b"s" * 4994
    assert found["big2"] == BIG  # it came under its name before that fsync, with its content
    assert "never" not in found


def test_fsyncs_of_a_dead_process_come_before_what_is_committed_after_it(world):
    """Who has changes of its own when the owner of the log dies takes the log in first, and then conflicts."""
    dead, living, other = world.open(log=True), world.open(), world.open()
    living.write_bytes("small", b"living")
    other.write_bytes("other", b"o" * 100_000)
    dead.write_bytes("small", b"d" * 6000)
    dead.write_bytes("big2", BIG)
    dead.fsync(dead.stat("small").inode)
    dead.discard()
    other.commit()
    with pytest.raises(ConflictError):
        living.commit()
    living.discard()
    other.close()
    found = world.files()
    assert found["small"] == b"d" * 6000
    assert found["other"] == b"o" * 100_000


def test_the_log_has_one_owner(world):
    with world.open(log=True):
        with pytest.raises(LockedError, match="is mounted for writing already"):
            world.open(log=True)
        with world.open("r") as reader:
            assert reader.read_bytes("small") == b"s" * 5000


def test_another_commit_waits_for_the_owner_of_the_log(world):
    with world.open(log=True) as owner:
        with owner.open("small", "r+b") as file:
            file.write(b"logged")
        owner.fsync(owner.stat("small").inode)
        asked = threading.Event()

        def serve() -> None:
            while not owner.is_wanted():
                asked.wait(0.001)
            owner.commit()

        server = threading.Thread(target=serve)
        server.start()
        with world.open() as other:
            other.write_bytes("other", b"o")
        server.join()
        assert owner.is_outdated()
        with owner.open("small", "r+b") as file:
            file.write(b"L")
        owner.fsync(owner.stat("small").inode)
        assert owner.read_bytes("other") == b"o"
    found = world.files()
    assert found["small"][:6] == b"Logged"
    assert found["other"] == b"o"


def test_orphans_of_a_dead_process_go(world):
    dead = world.open()
    file = dead.open("big")
    dead.remove("big")
    dead.commit()
    assert file.read(10) == BIG[:10]
    dead.discard()
    with world.open() as opened:
        opened.write_bytes("x", b"")
    with world.open() as opened:
        assert opened._state.orphans() == []
        opened.write_bytes("y", b"")
    assert sorted(world.files()) == ["folder/file", "small", "x", "y"]


def test_real_processes(tmp_path):
    """Four processes commit eight times each, all of them to one directory and one counter file of their own."""
    path = tmp_path / "v"
    from strongroom.sealed import FileAnchor

    anchor = FileAnchor(tmp_path / "anchor")
    with vault.open(path, "x", key=KEY, anchor=anchor) as opened:
        opened.mkdir("shared")
    script = (
        "import sys\n"
        "from strongroom import vault\n"
        "from strongroom.sealed import FileAnchor\n"
        "me = sys.argv[2]\n"
        "with vault.open(sys.argv[1], 'r+', key=bytes(range(32)), anchor=FileAnchor(sys.argv[3])) as opened:\n"
        "    for number in range(8):\n"
        "        opened.write_bytes(f'shared/{me}-{number}', bytes([number]) * 70_000)\n"
        "        opened.write_bytes(f'{me}', bytes([number]) * 3000)\n"
        "        opened.commit()\n"
    )
    children = [
        subprocess.Popen([sys.executable, "-c", script, str(path), str(number), str(tmp_path / "anchor")])
        for number in range(4)
    ]
    assert [child.wait() for child in children] == [0, 0, 0, 0]
    with vault.open(path, key=KEY, anchor=anchor) as opened:
        assert len(opened.listdir("shared")) == 32
        assert all(opened.read_bytes(str(number)) == b"\7" * 3000 for number in range(4))
        assert opened.verify() == 36
    assert len(LocalDirectory(path).list()) < 50
