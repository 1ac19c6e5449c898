"""Files and directories, with and without the calls that only some platforms have."""

import contextlib
import os
import stat

import pytest

from strongroom.errors import LockedError
from strongroom.storage import (
    Directory,
    FileStorage,
    LocalDirectory,
    MemoryDirectory,
    MemoryStorage,
    MmapStorage,
    Storage,
)
from strongroom.testing.storage import FaultyDirectory, FaultyStorage


@pytest.fixture(params=["file", "file without preadv", "mapped", "mapped without fallocate", "memory", "faulty"])
def storage(request, tmp_path, monkeypatch):
    if request.param == "memory":
        return MemoryStorage()
    if request.param == "faulty":
        return FaultyStorage()
    if "fallocate" in request.param:
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
    if "preadv" in request.param:  # Windows; some systems lack only some of them
        for name in ("preadv", "pwrite", "fdatasync"):
            monkeypatch.delattr(os, name, raising=False)
    file = (MmapStorage if "mapped" in request.param else FileStorage)(tmp_path / "f", "x")
    request.addfinalizer(file.close)
    return file


def test_bytes_at_offsets(storage):
    assert isinstance(storage, Storage)
    buffer = bytearray(8)
    assert storage.read_into(0, buffer) == 0
    storage.write_at(4, b"abcd")
    storage.sync()
    assert storage.size() == 8
    assert storage.read_into(2, buffer) == 6
    assert buffer == b"\0\0abcd\0\0"
    assert storage.read_into(100, buffer) == 0
    storage.resize(5)
    storage.resize(7)
    assert storage.read_into(0, buffer) == 7
    assert buffer[:7] == b"\0\0\0\0a\0\0"
    storage.write_at(0, memoryview(b"xy"))
    storage.close()
    storage.close()


@pytest.fixture(params=["local", "mapped", "memory", "faulty"])
def directory(request, tmp_path) -> Directory:
    return {
        "local": LocalDirectory(tmp_path),
        "mapped": LocalDirectory(tmp_path, mapped=True),
        "memory": MemoryDirectory(),
        "faulty": FaultyDirectory(),
    }[request.param]


def test_names(directory):
    with pytest.raises(FileNotFoundError):
        directory.open("a", "r")
    with contextlib.closing(directory.open("a", "x")) as file:
        file.write_at(0, b"1")
    with pytest.raises(FileExistsError):
        directory.open("a", "x")
    directory.open("b", "x").close()
    assert directory.list() == ["a", "b"]
    directory.rename("a", "b")
    directory.sync()
    assert directory.list() == ["b"]
    with contextlib.closing(directory.open("b", "r")) as file:
        assert file.size() == 1
    directory.unlink("b")
    for gone in (lambda: directory.unlink("b"), lambda: directory.rename("b", "c"), lambda: directory.open("b", "r+")):
        with pytest.raises(FileNotFoundError):
            gone()


@pytest.mark.skipif(os.name != "posix", reason="Windows locks writers only")
@pytest.mark.parametrize("kind", ["local", "mapped", "memory"])
def test_one_writer_or_many_readers(kind, tmp_path):
    directory = MemoryDirectory() if kind == "memory" else LocalDirectory(tmp_path, mapped=kind == "mapped")
    with contextlib.closing(directory.open("f", "x")):
        for mode in ("r", "r+"):
            with pytest.raises(LockedError, match="by another opener"):
                directory.open("f", mode)
    readers = [directory.open("f", "r") for _ in range(2)]
    with pytest.raises(LockedError):
        directory.open("f", "r+")
    for reader in readers:
        reader.close()
    directory.open("f", "r+").close()


@pytest.mark.skipif(os.name != "posix", reason="needs permission bits")
def test_new_files_are_private_and_not_inherited(tmp_path):
    with contextlib.closing(FileStorage(tmp_path / "f", "x")) as file:
        assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o600
        assert not os.get_inheritable(file._fd)


def test_memory_grows_without_copying_itself_each_time():
    file, sizes, step = MemoryStorage(), set(), bytes(4096)
    for i in range(2000):
        file.write_at(i * len(step), step)
        assert len(file.data) == file.size() == (i + 1) * len(step)
        sizes.add(file.data.__alloc__())
    assert len(sizes) < 100
