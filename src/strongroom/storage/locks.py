"""Byte locks: those of Linux's open file descriptions, and the same in memory.

`F_OFD_SETLK` (Linux 3.15) is what POSIX locks should have been: a lock belongs to the open file description, so it
ends when that closes, not when any descriptor of the file in the process does. macOS and Windows have none.
"""

from __future__ import annotations

import errno
import os
import struct
import sys
import threading

from strongroom.errors import LockedError
from strongroom.storage.protocols import LOCKS_AT

if sys.platform == "linux":
    import fcntl

# Whoever opens a file the plain way locks this byte of it, far above those that callers pin.
OPEN_BYTE = LOCKS_AT + (1 << 61)

MAX_HOLDERS = 1 << 16

# struct flock: l_type, l_whence, l_start, l_len, l_pid (0 for these locks), padded to the alignment of off_t.
_FLOCK = struct.Struct("hhqqi0q")


def _too_many(first: int, last: int) -> LockedError:
    return LockedError(
        f"locks: more than {MAX_HOLDERS} bytes in {first} to {last} are held, wanted at most that many",
        hint="a program that is none of ours locks ranges of this file",
    )


class OfdLocks:
    """Locks of the open file description behind `fd`.

    A forked child shares its parent's description, and so its locks: in the child, `release` and `close` leave them to
    the parent, and `acquire` raises LockedError. What the parent releases or closes is free though children live on.

    Args:
        owned: `close` closes `fd` too. Otherwise whoever closes `fd` calls `close` first, as its number may come back.
    """

    def __init__(self, fd: int, *, owned: bool) -> None:
        self._fd = fd
        self._owned = owned
        self._held: set[int] = set()
        self._process = os.getpid()

    def acquire(self, byte: int, *, exclusive: bool, wait: bool = False) -> bool:
        if not self._is_mine():
            raise LockedError(
                f"locks: belong to process {self._process}, of which this is a fork", hint="open it again after a fork"
            )
        kind = fcntl.F_WRLCK if exclusive else fcntl.F_RDLCK
        request = _FLOCK.pack(kind, os.SEEK_SET, byte, 1, 0)
        try:
            fcntl.fcntl(self._open_fd(), fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK, request)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            return False
        self._held.add(byte)
        return True

    def release(self, byte: int) -> None:
        if self._is_mine():
            self._unlock(self._open_fd(), byte)
            self._held.discard(byte)

    def holders(self, first: int, last: int) -> list[int]:
        # The kernel names one lock in the range, not the lowest, and merges neighbours that one opener holds.
        found: set[int] = set()
        ranges = [(first, last)]
        while ranges:
            low, high = ranges.pop()
            if low > high:
                continue
            request = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, low, high - low + 1, 0)
            kind, _, start, length, _ = _FLOCK.unpack(fcntl.fcntl(self._open_fd(), fcntl.F_OFD_GETLK, request))
            if kind == fcntl.F_UNLCK:
                continue
            start, end = max(low, start), min(high, start + length - 1) if length else high
            if end - start + len(found) >= MAX_HOLDERS:
                raise _too_many(first, last)
            found.update(range(start, end + 1))
            ranges += [(low, start - 1), (end + 1, high)]
        return sorted(found)

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        try:
            if self._is_mine():
                for byte in self._held:
                    self._unlock(fd, byte)
        finally:
            if self._owned:
                os.close(fd)

    def _unlock(self, fd: int, byte: int) -> None:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, byte, 1, 0))

    def _is_mine(self) -> bool:
        return os.getpid() == self._process

    def _open_fd(self) -> int:
        if self._fd < 0:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return self._fd


def ofd_locks(fd: int, *, owned: bool) -> OfdLocks | None:
    """Locks of `fd`; None where the platform or the file system has no such locks."""
    if sys.platform != "linux":
        return None
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, OPEN_BYTE, 1, 0))
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
            raise
        return None
    return OfdLocks(fd, owned=owned)


class LockTable:
    """The locks of one file in memory: for each locked byte its holders, and whether one is exclusive."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.bytes: dict[int, dict[MemoryLocks, bool]] = {}

    def in_the_way(self, holder: MemoryLocks, byte: int, *, exclusive: bool) -> bool:
        held = self.bytes.get(byte, {})
        return any(other is not holder and (exclusive or held[other]) for other in held)

    def drop(self, holder: MemoryLocks, byte: int) -> None:
        held = self.bytes.get(byte)
        if held and held.pop(holder, None) is not None:
            if not held:
                del self.bytes[byte]
            self.changed.notify_all()


class MemoryLocks:
    """One opener's locks in a `LockTable`; its methods may be called from several threads."""

    def __init__(self, table: LockTable) -> None:
        self._table = table
        self._closed = False

    def acquire(self, byte: int, *, exclusive: bool, wait: bool = False) -> bool:
        table = self._table
        with table.changed:
            self._usable()
            while table.in_the_way(self, byte, exclusive=exclusive):
                if not wait:
                    return False
                table.changed.wait()
                self._usable()
            table.bytes.setdefault(byte, {})[self] = exclusive
            if not exclusive:
                table.changed.notify_all()  # it may have been exclusive before
            return True

    def release(self, byte: int) -> None:
        with self._table.changed:
            self._usable()
            self._table.drop(self, byte)

    def holders(self, first: int, last: int) -> list[int]:
        with self._table.changed:
            self._usable()
            held = self._table.bytes
            found = sorted(byte for byte in held if first <= byte <= last and any(h is not self for h in held[byte]))
        if len(found) > MAX_HOLDERS:
            raise _too_many(first, last)
        return found

    def close(self) -> None:
        with self._table.changed:
            self._closed = True
            for byte in [byte for byte, held in self._table.bytes.items() if self in held]:
                self._table.drop(self, byte)
            self._table.changed.notify_all()

    def _usable(self) -> None:
        if self._closed:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
