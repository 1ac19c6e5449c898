"""The file that a data set is read from: positional reads, one at a time, also across a fork."""

from __future__ import annotations

import io
import os
import threading
import weakref
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from strongroom.errors import FormatError, UsageError

if TYPE_CHECKING:
    from collections.abc import Buffer  # type: ignore[attr-defined,unused-ignore]  # Python 3.12

DEFAULT_BLOCK = 64 << 10


@runtime_checkable
class Readable(Protocol):
    """What a data set needs of an open file. A `SealedFile` is one.

    `length` (bytes), `block_size` (bytes that are decrypted together), `name` and `read_blocks` (several blocks in one
    call, as `SealedFile` has it) are used where it has them.
    """

    def read_at(self, offset: int, buffer: Buffer) -> int:
        """Fill `buffer` from `offset` on; the count is smaller than its length only at the end of the file."""


class Source:
    """One open file of a data set.

    - One thread at a time is inside the file. A fork waits for that, so that the child finds neither this lock nor the
      file's own held by a thread that the child does not have. (A thread that uses the same open file past the data
      set is not waited for: give a data set that workers are forked from a file of its own.)
    - Reads are positional, so that parent and child may share the descriptor.

    Args:
        file: is read through `read_at` and `read_blocks` alone.
        owned: `close` closes it too.
    """

    def __init__(self, file: Readable, *, owned: bool = False) -> None:
        if not isinstance(file, Readable):
            raise UsageError(
                f"source: {type(file).__name__}, wanted a path, or an open file with read_at",
                hint="give the path of a sealed file, or what open_sealed returned",
            )
        self.file = file
        self.lock = threading.RLock()
        self._owned = owned
        self.name = str(getattr(file, "name", None) or type(file).__name__)
        self.length = _length(file)
        self.block_size = int(getattr(file, "block_size", DEFAULT_BLOCK))
        if self.block_size <= 0:
            raise UsageError(f"{self.name}: block size {self.block_size}, wanted 1 or more")
        self._read_blocks = getattr(file, "read_blocks", None) if hasattr(file, "block_size") else None
        _sources.add(self)

    def read(self, offset: int, buffer: Buffer) -> None:
        """Fill all of `buffer` from `offset` on.

        Raises:
            IntegrityError: as the file's `read_at`.
            FormatError: the file ends before.
        """
        with self.lock:
            count = self.file.read_at(offset, buffer)
        wanted = memoryview(buffer).nbytes
        if count != wanted:
            raise FormatError(f"{self.name}: {count} bytes at offset {offset}, wanted {wanted}")

    def read_blocks(self, indices: list[int], out: memoryview, rows: list[int]) -> None:
        """Put block `indices[k]` of the file into the `rows[k]`-th block of the bytes of `out`, for all k.

        The last block of a file may be short; what stands behind it in its row is then of any content.

        Raises:
            IntegrityError, FormatError: as `read`. What the rows then hold is nothing of what failed.
        """
        size = self.block_size
        with self.lock:
            last = max(indices, default=0)
            if self._read_blocks is not None and last * size < _length(self.file) >= min(
                self.length, (last + 1) * size
            ):
                self._read_blocks(indices, out, rows)
                return
            for index, row in zip(indices, rows, strict=True):
                start = index * size
                self.read(start, out[row * size : row * size + min(size, max(1, self.length - start))])

    def bytes_at(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset` on; fewer at the end. For headers: the caller has capped `size`."""
        buffer = bytearray(max(0, min(size, self.length - offset)))
        self.read(offset, buffer)
        return bytes(buffer)

    def as_file(self, *, largest: int) -> io.RawIOBase:
        """A binary file over this with a position of its own, that reads at most `largest` bytes at once."""
        return _File(self, largest)

    def close(self) -> None:
        _sources.discard(self)
        if self._owned:
            with self.lock:
                self.file.close()  # type: ignore[attr-defined]


def _length(file: Readable) -> int:
    length = getattr(file, "length", None)
    if isinstance(length, int):
        return length
    if not hasattr(file, "seek"):
        raise UsageError(f"source: {type(file).__name__} has neither length nor seek, wanted one of them")
    return int(file.seek(0, os.SEEK_END))


class _File(io.RawIOBase):
    def __init__(self, source: Source, largest: int) -> None:
        self._source = source
        self._largest = largest
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = max(0, offset + (0, self._position, self._source.length)[whence])
        return self._position

    def size(self) -> int:
        return self._source.length

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self._source.length - self._position)
        size = left if size is None or size < 0 else min(size, left)
        if size > self._largest:
            raise FormatError(f"{self._source.name}: a header of {size} bytes, wanted at most {self._largest}")
        data = self._source.bytes_at(self._position, size)
        self._position += len(data)
        return data

    def readinto(self, buffer: Buffer) -> int:
        view = memoryview(buffer).cast("B")
        count = max(0, min(len(view), self._source.length - self._position))
        self._source.read(self._position, view[:count])
        self._position += count
        return count


_sources: weakref.WeakSet[Source] = weakref.WeakSet()
_held: list[Source] = []


def _before_fork() -> None:
    for source in list(_sources):
        source.lock.acquire()
        _held.append(source)


def _after_fork_in_parent() -> None:
    while _held:
        _held.pop().lock.release()


def _after_fork_in_child() -> None:
    # The locks are held by the thread that forked, which the child goes on as.
    for source in _held:
        source.lock = threading.RLock()
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
