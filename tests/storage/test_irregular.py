"""What is no regular file is refused where one is wanted: whoever holds the disk may have put it there."""

import os
import socket
import stat
from pathlib import Path

import pytest

from strongroom import vault
from strongroom.errors import FormatError, StrongroomError
from strongroom.sealed import NO_FRESHNESS, FileAnchor, MemoryAnchor, Root
from strongroom.storage import FileStorage, LocalDirectory, MmapStorage

pytestmark = pytest.mark.skipif(os.name != "posix", reason="links, pipes and sockets of POSIX")

KEY = bytes(range(32))
PRECIOUS = b"somebody's own file"


@pytest.fixture(params=[FileStorage, MmapStorage], ids=["file", "mapped"])
def kind(request):
    return request.param


@pytest.fixture
def precious(tmp_path):
    path = tmp_path / "precious"
    path.write_bytes(PRECIOUS)
    yield path
    assert path.read_bytes() == PRECIOUS


@pytest.mark.parametrize("mode", ["r", "r+"])
def test_a_link_is_not_followed(kind, mode, precious, tmp_path):
    (tmp_path / "f").symlink_to(precious)
    with pytest.raises(FormatError, match="f: is a symbolic link, wanted a regular file"):
        kind(tmp_path / "f", mode)


@pytest.mark.parametrize("mode", ["r", "r+", "x"])
def test_nothing_is_made_where_a_link_leads(kind, mode, tmp_path):
    (tmp_path / "f").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError if mode == "x" else FormatError):
        kind(tmp_path / "f", mode)
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("mode", ["r", "r+"])
def test_a_pipe_is_not_waited_for(kind, mode, tmp_path):
    os.mkfifo(tmp_path / "f")
    with pytest.raises(FormatError, match="is a pipe, wanted"):
        kind(tmp_path / "f", mode)


@pytest.mark.parametrize("mode", ["r", "r+"])
def test_a_device_or_socket(kind, mode, tmp_path):
    with pytest.raises(FormatError, match="is a device, wanted"):
        kind("/dev/null", mode)
    with socket.socket(socket.AF_UNIX) as server:
        home = Path.cwd()
        os.chdir(tmp_path)  # names of sockets are short
        try:
            server.bind("f")
        finally:
            os.chdir(home)
        with pytest.raises(FormatError, match="is a socket or device, wanted"):
            kind(tmp_path / "f", mode)


@pytest.mark.parametrize("mode", ["r", "r+"])
def test_a_directory(kind, mode, tmp_path):
    with pytest.raises(IsADirectoryError):
        kind(tmp_path, mode)


def test_a_refusal_keeps_nothing_open(tmp_path):
    if not Path("/dev/fd").is_dir():
        pytest.skip("needs /dev/fd")
    os.mkfifo(tmp_path / "f")
    before = len(os.listdir("/dev/fd"))  # noqa: PTH208
    for _ in range(5):
        with pytest.raises(FormatError):
            FileStorage(tmp_path / "f")
    assert len(os.listdir("/dev/fd")) == before  # noqa: PTH208


def test_files_that_are_opened_wait_as_ever(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "d")
    file = FileStorage(tmp_path / "link" / "f", "x")  # a directory may be reached through links
    assert os.get_blocking(file.fileno())
    file.close()


def test_locks_follow_no_link(tmp_path, precious):
    directory = LocalDirectory(tmp_path)
    if (locks := directory.locks("honest")) is None:
        pytest.skip("needs byte locks")
    locks.close()
    (tmp_path / "f").symlink_to(precious)
    (tmp_path / "g").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(tmp_path / "h")
    for name in "fgh":
        with pytest.raises(FormatError):
            directory.locks(name)
    assert not (tmp_path / "elsewhere").exists()


# Whole vaults.


@pytest.fixture
def place(tmp_path):
    with vault.open(tmp_path / "v", "x", key=KEY, anchor=NO_FRESHNESS) as opened:
        opened.write_bytes("big", os.urandom(300_000))
        opened.write_bytes("small", bytes(5000))
    return tmp_path / "v"


def use(place):
    """Read and write all of it."""
    with vault.open(place, "r+", key=KEY, anchor=MemoryAnchor()) as opened:
        for name in opened.files():
            opened.read_bytes(name)
        with opened.open("big", "r+b") as file:
            file.write(b"changed")
            file.sync()


@pytest.mark.parametrize("what", ["link", "pipe"])
@pytest.mark.parametrize("which", ["meta", "log", "data"])
def test_a_vault_with_links_and_pipes_in_it(place, precious, which, what):
    for path in [p for p in place.iterdir() if p.name == which or (which == "data" and len(p.name) == 32)]:
        path.unlink()
        path.symlink_to(precious) if what == "link" else os.mkfifo(path)
    if which == "log" and not (place / "log").exists():
        (place / "log").symlink_to(precious) if what == "link" else os.mkfifo(place / "log")
    with pytest.raises(StrongroomError, match="wanted a regular file"):
        use(place)


@pytest.mark.parametrize("suffix", ["lock", "new", "history"])
def test_an_anchor_file_with_links_beside_it(tmp_path, precious, suffix):
    anchor = FileAnchor(tmp_path / "a")
    root = Root(1, bytes(32))
    anchor.advance(None, root)
    beside = tmp_path / f"a.{suffix}"
    beside.unlink(missing_ok=True)
    beside.symlink_to(precious)
    if suffix == "new":  # what a crash left is replaced
        anchor.advance(root, Root(2, bytes(32)))
        assert not beside.is_symlink()
    else:
        with pytest.raises(FormatError, match="is a symbolic link"):
            anchor.restore(root, reason="test")
    assert stat.S_ISREG((tmp_path / "a").lstat().st_mode)
