"""Files and directories in memory."""

from __future__ import annotations

import errno
import os
import threading
from typing import TYPE_CHECKING

from strongroom.errors import LockedError
from strongroom.storage.locks import OPEN_BYTE, LockTable, MemoryLocks
from strongroom.storage.protocols import OpenMode

if TYPE_CHECKING:
    from collections.abc import Buffer  # type: ignore[attr-defined,unused-ignore]  # Python 3.12


class MemoryStorage:
    """A file in memory, for tests and for sealed bytes that travel as a message. Its content is `data`.

    `data` is as long as the file. A bytearray keeps spare room behind its end, an eighth of its length at least, so
    that a file that grows bit by bit is copied a constant number of times in all.
    """

    atomic_sync = False
    locks = None  # nobody else can open it; a `MemoryDirectory` gives handles that have locks

    def __init__(self, data: Buffer = b"") -> None:
        self.data = bytearray(data)
        self._lock = threading.Lock()  # a bytearray that one thread reads through a view cannot be resized by another

    def read_into(self, offset: int, buffer: Buffer) -> int:
        with self._lock, memoryview(self.data) as data, memoryview(buffer) as view:
            count = max(0, min(len(view), len(data) - offset))
            view[:count] = data[offset : offset + count]
            return count

    def write_at(self, offset: int, data: Buffer) -> None:
        with self._lock, memoryview(data) as view:
            end = offset + len(view)
            if end <= len(self.data):
                with memoryview(self.data) as own:  # a slice of the bytearray itself would be copied twice
                    own[offset:end] = view
                return
            if offset > len(self.data):
                self._resize(offset)
            self.data[offset:end] = view

    def sync(self) -> None:
        """Memory has nothing to write back."""

    def resize(self, size: int) -> None:
        with self._lock:
            self._resize(size)

    def _resize(self, size: int) -> None:
        if size <= len(self.data):
            del self.data[size:]
        else:
            self.data.extend(bytes(size - len(self.data)))

    def size(self) -> int:
        return len(self.data)

    def close(self) -> None:
        """Memory has nothing to give back."""


class MemoryDirectory:
    """A directory in memory. `files` maps names to contents; locks are those of a `LocalDirectory` on Linux.

    Each opening is one holder of locks, in whatever thread.
    """

    write_once = False

    def __init__(self, files: dict[str, bytes] | None = None) -> None:
        self.files = {name: MemoryStorage(data) for name, data in (files or {}).items()}
        self._tables: dict[MemoryStorage, LockTable] = {}
        self._lock = threading.Lock()

    def open(self, name: str, mode: OpenMode, *, shared: bool = False) -> MemoryHandle:
        with self._lock:
            if mode == "x":
                if name in self.files:
                    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
                self.files[name] = MemoryStorage()
            elif name not in self.files:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
            file = self.files[name]
            handle = MemoryHandle(file, self._locks_of(file))
        if not shared and not handle.locks.acquire(OPEN_BYTE, exclusive=mode != "r"):
            raise LockedError(f"{name}: in use by another opener", hint="close it there, then try again")
        return handle

    def locks(self, name: str) -> MemoryLocks:
        with self._lock:
            return self._locks_of(self.files.setdefault(name, MemoryStorage()))

    def _locks_of(self, file: MemoryStorage) -> MemoryLocks:
        return MemoryLocks(self._tables.setdefault(file, LockTable()))

    def rename(self, old: str, new: str) -> None:
        with self._lock:
            self.files[new] = self._take(old)

    def unlink(self, name: str) -> None:
        with self._lock:
            self._take(name)

    def _take(self, name: str) -> MemoryStorage:
        try:
            return self.files.pop(name)
        except KeyError:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name) from None

    def list(self) -> list[str]:
        return sorted(self.files)

    def sync(self) -> None:
        """Memory has nothing to write back."""


class MemoryHandle:
    """One opening of a file in memory, with locks of its own."""

    atomic_sync = False

    def __init__(self, file: MemoryStorage, locks: MemoryLocks) -> None:
        self.locks = locks
        self.read_into = file.read_into
        self.write_at = file.write_at
        self.sync = file.sync
        self.resize = file.resize
        self.size = file.size

    def close(self) -> None:
        self.locks.close()
