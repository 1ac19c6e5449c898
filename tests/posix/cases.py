"""Scripts of system calls. What each returns on an ordinary directory is what it must return on a mount.

Run as a program, ``cases.py DIRECTORY UID``, it runs every script in a new directory below DIRECTORY, as that user, and
prints what came of it as JSON. It imports nothing of Strongroom, nor of the tests.
"""

# ruff: noqa: PTH101, PTH102, PTH103, PTH104, PTH106, PTH108, PTH116, PTH123, PTH208, PTH211, S103
# The calls themselves are what is tested, not what `pathlib` makes of them.

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import socket
import stat
import sys
from collections.abc import Callable
from typing import Any

_CASES: dict[str, Callable[[Script], None]] = {}
_libc = ctypes.CDLL(None, use_errno=True)
_OLD = (1_000_000_000_123_456_789, 1_100_000_000_987_654_321)
_AT_FDCWD = -100
_NOBODY = 65534


class Script:
    """Records calls and what became of them."""

    def __init__(self, uid: int) -> None:
        self.uid = uid
        self.log: list[str] = []

    def do(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Call, and note the result or the errno."""
        result = None
        try:
            result = function(*args, **options)
            said = repr(result)
        except OSError as error:
            said = errno.errorcode.get(error.errno or 0, str(error))
        shown = ", ".join([repr(arg)[:40] for arg in args] + [f"{key}={value!r}" for key, value in options.items()])
        self.log.append(f"{function.__name__}({shown}) -> {said[:300]}")
        return result

    def note(self, what: str, value: object) -> None:
        self.log.append(f"{what}: {value!r}")

    def look(self, path: str) -> None:
        """Note everything about a path that two file systems must agree on."""
        try:
            found = os.lstat(path)
        except OSError as error:
            self.note(f"look {path}", errno.errorcode[error.errno or 0])
            return
        shown = [oct(found.st_mode), found.st_uid, found.st_gid]
        if not stat.S_ISDIR(found.st_mode):
            shown += [found.st_nlink, found.st_size]
        self.note(f"look {path}", shown)

    def age(self, path: str) -> None:
        """Make it old, so that `renewed` tells whether something touched it."""
        os.utime(path, ns=_OLD, follow_symlinks=False)

    def renewed(self, path: str) -> None:
        self.note(f"{path} is modified", os.lstat(path).st_mtime_ns != _OLD[1])


def case(function: Callable[[Script], None]) -> Callable[[Script], None]:
    _CASES[function.__name__] = function
    return function


def touch(path: str, data: bytes = b"", mode: int = 0o644) -> None:
    fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, mode)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)


def read(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return file.read()


def renameat2(old: str, new: str, flags: int) -> None:
    if _libc.renameat2(_AT_FDCWD, os.fsencode(old), _AT_FDCWD, os.fsencode(new), flags) != 0:
        raise OSError(ctypes.get_errno(), "renameat2")


def opened(path: str, flags: int, mode: int = 0o777) -> str:
    fd = os.open(path, flags, mode)
    os.close(fd)
    return "open"


def sorted_names(path: str) -> list[str]:
    return sorted(os.listdir(path))


def bind(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path)


@case
def open_flags(s: Script) -> None:
    s.do(opened, "f", os.O_RDONLY)
    s.do(opened, "f", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o640)
    s.look("f")
    s.do(opened, "f", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    touch("f", b"0123456789")
    s.do(opened, "f", os.O_RDONLY)
    s.look("f")
    s.age("f")
    s.do(opened, "f", os.O_WRONLY | os.O_TRUNC)
    s.look("f")
    s.renewed("f")
    s.do(opened, "f", os.O_RDONLY | os.O_DIRECTORY)
    s.do(opened, "f/below", os.O_RDONLY)
    s.do(opened, "f/below", os.O_CREAT | os.O_WRONLY)
    os.mkdir("d")
    s.do(opened, "d", os.O_RDONLY)
    s.do(opened, "d", os.O_WRONLY)
    s.do(opened, "d", os.O_RDWR)
    s.do(opened, "d", os.O_CREAT | os.O_WRONLY)
    s.do(opened, "d", os.O_RDONLY | os.O_DIRECTORY)
    os.symlink("f", "l")
    s.do(opened, "l", os.O_RDONLY)
    s.do(opened, "l", os.O_RDONLY | os.O_NOFOLLOW)
    s.do(opened, "l", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    os.symlink("none", "dangling")
    s.do(opened, "dangling", os.O_RDONLY)
    s.do(opened, "dangling", os.O_CREAT | os.O_WRONLY)
    s.look("none")


@case
def modes_and_umask(s: Script) -> None:
    for mask in (0o022, 0o077, 0o000):
        before = os.umask(mask)
        touch(f"f{mask}", mode=0o777)
        os.mkdir(f"d{mask}", 0o777)
        os.mkfifo(f"p{mask}", 0o666)
        os.umask(before)
        for kind in "fdp":
            s.look(f"{kind}{mask}")


@case
def append_and_positions(s: Script) -> None:
    touch("f", b"head")
    one = os.open("f", os.O_WRONLY | os.O_APPEND)
    two = os.open("f", os.O_RDWR | os.O_APPEND)
    s.do(os.write, one, b"-one")
    s.do(os.write, two, b"-two")
    s.do(os.write, one, b"-three")
    s.do(os.pread, two, 100, 0)
    s.do(os.pread, one, 100, 0)
    s.do(os.lseek, one, 0, os.SEEK_END)
    s.do(os.lseek, one, -1, os.SEEK_SET)
    s.do(os.lseek, two, 2, os.SEEK_SET)
    s.do(os.read, two, 3)
    os.close(one)
    os.close(two)
    s.look("f")


@case
def holes(s: Script) -> None:
    fd = os.open("f", os.O_CREAT | os.O_RDWR)
    s.do(os.pwrite, fd, b"end", 1_000_000)
    s.note("zeros", os.pread(fd, 1_000_000, 0) == bytes(1_000_000))
    s.do(os.pread, fd, 10, 999_998)
    s.do(os.ftruncate, fd, 500_000)
    s.do(os.ftruncate, fd, 1_200_000)
    s.note("zeros again", os.pread(fd, 1_200_000, 0) == bytes(1_200_000))
    s.do(os.pread, fd, 10, 1_200_000)
    s.do(os.pread, fd, 10, 1_199_995)
    os.close(fd)
    s.look("f")


@case
def truncating(s: Script) -> None:
    touch("f", b"0123456789" * 1000)
    for size in (5000, 0, 123, 100_000, 99_999):
        s.age("f")
        s.do(os.truncate, "f", size)
        s.look("f")
        s.renewed("f")
    s.note("content", read("f").strip(b"\0"))
    s.do(os.truncate, "f", -1)
    s.do(os.truncate, "none", 0)
    os.mkdir("d")
    s.do(os.truncate, "d", 0)
    s.do(os.truncate, "f/x", 0)
    os.symlink("f", "l")
    s.do(os.truncate, "l", 7)
    s.look("f")
    fd = os.open("f", os.O_RDONLY)
    s.do(os.ftruncate, fd, 3)
    os.close(fd)


@case
def making_directories(s: Script) -> None:
    s.do(os.mkdir, "d", 0o750)
    s.do(os.mkdir, "d")
    s.age("d")
    s.do(os.mkdir, "d/e")
    s.renewed("d")
    s.do(os.mkdir, "none/e")
    touch("f")
    s.do(os.mkdir, "f")
    s.do(os.mkdir, "f/e")
    os.symlink("none", "l")
    s.do(os.mkdir, "l")
    s.look("d")
    s.do(os.mkdir, ".")
    s.do(os.mkdir, "..")


@case
def removing_directories(s: Script) -> None:
    os.makedirs("a/b/c")
    touch("f")
    os.symlink("a", "l")
    s.do(os.rmdir, "a")
    s.do(os.rmdir, "none")
    s.do(os.rmdir, "f")
    s.do(os.rmdir, "l")
    s.do(os.rmdir, "a/.")
    s.do(os.rmdir, "a/b/c/..")
    s.do(os.rmdir, "a/b/c")
    s.age("a")
    s.do(os.rmdir, "a/b")
    s.renewed("a")
    s.do(os.rmdir, "a")
    s.look("a")


@case
def removed_working_directory(s: Script) -> None:
    before = os.open(".", os.O_RDONLY)
    os.mkdir("d")
    os.chdir("d")
    os.rmdir("../d")
    s.do(sorted_names, ".")
    s.do(opened, "f", os.O_CREAT | os.O_WRONLY)
    s.do(os.mkdir, "e")
    s.do(os.symlink, "x", "y")
    s.do(os.getcwd)
    os.fchdir(before)
    os.close(before)


@case
def unlinking(s: Script) -> None:
    touch("f", b"content")
    os.mkdir("d")
    os.symlink("f", "l")
    os.mkfifo("p")
    s.do(os.unlink, "none")
    s.do(os.unlink, "d")
    s.do(os.unlink, "f/x")
    s.do(os.unlink, "l")
    s.look("f")
    s.do(os.unlink, "p")
    touch("d/g")
    s.age("d")
    s.do(os.unlink, "d/g")
    s.renewed("d")
    s.do(os.unlink, "f")
    s.look("f")
    s.do(sorted_names, ".")


@case
def unlinked_but_open(s: Script) -> None:
    fd = os.open("f", os.O_CREAT | os.O_RDWR)
    os.write(fd, b"still here")
    os.unlink("f")
    s.look("f")
    s.do(os.pread, fd, 100, 0)
    s.do(os.pwrite, fd, b"more" * 100_000, 5)
    s.do(os.ftruncate, fd, 300_000)
    s.do(os.fsync, fd)
    s.note("links and size", (os.fstat(fd).st_nlink, os.fstat(fd).st_size))
    s.do(os.fchmod, fd, 0o600)
    touch("f", b"another")
    s.note("tail", os.pread(fd, 8, 299_992))
    s.note("new", read("f"))
    os.close(fd)


@case
def hard_links(s: Script) -> None:
    touch("f", b"x")
    os.mkdir("d")
    s.do(os.link, "f", "g")
    s.look("f")
    s.look("g")
    s.note("same inode", os.stat("f").st_ino == os.stat("g").st_ino)
    s.do(os.link, "f", "g")
    s.do(os.link, "none", "h")
    s.do(os.link, "f", "none/h")
    s.do(os.link, "d", "e")
    s.do(os.link, "f", "d/h")
    touch("g", b"changed")
    s.note("through the other name", read("d/h"))
    s.do(os.unlink, "f")
    s.look("g")
    s.do(os.rename, "g", "d/h")  # two names of one file: nothing happens
    s.look("g")
    s.look("d/h")
    os.symlink("g", "l")
    s.do(os.link, "l", "m", follow_symlinks=False)
    s.look("m")


@case
def symbolic_links(s: Script) -> None:
    s.do(os.symlink, "target", "l")
    s.look("l")
    s.do(os.readlink, "l")
    s.do(os.symlink, "target", "l")
    s.do(os.symlink, "", "empty")
    s.do(os.symlink, "x" * 4095, "long")
    s.do(os.readlink, "long")
    s.do(os.symlink, "x" * 4096, "too long")
    touch("f")
    s.do(os.readlink, "f")
    s.do(os.readlink, "none")
    s.do(os.symlink, "loop", "loop")
    s.do(os.stat, "loop")
    s.do(opened, "loop", os.O_RDONLY)
    s.do(os.mkdir, "loop/d")
    os.mkdir("d")
    os.symlink("../f", "d/up")
    s.do(opened, "d/up", os.O_RDONLY)
    s.do(os.symlink, b"\xff\xfe not utf-8", b"\xfe\xff")
    s.do(os.readlink, b"\xfe\xff")


@case
def renaming_files(s: Script) -> None:
    touch("a", b"a")
    touch("b", b"bb")
    os.mkdir("d")
    os.mkdir("full")
    touch("full/x")
    s.do(os.rename, "none", "x")
    s.do(os.rename, "a", "none/x")
    s.do(os.rename, "a", "a")
    s.do(os.rename, "a", "d")
    s.do(os.rename, "a", "full")
    s.do(os.rename, "a", "b/x")
    s.do(os.rename, "a", "b")
    s.look("a")
    s.note("b", read("b"))
    s.age(".")
    s.age("d")
    s.do(os.rename, "b", "d/b")
    s.renewed(".")
    s.renewed("d")
    s.look("d/b")
    os.symlink("none", "l")
    s.do(os.rename, "d/b", "l")
    s.look("l")
    s.do(os.rename, "l", "m/")
    s.do(sorted_names, "d")


@case
def renaming_directories(s: Script) -> None:
    os.makedirs("a/b/c")
    os.mkdir("empty")
    os.mkdir("full")
    touch("full/x")
    touch("f")
    s.do(os.rename, "a", "a/b/c/d")
    s.do(os.rename, "a", "a/x")
    s.do(os.rename, "a", "f")
    s.do(os.rename, "a", "full")
    s.do(os.rename, "a", "a/b/..")
    s.do(os.rename, "a/.", "x")
    s.do(os.rename, "a", "empty")
    s.look("a")
    s.look("empty/b/c")
    s.do(os.rename, "empty/b", "full/b")
    s.look("full/b/c")
    s.do(os.rename, "full/b/c", "full")
    s.do(os.rename, "full", "moved")
    s.do(sorted_names, "moved")
    s.do(sorted_names, "moved/b/..")


@case
def renaming_with_flags(s: Script) -> None:
    touch("a", b"a")
    touch("b", b"b")
    os.makedirs("d/e")
    s.do(renameat2, "a", "b", 1)
    s.do(renameat2, "a", "c", 1)
    s.do(renameat2, "c", "c", 1)
    s.do(renameat2, "c", "b", 2)
    s.note("exchanged", (read("b"), read("c")))
    s.do(renameat2, "c", "none", 2)
    s.do(renameat2, "c", "d", 2)
    s.look("c")
    s.look("d")
    s.do(renameat2, "c", "c/e", 2)
    s.do(renameat2, "b", "c/e", 2)
    s.look("c/e")
    s.do(renameat2, "b", "d", 3)


@case
def open_across_a_rename(s: Script) -> None:
    touch("f", b"old")
    touch("new", b"new content")
    fd = os.open("f", os.O_RDWR)
    os.rename("new", "f")
    s.do(os.pread, fd, 100, 0)
    s.do(os.pwrite, fd, b"OLD", 0)
    s.note("path", read("f"))
    s.note("handle", os.pread(fd, 100, 0))
    s.note("links", os.fstat(fd).st_nlink)
    os.close(fd)


@case
def changing_modes(s: Script) -> None:
    touch("f")
    os.mkdir("d")
    os.symlink("f", "l")
    for mode in (0o000, 0o777, 0o4755, 0o1777, 0o2755, 0o644):
        s.do(os.chmod, "f", mode)
        s.look("f")
        s.do(os.chmod, "d", mode)
        s.look("d")
    s.do(os.chmod, "l", 0o600)
    s.look("f")
    s.do(os.chmod, "none", 0o600)
    s.do(os.chmod, "f/x", 0o600)


@case
def changing_owners(s: Script) -> None:
    touch("f")
    os.mkdir("d")
    os.symlink("f", "l")
    for uid, gid in ((-1, -1), (s.uid, -1), (-1, s.uid), (12345, 54321), (s.uid, s.uid)):
        s.do(os.chown, "f", uid, gid)
        s.look("f")
        s.do(os.chown, "d", uid, gid)
        s.look("d")
    s.do(os.lchown, "l", 1, 2)
    s.look("l")
    s.look("f")
    s.do(os.chown, "none", 1, 2)


@case
def owners_and_set_id_bits(s: Script) -> None:
    for mode in (0o4755, 0o2755, 0o6755, 0o2644):
        touch("f")
        os.chmod("f", mode)
        s.look("f")
        s.do(os.chown, "f", s.uid, s.uid)
        s.look("f")
        os.unlink("f")


@case
def group_of_new_files(s: Script) -> None:
    os.mkdir("d")
    s.do(os.chown, "d", -1, s.uid)
    os.chmod("d", 0o2775)
    touch("d/f")
    os.mkdir("d/e")
    os.symlink("x", "d/l")
    for name in ("d", "d/f", "d/e", "d/l"):
        s.look(name)


@case
def times(s: Script) -> None:
    touch("f")
    os.mkdir("d")
    os.symlink("f", "l")
    for path in ("f", "d", "l"):
        for at in (_OLD, (0, 0), (1, 4_000_000_000_000_000_001), (-1_000_000_000, -5)):
            s.do(os.utime, path, ns=at, follow_symlinks=False)
            found = os.lstat(path)
            s.note("times", (found.st_atime_ns, found.st_mtime_ns))
    s.do(os.utime, "none", ns=_OLD)
    s.age("f")
    s.do(os.utime, "f")
    s.renewed("f")
    s.age("f")
    read("f")
    s.renewed("f")
    fd = os.open("f", os.O_WRONLY)
    os.write(fd, b"1")
    s.renewed("f")
    s.do(os.utime, fd, ns=_OLD)
    os.close(fd)
    s.note("the time set is not overwritten by the close", os.stat("f").st_mtime_ns == _OLD[1])


@case
def long_names(s: Script) -> None:
    name = "n" * 255
    s.do(touch, name)
    s.look(name)
    s.do(os.mkdir, "n" * 256)
    s.do(opened, "n" * 256, os.O_CREAT | os.O_WRONLY)
    s.do(os.rename, name, "m" * 256)
    s.do(os.rename, name, "m" * 255)
    s.do(os.link, "m" * 255, "n" * 256)
    s.do(os.symlink, "x", "n" * 256)
    s.do(os.unlink, "n" * 256)
    s.do(os.stat, "n" * 256)
    s.do(os.mkdir, "/".join(["x"] * 2500))
    s.do(os.stat, "y" * 5000)
    wide = "ü" * 127
    s.do(touch, wide)
    s.do(touch, "ü" * 128)
    s.note("names", sorted(os.listdir(".")))


@case
def odd_names(s: Script) -> None:
    for name in (b"\xff\xfe", b"a\nb", b" ", b"-", b"\\", b"...", b"*?", "ü".encode()):
        s.do(os.mkdir, name)
    s.note("names", sorted(os.listdir(b".")))
    s.do(os.mkdir, b"")


@case
def pipes_and_sockets(s: Script) -> None:
    s.do(os.mkfifo, "p", 0o640)
    s.look("p")
    s.do(os.mkfifo, "p")
    s.do(os.mkfifo, "none/p")
    s.do(opened, "p", os.O_WRONLY | os.O_NONBLOCK)
    reader = os.open("p", os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open("p", os.O_WRONLY)
    os.write(writer, b"through")
    s.do(os.read, reader, 10)
    os.close(reader)
    os.close(writer)
    s.do(bind, "s")
    s.look("s")
    s.do(bind, "s")
    s.do(os.mknod, "n", 0o600 | stat.S_IFREG)
    s.look("n")
    s.do(os.truncate, "p", 0)


@case
def locks(s: Script) -> None:
    one = os.open("f", os.O_CREAT | os.O_RDWR)
    two = os.open("f", os.O_RDWR)
    s.do(fcntl.flock, one, fcntl.LOCK_EX | fcntl.LOCK_NB)
    s.do(fcntl.flock, two, fcntl.LOCK_SH | fcntl.LOCK_NB)
    s.do(fcntl.flock, one, fcntl.LOCK_UN)
    s.do(fcntl.flock, two, fcntl.LOCK_SH | fcntl.LOCK_NB)
    s.do(fcntl.lockf, one, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 0)
    child = os.fork()
    if child == 0:
        status = 0
        try:
            fcntl.lockf(two, fcntl.LOCK_EX | fcntl.LOCK_NB, 5, 5)
        except OSError as error:
            status = 1 if error.errno in (errno.EAGAIN, errno.EACCES) else 2
        os._exit(status)
    s.note("another process's lock", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    os.close(one)
    os.close(two)


@case
def listing(s: Script) -> None:
    os.mkdir("d")
    names = [f"{number:05}-{'x' * (number % 90)}" for number in range(1500)]
    for name in names:
        touch(f"d/{name}")
    s.note("all", sorted(os.listdir("d")) == names)
    with os.scandir("d") as entries:
        seen = []
        for entry in entries:  # removing while reading skips and repeats nothing
            seen.append(entry.name)
            os.unlink(entry.path)
    s.note("each once", sorted(seen) == names)
    s.do(sorted_names, "d")
    s.do(sorted_names, "none")
    touch("f")
    s.do(sorted_names, "f")


@case
def syncing(s: Script) -> None:
    fd = os.open("f", os.O_CREAT | os.O_WRONLY)
    os.write(fd, b"x" * 100_000)
    s.do(os.fsync, fd)
    s.do(os.fdatasync, fd)
    os.close(fd)
    directory = os.open(".", os.O_RDONLY)
    s.do(os.fsync, directory)
    s.do(os.fdatasync, directory)
    os.close(directory)
    s.note("longest name", os.statvfs(".").f_namemax)


@case
def not_permitted(s: Script) -> None:
    """Root may do all of this, others may not."""
    touch("f", b"x", 0o400)
    s.do(opened, "f", os.O_WRONLY)
    os.chmod("f", 0o200)
    s.do(opened, "f", os.O_RDONLY)
    s.do(os.access, "f", os.R_OK)
    os.mkdir("d")
    touch("d/f")
    os.chmod("d", 0o500)
    s.do(opened, "d/new", os.O_CREAT | os.O_WRONLY)
    s.do(os.unlink, "d/f")
    s.do(os.mkdir, "d/e")
    os.chmod("d", 0o600)
    s.do(os.stat, "d/none")
    os.chmod("d", 0o300)
    s.do(sorted_names, "d")
    os.chmod("d", 0o700)


def main(directory: str, uid: int) -> None:
    """Run every script, and print the logs."""
    if uid:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    results = {}
    for name, run in _CASES.items():
        os.umask(0o022)
        own = f"{directory}/{name}"
        os.mkdir(own)
        os.chdir(own)
        script = Script(uid)
        try:
            run(script)
        except OSError as error:
            script.note("ended", repr(error))
        results[name] = script.log
    os.chdir("/")
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
