"""Answers to the kernel itself, for mounts that nothing can change: files are opened without a request.

`pyfuse3` does not tell a reader's handler which inode is meant, only what opening it gave. Where we answer, opening
gives nothing: an OPEN that is refused with ENOSYS is the last of the mount, of any file, and no RELEASE comes either
(`fc->no_open` of Linux, fs/fuse/file.c, since 3.16). So a program that goes over many files that the kernel has in its
page cache does not wait for us at all. A file that is damaged can be opened, then, and cannot be read.

Rules:

- `pyfuse3` mounts, agrees with the kernel on what each can do (INIT), and unmounts. Every request from then on is read
  here, and is answered by the handlers that it would have called.
- A request that is not in the table gets ENOSYS, which the kernel takes as the answer for good where it is one of those
  that a mount can do without (ACCESS, FLUSH, FSYNC, GETXATTR, LSEEK, STATX, INTERRUPT), and which else is an error of
  that call. Those that change something never come: the kernel knows that the mount is read-only.
- Numbers and structures are those of include/uapi/linux/fuse.h, version 7.23 and later, in the machine's byte order.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Final

import pyfuse3

from strongroom.shield._fuse import VaultOperations

_LOOKUP, _FORGET, _GETATTR, _READLINK, _READ, _STATFS = 1, 2, 3, 5, 15, 17
_OPENDIR, _RELEASEDIR, _BATCH_FORGET, _READDIRPLUS = 27, 29, 42, 44

_ASKED: Final = struct.Struct("=IIQQIIIHH")  # fuse_in_header
_REPLY: Final = struct.Struct("=IiQ")  # fuse_out_header
_ENTRY: Final = struct.Struct("=QQQQII")  # fuse_entry_out, before its attributes
_ATTR_OUT: Final = struct.Struct("=QII")  # fuse_attr_out, before its attributes
_ATTR: Final = struct.Struct("=QQQQQQIIIIIIIIII")
_READ_IN: Final = struct.Struct("=QQI")  # the beginning of fuse_read_in
_NUMBER: Final = struct.Struct("=Q")
_FORGET_ONE: Final = struct.Struct("=QQ")
_OPEN_OUT: Final = struct.Struct("=QII")
_STATFS_OUT: Final = struct.Struct("=5Q4I24x")
_DIRENT: Final = struct.Struct("=QQII")

_NUMBERS: Final = (1 << 64) - 1
_LEAST_BUFFER: Final = (1 << 20) + 4096  # of which the kernel wants one of its largest writes, which never comes
_MOST_BUFFER: Final = 1 << 29
_ANYBODY: Final = pyfuse3.RequestContext()  # who asks does not matter where nothing can be made
_GONE: Final = (errno.ENODEV, errno.ECONNABORTED)  # the mount, or its connection


class Direct:
    """Serves a mount of vaults that are read-only."""

    def __init__(self, operations: VaultOperations) -> None:
        self._operations = operations
        self._buffer = bytearray(_LEAST_BUFFER)
        self._handlers: dict[int, Callable[[int, memoryview], Sequence[bytes | memoryview] | None]] = {
            _LOOKUP: self._lookup,
            _FORGET: self._forget,
            _GETATTR: self._getattr,
            _READLINK: self._readlink,
            _READ: self._read,
            _STATFS: self._statfs,
            _OPENDIR: self._opendir,
            _RELEASEDIR: self._releasedir,
            _BATCH_FORGET: self._batch_forget,
            _READDIRPLUS: self._readdirplus,
        }

    @property
    def ready(self) -> bool:
        return self._operations.agreed

    async def serve(self, fd: int, wait: Callable[[int], Awaitable[None]]) -> None:
        """Answer the requests of a connection until it ends, or until `wait` raises."""
        os.set_blocking(fd, False)  # a request may be taken back between waiting and reading
        while True:
            await wait(fd)
            try:
                length = os.readv(fd, [self._buffer])
            except (BlockingIOError, InterruptedError, FileNotFoundError):  # the last: it was taken back meanwhile
                continue
            except OSError as error:
                if error.errno in _GONE:
                    return
                if error.errno != errno.EINVAL or len(self._buffer) >= _MOST_BUFFER:
                    raise
                self._buffer = bytearray(2 * len(self._buffer))  # this kernel was granted larger writes
                continue
            if length == 0:
                return
            self._answer(fd, memoryview(self._buffer)[:length])

    def _answer(self, fd: int, request: memoryview) -> None:
        _, opcode, unique, ino, *_ = _ASKED.unpack_from(request)
        handler = self._handlers.get(opcode)
        number, reply = errno.ENOSYS, None
        if handler is not None:
            try:
                number, reply = 0, handler(ino, request[_ASKED.size :])
            except pyfuse3.FUSEError as error:
                number = error.errno
            if reply is None and not number:
                return  # to forget is not answered
        parts = reply or ()
        try:
            os.writev(fd, [_REPLY.pack(_REPLY.size + sum(map(len, parts)), -number, unique), *parts])
        except OSError as error:
            if error.errno not in (errno.ENOENT, *_GONE):  # nobody waits for it any more
                raise

    # Handlers. Each gets the inode and the rest of the request, and returns the parts of the reply.

    def _lookup(self, ino: int, asked: memoryview) -> Sequence[bytes]:
        name = bytes(asked[:-1])  # a zero ends it
        return (_entry(_run(self._operations.lookup(ino, name, _ANYBODY))),)

    def _forget(self, ino: int, asked: memoryview) -> None:
        _run(self._operations.forget([(ino, *_NUMBER.unpack_from(asked))]))

    def _batch_forget(self, ino: int, asked: memoryview) -> None:
        (count,) = struct.unpack_from("=I", asked)
        _run(self._operations.forget(list(_FORGET_ONE.iter_unpack(asked[8 : 8 + count * _FORGET_ONE.size]))))

    def _getattr(self, ino: int, asked: memoryview) -> Sequence[bytes]:
        found = _run(self._operations.getattr(ino))
        return _ATTR_OUT.pack(*_duration(found.attr_timeout), 0), _attributes(found)

    def _readlink(self, ino: int, asked: memoryview) -> Sequence[bytes]:
        return (_run(self._operations.readlink(ino, _ANYBODY)),)

    def _read(self, ino: int, asked: memoryview) -> Sequence[bytes | memoryview]:
        _, offset, size = _READ_IN.unpack_from(asked)
        return (_run(self._operations.read_inode(ino, offset, size)),)

    def _statfs(self, ino: int, asked: memoryview) -> Sequence[bytes]:
        of = _run(self._operations.statfs(_ANYBODY))
        counts = of.f_blocks, of.f_bfree, of.f_bavail, of.f_files, of.f_ffree
        return (_STATFS_OUT.pack(*counts, of.f_bsize, of.f_namemax, of.f_frsize, 0),)

    def _opendir(self, ino: int, asked: memoryview) -> Sequence[bytes]:
        return (_OPEN_OUT.pack(_run(self._operations.opendir(ino, _ANYBODY)), 0, 0),)

    def _releasedir(self, ino: int, asked: memoryview) -> Sequence[bytes]:
        _run(self._operations.releasedir(*_NUMBER.unpack_from(asked)))
        return ()

    def _readdirplus(self, ino: int, asked: memoryview) -> Sequence[bytes]:
        handle, start, size = _READ_IN.unpack_from(asked)
        reply = bytearray()

        def add(name: bytes, entry: pyfuse3.EntryAttributes, position: int) -> bool:
            told = _entry(entry) + _DIRENT.pack(entry.st_ino, position, len(name), entry.st_mode >> 12) + name
            told += bytes(-len(told) % 8)
            if len(reply) + len(told) > size:
                return False
            reply.extend(told)
            return True

        _run(self._operations.list_directory(handle, start, add))
        return (bytes(reply),)


def _run(answering: Coroutine[Any, Any, Any]) -> Any:  # whatever the handler returns
    """What a handler answers. None of them waits for anything."""
    try:
        answering.send(None)
    except StopIteration as done:
        return done.value
    raise RuntimeError("mount: a handler suspended")


def _duration(seconds: float) -> tuple[int, int]:
    whole = int(seconds)
    return whole, int((seconds - whole) * 1e9)


def _entry(entry: pyfuse3.EntryAttributes) -> bytes:
    """A name's inode, or inode 0 for none."""
    names, names_ns = _duration(entry.entry_timeout)
    known, known_ns = _duration(entry.attr_timeout)
    head = _ENTRY.pack(entry.st_ino, entry.generation, names, known, names_ns, known_ns)
    return head + _attributes(entry)


def _attributes(of: pyfuse3.EntryAttributes) -> bytes:
    times = [divmod(time, 10**9) for time in (of.st_atime_ns, of.st_mtime_ns, of.st_ctime_ns)]
    return _ATTR.pack(
        of.st_ino,
        of.st_size,
        of.st_blocks,
        *(seconds & _NUMBERS for seconds, _ in times),
        *(nanoseconds for _, nanoseconds in times),
        of.st_mode,
        of.st_nlink,
        of.st_uid,
        of.st_gid,
        of.st_rdev,
        of.st_blksize,
        0,
    )
