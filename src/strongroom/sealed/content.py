"""The bytes of one block tree at any offset: what a sealed file and each file of a vault hold."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from strongroom.crypto import BlockCipher
from strongroom.errors import StrongroomError, UsageError
from strongroom.sealed import layout, upkeep, versions
from strongroom.sealed.blocks import BlockStore
from strongroom.sealed.cache import BlockCache
from strongroom.sealed.layout import MAX_LENGTH
from strongroom.sealed.tree import END, BlockTree
from strongroom.sealed.versions import Scrub, Version
from strongroom.storage import Storage, is_full

if TYPE_CHECKING:
    from collections.abc import Buffer  # type: ignore[attr-defined,unused-ignore]  # Python 3.12

__all__ = ["Content", "Scrub", "Version"]


_PIECE = 64 << 20  # bytes of one transfer, so that what it takes beside them stays small


class Content:
    """Random access to the bytes of one block tree. Its methods may be called from several threads.

    It knows neither slots nor anchor nor locks, and syncs nothing: whoever owns it makes a commit of `prepare`, a sync,
    its own record of the version, and `committed`.

    Invariants:

    - A write never touches a place that the newest committed version or a held one reaches.
    - After a failed write it is `poisoned` and takes no more of them: half a write is nothing that anybody asked for. A
      full disk is another matter: some blocks are new and some old then, as POSIX has it, and one may go on.
    - Bytes of the last block behind the length are zeros.

    Args:
        storage: where the blocks rest. It stays the caller's.
        ciphers: of the blocks, by generation of the key.
        file_id: bound into every block.
        version: the newest committed one, None for a new content.
        generation: of the key to write with.
        slots: whether superblock slots lie before the blocks. Without, place 1 rests at byte 0.
        held: older versions that have to stay whole.
        what: the content's name, for errors.
        cache: bytes of decrypted blocks kept for small reads and writes.
        write_early: whether blocks may be written before `prepare`. If not, they are kept in memory, however many.
        authenticated_only: the blocks rest in clear. Which of the two it is is bound into each.

    Raises:
        TamperedError: the root block's place cannot be.
    """

    def __init__(
        self,
        storage: Storage,
        ciphers: Mapping[int, BlockCipher],
        file_id: bytes,
        block_size: int,
        version: Version | None,
        *,
        slots: bool,
        what: str,
        generation: int = 0,
        held: Iterable[Version] = (),
        cache: int = 4 << 20,
        write_early: bool = True,
        authenticated_only: bool = False,
    ) -> None:
        self._lock = threading.RLock()
        self._what = what
        self._size = block_size
        self._write_early = write_early
        store = BlockStore(
            storage,
            ciphers,
            generation,
            file_id,
            block_size,
            origin=0 if slots else 1,
            authenticated_only=authenticated_only,
            what=what,
        )
        self._tree = BlockTree(store, version, held, first=layout.first_place(block_size) if slots else 1)
        self._version = version
        self._length = version.length if version else 0
        self._blocks = BlockCache(self._tree, block_size, max(4, cache // block_size), write_early=write_early)
        # Changes are counted, so that one made between `prepare` and `committed` is not lost sight of.
        self._changes = 0
        self._prepared: tuple[Version, int] | None = None
        self._committed_changes = 0
        self._poisoned = False
        self._closed = False

    # What it is.

    @property
    def length(self) -> int:
        """In bytes, with what is not committed yet."""
        return self._length

    @property
    def version(self) -> Version | None:
        """The newest committed version."""
        return self._version

    @property
    def changed(self) -> bool:
        """Whether it differs from the newest committed version, as far as one can tell without comparing."""
        return self._changes != self._committed_changes

    @property
    def dirty(self) -> int:
        """Bytes of decrypted blocks that are newer than the tree."""
        return self._blocks.dirty

    @property
    def poisoned(self) -> bool:
        """Whether a write failed, so that nothing can be written or committed any more."""
        return self._poisoned

    # Bytes.

    def read_at(self, offset: int, buffer: Buffer) -> int:
        """Fill `buffer` from `offset` on; the count is smaller than its length only at the end.

        Raises:
            TamperedError, TruncatedError: a block is not what was written; `buffer` holds nothing of it.
        """
        with self._lock:
            self._usable()
            size = self._size
            # One whole block, as a mount and a data base ask for them: no views are made.
            if type(buffer) is bytearray and len(buffer) == size and 0 <= offset <= self._length - size:
                index, start = divmod(offset, size)
                if not start and index not in self._blocks:
                    try:
                        self._tree.read_one(index, buffer)
                    except BaseException:
                        buffer[:] = bytes(size)  # of what failed to authenticate nobody may see anything
                        raise
                    return size
            with memoryview(buffer) as raw, raw.cast("B") as view:
                self._check_offset(offset)
                total = max(0, min(len(view), self._length - offset))
                self._blocks.read(offset, view if total == len(view) else view[:total])
                return total

    def read_blocks(self, indices: Sequence[int], out: Buffer, rows: Sequence[int] | None = None) -> None:
        """Put block `indices[k]` into the `rows[k]`-th block of `out`, for all k; into the k-th without `rows`.

        For many small reads that are known together: what one call costs is paid once, and a large batch is split over
        threads. What lies behind the end reads as zeros. `out` is C-contiguous; blocks of it that no row names stay.

        Raises:
            UsageError: a block or a row is negative, or a row lies behind the end of `out`.
            TamperedError, TruncatedError: a block is not what was written; all rows named are then zeros.
        """
        rows = range(len(indices)) if rows is None else rows
        size = self._size
        with self._lock, memoryview(out) as raw, raw.cast("B") as view:
            self._usable()
            if len(rows) != len(indices):
                raise UsageError(f"rows: {len(rows)}, wanted as many as blocks: {len(indices)}")
            if not len(indices):
                return
            if min(indices) < 0 or min(rows) < 0 or (max(rows) + 1) * size > len(view):
                raise UsageError(
                    f"blocks from {min(indices)} on into rows {min(rows)} to {max(rows)}, "
                    f"wanted rows 0 to {len(view) // size - 1} and no negative block"
                )
            self._blocks.read_each(indices, [row * size for row in rows], view)

    def read_pieces(self, pieces: Sequence[tuple[int, int, int]], out: Buffer) -> None:
        """For each (offset, count, start): put `count` blocks from byte `offset` on into `out`, from byte `start` on.

        As `read_blocks`, for pieces that are long and whose places in `out` are no blocks of it.

        Raises:
            UsageError: an offset is no multiple of the block size, or a piece does not fit into `out`.
            TamperedError, TruncatedError: as `read_blocks`.
        """
        size = self._size
        with self._lock, memoryview(out) as raw, raw.cast("B") as view:
            self._usable()
            indices: list[int] = []
            starts: list[int] = []
            for offset, count, start in pieces:
                if offset < 0 or offset % size or count < 0 or start < 0 or start + count * size > len(view):
                    raise UsageError(
                        f"piece: {count} blocks at {offset} to {start}, wanted whole blocks, and room for them"
                    )
                indices.extend(range(offset // size, offset // size + count))
                starts.extend(range(start, start + count * size, size))
            if indices:
                self._blocks.read_each(indices, starts, view)

    def write_at(self, offset: int, data: Buffer) -> None:
        """Write all of `data` at `offset`; a gap behind the end becomes a hole, which reads as zeros.

        Raises:
            UsageError: it would grow past the format's limit.
            IntegrityError: a block that had to be read is not what was written.
        """
        with self._lock, memoryview(data) as raw, raw.cast("B") as view:
            self._writing()
            self._check_offset(offset)
            end = offset + len(view)
            if end > MAX_LENGTH:
                raise UsageError(f"length: {end} bytes, wanted at most {MAX_LENGTH}")
            if not view:
                return
            self._begin()
            try:
                if end > self._length:
                    self._tree.grow(end)
                self._write(offset, view)
                if self._write_early:
                    self._tree.relieve()
            except OSError as error:
                if is_full(error):
                    self._shrink_from(end)
                raise
            self._length = max(self._length, end)
            self._poisoned = False

    def write_blocks(self, pieces: Sequence[tuple[int, Buffer]]) -> None:
        """Write pieces of whole blocks, each at its offset, a multiple of the block size; they do not overlap.

        For many pieces that are known together: what one call costs is paid once, and they share the threads.

        Raises:
            UsageError: a piece is not of whole blocks, or would grow past the format's limit.
        """
        size = self._size
        with self._lock:
            self._writing()
            views = [(offset // size, memoryview(data).cast("B")) for offset, data in pieces]
            for (offset, _), (_, view) in zip(pieces, views, strict=True):
                if offset < 0 or offset % size or len(view) % size or offset + len(view) > MAX_LENGTH:
                    raise UsageError(f"piece: {len(view)} bytes at {offset}, wanted whole blocks of {size}")
            end = max((index * size + len(view) for index, view in views), default=0)
            if not end:
                return
            self._begin()
            try:
                if end > self._length:
                    self._tree.grow(end)
                for group in _groups(views, size):
                    if self._write_early:
                        self._tree.write_each(group)
                        self._tree.relieve()
                    for index, view in group:
                        for k in range(0 if self._write_early else len(view) // size):
                            self._blocks.put(index + k, view[k * size : (k + 1) * size])
                        if self._write_early:
                            self._blocks.forget(index, index + len(view) // size)
            except OSError as error:
                if is_full(error):
                    self._shrink_from(end)
                raise
            self._length = max(self._length, end)
            self._poisoned = False

    def _shrink_from(self, end: int) -> None:
        """After a write up to `end` that found the disk full: the length stays, and blocks are whole, old or new."""
        self._poisoned = False
        if end > self._length:
            length, self._length = self._length, end
            self.truncate(length)

    def _write(self, offset: int, view: memoryview) -> None:
        size, done = self._size, 0
        while done < len(view):
            index, start = divmod(offset + done, size)
            count = min(len(view) - done, _PIECE) // size if start == 0 else 0
            if count and self._write_early:
                self._tree.write(index, view[done : done + count * size])
                self._blocks.forget(index, index + count)
                done += count * size
            elif count:
                self._blocks.put(index, view[done : done + size])
                done += size
            else:
                part = view[done : done + size - start]
                memoryview(self._blocks.changing(index))[start : start + len(part)] = part
                done += len(part)

    def truncate(self, length: int) -> None:
        """Cut it, or extend it by a hole, to `length` bytes."""
        with self._lock:
            self._writing()
            if not 0 <= length <= MAX_LENGTH:
                raise UsageError(f"length: {length} bytes, wanted 0 to {MAX_LENGTH}")
            if length == self._length:
                return
            self._begin()
            if length > self._length:
                self._tree.grow(length)
            else:
                behind = -(-length // self._size)
                self._blocks.zero(length, behind * self._size)
                self._blocks.forget(behind)
                self._tree.cut(length)
            self._length = length
            self._poisoned = False

    def punch(self, offset: int, length: int) -> None:
        """Put zeros in place of `length` bytes at `offset`, as holes where they are whole blocks.

        The content's length stays as it is; what lies behind its end is left out.
        """
        with self._lock:
            self._writing()
            if offset < 0 or length < 0:
                raise UsageError(f"hole: {length} bytes at {offset}, wanted no negative number")
            stop = min(offset + length, self._length)
            if offset >= stop:
                return
            self._begin()
            first, last = -(-offset // self._size), stop // self._size
            if stop == self._length:
                last = END  # the last block goes too, though it be no whole one
            if first > last:
                self._blocks.zero(offset, stop)
            else:
                self._blocks.zero(offset, min(first * self._size, stop))
                if last != END:
                    self._blocks.zero(last * self._size, stop)
                self._blocks.forget(first, last)
                self._tree.punch(first, last)
            self._poisoned = False

    # Versions.

    def prepare(self) -> Version:
        """Write every block that is not written yet, and give the storage its size. Nothing is synced.

        The version returned is this content as it is now. Its blocks stay whole until the next `prepare`, and from
        `committed` on for good. Where nothing changed it is the newest committed one.

        Raises:
            OSError: the storage failed; nothing more can be written.
        """
        with self._lock:
            self._writing()
            self._poisoned = True
            try:
                if self._version is None or self.changed:
                    self._blocks.write()
                    self._prepared = self._tree.prepare(self._length), self._changes
                else:
                    self._tree.trim()
                    self._prepared = self._version, self._changes
            except OSError as error:
                self._poisoned = not is_full(error)  # what is not written yet can be written later
                raise
            self._poisoned = False
            return self._prepared[0]

    def committed(self, version: Version) -> None:
        """Note that `version`, which the last `prepare` gave, is recorded durably as the newest one.

        The one that was the newest is held from now on.
        """
        with self._lock:
            if self._prepared is None or self._prepared[0] != version:
                raise ValueError("version: not the one that was prepared last")
            if version != self._version:
                self._tree.committed(version)
            self._version, self._committed_changes = self._prepared
            self._prepared = None

    def hold(self, versions: Iterable[Version]) -> None:
        """From now on exactly these older versions stay whole, besides the newest; every other place is free."""
        with self._lock:
            self._tree.hold(versions)

    def verify(self) -> int:
        """Read every block of the newest committed version from the storage; the number of data blocks read.

        Raises:
            IntegrityError: a block is not what was committed.
        """
        with self._lock:
            self._usable()
            return versions.verify(self._tree.store, self._version, self._tree.first) if self._version else 0

    def places(self) -> Iterator[int]:
        """The place of each data block of the newest committed version; 0 of a hole.

        Raises:
            IntegrityError: an interior block is not what was committed.
        """
        length = self._version.length if self._version else 0
        for index in range(-(-length // self._size)):
            with self._lock:
                self._usable()
                yield versions.place_of(self._tree.pointer(0, index))

    # Upkeep.

    def generations(self) -> set[int]:
        """The generations of the keys that blocks of the newest committed version are sealed under.

        Raises:
            IntegrityError: an interior block is not what was committed.
        """
        with self._lock:
            self._usable()
            return versions.generations(self._tree.store, self._version) if self._version else set()

    def rekey_step(self, limit_blocks: int) -> int:
        """Write at most so many blocks anew that are not of the newest key; the result is how many are left.

        They count after the next commit. Older versions keep their keys.

        Raises:
            IntegrityError: a block is not what was written.
        """
        with self._lock:
            self._writing()
            self._poisoned = True
            rewrite = self._tree.rewrite if self._write_early else self._blocks.changing
            done, left = upkeep.rekey_step(self._tree, limit_blocks, rewrite, self._blocks.newer)
            self._changes += done > 0
            self._poisoned = False
            return left

    def compact(self, limit_blocks: int) -> int:
        """Move at most so many blocks from the end of the storage into free places; the result is how many.

        The storage shrinks when no version needs its end any more: after the commits that follow, and `hold`.

        Raises:
            IntegrityError: an interior block is not what was written. Data is moved without being decrypted.
        """
        with self._lock:
            self._writing()
            self._poisoned = True
            if self._write_early:
                self._tree.flush()
            move = self._tree.move if self._write_early else self._blocks.changing
            moved = upkeep.compact(self._tree, limit_blocks, move, self._blocks.newer)
            self._changes += moved > 0
            self._poisoned = False
            return moved

    def scrub(self) -> Scrub:
        """Read every block of the newest committed version and of the held ones, and go on where one is damaged."""
        with self._lock:
            self._usable()
            return versions.scrub(self._tree.store, self._tree.kept(), self._tree.first)

    def close(self) -> None:
        """Forget everything decrypted. What was not committed is lost. Closing twice is fine."""
        with self._lock:
            self._closed = True
            self._blocks.forget()
            self._tree.forget()

    # State.

    @staticmethod
    def _check_offset(offset: int) -> None:
        if offset < 0:
            raise UsageError(f"offset: {offset}, wanted 0 or more")

    def _begin(self) -> None:
        """A change begins: until it is whole nothing may be committed."""
        self._poisoned = True
        self._changes += 1

    def _usable(self) -> None:
        if self._closed:
            raise ValueError(f"{self._what}: is closed")

    def _writing(self) -> None:
        self._usable()
        if self._poisoned:
            raise StrongroomError(
                f"{self._what}: an earlier write or commit failed, so this handle commits no more", hint="open it again"
            )


def _groups(views: Sequence[tuple[int, memoryview]], size: int) -> Iterator[list[tuple[int, memoryview]]]:
    """The pieces, some at a time, and long ones cut, so that what a transfer takes beside them stays small."""
    group: list[tuple[int, memoryview]] = []
    room = _PIECE
    for index, view in views:
        while view:
            part, view = view[:room], view[room:]
            group.append((index, part))
            index += len(part) // size  # the rest of the piece begins there
            room -= len(part)
            if not room:
                yield group
                group, room = [], _PIECE
    if group:
        yield group
