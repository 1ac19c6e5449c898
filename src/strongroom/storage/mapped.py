"""A file mapped into memory: writes are copies, not system calls, for DAX persistent memory and tmpfs."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import threading
from typing import TYPE_CHECKING

from strongroom.storage.local import FileStorage
from strongroom.storage.protocols import OpenMode

if TYPE_CHECKING:
    from collections.abc import Buffer  # type: ignore[attr-defined,unused-ignore]  # Python 3.12

    from strongroom.storage.locks import OfdLocks

_ZEROS = bytes(1 << 16)


class MmapStorage:
    """A file of the operating system that is mapped; opened, created and locked as `FileStorage` says.

    - Reads copy out of the mapping and nothing hands it out: who needs bytes that the host cannot change under it has
      them in its own buffer. A read reads once.
    - Growth reserves the space first (`posix_fallocate`; opening ``r+`` fills holes), so that a full disk is an OSError
      here. Copy-on-write file systems (btrfs, ZFS) keep no such promise: use `FileStorage` there.
    - `sync` writes back the mapping (`msync`, on DAX a flush of the processor's caches) and then the file's length.

    **SIGBUS.** If somebody else cuts the file, touching a page behind its new end kills the process, and Python cannot
    turn that into an exception; so does a medium that fails under a page. The length is asked for before each access
    and nothing behind it is touched, so only a cut in the microseconds between the two does it. Map only files in a
    directory that nobody else writes to; whoever can kill the process anyway gains nothing by this.
    """

    atomic_sync = False

    def __init__(self, path: str | os.PathLike[str], mode: OpenMode = "r", *, shared: bool = False) -> None:
        """Raises OSError as `open` does, and LockedError if another opener is in the way."""
        self._file = FileStorage(path, mode, shared=shared)
        self._access = mmap.ACCESS_READ if mode == "r" else mmap.ACCESS_WRITE
        self._map: mmap.mmap | None = None
        self._lock = threading.Lock()
        try:
            size = self._file.size()
            if mode != "r":
                self._reserve(0, size)
            self._remap(size)
        except BaseException:
            self._file.close()
            raise

    @property
    def locks(self) -> OfdLocks | None:
        return self._file.locks

    def read_into(self, offset: int, buffer: Buffer) -> int:
        with self._lock, memoryview(buffer) as view:
            mapped, size = self._follow()
            count = max(0, min(len(view), size - offset))
            if mapped is None or not count:
                return 0
            with memoryview(mapped) as source:
                view[:count] = source[offset : offset + count]
            return count

    def write_at(self, offset: int, data: Buffer) -> None:
        with self._lock, memoryview(data) as view:
            mapped, size = self._follow()
            end = offset + len(view)
            if end > size:
                mapped = self._resize(size, end)
            if mapped is not None and len(view):
                mapped[offset:end] = view
                self._wrote(offset, end)

    def sync(self) -> None:
        with self._lock:
            self._sync()

    def resize(self, size: int) -> None:
        with self._lock:
            self._resize(self._file.size(), size)

    def size(self) -> int:
        return self._file.size()

    def close(self) -> None:
        with self._lock:
            self._unmap()
            self._file.close()

    def leave_to_parent(self) -> None:
        """As `FileStorage.leave_to_parent`; a mapping, too, keeps the parent's locks."""
        self._lock = threading.Lock()  # the parent's may have been held by a thread that is not here
        with contextlib.suppress(BufferError):  # that thread was copying: its view is in no frame of this process
            self.close()

    # What a file in persistent memory does otherwise.

    def _map_anew(self, size: int) -> mmap.mmap:
        return mmap.mmap(self._file.fileno(), size, access=self._access)

    def _wrote(self, start: int, end: int) -> None:
        """Note that these bytes of the mapping were written."""

    def _sync(self) -> None:
        if self._map is not None and self._access == mmap.ACCESS_WRITE:
            self._map.flush()
        self._file.sync()

    # Its length.

    def _resize(self, old: int, new: int) -> mmap.mmap | None:
        if new < old:
            self._unmap()  # Windows cuts no file that is mapped
            self._file.resize(new)
        else:
            self._reserve(old, new)
        return self._remap(new)

    def _reserve(self, start: int, end: int) -> None:
        if end <= start:
            return
        if hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(self._file.fileno(), start, end - start)
                return
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                    raise  # otherwise the file system cannot reserve, and its C library does not make up for it
        # What there is stays; what is new is written, so that it has its space.
        for at in range(max(start, self._file.size()), end, len(_ZEROS)):
            self._file.write_at(at, _ZEROS[: end - at])

    def _follow(self) -> tuple[mmap.mmap | None, int]:
        # Another opener may have cut or extended the file.
        size = self._file.size()
        mapped = len(self._map) if self._map is not None else 0
        return (self._map if mapped == size else self._remap(size)), size

    def _remap(self, size: int) -> mmap.mmap | None:
        # A new mapping, not `mmap.resize`: that sets the file's length, which another opener may have changed since.
        self._unmap()
        if size:  # nothing cannot be mapped
            self._map = self._map_anew(size)
        return self._map

    def _unmap(self) -> None:
        if self._map is not None:
            self._map.close()
            self._map = None

    def __repr__(self) -> str:
        return f"MmapStorage({self._file.path!r})"
