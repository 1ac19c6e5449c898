"""Pseudo-files, as attesters meet them: system calls, answered by trees that tests put together (`attesters`)."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Protocol

_ACCESS = os.O_RDONLY | os.O_WRONLY | os.O_RDWR


class FakeFile:
    """A descriptor of a pseudo-file: the content is fixed at the first read; what is written goes to `save`."""

    def __init__(
        self,
        flags: int,
        load: Callable[[], bytes] | None = None,
        save: Callable[[bytes], None] | None = None,
        *,
        at_close: bool = False,
        limit: int = 4096,
    ) -> None:
        if flags & _ACCESS in (os.O_RDONLY, os.O_RDWR) and load is None:
            raise failure(errno.EACCES)
        if flags & _ACCESS in (os.O_WRONLY, os.O_RDWR) and save is None:
            raise failure(errno.EACCES)
        self._load, self._save, self._at_close, self._limit = load, save, at_close, limit
        self._content: bytes | None = None
        self._position = 0
        self._written = b""

    def read(self, length: int) -> bytes:
        if self._load is None:
            raise failure(errno.EBADF)
        if self._content is None:
            self._content = self._load()
        part = self._content[self._position : self._position + length]
        self._position += len(part)
        return part

    def write(self, data: bytes) -> int:
        if self._save is None:
            raise failure(errno.EBADF)
        if not self._at_close:
            self._save(data)
            return len(data)
        if len(self._written) + len(data) > self._limit:
            raise failure(errno.EFBIG)
        self._written += data
        return len(data)

    def close(self) -> None:
        if self._at_close and self._written and self._save is not None:
            # fs/configfs/file.c: the result of what is done at release is ignored.
            try:
                self._save(self._written)
            except OSError:
                return


class Part(Protocol):
    """A tree of pseudo-files below `root`; names are relative to it."""

    root: str

    def open(self, name: str, flags: int) -> FakeFile: ...
    def mkdir(self, name: str) -> None: ...
    def rmdir(self, name: str) -> None: ...


class FakeMachine:
    """The system calls of `System` over those parts; anything else is not there. Counts what is left open."""

    def __init__(self, *parts: Part) -> None:
        self._parts = parts
        self._open: dict[int, FakeFile] = {}
        self._next = 3

    @property
    def descriptors(self) -> int:
        """How many descriptors are open."""
        return len(self._open)

    def _find(self, path: str) -> tuple[Part, str]:
        for part in sorted(self._parts, key=lambda part: -len(part.root)):
            if path.startswith(part.root + "/"):
                return part, path.removeprefix(part.root + "/")
        raise failure(errno.ENOENT)

    def open(self, path: str, flags: int, /) -> int:
        part, name = self._find(path)
        file = part.open(name, flags)
        fd, self._next = self._next, self._next + 1
        self._open[fd] = file
        return fd

    def _file(self, fd: int) -> FakeFile:
        if fd not in self._open:
            raise failure(errno.EBADF)
        return self._open[fd]

    def read(self, fd: int, length: int, /) -> bytes:
        return self._file(fd).read(length)

    def write(self, fd: int, data: bytes, /) -> int:
        return self._file(fd).write(data)

    def close(self, fd: int, /) -> None:
        self._file(fd)
        self._open.pop(fd).close()

    def mkdir(self, path: str, mode: int, /) -> None:
        del mode
        part, name = self._find(path)
        part.mkdir(name)

    def rmdir(self, path: str, /) -> None:
        part, name = self._find(path)
        part.rmdir(name)


class Faults:
    """Errors to raise at the next uses of a file, by its name, and what to do just before."""

    def __init__(self) -> None:
        self._errors: dict[str, list[int]] = {}
        self._before: dict[str, list[Callable[[], None]]] = {}

    def fail(self, name: str, *errors: int) -> None:
        """Raise those, one at each use of `name`; then work again."""
        self._errors.setdefault(name, []).extend(errors)

    def before(self, name: str, *actions: Callable[[], None]) -> None:
        """Do those, one before each use of `name`."""
        self._before.setdefault(name, []).extend(actions)

    def _use(self, name: str) -> None:
        if actions := self._before.get(name):
            actions.pop(0)()
        if errors := self._errors.get(name):
            raise failure(errors.pop(0))


def failure(number: int) -> OSError:
    return OSError(number, os.strerror(number))
