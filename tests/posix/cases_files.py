"""Files: opening, reading, writing, attributes, locks."""

# ruff: noqa: PTH101, PTH102, PTH108, PTH116, PTH211, S103
# The calls themselves are what is tested, not what `pathlib` makes of them.

from __future__ import annotations

import errno
import fcntl
import os

from tests.posix.script import OLD, Script, case, opened, read, sorted_names, touch


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
        for at in (OLD, (0, 0), (1, 4_000_000_000_000_000_001), (-1_000_000_000, -5)):
            s.do(os.utime, path, ns=at, follow_symlinks=False)
            found = os.lstat(path)
            s.note("times", (found.st_atime_ns, found.st_mtime_ns))
    s.do(os.utime, "none", ns=OLD)
    s.age("f")
    s.do(os.utime, "f")
    s.renewed("f")
    s.age("f")
    read("f")
    s.renewed("f")
    fd = os.open("f", os.O_WRONLY)
    os.write(fd, b"1")
    s.renewed("f")
    s.do(os.utime, fd, ns=OLD)
    os.close(fd)
    s.note("the time set is not overwritten by the close", os.stat("f").st_mtime_ns == OLD[1])


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
