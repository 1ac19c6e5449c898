"""The tree of encrypted blocks, copied on write: level 0 holds data, level k + 1 the pointers to level k."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

from strongroom.errors import IntegrityError
from strongroom.sealed import layout, places, versions
from strongroom.sealed.blocks import BlockStore, Pointer
from strongroom.sealed.layout import HOLE, PLACE_MASK, POINTER
from strongroom.sealed.places import Reach
from strongroom.sealed.versions import Version, place_of

if TYPE_CHECKING:
    from collections.abc import Buffer  # type: ignore[attr-defined,unused-ignore]  # Python 3.12

# Interior blocks kept in memory: 64 MiB of them point at 90 GiB of data in blocks of 64 KiB.
_NODE_CACHE = 64 << 20

_NO_POINTER: Final = BlockStore.pointer_at(HOLE)

END: Final = 1 << 62
"""An index behind every block."""


class BlockTree:
    """The blocks of one content, by index. Not for use from several threads at once.

    Data blocks that are written go to free places at once and are reached by nothing that is committed; interior blocks
    stay in memory until `flush`.

    Args:
        version: the newest committed one, or None where there is none.
        held: older versions that have to stay whole. One that is damaged already is passed over: nobody can fall back
            on it.
        first: the lowest place that may hold a block.

    Raises:
        TamperedError: the root block's place cannot be.
    """

    def __init__(self, store: BlockStore, version: Version | None, held: Iterable[Version], *, first: int) -> None:
        self.store = store
        self.first = first
        self._size = store.block_size
        self._fanout = store.fanout
        self._no_pointers = bytes(self._size)
        self._newest = version
        self._held: dict[Version, Reach | None] = dict.fromkeys(held)
        self._root = version.pointer if version else HOLE
        self._height = layout.height_of(version.length, self._size) if version else 0
        self._map: places.PlaceMap | None = None
        self._clean: dict[tuple[int, int], bytearray] = {}
        self._dirty: dict[int, dict[int, bytearray]] = {}
        if root := place_of(self._root):
            self._check_places([root], self._height, 0)

    # Data blocks.

    def read(self, index: int, out: Buffer) -> None:
        """Put the data blocks from `index` on into `out`, of whole blocks; a hole gives zeros.

        Raises:
            IntegrityError: one is not what was written; nobody may see what `out` then holds.
        """
        count = memoryview(out).nbytes // self._size
        self.store.read(0, index, self._pointers(0, index, count), out)

    def read_one(self, index: int, out: Buffer) -> None:
        """As `read`, of one block into a buffer of just its size."""
        if self._height == 0:
            self.read(index, out)
            return
        above, slot = divmod(index, self._fanout)
        store, node = self.store, self._clean.get((1, above)) or self._node(1, above)
        if node:
            store.read_one(0, index, store.pointer_at(node, slot * POINTER.size), out)
        else:
            memoryview(out)[:] = bytes(self._size)

    def read_each(self, indices: Sequence[int], starts: Sequence[int], out: Buffer) -> None:
        """Put data block `indices[k]` into `out` from byte `starts[k]` on, for all k; errors as `read`."""
        found: list[Pointer] = []
        if self._height == 0:
            found.extend(self.store.pointer_at(self.pointer(0, index)) for index in indices)
        else:
            pointer_at, fanout, last = self.store.pointer_at, self._fanout, -1
            node: bytearray | None = None
            for index in indices:
                above = index // fanout
                if above != last:
                    node, last = self._clean.get((1, above)) or self._node(1, above), above
                found.append(pointer_at(node, (index - above * fanout) * POINTER.size) if node else _NO_POINTER)
        self.store.read_each(0, indices, found, starts, out)

    def write(self, index: int, data: Buffer) -> None:
        """Replace the data blocks from `index` on; the tree must have grown to hold them."""
        self._write(0, index, data)

    def write_each(self, pieces: Sequence[tuple[int, memoryview]]) -> None:
        """Replace data blocks: of each piece, whole blocks from its index on. No block is in two of them."""
        size = self._size
        indices = [index + k for index, piece in pieces for k in range(len(piece) // size)]
        blocks = [piece[at : at + size] for _, piece in pieces for at in range(0, len(piece), size)]
        found = self.map()
        taken = found.allocate(len(blocks))
        try:
            pointers = memoryview(self.store.write_each(0, indices, taken, blocks))
        except BaseException:
            found.release(taken)
            raise
        for index, piece in pieces:
            end = len(piece) // size * POINTER.size
            self._point(0, index, pointers[:end])
            pointers = pointers[end:]

    def rewrite(self, index: int) -> None:
        """Write a data block anew, as it is, under the newest key."""
        block = bytearray(self._size)
        self.read(index, block)
        self.write(index, block)

    def move(self, index: int) -> None:
        """Put a data block into the lowest free place, as it is, without decrypting it."""
        pointer = self.pointer(0, index)
        (place,) = self.map().allocate(1)
        self.store.copy(place_of(pointer), place)
        field = int.from_bytes(pointer[:8], "little") & ~PLACE_MASK | place
        self._point(0, index, field.to_bytes(8, "little") + pointer[8:])

    # Shape.

    @property
    def height(self) -> int:
        """The level of the root block."""
        return self._height

    def grow(self, length: int) -> None:
        """Make the tree high enough for `length` bytes, not fewer than it holds; what is new is a hole."""
        self.map()
        height = layout.height_of(length, self._size)
        while self._height < height:
            root, self._root = self._root, HOLE
            self._height += 1
            if root != HOLE:
                self.touch(self._height, 0)[: POINTER.size] = root

    def punch(self, first: int, stop: int = END) -> None:
        """Make holes of the data blocks from `first` up to but not including `stop`."""
        self.map()
        if first < stop:
            self._punch(self._height, 0, first, stop)

    def cut(self, length: int) -> None:
        """Release all blocks that lie wholly behind `length` bytes, not more than it holds."""
        if length == 0:
            self.map().clear()
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

    def relieve(self) -> None:
        """Write changed interior blocks if they take much memory."""
        if sum(map(len, self._dirty.values())) * self._size > _NODE_CACHE:
            self.flush()

    def prepare(self, length: int) -> Version:
        """Write what is not written yet, and give the storage its size; not synced. The version to be committed."""
        found = self.map()
        self.flush()
        version = Version(self._root, length, found.prepare())
        self.store.resize(found.extent())
        return version

    def trim(self) -> None:
        """Give back the places at the end that no version needs."""
        if self._map:
            self.store.resize(self._map.extent())

    def committed(self, version: Version) -> None:
        """Note that `version`, which `prepare` gave, is the newest committed one, and hold the one before it."""
        reach = self.map().committed()
        if self._newest:
            self._held[self._newest] = reach
        self._newest = version

    def hold(self, wanted: Iterable[Version]) -> None:
        """From now on exactly these older versions stay whole, besides the newest."""
        self._held = {version: self._held.get(version) for version in wanted if version != self._newest}
        if self._map:
            self._hold(self._map)

    def kept(self) -> list[Version]:
        """The newest committed version and those held, in this order."""
        return [self._newest, *self._held] if self._newest else [*self._held]

    def map(self) -> places.PlaceMap:
        """Which places are free; rebuilt from the versions at the first call.

        Raises:
            IntegrityError: the newest version is not whole.
        """
        if self._map is None:
            newest = versions.reach(self.store, self._newest, self.first) if self._newest else 0
            found = places.PlaceMap(self.first, newest)
            self._hold(found)
            self._map = found
        return self._map

    def _hold(self, found: places.PlaceMap) -> None:
        for version, reach in self._held.items():
            if reach is None:
                try:
                    self._held[version] = versions.reach(self.store, version, self.first)
                except IntegrityError:
                    self._held[version] = 0  # no longer whole, so nobody can fall back on it
        found.hold(reach or 0 for reach in self._held.values())

    # Interior blocks.

    def nodes(self) -> Iterator[tuple[int, int, bytearray]]:
        """Every interior block as it is now as (level, index, block), a parent before its children.

        Raises:
            IntegrityError: one is not what was written.
        """
        return self._nodes(self._height, 0)

    def _nodes(self, level: int, index: int) -> Iterator[tuple[int, int, bytearray]]:
        node = self._node(level, index) if level else None
        if node:
            yield level, index, node
            if level > 1:
                for child in self._children(level, index):
                    yield from self._nodes(level - 1, child)

    def touched(self, level: int, index: int) -> bool:
        """Whether an interior block will be written at the next `flush`."""
        return index in self._dirty.get(level, ())

    def touch(self, level: int, index: int) -> bytearray:
        """An interior block, to be changed and to be written at the next `flush`."""
        dirty = self._dirty.setdefault(level, {})
        node = dirty.get(index)
        if node is None:
            node = self._node(level, index) or bytearray(self._size)
            self._clean.pop((level, index), None)
            dirty[index] = node
        return node

    def forget(self) -> None:
        """Drop everything from memory; the tree is of no use afterwards."""
        self._clean.clear()
        self._dirty.clear()
        self._map = None

    def pointer(self, level: int, index: int) -> bytes:
        """The pointer to a block; what is not written yet has none."""
        return self._pointers(level, index, 1)

    def _pointers(self, level: int, index: int, count: int) -> bytes:
        """The pointers to `count` blocks, one after the other."""
        if level >= self._height:
            return b"".join(self._root if i == 0 else HOLE for i in range(index, index + count))
        above, slot = divmod(index, self._fanout)
        if slot + count <= self._fanout:
            node = self._dirty.get(level + 1, {}).get(above) or self._clean.get((level + 1, above))
            node = node or self._node(level + 1, above)
            return bytes(node[slot * POINTER.size : (slot + count) * POINTER.size]) if node else HOLE * count
        here = self._fanout - slot
        parts = [self._pointers(level, index, here)]
        for start in range(index + here, index + count, self._fanout):
            parts.append(self._pointers(level, start, min(self._fanout, index + count - start)))
        return b"".join(parts)

    def _node(self, level: int, index: int) -> bytearray | None:
        node = self._dirty.get(level, {}).get(index) or self._clean.get((level, index))
        if node is None:
            pointer = self._pointers(level, index, 1)
            if place_of(pointer):
                node = bytearray(self._size)
                self.store.read(level, index, pointer, node)
                if self._map is None:  # else the map was made of all that was committed
                    found = [value & PLACE_MASK for value in self.store.fields(node) if value]
                    self._check_places(found, level - 1, index * self._fanout)
                self._remember(level, index, node)
        return node

    def _check_places(self, found: list[int], level: int, index: int) -> None:
        end = self._newest.places if self._newest else self.first
        if found and not self.first <= min(found) <= max(found) < end:
            raise versions.misplaced(self.store, level, index)

    def _remember(self, level: int, index: int, node: bytearray) -> None:
        self._clean[level, index] = node
        while len(self._clean) * self._size > max(_NODE_CACHE, 8 * self._size):
            del self._clean[next(iter(self._clean))]

    def _write(self, level: int, index: int, data: Buffer) -> None:
        found = self.map()
        taken = found.allocate(memoryview(data).nbytes // self._size)
        try:
            pointers = self.store.write(level, index, taken, data)
        except BaseException:
            found.release(taken)
            raise
        self._point(level, index, pointers)

    def _point(self, level: int, index: int, pointers: Buffer) -> None:
        """Let the tree point at other blocks, from `index` on, and release those that it pointed at."""
        new = memoryview(pointers)
        if level == self._height:
            old, self._root = self._root, bytes(new)
            self._release(old)
            return
        done, count = 0, len(new) // POINTER.size
        while done < count:
            above, slot = divmod(index + done, self._fanout)
            part = min(self._fanout - slot, count - done)
            node = self.touch(level + 1, above)
            start, stop = slot * POINTER.size, (slot + part) * POINTER.size
            old = bytes(node[start:stop])
            node[start:stop] = new[done * POINTER.size : (done + part) * POINTER.size]
            self._release(old)
            done += part

    def _release(self, pointers: Buffer) -> None:
        self.map().release([field & PLACE_MASK for field, _, _ in POINTER.iter_unpack(pointers) if field])

    # Holes.

    def _punch(self, level: int, index: int, first: int, stop: int) -> None:
        span = self._fanout**level
        if first <= index * span and (index + 1) * span <= stop:
            self._drop(level, index)
            if self.pointer(level, index) != HOLE:
                self._point(level, index, HOLE)
        elif index * span < stop and (index + 1) * span > first:
            for child in self._children(level, index):
                self._punch(level - 1, child, first, stop)

    def _children(self, level: int, index: int) -> list[int]:
        """The blocks below an interior block that are no holes; some may be in memory only."""
        base = index * self._fanout
        node = self._node(level, index)
        found = {base + slot for slot, value in enumerate(self.store.fields(node)) if value} if node else set()
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
            self.map().release([value & PLACE_MASK for value in self.store.fields(node) if value])
        self._clean.pop((level, index), None)
        self._dirty.get(level, {}).pop(index, None)

    def _lower(self) -> None:
        """Take the root block's first child as the root."""
        node = self._node(self._height, 0)
        self._clean.pop((self._height, 0), None)
        self._dirty.get(self._height, {}).pop(0, None)
        self._release(self._root)
        self._root = bytes(node[: POINTER.size]) if node else HOLE
        self._height -= 1
