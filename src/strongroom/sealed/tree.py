"""The tree of encrypted blocks, copied on write: level 0 holds data, level k + 1 the pointers to level k."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from strongroom.errors import IntegrityError, TamperedError, TruncatedError
from strongroom.sealed import layout, places
from strongroom.sealed.blocks import BlockStore
from strongroom.sealed.layout import CHANGED_HINT, CUT_HINT, HOLE, PLACE_MASK, POINTER
from strongroom.sealed.places import Reach

if TYPE_CHECKING:
    from collections.abc import Buffer  # type: ignore[attr-defined,unused-ignore]  # Python 3.12

# Interior blocks kept in memory: 64 MiB of them point at 90 GiB of data in blocks of 64 KiB.
_NODE_CACHE = 64 << 20

END: Final = 1 << 62
"""An index behind every block."""


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a content: what a commit record must remember of it.

    Attributes:
        pointer: of the root block; `HOLE` where there is none.
        length: of the content, in bytes.
        places: the storage has at least this many while the version counts.
    """

    pointer: bytes
    length: int
    places: int


class BlockTree:
    """The blocks of one content, by index. Not for use from several threads at once.

    Data blocks that are written go to free places at once and are reached by nothing that is committed; interior blocks
    stay in memory until `flush`.

    Args:
        version: the newest committed one, or None where there is none.
        held: older versions that have to stay whole. One that is damaged already is passed over: nobody can fall back
            on it.
        first: the lowest place that may hold a block.
    """

    def __init__(self, store: BlockStore, version: Version | None, held: Iterable[Version], *, first: int) -> None:
        self._store = store
        self._size = store.block_size
        self._first = first
        self._fanout = layout.fanout(self._size)
        self._fields = struct.Struct("<" + "Q40x" * self._fanout)
        self._no_pointers = bytes(self._size)
        self._newest = version
        self._held: dict[Version, Reach | None] = dict.fromkeys(held)
        self._root = version.pointer if version else HOLE
        self._height = layout.height_of(version.length, self._size) if version else 0
        self._map: places.PlaceMap | None = None
        self._clean: dict[tuple[int, int], bytearray] = {}
        self._dirty: dict[int, dict[int, bytearray]] = {}

    # Data blocks.

    def read(self, index: int, out: Buffer) -> None:
        """Put data block `index` into `out`, of one block's length; a hole gives zeros.

        Raises:
            TamperedError, TruncatedError: it is not what was written; `out` then holds zeros.
        """
        pointer = self._pointer(0, index)
        if _place(pointer):
            self._store.read(0, index, pointer, out)
        else:
            memoryview(out)[:] = self._no_pointers

    def write(self, index: int, data: Buffer) -> None:
        """Replace data block `index`; the tree must have grown to hold it."""
        self._write(0, index, data)

    # Shape.

    def grow(self, length: int) -> None:
        """Make the tree high enough for `length` bytes, not fewer than it holds; what is new is a hole."""
        self._writable()
        height = layout.height_of(length, self._size)
        while self._height < height:
            root, self._root = self._root, HOLE
            self._height += 1
            if root != HOLE:
                self._dirty_node(self._height, 0)[: POINTER.size] = root

    def punch(self, first: int, stop: int = END) -> None:
        """Make holes of the data blocks from `first` up to but not including `stop`."""
        self._writable()
        if first < stop:
            self._punch(self._height, 0, first, stop)

    def cut(self, length: int) -> None:
        """Release all blocks that lie wholly behind `length` bytes, not more than it holds."""
        if length == 0:
            self._writable().clear()
            self._root, self._height = HOLE, 0
            self._dirty.clear()
            self._clean.clear()
            return
        self.punch(-(-length // self._size))
        height = layout.height_of(length, self._size)
        while self._height > height:
            self._lower()

    # Versions.

    def flush(self) -> None:
        """Write every changed interior block."""
        for level in range(1, self._height + 1):
            for index, node in sorted(self._dirty.get(level, {}).items()):
                if node == self._no_pointers:
                    self._point(level, index, HOLE)
                else:
                    self._write(level, index, node)
                    self._remember(level, index, node)
                del self._dirty[level][index]

    def prepare(self, length: int) -> Version:
        """Write what is not written yet, and give the storage its size; not synced. The version to be committed."""
        found = self._writable()
        self.flush()
        version = Version(self._root, length, found.prepare())
        self._store.resize(found.extent())
        return version

    def trim(self) -> None:
        """Give back the places at the end that no version needs."""
        if self._map:
            self._store.resize(self._map.extent())

    def committed(self, version: Version) -> None:
        """Note that `version`, which `prepare` gave, is the newest committed one, and hold the one before it."""
        reach = self._writable().committed()
        if self._newest:
            self._held[self._newest] = reach
        self._newest = version

    def hold(self, versions: Iterable[Version]) -> None:
        """From now on exactly these older versions stay whole, besides the newest."""
        wanted = dict.fromkeys(versions)
        wanted.pop(self._newest, None)  # type: ignore[arg-type]  # None is no key of it
        if wanted.keys() != self._held.keys() or None in self._held.values():
            self._held = {version: self._held.get(version) for version in wanted}
            if self._map:
                self._hold(self._map)

    def walk(self, version: Version) -> Iterator[tuple[int, int, bytes]]:
        """Every block that `version` reaches as (level, index, pointer), a parent before its children.

        Raises:
            IntegrityError: an interior block is not what was committed, or a place is used twice or cannot be.
        """
        self._check_size(version)
        seen = bytearray(version.places)
        for level, index, pointer in self._walk(layout.height_of(version.length, self._size), 0, version.pointer):
            place = _place(pointer)
            if not self._first <= place < len(seen) or seen[place]:
                raise self._misplaced(level, index)
            seen[place] = 1
            yield level, index, pointer

    def _walk(self, level: int, index: int, pointer: bytes) -> Iterator[tuple[int, int, bytes]]:
        if not _place(pointer):
            return
        yield level, index, pointer
        if level:
            node = bytearray(self._size)
            self._store.read(level, index, pointer, node)
            for slot, child in enumerate(self._pointers(node), index * self._fanout):
                yield from self._walk(level - 1, slot, child)

    def verify(self, version: Version) -> int:
        """Read every block that `version` reaches from the storage; the number of data blocks read.

        Raises:
            IntegrityError: as `walk`, of data blocks too.
        """
        scratch = bytearray(self._size)
        count = 0
        for level, index, pointer in self.walk(version):
            if level == 0:
                self._store.read(0, index, pointer, scratch)
                count += 1
        return count

    def forget(self) -> None:
        """Drop everything from memory; the tree is of no use afterwards."""
        self._clean.clear()
        self._dirty.clear()
        self._map = None

    # Nodes.

    def _pointer(self, level: int, index: int) -> bytes:
        if level >= self._height:
            return self._root if index == 0 else HOLE
        node = self._node(level + 1, index // self._fanout)
        if node is None:
            return HOLE
        at = index % self._fanout * POINTER.size
        return bytes(node[at : at + POINTER.size])

    def _pointers(self, node: bytearray) -> Iterator[bytes]:
        for at in range(0, self._fanout * POINTER.size, POINTER.size):
            yield bytes(node[at : at + POINTER.size])

    def _node(self, level: int, index: int) -> bytearray | None:
        node = self._dirty.get(level, {}).get(index) or self._clean.get((level, index))
        if node is None:
            pointer = self._pointer(level, index)
            if _place(pointer):
                node = bytearray(self._size)
                self._store.read(level, index, pointer, node)
                self._remember(level, index, node)
        return node

    def _remember(self, level: int, index: int, node: bytearray) -> None:
        self._clean[level, index] = node
        while len(self._clean) * self._size > max(_NODE_CACHE, 8 * self._size):
            del self._clean[next(iter(self._clean))]

    def _dirty_node(self, level: int, index: int) -> bytearray:
        dirty = self._dirty.setdefault(level, {})
        node = dirty.get(index)
        if node is None:
            node = self._node(level, index)
            if node is None:
                node = bytearray(self._size)
            self._clean.pop((level, index), None)
            dirty[index] = node
        return node

    def _write(self, level: int, index: int, data: Buffer) -> None:
        found = self._writable()
        place = found.allocate()
        try:
            pointer = self._store.write(level, index, place, data)
        except BaseException:
            found.release((place,))
            raise
        self._point(level, index, pointer)

    def _point(self, level: int, index: int, pointer: bytes) -> None:
        if level == self._height:
            old, self._root = self._root, pointer
        else:
            node = self._dirty_node(level + 1, index // self._fanout)
            at = index % self._fanout * POINTER.size
            old = bytes(node[at : at + POINTER.size])
            node[at : at + POINTER.size] = pointer
        if place := _place(old):
            self._writable().release((place,))

    # Holes.

    def _punch(self, level: int, index: int, first: int, stop: int) -> None:
        span = self._fanout**level
        if first <= index * span and (index + 1) * span <= stop:
            self._drop(level, index)
            if self._pointer(level, index) != HOLE:
                self._point(level, index, HOLE)
        elif index * span < stop and (index + 1) * span > first:
            for child in self._children(level, index):
                self._punch(level - 1, child, first, stop)

    def _children(self, level: int, index: int) -> list[int]:
        """The blocks below an interior block that are no holes; some may be in memory only."""
        base = index * self._fanout
        node = self._node(level, index)
        found = {base + slot for slot, field in enumerate(self._fields.unpack_from(node)) if field} if node else set()
        if dirty := self._dirty.get(level - 1):
            found.update(child for child in range(base, base + self._fanout) if child in dirty)
        return sorted(found)

    def _drop(self, level: int, index: int) -> None:
        """Release everything below block (`level`, `index`); whoever points at it releases the block itself."""
        if level == 0:
            return
        if level > 1:
            for child in self._children(level, index):
                self._drop(level - 1, child)
        if node := self._node(level, index):
            self._writable().release([field & PLACE_MASK for field in self._fields.unpack_from(node) if field])
        self._clean.pop((level, index), None)
        self._dirty.get(level, {}).pop(index, None)

    def _lower(self) -> None:
        """Take the root block's first child as the root."""
        node = self._node(self._height, 0)
        self._clean.pop((self._height, 0), None)
        self._dirty.get(self._height, {}).pop(0, None)
        if place := _place(self._root):
            self._writable().release((place,))
        self._root = bytes(node[: POINTER.size]) if node else HOLE
        self._height -= 1

    # The map of places.

    def _writable(self) -> places.PlaceMap:
        if self._map is None:
            found = places.PlaceMap(self._first, self._reach(self._newest) if self._newest else 0)
            self._hold(found)
            self._map = found
        return self._map

    def _hold(self, found: places.PlaceMap) -> None:
        for version, reach in self._held.items():
            if reach is None:
                try:
                    self._held[version] = self._reach(version)
                except IntegrityError:
                    self._held[version] = 0  # no longer whole, so nobody can fall back on it
        found.hold(reach or 0 for reach in self._held.values())

    def _reach(self, version: Version) -> Reach:
        """Which places `version` reaches, from its interior blocks.

        Raises:
            IntegrityError: one of them is not what was committed, or a place is used twice or cannot be.
        """
        self._check_size(version)
        flags, count = bytearray(version.places), 0
        level = layout.height_of(version.length, self._size)
        pointers = [(0, version.pointer)] if _place(version.pointer) else []
        found: list[int] = [_place(pointer) for _, pointer in pointers]
        self._mark(flags, found, level, 0)
        count += len(found)
        node = bytearray(self._size)
        while level:
            below: list[tuple[int, bytes]] = []
            for index, pointer in pointers:
                self._store.read(level, index, pointer, node)
                found = [field & PLACE_MASK for field in self._fields.unpack_from(node) if field]
                self._mark(flags, found, level - 1, index * self._fanout)
                count += len(found)
                if level > 1:
                    below += [p for p in enumerate(self._pointers(node), index * self._fanout) if _place(p[1])]
            level, pointers = level - 1, below
        if flags.count(1) != count:
            raise self._misplaced(level, 0)
        return places.reach_of(flags)

    def _check_size(self, version: Version) -> None:
        if version.places > self._store.places():
            raise TruncatedError(
                f"{self._store.what}: {self._store.places()} places, wanted {version.places}", hint=CUT_HINT
            )

    def _mark(self, flags: bytearray, found: list[int], level: int, index: int) -> None:
        try:
            for place in found:
                flags[place] = 1
        except IndexError:
            raise self._misplaced(level, index) from None
        if found and min(found) < self._first:
            raise self._misplaced(level, index)

    def _misplaced(self, level: int, index: int) -> TamperedError:
        return TamperedError(
            f"{self._store.what}: block {index} of level {level}: its place is used twice or out of range",
            hint=CHANGED_HINT,
        )


def _place(pointer: bytes) -> int:
    return int.from_bytes(pointer[:7], "little")
