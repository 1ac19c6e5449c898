"""Names: making, removing, linking, renaming, listing."""

# ruff: noqa: PTH102, PTH103, PTH104, PTH106, PTH108, PTH116, PTH208, PTH211
# The calls themselves are what is tested, not what `pathlib` makes of them.

from __future__ import annotations

import os
import stat

from tests.posix.script import Script, bind, case, opened, read, renameat2, sorted_names, syncfs, touch


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
def gone_but_known(s: Script) -> None:
    for name in ("unlinked", "replaced", "renamed", "linked"):
        touch(name, b"was here", 0o640)
    os.mkdir("directory", 0o750)
    names = ("unlinked", "replaced", "linked", "directory")
    held = {name: os.open(name, os.O_PATH) for name in names}
    os.link("linked", "link")
    whole = os.open(".", os.O_RDONLY)
    os.unlink("unlinked")
    os.rename("renamed", "replaced")
    os.unlink("linked")
    inside = os.open("directory", os.O_RDONLY)
    os.rmdir("directory")
    s.do(os.fchmod, inside, 0o700)
    for name, fd in held.items():
        found = os.fstat(fd)
        s.note(name, (oct(found.st_mode), found.st_nlink if name != "directory" else None))
        os.close(fd)
    os.close(inside)
    os.fsync(whole)
    os.close(whole)
    s.do(syncfs, ".")
    s.do(read, "replaced")
    s.look("link")


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
