"""The content of one inode while somebody uses it, or while it holds changes that no commit has."""

from __future__ import annotations

import bisect
import errno
import os
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Final

from strongroom.errors import FormatError, LockedError, UsageError
from strongroom.sealed.content import Content, Version
from strongroom.sealed.layout import DEFAULT_BLOCK, MAX_LENGTH
from strongroom.storage import Storage
from strongroom.vault.rows import NO_CUT, DataChange, Inline, Inode, Packed, Tree

if TYPE_CHECKING:
    from collections.abc import Buffer  # type: ignore[attr-defined,unused-ignore]  # Python 3.12

    from strongroom.vault.files import Files

INLINE: Final = 2 << 10
SMALL: Final = DEFAULT_BLOCK


class Node:
    """The content of one inode. Made by `Files.node`; used under the vault's lock."""

    def __init__(self, files: Files, number: int) -> None:
        self.number = number
        self.handles = 0
        self.block_size = DEFAULT_BLOCK
        self.dirty = False  # differs from what the inode's row describes
        self.locked = False
        self.foreign = False  # it is another process that has it locked
        self._files = files
        self._small: bytearray | None = None
        self._tree: Content | None = None
        self._storage: Storage | None = None  # of the tree
        self._file: tuple[bytes, bytes, int] | None = None  # of the tree: id, key, block size
        self._prepared: Version | None = None
        # Not in the log yet: cut to this length, then written in these ranges.
        self._cut = NO_CUT
        self._written: list[tuple[int, int]] = []

    @property
    def inode(self) -> Inode:
        inode = self._files.state.find(self.number)
        if inode is None:
            raise FileNotFoundError(f"{self._files.what}: the file was removed by another process")
        return inode

    @property
    def loaded(self) -> bool:
        return self._small is not None or self._tree is not None

    @property
    def is_tree(self) -> bool:
        return self._tree is not None

    @property
    def unlogged(self) -> bool:
        """Whether anything was written since the last record of the log, or the last commit."""
        return self._cut != NO_CUT or bool(self._written)

    @property
    def unlogged_bytes(self) -> int:
        return sum(end - start for start, end in self._written)

    # Reading and writing.

    def read_at(self, offset: int, buffer: Buffer) -> int:
        """Fill `buffer` from `offset` on; fewer bytes only at the end."""
        self._load()
        if self._tree is not None:
            return self._tree.read_at(offset, buffer)
        assert self._small is not None  # noqa: S101  # loaded
        with memoryview(buffer) as raw, raw.cast("B") as view:
            count = max(0, min(len(view), len(self._small) - offset))
            view[:count] = memoryview(self._small)[offset : offset + count]
            return count

    def read_blocks(self, indices: Sequence[int], out: Buffer, rows: Sequence[int] | None = None) -> None:
        """As `Content.read_blocks`, of blocks of `block_size` bytes."""
        self._load()
        if self._tree is not None and self._file is not None and self._file[2] == self.block_size:
            self._tree.read_blocks(indices, out, rows)
            return
        size = self.block_size
        with memoryview(out) as raw, raw.cast("B") as view:
            for index, row in zip(indices, range(len(indices)) if rows is None else rows, strict=True):
                part = view[row * size : (row + 1) * size]
                count = self.read_at(index * size, part)
                part[count:] = bytes(len(part) - count)

    def write_at(self, offset: int, data: Buffer) -> None:
        """Write all of `data`; a gap before `offset` reads as zeros."""
        with memoryview(data) as raw, raw.cast("B") as view:
            end = offset + len(view)
            if end > MAX_LENGTH:
                raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
            if not view:
                return
            self._change(end)
            if self._tree is not None:
                self._tree.write_at(offset, view)
            else:
                assert self._small is not None  # noqa: S101  # loaded
                if offset > len(self._small):
                    self._small.extend(bytes(offset - len(self._small)))
                self._small[offset:end] = view
            self._note(offset, end)
            inode = self.inode
            if end > inode.size:
                inode.size = end
            self._touch(inode)

    def truncate(self, size: int) -> None:
        """Cut, or extend by zeros."""
        if size < 0:
            raise UsageError(f"length: {size} bytes, wanted 0 or more")
        if size > MAX_LENGTH:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        if size != self.inode.size:
            self._change(size)
            inode = self.inode
            if self._tree is not None:
                self._tree.truncate(size)
            else:
                assert self._small is not None  # noqa: S101  # loaded
                if size < len(self._small):
                    del self._small[size:]
                else:
                    self._small.extend(bytes(size - len(self._small)))
            self._cut = min(self._cut, size, inode.size)
            self._written = [(start, min(end, size)) for start, end in self._written if start < size]
            inode.size = size
        self._touch(self.inode)

    def punch(self, offset: int, length: int) -> None:
        """Make a range read as zeros; the length of the file stays."""
        if min(offset + length, self.inode.size) <= offset:
            return
        self._change(self.inode.size)
        end = min(offset + length, self.inode.size)
        if end <= offset:
            return  # another process has cut the file since
        if self._tree is not None:
            self._tree.punch(offset, end - offset)
        else:
            assert self._small is not None  # noqa: S101  # loaded
            self._small[offset:end] = bytes(end - offset)
        self._note(offset, end)
        self._touch(self.inode)

    def _touch(self, inode: Inode) -> None:
        inode.mtime = inode.ctime = self._files.clock()
        self._files.state.touch(inode)

    def _change(self, end: int) -> None:
        """Get ready to be changed, up to length `end`."""
        self._files.ready()
        self._files.lock_inode(self)
        self._load()
        if self._small is not None and end > SMALL:
            self._to_tree()
        elif self._tree is not None and self._files.write_once and self._file not in self._files.unwritten:
            self._copy_tree()
        self.dirty = True

    def _note(self, start: int, end: int) -> None:
        ranges = self._written
        if ranges and ranges[-1][0] <= start <= ranges[-1][1]:  # what follows what was written last
            ranges[-1] = ranges[-1][0], max(end, ranges[-1][1])
            return
        at = bisect.bisect_left(ranges, (start, end))
        first = at - 1 if at and ranges[at - 1][1] >= start else at
        last = first
        while last < len(ranges) and ranges[last][0] <= end:
            start, end = min(start, ranges[last][0]), max(end, ranges[last][1])
            last += 1
        ranges[first:last] = [(start, end)]

    # Between memory, row and data file.

    def _load(self) -> None:
        if self.loaded:
            return
        inode = self.inode
        body = inode.body
        if isinstance(body, Tree):
            if body.version.length != inode.size:
                raise FormatError(f"{self._files.what}: inode {inode.id}: {inode.size} bytes, wanted its tree's")
            self._file = body.file, body.key, body.block_size
            self._storage, self._tree = self._files.open_tree(self.number, body)
        elif isinstance(body, Packed):
            self._small = self._files.read_piece(body, inode.size)
        else:
            self._small = bytearray(body.data if body else b"")
            if len(self._small) != inode.size:
                raise FormatError(f"{self._files.what}: inode {inode.id}: {len(self._small)} bytes, not {inode.size}")

    def _to_tree(self) -> None:
        small, self._small = self._small, None
        self._file, self._storage, self._tree = self._files.new_tree(self.block_size)
        if small:
            self._tree.write_at(0, small)

    def _copy_tree(self) -> None:
        old, storage = self._tree, self._storage
        assert old is not None and storage is not None and self._file is not None  # noqa: S101  # the caller looked
        self._file, self._storage, self._tree = self._files.new_tree(self._file[2])
        buffer = memoryview(bytearray(1 << 20))
        at = 0
        while count := old.read_at(at, buffer):
            self._tree.write_at(at, buffer[:count])
            at += count
        self._tree.truncate(old.length)
        old.close()
        storage.close()

    def rewrite(self) -> None:
        """Have the content written anew, under another key, with the next commit."""
        self._files.lock_inode(self)
        self._load()
        if self._tree is not None:
            self._copy_tree()
        self.dirty = True
        self._files.state.touch(self.inode)

    def compact(self, limit: int) -> int:
        """Move up to `limit` blocks of a tree to free places before them; how many were moved."""
        self._files.lock_inode(self)
        self._load()
        moved = self._tree.compact(limit) if self._tree is not None else 0
        if self._tree is not None:
            self.dirty = True
            self._files.state.touch(self.inode)
        return moved

    def settle(self) -> None:
        """Make the inode's row describe the content as it is now; `Files.sync` then makes that durable."""
        if not self.dirty:
            return
        inode = self.inode
        if self._tree is not None and self._file is not None and self._storage is not None:
            self._prepared = self._tree.prepare()
            inode.body = Tree(*self._file, since=0, version=self._prepared)
            self._files.unsynced[self._file[0]] = self._storage
        elif self._small is not None:
            if not self._small:
                inode.body = None
            elif len(self._small) <= INLINE and self._files.encrypted:
                inode.body = Inline(bytes(self._small))
            else:
                inode.body = self._files.write_piece(self._small)
        self._files.state.touch(inode)
        self.dirty = False

    def committed(self, live: Collection[int]) -> None:
        """Note that a commit holds what `settle` described."""
        self._cut = NO_CUT
        self._written.clear()
        if self._tree is not None and self._file is not None:
            if self._prepared is not None:
                self._tree.committed(self._prepared)
                self._prepared = None
            self._tree.hold(self._files.state.older(self._file[0], live))

    def unload(self) -> None:
        """Give back memory and descriptors; the row describes the content."""
        self._small = None
        if self._tree is not None:
            self._tree.close()
        if self._storage is not None:
            self._storage.close()
        self._tree = self._storage = self._file = self._prepared = None

    def verify(self) -> int:
        """Read all of it from the storage; the number of blocks. Raises IntegrityError."""
        self._load()
        if self._tree is not None:
            return self._tree.verify()
        return len(self._small or b"") > 0

    def parts(self) -> list[tuple[bytes, int, int]]:
        """Where the content rests, of a file that has not been changed: (data file, or nothing for zeros, offset,
        length), one after the other. What lies in a row is nowhere.
        """
        self._load()
        inode = self.inode
        if isinstance(inode.body, Packed):
            return [(inode.body.pack, inode.body.offset, inode.size)]
        found: list[tuple[bytes, int, int]] = []
        if self._tree is None or self._file is None:
            return found
        file, _, size = self._file
        for place in self._tree.places():
            name, at = (file, (place - 1) * size) if place else (b"", 0)
            if found and found[-1][0] == name and (not place or sum(found[-1][1:]) == at):
                found[-1] = name, found[-1][1], found[-1][2] + size
            else:
                found.append((name, at, size))
        if over := sum(part[2] for part in found) - inode.size:
            name, at, length = found.pop()
            found.append((name, at, length - over))
        return found

    # The log.

    def take_change(self) -> DataChange:
        """What was written since the last record; from now on it counts as logged."""
        size = self.inode.size
        change = DataChange(self.number, self._cut, size, [])
        for start, end in self._written:
            piece = bytearray(min(end, size) - start)
            self.read_at(start, piece)
            change.pieces.append((start, bytes(piece)))
        self._cut = NO_CUT
        self._written = []
        return change

    def replay(self, change: DataChange) -> None:
        """Make a change that the log holds.

        Should another process have begun to write to the file, the record came first: the content goes to a data file
        of its own, and the other's commit will find that it conflicts.
        """
        try:
            self._files.lock_inode(self)
        except LockedError:
            self.locked = True  # by the other, and not given back here
            self.foreign = True
            self._load()
            if self._tree is not None:
                self._copy_tree()
        if change.cut != NO_CUT:
            self.truncate(change.cut)
        if self.inode.size != change.size:
            self.truncate(change.size)
        for offset, piece in change.pieces:
            self.write_at(offset, piece)
