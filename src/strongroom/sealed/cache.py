"""Decrypted blocks in memory: for small reads, and for what was written and is not in the tree yet."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import TYPE_CHECKING, Final

from strongroom.sealed.layout import HOLE
from strongroom.sealed.tree import END, BlockTree

if TYPE_CHECKING:
    from collections.abc import Buffer  # type: ignore[attr-defined,unused-ignore]  # Python 3.12

_PIECE: Final = 64 << 20  # bytes of one transfer, so that what it takes beside them stays small


def _wipe(view: memoryview) -> None:
    """Put zeros over what may hold something that failed to authenticate."""
    for at in range(0, len(view), _PIECE):
        part = view[at : at + _PIECE]
        part[:] = bytes(len(part))


class BlockCache:
    """Blocks of one tree. Not for use from several threads at once.

    A block is clean, as the tree has it, or newer. Newer ones are written to the tree when they are half of what there
    is room for, or, without `write_early`, only when they are asked to be.

    Args:
        capacity: how many blocks there is room for.
    """

    def __init__(self, tree: BlockTree, block_size: int, capacity: int, *, write_early: bool) -> None:
        self._tree = tree
        self._size = block_size
        self._capacity = capacity
        self._write_early = write_early
        self._clean: dict[int, bytearray] = {}  # in the order of their last use
        self._newer: dict[int, bytearray] = {}

    @property
    def newer(self) -> Container[int]:
        """Which blocks are newer than the tree's."""
        return self._newer

    @property
    def dirty(self) -> int:
        """Bytes of the blocks that are newer than the tree's."""
        return len(self._newer) * self._size

    def __contains__(self, index: int) -> bool:
        """Whether a block is here."""
        return index in self._newer or index in self._clean

    def read(self, offset: int, view: memoryview) -> None:
        """Fill `view` with the bytes from `offset` on. Whole blocks that are not here come straight from the tree.

        Raises:
            IntegrityError: a block is not what was written; `view` is then all zeros.
        """
        try:
            self._read(offset, view)
        except BaseException:
            _wipe(view)
            raise

    def _read(self, offset: int, view: memoryview) -> None:
        size, done, total = self._size, 0, len(view)
        while done < total:
            index, start = divmod(offset + done, size)
            count = self._apart(index, min(total - done, _PIECE) // size) if start == 0 else 0
            if count:
                part = view if count * size == total else view[done : done + count * size]
                if count == 1:
                    self._tree.read_one(index, part)
                else:
                    self._tree.read(index, part)
            else:
                part = view[done : done + size - start]
                part[:] = memoryview(self.block(index))[start : start + len(part)]
            done += len(part)

    def read_each(self, indices: Sequence[int], starts: Sequence[int], view: memoryview) -> None:
        """Put block `indices[k]` into `view` from byte `starts[k]` on, for all k. What is not here is not kept.

        Raises:
            IntegrityError: a block is not what was written; all these blocks of `view` are then zeros.
        """
        size = self._size
        try:
            if not self._newer and not self._clean:
                self._tree.read_each(indices, starts, view)
                return
            here = self._newer.keys() | self._clean.keys()
            apart = [k for k, index in enumerate(indices) if index not in here]
            self._tree.read_each([indices[k] for k in apart], [starts[k] for k in apart], view)
            for index, start in zip(indices, starts, strict=True):
                if index in here:
                    view[start : start + size] = self.block(index)
        except BaseException:
            for start in starts:
                _wipe(view[start : start + size])
            raise

    def _apart(self, index: int, count: int) -> int:
        """How many blocks from `index` on, at most `count`, are not here."""
        for blocks in (self._newer, self._clean):
            if len(blocks) < count:
                count = min((other - index for other in blocks if index <= other < index + count), default=count)
            else:
                count = next((i for i in range(count) if index + i in blocks), count)
        return count

    def block(self, index: int) -> bytearray:
        """A block, to be read.

        Raises:
            IntegrityError: it is not what was written.
        """
        block = self._newer.get(index)
        if block is None:
            block = self._take(index)
            self._clean[index] = block  # now the last to go
        return block

    def changing(self, index: int) -> bytearray:
        """A block, to be changed; it is newer than the tree's from now on.

        Raises:
            IntegrityError: it is not what was written.
        """
        block = self._newer.get(index)
        if block is None:
            if self._write_early and len(self._newer) >= self._capacity // 2:
                self.write()
            block = self._newer[index] = self._take(index)
        return block

    def put(self, index: int, data: Buffer) -> None:
        """Replace a block; it is newer than the tree's."""
        self._clean.pop(index, None)
        self._newer[index] = bytearray(data)

    def zero(self, start: int, stop: int) -> None:
        """Put zeros at the bytes from `start` to `stop` of the content, which lie in one block."""
        index, at = divmod(start, self._size)
        if start < stop and (self._apart(index, 1) == 0 or self._tree.pointer(0, index) != HOLE):
            self.changing(index)[at : at + stop - start] = bytes(stop - start)

    def write(self) -> None:
        """Write what is newer than the tree, which then has it."""
        for index in sorted(self._newer):
            self._tree.write(index, self._newer[index])
            self._clean[index] = self._newer.pop(index)
        while len(self._clean) > self._capacity:
            del self._clean[next(iter(self._clean))]

    def forget(self, first: int = 0, stop: int = END) -> None:
        """Drop the blocks from `first` up to but not including `stop`, newer ones too."""
        for blocks in (self._clean, self._newer):
            if stop - first < len(blocks):
                for index in range(first, stop):
                    blocks.pop(index, None)
            else:
                for index in [index for index in blocks if first <= index < stop]:
                    del blocks[index]

    def _take(self, index: int) -> bytearray:
        """A block for one of the two dictionaries, out of the other one or the tree."""
        block = self._clean.pop(index, None)
        if block is None:
            if self._clean and len(self._clean) + len(self._newer) >= self._capacity:
                block = self._clean.pop(next(iter(self._clean)))
            else:
                block = bytearray(self._size)
            self._tree.read_one(index, block)
        return block
