"""Names and attributes of a vault against a real directory: the same result, or the same errno, for any operations."""

import ctypes
import errno
import os
import shutil
import stat
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from strongroom.sealed import MemoryAnchor
from strongroom.storage import MemoryDirectory
from strongroom.vault.inodes import RENAME_EXCHANGE, RENAME_NOREPLACE
from strongroom.vault.rows import ROOT_INODE
from strongroom.vault.vault import Vault

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="compares with Linux's errnos")

KEY = bytes(range(32))
SHARED_MEMORY = Path("/dev/shm")

names = st.sampled_from([b"a", b"b", b"c", "ü".encode(), b"\xff", b"x" * 255, b"y" * 256])
choice = st.integers(0, 1 << 16)
modes = st.sampled_from([0o644, 0o600, 0o755, 0o000])


def rename(above: int, name: bytes, new_above: int, new_name: bytes, flags: int) -> None:
    if ctypes.CDLL(None, use_errno=True).renameat2(above, name, new_above, new_name, flags):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def outcome(act) -> int:
    try:
        act()
    except OSError as error:
        assert error.errno is not None, repr(error)
        return error.errno
    return 0


class Namespace(RuleBasedStateMachine):
    """A vault and a directory on which the same is done. Directories are kept by number and by descriptor."""

    @initialize()
    def create(self):
        self.disk, self.anchor = MemoryDirectory(), MemoryAnchor()
        self.vault = Vault(self.disk, "x", KEY, self.anchor, what="vault")
        self.vault.commit()
        self.top = Path(tempfile.mkdtemp(dir=SHARED_MEMORY if SHARED_MEMORY.is_dir() else None))
        self.directories = {ROOT_INODE: os.open(self.top, os.O_PATH)}

    def _at(self, which: int) -> tuple[int, int]:
        numbers = sorted(self.directories)
        number = numbers[which % len(numbers)]
        return number, self.directories[number]

    def _same(self, ours, theirs) -> bool:
        """Whether both succeeded; they must do the same."""
        found, expected = outcome(ours), outcome(theirs)
        assert found == expected, (errno.errorcode.get(found), errno.errorcode.get(expected))
        return not found

    def _drop_removed(self) -> None:
        for number, fd in list(self.directories.items()):
            if os.fstat(fd).st_nlink == 0:
                os.close(self.directories.pop(number))

    def _make(self, parent: int, name: bytes, mode: int, target: bytes = b""):
        return self.vault.make_at(parent, name, mode, uid=os.getuid(), gid=os.getgid(), target=target)

    @rule(which=choice, name=names, mode=modes)
    def make_file(self, which, name, mode):
        number, fd = self._at(which)

        def theirs():
            os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600, dir_fd=fd))
            os.chmod(name, mode, dir_fd=fd)

        self._same(lambda: self._make(number, name, stat.S_IFREG | mode), theirs)

    @rule(which=choice, name=names, mode=st.sampled_from([0o755, 0o700, 0o2755]))
    def make_directory(self, which, name, mode):
        number, fd = self._at(which)

        def theirs():
            os.mkdir(name, 0o700, dir_fd=fd)
            inherited = os.stat(name, dir_fd=fd).st_mode & stat.S_ISGID
            os.chmod(name, mode | inherited, dir_fd=fd)

        if self._same(lambda: self._make(number, name, stat.S_IFDIR | mode), theirs):
            made = self.vault.lookup(number, name).id
            self.directories[made] = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)

    @rule(which=choice, name=names, leads_to=st.sampled_from([b"a", b"../b", b"/nowhere", b"t" * 4095]))
    def make_link(self, which, name, leads_to):
        number, fd = self._at(which)
        self._same(
            lambda: self._make(number, name, stat.S_IFLNK | 0o777, leads_to),
            lambda: os.symlink(leads_to, name, dir_fd=fd),
        )

    @rule(which=choice, name=names)
    def make_pipe(self, which, name):
        number, fd = self._at(which)
        self._same(lambda: self._make(number, name, stat.S_IFIFO | 0o600), lambda: os.mkfifo(name, 0o600, dir_fd=fd))

    @rule(which=choice, name=names, into=choice, new=names)
    def link(self, which, name, into, new):
        (number, fd), (above, above_fd) = self._at(which), self._at(into)
        self._same(
            lambda: self.vault.link_at(self.vault.lookup(number, name).id, above, new),
            lambda: os.link(name, new, src_dir_fd=fd, dst_dir_fd=above_fd, follow_symlinks=False),
        )

    @rule(which=choice, name=names)
    def unlink(self, which, name):
        number, fd = self._at(which)
        self._same(lambda: self.vault.unlink_at(number, name), lambda: os.unlink(name, dir_fd=fd))

    @rule(which=choice, name=names)
    def remove_directory(self, which, name):
        number, fd = self._at(which)
        self._same(lambda: self.vault.rmdir_at(number, name), lambda: os.rmdir(name, dir_fd=fd))
        self._drop_removed()

    @rule(
        which=choice,
        name=names,
        into=choice,
        new=names,
        flags=st.sampled_from([0, 0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE]),
    )
    def rename(self, which, name, into, new, flags):
        (number, fd), (above, above_fd) = self._at(which), self._at(into)
        self._same(
            lambda: self.vault.rename_at(number, name, above, new, flags),
            lambda: rename(fd, name, above_fd, new, flags),
        )
        self._drop_removed()

    @rule(which=choice, name=names, data=st.binary(max_size=20), size=st.none() | st.sampled_from([0, 5, 3000]))
    def write(self, which, name, data, size):
        number, fd = self._at(which)

        def ours():
            found = self.vault.lookup(number, name)
            if found.is_link:
                raise OSError(errno.ELOOP, "a link")
            node = self.vault.hold(found.id)
            try:
                node.write_at(2, data)
            finally:
                self.vault.release(node)
            if size is not None:
                self.vault.change(found.id, size=size)

        def theirs():
            if stat.S_ISFIFO(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
                raise OSError(errno.EINVAL, "a pipe")
            file = os.open(name, os.O_WRONLY | os.O_NOFOLLOW, dir_fd=fd)
            try:
                os.pwrite(file, data, 2)
                if size is not None:
                    os.ftruncate(file, size)
            finally:
                os.close(file)

        if os.getuid() == 0:  # others may not write what they have no right to
            self._same(ours, theirs)

    @rule(which=choice, name=names, mode=modes, mtime=st.integers(0, 1 << 61))
    def change(self, which, name, mode, mtime):
        number, fd = self._at(which)

        def ours():
            found = self.vault.lookup(number, name)
            if not found.is_link:
                bits = mode | (found.mode & stat.S_ISGID)
                self.vault.change(found.id, mode=bits, atime=5, mtime=mtime)

        def theirs():
            found = os.stat(name, dir_fd=fd, follow_symlinks=False)
            if not stat.S_ISLNK(found.st_mode):
                os.chmod(name, mode | (found.st_mode & stat.S_ISGID), dir_fd=fd)
                os.utime(name, ns=(5, mtime), dir_fd=fd)

        if self._same(ours, theirs) and not self.vault.lookup(number, name).is_link:
            assert self.vault.lookup(number, name).mtime == os.stat(name, dir_fd=fd).st_mtime_ns == mtime

    @rule(how=st.sampled_from(["commit", "close", "kill"]))
    def commit(self, how):
        self.vault.commit()
        if how != "commit":
            if how == "close":
                self.vault.close()
            else:
                self.vault.discard()
            self.vault = Vault(self.disk, "r+", KEY, self.anchor, what="vault")

    @rule()
    def compare(self):
        for number, fd in self.directories.items():
            found = {name: self._ours(number, name) for name, _ in self.vault.entries(number)}
            theirs = Path(f"/proc/self/fd/{fd}").iterdir()
            assert found == {os.fsencode(path.name): self._theirs(fd, path.name) for path in theirs}

    def _ours(self, parent: int, name: bytes):
        inode = self.vault.lookup(parent, name)
        if inode.is_dir:
            return inode.mode
        content = b""
        if inode.is_file:
            node = self.vault.hold(inode.id)
            content = bytearray(inode.size)
            node.read_at(0, content)
            self.vault.release(node)
        if inode.is_link:
            content = self.vault.target(inode.id)
        return inode.mode, inode.links, inode.uid, inode.gid, inode.size, bytes(content)

    def _theirs(self, above: int, name: str):
        found = os.stat(name, dir_fd=above, follow_symlinks=False)
        if stat.S_ISDIR(found.st_mode):
            return found.st_mode
        content = b""
        if stat.S_ISREG(found.st_mode) and os.getuid() == 0:
            fd = os.open(name, os.O_RDONLY, dir_fd=above)
            content = os.read(fd, 10_000)
            os.close(fd)
        if stat.S_ISLNK(found.st_mode):
            content = os.fsencode(os.readlink(name, dir_fd=above))
        return found.st_mode, found.st_nlink, found.st_uid, found.st_gid, found.st_size, content

    def teardown(self):
        if hasattr(self, "vault"):
            try:
                self.compare()
            finally:
                self.vault.discard()
                for fd in self.directories.values():
                    os.close(fd)
                shutil.rmtree(self.top)


TestNamespace = Namespace.TestCase
TestNamespace.settings = settings(max_examples=80, stateful_step_count=60, deadline=None)


def test_directories_deeper_than_python_calls_go():
    with Vault(MemoryDirectory(), "x", KEY, MemoryAnchor(), what="vault") as opened:
        number, depth = ROOT_INODE, sys.getrecursionlimit() + 200
        for _ in range(depth):
            number = opened.make_at(number, b"d", stat.S_IFDIR | 0o755, uid=0, gid=0).id
        opened.make_at(number, b"f", stat.S_IFREG | 0o644, uid=0, gid=0)
        opened.commit()
        assert opened.files() == ["d/" * depth + "f"]
        opened.remove_dir("d", recursive=True)
        assert opened.files() == opened.listdir() == []
