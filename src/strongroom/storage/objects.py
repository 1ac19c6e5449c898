"""A directory over any fsspec file system: S3, Google Cloud Storage, Azure, local, in memory and others."""

from __future__ import annotations

import errno
import io
import os
import re
import tempfile
import threading
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from strongroom.errors import MissingDependencyError, UsageError
from strongroom.storage.backends import SPOOLED, Objects, require_fsspec
from strongroom.storage.local import LocalDirectory
from strongroom.storage.numbered import NumberedStorage, delete_numbered, numbers
from strongroom.storage.protocols import Directory, OpenMode

if TYPE_CHECKING:
    from collections.abc import Buffer  # type: ignore[attr-defined,unused-ignore]  # Python 3.12

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*::)*[A-Za-z][A-Za-z0-9+.-]+://")


def open_directory(
    location: str | os.PathLike[str],
    *,
    updatable: Iterable[str] = (),
    scratch: str | os.PathLike[str] | None = None,
    exclusive: bool | None = None,
) -> Directory:
    """The directory at a path, or, for ``scheme://...``, the one that fsspec finds there.

    Args:
        updatable, scratch, exclusive: as `ObjectDirectory` says; a path needs none of them.

    Raises:
        MissingDependencyError: fsspec, or its package for that scheme, is not installed.
    """
    text = os.fspath(location)
    if not _SCHEME.match(text):
        return LocalDirectory(text)
    fsspec = require_fsspec()
    try:
        fs, path = fsspec.core.url_to_fs(text)
    except ImportError as error:
        raise MissingDependencyError(f"{text}: {error}", hint="install what fsspec asks for") from None
    except ValueError as error:
        raise UsageError(f"{text}: {error}") from None
    return ObjectDirectory(fs, path, updatable=updatable, scratch=scratch, exclusive=exclusive)


class ObjectDirectory:
    """A flat set of files, each one object, but for those that are `updatable`.

    - A new file is written into a buffer; its first `sync` uploads it, and then it cannot be written again. Nothing of
      it is there before.
    - A file whose name is in `updatable` is a row of numbered objects (`strongroom.storage.numbered`): it can be
      written again and again, each `sync` publishes atomically, and of two writers one gets `ConflictError`.
    - Where the back end cannot make an object only if it is absent (`strongroom.storage.backends.EXCLUSIVE`), opening
      an updatable file to write warns once: two writers at a time may lose each other's commits there.
    - There are no locks. Names are durable with their objects.

    Args:
        fs: an fsspec file system.
        path: where in it; a prefix of the objects' names.
        updatable: the names of files that are written again.
        scratch: where new files longer than 8 MiB wait for their upload, in temporary files without a name that hold
            what was written, which the sealed layer has encrypted; default: the system's.
        exclusive: True says that this back end makes objects only if they are absent, whatever the table says.
    """

    write_once = True

    def __init__(
        self,
        fs: Any,
        path: str,
        *,
        updatable: Iterable[str] = (),
        scratch: str | os.PathLike[str] | None = None,
        exclusive: bool | None = None,
    ) -> None:
        require_fsspec()
        self._objects = Objects(fs, path, exclusive=exclusive)
        self.updatable = frozenset(updatable)
        self._scratch = scratch
        self._warned = False

    def open(self, name: str, mode: OpenMode, *, shared: bool = False) -> NumberedStorage | ObjectReader | ObjectUpload:
        """As any directory does; a file that is not updatable opens with ``r`` or ``x`` only.

        Raises:
            UsageError: ``r+`` of a file that is written once.
            FormatError, TruncatedError: an object of it is damaged or missing.
        """
        if name in self.updatable:
            if mode != "r":
                self._warn()
            return NumberedStorage(self._objects, name, mode)
        self._check(name)
        if mode == "r":
            return ObjectReader(self._objects, name)
        if mode == "r+":
            raise UsageError(f"{self._objects.what(name)}: is written once, wanted an updatable file to open with r+")
        try:
            self._objects.size(name)
        except FileNotFoundError:
            return ObjectUpload(self._objects, name, self._scratch)
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)

    def _warn(self) -> None:
        if not self._objects.exclusive() and not self._warned:
            self._warned = True
            warnings.warn(
                f"{self._objects}: {self._objects.kind} is not known to make an object only if it is absent, so only "
                "one program at a time may write here",
                UserWarning,
                stacklevel=3,
            )

    def _check(self, name: str) -> None:
        for file in self.updatable:
            if numbers(file, {name: 0}):
                raise UsageError(f"file name: {name!r} is that of an object of {file!r}")

    def locks(self, name: str) -> None:
        """None: object stores have no locks."""

    def rename(self, old: str, new: str) -> None:
        """Give a file that is written once another name; not atomic in most back ends."""
        for name in (old, new):
            if name in self.updatable:
                raise UsageError(f"{self._objects.what(name)}: updatable files are not renamed")
            self._check(name)
        self._objects.rename(old, new)

    def unlink(self, name: str) -> None:
        if name in self.updatable:
            delete_numbered(self._objects, name)
            return
        self._check(name)
        self._objects.size(name)  # many back ends delete what is not there
        self._objects.delete(name)

    def list(self) -> list[str]:
        names = self._objects.names()
        found = {name for name in self.updatable if numbers(name, names)}
        of_updatable = {f"{name}.{number:010}" for name in found for number in numbers(name, names)}
        return sorted(found | names.keys() - of_updatable)

    def sync(self) -> None:
        """Names are durable with their objects."""

    def __repr__(self) -> str:
        return f"ObjectDirectory({str(self._objects)!r})"


class ObjectReader:
    """A file that is one object, open for reading."""

    atomic_sync = True
    locks = None

    def __init__(self, objects: Objects, name: str) -> None:
        """Raises FileNotFoundError."""
        self._objects = objects
        self._name = name
        self._size = objects.size(name)

    def read_into(self, offset: int, buffer: Buffer) -> int:
        """Raises TruncatedError if the object has vanished or is shorter than it was."""
        with memoryview(buffer) as view:
            count = max(0, min(len(view), self._size - offset))
            self._objects.read(self._name, self._size, offset, view[:count])
            return count

    def write_at(self, offset: int, data: Buffer) -> None:
        raise io.UnsupportedOperation(f"{self._name}: open for reading only")

    def sync(self) -> None:
        """Nothing was written."""

    def resize(self, size: int) -> None:
        raise io.UnsupportedOperation(f"{self._name}: open for reading only")

    def size(self) -> int:
        return self._size

    def close(self) -> None:
        """There is nothing to give back."""


class ObjectUpload:
    """A new file: a buffer until `sync` has uploaded it, then an object that is only read."""

    atomic_sync = True
    locks = None

    def __init__(self, objects: Objects, name: str, scratch: str | os.PathLike[str] | None) -> None:
        self._objects = objects
        self._name = name
        self._lock = threading.Lock()
        self._size = 0
        # A temporary file has no name where the system can do that, and is private in any case.
        home = os.fspath(scratch) if scratch is not None else None
        self._buffer: tempfile.SpooledTemporaryFile[bytes] | None
        self._buffer = tempfile.SpooledTemporaryFile(SPOOLED, dir=home)  # noqa: SIM115  # `close` closes it

    def read_into(self, offset: int, buffer: Buffer) -> int:
        with self._lock, memoryview(buffer) as view:
            count = max(0, min(len(view), self._size - offset))
            if self._buffer is None:
                self._objects.read(self._name, self._size, offset, view[:count])
            elif count:
                self._buffer.seek(offset)
                view[:count] = self._buffer.read(count)
            return count

    def write_at(self, offset: int, data: Buffer) -> None:
        with self._lock, memoryview(data) as view:
            if len(view):
                self._put(offset, view)
                self._size = max(self._size, offset + len(view))

    def resize(self, size: int) -> None:
        with self._lock:
            if size < self._size:
                self._writable().truncate(size)
            elif size > self._size:
                self._put(size - 1, b"\0")
            self._size = size

    def _put(self, offset: int, data: Buffer) -> None:
        buffer = self._writable()
        buffer.seek(offset)  # a gap reads as zeros, in memory and in a file
        buffer.write(data)

    def _writable(self) -> tempfile.SpooledTemporaryFile[bytes]:
        if self._buffer is None:
            raise io.UnsupportedOperation(f"{self._name}: is written once, and was uploaded or closed")
        return self._buffer

    def sync(self) -> None:
        """Upload, the first time. Where that fails, nobody should use the name again."""
        with self._lock:
            if self._buffer is not None:
                self._objects.put(self._name, self._buffer, self._size)
                self._buffer.close()
                self._buffer = None

    def size(self) -> int:
        return self._size

    def close(self) -> None:
        """What was not uploaded is gone."""
        with self._lock:
            if self._buffer is not None:
                self._buffer.close()
                self._buffer = None
                self._size = 0
