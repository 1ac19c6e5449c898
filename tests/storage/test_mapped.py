"""Mapped files: what other openers do to them, and full disks."""

import contextlib
import errno
import os
import threading

import pytest

from strongroom.errors import LockedError
from strongroom.sealed import NO_FRESHNESS, open_sealed
from strongroom.storage import FileStorage, LocalDirectory, MmapStorage


@pytest.fixture
def path(tmp_path):
    return tmp_path / "f"


def content(storage) -> bytes:
    buffer = bytearray(storage.size() + 10)
    return bytes(buffer[: storage.read_into(0, buffer)])


def test_another_opener_grows_and_cuts_the_file(path):
    path.write_bytes(b"x" * 10000)
    with contextlib.closing(MmapStorage(path, "r+")) as file:
        path.write_bytes(b"y" * 20000)
        assert content(file) == b"y" * 20000
        os.truncate(path, 5)
        assert content(file) == b"y" * 5
        assert file.read_into(6, bytearray(10)) == 0
        file.write_at(7, b"z")
        assert path.read_bytes() == b"yyyyy\0\0z"
        os.truncate(path, 0)
        assert content(file) == b""
        file.sync()


def test_a_reader_follows_a_writer(path):
    path.write_bytes(b"")
    with (
        contextlib.closing(MmapStorage(path, "r", shared=True)) as reader,
        contextlib.closing(FileStorage(path, "r+", shared=True)) as writer,
    ):
        assert content(reader) == b""
        writer.write_at(5000, b"a")
        assert content(reader) == bytes(5000) + b"a"
        reader.sync()
        with pytest.raises(TypeError):
            reader.write_at(0, b"no")


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="needs posix_fallocate")
def test_a_full_disk_is_an_error_here_and_changes_nothing(path, monkeypatch):
    path.write_bytes(b"old")

    def full(fd, offset, size):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with contextlib.closing(MmapStorage(path, "r+")) as file:
        monkeypatch.setattr(os, "posix_fallocate", full)
        for grow in (lambda: file.write_at(1, b"longer"), lambda: file.resize(4)):
            with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
                grow()
        file.write_at(0, b"new")
        assert content(file) == b"new"
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        MmapStorage(path, "r+")
    FileStorage(path, "r+").close()  # the failed opening left no lock


def test_a_file_system_that_cannot_reserve(path, monkeypatch):
    def unsupported(fd, offset, size):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "posix_fallocate", unsupported, raising=False)
    with contextlib.closing(MmapStorage(path, "x")) as file:
        file.write_at(100_000, b"end")
        file.resize(200_000)
        assert content(file) == bytes(100_000) + b"end" + bytes(99_997)


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="needs posix_fallocate")
def test_opening_to_write_fills_holes(path):
    with path.open("wb") as file:
        file.truncate(1 << 20)
    MmapStorage(path, "r+").close()
    assert path.stat().st_blocks * 512 >= 1 << 20


def test_locks_are_those_of_the_file(path):
    with contextlib.closing(MmapStorage(path, "x")) as file, pytest.raises(LockedError):
        assert (file.locks is None) == (FileStorage(path, "r", shared=True).locks is None)
        FileStorage(path, "r+")
    assert repr(file) == f"MmapStorage({str(path)!r})"


def test_readers_and_a_growing_writer_in_threads(path):
    with contextlib.closing(MmapStorage(path, "x")) as file:
        torn = []

        def read() -> None:
            buffer = bytearray(4096)
            for i in range(200):
                count = file.read_into(i * 4096, buffer)
                torn.extend(b for b in set(buffer[:count]) if b != 7)

        threads = [threading.Thread(target=read) for _ in range(2)]
        for thread in threads:
            thread.start()
        for i in range(200):
            file.write_at(i * 4096, b"\x07" * 4096)
        for thread in threads:
            thread.join()
        assert not torn
        assert file.size() == 200 * 4096


def test_a_sealed_file_on_it(tmp_path):
    directory, key, text = LocalDirectory(tmp_path, mapped=True), bytes(32), os.urandom(100_000)
    with open_sealed(directory.open("f", "x"), "x", key=key, anchor=NO_FRESHNESS, block_size=4096) as file:
        file.write(text)
    with open_sealed(directory.open("f", "r"), "r", key=key, anchor=NO_FRESHNESS) as file:
        assert file.read() == text
