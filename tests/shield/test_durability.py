"""What is on the disk after a kill, a signal, a full disk, and damage."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from strongroom import vault
from strongroom.sealed import NO_FRESHNESS
from strongroom.vault.rows import Tree
from tests.posix.server import KEY, served

Places = tuple[Path, Path]


def opened(places: Places, mode: str = "r") -> vault.Vault:
    return vault.open(places[0], mode, key=KEY, anchor=NO_FRESHNESS)  # type: ignore[arg-type]


def write_synced(path: Path, data: bytes, *, append: bool = False) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | (os.O_APPEND if append else 0), 0o644)
    try:
        os.write(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def test_a_terminated_mount_commits(places: Places) -> None:
    with served(*places) as server:
        (server.point / "d").mkdir()
        (server.point / "d" / "f").write_bytes(b"never synced")
        with (server.point / "open").open("wb", buffering=0) as file:
            file.write(b"and still open")
            assert "failure: None" in server.end()
            with pytest.raises(OSError):
                os.fsync(file.fileno())
    with opened(places) as found:
        assert found.read_bytes("d/f") == b"never synced"
        assert found.read_bytes("open") == b"and still open"


def test_unmounting_from_outside_commits(places: Places) -> None:
    with served(*places) as server:
        (server.point / "f").write_bytes(b"1" * 300_000)
        subprocess.run(["fusermount3", "-u", server.point], check=True)
        server.process.wait(60)
        assert list(server.point.iterdir()) == []
    with opened(places) as found:
        assert found.read_bytes("f") == b"1" * 300_000


def test_the_last_request_may_be_one_that_the_end_cuts_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel then says "aborted" where it else says that the mount is gone; once in some thousand ends it does."""
    pyfuse3 = pytest.importorskip("pyfuse3")
    from strongroom.shield._loop import Loop

    async def main(number: int) -> None:
        raise OSError(number, "fuse_session_receive_buf failed")

    loop = Loop(None)
    monkeypatch.setattr(pyfuse3, "main", lambda **options: main(errno.ECONNABORTED))
    loop.run()
    monkeypatch.setattr(pyfuse3, "main", lambda **options: main(errno.EIO))
    with pytest.raises(OSError, match="receive_buf"):
        loop.run()
    loop.close()


def test_an_aborted_connection_commits_and_is_a_failure(places: Places) -> None:
    connections = Path("/sys/fs/fuse/connections")
    with served(*places) as server:
        write_synced(server.point / "f", b"synced")
        number = os.minor(server.point.stat().st_dev)
        abort = connections / str(number) / "abort"
        if not os.access(abort, os.W_OK):
            pytest.skip(f"{abort} cannot be written")
        abort.write_text("1")
        server.process.wait(60)
        assert server.process.stdout is not None
        assert "ConnectionAbortedError" in server.process.stdout.read()
        assert server.process.returncode != 0
    with opened(places) as found:
        assert found.read_bytes("f") == b"synced"


def test_what_was_synced_survives_a_kill(places: Places) -> None:
    with served(*places) as server:
        point = server.point
        (point / "never").write_bytes(b"maybe")
        write_synced(point / "small", b"acknowledged")
        for number in range(100):
            write_synced(point / "log", b"%03d\n" % number, append=True)
        write_synced(point / "large", os.urandom(3_000_000))
        large = (point / "large").read_bytes()
        write_synced(point / "new", b"the new one")
        (point / "small2").write_bytes(b"old")
        (point / "new").replace(point / "small2")
        (point / "d").mkdir()
        (point / "large").rename(point / "d" / "large")
        os.link(point / "small", point / "d" / "hard")
        (point / "d" / "soft").symlink_to("hard")
        sync_directory(point / "d")
        (point / "later").write_bytes(b"not synced")
        server.kill()
    with served(*places) as server:
        point = server.point
        assert (point / "small").read_bytes() == b"acknowledged"
        assert (point / "log").read_bytes() == b"".join(b"%03d\n" % number for number in range(100))
        assert (point / "small2").read_bytes() == b"the new one"
        assert (point / "d" / "large").read_bytes() == large
        assert (point / "d" / "soft").read_bytes() == b"acknowledged"
        assert (point / "small").stat().st_nlink == 2
        assert not (point / "large").exists() and not (point / "new").exists()
        write_synced(point / "log", b"goes on\n", append=True)
    with opened(places) as found:
        found.verify()


def test_a_renamed_file_is_whole_after_a_kill(places: Places) -> None:
    # Neither the file nor the directory is synced: the old content or the new, but no empty file.
    with served(*places) as server:
        point = server.point
        write_synced(point / "state", b"old" * 10_000)
        (point / "state.tmp").write_bytes(b"new" * 10_000)
        (point / "state.tmp").replace(point / "state")
        write_synced(point / "other", b"takes the rename along")
        server.kill()
    with opened(places, "r+") as found:
        assert found.read_bytes("state") == b"new" * 10_000


def test_killed_over_and_over(places: Places) -> None:
    expected = b""
    for round_number in range(6):
        with served(*places) as server:
            path = server.point / "log"
            if round_number:
                assert path.read_bytes()[: len(expected)] == expected
                os.truncate(path, len(expected))
            for number in range(20):
                line = b"%d/%d %s\n" % (round_number, number, os.urandom(3000))
                write_synced(path, line, append=True)
                expected += line
            with path.open("ab") as file:
                file.write(b"unsynced" * 1000)
            server.kill()
    with opened(places, "r+") as found:
        assert found.read_bytes("log")[: len(expected)] == expected


def test_a_damaged_block_is_an_error_of_that_read_only(places: Places) -> None:
    content = os.urandom(1_000_000)
    with opened(places, "x") as made:
        made.write_bytes("large", content)
        made.write_bytes("small", b"fine")
        body = made.inode(made.stat("large").inode).body
        made.commit()
        body = made.inode(made.stat("large").inode).body
    assert isinstance(body, Tree)
    file = places[0] / body.file.hex()
    with file.open("r+b") as stored:
        stored.seek(file.stat().st_size // 2)
        stored.write(b"damaged!")
    said = ""
    with served(*places) as server:
        with pytest.raises(OSError) as caught:
            (server.point / "large").read_bytes()
        assert caught.value.errno == errno.EIO
        assert (server.point / "small").read_bytes() == b"fine"
        (server.point / "new").write_bytes(b"goes on")
        assert (server.point / "new").read_bytes() == b"goes on"
        with (server.point / "large").open("rb", buffering=0) as reader:
            assert reader.read(4096) == content[:4096]
        said = server.end()
    assert "TamperedError" in said


def test_a_full_disk_says_so(places: Places) -> None:
    full = places[0].with_name("full")
    with served(*places, "full") as server:
        write_synced(server.point / "kept", b"kept")
        full.touch()
        with pytest.raises(OSError) as caught:
            write_synced(server.point / "f", os.urandom(2_000_000))
        assert caught.value.errno == errno.ENOSPC
        assert (server.point / "kept").read_bytes() == b"kept"
        assert "ENOSPC" in server.end() or server.process.returncode != 0
    full.unlink()
    with opened(places, "r+") as found:
        assert found.read_bytes("kept") == b"kept"


def test_changes_of_another_process_become_visible(places: Places) -> None:
    with served(*places) as server:
        point = server.point
        for name in ("changed", "removed", "kept"):
            write_synced(point / name, name.encode())
        code = """
            import sys
            from strongroom import vault
            from strongroom.sealed import NO_FRESHNESS
            with vault.open(sys.argv[1], "r+", key=bytes(range(32)), anchor=NO_FRESHNESS) as other:
                other.write_bytes("added", b"there")
                other.commit()  # the mount commits first what its log holds
                other.write_bytes("changed", b"by another process")
                other.remove("removed")
        """
        assert (point / "changed").read_bytes() == b"changed"
        assert not (point / "added").exists()
        run = subprocess.run([sys.executable, "-c", textwrap.dedent(code), places[0]], capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        until(lambda: (point / "added").exists() and not (point / "removed").exists())
        until(lambda: (point / "changed").read_bytes() == b"by another process")
        assert (point / "added").read_bytes() == b"there"
        assert (point / "kept").read_bytes() == b"kept"
        (point / "added").write_bytes(b"and back")
    with opened(places) as found:
        assert {name: found.read_bytes(name) for name in found.files()} == {
            "changed": b"by another process",
            "added": b"and back",
            "kept": b"kept",
        }


def until(true: object) -> None:
    """Ask again and again, as a program that waits for another's file does."""
    deadline = time.monotonic() + 60
    while not true():  # type: ignore[operator]
        if time.monotonic() > deadline:
            raise AssertionError("it never came")
