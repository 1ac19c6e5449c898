"""The sealed file as a Python file object, and its commit."""

from __future__ import annotations

import contextlib
import io
import os
import threading
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from strongroom.crypto import random_bytes
from strongroom.errors import ConflictError, RollbackError, StrongroomError
from strongroom.sealed import layout, slots
from strongroom.sealed.anchor import NO_FRESHNESS, Anchor, NoFreshness, Root
from strongroom.sealed.content import Content, Version
from strongroom.sealed.layout import FILE_ID_SIZE, Commit, Header, NonceSource
from strongroom.sealed.slots import Slots
from strongroom.storage import Directory, Storage

if TYPE_CHECKING:
    from collections.abc import Buffer  # type: ignore[attr-defined,unused-ignore]  # Python 3.12
    from types import TracebackType
    from typing import Self

Mode = Literal["r", "w", "x", "r+"]


class SealedFile(io.BufferedIOBase):
    """A sealed file that is open. Made by `open_sealed`; its methods may be called from several threads.

    Invariants:

    - A commit is data blocks -> sync -> slot -> sync -> anchor. What the newest committed root and the one before it
      reach is not overwritten meanwhile.
    - After a failed write or commit the handle is poisoned: what a failed sync left on the disk is unknown, and half a
      write is nothing that anybody asked to commit.

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
        previous = self._slots.before(commit) if commit else None
        self._content = Content(
            storage,
            {0: self._slots.cipher},
            header.file_id,
            header.block_size,
            _version(commit) if commit else None,
            slots=True,
            held=[_version(previous)] if previous else (),
            what=what,
        )
        self._nonces = NonceSource()
        self._commit = commit
        self._root = commit.root(header) if commit else None
        self._anchored = self._root
        self._replaced = False
        if mode == "w" and commit:
            self._content.truncate(0)
            self._replaced = True

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
        return self._slots.header.block_size

    @property
    def length(self) -> int:
        """In bytes, with what is not committed yet."""
        return self._content.length

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
        self._usable()
        return self._content.read_at(offset, buffer)

    def readinto(self, buffer: Buffer) -> int:
        with self._lock:
            count = self.read_at(self._position, buffer)
            self._position += count
            return count

    readinto1 = readinto

    def read(self, size: int | None = -1) -> bytes:
        with self._lock:
            left = max(0, self.length - self._position)
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
            position = offset + (0, self._position, self.length)[whence]
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
        with self._lock, memoryview(data) as raw:
            self._writing()
            self._content.write_at(self._position, raw)
            self._position += raw.nbytes
            return raw.nbytes

    def truncate(self, size: int | None = None) -> int:
        """Cut the file, or extend it by a hole that reads as zeros, to `size` bytes (default: the position)."""
        with self._lock:
            self._writing()
            size = self._position if size is None else size
            self._content.truncate(size)
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
            if self._content.changed or self._replaced or self._root is None:
                self._poisoned = True
                self._write_commit()
                self._poisoned = False
                self._advance()
            assert self._root is not None  # noqa: S101  # there was one, or it was just made
            return self._root

    def _write_commit(self) -> None:
        version = self._content.prepare()
        if not self._write_once:
            self._storage.sync()
        sequence = self._root.sequence + 1 if self._root else 1
        commit = Commit(sequence, version.length, version.places, version.pointer, self._root)
        self._slots.write(self._storage, commit, self._nonces.next())
        if self._write_once:
            self._slots.write(self._storage, commit, self._nonces.next())
        self._storage.sync()
        if self._commit is None and self._directory:
            self._directory.sync()
        self._content.committed(version)
        self._content.hold([_version(self._commit)] if self._commit else [])
        self._commit = commit
        self._root = commit.root(self._slots.header)
        self._replaced = False
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
            return self._content.verify()

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
            self._slots.write(self._storage, self._commit, self._nonces.next())
            self._storage.sync()

    def discard(self) -> None:
        """Close without committing: the newest committed version stays the newest; a new file goes away."""
        with self._lock:
            if not self.closed:
                super().close()
                self._content.close()
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
        if "_nonces" in self.__dict__ and not self.closed:
            if self.writable() and (self._content.changed or self._replaced or self._root is None):
                warnings.warn(f"{self._what}: not closed, so not committed", ResourceWarning, stacklevel=2)
            self.discard()

    def __repr__(self) -> str:
        return f"<SealedFile {self._what!r} mode={self._mode!r} root={self._root}>"

    def _usable(self) -> None:
        if self.closed:
            raise ValueError(f"{self._what}: is closed")

    def _writing(self) -> None:
        self._usable()
        if not self.writable():
            raise io.UnsupportedOperation(f"{self._what}: open for reading only")
        if self._poisoned or self._content.poisoned:
            raise StrongroomError(
                f"{self._what}: an earlier write or commit failed, so this handle commits no more", hint="open it again"
            )


def _version(commit: Commit) -> Version:
    return Version(commit.pointer, commit.length, commit.places)


def _new_slots(key: bytes, block_size: int) -> Slots:
    file_id = random_bytes(FILE_ID_SIZE)
    header = Header(block_size, file_id, layout.commitment(key, file_id))
    return Slots(header, layout.block_cipher(key, file_id))
