"""Files in persistent memory (DAX): written by copies, made durable by flushing the processor's caches (libpmem).

Rules:

- The processor alone makes nothing durable but bytes in such memory. What says that a mapping is of it is the kernel,
  which maps with MAP_SYNC there and nowhere else, or libpmem. (Of a mapping that is not its own libpmem always says no,
  unless PMEM_IS_PMEM_FORCE=1 tells it that the memory is persistent.) Everything else is written back by msync.
- A sync flushes every range that was written since the last one, and only then drains. It flushes them itself: a drain
  waits for what the thread that calls it has flushed, and others may have written.
- A file's length and where it lies are the file system's: after those have changed, a sync ends with fdatasync.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Iterable, Iterator
from typing import Final, Protocol

from strongroom.storage.mapped import MmapStorage
from strongroom.storage.protocols import OpenMode

_MAP_SYNC: Final = 0x80000 | 0x03  # with MAP_SHARED_VALIDATE (linux/mman.h), without which the kernel ignores it
_NOT_HERE: Final = (errno.EOPNOTSUPP, errno.EINVAL)  # not on this file system; not in this kernel
_PAGE: Final = mmap.PAGESIZE


class Flusher(Protocol):
    """What makes stores to persistent memory durable."""

    def is_pmem(self, address: int, size: int) -> bool:
        """Whether flushing alone makes that memory durable."""

    def flush(self, address: int, size: int) -> None:
        """Begin to write back the processor's caches of that memory."""

    def drain(self) -> None:
        """Return once all that this thread has flushed is durable."""


class Libpmem:
    """Intel's libpmem, of PMDK."""

    def __init__(self) -> None:
        """Raises OSError if it is not installed."""
        library = ctypes.CDLL("libpmem.so.1")
        self._is_pmem = library.pmem_is_pmem
        self._flush = library.pmem_flush
        self._drain = library.pmem_drain
        self._is_pmem.argtypes = self._flush.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
        self._is_pmem.restype = ctypes.c_int
        self._drain.argtypes = ()
        self._flush.restype = self._drain.restype = None

    def is_pmem(self, address: int, size: int) -> bool:
        return bool(self._is_pmem(address, size))

    def flush(self, address: int, size: int) -> None:
        self._flush(address, size)

    def drain(self) -> None:
        self._drain()


def find_libpmem() -> Libpmem | None:
    """libpmem, where it is installed."""
    try:
        return Libpmem()
    except (OSError, AttributeError):
        return None


class PmemStorage(MmapStorage):
    """A mapped file that is flushed from user space where it lies in persistent memory; elsewhere as `MmapStorage`.

    Args:
        flusher: libpmem; None to do without.
    """

    def __init__(
        self, path: str | os.PathLike[str], mode: OpenMode = "r", *, shared: bool = False, flusher: Flusher | None
    ) -> None:
        self._flusher = flusher if mode != "r" else None
        self._address: int | None = None  # of the mapping, if it is of persistent memory
        self._dirty: list[tuple[int, int]] = []  # what was written since the last sync
        self._changed = True  # the length, or where the file lies: opening may have filled holes
        super().__init__(path, mode, shared=shared)
        if mode == "x":
            try:
                self.resize(_PAGE)  # nothing cannot be mapped, and what the memory is shows in a mapping
                self.means = self._means()
                self.resize(0)
            except BaseException:
                self.close()
                raise
        else:
            self.means = self._means()

    means: str
    """``libpmem`` or ``msync``: what makes this file's bytes durable."""

    def _means(self) -> str:
        return "msync" if self._address is None else "libpmem"

    def _map_anew(self, size: int) -> mmap.mmap:
        self._address = None
        if self._flusher is None:
            return super()._map_anew(size)
        synced = True
        try:
            made = mmap.mmap(self._file.fileno(), size, flags=_MAP_SYNC, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        except OSError as error:
            if error.errno not in _NOT_HERE:
                raise
            synced = False
            made = super()._map_anew(size)
        address = ctypes.addressof(ctypes.c_char.from_buffer(made))
        if synced or self._flusher.is_pmem(address, size):
            self._address = address
        return made

    def _wrote(self, start: int, end: int) -> None:
        if self._flusher is None:
            return
        if self._dirty and self._dirty[-1][1] == start:  # blocks in a row
            start = self._dirty.pop()[0]
        self._dirty.append((start, end))

    def _resize(self, old: int, new: int) -> mmap.mmap | None:
        self._changed = True
        return super()._resize(old, new)

    def _sync(self) -> None:
        if self._flusher is None or self._address is None or self._map is None:
            super()._sync()
        else:
            size = len(self._map)
            for start, end in _merged(self._dirty):
                if start < size:
                    self._flusher.flush(self._address + start, min(end, size) - start)
            self._flusher.drain()
            if self._changed:
                self._file.sync()
        self._dirty.clear()
        self._changed = False

    def __repr__(self) -> str:
        return f"PmemStorage({self._file.path!r})"


def _merged(ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Rising ranges that neither touch nor overlap, of the same bytes."""
    begin = stop = 0
    for start, end in sorted(ranges):
        if start > stop:
            if stop > begin:
                yield begin, stop
            begin = start
        stop = max(stop, end)
    if stop > begin:
        yield begin, stop
