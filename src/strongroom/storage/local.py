"""Files and directories of the operating system."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from strongroom.errors import FormatError, LockedError, UsageError
from strongroom.storage.locks import OPEN_BYTE, OfdLocks, ofd_locks
from strongroom.storage.protocols import LOCKS_AT, OpenMode, Storage

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

if TYPE_CHECKING:
    from collections.abc import Buffer  # type: ignore[attr-defined,unused-ignore]  # Python 3.12

# Python's descriptors are close-on-exec; O_CLOEXEC only says so where one looks for it.
_ALWAYS = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOCTTY", 0)
_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
_NO_WAIT = getattr(os, "O_NONBLOCK", 0)

# Bytes written to a file after which the kernel is asked to begin, so that the next sync has less to wait for.
_WRITE_OUT = 8 << 20
_SYNC_FILE_RANGE_WRITE = 2  # linux/fs.h


def _open_regular(path: str, flags: int) -> int:
    """A descriptor of a regular file; a new one is readable by its owner only.

    Whoever holds a disk may put anything in a file's place: a link to a file elsewhere, which would be overwritten, or
    a pipe, on which `open` would wait for ever.

    Raises:
        OSError: as `open` does.
        FormatError: it is a symbolic link, a pipe, a device or a socket. It was not read from or written to.
        LockedError: the system's file server has lent the file to somebody else.
    """
    if not _NO_FOLLOW and Path(path).is_symlink():
        raise _irregular(path, "symbolic link")
    try:
        fd = os.open(path, flags | _ALWAYS | _NO_FOLLOW | _NO_WAIT, 0o600)
    except BlockingIOError:
        raise _in_use(path, "in use") from None
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK) and Path(path).is_symlink():
            raise _irregular(path, "symbolic link") from None
        if error.errno in (errno.ENXIO, errno.EOPNOTSUPP):
            raise _irregular(path, "socket or device") from None
        raise
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        if not stat.S_ISREG(mode):
            raise _irregular(path, "pipe" if stat.S_ISFIFO(mode) else "device")
        if _NO_WAIT:
            os.set_blocking(fd, True)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _irregular(path: str, what: str) -> FormatError:
    return FormatError(
        f"{path}: is a {what}, wanted a regular file",
        hint="nothing of Strongroom's makes one; put the file itself in its place, or name what the link leads to",
    )


def _in_use(path: str, who: str) -> LockedError:
    return LockedError(f"{path}: {who} by another opener", hint="close it there, then try again")


class FileStorage:
    """A regular file of the operating system, locked as the package says; a new one is readable by its owner only.

    The last part of its path is no symbolic link: those are refused, not followed.

    Args:
        shared: take no lock.
    """

    atomic_sync = False

    def __init__(self, path: str | os.PathLike[str], mode: OpenMode = "r", *, shared: bool = False) -> None:
        """Raises OSError as `open` does, FormatError for what is no regular file, LockedError if others use it."""
        flags = {"r": os.O_RDONLY, "r+": os.O_RDWR, "x": os.O_RDWR | os.O_CREAT | os.O_EXCL}[mode]
        self.path = os.fspath(path)
        self._fd = _open_regular(self.path, flags)
        self._seek_lock = threading.Lock()
        self._written = 0  # bytes, since the kernel was asked to write them out; several threads may miss some
        self.locks: OfdLocks | None = None
        try:
            self.locks = ofd_locks(self._fd, owned=False)
            if not shared:
                self._lock(exclusive=mode != "r")
        except BaseException:
            self.close()
            raise

    def _lock(self, *, exclusive: bool) -> None:
        try:
            if self.locks:
                if not self.locks.acquire(OPEN_BYTE, exclusive=exclusive):
                    raise BlockingIOError(errno.EWOULDBLOCK, os.strerror(errno.EWOULDBLOCK))
            elif sys.platform == "win32":
                if exclusive:
                    # Windows locks bytes, and locked bytes cannot be read: lock one that no file reaches.
                    os.lseek(self._fd, LOCKS_AT, os.SEEK_SET)
                    msvcrt.locking(self._fd, msvcrt.LK_NBLCK, 1)
            else:
                fcntl.flock(self._fd, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK):
                raise
            raise _in_use(self.path, "in use" if exclusive else "being written") from None

    def read_into(self, offset: int, buffer: Buffer) -> int:
        if offset >= LOCKS_AT:
            return 0  # no file is as long, and the calls below take no such number
        done = self._read(offset, buffer)
        size = memoryview(buffer).nbytes
        if 0 < done < size:
            with memoryview(buffer) as view:
                while done < size and (count := self._read(offset + done, view[done:])):
                    done += count
        return done

    def _read(self, offset: int, buffer: Buffer) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(self._fd, [buffer], offset)
        view = memoryview(buffer)
        with self._seek_lock:
            os.lseek(self._fd, offset, os.SEEK_SET)
            data = os.read(self._fd, len(view))
        view[: len(data)] = data
        return len(data)

    def write_at(self, offset: int, data: Buffer) -> None:
        view = memoryview(data)
        self._written += len(view)
        while view:
            count = self._write(offset, view)
            offset += count
            view = view[count:]
        if self._written >= _WRITE_OUT:
            self._written = 0
            _write_out(self._fd)

    def _write(self, offset: int, view: memoryview) -> int:
        if hasattr(os, "pwrite"):
            count: int = os.pwrite(self._fd, view, offset)
            return count
        with self._seek_lock:
            os.lseek(self._fd, offset, os.SEEK_SET)
            return os.write(self._fd, view)

    def sync(self) -> None:
        _sync(self._fd)

    def resize(self, size: int) -> None:
        os.ftruncate(self._fd, size)

    def size(self) -> int:
        return os.fstat(self._fd).st_size

    def fileno(self) -> int:
        """The descriptor; it ends with the storage."""
        return self._fd

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            try:
                if self.locks:
                    self.locks.close()
            finally:
                os.close(fd)

    def leave_to_parent(self) -> None:
        """In a forked child: close it, so that the parent's locks end with the parent."""
        self.close()

    def __repr__(self) -> str:
        return f"FileStorage({self.path!r})"


_sync_file_range = (
    getattr(ctypes.CDLL(None, use_errno=True), "sync_file_range", None) if sys.platform == "linux" else None
)
if _sync_file_range is not None:
    _sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)


def _write_out(fd: int) -> None:
    """Have the kernel begin to write a file to its disk; whatever of that fails, the next sync reports."""
    if _sync_file_range is not None:
        _sync_file_range(fd, 0, 0, _SYNC_FILE_RANGE_WRITE)


def _sync(fd: int) -> None:
    if sys.platform == "darwin":
        # fsync there leaves the drive's own cache unwritten.
        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
    elif hasattr(os, "fdatasync"):
        os.fdatasync(fd)
    else:
        os.fsync(fd)


class LocalDirectory:
    """A directory of the operating system. What is no regular file in it is neither listed nor opened.

    Args:
        mapped: map its files (`MmapStorage`): for DAX persistent memory and tmpfs.
    """

    write_once = False

    def __init__(self, path: str | os.PathLike[str], *, mapped: bool = False) -> None:
        self.path = Path(path)
        self.mapped = mapped

    def _at(self, name: str) -> Path:
        if name in ("", ".", "..") or "/" in name or os.sep in name or "\0" in name:
            raise UsageError(f"file name: {name!r}, wanted one without a path")
        return self.path / name

    def open(self, name: str, mode: OpenMode, *, shared: bool = False) -> Storage:
        if self.mapped:
            from strongroom.storage.mapped import MmapStorage  # which builds on this module

            return MmapStorage(self._at(name), mode, shared=shared)
        return FileStorage(self._at(name), mode, shared=shared)

    def locks(self, name: str) -> OfdLocks | None:
        path = os.fspath(self._at(name))
        if sys.platform != "linux":
            return None  # and leave no file behind that serves for nothing
        try:
            fd = _open_regular(path, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            fd = _open_regular(path, os.O_RDONLY)
        try:
            locks = ofd_locks(fd, owned=True)
        except BaseException:
            os.close(fd)
            raise
        if locks is None:
            os.close(fd)
        return locks

    def rename(self, old: str, new: str) -> None:
        self._at(old).replace(self._at(new))

    def unlink(self, name: str) -> None:
        self._at(name).unlink()

    def list(self) -> list[str]:
        with os.scandir(self.path) as entries:
            return sorted(entry.name for entry in entries if entry.is_file(follow_symlinks=False))

    def sync(self) -> None:
        if sys.platform == "win32":
            return  # directories cannot be opened there; NTFS journals its names
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def __repr__(self) -> str:
        return f"LocalDirectory({str(self.path)!r})"
