"""Where a mirror rests, and what makes its bytes durable there."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from strongroom.sealed import Anchor, Root
from strongroom.storage import LocalDirectory
from strongroom.storage.local import FileStorage
from strongroom.storage.pmem import Flusher, PmemStorage, find_libpmem
from strongroom.storage.protocols import OpenMode

if TYPE_CHECKING:
    from collections.abc import Buffer  # type: ignore[attr-defined,unused-ignore]  # Python 3.12

    from strongroom.storage import Storage

_IN_MEMORY: Final = ("tmpfs", "ramfs", "devtmpfs")


@dataclass(frozen=True, slots=True)
class Region:
    """What a mirror rests on.

    Attributes:
        kind: ``memory`` (tmpfs: ends with the machine), ``dax`` (persistent memory), ``disk``, or ``other`` where the
            system does not tell.
        durability: ``power`` or ``process``, as asked for.
        means: what makes a commit durable: ``fdatasync`` (``F_FULLFSYNC`` on macOS), ``libpmem`` or ``msync`` (DAX,
            with libpmem and without), ``none``, or ``the storage's own``.
    """

    kind: str
    durability: str
    means: str

    def __str__(self) -> str:
        survives = {"power": "a power cut", "process": "the process"}[self.durability]
        if self.kind == "memory":
            survives = "the process, not the machine"
        return f"{self.kind}, {self.means}: a commit survives {survives}"


def look(path: Path, durability: str) -> Region:
    """What `path`, a file that exists or will, rests on."""
    kind = _kind(path)
    means = "none" if durability == "process" else "msync" if kind == "dax" else "fdatasync"
    if sys.platform == "darwin" and means == "fdatasync":
        means = "F_FULLFSYNC"
    return Region(kind, durability, means)


def _kind(path: Path) -> str:
    try:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        device = (path if path.exists() else path.parent).stat().st_dev
    except OSError:
        return "other"
    for line in reversed(lines):
        left, _, right = line.partition(" - ")
        fields = left.split(" ")
        major, minor = map(int, re.split(":", fields[2]))
        if os.makedev(major, minor) == device:
            options = {*fields[5].split(","), *right.split(" ")[-1].split(",")}
            if right.split(" ")[0] in _IN_MEMORY:
                return "memory"
            return "dax" if options & {"dax", "dax=always"} else "disk"
    return "other"


class PmemDirectory(LocalDirectory):
    """A directory in persistent memory: its files are mapped, and flushed from user space where that suffices.

    Args:
        flusher: None to do without: then they are written back by msync.

    Attributes:
        means: ``libpmem`` or ``msync``: what makes the file durable that was opened for writing last.
    """

    def __init__(self, path: str | os.PathLike[str], flusher: Flusher | None) -> None:
        super().__init__(path, mapped=True)
        self._flusher = flusher
        self.means = "msync"

    def open(self, name: str, mode: OpenMode, *, shared: bool = False) -> Storage:
        file = PmemStorage(self._at(name), mode, shared=shared, flusher=self._flusher)
        if mode != "r":
            self.means = file.means
        return file


def directory_of(path: Path, where: Region) -> LocalDirectory:
    """The directory that `path` is in, whose files are as durable as `where` says."""
    if where.durability == "process":
        return LazyDirectory(path.parent)
    if where.kind == "dax":
        return PmemDirectory(path.parent, find_libpmem())
    return LocalDirectory(path.parent)


class _LazyFile(FileStorage):
    """A file that is synced by `flush`, and when it is closed after somebody wrote to it."""

    _written_to = False
    _process = os.getpid()

    def write_at(self, offset: int, data: Buffer) -> None:
        self._written_to, self._process = True, os.getpid()
        super().write_at(offset, data)

    def sync(self) -> None:
        """Not now."""

    def flush(self) -> None:
        if self.fileno() >= 0:
            super().sync()

    def close(self) -> None:
        try:
            if self._written_to and self._process == os.getpid():  # a forked child leaves that to its parent
                self.flush()
        finally:
            super().close()


class LazyDirectory(LocalDirectory):
    """A directory whose files are synced by `flush` alone: what a process wrote outlives it without.

    After a power cut a file in it holds what was flushed last, and of what came later any part: nothing that was
    flushed is overwritten as long as it is retained.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path)
        self._files: list[_LazyFile] = []

    def open(self, name: str, mode: OpenMode, *, shared: bool = False) -> Storage:
        file = _LazyFile(self._at(name), mode, shared=shared)
        if mode != "r":
            self._files.append(file)
        return file

    def sync(self) -> None:
        """Not now."""

    def flush(self) -> None:
        """Make everything that was written survive a power cut."""
        for file in self._files:
            file.flush()
        super().sync()


class SyncFirst:
    """An anchor of what is synced lazily: it moves to nothing that a power cut could take away."""

    def __init__(self, anchor: Anchor, directory: LazyDirectory) -> None:
        self._anchor = anchor
        self._directory = directory

    def read(self) -> Root | None:
        return self._anchor.read()

    def advance(self, old: Root | None, new: Root) -> None:
        self._directory.flush()
        self._anchor.advance(old, new)
