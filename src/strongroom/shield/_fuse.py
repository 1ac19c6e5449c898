"""The FUSE side of `shield.files`: vaults as a read-only file system. The only importer of `pyfuse3`."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pyfuse3
import trio

from strongroom.errors import UnsupportedPlatformError
from strongroom.sealed import SealedFile
from strongroom.vault import Stat, Vault

# A mounted version of a vault never changes, so the kernel may keep what it learnt.
_FOREVER = 365 * 86400.0
_OPEN_FILES = 128
_MAX_READ = 1 << 20


@dataclass(slots=True)
class _Node:
    inode: int
    parent: int
    stat: Stat
    vault: Vault | None = None
    path: str = ""
    children: dict[bytes, int] = field(default_factory=dict)


class VaultOperations(pyfuse3.Operations):
    """Answers the kernel's requests about some vaults, each in a directory of its name ("" is the top).

    Args:
        fail: told of every error that is not the caller's own; the caller gets EIO.
    """

    supports_dot_lookup = False
    enable_writeback_cache = False

    def __init__(self, vaults: Mapping[str, Vault], fail: Callable[[BaseException], None]) -> None:
        super().__init__()
        self._fail = fail
        self._now = time.time_ns()
        self._owner = os.getuid(), os.getgid()
        self._buffer = bytearray(_MAX_READ)
        self._open: OrderedDict[int, SealedFile] = OrderedDict()
        directory = Stat(0, 0o555, is_dir=True)
        self._nodes = [_Node(0, 0, directory), _Node(pyfuse3.ROOT_INODE, pyfuse3.ROOT_INODE, directory)]
        for name, vault in vaults.items():
            top = self._directory(self._nodes[pyfuse3.ROOT_INODE], name) if name else self._nodes[pyfuse3.ROOT_INODE]
            for path in vault.files():
                above = top
                *parents, last = path.split("/")
                for part in parents:
                    above = self._directory(above, part)
                self._add(above, last, vault.stat(path), vault, path)

    def _directory(self, above: _Node, name: str) -> _Node:
        inode = above.children.get(name.encode())
        return self._nodes[inode] if inode else self._add(above, name, Stat(0, 0o555, is_dir=True))

    def _add(self, above: _Node, name: str, status: Stat, vault: Vault | None = None, path: str = "") -> _Node:
        node = _Node(len(self._nodes), above.inode, status, vault, path)
        above.children[name.encode()] = node.inode
        self._nodes.append(node)
        return node

    def close(self) -> None:
        """Close the data files that are open."""
        while self._open:
            self._open.popitem()[1].close()

    def _attributes(self, node: _Node) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = pyfuse3.InodeT(node.inode)
        entry.generation = 0
        entry.entry_timeout = entry.attr_timeout = _FOREVER
        kind = stat.S_IFDIR if node.stat.is_dir else stat.S_IFREG
        entry.st_mode = pyfuse3.ModeT(kind | (node.stat.mode & 0o555))
        entry.st_nlink = 2 if node.stat.is_dir else 1
        entry.st_uid, entry.st_gid = self._owner
        entry.st_rdev = 0
        entry.st_size = node.stat.size
        entry.st_blksize = 4096
        entry.st_blocks = -(-node.stat.size // 512)
        entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = self._now
        return entry

    async def getattr(
        self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext | None = None
    ) -> pyfuse3.EntryAttributes:
        return self._attributes(self._nodes[inode])

    async def lookup(
        self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        inode = self._nodes[parent_inode].children.get(name)
        if inode is None:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return self._attributes(self._nodes[inode])

    async def opendir(self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext) -> pyfuse3.FileHandleT:
        return pyfuse3.FileHandleT(inode)

    async def readdir(self, fh: pyfuse3.FileHandleT, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        children = list(self._nodes[fh].children.items())
        for at in range(start_id, len(children)):
            name, inode = children[at]
            attributes = self._attributes(self._nodes[inode])
            if not pyfuse3.readdir_reply(token, pyfuse3.FileNameT(name), attributes, at + 1):
                return

    async def open(self, inode: pyfuse3.InodeT, flags: pyfuse3.FlagT, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise pyfuse3.FUSEError(errno.EROFS)
        try:
            self._sealed(inode)
        except Exception as error:
            raise self._broken(error) from None
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(inode), keep_cache=True)

    async def read(self, fh: pyfuse3.FileHandleT, off: int, size: int) -> bytes:
        if size > len(self._buffer):
            self._buffer = bytearray(size)
        try:
            view = memoryview(self._buffer)[:size]
            count = self._sealed(fh).read_at(off, view)
        except Exception as error:
            raise self._broken(error) from None
        # The reply copies it before the next request is looked at.
        return view[:count]  # type: ignore[return-value]

    def _sealed(self, inode: int) -> SealedFile:
        sealed = self._open.get(inode)
        if sealed is None:
            node = self._nodes[inode]
            if node.vault is None:
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            sealed = self._open[inode] = node.vault.open(node.path)
            if len(self._open) > _OPEN_FILES:
                self._open.popitem(last=False)[1].close()
        self._open.move_to_end(inode)
        return sealed

    def _broken(self, error: Exception) -> pyfuse3.FUSEError:
        self._fail(error)
        return pyfuse3.FUSEError(errno.EIO)

    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        total = pyfuse3.StatvfsData()
        total.f_bsize = total.f_frsize = 4096
        total.f_blocks = sum(-(-node.stat.size // 4096) for node in self._nodes)
        total.f_bfree = total.f_bavail = 0
        total.f_files = len(self._nodes) - 1
        total.f_ffree = total.f_favail = 0
        total.f_namemax = 255
        return total


class Session:
    """A mount and the thread that serves it. `pyfuse3` keeps global state, so there is one for each process."""

    def __init__(self, operations: VaultOperations, mountpoint: str, *, allow_other: bool) -> None:
        self._operations = operations
        # Requests then have the kernel's largest size, 1 MiB; `max_read` itself cannot be set through pyfuse3.
        options = {"default_permissions", "ro", "fsname=strongroom", "subtype=vault"}
        if allow_other:
            options.add("allow_other")
        try:
            pyfuse3.init(operations, mountpoint, options)
        except RuntimeError as error:
            raise UnsupportedPlatformError(
                f"mount of {mountpoint}: {error}",
                hint="needs CAP_SYS_ADMIN in the user namespace that owns the mount namespace, or fusermount3",
            ) from None
        self._serving = threading.Event()
        self._token: trio.lowlevel.TrioToken | None = None
        self._thread = threading.Thread(target=self._run, name="strongroom-fuse", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            trio.run(self._serve)
        except BaseException as error:
            self._operations._fail(error)
        finally:
            self._serving.set()

    async def _serve(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._serving.set()
        await pyfuse3.main()

    def end(self) -> None:
        """Stop serving and unmount, even while files are open: their readers get ENOTCONN."""
        self._serving.wait()
        if self._thread.is_alive() and self._token:
            with contextlib.suppress(trio.RunFinishedError):  # somebody else unmounted it
                self._token.run_sync_soon(pyfuse3.terminate)
        self._thread.join()
        pyfuse3.close(unmount=True)
        self._operations.close()
