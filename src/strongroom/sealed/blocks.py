"""Sealed blocks at their places: what is encrypted, read and written of one file, without knowing of its tree.

Rules:

- What the host can write is copied to private memory before it is decrypted or checked.
- A nonce is drawn for each block each time, by the calling thread, from the system: a forked child draws others.
- Long transfers are split over a few threads. Places and nonces are settled before, so that threads share nothing but
  the storage.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final, NoReturn

from strongroom.crypto import NONCE_SIZE, TAG_SIZE, BlockCipher
from strongroom.errors import TamperedError, TruncatedError, WrongKeyError
from strongroom.sealed import layout
from strongroom.sealed.layout import (
    AUTHENTICATED_ONLY,
    CHANGED_HINT,
    CUT_HINT,
    GENERATION_SHIFT,
    PLACE_MASK,
    POINTER,
)
from strongroom.sealed.threads import split
from strongroom.storage import Storage

if TYPE_CHECKING:
    from collections.abc import Buffer  # type: ignore[attr-defined,unused-ignore]  # Python 3.12

_RUN: Final = 256 << 10  # bytes read or written in one call, where places follow each other

_HALVES: Final = struct.Struct(f"<Q{NONCE_SIZE // 2}s{NONCE_SIZE // 2}s{TAG_SIZE}s")  # a pointer, its nonce in two
_LEVEL_INDEX: Final = struct.Struct("<BQ")
_TAG: Final = struct.Struct(f"{TAG_SIZE}s")

Pointer = tuple[int, bytes, bytes, bytes]  # generation << 56 | place, both halves of the nonce, tag


class _Box:
    """Private memory for a run of blocks as they rest, each followed by room for its tag, where the next one begins.

    Attributes:
        data: all of it.
        blocks: each block; what is read or written.
        sealed: each block and its tag; what is opened.
        aad: room for a block's associated data.
    """

    __slots__ = ("aad", "blocks", "data", "sealed", "view")

    def __init__(self, size: int, count: int, aad: bytes) -> None:
        self.data = bytearray(count * size + TAG_SIZE)
        self.view = memoryview(self.data)
        self.blocks = [self.view[at : at + size] for at in range(0, count * size, size)]
        self.sealed = [self.view[at : at + size + TAG_SIZE] for at in range(0, count * size, size)]
        self.aad = bytearray(aad + bytes(_LEVEL_INDEX.size))


class BlockStore:
    """The places of one storage, as sealed blocks. Not for use from several threads at once.

    Args:
        ciphers: by generation of the key.
        generation: of the key to write with.
        file_id: bound into every block.
        origin: place p rests at byte (p - origin) * block size.
        authenticated_only: blocks rest in clear; their tags are as binding as those of encrypted ones.
        what: the file's name, for errors.
    """

    def __init__(
        self,
        storage: Storage,
        ciphers: Mapping[int, BlockCipher],
        generation: int,
        file_id: bytes,
        block_size: int,
        *,
        origin: int,
        authenticated_only: bool = False,
        what: str,
    ) -> None:
        self.what = what
        self.block_size = block_size
        self.fanout = layout.fanout(block_size)
        self.generation = generation
        self._storage = storage
        self._origin = origin
        self._ciphers = ciphers
        self._writer = ciphers[generation]
        self._aad = layout.block_aad(file_id, AUTHENTICATED_ONLY if authenticated_only else 0)
        self._fields = struct.Struct("<" + "Q40x" * self.fanout)
        self._nonces = layout.NonceSource()
        self._run = 1 if authenticated_only else max(1, _RUN // block_size)
        self._clear = authenticated_only
        # Where level and index stand in the associated data. A block in clear stands behind all of it.
        self._level_at = len(self._aad)
        self._aad_size = self._level_at + _LEVEL_INDEX.size
        # Kept for the next call: boxes for one block, for a run, and for one block in clear.
        self._singles: list[_Box] = []
        self._runs: list[_Box] = []
        self._clears: list[bytearray] = []

    # Pointers.

    def fields(self, node: Buffer) -> tuple[int, ...]:
        """The first word of each pointer of an interior block: generation and place, 0 of a hole."""
        return self._fields.unpack_from(node)

    def places(self) -> int:
        """How many places the storage has now."""
        return self._storage.size() // self.block_size + self._origin

    def resize(self, places: int) -> None:
        """Give the storage exactly this many places."""
        size = (places - self._origin) * self.block_size
        if self._storage.size() != size:
            self._storage.resize(size)

    # Reading.

    def read(self, level: int, index: int, pointers: Buffer, out: Buffer) -> None:
        """Put the blocks from `index` on, that `pointers` point at one after the other, into `out`; a hole gives zeros.

        Raises:
            TamperedError, TruncatedError: one is not what was written; nobody may see what `out` then holds.
            WrongKeyError: one is of a generation that there is no key for.
        """
        found = list(_HALVES.iter_unpack(pointers))
        size = self.block_size
        self.read_each(level, range(index, index + len(found)), found, range(0, len(found) * size, size), out)

    pointer_at = staticmethod(_HALVES.unpack_from)

    def read_one(self, level: int, index: int, pointer: Pointer, out: Buffer) -> None:
        """Put one block, by what `pointer_at` gives, into `out`, of just its size; errors as `read`."""
        field, prefix, nonce, tag = pointer
        place = field & PLACE_MASK
        if self._clear or not place:
            self.read_each(level, [index], [pointer], [0], out)
            return
        cipher = self._ciphers.get(field >> GENERATION_SHIFT) or self._missing(level, index, field)
        size, box = self.block_size, self._take_single()
        if self._storage.read_into((place - self._origin) * size, box.blocks[0]) != size:
            raise self._cut(level, index, place)
        _TAG.pack_into(box.data, size, tag)
        _LEVEL_INDEX.pack_into(box.aad, self._level_at, level, index)
        try:
            cipher.open_into(prefix, nonce, box.view, box.aad, out)
        except TamperedError:
            raise self._changed(level, index, place) from None
        self._singles.append(box)

    def read_each(
        self, level: int, indices: Sequence[int], pointers: Sequence[Pointer], starts: Sequence[int], out: Buffer
    ) -> None:
        """Put block `indices[k]`, by what `pointer_at` gives, into `out` from byte `starts[k]` on, for all k.

        Raises: as `read`.
        """
        view = memoryview(out)
        read = self._read_clear if self._clear else self._read_sealed
        split(
            len(indices),
            self.block_size,
            lambda start, stop: read(level, indices, pointers, starts, view, start, stop),
        )

    def _read_sealed(
        self,
        level: int,
        indices: Sequence[int],
        pointers: Sequence[Pointer],
        starts: Sequence[int],
        out: memoryview,
        start: int,
        stop: int,
    ) -> None:
        size, level_at, origin, box = self.block_size, self._level_at, self._origin, self._take_run()
        data, aad, sealed, view, block = box.data, box.aad, box.sealed, box.view, box.blocks[0]
        read_into, put_tag, put_level = self._storage.read_into, _TAG.pack_into, _LEVEL_INDEX.pack_into
        generation, open_into = -1, self._writer.open_into
        at = start
        while at < stop:
            index, (field, _, _, _) = indices[at], pointers[at]
            place = field & PLACE_MASK
            if not place:
                out[starts[at] : starts[at] + size] = bytes(size)
                at += 1
                continue
            if field >> GENERATION_SHIFT != generation:
                generation = field >> GENERATION_SHIFT
                open_into = (self._ciphers.get(generation) or self._missing(level, index, field)).open_into
            end = at + 1
            while end < stop and pointers[end][0] == field + (end - at) and end - at < self._run:
                end += 1
            run = block if end == at + 1 else view[: (end - at) * size]
            if read_into((place - origin) * size, run) != len(run):
                raise self._cut(level, index, place)
            # From the last on: where the tag of a block has to stand lies the next one, which has been decrypted.
            for k in range(end - 1, at - 1, -1):
                i, to, (_, prefix, nonce, tag) = k - at, starts[k], pointers[k]
                put_tag(data, (i + 1) * size, tag)
                put_level(aad, level_at, level, indices[k])
                try:
                    open_into(prefix, nonce, sealed[i], aad, out[to : to + size])
                except TamperedError:
                    raise self._changed(level, indices[k], pointers[k][0]) from None
            at = end
        self._runs.append(box)

    def _read_clear(
        self,
        level: int,
        indices: Sequence[int],
        pointers: Sequence[Pointer],
        starts: Sequence[int],
        out: memoryview,
        start: int,
        stop: int,
    ) -> None:
        size, box = self.block_size, self._take_clear()
        block = memoryview(box)[self._aad_size :]
        nothing = bytearray()
        for k in range(start, stop):
            index, to, (field, prefix, nonce, tag) = indices[k], starts[k], pointers[k]
            if not field & PLACE_MASK:
                out[to : to + size] = bytes(size)
                continue
            cipher = self._ciphers.get(field >> GENERATION_SHIFT) or self._missing(level, index, field)
            self._fetch(level, index, field & PLACE_MASK, block)
            _LEVEL_INDEX.pack_into(box, self._level_at, level, index)
            try:
                cipher.open_into(prefix, nonce, tag, box, nothing)
            except TamperedError:
                raise self._changed(level, index, field) from None
            out[to : to + size] = block
        self._clears.append(box)

    def _missing(self, level: int, index: int, field: int) -> NoReturn:
        raise WrongKeyError(
            f"{self.what}: block {index} of level {level}: sealed under key generation "
            f"{field >> GENERATION_SHIFT}, wanted one of {sorted(self._ciphers)}"
        )

    def _fetch(self, level: int, index: int, place: int, box: memoryview) -> None:
        if self._storage.read_into((place - self._origin) * self.block_size, box) != len(box):
            raise self._cut(level, index, place)

    def _cut(self, level: int, index: int, place: int) -> TruncatedError:
        return TruncatedError(
            f"{self.what}: block {index} of level {level}: place {place} lies behind the end of the file",
            hint=CUT_HINT,
        )

    def _changed(self, level: int, index: int, field: int) -> TamperedError:
        return TamperedError(
            f"{self.what}: block {index} of level {level}: authentication failed at place {field & PLACE_MASK}",
            hint=CHANGED_HINT,
        )

    # Writing.

    def write(self, level: int, index: int, places: list[int], data: Buffer) -> bytearray:
        """Seal the blocks of `data`, the first of them block `index`, into `places`; the result is their pointers."""
        view, size = memoryview(data), self.block_size
        blocks = [view[at : at + size] for at in range(0, len(view), size)]
        return self.write_each(level, range(index, index + len(blocks)), places, blocks)

    def write_each(
        self, level: int, indices: Sequence[int], places: Sequence[int], blocks: Sequence[Buffer]
    ) -> bytearray:
        """Seal `blocks[k]`, block `indices[k]`, into `places[k]`, for all k; the result is their pointers in order."""
        prefix, nonces = self._nonces.take_apart(len(places))
        pointers = bytearray(len(places) * POINTER.size)
        write = self._write_clear if self._clear else self._write_sealed
        split(
            len(places),
            self.block_size,
            lambda start, stop: write(level, indices, places, prefix, nonces, blocks, pointers, start, stop),
        )
        return pointers

    def _write_sealed(
        self,
        level: int,
        indices: Sequence[int],
        places: Sequence[int],
        prefix: bytes,
        nonces: Sequence[bytes],
        blocks: Sequence[Buffer],
        pointers: bytearray,
        start: int,
        stop: int,
    ) -> None:
        size, level_at, box = self.block_size, self._level_at, self._take_run()
        room, aad, sealed, run = box.data, box.aad, box.sealed, self._run
        put_level, put_pointer, seal_into = _LEVEL_INDEX.pack_into, _HALVES.pack_into, self._writer.seal_into
        generation = self.generation << GENERATION_SHIFT
        at = start
        while at < stop:
            place = places[at]
            count, most = 1, min(stop - at, run)
            while count < most and places[at + count] == place + count:
                count += 1
            for i in range(count):  # each overwrites the tag of the one before
                k, tag_at = at + i, (i + 1) * size
                put_level(aad, level_at, level, indices[k])
                seal_into(prefix, nonces[k], blocks[k], aad, sealed[i])
                tag = room[tag_at : tag_at + TAG_SIZE]
                put_pointer(pointers, k * POINTER.size, generation | (place + i), prefix, nonces[k], tag)
            self._storage.write_at((place - self._origin) * size, box.view[: count * size])
            at += count
        self._runs.append(box)

    def _write_clear(
        self,
        level: int,
        indices: Sequence[int],
        places: Sequence[int],
        prefix: bytes,
        nonces: Sequence[bytes],
        blocks: Sequence[Buffer],
        pointers: bytearray,
        start: int,
        stop: int,
    ) -> None:
        size, box = self.block_size, self._take_clear()
        generation = self.generation << GENERATION_SHIFT
        block = memoryview(box)[self._aad_size :]
        tag = bytearray(TAG_SIZE)
        for k in range(start, stop):
            block[:] = blocks[k]
            _LEVEL_INDEX.pack_into(box, self._level_at, level, indices[k])
            self._writer.seal_into(prefix, nonces[k], b"", box, tag)
            self._storage.write_at((places[k] - self._origin) * size, block)
            _HALVES.pack_into(pointers, k * POINTER.size, generation | places[k], prefix, nonces[k], tag)
        self._clears.append(box)

    def copy(self, source: int, target: int) -> None:
        """Put what rests in one place into another too, as it is: a place is bound into no block."""
        view = memoryview(bytearray(self.block_size))
        self._fetch(0, 0, source, view)
        self._storage.write_at((target - self._origin) * self.block_size, view)

    # Memory.

    def _take_single(self) -> _Box:
        try:
            return self._singles.pop()
        except IndexError:
            return _Box(self.block_size, 1, self._aad)

    def _take_run(self) -> _Box:
        try:
            return self._runs.pop()
        except IndexError:
            return _Box(self.block_size, self._run, self._aad)

    def _take_clear(self) -> bytearray:
        try:
            return self._clears.pop()
        except IndexError:
            return bytearray(self._aad + bytes(_LEVEL_INDEX.size + self.block_size))
