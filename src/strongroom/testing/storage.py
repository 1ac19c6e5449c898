"""A disk in memory that loses power, fills up and fails: number its steps, make one fail, then look at what is left.

::

    disk = FaultyDirectory(files, stop_after=7)
    with contextlib.suppress(PowerCutError):
        ...                                          # the code under test, on `disk`
    for after in disk.crash_states(1000, rng):       # each a MemoryDirectory, as the next start finds it
        ...

A step is a write, a resize, a sync, or a change of names; `steps` counts them, so that a run without `stop_after` tells
how many crash points there are. Step k does not happen, nor does anything after it.

What has not been synced is lost or kept, each change by itself and in any order, as a disk's cache may do; a write may
be torn between sectors of 512 bytes. Changes that survive keep their order where they overlap, as in a page cache.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from strongroom.storage import MemoryDirectory, MemoryStorage, OpenMode
from strongroom.storage.locks import LockTable, MemoryLocks
from strongroom.testing.crash import SECTOR, Change, Changes, Fate, Rename, Resize, Write, fates, survivors

if TYPE_CHECKING:
    from collections.abc import Buffer  # type: ignore[attr-defined,unused-ignore]  # Python 3.12

# Whether a piece at this offset of its file survives; -1 stands for a change of a name or of a file's size.
Survives = Callable[[int], bool]


def _nothing(offset: int) -> bool:
    return False


class PowerCutError(Exception):
    """The disk is off. No error of Strongroom's, so that no handler of its errors takes it for one."""


@dataclass
class Faults:
    """When a disk fails; may be changed at any time. All count from the disk's beginning, its files taken together.

    Args:
        stop_after: the power goes after this many steps.
        fail_sync: the n-th sync (from 1) raises EIO; what it should have made durable is lost or kept for ever, even
            when later syncs succeed.
        sync_drops: after such a failure reads see what was durable before, as some file systems do; else what was
            written.
        full_from: from the n-th write on (from 1; growing a file or making one is a write too) the disk is full: of a
            write the first half of its sectors lands, then ENOSPC. None makes room again.
        short_read: the n-th read (from 1) returns half of what is there, as if the file had been cut meanwhile.
    """

    stop_after: int | None = None
    fail_sync: int | None = None
    sync_drops: bool = False
    full_from: int | None = None
    short_read: int | None = None


class _Steps:
    """What has happened so far on one disk."""

    def __init__(self, stop_after: int | None, faults: Faults | None) -> None:
        self.faults = faults or Faults()
        if stop_after is not None:
            self.faults.stop_after = stop_after
        self.count = self.syncs = self.writes = self.reads = 0

    def take(self) -> None:
        stop_after = self.faults.stop_after
        if stop_after is not None and self.count >= stop_after:
            raise PowerCutError(f"after step {stop_after}")
        self.count += 1

    def is_full(self) -> bool:
        self.writes += 1
        return self.faults.full_from is not None and self.writes >= self.faults.full_from

    def sync_fails(self) -> bool:
        self.syncs += 1
        return self.syncs == self.faults.fail_sync

    def read_is_short(self) -> bool:
        self.reads += 1
        return self.reads == self.faults.short_read


def _error(number: int, name: str | None = None) -> OSError:
    return OSError(number, os.strerror(number), name)


class FaultyStorage:
    """A file on such a disk. Alone, or as a `FaultyDirectory` gives it."""

    atomic_sync = False

    def __init__(
        self,
        data: bytes = b"",
        *,
        stop_after: int | None = None,
        faults: Faults | None = None,
        steps: _Steps | None = None,
    ) -> None:
        self._steps = steps or _Steps(stop_after, faults)
        self._now = MemoryStorage(data)
        self._durable = bytes(data)
        self._changes: Changes[Write | Resize] = Changes()
        self._table = LockTable()
        self.locks = self.lock()

    @property
    def steps(self) -> int:
        """How many steps there have been."""
        return self._steps.count

    @property
    def faults(self) -> Faults:
        return self._steps.faults

    @property
    def data(self) -> bytes:
        """What a read sees now."""
        return bytes(self._now.data)

    def read_into(self, offset: int, buffer: Buffer) -> int:
        view = memoryview(buffer)
        if self._steps.read_is_short():
            view = view[: max(0, min(len(view), self._now.size() - offset)) // 2]
        return self._now.read_into(offset, view)

    def write_at(self, offset: int, data: Buffer) -> None:
        self._steps.take()
        copy = bytes(data)
        full = self._steps.is_full()
        if full:
            copy = copy[: len(copy) // 2 // SECTOR * SECTOR]
        if copy or not full:
            self._now.write_at(offset, copy)
            self._changes.pending.append(Write(offset, copy))
        if full:
            raise _error(errno.ENOSPC)

    def resize(self, size: int) -> None:
        self._steps.take()
        if size > self._now.size() and self._steps.is_full():
            raise _error(errno.ENOSPC)
        self._now.resize(size)
        self._changes.pending.append(Resize(size))

    def sync(self) -> None:
        self._steps.take()
        if self._steps.sync_fails():
            self._changes.failed()
            if self.faults.sync_drops:
                self._now = MemoryStorage(self._state(lambda change: change.certain))
            raise _error(errno.EIO)
        if self._changes.synced():
            self._durable = bytes(self._now.data)
            self._changes.pending.clear()

    def size(self) -> int:
        return self._now.size()

    def close(self) -> None:
        """Closing makes nothing durable."""

    def lock(self) -> MemoryLocks:
        """The locks of one more opener."""
        return MemoryLocks(self._table)

    def flip(self, bit: int) -> None:
        """Turn one bit over: bit 0 is the lowest of the first byte. On the medium and in the cache alike."""
        at, mask = bit // 8, 1 << bit % 8
        self._now.data[at] ^= mask
        if at < len(self._durable):
            durable = bytearray(self._durable)
            durable[at] ^= mask
            self._durable = bytes(durable)

    def after_crash(self, survives: Survives = _nothing) -> bytes:
        """What is on the disk when the power is back; `survives` is asked about each piece that was not synced."""
        disk = MemoryStorage(self._durable)
        for change in self._changes.pending:
            if isinstance(change, Resize):
                if change.certain or survives(-1):
                    disk.resize(change.size)
                continue
            for start in range(0, len(change.data), SECTOR):
                if change.certain or survives(change.offset + start):
                    disk.write_at(change.offset + start, change.data[start : start + SECTOR])
        return bytes(disk.data)

    def crash_states(self, limit: int, rng: random.Random) -> Iterator[bytes]:
        """At most `limit` contents that a power cut now could leave, as `strongroom.testing.crash.fates` picks them."""
        changes: list[Change] = [*self._changes.uncertain()]
        for fate in fates(changes, limit, rng):
            yield bytes(self._state(survivors(changes, fate)))

    def _state(self, fate_of: Callable[[Change], Fate]) -> bytearray:
        disk = MemoryStorage(self._durable)
        for change in self._changes.pending:
            if fate := fate_of(change):
                change.apply(disk, fate)
        return disk.data


class CrashState(MemoryDirectory):
    """A directory as a power cut left it; its `repr` tells what became of each change that was not synced."""

    def __init__(self, files: dict[str, bytearray], changes: list[Change], fate: tuple[Fate, ...]) -> None:
        super().__init__()
        for name, data in files.items():
            self.files[name] = MemoryStorage()
            self.files[name].data = data  # no second copy
        self._fate = [*zip(changes, fate, strict=True)]

    def __repr__(self) -> str:
        return f"<CrashState {', '.join(f'{change}: {fate}' for change, fate in self._fate) or 'all synced'}>"


class FaultyDirectory:
    """A directory on the disk that loses power, fills up and fails. Its files are `FaultyStorage`."""

    write_once = False

    def __init__(
        self, files: dict[str, bytes] | None = None, *, stop_after: int | None = None, faults: Faults | None = None
    ) -> None:
        self._steps = _Steps(stop_after, faults)
        self._now = {name: FaultyStorage(data, steps=self._steps) for name, data in (files or {}).items()}
        self._durable = dict(self._now)
        self._changes: Changes[Rename[FaultyStorage]] = Changes()

    @property
    def steps(self) -> int:
        """How many steps there have been, in all files together."""
        return self._steps.count

    @property
    def faults(self) -> Faults:
        return self._steps.faults

    @property
    def syncs(self) -> int:
        """How many syncs there have been, as `Faults.fail_sync` counts them."""
        return self._steps.syncs

    @property
    def writes(self) -> int:
        """How many writes there have been, as `Faults.full_from` counts them."""
        return self._steps.writes

    @property
    def reads(self) -> int:
        """How many reads there have been, as `Faults.short_read` counts them."""
        return self._steps.reads

    def open(self, name: str, mode: OpenMode, *, shared: bool = False) -> FaultyHandle:
        """As any directory does, except that no opener excludes another one: crashes leave handles open."""
        if mode == "x":
            if name in self._now:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
            self._create(name)
        return FaultyHandle(self._find(name))

    def locks(self, name: str) -> MemoryLocks:
        if name not in self._now:
            self._create(name)
        return self._now[name].lock()

    def _create(self, name: str) -> None:
        self._steps.take()
        if self._steps.is_full():
            raise _error(errno.ENOSPC, name)
        self._change(None, name, FaultyStorage(steps=self._steps))

    def rename(self, old: str, new: str) -> None:
        file = self._find(old)
        self._steps.take()
        self._change(old, new, file)

    def unlink(self, name: str) -> None:
        file = self._find(name)
        self._steps.take()
        self._change(name, None, file)

    def _change(self, old: str | None, new: str | None, file: FaultyStorage) -> None:
        change = Rename(old, new, file)
        change.apply(self._now)
        self._changes.pending.append(change)

    def list(self) -> list[str]:
        return sorted(self._now)

    def sync(self) -> None:
        self._steps.take()
        if self._steps.sync_fails():
            self._changes.failed()
            raise _error(errno.EIO)
        if self._changes.synced():
            self._durable = dict(self._now)
            self._changes.pending.clear()

    def flip(self, name: str, bit: int) -> None:
        """Turn one bit of a file over, as `FaultyStorage.flip`."""
        self._find(name).flip(bit)

    def _find(self, name: str) -> FaultyStorage:
        try:
            return self._now[name]
        except KeyError:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name) from None

    def after_crash(self, survives: Survives = _nothing) -> MemoryDirectory:
        """What is on the disk when the power is back; of a rename, one half may survive without the other."""
        names = self._names(lambda change: change.certain)
        for name in sorted(self._now.keys() | names.keys()):
            if self._now.get(name) is not names.get(name) and survives(-1):
                if name in self._now:
                    names[name] = self._now[name]
                else:
                    names.pop(name, None)
        return MemoryDirectory({name: file.after_crash(survives) for name, file in names.items()})

    def crash_states(self, limit: int, rng: random.Random) -> Iterator[CrashState]:
        """At most `limit` states that a power cut now could leave, as `strongroom.testing.crash.fates` picks them.

        Changes of names are among the changes, each atomic; so are those of files that were unlinked, whose names may
        come back. What is certain is copied once for each state, and nothing else.
        """
        names: list[Change] = [*self._changes.uncertain()]
        files = dict.fromkeys([*self._durable.values(), *(change.file for change in self._changes.pending)])
        changes = [*names, *(change for file in files for change in file._changes.uncertain())]
        for fate in fates(changes, limit, rng):
            fate_of = survivors(changes, fate)
            left = self._names(fate_of)
            yield CrashState({name: file._state(fate_of) for name, file in left.items()}, changes, fate)

    def _names(self, fate_of: Callable[[Change], Fate]) -> dict[str, FaultyStorage]:
        names = dict(self._durable)
        for change in self._changes.pending:
            if fate_of(change):
                change.apply(names)
        return names


class FaultyHandle:
    """One opening of a file of a `FaultyDirectory`, with locks of its own."""

    atomic_sync = False

    def __init__(self, file: FaultyStorage) -> None:
        self.locks = file.lock()
        self.read_into = file.read_into
        self.write_at = file.write_at
        self.sync = file.sync
        self.resize = file.resize
        self.size = file.size

    def close(self) -> None:
        self.locks.close()
