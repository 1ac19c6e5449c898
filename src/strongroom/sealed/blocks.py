"""Sealed blocks at their places: what is encrypted, read and written of one file, without knowing of its tree.

Rules:

- What the host can write is copied to private memory before it is decrypted or checked.
- A nonce is drawn for each block each time, by the calling thread, from the system: a forked child draws others.
- Long transfers are split over a few threads; encryption and file access release the interpreter's lock. Places and
  nonces are settled before, so that threads share nothing but the storage.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Final, NoReturn

from strongroom.crypto import TAG_SIZE, BlockCipher
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
from strongroom.storage import Storage

if TYPE_CHECKING:
    from collections.abc import Buffer  # type: ignore[attr-defined,unused-ignore]  # Python 3.12

_CORES: Final = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
_THREADS: Final = min(4, _CORES)
_LONG: Final = 1 << 20  # bytes of a transfer that is worth splitting
_SMALL_BLOCK: Final = 16 << 10  # of smaller blocks the interpreter's own work is most, which threads cannot share
_SLICE: Final = 1 << 20  # bytes that a thread takes on at once
_RUN: Final = 256 << 10  # bytes read or written in one call, where places follow each other


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
        # An authenticated block stands behind its associated data, an encrypted one or several before the last's tag.
        self._aad_size = len(self._aad) + len(layout.pack_level_index(0, 0))
        # Kept for the next call: boxes for one block, and for a run.
        self._boxes: tuple[list[bytearray], list[bytearray]] = ([], [])

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
        found = list(POINTER.iter_unpack(pointers))
        view = memoryview(out)
        read = self._read_clear if self._clear else self._read_sealed
        if len(found) == 1:
            read(level, index, found, view, 0, 1)
        else:
            self._split(len(found), lambda start, stop: read(level, index, found, view, start, stop))

    def _read_sealed(
        self, level: int, index: int, found: list[tuple[int, bytes, bytes]], out: memoryview, start: int, stop: int
    ) -> None:
        size, box = self.block_size, self._take_box(stop - start)
        view = memoryview(box)
        at = start
        while at < stop:
            field = found[at][0]
            if not field & PLACE_MASK:
                out[at * size : (at + 1) * size] = bytes(size)
                at += 1
                continue
            end, most = at + 1, min(stop, at + self._run)
            while end < most and found[end][0] == field + (end - at):
                end += 1
            count = end - at
            cipher = self._ciphers.get(field >> GENERATION_SHIFT) or self._missing(level, index + at, field)
            self._fetch(level, index + at, field & PLACE_MASK, view[: count * size])
            # From the last on: where the tag of a block has to stand lies the next one, which has been decrypted.
            for i in reversed(range(count)):
                place, nonce, tag = found[at + i]
                box[(i + 1) * size : (i + 1) * size + TAG_SIZE] = tag
                aad = self._aad + layout.pack_level_index(level, index + at + i)
                try:
                    cipher.decrypt_into(
                        nonce,
                        view[i * size : (i + 1) * size + TAG_SIZE],
                        aad,
                        out[(at + i) * size : (at + i + 1) * size],
                    )
                except TamperedError:
                    raise self._changed(level, index + at + i, place) from None
            at = end
        self._give_box(box)

    def _read_clear(
        self, level: int, index: int, found: list[tuple[int, bytes, bytes]], out: memoryview, start: int, stop: int
    ) -> None:
        size, box = self.block_size, self._take_box(stop - start)
        block = memoryview(box)[self._aad_size :]
        nothing = bytearray()
        for at in range(start, stop):
            field, nonce, tag = found[at]
            if not field & PLACE_MASK:
                out[at * size : (at + 1) * size] = bytes(size)
                continue
            cipher = self._ciphers.get(field >> GENERATION_SHIFT) or self._missing(level, index + at, field)
            self._fetch(level, index + at, field & PLACE_MASK, block)
            box[: self._aad_size] = self._aad + layout.pack_level_index(level, index + at)
            try:
                cipher.decrypt_into(nonce, tag, box, nothing)
            except TamperedError:
                raise self._changed(level, index + at, field) from None
            out[at * size : (at + 1) * size] = block
        self._give_box(box)

    def _missing(self, level: int, index: int, field: int) -> NoReturn:
        raise WrongKeyError(
            f"{self.what}: block {index} of level {level}: sealed under key generation "
            f"{field >> GENERATION_SHIFT}, wanted one of {sorted(self._ciphers)}"
        )

    def _fetch(self, level: int, index: int, place: int, box: memoryview) -> None:
        if self._storage.read_into((place - self._origin) * self.block_size, box) != len(box):
            raise TruncatedError(
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
        nonces = self._nonces.take(len(places))
        pointers = bytearray(len(places) * POINTER.size)
        view = memoryview(data)
        write = self._write_clear if self._clear else self._write_sealed
        self._split(len(places), lambda start, stop: write(level, index, places, nonces, view, pointers, start, stop))
        return pointers

    def _write_sealed(
        self,
        level: int,
        index: int,
        places: list[int],
        nonces: list[bytes],
        data: memoryview,
        pointers: bytearray,
        start: int,
        stop: int,
    ) -> None:
        size, box = self.block_size, self._take_box(stop - start)
        generation = self.generation << GENERATION_SHIFT
        view = memoryview(box)
        at = start
        while at < stop:
            place = places[at]
            end, most = at + 1, min(stop, at + self._run)
            while end < most and places[end] == place + (end - at):
                end += 1
            for i in range(end - at):  # each overwrites the tag of the one before
                nonce, tag_at = nonces[at + i], (i + 1) * size
                aad = self._aad + layout.pack_level_index(level, index + at + i)
                self._writer.encrypt_into(
                    nonce, data[(at + i) * size : (at + i + 1) * size], aad, view[i * size : tag_at + TAG_SIZE]
                )
                POINTER.pack_into(
                    pointers,
                    (at + i) * POINTER.size,
                    generation | (place + i),
                    nonce,
                    box[tag_at : tag_at + TAG_SIZE],
                )
            self._storage.write_at((place - self._origin) * size, view[: (end - at) * size])
            at = end
        self._give_box(box)

    def _write_clear(
        self,
        level: int,
        index: int,
        places: list[int],
        nonces: list[bytes],
        data: memoryview,
        pointers: bytearray,
        start: int,
        stop: int,
    ) -> None:
        size, box = self.block_size, self._take_box(stop - start)
        generation = self.generation << GENERATION_SHIFT
        block = memoryview(box)[self._aad_size :]
        tag = bytearray(TAG_SIZE)
        for at in range(start, stop):
            block[:] = data[at * size : (at + 1) * size]
            box[: self._aad_size] = self._aad + layout.pack_level_index(level, index + at)
            self._writer.encrypt_into(nonces[at], b"", box, tag)
            self._storage.write_at((places[at] - self._origin) * size, block)
            POINTER.pack_into(pointers, at * POINTER.size, generation | places[at], nonces[at], tag)
        self._give_box(box)

    def copy(self, source: int, target: int) -> None:
        """Put what rests in one place into another too, as it is: a place is bound into no block."""
        box = self._take_box(1)
        view = memoryview(box)[: self.block_size]
        self._fetch(0, 0, source, view)
        self._storage.write_at((target - self._origin) * self.block_size, view)
        self._give_box(box)

    # Threads.

    def _take_box(self, blocks: int) -> bytearray:
        many = blocks > 1 and self._run > 1
        try:
            return self._boxes[many].pop()
        except IndexError:
            if self._clear:
                return bytearray(self._aad_size + self.block_size)
            return bytearray((self._run if many else 1) * self.block_size + TAG_SIZE)

    def _give_box(self, box: bytearray) -> None:
        self._boxes[len(box) > 2 * self.block_size].append(box)

    def _split(self, count: int, work: Callable[[int, int], None]) -> None:
        """Call `work` for all of 0 to `count`, in several threads where that is faster."""
        if count * self.block_size < _LONG or self.block_size < _SMALL_BLOCK or _THREADS == 1:
            work(0, count)
            return
        step = max(1, _SLICE // self.block_size)
        todo = deque((start, min(start + step, count)) for start in range(0, count, step))

        def take() -> None:
            with contextlib.suppress(IndexError):
                while True:
                    start, stop = todo.popleft()
                    try:
                        work(start, stop)
                    except BaseException:
                        todo.clear()
                        raise

        others: list[Future[None]] = []
        with contextlib.suppress(
            RuntimeError
        ):  # no more threads: the interpreter is ending, or the system forbids them
            others.extend(_pool().submit(take) for _ in range(_THREADS - 1))
        try:
            take()
        finally:
            todo.clear()
            wait(others)  # they work on the caller's memory
        for other in others:
            other.result()


_executor: ThreadPoolExecutor | None = None


def _pool() -> ThreadPoolExecutor:
    global _executor
    if _executor is None:
        _executor = ThreadPoolExecutor(_THREADS - 1, thread_name_prefix="sealed")
    return _executor


def _forget_pool() -> None:
    global _executor
    _executor = None  # a forked child has none of its threads


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)
