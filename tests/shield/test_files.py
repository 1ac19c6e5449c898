"""Vaults under plain paths: mounted, exposed, collected."""

import contextlib
import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from strongroom import vault
from strongroom.errors import MissingDependencyError, TamperedError, UnsupportedPlatformError, UsageError
from strongroom.sealed import NO_FRESHNESS
from strongroom.shield.files import collect, expose, mount, take
from strongroom.storage import MemoryDirectory

KEY = bytes(range(32))
BIG = os.urandom(3_000_000)
FILES = {"big": BIG, "large": BIG[::-1], "a/b/c": b"hello", "a/empty": b"", "ünïcode": b"u"}


def data_file(opened, path: str) -> str:
    """The name on disk of a large file's data file."""
    return opened.inode(opened.stat(path).inode).body.file.hex()


def names(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


@pytest.fixture
def directory() -> MemoryDirectory:
    made = MemoryDirectory()
    with vault.open(made, "x", key=KEY, anchor=NO_FRESHNESS) as opened:
        for path, content in FILES.items():
            opened.write_bytes(path, content)
        opened.write_bytes("run.sh", b"#!/bin/sh\necho ran\n", permissions=0o755)
    return made


@pytest.fixture
def opened(directory):
    with vault.open(directory, key=KEY, anchor=NO_FRESHNESS) as made:
        yield made


@pytest.fixture
def mounted(fuse, opened, tmp_path):
    (tmp_path / "m").mkdir()
    with mount(opened, tmp_path / "m") as made:
        yield made


def test_reads_what_the_vault_holds(mounted):
    for path, content in FILES.items():
        assert (mounted.path / path).read_bytes() == content
    with (mounted.path / "big").open("rb") as file:
        file.seek(1_234_567)
        assert file.read(100) == BIG[1_234_567:1_234_667]
        assert file.seek(0, os.SEEK_END) == len(BIG)
        assert file.read(10) == b""
    assert mounted.failure is None


def test_shows_tree_and_modes(mounted):
    assert names(mounted.path) == ["a", "big", "large", "run.sh", "ünïcode"]
    assert names(mounted.path / "a") == ["b", "empty"]
    status = (mounted.path / "run.sh").stat()
    assert stat.S_IMODE(status.st_mode) == 0o555
    assert (status.st_uid, status.st_size) == (os.getuid(), 19)
    assert not (mounted.path / "none").exists()


def test_programs_run_from_it(mounted):
    # Through a shell, as the module says.
    run = subprocess.run(["sh", "-c", f"'{mounted.path}/run.sh'"], capture_output=True, check=True)
    assert run.stdout == b"ran\n"


def test_a_program_may_map_a_file(mounted):
    code = "import mmap, sys; f = open(sys.argv[1], 'rb'); print(sum(mmap.mmap(f.fileno(), 0, prot=1)[:1000]))"
    run = subprocess.run([sys.executable, "-c", code, mounted.path / "big"], capture_output=True, check=True)
    assert int(run.stdout) == sum(BIG[:1000])


def test_nothing_can_be_written(mounted):
    for action in (
        lambda: (mounted.path / "new").write_bytes(b"1"),
        lambda: (mounted.path / "big").write_bytes(b"1"),
        lambda: (mounted.path / "big").unlink(),
        lambda: (mounted.path / "dir").mkdir(),
        lambda: (mounted.path / "big").chmod(0o777),
    ):
        with pytest.raises(OSError) as caught:
            action()
        assert caught.value.errno in (errno.EROFS, errno.EACCES)


def test_tampering_is_an_input_output_error_and_is_told(mounted, opened, directory):
    directory.files[data_file(opened, "big")].data[2_000_000] ^= 1
    with pytest.raises(OSError) as caught:
        (mounted.path / "big").read_bytes()
    assert caught.value.errno == errno.EIO
    assert isinstance(mounted.failure, TamperedError)
    assert "block" in str(mounted.failure)
    # Others still read.
    assert (mounted.path / "a/b/c").read_bytes() == b"hello"


def test_a_swapped_file_cannot_be_read(mounted, opened, directory):
    one, two = data_file(opened, "big"), data_file(opened, "large")
    directory.files[one], directory.files[two] = directory.files[two], directory.files[one]
    with pytest.raises(OSError) as caught:
        (mounted.path / "big").read_bytes()
    assert caught.value.errno == errno.EIO
    assert isinstance(mounted.failure, TamperedError)


def test_unmount_while_in_use(fuse, opened, tmp_path):
    mounted = mount(opened, tmp_path)
    file = (tmp_path / "big").open("rb", buffering=0)
    file.read(10)
    mounted.unmount()
    mounted.unmount()
    assert names(tmp_path) == []
    for action in (lambda: file.read(10), file.close):  # out of the page cache, or ENOTCONN, but neither hangs
        with contextlib.suppress(OSError):
            action()
    with mount(opened, tmp_path):
        assert (tmp_path / "big").read_bytes() == BIG


def test_several_vaults_in_one_mount(fuse, opened, tmp_path):
    with vault.open(MemoryDirectory(), "x", key=KEY, anchor=NO_FRESHNESS) as other:
        other.write_bytes("m", b"model")
        with mount({"data": opened, "model": other}, tmp_path) as mounted:
            assert names(tmp_path) == ["data", "model"]
            assert (mounted.path / "model" / "m").read_bytes() == b"model"
            assert (mounted.path / "data" / "a" / "b" / "c").read_bytes() == b"hello"


def test_several_writable_vaults_in_one_mount(fuse, opened, tmp_path):
    (tmp_path / "m").mkdir()
    with (
        vault.open(MemoryDirectory(), "x", key=KEY, anchor=NO_FRESHNESS) as one,
        vault.open(MemoryDirectory(), "x", key=KEY, anchor=NO_FRESHNESS) as two,
        mount({"one": one, "two": two, "shown": opened}, tmp_path / "m") as mounted,
    ):
        top = mounted.path
        (top / "one" / "f").write_bytes(b"1" * 100_000)
        (top / "two" / "d").mkdir()
        (top / "two" / "d" / "f").write_bytes(b"2")
        assert names(top) == ["one", "shown", "two"]
        numbers = [path.stat().st_ino for path in (top, top / "one", top / "two", top / "one/f", top / "two/d/f")]
        assert len(set(numbers)) == len(numbers)
        for action, number in (
            (lambda: (top / "one" / "f").rename(top / "two" / "f"), errno.EXDEV),
            (lambda: (top / "two" / "f").hardlink_to(top / "one" / "f"), errno.EXDEV),
            (lambda: (top / "three").mkdir(), errno.EROFS),
            (lambda: (top / "f").write_bytes(b""), errno.EROFS),
            (lambda: (top / "one").rmdir(), errno.EROFS),
            (lambda: (top / "shown" / "f").write_bytes(b""), errno.EROFS),
            (lambda: (top / "shown" / "big").open("r+b"), errno.EROFS),
            (lambda: (top / "shown" / "a").rmdir(), errno.EROFS),
        ):
            with pytest.raises(OSError) as caught:
                action()
            assert caught.value.errno == number
        assert (top / "shown" / "big").read_bytes() == BIG
        mounted.unmount()
        assert mounted.failure is None
        assert one.read_bytes("f") == b"1" * 100_000
        assert two.read_bytes("d/f") == b"2"


def test_a_handler_that_fails_is_an_input_output_error(mounted, opened, monkeypatch, caplog):
    def broken(*arguments):
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr(opened, "find", broken)
    with pytest.raises(OSError) as caught:
        (mounted.path / "big").stat()
    assert caught.value.errno == errno.EIO
    assert str(mounted.failure) == "a mistake of ours"
    assert "lookup: a mistake of ours (EIO)" in caplog.text
    monkeypatch.undo()
    assert (mounted.path / "big").stat().st_size == len(BIG)


def test_extended_attributes_are_refused_once(mounted):
    for _ in range(2):
        with pytest.raises(OSError) as caught:
            os.getxattr(mounted.path / "big", "user.x")
        assert caught.value.errno == errno.EOPNOTSUPP


def test_room(fuse, opened, tmp_path):
    with mount(opened, tmp_path):
        found = os.statvfs(tmp_path)
        assert found.f_bavail == 0
        assert found.f_blocks * found.f_frsize >= 2 * len(BIG)
        assert found.f_namemax == 255


@pytest.mark.skipif(os.getuid() != 0, reason="the kernel drops its caches for root only")
def test_what_the_kernel_forgets_is_forgotten(fuse, tmp_path):
    with (
        vault.open(MemoryDirectory(), "x", key=KEY, anchor=NO_FRESHNESS) as made,
        mount(made, tmp_path) as mounted,
    ):
        places = mounted._session._operations.places
        (tmp_path / "d").mkdir()
        for number in range(300):
            (tmp_path / "d" / str(number)).write_bytes(b"")
        assert len(places) > 300
        shutil.rmtree(tmp_path / "d")
        assert names(tmp_path) == []
        os.sync()
        assert len(places) < 10


def test_mounting_twice(mounted, opened, tmp_path):
    (tmp_path / "second").mkdir()
    with pytest.raises(UsageError, match="has one already"):
        mount(opened, tmp_path / "second")


def test_a_mount_whose_server_was_killed_is_cleared(fuse, opened, tmp_path):
    code = textwrap.dedent("""
        import os, sys, signal
        from strongroom import vault
        from strongroom.sealed import NO_FRESHNESS
        from strongroom.shield.files import mount
        from strongroom.storage import MemoryDirectory
        with vault.open(MemoryDirectory(), "x", key=bytes(32), anchor=NO_FRESHNESS) as empty:
            mount(empty, sys.argv[1])
            os.kill(os.getpid(), signal.SIGKILL)
    """)
    run = subprocess.run([sys.executable, "-c", code, tmp_path], check=False)
    assert run.returncode == -signal.SIGKILL
    with mount(opened, tmp_path):
        assert (tmp_path / "big").read_bytes() == BIG
    assert names(tmp_path) == []


def test_mount_needs_a_directory(fuse, opened, tmp_path):
    with pytest.raises(UsageError, match="is no directory"):
        mount(opened, tmp_path / "none")


def test_mount_without_the_package(opened, tmp_path, monkeypatch):
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("no FUSE here: /dev/fuse cannot be opened")
    monkeypatch.setitem(sys.modules, "pyfuse3", None)
    monkeypatch.delitem(sys.modules, "strongroom.shield._fuse", raising=False)
    monkeypatch.delattr("strongroom.shield._fuse", raising=False)
    with pytest.raises(MissingDependencyError, match="pyfuse3") as caught:
        mount(opened, tmp_path)
    assert "strongroom[fuse]" in caught.value.hint


def test_mount_without_the_device(opened, tmp_path, monkeypatch):
    monkeypatch.setattr("strongroom.shield.files._DEVICE", str(tmp_path / "fuse"))
    with pytest.raises(UnsupportedPlatformError):
        mount(opened, tmp_path)


# Without FUSE.


def test_expose_and_clean_up(opened, tmp_path):
    with expose(opened, tmp_path / "plain") as exposed:
        for path, content in FILES.items():
            assert (exposed.path / path).read_bytes() == content
        assert stat.S_IMODE(exposed.path.stat().st_mode) == 0o700
    assert not (tmp_path / "plain").exists()


def test_expose_several(opened, tmp_path):
    with expose({"one": opened, "two": opened}, tmp_path / "plain") as exposed:
        assert names(exposed.path) == ["one", "two"]
        assert (exposed.path / "two" / "a" / "b" / "c").read_bytes() == b"hello"


def test_expose_leaves_nothing_of_a_damaged_vault(opened, directory, tmp_path):
    directory.files[data_file(opened, "big")].data[2_000_000] ^= 1
    with pytest.raises(TamperedError):
        expose(opened, tmp_path / "plain")
    assert not (tmp_path / "plain").exists()


def test_expose_overwrites_nothing(opened, tmp_path):
    (tmp_path / "mine").write_text("1")
    with pytest.raises(FileExistsError):
        expose(opened, tmp_path)
    assert (tmp_path / "mine").read_text() == "1"


def test_collect_brings_results_back(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "model.onnx").write_bytes(b"new")
    (tmp_path / "sub" / "log").write_bytes(b"log")
    (tmp_path / "link").symlink_to("/etc/passwd")
    (tmp_path / "loop").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with vault.open(MemoryDirectory(), "x", key=KEY, anchor=NO_FRESHNESS) as out:
        out.write_bytes("model.onnx", b"old")
        out.write_bytes("kept", b"kept")
        assert collect(tmp_path, out) == ["link", "loop", "pipe"]
        assert {path: out.read_bytes(path) for path in out.files()} == {
            "model.onnx": b"new",
            "sub/log": b"log",
            "kept": b"kept",
        }


def test_take_keeps_nothing_that_a_program_took_away(tmp_path):
    with vault.open(MemoryDirectory(), "x", key=KEY, anchor=NO_FRESHNESS) as out:
        for path in ("d/x", "d/e/y", "a", "gone", "was/z", "model", "target"):
            out.write_bytes(path, b"old")
        for path, target in (("stays", "target"), ("turned", "target"), ("led", "a")):
            out.symlink(target, path)
        expose(out, tmp_path / "plain")
        top = tmp_path / "plain"
        (top / "d").rename(top / "d2")
        (top / "d").symlink_to("d2")
        (top / "d2" / "x").write_bytes(b"new")
        (top / "a").unlink()
        (top / "a").symlink_to("/etc/passwd")
        (top / "gone").unlink()
        (top / "was" / "z").unlink()
        (top / "was").rmdir()
        (top / "was").write_bytes(b"a file now")
        (top / "turned").unlink()
        (top / "turned").write_bytes(b"no link any more")
        (top / "led").unlink()
        (top / "led").symlink_to("model")
        (top / "empty" / "inner").mkdir(parents=True)
        (top / "lost").symlink_to("nowhere")
        (top / "empty" / "up").symlink_to("../../out")
        (top / "chain").symlink_to("empty/up")
        os.mkfifo(top / "pipe")
        assert take(top, out) == ["a", "chain", "empty/up", "pipe"]
        assert [path for path, _, _ in out.walk()] == ["", "d2", "d2/e", "empty", "empty/inner"]
        links = {path: out.readlink(path) for path in out.files() if out.stat(path, follow=False).is_link}
        assert links == {"stays": "target", "d": "d2", "led": "model", "lost": "nowhere"}
        expose(out, tmp_path / "again")
        assert take(tmp_path / "again", out) == []
        assert {path: out.read_bytes(path) for path in out.files() if path not in links} == {
            "d2/x": b"new",
            "d2/e/y": b"old",
            "model": b"old",
            "target": b"old",
            "turned": b"no link any more",
            "was": b"a file now",
        }
