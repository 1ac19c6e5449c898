"""The tree of encrypted blocks, copied on write: level 0 holds data, level k + 1 the pointers to level k."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING

from strongroom.crypto import TAG_SIZE, BlockCipher
from strongroom.errors import IntegrityError, TamperedError, TruncatedError
from strongroom.sealed import layout, places
from strongroom.sealed.layout import CHANGED_HINT, CUT_HINT, HOLE, POINTER, Commit
from strongroom.storage import Storage

if TYPE_CHECKING:
    from collections.abc import Buffer  # type: ignore[attr-defined,unused-ignore]  # Python 3.12

# Interior blocks kept in memory: 64 MiB of them point at 90 GiB of data in blocks of 64 KiB.
_NODE_CACHE = 64 << 20


class BlockTree:
    """The blocks of one sealed file, by index. Not for use from several threads at once.

    A write goes to a free place at once and is reached by nothing that is committed; `flush` then writes the interior
    blocks and gives the pointer of the new root block.

    Args:
        storage: where the blocks are.
        cipher: of this file.
        file_id: bound into every block.
        block_size: of data and interior blocks.
        commit: the newest committed version, or None for a new file.
        previous: the one before, if its slot is still there: its blocks stay too.
        what: the file's name, for errors.
    """

    def __init__(
        self,
        storage: Storage,
        cipher: BlockCipher,
        file_id: bytes,
        block_size: int,
        commit: Commit | None,
        previous: Commit | None,
        *,
        what: str,
    ) -> None:
        self._storage = storage
        self._cipher = cipher
        self._what = what
        self._size = block_size
        self._fanout = layout.fanout(block_size)
        self._aad = layout.block_aad(file_id)
        self._nonces = layout.NonceSource()
        # Ciphertext passes through this private buffer only: the host can change the file while it is being read.
        self._box = bytearray(block_size + TAG_SIZE)
        self._box_block = memoryview(self._box)[:block_size]
        self._node_places = struct.Struct("<" + "Q40x" * self._fanout)
        self._committed = commit
        self._previous = previous
        self._root = commit.pointer if commit else HOLE
        self._height = layout.height_of(commit.length, block_size) if commit else 0
        self._map: places.PlaceMap | None = None
        self._clean: dict[tuple[int, int], bytearray] = {}
        self._dirty: dict[tuple[int, int], bytearray] = {}

    def read(self, index: int, out: Buffer) -> None:
        """Put data block `index` into `out`, of one block's length; a hole gives zeros.

        Raises:
            TamperedError, TruncatedError: it is not what was written; `out` then holds zeros.
        """
        place, nonce, tag = self._pointer(0, index)
        if place:
            self._open(0, index, place, nonce, tag, out)
        else:
            memoryview(out)[:] = bytes(self._size)

    def write(self, index: int, data: Buffer) -> None:
        """Replace data block `index`; the tree must have grown to hold it."""
        self._write(0, index, data)

    def grow(self, length: int) -> None:
        """Make the tree high enough for `length` bytes, not fewer than it holds; what is new is a hole."""
        self._writable()
        height = layout.height_of(length, self._size)
        while self._height < height:
            root, self._root = self._root, HOLE
            self._height += 1
            if root != HOLE:
                self._dirty_node(self._height, 0)[: POINTER.size] = root

    def cut(self, length: int) -> None:
        """Release all blocks that lie wholly behind `length` bytes, not more than it holds."""
        if length == 0:
            self._writable().clear()
            self._root, self._height = HOLE, 0
            self._dirty.clear()
            self._clean.clear()
            return
        self.flush()  # so that pointers reach everything that is to be released
        self._prune(self._height, 0, -(-length // self._size))
        height = layout.height_of(length, self._size)
        while self._height > height:
            self._lower()

    def flush(self) -> bytes:
        """Write every changed interior block; the result is the pointer of the root block."""
        for level in range(1, self._height + 1):
            for _, index in sorted(key for key in self._dirty if key[0] == level):
                node = self._dirty[level, index]
                self._write(level, index, node)
                del self._dirty[level, index]
                self._remember(level, index, node)
        return self._root

    def nonce(self) -> bytes:
        """A nonce that was never used under this file's cipher."""
        return self._nonces.next()

    def reach(self) -> int:
        """How many places the root being built needs."""
        return self._writable().reach()

    def extent(self) -> int:
        """How many places the file needs, so that the committed roots stay whole too."""
        return self._writable().extent()

    def committed(self, commit: Commit) -> None:
        """Note that a slot now holds `commit`, whose pointer `flush` gave."""
        self._writable().commit()
        self._previous, self._committed = self._committed, commit

    def verify(self) -> int:
        """Read every block of the newest committed version from the storage; the number of data blocks read.

        Raises:
            IntegrityError: a block is not what was committed.
        """
        commit = self._committed
        if commit is None:
            return 0
        scratch = bytearray(self._size)
        seen = places.PlaceMap(commit.places, layout.first_place(self._size))
        count = 0
        for level, index, pointer in self._walk(commit):
            place, nonce, tag = POINTER.unpack(pointer)
            if not seen.mark(place, places.LIVE):
                raise TamperedError(
                    f"{self._what}: block {index} of level {level}: place {place} is used twice or out of range",
                    hint=CHANGED_HINT,
                )
            if level == 0:
                self._open(0, index, place, nonce, tag, scratch)
                count += 1
        return count

    # Reading.

    def _pointer(self, level: int, index: int) -> tuple[int, bytes, bytes]:
        if level >= self._height:
            return POINTER.unpack(self._root if index == 0 else HOLE)
        node = self._node(level + 1, index // self._fanout)
        if node is None:
            return 0, b"", b""
        return POINTER.unpack_from(node, index % self._fanout * POINTER.size)

    def _node(self, level: int, index: int) -> bytearray | None:
        node = self._dirty.get((level, index)) or self._clean.get((level, index))
        if node is None:
            place, nonce, tag = self._pointer(level, index)
            if place:
                node = bytearray(self._size)
                self._open(level, index, place, nonce, tag, node)
                self._remember(level, index, node)
        return node

    def _remember(self, level: int, index: int, node: bytearray) -> None:
        self._clean[level, index] = node
        while len(self._clean) * self._size > max(_NODE_CACHE, 8 * self._size):
            del self._clean[next(iter(self._clean))]

    def _open(self, level: int, index: int, place: int, nonce: bytes, tag: bytes, out: Buffer) -> None:
        try:
            if self._storage.read_into(place * self._size, self._box_block) != self._size:
                raise TruncatedError(
                    f"{self._what}: block {index} of level {level}: place {place} lies behind the end of the file",
                    hint=CUT_HINT,
                )
            self._box[self._size :] = tag
            self._cipher.decrypt_into(nonce, self._box, self._aad + layout.pack_level_index(level, index), out)
        except TamperedError:
            # What failed to authenticate has been decrypted into `out`; nobody may see it.
            memoryview(out)[:] = bytes(self._size)
            raise TamperedError(
                f"{self._what}: block {index} of level {level}: authentication failed at place {place}",
                hint=CHANGED_HINT,
            ) from None

    def _walk(self, commit: Commit) -> Iterator[tuple[int, int, bytes]]:
        """Every block that `commit` reaches as (level, index, pointer), a parent before its children."""
        return self._walk_from(layout.height_of(commit.length, self._size), 0, commit.pointer)

    def _walk_from(self, level: int, index: int, pointer: bytes) -> Iterator[tuple[int, int, bytes]]:
        if pointer == HOLE:
            return
        yield level, index, pointer
        if level == 0:
            return
        node = bytearray(self._size)
        place, nonce, tag = POINTER.unpack(pointer)
        self._open(level, index, place, nonce, tag, node)
        for slot, child_place in enumerate(self._node_places.unpack_from(node)):
            if child_place:
                at = slot * POINTER.size
                child = bytes(node[at : at + POINTER.size])
                yield from self._walk_from(level - 1, index * self._fanout + slot, child)

    # Writing.

    def _writable(self) -> places.PlaceMap:
        if self._map is None:
            self._map = self._rebuild()
        return self._map

    def _rebuild(self) -> places.PlaceMap:
        first = layout.first_place(self._size)
        if self._committed is None:
            return places.PlaceMap(first, first)
        found = places.PlaceMap(self._committed.places, first)
        for level, index, pointer in self._walk(self._committed):
            if not found.mark(POINTER.unpack(pointer)[0], places.LIVE):
                raise TamperedError(
                    f"{self._what}: block {index} of level {level}: its place is used twice or out of range",
                    hint=CHANGED_HINT,
                )
        if self._previous:
            self._keep_previous(found, self._previous)
        return found

    def _keep_previous(self, found: places.PlaceMap, previous: Commit) -> None:
        try:
            found.extend(min(previous.places, self._storage.size() // self._size))
            for _, _, pointer in self._walk(previous):
                found.mark(POINTER.unpack(pointer)[0], places.DEAD)
        except IntegrityError:
            pass  # no longer whole, so nobody can fall back on it

    def _write(self, level: int, index: int, data: Buffer) -> None:
        found = self._writable()
        place = found.allocate()
        try:
            nonce = self._nonces.next()
            self._cipher.encrypt_into(nonce, data, self._aad + layout.pack_level_index(level, index), self._box)
            self._storage.write_at(place * self._size, self._box_block)
        except BaseException:
            found.release(place)
            raise
        self._point(level, index, POINTER.pack(place, nonce, self._box[self._size :]))

    def _point(self, level: int, index: int, pointer: bytes) -> None:
        if level == self._height:
            old, self._root = POINTER.unpack(self._root)[0], pointer
        else:
            node = self._dirty_node(level + 1, index // self._fanout)
            at = index % self._fanout * POINTER.size
            old = POINTER.unpack_from(node, at)[0]
            node[at : at + POINTER.size] = pointer
        if old:
            self._writable().release(old)

    def _dirty_node(self, level: int, index: int) -> bytearray:
        node = self._dirty.get((level, index))
        if node is None:
            node = self._node(level, index)
            if node is None:
                node = bytearray(self._size)
            self._clean.pop((level, index), None)
            self._dirty[level, index] = node
        return node

    # Cutting.

    def _prune(self, level: int, index: int, count: int) -> None:
        """Release what block (`level`, `index`) reaches from data block `count` on; it keeps at least one itself."""
        if level == 0:
            return
        node = self._node(level, index)
        if node is None:
            return
        span = self._fanout ** (level - 1)
        kept = -(-count // span) - index * self._fanout  # children that stay, the last of them perhaps in part
        for slot, place in enumerate(self._node_places.unpack_from(node)):
            if slot >= kept and place:
                self._drop(level - 1, index * self._fanout + slot)
                self._point(level - 1, index * self._fanout + slot, HOLE)
        if kept - 1 < self._fanout:
            self._prune(level - 1, index * self._fanout + kept - 1, count)

    def _drop(self, level: int, index: int) -> None:
        """Release everything below block (`level`, `index`); whoever points at it releases the block itself."""
        if level == 0:
            return
        node = self._node(level, index)
        self._clean.pop((level, index), None)
        for slot, place in enumerate(self._node_places.unpack_from(node) if node else ()):
            if place:
                self._drop(level - 1, index * self._fanout + slot)
                self._writable().release(place)

    def _lower(self) -> None:
        """Take the root block's first child as the root."""
        node = self._node(self._height, 0)
        self._clean.pop((self._height, 0), None)
        self._dirty.pop((self._height, 0), None)
        place = POINTER.unpack(self._root)[0]
        if place:
            self._writable().release(place)
        self._root = bytes(node[: POINTER.size]) if node else HOLE
        self._height -= 1
