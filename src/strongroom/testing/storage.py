"""A disk in memory that loses power: stop after the k-th step, then look at what is left.

::

    disk = FaultyDirectory(stop_after=7)
    with contextlib.suppress(PowerCutError):
        ...                                          # the code under test, on `disk`
    after = disk.after_crash(lambda offset: rng.random() < 0.5)   # a MemoryDirectory

A step is a write, a resize, a sync, or a change of names; `steps` counts them, so that a run without `stop_after` tells
how many crash points there are. Step k does not happen, nor does anything after it.

What has not been synced is lost or kept in pieces of 512 bytes, each by itself and in any order, as a disk's cache may
do; a name that has not been synced is lost or kept likewise.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from strongroom.storage import MemoryDirectory, MemoryStorage, OpenMode
from strongroom.storage.locks import LockTable, MemoryLocks

if TYPE_CHECKING:
    from collections.abc import Buffer  # type: ignore[attr-defined,unused-ignore]  # Python 3.12

SECTOR = 512

# Whether a piece at this offset of its file survives; -1 stands for a change of a name or of a file's size.
Survives = Callable[[int], bool]


def _nothing(offset: int) -> bool:
    return False


class PowerCutError(Exception):
    """The disk is off. No error of Strongroom's, so that no handler of its errors takes it for one."""


class _Steps:
    def __init__(self, stop_after: int | None) -> None:
        self.count = 0
        self.stop_after = stop_after

    def take(self) -> None:
        self.check()
        self.count += 1

    def check(self) -> None:
        if self.stop_after is not None and self.count >= self.stop_after:
            raise PowerCutError(f"after step {self.stop_after}")


class FaultyStorage:
    """A file on the disk that loses power. Alone, or as a `FaultyDirectory` gives it."""

    def __init__(self, data: bytes = b"", *, stop_after: int | None = None, steps: _Steps | None = None) -> None:
        self._steps = steps or _Steps(stop_after)
        self._now = MemoryStorage(data)
        self._durable = bytes(data)
        self._pending: list[tuple[int, bytes | None]] = []  # (offset, data), or (size, None)
        self._table = LockTable()
        self.locks = self.lock()

    @property
    def steps(self) -> int:
        """How many steps there have been."""
        return self._steps.count

    def read_into(self, offset: int, buffer: Buffer) -> int:
        return self._now.read_into(offset, buffer)

    def write_at(self, offset: int, data: Buffer) -> None:
        self._steps.take()
        copy = bytes(data)
        self._now.write_at(offset, copy)
        self._pending.append((offset, copy))

    def resize(self, size: int) -> None:
        self._steps.take()
        self._now.resize(size)
        self._pending.append((size, None))

    def sync(self) -> None:
        self._steps.take()
        self._durable = bytes(self._now.data)
        self._pending.clear()

    def size(self) -> int:
        return self._now.size()

    def close(self) -> None:
        """Closing makes nothing durable."""

    def lock(self) -> MemoryLocks:
        """The locks of one more opener."""
        return MemoryLocks(self._table)

    def after_crash(self, survives: Survives = _nothing) -> bytes:
        """What is on the disk when the power is back; `survives` is asked about each piece that was not synced."""
        disk = MemoryStorage(self._durable)
        for at, data in self._pending:
            if data is None:
                if survives(-1):
                    disk.resize(at)
                continue
            for start in range(0, len(data), SECTOR):
                if survives(at + start):
                    disk.write_at(at + start, data[start : start + SECTOR])
        return bytes(disk.data)


class FaultyDirectory:
    """A directory on the disk that loses power. Its files are `FaultyStorage`."""

    def __init__(self, files: dict[str, bytes] | None = None, *, stop_after: int | None = None) -> None:
        self._steps = _Steps(stop_after)
        self._now = {name: FaultyStorage(data, steps=self._steps) for name, data in (files or {}).items()}
        self._durable = dict(self._now)

    @property
    def steps(self) -> int:
        """How many steps there have been, in all files together."""
        return self._steps.count

    def open(self, name: str, mode: OpenMode, *, shared: bool = False) -> FaultyHandle:
        """As any directory does, except that no opener excludes another one: crashes leave handles open."""
        if mode == "x":
            if name in self._now:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
            self._steps.take()
            self._now[name] = FaultyStorage(steps=self._steps)
        return FaultyHandle(self._find(name))

    def locks(self, name: str) -> MemoryLocks:
        if name not in self._now:
            self._steps.take()
            self._now[name] = FaultyStorage(steps=self._steps)
        return self._now[name].lock()

    def rename(self, old: str, new: str) -> None:
        file = self._find(old)
        self._steps.take()
        del self._now[old]
        self._now[new] = file

    def unlink(self, name: str) -> None:
        self._find(name)
        self._steps.take()
        del self._now[name]

    def list(self) -> list[str]:
        return sorted(self._now)

    def sync(self) -> None:
        self._steps.take()
        self._durable = dict(self._now)

    def _find(self, name: str) -> FaultyStorage:
        try:
            return self._now[name]
        except KeyError:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name) from None

    def after_crash(self, survives: Survives = _nothing) -> MemoryDirectory:
        """What is on the disk when the power is back."""
        names = dict(self._durable)
        for name in sorted(self._now.keys() | self._durable.keys()):
            if self._now.get(name) is not self._durable.get(name) and survives(-1):
                if name in self._now:
                    names[name] = self._now[name]
                else:
                    names.pop(name, None)
        return MemoryDirectory({name: file.after_crash(survives) for name, file in names.items()})


class FaultyHandle:
    """One opening of a file of a `FaultyDirectory`, with locks of its own."""

    def __init__(self, file: FaultyStorage) -> None:
        self.locks = file.lock()
        self.read_into = file.read_into
        self.write_at = file.write_at
        self.sync = file.sync
        self.resize = file.resize
        self.size = file.size

    def close(self) -> None:
        self.locks.close()
