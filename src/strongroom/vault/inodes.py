"""The vault as POSIX sees it: inodes, and names that lead to them. Errors are OSErrors with the errno of the call."""

from __future__ import annotations

import errno
import os
import stat

from strongroom.errors import FormatError, LockedError
from strongroom.vault.engine import Engine
from strongroom.vault.files import Files
from strongroom.vault.journal import COMMIT_BYTE
from strongroom.vault.node import Node
from strongroom.vault.rows import MAX_NAME, MAX_TARGET, ROOT_INODE, Inline, Inode

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
MAX_LINKS = 65000
_MAX_TIME = (1 << 63) - 1


def failure(number: int, name: bytes | str | None = None) -> OSError:
    """The OSError of an errno."""
    return OSError(number, os.strerror(number), os.fsdecode(name) if isinstance(name, bytes) else name)


def _time(nanoseconds: int) -> int:
    """The nearest time that a row can hold, of the years 1677 to 2262: file systems do likewise with theirs."""
    return max(-_MAX_TIME, min(nanoseconds, _MAX_TIME))


class Inodes(Engine):
    """Operations by inode number; 1 is the top directory. Safe to call from several threads."""

    _places: dict[int, tuple[int, bytes]]  # directories that were listed: where their names are
    _overtaken: int | None = None  # the commit that this process was at when another one's came before its next

    # Looking.

    def inode(self, number: int) -> Inode:
        """Raises ESTALE's OSError if there is none. The result is the vault's own: not to be changed."""
        with self._lock:
            self._usable()
            found = self._state.find(number)
            if found is None:
                raise failure(errno.ESTALE)
            return found

    def has_inode(self, number: int) -> bool:
        """Whether there is one, be it only because somebody has it open."""
        with self._lock:
            self._usable()
            return self._state.find(number) is not None

    def lookup(self, parent: int, name: bytes) -> Inode:
        """The inode that a name leads to. Raises ENOENT, ENOTDIR, ENAMETOOLONG."""
        found = self.find(parent, name)
        if found is None:
            raise failure(errno.ENOENT, name)
        return found

    def find(self, parent: int, name: bytes) -> Inode | None:
        """As `lookup`, but None if the directory has no such name."""
        with self._lock:
            self._directory_inode(parent)
            if len(name) > MAX_NAME:
                raise failure(errno.ENAMETOOLONG, name[:100])
            number = self._state.entry(parent, name)
            return None if number is None else self.inode(number)

    def entries(self, parent: int, after: bytes = b"", limit: int = -1) -> list[tuple[bytes, Inode]]:
        """The names behind `after` in a directory, sorted, with their inodes."""
        with self._lock:
            self._directory_inode(parent)
            found = [(name, self.inode(number)) for name, number in self._state.entries(parent, after, limit)]
            for name, inode in found:
                if inode.is_dir:
                    self._check_only_name(parent, name, inode.id)
            return found

    def _make_files(self) -> Files:
        self._places = {}
        return super()._make_files()

    def _check_only_name(self, parent: int, name: bytes, number: int) -> None:
        """So that whoever walks a tree comes to an end, whoever made it."""
        known = self._places.setdefault(number, (parent, name))
        if number == ROOT_INODE or (known != (parent, name) and self._state.entry(*known) == number):
            raise FormatError(f"vault metadata: directory {number} has two names, {known[1]!r} and {name!r}")
        self._places[number] = parent, name

    def target(self, number: int) -> bytes:
        """Where a symbolic link leads. Raises EINVAL."""
        inode = self.inode(number)
        if not inode.is_link or not isinstance(inode.body, Inline):
            raise failure(errno.EINVAL)
        return inode.body.data

    def _directory_inode(self, number: int) -> Inode:
        inode = self.inode(number)
        if not inode.is_dir:
            raise failure(errno.ENOTDIR)
        return inode

    # Names.

    def make_at(self, parent: int, name: bytes, mode: int, *, uid: int, gid: int, target: bytes = b"") -> Inode:
        """A new file, directory, symbolic link (`target`), pipe or socket, as the type bits of `mode` say.

        Raises:
            EEXIST, ENOENT (the directory is removed), ENAMETOOLONG, EPERM (a device), EINVAL (the name cannot be).
        """
        with self._lock:
            self._usable(to_write=True)
            above = self._directory_inode(parent)
            self._check_name(name)
            if above.links == 0:
                raise failure(errno.ENOENT, name)
            if self._state.entry(parent, name) is not None:
                raise failure(errno.EEXIST, name)
            if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
                raise failure(errno.EPERM, name)
            if len(target) > MAX_TARGET:
                raise failure(errno.ENAMETOOLONG)
            if above.mode & stat.S_ISGID:
                gid = above.gid
                mode |= stat.S_ISGID if stat.S_ISDIR(mode) else 0
            now = self._clock()
            body = Inline(target) if target else None
            inode = self._state.add(Inode(0, mode, 1, uid, gid, len(target), now, now, now, body, 0))
            self._state.link(parent, name, inode.id)
            self._touch_directory(above, now)
            return inode

    def link_at(self, number: int, parent: int, name: bytes) -> Inode:
        """One more name for a file. Raises EPERM for a directory, EEXIST, EMLINK."""
        with self._lock:
            self._usable(to_write=True)
            inode, above = self.inode(number), self._directory_inode(parent)
            self._check_name(name)
            if self._state.entry(parent, name) is not None:
                raise failure(errno.EEXIST, name)
            if above.links == 0:
                raise failure(errno.ENOENT, name)
            if inode.is_dir:
                raise failure(errno.EPERM, name)
            if inode.links >= MAX_LINKS:
                raise failure(errno.EMLINK, name)
            now = self._clock()
            inode.links += 1
            inode.ctime = now
            self._state.touch(inode)
            self._state.link(parent, name, number)
            self._touch_directory(above, now)
            return inode

    def unlink_at(self, parent: int, name: bytes) -> Inode:
        """Take a name from a file; the last name takes the file with it, once nobody has it open. Raises EISDIR.

        Returns the inode, which has as many links as there are names left.
        """
        with self._lock:
            self._usable(to_write=True)
            inode = self.lookup(parent, name)
            if inode.is_dir:
                raise failure(errno.EISDIR, name)
            now = self._clock()
            self._state.unlink(parent, name)
            self._unnamed(inode, now)
            self._touch_directory(self.inode(parent), now)
            return inode

    def rmdir_at(self, parent: int, name: bytes) -> Inode:
        """Remove an empty directory; the inode that it had. Raises ENOTDIR, ENOTEMPTY."""
        with self._lock:
            self._usable(to_write=True)
            inode = self.lookup(parent, name)
            if not inode.is_dir:
                raise failure(errno.ENOTDIR, name)
            if not self._state.is_empty(inode.id):
                raise failure(errno.ENOTEMPTY, name)
            now = self._clock()
            self._state.unlink(parent, name)
            self._unnamed(inode, now)
            self._touch_directory(self.inode(parent), now)
            return inode

    def rename_at(
        self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int = 0
    ) -> tuple[Inode, Inode | None]:
        """Give what has a name another, replacing what has that, as renameat2(2) does with NOREPLACE and EXCHANGE.

        The content of the file is durable no later than its new name. Returns it, and what had the new name.
        """
        with self._lock:
            self._usable(to_write=True)
            inode = self.lookup(parent, name)
            above, new_above = self.inode(parent), self._directory_inode(new_parent)
            self._check_name(new_name)
            if new_above.links == 0:
                raise failure(errno.ENOENT, new_name)
            found = self._state.entry(new_parent, new_name)
            other = None if found is None else self.inode(found)
            if flags & RENAME_EXCHANGE and other is None:
                raise failure(errno.ENOENT, new_name)
            if flags & RENAME_NOREPLACE and other is not None:
                raise failure(errno.EEXIST, new_name)
            if inode.is_dir and parent != new_parent and self._is_below(new_parent, inode.id):
                raise failure(errno.EINVAL, new_name)
            if other is not None and other.is_dir and parent != new_parent and self._is_below(parent, other.id):
                raise failure(errno.EINVAL if flags & RENAME_EXCHANGE else errno.ENOTEMPTY, new_name)
            if other is inode:
                return inode, inode
            now = self._clock()
            if flags & RENAME_EXCHANGE and other is not None:
                self._state.link(parent, name, other.id)
                other.ctime = now
                self._state.touch(other)
            else:
                if other is not None:
                    self._check_replaceable(inode, other, new_name)
                self._state.unlink(parent, name)
            self._state.link(new_parent, new_name, inode.id)
            if other is not None and not flags & RENAME_EXCHANGE:
                self._ordered.add(inode.id)
                self._unnamed(other, now)
            inode.ctime = now
            self._state.touch(inode)
            self._touch_directory(above, now)
            if parent != new_parent:
                self._touch_directory(new_above, now)
            return inode, other

    def _check_replaceable(self, inode: Inode, other: Inode, name: bytes) -> None:
        if other.is_dir:
            if not inode.is_dir:
                raise failure(errno.EISDIR, name)
            if not self._state.is_empty(other.id):
                raise failure(errno.ENOTEMPTY, name)
        elif inode.is_dir:
            raise failure(errno.ENOTDIR, name)

    def _is_below(self, number: int, top: int) -> bool:
        """Whether a directory is `top`, or lies somewhere in it."""
        seen: set[int] = set()
        above: int | None = number
        while above is not None and above not in (top, ROOT_INODE):
            if above in seen:
                raise FormatError(f"vault metadata: directory {above} lies below itself")
            seen.add(above)
            above = self._state.parent(above)
        return above == top

    def _check_name(self, name: bytes) -> None:
        if len(name) > MAX_NAME:
            raise failure(errno.ENAMETOOLONG, name[:100])
        if name in (b"", b".", b"..") or b"/" in name or b"\0" in name:
            raise failure(errno.EINVAL, name)

    def _touch_directory(self, inode: Inode, now: int) -> None:
        inode.mtime = inode.ctime = now
        self._state.touch(inode)

    def _unnamed(self, inode: Inode, now: int) -> None:
        inode.links -= 1
        inode.ctime = now
        self._state.touch(inode)
        node = self._files.nodes.get(inode.id)
        if inode.links:
            return
        if node is None or not node.handles:
            self._files.drop(inode.id)
        else:
            self._files.keep_open(node)

    # Attributes.

    def change(
        self,
        number: int,
        *,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        size: int | None = None,
        atime: int | None = None,
        mtime: int | None = None,
    ) -> Inode:
        """Change attributes; `mode` is of permission bits, times are in nanoseconds."""
        with self._lock:
            self._usable(to_write=True)
            inode = self.inode(number)
            if size is not None:
                if inode.is_dir:
                    raise failure(errno.EISDIR)
                if not inode.is_file:
                    raise failure(errno.EINVAL)
                node = self.hold(number)
                try:
                    node.truncate(size)
                finally:
                    self.release(node)
                inode = self.inode(number)  # to be written to, the file may have been read anew
            if inode.is_dir and (mode, uid, gid) != (None, None, None):
                self._state.changed_attributes.add(number)
            if mode is not None:
                inode.mode = stat.S_IFMT(inode.mode) | stat.S_IMODE(mode)
            inode.uid = inode.uid if uid is None else uid
            inode.gid = inode.gid if gid is None else gid
            inode.atime = inode.atime if atime is None else _time(atime)
            inode.mtime = inode.mtime if mtime is None else _time(mtime)
            inode.ctime = self._clock()
            self._state.touch(inode)
            return inode

    # Contents.

    def hold(self, number: int) -> Node:
        """The content of a file, which stays until it is given to `release` as often. Raises EISDIR, EINVAL."""
        with self._lock:
            inode = self.inode(number)
            if inode.is_dir:
                raise failure(errno.EISDIR)
            if not inode.is_file:
                raise failure(errno.EINVAL)
            node = self._files.node(number)
            node.handles += 1
            return node

    def release(self, node: Node) -> None:
        """Give back what `hold` gave."""
        with self._lock:
            if self._closed or self._process != os.getpid():
                return
            node.handles -= 1
            if node.handles == 0:
                self._files.release(node)

    def usage(self) -> tuple[int, int]:
        """How many inodes the newest commit has, and the sum of their lengths."""
        with self._lock:
            return self._state.counts()

    @property
    def dirty_bytes(self) -> int:
        """Roughly how many bytes of content a commit has to take in."""
        with self._lock:
            return self._files.dirty_bytes

    # For mounts.

    def keep_log(self) -> None:
        """From now on an fsync appends to the log, which has one owner among the processes.

        Raises:
            LockedError: another one has it.
        """
        with self._lock:
            self._usable(to_write=True)
            if self.root is None:
                self.commit()  # records stand on a commit
            self._own_log()

    def leave_log(self) -> None:
        """Commit, and let other processes have the log. Raises as `commit`."""
        with self._lock:
            if not self._closed and self._journal.owned:
                self.commit()
                self._journal.release()

    def overtaken(self) -> set[int] | None:
        """The inodes that other processes, or this one, have changed since this was asked last; None if no other has.

        A directory counts as changed when a name in it changes. What was removed is not among them.
        """
        with self._lock:
            before, self._overtaken = self._overtaken, None
            return None if before is None else self._state.changed_after(before)

    def _rebase(self) -> None:
        before = self._state.base
        super()._rebase()
        if self._state.base != before and self._overtaken is None:
            self._overtaken = before

    def _recover(self) -> None:
        super()._recover()
        if self._mode == "r+" and self._locks is not None:
            with self._holding(COMMIT_BYTE):
                self._rebase()
                self._purge()
                self._files.sweep()

    def _purge(self) -> None:
        """Remove inodes without a name that nobody has open any more: what a crash left."""
        for number in self._state.orphans():
            node = self._files.node(number)
            try:
                self._files.lock_inode(node)
            except LockedError:
                continue
            self._files.drop(number)
