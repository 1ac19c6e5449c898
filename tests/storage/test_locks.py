"""Byte locks: of open file descriptions, and in memory."""

import contextlib
import errno
import os
import subprocess
import sys
import threading

import pytest

from strongroom.errors import LockedError
from strongroom.storage import LOCKS_AT, OPEN_BYTE, LocalDirectory, MemoryDirectory, MemoryStorage, local
from strongroom.storage import locks as locks_module
from strongroom.testing.storage import FaultyDirectory

needs_ofd = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has locks of open file descriptions")


@pytest.fixture(params=[pytest.param("local", marks=needs_ofd), "memory", "faulty"])
def directory(request, tmp_path):
    return {"local": LocalDirectory(tmp_path), "memory": MemoryDirectory(), "faulty": FaultyDirectory()}[request.param]


@pytest.fixture
def openers(directory):
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(contextlib.closing(directory.locks("pins"))) for _ in range(3)]


def test_shared_and_exclusive(openers):
    a, b, c = openers
    assert a.acquire(7, exclusive=False)
    assert b.acquire(7, exclusive=False)
    assert not c.acquire(7, exclusive=True)
    assert c.acquire(8, exclusive=True)
    assert not a.acquire(8, exclusive=False)
    b.release(7)
    b.release(7)
    assert a.acquire(7, exclusive=True)
    assert not b.acquire(7, exclusive=False)
    assert a.acquire(7, exclusive=False)
    assert b.acquire(7, exclusive=False)
    assert not a.acquire(7, exclusive=True)
    assert b.holders(7, 7) == [7]  # a still holds the lock that it could not change


def test_holders_are_other_openers_in_the_range(openers):
    a, b, c = openers
    pinned = [0, 3, 4, 5, 90, 10**12, LOCKS_AT + 2]
    for byte in pinned:
        assert a.acquire(byte, exclusive=byte == 90)
    assert c.acquire(4, exclusive=False)
    assert c.acquire(91, exclusive=False)
    assert a.holders(0, 1 << 62) == [4, 91]
    assert b.holders(0, LOCKS_AT + 10) == sorted({*pinned, 91})
    assert b.holders(4, 90) == [4, 5, 90]
    assert b.holders(6, 89) == []
    assert b.holders(5, 4) == []


def test_closing_gives_back_every_lock(directory, openers):
    a, b, _ = openers
    a.acquire(1, exclusive=True)
    a.acquire(2, exclusive=False)
    a.close()
    a.close()
    assert b.holders(0, 9) == []
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        a.acquire(1, exclusive=True)
    directory.sync()
    assert directory.list() == ["pins"]


def test_waiting_ends_when_the_other_lets_go(openers):
    a, b, _ = openers
    a.acquire(1, exclusive=True)
    got = []
    waiter = threading.Thread(target=lambda: got.append(b.acquire(1, exclusive=True, wait=True)))
    waiter.start()
    a.release(1)
    waiter.join(timeout=30)
    assert got == [True]
    assert a.holders(1, 1) == [1]


def test_a_file_has_locks_of_its_own(directory):
    directory.open("f", "x").close()
    with (
        contextlib.closing(directory.open("f", "r+", shared=True)) as writer,
        contextlib.closing(directory.open("f", "r", shared=True)) as reader,
    ):
        assert writer.locks.acquire(LOCKS_AT, exclusive=True)
        assert not reader.locks.acquire(LOCKS_AT, exclusive=False)
        assert reader.locks.acquire(LOCKS_AT + 1, exclusive=False)
        assert writer.locks.holders(LOCKS_AT, OPEN_BYTE) == [LOCKS_AT + 1]
        writer.write_at(0, b"new")
        assert reader.size() == 3
    with contextlib.closing(directory.open("f", "r+", shared=True)) as writer:
        assert writer.locks.holders(LOCKS_AT, OPEN_BYTE) == []


def test_a_plain_opening_excludes_until_its_locks_are_closed(tmp_path):
    for directory in (LocalDirectory(tmp_path), MemoryDirectory()):
        directory.open("f", "x").close()
        with contextlib.closing(directory.open("f", "r+")):
            directory.open("f", "r", shared=True).close()
            with pytest.raises(LockedError):
                directory.open("f", "r")
        directory.open("f", "r+").close()


def test_a_storage_alone_has_no_other_opener():
    assert MemoryStorage().locks is None


@needs_ofd
def test_a_killed_process_leaves_no_lock(tmp_path):
    code = """if True:
        import sys
        from strongroom.storage import LocalDirectory
        locks = LocalDirectory(sys.argv[1]).locks("pins")
        assert locks.acquire(5, exclusive=True)
        print("held", flush=True)
        sys.stdin.read()
    """
    command = [sys.executable, "-c", code, str(tmp_path)]
    with (
        contextlib.closing(LocalDirectory(tmp_path).locks("pins")) as locks,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process,
    ):
        assert process.stdout.readline() == b"held\n"
        assert locks.holders(0, 9) == [5]
        process.kill()
        process.wait()
        assert locks.holders(0, 9) == []
        assert (tmp_path / "pins").stat().st_mode & 0o777 == 0o600


@needs_ofd
def test_a_forked_child_leaves_its_parents_locks_alone(tmp_path):
    code = """if True:
        import os, sys
        from strongroom.errors import LockedError
        from strongroom.storage import LOCKS_AT, LocalDirectory
        directory = LocalDirectory(sys.argv[1])
        pins, file, other = directory.locks("pins"), directory.open("f", "x"), directory.locks("pins")
        pins.acquire(5, exclusive=False)
        read, write = os.pipe()
        child = os.fork()
        if not child:
            pins.release(5)
            try:
                pins.acquire(6, exclusive=False)
            except LockedError:
                os.close(write)
                os.read(read, 1)  # until the parent has looked
                os._exit(7)
            os._exit(1)
        os.close(read)
        grandchild = os.fork()
        if not grandchild:
            pins.close()
            file.close()
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1]) == 7
        assert other.holders(0, 9) == [5]
        try:
            directory.open("f", "r+")
        except LockedError:
            pins.close()
            file.close()
            assert other.holders(0, 9) == []  # though the child lives
            directory.open("f", "r+").close()
        else:
            sys.exit("the child released it")
        os.close(write)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    """
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_other_platforms_get_no_lock_file(tmp_path, monkeypatch):
    monkeypatch.setattr(local.sys, "platform", "darwin")
    assert LocalDirectory(tmp_path).locks("pins") is None
    assert LocalDirectory(tmp_path).list() == []


@needs_ofd
def test_a_range_that_nobody_honest_locks(tmp_path):
    fcntl = pytest.importorskip("fcntl")
    directory = LocalDirectory(tmp_path)
    with (
        contextlib.closing(directory.locks("pins")) as locks,
        (tmp_path / "pins").open("rb+") as other,
    ):
        whole = locks_module._FLOCK.pack(fcntl.F_WRLCK, 0, 0, 0, 0)
        fcntl.fcntl(other.fileno(), fcntl.F_OFD_SETLK, whole)
        assert locks.holders(0, 9) == list(range(10))
        with pytest.raises(LockedError, match="65536"):
            locks.holders(0, 1 << 40)


@needs_ofd
def test_a_file_that_can_be_read_only_gives_shared_locks(tmp_path, monkeypatch):
    LocalDirectory(tmp_path).locks("pins").close()
    real = os.open

    def read_only(path, flags, *rest):
        if flags & os.O_RDWR:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return real(path, flags, *rest)

    monkeypatch.setattr(local.os, "open", read_only)
    with contextlib.closing(LocalDirectory(tmp_path).locks("pins")) as locks:
        assert locks.acquire(1, exclusive=False)
        with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
            locks.acquire(2, exclusive=True)


@pytest.mark.skipif(os.name != "posix", reason="needs flock")
def test_without_such_locks_whole_files_exclude(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "ofd_locks", lambda fd, *, owned: None)
    directory = LocalDirectory(tmp_path)
    assert directory.locks("pins") is None
    with contextlib.closing(directory.open("f", "x")) as file:
        assert file.locks is None
        with pytest.raises(LockedError):
            directory.open("f", "r")
        directory.open("f", "r", shared=True).close()
