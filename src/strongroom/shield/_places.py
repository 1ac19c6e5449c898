"""Which inode of which vault stands behind a number of the kernel's, and how it looks to the kernel."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Final

import pyfuse3

from strongroom.errors import UsageError
from strongroom.vault import Vault
from strongroom.vault.paths import split
from strongroom.vault.rows import ROOT_INODE, Inode

# The kernel is told of every change that it did not ask for itself, so it may keep what it learnt, but
# for names that do not exist, which nobody counts.
FOREVER: Final = 365 * 86400.0
SHORTLY: Final = 1.0
_SPREAD: Final = 0x9E3779B97F4A7C15  # odd, so its multiples differ
_NUMBERS: Final = (1 << 64) - 1
_MOST_MADE_UP: Final = (1 << 61) - 1


@dataclass(slots=True)
class Shown:
    """A vault in a mount.

    Attributes:
        mask: joins a number of the vault (exclusive or) to make one that no other vault in the mount has.
        owner: (uid there, uid here, gid there, gid here) if one owner shall look like another.
        made_up: directories that the vault does not have, by the directory they are in: something is mounted over
            each. Their numbers are lower than any that a vault draws.
    """

    vault: Vault
    name: str
    writable: bool
    mask: int
    owner: tuple[int, int, int, int] | None
    made_up: dict[int, dict[bytes, Inode]] = field(default_factory=dict)

    def add_point(self, path: str) -> None:
        """Have a directory at a path, empty if the vault has none there.

        Raises:
            UsageError: there is a file, or the vault can be changed: then it can be given one.
        """
        number = ROOT_INODE
        for name in split(path):
            found = self.find(number, name)
            if found is None:
                if self.writable:
                    raise UsageError(f"mount point: {path!a} is no directory of the vault", hint="make it there")
                below = self.made_up.setdefault(number, {})
                count = sum(len(names) for names in self.made_up.values())
                found = below[name] = Inode(ROOT_INODE + 1 + count, 0o040555, 1, 0, 0, 0, 0, 0, 0, None, 0)
            if not found.is_dir:
                raise UsageError(f"mount point: {path!a} is no directory in the vault")
            number = found.id

    def inode(self, number: int) -> Inode:
        """As the vault's, with what is made up."""
        if self.made_up:
            for names in self.made_up.values():
                for inode in names.values():
                    if inode.id == number:
                        return inode
        return self.vault.inode(number)

    def find(self, parent: int, name: bytes) -> Inode | None:
        """As the vault's, with what is made up."""
        if self.made_up and (found := self.made_up.get(parent, {}).get(name)) is not None:
            return found
        return None if self._is_made_up(parent) else self.vault.find(parent, name)

    def entries(self, number: int, after: bytes, limit: int) -> tuple[list[tuple[bytes, Inode]], bool]:
        """Names in a directory behind `after`, about `limit` of them, and whether these are the last."""
        found = [] if self._is_made_up(number) else self.vault.entries(number, after, limit)
        complete = len(found) < limit
        below = self.made_up.get(number, {}) if self.made_up else {}
        more = [(n, inode) for n, inode in below.items() if n > after and (complete or n < found[-1][0])]
        return sorted([*found, *more], key=lambda entry: entry[0]) if more else found, complete

    def _is_made_up(self, number: int) -> bool:
        return bool(self.made_up) and ROOT_INODE < number <= _MOST_MADE_UP

    def ids_here(self, uid: int, gid: int) -> tuple[int, int]:
        """The owner that programs see."""
        if self.owner is None:
            return uid, gid
        uid_there, uid_here, gid_there, gid_here = self.owner
        return uid_here if uid == uid_there else uid, gid_here if gid == gid_there else gid

    def ids_there(self, uid: int, gid: int) -> tuple[int, int]:
        """The owner that the vault stores."""
        if self.owner is None:
            return uid, gid
        uid_there, uid_here, gid_there, gid_here = self.owner
        return uid_there if uid == uid_here else uid, gid_there if gid == gid_here else gid


@dataclass(slots=True)
class Place:
    """An inode that the kernel knows.

    Attributes:
        lookups: how often the kernel looked it up; it forgets that many at once.
        parent, name: the name that led to it last.
        others: more names, for hard links.
        removed: what it was, of a directory that is removed and somebody is still in.
    """

    shown: Shown
    number: int
    lookups: int
    parent: int
    name: bytes
    others: set[tuple[int, bytes]] | None = None
    removed: Inode | None = None

    @property
    def names(self) -> set[tuple[int, bytes]]:
        return {(self.parent, self.name), *(self.others or ())}


class Places:
    """The inodes that the kernel knows. It says when it forgets one, so this is as large as its own cache.

    With one vault, named "", numbers are the vault's own. With several, or one that has a name, the top directory is
    made up: it has no place here.
    """

    def __init__(self, vaults: Mapping[str, Vault], points: Mapping[str, Collection[str]]) -> None:
        self.shown: list[Shown] = []
        for index, (name, vault) in enumerate(vaults.items()):
            writable = vault.mode != "r"
            mask = index * _SPREAD & _NUMBERS if not name else (index + 1) * _SPREAD & _NUMBERS
            shown = Shown(vault, name, writable, mask, self._owner(vault))
            self.shown.append(shown)
            for path in sorted(points.get(name, ())):
                shown.add_point(path)
        self.writable = any(one.writable for one in self.shown)
        self.tops = {one.name.encode(): one for one in self.shown if one.name}
        self._known: dict[int, Place] = {}
        for one in self.shown:
            # Never forgotten: the kernel need not look these up first.
            number = ROOT_INODE ^ one.mask
            self._known[number] = Place(one, ROOT_INODE, 1, pyfuse3.ROOT_INODE, one.name.encode())

    @staticmethod
    def _owner(vault: Vault) -> tuple[int, int, int, int] | None:
        """Who mounts a vault without being root sees what its owner owns as their own."""
        top = vault.inode(ROOT_INODE) if vault.root is not None or vault.mode != "r" else None
        if top is None or os.getuid() == 0:
            return None
        return top.uid, os.getuid(), top.gid, os.getgid()

    def __getitem__(self, ino: int) -> Place:
        """Raises ESTALE's OSError if there is none, or if it is the made-up top: the callers have looked."""
        place = self._known.get(ino)
        if place is None:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return place

    def get(self, ino: int) -> Place | None:
        return self._known.get(ino)

    def __len__(self) -> int:
        return len(self._known)

    def told(self, shown: Shown, number: int, parent: int, name: bytes) -> None:
        """Note that a reply led the kernel to an inode by a name."""
        ino = number ^ shown.mask
        place = self._known.get(ino)
        if place is None:
            self._known[ino] = Place(shown, number, 1, parent, name)
        else:
            place.lookups += 1
            if place.parent != parent or place.name != name:
                self.named(place, parent, name)

    def named(self, place: Place, parent: int, name: bytes) -> None:
        """Note that an inode has, maybe besides another, a name that the kernel knows."""
        if place.number != ROOT_INODE:
            place.others = {*(place.others or ()), (place.parent, place.name)}
            place.parent, place.name = parent, name

    def unnamed(self, ino: int, parent: int, name: bytes) -> None:
        """Note that the kernel took a name from an inode."""
        place = self._known.get(ino)
        if place is None or not place.others:
            return
        place.others.discard((parent, name))
        if (place.parent, place.name) == (parent, name) and place.others:
            place.parent, place.name = place.others.pop()

    def known(self) -> list[tuple[int, Place]]:
        """Everything that the kernel knows."""
        return list(self._known.items())

    def forget(self, ino: int, count: int) -> None:
        """Note that the kernel dropped an inode that it had looked up `count` times."""
        place = self._known.get(ino)
        if place is not None and place.number != ROOT_INODE:
            place.lookups -= count
            if place.lookups <= 0:
                del self._known[ino]


def attributes(shown: Shown, inode: Inode) -> pyfuse3.EntryAttributes:
    """What the kernel wants to know of an inode."""
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = pyfuse3.InodeT(inode.id ^ shown.mask)
    entry.entry_timeout = entry.attr_timeout = FOREVER
    if shown.writable:
        entry.st_mode = pyfuse3.ModeT(inode.mode)
        entry.st_uid, entry.st_gid = shown.ids_here(inode.uid, inode.gid)
    else:
        # For whoever mounts it, whoever made it.
        entry.st_mode = pyfuse3.ModeT(stat.S_IFMT(inode.mode) | inode.mode & 0o555)
        entry.st_uid, entry.st_gid = os.getuid(), os.getgid()
    entry.st_nlink = inode.links
    size = entry.st_size = inode.size
    entry.st_blksize = 65536
    entry.st_blocks = size + 511 >> 9
    entry.st_atime_ns = inode.atime
    entry.st_mtime_ns = inode.mtime
    entry.st_ctime_ns = inode.ctime
    return entry


def absent(timeout: float) -> pyfuse3.EntryAttributes:
    """The reply that there is nothing by a name, which the kernel may keep for a while."""
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = pyfuse3.InodeT(0)
    entry.entry_timeout = timeout
    return entry


def made_up_top(owner: tuple[int, int], now: int) -> pyfuse3.EntryAttributes:
    """The directory above several vaults."""
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = pyfuse3.ROOT_INODE
    entry.entry_timeout = entry.attr_timeout = FOREVER
    entry.st_mode = pyfuse3.ModeT(stat.S_IFDIR | 0o555)
    entry.st_uid, entry.st_gid = owner
    entry.st_nlink = 1
    entry.st_blksize = 4096
    entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = now
    return entry
