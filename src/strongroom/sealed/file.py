"""The sealed file as a Python file object, and its commit."""

from __future__ import annotations

import contextlib
import io
import os
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from strongroom.crypto import random_bytes
from strongroom.errors import ConflictError, RollbackError, StrongroomError, UsageError
from strongroom.sealed import layout, slots
from strongroom.sealed.anchor import NO_FRESHNESS, Anchor, NoFreshness, Root
from strongroom.sealed.layout import FILE_ID_SIZE, MAX_LENGTH, Commit, Header
from strongroom.sealed.slots import Slots
from strongroom.sealed.tree import BlockTree
from strongroom.storage import Directory, Storage

if TYPE_CHECKING:
    from collections.abc import Buffer  # type: ignore[attr-defined,unused-ignore]  # Python 3.12
    from types import TracebackType
    from typing import Self

Mode = Literal["r", "w", "x", "r+"]

_CACHE = 4 << 20  # decrypted blocks kept for small reads and writes


class SealedFile(io.BufferedIOBase):
    """A sealed file that is open. Made by `open_sealed`; its methods may be called from several threads.

    Invariants:

    - A commit is data blocks -> sync -> slot -> sync -> anchor. What the newest committed root and the one before it
      reach is not overwritten meanwhile.
    - After a failed write or commit the handle is poisoned: what a failed sync left on the disk is unknown, and half a
      write is nothing that anybody asked to commit.
    - Bytes of the last block behind the length are zeros.

    Args:
        directory: is synced in the first commit, so that the file's name is durable too.
        write_once, expected: as `open_in` says.
    """

    def __init__(
        self,
        storage: Storage,
        mode: Mode,
        key: bytes,
        anchor: Anchor | NoFreshness,
        block_size: int,
        *,
        what: str,
        directory: Directory | None = None,
        write_once: bool = False,
        expected: bool = False,
    ) -> None:
        self._lock = threading.RLock()
        self._storage = storage
        self._anchor = anchor
        self._what = what
        self._directory = directory
        self.on_abandon: Callable[[], None] = lambda: None
        self._write_once = write_once
        self._mode = mode
        self._position = 0
        self._poisoned = False
        self._committed_here = False
        commit = None
        if mode in ("w", "x") and slots.is_new(storage):
            self._slots = _new_slots(key, block_size)
            if anchor is not NO_FRESHNESS and (latest := anchor.read()):
                raise RollbackError(
                    f"{what}: is new, but the anchor holds {latest}",
                    hint="what the anchor remembers was deleted, or the anchor belongs to something else",
                )
        elif mode == "x":
            raise FileExistsError(f"{what}: holds a sealed file already")
        else:
            self._slots, commit = slots.read_slots(storage, key, what, expected=expected)
            slots.check_fresh(commit.root(self._slots.header), commit.previous, anchor, what)
        header = self._slots.header
        self._block_size = header.block_size
        previous = self._slots.before(commit) if commit else None
        self._tree = BlockTree(
            storage, self._slots.cipher, header.file_id, header.block_size, commit, previous, what=what
        )
        self._commit = commit
        self._root = commit.root(header) if commit else None
        self._anchored = self._root
        self._length = commit.length if commit else 0
        # Decrypted blocks in the order of their last use; the flag says that a block is newer than the tree.
        self._blocks: OrderedDict[int, bytearray] = OrderedDict()
        self._newer: set[int] = set()
        self._capacity = max(4, _CACHE // header.block_size)
        self._changed = commit is None
        if mode == "w" and commit:
            self.truncate(0)
            self._changed = True

    # What it is.

    @property
    def root(self) -> Root | None:
        """The root of the newest committed version; None before the first commit."""
        return self._root

    @property
    def name(self) -> str:
        return self._what

    @property
    def mode(self) -> str:
        return {"r": "rb", "w": "wb", "x": "xb", "r+": "rb+"}[self._mode]

    @property
    def block_size(self) -> int:
        return self._block_size

    @property
    def length(self) -> int:
        """In bytes, with what is not committed yet."""
        return self._length

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return self._mode != "r"

    def seekable(self) -> bool:
        return True

    # Reading.

    def read_at(self, offset: int, buffer: Buffer) -> int:
        """Fill `buffer` from `offset` on, whatever the position is; the count is smaller only at the end.

        Raises:
            TamperedError, TruncatedError: a block is not what was committed; `buffer` holds nothing of it.
        """
        with self._lock, memoryview(buffer) as raw, raw.cast("B") as view:
            self._usable()
            size = self._block_size
            done, total = 0, max(0, min(len(view), self._length - offset))
            while done < total:
                index, start = divmod(offset + done, size)
                count = min(size - start, total - done)
                part = view[done : done + count]
                if count == size and index not in self._blocks:
                    self._tree.read(index, part)
                else:
                    part[:] = memoryview(self._block(index))[start : start + count]
                done += count
            return total

    def readinto(self, buffer: Buffer) -> int:
        with self._lock:
            count = self.read_at(self._position, buffer)
            self._position += count
            return count

    readinto1 = readinto

    def read(self, size: int | None = -1) -> bytes:
        with self._lock:
            left = max(0, self._length - self._position)
            buffer = bytearray(left if size is None or size < 0 else min(size, left))
            self.readinto(buffer)
            return bytes(buffer)

    def read1(self, size: int = -1) -> bytes:
        return self.read(size)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        with self._lock:
            self._usable()
            if whence not in (os.SEEK_SET, os.SEEK_CUR, os.SEEK_END):
                raise ValueError(f"whence: {whence}, wanted 0, 1 or 2")
            position = offset + (0, self._position, self._length)[whence]
            if position < 0:
                raise ValueError(f"position: {position}, wanted 0 or more")
            self._position = position
            return position

    def tell(self) -> int:
        self._usable()
        return self._position

    # Writing.

    def write(self, data: Buffer) -> int:
        """Write all of `data` at the position."""
        with self._lock, memoryview(data) as raw, raw.cast("B") as view:
            self._writing()
            end = self._position + len(view)
            if end > MAX_LENGTH:
                raise UsageError(f"length: {end} bytes, wanted at most {MAX_LENGTH}")
            if not view:
                return 0
            self._poisoned = self._changed = True
            if end > self._length:
                self._tree.grow(end)
            size = self._block_size
            done = 0
            while done < len(view):
                index, start = divmod(self._position, size)
                count = min(size - start, len(view) - done)
                part = view[done : done + count]
                if count == size:
                    self._tree.write(index, part)
                    self._forget(index)
                else:
                    memoryview(self._block(index))[start : start + count] = part
                    self._newer.add(index)
                done += count
                self._position += count
                self._length = max(self._length, self._position)
            self._poisoned = False
            return done

    def truncate(self, size: int | None = None) -> int:
        """Cut the file, or extend it by a hole that reads as zeros, to `size` bytes (default: the position)."""
        with self._lock:
            self._writing()
            size = self._position if size is None else size
            if not 0 <= size <= MAX_LENGTH:
                raise UsageError(f"length: {size} bytes, wanted 0 to {MAX_LENGTH}")
            if size == self._length:
                return size
            self._poisoned = self._changed = True
            if size > self._length:
                self._tree.grow(size)
            else:
                last, start = divmod(size, self._block_size)
                if start:
                    self._block(last)[start:] = bytes(self._block_size - start)
                    self._newer.add(last)
                for index in [index for index in self._blocks if index * self._block_size >= size]:
                    self._forget(index)
                self._tree.cut(size)
            self._length = size
            self._poisoned = False
            return size

    def flush(self) -> None:
        """Do nothing: only `commit` makes anything durable."""

    def commit(self) -> Root:
        """Make the content, as it is now, the newest version, durably and atomically; return its root.

        Raises:
            OSError: the storage failed. The handle is of no use afterwards; the last commit or this one is on disk.
            ConflictError: the anchor holds something else, so another writer was faster. Likewise.
            CasError: the anchor did not answer. The commit is on disk and undecided; call `commit` again.
        """
        with self._lock:
            self._writing()
            if self._anchored != self._root:
                self._advance()
            if self._changed or self._root is None:
                self._poisoned = True
                self._write_commit()
                self._poisoned = False
                self._advance()
            assert self._root is not None  # noqa: S101  # there was one, or it was just made
            return self._root

    def _write_commit(self) -> None:
        for index in sorted(self._newer):
            self._tree.write(index, self._blocks[index])
        self._newer.clear()
        pointer = self._tree.flush()
        size = self._tree.extent() * self._block_size
        if self._storage.size() != size:
            self._storage.resize(size)
        if not self._write_once:
            self._storage.sync()
        sequence = self._root.sequence + 1 if self._root else 1
        commit = Commit(sequence, self._length, self._tree.reach(), pointer, self._root)
        self._slots.write(self._storage, commit, self._tree.nonce())
        if self._write_once:
            self._slots.write(self._storage, commit, self._tree.nonce())
        self._storage.sync()
        if self._commit is None and self._directory:
            self._directory.sync()
        self._tree.committed(commit)
        self._commit = commit
        self._root = commit.root(self._slots.header)
        self._changed = False
        self._committed_here = True

    def _advance(self) -> None:
        if self._anchor is not NO_FRESHNESS and self._root:
            try:
                self._anchor.advance(self._anchored, self._root)
            except ConflictError:
                self._poisoned = True
                raise
        self._anchored = self._root

    def verify(self) -> int:
        """Read every block of the newest committed version from the storage; return the number of data blocks.

        Raises:
            IntegrityError: a block is not what was committed.
        """
        with self._lock:
            self._usable()
            return self._tree.verify()

    # The end.

    def close(self) -> None:
        """Commit what was written, and give back the storage. Closing twice is fine.

        Raises:
            StrongroomError: an earlier write or commit failed, so that what was written since the last is lost.
            OSError, ConflictError, CasError: as `commit`.
        """
        with self._lock:
            if self.closed:
                return
            try:
                if self.writable():
                    self.commit()
                    self._copy_slot()
            finally:
                self.discard()

    def _copy_slot(self) -> None:
        # A second copy of the newest slot, so that one damaged sector does not cost the last commit.
        if self._committed_here and self._commit and self._slots.copies(self._commit) < 2:
            self._slots.write(self._storage, self._commit, self._tree.nonce())
            self._storage.sync()

    def discard(self) -> None:
        """Close without committing: the newest committed version stays the newest; a new file goes away."""
        with self._lock:
            if not self.closed:
                super().close()
                self._blocks.clear()
                self._storage.close()
                if self._root is None:
                    with contextlib.suppress(OSError):  # what stays behind holds nothing, and is taken over by "w"
                        self.on_abandon()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()

    def __enter__(self) -> Self:
        self._usable()
        return self

    def __del__(self) -> None:
        # A commit must not depend on when the collector runs, so this discards; io.IOBase would close.
        if "_newer" in self.__dict__ and not self.closed:
            if self.writable() and self._changed:
                warnings.warn(f"{self._what}: not closed, so not committed", ResourceWarning, stacklevel=2)
            self.discard()

    def __repr__(self) -> str:
        return f"<SealedFile {self._what!r} mode={self._mode!r} root={self._root}>"

    # Decrypted blocks.

    def _block(self, index: int) -> bytearray:
        block = self._blocks.get(index)
        if block is not None:
            self._blocks.move_to_end(index)
            return block
        block = self._evict() if len(self._blocks) >= self._capacity else bytearray(self._block_size)
        if index * self._block_size < self._length:
            self._tree.read(index, block)
        else:
            block[:] = bytes(self._block_size)
        self._blocks[index] = block
        return block

    def _evict(self) -> bytearray:
        index = next(iter(self._blocks))
        if index in self._newer:
            self._tree.write(index, self._blocks[index])
        self._newer.discard(index)
        return self._blocks.pop(index)

    def _forget(self, index: int) -> None:
        self._blocks.pop(index, None)
        self._newer.discard(index)

    def _usable(self) -> None:
        if self.closed:
            raise ValueError(f"{self._what}: is closed")

    def _writing(self) -> None:
        self._usable()
        if not self.writable():
            raise io.UnsupportedOperation(f"{self._what}: open for reading only")
        if self._poisoned:
            raise StrongroomError(
                f"{self._what}: an earlier write or commit failed, so this handle commits no more", hint="open it again"
            )


def _new_slots(key: bytes, block_size: int) -> Slots:
    file_id = random_bytes(FILE_ID_SIZE)
    header = Header(block_size, file_id, layout.commitment(key, file_id))
    return Slots(header, layout.block_cipher(key, file_id))
