"""Where sealed bytes rest: random-access files, and the directories that hold them.

This is the one seam between Strongroom and a disk. All above it sees `Storage` and `Directory`, so that tests run on
memory and inject faults (`strongroom.testing.storage`), and so that a platform without a call falls back here only.

Rules:

- Nothing read from a storage is trusted: the host may change it at any time, between two reads too.
- A write is durable after the next `sync` of its file has returned; a name after the next `sync` of its directory.
- Whoever opens a file for writing excludes every other opener until it closes, where the platform has `flock`. Without
  it (Windows) writers exclude writers, and a reader that a writer overtakes gets an integrity error, never wrong bytes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from strongroom.errors import LockedError, UsageError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

if TYPE_CHECKING:
    from collections.abc import Buffer  # type: ignore[attr-defined,unused-ignore]  # Python 3.12

OpenMode = Literal["r", "r+", "x"]

# Windows locks bytes, and locked bytes cannot be read: lock one that no file reaches.
_LOCK_BYTE = 1 << 62


@runtime_checkable
class Storage(Protocol):
    """Bytes at offsets. Raises OSError where the medium fails."""

    def read_into(self, offset: int, buffer: Buffer) -> int:
        """Fill `buffer` from `offset` on; the count is smaller than its length only at the end of the file."""

    def write_at(self, offset: int, data: Buffer) -> None:
        """Write all of `data`; a gap before `offset` reads as zeros."""

    def sync(self) -> None:
        """Return once every earlier write would survive a power cut."""

    def resize(self, size: int) -> None:
        """Cut, or extend with zeros."""

    def size(self) -> int:
        """The length in bytes."""

    def close(self) -> None:
        """Give back locks and descriptors; closing twice is fine."""


class Directory(Protocol):
    """A flat set of named files. Names hold no separator."""

    def open(self, name: str, mode: OpenMode) -> Storage:
        """Open a file: ``r`` to read, ``r+`` to write an existing one, ``x`` to create a new one.

        Raises:
            FileNotFoundError, FileExistsError: as `open` does.
            LockedError: another opener is in the way.
        """

    def rename(self, old: str, new: str) -> None:
        """Give a file another name, replacing whatever had it."""

    def unlink(self, name: str) -> None:
        """Remove a name."""

    def list(self) -> list[str]:
        """The names of all files, sorted."""

    def sync(self) -> None:
        """Return once every earlier change of names would survive a power cut."""


class FileStorage:
    """A file of the operating system, locked as the module says; a new one is readable by its owner only."""

    def __init__(self, path: str | os.PathLike[str], mode: OpenMode = "r") -> None:
        """Raises OSError as `open` does, and LockedError if another opener is in the way."""
        flags = {"r": os.O_RDONLY, "r+": os.O_RDWR, "x": os.O_RDWR | os.O_CREAT | os.O_EXCL}[mode]
        # Python's descriptors are close-on-exec; O_CLOEXEC only says so where one looks for it.
        flags |= getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        self._path = os.fspath(path)
        self._fd = os.open(self._path, flags, 0o600)
        self._seek_lock = threading.Lock()
        try:
            self._lock(exclusive=mode != "r")
        except BaseException:
            self.close()
            raise

    def _lock(self, *, exclusive: bool) -> None:
        try:
            if sys.platform == "win32":
                if exclusive:
                    os.lseek(self._fd, _LOCK_BYTE, os.SEEK_SET)
                    msvcrt.locking(self._fd, msvcrt.LK_NBLCK, 1)
            else:
                fcntl.flock(self._fd, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK):
                raise
            who = "in use" if exclusive else "being written"
            raise LockedError(f"{self._path}: {who} by another opener", hint="close it there, then try again") from None

    def read_into(self, offset: int, buffer: Buffer) -> int:
        view = memoryview(buffer)
        done = 0
        while done < len(view):
            count = self._read(offset + done, view[done:])
            if count == 0:
                break
            done += count
        return done

    def _read(self, offset: int, view: memoryview) -> int:
        if hasattr(os, "preadv"):
            count: int = os.preadv(self._fd, [view], offset)
            return count
        with self._seek_lock:
            os.lseek(self._fd, offset, os.SEEK_SET)
            data = os.read(self._fd, len(view))
        view[: len(data)] = data
        return len(data)

    def write_at(self, offset: int, data: Buffer) -> None:
        view = memoryview(data)
        while view:
            count = self._write(offset, view)
            offset += count
            view = view[count:]

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

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __repr__(self) -> str:
        return f"FileStorage({self._path!r})"


def _sync(fd: int) -> None:
    if sys.platform == "darwin":
        # fsync there leaves the drive's own cache unwritten.
        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
    elif hasattr(os, "fdatasync"):
        os.fdatasync(fd)
    else:
        os.fsync(fd)


class LocalDirectory:
    """A directory of the operating system."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def _at(self, name: str) -> Path:
        if name in ("", ".", "..") or "/" in name or os.sep in name or "\0" in name:
            raise UsageError(f"file name: {name!r}, wanted one without a path")
        return self.path / name

    def open(self, name: str, mode: OpenMode) -> FileStorage:
        return FileStorage(self._at(name), mode)

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


class MemoryStorage:
    """A file in memory, for tests and for sealed bytes that travel as a message. Its content is `data`."""

    def __init__(self, data: Buffer = b"") -> None:
        self.data = bytearray(data)

    def read_into(self, offset: int, buffer: Buffer) -> int:
        view = memoryview(buffer)
        count = max(0, min(len(view), len(self.data) - offset))
        view[:count] = memoryview(self.data)[offset : offset + count]
        return count

    def write_at(self, offset: int, data: Buffer) -> None:
        view = memoryview(data)
        if offset > len(self.data):
            self.resize(offset)
        self.data[offset : offset + len(view)] = view

    def sync(self) -> None:
        """Memory has nothing to write back."""

    def resize(self, size: int) -> None:
        if size <= len(self.data):
            del self.data[size:]
        else:
            self.data.extend(bytes(size - len(self.data)))

    def size(self) -> int:
        return len(self.data)

    def close(self) -> None:
        """Memory has nothing to give back."""


class MemoryDirectory:
    """A directory in memory. `files` maps names to contents; locks are those of a `LocalDirectory`."""

    def __init__(self, files: dict[str, bytes] | None = None) -> None:
        self.files = {name: MemoryStorage(data) for name, data in (files or {}).items()}
        self._readers: dict[MemoryStorage, int] = {}
        self._writers: set[MemoryStorage] = set()

    def open(self, name: str, mode: OpenMode) -> Storage:
        if mode == "x":
            if name in self.files:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
            self.files[name] = MemoryStorage()
        elif name not in self.files:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        file = self.files[name]
        if file in self._writers or (mode != "r" and self._readers.get(file)):
            raise LockedError(f"{name}: in use by another opener", hint="close it there, then try again")
        if mode == "r":
            self._readers[file] = self._readers.get(file, 0) + 1
        else:
            self._writers.add(file)
        return _Handle(self, file, writer=mode != "r")

    def rename(self, old: str, new: str) -> None:
        self.files[new] = self._take(old)

    def unlink(self, name: str) -> None:
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


class _Handle:
    """One opening of a file in a `MemoryDirectory`."""

    def __init__(self, directory: MemoryDirectory, file: MemoryStorage, *, writer: bool) -> None:
        self._directory = directory
        self._file = file
        self._writer = writer
        self._open = True
        self.read_into = file.read_into
        self.write_at = file.write_at
        self.sync = file.sync
        self.resize = file.resize
        self.size = file.size

    def close(self) -> None:
        if not self._open:
            return
        self._open = False
        if self._writer:
            self._directory._writers.discard(self._file)
        else:
            with contextlib.suppress(KeyError):
                self._directory._readers[self._file] -= 1
