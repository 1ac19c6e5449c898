"""The FUSE side of `shield.files`: answers to the kernel's requests. With its neighbours the only user of `pyfuse3`.

Rules:

- A handler is a plain function that `answer` makes an answer of: it returns, or its exception becomes an errno. What
  is not the caller's own mistake is EIO, a line in the log and `MountedVault.failure`; the mount lives on.
- Of a writable mount the kernel keeps the pages, sizes and times of files and writes them back when it likes, at the
  latest when a file is closed or synced. So writes come in large pieces, reads come for files opened to be written
  only, and O_APPEND is the kernel's.
- Locks of files (POSIX and flock) are the kernel's own: all programs that use the mount see them, nobody else does.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import pyfuse3

from strongroom.errors import FormatError, IntegrityError
from strongroom.shield._answers import Answers, answer
from strongroom.shield._places import FOREVER, SHORTLY, Place, Places, Shown, absent, attributes, made_up_top
from strongroom.vault import Vault
from strongroom.vault.node import Node
from strongroom.vault.paths import show
from strongroom.vault.rows import MAX_NAME, Inode

_CHUNK: Final = 512
_DOTS: Final = 2
_MAX_REQUEST: Final = 1 << 20
_SAME_TIME: Final = 10_000_000  # ns by which the kernel and we may tell the time of one request differently
_HELD: Final = 32  # files that are read without having been opened and whose keys and descriptors are kept
_ROOM: Final = 1 << 50  # what a storage that cannot tell has left

# Takes a name, its inode, and the position behind it; False if there is no room for it any more.
_Add = Callable[[bytes, pyfuse3.EntryAttributes, int], bool]


@dataclass(slots=True)
class _Directory:
    """An open directory: the names that were told so far, so that a position means a name."""

    place: Place | None
    names: list[bytes] = field(default_factory=list)
    complete: bool = False


class VaultOperations(Answers):
    """Answers the kernel's requests about some vaults, each in a directory of its name ("" is the top).

    Args:
        fail: told of every error that is not the caller's own.
        points: paths by vault at which there shall be a directory to mount something over.
    """

    supports_dot_lookup = True
    enable_writeback_cache = False
    enable_acl = False

    def __init__(
        self,
        vaults: Mapping[str, Vault],
        fail: Callable[[BaseException], None],
        points: Mapping[str, Collection[str]] | None = None,
    ) -> None:
        super().__init__(fail)
        self.places = Places(vaults, points or {})
        self.agreed = False  # with the kernel, on what each can do
        self.enable_writeback_cache = self.places.writable
        self._owner = os.getuid(), os.getgid()
        self._began = time.time_ns()
        self._buffer = bytearray(_MAX_REQUEST)
        self._view = memoryview(self._buffer)
        self._absent = absent(SHORTLY if self.places.writable else FOREVER)
        self._files: dict[int, tuple[Vault, Node]] = {}
        self._read_last: dict[int, tuple[Vault, Node]] = {}  # by inode, the last one last, of files never opened
        self._directories: dict[int, _Directory] = {}
        self._handles = 0
        self.written = 0  # bytes, since somebody set it to 0
        self._usage: dict[int, tuple[object, tuple[int, int]]] = {}

    def init(self) -> None:
        self.agreed = True

    def close(self) -> None:
        """Give back what programs still have open. The vaults stay open."""
        for files in (self._files, self._read_last):
            while files:
                vault, node = files.popitem()[1]
                vault.release(node)

    # Names.

    def _told(self, shown: Shown, inode: Inode, parent: int, name: bytes) -> pyfuse3.EntryAttributes:
        self.places.told(shown, inode.id, parent, name)
        return attributes(shown, inode)

    def _parent(self, ino: int) -> Place:
        """The place of a directory that is to be changed."""
        place = self.places.get(ino)
        if place is None:
            raise OSError(errno.EROFS if ino == pyfuse3.ROOT_INODE else errno.ESTALE, "")
        if place.removed:
            raise OSError(errno.ENOENT, "")
        return place

    @answer
    def lookup(self, parent: int, name: bytes, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        place = self.places.get(parent)
        if place is None:
            return self._lookup_top(parent, name)
        inode = place.shown.find(place.number, name)
        if inode is not None:
            return self._told(place.shown, inode, parent, name)
        if name in (b".", b".."):
            return self._lookup_dot(place, parent, name)
        return self._absent

    def _lookup_dot(self, place: Place, ino: int, name: bytes) -> pyfuse3.EntryAttributes:
        if name == b".." and (above := self.places.get(place.parent)) is not None:
            place = above
        return self._told(place.shown, place.shown.inode(place.number), place.parent, place.name)

    def _lookup_top(self, parent: int, name: bytes) -> pyfuse3.EntryAttributes:
        if parent != pyfuse3.ROOT_INODE:
            raise OSError(errno.ESTALE, "")
        shown = self.places.tops.get(name)
        if shown is None:
            return self._absent
        return self._told(shown, shown.vault.inode(1), parent, name)

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        for ino, count in inode_list:
            self.places.forget(ino, count)
            if ino in self._read_last and self.places.get(ino) is None:
                vault, node = self._read_last.pop(ino)
                vault.release(node)

    def _make(
        self, parent: int, name: bytes, mode: int, ctx: pyfuse3.RequestContext, target: bytes = b""
    ) -> tuple[Shown, Inode]:
        place = self._parent(parent)
        uid, gid = place.shown.ids_there(ctx.uid, ctx.gid)
        return place.shown, place.shown.vault.make_at(place.number, name, mode, uid=uid, gid=gid, target=target)

    @answer
    def mknod(
        self, parent: int, name: bytes, mode: int, rdev: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        return self._told(*self._make(parent, name, mode, ctx), parent, name)

    @answer
    def mkdir(self, parent: int, name: bytes, mode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        return self._told(*self._make(parent, name, mode, ctx), parent, name)

    @answer
    def symlink(self, parent: int, name: bytes, target: bytes, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        return self._told(*self._make(parent, name, stat.S_IFLNK | 0o777, ctx, target), parent, name)

    @answer
    def create(
        self, parent: int, name: bytes, mode: int, flags: int, ctx: pyfuse3.RequestContext
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        shown, inode = self._make(parent, name, stat.S_IFREG | stat.S_IMODE(mode), ctx)
        info = self._hold(shown.vault, inode.id)
        return info, self._told(shown, inode, parent, name)

    @answer
    def link(self, ino: int, new_parent: int, new_name: bytes, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        place, above = self.places[ino], self._parent(new_parent)
        if place.shown is not above.shown:
            raise OSError(errno.EXDEV, "")
        inode = place.shown.vault.link_at(place.number, above.number, new_name)
        return self._told(place.shown, inode, new_parent, new_name)

    @answer
    def unlink(self, parent: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        place = self._parent(parent)
        self._removed(place.shown, place.shown.vault.unlink_at(place.number, name))

    @answer
    def rmdir(self, parent: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        place = self._parent(parent)
        self._removed(place.shown, place.shown.vault.rmdir_at(place.number, name))

    def _removed(self, shown: Shown, inode: Inode) -> None:
        """Remember what lost a name for as long as the kernel does, if that was its last.

        The kernel goes on to ask about it, and after a name is gone it hands over times; an error would be one of the
        whole file system to the next `syncfs`.
        """
        if not inode.links and (known := self.places.get(inode.id ^ shown.mask)) is not None:
            known.removed = inode

    @answer
    def rename(
        self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int, ctx: pyfuse3.RequestContext
    ) -> None:
        place, above = self._parent(parent), self._parent(new_parent)
        if flags & ~(pyfuse3.RENAME_EXCHANGE | pyfuse3.RENAME_NOREPLACE):
            raise OSError(errno.EINVAL, "")
        if place.shown is not above.shown:
            raise OSError(errno.EXDEV, "")
        vault = place.shown.vault
        inode, other = vault.rename_at(place.number, name, above.number, new_name, flags)
        self._renamed(place.shown, inode, (parent, name), (new_parent, new_name))
        if other is None:
            return
        if flags & pyfuse3.RENAME_EXCHANGE:
            self._renamed(place.shown, other, (new_parent, new_name), (parent, name))
        else:
            self._removed(place.shown, other)

    def _renamed(self, shown: Shown, inode: Inode, old: tuple[int, bytes], new: tuple[int, bytes]) -> None:
        ino = inode.id ^ shown.mask
        if (known := self.places.get(ino)) is not None:
            self.places.named(known, *new)
            self.places.unnamed(ino, *old)

    @answer
    def readlink(self, ino: int, ctx: pyfuse3.RequestContext) -> bytes:
        place = self.places[ino]
        return place.shown.vault.target(place.number)

    # Attributes.

    def _attributes(self, ino: int) -> pyfuse3.EntryAttributes:
        place = self.places.get(ino)
        if place is None and ino == pyfuse3.ROOT_INODE:
            return made_up_top(self._owner, self._began)
        place = self.places[ino]
        return attributes(place.shown, self._gone(place) or place.shown.inode(place.number))

    @staticmethod
    def _gone(place: Place) -> Inode | None:
        """What an inode was that has no name any more, and that nobody has open."""
        removed = place.removed
        return None if removed is None or place.shown.vault.has_inode(place.number) else removed

    @answer
    def getattr(self, ino: int, ctx: pyfuse3.RequestContext | None = None) -> pyfuse3.EntryAttributes:
        return self._attributes(ino)

    @answer
    def setattr(
        self,
        ino: int,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        if self.places.get(ino) is None and ino == pyfuse3.ROOT_INODE:
            raise OSError(errno.EROFS, "")
        place = self.places[ino]
        shown, vault = place.shown, place.shown.vault
        changes: dict[str, int] = {}
        if fields.update_mode:
            changes["mode"] = stat.S_IMODE(attr.st_mode)
        if fields.update_uid or fields.update_gid:
            uid, gid = shown.ids_there(attr.st_uid, attr.st_gid)
            changes |= {"uid": uid} if fields.update_uid else {}
            changes |= {"gid": gid} if fields.update_gid else {}
        if fields.update_size:
            changes["size"] = attr.st_size
        if fields.update_atime:
            changes["atime"] = attr.st_atime_ns
        if fields.update_mtime:
            changes["mtime"] = attr.st_mtime_ns
        if (gone := self._gone(place)) is not None:
            changes["mode"] = stat.S_IFMT(gone.mode) | changes.get("mode", stat.S_IMODE(gone.mode))
            place.removed = replace(gone, **changes)  # type: ignore[arg-type]  # of the numbers among its fields
            return attributes(shown, place.removed)
        if fields.update_ctime and len(changes) == 1 and "mtime" in changes:
            inode = vault.inode(place.number)
            if inode.mtime == attr.st_mtime_ns and abs(inode.ctime - attr.st_ctime_ns) < _SAME_TIME:
                return attributes(shown, inode)  # of what was linked, renamed, or lost a name just now
        return attributes(shown, vault.change(place.number, **changes))

    # Directories.

    @answer
    def opendir(self, ino: int, ctx: pyfuse3.RequestContext) -> int:
        place = self.places.get(ino)
        if place is None and ino != pyfuse3.ROOT_INODE:
            raise OSError(errno.ESTALE, "")
        self._handles += 1
        self._directories[self._handles] = _Directory(place)
        return self._handles

    @answer
    def readdir(self, fh: int, start: int, token: pyfuse3.ReaddirToken) -> None:
        self._list(fh, start, lambda name, entry, after: pyfuse3.readdir_reply(token, name, entry, after))

    @answer
    def list_directory(self, fh: int, start: int, add: _Add) -> None:
        """As `readdir`, for a caller of ours."""
        self._list(fh, start, add)

    def _list(self, fh: int, start: int, add: _Add) -> None:
        directory = self._directories[fh]
        if start == 0:
            directory.names, directory.complete = [], False
        place = directory.place
        ino = pyfuse3.ROOT_INODE if place is None else place.number ^ place.shown.mask
        above = ino if place is None or ino == pyfuse3.ROOT_INODE else place.parent
        for position, (name, dot) in enumerate(((b".", ino), (b"..", above))):
            if start <= position and not add(name, self._dot(dot), position + 1):
                return
        start = max(0, start - _DOTS)
        if place is None:
            self._read_top(start, add)
            return
        shown, names = place.shown, directory.names
        while True:
            if start < len(names):  # told already: the program went back, or the last reply was full
                after = names[start - 1] if start else b""
                del names[start:]
                directory.complete = False
            else:
                after = names[-1] if names else b""
            if directory.complete:
                return
            found, last = ([], True) if place.removed else shown.entries(place.number, after, _CHUNK)
            directory.complete = last
            for name, inode in found:
                names.append(name)
                start += 1
                if not add(name, attributes(shown, inode), start + _DOTS):
                    names.pop()
                    directory.complete = False
                    return
                self.places.told(shown, inode.id, ino, name)

    def _dot(self, ino: int) -> pyfuse3.EntryAttributes:
        try:
            return self._attributes(ino)
        except OSError:  # a directory that is removed
            return made_up_top(self._owner, self._began)

    def _read_top(self, start: int, add: _Add) -> None:
        for at, (name, shown) in enumerate(self.places.tops.items()):
            if at >= start:
                entry = attributes(shown, shown.vault.inode(1))
                if not add(name, entry, at + 1 + _DOTS):
                    return
                self.places.told(shown, 1, pyfuse3.ROOT_INODE, name)

    @answer
    def releasedir(self, fh: int) -> None:
        self._directories.pop(fh, None)

    @answer
    def fsyncdir(self, fh: int, datasync: bool) -> None:
        place = self._directories[fh].place
        for shown in self.places.shown if place is None else [place.shown]:
            if shown.writable:
                shown.vault.fsync(None)

    # Contents.

    def _hold(self, vault: Vault, number: int) -> pyfuse3.FileInfo:
        node = vault.hold(number)
        self._handles += 1
        self._files[self._handles] = vault, node
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(self._handles), keep_cache=True)

    @answer
    def open(self, ino: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        place = self.places[ino]
        vault = place.shown.vault
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_TRUNC) and not place.shown.writable:
            raise OSError(errno.EROFS, "")
        if flags & os.O_TRUNC:
            vault.change(place.number, size=0)
        return self._hold(vault, place.number)

    @answer
    def read(self, fh: int, offset: int, size: int) -> bytes:
        return self._read(*self._files[fh], offset, size)  # type: ignore[return-value]  # it has what pyfuse3 needs

    @answer
    def read_inode(self, ino: int, offset: int, size: int) -> memoryview:
        """As `read`, of a file that nobody has told us is open; good until the next one is read."""
        held = self._read_last.pop(ino, None)
        if held is None:
            place = self.places[ino]
            held = place.shown.vault, place.shown.vault.hold(place.number)
        self._read_last[ino] = held
        if len(self._read_last) > _HELD:
            vault, node = self._read_last.pop(next(iter(self._read_last)))
            vault.release(node)
        return self._read(*held, offset, size)

    def _read(self, vault: Vault, node: Node, offset: int, size: int) -> memoryview:
        if size > len(self._buffer):
            self._buffer = bytearray(size)
            self._view = memoryview(self._buffer)
        view = self._view[:size]
        with vault._lock:
            try:
                count = node.read_at(offset, view)
            except (IntegrityError, FormatError) as error:
                raise type(error)(f"{self._name(vault, node)}: {error.message}", hint=error.hint) from None
        # The reply copies it before the next request is looked at.
        return view[:count]

    def _name(self, vault: Vault, node: Node) -> str:
        """The name by which the kernel came to a file, for a person."""
        for _, place in self.places.known():
            if place.shown.vault is vault and place.number == node.number:
                return show(place.name)
        return f"inode {node.number}"

    @answer
    def write(self, fh: int, offset: int, data: bytes) -> int:
        vault, node = self._files[fh]
        with vault._lock:
            vault._usable(to_write=True)
            node.write_at(offset, data)
        self.written += len(data)
        return len(data)

    async def flush(self, fh: int) -> None:
        raise pyfuse3.FUSEError(errno.ENOSYS)  # closing is no commit, and the kernel need not ask again

    @answer
    def release(self, fh: int) -> None:
        vault, node = self._files.pop(fh)
        vault.release(node)

    @answer
    def fsync(self, fh: int, datasync: bool) -> None:
        vault, node = self._files[fh]
        if vault.mode != "r":
            vault.fsync(node.number)

    # The whole.

    @answer
    def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        total = pyfuse3.StatvfsData()
        total.f_bsize = total.f_frsize = 4096
        total.f_namemax = MAX_NAME
        for shown in self.places.shown:
            files, size = self._used(shown.vault)
            free, free_files = _free(shown.vault) if shown.writable else (0, 0)
            total.f_blocks += -(-size // 4096) + free
            total.f_bfree = total.f_bavail = max(total.f_bavail, free)
            total.f_files += files + free_files
            total.f_ffree = total.f_favail = max(total.f_favail, free_files)
        return total

    def _used(self, vault: Vault) -> tuple[int, int]:
        """Counted once for each commit: it reads every row."""
        known = self._usage.get(id(vault))
        if known is None or known[0] != vault.root:
            known = self._usage[id(vault)] = vault.root, vault.usage()
        return known[1]


def _free(vault: Vault) -> tuple[int, int]:
    """Blocks of 4 KiB and inodes that the storage still takes."""
    path = getattr(vault.directory, "path", None)
    if path is None:
        return _ROOM // 4096, _ROOM // 4096
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize // 4096, found.f_favail or _ROOM // 4096
