"""Mounts that nothing can change: which requests reach us, and that a program finds what it finds in others."""

import errno
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from strongroom import vault
from strongroom.enclave.drop import overlay, unmount
from strongroom.errors import TamperedError
from strongroom.sealed import NO_FRESHNESS
from strongroom.shield.files import MountedVault, mount
from strongroom.storage import MemoryDirectory

pytest.importorskip("pyfuse3")

from strongroom.shield import _direct, _fuse

KEY = bytes(range(32))
LARGE = {f"l{number}": os.urandom(600_000) for number in range(5)}
MANY = [f"{number:04}-{'n' * 100}" for number in range(1500)]
OPEN, READ, RELEASE = 14, 15, 18


@pytest.fixture
def directory() -> MemoryDirectory:
    made = MemoryDirectory()
    with vault.open(made, "x", key=KEY, anchor=NO_FRESHNESS) as opened:
        for path, content in LARGE.items():
            opened.write_bytes(path, content)
        opened.write_bytes("d/small", b"small")
        opened.symlink("../l0", "d/link")
        opened.write_bytes("old", b"before time")
        opened.change(opened.stat("old").inode, mtime=-5_000_000_001)
    return made


@pytest.fixture
def opened(directory: MemoryDirectory) -> Iterator[vault.Vault]:
    with vault.open(directory, key=KEY, anchor=NO_FRESHNESS) as made:
        yield made


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The kinds of requests that came, from the mount on."""
    kinds: list[int] = []
    real = _direct.Direct._answer

    def noting(self: _direct.Direct, fd: int, request: memoryview) -> None:
        kinds.append(_direct._ASKED.unpack_from(request)[1])
        real(self, fd, request)

    monkeypatch.setattr(_direct.Direct, "_answer", noting)
    return kinds


@pytest.fixture
def mounted(fuse: None, asked: list[int], opened: vault.Vault, tmp_path: Path) -> Iterator[MountedVault]:
    with mount(opened, tmp_path) as made:
        yield made


def read(path: Path, *flags: int) -> bytes:
    """All of it, as a program does that asks for nothing else."""
    fd = os.open(path, os.O_RDONLY | sum(flags))
    try:
        return b"".join(iter(lambda: os.read(fd, 1 << 20), b""))
    finally:
        os.close(fd)


def test_what_the_kernel_has_is_opened_and_read_without_a_request(mounted: MountedVault, asked: list[int]) -> None:
    for path, content in LARGE.items():
        assert read(mounted.path / path) == content
    assert asked.count(OPEN) == 1  # which says that no other is needed
    assert RELEASE not in asked
    before = list(asked)
    for path, content in LARGE.items():
        assert read(mounted.path / path) == content
        (mounted.path / path).stat()
    assert asked == before


def test_what_is_damaged_can_be_opened_and_not_read(
    mounted: MountedVault, opened: vault.Vault, directory: MemoryDirectory
) -> None:
    body = opened.inode(opened.stat("l1").inode).body
    directory.files[body.file.hex()].data[400_000] ^= 1
    assert read(mounted.path / "l0") == LARGE["l0"]
    fd = os.open(mounted.path / "l1", os.O_RDONLY)
    for _ in range(2):
        with pytest.raises(OSError) as caught:
            os.pread(fd, 4096, 400_000)
        assert caught.value.errno == errno.EIO
    os.close(fd)
    assert isinstance(mounted.failure, TamperedError)
    assert "l1" in str(mounted.failure)
    assert read(mounted.path / "l2") == LARGE["l2"]


def test_more_files_are_read_at_once_than_are_held(mounted: MountedVault, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_fuse, "_HELD", 2)
    open_files = {path: os.open(mounted.path / path, os.O_RDONLY | os.O_DIRECT) for path in LARGE}
    buffer = mmap.mmap(-1, 8192)  # aligned, as O_DIRECT may want it
    for offset in (0, 400_000 // 4096 * 4096):
        for path, fd in open_files.items():
            assert os.preadv(fd, [buffer], offset) == 8192
            assert buffer[:] == LARGE[path][offset : offset + 8192]
    for fd in open_files.values():
        os.close(fd)
    assert mounted.failure is None


def test_nothing_is_held_after_the_end(fuse: None, opened: vault.Vault, tmp_path: Path) -> None:
    with mount(opened, tmp_path):
        for path in LARGE:
            read(tmp_path / path)
        assert opened._files.nodes
    assert not opened._files.nodes


def test_what_the_kernel_forgets_is_held_no_longer(opened: vault.Vault) -> None:
    answers = _fuse.VaultOperations({"": opened}, pytest.fail)
    ino = _direct._run(answers.lookup(1, b"l0", _direct._ANYBODY)).st_ino
    assert bytes(_direct._run(answers.read_inode(ino, 0, 100))) == LARGE["l0"][:100]
    assert opened._files.nodes
    _direct._run(answers.forget([(ino, 1)]))
    assert not opened._files.nodes


def test_names_links_and_times(mounted: MountedVault) -> None:
    assert sorted(entry.name for entry in mounted.path.iterdir()) == ["d", *sorted(LARGE), "old"]
    assert (mounted.path / "d/link").readlink() == Path("../l0")
    assert (mounted.path / "d/link").read_bytes() == LARGE["l0"]
    assert (mounted.path / "old").stat().st_mtime_ns == -5_000_000_001
    with pytest.raises(FileNotFoundError):
        (mounted.path / "none").stat()


def test_a_directory_of_many_names_is_whole_each_time(fuse: None, tmp_path: Path) -> None:
    made = MemoryDirectory()
    with vault.open(made, "x", key=KEY, anchor=NO_FRESHNESS) as opened:
        for name in MANY:
            opened.write_bytes(name, b"")
    with vault.open(made, key=KEY, anchor=NO_FRESHNESS) as opened, mount(opened, tmp_path):
        fd = os.open(tmp_path, os.O_RDONLY)
        for _ in range(2):  # by the same descriptor: from its beginning again
            assert sorted(entry.name for entry in os.scandir(fd)) == MANY
        os.close(fd)
        assert sum(entry.is_file() for entry in os.scandir(tmp_path)) == len(MANY)


def test_what_a_mount_can_do_without_is_no_error(mounted: MountedVault) -> None:
    fd = os.open(mounted.path / "l0", os.O_RDONLY)
    os.fsync(fd)
    assert not os.isatty(fd)
    assert os.lseek(fd, 10, os.SEEK_DATA) == 10
    assert os.access(mounted.path / "l0", os.R_OK)
    assert not os.access(mounted.path / "l0", os.W_OK)
    os.close(fd)


def test_the_kernel_may_want_a_larger_buffer(
    fuse: None, opened: vault.Vault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_direct, "_LEAST_BUFFER", 1 << 18)
    with mount(opened, tmp_path):
        assert read(tmp_path / "l3") == LARGE["l3"]


def test_other_programs_read_at_the_same_time(mounted: MountedVault) -> None:
    code = "import sys; print(sum(map(sum, (open(path, 'rb').read() for path in sys.argv[1:]))))"
    command = ["env", sys.executable, "-Sc", code, *(str(mounted.path / path) for path in LARGE)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(3)]
    wanted = sum(map(sum, LARGE.values()))
    assert [int(process.communicate()[0]) for process in running] == [wanted] * 3


def test_an_overlay_asks_for_nothing_more_and_passes_errors_on(
    mounted: MountedVault,
    asked: list[int],
    opened: vault.Vault,
    directory: MemoryDirectory,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    place, empty = tmp_path_factory.mktemp("a,b:c"), tmp_path_factory.mktemp("empty")
    try:
        overlay(str(mounted.path), str(empty), str(place))
    except OSError as error:
        pytest.skip(f"no overlays here: {error.strerror}")
    try:
        for path, content in LARGE.items():
            if path != "l4":
                assert (place / path).read_bytes() == content
        before = list(asked)
        for path, content in LARGE.items():
            if path != "l4":
                assert (place / path).read_bytes() == content  # asks whether it is a terminal, too
        assert asked == before
        with pytest.raises(OSError, match="Read-only") as caught:
            (place / "new").write_bytes(b"")
        assert caught.value.errno == errno.EROFS
        body = opened.inode(opened.stat("l4").inode).body
        directory.files[body.file.hex()].data[400_000] ^= 1
        with pytest.raises(OSError) as caught:
            (place / "l4").read_bytes()
        assert caught.value.errno == errno.EIO
        assert isinstance(mounted.failure, TamperedError)
    finally:
        unmount(str(place))
